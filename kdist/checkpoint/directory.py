"""What a checkpoint is on the disk: named trees of arrays, each as Orbax writes it, and a note, in one directory.

A checkpoint is complete or it is not there: it is written beside its place and renamed at the end.  `writing.py` and
`reading.py` do what the names say, and only they touch Orbax; what the trees mean is said by `weights.py` and
`state.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from kdist.distribution import agree, is_main_process
from kdist.errors import CheckpointError
from kdist.typing import PyTree

FORMAT = 2
"""What is in a checkpoint, as a number: another one is refused."""
NOTE = "about"
"""The name, among the trees, of what is said of them: a directory of one file."""
NOTE_FILE = "note.json"
UNFINISHED = ".orbax-checkpoint-tmp"
"""What Orbax adds to the name of a checkpoint that is being written."""
MARK = "_CHECKPOINT_METADATA"
"""The file that Orbax writes last."""


def is_checkpoint(path: Path) -> bool:
    """Whether Orbax has left its mark: `ocp.is_orbax_checkpoint` takes an empty directory for one."""
    return (path / MARK).is_file()


def by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves by their path, such as ``params.dense.kernel``: the same for dicts of any key type."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def is_key(array: Any) -> bool:
    """Whether an array is one of typed keys: on disk it is the integers that they are made of."""
    return jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)


def stored(tree: PyTree) -> dict[str, Any]:
    """The leaves as they are written, by their path."""
    return {name: jax.random.key_data(a) if is_key(a) else a for name, a in by_path(tree).items()}


def beside(path: Path, name: str) -> Path:
    """Where a checkpoint is while another comes to its place: the "new" one, and then the "old" one."""
    return path.with_name(f".{path.name}.{name}")


def moved_away(parent: Path) -> dict[str, Path]:
    """Checkpoints of a killed run that had not yet put others in their place: where they are, by their names."""
    found = {
        old.name.removeprefix(".").removesuffix(".old"): old for old in parent.glob(beside(parent / "*", "old").name)
    }
    return {name: old for name, old in found.items() if is_checkpoint(old) and not (parent / name).exists()}


def put_back(parent: Path) -> None:
    """Puts back the checkpoints that a killed run had moved away."""
    for name, old in moved_away(parent).items():
        old.rename(parent / name)


def on_main_process(action: Callable[[], None], failing: str) -> None:
    """Process 0 does it, while the others wait; if it fails, all of them raise.

    Args:
        action: What it does.
        failing: How the error begins.

    Raises:
        CheckpointError: It failed.
    """
    error: CheckpointError | None = None
    if is_main_process():
        try:
            action()
        except CheckpointError as raised:
            error = raised
        except OSError as raised:
            error = CheckpointError(f"{failing}: {raised}")
            error.__cause__ = raised
    if agree(int(error is not None)):
        raise error or CheckpointError(f"{failing}: process 0 could not; its own message says why.")

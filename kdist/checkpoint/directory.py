"""A checkpoint on disk: named trees of arrays and a JSON note in one directory.  Only this file touches Orbax.

A checkpoint is complete or it is not there: it is written beside its place and renamed at the end.  What the trees mean
is said by `weights.py` and `state.py`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kdist.checkpoint.fingerprints import fingerprint_on_host, fingerprints
from kdist.checkpoint.notes import from_json, to_json
from kdist.distribution import agree, agree_on_most, is_main_process
from kdist.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError
from kdist.typing import PyTree

FORMAT = 1
"""What is in a checkpoint, as a number: another one is refused."""
UNFINISHED = ".orbax-checkpoint-tmp"
"""What Orbax adds to the name of a checkpoint that is being written."""
DATA = "d"
"""The directories of Orbax that hold the contents of arrays, of which it reads what it needs."""
MOST_NOTE_BYTES = 1 << 28
"""Of any other file, which is read as a whole."""
MOST_LISTED = 10


class Writing:
    """A checkpoint on its way to the disk; what it is made of has been copied, and may change.

    Args:
        path: Where it will be.
        kind: What it is, for messages.
        response: Orbax's handle on the background work.
        put_in_place: Called on process 0 when all is written.
    """

    def __init__(self, path: Path, kind: str, response: Any, put_in_place: Callable[[], None]) -> None:
        self.path, self._kind = path, kind
        self._response, self._put_in_place = response, put_in_place

    def failure(self, seconds: float | None = None) -> CheckpointError | None:
        """Why this process's part has failed; None if it has not, or is not over after so many seconds.

        Args:
            seconds: How long to wait; until it is over by default.
        """
        try:
            self._response.result(timeout=seconds)
        except Exception as cause:  # Orbax raises what its writers do: OSError, ValueError, RuntimeError, ...
            if seconds is not None and isinstance(cause, TimeoutError):
                return None
            error = CheckpointError(
                f"Cannot write {self._kind} to {self.path}, on process {jax.process_index()} of host "
                f"{socket.gethostname()}: {cause}"
            )
            error.__cause__ = cause
            return error
        return None

    def finish(self) -> None:
        """Waits until the checkpoint is complete on the disk.  All processes call it.

        Raises:
            CheckpointError: It could not be written, here or on another process.
        """
        failure = self.failure()
        if agree_on_most(int(failure is not None)):
            raise failure or CheckpointError(
                f"Cannot write {self._kind} to {self.path}: another process failed; its own message says why."
            )
        on_main_process(self._put_in_place, f"Cannot write {self._kind} to {self.path}")


def begin(
    directory: str | os.PathLike[str], trees: dict[str, PyTree], meta: dict[str, Any] | None = None, *, kind: str
) -> Writing:
    """Begins to write a checkpoint in the background; one that is there is replaced at the end.  All processes call it.

    Args:
        directory: Where to; its parents are made.
        trees: Trees of arrays by name, which are copied before this returns.
        meta: A note that JSON can hold.
        kind: What is written, for messages: "weights" or "training states".

    Raises:
        CheckpointError: The directory cannot be written, or holds something else.
    """
    from orbax.checkpoint import v1 as ocp

    path = Path(directory).absolute()
    beside, replaced = _beside(path, "new"), _beside(path, "old")

    def make_way() -> None:
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"Cannot write {kind} to {path}: it is a file, not a directory.")
        if path.is_dir() and any(path.iterdir()) and not is_checkpoint(path):
            raise CheckpointError(
                f"Cannot write {kind} to {path}: the directory holds files that are no checkpoint. Give one of its own."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        # What a killed run left behind; the old one is complete, so it is kept until there is another.
        if replaced.is_dir() and not path.exists():
            replaced.rename(path)
        unfinished = [p for name in (beside.name, path.name) for p in path.parent.glob(f"{name}{UNFINISHED}*")]
        for leftover in [*unfinished, beside, replaced]:
            shutil.rmtree(leftover, ignore_errors=True)

    def put_in_place() -> None:
        if not beside.exists():
            return
        if path.exists():
            path.rename(replaced)
        beside.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)

    on_main_process(make_way, f"Cannot write {kind} to {path}")
    target = beside if agree(int(path.exists())) else path  # Orbax itself renames what is complete
    named = {name: by_path(tree) for name, tree in trees.items()}
    text = to_json(meta or {})
    note = {
        "format": FORMAT,
        "fingerprints": {name: fingerprints(arrays) for name, arrays in named.items()},
        "meta": text,
        "checksum": zlib.crc32(text.encode()),
    }
    try:
        response = ocp.save_checkpointables_async(target, named, custom_metadata=note)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot write {kind} to {path}: {error}") from error
    return Writing(path, kind, response, put_in_place)


def write(
    directory: str | os.PathLike[str], trees: dict[str, PyTree], meta: dict[str, Any] | None = None, *, kind: str
) -> None:
    """Writes a checkpoint, and returns when it is complete on the disk; see `begin`.

    Raises:
        CheckpointError: It cannot be written, or the directory holds something else.
    """
    begin(directory, trees, meta, kind=kind).finish()


class About(NamedTuple):
    """What a checkpoint says of itself, without its arrays.

    Attributes:
        path: Where it is.
        arrays: By tree, shape and dtype of each array by its path; None for a tree that cannot be read.
        fingerprints: By tree, those of the arrays by their path.
        meta: The note that it was written with.
    """

    path: Path
    arrays: dict[str, dict[str, jax.ShapeDtypeStruct] | None]
    fingerprints: dict[str, Any]
    meta: dict[str, Any]


def about(directory: str | os.PathLike[str], *, kind: str) -> About:
    """What a checkpoint says of itself.

    Args:
        directory: Where it is.
        kind: What it holds, for messages.

    Raises:
        CheckpointError: There is none.
        CheckpointCorruptError: It is damaged.
    """
    from orbax.checkpoint import v1 as ocp

    path = Path(directory).absolute()
    if not path.is_dir():
        if not _beside(path, "old").is_dir():
            raise CheckpointError(f"There are no {kind} at {path}: it is not a directory.")
        path = _beside(path, "old")  # a run was killed while it put a new one in its place
    if not is_checkpoint(path):
        raise CheckpointError(f"There are no {kind} at {path} that Orbax can read.")
    _check_files(path, kind)
    try:
        found = ocp.checkpointables_metadata(path)
    except _unreadable() as error:
        raise CheckpointCorruptError(f"The {kind} at {path} cannot be read: {error}") from error
    note, meta = _notes(path, kind, found.custom_metadata)
    arrays = {str(name): _believed(tree) for name, tree in found.metadata.items()}
    return About(path, arrays, note["fingerprints"], meta)


def _check_files(path: Path, kind: str) -> None:
    """Refuses what leads out of the directory, and what is read as a whole and is too large for that.

    Raises:
        CheckpointCorruptError: There is such a file.
    """
    root = os.path.realpath(path)
    for file in path.rglob("*"):
        if file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(root):
            raise CheckpointCorruptError(
                f"The {kind} at {path} are not read: {file.relative_to(path)} is a link out of the directory. Copy the "
                "files that are meant."
            )
        if file.parent.name != DATA and file.lstat().st_size > MOST_NOTE_BYTES:
            raise CheckpointCorruptError(
                f"The {kind} at {path} are not read: {file.relative_to(path)} has {file.lstat().st_size:,} bytes, and "
                f"{MOST_NOTE_BYTES:,} at most are expected."
            )
    for file in path.glob("*/_METADATA"):
        if not _has_store(file):
            raise CheckpointCorruptError(
                f"The {kind} at {path} are not read: {file.relative_to(path)} speaks of arrays in files of their own."
            )


def _has_store(note: Path) -> bool:
    """Whether the arrays of a tree are in one store, where names are only keys: else Orbax takes them for paths."""
    try:
        told = json.loads(note.read_bytes())
    except (OSError, RecursionError, ValueError):
        return True  # Orbax cannot read it either, and says so of this tree alone
    return not isinstance(told, dict) or told.get("use_ocdbt") is True


def _believed(tree: Any) -> dict[str, jax.ShapeDtypeStruct] | None:
    """What Orbax says of the arrays of a tree; None if that cannot be: no array is stored in chunks larger than it."""
    try:
        if any(c > n for a in tree.values() for c, n in zip(a.storage_metadata.chunk_shape, a.shape, strict=True)):
            return None
        return {str(n): jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in tree.items()}
    except (AttributeError, TypeError, ValueError):  # it is no dict of arrays
        return None


def _unreadable() -> tuple[type[Exception], ...]:
    """What Orbax raises for files that are not as they were written."""
    from orbax.checkpoint import v1 as ocp

    return OSError, ValueError, KeyError, RecursionError, ocp.errors.InvalidLayoutError


def read_array(found: About, tree: str, name: str) -> np.ndarray:
    """One array of a checkpoint, verified, in the host's memory, whatever devices there are.

    Args:
        found: What the checkpoint says of itself.
        tree: The array's tree.
        name: Its path there.

    Raises:
        CheckpointCorruptError: It is damaged, or larger than the memory of this machine.
    """
    from orbax.checkpoint import v1 as ocp

    like = (found.arrays[tree] or {})[name]
    if math.prod(like.shape) * like.dtype.itemsize > _memory_bytes():
        raise CheckpointCorruptError(f"{tree}.{name} at {found.path} is larger than the memory: {_signature(like)}.")
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            # An array on the host is asked for by one, which is of one element here and takes no memory.
            target = np.broadcast_to(np.empty((), like.dtype), like.shape)
            array = ocp.load_checkpointables(found.path, {tree: {name: target}})[tree][name]
    except _unreadable() as error:
        raise CheckpointCorruptError(f"{tree}.{name} at {found.path} cannot be read: {error}") from error
    if fingerprint_on_host(array) != found.fingerprints.get(tree, {}).get(name):
        raise CheckpointCorruptError(f"{tree}.{name} at {found.path} is not what was written.")
    return array


def _memory_bytes() -> float:
    """The memory of this machine; infinite where it does not say."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf


def read(
    directory: str | os.PathLike[str], likes: dict[str, PyTree], *, kind: str
) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """Reads trees of a checkpoint.  All processes call it.

    Args:
        directory: Where from.
        likes: The trees to read, by name, with the shapes, dtypes and shardings that are expected.
        kind: What is read, for messages.

    Returns:
        The trees, placed like `likes`, and the note.

    Raises:
        CheckpointError: There is no such checkpoint.
        CheckpointCorruptError: It is damaged.
        CheckpointMismatchError: It is of another model.  Nothing is cast or left out.
    """
    from orbax.checkpoint import v1 as ocp

    found = about(directory, kind=kind)
    path = found.path
    damaged = [name for name in likes if found.arrays.get(name, {}) is None]
    if damaged:
        raise CheckpointCorruptError(f"The {kind} at {path} cannot be read: {', '.join(damaged)} is damaged.")
    missing = [name for name in likes if name not in found.arrays]
    if missing:
        raise CheckpointError(f"There are no {kind} at {path}: it holds {', '.join(found.arrays)} only.")
    expected = {name: by_path(like) for name, like in likes.items()}
    for name, arrays in expected.items():
        _compare(path, kind, found.arrays[name] or {}, arrays)
    targets = {name: {n: _target(a) for n, a in arrays.items()} for name, arrays in expected.items()}
    try:
        loaded = ocp.load_checkpointables(path, targets)
    except _unreadable() as error:
        raise CheckpointCorruptError(f"The {kind} at {path} cannot be read: {error}") from error
    trees = {}
    for name, like in likes.items():
        # A key comes back with an equal sharding of another rank, which would be compiled for anew.
        leaves = {n: jax.device_put(loaded[name][n], target.sharding) for n, target in targets[name].items()}
        _verify(path, kind, found.fingerprints.get(name), leaves)
        trees[name] = jax.tree.unflatten(jax.tree.structure(like), list(leaves.values()))
    return trees, found.meta


def _notes(path: Path, kind: str, note: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was written beside the arrays, and the caller's part of it.

    Raises:
        CheckpointCorruptError: It is not what `begin` writes.
    """
    if not isinstance(note, dict) or note.get("format") != FORMAT:
        found = note.get("format") if isinstance(note, dict) else None
        raise CheckpointCorruptError(
            f"The {kind} at {path} cannot be read: their format is {found!r}, and this version of kdist reads {FORMAT}."
        )
    try:
        if zlib.crc32(note["meta"].encode()) != note["checksum"]:
            raise ValueError("it is not what was written")
        if not all(isinstance(known, dict) for known in [note["fingerprints"], *note["fingerprints"].values()]):
            raise TypeError("its fingerprints are none")
        return note, dict(from_json(note["meta"]))
    except (RecursionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointCorruptError(f"The {kind} at {path} cannot be read: their note is damaged: {error}") from error


def _verify(path: Path, kind: str, expected: Any, arrays: dict[str, Any]) -> None:
    """Refuses arrays that are not those that were written.

    Raises:
        CheckpointCorruptError: A fingerprint differs, or there is none.
    """
    found = fingerprints(arrays)
    if not isinstance(expected, dict) or found != expected:
        known = expected if isinstance(expected, dict) else {}
        wrong = [name for name in found if known.get(name) != found[name]]
        raise CheckpointCorruptError(
            f"The {kind} at {path} are damaged: {len(wrong)} of {len(found)} arrays are not what was written, "
            f"{', '.join(wrong[:MOST_LISTED])}."
        )


def by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves by their path, such as ``params.dense.kernel``: the same for dicts of any key type."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def put_back(parent: Path) -> None:
    """Puts back the checkpoints that a killed run had moved away, where it had not yet put others in their place."""
    for replaced in parent.glob(_beside(parent / "*", "old").name):
        path = parent / replaced.name.removeprefix(".").removesuffix(".old")
        if is_checkpoint(replaced) and not path.exists():
            replaced.rename(path)


def is_checkpoint(path: Path) -> bool:
    """Whether Orbax has left its mark: `ocp.is_orbax_checkpoint` takes an empty directory for one."""
    return (path / "_CHECKPOINT_METADATA").is_file()


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f".{path.name}.{name}")


def on_main_process(action: Callable[[], None], failing: str) -> None:
    """Process 0 does it, while the others wait; if it fails, all of them raise."""
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


def _target(a: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=getattr(a, "sharding", None))


def _signature(a: Any) -> str:
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):  # on disk, a key is the integers that it is made of
        a = jax.eval_shape(jax.random.key_data, a)
    return f"{np.dtype(a.dtype).name}{list(a.shape)}"


def _compare(path: Path, kind: str, arrays: dict[str, jax.ShapeDtypeStruct], like: dict[str, Any]) -> None:
    found, expected = ({name: _signature(a) for name, a in each.items()} for each in (arrays, like))
    names = [*expected, *(name for name in found if name not in expected)]
    wrong = [n for n in names if found.get(n) != expected.get(n)]
    if wrong:
        lines = [
            f"  {n}: expected {expected.get(n, 'nothing')}, found {found.get(n, 'nothing')}"
            for n in wrong[:MOST_LISTED]
        ]
        more = f"\n  ... and {len(wrong) - MOST_LISTED} more" if len(wrong) > MOST_LISTED else ""
        raise CheckpointMismatchError(
            f"The {kind} at {path} are not of this model: {len(wrong)} of {len(names)} arrays differ.\n"
            + "\n".join(lines)
            + more
        )

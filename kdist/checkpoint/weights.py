"""Weights in a directory: a model's variables, written and read through Orbax."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdist.errors import CheckpointError, CheckpointMismatchError
from kdist.typing import PyTree

MOST_LISTED = 10


def save_weights(directory: str | os.PathLike[str], variables: PyTree) -> None:
    """Writes variables to a directory.  All processes call it; what is there is replaced.

    Args:
        directory: Where to; its parents are made.
        variables: A tree of arrays.

    Raises:
        CheckpointError: It cannot be written.
    """
    from orbax.checkpoint import v1 as ocp

    path = Path(directory).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            raise CheckpointError(f"Cannot write weights to {path}: it is a file, not a directory.")
        ocp.save(path, _by_path(variables), overwrite=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot write weights to {path}: {error}") from error


def load_weights(directory: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Reads variables from a directory that `save_weights` wrote.

    Args:
        directory: Where from.
        like: Variables with the tree, shapes, dtypes and shardings that are expected.

    Returns:
        The variables, placed like `like`.

    Raises:
        CheckpointError: There are no weights.
        CheckpointMismatchError: They are of another model.  Nothing is cast or left out.
    """
    from orbax.checkpoint import v1 as ocp

    path = Path(directory).absolute()
    if not path.is_dir():
        raise CheckpointError(f"There are no weights at {path}: it is not a directory.")
    try:
        found = ocp.metadata(path).metadata
    except (OSError, ValueError, KeyError, ocp.errors.InvalidLayoutError) as error:
        raise CheckpointError(f"There are no weights at {path} that Orbax can read: {error}") from error
    expected = _by_path(like)
    _compare(path, {name: _signature(a) for name, a in dict(found).items()}, expected)
    target = {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=getattr(a, "sharding", None))
        for name, a in expected.items()
    }
    loaded = ocp.load(path, target)
    return jax.tree.unflatten(jax.tree.structure(like), [loaded[name] for name in expected])


def _by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves by their path, such as ``params/dense/kernel``: the same for dicts of any key type."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _signature(a: Any) -> str:
    return f"{np.dtype(a.dtype).name}{list(a.shape)}"


def _compare(path: Path, found: dict[str, str], like: dict[str, Any]) -> None:
    expected = {name: _signature(a) for name, a in like.items()}
    names = [*expected, *(name for name in found if name not in expected)]
    wrong = [n for n in names if found.get(n) != expected.get(n)]
    if wrong:
        lines = [
            f"  {n}: expected {expected.get(n, 'nothing')}, found {found.get(n, 'nothing')}"
            for n in wrong[:MOST_LISTED]
        ]
        more = f"\n  ... and {len(wrong) - MOST_LISTED} more" if len(wrong) > MOST_LISTED else ""
        raise CheckpointMismatchError(
            f"The weights at {path} are not of this model: {len(wrong)} of {len(names)} arrays differ.\n"
            + "\n".join(lines)
            + more
        )

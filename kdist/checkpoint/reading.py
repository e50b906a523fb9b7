"""Reads a checkpoint, which may be damaged, of another model or from a stranger: nothing wrong is ever returned."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdist.checkpoint.directory import FORMAT, NOTE, NOTE_FILE, beside, by_path, is_checkpoint, is_key
from kdist.checkpoint.fingerprints import fingerprint_on_host, fingerprints
from kdist.checkpoint.notes import from_json
from kdist.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError
from kdist.typing import PyTree

DATA = "d"
"""The directories of Orbax that hold the contents of arrays, of which it reads what it needs."""
MOST_NOTE_BYTES = 1 << 28
"""Of any other file, which is read as a whole."""
MOST_LISTED = 10


class About(NamedTuple):
    """What a checkpoint says of itself, without its arrays.

    Attributes:
        path: Where it is.
        trees: The names of all trees that are there.
        arrays: By tree, shape and dtype of each array by its path; None for a tree that cannot be read.
        fingerprints: By tree, those of the arrays by their path.
        meta: The note that it was written with.
        versions: What it was written with, by name.
    """

    path: Path
    trees: list[str]
    arrays: dict[str, dict[str, jax.ShapeDtypeStruct] | None]
    fingerprints: dict[str, Any]
    meta: dict[str, Any]
    versions: Any


def meta(directory: str | os.PathLike[str], *, kind: str) -> dict[str, Any]:
    """The note that a checkpoint was written with.

    Args:
        directory: Where it is.
        kind: What it holds, for messages.

    Raises:
        CheckpointError: There is none.
        CheckpointCorruptError: It is damaged.
    """
    return about(directory, (), kind=kind).meta


def about(directory: str | os.PathLike[str], trees: Collection[str] | None = None, *, kind: str) -> About:
    """What a checkpoint says of itself.

    Args:
        directory: Where it is.
        trees: The trees of whose arrays it is asked; all by default.
        kind: What it holds, for messages.

    Raises:
        CheckpointError: There is none.
        CheckpointCorruptError: It is damaged.
    """
    path = Path(directory).absolute()
    if not path.is_dir():
        if not beside(path, "old").is_dir():
            raise CheckpointError(f"There are no {kind} at {path}: it is not a directory.")
        path = beside(path, "old")  # a run was killed while it put a new one in its place
    if not is_checkpoint(path):
        raise CheckpointError(f"There are no {kind} at {path} that Orbax can read.")
    _check_files(path, kind)
    found = sorted(tree.name for tree in path.iterdir() if tree.is_dir() and tree.name != NOTE)
    note, told = _note(path, kind)
    arrays = {name: _arrays(path, name) for name in found if trees is None or name in trees}
    return About(path, found, arrays, note["fingerprints"], told, note.get("versions"))


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


def _arrays(path: Path, tree: str) -> dict[str, jax.ShapeDtypeStruct] | None:
    """What the store says of the arrays of a tree; None if that cannot be.

    Orbax believes it, and takes memory for whole chunks: none may be larger than its array.  It would say the same of
    them, but takes as long for it as for reading the arrays.
    """
    import tensorstore

    try:
        told = json.loads((path / tree / "_METADATA").read_bytes())
        names = [str(leaf["key_metadata"][0]["key"]) for leaf in told["tree_metadata"].values()]
        base = {"driver": "file", "path": f"{path / tree}/"}
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        found = {name: store.read(f"{name}/zarr.json") for name in names}
        return {name: _array(json.loads(each.result().value)) for name, each in found.items()}
    except _unreadable():
        return None


def _array(note: dict[str, Any]) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, from what Zarr's third version writes down.

    Raises:
        ValueError: They cannot be.
    """
    shape = tuple(note["shape"])
    chunk = note["chunk_grid"]["configuration"]["chunk_shape"]
    if not all(type(n) is int and 0 < c <= n for n, c in zip(shape, chunk, strict=True)):
        raise ValueError(f"Chunks of {chunk} of an array of {shape}.")
    return jax.ShapeDtypeStruct(shape, jnp.dtype(str(note["data_type"])))


def _unreadable() -> tuple[type[Exception], ...]:
    """What Orbax raises for files that are not as they were written."""
    from orbax.checkpoint import v1 as ocp

    return OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ocp.errors.InvalidLayoutError


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

    found = about(directory, likes, kind=kind)
    path = found.path
    if any(name not in found.trees for name in likes):
        raise CheckpointError(f"There are no {kind} at {path}: it holds {', '.join(found.trees)} only.")
    damaged = [name for name, arrays in found.arrays.items() if arrays is None]
    if damaged:
        raise CheckpointCorruptError(f"The {kind} at {path} cannot be read: {', '.join(damaged)} is damaged.")
    expected = {name: by_path(like) for name, like in likes.items()}
    targets = {name: {n: _target(a) for n, a in arrays.items()} for name, arrays in expected.items()}
    for name, arrays in targets.items():
        _compare(path, kind, found.arrays[name] or {}, arrays)
    try:
        loaded = ocp.load_checkpointables(path, targets)
    except _unreadable() as error:
        raise CheckpointCorruptError(f"The {kind} at {path} cannot be read: {error}") from error
    _verify(path, kind, found.fingerprints, loaded)
    trees = {
        name: jax.tree.unflatten(
            jax.tree.structure(like), [_like(a, loaded[name][n]) for n, a in expected[name].items()]
        )
        for name, like in likes.items()
    }
    return trees, found.meta


def _note(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was written beside the arrays, and the caller's part of it.

    Raises:
        CheckpointCorruptError: It is not what `writing.begin` writes.
    """
    failing = f"The {kind} at {path} cannot be read"
    try:
        note = json.loads((path / NOTE / NOTE_FILE).read_bytes())
    except (OSError, RecursionError, ValueError) as error:
        raise CheckpointCorruptError(f"{failing}: their note is damaged: {error}") from error
    if not isinstance(note, dict) or note.get("format") != FORMAT:
        found = note.get("format") if isinstance(note, dict) else None
        raise CheckpointCorruptError(f"{failing}: their format is {found!r}, and this version of kdist reads {FORMAT}.")
    try:
        if zlib.crc32(note["meta"].encode()) != note["checksum"]:
            raise ValueError("it is not what was written")
        if not all(isinstance(known, dict) for known in [note["fingerprints"], *note["fingerprints"].values()]):
            raise TypeError("its fingerprints are none")
        return note, dict(from_json(note["meta"]))
    except (RecursionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointCorruptError(f"{failing}: their note is damaged: {error}") from error


def _verify(path: Path, kind: str, known: dict[str, Any], trees: dict[str, dict[str, Any]]) -> None:
    """Refuses arrays that are not those that were written.

    Raises:
        CheckpointCorruptError: A fingerprint differs, or there is none.
    """
    found = fingerprints({(tree, name): a for tree, arrays in trees.items() for name, a in arrays.items()})
    wrong = [f"{tree}.{name}" for (tree, name), value in found.items() if known.get(tree, {}).get(name) != value]
    if wrong:
        raise CheckpointCorruptError(
            f"The {kind} at {path} are damaged: {len(wrong)} of {len(found)} arrays are not what was written, "
            f"{', '.join(wrong[:MOST_LISTED])}."
        )


def _target(like: Any) -> jax.ShapeDtypeStruct:
    """What Orbax is to read for an array."""
    stored = jax.eval_shape(jax.random.key_data, like) if is_key(like) else like
    return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=getattr(like, "sharding", None))


def _like(like: Any, numbers: jax.Array) -> jax.Array:
    """What was read, as what it was."""
    if not is_key(like):
        return numbers
    return jax.device_put(jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(like)), like.sharding)


def _signature(a: Any) -> str:
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

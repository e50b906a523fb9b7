"""``kdist inspect DIR``: what is in a checkpoint, verified array by array; ``kdist inspect DIR OTHER``: how two differ.

Arrays are read one by one into the host's memory, and no accelerator is touched, which a run may have for itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdist.checkpoint import reading, series
from kdist.cli import AddParser, refuse
from kdist.errors import CheckpointCorruptError, CheckpointError

KIND = "checkpoints"
DAMAGED = "DAMAGED"
LEAST_WIDTH = 120
"""Of a table, where the terminal is not wider: paths are long."""
BLOCK = 1 << 22
"""So many elements are compared at once: they are widened for that."""


def declare(add_parser: AddParser) -> None:
    """Adds the parser; see `kdist.cli`."""
    command = add_parser(
        description="Show what is in a checkpoint and verify every array, or compare two array by array. No "
        "accelerator is touched. The exit code is 1 if an array is damaged or differs.",
    )
    command.add_argument("directory", metavar="DIR", help="a checkpoint, weights, a directory of steps, or a run's")
    command.add_argument("other", nargs="?", metavar="OTHER", help="what it is compared with")
    command.add_argument("--step", type=int, metavar="N", help="which step of a directory of steps; else the newest")


def main(options: argparse.Namespace, rest: list[str]) -> int:
    """Inspects; 1 if an array is damaged or differs."""
    refuse(rest)
    return 0 if run(options.directory, options.other, options.step) else 1


def run(directory: str, other: str | None = None, step: int | None = None) -> bool:
    """Prints what is in a checkpoint, or how two of them differ.

    Args:
        directory: A checkpoint, weights, a directory of steps, or that of a run of `kdist train`.
        other: What it is compared with; nothing by default.
        step: Which step, in a directory of steps; the newest by default.

    Returns:
        Whether every array is what was written; with `other`, whether both are equal too.

    Raises:
        CheckpointError: There is no checkpoint, or it cannot be read at all.
    """
    jax.config.update("jax_platforms", "cpu")
    here = Checkpoint(directory, step)
    return inspected(here) if other is None else compared(here, Checkpoint(other, step))


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array of a checkpoint.

    Attributes:
        like: Its shape and dtype; None if that cannot be read.
        array: Its contents; None if they are not what was written.
    """

    like: jax.ShapeDtypeStruct | None
    array: np.ndarray | None

    def __str__(self) -> str:
        return DAMAGED if self.like is None else f"{self.like.dtype.name}{list(self.like.shape)}"


class Checkpoint:
    """A checkpoint on the disk, of which one array is in memory at a time.

    Args:
        directory: As in `run`.
        step: As in `run`.

    Raises:
        CheckpointError: There is none, or it cannot be read at all.
    """

    def __init__(self, directory: str, step: int | None) -> None:
        self.about = reading.about(_found(Path(directory), step), kind=KIND)

    @property
    def names(self) -> list[tuple[str, str]]:
        """Tree and path of every array that is there or was written."""
        arrays, written = self.about.arrays, self.about.fingerprints
        return [
            (tree, name)
            for tree in {**arrays, **written}
            for name in {**(arrays.get(tree) or {}), **written.get(tree, {})} or {"": None}
        ]

    def entry(self, tree: str, name: str) -> Entry:
        """The array of a path, read now."""
        like = (self.about.arrays.get(tree) or {}).get(name)
        if like is None:
            return Entry(None, None)
        try:
            return Entry(like, reading.read_array(self.about, tree, name))
        except CheckpointCorruptError:
            return Entry(like, None)

    @property
    def size(self) -> int:
        """Its bytes on the disk."""
        return sum(file.stat().st_size for file in self.about.path.rglob("*") if file.is_file())


def _found(directory: Path, step: int | None) -> Path:
    """The directory of the checkpoint itself."""
    steps = directory / "checkpoints" if (directory / "checkpoints").is_dir() else directory
    numbers = series.numbers(steps)
    if step is None:
        return steps / str(numbers[-1]) if numbers else directory
    if step not in numbers:
        raise CheckpointError(
            f"There is no step {step} in {steps}. There are: {', '.join(map(str, numbers)) or 'none'}."
        )
    return steps / str(step)


# One ---------------------------------------------------------------------------------------------


def inspected(checkpoint: Checkpoint) -> bool:
    """Prints the arrays of a checkpoint and its note; returns whether all are what was written."""
    rows, nbytes, damaged = [], 0, 0
    for tree, name in checkpoint.names:
        entry = checkpoint.entry(tree, name)
        size = 0 if entry.like is None else entry.like.size * entry.like.dtype.itemsize
        kind = ("?", "?") if entry.like is None else (entry.like.dtype.name, str(list(entry.like.shape)))
        rows.append([_path(tree, name), *kind, f"{size:,}", DAMAGED if entry.array is None else "verified"])
        nbytes, damaged = nbytes + size, damaged + (entry.array is None)
    _print_table(
        f"Checkpoint: {checkpoint.about.path}", ["array", "dtype", "shape", "bytes", "fingerprint"], rows, right="bytes"
    )
    note = {"versions": checkpoint.about.versions, **checkpoint.about.meta}
    _print_table("", ["note", "value"], [[_plain(key), value] for key, value in _flat(note)])
    print(f"{len(rows)} arrays of {nbytes:,} bytes, {checkpoint.size:,} on the disk: {damaged or 'none'} damaged")
    return not damaged


def _flat(note: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The values of a note by their path, each as a short text."""
    for key, value in note.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", reprlib.repr(value)


# Two ---------------------------------------------------------------------------------------------


def compared(here: Checkpoint, there: Checkpoint) -> bool:
    """Prints how each array of two checkpoints differs; returns whether none does, and none is damaged."""
    ours, theirs = dict.fromkeys(here.names), dict.fromkeys(there.names)
    rows, equal = [], 0
    for name in {**ours, **theirs}:
        if name not in theirs or name not in ours:
            verdict = "only in the first" if name in ours else "only in the second"
        else:
            verdict = difference(here.entry(*name), there.entry(*name))
        rows.append([_path(*name), verdict])
        equal += verdict == "equal"
    _print_table(f"First:  {here.about.path}\nSecond: {there.about.path}", ["array", "difference"], rows)
    print(f"{len(rows)} arrays: {equal} equal, {len(rows) - equal} not")
    return equal == len(rows)


def difference(a: Entry, b: Entry) -> str:
    """What distinguishes two arrays of one path: "equal" if no bit does.

    Args:
        a: One.
        b: The other.

    Example:
        >>> like = jax.ShapeDtypeStruct((2,), "float32")
        >>> difference(Entry(like, np.float32([1, 2])), Entry(like, np.float32([1, 2.5])))
        'differ by up to 0.5'
    """
    if a.array is None or b.array is None:
        damaged = [where for where, entry in (("first", a), ("second", b)) if entry.array is None]
        return f"{DAMAGED} in the {' and the '.join(damaged)}"
    if str(a) != str(b):
        return f"{a} in the first, {b} in the second"
    if a.array.tobytes() == b.array.tobytes():
        return "equal"
    return f"differ by up to {_furthest(a.array.reshape(-1), b.array.reshape(-1)):.6g}"


def _furthest(a: np.ndarray, b: np.ndarray) -> float:
    """The largest absolute difference; NaN where only one is NaN."""
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    largest = []
    for start in range(0, len(a), BLOCK):
        x, y = (each[start : start + BLOCK].astype(wide) for each in (a, b))
        with np.errstate(invalid="ignore"):
            largest.append(np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y)).max())
    return float(np.max(largest))


# Tables ------------------------------------------------------------------------------------------


def _path(tree: str, name: str) -> str:
    return _plain(f"{tree}.{name}" if name else tree)


def _plain(text: str) -> str:
    """A name of the checkpoint's: it might hold what a terminal obeys."""
    return text if text.isprintable() else ascii(text)


def _print_table(title: str, columns: list[str], rows: list[list[str]], right: str = "") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    console.width = max(console.width, LEAST_WIDTH)
    table = Table(title=Text(title) if title else None, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column == right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style="bold red" if cell.startswith(DAMAGED) else "") for cell in row))
    if rows:
        console.print(table)

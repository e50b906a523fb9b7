"""A series of checkpoints in one directory, by number: which there are, and which can go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from kdist.distribution import agree, is_main_process


def numbers(directory: str | os.PathLike[str]) -> list[int]:
    """The numbers of the checkpoints that are there, ascending, as this process sees them."""
    path = Path(directory)
    names = [p.name for p in path.iterdir()] if path.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))  # not 007


def newest(directory: str | os.PathLike[str], below: int | None = None) -> int | None:
    """The greatest number, as process 0 sees it; None if there is none.  All processes call it.

    Args:
        directory: Where the series is.
        below: Only numbers below this one count.
    """
    found = [n for n in numbers(directory) if below is None or n < below]
    shared = agree(found[-1] + 1 if found else 0)
    return shared - 1 if shared else None


def remove(directory: str | os.PathLike[str], number: int) -> None:
    """Removes a checkpoint, on process 0."""
    if is_main_process():
        shutil.rmtree(Path(directory, str(number)), ignore_errors=True)


def keep_newest(
    directory: str | os.PathLike[str], count: int, written: Sequence[int] = (), every: int | None = None
) -> None:
    """Removes all but the newest, on process 0.

    Args:
        directory: Where the series is.
        count: How many are kept.
        written: Numbers that are newer than all others, whatever they are, in the order in which they were written.
        every: Multiples of it stay, and are not counted.
    """
    if is_main_process():
        found = [n for n in numbers(directory) if not (every and n % every == 0)]
        by_age = [n for n in found if n not in written] + [n for n in written if n in found]
        for number in by_age[:-count]:
            remove(directory, number)


def clear(directory: str | os.PathLike[str]) -> None:
    """Removes the series, and the directory if there is nothing else in it, on process 0."""
    path = Path(directory)
    if is_main_process() and path.is_dir():
        for number in numbers(path):
            remove(path, number)
        if not any(path.iterdir()):
            path.rmdir()

"""A series of checkpoints in one directory, by number: written in the background, and which there are and can go."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax

from kdist.checkpoint import reading, writing
from kdist.checkpoint.directory import beside, moved_away
from kdist.checkpoint.state import KIND
from kdist.distribution import agree, is_main_process
from kdist.errors import CheckpointError
from kdist.typing import PyTree

ABANDON_SECONDS = 10.0
"""How long a process that fails waits for its part of a save."""
VALUE = "value"
"""What a note calls the value that tells the best."""


class Series:
    """Checkpoints by number, written one at a time in the background; some are kept.

    A checkpoint stays if it is one of the newest, or a multiple, or the best.

    Args:
        directory: Where they are.
        keep: How many of the newest stay, by when they were written; None for all.
        every: The numbers whose multiples stay; none by default.
        best: "min" or "max" if the one with the least or greatest `value` stays; None, the default, if it need not.
        kind: What is written, for messages: "weights" or "training states", the default.

    Example:
        >>> import jax.numpy as jnp, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     series = Series(directory, keep=1, best="min")
        ...     for number, loss in enumerate([0.5, 0.2, 0.4, 0.3]):
        ...         series.save(number, {"weights": {"w": jnp.ones(3)}}, {}, value=loss)
        ...     series.finish()
        ...     numbers(directory)
        [1, 3]
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int | None,
        every: int | None = None,
        best: str | None = None,
        kind: str = KIND,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.keep, self.every, self.best, self.kind = keep, every, best, kind
        self._writing: writing.Writing | None = None
        self._order: list[int] = []
        self._values: dict[int, float] = {}

    def save(self, number: int, trees: dict[str, PyTree], meta: dict[str, Any], *, value: float | None = None) -> None:
        """Begins to write a checkpoint, once the one before it is complete.  All processes call it.

        Args:
            number: Its name; one that is there is replaced.
            trees: Trees of arrays by name, which are copied before this returns.
            meta: A note that JSON can hold.
            value: What tells the best; none by default.

        Raises:
            CheckpointError: This save or the one before it failed.
        """
        self.finish()
        self._values.pop(number, None)
        self._order = [*(n for n in self._order if n != number), number]
        meta = meta if value is None else {**meta, VALUE: value}
        self._writing = writing.begin(self.directory / str(number), trees, meta, kind=self.kind)

    @property
    def under_way(self) -> bool:
        """Whether a save is not known to be complete."""
        return self._writing is not None

    def check(self) -> None:
        """Finds out, without waiting, whether the last save is complete or has failed.  All processes call it.

        Raises:
            CheckpointError: It failed, here or on another process.
        """
        if self._writing is not None:
            self._wait(0.0)

    def finish(self) -> None:
        """Waits until the last save is complete, and removes what need not be kept.  All processes call it.

        Raises:
            CheckpointError: It failed, here or on another process.
        """
        while self._writing is not None:
            self._wait(writing.ASK_SECONDS)

    def close(self) -> None:
        """Waits for the last save.

        Where it is closed by an error on one of several processes, the others may never come to the end of a save:
        then only this process's part is waited for.

        Raises:
            CheckpointError: It failed, here or on another process.
        """
        if jax.process_count() == 1 or sys.exc_info()[0] in (None, SystemExit):
            self.finish()
        elif self._writing is not None:
            self._writing.wait_here(ABANDON_SECONDS)
            self._writing = None

    def _wait(self, seconds: float) -> None:
        under_way, self._writing = self._writing, None
        assert under_way is not None
        if not under_way.wait(seconds):
            self._writing = under_way
        elif self.keep is not None and is_main_process():
            self._remove_others(self.keep)

    def _remove_others(self, keep: int) -> None:
        found = numbers(self.directory)
        by_age = [n for n in found if n not in self._order] + [n for n in self._order if n in found]
        stay = {*by_age[-keep:], *(n for n in found if self.every and n % self.every == 0), *self._best(found)}
        for number in found:
            if number not in stay:
                remove(self.directory, number)

    def _best(self, found: list[int]) -> list[int]:
        """The number of the best; none if that is not asked for, or no checkpoint has a value."""
        if self.best is None:
            return []
        for number in found:
            if number not in self._values:
                self._values[number] = self._value(number)
        valued = [n for n in found if not math.isnan(self._values[n])]
        choose = min if self.best == "min" else max
        return [choose(valued, key=self._values.__getitem__)] if valued else []

    def _value(self, number: int) -> float:
        """The value of a checkpoint; NaN if it has none."""
        with contextlib.suppress(CheckpointError, KeyError, TypeError, ValueError):  # it is of somebody else's
            return float(reading.meta(self.directory / str(number), kind=self.kind)[VALUE])
        return math.nan


def numbers(directory: str | os.PathLike[str]) -> list[int]:
    """The numbers of the checkpoints that are there, ascending, as this process sees them."""
    path = Path(directory)
    names = {*(p.name for p in path.iterdir()), *moved_away(path)} if path.is_dir() else ()
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
        path = Path(directory, str(number))
        for place in (path, beside(path, "old")):
            shutil.rmtree(place, ignore_errors=True)


def clear(directory: str | os.PathLike[str]) -> None:
    """Removes the series, and the directory if there is nothing else in it, on process 0."""
    path = Path(directory)
    if is_main_process() and path.is_dir():
        for number in numbers(path):
            remove(path, number)
        if not any(path.iterdir()):
            path.rmdir()

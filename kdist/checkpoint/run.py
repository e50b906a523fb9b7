"""The checkpoints of a run in one directory, by step: written in the background, one at a time, and found again."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import warnings
from pathlib import Path
from typing import Any, Self

import jax

from kdist.checkpoint import reading, series
from kdist.checkpoint.directory import UNFINISHED, on_main_process, put_back
from kdist.checkpoint.notes import marked, with_arrays, without_arrays
from kdist.checkpoint.state import KIND, state_of, trees_of
from kdist.distribution import is_main_process
from kdist.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError
from kdist.state import TrainState

LOCK = ".lock"
REMEMBERED = "remembered"
"""The name of the arrays that callbacks remember."""
CORRUPT = ".corrupt"
"""What is added to the name of a checkpoint that turned out to be damaged: it is out of the way, and not lost."""


class RunCheckpoints:
    """Checkpoints in a directory that no other run may write to meanwhile; use as a context manager.

    Leaving it waits for the last save, and raises its error, if it failed.

    Args:
        directory: Where they are: each in a directory that is named by its optimizer step.
        keep: How many of the newest are kept; 1 by default, None for all.
        every: Steps that are multiples of it are kept too; none by default.
        best: "min" or "max": the one that was saved with the least or greatest `value` is kept too; None, the default,
            if it need not be.

    Example:
        >>> import flax.linen as nn, kdist, numpy as np, tempfile
        >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="sgd", loss="mse")
        >>> state = trainer.init(np.ones((4, 3)))
        >>> with tempfile.TemporaryDirectory() as directory, RunCheckpoints(directory) as run:
        ...     run.save(state, {"epoch": 3})
        ...     run.finish()
        ...     run.restore(state)[1]
        {'epoch': 3}
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int | None = 1,
        every: int | None = None,
        best: str | None = None,
    ) -> None:
        self._series = series.Series(directory, keep=keep, every=every, best=best)
        self.directory = self._series.directory
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Opens it."""
        self.open()
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes it."""
        self.close()

    def open(self) -> None:
        """Claims the directory, and clears away what a killed run did not finish.  All processes call it.

        Raises:
            CheckpointError: Another run writes to it, or it cannot be written.
        """
        on_main_process(self._claim, f"Cannot write checkpoints to {self.directory}")

    def close(self) -> None:
        """Waits for the last save, as `Series.close` does, and lets go of the directory.

        Raises:
            CheckpointError: The last save failed, here or on another process.
        """
        try:
            self._series.close()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def save(self, state: TrainState, meta: dict[str, Any], *, value: float | None = None) -> None:
        """Begins to write a state, named by its step, once the save before it is complete.  All processes call it.

        Args:
            state: The state, which is copied before this returns.
            meta: What else is to be known: as JSON can hold it, and arrays on the devices.
            value: What tells the best; none by default.

        Raises:
            CheckpointError: This save or the one before it failed, or a later step is there.
        """
        self.finish()
        number = int(state.step)
        newest = series.newest(self.directory)
        if newest is not None and newest > number:
            raise CheckpointError(
                f"Cannot write step {number} to {self.directory}: it holds the later step {newest}. Restore that, or "
                "give another directory."
            )
        arrays: dict[str, jax.Array] = {}
        meta = without_arrays(meta, arrays)
        trees = {**trees_of(state), **({REMEMBERED: arrays} if arrays else {})}
        self._series.save(number, trees, meta, value=value)

    def check(self) -> None:
        """Finds out, without waiting, whether the last save has failed: see `Series.check`.  All processes call it.

        Raises:
            CheckpointError: It has, here or on another process.
        """
        self._series.check()

    def finish(self) -> None:
        """Waits until the last save is complete, and removes those that need not be kept.  All processes call it.

        Raises:
            CheckpointError: It failed, here or on another process.
        """
        self._series.finish()

    def note(self, step: int | None = None) -> dict[str, Any]:
        """The `meta` of a step, without its arrays; that of the newest whose can be read by default.

        Raises:
            CheckpointError: There is none.
        """
        number = series.newest(self.directory) if step is None else step
        failure = CheckpointError(f"There are no checkpoints in {self.directory}.")
        while number is not None:
            try:
                return reading.meta(self.directory / str(number), kind=KIND)
            except CheckpointError as error:
                failure = error
            number = None if step is not None else series.newest(self.directory, below=number)
        raise failure

    def restore(
        self, like: TrainState, step: int | None = None, *, must: bool = False
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The state of a step, or of the newest whose every array is what was written.  All processes call it.

        Where that is damaged, the one before it is taken, with a warning, and the damaged is set aside.

        Args:
            like: A state with the tree, shapes, dtypes and shardings that are expected; any devices.
            step: Which; the newest by default.
            must: Whether a damaged newest one is an error; False by default.

        Returns:
            The state and its `meta`; None if there is none at all.

        Raises:
            CheckpointError: There is no such step, or none that can be read.
            CheckpointCorruptError: It is damaged, and `must` or `step` is given.
            CheckpointMismatchError: It is of another model or optimizer.
        """
        if step is not None:
            return self._load(step, like)
        number, failure, damaged = series.newest(self.directory), None, []
        while number is not None:
            try:
                found = self._load(number, like)
            except CheckpointMismatchError:
                raise
            except CheckpointError as error:
                if must:
                    raise
                failure = failure or error
                damaged.append(number)
                number = series.newest(self.directory, below=number)
                continue
            for n in damaged:
                on_main_process(functools.partial(self._set_aside, n), "Cannot set a checkpoint aside")
            if damaged:
                warnings.warn(f"{failure} Step {number} is used, and {damaged} set aside.", UserWarning, stacklevel=2)
            return found
        if failure is not None:
            raise CheckpointCorruptError(
                f"No checkpoint in {self.directory} can be read. Give another directory to start afresh. {failure}"
            ) from failure
        return None

    def _load(self, number: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        path, sharding = self.directory / str(number), like.step.sharding
        arrays = marked(reading.meta(path, kind=KIND))
        likes = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for n, a in arrays.items()}
        trees, meta = reading.read(path, {**trees_of(like), **({REMEMBERED: likes} if likes else {})}, kind=KIND)
        return state_of(trees), with_arrays(meta, trees.get(REMEMBERED, {}))

    def clear(self) -> None:
        """Removes all of them, once the last save is complete, and the directory if nothing else is in it."""
        self.finish()
        if is_main_process():
            (self.directory / LOCK).unlink(missing_ok=True)
        series.clear(self.directory)

    def _claim(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.directory / LOCK)
        for path in self.directory.iterdir():
            if UNFINISHED in path.name:
                shutil.rmtree(path, ignore_errors=True)
        put_back(self.directory)

    def _set_aside(self, number: int) -> None:
        path = self.directory / str(number)
        target = path.with_name(path.name + CORRUPT)
        shutil.rmtree(target, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            path.rename(target)


def _locked(path: Path) -> int | None:
    """A descriptor whose lock ends with the process; None where the system has no such locks.

    Raises:
        CheckpointError: Another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise CheckpointError(
            f"Another run writes to {path.parent}: {holder or 'it does not say which'}. End that one, or give another "
            "directory."
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor

"""Where training pauses between two executions: for callbacks that save, and before the machine is taken away."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Self, TypeVar

import jax

from kdist.callbacks import Callback, CallbackList
from kdist.data import Chunk
from kdist.distribution.alarm import leave
from kdist.errors import CheckpointError
from kdist.exits import PREEMPTED
from kdist.passes import EarlierPart
from kdist.preemption import Preempted, PreemptionNotice, Stalled
from kdist.watchdog import Watchdog

T = TypeVar("T")
LEAVE_SECONDS = 5.0
"""So long the fit has for its end, once the run has saved: a source that gives nothing may be waited for."""


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run is, and what it has to know besides its state to go on from there.

    Attributes:
        epoch: The epoch to go on with, from 0.
        step: The step of it to go on with.
        seen: The steps that were trained in this `fit`.
        part: What was trained of this epoch; None at its start.
        stopped: Whether a callback has ended training.
    """

    epoch: int
    step: int = 0
    seen: int = 0
    part: EarlierPart | None = None
    stopped: bool = False

    def to_note(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {**vars(self), "part": None if self.part is None else self.part._asdict()}

    @classmethod
    def from_note(cls, note: dict[str, Any]) -> Position:
        """The position that a checkpoint has kept.

        Args:
            note: What `to_note` gave.

        Raises:
            CheckpointError: Something is missing.
        """
        try:
            part = note["part"]
            named = {field.name: note[field.name] for field in dataclasses.fields(cls)}
            return cls(**{**named, "part": None if part is None else EarlierPart(**part)})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"The checkpoint does not say where the run was: {error!r}.") from error


Reach = Callable[[Callable[[], None]], Position]
"""Given what waits for all executions that are under way: calls it, and says where that leaves the run."""


def nothing_under_way() -> None:
    """Waits for nothing."""


class Pauses:
    """The pauses of a `fit`; use as a context manager.

    Args:
        callbacks: Those that may ask for a pause.
        watchdog: Told what is waited for.
    """

    def __init__(self, callbacks: CallbackList, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._callbacks = [c for c in callbacks.callbacks if _may_pause(c)]
        keeps = any(callback.keeps_run for callback in self._callbacks)
        self._notice = PreemptionNotice() if keeps else None
        self._end = threading.Timer(LEAVE_SECONDS, _leave)
        self._end.daemon = True

    def __enter__(self) -> Self:
        """Listens for the notice of a preemption, if some callback would save then."""
        if self._notice is not None:
            self._notice.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        """Listens no more; to be left when the data are closed."""
        self._end.cancel()
        if self._notice is not None:
            self._notice.__exit__(*exception)

    def at(self, reach: Callable[[], Position]) -> None:
        """Between two executions: lets callbacks save, if it is the time.

        Args:
            reach: Waits for all that is under way, and says where that leaves the run.

        Raises:
            Preempted: The machine is about to be taken away, and callbacks have saved.
        """
        told = self._notice is not None and self._notice.poll()
        due = [c for c in self._callbacks if c.is_save_due() or (told and c.keeps_run)]
        if due:
            position = reach()
            with self._watchdog.phase("save"):
                for callback in due:
                    callback.save_run(position.epoch, position.step, last=told)
        if told:
            self._end.start()
            raise Preempted("The run was told to end (SIGTERM), and has saved. Start it again to go on.")

    def drive(self, executions: Iterator[Callable[[], None]], reach: Reach) -> None:
        """Runs executions, with a pause after each where it is the time, and where the notice ends a wait for data.

        Args:
            executions: They yield what waits for all that are under way.
            reach: Where that leaves the run, once it was called.

        Raises:
            Preempted: As `at` does.
        """
        settle = nothing_under_way
        try:
            for settle in executions:
                self.at(functools.partial(reach, settle))
        except Stalled:
            self.at(functools.partial(reach, settle))
            raise

    def head(self, chunks: Iterator[Chunk], reach: Reach) -> Chunk | None:
        """The first chunk, or None; the wait for it is as in `drive`.

        Args:
            chunks: As `waits` gives them.
            reach: As in `drive`.
        """
        try:
            return next(chunks, None)
        except Stalled:
            self.at(functools.partial(reach, nothing_under_way))
            raise

    def waits(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """The chunks; a wait for one of them is ended by the notice.

        Args:
            chunks: Those to come.

        Raises:
            Stalled: It came.
        """
        while True:
            with self._watchdog.phase("data"), self._interruptible():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def together(self, future: Future[T]) -> T:
        """What a thread gathers; on several processes, once all have theirs, so that the notice finds them all waiting.

        Args:
            future: What is waited for, inside what `waits` watches.

        Raises:
            Stalled: The notice came, and some process still waits.
        """
        return future.result() if self._notice is None else self._notice.together(future)

    def _interruptible(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._notice is None else self._notice.interruptible()


def _leave() -> None:
    """Ends the process, whose fit does not end: a thread of it waits for a source that gives nothing."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()  # the others wait for this on their way out
    leave(PREEMPTED)


def _may_pause(callback: Callback) -> bool:
    overridden = type(callback).is_save_due is not Callback.is_save_due or "is_save_due" in vars(callback)
    return callback.keeps_run or overridden

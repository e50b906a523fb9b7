"""Preemption: notice that this machine is about to be taken away, seen by all processes at the same execution.

The notice is SIGTERM.  It is only noted: training goes on to the end of an execution, where the state can be saved.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from types import FrameType
from typing import Any, Self, TypeVar

import jax

from kdist.distribution.store import exchange, store
from kdist.exits import PREEMPTED

T = TypeVar("T")

POLL_SECONDS = 0.5
"""How often a process that waits for its data asks whether the notice has come to another."""

_NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # where the runtime itself tells all processes
_polls = itertools.count(1)  # of all fits of the process


class Preempted(SystemExit):
    """The run was told to end, and has saved: the process ends with exit code 42, unless this is caught."""

    def __init__(self, message: str) -> None:
        super().__init__(PREEMPTED)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Stalled(BaseException):
    """The notice came while the run waited for something that may never come; nobody else is to catch it."""


class PreemptionNotice:
    """Whether SIGTERM has come; use as a context manager, which puts back the handler that was there.

    A handler of the user's own is called too.  A second SIGTERM changes nothing.  With several processes the runtime
    takes the signal itself, and lets all of them know.

    Example:
        >>> with PreemptionNotice() as notice:
        ...     notice.poll()
        False
    """

    def __init__(self) -> None:
        self._came = self._interruptible = False
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> Self:
        """Listens; only a main thread can, in others nothing is ever noticed."""
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
            self._installed = True
        return self

    def __exit__(self, *exception: object) -> None:
        """Puts back the handler that was there."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._before if self._before is not None else signal.SIG_DFL)
            self._installed = False

    def poll(self) -> bool:
        """Whether the notice has come; the same on all processes, which call it equally often."""
        if jax.process_count() == 1:
            return self._came
        from jax.experimental import multihost_utils

        # Consecutive integers: with others it never fires.
        self._came = self._came or multihost_utils.reached_preemption_sync_point(next(_polls))
        return self._came

    def together(self, future: Future[T]) -> T:
        """The result of a future, once all processes have theirs.  All must call it, at the same point.

        If the notice comes while some still wait, none goes on: what they wait for may never come, and the others
        cannot train without them.

        Args:
            future: What a thread makes, such as the next data.

        Raises:
            Stalled: On all processes, as said above.

        Example:
            >>> future = Future()
            >>> future.set_result(7)
            >>> PreemptionNotice().together(future)
            7
        """
        if jax.process_count() == 1:
            return future.result()  # which `interruptible` ends
        stalled = False
        while not stalled and not wait([future], POLL_SECONDS).done:
            stalled = _has_come()
        if not stalled:
            future.result()  # an error is for the others to hear of, and not to meet
        if exchange({"stalled": b""} if stalled else {}):
            self._came = True
            raise Stalled
        return future.result()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A wait that the notice ends.

        Raises:
            Stalled: It came before or meanwhile.
        """
        self._interruptible = True
        try:
            if self._installed and self._came:
                raise Stalled
            yield
        finally:
            self._interruptible = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        first, self._came = not self._came, True
        if callable(self._before):
            self._before(number, frame)
        if first and self._interruptible:
            raise Stalled


def _has_come() -> bool:
    """Whether the runtime of some process has told all of the notice."""
    try:
        store().key_value_try_get(_NOTICE)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return False
    return True

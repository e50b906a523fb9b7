"""Stalls: what share of its time training waited for data.

A wait for the next chunk is a stall only while the devices have nothing to do.  Whether they have is asked, and never
waited for: when the wait begins, and by a thread now and then while it lasts.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import jax

from kdist.data import Chunk
from kdist.typing import PyTree

POLL_SECONDS = 0.001
"""How long after a wait began the devices are asked again; each later pause is longer by a twentieth of the wait."""
HINT_SHARE = 0.2
"""Above this share something is to be done about the data,"""
HINT_SECONDS = 1.0
"""if the stalls of the epoch come to this much: of epochs that are over at once nobody wants to hear."""


class Stalls:
    """The stalls of a `fit`, epoch by epoch; use as a context manager.

    The clock of the first epoch starts with its first execution: what comes before is start-up, when programs are
    compiled and the first data are made.

    Attributes:
        seconds: How long the devices waited for data in this epoch.

    Example:
        >>> with Stalls() as stalls:
        ...     stalls.begin()
        ...     for number in stalls.watch(iter([1, 2])):
        ...         stalls.dispatched(jax.numpy.ones(3))
        ...     stalls.end()
        >>> 0 <= stalls.share <= 1
        True
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last: PyTree = None
        self._began: float | None = None
        self._ended: float | None = None
        self._hinted = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kdist-stalls")  # starts when it is first needed

    @property
    def share(self) -> float:
        """The share of this epoch so far, or of the last one, that was waited for data: 0 to 1."""
        if self._began is None:
            return 0.0
        now = time.perf_counter() if self._ended is None else self._ended
        return self.seconds / max(now - self._began, 1e-9)

    def begin(self) -> None:
        """An epoch begins, and its data are about to be asked for."""
        self.seconds, self._ended = 0.0, None
        self._began = None if self._last is None else time.perf_counter()

    def dispatched(self, result: PyTree) -> None:
        """An execution is under way; it is done when its result is ready."""
        self._last = result
        if self._began is None:
            self._began = time.perf_counter()

    def end(self) -> None:
        """The epoch's training is over; what comes until the next one begins is not of it."""
        self._ended = time.perf_counter()

    def watch(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """The chunks, and the waits for them counted."""
        while True:
            with self._counted():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def is_hint_due(self) -> bool:
        """Whether the epoch waited long enough for some advice, which is due once."""
        if self._hinted or self.share <= HINT_SHARE or self.seconds < HINT_SECONDS:
            return False
        self._hinted = True
        return True

    def __enter__(self) -> Self:
        """The stalls themselves."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the thread, which no wait keeps busy any more, and stops the clock."""
        if self._ended is None:
            self.end()
        self._thread.shutdown()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Adds what of the block's time the devices are idle in."""
        if self._began is None:
            yield
            return
        idle_since: float | None = time.perf_counter()
        if self._is_idle():
            yield
        else:
            over = threading.Event()
            noticed = self._thread.submit(self._notice, over)
            try:
                yield
            finally:
                over.set()
            idle_since = noticed.result() if noticed.done() else None
        if idle_since is not None:
            self.seconds += time.perf_counter() - idle_since

    def _notice(self, over: threading.Event) -> float | None:
        """When the devices became idle; None if the wait was over before."""
        began = time.perf_counter()
        while not over.wait(POLL_SECONDS + (time.perf_counter() - began) / 20):
            if self._is_idle():
                return time.perf_counter()
        return None

    def _is_idle(self) -> bool:
        return all(a.is_ready() for a in jax.tree.leaves(self._last))

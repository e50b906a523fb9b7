"""Watchdog: ends a process in which nothing progresses, with the stacks of all its threads."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Self

from kdist.distribution.alarm import announce, leave, this_process, write
from kdist.errors import ConfigError, HangError, unknown_name
from kdist.exits import HUNG

VARIABLE = "KDIST_HANG_SECONDS"
LIMITS: Mapping[str, float] = {
    "start-up": 1800.0,  # until the first step: processes join, data are opened, a checkpoint is restored
    "compile": 3600.0,  # the first execution of a program: large models for large meshes take half an hour
    "step": 1800.0,  # a fused execution, and what callbacks do after it
    "save": 3600.0,  # a wait for storage, which may be slow and far away
    "data": 1800.0,  # a wait for the next chunk; the first of an epoch may fill a shuffle buffer
}
"""Seconds without progress that end the process, by phase."""
POLL_SECONDS = 1.0
"""How often progress is looked for, and ten times in the shortest limit at least."""


class Watchdog:
    """A thread that ends the process when nothing has progressed for too long; use as a context manager.

    Progress is a `beat`, or a phase that begins or ends.  When there is none for the limit of the phase, the stacks of
    all threads are written to the error stream, then one line with the process, the phase, the step and what to do;
    other processes are told (see `Alarm`), and the process ends with exit code 43.  The devices are never asked.

    Outside of every phase it is "start-up" until the first beat, and "step" after it.  Phases and beats are those of
    the one thread that trains.  Entered again inside itself, as by an evaluation in a callback, it just goes on.

    The clock is the thread's own: a process that was stopped as a whole (SIGSTOP, gdb, a laptop asleep) does not find
    its limit passed when it continues.  A prompt of pdb stops the main thread alone and does count, so turn it off
    there.  What keeps the interpreter's lock for good stops this thread too; then only other processes notice.

    Args:
        limits: Seconds by phase, in place of the defaults in `LIMITS`; 0 for no limit.  None by default.  The
            environment variable ``KDIST_HANG_SECONDS`` goes before both: a number for all phases, or for some of them
            as in ``compile=900,step=300``.

    Raises:
        ConfigError: A limit is no number of seconds, or there is no such phase.

    Example:
        >>> with Watchdog({"compile": 900}) as watchdog:
        ...     with watchdog.phase("compile"):
        ...         pass
        ...     for step in range(3):
        ...         watchdog.beat(step)
    """

    def __init__(self, limits: Mapping[str, float] | None = None) -> None:
        self._limits = {**LIMITS, **_checked(limits or {}, "limits", limits), **_from_environment()}
        self._interval = min(POLL_SECONDS, min(self._limits.values()) / 10)
        self._depth = 0
        self._phase: str | None = None
        self._step: int | None = None
        self._moves = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self, step: int) -> None:
        """Something has progressed.  It costs a tenth of a microsecond and takes no lock.

        Args:
            step: The step that training has come to.

        Example:
            >>> Watchdog().beat(7)
        """
        self._step = step
        self._moves += 1

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Makes this the phase for as long as the block runs; inside another, the inner one's limit counts.

        Args:
            name: "start-up", "compile", "step", "save" or "data".

        Raises:
            ConfigError: There is no such phase.

        Example:
            >>> watchdog = Watchdog()
            >>> with watchdog.phase("save"), watchdog.phase("data"):
            ...     pass
        """
        if name not in self._limits:
            raise unknown_name("phase", name, self._limits)
        outer, self._phase = self._phase, name
        self._moves += 1
        try:
            yield
        finally:
            self._phase = outer
            self._moves += 1

    def __enter__(self) -> Self:
        """The watchdog itself, watching."""
        self._depth += 1
        if self._depth == 1:
            self._phase = self._step = None
            self._over = threading.Event()
            if min(self._limits.values()) < math.inf:
                self._thread = threading.Thread(
                    target=self._watch, args=(self._over,), name="kdist-watchdog", daemon=True
                )
                self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Watches no more."""
        self._depth -= 1
        if self._depth == 0:
            self._over.set()
            if self._thread is not None:
                self._thread.join()
                self._thread = None

    def _watch(self, over: threading.Event) -> None:
        seen, idle, last = self._moves, 0.0, time.monotonic()
        while not over.wait(self._interval):
            now = time.monotonic()
            idle += min(now - last, 2 * self._interval)  # a longer pause was one of the whole process
            last = now
            phase = self._phase or ("start-up" if self._step is None else "step")
            if self._moves != seen:
                seen, idle = self._moves, 0.0
            elif idle >= self._limits[phase]:
                self._end(phase, idle)

    def _end(self, phase: str, seconds: float) -> None:
        faulthandler.dump_traceback(file=2, all_threads=True)
        where = "before the first step" if self._step is None else f"after step {self._step}"
        error = HangError(
            f"{this_process()} has not progressed for {seconds:.0f} s in phase {phase!r}, {where}. The stacks above "
            f"show what each thread waits for; if that may take so long, set {VARIABLE}={phase}={2 * seconds:.0f} (0 "
            "for no limit)."
        )
        text = traceback.format_exception_only(error)[-1].rstrip()
        write(text)
        announce(text)
        leave(HUNG)


def _from_environment() -> dict[str, float]:
    """The limits in the environment variable; none if it is not set."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return {}
    limits: dict[str, str] = dict.fromkeys(LIMITS, text)
    if "=" in text:
        pairs = (part.partition("=") for part in text.split(","))
        limits = {phase.strip(): value for phase, _, value in pairs}
    return _checked(limits, f"The environment variable {VARIABLE}", text)


def _checked(limits: Mapping[str, float | str], what: str, received: object) -> dict[str, float]:
    """Limits as numbers: infinite for 0."""
    try:
        seconds = {phase: float(value) for phase, value in limits.items()}
    except (TypeError, ValueError):
        seconds = {"": math.nan}
    if not all(phase in LIMITS and 0 <= value < math.inf for phase, value in seconds.items()):
        raise ConfigError(
            f"{what} must give seconds, 0 for no limit, by phase ({', '.join(LIMITS)}), as in 'compile=900,step=300'; "
            f"or, in the environment, one number for all. Received: {received!r}."
        )
    return {phase: value or math.inf for phase, value in seconds.items()}

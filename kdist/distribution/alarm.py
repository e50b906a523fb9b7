"""News of failures between processes, and how a process ends without waiting for the others.

The news go through the store and not through collectives: when one process fails, the others are stuck in exactly
those.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import itertools
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import jax
from jax._src.distributed import global_state

from kdist.distribution.store import store
from kdist.errors import DistributionError

T = TypeVar("T")

POLL_SECONDS = 1.0
"""How often a process looks for news of the others."""
GRACE_SECONDS = 3.0
"""How long after it found some its main thread has for ending by itself."""
LINGER_SECONDS = 5.0
"""How long process 0, on its way out, waits for the others: the store dies with it, and JAX aborts who needs it."""
STORE_SECONDS = 3.0
"""How long the store has for an answer: process 0 may have been stopped, and nothing says how long."""
MOST_CHARACTERS = 30_000
"""How much of a traceback, from its end, is told."""

_NEWS = "kdist/failed/"
_GONE = "kdist/gone/"
_EXIT = "exit"
_numbers = itertools.count()
_failed: set[str] = set()  # the numbers of the alarms whose body raised on this process


class Alarm:
    """Ends this process when another fails, and tells the others when this one does; use as a context manager.

    All processes must enter their alarms in the same order.  If the body raises, the traceback is published; not so
    SystemExit, which is a decision to leave and no failure.  Every second a thread looks for what others published.
    When there is something, `check` raises it; if the body has not ended after three seconds more, since it is stuck
    in a collective with the one that failed, the thread writes the other's traceback and ends the process with 1.

    Errors that all processes raise alike may be caught, and training go on: what others publish counts only while the
    body of this process's own alarm runs, or if it ended well.  An error that is raised here while another process has
    failed before gets the other's traceback as a note.

    On one process, or where processes were not joined, it does nothing and has no thread.

    Example:
        >>> with Alarm() as alarm:
        ...     for step in range(3):
        ...         alarm.check()
    """

    def __init__(self) -> None:
        self._news: str | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._number = ""

    def check(self) -> None:
        """To be called by the main thread between executions.

        Raises:
            DistributionError: Another process has failed; the message ends with its traceback and its number.

        Example:
            >>> Alarm().check()  # outside of `with`, or on one process, there is never any news
        """
        if self._news is not None:
            raise DistributionError(self._news)

    def __enter__(self) -> Self:
        """The alarm itself, listening."""
        if store() is not None:
            self._news, self._number = None, str(next(_numbers))
            self._over = threading.Event()
            self._thread = threading.Thread(target=self._listen, name="kdist-alarm", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Stops listening, and tells the others of the body's error."""
        if self._thread is None:
            return
        self._over.set()
        self._thread.join(POLL_SECONDS)  # it ends by itself if the store answers late
        self._thread = None
        if error is None or isinstance(error, (SystemExit, GeneratorExit)):
            return
        heard = self._news or _answer(_look)
        _failed.add(self._number)
        if heard is None:
            announce(_traceback(error), self._number)
        elif heard not in _traceback(error):  # as it is in what `check` raised
            error.add_note(heard)

    def _listen(self) -> None:
        over = self._over
        while True:
            try:
                self._news = _look()
            except jax.errors.JaxRuntimeError:
                return  # process 0 is gone, and the store with it: JAX is about to abort this process
            if self._news is not None:
                break
            if over.wait(POLL_SECONDS):
                return
        if not over.wait(GRACE_SECONDS):
            announce(self._news)
            write(self._news)
            leave(1)


def announce(text: str, number: str = _EXIT) -> None:
    """Publishes that this process has failed, if it is one of several.

    Args:
        text: What happened: a traceback or a line.
        number: The alarm that it happened in; by default it counts for all, as the process is about to end.

    Example:
        >>> announce("HangError: no step for an hour")  # one process has nobody to tell
    """
    client = store()
    if client is not None:
        text = text[-MOST_CHARACTERS:].rstrip("\n")
        key = f"{_NEWS}{number}/{global_state.process_id}"
        _answer(lambda: client.key_value_set(key, text, allow_overwrite=True))


def leave(code: int) -> NoReturn:
    """Ends this process at once: JAX's own way out would first wait for all others, dead or stuck.

    Process 0 waits some seconds for the others to have left.

    Args:
        code: The exit code.

    Example:
        >>> import inspect
        >>> inspect.signature(leave).return_annotation
        'NoReturn'
    """
    if threading.current_thread() is threading.main_thread():
        _flush()
    else:  # the main thread may hold the lock of a stream that it is stuck in
        flusher = threading.Thread(target=_flush, daemon=True)
        flusher.start()
        flusher.join(1.0)
    client = store()
    if client is not None:
        if global_state.process_id == 0:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # its own store is shut down already
                _wait_for_others(client)
        else:
            _answer(lambda: client.key_value_set(f"{_GONE}{global_state.process_id}", "", allow_overwrite=True))
    os._exit(code)


def write(text: str) -> None:
    """Writes a text to the error stream itself, whatever `sys.stderr` is and whoever holds its lock.

    Args:
        text: What is written; a newline is added.

    Example:
        >>> write("")
    """
    with open(2, "w", encoding="utf-8", errors="replace", closefd=False) as stream:
        stream.write(f"{text}\n")


def this_process() -> str:
    """The number of this process, and of how many: of the processes that were joined, asked without using JAX.

    Example:
        >>> this_process()
        'process 0 of 1'
    """
    return f"process {global_state.process_id} of {global_state.num_processes}"


def _answer(ask: Callable[[], T]) -> T | None:
    """What the store says; None if it is gone, or does not answer in time."""
    answers: list[T] = []

    def run() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            answers.append(ask())

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # from Python 3.12 on, threads cannot be started on the way out
        run()
    else:
        thread.join(STORE_SECONDS)
    return answers[0] if answers else None


def _look() -> str | None:
    """What another process published, unless this one failed alike."""
    client = store()
    for key, text in [] if client is None else client.key_value_dir_get(_NEWS):
        number, process = key.removeprefix(_NEWS).split("/")
        if int(process) != global_state.process_id and (number == _EXIT or number not in _failed):
            return (
                f"{text}\nThe above happened on process {process} of {global_state.num_processes}, which failed; "
                f"process {global_state.process_id} cannot go on without it."
            )
    return None


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _wait_for_others(client: Any) -> None:
    deadline = time.monotonic() + LINGER_SECONDS
    while time.monotonic() < deadline:
        if len(client.key_value_dir_get(_GONE)) == global_state.num_processes - 1:
            return
        time.sleep(0.05)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # there is none, or it is closed already
            stream.flush()
    logging.shutdown()


def _leave_after_error() -> None:
    """Skips JAX's wait for the other processes when the interpreter ends with an exception that nobody caught.

    Threads are not waited for either: one may be stuck in a save, or in a source.
    """
    error: Any = getattr(sys, "last_value", None)  # what the interpreter printed as its last act
    if error is not None and store() is not None:
        announce(_traceback(error))
        write(f"This was {this_process()}.")
        leave(130 if isinstance(error, KeyboardInterrupt) else 1)


# What is registered with `atexit` runs only when all threads have ended; this runs before anybody waits for them, which
# the module of thread pools does: what is registered later runs earlier.
importlib.import_module("concurrent.futures.thread")
getattr(threading, "_register_atexit", atexit.register)(_leave_after_error)

"""Workers that read: threads, or processes that each hold a copy of what they read from."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from kdist.errors import ConfigError, DataError


def check_workers(workers: Any) -> int:
    """A number of workers.

    Raises:
        ConfigError: It is no whole number of 0 or more.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise ConfigError(f"workers must be an integer of 0 or more. Received: {workers!r}.")
    return workers


class Workers:
    """Threads or processes that call an object's method.

    Args:
        held: The object; processes get a copy of it each.
        method: The name of the method.
        count: How many there are.
        processes: Whether they are processes.

    Raises:
        DataError: `held` cannot be sent to processes.

    Example:
        >>> workers = Workers([10, 20, 30], "__getitem__", 2, processes=False)
        >>> [workers.submit(i).result() for i in range(3)]
        [10, 20, 30]
        >>> workers.close()
    """

    def __init__(self, held: Any, method: str, count: int, *, processes: bool) -> None:
        self._held = held
        self._call: Callable[..., Any] = _call_held if processes else getattr(held, method)
        self._executor: Executor
        if not processes:
            self._executor = ThreadPoolExecutor(count, thread_name_prefix="kdist-read")
            return
        name = type(held).__name__
        try:
            content = pickle.dumps(held)
        except Exception as error:  # pickle raises whatever an object's own methods do
            raise DataError(
                f"use_multiprocessing=True sends the {name} to other processes, but it cannot be pickled: {error} "
                "Define its class and functions in a module, without open files or locks, or use threads."
            ) from error
        # Spawned, not forked: a fork of a process that runs JAX's threads may hang.
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(count, context, _hold, (content, method))

    def submit(self, argument: Any) -> Future[Any]:
        """Calls the method in a worker.

        Raises:
            DataError: A worker process has died.
        """
        try:
            return self._executor.submit(self._call, argument)
        except BrokenProcessPool as error:
            raise died(error) from error

    def close(self, *, finish: bool = False) -> None:
        """Lets go of the workers.

        Args:
            finish: Whether calls that nobody has begun are waited for, and not cancelled.
        """
        self._executor.shutdown(wait=True, cancel_futures=not finish)


def result_of(future: Future[Any]) -> Any:
    """What a call gave.

    Raises:
        DataError: The worker process has died; what the call itself raised, else.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise died(error) from error


def died(error: Exception) -> DataError:
    """What to say when a worker process is gone."""
    return DataError(
        "A worker process that reads data has died: it was killed, perhaps for want of memory, or could not start (a "
        f"script must guard its main part by `if __name__ == '__main__':`). {error}"
    )


_HELD: list[Callable[..., Any]] = []
"""In a worker process: what it calls."""


def _hold(content: bytes, method: str) -> None:
    _HELD[:] = [getattr(pickle.loads(content), method)]


def _call_held(argument: Any) -> Any:
    return _HELD[0](argument)

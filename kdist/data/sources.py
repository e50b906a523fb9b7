"""Where batches come from: an iterator that is read once, something iterated over anew, or batches by number."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np

from kdist.errors import ConfigError, DataError

DEFAULT_AHEAD = 10
"""How many batches by number are read ahead, as in Keras."""


class Source:
    """Passes over batches.

    Attributes:
        length: Batches of a pass, or None if nobody knows.
        restarts: Whether a pass can be started again.
        threaded: Whether a thread may read it while the devices compute.
        most_ahead: How many batches at most are read before they are used; None for as many as fit.
    """

    length: int | None = None
    restarts = True
    threaded = True
    most_ahead: int | None = None

    def start(self, number: int) -> Iterator[Any]:
        """The batches of a pass."""
        raise NotImplementedError

    def end(self) -> None:
        """A pass is over."""


class Once(Source):
    """An iterator, or a generator: each pass goes on where the one before it stopped."""

    restarts = False

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    def start(self, number: int) -> Iterator[Any]:
        """The rest of the iterator."""
        return self._iterator

    def __str__(self) -> str:
        return f"the {type(self._iterator).__name__}"


class Anew(Source):
    """Something that gives a fresh iterator for each pass.

    Args:
        make: Gives it.
        length: Batches of a pass, if known.
        name: What to call it in messages.
    """

    def __init__(self, make: Callable[[], Iterator[Any]], length: int | None, name: str) -> None:
        self._make = make
        self.length = length
        self._name = name

    def start(self, number: int) -> Iterator[Any]:
        """A fresh iterator."""
        return self._make()

    def __str__(self) -> str:
        return f"the {self._name}"


class ByNumber(Source):
    """Batches by number, as Keras's PyDataset and Sequence have them, read ahead by workers.

    Args:
        sequence: Has `__len__` and `__getitem__`; `on_epoch_begin` and `on_epoch_end` are called if it has
            them, and `workers`, `max_queue_size` and `use_multiprocessing` are what is not given here.
        shuffle: Whether each pass has an order of its own.
        seed: What the orders are drawn from.
        workers: How many threads or processes read; 0 reads where the batch is wanted.
        max_queue_size: How many batches at most are read ahead.
        use_multiprocessing: Whether the workers are processes.

    Raises:
        ConfigError: `workers` is no count.
    """

    def __init__(
        self,
        sequence: Any,
        shuffle: bool = False,
        seed: int = 0,
        workers: int | None = None,
        max_queue_size: int | None = None,
        use_multiprocessing: bool | None = None,
    ) -> None:
        def given(value: Any, name: str, default: Any) -> Any:
            return getattr(sequence, name, default) if value is None else value

        self._sequence = sequence
        self._shuffle, self._seed = shuffle, seed
        self._workers = given(workers, "workers", 1)
        self._queue = given(max_queue_size, "max_queue_size", DEFAULT_AHEAD)
        self._processes = bool(given(use_multiprocessing, "use_multiprocessing", False))
        if isinstance(self._workers, bool) or not isinstance(self._workers, int) or self._workers < 0:
            raise ConfigError(f"workers must be an integer of 0 or more. Received: {self._workers!r}.")
        self.threaded = self._workers != 0
        self.length = self._length()

    def _length(self) -> int | None:
        """Its `num_batches`, which may be None for "without end"; else its length."""
        if hasattr(self._sequence, "num_batches"):
            return self._sequence.num_batches
        return len(self._sequence)

    def start(self, number: int) -> Iterator[Any]:
        """The batches of a pass, in its order."""
        self._call("on_epoch_begin")
        order: Iterable[int] = itertools.count() if self.length is None else range(self.length)
        if self._shuffle and self.length is not None:
            order = np.random.default_rng((self._seed, number)).permutation(self.length).tolist()
        return self._read(iter(order))

    def end(self) -> None:
        """Tells the sequence that a pass is over."""
        self._call("on_epoch_end")

    def _call(self, hook: str) -> None:
        getattr(self._sequence, hook, lambda: None)()

    def _read(self, numbers: Iterator[int]) -> Iterator[Any]:
        if self._workers == 0 or (self._workers == 1 and not self._processes):
            yield from map(self._sequence.__getitem__, numbers)
            return
        with self._executor() as executor:
            read = _read_here if self._processes else self._sequence.__getitem__
            ahead: collections.deque[Future[Any]] = collections.deque()
            try:
                for n in numbers:
                    ahead.append(executor.submit(read, n))
                    if len(ahead) >= max(self._queue, self._workers):
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                executor.shutdown(wait=False, cancel_futures=True)

    def _executor(self) -> Executor:
        if not self._processes:
            return ThreadPoolExecutor(self._workers, thread_name_prefix="kdist-read")
        try:
            sequence = pickle.dumps(self._sequence)
        except Exception as error:  # pickle raises whatever an object's own methods do
            raise DataError(
                f"use_multiprocessing=True sends the {type(self._sequence).__name__} to other processes, but it cannot "
                f"be pickled: {error} Define its class in a module, without open files or locks, or use threads."
            ) from error
        # Spawned, not forked: a fork of a process that runs JAX's threads may hang.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._workers, context, _hold, (sequence,))

    def __str__(self) -> str:
        return f"the {type(self._sequence).__name__}"


_HELD: list[Any] = []
"""In a worker process: the sequence that it reads."""


def _hold(sequence: bytes) -> None:
    _HELD[:] = [pickle.loads(sequence)]


def _read_here(n: int) -> Any:
    return _HELD[0][n]

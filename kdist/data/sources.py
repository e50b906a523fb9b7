"""Where batches come from: an iterator that is read once, something iterated over anew, or batches by number."""

from __future__ import annotations

import collections
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np

from kdist.data.workers import Workers, check_workers, result_of

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

    def start(self, number: int, first: int = 0) -> Iterator[Any]:
        """The batches of a pass, from one of them on; those before it are read, if there is no other way."""
        raise NotImplementedError

    def end(self) -> None:
        """A pass is over."""


class Once(Source):
    """An iterator, or a generator: each pass goes on where the one before it stopped."""

    restarts = False

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    def start(self, number: int, first: int = 0) -> Iterator[Any]:
        """The rest of the iterator."""
        return itertools.islice(self._iterator, first, None) if first else self._iterator

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

    def start(self, number: int, first: int = 0) -> Iterator[Any]:
        """A fresh iterator."""
        return itertools.islice(self._make(), first, None) if first else self._make()

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
        self.workers = check_workers(given(workers, "workers", 1))
        self._queue = given(max_queue_size, "max_queue_size", DEFAULT_AHEAD)
        self.use_multiprocessing = bool(given(use_multiprocessing, "use_multiprocessing", False))
        self.threaded = self.workers != 0
        self.length = self._length()

    def _length(self) -> int | None:
        """Its `num_batches`, which may be None for "without end"; else its length."""
        if hasattr(self._sequence, "num_batches"):
            return self._sequence.num_batches
        return len(self._sequence)

    def start(self, number: int, first: int = 0) -> Iterator[Any]:
        """The batches of a pass, in its order; those before `first` are not read."""
        self._call("on_epoch_begin")
        order: Iterable[int] = itertools.count() if self.length is None else range(self.length)
        if self._shuffle and self.length is not None:
            order = np.random.default_rng((self._seed, number)).permutation(self.length).tolist()
        return self._read(itertools.islice(order, first, None))

    def end(self) -> None:
        """Tells the sequence that a pass is over."""
        self._call("on_epoch_end")

    def _call(self, hook: str) -> None:
        getattr(self._sequence, hook, lambda: None)()

    def _read(self, numbers: Iterator[int]) -> Iterator[Any]:
        if self.workers == 0 or (self.workers == 1 and not self.use_multiprocessing):
            yield from map(self._sequence.__getitem__, numbers)
            return
        workers = Workers(self._sequence, "__getitem__", self.workers, processes=self.use_multiprocessing)
        ahead: collections.deque[Future[Any]] = collections.deque()
        try:
            for n in numbers:
                ahead.append(workers.submit(n))
                if len(ahead) >= max(self._queue, self.workers):
                    yield result_of(ahead.popleft())
            while ahead:
                yield result_of(ahead.popleft())
        finally:
            workers.close()

    def __str__(self) -> str:
        return f"the {type(self._sequence).__name__}"


class Mapped(Source):
    """A `grain.MapDataset` of batches; each pass has a shuffle of its own, if the dataset shuffles.

    Args:
        dataset: Batch i of pass p is its element ``p * len(dataset) + i``; None is what a filter left out.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._sparse = _is_sparse(dataset)
        self.length = None if self._sparse or len(dataset) == sys.maxsize else len(dataset)  # so long is "without end"

    def start(self, number: int, first: int = 0) -> Iterator[Any]:
        """The batches of a pass; those before `first` are read only where a filter leaves some out."""
        begin, length = number * len(self._dataset), len(self._dataset)
        if not self._sparse:
            return (self._dataset[begin + i] for i in range(first, length))
        batches = (self._dataset[begin + i] for i in range(length))
        return itertools.islice((batch for batch in batches if batch is not None), first, None)

    def __str__(self) -> str:
        return f"the {type(self._dataset).__name__}"


def is_map_dataset(source: Any) -> bool:
    """Whether it is a `grain.MapDataset`."""
    return any(c.__name__ == "MapDataset" and c.__module__.startswith("grain.") for c in type(source).__mro__)


def _is_sparse(dataset: Any) -> bool:
    """Whether a grain dataset has a filter, so that elements may be None."""
    return "Filter" in type(dataset).__name__ or any(map(_is_sparse, getattr(dataset, "parents", ())))

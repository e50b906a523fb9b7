"""Where batches come from, and how far they were read.

A `Source` is an iterator that is read once, something iterated over anew, or batches by number; a `Reading` is the
place in its passes that was reached.
"""

from __future__ import annotations

import collections
import contextlib
import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import GeneratorType
from typing import Any

import numpy as np

from kdist.data.workers import Workers, check_workers, result_of
from kdist.errors import DataError, KDistError

DEFAULT_AHEAD = 10
"""How many batches by number are read ahead, as in Keras."""
ENDLESS = 1 << 48
"""Nothing that ends has so many batches: what repeats for ever says that it has some part of `sys.maxsize`."""
NOTHING = object()
"""Comes where there is no item."""
_BEGUN: weakref.WeakSet[Any] = weakref.WeakSet()
"""Iterators that were read."""


class Source:
    """Passes over batches.

    Attributes:
        length: Batches of a pass, or None if nobody knows.
        restarts: Whether a pass can be started again.
        seeks: Whether a pass can be started anywhere without reading what comes before; if it has no length, it is
            without end.
        fresh: Whether nothing had been taken from it before, or it can be restarted.
        threaded: Whether a thread may read it while the devices compute.
        most_ahead: How many batches at most are read before they are used; None for as many as fit.
    """

    length: int | None = None
    restarts = True
    seeks = False
    fresh = True
    threaded = True
    most_ahead: int | None = None

    def begin(self) -> None:
        """A pass begins, from one of its batches on."""

    def start(self, number: int, first: int = 0) -> Iterator[Any]:
        """The batches of a pass, from one of them on; those before it are read, if there is no other way."""
        raise NotImplementedError

    def end(self) -> None:
        """A pass is over."""


class Once(Source):
    """An iterator, or a generator: each pass goes on where the one before it stopped.

    Args:
        iterator: The iterator.
    """

    restarts = False

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self.fresh = _is_fresh(iterator)

    def start(self, number: int, first: int = 0) -> Iterator[Any]:
        """The rest of the iterator."""
        with contextlib.suppress(TypeError):  # it cannot be remembered
            _BEGUN.add(self._iterator)
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

    seeks = True

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
        own = hasattr(self._sequence, "num_batches")
        return known_length(self._sequence.num_batches if own else len(self._sequence))

    def begin(self) -> None:
        """Tells the sequence that a pass begins."""
        self._call("on_epoch_begin")

    def start(self, number: int, first: int = 0) -> Iterator[Any]:
        """The batches of a pass, in its order; those before `first` are not read."""
        order: Iterable[int] = itertools.count() if self.length is None else range(self.length)
        if self._shuffle and self.length is not None:
            order = np.random.default_rng((self._seed, number)).permutation(self.length).tolist()
        return self._read(itertools.islice(order, first, None))

    def end(self) -> None:
        """Tells the sequence that a pass is over."""
        self._call("on_epoch_end")

    def _call(self, hook: str) -> None:
        with as_data_error(f"{hook} of {self} failed"):
            getattr(self._sequence, hook, lambda: None)()

    def _read(self, numbers: Iterator[int]) -> Iterator[Any]:
        if self.workers == 0 or (self.workers == 1 and not self.use_multiprocessing):
            for n in numbers:
                with unreadable(n, self):
                    item = self._sequence[n]
                yield item
            return
        workers = Workers(self._sequence, "__getitem__", self.workers, processes=self.use_multiprocessing)
        ahead: collections.deque[tuple[int, Future[Any]]] = collections.deque()

        def first() -> Any:
            n, future = ahead.popleft()
            with unreadable(n, self):
                return result_of(future)

        try:
            for n in numbers:
                ahead.append((n, workers.submit(n)))
                if len(ahead) >= max(self._queue, self.workers):
                    yield first()
            while ahead:
                yield first()
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
        self.seeks = not _is_sparse(dataset)
        self.length = known_length(len(dataset)) if self.seeks else None

    def start(self, number: int, first: int = 0) -> Iterator[Any]:
        """The batches of a pass; those before `first` are read only where a filter leaves some out."""
        begin, length = number * len(self._dataset), len(self._dataset)
        if self.seeks:
            return (self._dataset[begin + i] for i in range(first, length))
        batches = (self._dataset[begin + i] for i in range(length))
        return itertools.islice((batch for batch in batches if batch is not None), first, None)

    def __str__(self) -> str:
        return f"the {type(self._dataset).__name__}"


class Reading:
    """A place in the passes over a source, from which its batches are taken as the source gives them.

    Args:
        source: The source.

    Attributes:
        mark: What comes next, in the words of whoever takes; None before anything was taken.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.mark: Any = None
        self._pass = self._taken = 0
        self._begun = False
        self._iterator: Iterator[Any] | None = None
        self._seen: list[Any] = []  # what comes next, if it has been looked at
        self._first: Any = NOTHING
        self._lock = threading.RLock()  # a callback may evaluate what a thread reads to train on

    @property
    def untouched(self) -> bool:
        """Whether nothing was taken."""
        return self._pass == self._taken == 0

    def first(self) -> Any:
        """The first batch of all, which is not taken by this; NOTHING if there is none."""
        with self._lock:
            if self._first is NOTHING:
                self._first = self._read()
                self._seen = [self._first] if self._first is not NOTHING else []
            return self._first

    def take(self) -> Any:
        """The next batch; NOTHING at the end of a pass, after which the next pass begins."""
        with self._lock:
            item = self._seen.pop() if self._seen else self._read()
            if item is NOTHING:
                self._end()
                return NOTHING
            if self._first is NOTHING:
                self._first = item
            self._taken += 1
            return item

    def skip(self, count: int) -> None:
        """Drops so many batches, or as many as there are to the end of the pass."""
        for _ in range(count):
            if self.take() is NOTHING:
                return

    def go_to(self, number: int, first: int = 0) -> None:
        """Goes to a batch of a pass; if it is there, it goes on."""
        if (number, first) != (self._pass, self._taken):
            self._let_go()
            self._seen, self._begun = [], False
            self._pass, self._taken = number, first

    def apart(self, number: int, first: int = 0) -> Reading:
        """A reading of its own from a batch of a pass on.  A pass that was only looked at is taken over."""
        other = Reading(self.source)
        with self._lock:
            if (number, first) == (self._pass, self._taken) and not first:
                other._begun, other._iterator, other._seen = self._begun, self._iterator, self._seen
                self._begun, self._iterator, self._seen = False, None, []
            elif self.untouched:
                self._let_go()  # it has only been looked at: nothing need read ahead here meanwhile
        other.go_to(number, first)
        return other

    def end_if_complete(self) -> None:
        """Ends the pass, if all that the source says that it has was taken."""
        if self._begun and self._taken == self.source.length:
            self._end()

    def close(self) -> None:
        """Lets go of what reads ahead, where that loses nothing: it is read again when it is wanted."""
        with self._lock:
            if self.source.seeks:
                self._let_go()

    def _read(self) -> Any:
        with unreadable(self._taken, self.source):
            try:
                if not self._begun:
                    self.source.begin()
                    self._begun = True
                if self._iterator is None:
                    self._iterator = self.source.start(self._pass, self._taken + len(self._seen))
                return next(self._iterator, NOTHING)
            except BaseException:
                self._let_go()
                raise

    def _end(self) -> None:
        self._let_go()
        self._pass, self._taken = self._pass + 1, 0
        if self._begun:
            self._begun = False
            self.source.end()

    def _let_go(self) -> None:
        iterator, self._iterator = self._iterator, None
        if self.source.seeks:  # other iterators are not kdist's to close
            getattr(iterator, "close", lambda: None)()


def iterate(source: Any) -> Iterator[Any]:
    """A fresh iterator.  One of grain's may start processes, which want to hand on the command line's flags of absl."""
    if any(c.__module__.startswith("grain.") for c in type(source).__mro__):
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # with their defaults; a program that parses them later still can
    return iter(source)


def known_length(length: int | None) -> int | None:
    """How many batches there are; None for "without end", which some say by a very large number.

    Example:
        >>> known_length(7), known_length(2**63 // 4)
        (7, None)
    """
    return None if length is None or length > ENDLESS else length


@contextlib.contextmanager
def as_data_error(what: str) -> Iterator[None]:
    """Makes a DataError of what a source raises, which may be anything; what kdist says itself stays as it is.

    Args:
        what: What went wrong; the message begins with it.
    """
    try:
        yield
    except KDistError:
        raise
    except Exception as error:
        raise DataError(f"{what}: {type(error).__name__}: {error}") from error


def unreadable(number: int, source: Source) -> contextlib.AbstractContextManager[None]:
    """Makes a DataError of what a source raises for a batch, which it names."""
    return as_data_error(f"Batch {number} of {source} could not be read")


def _is_fresh(iterator: Iterator[Any]) -> bool:
    """Whether nothing was taken from it.  A generator knows; of another one it is known whether kdist did."""
    if isinstance(iterator, GeneratorType):
        return inspect.getgeneratorstate(iterator) == inspect.GEN_CREATED
    try:
        return iterator not in _BEGUN
    except TypeError:  # one that cannot be remembered
        return True


def is_map_dataset(source: Any) -> bool:
    """Whether it is a `grain.MapDataset`."""
    return any(c.__name__ == "MapDataset" and c.__module__.startswith("grain.") for c in type(source).__mro__)


def _is_sparse(dataset: Any) -> bool:
    """Whether a grain dataset has a filter, so that elements may be None."""
    return "Filter" in type(dataset).__name__ or any(map(_is_sparse, getattr(dataset, "parents", ())))

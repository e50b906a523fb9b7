"""Batches that come one after the other, as a loader: from generators, iterators and objects that hold batches.

Where they come from is a `Source`, and how far that was read a `Reading`; the loader counts them into epochs.
"""

from __future__ import annotations

import collections
import copy
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from kdist.data.arrays import as_arrays, as_float32, check_batch_size, check_lengths
from kdist.data.sources import (
    NOTHING,
    Anew,
    ByNumber,
    Mapped,
    Once,
    Reading,
    Source,
    is_map_dataset,
    iterate,
    known_length,
)
from kdist.data.workers import check_workers
from kdist.distribution import agree_on_least
from kdist.errors import DataError, said_of
from kdist.typing import Batch, PyTree

_MANY = 2**31 - 1
"""Stands, where processes agree, for a number of batches that is not known."""


class BatchLoader:
    """Batches in the order they come; see `from_batches`, which makes it.

    An epoch is one pass over the source, or `steps` batches; the next epoch then goes on where that one
    ended.  Which batches those of an epoch are depends on nothing else: not on what was read before, where the source
    can be started again.  Batches may differ in their number of rows.

    Args:
        source: Where the batches come from.
        steps: The most steps of an epoch; None, the default, for a whole pass.
        per_process: Whether the batches of each process are its own part of the global ones; then all processes must
            make their loaders at the same point, and agree on the number of steps; False by default.
        convert: Makes a checked `Batch` of what the source yields; `unpack` by default.
        repeat: Whether passes follow each other within an epoch, so that it never has less than `steps`; False by
            default.

    Example:
        >>> loader = from_batches([(np.ones((4, 3)), np.zeros(4)), (np.ones((2, 3)), np.zeros(2))])
        >>> loader.batch_size, [len(batch.x) for batch in loader.batches(epoch=0, fresh=True)]
        (4, [4, 2])
    """

    def __init__(
        self,
        source: Source,
        *,
        steps: int | None = None,
        per_process: bool = False,
        convert: Callable[[Any], Batch] | None = None,
        repeat: bool = False,
    ) -> None:
        self.source = source
        self.repeat = repeat
        self.steps = steps
        self.per_process = per_process
        self.convert = convert or unpack
        self._length = _least(source.length) if per_process else source.length
        self._reading = Reading(source)  # which copies of the loader share
        self._example: Batch | None = None

    @property
    def num_steps(self) -> int | None:
        """S, the most steps of an epoch; None if nobody knows."""
        return self._length if self.steps is None else self.steps

    @property
    def batch_size(self) -> int:
        """Rows of the first batch, over all processes."""
        return rows_of(self.example()) * (jax.process_count() if self.per_process else 1)

    def example(self) -> Batch:
        """The first batch, which is not lost.

        Raises:
            DataError: There is none, or it is no batch.
        """
        if self._example is None:
            first = self._reading.first()
            if first is NOTHING:
                raise DataError(f"The data are empty: {self.source} yielded no batch. It must yield at least one.")
            self._example = self._converted(first, "The first batch")
        return self._example

    def batches(self, epoch: int, *, fresh: bool, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch.

        Args:
            epoch: Which one; it decides where the source is read, and the order of one that is shuffled.
            fresh: Whether to start a pass over, where the source can, in place of going on; what goes on stays where
                it is.
            start: The step of the epoch to start with.

        Yields:
            At most `num_steps` batches; none if the source is exhausted for good.
        """
        reading = self._at(epoch, start, fresh)
        try:
            for step in itertools.count(start) if self.steps is None else range(start, self.steps):
                item = reading.take()
                if item is NOTHING and (step == 0 or self.repeat) and self.source.restarts:
                    item = reading.take()  # all there was had been taken: the next pass
                if item is NOTHING:
                    break
                reading.mark = (self.steps, epoch, step + 1)
                yield self._converted(item, f"Step {step}")
            reading.end_if_complete()
            reading.mark = (self.steps, epoch + 1, 0)
        finally:
            if reading is not self._reading:
                reading.close()

    def close(self) -> None:
        """Ends the workers that read ahead, if there are any; what comes next stays what it is."""
        self._reading.close()

    def _at(self, epoch: int, start: int, fresh: bool) -> Reading:
        """The reading of the source, at a step of an epoch."""
        reading = self._reading
        if not self.source.restarts:
            if reading.untouched and self.source.fresh:  # else it is where it is
                reading.skip(epoch * (self.steps or 0) + start)
        elif fresh or self.steps is None:
            reading = reading.apart(epoch, start)
        elif reading.mark != (self.steps, epoch, start):
            self._go_to(epoch, start)
        return reading

    def _go_to(self, epoch: int, start: int) -> None:
        """Goes to a step of an epoch, where epochs share passes."""
        assert self.steps is not None
        reading, length = self._reading, self.source.length
        if length is None and not self.source.seeks:  # there is no other way than to count
            reading.go_to(0)
            reading.mark = (self.steps, 0, 0)
            for earlier in range(epoch):
                collections.deque(self.batches(earlier, fresh=False), maxlen=0)
            collections.deque(itertools.islice(self.batches(epoch, fresh=False), start), maxlen=0)
        elif length is None:
            reading.go_to(0, epoch * self.steps + start)
        elif self.repeat:
            reading.go_to(*divmod(epoch * self.steps + start, length))
        else:
            number, part = divmod(epoch, -(-length // self.steps))
            reading.go_to(number, part * self.steps + start)

    def _converted(self, item: Any, where: str) -> Batch:
        with said_of(f"{where}, from {self.source}"):
            return self.convert(item)

    def with_steps(self, steps: int | None) -> BatchLoader:
        """The same batches in epochs of at most so many steps."""
        changed = copy.copy(self)
        changed.steps = steps
        return changed

    def map(self, fn: Callable[[Batch], Batch]) -> BatchLoader:
        """The same batches, each changed by `fn`."""
        changed, convert = copy.copy(self), self.convert
        changed.convert = lambda item: fn(convert(item))
        changed._example = None if self._example is None else fn(self._example)
        return changed


def _least(length: int | None) -> int | None:
    """The least of all processes' numbers of batches, as far as they are known."""
    least = agree_on_least(_MANY if length is None else min(length, _MANY))
    return None if least == _MANY else least


def from_batches(
    source: Iterable[Any] | Iterator[Any] | Callable[[], Iterable[Any]],
    *,
    steps: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    workers: int | None = None,
    max_queue_size: int | None = None,
    use_multiprocessing: bool | None = None,
    per_process: bool = False,
) -> BatchLoader:
    """A loader of batches that are made elsewhere.

    Each batch is ``x``, ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``, of arrays with the rows first.  On
    several processes each must yield the same batches; every one takes its own rows of them.

    Args:
        source: A generator or iterator, which is read once and goes on from epoch to epoch; a function that
            makes a fresh one; an object to iterate over again and again, such as a torch or tf.data loader; or
            one with batches by number (`__len__` and `__getitem__`, as Keras's PyDataset has).
        steps: The most steps of an epoch; all that the source has by default.
        shuffle: Whether batches by number come in an order of their own each pass, drawn from `seed`; False by default.
        seed: What the orders are drawn from; 0 by default.
        workers: How many threads or processes read batches by number; 0 reads in the calling thread.  By
            default what the source itself says, or one thread.
        max_queue_size: How many batches at most are read ahead; what the source itself says, or 10, by default.
        use_multiprocessing: Whether the workers are processes; what the source itself says, or False, by default.
        per_process: Whether the batches of each process are its own part of the global ones, one after the other; an
            epoch ends when that of any process does; all processes must then call this at the same point; False by
            default.

    Returns:
        The loader.

    Raises:
        ConfigError: An argument is out of its range.
        DataError: `source` is no source of batches.

    Example:
        >>> loader = from_batches(lambda: (np.ones((4, 2)) for _ in range(3)))
        >>> [batch.x.shape for batch in loader.batches(0, fresh=True)]
        [(4, 2), (4, 2), (4, 2)]
    """
    if steps is not None:
        check_batch_size(steps, "steps")
    if max_queue_size is not None:
        check_batch_size(max_queue_size, "max_queue_size")
    made = as_source(source, shuffle, seed, workers, max_queue_size, use_multiprocessing)
    return BatchLoader(made, steps=steps, per_process=per_process)


def as_source(
    source: Any,
    shuffle: bool = False,
    seed: int = 0,
    workers: int | None = None,
    max_queue_size: int | None = None,
    use_multiprocessing: bool | None = None,
) -> Source:
    """The source that something is; arguments as in `from_batches`.

    Raises:
        DataError: It is none.
        ConfigError: `workers` is no whole number of 0 or more.
    """
    if workers is not None:
        check_workers(workers)
    if isinstance(source, Iterator):
        made: Source = Once(source)
    elif is_map_dataset(source):
        made = Mapped(source)
    elif holds_batches(source):
        made = ByNumber(source, shuffle, seed, workers, max_queue_size, use_multiprocessing)
    elif isinstance(source, Iterable) and not isinstance(source, (str, bytes, dict)):
        made = Anew(lambda: iterate(source), length_of(source), said_as(source))
    elif callable(source) and not isinstance(source, type):
        made = Anew(lambda: _iterate(source), None, said_as(source))
    else:
        raise DataError(
            f"Expected batches: a generator, an iterator, a function that makes one, or an object to iterate over. "
            f"Received: a {said_as(source)}."
        )
    made.threaded = made.threaded and workers != 0
    made.most_ahead = max_queue_size
    return made


def _iterate(make: Callable[[], Any]) -> Iterator[Any]:
    made = make()
    if not isinstance(made, Iterable) or isinstance(made, (str, bytes, dict)):
        raise DataError(f"The {said_as(make)} must make an iterator over batches. It returned a {said_as(made)}.")
    return iterate(made)


def holds_batches(source: Any) -> bool:
    """Whether it has batches by number, as a grain.MapDataset and Keras's PyDataset have, and not rows by number."""
    if is_map_dataset(source):
        return True
    numbered = hasattr(source, "__len__") and hasattr(source, "__getitem__") and not isinstance(source, type)
    return numbered and (hasattr(source, "on_epoch_end") or hasattr(source, "num_batches"))


def length_of(source: Any) -> int | None:
    """How many batches it says that it has, if it does."""
    try:
        return known_length(len(source))
    except TypeError:
        return None


def said_as(source: Any) -> str:
    """What to call it in messages."""
    return type(source).__name__ if not hasattr(source, "__name__") else f"{type(source).__name__} {source.__name__}"


def unpack(item: Any) -> Batch:
    """A batch from what a source yields: ``x``, ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``.

    Args:
        item: A tuple or list of one to three; a dict or array is ``x``.

    Raises:
        DataError: It is none of these, or something in it is no array of numbers.

    Example:
        >>> batch = unpack((np.ones((4, 2)), np.zeros(4)))
        >>> batch.x.shape, batch.y.shape, batch.weight
        ((4, 2), (4,), None)
    """
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        raise DataError(
            f"A batch is a namedtuple {type(item).__name__}{item._fields}, which could mean its fields or its "
            "positions. Yield a plain tuple (x, y) or (x, y, sample_weight)."
        )
    parts = tuple(item) if isinstance(item, (list, tuple)) else (item,)
    if not 1 <= len(parts) <= 3:
        raise DataError(
            f"A batch must be x, (x,), (x, y) or (x, y, sample_weight). Received: a {type(item).__name__} of "
            f"{len(parts)}."
        )
    named = dict(zip(("x", "y", "sample_weight"), parts, strict=False))
    arrays = {name: as_arrays(value, name) for name, value in named.items()}
    check_lengths(arrays)
    return Batch(arrays["x"], arrays.get("y"), as_float32(arrays.get("sample_weight")))


def rows_of(batch: Batch) -> int:
    """How many rows a batch has."""
    return np.shape(jax.tree.leaves(batch.x)[0])[0]


def layout(tree: PyTree) -> str:
    """Structure, shapes and types of arrays or numbers.

    Example:
        >>> layout((np.ones(2), 3.0))
        '(float64[2], float64[])'
    """
    return str(jax.tree.map(lambda a: f"{np.asarray(a).dtype.name}{list(np.shape(a))}", tree)).replace("'", "")


def described(batch: Batch) -> str:
    """Structure, shapes and types of a row of a batch.

    Args:
        batch: A `Batch`, leaves ``[B, ...]``.

    Example:
        >>> described(Batch(np.ones((4, 2)), np.zeros(4, np.int32)))
        '{x: float64[2], y: int32[]}'
    """
    parts = {"x": batch.x, "y": batch.y, "sample_weight": batch.weight}
    named = {name: part for name, part in parts.items() if part is not None}
    return layout(jax.tree.map(lambda a: a[0], named))

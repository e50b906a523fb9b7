"""Batches that come one after the other, as a loader: from generators, iterators and objects that hold batches.

Where they come from is a `Source`; the loader counts them into epochs.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from kdist.data.arrays import as_arrays, as_float32, check_batch_size, check_lengths
from kdist.data.sources import Anew, ByNumber, Mapped, Once, Source, is_map_dataset
from kdist.data.workers import check_workers
from kdist.errors import DataError
from kdist.typing import Batch, PyTree

_NOTHING = object()


class BatchLoader:
    """Batches in the order they come; see `from_batches`, which makes it.

    An epoch is one pass over the source, or `steps` batches; the next epoch then goes on where that one
    ended.  Batches may differ in their number of rows.

    Args:
        source: Where the batches come from.
        steps: The most steps of an epoch; None, the default, for a whole pass.
        per_process: Whether the batches of each process are its own part of the global ones; False by default.
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
        self._example: Batch | None = None
        self._iterator: Iterator[Any] | None = None
        self._pass, self._taken = 0, 0

    @property
    def num_steps(self) -> int | None:
        """S, the most steps of an epoch; None if nobody knows."""
        return self.source.length if self.steps is None else self.steps

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
            self._start(0)
            assert self._iterator is not None
            first = next(self._iterator, _NOTHING)
            if first is _NOTHING:
                raise DataError(f"The data are empty: {self.source} yielded no batch. It must yield at least one.")
            self._iterator = itertools.chain([first], self._iterator)
            self._example = self.convert(first)
        return self._example

    def batches(self, epoch: int, *, fresh: bool, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch.

        Args:
            epoch: Which one; it decides the order of a source that is shuffled, and where one that goes on from epoch
                to epoch is when nothing was read of it before.
            fresh: Whether to start over, where the source can, in place of going on.
            start: The step of the epoch to start with.

        Yields:
            At most `num_steps` batches; none if the source is exhausted for good.
        """
        fresh = fresh or self.steps is None
        begun = self._pass == epoch and self._taken == 0
        if fresh and self.source.restarts and not (begun and not start and self._iterator is not None):
            self._start(epoch, start)
        elif not fresh and self.source.restarts and self._pass == self._taken == 0 and (epoch or start):
            self._go_to(epoch, start)
        else:
            if self._iterator is None:
                self._start(epoch if fresh else self._pass)
            self._skip(start)
        for step in itertools.count(start) if self.steps is None else range(start, self.steps):
            batch = self._step(step)
            if batch is None:
                return
            yield batch
        if self._taken == self.source.length:
            self._end()

    def _go_to(self, epoch: int, start: int) -> None:
        """Goes to a step of an epoch, where epochs share passes, and nothing was taken before."""
        assert self.steps is not None
        if self.source.length is None:  # there is no other way than to count
            for earlier in range(epoch):
                for _ in self.batches(earlier, fresh=False):
                    pass
            self._skip(start)
            return
        if self.repeat:
            self._start(*divmod(epoch * self.steps + start, self.source.length))
            return
        number, part = divmod(epoch, -(-self.source.length // self.steps))
        self._start(number, part * self.steps + start)

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

    def _start(self, number: int, first: int = 0) -> None:
        self._pass, self._taken = number, first
        self._iterator = self.source.start(number, first)

    def _skip(self, steps: int) -> None:
        for step in range(steps):
            self._step(step)

    def _step(self, step: int) -> Batch | None:
        """The batch of a step of an epoch; None at the end of the data."""
        batch = self._next()
        if batch is None and (step == 0 or self.repeat) and self.source.restarts:  # all there was has been taken
            self._start(self._pass)
            batch = self._next()
        return batch

    def _next(self) -> Batch | None:
        item = _NOTHING if self._iterator is None else next(self._iterator, _NOTHING)
        if item is _NOTHING:
            self._end()
            return None
        self._taken += 1
        return self.convert(item)

    def _end(self) -> None:
        """A pass is over."""
        if self._iterator is not None:
            self._iterator = None
            self._pass += 1
            self.source.end()


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
            epoch ends when that of any process does; False by default.

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
        made = Anew(lambda: iter(source), length_of(source), said_as(source))
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
    return iter(made)


def holds_batches(source: Any) -> bool:
    """Whether it has batches by number, as a grain.MapDataset and Keras's PyDataset have, and not rows by number."""
    if is_map_dataset(source):
        return True
    numbered = hasattr(source, "__len__") and hasattr(source, "__getitem__") and not isinstance(source, type)
    return numbered and (hasattr(source, "on_epoch_end") or hasattr(source, "num_batches"))


def length_of(source: Any) -> int | None:
    """How many batches it says that it has, if it does."""
    try:
        return len(source)
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

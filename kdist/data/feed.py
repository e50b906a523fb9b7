"""From a loader's rows to chunks of batches on the devices, ahead of the computation.

Two kinds of `Feed`, which give the same batches.  *Resident*: the rows are on the devices once, and a
chunk is the order of an epoch, from which the compiled program gathers.  *Streamed*: a chunk is the
rows of C steps, gathered and sent by threads.  In both, each process touches only what its devices
hold.

Shapes: B global batch, W = B padded so that it divides by the devices, C steps of a chunk.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from kdist.data.loader import Loader
from kdist.distribution import BATCH_AXES, DataParallel, agree_on_least
from kdist.errors import DataError
from kdist.typing import Batch

RESIDENT_BYTES = 256 << 20
"""Data up to this size are kept on the devices, each of which holds all of them."""
CHUNK_BYTES = 16 << 20
"""A streamed chunk holds about this much: enough to hide its dispatch, little enough to have four."""
MAX_CHUNK_STEPS = 1024
"""A streamed chunk holds at most this many steps."""
GATHER_SECONDS = 0.1
"""A chunk is to be gathered in about this time, that nobody waits long for the first."""
CHUNKS_AHEAD = 2
"""So many chunks are prepared while one is used: who made the next has another to make, and need not be woken up."""

Wait = Callable[[Future[Any]], Any]
"""Gives what a thread gathers, once it is there."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Feed:
    """What a compiled program reads its batches from.

    Attributes:
        rows: Resident: all rows, leaves ``[num_rows, ...]``, on every device.  Streamed: the rows of
            a chunk, leaves ``[C, W, ...]``, split over the devices along W.
        order: Resident: which row stands where, int32 ``[C, W]``; ``~row`` is a copy of `row` that
            fills the batch and does not count.  Streamed: None.
        padded: Whether any row only fills a batch.

    Example:
        >>> from kdist.data import from_arrays
        >>> loader = from_arrays(np.arange(6.0), batch_size=4, shuffle=False)
        >>> distribution = DataParallel(devices=jax.devices()[:1])
        >>> with Feeder(loader, distribution) as feeder:
        ...     feed = next(feeder.chunks(0)).feed
        >>> feed.padded, feed.batch(jnp.int32(1), distribution).valid.tolist()
        (True, [1.0, 1.0, 0.0, 0.0])
    """

    rows: Batch
    order: jax.Array | None
    padded: bool = dataclasses.field(metadata={"static": True})

    def batch(self, i: jax.Array, distribution: DataParallel | None) -> Batch:
        """Batch i of the chunk, leaves ``[W, ...]`` split over the devices; inside a traced program.

        Args:
            i: int32 scalar, 0 .. C-1.
            distribution: Where the rows lie; None to gather them in one place.
        """
        if self.order is None:
            return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), self.rows)
        order = jax.lax.dynamic_index_in_dim(self.order, i, keepdims=False)

        def gather(rows: Batch, order: jax.Array) -> Batch:
            row = jnp.where(order < 0, ~order, order)
            picked = jax.tree.map(lambda a: a.at[row].get(mode="promise_in_bounds"), rows)
            valid = (order >= 0).astype(jnp.float32) if self.padded else None
            return dataclasses.replace(picked, valid=valid)

        if distribution is None:
            return gather(self.rows, order)
        return jax.shard_map(
            gather,
            mesh=distribution.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(BATCH_AXES)),
            out_specs=PartitionSpec(BATCH_AXES),
            check_vma=False,
        )(self.rows, order)


class Chunk(NamedTuple):
    """Some consecutive steps of an epoch, on the devices.

    Attributes:
        feed: Where their batches are read from; the first is batch 0.
        first_step: The step of the epoch that batch 0 is.
        rows: How many rows count in each batch, int ``[num_steps]``; they are the first of it.

    Example:
        >>> from kdist.data import from_arrays
        >>> loader = from_arrays(np.arange(6.0), batch_size=4, shuffle=False)
        >>> distribution = DataParallel(devices=jax.devices()[:1])
        >>> with Feeder(loader, distribution) as feeder:
        ...     chunk = next(feeder.chunks(0))
        >>> chunk.first_step, chunk.num_steps, chunk.rows.tolist()
        (0, 2, [4, 2])
    """

    feed: Feed
    first_step: int
    rows: np.ndarray

    @property
    def num_steps(self) -> int:
        """How many batches are real; a feed may have room for more."""
        return len(self.rows)

    @property
    def num_rows(self) -> int:
        """The rows that count, in all of them."""
        return int(self.rows.sum())


class _Span(NamedTuple):
    """Steps ``first .. last-1`` of an epoch, to be placed as a chunk of `room` steps of W rows."""

    first: int
    last: int
    room: int
    width: int


class _Epoch(NamedTuple):
    """The rows of an epoch from some step on, and the chunks that they are placed in."""

    rows: np.ndarray
    spans: list[_Span]


class ChunkFeeder(abc.ABC):
    """Chunks of a loader on the devices of a distribution; use as a context manager.

    Example:
        >>> from kdist.data import from_arrays
        >>> loader = from_arrays(np.arange(6.0), batch_size=4, shuffle=False)
        >>> distribution = DataParallel(devices=jax.devices()[:1])
        >>> with Feeder(loader, distribution) as feeder:
        ...     isinstance(feeder, ChunkFeeder), feeder.width, sum(chunk.num_rows for chunk in feeder.chunks(epoch=0))
        (True, 4, 6)
    """

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """W, the rows of a batch as it is placed."""

    @property
    @abc.abstractmethod
    def chunk_steps(self) -> int:
        """C, the most steps that a chunk holds."""

    @abc.abstractmethod
    def chunks(
        self, epoch: int, *, start: int = 0, then: int | None = None, wait: Wait = Future.result
    ) -> Iterator[Chunk]:
        """The chunks of an epoch; while one is used, the next are prepared.

        Args:
            epoch: Which epoch.
            start: The step of the epoch to start with.
            then: The epoch that comes next, which may be prepared too.
            wait: Called equally often on all processes; by default each waits for what it gathers itself.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the threads; what they prepared is dropped."""

    def __enter__(self) -> Self:
        """The feeder itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the feeder."""
        self.close()


class Feeder(ChunkFeeder):
    """Chunks of rows by number on the devices of a distribution; use as a context manager.

    Args:
        loader: The data.
        distribution: The devices.
        multiple: Every batch is padded to a multiple of this many rows; 1 by default.
        steps_per_execution: K, if chunks must hold a multiple of K steps; 1 by default.
        exact: "never" fills every batch up; "possibly" gives a shorter last batch a chunk of its own, of its own shape,
            if it divides by `multiple`; "always" insists on that; "never" by default.
        check: Called with rows as they are read, to refuse them by an error; none by default.

    Raises:
        DataError: A batch does not divide by `multiple`, and `exact` is "always".

    Example:
        >>> from kdist.data import from_arrays
        >>> loader = from_arrays(np.arange(6.0), batch_size=4, shuffle=False)
        >>> distribution = DataParallel(devices=jax.devices()[:1])
        >>> with Feeder(loader, distribution) as feeder:
        ...     [chunk.rows.tolist() for chunk in feeder.chunks(epoch=0, start=1)]
        [[2]]
    """

    def __init__(
        self,
        loader: Loader,
        distribution: DataParallel,
        *,
        multiple: int = 1,
        steps_per_execution: int = 1,
        exact: str = "never",
        check: Callable[[Batch], None] | None = None,
    ) -> None:
        self.loader = loader
        self.distribution = distribution
        self._check = check
        self.resident = loader.nbytes <= RESIDENT_BYTES if loader.cache == "auto" else bool(loader.cache)
        self._parts = jax.process_count() if getattr(loader, "per_process", False) else 1
        self._size = min(loader.batch_size // self._parts, loader.num_rows)
        multiple //= self._parts
        self._multiple, self._steps_per_execution, self._exact = multiple, steps_per_execution, exact
        spans = self._plan(loader.num_rows)
        self.padded = sum(span.width * (span.last - span.first) for span in spans) != loader.num_rows
        first = self._plan(min(loader.num_rows, loader.num_steps * self._size))[0]
        self._room, self._width = first.room, first.width * self._parts
        self._workers = ThreadPoolExecutor(getattr(loader, "readers", 1), thread_name_prefix="kdist-feed")
        self._ahead: dict[tuple[int, int, int], Future[Chunk]] = {}
        self._rows: Batch | None = None
        self._epochs: dict[tuple[int, int], _Epoch] = {}

    @property
    def width(self) -> int:
        """See `ChunkFeeder.width`."""
        return self._width

    @property
    def chunk_steps(self) -> int:
        """See `ChunkFeeder.chunk_steps`."""
        return self._room

    def chunks(
        self, epoch: int, *, start: int = 0, then: int | None = None, wait: Wait = Future.result
    ) -> Iterator[Chunk]:
        """See `ChunkFeeder.chunks`; the first chunk of the epoch `then` is prepared during the last of this one."""
        i, count = 0, 1
        while i < count and (not start or self._epoch(epoch, start).spans):
            self._prepare(epoch, start, i)
            chunk = wait(self._ahead.pop((epoch, start, i)))
            count = len(self._epoch(epoch, start).spans)
            for later in range(i + 1, min(i + 1 + CHUNKS_AHEAD, count)):
                self._prepare(epoch, start, later)
            if i + 1 == count and then is not None:
                self._prepare(then, 0, 0)
            yield chunk
            i += 1

    def close(self) -> None:
        """See `ChunkFeeder.close`."""
        self._workers.shutdown(cancel_futures=True)
        self._ahead.clear()
        getattr(self.loader, "close", lambda: None)()

    def __str__(self) -> str:
        streamed = f"streamed, {self._room} steps of {self._width} rows at a time"
        how = "kept on each device" if self.resident else streamed
        return f"{self.loader.num_rows} rows, {self.loader.nbytes / 1e6:.1f} MB, {how}"

    def _plan(self, rows: int, start: int = 0, room: int | None = None) -> list[_Span]:
        """The chunks of so many rows, whose steps are counted from `start`.

        Args:
            rows: How many rows there are.
            start: What their first step is called.
            room: C; by default as much as fits.
        """
        size, multiple = self._size, self._multiple
        steps = -(-rows // size)
        width = -(-size // multiple) * multiple
        tail = rows % size
        divides = width == size and tail % multiple == 0
        if self._exact == "always" and not divides:
            raise DataError(
                "A loss or metric that returns one number a batch cannot tell real rows from those that fill up a "
                f"batch, and {rows} rows in batches of {size} do not divide over {multiple} parts. "
                "Return one value a row, or choose a batch_size that divides."
            )
        apart = bool(tail) and self._exact != "never" and divides
        full = steps - 1 if apart else steps
        if room is None and full:
            room = full if self.resident else self._chunk_steps(full, width)
        spans = [_Span(start + s, start + min(s + room, full), room, width) for s in range(0, full, room or 1) if room]
        return [*spans, _Span(start + full, start + steps, 1, tail)] if apart else spans

    def _chunk_steps(self, steps: int, width: int) -> int:
        """C of a streamed chunk: of equal size, to have little to fill, and a multiple of K."""
        bytes_a_step = max(1, self.loader.nbytes // self.loader.num_rows * width)
        limit = min(MAX_CHUNK_STEPS, max(1, CHUNK_BYTES // bytes_a_step), steps)
        seconds_a_step = getattr(self.loader, "seconds_a_row", 0.0) * width
        if seconds_a_step:  # a source that is slow to read is not waited for longer than this
            limit = max(1, min(limit, int(GATHER_SECONDS / seconds_a_step)))
        limit = agree_on_least(limit)
        room = -(-steps // -(-steps // limit))
        whole = min(self._steps_per_execution, steps)
        return -(-room // whole) * whole

    def _prepare(self, epoch: int, start: int, i: int) -> None:
        if (epoch, start, i) not in self._ahead:
            self._ahead[epoch, start, i] = self._workers.submit(self._make, epoch, start, i)

    def _make(self, epoch: int, start: int, i: int) -> Chunk:
        rows, spans = self._epoch(epoch, start)
        span, size = spans[i], self._size
        mine = rows[(span.first - start) * size : (span.last - start) * size]
        order = arrange(mine, size, span.room, span.width)
        feed = self._resident(order) if self.resident else self._streamed(order)
        counts = np.minimum(size, len(mine) - size * np.arange(span.last - span.first))
        return Chunk(feed, span.first, counts)

    def _epoch(self, epoch: int, start: int) -> _Epoch:
        known = self._epochs.get((epoch, start))
        if known is None:
            rows = self.loader.order(epoch)[start * self._size :]
            known = _Epoch(rows, self._plan(len(rows), start, self._room))
            self._epochs = {**dict(list(self._epochs.items())[-1:]), (epoch, start): known}  # two at a time
        return known

    def _resident(self, order: np.ndarray) -> Feed:
        if self._rows is None:
            everything = self.loader.read(slice(None))
            place = self.distribution.replicated
            self._rows = jax.tree.map(lambda a: place_whole(a, place), everything)
        return Feed(
            self._rows, place_whole(order.astype(np.int32), self.distribution.batch_sharding(axis=1)), self.padded
        )

    def _streamed(self, order: np.ndarray) -> Feed:
        sharding = self.distribution.batch_sharding(axis=1)
        if self._parts > 1:  # all of these rows are of this process
            return Feed(jax.tree.map(lambda a: place_part(a, sharding), self._read(order)), None, self.padded)
        parts: dict[tuple[int, int], Batch] = {}  # by columns: replicas of a shard are read once

        def columns(index: tuple[slice, ...]) -> Batch:
            start, stop, _ = index[1].indices(order.shape[1])
            if (start, stop) not in parts:
                parts[start, stop] = self._read(order[:, start:stop])
            return parts[start, stop]

        mine = next(iter(sharding.addressable_devices_indices_map(order.shape).values()))
        assert mine is not None
        leaves, structure = jax.tree.flatten(columns(mine))
        placed = [
            _place((*order.shape, *leaf.shape[2:]), sharding, lambda index, n=n: jax.tree.leaves(columns(index))[n])
            for n, leaf in enumerate(leaves)
        ]
        return Feed(jax.tree.unflatten(structure, placed), None, self.padded)

    def _read(self, order: np.ndarray) -> Batch:
        """The rows of an order, leaves ``[*order.shape, ...]``."""
        batch = self.loader.read(np.where(order < 0, ~order, order))
        if self._check is not None:
            self._check(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), batch))
        return dataclasses.replace(batch, valid=(order >= 0).astype(np.float32) if self.padded else None)


def shapes_of_chunk(batch: Batch, distribution: DataParallel, multiple: int) -> Feed:
    """A streamed chunk of such batches, with a `jax.ShapeDtypeStruct` in place of each array.

    Args:
        batch: Arrays or shapes, rows first.
        distribution: The devices.
        multiple: Every batch is padded to a multiple of this many rows.

    Example:
        >>> batch = Batch(jax.ShapeDtypeStruct((6, 1 << 20), jnp.float32))
        >>> shapes_of_chunk(batch, DataParallel(devices=jax.devices()[:1]), multiple=4).rows.x.shape
        (1, 8, 1048576)
    """
    rows = jax.tree.leaves(batch.x)[0].shape[0]
    width = -(-rows // multiple) * multiple
    valid = None if width == rows else jax.ShapeDtypeStruct((rows,), np.float32)
    batch = dataclasses.replace(batch, valid=valid)
    bytes_a_step = sum(math.prod(a.shape[1:]) * width * a.dtype.itemsize for a in jax.tree.leaves(batch))
    steps, place = max(1, CHUNK_BYTES // max(1, bytes_a_step)), distribution.batch_sharding(axis=1)
    chunk = jax.tree.map(lambda a: jax.ShapeDtypeStruct((steps, width, *a.shape[1:]), a.dtype, sharding=place), batch)
    return Feed(chunk, None, valid is not None)


def arrange(rows: np.ndarray, size: int, room: int, width: int) -> np.ndarray:
    """Rows laid out as steps: ``[room, width]``, filled up with ``~row``, copies that do not count.

    Args:
        rows: Row numbers, in order.
        size: B, how many of them a step takes.
        room: C, how many steps there are to be.
        width: W, how long a step is to be.
    """
    taken = min(size, width)
    steps = -(-len(rows) // taken)
    flat = np.empty(room * taken, rows.dtype)
    flat[: len(rows)] = rows
    partial = rows[(steps - 1) * taken :]  # the last step repeats its own rows, the rest repeats it
    flat[len(rows) :] = ~np.resize(partial, flat.size - len(rows))
    order = flat.reshape(room, taken)
    if width > taken:
        extra = order[:, np.arange(width - taken) % taken]
        order = np.concatenate([order, np.where(extra < 0, extra, ~extra)], axis=1)
    return order


def place_whole(array: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """A global array that every process has at hand."""
    if jax.process_count() == 1:  # on several, device_put would stop to compare the arrays of all of them
        return jax.device_put(array, sharding)
    return _place(array.shape, sharding, lambda index: array[index])


def place_part(array: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """A global array ``[C, W, ...]`` of which this process has its own columns ``[C, W / processes, ...]``."""
    return jax.make_array_from_process_local_data(sharding, array)


def _place(shape: tuple[int, ...], sharding: jax.sharding.NamedSharding, read: object) -> jax.Array:
    """A global array, of which this process provides what its devices hold."""
    return jax.make_array_from_callback(shape, sharding, read)  # type: ignore[arg-type]

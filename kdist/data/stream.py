"""From batches that come one after the other to chunks on the devices, one chunk ahead of the computation.

What `feed.py` is for rows by number.  A thread gathers batches until a chunk is full, or has taken long enough that the
devices would wait; batches of unequal length are filled up to the longest seen.

Shapes: W rows of the widest batch so far, such that it divides by the devices; C steps of a chunk.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from kdist.data.batches import BatchLoader, rows_of
from kdist.data.buffers import empty
from kdist.data.feed import CHUNK_BYTES, GATHER_SECONDS, Chunk, ChunkFeeder, Feed, place_part, place_whole
from kdist.distribution import DataParallel, agree_on_least, agree_on_most, check_agreement
from kdist.errors import DataError
from kdist.typing import Batch

MAX_STREAM_STEPS = 128
"""A chunk of a source of unknown length holds at most this many steps."""


class _Gathered(NamedTuple):
    """Consecutive batches that fit one chunk."""

    batches: list[Batch]
    full: bool  # whether every row counts, and no mask says so


class StreamFeeder(ChunkFeeder):
    """Chunks of a `BatchLoader` on the devices of a distribution; use as a context manager.

    Args:
        loader: The batches.
        distribution: The devices.
        multiple: Every batch is padded to a multiple of this many rows; 1 by default.
        steps_per_execution: K, if chunks must hold a multiple of K steps; None, the default, if they need not.
        exact: "never" fills every batch up; "possibly" gives batches of another length than the first a chunk of their
            own shape, if they divide by `multiple`; "always" insists on that; "never" by default.
        fresh: Whether each epoch starts over, where the source can; False by default.
        check: Called with every batch, to refuse it by an error; none by default.

    Raises:
        DataError: A batch does not divide by `multiple`, and `exact` is "always".

    Example:
        >>> from kdist.data import from_batches
        >>> loader = from_batches([np.ones((4, 3)), np.ones((2, 3))])
        >>> with StreamFeeder(loader, DataParallel(devices=jax.devices()[:1])) as feeder:
        ...     [chunk.rows.tolist() for chunk in feeder.chunks(epoch=0)]
        [[4, 2]]
    """

    resident = False

    def __init__(
        self,
        loader: BatchLoader,
        distribution: DataParallel,
        *,
        multiple: int = 1,
        steps_per_execution: int | None = None,
        exact: str = "never",
        fresh: bool = False,
        check: Callable[[Batch], None] | None = None,
    ) -> None:
        self.loader = loader
        self.distribution = distribution
        self._parts = jax.process_count() if loader.per_process else 1
        self._multiple, self._exact, self._fresh = multiple // self._parts, exact, fresh
        self._check = check
        example = loader.example()
        self._structure: Any = jax.tree.structure(example)
        self._width = self._padded_to(rows_of(example))
        self._room, self._whole = self._plan(example, steps_per_execution)
        self._timed = steps_per_execution is None and jax.process_count() == 1
        self._closed = False
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="kdist-stream") if loader.source.threaded else None

    @property
    def width(self) -> int:
        """W, the rows of the widest batch so far, over all processes."""
        return self._width * self._parts

    @property
    def chunk_steps(self) -> int:
        """See `ChunkFeeder.chunk_steps`."""
        return self._room

    def chunks(self, epoch: int, *, start: int = 0, then: int | None = None) -> Iterator[Chunk]:
        """See `ChunkFeeder.chunks`.

        Nothing is read for the epoch `then`, whose batches may depend on what happens until it begins.
        """
        batches = self.loader.batches(epoch, fresh=self._fresh, start=start)
        held: list[Batch] = []  # of this epoch: the thread may still gather for one that was given up
        gathering, step = self._submit(batches, held), start
        while (gathered := self._agreed(gathering.result())).batches:
            gathering = self._submit(batches, held)
            rows = np.array([rows_of(batch) for batch in gathered.batches])
            yield Chunk(self._feed(gathered, rows), step, rows)
            step += len(rows)

    def close(self) -> None:
        """Ends the thread, after the batch that it waits for: the source is then free for others."""
        self._closed = True
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)

    def __str__(self) -> str:
        return f"{self.loader.source}, streamed, up to {self._room} steps of {self.width} rows at a time"

    # Gathering ----------------------------------------------------------------------------------

    def _plan(self, example: Batch, steps_per_execution: int | None) -> tuple[int, int]:
        """C, and how many steps a chunk must hold a multiple of."""
        nbytes = sum(a.nbytes for a in jax.tree.leaves(example))
        room = max(1, min(MAX_STREAM_STEPS, CHUNK_BYTES // max(1, nbytes)))
        known = self.loader.num_steps
        if known is not None:
            room = min(room, max(1, known))
        if self.loader.source.most_ahead is not None:
            room = min(room, self.loader.source.most_ahead)
        whole = steps_per_execution or 1
        if known is not None:
            whole = min(whole, max(1, known))
        return -(-room // whole) * whole, whole

    def _submit(self, batches: Iterator[Batch], held: list[Batch]) -> Future[_Gathered]:
        if self._worker is not None:
            return self._worker.submit(self._gather, batches, held)
        done: Future[_Gathered] = Future()
        done.set_result(self._gather(batches, held))
        return done

    def _gather(self, batches: Iterator[Batch], held: list[Batch]) -> _Gathered:
        """Batches for one chunk; none at the end of the epoch.

        Args:
            batches: Those to come.
            held: One that was read before but did not fit, if any.
        """
        taken: list[Batch] = []
        began = time.perf_counter()
        while len(taken) < self._room and not self._closed:
            batch = held.pop() if held else self._next(batches)
            if batch is None:
                break
            if taken and not self._fits(batch, taken[0]):
                held.append(batch)
                break
            taken.append(batch)
            if self._timed and len(taken) % self._whole == 0 and time.perf_counter() - began > GATHER_SECONDS:
                break
        if self._exact == "never" or not taken:
            return _Gathered(taken, full=False)
        rows = rows_of(taken[0])
        full = rows % self._multiple == 0
        if self._exact == "always" and not full:
            raise DataError(
                "A loss or metric that returns one number a batch cannot tell real rows from those that fill up a "
                f"batch, and a batch of {rows} rows does not divide over {self._multiple} parts. Return one value a "
                "row, or yield batches that divide."
            )
        return _Gathered(taken, full)

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        batch = next(batches, None)
        if batch is not None:
            if jax.tree.structure(batch) != self._structure:
                raise DataError(
                    f"All batches must have the same structure. The first is {self._structure}, another is "
                    f"{jax.tree.structure(batch)}."
                )
            if self._check is not None:
                self._check(batch)
        return batch

    def _fits(self, batch: Batch, other: Batch) -> bool:
        """Whether two batches can lie in one chunk."""
        rows_too = self._exact != "never"
        pairs = zip(jax.tree.leaves(batch), jax.tree.leaves(other), strict=True)
        return all(a.shape[1:] == b.shape[1:] and a.dtype == b.dtype for a, b in pairs) and (
            not rows_too or rows_of(batch) == rows_of(other)
        )

    def _padded_to(self, rows: int) -> int:
        return -(-rows // self._multiple) * self._multiple

    # Placing ------------------------------------------------------------------------------------

    def _agreed(self, gathered: _Gathered) -> _Gathered:
        """On several processes: as many batches as all of them have.

        Raises:
            DistributionError: They are not of the same length on all processes.
        """
        if jax.process_count() == 1:
            return gathered
        least = agree_on_least(len(gathered.batches))
        batches = gathered.batches[:least]
        if least < len(gathered.batches):
            warnings.warn(
                f"Another process has no more batches: the epoch ends for all, and {len(gathered.batches) - least} or "
                "more that this one has are left out.",
                stacklevel=2,
            )
        if self._parts > 1:
            self._width = agree_on_most(max([self._width, *(self._padded_to(rows_of(batch)) for batch in batches)]))
            return _Gathered(batches, bool(agree_on_least(gathered.full)))
        rows = [rows_of(batch) for batch in batches]
        check_agreement(
            **{"the number of rows of the batches": sum(rows), "that of the longest batch": max(rows, default=0)}
        )
        return gathered._replace(batches=batches)

    def _feed(self, gathered: _Gathered, rows: np.ndarray) -> Feed:
        room, width = self._room, self._padded_to(int(rows.max()))
        if self._exact == "never":  # one shape, of the longest so far
            self._width = width = max(self._width, width)

        def stack(*leaves: np.ndarray) -> np.ndarray:
            out = empty((room, width, *leaves[0].shape[1:]), leaves[0].dtype)
            for i, leaf in enumerate(leaves):
                out[i, : len(leaf)] = leaf
                if len(leaf) < width:  # filled up with copies of its own rows
                    out[i, len(leaf) :] = np.resize(leaf, (width - len(leaf), *leaf.shape[1:]))
            out[len(leaves) :] = 0
            return out

        chunk = jax.tree.map(stack, *gathered.batches)
        if not gathered.full:
            valid = np.zeros((room, width), np.float32)
            valid[: len(rows)] = np.arange(width) < rows[:, None]
            chunk = Batch(chunk.x, chunk.y, chunk.weight, valid)
        sharding = self.distribution.batch_sharding(axis=1)
        place = place_whole if self._parts == 1 else place_part
        return Feed(jax.tree.map(lambda a: place(a, sharding), chunk), None, not gathered.full)

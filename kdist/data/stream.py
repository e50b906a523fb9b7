"""From batches that come one after the other to chunks on the devices, one chunk ahead of the computation.

What `feed.py` is for rows by number.  A thread gathers batches until a chunk is full, or has taken long enough that the
devices would wait; batches of unequal length are filled up to the longest seen.

Several processes gather each for itself, and take of what they have as many batches as all of them have.

Shapes: W rows of the widest batch so far, such that it divides by the devices; C steps of a chunk; P processes.
"""

from __future__ import annotations

import collections
import time
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from kdist.data.batches import BatchLoader, described, rows_of
from kdist.data.buffers import empty
from kdist.data.feed import CHUNK_BYTES, GATHER_SECONDS, Chunk, ChunkFeeder, Feed, Wait, place_part, place_whole
from kdist.distribution import DataParallel, agree_on_least, gather
from kdist.errors import DataError, DistributionError, said_of
from kdist.typing import Batch

MAX_STREAM_STEPS = 128
"""A chunk of a source of unknown length holds at most this many steps."""


TOLD_BYTES = 256
"""So much of what a row of a batch is like do processes tell each other."""


class _Gathered(NamedTuple):
    """Consecutive batches that make up a chunk, on all processes as many; and how they are placed.

    Attributes:
        batches: Those of this process.
        width: Their rows, when they are filled up.
        full: Whether every row counts on every process, and no mask says so.
    """

    batches: list[Batch]
    width: int
    full: bool


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
        self._batches: Generator[Batch, None, None] | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="kdist-stream") if loader.source.threaded else None

    @property
    def width(self) -> int:
        """W, the rows of the widest batch so far, over all processes."""
        return self._width * self._parts

    @property
    def chunk_steps(self) -> int:
        """See `ChunkFeeder.chunk_steps`."""
        return self._room

    def chunks(
        self, epoch: int, *, start: int = 0, then: int | None = None, wait: Wait = Future.result
    ) -> Iterator[Chunk]:
        """See `ChunkFeeder.chunks`.

        Nothing is read for the epoch `then`, whose batches may depend on what happens until it begins.
        """
        self._batches = self.loader.batches(epoch, fresh=self._fresh, start=start)
        batches = enumerate(self._batches, start)
        # Of this epoch: the thread may still gather for one that was given up.
        held: collections.deque[Batch] = collections.deque()
        gathering, step = self._submit(batches, held), start
        while (gathered := self._agreed(wait(gathering), held, step)).batches:
            gathering = self._submit(batches, held)
            rows = np.array([rows_of(batch) for batch in gathered.batches])
            yield Chunk(self._feed(gathered, rows), step, rows)
            step += len(rows)

    def close(self) -> None:
        """Ends the thread, after the batch that it waits for, and workers that read ahead: the source is then free."""
        self._closed = True
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)
        if self._batches is not None:
            self._batches.close()
        self.loader.close()

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
        room = agree_on_least(room)
        whole = steps_per_execution or 1
        if known is not None:
            whole = min(whole, max(1, known))
        return -(-room // whole) * whole, whole

    def _submit(self, batches: Iterator[tuple[int, Batch]], held: collections.deque[Batch]) -> Future[list[Batch]]:
        if self._worker is not None:
            return self._worker.submit(self._gather, batches, held)
        done: Future[list[Batch]] = Future()
        done.set_result(self._gather(batches, held))
        return done

    def _gather(self, batches: Iterator[tuple[int, Batch]], held: collections.deque[Batch]) -> list[Batch]:
        """Batches for one chunk; none at the end of the epoch.

        Args:
            batches: Those to come, by their steps.
            held: Those that were read before and come first.
        """
        taken: list[Batch] = []
        began = time.perf_counter()
        while len(taken) < self._room and not self._closed:
            batch = held.popleft() if held else self._next(batches)
            if batch is None:
                break
            if taken and not self._fits(batch, taken[0]):
                held.appendleft(batch)
                break
            taken.append(batch)
            if self._timed and len(taken) % self._whole == 0 and time.perf_counter() - began > GATHER_SECONDS:
                break
        return taken

    def _next(self, batches: Iterator[tuple[int, Batch]]) -> Batch | None:
        step, batch = next(batches, (0, None))
        if batch is not None:
            if jax.tree.structure(batch) != self._structure:
                raise DataError(
                    "All batches must have the same structure. A row of the first is "
                    f"{described(self.loader.example())}, a row of step {step} is {described(batch)}."
                )
            if self._check is not None:
                with said_of(f"Step {step}, from {self.loader.source}"):
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

    def _agreed(self, gathered: list[Batch], held: collections.deque[Batch], step: int) -> _Gathered:
        """A chunk of what was gathered: on several processes of as many batches as all of them have.

        Args:
            gathered: The next batches of this process; none if the epoch is over.
            held: Takes back those that the others do not have yet.
            step: The step of the first.

        Raises:
            DistributionError: Batches of the same step do not go together.
            DataError: They would have to be filled up, and `exact` is "always".
        """
        rows = self._told(gathered, step)
        batches, rest = gathered[: rows.shape[1]], gathered[rows.shape[1] :]
        if not batches:
            if rest:
                warnings.warn(
                    f"Another process has no more batches: the epoch ends for all, and {len(rest)} or more that this "
                    "one has are left out.",
                    stacklevel=2,
                )
            return _Gathered([], self._width, full=False)
        held.extendleft(reversed(rest))
        width = self._padded_to(int(rows.max()))
        if self._exact == "never":  # one shape, of the longest so far
            self._width = width = max(self._width, width)
            return _Gathered(batches, width, full=False)
        full = bool((rows == width).all())
        if self._exact == "always" and not full:
            raise DataError(
                "A loss or metric that returns one number a batch cannot tell real rows from those that fill up a "
                f"batch, and a batch of {rows.min()} rows does not divide over {self._multiple} parts, or is shorter "
                "than that of another process. Return one value a row, or yield batches that divide."
            )
        return _Gathered(batches, width, full)

    def _told(self, gathered: list[Batch], step: int) -> np.ndarray:
        """The rows of the next batches of each process, as many as all have: ``[P, steps]``.

        Raises:
            DistributionError: Batches of the same step do not go together; it names the processes.
        """
        rows = np.array([rows_of(batch) for batch in gathered], np.int64)
        if jax.process_count() == 1:
            return rows[None]
        kind = (described(gathered[0]) if gathered else "").encode()
        told = np.zeros(2 + self._room, np.uint32)
        told[:2] = len(rows), zlib.crc32(kind)
        told[2 : 2 + len(rows)] = rows
        everywhere = gather(told.tobytes() + kind[:TOLD_BYTES].ljust(TOLD_BYTES))
        tables = np.array([np.frombuffer(one[:-TOLD_BYTES], np.uint32) for one in everywhere])
        least = int(tables[:, 0].min())
        if least:
            _check_alike(
                tables[:, 1], [one[-TOLD_BYTES:].decode(errors="replace").rstrip() for one in everywhere], step
            )
        rows = tables[:, 2 : 2 + least].astype(np.int64)
        if self._parts == 1:
            for n, column in enumerate(rows.T):
                _check_alike(column, [f"of {count} rows" for count in column], step + n)
        return rows

    def _feed(self, gathered: _Gathered, rows: np.ndarray) -> Feed:
        room, width = self._room, gathered.width

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


def _check_alike(values: np.ndarray, said: Sequence[str], step: int) -> None:
    """Refuses batches of a step that are not the same on all processes in some value, which is said so."""
    if (values != values[0]).any():
        other = int((values != values[0]).argmax())
        raise DistributionError(
            f"The batches of a step must be alike on all processes, but that of step {step} is {said[0]} on process 0 "
            f"and {said[other]} on process {other}. Give every process data of the same kind."
        )

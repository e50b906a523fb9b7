"""Rows by number from anything that has them, as a loader: in the order of an epoch, read by workers."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdist.data.arrays import DEFAULT_BATCH_SIZE, check_batch_size
from kdist.data.batches import layout
from kdist.data.buffers import take
from kdist.data.files import open_rows
from kdist.data.identity import identity, rows_identity, stages
from kdist.data.order import EpochOrder, check_drop_remainder, check_shuffle
from kdist.data.reader import RowReader, as_transform, is_a
from kdist.data.sources import is_map_dataset, known_length
from kdist.data.workers import Workers, check_workers, result_of
from kdist.distribution import agree_on_least
from kdist.errors import ConfigError, DataError
from kdist.typing import Batch

log = logging.getLogger(__name__)

PIECES = 4
"""A read is cut into this many pieces a worker, so that a slow one does not hold up the others for long."""


class RowLoader:
    """Rows of a source as a loader; see `from_source`, which makes and checks it.

    Args:
        reader: Reads rows by number, and transforms them.
        order: Which rows an epoch has, and in which order.
        kept: The numbers of the rows that a filter leaves, ``[n]``; None, the default, for all.
        workers: How many workers read; 0, the default, reads in the thread that asks.
        use_multiprocessing: Whether they are processes; False by default.
        per_process: Whether each process has rows of its own; False by default.
        cache: Whether all rows are kept on the devices; False by default.
        random: Whether a row differs from pass to pass; False by default.
        fingerprint: Tells what else decides which rows come when, as JSON; nothing by default.

    Example:
        >>> loader = from_source([(float(i), i % 2) for i in range(10)], batch_size=4, shuffle=False)
        >>> loader.num_rows, loader.num_steps, loader.read(np.array([3, 8])).x.tolist()
        (10, 3, [3.0, 8.0])
    """

    def __init__(
        self,
        reader: RowReader,
        order: EpochOrder,
        *,
        kept: np.ndarray | None = None,
        workers: int = 0,
        use_multiprocessing: bool = False,
        per_process: bool = False,
        cache: bool = False,
        random: bool = False,
        fingerprint: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.workers, self.use_multiprocessing = workers, use_multiprocessing
        self.per_process, self.cache, self.random = per_process, cache, random
        self._reader, self._epochs, self._kept = reader, order, kept
        self._pool: Workers | None = None
        self._lock = threading.Lock()
        self._example: Batch | None = None
        self._layout = ""
        self._change: Callable[[Batch], Batch] = lambda batch: batch
        self._fingerprint = fingerprint
        self.seconds_a_row = 0.0

    @property
    def batch_size(self) -> int:
        """B, the rows of a step over all devices and processes."""
        return self._epochs.batch_size * (jax.process_count() if self.per_process else 1)

    @property
    def num_rows(self) -> int:
        """Rows of a pass, without those that a filter leaves out or that are dropped; with `per_process`, its own."""
        return self._epochs.rows_of_a_pass

    @property
    def _count(self) -> int:
        """The rows that passes choose from: more than `num_rows` where some are dropped or others have fewer."""
        return self._reader.num_rows if self._kept is None else len(self._kept)

    @property
    def readers(self) -> int:
        """See `Loader`: while one chunk is put together, the workers read the next."""
        return 2 if self.workers else 1

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, if they are all as long as the first."""
        return self._count * sum(a[0].nbytes for a in jax.tree.leaves(self.example()))

    @property
    def num_steps(self) -> int:
        """S, the most steps of an epoch."""
        return self._epochs.num_steps

    def order(self, epoch: int) -> np.ndarray:
        """The numbers of the rows of an epoch in their order; see `Loader.order`."""
        rows = self._epochs.rows(epoch)
        return rows + self._epochs.pass_of(epoch)[0] * self._count if self.random else rows

    def read(self, rows: np.ndarray | slice) -> Batch:
        """The rows of those numbers, each read once, leaves ``[*rows.shape, ...]``."""
        if isinstance(rows, slice):
            rows = np.arange(self._count)[rows]
        wanted, where = np.unique(rows, return_inverse=True)  # sorted: sources like to be read forwards
        batch = self._change(self._read(self._numbers(wanted)))
        return jax.tree.map(lambda a: take(a, where.reshape(rows.shape)), batch)

    def example(self) -> Batch:
        """The first rows, as many as a step has."""
        if self._example is None:
            rows = np.arange(min(self._epochs.batch_size, self.num_rows))
            began = time.perf_counter()
            read = self._reader.read(self._numbers(rows))  # here: workers take seconds to start, and would then stay
            self._layout, self._example = _row_layout(read), self._change(read)
            self.seconds_a_row = (time.perf_counter() - began) / len(rows) / max(1, self.workers)
        return self._example

    def with_steps(self, steps: int) -> RowLoader:
        """The same rows in epochs of at most so many steps."""
        changed = self._copy()
        changed._epochs = dataclasses.replace(self._epochs, steps=steps)
        return changed

    def in_order(self) -> RowLoader:
        """The same rows in the order of the source, all of them: what is evaluated and predicted."""
        changed = self._copy()
        changed._epochs = self._epochs.in_order()
        return changed

    def map(self, fn: Callable[[Batch], Batch]) -> RowLoader:
        """The same rows, changed by `fn`, which is given some of them as a batch."""
        changed, before = self._copy(), self._change
        changed._change = lambda batch: fn(before(batch))
        changed._example = None
        return changed

    def _copy(self) -> RowLoader:
        changed = copy.copy(self)
        changed._pool, changed._lock = None, threading.Lock()
        return changed

    def fingerprint(self) -> dict[str, Any]:
        """What decides which rows come when, as JSON; the number of workers does not."""
        told = {"batch_size": self.batch_size, "steps": self._epochs.steps}
        return {**self._fingerprint(), **told, "drop_remainder": self._epochs.drop_remainder}

    def close(self) -> None:
        """Ends the workers, after what they are reading; they start again when rows are read."""
        self._end(self._pool)

    def _end(self, pool: Workers | None) -> None:
        with self._lock:
            if self._pool is pool:
                self._pool = None
        if pool is not None:
            pool.close(finish=True)  # other threads may wait for what it reads

    def _numbers(self, rows: np.ndarray) -> np.ndarray:
        """What the reader calls these rows: it counts those too that filters leave out."""
        passes, row = np.divmod(rows, self._count)
        return passes * self._reader.num_rows + (row if self._kept is None else self._kept[row])

    def _read(self, numbers: np.ndarray) -> Batch:
        self.example()
        if not self.workers:
            return self._checked(numbers, self._reader.read(numbers))
        pieces = np.array_split(numbers, min(len(numbers), self.workers * PIECES))
        pool = None
        try:
            with self._lock:  # several threads may read, and another may close
                if self._pool is None:
                    self._pool = Workers(self._reader, "read", self.workers, processes=self.use_multiprocessing)
                pool = self._pool
                under_way = [pool.submit(piece) for piece in pieces]
            batches = [self._checked(piece, result_of(f)) for piece, f in zip(pieces, under_way, strict=True)]
        except Exception:
            self._end(pool)
            raise
        return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)

    def _checked(self, numbers: np.ndarray, batch: Batch) -> Batch:
        """The batch, if its rows are like the first of all.

        Raises:
            DataError: They are not; it names the row.
        """
        if _row_layout(batch) == self._layout:
            return batch
        name, count = self._reader.name, self._reader.num_rows
        layouts = ((number, _row_layout(self._reader.read(np.array([number])))) for number in numbers.tolist())
        number, found = next((found for found in layouts if found[1] != self._layout), (numbers[0], _row_layout(batch)))
        raise DataError(
            f"All rows must be alike. Row {number % count} of {name} is {found}, the first are {self._layout}."
        )


def from_source(
    source: Any,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    shuffle: bool | str = True,
    seed: int = 0,
    transforms: Sequence[Any] = (),
    workers: int = 0,
    use_multiprocessing: bool = False,
    steps: int | None = None,
    per_process: bool = False,
    cache: bool = False,
    drop_remainder: bool = False,
) -> RowLoader:
    """A loader of rows that are read by number.

    Each row is ``x``, ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``, of numbers or arrays of one shape.

    `shuffle` and `drop_remainder` are for training: an evaluation, a validation and a prediction take every row once,
    in the order of the source; with `steps`, the first of them.

    Args:
        source: Anything with `__len__` and `__getitem__`: a list, a torch Dataset, a Hugging Face dataset, a
            grain data source, a `grain.MapDataset` of rows (a mix of weighted sources, for instance); or the path
            of a ``.npy`` file (one too large for memory too), of a directory of such shards, of ArrayRecord or of
            Parquet files.  A source may have ``gather(rows)``, which gives all of some rows stacked, and fast; and
            ``fingerprint()``, which tells what it holds, for runs that go on; else a few of its rows are read for that.
        batch_size: Rows of a step, over all devices and processes; 32 by default.
        shuffle: Whether each epoch has an order of its own, drawn from `seed` and the epoch; "batch" draws the order of
            whole batches; True by default.
        seed: What orders and random transforms are drawn from; 0 by default.
        transforms: What is done to each row: functions, or grain's `Map`, `MapWithIndex`, `RandomMap` (drawn from the
            seed, the row and the epoch) and `Filter`; none by default.  Rows are filtered once, by a pass over them at
            the start.
        workers: How many threads or processes read and transform rows; 0 does it in one thread, beside the training; 0
            by default.  It changes no data.
        use_multiprocessing: Whether the workers are processes, which Python code that holds the interpreter's lock
            wants; they start when rows are first read, in some seconds; False by default.
        steps: The most steps of an epoch; epochs then share a pass over the rows; none by default.
        per_process: Whether each process gives a source of its own, with its own part of the rows; else all give the
            same, and each reads only its rows; False by default.
        cache: Whether to read all rows once and keep them on the devices; False by default.
        drop_remainder: Whether an epoch leaves out the rows that fill no batch: others each epoch, if rows are
            shuffled; False by default.

    Returns:
        The loader, for `fit`, `evaluate` and `predict`.

    Raises:
        DataError: `source` has no rows by number, none at all, none that a filter keeps, or fewer than a batch has and
            they are dropped; with `per_process`, that of any process.
        ConfigError: Another argument is out of its range.

    Example:
        >>> rows = [(np.full(3, i), i % 2) for i in range(10)]
        >>> loader = from_source(rows, batch_size=4, shuffle=False, transforms=[lambda row: (row[0] * 2, row[1])])
        >>> loader.read(loader.order(0)[:4]).x[:, 0].tolist()
        [0, 2, 4, 6]
    """
    check_batch_size(batch_size)
    if steps is not None:
        check_batch_size(steps, "steps")
    check_workers(workers)
    check_shuffle(shuffle)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be an integer from 0 to 2**32 - 1. Received: {seed!r}.")
    if isinstance(source, (str, Path)):
        source = open_rows(source)
    if not has_rows(source):
        raise DataError(
            "Expected rows by number: an object with __len__ and __getitem__, a grain.MapDataset or a path. "
            f"Received: a {type(source).__name__}. Batches one after the other go through kdist.data.from_batches."
        )
    if not isinstance(transforms, Sequence):
        raise ConfigError(f"transforms must be a list. Received: {transforms!r}.")
    transforms = [as_transform(transform) for transform in transforms]
    name = f"the {type(source).__name__}"
    if known_length(len(source)) is None:
        raise DataError(
            f"The data are endless: {name} has {len(source)} rows. Epochs repeat it: leave out `.repeat()`."
        )
    drawn = any(is_a("RandomMap", t) for t in transforms) or is_map_dataset(source)
    if cache and per_process:
        raise ConfigError("cache=True keeps all rows on every device, and with per_process=True no process has all.")
    if cache and drawn:
        raise ConfigError(
            "cache=True keeps rows as they are first read, and a random transform changes them each epoch."
        )
    reader = RowReader(source, transforms, int(seed), name)
    how: dict[str, Any] = {"workers": workers, "use_multiprocessing": bool(use_multiprocessing)}
    kept = _kept(reader, source, transforms, int(seed), **how)
    num_rows = reader.num_rows if kept is None else len(kept)
    parts = jax.process_count() if per_process else 1
    if batch_size % parts:
        raise ConfigError(
            f"batch_size={batch_size} counts the rows of all processes, and does not divide over {parts} of them."
        )
    filtered = f"the filters keep none of the {reader.num_rows} rows of {name}"
    least = _agreed(num_rows, f"{name} has no rows" if kept is None else filtered, parts)
    check_drop_remainder(drop_remainder, least, batch_size // parts)
    order = EpochOrder(
        least,
        int(batch_size) // parts,
        shuffle,
        int(seed),
        steps,
        of=num_rows,
        drop_remainder=bool(drop_remainder),
    )
    done = [identity(transform) for transform in transforms]  # before any is used, which may change it

    @functools.cache
    def fingerprint() -> dict[str, Any]:
        return {
            # processes with rows of their own have other ones, but one fingerprint
            "source": type(source).__name__ if per_process else _identity_of(source),
            "rows": None if per_process else reader.num_rows,
            "kept": least,
            "seed": int(seed),
            "shuffle": shuffle if isinstance(shuffle, str) else bool(shuffle),
            "transforms": done,
        }

    return RowLoader(
        reader,
        order,
        kept=kept,
        per_process=per_process,
        cache=cache,
        random=drawn,
        fingerprint=fingerprint,
        **how,
    )


def _agreed(num_rows: int, nothing: str, parts: int) -> int:
    """How many rows an epoch may take: as many as every process that has a part of its own has.

    Args:
        num_rows: The rows of this process.
        nothing: What to say if there are none.
        parts: How many processes have a part of their own.

    Raises:
        DataError: There are none, in any of the parts; all processes raise it.
    """
    if parts == 1:
        if not num_rows:
            raise DataError(f"The data are empty: {nothing}.")
        return num_rows
    empty = agree_on_least(parts if num_rows else jax.process_index())
    if empty < parts:
        why = f"process {empty} has no rows" if num_rows else f"on process {jax.process_index()}, {nothing}"
        raise DataError(f"The data are empty: {why}. With per_process=True each process needs rows of its own.")
    least = agree_on_least(num_rows)
    if least < num_rows:
        warnings.warn(
            f"This process has {num_rows} rows and another has {least}: an epoch ends when that one has no more. "
            "Give all processes as many.",
            stacklevel=3,
        )
    return least


def _identity_of(source: Any) -> str | list[str]:
    return stages(source) if is_map_dataset(source) else rows_identity(source)


def has_rows(source: Any) -> bool:
    """Whether it has something by number, and says how many."""
    numbered = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return numbered and not isinstance(source, (dict, str, bytes, type))


def _kept(all_rows: RowReader, source: Any, transforms: Sequence[Any], seed: int, **how: Any) -> np.ndarray | None:
    """The rows that filters keep; None if there are no filters, or no rows.

    Raises:
        ConfigError: A filter comes after a random transform, and would keep other rows each epoch.
    """
    filters = [i for i, transform in enumerate(transforms) if is_a("Filter", transform)]
    if not filters or not all_rows.num_rows:
        return None
    before = transforms[: filters[-1] + 1]
    if any(is_a("RandomMap", transform) for transform in before):
        raise ConfigError(
            "A Filter after a RandomMap would keep other rows each epoch, so that nobody knew how many steps there "
            "are. Filter first."
        )
    reader = RowReader(source, before, seed, all_rows.name)
    numbers = np.arange(reader.num_rows)
    if how["workers"]:
        workers = Workers(reader, "kept", how["workers"], processes=how["use_multiprocessing"])
        with contextlib.closing(workers):
            pieces = [workers.submit(piece) for piece in np.array_split(numbers, how["workers"] * PIECES)]
            keep = np.concatenate([result_of(piece) for piece in pieces])
    else:
        keep = reader.kept(numbers)
    log.info("%s: the filters keep %d of %d rows", reader.name, keep.sum(), len(keep))
    return numbers[keep]


def _row_layout(batch: Batch) -> str:
    """Structure, shapes and types of the rows of a batch."""
    parts = [part for part in (batch.x, batch.y, batch.weight) if part is not None]
    return layout(tuple(jax.tree.map(lambda a: a[0], part) for part in parts))

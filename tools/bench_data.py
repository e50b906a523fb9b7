"""How fast data reach the devices: ratios against plain NumPy, grain and data that are there already.

    python tools/bench_data.py                        # the whole table
    python tools/bench_data.py --rows fit memory      # rows whose names start so

`measure.py` measures the two sides of a row in turn and prints the ratio.  Where there is no model,
chunks are taken from a `Feeder` on one device, one after the other, and waited for, as `fit` takes them.

Both sides share the machine with whatever else runs on it: leave it alone meanwhile.
"""

from __future__ import annotations

import atexit
import collections
import dataclasses
import functools
import itertools
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import baselines
import jax
import measure
import numpy as np
from measure import Row, Same, Side, fastest, in_fresh_process, noise, timed

import kdist

BATCH_SIZE = 128
EPOCHS = 3
"""A side without a model reads so many in a row, as `fit` does: the next is prepared during the last chunk of one."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much each row computes; an epoch's rows are never a multiple of its batch, as in life."""

    mnist_rows: int = 60_000
    grain_rows: int = 20_000
    worker_rows: int = 20_000
    fit_rows: int = 60_000
    same_rows: int = 2000
    same_epochs: int = 3
    file_bytes: int = 4_000_000_000
    rounds: int = 5


FULL = Sizes()
QUICK = Sizes(
    mnist_rows=5000,
    grain_rows=1000,
    worker_rows=500,
    fit_rows=2000,
    same_rows=200,
    same_epochs=2,
    file_bytes=50_000_000,
    rounds=1,
)


# Sources -----------------------------------------------------------------------------------------


class ArrayRows:
    """Rows of arrays, one by one, as a torch Dataset has them."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.integer]:
        return self.x[row], self.y[row]


class SlowRows(ArrayRows):
    """The same from a storage that takes some time for every block of rows that are read.

    Args:
        x: Inputs.
        y: Labels.
        seconds: What a block takes.
        block: How many rows it has.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, seconds: float, block: int) -> None:
        super().__init__(x, y)
        self._seconds, self._block, self._reads = seconds, block, itertools.count()

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.integer]:
        if next(self._reads) % self._block == 0:
            time.sleep(self._seconds)
        return super().__getitem__(row)


def batches(x: np.ndarray, y: np.ndarray, seconds: float = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A generator of batches in the order of the rows, each after some time."""
    for start in range(0, len(x), BATCH_SIZE):
        time.sleep(seconds)
        yield x[start : start + BATCH_SIZE], y[start : start + BATCH_SIZE]


@dataclasses.dataclass(frozen=True)
class Spin:
    """A transform that keeps Python busy and changes nothing.

    Attributes:
        turns: How long; see `of`.
    """

    turns: int

    def __call__(self, row: Any) -> Any:
        total = 0
        for i in range(self.turns):
            total += i
        return row

    @classmethod
    def of(cls, seconds: float) -> Spin:
        """One that takes about so long on this machine."""
        turns = 1000
        taken = min(timeit.repeat(functools.partial(cls(turns), None), number=1, repeat=200))
        return cls(max(1, round(turns * seconds / taken)))


# Without a model ---------------------------------------------------------------------------------


def fed(loader: kdist.data.Loader) -> Side:
    """Seconds a row of chunks on one device: some epochs as `fit` takes them, each of its own order."""
    feeder = kdist.data.Feeder(loader, kdist.DataParallel(devices=jax.devices()[:1]))
    atexit.register(feeder.close)
    first_epochs = itertools.count(0, EPOCHS)

    def some_epochs() -> None:
        first = next(first_epochs)
        for epoch in range(first, first + EPOCHS):
            for chunk in feeder.chunks(epoch, then=epoch + 1 if epoch + 1 < first + EPOCHS else None):
                jax.block_until_ready(chunk.feed)

    return timed(some_epochs, EPOCHS * loader.num_rows)


def arrays_streamed(sizes: Sizes) -> tuple[Side, Side]:
    x, y = noise(sizes.mnist_rows, 784)
    loader = kdist.data.from_arrays(x, y, batch_size=BATCH_SIZE, cache=False)
    with kdist.data.Feeder(loader, kdist.DataParallel(devices=jax.devices()[:1])) as feeder:
        rows_a_chunk = feeder.chunk_steps * BATCH_SIZE
    order = loader.order(0)

    def gather() -> None:
        for start in range(0, len(order), rows_a_chunk):
            rows = order[start : start + rows_a_chunk]
            np.take(x, rows, axis=0), np.take(y, rows, axis=0)

    return fed(loader), timed(gather, len(x))


def workers_against_one_thread(sizes: Sizes) -> tuple[Side, Side]:
    x, y = noise(sizes.worker_rows, 784)
    make = functools.partial(
        kdist.data.from_source, ArrayRows(x, y), batch_size=BATCH_SIZE, transforms=[Spin.of(50e-6)]
    )
    return fed(make(workers=2, use_multiprocessing=True)), fed(make())


def rows_against_grain(sizes: Sizes) -> tuple[Side, Side]:
    import grain

    source = ArrayRows(*noise(sizes.grain_rows, 784))
    dataset = grain.MapDataset.source(source).shuffle(seed=0).batch(BATCH_SIZE)
    numbers = range(len(dataset))
    ways = [
        lambda: collections.deque(dataset, maxlen=0),
        lambda: collections.deque(map(dataset.__getitem__, numbers), maxlen=0),
    ]
    theirs = fastest([timed(way, len(source)) for way in ways])
    return fed(kdist.data.from_source(source, batch_size=BATCH_SIZE)), theirs


# With a model ------------------------------------------------------------------------------------


def compiled(module: Any) -> kdist.Model:
    """The module in kdist, ready to train."""
    model = kdist.Model(module)
    model.compile("adam", kdist.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def fit_side(module: Any, x: np.ndarray, y: np.ndarray, source: Callable[[], Any] | None = None) -> Side:
    """Seconds a step of an epoch of `fit` from a fresh source, or from the arrays on the device."""
    model = compiled(module)

    def fit() -> None:
        if source is None:
            model.fit(x, y, batch_size=BATCH_SIZE, cache=True, verbose=0)
        else:
            model.fit(source(), verbose=0)

    return timed(fit, -(-len(x) // BATCH_SIZE))


def least(side: Side) -> float:
    """What a side takes at best, warmed up."""
    side()
    return min(side() for _ in range(5))


def module_of(seconds: float) -> baselines.MLP:
    """An MLP whose step takes about so long on this machine, with data that are on the device."""
    layers = 4
    taken = least(fit_side(baselines.MLP((512,) * layers), *noise(20 * BATCH_SIZE, 784)))
    return baselines.MLP((512,) * max(1, round(layers * seconds / taken)))


def fit_from(slow: Callable[..., Any], sizes: Sizes) -> tuple[Side, Side]:
    """A model of about 10 ms a step that is fed by a source of 0.8 of that, against the same with resident data."""
    module, (x, y) = module_of(10e-3), noise(sizes.fit_rows, 784)
    seconds = 0.8 * least(fit_side(module, *noise(20 * BATCH_SIZE, 784)))
    return fit_side(module, x, y, lambda: slow(x, y, seconds)), fit_side(module, x, y)


def slow_rows(x: np.ndarray, y: np.ndarray, seconds: float) -> kdist.data.RowLoader:
    """Rows of which every batch's worth takes some time."""
    return kdist.data.from_source(SlowRows(x, y, seconds, BATCH_SIZE), batch_size=BATCH_SIZE)


# The same losses ---------------------------------------------------------------------------------


def same_losses(source: Callable[..., Any], sizes: Sizes) -> tuple[list[float], list[float]]:
    """The losses of each epoch from the source, and those from arrays."""
    x, y = noise(sizes.same_rows, 784)

    def losses(loader: Any) -> list[float]:
        model = compiled(baselines.MLP((128,)))
        return model.fit(loader, epochs=sizes.same_epochs, verbose=0).history["loss"]

    return losses(source(x, y)), losses(kdist.data.from_arrays(x, y, batch_size=BATCH_SIZE, shuffle=False))


def grain_batches(x: np.ndarray, y: np.ndarray) -> Any:
    import grain

    return grain.MapDataset.source(ArrayRows(x, y)).batch(BATCH_SIZE)


def generator(x: np.ndarray, y: np.ndarray) -> Any:
    return kdist.data.from_batches(lambda: batches(x, y))


def plain_rows(x: np.ndarray, y: np.ndarray) -> Any:
    return kdist.data.from_source(ArrayRows(x, y), batch_size=BATCH_SIZE, shuffle=False)


# Memory ------------------------------------------------------------------------------------------

_COLUMNS = 1000


def memory_of(way: str, sizes: Sizes) -> tuple[Side, Side]:
    """The most memory that an epoch of `fit` from a file takes, against the bytes of the file.

    Args:
        way: What `fit` is given; see `most_memory`.
        sizes: How large the file is.
    """
    held = tempfile.TemporaryDirectory(prefix="kdist-bench-")
    atexit.register(held.cleanup)
    rows = sizes.file_bytes // _COLUMNS // 4
    # Nothing is written: a hole in a file is read through the same pages of memory, and takes no disk.
    np.lib.format.open_memmap(Path(held.name, "x.npy"), "w+", np.float32, (rows, _COLUMNS)).flush()
    np.lib.format.open_memmap(Path(held.name, "y.npy"), "w+", np.int32, (rows,)).flush()
    ours = in_fresh_process(f"import bench_data; print(bench_data.most_memory({way!r}, {held.name!r}))")
    return functools.cache(ours), lambda: float(sizes.file_bytes)  # it hardly varies, and takes long: once


def most_memory(way: str, directory: str) -> int:
    """The most bytes, beyond those of before, that an epoch of `fit` keeps in memory; in a process of its own.

    Args:
        way: "paths", for rows of files by `from_source`, or "memmap", for an array that is mapped into memory.
        directory: Where the files are.
    """
    x, y = Path(directory, "x.npy"), Path(directory, "y.npy")
    model = compiled(baselines.MLP((8,)))
    before = memory_held("VmRSS")
    if way == "paths":
        model.fit(kdist.data.from_source(kdist.data.NpyRows(x, y), batch_size=BATCH_SIZE), verbose=0)
    else:
        model.fit(np.load(x, mmap_mode="r"), np.load(y), batch_size=BATCH_SIZE, verbose=0)
    return memory_held("VmHWM") - before


def memory_held(name: str) -> int:
    """Bytes of this process by the system's count: VmRSS, those of now, or VmHWM, the most there ever were."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


# The table ---------------------------------------------------------------------------------------

ROWS: list[Row | Same] = [
    Row(
        "arrays",
        "60,000 rows of 784 floats, cache=False: chunks on the device",
        "np.take of the same chunks",
        arrays_streamed,
        at_least=0.9,
        unit="row",
    ),
    Row(
        "workers",
        "from_source, a transform of 50 us of Python: two worker processes",
        "no workers: one thread",
        workers_against_one_thread,
        at_least=1.6,
        unit="row",
    ),
    Row(
        "rows",
        "from_source, rows of 784 floats one by one",
        "grain: source(rows).shuffle().batch(128)",
        rows_against_grain,
        at_least=5,
        unit="row",
    ),
    *(
        Row(
            f"fit-{name}",
            f"fit, 10 ms a step, from {what} of 8 ms a batch",
            "fit, the data on the device",
            functools.partial(fit_from, source),
            at_most=1.1,
        )
        for name, what, source in (("generator", "a generator", batches), ("rows", "from_source", slow_rows))
    ),
    *(
        Row(
            f"memory-{way}",
            f"most memory of fit beyond that of before: {what} of 4 GB",
            "the file",
            functools.partial(memory_of, way),
            at_most=0.3,
            unit="epoch",
            shown=measure.memory,
        )
        for way, what in (("paths", "from_source, a .npy file"), ("memmap", "a memory-mapped array"))
    ),
    *(
        Same(
            f"same-{name}",
            f"losses of fit from {what}",
            "those from arrays",
            functools.partial(same_losses, source),
        )
        for name, what, source in (
            ("grain", "a grain dataset of batches", grain_batches),
            ("generator", "a generator", generator),
            ("rows", "from_source", plain_rows),
        )
    ),
]


if __name__ == "__main__":
    measure.main(__doc__, ROWS, FULL, QUICK)

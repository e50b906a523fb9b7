"""From batches that come one after the other to chunks: shapes, what counts, what waits, and what breaks on the way."""

import contextlib
import itertools
import multiprocessing
import re
import threading
import traceback
import zlib

import jax
import numpy as np
import pytest

from kdist.data import StreamFeeder, batches, from_batches, stream
from kdist.errors import DataError, DistributionError

SECONDS = 30
"""After so long a wait is a failure."""


def numbered(sizes, shape=(2,)):
    """Batches of so many rows, whose rows are numbered through."""
    firsts = np.cumsum([0, *sizes])
    return [
        (np.arange(first, first + n, dtype=np.float32).reshape(n, *[1] * len(shape)) * np.ones(shape, np.float32),)
        for first, n in zip(firsts, sizes, strict=False)
    ]


def feeder(source, distribution, *, loading=None, **arguments):
    return StreamFeeder(from_batches(source, **(loading or {})), distribution, **arguments)


def laid_out(chunks):
    """Of each chunk: first step, rows of its batches, shape of its arrays, and whether a mask says what counts."""
    return [(c.first_step, c.rows.tolist(), c.feed.rows.x.shape, c.feed.padded) for c in chunks]


def real_rows(chunks):
    """The numbers of the rows that count, in order."""
    out = []
    for chunk in chunks:
        x = np.asarray(chunk.feed.rows.x)
        x = x.reshape(*x.shape[:2], -1)[..., 0]
        for i, n in enumerate(chunk.rows):
            if chunk.feed.padded:
                assert np.asarray(chunk.feed.rows.valid)[i].tolist() == [1] * n + [0] * (x.shape[1] - n)
            else:
                assert n == x.shape[1]
            assert set(x[i, n:].tolist()) <= set(x[i, :n].tolist())  # what fills is a copy of its own rows
            out += x[i, :n].astype(int).tolist()
        if chunk.feed.padded:
            assert not np.asarray(chunk.feed.rows.valid)[len(chunk.rows) :].any()
    return out


# Shapes ------------------------------------------------------------------------------------------

UNEVEN = [
    # rows of batches, multiple, exact, the chunks that come of it
    ([4, 4, 4], 1, "never", [(0, [4, 4, 4], (3, 4, 2), True)]),
    ([4, 1, 3], 1, "never", [(0, [4, 1, 3], (3, 4, 2), True)]),
    ([2, 5, 3], 1, "never", [(0, [2, 5, 3], (3, 5, 2), True)]),  # a batch wider than the first
    ([2, 5, 3], 4, "never", [(0, [2, 5, 3], (3, 8, 2), True)]),
    ([1], 8, "never", [(0, [1], (1, 8, 2), True)]),
    ([4, 4, 4], 1, "possibly", [(0, [4, 4, 4], (3, 4, 2), False)]),
    ([4, 4, 3], 2, "possibly", [(0, [4, 4], (3, 4, 2), False), (2, [3], (3, 4, 2), True)]),
    ([4, 2, 2], 2, "possibly", [(0, [4], (3, 4, 2), False), (1, [2, 2], (3, 2, 2), False)]),
    ([3, 4, 3], 2, "possibly", [(0, [3], (3, 4, 2), True), (1, [4], (3, 4, 2), False), (2, [3], (3, 4, 2), True)]),
    ([4, 2, 6], 2, "always", [(i, [n], (3, n, 2), False) for i, n in enumerate([4, 2, 6])]),
]


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize(("sizes", "multiple", "exact", "expected"), UNEVEN)
def test_batches_of_uneven_sizes(devices, sizes, multiple, exact, expected, threaded):
    data = {"workers": 1 if threaded else 0}
    with feeder(numbered(sizes), devices(1), loading=data, multiple=multiple, exact=exact) as made:
        chunks = list(made.chunks(0))
        again = list(made.chunks(1))
    assert laid_out(chunks) == expected
    assert real_rows(chunks) == list(range(sum(sizes))) == real_rows(again)


def test_the_widest_batch_so_far_sets_the_width(devices):
    with feeder(numbered([2, 5, 3, 9, 1]), devices(1), loading={"max_queue_size": 2}) as made:
        chunks = list(made.chunks(0))
        assert [c.feed.rows.x.shape for c in chunks] == [(2, 5, 2), (2, 9, 2), (2, 9, 2)]
        assert real_rows(chunks) == list(range(20))
        assert {c.feed.rows.x.shape for c in made.chunks(1)} == {(2, 9, 2)}  # one shape from now on


def test_an_exact_batch_that_does_not_divide_is_refused(devices):
    with feeder(numbered([4, 3]), devices(1), multiple=2, exact="always") as made:
        chunks = made.chunks(0)
        assert next(chunks).rows.tolist() == [4]
        with pytest.raises(DataError, match="a batch of 3 rows does not divide over 2 parts"):
            next(chunks)


@pytest.mark.parametrize(
    ("steps", "k", "most_ahead", "rooms"),
    [
        (None, None, None, (7, [7])),
        (None, 1, None, (7, [7])),
        (None, 3, None, (9, [7])),
        (5, 2, None, (6, [5])),
        (None, 2, 3, (4, [4, 3])),  # K counts more than the queue
        (None, 3, 2, (3, [3, 3, 1])),
        (None, None, 2, (2, [2, 2, 2, 1])),
        (None, 100, None, (7, [7])),  # but a chunk is no longer than an epoch
        (None, 100, 2, (7, [7])),
    ],
)
def test_chunks_hold_whole_executions(devices, steps, k, most_ahead, rooms):
    loading = {"steps": steps, "max_queue_size": most_ahead}
    with feeder(numbered([2] * 7), devices(1), loading=loading, steps_per_execution=k) as made:
        chunks = list(made.chunks(0))
        assert (made.chunk_steps, [c.num_steps for c in chunks]) == rooms
        assert [c.first_step for c in chunks] == np.cumsum([0, *rooms[1]])[:-1].tolist()
    assert real_rows(chunks) == list(range(2 * (steps or 7)))


def test_chunks_of_an_unknown_number_of_batches_are_bounded(devices, monkeypatch):
    def endless():
        return (np.ones((2, 3), np.float32) for _ in itertools.count())

    with feeder(endless, devices(1)) as made:
        assert made.chunk_steps == stream.MAX_STREAM_STEPS
    monkeypatch.setattr(stream, "CHUNK_BYTES", 5 * 2 * 3 * 4)
    with feeder(endless, devices(1)) as made:
        assert made.chunk_steps == 5
    monkeypatch.setattr(stream, "CHUNK_BYTES", 1)
    with feeder(endless, devices(1)) as made:
        assert made.chunk_steps == 1


def test_trailing_shapes_and_types_may_change(devices):
    """As sequences that are padded batch by batch have it; each lies in a chunk of its own shape."""
    ints = [(np.full((2, 3), 14, np.int32),)]
    source = [*numbered([2, 2], (3,)), *numbered([2], (5,)), *numbered([2, 1], (3,)), *ints]
    with feeder(source, devices(1)) as made:
        chunks = list(made.chunks(0))
    assert [(c.first_step, c.rows.tolist(), c.feed.rows.x.shape[2:], c.feed.rows.x.dtype) for c in chunks] == [
        (0, [2, 2], (3,), np.float32),
        (2, [2], (5,), np.float32),
        (3, [2, 1], (3,), np.float32),
        (5, [2], (3,), np.int32),
    ]


X = np.ones((2, 2), np.float32)


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize(
    ("other", "said"),
    [
        ((X,), "{x: float32[2]}"),
        ((X, X, np.ones(2)), "{sample_weight: float32[], x: float32[2], y: float32[2]}"),
        (((X, X), X), "{x: (float32[2], float32[2]), y: float32[2]}"),
        (({"a": X}, X), "{x: {a: float32[2]}, y: float32[2]}"),
    ],
    ids=["less", "weights", "inputs", "names"],
)
def test_structures_must_not_change(devices, other, said, threaded):
    message = (
        "All batches must have the same structure. A row of the first is {x: float32[2], y: float32[2]}, a row of step "
        f"2 is {said}."
    )
    with (
        feeder([(X, X), (X, X), other], devices(1), loading={"workers": int(threaded)}) as made,
        pytest.raises(DataError, match=f"^{re.escape(message)}$"),
    ):
        list(made.chunks(0))


def test_every_batch_is_checked(devices):
    def check(batch):
        seen.append(int(batch.x[0, 0]))
        if seen[-1] == 4:
            raise DataError("not this one")

    seen = []
    with feeder(numbered([2, 2, 2]), devices(1), check=check) as made:
        with pytest.raises(DataError, match="^Step 2, from the list: not this one"):
            list(made.chunks(0))
    assert seen == [0, 2, 4]


@pytest.mark.parametrize("exact", ["never", "possibly"])
def test_batches_lie_over_the_devices(devices, exact):
    distribution = devices(8)
    with feeder(numbered([8, 8]), distribution, multiple=8, exact=exact) as made:
        (chunk,) = made.chunks(0)
    for leaf in jax.tree.leaves(chunk.feed.rows):
        assert leaf.sharding.is_equivalent_to(distribution.batch_sharding(axis=1), leaf.ndim)
    assert {s.data.shape for s in chunk.feed.rows.x.addressable_shards} == {(2, 1, 2)}


def beside(monkeypatch, gathered, kind=None):
    """Another process: of so many rows are the batches that it gathers each time; it says what they are like."""
    gathered = iter(gathered)

    def everywhere(told):
        rows = next(gathered, [])
        table = np.frombuffer(told[: -stream.TOLD_BYTES], np.uint32).copy()
        table[0], table[2:] = len(rows), 0
        table[2 : 2 + len(rows)] = rows
        said = told[-stream.TOLD_BYTES :]
        if kind is not None and rows:
            table[1], said = zlib.crc32(kind), kind.ljust(stream.TOLD_BYTES)
        return [told, table.tobytes() + said]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(stream, "agree_on_least", lambda n: n)
    monkeypatch.setattr(batches, "agree_on_least", lambda n: n)
    monkeypatch.setattr(stream, "gather", everywhere)


@pytest.mark.parametrize(
    ("others", "expected"),
    [(4, [[2, 3, 2, 9]]), (3, [[2, 3, 2]]), (1, [[2]]), (0, [])],
)
def test_processes_use_as_many_batches_as_all_have(devices, monkeypatch, others, expected):
    """A longer batch that is dropped makes nothing wider."""
    beside(monkeypatch, [[2, 3, 2, 9][:others]])
    fewer = pytest.warns(UserWarning, match=f"and {4 - others} or more") if others < 4 else contextlib.nullcontext()
    with feeder(numbered([2, 3, 2, 9]), devices(1)) as made:
        with fewer:
            chunks = list(made.chunks(0))
        longest = max(map(max, expected), default=2)
        assert made.width == longest
    assert [c.rows.tolist() for c in chunks] == expected
    assert [c.feed.rows.x.shape[1] for c in chunks] == [longest for _ in expected]


OWN = [
    # rows of this process's batches, what the other gathers, exact, and the chunks: rows, width, whether all count
    ([8, 8, 4, 4], [[8, 8, 8, 8], [8, 8]], "possibly", [([8, 8], 8, True), ([4, 4], 8, False)]),
    ([8, 8, 8, 8], [[8, 8], [4, 4]], "possibly", [([8, 8], 8, True), ([8, 8], 8, False)]),  # held, and not lost
    ([8, 8, 8, 8], [[8], [6], [8, 8]], "possibly", [([8], 8, True), ([8], 8, False), ([8, 8], 8, True)]),
    ([6, 8], [[8], [8]], "possibly", [([6], 8, False), ([8], 8, True)]),
    ([4, 4], [[4, 4]], "always", [([4, 4], 4, True)]),
    ([3, 8], [[5, 12]], "never", [([3, 8], 12, False)]),
    ([8, 12], [[8, 3]], "never", [([8, 12], 12, False)]),
]


@pytest.mark.parametrize(("sizes", "others", "exact", "expected"), OWN)
def test_batches_of_each_process_are_placed_alike(devices, monkeypatch, sizes, others, exact, expected):
    """As wide as the widest, and with a mask where a row of any process does not count."""
    beside(monkeypatch, others)
    with feeder(numbered(sizes), devices(1), loading={"per_process": True}, multiple=4, exact=exact) as made:
        chunks = list(made.chunks(0))
    assert [(c.rows.tolist(), c.feed.rows.x.shape[1], not c.feed.padded) for c in chunks] == expected
    assert real_rows(chunks) == list(range(sum(sizes)))


def test_exact_batches_of_another_length_on_another_process_are_refused(devices, monkeypatch):
    beside(monkeypatch, [[4]])
    with feeder(numbered([8]), devices(1), loading={"per_process": True}, multiple=2, exact="always") as made:
        with pytest.raises(DataError, match="a batch of 4 rows .* is shorter than that of another process"):
            list(made.chunks(0))


@pytest.mark.parametrize("own", [True, False])
def test_batches_that_become_unlike_those_of_another_process_are_named(devices, monkeypatch, own):
    beside(monkeypatch, [[2, 2]], kind=b"{x: float32[3]}")
    message = r"step 0 is \{x: float32\[2\]\} on process 0 and \{x: float32\[3\]\} on process 1"
    with feeder(numbered([2, 2]), devices(1), loading={"per_process": own}, multiple=2) as made:
        with pytest.raises(DistributionError, match=message):
            list(made.chunks(0))


def test_other_sizes_of_the_same_data_are_named(devices, monkeypatch):
    beside(monkeypatch, [[2, 3]])
    with feeder(numbered([2, 4]), devices(1)) as made:
        with pytest.raises(DistributionError, match="step 1 is of 4 rows on process 0 and of 3 rows on process 1"):
            list(made.chunks(0))


def test_processes_do_not_cut_chunks_by_time(devices, monkeypatch):
    """Their clocks differ."""
    clock = Clock()
    beside(monkeypatch, [[2] * 6])
    monkeypatch.setattr(stream, "time", clock)
    with feeder(clock.slow(numbered([2] * 6), [9] * 6), devices(1)) as made:
        assert [c.num_steps for c in made.chunks(0)] == [6]


# Order and epochs --------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1, 3, 5, 7])
def test_an_epoch_from_the_middle(devices, start):
    """What comes before is read and dropped."""
    with feeder(numbered([2] * 5), devices(1), loading={"max_queue_size": 2}) as made:
        chunks = list(made.chunks(0, start=start))
    assert real_rows(chunks) == list(range(2 * start, 10))
    assert [c.first_step for c in chunks] == list(range(start, 5, 2))


@pytest.mark.parametrize(
    ("fresh", "expected"),
    [(False, [range(4), range(4, 8), range(8, 10), range(4)]), (True, [range(4)] * 4)],
)
def test_epochs_of_some_steps(devices, fresh, expected):
    with feeder(numbered([2] * 5), devices(1), loading={"steps": 2}, fresh=fresh) as made:
        assert [real_rows(made.chunks(epoch, then=epoch + 1)) for epoch in range(4)] == list(map(list, expected))


def test_an_abandoned_epoch_holds_no_batch_for_the_next(devices):
    """The batch of another shape that waited for its own chunk is of the old epoch, even if it is read only now."""
    reading, go_on = threading.Event(), threading.Event()
    passes = itertools.count()

    def watched():
        first_pass = next(passes) == 0
        for n, item in enumerate([*numbered([2], (3,)), *numbered([2], (5,)), *numbered([2], (3,))]):
            if first_pass and n == 2:
                reading.set()
                assert go_on.wait(SECONDS)
            yield item

    with feeder(watched, devices(1)) as made:
        next(made.chunks(0))
        assert reading.wait(SECONDS)
        submit = made._worker.submit

        def submit_and_let_go(*args):
            future = submit(*args)
            go_on.set()
            return future

        made._worker.submit = submit_and_let_go
        chunks = list(made.chunks(1))
    assert [(c.rows.tolist(), c.feed.rows.x.shape[2:]) for c in chunks] == [([2], (3,)), ([2], (5,)), ([2], (3,))]


# Time --------------------------------------------------------------------------------------------


class Clock:
    """Stands for `time`; batches advance it."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def slow(self, source, seconds):
        """The batches of a source, each of which takes some time; the first was read beforehand."""
        for item, taken in zip(source, seconds, strict=True):
            self.now += taken
            yield item


@pytest.mark.parametrize(
    ("seconds", "k", "expected"),
    [
        ([0, 0.1, 0.1, 0.1, 0.1, 0.1], None, [4, 2]),  # 0.3 s are over the bound
        ([0, 1, 1, 1, 1, 1], None, [2, 1, 1, 1, 1]),
        ([0, 0.01, 0.01, 0.01, 0.01, 0.01], None, [6]),
        ([0, 1, 1, 1, 1, 1], 1, [6]),  # a given K: chunks do not depend on time
        ([0, 1, 1, 1, 1, 1], 2, [6]),
    ],
)
def test_a_slow_source_sends_what_it_has(devices, monkeypatch, seconds, k, expected):
    clock = Clock()
    monkeypatch.setattr(stream, "time", clock)
    monkeypatch.setattr(stream, "GATHER_SECONDS", 0.25)
    with feeder(clock.slow(numbered([2] * 6), seconds), devices(1), steps_per_execution=k) as made:
        chunks = list(made.chunks(0))
    assert [c.num_steps for c in chunks] == expected
    assert real_rows(chunks) == list(range(12))


# Threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [None, 1, 0])
def test_which_thread_reads(devices, workers):
    """The first batch is always read where the feeder is made."""
    readers = []

    def watched():
        for item in numbered([2] * 4):
            readers.append(threading.get_ident())
            yield item

    with feeder(watched(), devices(1), loading={"workers": workers}) as made:
        list(made.chunks(0))
    assert readers[0] == threading.get_ident() and len(readers) == 4
    assert (set(readers[1:]) == {threading.get_ident()}) == (workers == 0)


@pytest.mark.parametrize(("queue", "workers"), [(1, 1), (3, 1), (1, 0), (3, 0)])
def test_how_much_is_read_ahead(devices, queue, workers):
    """While a chunk is used, the next is gathered, and nothing beyond it."""
    taken = itertools.count()
    read = []

    def watched():
        for item in numbered([2] * 20):
            read.append(next(taken))
            yield item

    with feeder(watched(), devices(1), loading={"max_queue_size": queue, "workers": workers}) as made:
        for used, _ in enumerate(made.chunks(0), 1):
            assert len(read) <= (used + 1) * queue
            if used == 3:
                break
    assert len(read) <= 4 * queue


@pytest.mark.parametrize("workers", [1, 0])
def test_an_error_comes_out_with_its_traceback(devices, workers):
    def breaking():
        yield from numbered([2, 2])
        raise OSError("the disk is gone")

    with feeder(breaking(), devices(1), loading={"workers": workers, "max_queue_size": 2}) as made:
        with pytest.raises(DataError, match="^Batch 2 of the generator could not be read: OSError: the disk") as caught:
            list(made.chunks(0))
        assert traceback.extract_tb(caught.value.__cause__.__traceback__)[-1].name == "breaking"


def test_closing_waits_for_the_batch_under_way_and_frees_the_source(devices):
    """A generator that another thread still runs could not be read: "generator already executing"."""
    waited, go_on = threading.Event(), threading.Event()

    def watched():
        for n, item in enumerate(numbered([2] * 10)):
            if n == 4:
                waited.set()
                assert go_on.wait(SECONDS)
            yield item

    source = watched()
    made = feeder(source, devices(1), loading={"max_queue_size": 3})
    next(made.chunks(0))
    assert waited.wait(SECONDS)
    shutdown = made._worker.shutdown

    def shutdown_and_let_go(**arguments):
        go_on.set()
        shutdown(**arguments)

    made._worker.shutdown = shutdown_and_let_go
    made.close()
    assert [int(item[0][0, 0]) // 2 for item in source] == [5, 6, 7, 8, 9]


class Numbered:
    """Batches by number, which count how often a pass began."""

    begun = 0

    def __len__(self):
        return 9

    def __getitem__(self, n):
        return np.full((2, 1), 2 * n + np.arange(2)[:, None], np.float32)

    def on_epoch_begin(self):
        self.begun += 1

    def on_epoch_end(self):
        pass


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_readers_end_with_the_feeder_though_the_loader_is_held(devices, processes):
    """What they had read ahead is read again: nothing is lost, and the pass goes on."""
    before = set(threading.enumerate())
    sequence = Numbered()
    loader = from_batches(sequence, steps=3, workers=2, use_multiprocessing=processes)
    assert loader.batch_size == 2  # which begins to read
    for epoch in range(3):
        with StreamFeeder(loader, devices(1)) as made:
            assert real_rows(made.chunks(epoch)) == list(range(6 * epoch, 6 * epoch + 6))
        assert not multiprocessing.active_children()
        assert not {t for t in threading.enumerate() if t.name.startswith("kdist-read")} - before
    assert sequence.begun == 1


def test_an_evaluation_ends_the_readers_of_an_epoch_under_way_and_it_goes_on(devices):
    loader = from_batches(Numbered(), steps=9, workers=2, max_queue_size=2)
    loader.source.most_ahead = 1
    with StreamFeeder(loader, devices(1)) as made:
        rows = []
        for chunk in made.chunks(0):
            rows += real_rows([chunk])
            with StreamFeeder(loader, devices(1), fresh=True) as other:
                assert real_rows(other.chunks(0)) == list(range(18))
    assert rows == list(range(18))


def test_no_thread_is_left(devices):
    before = set(threading.enumerate())
    with feeder(numbered([2] * 3), devices(1)) as made:
        list(made.chunks(0))
    with pytest.raises(ZeroDivisionError), feeder(numbered([2] * 30), devices(1)) as made:
        next(made.chunks(0))
        _ = 1 // 0
    assert {t for t in threading.enumerate() if t.name.startswith("kdist-stream")} <= before

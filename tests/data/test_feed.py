"""From rows to batches on the devices: padding, chunks, and that streamed and resident feeds give the same."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdist.data import Feeder, feed, from_arrays
from kdist.data.feed import arrange
from kdist.errors import DataError
from kdist.typing import Batch


@given(st.integers(1, 60), st.integers(1, 16), st.integers(0, 20), st.integers(0, 3), st.randoms(use_true_random=False))
def test_arrange_holds_every_row_once(rows, size, extra_width, extra_steps, random):
    numbers = list(range(100, 100 + rows))
    random.shuffle(numbers)
    steps = -(-rows // size)
    order = arrange(np.array(numbers), size, steps + extra_steps, size + extra_width)
    assert order.shape == (steps + extra_steps, size + extra_width)
    assert order.dtype == np.int64  # rows may be numbered through all epochs
    assert order[order >= 0].tolist() == numbers  # in order, each exactly once
    assert set((~order[order < 0]).tolist()) <= set(numbers)  # what fills is a copy of a row that exists
    for s in range(steps):
        assert (order[s] >= 0).sum() == min(size, rows - s * size)
    for s in range(steps - 1):  # a full step is filled by its own rows
        assert set((~order[s][order[s] < 0]).tolist()) <= set(order[s][order[s] >= 0].tolist())


ROWS = 22
X = np.arange(2.0 * ROWS, dtype=np.float32).reshape(ROWS, 2)
Y = {"a": np.arange(ROWS, dtype=np.int32)}
W = np.linspace(0, 1, ROWS, dtype=np.float32)


def loader(cache, batch_size=6, **arguments):
    return from_arrays(X, Y, W, batch_size=batch_size, cache=cache, **arguments)


def batches(feeder, epoch, distribution):
    """The batches of an epoch as NumPy, each without the rows that fill it, and where the rows lay."""
    out = []
    for chunk in feeder.chunks(epoch):
        for i in range(chunk.num_steps):
            batch = jax.jit(lambda f, i: f.batch(i, distribution))(chunk.feed, jnp.int32(i))
            valid = np.ones(len(batch.x), bool) if batch.valid is None else np.asarray(batch.valid) == 1
            out.append(jax.tree.map(lambda a, valid=valid: np.asarray(a)[valid], (batch.x, batch.y, batch.weight)))
    return out


@pytest.fixture
def small_chunks(monkeypatch):
    """Streamed chunks of two steps."""
    monkeypatch.setattr(feed, "MAX_CHUNK_STEPS", 2)


@pytest.mark.parametrize("n", [1, 8])
def test_streamed_and_resident_batches_are_the_same(devices, small_chunks, n):
    distribution = devices(n)
    for epoch in (0, 3):
        found = []
        for cache in (True, False):
            with Feeder(loader(cache), distribution, multiple=n) as feeder:
                assert feeder.resident is cache
                found.append(batches(feeder, epoch, distribution))
        order = loader(True).order(epoch)
        expected = [order[i : i + 6] for i in range(0, ROWS, 6)]
        for ours in found:
            assert len(ours) == len(expected)
            for (x, y, w), rows in zip(ours, expected, strict=True):
                np.testing.assert_array_equal(x, X[rows])
                np.testing.assert_array_equal(y["a"], rows)
                np.testing.assert_array_equal(w, W[rows])


@pytest.mark.parametrize("cache", [True, False])
def test_batches_lie_over_the_devices(devices, cache):
    distribution = devices(8)
    with Feeder(loader(cache), distribution, multiple=8) as feeder:
        chunk = next(feeder.chunks(0))
        split = chunk.feed.order if cache else chunk.feed.rows.x
        assert split.sharding.is_equivalent_to(distribution.batch_sharding(axis=1), split.ndim)
        assert split.shape[:2] == (4, 8)
        if cache:
            assert chunk.feed.rows.x.sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("cache", "resident"),
    [(True, True), (False, False), ("auto", True)],
)
def test_small_data_stay_on_the_devices(devices, cache, resident):
    with Feeder(loader(cache), devices(1)) as feeder:
        assert feeder.resident is resident


def test_large_data_are_streamed(devices, monkeypatch):
    monkeypatch.setattr(feed, "RESIDENT_BYTES", loader("auto").nbytes - 1)
    with Feeder(loader("auto"), devices(1)) as feeder:
        assert not feeder.resident


@pytest.mark.parametrize(
    ("batch_size", "multiple", "exact", "padded"),
    [
        (11, 1, "never", False),
        (6, 1, "never", True),
        (11, 2, "never", True),
        (11, 2, "possibly", True),
        (6, 1, "possibly", False),
        (6, 1, "always", False),
        (22, 2, "always", False),
        (1000, 2, "never", False),
    ],
)
def test_whether_any_row_only_fills(devices, batch_size, multiple, exact, padded):
    with Feeder(loader(True, batch_size), devices(1), multiple=multiple, exact=exact) as feeder:
        assert feeder.padded is padded
        (batch, *_) = (chunk.feed.batch(jnp.int32(0), None) for chunk in feeder.chunks(0))
        assert (batch.valid is None) is not padded


def plan(cache, batch_size, devices, **arguments):
    with Feeder(loader(cache, batch_size), devices, **arguments) as feeder:
        return [(c.first_step, c.num_steps, c.num_rows) for c in feeder.chunks(0)], feeder.chunk_steps


@pytest.mark.parametrize(
    ("cache", "batch_size", "arguments", "chunks", "room"),
    [
        (True, 6, {}, [(0, 4, 22)], 4),
        (True, 6, {"steps_per_execution": 3}, [(0, 4, 22)], 4),
        (False, 6, {}, [(0, 2, 12), (2, 2, 10)], 2),
        (False, 4, {}, [(0, 2, 8), (2, 2, 8), (4, 2, 6)], 2),
        (False, 4, {"steps_per_execution": 3}, [(0, 3, 12), (3, 3, 10)], 3),  # a multiple of K
        (False, 4, {"steps_per_execution": 100}, [(0, 6, 22)], 6),  # but no longer than the epoch
        (True, 6, {"exact": "always"}, [(0, 3, 18), (3, 1, 4)], 3),  # the tail in its own shape
        (True, 11, {"exact": "always"}, [(0, 2, 22)], 2),
        (True, 100, {"exact": "always"}, [(0, 1, 22)], 1),
    ],
)
def test_chunks(devices, small_chunks, cache, batch_size, arguments, chunks, room):
    assert plan(cache, batch_size, devices(1), **arguments) == (chunks, room)


def test_chunks_are_bounded_by_their_bytes(devices, monkeypatch):
    monkeypatch.setattr(feed, "CHUNK_BYTES", 3 * 6 * 4 * 4)  # three steps of six rows of four numbers
    chunks, room = plan(False, 6, devices(1))
    assert room <= 3 and sum(steps for _, steps, _ in chunks) == 4


def test_an_exact_tail_is_not_padded(devices):
    with Feeder(loader(True, shuffle=False), devices(2), multiple=2, exact="always") as feeder:
        *_, last = feeder.chunks(0)
        batch = last.feed.batch(jnp.int32(0), None)
        np.testing.assert_array_equal(batch.x, X[18:])
        assert batch.valid is None


@pytest.mark.parametrize(("batch_size", "multiple"), [(6, 4), (10, 4), (6, 8)])
def test_what_cannot_be_exact_is_refused(devices, batch_size, multiple):
    with pytest.raises(DataError, match=f"22 rows in batches of {batch_size} do not divide over {multiple} parts"):
        Feeder(loader(True, batch_size), devices(1), multiple=multiple, exact="always")


def test_the_next_epoch_is_prepared_and_any_can_be_asked_for(devices, small_chunks):
    with Feeder(loader(False), devices(1)) as feeder:
        first = [np.asarray(c.feed.rows.y["a"]) for c in feeder.chunks(0, then=1)]
        second = [np.asarray(c.feed.rows.y["a"]) for c in feeder.chunks(1)]
        again = [np.asarray(c.feed.rows.y["a"]) for c in feeder.chunks(0)]
    assert any((a != b).any() for a, b in zip(first, second, strict=True))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


class Broken:
    """A loader whose data cannot be read."""

    batch_size, num_rows, nbytes, cache, num_steps = 4, 8, 64, False, 2

    def order(self, epoch):
        return np.arange(8)

    def read(self, rows):
        raise OSError("the disk is gone")


def test_an_error_of_the_loader_comes_out_where_its_chunk_is_used(devices):
    with Feeder(Broken(), devices(1)) as feeder, pytest.raises(OSError, match="the disk is gone"):
        next(feeder.chunks(0))


class Counted:
    """A loader that counts how many threads read it at once, at most; each waits for another, for a while."""

    batch_size, num_rows, nbytes, cache, num_steps = 2, 16, 128, False, 8

    def __init__(self, readers=None):
        if readers is not None:
            self.readers = readers
        self.inside, self.most, self.changed = 0, 0, threading.Condition()

    def order(self, epoch):
        return np.arange(16)

    def read(self, rows):
        with self.changed:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.most > 1, timeout=0.05)
            self.inside -= 1
        return Batch(X[rows])


@pytest.mark.parametrize(("readers", "most"), [(None, 1), (1, 1), (2, 2)])
def test_as_many_threads_read_as_the_loader_allows(devices, small_chunks, readers, most):
    loader = Counted(readers)
    with Feeder(loader, devices(1)) as feeder:
        for _ in range(2):
            chunks = [np.asarray(chunk.feed.rows.x) for chunk in feeder.chunks(0)]
            np.testing.assert_array_equal(np.concatenate(chunks).reshape(-1, 2), X[:16])
    assert loader.most == most

"""Memory is lent again, and never while somebody can still see what is in it."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdist.data import Feeder, buffers, from_arrays

SHAPE = (512, 1024)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    gc.collect()
    monkeypatch.setattr(buffers, "_FREE", {})


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_lent_again_after_the_last_view():
    first = buffers.empty(SHAPE, np.float32)
    where, view = address(first), first[3:, ::2].T
    del first
    second = buffers.empty(SHAPE, np.float32)
    assert address(second) != where  # the view sees the first
    del view
    third = buffers.empty(SHAPE, np.float32)
    assert address(third) == where


def test_memory_is_aligned_and_of_any_type():
    for dtype in (np.uint8, np.float32, jnp.bfloat16, np.bool_):
        lent = buffers.empty((3, buffers.SMALLEST), dtype)
        assert address(lent) % buffers.ALIGNMENT == 0
        assert (lent.shape, lent.dtype, type(lent)) == ((3, buffers.SMALLEST), dtype, np.ndarray)


def test_little_is_kept():
    lent = [buffers.empty(SHAPE, np.float32) for _ in range(buffers.MOST_KEPT + 3)]
    del lent
    assert [len(kept) for kept in buffers._FREE.values()] == [buffers.MOST_KEPT]


@pytest.mark.parametrize("place", [jax.device_put, jnp.asarray], ids=["device_put", "asarray"])
def test_what_is_on_the_device_stays_as_it_is(place):
    """Also where the device reads the very memory, and a computation with it is under way."""
    work = jax.jit(lambda a: jnp.sin(a).sum() * 0 + a.max())
    results = []
    for n in range(60):
        lent = buffers.empty(SHAPE, np.float32)
        lent[:] = n
        results.append(work(place(lent)))
        if n % 3 == 0:
            results[-1].block_until_ready()
        del lent
    assert [float(r) for r in results] == list(range(60))


def test_chunks_that_are_kept_stay_as_they_are(devices):
    x = np.arange(4096 * 64 * 8, dtype=np.float32).reshape(-1, 64)
    loader = from_arrays(x, batch_size=64, cache=False, shuffle=False)
    with Feeder(loader, devices(1)) as feeder:
        chunks = [chunk for epoch in range(3) for chunk in feeder.chunks(epoch)]
        assert sum(chunk.num_rows for chunk in chunks) == 3 * len(x)
        for chunk in chunks:
            start = chunk.first_step * 64
            rows = np.asarray(chunk.feed.rows.x).reshape(-1, 64)[: chunk.num_rows]
            np.testing.assert_array_equal(rows, x[start : start + chunk.num_rows])


def test_take_is_numpys():
    rows = np.random.default_rng(0).integers(0, 7, (40, 5))
    for array in (np.arange(7), np.ones((7, 3, 2), np.float16) * np.arange(7)[:, None, None]):
        np.testing.assert_array_equal(buffers.take(array, rows), array[rows])

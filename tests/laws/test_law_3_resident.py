"""Law 3: data kept on the devices and data streamed to them train alike, whatever the size of a streamed chunk.

Weights and logs agree to rounding: the two gather rows in different programs.
"""

import functools

import jax
import pytest
from models import crossentropy, data, make, moved, same

import kdist
from kdist.data import Feeder

ROWS, BATCH_SIZE, STEPS = 43, 5, 9


def run(kind, cache, k="auto", look=True):
    x, y, weight = data(ROWS)
    model = make("mlp", kind, dropout=0.25)
    model.compile(
        kdist.optimizers.SGD(0.1, momentum=0.9), crossentropy(), weighted_metrics=["accuracy"], steps_per_execution=k
    )
    model.build(x)
    before = model.get_weights()
    validation = kdist.data.from_arrays(x[:11], y[:11], batch_size=4, shuffle=False, cache=cache) if look else None
    fit = model.fit(x, y, BATCH_SIZE, 3, 0, sample_weight=weight, validation_data=validation, cache=cache)
    assert moved(before, model.get_weights())
    if not look:
        return {"weights": model.get_weights()}
    inputs = kdist.data.from_arrays(x, batch_size=BATCH_SIZE, shuffle=False, cache=cache)
    return {"history": fit.history, "weights": model.get_weights(), "predict": model.predict(inputs, verbose=0)}


@functools.cache
def resident(kind):
    return run(kind, True, look=kind == "linen")


def chunk_steps(cache, k=1):
    x, y, weight = data(ROWS)
    loader = kdist.data.from_arrays(x, y, weight, batch_size=BATCH_SIZE, cache=cache)
    with Feeder(loader, kdist.DataParallel(), multiple=8, steps_per_execution=k) as feeder:
        assert feeder.resident == cache
        return feeder.chunk_steps


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_streamed_is_resident(kind):
    assert chunk_steps(True) == chunk_steps(False) == STEPS
    same(run(kind, False, look=kind == "linen"), resident(kind), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("limits", "k", "steps"),
    [
        pytest.param({"MAX_CHUNK_STEPS": 4}, "auto", 3, id="three-chunks-of-three-steps"),
        pytest.param({"MAX_CHUNK_STEPS": 3}, 4, 4, id="chunks-hold-whole-executions"),
        pytest.param({"CHUNK_BYTES": 1}, "auto", 1, id="one-step-a-chunk"),
    ],
)
def test_chunks_smaller_than_an_epoch(monkeypatch, limits, k, steps):
    for name, value in limits.items():
        monkeypatch.setattr(f"kdist.data.feed.{name}", value)
    assert chunk_steps(False, k if isinstance(k, int) else 1) == steps
    got = run("linen", False, k, look=k == 4)
    same(got, {name: resident("linen")[name] for name in got}, rtol=1e-6, atol=1e-7)


def test_every_epoch_has_an_order_of_its_own_and_the_same_in_both():
    """What the law rests on: the rows that a step sees, read back from the devices."""
    x, y, _ = data(ROWS)
    mesh = kdist.DataParallel()
    seen = {}
    for cache in (True, False):
        loader = kdist.data.from_arrays(x, y, batch_size=BATCH_SIZE, seed=5, cache=cache)
        with Feeder(loader, mesh, multiple=8) as feeder:
            epochs = [next(feeder.chunks(epoch)).feed for epoch in (0, 1)]
            batch = jax.jit(lambda feed, i: feed.batch(i, mesh))
            seen[cache] = [[jax.device_get(batch(feed, i)) for i in range(STEPS)] for feed in epochs]
    same(seen[True], seen[False], rtol=0, atol=0)
    first, second = seen[True]
    assert moved(jax.tree.leaves(first), jax.tree.leaves(second))
    counted = sum(float(batch.valid.sum()) for batch in first)
    assert counted == ROWS

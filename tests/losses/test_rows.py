"""Every loss has one value and one gradient, however the rows of a batch lie on shards, and whatever fills it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kdist import losses
from kdist.distribution import BATCH_AXES
from kdist.losses import Shards

WHOLE, ROWS = PartitionSpec(), PartitionSpec(BATCH_AXES)


def shards():
    """What the step gives a loss, inside `jax.shard_map`."""
    return Shards(
        sum=lambda tree: jax.lax.psum(tree, BATCH_AXES),
        gather=lambda rows: jax.lax.all_gather(rows, BATCH_AXES, tiled=True),
        index=jax.lax.axis_index(BATCH_AXES),
    )


N, T, C = 16, 3, 4
VALID = np.array([1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1], np.float32)
"""On eight shards one has no row that counts, and others have one or two."""

REGRESSION = {"y": lambda rng: rng.uniform(0.1, 2, (N, C)), "p": lambda rng: rng.uniform(0.1, 2, (N, C))}
BITS = {"y": lambda rng: rng.integers(0, 2, (N, C)), "p": lambda rng: rng.uniform(0.05, 0.95, (N, C))}
ONE_HOT = {"y": lambda rng: np.eye(C)[rng.integers(0, C, N)], "p": lambda rng: rng.dirichlet(np.ones(C), N)}
LABELS = {"y": lambda rng: rng.integers(0, C, N), "p": lambda rng: rng.dirichlet(np.ones(C), N)}
SEQUENCES = {"y": lambda rng: rng.integers(0, C, (N, 1)), "p": lambda rng: rng.normal(size=(N, T, C))}
PIXELS = {"y": lambda rng: rng.integers(0, 2, (N, T, C)), "p": lambda rng: rng.uniform(0, 1, (N, T, C))}


def embeddings(rng):
    vectors = rng.normal(size=(N, C))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


EMBEDDINGS = {"y": lambda rng: rng.integers(0, 3, (N, 1)), "p": embeddings}

PER_ROW = [
    (losses.MeanSquaredError, {}, REGRESSION),
    (losses.MeanAbsoluteError, {}, REGRESSION),
    (losses.MeanAbsolutePercentageError, {}, REGRESSION),
    (losses.MeanSquaredLogarithmicError, {}, REGRESSION),
    (losses.CosineSimilarity, {}, REGRESSION),
    (losses.Huber, {}, REGRESSION),
    (losses.LogCosh, {}, REGRESSION),
    (losses.Poisson, {}, REGRESSION),
    (losses.KLDivergence, {}, ONE_HOT),
    (losses.Hinge, {}, BITS),
    (losses.SquaredHinge, {}, BITS),
    (losses.CategoricalHinge, {}, ONE_HOT),
    (losses.BinaryCrossentropy, {}, BITS),
    (losses.BinaryFocalCrossentropy, {}, BITS),
    (losses.CategoricalCrossentropy, {}, ONE_HOT),
    (losses.CategoricalFocalCrossentropy, {}, ONE_HOT),
    (losses.CategoricalGeneralizedCrossEntropy, {}, LABELS),
    (losses.SparseCategoricalCrossentropy, {}, LABELS),
    (losses.SparseCategoricalCrossentropy, {"ignore_class": 1}, LABELS),
    (losses.CTC, {}, SEQUENCES),
    (losses.Dice, {"axis": (1, 2)}, PIXELS),
    (losses.Tversky, {"axis": -1, "alpha": 0.2}, BITS),
]
ACROSS_ROWS = [
    (losses.Dice, {}, BITS),
    (losses.Dice, {"axis": (0, 1)}, PIXELS),
    (losses.Tversky, {"alpha": 0.2, "beta": 0.9}, PIXELS),
    (losses.Tversky, {"alpha": 0.2, "axis": 0}, BITS),
    (losses.Circle, {"gamma": 10.0}, EMBEDDINGS),
    (losses.Circle, {"gamma": 10.0, "remove_diagonal": False}, EMBEDDINGS),
]
EVERY = [*PER_ROW, *ACROSS_ROWS]


def cases(losses_and_data):
    return pytest.mark.parametrize(
        ("cls", "arguments", "data"), losses_and_data, ids=[f"{c.__name__}-{a}" for c, a, _ in losses_and_data]
    )


def batch(rng, data):
    y = data["y"](rng)
    return y if y.dtype.kind == "i" else y.astype(np.float32), data["p"](rng).astype(np.float32)


def weights(rng):
    return rng.choice([0, 0.5, 1, 2.5], N).astype(np.float32)


def on_shards(distribution, loss, y, p, weight, valid):
    """The loss and its gradient as a train step has them: sums and gradients of sums, added up, and one division."""

    def local(y, p, weight, valid):
        def total(p):
            sums = loss.sums(y, p, weight, valid, shards())
            return sums.sum, sums

        slope, sums = jax.grad(total, has_aux=True)(p)
        added = jax.lax.psum(sums, BATCH_AXES)
        return added.value(), slope if added.denominator is None else slope / added.denominator

    specs = {"mesh": distribution.mesh, "in_specs": ROWS, "out_specs": (WHOLE, ROWS)}
    return jax.jit(jax.shard_map(local, **specs, check_vma=False))(y, p, weight, valid)


def check(distribution, loss, y, p, weight, valid):
    kept = slice(None) if valid is None else valid > 0
    value, slope = jax.value_and_grad(loss, 1)(y[kept], p[kept], None if weight is None else weight[kept])
    found, slopes = on_shards(distribution, loss, y, p, weight, valid)
    assert np.abs(slope).max() > 0
    np.testing.assert_allclose(found, value, rtol=1e-5)
    expected = np.zeros_like(p)
    expected[kept] = slope
    np.testing.assert_allclose(slopes, expected, rtol=1e-4, atol=1e-6 * np.abs(slope).max())


def test_every_loss_is_here():
    registered = {type(losses.get(name)) for name in losses.names()} - {str}
    assert {cls for cls, *_ in EVERY} == registered
    assert all(cls(**arguments).across_rows for cls, arguments, _ in ACROSS_ROWS)
    assert not any(cls(**arguments).across_rows for cls, arguments, _ in PER_ROW)


@cases(EVERY)
def test_shards(rng, devices, cls, arguments, data):
    check(devices(8), cls(**arguments), *batch(rng, data), weights(rng), VALID)


@pytest.mark.parametrize(
    ("weighted", "valid"),
    [
        pytest.param(False, None, id="plain-full"),
        pytest.param(True, None, id="weighted-full", marks=pytest.mark.slow),
        pytest.param(False, VALID, id="plain-padded", marks=pytest.mark.slow),
        pytest.param(True, VALID, id="weighted-padded"),
    ],
)
@pytest.mark.parametrize("reduction", losses.REDUCTIONS[1:])
@cases([ACROSS_ROWS[1], ACROSS_ROWS[2], ACROSS_ROWS[4]])
def test_reductions_of_losses_across_rows(rng, devices, cls, arguments, data, reduction, weighted, valid):
    loss = cls(**arguments, reduction=reduction)
    check(devices(8), loss, *batch(rng, data), weights(rng) if weighted else None, valid)


@pytest.mark.parametrize("number", [1, 2, 4])
@cases([ACROSS_ROWS[0], ACROSS_ROWS[4]])
def test_any_number_of_shards(rng, devices, cls, arguments, data, number):
    check(devices(number), cls(**arguments), *batch(rng, data), None, VALID)


WEIGHTINGS = ("none", "rows", "column")


@pytest.mark.parametrize(
    ("reduction", "weighting"),
    [  # by default each reduction with one kind of weights
        pytest.param(reduction, weighting, marks=[] if i % len(WEIGHTINGS) == j else [pytest.mark.slow])
        for i, reduction in enumerate(losses.REDUCTIONS)
        for j, weighting in enumerate(WEIGHTINGS)
    ],
)
@cases(EVERY)
def test_rows_that_fill_a_batch_do_not_count(rng, cls, arguments, data, reduction, weighting):
    loss, kept = cls(**arguments, reduction=reduction), VALID > 0
    y, p = batch(rng, data)
    weight = {"none": None, "rows": weights(rng), "column": weights(rng)[:, None]}[weighting]
    padded = loss.sums(y, p, weight, VALID)
    short = loss.sums(y[kept], p[kept], None if weight is None else weight[kept])
    assert float(padded.value()) == pytest.approx(float(short.value()), rel=1e-5)
    assert padded.per_row == short.per_row
    nothing = loss.sums(y, p, weight, np.zeros(N, np.float32))
    assert float(nothing.sum) == 0 and not nothing.denominator


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@cases(EVERY)
def test_values_are_float32_whatever_the_predictions_are(rng, cls, arguments, data, dtype):
    y, p = batch(rng, data)
    loss, low = cls(**arguments), jnp.asarray(p, dtype)
    assert loss(y, low).dtype == jnp.float32
    assert float(loss(y, low)) == float(loss(y, low.astype(jnp.float32)))


@cases(EVERY)
def test_integer_targets_are_those_numbers(rng, cls, arguments, data):
    y, p = batch(rng, data)
    whole = y.round().astype(np.int32)
    found, expected = (float(cls(**arguments)(a, p)) for a in (whole, whole.astype(np.float32)))
    assert found == expected and np.isfinite(found)


def test_places(devices):
    placed = jax.shard_map(
        lambda a: shards().places(a.shape[0]), mesh=devices(8).mesh, in_specs=ROWS, out_specs=ROWS, check_vma=False
    )
    assert placed(np.zeros(24)).tolist() == list(range(24))

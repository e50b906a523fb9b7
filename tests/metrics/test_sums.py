"""The law of every metric: sums add up over parts, shards and steps, and rows of weight 0 are as good as absent."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kdist import losses, metrics
from kdist.metrics.base import exact_sums

ROWS, CLASSES = 16, 3


def scores(rng):
    return rng.uniform(0.05, 1, (ROWS, CLASSES))


def bits(rng):
    return rng.integers(0, 2, (ROWS, CLASSES)).astype(float), scores(rng)


def one_hot(rng):
    return np.eye(CLASSES)[rng.integers(0, CLASSES, ROWS)], scores(rng)


def labels(rng):
    return rng.integers(0, CLASSES, ROWS), scores(rng)


def numbers(rng):
    return rng.normal(3, 1, (ROWS, CLASSES)), rng.normal(3, 1, (ROWS, CLASSES))


def distributions(rng):
    return scores(rng), scores(rng)


def pairs_of_labels(rng):
    return rng.integers(0, CLASSES, ROWS), rng.integers(0, CLASSES, ROWS).astype(float)


def error(y_true, y_pred):
    return abs(y_true - y_pred)


ALL = [
    (metrics.Mean(fn=error), numbers),
    (metrics.Sum(fn=error), numbers),
    (metrics.MeanSquaredError(), numbers),
    (metrics.RootMeanSquaredError(), numbers),
    (metrics.MeanAbsoluteError(), numbers),
    (metrics.MeanAbsolutePercentageError(), numbers),
    (metrics.MeanSquaredLogarithmicError(), distributions),
    (metrics.LogCoshError(), numbers),
    (metrics.Hinge(), bits),
    (metrics.SquaredHinge(), bits),
    (metrics.CategoricalHinge(), one_hot),
    (metrics.Poisson(), distributions),
    (metrics.KLDivergence(), distributions),
    (metrics.CosineSimilarity(), numbers),
    (metrics.BinaryCrossentropy(), bits),
    (metrics.CategoricalCrossentropy(), one_hot),
    (metrics.SparseCategoricalCrossentropy(), labels),
    (metrics.LossMean(losses.Huber()), numbers),
    (metrics.MeanMetric(error), numbers),
    (metrics.Accuracy(), pairs_of_labels),
    (metrics.BinaryAccuracy(), bits),
    (metrics.CategoricalAccuracy(), one_hot),
    (metrics.SparseCategoricalAccuracy(), labels),
    (metrics.TopKCategoricalAccuracy(k=2), one_hot),
    (metrics.SparseTopKCategoricalAccuracy(k=2), labels),
    (metrics.TruePositives(), bits),
    (metrics.TrueNegatives(), bits),
    (metrics.FalsePositives(), bits),
    (metrics.FalseNegatives(thresholds=[0.7, 0.2]), bits),
    (metrics.Precision(top_k=2), bits),
    (metrics.Recall(thresholds=[0.3, 0.7], class_id=1), bits),
    (metrics.AUC(), bits),
    (metrics.AUC(curve="PR", multi_label=True, num_thresholds=9), bits),
    (metrics.SensitivityAtSpecificity(0.4), bits),
    (metrics.SpecificityAtSensitivity(0.4), bits),
    (metrics.PrecisionAtRecall(0.4), bits),
    (metrics.RecallAtPrecision(0.4), bits),
    (metrics.FBetaScore(beta=2.0), one_hot),
    (metrics.F1Score(average="micro"), one_hot),
    (metrics.IoU(CLASSES, [0, 2]), pairs_of_labels),
    (metrics.BinaryIoU(), bits),
    (metrics.MeanIoU(CLASSES, sparse_y_pred=False), labels),
    (metrics.OneHotIoU(CLASSES, [1]), one_hot),
    (metrics.OneHotMeanIoU(CLASSES), one_hot),
    (metrics.R2Score(class_aggregation=None, num_regressors=2), numbers),
    (metrics.PearsonCorrelation(), numbers),
    (metrics.ConcordanceCorrelation(), numbers),
]
every_metric = pytest.mark.parametrize(("metric", "make"), ALL, ids=lambda a: getattr(a, "name", ""))


@pytest.fixture
def rows(rng, make):
    """Targets, predictions, and weights, some of them 0."""
    true, pred = (a if a.dtype.kind == "i" else a.astype(np.float32) for a in make(rng))
    return jnp.asarray(true), jnp.asarray(pred, jnp.float32), jnp.asarray(rng.choice([0, 0.5, 2], ROWS), jnp.float32)


def added(*sums):
    return jax.tree.map(lambda *a: sum(a), *map(exact_sums, sums))


def test_the_table_is_whole():
    found = {thing for thing in vars(metrics).values() if inspect.isclass(thing)}
    assert {type(metric) for metric, _ in ALL} == found - {metrics.Metric, metrics.ForeignMetric}


@every_metric
@pytest.mark.parametrize(
    "weighted", [pytest.param(False, id="plain", marks=pytest.mark.slow), pytest.param(True, id="weighted")]
)
def test_eight_shards_are_the_whole(metric, rows, weighted):
    """Added up by a collective, as a step does it."""
    rows = rows if weighted else rows[:2]
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    on_shards = jax.shard_map(
        lambda *part: jax.lax.psum(metric.sums(*part), "data"),
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    found = metric.result(exact_sums(jax.jit(on_shards)(*rows)))
    np.testing.assert_allclose(found, metric(*rows), rtol=2e-6, atol=1e-6)


@every_metric
def test_unequal_parts_are_the_whole(metric, rows):
    """So that a mean of means would be wrong."""
    parts = [[a[part] for a in rows] for part in (slice(1), slice(1, 4), slice(4, None))]
    found = metric.result(added(*(metric.sums(*part) for part in parts)))
    np.testing.assert_allclose(found, metric(*rows), rtol=2e-6, atol=1e-6)


@every_metric
def test_zeros_are_the_empty_sums(metric, rows):
    sums = exact_sums(metric.sums(*rows[:2]))
    empty = jax.tree.map(np.zeros_like, sums)
    np.testing.assert_array_equal(metric.result(added(sums, empty)), metric.result(sums))
    np.testing.assert_array_equal(metric.result(empty), 0)
    nothing = metric.sums(*rows[:2], jnp.zeros(ROWS))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(nothing))


@every_metric
def test_rows_of_weight_zero_do_not_count(metric, rows):
    true, pred, _ = rows
    kept = jnp.arange(ROWS) < ROWS - 3
    np.testing.assert_allclose(metric(true, pred, kept), metric(true[:-3], pred[:-3]), rtol=2e-6, atol=1e-6)


@every_metric
def test_sums_are_float32_on_the_devices_and_results_are_python_or_numpy(metric, rows):
    for leaf in jax.tree.leaves(metric.sums(*rows)):
        assert leaf.dtype == np.float32
    result = metric(*rows)
    assert type(result) is float or isinstance(result, np.ndarray)


def test_counts_stay_exact_over_a_long_epoch(rng):
    """Sums are added up in float64: float32 would stop at 2**24."""
    true, pred = bits(rng)
    metric = metrics.Recall()
    sums = exact_sums(metric.sums(jnp.asarray(true), jnp.asarray(pred, jnp.float32)))
    long = jax.tree.map(lambda a: a * 2.0**24 + a, sums)
    assert metric.result(long) == metric(true, pred)

"""Metrics as additive sums: merging, weights, the accuracy rule, thresholds, and values at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdist import metrics
from kdist.errors import ConfigError, DataError

Y = np.array([0.0, 1.0, 1.0, 0.0], np.float32)
P = np.array([0.1, 0.4, 0.9, 0.6], np.float32)
W = np.array([1.0, 2.0, 3.0, 4.0], np.float32)


def merged(metric, *parts):
    sums = [metric.sums(*map(jnp.asarray, part)) for part in parts]
    return metric.result(jax.tree.map(lambda *a: sum(np.asarray(x, np.float64) for x in a), *sums))


ALL = [
    (metrics.MeanSquaredError(), Y, P),
    (metrics.RootMeanSquaredError(), Y, P),
    (metrics.BinaryAccuracy(), Y, P),
    (metrics.Precision(), Y, P),
    (metrics.Recall(thresholds=[0.3, 0.7]), Y, P),
    (metrics.AUC(), Y, P),
    (metrics.AUC(curve="PR"), Y, P),
    (metrics.SparseCategoricalAccuracy(), np.array([0, 1, 1, 1]), np.stack([1 - P, P], 1)),
]


@pytest.mark.parametrize(("metric", "y", "p"), ALL, ids=lambda a: getattr(a, "name", ""))
def test_parts_merge_into_the_whole(metric, y, p):
    """Unequal parts, so that a mean of means would be wrong."""
    whole = metric(y, p, W)
    parts = merged(metric, (y[:1], p[:1], W[:1]), (y[1:], p[1:], W[1:]))
    np.testing.assert_allclose(parts, whole, rtol=1e-6)


@pytest.mark.parametrize(("metric", "y", "p"), ALL, ids=lambda a: getattr(a, "name", ""))
def test_zeros_are_the_empty_sums(metric, y, p):
    sums = jax.tree.map(lambda a: np.asarray(a, np.float64), metric.sums(jnp.asarray(y), jnp.asarray(p)))
    empty = jax.tree.map(np.zeros_like, sums)
    np.testing.assert_array_equal(metric.result(jax.tree.map(np.add, sums, empty)), metric.result(sums))
    np.testing.assert_array_equal(metric.result(empty), 0)


@pytest.mark.parametrize(("metric", "y", "p"), ALL, ids=lambda a: getattr(a, "name", ""))
def test_rows_of_weight_zero_do_not_count(metric, y, p):
    keep = np.array([1, 1, 1, 0], np.float32)
    np.testing.assert_allclose(metric(y, p, keep), metric(y[:3], p[:3]), rtol=1e-6)


def test_weighted_mean():
    each = (Y - P) ** 2
    assert metrics.MeanSquaredError()(Y, P, W) == pytest.approx((each * W).sum() / W.sum())
    assert metrics.MeanSquaredError()(Y, P, 0 * W) == 0.0


@pytest.mark.parametrize("weight", [(2,), (2, 1), (2, 3)], ids=str)
def test_weights_of_sequences(rng, weight):
    y, p = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    w = rng.uniform(1, 2, weight)
    wide = np.broadcast_to(w.reshape(2, -1), (2, 3))
    expected = (((y - p) ** 2).mean(-1) * wide).sum() / wide.sum()
    assert metrics.MeanSquaredError()(y, p, w) == pytest.approx(expected, rel=1e-5)


def test_a_scalar_counts_once_for_every_row():
    metric = metrics.get(lambda y_true, y_pred: y_pred.max())
    assert metric.name == "lambda"
    parts = merged(metric, (Y[:1], P[:1]), (Y[1:], P[1:]))
    assert parts == pytest.approx((0.1 * 1 + 0.9 * 3) / 4)


@pytest.mark.parametrize("name", ["accuracy", "acc", "Accuracy", "ACC"])
@pytest.mark.parametrize(
    ("true", "pred", "cls"),
    [
        ((8,), (8, 1), metrics.BinaryAccuracy),
        ((8, 1), (8, 1), metrics.BinaryAccuracy),
        ((8, 5), (8, 5, 1), metrics.BinaryAccuracy),
        ((8,), (8,), metrics.BinaryAccuracy),
        ((8,), (8, 3), metrics.SparseCategoricalAccuracy),
        ((8, 1), (8, 3), metrics.SparseCategoricalAccuracy),
        ((8, 5), (8, 5, 3), metrics.SparseCategoricalAccuracy),
        ((8, 3), (8, 3), metrics.CategoricalAccuracy),
        ((8, 5, 3), (8, 5, 3), metrics.CategoricalAccuracy),
    ],
)
def test_the_accuracy_rule(name, true, pred, cls):
    bound = metrics.for_shapes(metrics.get(name), true, pred)
    assert type(bound) is cls and bound.name == name


@pytest.mark.parametrize(
    ("true", "pred", "cls"),
    [
        ((8,), (8, 1), metrics.BinaryCrossentropy),
        ((8,), (8, 3), metrics.SparseCategoricalCrossentropy),
        ((8, 3), (8, 3), metrics.CategoricalCrossentropy),
    ],
)
@pytest.mark.parametrize("name", ["crossentropy", "ce"])
def test_crossentropy_by_shape(name, true, pred, cls):
    bound = metrics.for_shapes(metrics.get(name), true, pred)
    assert type(bound) is cls and bound.name == name


@pytest.mark.parametrize(
    ("cls", "y", "p", "expected"),
    [
        (metrics.BinaryAccuracy, [[1.0], [0.0], [1.0]], [[0.5], [0.5], [0.6]], 2 / 3),  # 0.5 is not above 0.5
        (metrics.CategoricalAccuracy, [[0, 1.0], [1.0, 0]], [[0.2, 0.8], [0.5, 0.5]], 1.0),  # ties: the first
        (metrics.SparseCategoricalAccuracy, [1, -1, 2], [[0.2, 0.8], [0.9, 0.1], [0.1, 0.9]], 1 / 3),
        (metrics.SparseCategoricalAccuracy, [[1], [0]], [[0.2, 0.8], [0.2, 0.8]], 1 / 2),
        (metrics.Accuracy, [[1.0], [2.0]], [[1.0], [2.5]], 1 / 2),
    ],
)
def test_accuracies(cls, y, p, expected):
    assert cls()(np.array(y), np.array(p)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("label", "k", "hit"),
    [(0, 1, 0), (1, 1, 1), (2, 2, 1), (0, 3, 0), (0, 4, 1), (3, 1, 0), (3, 2, 1), (-1, 4, 0), (4, 4, 0)],
)
def test_top_k(label, k, hit):
    """Labels out of range are misses; ties are hits."""
    pred = np.array([[0.1, 0.5, 0.2, 0.2]])
    assert metrics.SparseTopKCategoricalAccuracy(k=k)(np.array([label]), pred) == hit


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (metrics.Precision(), 1 / 2),
        (metrics.Recall(), 1 / 2),
        (metrics.Precision(thresholds=0.95), 0.0),  # nothing is predicted
        (metrics.Recall(thresholds=0.0), 1.0),
        (metrics.Recall(thresholds=[0.7, 0.3]), [1 / 2, 1.0]),
        (metrics.Precision(thresholds=[0.7, 0.3]), [1.0, 2 / 3]),
        (metrics.AUC(), 3 / 4),  # of four pairs, one is ordered wrongly
    ],
)
def test_thresholds(metric, expected):
    np.testing.assert_allclose(metric(Y, P), expected, atol=1e-6)


def test_a_prediction_at_a_threshold_is_not_above_it():
    assert metrics.Recall()(np.ones(2), np.array([0.5, np.nextafter(np.float32(0.5), 1, dtype=np.float32)])) == 0.5


def test_counts_stay_exact_over_a_long_epoch():
    """Sums are added up in float64: float32 would stop at 2**24."""
    metric = metrics.Recall()
    sums = jax.tree.map(lambda a: np.asarray(a, np.float64), metric.sums(jnp.asarray(Y), jnp.asarray(P)))
    long = jax.tree.map(lambda a: a * 2.0**24 + a, sums)
    assert metric.result(long) == metric(Y, P)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: metrics.get("acuracy"), ConfigError, r"Unknown metric 'acuracy'\. Did you mean 'accuracy'\?"),
        (lambda: metrics.get(None), ConfigError, "Expected a metric"),
        (lambda: metrics.get(7), ConfigError, "Expected a metric"),
        (lambda: metrics.Precision(thresholds=1.5), ConfigError, r"thresholds must lie in \[0, 1\]"),
        (lambda: metrics.AUC(num_thresholds=1), ConfigError, "num_thresholds must be greater than 1"),
        (lambda: metrics.AUC(thresholds=[2.0]), ConfigError, "thresholds must lie in"),
        (lambda: metrics.AUC(curve="roc"), ConfigError, "Did you mean 'ROC'"),
        (lambda: metrics.AUC(summation_method="trapezoid"), ConfigError, "Unknown summation_method"),
        (lambda: metrics.AUC()(np.ones((4, 2)), np.ones((4, 3))), DataError, "one by one"),
        (lambda: metrics.SparseCategoricalAccuracy()(np.ones((4, 2)), np.ones((4, 3))), DataError, "one label a pred"),
        (lambda: metrics.Metric()(Y, P), NotImplementedError, "must define sums"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("identifier", "cls", "name"),
    [
        ("mse", metrics.MeanSquaredError, "mse"),
        ("MSE", metrics.MeanSquaredError, "MSE"),
        ("mean_squared_error", metrics.MeanSquaredError, "mean_squared_error"),
        ("AUC", metrics.AUC, "auc"),
        ("auc", metrics.AUC, "auc"),
        (metrics.Recall, metrics.Recall, "recall"),
        (metrics.Recall(name="hits"), metrics.Recall, "hits"),
    ],
)
def test_get(identifier, cls, name):
    metric = metrics.get(identifier)
    assert type(metric) is cls and metric.name == name


def test_a_metric_of_ones_own():
    class Largest(metrics.Metric):
        def sums(self, y_true, y_pred, weight=None):
            return {"rows": jnp.float32(len(y_pred)), "above": (y_pred > 0.5).sum().astype(jnp.float32)}

        def result(self, sums):
            return float(sums["above"] / sums["rows"])

    assert metrics.get(Largest).name == "largest"
    assert merged(metrics.get(Largest), (Y[:1], P[:1]), (Y[1:], P[1:])) == 0.5

"""R2 by hand and far from zero, and correlations at the edges."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdist import metrics
from kdist.errors import ConfigError, DataError
from kdist.metrics.base import exact_sums


def r2(y, p, w):
    y, p, w = (np.asarray(a, np.float64) for a in (y, p, w))
    mean = (w[:, None] * y).sum(0) / w.sum()
    return 1 - (w[:, None] * (y - p) ** 2).sum(0) / (w[:, None] * (y - mean) ** 2).sum(0)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("mean", [0.0, 1.0, -777.0, 1e3, 1e4])
def test_targets_far_from_zero_keep_their_variance(rng, mean, weighted):
    """Eight shards added up in float32, four steps in float64.  Sums of y^2 in float32 lose all of it at 1e3."""
    y = rng.normal(mean, 1, (512, 2)).astype(np.float32)
    p = (y + rng.normal(0, 0.3, y.shape)).astype(np.float32)
    w = rng.uniform(0.1, 2, 512).astype(np.float32) if weighted else None
    metric = metrics.R2Score(class_aggregation=None)
    shards = [(y[i : i + 16], p[i : i + 16], None if w is None else w[i : i + 16]) for i in range(0, 512, 16)]
    sums = [metric.sums(*map(jnp.asarray, shard[:2]), shard[2]) for shard in shards]
    steps = [exact_sums(jax.tree.map(lambda *a: sum(a[1:], a[0]), *sums[i : i + 8])) for i in range(0, 32, 8)]
    found = metric.result(jax.tree.map(lambda *a: sum(a), *steps))
    np.testing.assert_allclose(found, r2(y, p, np.ones(512) if w is None else w), atol=2e-5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"class_aggregation": None}, [0.5, 0.0]),
        ({}, 0.25),
        ({"class_aggregation": "variance_weighted_average"}, 0.5),
    ],
    ids=repr,
)
def test_constant_targets_score_zero(arguments, expected):
    y, p = np.array([[1.0, 0.1], [3.0, 0.1]]), np.array([[2.0, 0.2], [3.0, 0.1]])
    np.testing.assert_allclose(metrics.R2Score(**arguments)(y, p), expected, atol=1e-6)


def test_a_score_that_cannot_be_adjusted():
    y, p = np.array([[1.0], [2.0], [4.0]]), np.array([[1.5], [2.0], [4.0]])
    plain = metrics.R2Score()(y, p)
    assert metrics.R2Score(num_regressors=1)(y, p) == pytest.approx(1 - (1 - plain) * 2 / 1)
    with pytest.warns(UserWarning, match="cannot adjust for 2 regressors with 3 elements"):
        assert metrics.R2Score(num_regressors=2)(y, p) == plain
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.R2Score(num_regressors=2)(y, p, np.zeros(3)) == 0.0


def test_a_constant_row_has_no_correlation():
    """Keras divides by 0, and the mean of the epoch is NaN from then on."""
    assert metrics.PearsonCorrelation()([[1.0, 1.0], [1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: metrics.R2Score(class_aggregation="uniform"), ConfigError, "Did you mean 'uniform_average'"),
        (lambda: metrics.R2Score(num_regressors=-1), ConfigError, "num_regressors must be 0 or more"),
        (lambda: metrics.R2Score()(np.ones(3), np.ones(3)), DataError, r"of one shape \(rows, outputs\)"),
        (lambda: metrics.PearsonCorrelation(axis=0), ConfigError, "axis=0 is the axis of the rows"),
        (lambda: metrics.PearsonCorrelation()(np.ones((4, 1)), np.ones((4, 1))), DataError, "one value a row"),
        (lambda: metrics.ConcordanceCorrelation()(np.ones(4), np.ones(4)), DataError, "one value a row"),
        (lambda: metrics.PearsonCorrelation()(np.ones((4, 2)), np.ones((4, 3))), DataError, "the same shape"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()

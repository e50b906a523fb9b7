"""Weighted means of functions, weights of sequences, and metrics of one's own."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdist import losses, metrics
from kdist.errors import ConfigError
from kdist.metrics.base import exact_sums

Y = np.array([0.0, 1.0, 1.0, 0.0], np.float32)
P = np.array([0.1, 0.4, 0.9, 0.6], np.float32)
W = np.array([1.0, 2.0, 3.0, 4.0], np.float32)


def in_two_parts(metric):
    first, second = (
        exact_sums(metric.sums(jnp.asarray(Y[part]), jnp.asarray(P[part]))) for part in (slice(1), slice(1, 4))
    )
    if isinstance(first, dict):
        return metric.result({k: first[k] + second[k] for k in first})
    return metric.result(tuple(a + b for a, b in zip(first, second, strict=True)))


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
    assert in_two_parts(metric) == pytest.approx((0.1 * 1 + 0.9 * 3) / 4)


def test_a_metric_of_ones_own():
    class Largest(metrics.Metric):
        def sums(self, y_true, y_pred, weight=None):
            return {"rows": jnp.float32(len(y_pred)), "above": (y_pred > 0.5).sum().astype(jnp.float32)}

        def result(self, sums):
            return float(sums["above"] / sums["rows"])

    assert metrics.get(Largest).name == "largest"
    assert in_two_parts(metrics.get(Largest)) == 0.5


def test_a_metric_without_sums_says_so():
    with pytest.raises(NotImplementedError, match="must define sums"):
        metrics.Metric()(Y, P)


def test_mean_and_sum_of_a_function():
    """A number for all rows is their mean, or their sum."""
    off = metrics.Mean("off", fn=lambda y_true, y_pred: abs(y_true - y_pred))
    assert off(Y, P, W) == pytest.approx((abs(Y - P) * W).sum() / W.sum())
    assert metrics.Sum(fn=lambda y_true, y_pred: y_pred)(Y, P, W) == pytest.approx((P * W).sum())
    assert metrics.Sum(fn=lambda y_true, y_pred: y_pred.sum())(Y, P) == pytest.approx(P.sum())
    assert metrics.Mean(fn=lambda y_true, y_pred: y_pred.max())(Y, P, W) == pytest.approx(0.9)


@pytest.mark.parametrize("name", ["mean", "Mean", "sum", "Sum", metrics.Mean, metrics.Sum()], ids=repr)
def test_mean_and_sum_need_a_function_in_compile(name):
    with pytest.raises(ConfigError, match=r"nothing to reduce.*kdist\.metrics\.(Mean|Sum)\(fn="):
        metrics.get(name)


def test_the_mean_of_a_loss_has_no_regard_for_its_reduction():
    y, p = Y[:, None], P[:, None]
    for reduction in losses.REDUCTIONS:
        loss = losses.Huber(delta=0.3, reduction=reduction)
        assert metrics.LossMean(loss)(y, p, W) == pytest.approx((losses.huber(y, p, 0.3) * W).sum() / W.sum())
    assert metrics.get(losses.Huber()).name == "huber_loss"
    assert metrics.get(losses.Huber).direction == "down"


def test_a_loss_of_a_whole_batch_is_no_metric():
    with pytest.raises(ConfigError, match="depends on the other rows"):
        metrics.get(losses.Circle())
    assert "circle" not in metrics.names()

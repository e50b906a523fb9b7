"""Counts, precision and recall by hand, and arguments that make no sense."""

import numpy as np
import pytest

from kdist import metrics
from kdist.errors import ConfigError, DataError

Y = np.array([0.0, 1.0, 1.0, 0.0], np.float32)
P = np.array([0.1, 0.4, 0.9, 0.6], np.float32)
W = np.array([1.0, 2.0, 3.0, 4.0], np.float32)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (metrics.Precision(), 1 / 2),
        (metrics.Recall(), 1 / 2),
        (metrics.Precision(thresholds=0.95), 0.0),  # nothing is predicted
        (metrics.Recall(thresholds=0.0), 1.0),
        (metrics.Recall(thresholds=[0.3]), 1.0),  # one threshold: a float, as in Keras
        (metrics.Recall(thresholds=[0.7, 0.3]), [1 / 2, 1.0]),
        (metrics.Precision(thresholds=[0.7, 0.3]), [1.0, 2 / 3]),
        (metrics.TruePositives(), 1.0),
        (metrics.FalsePositives(), 1.0),
        (metrics.TrueNegatives(), 1.0),
        (metrics.FalseNegatives(), 1.0),
        (metrics.FalseNegatives(thresholds=[0.95, 0.3]), [2.0, 0.0]),
    ],
    ids=repr,
)
def test_by_hand(metric, expected):
    np.testing.assert_allclose(metric(Y, P), expected, atol=1e-6)
    assert np.shape(metric(Y, P)) == np.shape(expected)


def test_weights():
    counts = [metrics.TruePositives, metrics.FalsePositives, metrics.TrueNegatives, metrics.FalseNegatives]
    assert [cls()(Y, P, W) for cls in counts] == [3.0, 4.0, 1.0, 2.0]
    assert metrics.Precision()(Y, P, W) == pytest.approx(3 / 7)


def test_a_weight_a_row_counts_for_every_output():
    wide = np.repeat(W[:2, None], 2, 1)
    y, p = Y.reshape(2, 2), P.reshape(2, 2)
    assert metrics.Recall()(y, p, W[:2]) == metrics.Recall()(y, p, wide)


def test_a_prediction_at_a_threshold_is_not_above_it():
    assert metrics.Recall()(np.ones(2), np.array([0.5, np.nextafter(np.float32(0.5), 1, dtype=np.float32)])) == 0.5


def test_top_k_replaces_the_threshold():
    y, p = np.array([[1, 0, 1]]), np.array([[0.1, 0.2, 0.05]])
    assert metrics.Precision(top_k=2)(y, p) == 0.5
    assert metrics.Recall(top_k=2)(y, p) == 0.5
    assert metrics.Recall(top_k=2, class_id=0)(y, p) == 1.0
    assert metrics.Recall(top_k=2, class_id=2)(y, p) == 0.0


@pytest.mark.parametrize("thresholds", [1.5, [-0.1], [0.2, float("nan")], [], "half", [None]], ids=repr)
@pytest.mark.parametrize("cls", [metrics.Precision, metrics.TruePositives])
def test_thresholds_are_in_the_unit_interval(cls, thresholds):
    with pytest.raises(ConfigError, match=r"thresholds must lie in \[0, 1\]"):
        cls(thresholds=thresholds)


@pytest.mark.parametrize(
    ("metric", "true", "pred", "message"),
    [
        (metrics.Precision(), (4, 2), (4, 3), "one by one"),
        (metrics.Precision(class_id=3), (4, 3), (4, 3), "class_id=3"),
        (metrics.Recall(class_id=0), (4,), (4,), "class_id=0"),
        (metrics.Recall(top_k=4), (4, 3), (4, 3), "top_k=4"),
        (metrics.RecallAtPrecision(0.5, class_id=7), (4, 3), (4, 3), "class_id=7"),
    ],
    ids=repr,
)
def test_shapes_that_do_not_fit(metric, true, pred, message):
    with pytest.raises(DataError, match=message):
        metric(np.ones(true), np.ones(pred))

"""Areas and best rates by hand, and arguments that make no sense."""

import numpy as np
import pytest

from kdist import metrics
from kdist.errors import ConfigError, DataError

Y = np.array([0.0, 1.0, 1.0, 0.0], np.float32)
P = np.array([0.1, 0.4, 0.9, 0.6], np.float32)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (metrics.AUC(), 3 / 4),  # of four pairs, one is ordered wrongly
        (metrics.AUC(curve="roc", summation_method="Majoring"), 3 / 4),
        (metrics.AUC(thresholds=[0.5]), 1 / 2),
        (metrics.SensitivityAtSpecificity(0.5), 1.0),
        (metrics.SensitivityAtSpecificity(1.0), 1 / 2),
        (metrics.SpecificityAtSensitivity(1.0), 1 / 2),
        (metrics.PrecisionAtRecall(1.0), 2 / 3),
        (metrics.PrecisionAtRecall(0.5), 1.0),
        (metrics.RecallAtPrecision(1.0), 1 / 2),
        (metrics.RecallAtPrecision(0.6), 1.0),
        (metrics.RecallAtPrecision(0.6, num_thresholds=1), 0.0),  # at 0.5 the precision is 1/2
    ],
)
def test_by_hand(metric, expected):
    assert metric(Y, P) == pytest.approx(expected, abs=1e-6)


def test_area_under_the_roc_curve_is_the_share_of_pairs_in_order(rng):
    y, p = rng.integers(0, 2, 200), rng.uniform(size=200).round(2)
    above, below = p[y == 1][:, None], p[y == 0][None]
    expected = (above > below).mean() + (above == below).mean() / 2
    assert metrics.AUC(num_thresholds=1001)(y, p) == pytest.approx(expected, abs=1e-6)


def test_areas_of_labels(rng):
    y, p = rng.integers(0, 2, (50, 3)), rng.uniform(size=(50, 3))
    each = [metrics.AUC()(y[:, i], p[:, i]) for i in range(3)]
    assert metrics.AUC(multi_label=True)(y, p) == pytest.approx(np.mean(each))
    weights = [1.0, 0.0, 3.0]
    found = metrics.AUC(multi_label=True, label_weights=weights)(y, p)
    assert found == pytest.approx(np.average(each, weights=weights))


def test_a_rate_that_was_rounded_reaches_its_value():
    """Ten weights of float32 0.1: seven of them are 0.7 of all, give or take a bit."""
    y, p = np.ones(10), np.array([0.9] * 7 + [0.1] * 3)
    metric = metrics.PrecisionAtRecall(0.7, num_thresholds=1)
    assert metric(y, p, np.full(10, 0.1, np.float32)) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: metrics.AUC(num_thresholds=1), "num_thresholds must be greater than 1"),
        (lambda: metrics.AUC(thresholds=[2.0]), "thresholds must lie in"),
        (lambda: metrics.AUC(curve="PRGAI"), "Did you mean 'PRGAIN'"),
        (lambda: metrics.AUC(summation_method="trapezoid"), "Unknown summation_method"),
        (lambda: metrics.AUC(num_labels=3), "num_labels is for multi_label=True"),
        (lambda: metrics.SensitivityAtSpecificity(1.1), r"specificity must lie in \[0, 1\]"),
        (lambda: metrics.SpecificityAtSensitivity(-1), "sensitivity must lie in"),
        (lambda: metrics.PrecisionAtRecall(2), "recall must lie in"),
        (lambda: metrics.RecallAtPrecision(2), "precision must lie in"),
        (lambda: metrics.RecallAtPrecision(0.5, num_thresholds=0), "num_thresholds must be at least 1"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (metrics.AUC(multi_label=True, num_labels=3), r"takes predictions \(rows, 3\)"),
        (metrics.AUC(label_weights=[1.0, 2.0, 3.0]), "label_weights of shape"),
        (metrics.AUC(multi_label=True, label_weights=[1.0]), "label_weights of shape"),
    ],
)
def test_shapes_that_do_not_fit(metric, message):
    with pytest.raises(DataError, match=message):
        metric(np.ones((4, 2)), np.ones((4, 2)))

"""Intersection over union by hand: weights that are fractions, classes that are absent, axes, and bad arguments."""

import numpy as np
import pytest

from kdist import metrics
from kdist.errors import ConfigError, DataError

Y, P = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
SCORES = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])


@pytest.mark.parametrize(
    ("metric", "pred", "weight", "expected"),
    [
        (metrics.IoU(2, [0]), P, None, 1 / 3),
        (metrics.IoU(2, [0]), P, [0.5, 1.5, 0.5, 1.0], 0.5 / 2.5),
        (metrics.IoU(3, [0, 2]), P, None, 1 / 3),  # class 2 is nowhere
        (metrics.IoU(3, [2]), P, None, 0.0),
        (metrics.MeanIoU(2, ignore_class=0), P, None, 1 / 4),  # 0 is predicted once where 1 is
        (metrics.MeanIoU(1), P, None, 1.0),  # labels beyond the classes do not count
        (metrics.MeanIoU(2, sparse_y_pred=False), SCORES, None, 1 / 3),
        (metrics.BinaryIoU(threshold=0.8), SCORES[:, 1], None, 1 / 8),  # 0.8 is a 1, and a wrong one
    ],
    ids=repr,
)
def test_by_hand(metric, pred, weight, expected):
    assert metric(Y, pred, weight) == pytest.approx(expected)


def test_classes_along_another_axis(rng):
    """Channels first: rows x classes x height x width.  Keras fails here."""
    y, scores = rng.integers(0, 3, (4, 5, 5)), rng.normal(size=(4, 3, 5, 5))
    first = metrics.MeanIoU(3, sparse_y_pred=False, axis=1)(y, scores)
    assert first == metrics.MeanIoU(3)(y, scores.argmax(1)) > 0


def test_weights_of_rows_count_for_every_pixel(rng):
    y, p, w = rng.integers(0, 3, (4, 5, 5)), rng.integers(0, 3, (4, 5, 5)), rng.uniform(size=4)
    every = np.broadcast_to(w[:, None, None], y.shape)
    assert metrics.MeanIoU(3)(y, p, w) == pytest.approx(metrics.MeanIoU(3)(y, p, every))


@pytest.mark.parametrize("ids", [[2], [-1], []], ids=str)
def test_target_classes_are_classes(ids):
    with pytest.raises(ConfigError, match=r"classes in 0 \.\. 1"):
        metrics.IoU(2, ids)


def test_scores_in_the_place_of_labels():
    with pytest.raises(DataError, match="sparse_y_pred=False"):
        metrics.MeanIoU(2)(Y, SCORES)

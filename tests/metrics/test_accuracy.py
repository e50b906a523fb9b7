"""Accuracies at the edges: ties, labels out of range, and labels that do not fit."""

import numpy as np
import pytest

from kdist import metrics
from kdist.errors import DataError


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


@pytest.mark.parametrize(("label", "k", "hit"), [(3, 1, 1), (0, 1, 0), (0, 2, 1), (2, 2, 0), (2, 9, 1), (7, 9, 0)])
def test_top_k_of_sorted_ids(label, k, hit):
    metric = metrics.SparseTopKCategoricalAccuracy(k=k, from_sorted_ids=True)
    assert metric(np.array([label]), np.array([[3, 0, 1, 2]])) == hit


def test_labels_that_do_not_fit():
    with pytest.raises(DataError, match="one label a pred"):
        metrics.SparseCategoricalAccuracy()(np.ones((4, 2)), np.ones((4, 3)))

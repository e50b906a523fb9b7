"""Accuracies: how often predictions hit their targets.

Shapes: targets ``[b, ...]``, predictions ``[b, ...]`` or ``[b, ..., C]`` of C classes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kdist.errors import DataError
from kdist.metrics.base import MeanMetric


def binary_accuracy(y_true: jax.Array, y_pred: jax.Array, threshold: float = 0.5) -> jax.Array:
    """How often ``(p > threshold) == y``, mean over the last axis.

    Args:
        y_true: 0 or 1, ``[b, ...]``.
        y_pred: Probabilities of the same shape.
        threshold: What a prediction must exceed to be a 1; 0.5 by default.

    Example:
        >>> binary_accuracy(jnp.array([[0.0, 1.0]]), jnp.array([[0.6, 0.7]])).tolist()
        [0.5]
    """
    hits = ((y_pred > threshold).astype(jnp.float32) == y_true.astype(jnp.float32)).astype(jnp.float32)
    return hits.mean(-1) if hits.ndim > 1 else hits


def categorical_accuracy(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """Whether the largest prediction is where the largest target is.

    Args:
        y_true: One-hot labels ``[b, ..., C]``.
        y_pred: Probabilities, logits or other scores of the same shape.

    Example:
        >>> categorical_accuracy(jnp.array([[0, 1], [0, 1]]), jnp.array([[0.1, 0.9], [0.8, 0.2]])).tolist()
        [1.0, 0.0]
    """
    return (y_true.argmax(-1) == y_pred.argmax(-1)).astype(jnp.float32)


def sparse_categorical_accuracy(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """Whether the largest prediction is at the label.

    Args:
        y_true: Integer labels ``[b, ...]`` or ``[b, ..., 1]``.
        y_pred: Probabilities, logits or other scores ``[b, ..., C]``.

    Raises:
        DataError: There is not one label a prediction.

    Example:
        >>> sparse_categorical_accuracy(jnp.array([1, 1]), jnp.array([[0.1, 0.9], [0.8, 0.2]])).tolist()
        [1.0, 0.0]
    """
    return (_labels(y_true, y_pred) == y_pred.argmax(-1)).astype(jnp.float32)


def top_k_categorical_accuracy(y_true: jax.Array, y_pred: jax.Array, k: int = 5) -> jax.Array:
    """Whether fewer than `k` predictions are larger than that of the largest target.

    Args:
        y_true: One-hot labels ``[b, ..., C]``.
        y_pred: Scores of the same shape.
        k: How many predictions may hit; 5 by default.

    Example:
        >>> top_k_categorical_accuracy(jnp.array([[0, 0, 1]]), jnp.array([[0.5, 0.2, 0.3]]), k=2).tolist()
        [1.0]
    """
    return sparse_top_k_categorical_accuracy(y_true.argmax(-1), y_pred, k)


def sparse_top_k_categorical_accuracy(
    y_true: jax.Array, y_pred: jax.Array, k: int = 5, from_sorted_ids: bool = False
) -> jax.Array:
    """Whether fewer than `k` predictions are larger than that of the label; ties are hits.

    Args:
        y_true: Integer labels ``[b, ...]`` or ``[b, ..., 1]``.
        y_pred: Scores ``[b, ..., C]``; or class ids, best first, where `from_sorted_ids` is set.
        k: How many predictions may hit; 5 by default.
        from_sorted_ids: Whether predictions are the ids of classes, and a hit is the label among the first `k`; False
            by default.

    Raises:
        DataError: There is not one label a prediction.

    Example:
        >>> sparse_top_k_categorical_accuracy(jnp.array([2, 1]), jnp.array([[0.5, 0.2, 0.3]] * 2), k=2).tolist()
        [1.0, 0.0]
    """
    labels = _labels(y_true, y_pred)
    if from_sorted_ids:
        return (labels[..., None] == y_pred[..., :k]).any(-1).astype(jnp.float32)
    score = jnp.take_along_axis(y_pred, jnp.clip(labels, 0, y_pred.shape[-1] - 1)[..., None], axis=-1)
    known = (labels >= 0) & (labels < y_pred.shape[-1])
    return (((y_pred > score).sum(-1) < k) & known).astype(jnp.float32)


def _labels(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    same_rank = y_true.ndim == y_pred.ndim and y_true.shape[-1] == 1
    labels = (y_true[..., 0] if same_rank else y_true).astype(jnp.int32)
    if labels.shape != y_pred.shape[:-1]:
        raise DataError(
            f"Integer labels of shape {y_true.shape} do not fit predictions of shape {y_pred.shape}: "
            "expected one label a prediction."
        )
    return labels


class _HitRate(MeanMetric):
    """The mean of hits, which more is better of."""

    direction = "up"

    def __init__(self, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(None, name, dtype)


class Accuracy(_HitRate):
    """How often predictions equal targets exactly.

    Args:
        name, dtype: As in `Metric`.

    Example:
        >>> Accuracy()([[1], [2]], [[1], [3]])
        0.5
    """

    @staticmethod
    def fn(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
        """1 where equal."""
        return (y_true == y_pred).astype(jnp.float32)


class BinaryAccuracy(_HitRate):
    """See `binary_accuracy`.

    Args:
        name, dtype: As in `Metric`.
        threshold: What a prediction must exceed to be a 1; 0.5 by default.

    Example:
        >>> BinaryAccuracy(threshold=0.3)([[0], [1]], [[0.2], [0.4]])
        1.0
    """

    fn = staticmethod(binary_accuracy)

    def __init__(self, name: str | None = None, dtype: Any = None, threshold: float = 0.5) -> None:
        super().__init__(name, dtype)
        self.arguments = {"threshold": threshold}


class CategoricalAccuracy(_HitRate):
    """See `categorical_accuracy`.

    Args:
        name, dtype: As in `Metric`.

    Example:
        >>> CategoricalAccuracy()([[0, 1], [0, 1]], [[0.1, 0.9], [0.8, 0.2]])
        0.5
    """

    fn = staticmethod(categorical_accuracy)


class SparseCategoricalAccuracy(_HitRate):
    """See `sparse_categorical_accuracy`.

    Args:
        name, dtype: As in `Metric`.

    Example:
        >>> SparseCategoricalAccuracy()([1, 1], [[0.1, 0.9], [0.8, 0.2]])
        0.5
    """

    fn = staticmethod(sparse_categorical_accuracy)


class TopKCategoricalAccuracy(_HitRate):
    """See `top_k_categorical_accuracy`.

    Args:
        k: How many predictions may hit; 5 by default.
        name, dtype: As in `Metric`.

    Example:
        >>> TopKCategoricalAccuracy(k=2)([[0, 0, 1], [0, 1, 0]], [[0.5, 0.2, 0.3]] * 2)
        0.5
    """

    fn = staticmethod(top_k_categorical_accuracy)

    def __init__(self, k: int = 5, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name, dtype)
        self.arguments = {"k": k}


class SparseTopKCategoricalAccuracy(_HitRate):
    """See `sparse_top_k_categorical_accuracy`.

    Args:
        k: How many predictions may hit; 5 by default.
        name, dtype: As in `Metric`.
        from_sorted_ids: Whether predictions are the ids of classes, best first, and not their scores; False by default.

    Example:
        >>> SparseTopKCategoricalAccuracy(k=2)([2, 1], [[0.5, 0.2, 0.3]] * 2)
        0.5
    """

    fn = staticmethod(sparse_top_k_categorical_accuracy)

    def __init__(self, k: int = 5, name: str | None = None, dtype: Any = None, from_sorted_ids: bool = False) -> None:
        super().__init__(name, dtype)
        self.arguments = {"k": k, "from_sorted_ids": from_sorted_ids}

"""Accuracies: how often predictions hit their targets.

Shapes: targets ``[b, ...]``, predictions ``[b, ...]`` or ``[b, ..., C]`` of C classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kdist.errors import DataError
from kdist.metrics.base import MeanMetric


def binary_accuracy(y_true: jax.Array, y_pred: jax.Array, threshold: float = 0.5) -> jax.Array:
    """How often ``(p > threshold) == y``, mean over the last axis."""
    hits = ((y_pred > threshold).astype(jnp.float32) == y_true.astype(jnp.float32)).astype(jnp.float32)
    return hits.mean(-1) if hits.ndim > 1 else hits


def categorical_accuracy(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """Whether the largest prediction is where the largest target is."""
    return (y_true.argmax(-1) == y_pred.argmax(-1)).astype(jnp.float32)


def sparse_categorical_accuracy(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """Whether the largest prediction is at the label."""
    return (_labels(y_true, y_pred) == y_pred.argmax(-1)).astype(jnp.float32)


def top_k_categorical_accuracy(y_true: jax.Array, y_pred: jax.Array, k: int = 5) -> jax.Array:
    """Whether fewer than `k` predictions are larger than that of the largest target."""
    return sparse_top_k_categorical_accuracy(y_true.argmax(-1), y_pred, k)


def sparse_top_k_categorical_accuracy(y_true: jax.Array, y_pred: jax.Array, k: int = 5) -> jax.Array:
    """Whether fewer than `k` predictions are larger than that of the label; ties are hits."""
    labels = _labels(y_true, y_pred)
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

    def __init__(self, name=None, dtype=None, **arguments):
        super().__init__(None, name, dtype, **arguments)


class Accuracy(_HitRate):
    """How often predictions equal targets exactly."""

    @staticmethod
    def fn(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
        """1 where equal."""
        return (y_true == y_pred).astype(jnp.float32)


class BinaryAccuracy(_HitRate):
    """See `binary_accuracy`."""

    fn = staticmethod(binary_accuracy)

    def __init__(self, name=None, dtype=None, threshold=0.5):
        super().__init__(name, dtype, threshold=threshold)


class CategoricalAccuracy(_HitRate):
    """See `categorical_accuracy`."""

    fn = staticmethod(categorical_accuracy)


class SparseCategoricalAccuracy(_HitRate):
    """See `sparse_categorical_accuracy`."""

    fn = staticmethod(sparse_categorical_accuracy)


class TopKCategoricalAccuracy(_HitRate):
    """See `top_k_categorical_accuracy`."""

    fn = staticmethod(top_k_categorical_accuracy)

    def __init__(self, k=5, name=None, dtype=None):
        super().__init__(name, dtype, k=k)


class SparseTopKCategoricalAccuracy(_HitRate):
    """See `sparse_top_k_categorical_accuracy`."""

    fn = staticmethod(sparse_top_k_categorical_accuracy)

    def __init__(self, k=5, name=None, dtype=None):
        super().__init__(name, dtype, k=k)

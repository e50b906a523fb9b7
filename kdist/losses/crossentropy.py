"""Cross-entropies, of probabilities or logits, with distributions or integer labels as targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from kdist.errors import DataError
from kdist.losses.base import EPSILON, Formula, mismatch, require_same_shape


def binary_crossentropy(
    y_true: jax.Array, y_pred: jax.Array, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> jax.Array:
    """``-(y log p + (1 - y) log(1 - p))``, mean over `axis`; probabilities are clipped, logits are not."""
    require_same_shape(y_true, y_pred)
    y_true = y_true * (1.0 - label_smoothing) + 0.5 * label_smoothing
    if from_logits:
        values = optax.losses.sigmoid_binary_cross_entropy(y_pred, y_true)
    else:
        p = jnp.clip(y_pred, EPSILON, 1.0 - EPSILON)
        values = -(y_true * jnp.log(p) + (1.0 - y_true) * jnp.log1p(-p))
    return values.mean(axis) if values.ndim > 1 else values


def categorical_crossentropy(
    y_true: jax.Array, y_pred: jax.Array, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> jax.Array:
    """``-sum(y log p)`` over the classes; probabilities are renormalised and clipped, logits are not."""
    require_same_shape(y_true, y_pred)
    y_true = y_true * (1.0 - label_smoothing) + label_smoothing / y_pred.shape[axis]
    if from_logits:
        return optax.losses.softmax_cross_entropy(y_pred, y_true, axis=axis)
    return -(y_true * jnp.log(_probabilities(y_pred, axis))).sum(axis)


def sparse_categorical_crossentropy(
    y_true: jax.Array,
    y_pred: jax.Array,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
) -> jax.Array:
    """``-log p[y]`` for integer labels; labels outside 0 .. C-1 (and `ignore_class`) have loss 0."""
    y_pred = jnp.moveaxis(y_pred, axis, -1)
    labels = _labels(y_true, y_pred.ndim)
    if labels.shape != y_pred.shape[:-1]:
        expected = "one integer label a prediction (for one-hot targets use 'categorical_crossentropy')"
        raise DataError(mismatch(y_true, y_pred, expected))
    known = (labels >= 0) & (labels < y_pred.shape[-1])
    if ignore_class is not None:
        known &= labels != ignore_class
    # The prediction at the label by a sum over a mask, which XLA fuses: picking it would make the gradient a scatter.
    at_label = jnp.arange(y_pred.shape[-1]) == labels[..., None]
    picked = jnp.where(at_label, y_pred, 0.0).sum(-1)
    if from_logits:
        values = jax.nn.logsumexp(y_pred, axis=-1) - picked
    else:
        values = -jnp.log(jnp.clip(picked / y_pred.sum(-1), EPSILON, 1.0 - EPSILON))
    return jnp.where(known, values, 0.0)


def _probabilities(y_pred: jax.Array, axis: int) -> jax.Array:
    return jnp.clip(y_pred / y_pred.sum(axis, keepdims=True), EPSILON, 1.0 - EPSILON)


def _labels(y_true: jax.Array, pred_rank: int) -> jax.Array:
    """Integer labels, without the last axis of 1 that ``(b, 1)`` targets have."""
    y_true = y_true[..., 0] if y_true.ndim == pred_rank and y_true.shape[-1] == 1 else y_true
    return y_true.astype(jnp.int32)


class _Smoothed(Formula):
    """Cross-entropies over targets that are distributions."""

    def __init__(
        self,
        from_logits=False,
        label_smoothing=0.0,
        axis=-1,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction, name, dtype, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis)


class BinaryCrossentropy(_Smoothed):
    """See `binary_crossentropy`."""

    fn = staticmethod(binary_crossentropy)


class CategoricalCrossentropy(_Smoothed):
    """See `categorical_crossentropy`."""

    fn = staticmethod(categorical_crossentropy)


class SparseCategoricalCrossentropy(Formula):
    """See `sparse_categorical_crossentropy`.

    With `ignore_class`, positions of that label count neither in the sum nor in the denominator.
    """

    fn = staticmethod(sparse_categorical_crossentropy)
    keeps_targets = True
    class_axis = -1

    def __init__(
        self,
        from_logits=False,
        ignore_class=None,
        axis=-1,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction, name, dtype, from_logits=from_logits, ignore_class=ignore_class, axis=axis)
        self.class_axis = axis
        self.ignore_class = ignore_class

    def mask(self, y_true: jax.Array, y_pred: jax.Array) -> jax.Array | None:
        """Everything but `ignore_class`."""
        if self.ignore_class is None:
            return None
        return _labels(y_true, y_pred.ndim) != self.ignore_class

"""Cross-entropies, of probabilities or logits, with distributions or integer labels as targets."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kdist.errors import DataError
from kdist.losses.base import EPSILON, Formula, mean_over
from kdist.losses.shapes import class_indices, mismatch, require_axis, require_same_shape


def binary_crossentropy(
    y_true: jax.Array, y_pred: jax.Array, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> jax.Array:
    """``-(y log p + (1 - y) log(1 - p))``, mean over `axis`; probabilities are clipped, logits are not.

    Args:
        y_true: 0 or 1, or probabilities, ``[b, ...]``.
        y_pred: Probabilities, or logits, of the same shape.
        from_logits: Whether predictions are logits; False by default.
        label_smoothing: How far targets are moved towards 1/2: ``y (1 - s) + s / 2``; 0.0 by default.
        axis: The axis that is averaged over; -1 by default.

    Raises:
        DataError: The shapes differ.

    Example:
        >>> print(binary_crossentropy(jnp.array([[1.0, 0.0]]), jnp.array([[0.5, 0.5]])).round(4))
        [0.6931]
    """
    y_true = smoothed_bits(y_true, y_pred, label_smoothing)
    if from_logits:
        values = optax.losses.sigmoid_binary_cross_entropy(y_pred, y_true)
    else:
        values = surprise_of_bits(y_true, y_pred)
    return mean_over(values, axis)


def categorical_crossentropy(
    y_true: jax.Array, y_pred: jax.Array, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> jax.Array:
    """``-sum(y log p)`` over the classes; probabilities are renormalised and clipped, logits are not.

    Args:
        y_true: Distributions over the classes, such as one-hot labels, ``[b, ..., C]``.
        y_pred: Probabilities, or logits, of the same shape.
        from_logits: Whether predictions are logits; False by default.
        label_smoothing: How far targets are moved towards the even distribution: ``y (1 - s) + s / C``; 0.0 by default.
        axis: The axis of the classes; -1 by default.

    Raises:
        DataError: The shapes differ.
        ConfigError: `axis` is none that can hold classes.

    Example:
        >>> print(categorical_crossentropy(jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.5]])).round(4))
        [0.6931]
    """
    y_true = smoothed_classes(y_true, y_pred, label_smoothing, axis, "categorical_crossentropy")
    if from_logits:
        return optax.losses.softmax_cross_entropy(y_pred, y_true, axis=axis)
    return -(y_true * jnp.log(renormalised(y_pred, axis))).sum(axis)


def sparse_categorical_crossentropy(
    y_true: jax.Array,
    y_pred: jax.Array,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
) -> jax.Array:
    """``-log p[y]`` for integer labels; labels outside 0 .. C-1 (and `ignore_class`) have loss 0.

    Args:
        y_true: Labels ``[b, ...]``, or ``[b, ..., 1]``.
        y_pred: Probabilities, or logits, ``[b, ..., C]``.
        from_logits: Whether predictions are logits; probabilities are renormalised and clipped; False by default.
        ignore_class: A label that costs nothing; none by default.
        axis: The axis of the classes; -1 by default.

    Raises:
        DataError: There is not one label a prediction.

    Example:
        >>> y_pred = jnp.array([[0.5, 0.5], [0.25, 0.75]])
        >>> print(sparse_categorical_crossentropy(jnp.array([1, 0]), y_pred).round(4))
        [0.6931 1.3863]
    """
    labels, y_pred = labels_and_classes(y_true, y_pred, axis)
    known = (labels >= 0) & (labels < y_pred.shape[-1])
    if ignore_class is not None:
        known &= labels != ignore_class
    picked = at_labels(y_pred, labels)
    if from_logits:
        values = jax.nn.logsumexp(y_pred, axis=-1) - picked
    else:
        values = -jnp.log(jnp.clip(picked / y_pred.sum(-1), EPSILON, 1.0 - EPSILON))
    return jnp.where(known, values, 0.0)


class Smoothed(Formula):
    """Cross-entropies over targets that are distributions.

    Args:
        from_logits: Whether predictions are logits.
        label_smoothing: How far targets are moved towards the even distribution, from 0 to 1.
        axis: The axis of the classes.
        reduction, name, dtype: As in `Loss`.

    Raises:
        ConfigError: `axis` is none that can hold classes.
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        require_axis(axis)
        super().__init__(reduction, name, dtype)
        self.arguments = {"from_logits": from_logits, "label_smoothing": label_smoothing, "axis": axis}


class BinaryCrossentropy(Smoothed):
    """See `binary_crossentropy`.

    Args:
        from_logits: Whether predictions are logits, not probabilities; False by default.
        label_smoothing: How far targets are moved towards 1/2, from 0, the default, to 1.
        axis: The axis that is averaged over; -1 by default.
        reduction, name, dtype: As in `Loss`.

    Raises:
        ConfigError: `axis` is no axis within a row.

    Example:
        >>> round(float(BinaryCrossentropy(from_logits=True)([[1.0], [0.0]], [[2.0], [-2.0]])), 4)
        0.1269
    """

    fn = staticmethod(binary_crossentropy)


class CategoricalCrossentropy(Smoothed):
    """See `categorical_crossentropy`.

    Args:
        from_logits: Whether predictions are logits, not probabilities; False by default.
        label_smoothing: How far targets are moved towards the even distribution, from 0, the default, to 1.
        axis: The axis of the classes; -1 by default.
        reduction, name, dtype: As in `Loss`.

    Raises:
        ConfigError: `axis` is no axis within a row.

    Example:
        >>> round(float(CategoricalCrossentropy()([[0.0, 1.0]], [[0.5, 0.5]])), 4)
        0.6931
    """

    fn = staticmethod(categorical_crossentropy)


class SparseCategoricalCrossentropy(Formula):
    """See `sparse_categorical_crossentropy`.

    With `ignore_class`, positions of that label count neither in the sum nor in the denominator.

    Args:
        from_logits: Whether predictions are logits; False by default.
        ignore_class: A label that does not count; none by default.
        reduction: See `Loss`.
        axis: The axis of the classes; -1 by default.
        name: See `Loss`.
        dtype: See `Loss`.

    Raises:
        ConfigError: `axis` is none that can hold classes.

    Example:
        >>> loss = SparseCategoricalCrossentropy(ignore_class=-1)
        >>> round(float(loss([1, -1], [[0.5, 0.5], [0.9, 0.1]])), 4)
        0.6931
    """

    fn = staticmethod(sparse_categorical_crossentropy)
    keeps_targets = True
    compares_shapes = False

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        axis: int = -1,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        require_axis(axis)
        super().__init__(reduction, name, dtype)
        self.arguments = {"from_logits": from_logits, "ignore_class": ignore_class, "axis": axis}
        self.class_axis = axis
        self.ignore_class = ignore_class

    def mask(self, y_true: jax.Array, values: jax.Array) -> jax.Array | None:
        """Everything but `ignore_class`."""
        if self.ignore_class is None:
            return None
        return class_indices(y_true, values.ndim + 1, self.arguments["axis"]) != self.ignore_class


# What the cross-entropies share -------------------------------------------------------------------


def smoothed_bits(y_true: jax.Array, y_pred: jax.Array, label_smoothing: float) -> jax.Array:
    """Binary targets of the predictions' shape, moved towards 1/2."""
    require_same_shape(y_true, y_pred)
    return y_true * (1.0 - label_smoothing) + 0.5 * label_smoothing


def smoothed_classes(y_true: jax.Array, y_pred: jax.Array, label_smoothing: float, axis: int, name: str) -> jax.Array:
    """Distributions over classes of the predictions' shape, moved towards the even one."""
    require_axis(axis)
    require_same_shape(y_true, y_pred)
    classes = y_pred.shape[axis]
    if classes == 1:
        warnings.warn(
            f"The loss {name!r} compares distributions over classes, but the predictions, of shape {y_pred.shape}, "
            "have one class, whose probability is always 1. For a single output use 'binary_crossentropy'.",
            SyntaxWarning,
            stacklevel=3,
        )
    return y_true * (1.0 - label_smoothing) + label_smoothing / classes


def surprise_of_bits(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``-(y log p + (1 - y) log(1 - p))`` of clipped probabilities."""
    p = jnp.clip(y_pred, EPSILON, 1.0 - EPSILON)
    return -(y_true * jnp.log(p) + (1.0 - y_true) * jnp.log1p(-p))


def renormalised(y_pred: jax.Array, axis: int) -> jax.Array:
    """Probabilities that add up to 1 over the classes, clipped."""
    return jnp.clip(y_pred / y_pred.sum(axis, keepdims=True), EPSILON, 1.0 - EPSILON)


def labels_and_classes(y_true: jax.Array, y_pred: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Integer labels ``[b, ...]`` and predictions with their classes last, ``[b, ..., C]``."""
    labels, y_pred = class_indices(y_true, y_pred.ndim, axis), jnp.moveaxis(y_pred, axis, -1)
    if labels.shape != y_pred.shape[:-1]:
        expected = "one integer label a prediction (for one-hot targets use 'categorical_crossentropy')"
        raise DataError(mismatch(y_true, y_pred, expected))
    return labels, y_pred


def at_labels(y_pred: jax.Array, labels: jax.Array) -> jax.Array:
    """The prediction at each label, 0 at labels that are no class."""
    # By a sum over a mask, which XLA fuses: picking it would make the gradient a scatter.
    at_label = jnp.arange(y_pred.shape[-1]) == labels[..., None]
    return jnp.where(at_label, y_pred, 0.0).sum(-1)

"""Cross-entropies that weigh examples by how well they are predicted: focal losses, and one robust to wrong labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kdist.errors import ConfigError, DataError
from kdist.losses.base import Formula, mean_over
from kdist.losses.crossentropy import (
    at_labels,
    labels_and_classes,
    renormalised,
    smoothed_bits,
    smoothed_classes,
    surprise_of_bits,
)
from kdist.losses.shapes import require_axis


def binary_focal_crossentropy(
    y_true: jax.Array,
    y_pred: jax.Array,
    apply_class_balancing: bool = False,
    alpha: float = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> jax.Array:
    """Binary cross-entropy times ``(1 - q)^gamma``, q the probability given to the target (Lin et al., 2017).

    Args:
        y_true: 0 or 1, or probabilities, ``[b, ...]``.
        y_pred: Probabilities, or logits, of the same shape.
        apply_class_balancing: Whether targets 1 weigh `alpha` and targets 0 ``1 - alpha``; False by default.
        alpha: The weight of targets 1; 0.25 by default.
        gamma: How much less the examples weigh that are predicted well; 0 is the plain cross-entropy; 2.0 by default.
        from_logits: Whether predictions are logits, of which the sigmoid is taken and then clipped; False by default.
        label_smoothing: How far targets are moved towards 1/2: ``y (1 - s) + s / 2``; 0.0 by default.
        axis: The axis that is averaged over; -1 by default.

    Raises:
        DataError: The shapes differ.

    Example:
        >>> print(binary_focal_crossentropy(jnp.array([[1.0], [1.0]]), jnp.array([[0.5], [0.9]])).round(4))
        [0.1733 0.0011]
    """
    y_true = smoothed_bits(y_true, y_pred, label_smoothing)
    p = jax.nn.sigmoid(y_pred) if from_logits else y_pred
    at_target = y_true * p + (1.0 - y_true) * (1.0 - p)
    values = (1.0 - at_target) ** gamma * surprise_of_bits(y_true, p)
    if apply_class_balancing:
        values = values * (y_true * alpha + (1.0 - y_true) * (1.0 - alpha))
    return mean_over(values, axis)


def categorical_focal_crossentropy(
    y_true: jax.Array,
    y_pred: jax.Array,
    alpha: float | Sequence[float] = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> jax.Array:
    """``-sum(alpha (1 - p)^gamma y log p)`` over the classes (Lin et al., 2017).

    Args:
        y_true: Distributions over the classes, such as one-hot labels, ``[b, ..., C]``.
        y_pred: Probabilities, or logits, of the same shape; probabilities are renormalised and clipped.
        alpha: The weight of every class, or of each; 0.25 by default.
        gamma: How much less the examples weigh that are predicted well; 0 is the plain cross-entropy; 2.0 by default.
        from_logits: Whether predictions are logits, of which the softmax is taken and then clipped; False by default.
        label_smoothing: How far targets are moved towards the even distribution: ``y (1 - s) + s / C``; 0.0 by default.
        axis: The axis of the classes; -1 by default.

    Raises:
        DataError: The shapes differ, or `alpha` has another length than there are classes.
        ConfigError: `axis` is none that can hold classes.

    Example:
        >>> print(categorical_focal_crossentropy(jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.5]])).round(4))
        [0.0433]
    """
    y_true = smoothed_classes(y_true, y_pred, label_smoothing, axis, "categorical_focal_crossentropy")
    p = renormalised(jax.nn.softmax(y_pred, axis) if from_logits else y_pred, axis)
    y_true, p = (jnp.moveaxis(a, axis, -1) for a in (y_true, p))
    weight = jnp.asarray(alpha, p.dtype)
    if weight.ndim and weight.shape != p.shape[-1:]:
        raise DataError(f"alpha must be a number, or one for each of {p.shape[-1]} classes. Received: {alpha!r}.")
    return -(weight * (1.0 - p) ** gamma * y_true * jnp.log(p)).sum(-1)


def categorical_generalized_cross_entropy(y_true: jax.Array, y_pred: jax.Array, q: float) -> jax.Array:
    """``(1 - p[y]^q) / q`` for integer labels: between cross-entropy and absolute error (Zhang and Sabuncu, 2018).

    A label that is no class has probability 0.  Where p is 0 the slope, infinite, is taken as 0.

    Args:
        y_true: Labels ``[b, ...]``, or ``[b, ..., 1]``.
        y_pred: Probabilities ``[b, ..., C]``.
        q: Between 0, cross-entropy, and 1, absolute error, which wrong labels harm less.

    Raises:
        DataError: There is not one label a prediction.

    Example:
        >>> categorical_generalized_cross_entropy(jnp.array([1]), jnp.array([[0.75, 0.25]]), q=0.5).tolist()
        [1.0]
    """
    p = at_labels(y_pred, labels_and_classes(y_true, y_pred, -1)[0])
    powers = jnp.where(p > 0, jnp.where(p > 0, p, 1.0) ** q, 0.0)
    return (1.0 - powers) / q


class BinaryFocalCrossentropy(Formula):
    """See `binary_focal_crossentropy`.

    Args:
        apply_class_balancing: Whether targets 1 weigh `alpha` and targets 0 ``1 - alpha``; False by default.
        alpha: The weight of targets 1; 0.25 by default.
        gamma: How much less the examples weigh that are predicted well; 2.0 by default.
        from_logits: Whether predictions are logits; False by default.
        label_smoothing: How far targets are moved towards 1/2, from 0 to 1; 0.0 by default.
        axis: The axis that is averaged over; -1 by default.
        reduction, name, dtype: As in `Loss`.

    Raises:
        ConfigError: `axis` is no axis within a row.

    Example:
        >>> round(float(BinaryFocalCrossentropy(gamma=1)([[1.0], [0.0]], [[0.5], [0.5]])), 4)
        0.3466
    """

    fn = staticmethod(binary_focal_crossentropy)

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        require_axis(axis)
        super().__init__(reduction, name, dtype)
        self.arguments = {
            "apply_class_balancing": apply_class_balancing,
            "alpha": alpha,
            "gamma": gamma,
            "from_logits": from_logits,
            "label_smoothing": label_smoothing,
            "axis": axis,
        }


class CategoricalFocalCrossentropy(Formula):
    """See `categorical_focal_crossentropy`.

    Args:
        alpha: The weight of every class, or of each; 0.25 by default.
        gamma: How much less the examples weigh that are predicted well; 2.0 by default.
        from_logits: Whether predictions are logits; False by default.
        label_smoothing: How far targets are moved towards the even distribution, from 0 to 1; 0.0 by default.
        axis: The axis of the classes; -1 by default.
        reduction, name, dtype: As in `Loss`.

    Raises:
        ConfigError: `axis` is none that can hold classes.

    Example:
        >>> round(float(CategoricalFocalCrossentropy(alpha=[0.25, 1.0])([[0.0, 1.0]], [[0.5, 0.5]])), 4)
        0.1733
    """

    fn = staticmethod(categorical_focal_crossentropy)

    def __init__(
        self,
        alpha: float | Sequence[float] = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        require_axis(axis)
        super().__init__(reduction, name, dtype)
        self.arguments = {
            "alpha": alpha,
            "gamma": gamma,
            "from_logits": from_logits,
            "label_smoothing": label_smoothing,
            "axis": axis,
        }


class CategoricalGeneralizedCrossEntropy(Formula):
    """See `categorical_generalized_cross_entropy`.

    Args:
        q: Between 0, cross-entropy, and 1, absolute error, which wrong labels harm less; 0.5 by default.
        reduction, name, dtype: As in `Loss`.

    Raises:
        ConfigError: `q` is not between 0 and 1.

    Example:
        >>> float(CategoricalGeneralizedCrossEntropy(q=0.5)([1], [[0.75, 0.25]]))
        1.0
    """

    fn = staticmethod(categorical_generalized_cross_entropy)
    keeps_targets = True
    compares_shapes = False
    class_axis = -1

    def __init__(
        self,
        q: float = 0.5,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        if not 0 < q < 1:
            raise ConfigError(f"q must be between 0 and 1, neither of them. Received: {q!r}.")
        super().__init__(reduction, name, dtype)
        self.arguments = {"q": q}

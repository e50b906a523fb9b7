"""Losses that compare numbers: mean errors, cosine similarity, Huber, Poisson and their kin.

Targets and predictions are ``[b, ...]``; values are ``[b, ...]`` without the last axis.  Shapes that do not fit are a
DataError.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from kdist.losses.base import EPSILON, Formula, mean_over
from kdist.losses.shapes import require_axis, require_broadcast, require_same_shape


def mean_squared_error(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean((y - p)^2)`` over the last axis.

    Args:
        y_true: Targets ``[b, ...]``, or of a shape that broadcasts to the predictions'.
        y_pred: Predictions ``[b, ...]``.

    Raises:
        DataError: The shapes do not fit.

    Example:
        >>> mean_squared_error(jnp.array([[0.0, 1.0]]), jnp.array([[2.0, 1.0]])).tolist()
        [2.0]
    """
    require_broadcast(y_true, y_pred)
    return mean_over(optax.losses.squared_error(y_pred, jnp.broadcast_to(y_true, y_pred.shape)))


def mean_absolute_error(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean(|y - p|)`` over the last axis.

    Args:
        y_true: Targets ``[b, ...]``, or of a shape that broadcasts to the predictions'.
        y_pred: Predictions ``[b, ...]``.

    Raises:
        DataError: The shapes do not fit.

    Example:
        >>> mean_absolute_error(jnp.array([[0.0, 1.0]]), jnp.array([[2.0, 1.0]])).tolist()
        [1.0]
    """
    require_broadcast(y_true, y_pred)
    return mean_over(jnp.abs(y_true - y_pred))


def mean_absolute_percentage_error(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``100 mean(|y - p| / max(|y|, 1e-7))`` over the last axis.

    Args:
        y_true: Targets ``[b, ...]``, or of a shape that broadcasts to the predictions'.
        y_pred: Predictions ``[b, ...]``.

    Raises:
        DataError: The shapes do not fit.

    Example:
        >>> mean_absolute_percentage_error(jnp.array([[4.0, 2.0]]), jnp.array([[2.0, 2.0]])).tolist()
        [25.0]
    """
    require_broadcast(y_true, y_pred)
    return 100.0 * mean_over(jnp.abs(y_true - y_pred) / jnp.maximum(jnp.abs(y_true), EPSILON))


def mean_squared_logarithmic_error(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean((log(p + 1) - log(y + 1))^2)`` over the last axis, both clipped below at 1e-7.

    Args:
        y_true: Targets ``[b, ...]``, or of a shape that broadcasts to the predictions'.
        y_pred: Predictions ``[b, ...]``.

    Raises:
        DataError: The shapes do not fit.

    Example:
        >>> round(mean_squared_logarithmic_error(jnp.array([[0.0]]), jnp.array([[1.0]])).item(), 4)
        0.4805
    """
    require_broadcast(y_true, y_pred)
    log_pred, log_true = (jnp.log1p(jnp.maximum(a, EPSILON)) for a in (y_pred, y_true))
    return mean_over(jnp.square(log_pred - log_true))


def cosine_similarity(y_true: jax.Array, y_pred: jax.Array, axis: int = -1) -> jax.Array:
    """Minus the cosine of the angle between targets and predictions: -1 is alike.

    Args:
        y_true: Targets ``[b, ...]``, or of a shape that broadcasts to the predictions'.
        y_pred: Predictions ``[b, ...]``.
        axis: The axis of the vectors that are compared; -1 by default.

    Raises:
        DataError: The shapes do not fit.

    Example:
        >>> cosine_similarity(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([[0.0, 2.0], [0.0, 1.0]])).tolist()
        [-1.0, -0.0]
    """
    require_broadcast(y_true, y_pred)
    unit_true, unit_pred = (
        a * jax.lax.rsqrt(jnp.maximum(jnp.square(a).sum(axis, keepdims=True), 1e-12)) for a in (y_true, y_pred)
    )
    return -(unit_true * unit_pred).sum(axis)


def huber(y_true: jax.Array, y_pred: jax.Array, delta: float = 1.0) -> jax.Array:
    """Squared error up to `delta` (halved), linear beyond; mean over the last axis.

    Args:
        y_true: Targets ``[b, ...]``, or of a shape that broadcasts to the predictions'.
        y_pred: Predictions ``[b, ...]``.
        delta: Up to which error the loss is quadratic; 1.0 by default.

    Raises:
        DataError: The shapes do not fit.

    Example:
        >>> huber(jnp.array([[0.0], [0.0]]), jnp.array([[0.5], [3.0]])).tolist()
        [0.125, 2.5]
    """
    require_broadcast(y_true, y_pred)
    return mean_over(optax.losses.huber_loss(y_pred, jnp.broadcast_to(y_true, y_pred.shape), delta=delta))


def log_cosh(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean(log(cosh(p - y)))`` over the last axis.

    Args:
        y_true: Targets ``[b, ...]``, or of a shape that broadcasts to the predictions'.
        y_pred: Predictions ``[b, ...]``.

    Raises:
        DataError: The shapes do not fit.

    Example:
        >>> round(log_cosh(jnp.array([[0.0]]), jnp.array([[1.0]])).item(), 4)
        0.4338
    """
    require_broadcast(y_true, y_pred)
    return mean_over(optax.losses.log_cosh(y_pred, jnp.broadcast_to(y_true, y_pred.shape)))


def poisson(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean(p - y log(p + 1e-7))`` over the last axis.

    Args:
        y_true: Counts ``[b, ...]``, or of a shape that broadcasts to the predictions'.
        y_pred: Rates ``[b, ...]``, positive.

    Raises:
        DataError: The shapes do not fit.

    Example:
        >>> round(poisson(jnp.array([[2.0]]), jnp.array([[2.0]])).item(), 4)
        0.6137
    """
    require_broadcast(y_true, y_pred)
    return mean_over(y_pred - y_true * jnp.log(y_pred + EPSILON))


def kl_divergence(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``sum(y log(y / p))`` over the last axis, both clipped to [1e-7, 1].

    Args:
        y_true: Distributions over C classes, ``[b, ..., C]``.
        y_pred: Distributions of the same shape.

    Raises:
        DataError: The shapes differ.

    Example:
        >>> round(kl_divergence(jnp.array([[0.5, 0.5]]), jnp.array([[0.25, 0.75]])).item(), 4)
        0.1438
    """
    require_same_shape(y_true, y_pred)
    y_true, y_pred = (jnp.clip(a, EPSILON, 1.0) for a in (y_true, y_pred))
    return (y_true * jnp.log(y_true / y_pred)).sum(-1)


class MeanSquaredError(Formula):
    """See `mean_squared_error`.

    Args:
        reduction, name, dtype: As in `Loss`.

    Example:
        >>> float(MeanSquaredError()([[0.0], [1.0]], [[2.0], [1.0]], sample_weight=[0.5, 1.0]))
        1.0
    """

    fn = staticmethod(mean_squared_error)


class MeanAbsoluteError(Formula):
    """See `mean_absolute_error`.

    Args:
        reduction, name, dtype: As in `Loss`.

    Example:
        >>> float(MeanAbsoluteError(reduction="sum")([[0.0], [1.0]], [[2.0], [2.0]]))
        3.0
    """

    fn = staticmethod(mean_absolute_error)


class MeanAbsolutePercentageError(Formula):
    """See `mean_absolute_percentage_error`.

    Args:
        reduction, name, dtype: As in `Loss`.

    Example:
        >>> float(MeanAbsolutePercentageError()([[4.0]], [[2.0]]))
        50.0
    """

    fn = staticmethod(mean_absolute_percentage_error)


class MeanSquaredLogarithmicError(Formula):
    """See `mean_squared_logarithmic_error`.

    Args:
        reduction, name, dtype: As in `Loss`.

    Example:
        >>> round(float(MeanSquaredLogarithmicError()([[0.0]], [[1.0]])), 4)
        0.4805
    """

    fn = staticmethod(mean_squared_logarithmic_error)


class CosineSimilarity(Formula):
    """See `cosine_similarity`.

    Args:
        axis: The axis of the vectors that are compared; -1 by default.
        reduction, name, dtype: As in `Loss`.

    Raises:
        ConfigError: `axis` is no axis within a row.

    Example:
        >>> float(CosineSimilarity()([[0.0, 1.0]], [[0.0, 2.0]]))
        -1.0
    """

    fn = staticmethod(cosine_similarity)

    def __init__(
        self,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        require_axis(axis)
        super().__init__(reduction, name, dtype)
        self.arguments = {"axis": axis}


class Huber(Formula):
    """See `huber`; it is called ``huber_loss`` in logs.

    Args:
        delta: Up to which error the loss is quadratic; 1.0 by default.
        reduction, name, dtype: As in `Loss`.

    Example:
        >>> float(Huber(delta=2.0)([[0.0]], [[3.0]]))
        4.0
    """

    fn = staticmethod(huber)
    default_name = "huber_loss"

    def __init__(
        self,
        delta: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype)
        self.arguments = {"delta": delta}


class LogCosh(Formula):
    """See `log_cosh`.

    Args:
        reduction, name, dtype: As in `Loss`.

    Example:
        >>> round(float(LogCosh()([[0.0]], [[1.0]])), 4)
        0.4338
    """

    fn = staticmethod(log_cosh)


class Poisson(Formula):
    """See `poisson`.

    Args:
        reduction, name, dtype: As in `Loss`.

    Example:
        >>> round(float(Poisson()([[2.0]], [[2.0]])), 4)
        0.6137
    """

    fn = staticmethod(poisson)


class KLDivergence(Formula):
    """See `kl_divergence`.

    Args:
        reduction, name, dtype: As in `Loss`.

    Example:
        >>> round(float(KLDivergence()([[0.5, 0.5]], [[0.25, 0.75]])), 4)
        0.1438
    """

    fn = staticmethod(kl_divergence)

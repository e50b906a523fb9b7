"""Losses that compare numbers: mean errors, cosine similarity, Huber, Poisson and their kin."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from kdist.losses.base import EPSILON, Formula, require_broadcast, require_same_shape


def mean_squared_error(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean((y - p)^2)`` over the last axis."""
    require_broadcast(y_true, y_pred)
    return _last_mean(optax.losses.squared_error(y_pred, jnp.broadcast_to(y_true, y_pred.shape)))


def mean_absolute_error(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean(|y - p|)`` over the last axis."""
    require_broadcast(y_true, y_pred)
    return _last_mean(jnp.abs(y_true - y_pred))


def mean_absolute_percentage_error(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``100 mean(|y - p| / max(|y|, 1e-7))`` over the last axis."""
    require_broadcast(y_true, y_pred)
    return 100.0 * _last_mean(jnp.abs(y_true - y_pred) / jnp.maximum(jnp.abs(y_true), EPSILON))


def mean_squared_logarithmic_error(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean((log(p + 1) - log(y + 1))^2)`` over the last axis, both clipped below at 1e-7."""
    require_broadcast(y_true, y_pred)
    log_pred, log_true = (jnp.log1p(jnp.maximum(a, EPSILON)) for a in (y_pred, y_true))
    return _last_mean(jnp.square(log_pred - log_true))


def cosine_similarity(y_true: jax.Array, y_pred: jax.Array, axis: int = -1) -> jax.Array:
    """Minus the cosine of the angle between targets and predictions: -1 is alike."""
    require_broadcast(y_true, y_pred)
    unit_true, unit_pred = (
        a * jax.lax.rsqrt(jnp.maximum(jnp.square(a).sum(axis, keepdims=True), 1e-12)) for a in (y_true, y_pred)
    )
    return -(unit_true * unit_pred).sum(axis)


def huber(y_true: jax.Array, y_pred: jax.Array, delta: float = 1.0) -> jax.Array:
    """Squared error up to `delta` (halved), linear beyond; mean over the last axis."""
    require_broadcast(y_true, y_pred)
    return _last_mean(optax.losses.huber_loss(y_pred, jnp.broadcast_to(y_true, y_pred.shape), delta=delta))


def log_cosh(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean(log(cosh(p - y)))`` over the last axis."""
    require_broadcast(y_true, y_pred)
    return _last_mean(optax.losses.log_cosh(y_pred, jnp.broadcast_to(y_true, y_pred.shape)))


def poisson(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean(p - y log(p + 1e-7))`` over the last axis."""
    require_broadcast(y_true, y_pred)
    return _last_mean(y_pred - y_true * jnp.log(y_pred + EPSILON))


def kl_divergence(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``sum(y log(y / p))`` over the last axis, both clipped to [1e-7, 1]."""
    require_same_shape(y_true, y_pred)
    y_true, y_pred = (jnp.clip(a, EPSILON, 1.0) for a in (y_true, y_pred))
    return (y_true * jnp.log(y_true / y_pred)).sum(-1)


def _last_mean(values: jax.Array) -> jax.Array:
    """The mean over the last axis; values of rank 1 are per row already."""
    return values.mean(-1) if values.ndim > 1 else values


class MeanSquaredError(Formula):
    """See `mean_squared_error`."""

    fn = staticmethod(mean_squared_error)


class MeanAbsoluteError(Formula):
    """See `mean_absolute_error`."""

    fn = staticmethod(mean_absolute_error)


class MeanAbsolutePercentageError(Formula):
    """See `mean_absolute_percentage_error`."""

    fn = staticmethod(mean_absolute_percentage_error)


class MeanSquaredLogarithmicError(Formula):
    """See `mean_squared_logarithmic_error`."""

    fn = staticmethod(mean_squared_logarithmic_error)


class CosineSimilarity(Formula):
    """See `cosine_similarity`."""

    fn = staticmethod(cosine_similarity)

    def __init__(self, axis=-1, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction, name, dtype, axis=axis)


class Huber(Formula):
    """See `huber`."""

    fn = staticmethod(huber)
    default_name = "huber_loss"

    def __init__(self, delta=1.0, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction, name, dtype, delta=delta)


class LogCosh(Formula):
    """See `log_cosh`."""

    fn = staticmethod(log_cosh)


class Poisson(Formula):
    """See `poisson`."""

    fn = staticmethod(poisson)


class KLDivergence(Formula):
    """See `kl_divergence`."""

    fn = staticmethod(kl_divergence)

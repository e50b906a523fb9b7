"""Hinge losses, for predictions that are scores: nothing to pay beyond a margin of 1."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from kdist.losses.base import Formula, mean_over
from kdist.losses.shapes import require_broadcast, require_same_shape


def hinge(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean(max(1 - y p, 0))`` over the last axis, for targets -1 and 1, or 0 and 1.

    A target 0 is taken as -1.  Keras does so if every target of the batch is 0 or 1; element by element it is the same
    for every shard of a batch, and differs only where targets -1 and 0 are mixed.

    Args:
        y_true: Targets ``[b, ...]``.
        y_pred: Scores ``[b, ...]``.

    Raises:
        DataError: The shapes do not fit.

    Example:
        >>> hinge(jnp.array([[1.0], [0.0]]), jnp.array([[0.5], [0.5]])).tolist()
        [0.5, 1.5]
    """
    return mean_over(_hinges(y_true, y_pred))


def squared_hinge(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean(max(1 - y p, 0)^2)`` over the last axis; targets as in `hinge`.

    Args:
        y_true: Targets ``[b, ...]``.
        y_pred: Scores ``[b, ...]``.

    Raises:
        DataError: The shapes do not fit.

    Example:
        >>> squared_hinge(jnp.array([[1.0], [0.0]]), jnp.array([[0.5], [0.5]])).tolist()
        [0.25, 2.25]
    """
    return mean_over(jnp.square(_hinges(y_true, y_pred)))


def categorical_hinge(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``max(max((1 - y) p) - sum(y p) + 1, 0)`` over the last axis, for one-hot targets.

    Args:
        y_true: One-hot labels ``[b, ..., C]``.
        y_pred: Scores of the same shape.

    Raises:
        DataError: The shapes differ.

    Example:
        >>> categorical_hinge(jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.75]])).tolist()
        [0.75]
    """
    require_same_shape(y_true, y_pred)
    return jnp.maximum(((1.0 - y_true) * y_pred).max(-1) - (y_true * y_pred).sum(-1) + 1.0, 0.0)


class Hinge(Formula):
    """See `hinge`.

    Args:
        reduction, name, dtype: As in `Loss`.

    Example:
        >>> float(Hinge()([[1.0], [-1.0]], [[0.5], [0.5]]))
        1.0
    """

    fn = staticmethod(hinge)


class SquaredHinge(Formula):
    """See `squared_hinge`.

    Args:
        reduction, name, dtype: As in `Loss`.

    Example:
        >>> float(SquaredHinge()([[1.0], [-1.0]], [[0.5], [0.5]]))
        1.25
    """

    fn = staticmethod(squared_hinge)


class CategoricalHinge(Formula):
    """See `categorical_hinge`.

    Args:
        reduction, name, dtype: As in `Loss`.

    Example:
        >>> float(CategoricalHinge()([[0.0, 1.0]], [[0.5, 0.75]]))
        0.75
    """

    fn = staticmethod(categorical_hinge)


def _hinges(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    require_broadcast(y_true, y_pred)
    signs = jnp.where(y_true == 0, -1, y_true).astype(y_pred.dtype)
    return optax.losses.hinge_loss(y_pred, signs)

"""Which shapes of targets, predictions and weights go together, and how they are brought together.

Shapes: b rows; targets and predictions are ``[b, ...]``, C classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kdist.errors import ConfigError, DataError


def align_ranks(y_true: jax.Array, y_pred: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keras's alignment of ranks that differ by one where the longer one ends in 1.

    ``(b,)`` against ``(b, 1)`` gains the last axis; ``(b, T)`` against ``(b, T, 1)`` loses it.

    Args:
        y_true: Targets ``[b, ...]``.
        y_pred: Predictions ``[b, ...]``.

    Example:
        >>> y_true, y_pred = align_ranks(jnp.zeros(4), jnp.zeros((4, 1)))
        >>> y_true.shape, y_pred.shape
        ((4, 1), (4, 1))
    """
    if y_true.ndim + 1 == y_pred.ndim and y_pred.shape[-1] == 1:
        return (y_true[:, None], y_pred) if y_true.ndim == 1 else (y_true, y_pred[..., 0])
    if y_pred.ndim + 1 == y_true.ndim and y_true.shape[-1] == 1:
        return (y_true, y_pred[:, None]) if y_pred.ndim == 1 else (y_true[..., 0], y_pred)
    return y_true, y_pred


def weighted_product(values: jax.Array, *weights: jax.Array) -> jax.Array:
    """Values times weights, each aligned row by row.

    Example:
        >>> weighted_product(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([2.0, 0.0])).tolist()
        [[2.0, 4.0], [0.0, 0.0]]
    """
    for weight in weights:
        values = values * align_weight(weight, values.shape).astype(values.dtype)
    return values


def align_weight(weight: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`weight` with axes of 1 appended, so that it multiplies values of `shape` row by row.

    Args:
        weight: Weights of any shape that `shape` starts with, such as ``[b]`` or ``[b, steps]``.
        shape: The shape of the values, rows first.

    Raises:
        DataError: The shapes do not start alike.

    Example:
        >>> align_weight(jnp.ones(4), (4, 3, 2)).shape
        (4, 1, 1)
    """
    if weight.ndim == len(shape) + 1 and weight.shape[-1] == 1:
        weight = weight[..., 0]
    wide = weight.shape + (1,) * (len(shape) - weight.ndim)
    if len(wide) != len(shape) or any(a not in (1, b) for a, b in zip(wide, shape, strict=True)):
        raise DataError(
            f"sample_weight of shape {weight.shape} does not fit values of shape {shape}. "
            "Give one weight a row, (rows,), or one a time step, (rows, steps)."
        )
    return weight.reshape(wide)


def target_kind(true_shape: tuple[int, ...], pred_shape: tuple[int, ...]) -> str:
    """Which of "binary", "sparse" and "categorical" targets of these shapes are (Keras's rule).

    Args:
        true_shape: Shape of the targets, rows first.
        pred_shape: Shape of the predictions, rows first.

    Example:
        >>> target_kind((8,), (8, 3)), target_kind((8, 3), (8, 3)), target_kind((8,), (8, 1))
        ('sparse', 'categorical', 'binary')
    """
    if pred_shape[-1] == 1 or (len(true_shape) == len(pred_shape) == 1):
        return "binary"
    if len(true_shape) < len(pred_shape) or (true_shape[-1] == 1 and pred_shape[-1] > 1):
        return "sparse"
    return "categorical"


def class_indices(y_true: jax.Array, pred_rank: int, axis: int = -1) -> jax.Array:
    """Integer labels, without the axis of 1 that they have where the predictions have their classes, or at the end.

    Args:
        y_true: Labels ``[b, ...]``, or ``[b, ..., 1]``.
        pred_rank: The rank of the predictions.
        axis: The axis of the predictions' classes; -1 by default.

    Example:
        >>> class_indices(jnp.array([[2.0], [0.0]]), pred_rank=2).tolist()
        [2, 0]
    """
    if y_true.ndim == pred_rank:
        for at in (axis, -1):
            if y_true.shape[at] == 1:
                return y_true.squeeze(at).astype(jnp.int32)
    return y_true.astype(jnp.int32)


def require_axis(axis: int) -> None:
    """Refuses an axis that cannot hold classes.

    Raises:
        ConfigError: It is no integer, or the axis of the rows.
    """
    if isinstance(axis, bool) or not isinstance(axis, int) or axis == 0:
        raise ConfigError(
            f"axis must be an integer other than 0, the axis of the rows, such as -1 for the last. Received: {axis!r}."
        )


def require_broadcast(y_true: jax.Array, y_pred: jax.Array) -> None:
    """Refuses targets that do not broadcast to the predictions.

    Args:
        y_true: Targets ``[b, ...]``.
        y_pred: Predictions ``[b, ...]``.

    Raises:
        DataError: They do not.

    Example:
        >>> require_broadcast(jnp.zeros((4, 1)), jnp.zeros((4, 3)))
        >>> require_broadcast(jnp.zeros((4, 2)), jnp.zeros((4, 3)))
        Traceback (most recent call last):
        kdist.errors.DataError: Targets of shape rows x 2 cannot be compared with predictions of shape rows x 3: ...
    """
    try:
        together = jnp.broadcast_shapes(y_true.shape, y_pred.shape)
    except ValueError:
        together = None
    if together is None or together[0] != y_pred.shape[0]:
        raise DataError(mismatch(y_true, y_pred, "the same shape"))


def require_same_shape(y_true: jax.Array, y_pred: jax.Array) -> None:
    """Refuses targets of another shape than the predictions.

    Args:
        y_true: Targets ``[b, ...]``.
        y_pred: Predictions ``[b, ...]``.

    Raises:
        DataError: They differ.

    Example:
        >>> require_same_shape(jnp.zeros((4, 1)), jnp.zeros((4, 3)))
        Traceback (most recent call last):
        kdist.errors.DataError: Targets of shape rows x 1 cannot be compared with predictions of shape rows x 3: ...
    """
    if y_true.shape != y_pred.shape:
        raise DataError(mismatch(y_true, y_pred, "the same shape"))


def mismatch(y_true: jax.Array, y_pred: jax.Array, expected: str) -> str:
    """The message for targets that do not fit predictions."""
    true, pred = (" x ".join(("rows", *map(str, a.shape[1:]))) for a in (y_true, y_pred))
    return f"Targets of shape {true} cannot be compared with predictions of shape {pred}: expected {expected}."

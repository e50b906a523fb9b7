"""What a loss is: values for targets and predictions, and their reduction to additive sums.

Shapes: b rows (of a shard or of a batch); targets and predictions are ``[b, ...]``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist.errors import ConfigError, DataError
from kdist.naming import function_name, snake_case

EPSILON = 1e-7
"""Keras's epsilon: probabilities are clipped to [EPSILON, 1 - EPSILON]."""

REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSum:
    """A loss over some rows, as additive sums: its value is ``sum / denominator``.

    Attributes:
        sum: The weighted sum of the loss values, a scalar.
        denominator: What to divide by once both are added up over shards, or None for "nothing".
        per_row: Whether the denominator is the number of valid rows, as it is for every loss that
            is averaged in the default way.  Such losses share one denominator and one gradient.
    """

    sum: jax.Array
    denominator: Any
    per_row: bool = dataclasses.field(metadata={"static": True})

    def value(self) -> jax.Array:
        """The loss; 0 where nothing counted."""
        if self.denominator is None:
            return self.sum
        return safe_divide(self.sum, self.denominator)


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """``numerator / denominator``, and 0 where the denominator is 0."""
    return jnp.where(denominator == 0, 0.0, numerator / jnp.where(denominator == 0, 1, denominator))


class Loss:
    """A function of targets and predictions, with a reduction over rows and elements.

    Subclass it and override `call`, or hand a plain function ``f(y_true, y_pred)`` to `compile`.

    Args:
        reduction: "sum_over_batch_size" (or "mean": sum of weighted values over the number of
            values), "mean_with_sample_weight" (over the sum of the weights), "sum", or None.
        name: The name of the loss in logs.
        dtype: The dtype that values are computed in; float32 by default.
    """

    default_name: str | None = None
    class_axis: int | None = None
    """The axis of the predictions that targets, being class indices, point into; None if they are values."""
    keeps_targets = False
    """Whether `call` gets the targets in the dtype they came in, and not as `dtype`."""

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = None, dtype: Any = None
    ) -> None:
        if reduction not in (*REDUCTIONS, "none", None):
            raise ConfigError(f"Unknown reduction {reduction!r}. Expected one of {', '.join(REDUCTIONS)} or None.")
        self.reduction = None if reduction == "none" else reduction
        self.name = name or self.default_name or snake_case(type(self).__name__)
        self.dtype = jnp.dtype(dtype or jnp.float32)

    def call(self, y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
        """Loss values: ``[b, ...]``, or one scalar that is the mean over the rows seen.

        Args:
            y_true: Targets ``[b, ...]``.
            y_pred: Predictions ``[b, ...]``, floating point.
        """
        raise NotImplementedError(f"{type(self).__name__} must define call(y_true, y_pred).")

    def mask(self, y_true: jax.Array, y_pred: jax.Array) -> jax.Array | None:
        """Which values count, shaped like the result of `call`; None means all of them."""
        return None

    def values(self, y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
        """`call`, on targets and predictions of one dtype and of ranks that match."""
        y_pred = jnp.asarray(y_pred).astype(self.dtype)
        y_true = jnp.asarray(y_true)
        if not self.keeps_targets:
            if jnp.iscomplexobj(y_true):
                raise DataError(f"The targets are complex ({y_true.dtype}); {self.name!r} compares real numbers.")
            y_true = y_true.astype(self.dtype)
        return jnp.asarray(self.call(*align_ranks(y_true, y_pred)))

    def sums(
        self,
        y_true: jax.Array,
        y_pred: jax.Array,
        weight: jax.Array | None = None,
        valid: jax.Array | None = None,
    ) -> LossSum:
        """The loss over these rows as additive sums.

        Args:
            y_true: Targets ``[b, ...]``.
            y_pred: Predictions ``[b, ...]``.
            weight: Sample weights ``[b]`` or of any shape that the loss values start with.
            valid: ``[b]``, 1 for rows that count and 0 for padding; None if all count.
        """
        values = self.values(y_true, y_pred)
        rows = np.float32(y_pred.shape[0]) if valid is None else valid.sum()
        if values.ndim == 0:  # a mean over the rows seen, so the same for each of them
            values = jnp.broadcast_to(values, y_pred.shape[:1])
        mask = self.mask(jnp.asarray(y_true), y_pred)
        kept = [w for w in (valid, mask) if w is not None]
        weighted = weighted_product(values, *kept, *([] if weight is None else [weight]))
        if self.reduction == "sum":
            return LossSum(weighted.sum(), None, False)
        if self.reduction == "mean_with_sample_weight" and weight is not None:
            ones = jnp.ones(weight.shape if mask is None else values.shape, values.dtype)
            return LossSum(weighted.sum(), weighted_product(ones, weight, *kept).sum(), False)
        if mask is not None:
            return LossSum(weighted.sum(), weighted_product(jnp.ones_like(values), *kept).sum(), False)
        return LossSum(weighted.reshape(values.shape[0], -1).mean(axis=1).sum(), rows, True)

    def __call__(self, y_true: jax.Array, y_pred: jax.Array, sample_weight: jax.Array | None = None) -> jax.Array:
        """The reduced loss of one batch, a scalar; unreduced values if the reduction is None."""
        y_pred = jnp.asarray(y_pred)
        weight = None if sample_weight is None else jnp.asarray(sample_weight, jnp.float32)
        if self.reduction is None:
            values = self.values(y_true, y_pred)
            return values if weight is None else weighted_product(values, weight)
        return self.sums(y_true, y_pred, weight).value()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, reduction={self.reduction!r}>"


class Formula(Loss):
    """A Loss that is a plain function, `fn`, with its further arguments."""

    fn: Callable[..., jax.Array]

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
        **arguments: Any,
    ) -> None:
        super().__init__(reduction, name, dtype)
        self.arguments = arguments

    def call(self, y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
        """The function's value."""
        return self.fn(y_true, y_pred, **self.arguments)


class FunctionLoss(Formula):
    """A Loss made of a function that is not kdist's own; it gets integer targets as integers."""

    keeps_targets = True

    def __init__(self, fn: Callable[..., jax.Array], name: str | None = None) -> None:
        super().__init__(name=name or function_name(fn))
        self.fn = fn


# Shapes ---------------------------------------------------------------------------------------


def align_ranks(y_true: jax.Array, y_pred: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keras's alignment of ranks that differ by one where the longer one ends in 1.

    ``(b,)`` against ``(b, 1)`` gains the last axis; ``(b, T)`` against ``(b, T, 1)`` loses it.
    """
    if y_true.ndim + 1 == y_pred.ndim and y_pred.shape[-1] == 1:
        return (y_true[:, None], y_pred) if y_true.ndim == 1 else (y_true, y_pred[..., 0])
    if y_pred.ndim + 1 == y_true.ndim and y_true.shape[-1] == 1:
        return (y_true, y_pred[:, None]) if y_pred.ndim == 1 else (y_true[..., 0], y_pred)
    return y_true, y_pred


def weighted_product(values: jax.Array, *weights: jax.Array) -> jax.Array:
    """Values times weights, each aligned row by row."""
    for weight in weights:
        values = values * align_weight(weight, values.shape).astype(values.dtype)
    return values


def align_weight(weight: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`weight` with axes of 1 appended, so that it multiplies values of `shape` row by row.

    Raises:
        DataError: The shapes do not start alike.
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
    """
    if pred_shape[-1] == 1 or (len(true_shape) == len(pred_shape) == 1):
        return "binary"
    if len(true_shape) < len(pred_shape) or (true_shape[-1] == 1 and pred_shape[-1] > 1):
        return "sparse"
    return "categorical"


def require_broadcast(y_true: jax.Array, y_pred: jax.Array) -> None:
    """Refuses targets that do not broadcast to the predictions.

    Raises:
        DataError: They do not.
    """
    try:
        together = jnp.broadcast_shapes(y_true.shape, y_pred.shape)
    except ValueError:
        together = None
    if together is None or together[0] != y_pred.shape[0]:
        raise DataError(mismatch(y_true, y_pred, "the same shape"))


def require_same_shape(y_true: jax.Array, y_pred: jax.Array) -> None:
    """Refuses targets of another shape than the predictions.

    Raises:
        DataError: They differ.
    """
    if y_true.shape != y_pred.shape:
        raise DataError(mismatch(y_true, y_pred, "the same shape"))


def mismatch(y_true: jax.Array, y_pred: jax.Array, expected: str) -> str:
    """The message for targets that do not fit predictions."""
    true, pred = (" x ".join(("rows", *map(str, a.shape[1:]))) for a in (y_true, y_pred))
    return f"Targets of shape {true} cannot be compared with predictions of shape {pred}: expected {expected}."

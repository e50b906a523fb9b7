"""What a loss is: values for targets and predictions, and their reduction to additive sums.

Shapes: B rows of a batch, b of them on a shard (all of them where there are no shards); targets and predictions are
``[b, ...]``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist.errors import ConfigError, DataError
from kdist.losses.shapes import align_ranks, weighted_product
from kdist.naming import function_name, snake_case
from kdist.typing import PyTree

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

    Example:
        >>> from kdist.losses import MeanSquaredError
        >>> sums = MeanSquaredError().sums(jnp.zeros((2, 1)), jnp.array([[1.0], [3.0]]), weight=jnp.array([1.0, 0.0]))
        >>> float(sums.sum), float(sums.denominator), float(sums.value())
        (1.0, 2.0, 0.5)
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
    """``numerator / denominator``, and 0 where the denominator is 0.

    Args:
        numerator: An array.
        denominator: An array that broadcasts with it.

    Example:
        >>> safe_divide(jnp.array([3.0, 3.0]), jnp.array([2.0, 0.0])).tolist()
        [1.5, 0.0]
    """
    return jnp.where(denominator == 0, 0.0, numerator / jnp.where(denominator == 0, 1, denominator))


def mean_over(values: jax.Array, axis: int = -1) -> jax.Array:
    """The mean over an axis; values of rank 1 are per row already.

    Args:
        values: Loss values ``[b, ...]``.
        axis: The axis to average over; -1 by default.

    Example:
        >>> mean_over(jnp.array([[1.0, 3.0], [2.0, 2.0]])).tolist(), mean_over(jnp.array([1.0, 3.0])).tolist()
        ([2.0, 2.0], [1.0, 3.0])
    """
    return values.mean(axis) if values.ndim > 1 else values


@dataclasses.dataclass(frozen=True)
class Shards:
    """How a loss that needs all rows of a batch reaches those of the other shards.

    Both functions are differentiable, and what flows back through them is added up over the shards.

    Attributes:
        sum: The sum over all shards of every array of a tree.
        gather: The rows of all shards, in their order: ``[b, ...]`` to ``[B, ...]``.
        index: Which shard this is, an integer.

    Example:
        >>> ALONE.gather(jnp.array([4.0, 2.0])).tolist()
        [4.0, 2.0]
    """

    sum: Callable[[PyTree], PyTree]
    gather: Callable[[jax.Array], jax.Array]
    index: jax.Array | int

    def places(self, rows: int) -> jax.Array:
        """Where this shard's `rows` stand among those of all shards: ``[b]`` integers.

        Example:
            >>> ALONE.places(3).tolist()
            [0, 1, 2]
        """
        return self.index * rows + jnp.arange(rows)


ALONE = Shards(sum=lambda tree: tree, gather=lambda rows: rows, index=0)
"""There are no other shards: the rows are the whole batch."""


class Loss:
    """A function of targets and predictions, with a reduction over rows and elements.

    Subclass it and override `call`, or hand a plain function ``f(y_true, y_pred)`` to `compile`.

    Args:
        name: The name of the loss in logs; the class's in snake case by default.
        reduction: "sum_over_batch_size" (or "mean": sum of weighted values over the number of values),
            "mean_with_sample_weight" (over the sum of the weights), "sum", or None; "sum_over_batch_size" by default.
        dtype: The dtype that values are computed in; float32 by default.

    Raises:
        ConfigError: There is no such reduction.

    Example:
        >>> class Cubic(Loss):
        ...     def call(self, y_true, y_pred):
        ...         return jnp.abs(y_pred - y_true) ** 3
        >>> float(Cubic(reduction="sum")([[1.0], [2.0]], [[3.0], [1.0]]))
        9.0
    """

    default_name: str | None = None
    class_axis: int | None = None
    """The axis of the predictions that targets, being class indices, point into; None if they are values."""
    keeps_targets: bool = False
    """Whether `call` gets the targets in the dtype they came in, and not as `dtype`."""
    compares_shapes: bool = True
    """Whether targets of another shape than the predictions' are a likely mistake."""
    across_rows: bool = False
    """Whether a row's part in the loss depends on the other rows, so that it needs `Shards` to be right."""

    def __init__(
        self, name: str | None = None, reduction: str | None = "sum_over_batch_size", dtype: Any = None
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

        Example:
            >>> class Quantile(Loss):
            ...     def call(self, y_true, y_pred):
            ...         off = y_true - y_pred
            ...         return jnp.maximum(0.9 * off, -0.1 * off).mean(-1)
            >>> print(Quantile().call(jnp.array([[1.0], [0.0]]), jnp.array([[0.0], [1.0]])))
            [0.9 0.1]
        """
        raise NotImplementedError(f"{type(self).__name__} must define call(y_true, y_pred).")

    def mask(self, y_true: jax.Array, values: jax.Array) -> jax.Array | None:
        """Which values count, shaped like `values`; None means all of them.

        Args:
            y_true: Targets ``[b, ...]``.
            values: What `call` returned.

        Example:
            >>> class WhereKnown(Loss):
            ...     def call(self, y_true, y_pred):
            ...         return jnp.abs(y_true - y_pred)
            ...     def mask(self, y_true, values):
            ...         return y_true >= 0
            >>> float(WhereKnown()([1.0, -1.0], [3.0, 9.0]))
            2.0
        """
        return None

    def values(
        self, y_true: jax.Array, y_pred: jax.Array, valid: jax.Array | None = None, shards: Shards = ALONE
    ) -> jax.Array:
        """`call`, on targets and predictions of one dtype and of ranks that match.

        A loss that needs all rows overrides it; to the others `valid` and `shards` mean nothing.

        Args:
            y_true: Targets ``[b, ...]``.
            y_pred: Predictions ``[b, ...]``.
            valid: ``[b]``, 1 for rows that count and 0 for padding; None, the default, if all count.
            shards: How to reach the rows of the other shards; by default there are none.

        Example:
            >>> from kdist.losses import MeanAbsoluteError
            >>> MeanAbsoluteError().values([1, 2], [[1.5], [2.0]]).tolist()
            [0.5, 0.0]
        """
        return jnp.asarray(self.call(*self.aligned(y_true, y_pred)))

    def aligned(self, y_true: jax.Array, y_pred: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Targets and predictions of one dtype (unless the loss `keeps_targets`) and of ranks that match.

        Args:
            y_true: Targets ``[b, ...]``.
            y_pred: Predictions ``[b, ...]``.

        Raises:
            DataError: The targets are complex.

        Example:
            >>> y_true, y_pred = Loss().aligned([1, 2], [[1.5], [2.0]])
            >>> y_true.shape, y_true.dtype.name
            ((2, 1), 'float32')
        """
        y_pred = jnp.asarray(y_pred).astype(self.dtype)
        y_true = jnp.asarray(y_true)
        if not self.keeps_targets:
            if jnp.iscomplexobj(y_true):
                raise DataError(f"The targets are complex ({y_true.dtype}); {self.name!r} compares real numbers.")
            y_true = y_true.astype(self.dtype)
        return align_ranks(y_true, y_pred)

    def sums(
        self,
        y_true: jax.Array,
        y_pred: jax.Array,
        weight: jax.Array | None = None,
        valid: jax.Array | None = None,
        shards: Shards = ALONE,
    ) -> LossSum:
        """The loss over these rows as additive sums.

        Added up over the shards they give the loss of the batch; and the gradient of the sum so added up, with respect
        to the predictions of one shard, is that of the loss times the denominator.

        Args:
            y_true: Targets ``[b, ...]``.
            y_pred: Predictions ``[b, ...]``.
            weight: Sample weights ``[b]`` or of any shape that the loss values start with; none by default.
            valid: ``[b]``, 1 for rows that count and 0 for padding; None, the default, if all count.
            shards: How to reach the rows of the other shards; by default there are none.

        Example:
            >>> from kdist.losses import MeanSquaredError
            >>> y_true, y_pred = jnp.zeros((2, 1)), jnp.array([[1.0], [3.0]])
            >>> sums = MeanSquaredError().sums(y_true, y_pred, valid=jnp.array([1.0, 0.0]))
            >>> float(sums.sum), float(sums.denominator)
            (1.0, 1.0)
        """
        values = self.values(y_true, y_pred, valid, shards)
        rows = np.float32(y_pred.shape[0]) if valid is None else valid.sum()
        if values.ndim == 0:  # one number for all rows: the same for each of them, and under each weight
            if self.across_rows and self.reduction == "sum" and weight is None:  # the number itself, a part a shard
                return LossSum(safe_divide(values * rows, shards.sum(rows)), None, False)
            values = jnp.broadcast_to(values, y_pred.shape[:1] if weight is None else weight.shape)
        mask = self.mask(jnp.asarray(y_true), values)
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
            if weight is None:
                return values
            return values * weight if values.ndim == 0 else weighted_product(values, weight)
        return self.sums(y_true, y_pred, weight).value()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, reduction={self.reduction!r}>"


class Formula(Loss):
    """A Loss that is a plain function, `fn`.

    A subclass puts what else `fn` takes into `arguments`.

    Args:
        reduction, name, dtype: As in `Loss`.
    """

    fn: Callable[..., jax.Array]

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.arguments: dict[str, Any] = {}

    def call(self, y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
        """The function's value."""
        return self.fn(y_true, y_pred, **self.arguments)


class FunctionLoss(Formula):
    """A Loss made of a function that is not kdist's own; it gets integer targets as integers.

    Args:
        fn: ``fn(y_true, y_pred)``, see `Loss.call`.
        name: The name in logs; the function's by default.

    Example:
        >>> def largest(y_true, y_pred):
        ...     return jnp.abs(y_pred - y_true).max(-1)
        >>> float(FunctionLoss(largest)(jnp.zeros((1, 2)), jnp.array([[1.0, -3.0]])))
        3.0
    """

    keeps_targets = True

    def __init__(self, fn: Callable[..., jax.Array], name: str | None = None) -> None:
        super().__init__(name=name or function_name(fn))
        self.fn = fn

"""Dice and Tversky: how much two sets overlap, such as the pixels of a segmentation and those predicted.

Over all axes, or over axes with the rows among them, such a loss is no sum over rows: it is computed of sums over the
whole batch, which the shards add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from kdist.errors import ConfigError
from kdist.losses.base import ALONE, EPSILON, Formula, Shards
from kdist.losses.shapes import align_weight, require_same_shape

Axes = int | Sequence[int] | None
"""An axis, some, or None for all."""


class _Totals(NamedTuple):
    """The sizes of two sets and of what they share."""

    shared: jax.Array
    true: jax.Array
    pred: jax.Array


def dice(y_true: jax.Array, y_pred: jax.Array, axis: Axes = None) -> jax.Array:
    """``1 - 2 sum(y p) / (sum(y) + sum(p) + 1e-7)``, sums over `axis` (Milletari et al., 2016).

    Args:
        y_true: 0 or 1, ``[b, ...]``.
        y_pred: Probabilities of the same shape.
        axis: The axes that are summed over, None, the default, for all.

    Returns:
        A value for each index along the other axes.

    Raises:
        DataError: The shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> print(dice(jnp.array([[1.0, 1.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0]]), axis=1).round(4))
        [0.3333]
    """
    return _dice(_totals(y_true, y_pred, axis))


def tversky(
    y_true: jax.Array, y_pred: jax.Array, alpha: float = 0.5, beta: float = 0.5, axis: Axes = None
) -> jax.Array:
    """``1 - TP / (TP + alpha FP + beta FN + 1e-7)``, sums over `axis` (Salehi et al., 2017).

    Keras up to 3.15 has `alpha` and `beta` the other way round.

    Args:
        y_true: 0 or 1, ``[b, ...]``.
        y_pred: Probabilities of the same shape.
        alpha: The weight of false positives, FP: predicted, and not there; 0.5 by default.
        beta: The weight of false negatives, FN: there, and not predicted; 0.5 by default.
        axis: The axes that are summed over, None, the default, for all.

    Returns:
        A value for each index along the other axes.

    Raises:
        DataError: The shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> y_true, y_pred = jnp.array([[1.0, 1.0, 1.0]]), jnp.array([[1.0, 0.0, 0.0]])
        >>> print(tversky(y_true, y_pred, alpha=0.0, beta=0.5, axis=1).round(4))
        [0.5]
    """
    return _tversky(_totals(y_true, y_pred, axis), alpha, beta)


class _Overlap(Formula):
    """A loss of the totals of targets and predictions over some axes."""

    of_totals: Callable[..., jax.Array]

    def __init__(self, axis: Axes, reduction: str | None, name: str | None, dtype: Any, **coefficients: float) -> None:
        super().__init__(reduction, name, dtype)
        self.axes = _axes(axis)
        self.across_rows = self.axes is None or 0 in self.axes
        self.coefficients = coefficients
        self.arguments = {"axis": self.axes, **coefficients}

    def values(
        self, y_true: jax.Array, y_pred: jax.Array, valid: jax.Array | None = None, shards: Shards = ALONE
    ) -> jax.Array:
        """A value for each index along the axes that are left, or, where the rows are not, their mean or sum."""
        y_true, y_pred = self.aligned(y_true, y_pred)
        if self.axes is not None and -y_pred.ndim in self.axes:
            raise ConfigError(
                f"axis={self.axes} of {self.name!r} has the rows, for predictions of rank {y_pred.ndim}, as "
                f"{-y_pred.ndim}. Write 0 for it."
            )
        if not self.across_rows:
            return self.call(y_true, y_pred)
        if valid is not None:
            y_true, y_pred = (a * align_weight(valid, a.shape) for a in (y_true, y_pred))
        totals = shards.sum(_totals(y_true, y_pred, self.axes))
        values = self.of_totals(totals, **self.coefficients)
        if self.reduction is None:
            return values
        return values.sum() if self.reduction == "sum" else values.mean()


def _dice(totals: _Totals) -> jax.Array:
    return 1.0 - 2.0 * totals.shared / (totals.true + totals.pred + EPSILON)


def _tversky(totals: _Totals, alpha: float, beta: float) -> jax.Array:
    false_positives, false_negatives = totals.pred - totals.shared, totals.true - totals.shared
    return 1.0 - totals.shared / (totals.shared + alpha * false_positives + beta * false_negatives + EPSILON)


class Dice(_Overlap):
    """See `dice`.

    With the rows among the axes it is one number for the batch, averaged over axes that are left; sample weights then
    scale it by their mean.

    Args:
        reduction: See `Loss`.
        name: See `Loss`.
        axis: The axes that are summed over, None, the default, for all.
        dtype: See `Loss`.

    Example:
        >>> round(float(Dice()([[1.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]])), 4)
        0.3333
    """

    fn = staticmethod(dice)
    of_totals = staticmethod(_dice)

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        axis: Axes = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(axis, reduction, name, dtype)


class Tversky(_Overlap):
    """See `tversky`; with the rows among the axes as `Dice`.

    Args:
        alpha: The weight of false positives; 0.5 by default.
        beta: The weight of false negatives; 0.5 by default.
        reduction: See `Loss`.
        name: See `Loss`.
        axis: The axes that are summed over, None, the default, for all.
        dtype: See `Loss`.

    Example:
        >>> loss = Tversky(alpha=0.0, beta=0.5)
        >>> round(float(loss([[1.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])), 4)
        0.5
    """

    fn = staticmethod(tversky)
    of_totals = staticmethod(_tversky)

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        axis: Axes = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(axis, reduction, name, dtype, alpha=alpha, beta=beta)


def _totals(y_true: jax.Array, y_pred: jax.Array, axis: Axes) -> _Totals:
    require_same_shape(y_true, y_pred)
    return _Totals(*(a.sum(_axes(axis)) for a in (y_true * y_pred, y_true, y_pred)))


def _axes(axis: Axes) -> tuple[int, ...] | None:
    if axis is None:
        return None
    return (axis,) if isinstance(axis, int) else tuple(axis)

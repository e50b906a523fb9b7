"""Metrics of regression that are no plain mean of errors: the share of variance explained, and correlations.

Shapes: b rows, D outputs.
"""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist.errors import ConfigError, DataError, unknown_name
from kdist.losses import EPSILON, align_ranks, align_weight, require_same_shape
from kdist.metrics.base import MeanMetric, Metric, ratio
from kdist.typing import PyTree

AGGREGATIONS = ("uniform_average", "variance_weighted_average")
REFERENCE_BITS = 7
"""How many bits of their mean the targets of a shard are measured from."""


class R2Score(Metric):
    """``1 - (squared errors) / (squared distances of the targets from their mean)``; 1 is the best, 0 a constant.

    An output whose targets are constant scores 0.

    Args:
        class_aggregation: How the scores of several outputs become one: "uniform_average", their mean;
            "variance_weighted_average", weighted by the targets' variance; None, not at all: a vector ``[D]``;
            "uniform_average" by default.
        num_regressors: How many inputs the model has, for the adjusted score ``1 - (1 - R2)(n - 1) / (n - p - 1)`` over
            n elements of the targets; 0, the default, does not adjust.
        name, dtype: As in `Metric`.

    Raises:
        ConfigError: An argument has an unknown or impossible value.

    Example:
        >>> R2Score()([[1.0], [4.0], [3.0]], [[2.0], [4.0], [4.0]])
        0.571428571428571...
    """

    direction = "up"

    def __init__(
        self,
        class_aggregation: str | None = "uniform_average",
        num_regressors: int = 0,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name, dtype)
        if class_aggregation is not None and class_aggregation not in AGGREGATIONS:
            raise unknown_name("class_aggregation", str(class_aggregation), (*AGGREGATIONS, "None"))
        if num_regressors < 0:
            raise ConfigError(f"num_regressors must be 0 or more. Received: {num_regressors!r}.")
        self.class_aggregation = class_aggregation
        self.num_regressors = num_regressors

    def sums(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array | None = None) -> PyTree:
        """Squared errors, elements, and moments of the targets about a reference.

        Moments about 0 would lose the variance of targets whose mean is large: in float32, all of it where the mean
        is some thousand times the spread.  So a shard takes them about its own mean, rounded to a few bits, and each
        bit of this reference is a sum of its own.  Multiplying by a power of two rounds nothing, so that whatever the
        reduction over shards rounds, it rounds alike in all of these, and on the host, where they are put together
        in float64, it cancels.
        """
        y_true, y_pred = align_ranks(jnp.asarray(y_true, jnp.float32), y_pred)
        if y_pred.ndim != 2 or y_true.shape != y_pred.shape:
            raise DataError(
                f"Metric {self.name!r} takes targets and predictions of one shape (rows, outputs). Received shapes "
                f"{y_true.shape} and {y_pred.shape}."
            )
        weight = jnp.ones(y_pred.shape[:1]) if weight is None else weight
        weight = jnp.broadcast_to(align_weight(weight, y_pred.shape), y_pred.shape)
        bits = _leading_bits((weight * y_true).sum(0) / jnp.maximum(weight.sum(0), 1e-30))
        basis = jnp.concatenate([jnp.ones((1, *bits.shape[1:])), bits])
        offsets = y_true - bits.sum(0)
        return {
            "errors": (weight * jnp.square(y_true - y_pred)).sum(0),
            "weight": weight.sum(0) * basis[:, None] * basis[None],
            "offset": (weight * offsets).sum(0) * basis,
            "offset_squared": (weight * jnp.square(offsets)).sum(0),
            "elements": (weight != 0).astype(jnp.float32).sum(),
        }

    def result(self, sums: PyTree) -> float | np.ndarray:
        """The score, or ``[D]`` where `class_aggregation` is None."""
        weight, offset = sums["weight"], sums["offset"]
        first = weight[0, 1:].sum(0) + offset[0]
        second = weight[1:, 1:].sum((0, 1)) + 2 * offset[1:].sum(0) + sums["offset_squared"]
        variance = second - ratio(first**2, weight[0, 0])
        constant = variance <= 1e-12 * second  # what float32 can tell from a constant
        scores: Any = np.where(constant, 0.0, 1 - ratio(sums["errors"], np.where(constant, 1.0, variance)))
        if self.class_aggregation == "uniform_average":
            scores = np.mean(scores)
        elif self.class_aggregation == "variance_weighted_average":
            scores = ratio((variance * scores).sum(), variance.sum())
        scores = self._adjusted(scores, float(sums["elements"]))
        return float(scores) if np.ndim(scores) == 0 else scores

    def _adjusted(self, scores: Any, elements: float) -> Any:
        free = elements - self.num_regressors - 1
        if self.num_regressors == 0 or elements == 0:
            return scores
        if free <= 0:
            warnings.warn(
                f"Metric {self.name!r} cannot adjust for {self.num_regressors} regressors with {elements:.0f} "
                "elements: this is the score that is not adjusted.",
                stacklevel=2,
            )
            return scores
        return 1 - (1 - scores) * (elements - 1) / free


def _leading_bits(values: jax.Array) -> jax.Array:
    """The first bits of some numbers, each a power of two with their sign or 0.

    Args:
        values: ``[D]`` float32.

    Returns:
        ``[REFERENCE_BITS, D]``; the sum over the first axis is near the value.
    """
    mantissa, exponent = jnp.frexp(values)
    places = jnp.arange(1, REFERENCE_BITS + 1)[:, None]
    on = jnp.floor(jnp.abs(mantissa) * 2.0**places) % 2
    return jnp.sign(values) * jnp.ldexp(on, exponent - places)


def pearson_correlation(y_true: jax.Array, y_pred: jax.Array, axis: int = -1) -> jax.Array:
    """Pearson's correlation of the values of each row; 0 where one of the two is constant.

    Args:
        y_true: Targets ``[b, ..., D]``.
        y_pred: Predictions of the same shape.
        axis: The axis of the values; -1 by default.

    Raises:
        DataError: The shapes differ, or there is one value a row.

    Example:
        >>> pearson_correlation(jnp.array([[1.0, 2.0]]), jnp.array([[4.0, 6.0]])).tolist()
        [1.0]
    """
    true, pred = _deviations(y_true, y_pred, axis)
    scale = jnp.sqrt(jnp.square(true).mean(axis) * jnp.square(pred).mean(axis))
    return jnp.where(scale > 0, (true * pred).mean(axis) / jnp.where(scale > 0, scale, 1), 0.0)


def concordance_correlation(y_true: jax.Array, y_pred: jax.Array, axis: int = -1) -> jax.Array:
    """Lin's concordance of each row: ``2 cov / (var(y) + var(p) + (mean(y) - mean(p))^2)``.

    Args:
        y_true: Targets ``[b, ..., D]``.
        y_pred: Predictions of the same shape.
        axis: The axis of the values; -1 by default.

    Raises:
        DataError: The shapes differ, or there is one value a row.

    Example:
        >>> [round(v, 4) for v in concordance_correlation(jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 3.0]])).tolist()]
        [0.3333]
    """
    true, pred = _deviations(y_true, y_pred, axis)
    apart = jnp.square(y_true.mean(axis) - y_pred.mean(axis))
    return 2 * (true * pred).mean(axis) / (jnp.square(true).mean(axis) + jnp.square(pred).mean(axis) + apart + EPSILON)


def _deviations(y_true: jax.Array, y_pred: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    require_same_shape(y_true, y_pred)
    if y_pred.ndim < 2 or y_pred.shape[axis] < 2:
        raise DataError(
            f"A correlation is of the values of a row, (rows, ..., values). Received predictions of shape "
            f"{y_pred.shape}, with one value a row. Correlations over rows are no mean over rows."
        )
    return y_true - y_true.mean(axis, keepdims=True), y_pred - y_pred.mean(axis, keepdims=True)


class _Correlation(MeanMetric):
    """The mean correlation of a row, which more is better of."""

    direction = "up"

    def __init__(self, name: str | None = None, dtype: Any = None, axis: int = -1) -> None:
        if axis == 0:
            raise ConfigError("axis=0 is the axis of the rows: a correlation over them depends on the batch size.")
        super().__init__(None, name, dtype, axis=axis)


class PearsonCorrelation(_Correlation):
    """Mean of `pearson_correlation`, the correlation of the values of each row.

    Args:
        name, dtype: As in `Metric`.
        axis: The axis of the values; not that of the rows; -1 by default.

    Raises:
        ConfigError: `axis` is that of the rows.

    Example:
        >>> PearsonCorrelation()([[1.0, 2.0], [1.0, 2.0]], [[4.0, 6.0], [6.0, 4.0]])
        0.0
    """

    fn = staticmethod(pearson_correlation)


class ConcordanceCorrelation(_Correlation):
    """Mean of `concordance_correlation`, the agreement of the values of each row.

    Args:
        name, dtype: As in `Metric`.
        axis: The axis of the values; not that of the rows; -1 by default.

    Raises:
        ConfigError: `axis` is that of the rows.

    Example:
        >>> round(ConcordanceCorrelation()([[1.0, 2.0]], [[2.0, 3.0]]), 4)
        0.3333
    """

    fn = staticmethod(concordance_correlation)

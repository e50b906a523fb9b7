"""F scores: precision and recall in one number, by class.

Shapes: b rows, C classes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist.errors import ConfigError, DataError, unknown_name
from kdist.losses import align_ranks, align_weight
from kdist.metrics.base import Metric, ratio
from kdist.typing import PyTree

AVERAGES = ("micro", "macro", "weighted")


class FBetaScore(Metric):
    """``(1 + beta^2) P R / (beta^2 P + R)`` of precision P and recall R; 0 where both are 0.

    Args:
        average: None, the default, gives the score of each class, a vector ``[C]``; "macro" is their mean, "weighted"
            their mean weighted by the positive targets of each, "micro" the score of all classes counted together.
        beta: How much more recall counts than precision; positive; 1.0 by default.
        threshold: What a prediction must exceed to be positive, in (0, 1]; None, the default, takes the largest of each
            row.
        name, dtype: As in `Metric`.

    Raises:
        ConfigError: An argument has an unknown or impossible value.

    Example:
        >>> y_true, y_pred = [[1, 1], [0, 1], [1, 0]], [[0.6, 0.7], [0.7, 0.6], [0.8, 0.2]]
        >>> FBetaScore(beta=2.0, threshold=0.5)(y_true, y_pred)
        array([0.90909091, 1.        ])
    """

    direction = "up"
    default_name = "fbeta_score"

    def __init__(
        self,
        average: str | None = None,
        beta: float = 1.0,
        threshold: float | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name, dtype)
        if average is not None and average not in AVERAGES:
            raise unknown_name("average", str(average), (*AVERAGES, "None"))
        if not _is_number(beta) or beta <= 0:
            raise ConfigError(f"beta must be a number greater than 0. Received: {beta!r}.")
        if threshold is not None and not (_is_number(threshold) and 0 < threshold <= 1):
            raise ConfigError(f"threshold must be None or a number in (0, 1]. Received: {threshold!r}.")
        self.average = average
        self.beta = beta
        self.threshold = threshold

    def sums(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array | None = None) -> PyTree:
        """By class ``[C]``: the weights of hits, of what is predicted and of what is there."""
        y_true, y_pred = align_ranks(jnp.asarray(y_true), y_pred)
        if y_pred.ndim != 2 or y_true.shape != y_pred.shape:
            raise DataError(
                f"Metric {self.name!r} takes targets and predictions of one shape (rows, classes). Received shapes "
                f"{y_true.shape} and {y_pred.shape}."
            )
        if self.threshold is None:
            predicted = (y_pred >= y_pred.max(-1, keepdims=True)) & (jnp.abs(y_pred) > 1e-9)
        else:
            predicted = y_pred > self.threshold
        weight = jnp.float32(1) if weight is None else align_weight(weight, y_pred.shape)
        actual, positive = y_true.astype(jnp.float32) * weight, predicted.astype(jnp.float32)
        return {
            "hits": (actual * positive).sum(0),
            "predicted": (positive * weight).sum(0),
            "actual": actual.sum(0),
        }

    def result(self, sums: PyTree) -> float | np.ndarray:
        """The score, or ``[C]`` where `average` is None."""
        if self.average == "micro":
            sums = {k: v.sum() for k, v in sums.items()}
        precision, recall = ratio(sums["hits"], sums["predicted"]), ratio(sums["hits"], sums["actual"])
        square = self.beta**2
        scores = ratio((1 + square) * precision * recall, square * precision + recall)
        if self.average == "weighted":
            return ratio((scores * sums["actual"]).sum(), sums["actual"].sum())
        return float(np.mean(scores)) if self.average == "macro" else scores


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class F1Score(FBetaScore):
    """The harmonic mean of precision and recall: `FBetaScore` with beta 1.

    Args:
        average: See `FBetaScore`.
        threshold: See `FBetaScore`.
        name, dtype: As in `Metric`.

    Example:
        >>> F1Score(average="micro")([[1, 0], [0, 1]], [[0.9, 0.1], [0.8, 0.2]])
        0.5
    """

    default_name = "f1_score"

    def __init__(
        self,
        average: str | None = None,
        threshold: float | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(average, 1.0, threshold, name, dtype)

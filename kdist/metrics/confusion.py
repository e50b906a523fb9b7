"""Metrics of counts at thresholds: precision, recall and the area under a curve.

Shapes: b rows, T thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist.errors import ConfigError, DataError, unknown_name
from kdist.losses import EPSILON, align_ranks, align_weight
from kdist.metrics.base import Metric, ratio
from kdist.typing import PyTree


class _Thresholded(Metric):
    """Positives and negatives, counted between the thresholds that predictions lie between.

    The sums are two histograms ``[T + 1]``: entry i of the first is the weight of positive targets
    whose prediction exceeds exactly i of the sorted thresholds; the second, of negative ones.  Every
    count at every threshold follows from the two.
    """

    def __init__(self, thresholds: Sequence[float], name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name, dtype)
        self.thresholds = np.asarray(thresholds, np.float32)

    def _elements(self, y_true: jax.Array, y_pred: jax.Array) -> tuple[jax.Array, jax.Array]:
        return y_true, y_pred

    def sums(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array | None = None) -> PyTree:
        """The two histograms."""
        y_true, y_pred = align_ranks(y_true, y_pred)
        if y_true.shape != y_pred.shape:
            raise DataError(
                f"Metric {self.name!r} compares targets and predictions one by one; received shapes "
                f"{y_true.shape} and {y_pred.shape}."
            )
        if weight is not None:
            weight = jnp.broadcast_to(align_weight(weight, y_pred.shape), y_pred.shape)
        y_true, y_pred, weight = self._select(y_true, y_pred, weight)
        bucket = jnp.searchsorted(jnp.sort(self.thresholds), y_pred.ravel(), side="left")
        positive = (y_true.ravel() != 0).astype(jnp.float32)
        counts = jnp.ones_like(positive) if weight is None else weight.ravel()
        empty = jnp.zeros(len(self.thresholds) + 1, jnp.float32)
        return {
            "positive": empty.at[bucket].add(counts * positive),
            "negative": empty.at[bucket].add(counts * (1 - positive)),
        }

    def _select(
        self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """The elements that count, and their predictions as they are compared."""
        return y_true, y_pred, weight

    def _confusion(self, sums: PyTree) -> dict[str, np.ndarray]:
        """tp, fp, fn, tn at each threshold ``[T]``, in the order the thresholds were given."""
        order = np.argsort(np.argsort(self.thresholds, kind="stable"), kind="stable")
        below = {k: np.cumsum(v)[:-1][order] for k, v in sums.items()}
        total = {k: np.sum(v) for k, v in sums.items()}
        return {
            "tp": total["positive"] - below["positive"],
            "fp": total["negative"] - below["negative"],
            "fn": below["positive"],
            "tn": below["negative"],
        }


class _PrecisionOrRecall(_Thresholded):
    direction = "up"

    def __init__(
        self,
        thresholds: float | Sequence[float] | None = None,
        top_k: int | None = None,
        class_id: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        self.scalar = thresholds is None or isinstance(thresholds, (int, float))
        if thresholds is None:
            thresholds = 0.5 if top_k is None else -1e30
        values = np.atleast_1d(np.asarray(thresholds, np.float32))
        if top_k is None and not ((values >= 0) & (values <= 1)).all():
            raise ConfigError(f"thresholds must lie in [0, 1]. Received: {thresholds!r}.")
        super().__init__(values.tolist(), name, dtype)
        self.top_k = top_k
        self.class_id = class_id

    def _select(
        self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        if self.top_k is not None:
            _, top = jax.lax.top_k(y_pred, self.top_k)
            kept = jax.nn.one_hot(top, y_pred.shape[-1]).sum(-2) > 0
            y_pred = jnp.where(kept, y_pred, -jnp.inf)
        if self.class_id is not None:
            y_true, y_pred = y_true[..., self.class_id], y_pred[..., self.class_id]
            weight = None if weight is None else weight[..., self.class_id]
        return y_true, y_pred, weight

    def _scalar(self, values: Any) -> float | np.ndarray:
        return float(values[0]) if self.scalar else values


class Precision(_PrecisionOrRecall):
    """tp / (tp + fp) at each threshold, or among the `top_k` predictions of a row; 0 if empty."""

    def result(self, sums: PyTree) -> float | np.ndarray:
        """A float, or ``[T]`` if thresholds were given as a list."""
        c = self._confusion(sums)
        return self._scalar(ratio(c["tp"], c["tp"] + c["fp"]))


class Recall(_PrecisionOrRecall):
    """tp / (tp + fn) at each threshold, or among the `top_k` predictions of a row; 0 if empty."""

    def result(self, sums: PyTree) -> float | np.ndarray:
        """A float, or ``[T]`` if thresholds were given as a list."""
        c = self._confusion(sums)
        return self._scalar(ratio(c["tp"], c["tp"] + c["fn"]))


class AUC(_Thresholded):
    """Area under the ROC or precision-recall curve, by a Riemann sum over thresholds.

    Args:
        num_thresholds: How many thresholds: -1e-7, i / (num_thresholds - 1), 1 + 1e-7.
        curve: "ROC" or "PR".
        summation_method: "interpolation" (trapezoids for ROC; for PR the interpolation of Davis and
            Goadrich, "The relationship between precision-recall and ROC curves", ICML 2006),
            "minoring" or "majoring".
        name: The name in logs.
        dtype: Accepted for Keras's sake.
        thresholds: Thresholds in (0, 1) in place of `num_thresholds`.
        from_logits: Whether predictions pass through a sigmoid first.
    """

    direction = "up"
    default_name = "auc"

    def __init__(
        self,
        num_thresholds: int = 200,
        curve: str = "ROC",
        summation_method: str = "interpolation",
        name: str | None = None,
        dtype: Any = None,
        thresholds: Sequence[float] | None = None,
        from_logits: bool = False,
    ) -> None:
        if curve not in ("ROC", "PR"):
            raise unknown_name("curve", str(curve), ("ROC", "PR"))
        if summation_method not in ("interpolation", "minoring", "majoring"):
            raise unknown_name("summation_method", summation_method, ("interpolation", "minoring", "majoring"))
        if thresholds is None:
            if num_thresholds <= 1:
                raise ConfigError(f"num_thresholds must be greater than 1. Received: {num_thresholds!r}.")
            thresholds = [i / (num_thresholds - 1) for i in range(1, num_thresholds - 1)]
        elif any(not 0 <= t <= 1 for t in thresholds):
            raise ConfigError(f"thresholds must lie in [0, 1]. Received: {thresholds!r}.")
        super().__init__([-EPSILON, *sorted(thresholds), 1 + EPSILON], name, dtype)
        self.curve = curve
        self.summation_method = summation_method
        self.from_logits = from_logits

    def _select(
        self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        return y_true, jax.nn.sigmoid(y_pred) if self.from_logits else y_pred, weight

    def result(self, sums: PyTree) -> float:
        """The area, in [0, 1]."""
        c = self._confusion(sums)
        if self.curve == "PR" and self.summation_method == "interpolation":
            return self._interpolated_pr(c)
        recall = ratio(c["tp"], c["tp"] + c["fn"])
        if self.curve == "ROC":
            x, y = ratio(c["fp"], c["fp"] + c["tn"]), recall
        else:
            x, y = recall, ratio(c["tp"], c["tp"] + c["fp"])
        sides = np.stack([y[:-1], y[1:]])
        if self.summation_method == "interpolation":
            heights = sides.mean(axis=0)
        else:
            heights = sides.min(axis=0) if self.summation_method == "minoring" else sides.max(axis=0)
        return float(((x[:-1] - x[1:]) * heights).sum())

    @staticmethod
    def _interpolated_pr(c: dict[str, np.ndarray]) -> float:
        tp, predicted = c["tp"], c["tp"] + c["fp"]
        d_tp, d_predicted = tp[:-1] - tp[1:], predicted[:-1] - predicted[1:]
        slope = ratio(d_tp, np.maximum(d_predicted, 0))
        intercept = tp[1:] - slope * predicted[1:]
        both = (predicted[:-1] > 0) & (predicted[1:] > 0)
        growth = np.where(both, ratio(predicted[:-1], np.maximum(predicted[1:], 0)), 1.0)
        increment = slope * (d_tp + intercept * np.log(growth))
        return float(ratio(increment, np.maximum(tp[1:] + c["fn"][1:], 0)).sum())

"""Metrics of a whole curve: the area under it, and the best of one rate where another is high enough.

Predictions are probabilities; what lies outside [0, 1] counts as its nearest end.

Shapes: b rows, T thresholds, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist.errors import ConfigError, DataError, unknown_name
from kdist.losses import EPSILON
from kdist.metrics.base import ratio
from kdist.metrics.confusion import Confusion, Thresholded, check_thresholds
from kdist.typing import PyTree

CURVES = ("ROC", "PR", "PRGAIN")
SUMMATION_METHODS = ("interpolation", "minoring", "majoring")


class _Curve(Thresholded):
    """Thresholds spread over [0, 1]."""

    direction = "up"

    def select(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """See `Thresholded.select`."""
        return super().select(y_true, jnp.clip(y_pred, 0, 1), weight)


class AUC(_Curve):
    """Area under the ROC or a precision-recall curve, by a Riemann sum over thresholds.

    Args:
        num_thresholds: How many thresholds: -1e-7, i / (num_thresholds - 1), 1 + 1e-7; 200 by default.
        curve: "ROC", "PR" or "PRGAIN" (precision and recall gain: Flach and Kull, "Precision-recall-gain curves",
            NeurIPS 2015), in any case; "ROC" by default.
        summation_method: "interpolation" (trapezoids; for PR the interpolation of Davis and Goadrich, "The relationship
            between precision-recall and ROC curves", ICML 2006), "minoring" or "majoring"; "interpolation" by default.
        name, dtype: As in `Metric`.
        thresholds: Thresholds in [0, 1] in place of `num_thresholds`; none by default.
        multi_label: Whether each label, an entry of predictions ``[b, L]``, has an area of its own; the result is their
            mean; False by default.
        num_labels: L, where `multi_label` is set: checked against the predictions; none by default.
        label_weights: ``[L]``: what each label's area, or without `multi_label` each element, counts; none by default.
        from_logits: Whether predictions pass through a sigmoid first; False by default.

    Raises:
        ConfigError: An argument has an unknown or impossible value.

    Example:
        >>> round(AUC()([0, 1, 1, 0], [0.1, 0.4, 0.9, 0.6]), 6)
        0.75
    """

    default_name = "auc"

    def __init__(
        self,
        num_thresholds: int = 200,
        curve: str = "ROC",
        summation_method: str = "interpolation",
        name: str | None = None,
        dtype: Any = None,
        thresholds: Sequence[float] | None = None,
        multi_label: bool = False,
        num_labels: int | None = None,
        label_weights: Sequence[float] | None = None,
        from_logits: bool = False,
    ) -> None:
        if thresholds is None:
            if num_thresholds <= 1:
                raise ConfigError(f"num_thresholds must be greater than 1. Received: {num_thresholds!r}.")
            inner = np.linspace(0, 1, num_thresholds)[1:-1].tolist()
        else:
            inner = sorted(check_thresholds(thresholds))
        if num_labels is not None and not multi_label:
            raise ConfigError(f"num_labels is for multi_label=True only. Received: num_labels={num_labels!r}.")
        super().__init__([-EPSILON, *inner, 1 + EPSILON], name, dtype)
        self.curve = _choice("curve", curve, CURVES)
        self.summation_method = _choice("summation_method", summation_method, SUMMATION_METHODS)
        self.per_label = multi_label
        self.num_labels = num_labels
        self.label_weights = None if label_weights is None else np.asarray(label_weights, np.float32)
        self.from_logits = from_logits

    def select(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """See `Thresholded.select`."""
        if self.per_label and (y_pred.ndim != 2 or self.num_labels not in (None, y_pred.shape[-1])):
            labels = "labels" if self.num_labels is None else self.num_labels
            raise DataError(f"multi_label=True takes predictions (rows, {labels}). Received shape {y_pred.shape}.")
        if self.label_weights is not None:
            if self.label_weights.shape != y_pred.shape[-1:]:
                raise DataError(
                    f"label_weights of shape {self.label_weights.shape} do not fit predictions of shape "
                    f"{y_pred.shape}: give one for each entry of the last axis."
                )
            if not self.per_label:
                weight = weight * self.label_weights
        return super().select(y_true, jax.nn.sigmoid(y_pred) if self.from_logits else y_pred, weight)

    def result(self, sums: PyTree) -> float:
        """The area; the mean of the areas of the labels where `multi_label` is set."""
        c = self.confusion(sums)
        if self.curve == "PR" and self.summation_method == "interpolation":
            areas = _interpolated_pr(c)
        else:
            x, y = self._points(c)
            sides = np.stack([y[:-1], y[1:]])
            if self.summation_method == "interpolation":
                heights = sides.mean(axis=0)
            else:
                heights = sides.min(axis=0) if self.summation_method == "minoring" else sides.max(axis=0)
            areas = ((x[:-1] - x[1:]) * heights).sum(axis=0)
        if not self.per_label or self.label_weights is None:
            return float(np.mean(areas))
        return ratio((areas * self.label_weights).sum(), self.label_weights.sum(dtype=np.float64))

    def _points(self, c: Confusion) -> tuple[np.ndarray, np.ndarray]:
        """The curve's abscissas and ordinates at each threshold."""
        if self.curve == "ROC":
            return ratio(c.fp, c.fp + c.tn), c.recall
        if self.curve == "PR":
            return c.recall, c.precision
        odds = ratio(c.tp + c.fn, c.tn + c.fp)
        recall_gain = np.where(c.tp == 0, 0.0, 1 - odds * ratio(c.fn, c.tp))
        precision_gain = np.where(c.tp == 0, 1.0, 1 - odds * ratio(c.fp, c.tp))
        return np.maximum(recall_gain, 0.0), precision_gain


def _interpolated_pr(c: Confusion) -> np.ndarray:
    tp, predicted = c.tp, c.tp + c.fp
    d_tp, d_predicted = tp[:-1] - tp[1:], predicted[:-1] - predicted[1:]
    slope = ratio(d_tp, np.maximum(d_predicted, 0))
    intercept = tp[1:] - slope * predicted[1:]
    both = (predicted[:-1] > 0) & (predicted[1:] > 0)
    growth = np.where(both, ratio(predicted[:-1], np.maximum(predicted[1:], 0)), 1.0)
    increment = slope * (d_tp + intercept * np.log(growth))
    return ratio(increment, np.maximum(tp[1:] + c.fn[1:], 0)).sum(axis=0)


def _choice(what: str, value: str, known: Sequence[str]) -> str:
    """`value` in the spelling of `known`, whatever its case."""
    found = {name.lower(): name for name in known}.get(str(value).lower())
    if found is None:
        raise unknown_name(what, str(value), known)
    return found


class _BestAt(_Curve):
    """The largest value of one rate over the thresholds at which another is at least a given value; 0 if none."""

    bounded: str
    largest: str

    def __init__(self, value: float, num_thresholds: int, class_id: int | None, name: str | None, dtype: Any) -> None:
        if not 0 <= value <= 1:
            raise ConfigError(f"{self.bounded} must lie in [0, 1]. Received: {value!r}.")
        if num_thresholds < 1:
            raise ConfigError(f"num_thresholds must be at least 1. Received: {num_thresholds!r}.")
        thresholds = [0.5] if num_thresholds == 1 else np.linspace(0, 1, num_thresholds).tolist()
        super().__init__(thresholds, name, dtype, class_id=class_id)
        self.value = value

    def result(self, sums: PyTree) -> float:
        """The best rate, in [0, 1]."""
        c = self.confusion(sums)
        # In float32, so that a rate that was rounded on its way here still reaches the value.
        reached = getattr(c, self.bounded).astype(np.float32) >= np.float32(self.value)
        return float(np.max(getattr(c, self.largest), initial=0.0, where=reached))


class SensitivityAtSpecificity(_BestAt):
    """The best sensitivity (recall) at thresholds whose specificity is at least `specificity`.

    Args:
        specificity: In [0, 1].
        num_thresholds: How many thresholds, spread evenly over [0, 1]; 1 is 0.5 alone; 200 by default.
        class_id: Count this entry of the last axis only; none by default.
        name, dtype: As in `Metric`.

    Example:
        >>> SensitivityAtSpecificity(0.5)([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])
        1.0
    """

    bounded, largest = "specificity", "sensitivity"

    def __init__(
        self,
        specificity: float,
        num_thresholds: int = 200,
        class_id: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(specificity, num_thresholds, class_id, name, dtype)


class SpecificityAtSensitivity(_BestAt):
    """The best specificity at thresholds whose sensitivity (recall) is at least `sensitivity`.

    Args:
        sensitivity: In [0, 1].
        num_thresholds: How many thresholds, spread evenly over [0, 1]; 1 is 0.5 alone; 200 by default.
        class_id: Count this entry of the last axis only; none by default.
        name, dtype: As in `Metric`.

    Example:
        >>> SpecificityAtSensitivity(1.0)([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])
        0.5
    """

    bounded, largest = "sensitivity", "specificity"

    def __init__(
        self,
        sensitivity: float,
        num_thresholds: int = 200,
        class_id: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(sensitivity, num_thresholds, class_id, name, dtype)


class PrecisionAtRecall(_BestAt):
    """The best precision at thresholds whose recall is at least `recall`.

    Args:
        recall: In [0, 1].
        num_thresholds: How many thresholds, spread evenly over [0, 1]; 1 is 0.5 alone; 200 by default.
        class_id: Count this entry of the last axis only; none by default.
        name, dtype: As in `Metric`.

    Example:
        >>> PrecisionAtRecall(0.5)([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])
        1.0
    """

    bounded, largest = "recall", "precision"

    def __init__(
        self,
        recall: float,
        num_thresholds: int = 200,
        class_id: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(recall, num_thresholds, class_id, name, dtype)


class RecallAtPrecision(_BestAt):
    """The best recall at thresholds whose precision is at least `precision`.

    Args:
        precision: In [0, 1].
        num_thresholds: How many thresholds, spread evenly over [0, 1]; 1 is 0.5 alone; 200 by default.
        class_id: Count this entry of the last axis only; none by default.
        name, dtype: As in `Metric`.

    Example:
        >>> RecallAtPrecision(0.9)([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])
        0.5
    """

    bounded, largest = "precision", "recall"

    def __init__(
        self,
        precision: float,
        num_thresholds: int = 200,
        class_id: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(precision, num_thresholds, class_id, name, dtype)

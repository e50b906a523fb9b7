"""Counts of hits and misses at thresholds, and precision and recall.

`Thresholded` is what they and the metrics in `curves.py` share: two histograms on the devices, and on the host
the `Confusion` that follows from them.

Shapes: b rows, T thresholds, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdist.errors import ConfigError, DataError
from kdist.losses import align_ranks, align_weight
from kdist.metrics.base import Metric, ratio
from kdist.metrics.counting import thresholds_below, totals
from kdist.typing import PyTree

BELOW_ALL = -1e10
"""What predictions that are not among the top k become; the threshold that only they do not exceed."""


class Confusion(NamedTuple):
    """Weights of true and false positives and negatives at each threshold, ``[T]`` or ``[T, L]``, float64.

    Example:
        >>> Confusion(tp=np.array([3.0]), fp=np.array([1.0]), fn=np.array([0.0]), tn=np.array([0.0])).precision
        array([0.75])
    """

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """``tp / (tp + fp)``, 0 where nothing is predicted."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> np.ndarray:
        """``tp / (tp + fn)``, 0 where there are no positives."""
        return ratio(self.tp, self.tp + self.fn)

    @property
    def sensitivity(self) -> np.ndarray:
        """Another name of `recall`."""
        return self.recall

    @property
    def specificity(self) -> np.ndarray:
        """``tn / (tn + fp)``, 0 where there are no negatives."""
        return ratio(self.tn, self.tn + self.fp)


class Thresholded(Metric):
    """Positives and negatives, counted between the thresholds that predictions lie between.

    The sums are two histograms ``[T + 1]``: entry i of the first is the weight of positive targets
    whose prediction exceeds exactly i of the sorted thresholds; the second, of negative ones.  Every
    count at every threshold follows from the two.

    Args:
        thresholds: Numbers, in any order; a prediction is positive where it is greater.
        class_id: Count this entry of the last axis only; None counts all.
        top_k: Predictions that are not among the `top_k` largest of the last axis are never positive.
        name, dtype: As in `Metric`.

    Example:
        >>> Thresholded([0.5]).sums(np.array([0.0, 1.0]), np.array([0.2, 0.8]))["positive"].tolist()
        [0.0, 1.0]
    """

    per_label = False
    """Whether each entry of the last axis is counted by itself: histograms are then ``[T + 1, L]``."""

    def __init__(
        self,
        thresholds: Sequence[float],
        name: str | None = None,
        dtype: Any = None,
        *,
        class_id: int | None = None,
        top_k: int | None = None,
    ) -> None:
        super().__init__(name, dtype)
        self.thresholds = np.asarray(thresholds, np.float32)
        self.class_id = class_id
        self.top_k = top_k

    def sums(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array | None = None) -> PyTree:
        """The two histograms."""
        y_true, y_pred = align_ranks(jnp.asarray(y_true), jnp.asarray(y_pred))
        if y_true.shape != y_pred.shape:
            raise DataError(
                f"Metric {self.name!r} compares targets and predictions one by one; received shapes "
                f"{y_true.shape} and {y_pred.shape}."
            )
        weight = jnp.ones(y_pred.shape) if weight is None else weight
        weight = jnp.broadcast_to(align_weight(weight, y_pred.shape), y_pred.shape)
        y_true, y_pred, weight = self.select(y_true, y_pred, weight)
        index = thresholds_below(y_pred, np.sort(self.thresholds))
        shape: tuple[int, ...] = (len(self.thresholds) + 1,)
        if self.per_label:
            index = index * y_pred.shape[-1] + jnp.arange(y_pred.shape[-1])
            shape = (*shape, y_pred.shape[-1])
        is_positive = y_true != 0
        weights = jnp.stack([jnp.where(is_positive, weight, 0), jnp.where(is_positive, 0, weight)])
        positive, negative = totals(index.ravel(), weights.reshape(2, -1), int(np.prod(shape)))
        return {"positive": positive.reshape(shape), "negative": negative.reshape(shape)}

    def select(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The elements that count, predictions as they are compared with thresholds, and weights; of one shape."""
        if self.top_k is None and self.class_id is None:
            return y_true, y_pred, weight
        classes = y_pred.shape[-1] if y_pred.ndim > 1 else 0
        if max(self.top_k or 0, (self.class_id or 0) + 1) > classes:
            raise DataError(
                f"Metric {self.name!r} has top_k={self.top_k} and class_id={self.class_id}, which predictions of shape "
                f"{y_pred.shape} have not: expected (rows, ..., classes) with more classes."
            )
        if self.top_k is not None:
            _, top = jax.lax.top_k(y_pred, self.top_k)
            kept = (top[..., None] == jnp.arange(classes)).any(-2)
            y_pred = jnp.where(kept, y_pred, BELOW_ALL)
        if self.class_id is not None:
            y_true, y_pred, weight = (a[..., self.class_id] for a in (y_true, y_pred, weight))
        return y_true, y_pred, weight

    def confusion(self, sums: PyTree) -> Confusion:
        """The counts at each threshold, in the order in which the thresholds were given."""
        order = np.argsort(np.argsort(self.thresholds, kind="stable"), kind="stable")
        below = {k: np.cumsum(v, axis=0)[:-1][order] for k, v in sums.items()}
        above = {k: v.sum(axis=0) - below[k] for k, v in sums.items()}
        return Confusion(tp=above["positive"], fp=above["negative"], fn=below["positive"], tn=below["negative"])


class _Listed(Thresholded):
    """One value a threshold: a float for one, ``[T]`` for several."""

    def __init__(
        self,
        thresholds: float | Sequence[float] | None,
        name: str | None,
        dtype: Any,
        *,
        class_id: int | None = None,
        top_k: int | None = None,
    ) -> None:
        if thresholds is None:
            values = [0.5 if top_k is None else BELOW_ALL]
        else:
            values = check_thresholds(thresholds)
        super().__init__(values, name, dtype, class_id=class_id, top_k=top_k)

    def at_each(self, confusion: Confusion) -> np.ndarray:
        """The metric at each threshold ``[T]``."""
        raise NotImplementedError

    def result(self, sums: PyTree) -> float | np.ndarray:
        """A float for one threshold, ``[T]`` for several."""
        values = self.at_each(self.confusion(sums))
        return float(values[0]) if len(values) == 1 else values


def check_thresholds(thresholds: float | Sequence[float]) -> list[float]:
    """One threshold or several as a list.

    Raises:
        ConfigError: They are not numbers in [0, 1].

    Example:
        >>> check_thresholds(0.5)
        [0.5]
    """
    try:
        values = np.atleast_1d(np.asarray(thresholds, np.float64)).ravel().tolist()
    except (TypeError, ValueError):
        values = []
    if not values or not all(0 <= t <= 1 for t in values):
        raise ConfigError(f"thresholds must lie in [0, 1]: a number or a list of numbers. Received: {thresholds!r}.")
    return values


class _Count(_Listed):
    """A count, which neither more nor less is better of."""

    cell: str

    def __init__(
        self, thresholds: float | Sequence[float] | None = None, name: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__(thresholds, name, dtype)

    def at_each(self, confusion: Confusion) -> np.ndarray:
        """See `_Listed.at_each`."""
        return getattr(confusion, self.cell)


class TruePositives(_Count):
    """The weight of the positive targets whose prediction exceeds a threshold, 0.5 by default.

    Args:
        thresholds: One, or several, which give a vector ``[T]``; 0.5 by default.
        name, dtype: As in `Metric`.

    Raises:
        ConfigError: A threshold does not lie in [0, 1].

    Example:
        >>> TruePositives()([0, 1, 1], [0.9, 0.9, 0.1])
        1.0
    """

    cell = "tp"


class FalsePositives(_Count):
    """The weight of the negative targets whose prediction exceeds a threshold, 0.5 by default.

    Args:
        thresholds: One, or several, which give a vector ``[T]``; 0.5 by default.
        name, dtype: As in `Metric`.

    Raises:
        ConfigError: A threshold does not lie in [0, 1].

    Example:
        >>> FalsePositives()([0, 1, 0], [0.9, 0.9, 0.6])
        2.0
    """

    cell = "fp"


class FalseNegatives(_Count):
    """The weight of the positive targets whose prediction exceeds no threshold, 0.5 by default.

    Args:
        thresholds: One, or several, which give a vector ``[T]``; 0.5 by default.
        name, dtype: As in `Metric`.

    Raises:
        ConfigError: A threshold does not lie in [0, 1].

    Example:
        >>> FalseNegatives()([0, 1, 1], [0.9, 0.9, 0.1])
        1.0
    """

    cell = "fn"


class TrueNegatives(_Count):
    """The weight of the negative targets whose prediction exceeds no threshold, 0.5 by default.

    Args:
        thresholds: One, or several, which give a vector ``[T]``; 0.5 by default.
        name, dtype: As in `Metric`.

    Raises:
        ConfigError: A threshold does not lie in [0, 1].

    Example:
        >>> TrueNegatives()([0, 1, 0], [0.9, 0.9, 0.1])
        1.0
    """

    cell = "tn"


class _Rate(_Listed):
    direction = "up"
    rate: str

    def __init__(
        self,
        thresholds: float | Sequence[float] | None = None,
        top_k: int | None = None,
        class_id: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(thresholds, name, dtype, class_id=class_id, top_k=top_k)

    def at_each(self, confusion: Confusion) -> np.ndarray:
        """See `_Listed.at_each`."""
        return getattr(confusion, self.rate)


class Precision(_Rate):
    """How much of what is predicted is there: tp / (tp + fp), 0 if nothing is predicted.

    Args:
        thresholds: What a prediction must exceed, in [0, 1]: a number or several; 0.5 by default, and nothing
            where `top_k` is given.
        top_k: Only the `top_k` largest predictions of the last axis are positive; none by default.
        class_id: Count this entry of the last axis only; none by default.
        name, dtype: As in `Metric`.

    Example:
        >>> Precision()([0, 1, 1, 1], [0.9, 0.9, 0.6, 0.1])
        0.6666666666666666
    """

    rate = "precision"


class Recall(_Rate):
    """How much of what is there is predicted: tp / (tp + fn), 0 if there are no positives.

    Args:
        thresholds: What a prediction must exceed, in [0, 1]: a number or several; 0.5 by default, and nothing
            where `top_k` is given.
        top_k: Only the `top_k` largest predictions of the last axis are positive; none by default.
        class_id: Count this entry of the last axis only; none by default.
        name, dtype: As in `Metric`.

    Example:
        >>> Recall(thresholds=[0.5, 0.05])([0, 1, 1], [0.9, 0.9, 0.1])
        array([0.5, 1. ])
    """

    rate = "recall"

"""Metrics: what is counted on the devices, as additive sums, and what it comes to, on the host.

A metric turns (targets, predictions, weights) into *sums*, a small tree of float32 arrays: merging
two is ``+``, over steps, shards and processes alike, and zeros are the empty one.  `result` turns
sums that have been added up, in float64 and on the host, into what a person reads.  Names,
arguments, defaults and values are Keras's.  To add a metric: write the class, and one `_register`
line at the end of the file.

Shapes: b rows, C classes, T thresholds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist import losses
from kdist.errors import ConfigError, DataError, unknown_name
from kdist.losses import align_ranks, align_weight, function_name, snake_case, target_kind
from kdist.typing import PyTree


class Metric:
    """Additive sums over rows, and their result.  Subclass it and override `sums` and `result`.

    Args:
        name: The name in logs; the class's name in snake case by default.
        dtype: Accepted for Keras's sake; sums are float32 on the devices, float64 on the host.
    """

    direction: str | None = None
    """"up" if more is better, "down" if less is, None if neither."""
    default_name: str | None = None

    def __init__(self, name: str | None = None, dtype: Any = None) -> None:
        self.name = name or self.default_name or snake_case(type(self).__name__)

    def sums(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array | None = None) -> PyTree:
        """What these rows add.

        Args:
            y_true: Targets ``[b, ...]``.
            y_pred: Predictions ``[b, ...]``, float32.
            weight: ``[b]`` or ``[b, T]``, 0 for rows that fill a batch; None if all count as 1.
        """
        raise NotImplementedError(f"{type(self).__name__} must define sums(y_true, y_pred, weight).")

    def result(self, sums: PyTree) -> float | np.ndarray:
        """The metric's value, from NumPy sums."""
        raise NotImplementedError(f"{type(self).__name__} must define result(sums).")

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> float | np.ndarray:
        """The value over one batch."""
        weight = None if sample_weight is None else jnp.asarray(sample_weight, jnp.float32)
        sums = self.sums(jnp.asarray(y_true), jnp.asarray(y_pred, jnp.float32), weight)
        return self.result(jax.tree.map(lambda a: np.asarray(a, np.float64), sums))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


def _ratio(numerator: Any, denominator: Any) -> Any:
    """``numerator / denominator`` in NumPy, and 0 where the denominator is 0."""
    numerator, denominator = np.asarray(numerator), np.asarray(denominator)
    out = np.divide(numerator, denominator, out=np.zeros(np.shape(denominator)), where=denominator != 0)
    return float(out) if out.ndim == 0 else out


# Means -----------------------------------------------------------------------------------------


class MeanMetric(Metric):
    """The weighted mean over rows of a function of targets and predictions.

    Args:
        fn: ``fn(y_true, y_pred, **arguments)`` gives values ``[b, ...]``, or a scalar, which counts
            once for every row seen.
        name: The name in logs.
        arguments: Further arguments of `fn`.
    """

    fn: Callable[..., jax.Array]

    def __init__(
        self,
        fn: Callable[..., jax.Array] | None = None,
        name: str | None = None,
        dtype: Any = None,
        **arguments: Any,
    ) -> None:
        super().__init__(name or (function_name(fn) if fn is not None else None), dtype)
        if fn is not None:
            self.fn = fn
        self.arguments = arguments

    def values(self, y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
        """The function's values ``[b, ...]``, or a scalar."""
        return jnp.asarray(self.fn(*align_ranks(y_true, y_pred), **self.arguments), jnp.float32)

    def sums(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array | None = None) -> PyTree:
        """(weighted sum of the rows' values, sum of the weights)."""
        values = self.values(y_true, y_pred)
        if values.ndim == 0:
            values = jnp.broadcast_to(values, y_pred.shape[:1])
        if weight is None:
            return _row_mean(values).sum(), jnp.float32(values.shape[0])
        if weight.ndim == values.ndim + 1 and weight.shape[-1] == 1:
            weight = weight[..., 0]
        if weight.ndim < values.ndim:
            values = values.mean(axis=tuple(range(weight.ndim, values.ndim)))
        weighted = values * align_weight(weight, values.shape)
        return _row_mean(weighted).sum(), _row_mean(weight).sum()

    def result(self, sums: PyTree) -> float:
        """The mean; 0 where nothing counted."""
        return _ratio(*sums)


def _row_mean(values: jax.Array) -> jax.Array:
    return values.reshape(values.shape[0], -1).mean(axis=1)


class _LossMean(MeanMetric):
    """The mean of a loss function, which less is better of."""

    direction = "down"

    def __init__(self, name=None, dtype=None, **arguments):
        super().__init__(None, name, dtype, **arguments)


class MeanSquaredError(_LossMean):
    """Mean of `kdist.losses.mean_squared_error`."""

    fn = staticmethod(losses.mean_squared_error)


class RootMeanSquaredError(MeanSquaredError):
    """The square root of the mean squared error over everything."""

    def result(self, sums: PyTree) -> float:
        """The root of the mean."""
        return float(np.sqrt(super().result(sums)))


class MeanAbsoluteError(_LossMean):
    """Mean of `kdist.losses.mean_absolute_error`."""

    fn = staticmethod(losses.mean_absolute_error)


class MeanAbsolutePercentageError(_LossMean):
    """Mean of `kdist.losses.mean_absolute_percentage_error`."""

    fn = staticmethod(losses.mean_absolute_percentage_error)


class MeanSquaredLogarithmicError(_LossMean):
    """Mean of `kdist.losses.mean_squared_logarithmic_error`."""

    fn = staticmethod(losses.mean_squared_logarithmic_error)


class LogCoshError(_LossMean):
    """Mean of `kdist.losses.log_cosh`."""

    fn = staticmethod(losses.log_cosh)
    default_name = "logcosh"


class Poisson(_LossMean):
    """Mean of `kdist.losses.poisson`."""

    fn = staticmethod(losses.poisson)


class KLDivergence(_LossMean):
    """Mean of `kdist.losses.kl_divergence`."""

    fn = staticmethod(losses.kl_divergence)


class CosineSimilarity(MeanMetric):
    """Mean cosine of the angle between targets and predictions: 1 is alike."""

    direction = "up"

    def __init__(self, name=None, dtype=None, axis=-1):
        super().__init__(None, name, dtype, axis=axis)

    @staticmethod
    def fn(y_true: jax.Array, y_pred: jax.Array, axis: int = -1) -> jax.Array:
        """The cosine, where the loss is minus the cosine."""
        return -losses.cosine_similarity(y_true.astype(jnp.float32), y_pred, axis)


class BinaryCrossentropy(_LossMean):
    """Mean of `kdist.losses.binary_crossentropy`."""

    fn = staticmethod(losses.binary_crossentropy)

    def __init__(self, name=None, dtype=None, from_logits=False, label_smoothing=0):
        super().__init__(name, dtype, from_logits=from_logits, label_smoothing=label_smoothing)


class CategoricalCrossentropy(_LossMean):
    """Mean of `kdist.losses.categorical_crossentropy`."""

    fn = staticmethod(losses.categorical_crossentropy)

    def __init__(self, name=None, dtype=None, from_logits=False, label_smoothing=0, axis=-1):
        super().__init__(name, dtype, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis)


class SparseCategoricalCrossentropy(_LossMean):
    """Mean of `kdist.losses.sparse_categorical_crossentropy`, over all rows, as in Keras."""

    fn = staticmethod(losses.sparse_categorical_crossentropy)

    def __init__(self, name=None, dtype=None, from_logits=False, ignore_class=None, axis=-1):
        super().__init__(name, dtype, from_logits=from_logits, ignore_class=ignore_class, axis=axis)


# Accuracies ------------------------------------------------------------------------------------


def binary_accuracy(y_true: jax.Array, y_pred: jax.Array, threshold: float = 0.5) -> jax.Array:
    """How often ``(p > threshold) == y``, mean over the last axis."""
    hits = ((y_pred > threshold).astype(jnp.float32) == y_true.astype(jnp.float32)).astype(jnp.float32)
    return hits.mean(-1) if hits.ndim > 1 else hits


def categorical_accuracy(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """Whether the largest prediction is where the largest target is."""
    return (y_true.argmax(-1) == y_pred.argmax(-1)).astype(jnp.float32)


def sparse_categorical_accuracy(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """Whether the largest prediction is at the label."""
    return (_labels(y_true, y_pred) == y_pred.argmax(-1)).astype(jnp.float32)


def top_k_categorical_accuracy(y_true: jax.Array, y_pred: jax.Array, k: int = 5) -> jax.Array:
    """Whether fewer than `k` predictions are larger than that of the largest target."""
    return sparse_top_k_categorical_accuracy(y_true.argmax(-1), y_pred, k)


def sparse_top_k_categorical_accuracy(y_true: jax.Array, y_pred: jax.Array, k: int = 5) -> jax.Array:
    """Whether fewer than `k` predictions are larger than that of the label; ties are hits."""
    labels = _labels(y_true, y_pred)
    score = jnp.take_along_axis(y_pred, jnp.clip(labels, 0, y_pred.shape[-1] - 1)[..., None], axis=-1)
    known = (labels >= 0) & (labels < y_pred.shape[-1])
    return (((y_pred > score).sum(-1) < k) & known).astype(jnp.float32)


def _labels(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    same_rank = y_true.ndim == y_pred.ndim and y_true.shape[-1] == 1
    labels = (y_true[..., 0] if same_rank else y_true).astype(jnp.int32)
    if labels.shape != y_pred.shape[:-1]:
        raise DataError(
            f"Integer labels of shape {y_true.shape} do not fit predictions of shape {y_pred.shape}: "
            "expected one label a prediction."
        )
    return labels


class _HitRate(MeanMetric):
    """The mean of hits, which more is better of."""

    direction = "up"

    def __init__(self, name=None, dtype=None, **arguments):
        super().__init__(None, name, dtype, **arguments)


class Accuracy(_HitRate):
    """How often predictions equal targets exactly."""

    @staticmethod
    def fn(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
        """1 where equal."""
        return (y_true == y_pred).astype(jnp.float32)


class BinaryAccuracy(_HitRate):
    """See `binary_accuracy`."""

    fn = staticmethod(binary_accuracy)

    def __init__(self, name=None, dtype=None, threshold=0.5):
        super().__init__(name, dtype, threshold=threshold)


class CategoricalAccuracy(_HitRate):
    """See `categorical_accuracy`."""

    fn = staticmethod(categorical_accuracy)


class SparseCategoricalAccuracy(_HitRate):
    """See `sparse_categorical_accuracy`."""

    fn = staticmethod(sparse_categorical_accuracy)


class TopKCategoricalAccuracy(_HitRate):
    """See `top_k_categorical_accuracy`."""

    fn = staticmethod(top_k_categorical_accuracy)

    def __init__(self, k=5, name=None, dtype=None):
        super().__init__(name, dtype, k=k)


class SparseTopKCategoricalAccuracy(_HitRate):
    """See `sparse_top_k_categorical_accuracy`."""

    fn = staticmethod(sparse_top_k_categorical_accuracy)

    def __init__(self, k=5, name=None, dtype=None):
        super().__init__(name, dtype, k=k)


# Counts at thresholds --------------------------------------------------------------------------


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
        return self._scalar(_ratio(c["tp"], c["tp"] + c["fp"]))


class Recall(_PrecisionOrRecall):
    """tp / (tp + fn) at each threshold, or among the `top_k` predictions of a row; 0 if empty."""

    def result(self, sums: PyTree) -> float | np.ndarray:
        """A float, or ``[T]`` if thresholds were given as a list."""
        c = self._confusion(sums)
        return self._scalar(_ratio(c["tp"], c["tp"] + c["fn"]))


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
        super().__init__([-losses.EPSILON, *sorted(thresholds), 1 + losses.EPSILON], name, dtype)
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
        recall = _ratio(c["tp"], c["tp"] + c["fn"])
        if self.curve == "ROC":
            x, y = _ratio(c["fp"], c["fp"] + c["tn"]), recall
        else:
            x, y = recall, _ratio(c["tp"], c["tp"] + c["fp"])
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
        slope = _ratio(d_tp, np.maximum(d_predicted, 0))
        intercept = tp[1:] - slope * predicted[1:]
        both = (predicted[:-1] > 0) & (predicted[1:] > 0)
        ratio = np.where(both, _ratio(predicted[:-1], np.maximum(predicted[1:], 0)), 1.0)
        increment = slope * (d_tp + intercept * np.log(ratio))
        return float(_ratio(increment, np.maximum(tp[1:] + c["fn"][1:], 0)).sum())


# Registry --------------------------------------------------------------------------------------

_BY_NAME: dict[str, type[Metric]] = {}

BY_SHAPE = ("accuracy", "acc", "crossentropy", "ce")
"""Names, in any case, that stand for one of three metrics, by the shapes of targets and predictions."""


def _register(cls: type[Metric], *aliases: str) -> None:
    for name in (cls.__name__, snake_case(cls.__name__), *aliases):
        _BY_NAME[name] = cls


_register(MeanSquaredError, "mse", "MSE")
_register(RootMeanSquaredError)
_register(MeanAbsoluteError, "mae", "MAE")
_register(MeanAbsolutePercentageError, "mape", "MAPE")
_register(MeanSquaredLogarithmicError, "msle", "MSLE")
_register(LogCoshError)
_register(Poisson)
_register(KLDivergence, "kld", "KLD")
_register(CosineSimilarity)
_register(BinaryCrossentropy, "bce", "BCE")
_register(CategoricalCrossentropy)
_register(SparseCategoricalCrossentropy)
_register(Accuracy)
_register(BinaryAccuracy)
_register(CategoricalAccuracy)
_register(SparseCategoricalAccuracy)
_register(TopKCategoricalAccuracy)
_register(SparseTopKCategoricalAccuracy)
_register(Precision)
_register(Recall)
_register(AUC, "auc")


def names() -> list[str]:
    """Every string that `get` accepts."""
    return sorted((*_BY_NAME, *BY_SHAPE))


def get(identifier: Any) -> Metric | str:
    """A metric from what `compile` accepts.

    Args:
        identifier: A name, a Metric, a Metric class, or a callable ``(y_true, y_pred)``.

    Returns:
        A Metric, or the string itself where it is one of `BY_SHAPE` (`for_shapes` resolves it).

    Raises:
        ConfigError: The name is unknown, or the thing is no metric.
    """
    if isinstance(identifier, Metric):
        return identifier
    if isinstance(identifier, str):
        if identifier.lower() in BY_SHAPE:
            return identifier
        if identifier not in _BY_NAME:
            raise unknown_name("metric", identifier, names())
        cls = _BY_NAME[identifier]
        return cls() if identifier == cls.__name__ else cls(name=identifier)
    if inspect.isclass(identifier) and issubclass(identifier, Metric):
        return identifier()
    if callable(identifier):
        return MeanMetric(identifier)
    raise ConfigError(
        f"Expected a metric: a name, a kdist.metrics.Metric or a callable (y_true, y_pred). Received: {identifier!r}."
    )


def for_shapes(metric: Metric | str, true_shape: tuple[int, ...], pred_shape: tuple[int, ...]) -> Metric:
    """`metric`, with "accuracy" and "crossentropy" resolved for targets and predictions of these shapes."""
    if isinstance(metric, Metric):
        return metric
    kind = target_kind(true_shape, pred_shape)
    accuracy = metric.lower() in ("accuracy", "acc")
    cls: type[Metric] = {
        "binary": BinaryAccuracy if accuracy else BinaryCrossentropy,
        "sparse": SparseCategoricalAccuracy if accuracy else SparseCategoricalCrossentropy,
        "categorical": CategoricalAccuracy if accuracy else CategoricalCrossentropy,
    }[kind]
    return cls(name=metric)

"""Metrics, by Keras's names, arguments, defaults and values.

A metric turns (targets, predictions, weights) into *sums*, a small tree of float32 arrays: merging two is
``+``, over steps, shards and processes alike, and zeros are the empty one.  `result` turns sums that have
been added up, in float64 and on the host, into what a person reads.  To add a metric: its class, and one
`_register` line here.
"""

from __future__ import annotations

import inspect
from typing import Any

from kdist.errors import ConfigError, unknown_name
from kdist.losses import target_kind
from kdist.metrics.accuracy import (
    Accuracy,
    BinaryAccuracy,
    CategoricalAccuracy,
    SparseCategoricalAccuracy,
    SparseTopKCategoricalAccuracy,
    TopKCategoricalAccuracy,
    binary_accuracy,
    categorical_accuracy,
    sparse_categorical_accuracy,
    sparse_top_k_categorical_accuracy,
    top_k_categorical_accuracy,
)
from kdist.metrics.base import MeanMetric, Metric
from kdist.metrics.confusion import AUC, Precision, Recall
from kdist.metrics.means import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    CosineSimilarity,
    KLDivergence,
    LogCoshError,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    Poisson,
    RootMeanSquaredError,
    SparseCategoricalCrossentropy,
)
from kdist.naming import snake_case

__all__ = [
    "AUC",
    "Accuracy",
    "BY_SHAPE",
    "BinaryAccuracy",
    "BinaryCrossentropy",
    "CategoricalAccuracy",
    "CategoricalCrossentropy",
    "CosineSimilarity",
    "KLDivergence",
    "LogCoshError",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanMetric",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Metric",
    "Poisson",
    "Precision",
    "Recall",
    "RootMeanSquaredError",
    "SparseCategoricalAccuracy",
    "SparseCategoricalCrossentropy",
    "SparseTopKCategoricalAccuracy",
    "TopKCategoricalAccuracy",
    "binary_accuracy",
    "categorical_accuracy",
    "for_shapes",
    "get",
    "names",
    "sparse_categorical_accuracy",
    "sparse_top_k_categorical_accuracy",
    "top_k_categorical_accuracy",
]

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
    if callable(identifier) and not inspect.isclass(identifier):
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

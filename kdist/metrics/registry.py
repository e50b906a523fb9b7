"""A metric from what `compile` accepts: a name, an object, a class or a function."""

from __future__ import annotations

import inspect
from typing import Any

from kdist import losses
from kdist.errors import ConfigError, unknown_name
from kdist.losses import Loss, target_kind
from kdist.metrics import accuracy, confusion, curves, fscore, iou, means, reductions, regression
from kdist.metrics.base import MeanMetric, Metric
from kdist.metrics.foreign import ForeignMetric, is_foreign
from kdist.naming import snake_case

_CLASSES: tuple[type[Metric], ...] = (
    reductions.Mean,
    reductions.Sum,
    means.MeanSquaredError,
    means.RootMeanSquaredError,
    means.MeanAbsoluteError,
    means.MeanAbsolutePercentageError,
    means.MeanSquaredLogarithmicError,
    means.LogCoshError,
    means.Hinge,
    means.SquaredHinge,
    means.CategoricalHinge,
    means.Poisson,
    means.KLDivergence,
    means.CosineSimilarity,
    means.BinaryCrossentropy,
    means.CategoricalCrossentropy,
    means.SparseCategoricalCrossentropy,
    accuracy.Accuracy,
    accuracy.BinaryAccuracy,
    accuracy.CategoricalAccuracy,
    accuracy.SparseCategoricalAccuracy,
    accuracy.TopKCategoricalAccuracy,
    accuracy.SparseTopKCategoricalAccuracy,
    confusion.TruePositives,
    confusion.TrueNegatives,
    confusion.FalsePositives,
    confusion.FalseNegatives,
    confusion.Precision,
    confusion.Recall,
    curves.AUC,
    curves.SensitivityAtSpecificity,
    curves.SpecificityAtSensitivity,
    curves.PrecisionAtRecall,
    curves.RecallAtPrecision,
    fscore.FBetaScore,
    fscore.F1Score,
    iou.IoU,
    iou.BinaryIoU,
    iou.MeanIoU,
    iou.OneHotIoU,
    iou.OneHotMeanIoU,
    regression.R2Score,
    regression.PearsonCorrelation,
    regression.ConcordanceCorrelation,
)
_SHORT: dict[str, type[Metric]] = {
    "bce": means.BinaryCrossentropy,
    "kld": means.KLDivergence,
    "mae": means.MeanAbsoluteError,
    "mape": means.MeanAbsolutePercentageError,
    "mse": means.MeanSquaredError,
    "msle": means.MeanSquaredLogarithmicError,
}
_BY_NAME: dict[str, type[Metric]] = {
    **{cls.__name__: cls for cls in _CLASSES},
    **{snake_case(cls.__name__): cls for cls in _CLASSES},
    **_SHORT,
    **{name.upper(): cls for name, cls in _SHORT.items()},
}

BY_SHAPE = ("accuracy", "acc", "crossentropy", "ce")
"""Names, in any case, that stand for one of three metrics, by the shapes of targets and predictions."""


def names() -> list[str]:
    """Every string that `get` accepts: a class's name, it in snake case, a short form, or the name of a loss.

    Classes that cannot do without arguments have none.

    Example:
        >>> "F1Score" in names(), "f1_score" in names(), "huber" in names(), "mean_io_u" in names()
        (True, True, True, False)
    """
    metrics = (
        name for name, cls in _BY_NAME.items() if not _missing(cls) and not issubclass(cls, reductions.Reduction)
    )
    return sorted({*metrics, *BY_SHAPE, *_loss_names()})


def get(identifier: Any) -> Metric | str:
    """A metric from what `compile` accepts.

    Args:
        identifier: A name, a Metric, a Metric class, a callable ``(y_true, y_pred)``, a loss, or a metric of clu,
            metrax or flax.nnx (see `ForeignMetric`).

    Returns:
        A Metric, or the string itself where it is one of `BY_SHAPE` (`for_shapes` resolves it).

    Raises:
        ConfigError: The name is unknown, the class needs arguments, or the thing is no metric.

    Example:
        >>> get("auc"), get("huber"), get("acc")
        (<AUC 'auc'>, <LossMean 'huber'>, 'acc')
    """
    if isinstance(identifier, str):
        return identifier if identifier.lower() in BY_SHAPE else _named(identifier)
    if isinstance(identifier, type) and issubclass(identifier, Metric):
        return _checked(_made(identifier, identifier.__name__))
    if isinstance(identifier, type) and issubclass(identifier, Loss):
        return means.LossMean(identifier())
    if isinstance(identifier, Metric):
        return _checked(identifier)
    if isinstance(identifier, Loss):
        return means.LossMean(identifier)
    if is_foreign(identifier):
        return ForeignMetric(identifier)
    if callable(identifier) and not inspect.isclass(identifier) and not hasattr(identifier, "update_state"):
        metric = MeanMetric(identifier)
        if inspect.isfunction(identifier) and getattr(losses, identifier.__name__, None) is identifier:
            metric.direction = "down"
        return metric
    hint = (
        f" Is kdist.metrics.{type(identifier).__name__} what you mean?" if hasattr(identifier, "update_state") else ""
    )
    raise ConfigError(
        "Expected a metric: a name, a kdist.metrics.Metric, a callable (y_true, y_pred), or a metric of clu, metrax or "
        f"flax.nnx. Received: {identifier!r}.{hint}"
    )


def for_shapes(metric: Metric | str, true_shape: tuple[int, ...], pred_shape: tuple[int, ...]) -> Metric:
    """`metric`, with "accuracy" and "crossentropy" resolved for targets and predictions of these shapes.

    Args:
        metric: What `get` returned: a Metric, or one of the names in `BY_SHAPE`.
        true_shape: Shape of the targets, rows first.
        pred_shape: Shape of the predictions, rows first.

    Example:
        >>> for_shapes("acc", (8,), (8, 3))
        <SparseCategoricalAccuracy 'acc'>
    """
    if isinstance(metric, Metric):
        return metric
    kind = target_kind(true_shape, pred_shape)
    is_accuracy = metric.lower() in ("accuracy", "acc")
    cls: type[Metric] = {
        "binary": accuracy.BinaryAccuracy if is_accuracy else means.BinaryCrossentropy,
        "sparse": accuracy.SparseCategoricalAccuracy if is_accuracy else means.SparseCategoricalCrossentropy,
        "categorical": accuracy.CategoricalAccuracy if is_accuracy else means.CategoricalCrossentropy,
    }[kind]
    return cls(name=metric)


def _named(name: str) -> Metric:
    if name in _BY_NAME:
        return _checked(_made(_BY_NAME[name], name, name=name))  # logged as it was written
    if name in _loss_names():
        loss = losses.get(name)
        assert isinstance(loss, Loss)
        return means.LossMean(loss, name)
    raise unknown_name("metric", name, names())


def _loss_names() -> list[str]:
    """Names of losses that are no metric's, and that have a mean over rows."""
    own = (name for name in losses.names() if name not in _BY_NAME and name not in BY_SHAPE)
    return [name for name in own if isinstance(loss := losses.get(name), Loss) and not loss.across_rows]


def _made(cls: type[Metric], asked_for: str, **arguments: Any) -> Metric:
    missing = _missing(cls)
    if missing:
        given = ", ".join(f"{name}=..." for name in missing)
        raise ConfigError(
            f"The metric {asked_for!r} cannot be made without {' and '.join(missing)}. In its place pass the object: "
            f"kdist.metrics.{cls.__name__}({given})."
        )
    return cls(**arguments)


def _missing(cls: type[Metric]) -> list[str]:
    """The arguments that a class has no defaults for."""
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _checked(metric: Metric) -> Metric:
    if isinstance(metric, reductions.Reduction):
        metric.require_function()
    return metric

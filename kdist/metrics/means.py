"""Means of loss functions, over everything that an epoch saw."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist import losses
from kdist.errors import ConfigError
from kdist.metrics.base import MeanMetric
from kdist.typing import PyTree


class LossMean(MeanMetric):
    """The mean of any loss, unreduced; less of it is better.

    Args:
        loss: The loss; its reduction means nothing here.
        name: The name in logs; the loss's by default.
        dtype: As in `Metric`.

    Raises:
        ConfigError: The loss of a row depends on the other rows of its batch, so that rows have no mean.

    Example:
        >>> LossMean(losses.Huber(delta=0.5))([[0.0], [0.0]], [[0.5], [1.0]])
        0.25
    """

    direction = "down"

    def __init__(self, loss: losses.Loss, name: str | None = None, dtype: Any = None) -> None:
        if loss.across_rows:
            raise ConfigError(
                f"{loss!r} is no metric: the loss of a row depends on the other rows of its batch, so that there is "
                "no mean over rows. As the loss of the model it is in the logs."
            )
        super().__init__(loss.values, name or loss.name, dtype)


class _LossMean(MeanMetric):
    """The mean of a loss function, which less is better of."""

    direction = "down"

    def __init__(self, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(None, name, dtype)


class MeanSquaredError(_LossMean):
    """Mean of `kdist.losses.mean_squared_error`.

    Args:
        name, dtype: As in `Metric`.

    Example:
        >>> MeanSquaredError()([0.0, 1.0], [0.5, 1.0])
        0.125
    """

    fn = staticmethod(losses.mean_squared_error)


class RootMeanSquaredError(MeanSquaredError):
    """The square root of the mean squared error over everything.

    Args:
        name, dtype: As in `Metric`.

    Example:
        >>> RootMeanSquaredError()([0.0, 1.0], [0.5, 1.5])
        0.5
    """

    def result(self, sums: PyTree) -> float:
        """The root of the mean."""
        return float(np.sqrt(super().result(sums)))


class MeanAbsoluteError(_LossMean):
    """Mean of `kdist.losses.mean_absolute_error`.

    Args:
        name, dtype: As in `Metric`.

    Example:
        >>> MeanAbsoluteError()([0.0, 1.0], [0.5, 1.0])
        0.25
    """

    fn = staticmethod(losses.mean_absolute_error)


class MeanAbsolutePercentageError(_LossMean):
    """Mean of `kdist.losses.mean_absolute_percentage_error`.

    Args:
        name, dtype: As in `Metric`.

    Example:
        >>> MeanAbsolutePercentageError()([2.0, 1.0], [3.0, 1.0])
        25.0
    """

    fn = staticmethod(losses.mean_absolute_percentage_error)


class MeanSquaredLogarithmicError(_LossMean):
    """Mean of `kdist.losses.mean_squared_logarithmic_error`.

    Args:
        name, dtype: As in `Metric`.

    Example:
        >>> round(MeanSquaredLogarithmicError()([0.0, 1.0], [0.0, 3.0]), 4)
        0.2402
    """

    fn = staticmethod(losses.mean_squared_logarithmic_error)


class LogCoshError(_LossMean):
    """Mean of `kdist.losses.log_cosh`.

    Args:
        name, dtype: As in `Metric`.

    Example:
        >>> round(LogCoshError()([0.0, 1.0], [1.0, 1.0]), 4)
        0.2169
    """

    fn = staticmethod(losses.log_cosh)
    default_name = "logcosh"


class Hinge(_LossMean):
    """Mean of `kdist.losses.hinge`; targets are -1 and 1, or 0 and 1.

    Args:
        name, dtype: As in `Metric`.

    Example:
        >>> Hinge()([0.0, 1.0], [-0.5, 2.0])
        0.25
    """

    fn = staticmethod(losses.hinge)


class SquaredHinge(_LossMean):
    """Mean of `kdist.losses.squared_hinge`; targets are -1 and 1, or 0 and 1.

    Args:
        name, dtype: As in `Metric`.

    Example:
        >>> SquaredHinge()([0.0, 1.0], [-0.5, 2.0])
        0.125
    """

    fn = staticmethod(losses.squared_hinge)


class CategoricalHinge(_LossMean):
    """Mean of `kdist.losses.categorical_hinge`.

    Args:
        name, dtype: As in `Metric`.

    Example:
        >>> CategoricalHinge()([[0.0, 1.0]], [[0.25, 0.75]])
        0.5
    """

    fn = staticmethod(losses.categorical_hinge)


class Poisson(_LossMean):
    """Mean of `kdist.losses.poisson`.

    Args:
        name, dtype: As in `Metric`.

    Example:
        >>> round(Poisson()([[0.0], [2.0]], [[0.5], [1.0]]), 4)
        0.75
    """

    fn = staticmethod(losses.poisson)


class KLDivergence(_LossMean):
    """Mean of `kdist.losses.kl_divergence`.

    Args:
        name, dtype: As in `Metric`.

    Example:
        >>> round(KLDivergence()([[0.5, 0.5]], [[0.25, 0.75]]), 4)
        0.1438
    """

    fn = staticmethod(losses.kl_divergence)


class CosineSimilarity(MeanMetric):
    """Mean cosine of the angle between targets and predictions: 1 is alike.

    Args:
        name, dtype: As in `Metric`.
        axis: The axis that vectors lie along; -1 by default.

    Example:
        >>> round(CosineSimilarity()([[1.0, 0.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 1.0]]), 4)
        0.5
    """

    direction = "up"

    def __init__(self, name: str | None = None, dtype: Any = None, axis: int = -1) -> None:
        super().__init__(None, name, dtype, axis=axis)

    @staticmethod
    def fn(y_true: jax.Array, y_pred: jax.Array, axis: int = -1) -> jax.Array:
        """The cosine, where the loss is minus the cosine."""
        return -losses.cosine_similarity(y_true.astype(jnp.float32), y_pred, axis)


class BinaryCrossentropy(_LossMean):
    """Mean of `kdist.losses.binary_crossentropy`.

    Args:
        name, dtype: As in `Metric`.
        from_logits: Whether predictions are logits, not probabilities; False by default.
        label_smoothing: How far targets move towards 0.5, in [0, 1]; 0 by default.

    Example:
        >>> round(BinaryCrossentropy()([[0.0], [1.0]], [[0.5], [0.5]]), 4)
        0.6931
    """

    fn = staticmethod(losses.binary_crossentropy)

    def __init__(
        self,
        name: str | None = None,
        dtype: Any = None,
        from_logits: bool = False,
        label_smoothing: float = 0,
    ) -> None:
        super().__init__(name, dtype)
        self.arguments = {"from_logits": from_logits, "label_smoothing": label_smoothing}


class CategoricalCrossentropy(_LossMean):
    """Mean of `kdist.losses.categorical_crossentropy`.

    Args:
        name, dtype: As in `Metric`.
        from_logits: Whether predictions are logits, not probabilities; False by default.
        label_smoothing: How far targets move towards 1 / C for C classes, in [0, 1]; 0 by default.
        axis: The axis of the classes; -1 by default.

    Example:
        >>> round(CategoricalCrossentropy()([[0.0, 1.0]], [[0.5, 0.5]]), 4)
        0.6931
    """

    fn = staticmethod(losses.categorical_crossentropy)

    def __init__(
        self,
        name: str | None = None,
        dtype: Any = None,
        from_logits: bool = False,
        label_smoothing: float = 0,
        axis: int = -1,
    ) -> None:
        super().__init__(name, dtype)
        self.arguments = {"from_logits": from_logits, "label_smoothing": label_smoothing, "axis": axis}


class SparseCategoricalCrossentropy(_LossMean):
    """Mean of `kdist.losses.sparse_categorical_crossentropy`.

    Labels of `ignore_class` have the value 0.  As in Keras they leave the denominator only where there
    are weights; without weights the mean is over all labels.

    Args:
        name, dtype: As in `Metric`.
        from_logits: Whether predictions are logits, not probabilities; False by default.
        ignore_class: A label that has no loss; none by default.
        axis: The axis of the classes; -1 by default.

    Example:
        >>> round(SparseCategoricalCrossentropy()([1], [[0.5, 0.5]]), 4)
        0.6931
    """

    fn = staticmethod(losses.sparse_categorical_crossentropy)

    def __init__(
        self,
        name: str | None = None,
        dtype: Any = None,
        from_logits: bool = False,
        ignore_class: int | None = None,
        axis: int = -1,
    ) -> None:
        super().__init__(name, dtype)
        self.arguments = {"from_logits": from_logits, "ignore_class": ignore_class, "axis": axis}

    def weigh(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array) -> jax.Array:
        """The weights, 0 at `ignore_class`."""
        if self.arguments["ignore_class"] is None:
            return weight
        labels = losses.class_indices(y_true, y_pred.ndim, self.arguments["axis"])
        return losses.align_weight(weight, labels.shape) * (labels != self.arguments["ignore_class"])

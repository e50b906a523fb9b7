"""Means of loss functions, over everything that an epoch saw."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kdist import losses
from kdist.metrics.base import MeanMetric
from kdist.typing import PyTree


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
    """Mean of `kdist.losses.sparse_categorical_crossentropy`.

    Labels of `ignore_class` have the value 0.  As in Keras they leave the denominator only where there
    are weights; without weights the mean is over all labels.
    """

    fn = staticmethod(losses.sparse_categorical_crossentropy)

    def __init__(self, name=None, dtype=None, from_logits=False, ignore_class=None, axis=-1):
        super().__init__(name, dtype, from_logits=from_logits, ignore_class=ignore_class, axis=axis)

    def weigh(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array) -> jax.Array:
        """The weights, 0 at `ignore_class`."""
        if self.arguments["ignore_class"] is None:
            return weight
        labels = y_true[..., 0] if y_true.ndim == y_pred.ndim else y_true
        return losses.align_weight(weight, labels.shape) * (labels != self.arguments["ignore_class"])

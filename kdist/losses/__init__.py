"""Losses, by Keras's names, arguments, defaults and values (formulas: Keras's documentation of `keras.losses`).

optax's function is used where it has the same formula.  To add a loss: the function and its class in the file of its
family, their names here, and the class in `registry.py`.
"""

from __future__ import annotations

from kdist.losses.base import ALONE, EPSILON, REDUCTIONS, FunctionLoss, Loss, LossSum, Shards, mean_over, safe_divide
from kdist.losses.crossentropy import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    SparseCategoricalCrossentropy,
    binary_crossentropy,
    categorical_crossentropy,
    sparse_categorical_crossentropy,
)
from kdist.losses.focal import (
    BinaryFocalCrossentropy,
    CategoricalFocalCrossentropy,
    CategoricalGeneralizedCrossEntropy,
    binary_focal_crossentropy,
    categorical_focal_crossentropy,
    categorical_generalized_cross_entropy,
)
from kdist.losses.hinges import CategoricalHinge, Hinge, SquaredHinge, categorical_hinge, hinge, squared_hinge
from kdist.losses.overlap import Dice, Tversky, dice, tversky
from kdist.losses.registry import BY_SHAPE, for_shapes, get, names
from kdist.losses.regression import (
    CosineSimilarity,
    Huber,
    KLDivergence,
    LogCosh,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    Poisson,
    cosine_similarity,
    huber,
    kl_divergence,
    log_cosh,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    poisson,
)
from kdist.losses.sequence import CTC, ctc
from kdist.losses.shapes import (
    align_ranks,
    align_weight,
    class_indices,
    require_broadcast,
    require_same_shape,
    target_kind,
)
from kdist.losses.similarity import Circle, circle

__all__ = [
    "ALONE",
    "BY_SHAPE",
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CTC",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalGeneralizedCrossEntropy",
    "CategoricalHinge",
    "Circle",
    "CosineSimilarity",
    "Dice",
    "EPSILON",
    "FunctionLoss",
    "Hinge",
    "Huber",
    "KLDivergence",
    "LogCosh",
    "Loss",
    "LossSum",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Poisson",
    "REDUCTIONS",
    "Shards",
    "SparseCategoricalCrossentropy",
    "SquaredHinge",
    "Tversky",
    "align_ranks",
    "align_weight",
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_generalized_cross_entropy",
    "categorical_hinge",
    "circle",
    "class_indices",
    "cosine_similarity",
    "ctc",
    "dice",
    "for_shapes",
    "get",
    "hinge",
    "huber",
    "kl_divergence",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_over",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "names",
    "poisson",
    "require_broadcast",
    "require_same_shape",
    "safe_divide",
    "sparse_categorical_crossentropy",
    "squared_hinge",
    "target_kind",
    "tversky",
]

"""Every public loss and metric, made with the arguments that it cannot do without, and rows of the kind that it takes.

The classes are read off `kdist.losses` and `kdist.metrics`: a new one that needs arguments or other rows than these
fails until it has a line in a table here.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdist import losses, metrics

C = 3
VECTORS, SEQUENCES = (4, C), (4, 2, C)
CASES = ((VECTORS, "rows"), (SEQUENCES, "steps"), (SEQUENCES, "none"), (SEQUENCES, "rows"), (VECTORS, "none"))
"""Shapes of predictions, and kinds of weights."""


def _off(y_true, y_pred):
    return jnp.abs(y_true - y_pred)


ARGUMENTS = {
    losses.FunctionLoss: {"fn": losses.huber},
    metrics.MeanMetric: {"fn": _off},
    metrics.Mean: {"fn": _off},
    metrics.Sum: {"fn": _off},
    metrics.LossMean: {"loss": losses.Huber(delta=0.1)},
    metrics.ForeignMetric: {"metric": nnx.metrics.Accuracy()},
    metrics.IoU: {"num_classes": C, "target_class_ids": [0, 2]},
    metrics.MeanIoU: {"num_classes": C},
    metrics.OneHotIoU: {"num_classes": C, "target_class_ids": [1]},
    metrics.OneHotMeanIoU: {"num_classes": C},
    metrics.SensitivityAtSpecificity: {"specificity": 0.6},
    metrics.SpecificityAtSensitivity: {"sensitivity": 0.6},
    metrics.PrecisionAtRecall: {"recall": 0.6},
    metrics.RecallAtPrecision: {"precision": 0.6},
}


def every(module, base):
    """The public classes of a module that are a `base`, but `base` itself."""
    classes = {c for c in map(vars(module).get, module.__all__) if isinstance(c, type) and issubclass(c, base)}
    return sorted(classes - {base}, key=lambda c: c.__name__)


LOSSES = every(losses, losses.Loss)
METRICS = every(metrics, metrics.Metric)


def made(cls):
    """An object of the class."""
    return cls(**ARGUMENTS.get(cls, {}))


LABELS = (
    losses.SparseCategoricalCrossentropy,
    losses.CategoricalGeneralizedCrossEntropy,
    losses.Circle,
    metrics.SparseCategoricalCrossentropy,
    metrics.SparseCategoricalAccuracy,
    metrics.SparseTopKCategoricalAccuracy,
    metrics.ForeignMetric,
)
"""Targets are classes."""
BITS = (
    losses.BinaryCrossentropy,
    losses.BinaryFocalCrossentropy,
    losses.Dice,
    losses.Tversky,
    metrics.BinaryCrossentropy,
    metrics.BinaryAccuracy,
    metrics.BinaryIoU,
    metrics.Precision,
    metrics.Recall,
    metrics.TruePositives,
    metrics.TrueNegatives,
    metrics.FalsePositives,
    metrics.FalseNegatives,
    metrics.AUC,
    metrics.SensitivityAtSpecificity,
    metrics.SpecificityAtSensitivity,
    metrics.PrecisionAtRecall,
    metrics.RecallAtPrecision,
    metrics.FBetaScore,
    metrics.F1Score,
)
"""Targets are 0 or 1."""
SAME_LABELS = (metrics.Accuracy, metrics.IoU, metrics.MeanIoU)
"""Targets and predictions are classes, compared one by one."""
VECTORS_ONLY = (losses.Circle, metrics.FBetaScore, metrics.F1Score, metrics.R2Score)
SEQUENCES_ONLY = (losses.CTC,)
NO_WEIGHTS = (metrics.ForeignMetric,)
"""This one, of nnx, has a mask only."""
ROW_WEIGHTS_ONLY = (losses.CTC,)
"""A value a row, of which the steps have no part of their own."""


def cases(thing):
    """The cases of `CASES` that a loss or metric takes."""
    cls = type(thing)
    for shape, weights in CASES:
        wrong_shape = (cls in VECTORS_ONLY and shape != VECTORS) or (cls in SEQUENCES_ONLY and shape != SEQUENCES)
        too_many = weights != "none" and cls in NO_WEIGHTS
        if not (wrong_shape or too_many or (weights == "steps" and cls in ROW_WEIGHTS_ONLY)):
            yield shape, weights


def few_cases(thing):
    """Those of its cases that bring a shape or a kind of weights that no case before them has."""
    seen = set()
    for case in cases(thing):
        if not seen.issuperset(case):
            yield case
        seen.update(case)


def rows_for(thing, case):
    """Targets of the kind that it takes, predictions in (0, 1) that sum to 1, and weights, some of them 0."""
    shape, weights = case
    cls = type(thing)
    rng = np.random.default_rng(11)
    pred = rng.uniform(0.05, 1, shape).astype(np.float32)
    pred /= pred.sum(-1, keepdims=True)
    true = rng.uniform(0.05, 1, shape).astype(np.float32)
    if cls in LABELS:
        true = rng.integers(0, C, shape[:-1]).astype(np.int32)
    elif cls in BITS:
        true = rng.integers(0, 2, shape).astype(np.float32)
    elif cls in SAME_LABELS:
        true, pred = (rng.integers(0, C, shape).astype(np.float32) for _ in range(2))
    if cls is losses.Circle:
        pred /= np.linalg.norm(pred, axis=-1, keepdims=True)
        true = np.array([0, 0, 1, 2], np.int32)
    if cls is losses.CTC:
        true = np.array([[1, 2], [2, 0], [2, 1], [1, 0]], np.int32)
    shape_of_weight = {"none": None, "rows": shape[:1], "steps": shape[:-1]}[weights]
    if shape_of_weight is None:
        return true, pred, None
    return true, pred, rng.choice([0, 0.5, 1, 2.5], shape_of_weight).astype(np.float32)

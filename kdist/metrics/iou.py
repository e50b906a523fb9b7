"""Intersection over union, for segmentation: how well the area of a class is covered.

Of the table of confusions only its diagonal and its margins are needed, so these are the sums.  Weights count as
they are; Keras truncates them to whole numbers, so that a weight of 0.9 counts nothing there.

Shapes: b rows, C classes; labels are ``[b, ...]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist.errors import ConfigError, DataError
from kdist.losses import align_ranks, align_weight
from kdist.metrics.base import Metric, ratio
from kdist.metrics.counting import totals
from kdist.typing import PyTree


class IoU(Metric):
    """Mean over some classes of ``intersection / union`` of where the class is and where it is predicted.

    A class that is neither there nor predicted does not count; if none is, the result is 0.

    Args:
        num_classes: C.  Elements with a label or a prediction outside ``0 .. C - 1`` do not count.
        target_class_ids: The classes to average over.
        name, dtype: As in `Metric`.
        ignore_class: Elements with this label do not count; none by default.
        sparse_y_true: Whether targets are labels; if not, the largest entry along `axis` is the label; True by default.
        sparse_y_pred: Alike for predictions; True by default.
        axis: The axis of the classes, where there is one; -1 by default.

    Raises:
        ConfigError: A target class is not in ``0 .. C - 1``.

    Example:
        >>> IoU(num_classes=2, target_class_ids=[0])([0, 0, 1, 1], [0, 1, 0, 1])
        0.3333333333333333
    """

    direction = "up"

    def __init__(
        self,
        num_classes: int,
        target_class_ids: Sequence[int],
        name: str | None = None,
        dtype: Any = None,
        ignore_class: int | None = None,
        sparse_y_true: bool = True,
        sparse_y_pred: bool = True,
        axis: int = -1,
    ) -> None:
        super().__init__(name, dtype)
        self.num_classes = num_classes
        self.target_class_ids = list(target_class_ids)
        if not self.target_class_ids or not all(0 <= i < num_classes for i in self.target_class_ids):
            raise ConfigError(
                f"target_class_ids must be classes in 0 .. {num_classes - 1}. Received: {target_class_ids!r} with "
                f"num_classes={num_classes!r}."
            )
        self.ignore_class = ignore_class
        self.sparse_y_true = sparse_y_true
        self.sparse_y_pred = sparse_y_pred
        self.axis = axis

    def labels(self, y_true: jax.Array, y_pred: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Targets and predictions as whole numbers."""
        y_true = y_true if self.sparse_y_true else y_true.argmax(self.axis)
        y_pred = y_pred if self.sparse_y_pred else y_pred.argmax(self.axis)
        return y_true.astype(jnp.int32), y_pred.astype(jnp.int32)

    def sums(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array | None = None) -> PyTree:
        """By class ``[C]``: the weights of hits, of what is there and of what is predicted."""
        true, pred = align_ranks(*self.labels(jnp.asarray(y_true), y_pred))
        if true.shape != pred.shape:
            raise DataError(
                f"Metric {self.name!r} compares labels one by one. Received labels of shape {true.shape} and predicted "
                f"labels of shape {pred.shape}. Scores of classes need sparse_y_pred=False, one-hot targets "
                "sparse_y_true=False (or OneHotIoU, OneHotMeanIoU)."
            )
        weight = jnp.float32(1) if weight is None else align_weight(weight, true.shape)
        counts = (true >= 0) & (true < self.num_classes) & (pred >= 0) & (pred < self.num_classes)
        if self.ignore_class is not None:
            counts &= true != self.ignore_class
        kept = jnp.where(counts, weight, 0.0)
        hits = jnp.where(true == pred, kept, 0.0)
        there = totals(true.ravel(), jnp.stack([hits, kept]).reshape(2, -1), self.num_classes)
        (predicted,) = totals(pred.ravel(), kept.reshape(1, -1), self.num_classes)
        return {"hits": there[0], "actual": there[1], "predicted": predicted}

    def result(self, sums: PyTree) -> float:
        """The mean over the target classes."""
        hits, actual, predicted = (sums[k][self.target_class_ids] for k in ("hits", "actual", "predicted"))
        union = actual + predicted - hits
        return ratio(ratio(hits, union).sum(), (union > 0).sum())


class BinaryIoU(IoU):
    """`IoU` of labels 0 and 1 and predicted probabilities.

    Args:
        target_class_ids: The classes to average over, of 0 and 1; (0, 1) by default.
        threshold: The least prediction that is a 1; 0.5 by default.
        name, dtype: As in `Metric`.

    Example:
        >>> BinaryIoU(target_class_ids=[0, 1], threshold=0.3)([0, 1, 0, 1], [0.1, 0.2, 0.4, 0.7])
        0.3333333333333333
    """

    def __init__(
        self,
        target_class_ids: Sequence[int] = (0, 1),
        threshold: float = 0.5,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(2, target_class_ids, name, dtype)
        self.threshold = threshold

    def labels(self, y_true: jax.Array, y_pred: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Targets as they are, and where predictions reach the threshold."""
        return y_true.astype(jnp.int32), (y_pred >= np.float32(self.threshold)).astype(jnp.int32)


class MeanIoU(IoU):
    """`IoU` averaged over all classes.

    Args:
        num_classes: See `IoU`.
        name, dtype: As in `Metric`.
        ignore_class: See `IoU`.
        sparse_y_true: See `IoU`.
        sparse_y_pred: See `IoU`.
        axis: See `IoU`.

    Example:
        >>> MeanIoU(num_classes=2)([0, 0, 1, 1], [0, 1, 0, 1])
        0.3333333333333333
    """

    def __init__(
        self,
        num_classes: int,
        name: str | None = None,
        dtype: Any = None,
        ignore_class: int | None = None,
        sparse_y_true: bool = True,
        sparse_y_pred: bool = True,
        axis: int = -1,
    ) -> None:
        super().__init__(num_classes, range(num_classes), name, dtype, ignore_class, sparse_y_true, sparse_y_pred, axis)


class OneHotIoU(IoU):
    """`IoU` of one-hot targets and scores of classes.

    Args:
        num_classes: See `IoU`.
        target_class_ids: See `IoU`.
        name, dtype: As in `Metric`.
        ignore_class: See `IoU`.
        sparse_y_pred: See `IoU`.
        axis: See `IoU`.

    Example:
        >>> OneHotIoU(num_classes=2, target_class_ids=[1])([[1, 0], [0, 1]], [[0.2, 0.8], [0.4, 0.6]])
        0.5
    """

    def __init__(
        self,
        num_classes: int,
        target_class_ids: Sequence[int],
        name: str | None = None,
        dtype: Any = None,
        ignore_class: int | None = None,
        sparse_y_pred: bool = False,
        axis: int = -1,
    ) -> None:
        super().__init__(num_classes, target_class_ids, name, dtype, ignore_class, False, sparse_y_pred, axis)


class OneHotMeanIoU(MeanIoU):
    """`MeanIoU` of one-hot targets and scores of classes.

    Args:
        num_classes: See `IoU`.
        name, dtype: As in `Metric`.
        ignore_class: See `IoU`.
        sparse_y_pred: See `IoU`.
        axis: See `IoU`.

    Example:
        >>> OneHotMeanIoU(num_classes=2)([[1, 0], [0, 1]], [[0.2, 0.8], [0.4, 0.6]])
        0.25
    """

    def __init__(
        self,
        num_classes: int,
        name: str | None = None,
        dtype: Any = None,
        ignore_class: int | None = None,
        sparse_y_pred: bool = False,
        axis: int = -1,
    ) -> None:
        super().__init__(num_classes, name, dtype, ignore_class, False, sparse_y_pred, axis)

"""Class weights: a weight for the rows of each class, as sample weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from kdist.errors import ConfigError, DataError
from kdist.typing import Batch, PyTree


class ClassWeight:
    """What the loss of each class counts, checked once and applied to targets.

    Args:
        weights: Weights by class, an integer of 0 or more; a class that is missing counts 1.
        of_steps: Whether integer targets ``[rows, steps]`` are a label for each time step; False by default.

    Raises:
        ConfigError: It is no mapping from classes to numbers.

    Example:
        >>> ClassWeight({0: 0.5, 2: 3.0}).of(np.array([0, 1, 2]))
        array([0.5, 1. , 3. ], dtype=float32)
    """

    def __init__(self, weights: Any, *, of_steps: bool = False) -> None:
        if not isinstance(weights, Mapping):
            raise ConfigError(f"class_weight must be a dict of classes and numbers. Received: {weights!r}.")
        self._of_steps = of_steps
        self._table: dict[int, float] = {}
        for label, weight in weights.items():
            try:
                number = int(label)
                if number != float(label):
                    raise ValueError(label)
                self._table[number] = float(weight)
            except (OverflowError, TypeError, ValueError):
                raise ConfigError(
                    f"class_weight must be a dict of integers (classes) and numbers. Received: {label!r}: {weight!r}."
                ) from None
            if number < 0:
                raise ConfigError(f"class_weight must name classes of 0 or more. Received: {label!r}.")

    def weigh(self, batch: Batch) -> Batch:
        """The batch with sample weights by its classes.

        Raises:
            DataError: It has sample weights already, or its targets are no labels of one output.
        """
        if batch.weight is not None:
            raise DataError(
                "class_weight and sample_weight cannot be given at the same time. Multiply the weights of the classes "
                "into sample_weight."
            )
        return dataclasses.replace(batch, weight=self.of(batch.y))

    def of(self, y: PyTree) -> np.ndarray:
        """The weight of each target: ``[rows]``, or ``[rows, steps]`` for labels of time steps.

        Args:
            y: Labels ``[rows]`` or ``[rows, 1]``, one-hot targets ``[rows, classes]``, or either with a
                dimension of time steps after the rows.

        Raises:
            DataError: They are none of these.
        """
        targets = jax.tree.leaves(y)
        if len(targets) != 1:
            raise DataError(
                "class_weight is only supported for models with a single output, whose targets are one array. Weigh "
                "the rows of several outputs by sample_weight."
            )
        labels = self._labels(targets[0])
        table = np.ones(max([-1, *self._table]) + 2, np.float32)  # the last entry is for classes that are not named
        for label, weight in self._table.items():
            table[label] = weight
        return table[np.where(labels < 0, len(table) - 1, np.minimum(labels, len(table) - 1))]

    def _labels(self, y: np.ndarray) -> np.ndarray:
        if y.ndim == 1:
            labels = y
        elif y.shape[-1] == 1:
            labels = y[..., 0]
        elif self._of_steps and y.ndim == 2:
            labels = y
        elif _looks_one_hot(y):
            labels = y.argmax(-1)
        else:
            raise DataError(
                "class_weight needs labels (rows,) or (rows, 1), or one-hot targets (rows, classes). Received targets "
                f"of shape {y.shape} that are neither. For a label each time step use a sparse loss, or pass weights "
                "(rows, steps) as sample_weight."
            )
        if labels.ndim > 2:
            raise DataError(
                f"class_weight gives a weight a row or a time step, but the targets have shape {y.shape}. Weigh them "
                "by sample_weight."
            )
        return np.rint(labels).astype(np.int64)


def _looks_one_hot(y: np.ndarray) -> bool:
    """Whether each target is a distribution over classes, as one-hot and smoothed ones are, or none of them."""
    total = y.sum(-1, dtype=np.float64)
    return bool((y >= 0).all() and np.minimum(abs(total - 1), total).max() < 1e-3)

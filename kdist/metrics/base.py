"""What a metric is: sums on the devices, a result on the host.

Shapes: b rows, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist.losses import align_ranks, align_weight
from kdist.naming import function_name, snake_case
from kdist.typing import PyTree


class Metric:
    """Additive sums over rows, and their result.  Subclass it and override `sums` and `result`.

    Args:
        name: The name in logs; the class's name in snake case by default.
        dtype: Accepted for Keras's sake, None by default; sums are float32 on the devices, float64 on the host.

    Example:
        >>> class Largest(Metric):
        ...     def sums(self, y_true, y_pred, weight=None):
        ...         weight = jnp.ones(len(y_pred)) if weight is None else weight
        ...         return {"rows": weight.sum(), "above": (weight * (y_pred.max(-1) > 0.9)).sum()}
        ...
        ...     def result(self, sums):
        ...         return ratio(sums["above"], sums["rows"])
        >>> Largest()([0, 1], [[0.95, 0.05], [0.4, 0.6]])
        0.5
    """

    direction: str | None = None
    """"up" if more is better, "down" if less is, None if neither."""
    default_name: str | None = None
    exact: bool = False
    """Whether it is one number a batch, so that batches cannot be padded."""

    def __init__(self, name: str | None = None, dtype: Any = None) -> None:
        self.name = name or self.default_name or snake_case(type(self).__name__)

    def sums(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array | None = None) -> PyTree:
        """What these rows add.

        Args:
            y_true: Targets ``[b, ...]``.
            y_pred: Predictions ``[b, ...]``, float32.
            weight: ``[b]`` or ``[b, T]``, 0 for rows that fill a batch; None, the default, if all count as 1.

        Returns:
            Arrays in any structure, such that those of two batches add up to those of both.

        Example:
            >>> from kdist.metrics import MeanAbsoluteError
            >>> sums = MeanAbsoluteError().sums(jnp.array([1.0, 2.0]), jnp.array([1.5, 2.0]), jnp.array([1.0, 0.0]))
            >>> [float(a) for a in sums]  # of errors, and of weights
            [0.5, 1.0]
        """
        raise NotImplementedError(f"{type(self).__name__} must define sums(y_true, y_pred, weight).")

    def weigh(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array) -> jax.Array:
        """The user's weights, less those of what the metric leaves out.

        Args:
            y_true: As in `sums`.
            y_pred: As in `sums`.
            weight: As in `sums`.

        Example:
            >>> from kdist.metrics import SparseCategoricalCrossentropy
            >>> metric = SparseCategoricalCrossentropy(ignore_class=0)
            >>> metric.weigh(jnp.array([0, 1]), jnp.ones((2, 3)), jnp.array([0.5, 0.5])).tolist()
            [0.0, 0.5]
        """
        return weight

    def result(self, sums: PyTree) -> float | np.ndarray:
        """The metric's value, from NumPy sums.

        Args:
            sums: What `sums` returned, added up over all batches and shards, as NumPy arrays in float64.

        Example:
            >>> from kdist.metrics import RootMeanSquaredError
            >>> RootMeanSquaredError().result((np.array(8.0), np.array(2.0)))
            2.0
        """
        raise NotImplementedError(f"{type(self).__name__} must define result(sums).")

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> float | np.ndarray:
        """The value over one batch."""
        y_true, y_pred = jnp.asarray(y_true), jnp.asarray(y_pred, jnp.float32)
        given = sample_weight is not None
        weight = self.weigh(y_true, y_pred, jnp.asarray(sample_weight, jnp.float32)) if given else None
        return self.result(exact_sums(self.sums(y_true, y_pred, weight)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


def exact_sums(sums: PyTree) -> PyTree:
    """Sums on the host, in float64.

    Example:
        >>> exact_sums((jnp.float32(0.5), 2.0))
        (array(0.5), array(2.))
    """
    return jax.tree.map(lambda a: np.asarray(a, np.float64), sums)


def ratio(numerator: Any, denominator: Any) -> Any:
    """``numerator / denominator`` in NumPy, and 0 where the denominator is 0.

    Example:
        >>> ratio(1, 4), ratio(1, 0), ratio([1, 1], [2, 0])
        (0.25, 0.0, array([0.5, 0. ]))
    """
    numerator, denominator = np.asarray(numerator), np.asarray(denominator)
    out = np.divide(numerator, denominator, out=np.zeros(np.shape(denominator)), where=denominator != 0)
    return float(out) if out.ndim == 0 else out


class MeanMetric(Metric):
    """The weighted mean over rows of a function of targets and predictions.

    Args:
        fn: ``fn(y_true, y_pred, **arguments)`` gives values ``[b, ...]``, or a scalar, which counts once for every row
            seen; none by default.
        name: The name in logs; the function's by default.
        dtype: As in `Metric`.
        arguments: Further arguments of `fn`.

    Example:
        >>> MeanMetric(lambda y_true, y_pred: abs(y_true - y_pred), name="off")([1.0, 2.0], [1.5, 2.0], [3.0, 1.0])
        0.375
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
        return mean_sums(jnp.broadcast_to(values, y_pred.shape[:1]) if values.ndim == 0 else values, weight)

    def result(self, sums: PyTree) -> float:
        """The mean; 0 where nothing counted."""
        return ratio(*sums)


def mean_sums(values: jax.Array, weight: jax.Array | None) -> tuple[jax.Array, Any]:
    """What makes a weighted mean: (weighted sum of the rows' values, sum of the weights).

    Args:
        values: ``[b, ...]``; a row has the mean of its values.
        weight: ``[b]`` or ``[b, T]``, or None if all count as 1.

    Example:
        >>> [float(a) for a in mean_sums(jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0]))]
        [5.0, 4.0]
    """
    if weight is None:
        return _row_mean(values).sum(), np.float32(values.shape[0])
    if weight.ndim == values.ndim + 1 and weight.shape[-1] == 1:
        weight = weight[..., 0]
    if weight.ndim < values.ndim:
        values = values.mean(axis=tuple(range(weight.ndim, values.ndim)))
    weighted = values * align_weight(weight, values.shape)
    return _row_mean(weighted).sum(), _row_mean(weight).sum()


def _row_mean(values: jax.Array) -> jax.Array:
    return values.reshape(values.shape[0], -1).mean(axis=1)

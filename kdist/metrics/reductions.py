"""Mean and sum of values that somebody has computed, or of a function of targets and predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist.errors import ConfigError
from kdist.losses import align_ranks, align_weight
from kdist.metrics.base import Metric, exact_sums, mean_sums, ratio
from kdist.typing import PyTree


class Reduction(Metric):
    """Values, reduced over rows.

    As a metric of `compile` it needs a function, since there are targets and predictions to compare there, and
    no values.
    """

    def __init__(self, name: str | None = None, dtype: Any = None, fn: Callable[..., jax.Array] | None = None) -> None:
        super().__init__(name, dtype)
        self.fn = fn

    def require_function(self) -> None:
        """Refuses to be a metric of targets and predictions without a function of them.

        Raises:
            ConfigError: There is none.
        """
        if self.fn is None:
            kind = type(self).__name__
            raise ConfigError(
                f"{self!r} has nothing to reduce: {kind} reduces values, and a model gives targets and predictions. "
                f"Give it a function of them: kdist.metrics.{kind}(fn=lambda y_true, y_pred: ...)."
            )

    def sums(self, y_true: jax.Array, y_pred: jax.Array | None = None, weight: jax.Array | None = None) -> PyTree:
        """What these rows add; arguments as in `Metric.sums`, or values in the place of targets and predictions."""
        raise NotImplementedError

    def values(self, y_true: jax.Array, y_pred: jax.Array | None = None) -> jax.Array:
        """The function's values ``[b, ...]`` or a scalar; without a function, the values that were given."""
        if self.fn is None and y_pred is None:
            return jnp.asarray(y_true, jnp.float32)
        self.require_function()
        assert self.fn is not None and y_pred is not None
        return jnp.asarray(self.fn(*align_ranks(y_true, y_pred)), jnp.float32)

    def __call__(self, y_true: Any, y_pred: Any = None, sample_weight: Any = None) -> float | np.ndarray:
        """The value over one batch of values, or of targets and predictions where there is a function of them."""
        if y_pred is not None:
            return super().__call__(y_true, y_pred, sample_weight)
        weight = None if sample_weight is None else jnp.asarray(sample_weight, jnp.float32)
        return self.result(exact_sums(self.sums(jnp.asarray(y_true, jnp.float32), None, weight)))


class Mean(Reduction):
    """The weighted mean of values, one a row; a row of several has their mean.

    Args:
        name, dtype: As in `Metric`.
        fn: ``fn(y_true, y_pred)`` gives the values ``[b, ...]``; None, the default, takes them as they are.

    Example:
        >>> Mean()([1.0, 3.0], sample_weight=[3.0, 1.0])
        1.5
        >>> Mean(fn=lambda y_true, y_pred: y_pred - y_true)([1.0, 2.0], [2.0, 2.0])
        0.5
    """

    def sums(self, y_true: jax.Array, y_pred: jax.Array | None = None, weight: jax.Array | None = None) -> PyTree:
        """(weighted sum of the rows' values, sum of the weights)."""
        values = self.values(y_true, y_pred)
        return mean_sums(jnp.broadcast_to(values, y_true.shape[:1]) if values.ndim == 0 else values, weight)

    def result(self, sums: PyTree) -> float:
        """The mean; 0 where nothing counted."""
        return ratio(*sums)


class Sum(Reduction):
    """The weighted sum of values.

    Args:
        name, dtype: As in `Metric`.
        fn: ``fn(y_true, y_pred)`` gives the values ``[b, ...]``, or their sum over the rows it sees; None, the default,
            takes values as they are.

    Example:
        >>> Sum()([1.0, 3.0], sample_weight=[3.0, 1.0])
        6.0
        >>> Sum(fn=lambda y_true, y_pred: abs(y_pred - y_true))([1.0, 2.0], [2.0, 4.0])
        3.0
    """

    def sums(self, y_true: jax.Array, y_pred: jax.Array | None = None, weight: jax.Array | None = None) -> PyTree:
        """The weighted sum."""
        values = self.values(y_true, y_pred)
        if values.ndim == 0:  # of all rows: an equal share for each
            values = jnp.broadcast_to(values / y_true.shape[0], y_true.shape[:1])
        return (values if weight is None else values * align_weight(weight, values.shape)).sum()

    def result(self, sums: PyTree) -> float:
        """The sum."""
        return float(sums)

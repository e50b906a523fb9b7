"""Weights added up by where an element falls: the histograms that metrics of counts are made of.

Two ways, by the backend that a program is compiled for: CPUs search and scatter, which on accelerators are
serial; those compare with everything and multiply matrices.

Shapes: n elements, T thresholds, k rows of weights.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np


def thresholds_below(values: jax.Array, thresholds: np.ndarray) -> jax.Array:
    """How many thresholds each value exceeds.

    Args:
        values: Of any shape; a NaN exceeds none.
        thresholds: ``[T]`` float32, ascending.

    Returns:
        int32 in ``0 .. T``, shaped like `values`.

    Example:
        >>> thresholds_below(jnp.array([0.1, 0.5, 0.6]), np.array([0.2, 0.5], np.float32)).tolist()
        [0, 1, 2]
    """
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    return jax.lax.platform_dependent(
        values,
        cpu=lambda a: jnp.searchsorted(thresholds, a, side="left"),
        default=lambda a: jnp.searchsorted(thresholds, a, side="left", method="compare_all"),
    )


def totals(index: jax.Array, weights: jax.Array, size: int) -> jax.Array:
    """The sum of the weights at each index.

    Args:
        index: ``[n]`` integers; those outside ``0 .. size - 1`` count nowhere.
        weights: ``[k, n]`` float32.
        size: How many sums there are.

    Returns:
        ``[k, size]`` float32.

    Example:
        >>> totals(jnp.array([0, 2, 2, -1]), jnp.array([[1.0, 2.0, 3.0, 4.0]]), 3).tolist()
        [[1.0, 0.0, 5.0]]
    """
    return jax.lax.platform_dependent(
        index,
        weights,
        cpu=lambda i, w: totals_by_scatter(i, w, size),
        default=lambda i, w: totals_by_product(i, w, size),
    )


def totals_by_scatter(index: jax.Array, weights: jax.Array, size: int) -> jax.Array:
    """`totals`, one element after the other.

    Example:
        >>> totals_by_scatter(jnp.array([0, 2, 2]), jnp.array([[1.0, 2.0, 3.0]]), 3).tolist()
        [[1.0, 0.0, 5.0]]
    """
    index = jnp.where(index < 0, size, index)  # a negative one would count from the end
    return jnp.zeros((size, len(weights)), weights.dtype).at[index].add(weights.T, mode="drop").T


def totals_by_product(index: jax.Array, weights: jax.Array, size: int) -> jax.Array:
    """`totals` as one product of matrices.

    An index is two digits to the base of the root of `size`; the sums are a square table of them, the product
    of the one-hot high digits, weighted, with the one-hot low ones.  Memory is ``n sqrt(size)``, not ``n size``.

    Example:
        >>> totals_by_product(jnp.array([0, 2, 2]), jnp.array([[1.0, 2.0, 3.0]]), 3).tolist()
        [[1.0, 0.0, 5.0]]
    """
    base = math.isqrt(size - 1) + 1
    high, low = jnp.divmod(index, base)
    digits = jnp.arange(base)
    rows = jnp.where(high[:, None] == digits, weights[:, :, None], 0)
    columns = (low[:, None] == digits).astype(weights.dtype)
    table = jnp.einsum("knh,nl->khl", rows, columns, precision=jax.lax.Precision.HIGHEST)
    return table.reshape(len(weights), -1)[:, :size]

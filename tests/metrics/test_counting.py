"""The two ways to count are one function, at every size."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdist.metrics.counting import thresholds_below, totals, totals_by_product, totals_by_scatter


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9, 10, 201])
@pytest.mark.parametrize("count", [totals, totals_by_scatter, totals_by_product])
def test_totals(rng, count, size):
    """Against NumPy, with indices out of range, which count nowhere."""
    index = rng.integers(-3, size + 20, 300)
    weights = rng.uniform(size=(2, 300)).astype(np.float32)
    inside = (index >= 0) & (index < size)
    expected = [np.bincount(index[inside], w[inside], minlength=size) for w in weights]
    np.testing.assert_allclose(count(jnp.asarray(index), jnp.asarray(weights), size), expected, rtol=1e-5)


def test_thresholds_below():
    """A value at a threshold does not exceed it; a NaN exceeds none."""
    thresholds = np.array([0.25, 0.5, 0.5, 1.0], np.float32)
    values = jnp.array([[-jnp.inf, 0.25, 0.3], [0.5, 0.75, jnp.nan], [1.0, 1.5, jnp.inf]])
    np.testing.assert_array_equal(thresholds_below(values, thresholds), [[0, 0, 1], [1, 3, 0], [3, 4, 4]])

"""FTRL, follow the regularized leader, which optax does not have.

Source: McMahan et al., "Ad Click Prediction: a View from the Trenches" (KDD 2013), with the shrinkage of
Keras's `Ftrl`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kdist.typing import PyTree


class FtrlState(NamedTuple):
    """What `ftrl` carries, shaped like the parameters.

    Attributes:
        accumulator: n, the sums of squared gradients.
        linear: z, the gradients' sums less what the changing rate takes back.
    """

    accumulator: PyTree
    linear: PyTree


def ftrl(
    learning_rate: Any,
    *,
    power: float,
    initial_accumulator_value: float,
    l1: float,
    l2: float,
    l2_shrinkage: float,
    beta: float,
) -> optax.GradientTransformation:
    """The transformation: its updates lead to the minimum of the regularized, linearised losses so far.

    Args:
        learning_rate: alpha; it divides, so 0 gives no numbers.
        power: What n is raised to in the rate, negative or 0.
        initial_accumulator_value: n at the start.
        l1: Strength of the L1 penalty, which makes parameters exactly 0.
        l2: Strength of the L2 penalty.
        l2_shrinkage: Strength of an L2 penalty on the loss itself.
        beta: Added to the root of n, as in the paper.

    Example:
        >>> tx = ftrl(0.1, power=-0.5, initial_accumulator_value=0.1, l1=0.0, l2=0.0, l2_shrinkage=0.0, beta=0.0)
        >>> params = {"w": jnp.array([0.0])}
        >>> updates, state = tx.update({"w": jnp.array([1.0])}, tx.init(params), params)
        >>> [round(w, 4) for w in updates["w"].tolist()]
        [-0.0953]
    """

    def init(params: PyTree) -> FtrlState:
        return FtrlState(
            optax.tree.full_like(params, initial_accumulator_value),
            optax.tree.zeros_like(params),
        )

    def update(grads: PyTree, state: FtrlState, params: PyTree = None) -> tuple[PyTree, FtrlState]:
        def next_linear(g: jax.Array, n: jax.Array, m: jax.Array, z: jax.Array, p: jax.Array) -> jax.Array:
            return z + g + 2 * l2_shrinkage * p - (m**-power - n**-power) / learning_rate * p

        def step(m: jax.Array, z: jax.Array, p: jax.Array) -> jax.Array:
            curvature = (m**-power + beta) / learning_rate + 2 * l2
            return (jnp.clip(z, -l1, l1) - z) / curvature - p

        accumulator = jax.tree.map(lambda g, n: n + g * g, grads, state.accumulator)
        linear = jax.tree.map(next_linear, grads, state.accumulator, accumulator, state.linear, params)
        return jax.tree.map(step, accumulator, linear, params), FtrlState(accumulator, linear)

    return optax.GradientTransformation(init, update)

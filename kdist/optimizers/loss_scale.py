"""Loss scaling as part of the optimizer's state: gradients come of a loss that was multiplied by a scale.

In float16 small gradients vanish; those of a loss that is thousands of times larger do not.  The step
multiplies the loss by `loss_scale(opt_state)`, and the transformations here divide the gradients by it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kdist.typing import PyTree


class FixedScaleState(NamedTuple):
    """What `with_fixed_scale` carries.

    Attributes:
        scale: The scale, a float32 scalar.
        inner: The state of the optimizer inside.

    Example:
        >>> from kdist.optimizers import SGD
        >>> float(SGD(0.1, loss_scale_factor=1024.0).tx.init({"w": jnp.ones(2)}).scale)
        1024.0
    """

    scale: jax.Array
    inner: PyTree


class LossScaleState(NamedTuple):
    """What `with_dynamic_scale` carries.

    Attributes:
        scale: The scale, a float32 scalar.
        good_steps: Batches since it last changed, int32.
        inner: The state of the optimizer inside.

    Example:
        >>> from kdist.optimizers import SGD, LossScaleOptimizer
        >>> state = LossScaleOptimizer(SGD(0.1), initial_scale=512.0).tx.init({"w": jnp.ones(2)})
        >>> float(state.scale), int(state.good_steps)
        (512.0, 0)
    """

    scale: jax.Array
    good_steps: jax.Array
    inner: PyTree


def with_fixed_scale(inner: optax.GradientTransformation, scale: float) -> optax.GradientTransformation:
    """Divides gradients by a scale that stays as it is; none is skipped.

    Args:
        inner: The optimizer.
        scale: What the loss is multiplied by.
    """

    def init(params: PyTree) -> FixedScaleState:
        return FixedScaleState(jnp.full((), scale, jnp.float32), inner.init(params))

    def update(grads: PyTree, state: FixedScaleState, params: PyTree = None) -> tuple[PyTree, FixedScaleState]:
        updates, inner_state = inner.update(_unscaled(grads, state.scale), state.inner, params)
        return updates, state._replace(inner=inner_state)

    return optax.GradientTransformation(init, update)


def with_dynamic_scale(
    inner: optax.GradientTransformation, initial_scale: float, growth_steps: int
) -> optax.GradientTransformation:
    """Divides gradients by a scale that adapts itself.

    A batch with a gradient that is not finite changes nothing but the scale, which it halves; after
    `growth_steps` finite batches in a row the scale doubles.  Both outcomes are computed and one is
    selected, so a program holds the same collectives with and without it.

    Args:
        inner: The optimizer.
        initial_scale: The scale to start with.
        growth_steps: How many finite batches double it.
    """

    def init(params: PyTree) -> LossScaleState:
        return LossScaleState(jnp.full((), initial_scale, jnp.float32), jnp.zeros((), jnp.int32), inner.init(params))

    def update(grads: PyTree, state: LossScaleState, params: PyTree = None) -> tuple[PyTree, LossScaleState]:
        finite = functools.reduce(jnp.logical_and, [jnp.isfinite(g).all() for g in jax.tree.leaves(grads)])
        updates, inner_state = inner.update(_unscaled(grads, state.scale), state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros_like(u)), updates)
        inner_state = jax.tree.map(functools.partial(jnp.where, finite), inner_state, state.inner)
        grows = state.good_steps + 1 >= growth_steps
        scale = state.scale * jnp.where(finite, jnp.where(grows, 2.0, 1.0), 0.5)
        good_steps = jnp.where(finite & ~grows, state.good_steps + 1, 0)
        return updates, LossScaleState(scale, good_steps, inner_state)

    return optax.GradientTransformation(init, update)


def loss_scale(opt_state: PyTree) -> jax.Array | None:
    """What the loss is to be multiplied by before gradients are taken.

    Args:
        opt_state: The state of an optimizer, wrapped or not.

    Returns:
        A float32 scalar; None where the loss is not scaled.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdist import optimizers
        >>> state = optimizers.LossScaleOptimizer(optimizers.SGD()).tx.init({"w": jnp.ones(2)})
        >>> print(loss_scale(state), loss_scale(state.inner))
        32768.0 None
    """
    return next((part.scale for part in jax.tree.leaves(opt_state, is_leaf=_is_scaled) if _is_scaled(part)), None)


def _is_scaled(part: Any) -> bool:
    return isinstance(part, (FixedScaleState, LossScaleState))


def _unscaled(grads: PyTree, scale: jax.Array) -> PyTree:
    return jax.tree.map(lambda g: (g / scale).astype(g.dtype), grads)

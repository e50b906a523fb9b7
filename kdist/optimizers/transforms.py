"""Small optax transformations that optax has not: what surrounds the rules of the optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kdist.typing import PyTree


def path_name(path: tuple[Any, ...]) -> str:
    """A parameter's path as it is written: ``dense/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def clip_each_by_norm(limit: float) -> optax.GradientTransformation:
    """Scales each gradient leaf whose L2 norm exceeds `limit` down to it."""

    def clip(g: jax.Array, _: Any) -> jax.Array:
        return g * limit / jnp.maximum(jnp.linalg.norm(g.ravel()), limit)

    return optax.stateless_with_tree_map(clip)


def decay_first(
    rule: optax.GradientTransformation,
    learning_rate: Any,
    decay_of: Callable[[str, jax.Array], float | None],
) -> optax.GradientTransformation:
    """Decoupled weight decay as Keras has it: of the old parameters, and the rule sees what it made of them.

    Args:
        rule: The update rule; its updates come on top of the decay.
        learning_rate: The rate, which scales the decay too.
        decay_of: Says, for a parameter's path and value, how much it decays; None for not at all.
    """

    def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        leaves, structure = jax.tree_util.tree_flatten_with_path(params)
        amounts = [decay_of(path_name(path), p) for path, p in leaves]
        steps = [
            None if not amount else (-(learning_rate * amount) * p).astype(p.dtype)
            for (_, p), amount in zip(leaves, amounts, strict=True)
        ]
        decayed = [p if step is None else p + step for (_, p), step in zip(leaves, steps, strict=True)]
        updates, state = rule.update(grads, state, jax.tree.unflatten(structure, decayed))
        both = [u if s is None else u + s for u, s in zip(jax.tree.leaves(updates), steps, strict=True)]
        return jax.tree.unflatten(structure, both), state

    return optax.GradientTransformation(rule.init, update)

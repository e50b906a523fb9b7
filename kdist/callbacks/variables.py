"""The model's variables as callbacks need them: copied on the devices, or by name."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kdist.state import TrainState
from kdist.typing import PyTree


@jax.jit
def copied(tree: PyTree) -> PyTree:
    """A copy on the same devices, without a wait: the next execution uses up the arrays of the state."""
    return jax.tree.map(jnp.copy, tree)


def named(state: TrainState) -> dict[str, jax.Array]:
    """Parameters by path, such as ``dense/kernel``, then the other collections, such as ``batch_stats/norm/mean``."""
    leaves = [leaf for tree in (state.params, state.model_state) for leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}

"""A training state in a directory: weights, and all that training goes on from."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp

from kdist.checkpoint import reading, writing
from kdist.state import TrainState
from kdist.typing import PyTree

KIND = "training states"


def save_state(directory: str | os.PathLike[str], state: TrainState, meta: dict[str, Any]) -> None:
    """Writes a state to a directory.  All processes call it; a checkpoint that is there is replaced.

    It returns when all is written, so the state may be donated then.  `load_weights` reads the weights of it alone.

    Args:
        directory: Where to; its parents are made.
        state: The state, on any devices.
        meta: What else is to be known, as JSON can hold it, such as ``{"epoch": 3}``.

    Raises:
        CheckpointError: It cannot be written, or the directory holds something else.

    Example:
        >>> import flax.linen as nn, kdist, tempfile
        >>> model = kdist.Model(nn.Dense(1))
        >>> model.compile("adam", "mse")
        >>> model.build((None, 3))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_state(f"{directory}/state", model.state, {"epoch": 3})
        ...     load_state(f"{directory}/state", like=model.state)[1]
        {'epoch': 3}
    """
    writing.write(directory, trees_of(state), meta, kind=KIND)


def load_state(directory: str | os.PathLike[str], like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads a state that `save_state` wrote.

    Args:
        directory: Where from.
        like: A state with the tree, shapes, dtypes and shardings that are expected; any devices.

    Returns:
        The state, placed like `like`, and the `meta` that it was saved with.

    Raises:
        CheckpointError: There is no state.
        CheckpointCorruptError: It is damaged.
        CheckpointMismatchError: It is of another model or optimizer.  Nothing is cast or left out.

    Example:
        >>> import flax.linen as nn, kdist, tempfile
        >>> model = kdist.Model(nn.Dense(1))
        >>> model.compile("adam", "mse")
        >>> model.build((None, 3))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_state(f"{directory}/state", model.state, {"epoch": 3})
        ...     state, meta = load_state(f"{directory}/state", like=model.state)
        >>> int(state.step), meta["epoch"]
        (0, 3)
    """
    trees, meta = reading.read(directory, trees_of(like), kind=KIND)
    return state_of(trees), meta


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(a).all() for a in arrays]).all()


def is_finite(state: TrainState) -> bool:
    """Whether every parameter is a number; a run cannot go on from others.

    Args:
        state: The state.

    Example:
        >>> import flax.linen as nn, kdist
        >>> model = kdist.Model(nn.Dense(1))
        >>> model.build((None, 3))
        >>> is_finite(model.state)
        True
    """
    floats = [a for a in jax.tree.leaves(state.params) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return not floats or bool(_all_finite(floats))


def trees_of(state: TrainState) -> dict[str, PyTree]:
    """The trees that a state is written as, by name."""
    return {
        "weights": {"params": state.params, **state.model_state},
        "training": {"step": state.step, "opt_state": state.opt_state, "key": state.key},
    }


def state_of(trees: dict[str, PyTree]) -> TrainState:
    """The state that was written as these trees."""
    weights, training = dict(trees["weights"]), trees["training"]
    return TrainState(training["step"], weights.pop("params"), weights, training["opt_state"], training["key"])

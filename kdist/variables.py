"""The arrays of a model, read, replaced, written and loaded; a mixin of `Model`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kdist.distribution import whole
from kdist.errors import CheckpointMismatchError
from kdist.modules import ModuleAdapter, Variables
from kdist.state import TrainState
from kdist.typing import PyTree


class ModelVariables:
    """What a model holds, as arrays: parameters and other collections."""

    adapter: ModuleAdapter
    state: TrainState

    @property
    def variables(self) -> dict[str, PyTree]:
        """Every collection by name, ``{"params": ..., "batch_stats": ...}``; assignable once built.

        The arrays are those that training goes on with: copy what you keep beyond the next `fit`.
        """
        return {"params": self.state.params, **self.state.model_state}

    @variables.setter
    def variables(self, new: Mapping[str, PyTree]) -> None:
        placed = replacement(new, self.variables)
        params = placed.pop("params")
        self.state = dataclasses.replace(self.state, params=params, model_state=placed)
        self.adapter.write_back(Variables(params, placed))

    @property
    def params(self) -> PyTree:
        """The parameters, as the module lays them out; assignable once built."""
        return self.state.params

    @params.setter
    def params(self, new: PyTree) -> None:
        self.variables = {**self.variables, "params": new}

    def get_weights(self) -> list[np.ndarray]:
        """Copies of the parameters, then of the other collections, in tree order: NumPy arrays.

        All processes call it where parameters are split over them.

        Example:
            >>> import flax.linen as nn, kdist
            >>> model = kdist.Model(nn.Dense(3))
            >>> model.build((None, 2))
            >>> [w.shape for w in model.get_weights()]
            [(3,), (2, 3)]
        """
        return [np.array(whole(a)) for a in jax.tree.leaves((self.state.params, self.state.model_state))]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Replaces them by such a list.

        Args:
            weights: As many arrays as `get_weights` gives, of the same shapes.

        Raises:
            CheckpointMismatchError: Number, shapes or dtypes differ.

        Example:
            >>> import flax.linen as nn, kdist
            >>> model, other = kdist.Model(nn.Dense(3)), kdist.Model(nn.Dense(3), seed=1)
            >>> model.build((None, 2)), other.build((None, 2))
            (None, None)
            >>> model.set_weights(other.get_weights())
            >>> bool((model.get_weights()[1] == other.get_weights()[1]).all())
            True
        """
        mine, structure = jax.tree.flatten((self.state.params, self.state.model_state))
        if not isinstance(weights, (list, tuple)) or len(weights) != len(mine):
            received = (
                f"a list of {len(weights)}" if isinstance(weights, (list, tuple)) else f"a {type(weights).__name__}"
            )
            raise CheckpointMismatchError(f"Expected a list of the model's {len(mine)} weights. Received: {received}.")
        params, model_state = jax.tree.unflatten(structure, list(weights))
        self.variables = {"params": params, **model_state}

    def save_weights(self, directory: str | os.PathLike[str]) -> None:
        """Writes the variables to a directory; see `load_weights`.  All processes call it.

        Args:
            directory: Where to; its parents are made, and what is there is replaced.

        Raises:
            CheckpointError: It cannot be written.
        """
        from kdist import checkpoint

        checkpoint.save_weights(directory, self.variables)

    def load_weights(self, directory: str | os.PathLike[str]) -> None:
        """Reads variables that `save_weights` wrote; the model must be built.

        Args:
            directory: Where from.

        Raises:
            CheckpointError: There are none.
            CheckpointMismatchError: They are of another model; nothing is cast or left out.

        Example:
            >>> import flax.linen as nn, kdist, tempfile
            >>> model, other = kdist.Model(nn.Dense(3)), kdist.Model(nn.Dense(3), seed=1)
            >>> model.build((None, 2)), other.build((None, 2))
            (None, None)
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     model.save_weights(directory + "/weights")
            ...     other.load_weights(directory + "/weights")
            >>> bool((model.get_weights()[1] == other.get_weights()[1]).all())
            True
        """
        from kdist import checkpoint

        self.variables = checkpoint.load_weights(directory, self.variables)


def replacement(new: PyTree, old: PyTree) -> PyTree:
    """The arrays of `new` in the places of those of `old`, on the same devices.

    Raises:
        CheckpointMismatchError: Structure, a shape or the kind of a dtype differ.
    """
    found = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(new)}
    expected = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old)}
    if set(found) != set(expected):
        raise CheckpointMismatchError(
            f"The variables have other paths than the model's. Missing: {sorted(set(expected) - set(found))}. "
            f"Unknown: {sorted(set(found) - set(expected))}."
        )

    def place(path: str) -> jax.Array:
        value, there = np.asarray(found[path]), expected[path]
        if value.shape != there.shape or not np.can_cast(value.dtype, there.dtype, "same_kind"):
            raise CheckpointMismatchError(
                f"{path}: expected {there.dtype}{list(there.shape)}, received {value.dtype}{list(value.shape)}."
            )
        # A copy: the array is donated to the next execution, and must not be the caller's.
        return jax.device_put(np.array(value, there.dtype), there.sharding)

    return jax.tree.unflatten(jax.tree.structure(old), [place(path) for path in expected])


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")

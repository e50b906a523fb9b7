"""TrainState: everything that an optimizer step reads and writes, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from kdist.distribution import DataParallel
from kdist.typing import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The arrays that training carries from step to step, on the devices.

    Attributes:
        step: int32 scalar, optimizer updates so far.
        params: The parameters, float32, as the module lays them out.
        model_state: Other collections by name, such as ``{"batch_stats": ...}``; ``{}`` if none.
        opt_state: The optimizer's state; the learning rate lives in it.
        key: One typed PRNG key. It never changes: a step's key is folded from it and `step`.

    Example:
        >>> import flax.linen as nn, kdist
        >>> model = kdist.Model(nn.Dense(1))
        >>> model.build((None, 3))
        >>> int(model.state.step), sorted(model.state.params)
        (0, ['bias', 'kernel'])
    """

    step: jax.Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    key: jax.Array


def shardings(state: TrainState, distribution: DataParallel) -> Any:
    """Where each array of a state lies: a TrainState with a `jax.sharding.NamedSharding` in place of each.

    Args:
        state: Arrays, or their shapes.
        distribution: The mesh, and how much of a state is split over it.

    Example:
        >>> import flax.linen as nn, kdist
        >>> model = kdist.Model(nn.Dense(1))
        >>> model.build((None, 3))
        >>> shardings(model.state, DataParallel(devices=jax.devices()[:1])).params["kernel"].spec
        P()
    """
    places: Any = jax.tree.map(lambda a: distribution.replicated, state)
    return dataclasses.replace(
        places,
        params=jax.tree.map(lambda a: distribution.param_sharding(a.shape), state.params),
        opt_state=jax.tree.map(lambda a: distribution.opt_sharding(a.shape), state.opt_state),
    )

"""A side of a comparison: a short `fit` of another trainer's step, of which the gradients are kept."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kdist.data import ArrayLoader
from kdist.distribution import DataParallel
from kdist.modules import Variables
from kdist.state import TrainState, shardings
from kdist.step import Step
from kdist.trainer import Trainer
from kdist.typing import Batch, PyTree, Sums


class _Kept(NamedTuple):
    """What went through a place in the optimizer, added up over the steps."""

    total: PyTree


def keep() -> optax.GradientTransformation:
    """A place in a chain of transformations where all is added up that goes through, which is left as it is."""

    def update(updates: PyTree, state: _Kept, params: PyTree = None) -> tuple[PyTree, _Kept]:
        return updates, _Kept(jax.tree.map(jnp.add, state.total, updates))

    return optax.GradientTransformation(lambda params: _Kept(jax.tree.map(jnp.zeros_like, params)), update)


class Seen(NamedTuple):
    """What a side came to, on the host: its mean loss, what was kept, and the model's other state after it."""

    loss: float
    total: PyTree
    model_state: PyTree


class Side(Trainer):
    """The step of another trainer, on other devices and with another optimizer."""

    def __init__(self, of: Trainer, tx: optax.GradientTransformation, distribution: DataParallel, k: int) -> None:
        super().__init__(
            of.adapter,
            optimizer=tx,
            loss=of.plan.loss,
            loss_weights=of.plan.loss_weights,
            distribution=distribution,
            steps_per_execution=k,
            precision=of.precision,
            microbatches=of.microbatches,
            seed=of.seed,
            auto_scale_loss=False,
            sample_weight_mode=of.plan.sample_weight_mode,
        )
        self._of = of

    def train_step(self, step: Step, state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        """See `Trainer.train_step`."""
        return self._of.train_step(step, state, batch)

    def see(self, variables: Variables, key: jax.Array, loader: ArrayLoader) -> Seen:
        """Trains an epoch from these variables, which are on the host, with this key."""
        state = TrainState(jnp.int32(0), *variables, self.init_opt_state(variables.params), key)
        # Training writes into what it is given, so that this must not be the memory of the variables.
        state = jax.device_put(state, shardings(state, self.distribution), may_alias=False)
        # float32 is to mean float32 on accelerators too, whose matrix units round to less by default.
        with jax.default_matmul_precision("highest"):
            state, history = self.fit(state, loader, epochs=1)
        parts = jax.tree.leaves(state.opt_state, is_leaf=_is_kept)
        total = next(part.total for part in parts if _is_kept(part))
        return Seen(history.history["loss"][0], *jax.device_get((total, state.model_state)))


def _is_kept(part: Any) -> bool:
    return isinstance(part, _Kept)


def held_key() -> jax.Array:
    """A key from which every draw is the same, a new one each time since training uses it up."""
    return jax.random.key(0, impl=_held_impl())


@functools.cache
def _held_impl() -> Any:
    """Draws a sixteenth of the way up, where a dropout of less than 15/16 drops nothing."""
    from jax.extend.random import define_prng_impl

    return define_prng_impl(
        key_shape=(2,),
        seed=lambda seed: jnp.zeros((2,), jnp.uint32),
        split=lambda key, shape: jnp.zeros((*shape, 2), jnp.uint32),
        random_bits=lambda key, width, shape: jnp.full(shape, 1 << (width - 4), f"uint{width}"),
        fold_in=lambda key, data: key,
        name="held",
        tag="held",
    )

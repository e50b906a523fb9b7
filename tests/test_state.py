"""TrainState is a pytree of arrays with readable paths."""

import dataclasses

import jax
import jax.numpy as jnp

from kdist import TrainState


def test_it_is_a_tree_of_its_fields():
    state = TrainState(jnp.int32(3), {"w": jnp.ones(2)}, {}, (), jax.random.key(0))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert paths == [".step", ".params['w']", ".key"]
    assert [f.name for f in dataclasses.fields(state)] == ["step", "params", "model_state", "opt_state", "key"]
    doubled = jax.tree.map(lambda a: a * 2, dataclasses.replace(state, key=None))
    assert isinstance(doubled, TrainState) and int(doubled.step) == 6

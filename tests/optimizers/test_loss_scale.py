"""Loss scaling: what is skipped, how the scale moves, and what shines through from the optimizer inside."""

import jax
import numpy as np
import optax
import pytest
from updates import GRADS, P0, Run, close, trained

from kdist import optimizers
from kdist.optimizers import loss_scale


def scaled(grads, scale):
    return jax.tree.map(lambda g: g * scale, grads)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("leaf", ["w", "b"])
def test_a_batch_that_is_not_finite_changes_nothing_but_the_scale(bad, leaf):
    run = Run(optimizers.LossScaleOptimizer(optimizers.Adam(use_ema=True), initial_scale=8.0))
    run.step(scaled(GRADS[0], 8.0))
    params, before = jax.device_get((run.params, run.opt_state))
    spoilt = GRADS[1] | {leaf: np.where(np.arange(GRADS[1][leaf].size).reshape(P0[leaf].shape) == 1, bad, 1.0)}
    run.step(jax.tree.map(np.float32, spoilt))
    jax.tree.map(np.testing.assert_array_equal, run.params, params)
    jax.tree.map(np.testing.assert_array_equal, run.opt_state.inner, before.inner)
    assert (before.scale, before.good_steps) == (8.0, 1)
    assert (run.opt_state.scale, run.opt_state.good_steps) == (4.0, 0)
    assert run.optimizer.iterations == 1


def test_the_scale_doubles_after_good_batches_in_a_row():
    run = Run(optimizers.LossScaleOptimizer(optimizers.SGD(0.1), initial_scale=2.0, dynamic_growth_steps=3))
    found = []
    for _ in range(7):
        run.step(scaled(GRADS[0], float(loss_scale(run.opt_state))))
        found.append((float(run.opt_state.scale), int(run.opt_state.good_steps)))
    assert found == [(2, 1), (2, 2), (4, 0), (4, 1), (4, 2), (8, 0), (8, 1)]
    close(run.params, jax.tree.map(lambda p, g: p - 0.7 * g, P0, GRADS[0]))


def test_a_fixed_scale_skips_nothing():
    optimizer = optimizers.SGD(0.1, loss_scale_factor=16.0)
    run = Run(optimizer)
    assert loss_scale(run.opt_state) == 16.0
    close(run.step(scaled(GRADS[0], 16.0)), jax.tree.map(lambda p, g: p - 0.1 * g, P0, GRADS[0]))
    run.step(GRADS[0] | {"b": np.full(2, np.nan, np.float32)})
    assert np.isnan(run.params["b"]).all() and np.isfinite(run.params["w"]).all()
    assert optimizer.iterations == 2
    optimizer.learning_rate = 0.0
    assert optimizer.learning_rate == 0.0


def test_dynamic_scaling_takes_the_place_of_a_fixed_scale():
    inner = optimizers.SGD(0.1, loss_scale_factor=99.0)
    run = Run(optimizers.LossScaleOptimizer(inner, initial_scale=2.0))
    assert inner.loss_scale_factor is None
    close(run.step(scaled(GRADS[0], 2.0)), jax.tree.map(lambda p, g: p - 0.1 * g, P0, GRADS[0]))


@pytest.mark.parametrize(
    "inner",
    [lambda: optimizers.SGD(0.25), lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=0.25)],
    ids=["kdist", "optax"],
)
def test_the_rate_is_that_of_the_optimizer_inside(inner):
    run = Run(optimizers.LossScaleOptimizer(inner()))
    assert run.optimizer.learning_rate == 0.25
    run.optimizer.learning_rate = 0.0
    close(run.step(GRADS[0]), P0)
    assert run.optimizer.learning_rates() == {"learning_rate": 0.0}
    assert run.optimizer.iterations == run.optimizer.inner_optimizer.iterations == 1
    assert run._update._cache_size() == 1


def test_exclusion_from_decay_is_that_of_the_optimizer_inside():
    optimizer = optimizers.LossScaleOptimizer(optimizers.SGD(0.5, weight_decay=0.2))
    optimizer.exclude_from_weight_decay(var_names=["b"])
    after = trained(optimizer, [jax.tree.map(np.zeros_like, P0)])
    close(after, {"w": 0.9 * P0["w"], "b": P0["b"]})


def test_without_a_scale_there_is_none():
    assert loss_scale(Run(optimizers.Adam()).opt_state) is None
    assert loss_scale(()) is None

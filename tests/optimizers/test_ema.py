"""The moving average of the parameters: when it starts, how it moves, how it is found and exchanged."""

import jax
import numpy as np
import optax
import pytest
from updates import GRADS, P0, Run, close

from kdist import checkpoint, optimizers
from kdist.errors import ConfigError
from kdist.optimizers import ema_params, swap_ema


def wrappers(optimizer):
    return {
        "alone": optimizer,
        "loss_scale": optimizers.LossScaleOptimizer(optimizer),
        "part": optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizer)),
        "chain": optimizers.get(optax.chain(optax.identity(), optimizer.tx)),
    }


@pytest.mark.parametrize("wrapper", wrappers(optimizers.SGD()))
def test_the_average_follows_the_parameters(wrapper):
    run = Run(wrappers(optimizers.SGD(0.1, use_ema=True, ema_momentum=0.75))[wrapper])
    close(ema_params(run.opt_state), P0)
    expected = None
    for g in GRADS:
        g = jax.tree.map(lambda a: a * (optimizers.loss_scale(run.opt_state) or 1.0), g)
        params = run.step(g)
        expected = params if expected is None else jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, expected, params)
        close(ema_params(run.opt_state), expected)


def test_with_accumulation_it_moves_at_every_batch_after_the_first_update():
    run = Run(optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=2))
    zero, one = P0, None
    for step, g in enumerate((GRADS * 2)[:5]):
        params = run.step(g)
        if step < 2:
            zero = params
            close(ema_params(run.opt_state), params)
        else:
            one = jax.tree.map(lambda a, p: 0.5 * a + 0.5 * p, one or zero, params)
            close(ema_params(run.opt_state), one)


def test_overwriting_makes_the_parameters_the_average():
    run = Run(optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2))
    same = []
    for g in GRADS * 2:
        params = run.step(g)
        average = ema_params(run.opt_state)
        same.append(all(np.allclose(params[k], average[k], rtol=1e-6, atol=1e-7) for k in P0))
    assert same == [True, True, False, True, False, True]  # at the first step the average is the parameters


def test_without_there_is_none():
    state = Run(optimizers.Adam()).opt_state
    assert ema_params(state) is None
    with pytest.raises(ConfigError, match="use_ema=True"):
        swap_ema(P0, state)


@pytest.mark.parametrize("wrapper", ["alone", "loss_scale", "part"])
def test_a_swap_exchanges_arrays_that_training_may_use_up(wrapper):
    run = Run(wrappers(optimizers.SGD(0.1, momentum=0.9, use_ema=True))[wrapper])
    run.step(GRADS[0])
    run.step(GRADS[1])
    params, average = jax.device_get((run.params, ema_params(run.opt_state)))
    run.params, run.opt_state = swap_ema(run.params, run.opt_state)
    close(run.params, average)
    close(ema_params(run.opt_state), params)
    buffers = [a.unsafe_buffer_pointer() for a in jax.tree.leaves((run.params, run.opt_state))]
    assert len(set(buffers)) == len(buffers)
    update = jax.jit(run.optimizer.tx.update, donate_argnums=(1, 2))
    jax.block_until_ready(update(GRADS[2], run.opt_state, run.params))


def test_a_part_without_an_average_keeps_its_parameters():
    chosen = optimizers.OptimizerMap(optimizers.SGD(0.1), {"w": optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)})
    run = Run(optimizers.MultiOptimizer(chosen))
    for g in GRADS:
        run.step(g)
    average = ema_params(run.opt_state, run.params)
    assert jax.tree.structure(average) == jax.tree.structure(P0)
    close(average["b"], run.params["b"])
    assert np.abs(average["w"] - run.params["w"]).max() > 1e-3
    params, state = swap_ema(run.params, run.opt_state)
    close(params, average)
    assert jax.tree.structure(state) == jax.tree.structure(run.opt_state)
    back, state = swap_ema(params, state)
    close(back, run.params)
    close(ema_params(state, back), average)


def test_the_state_can_be_saved(tmp_path):
    part = optimizers.Adam(use_ema=True, gradient_accumulation_steps=2)
    chosen = optimizers.OptimizerMap(part, {"w": optimizers.Muon(loss_scale_factor=2.0)})
    run = Run(optimizers.LossScaleOptimizer(optimizers.MultiOptimizer(chosen)))
    run.step(GRADS[0])
    checkpoint.save_weights(tmp_path / "state", run.opt_state)
    loaded = checkpoint.load_weights(tmp_path / "state", run.opt_state)
    assert jax.tree.structure(loaded) == jax.tree.structure(run.opt_state)
    jax.tree.map(np.testing.assert_array_equal, loaded, run.opt_state)

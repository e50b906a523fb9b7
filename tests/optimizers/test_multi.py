"""Parts: which optimizer has which parameter, their rates, and states inside states."""

import jax
import numpy as np
import optax
import pytest
from updates import Run, close

from kdist import optimizers
from kdist.optimizers import MultiOptimizer, OptimizerMap

PARAMS = {
    "encoder": {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)},
    "decoder": {"kernel": np.ones((3, 2), np.float32)},
}
ONES = jax.tree.map(np.ones_like, PARAMS)


def moved(run):
    run.step(ONES)
    return {
        "/".join(k.key for k in path): round(float(1 - a.flat[0]), 4)
        for path, a in jax.tree_util.tree_leaves_with_path(jax.device_get(run.params))
    }


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, (1.0, 1.0, 1.0)),
        ({"encoder": 0.1}, (1.0, 1.0, 1.0)),  # an expression matches the whole path
        ({"encoder/.*": 0.1}, (0.1, 0.1, 1.0)),
        ({".*/kernel": 0.1, ".*/bias": 0.2}, (0.1, 0.2, 0.1)),
        ({".*/kernel": 0.1, "decoder/kernel": 0.2}, (0.1, 1.0, 0.2)),  # the path itself comes first
    ],
    ids=str,
)
def test_a_map_chooses_by_path(chosen, expected):
    parts = {key: optimizers.SGD(rate) for key, rate in chosen.items()}
    found = moved(Run(MultiOptimizer(OptimizerMap(optimizers.SGD(1.0), parts)), PARAMS))
    assert (found["encoder/kernel"], found["encoder/bias"], found["decoder/kernel"]) == expected


def test_a_function_chooses_once_for_each_parameter():
    seen = []

    def choose(parameter):
        seen.append((parameter.path, parameter.name, parameter.shape, str(parameter.dtype)))
        return optimizers.SGD(0.1 if len(parameter.shape) == 1 else 0.5)

    optimizer = MultiOptimizer(choose)
    assert optimizer.optimizers == [] and optimizer.learning_rates() == {}
    run = Run(optimizer, PARAMS)
    assert moved(run) == {"encoder/kernel": 0.5, "encoder/bias": 0.1, "decoder/kernel": 0.5}
    assert sorted(seen) == [
        ("decoder/kernel", "kernel", (3, 2), "float32"),
        ("encoder/bias", "bias", (3,), "float32"),
        ("encoder/kernel", "kernel", (2, 3), "float32"),
    ]
    assert len(optimizer.optimizers) == 3
    assert sorted(optimizer.learning_rates()) == ["learning_rate_sgd", "learning_rate_sgd_1", "learning_rate_sgd_2"]


@pytest.mark.parametrize("scaled", [False, True])
def test_each_part_has_its_own_live_rate(scaled):
    adam, sgd = optimizers.Adam(0.5), optimizers.SGD(0.25, gradient_accumulation_steps=2)
    multi = MultiOptimizer(OptimizerMap(sgd, {"encoder/.*": adam}))
    run = Run(optimizers.LossScaleOptimizer(multi) if scaled else multi, PARAMS)
    assert run.optimizer.learning_rates() == {"learning_rate_adam": 0.5, "learning_rate_sgd": 0.25}
    run.step(ONES)
    assert (adam.iterations, sgd.iterations, multi.iterations) == (1, 0, 1)
    adam.learning_rate = 0.0
    before = jax.device_get(run.params)
    run.step(ONES)
    assert run._update._cache_size() == 1
    assert (adam.iterations, sgd.iterations, run.optimizer.iterations) == (2, 1, 2)
    close(run.params["encoder"], before["encoder"])
    assert np.abs(run.params["decoder"]["kernel"] - before["decoder"]["kernel"]).max() > 0
    assert run.optimizer.learning_rates() == {"learning_rate_adam": 0.0, "learning_rate_sgd": 0.25}
    for act in (lambda: run.optimizer.learning_rate, lambda: setattr(run.optimizer, "learning_rate", 1.0)):
        with pytest.raises(AttributeError, match="no learning rate of its own"):
            act()


def test_a_part_that_matches_nothing_keeps_the_rate_it_has():
    idle = optimizers.Adam(0.5)
    run = Run(MultiOptimizer(OptimizerMap(optimizers.SGD(), {"head/.*": idle})), PARAMS)
    run.step(ONES)
    assert set(run.opt_state.parts.inner_states) == {"sgd"}
    idle.learning_rate = 0.1
    assert (idle.learning_rate, idle.iterations) == (0.1, 0)


def test_parts_may_be_optax_transformations_and_be_in_several_places():
    tx, sgd = optax.sgd(0.5), optimizers.SGD(0.25)
    multi = MultiOptimizer(lambda p: tx if p.name == "kernel" else sgd)
    run = Run(multi, PARAMS)
    assert sorted(part.name for part in multi.optimizers) == ["optax", "sgd"]
    assert moved(run) == {"encoder/kernel": 0.5, "encoder/bias": 0.25, "decoder/kernel": 0.5}
    assert multi.learning_rates() == {"learning_rate_sgd": 0.25}


def test_a_map_is_a_mapping():
    adam, sgd = optimizers.Adam(), optimizers.SGD()
    chosen = OptimizerMap(adam)
    chosen["encoder/.*"] = sgd
    assert len(chosen) == 1 and list(chosen) == ["encoder/.*"] and "encoder/x" not in chosen
    assert chosen["encoder/x"] is sgd and chosen.default_optimizer is adam
    del chosen["encoder/.*"]
    assert chosen["encoder/x"] is adam


def test_exclusion_from_decay_is_a_parts_own():
    decaying = optimizers.SGD(0.5, weight_decay=0.2)
    decaying.exclude_from_weight_decay(var_names=["bias"])
    run = Run(MultiOptimizer(OptimizerMap(optimizers.SGD(), {"encoder/.*": decaying})), PARAMS)
    run.step(jax.tree.map(np.zeros_like, PARAMS))
    assert run.params["encoder"]["kernel"][0, 0] == pytest.approx(0.9)
    assert run.params["encoder"]["bias"][0] == run.params["decoder"]["kernel"][0, 0] == 1.0
    with pytest.raises(ValueError, match="on the optimizers of the MultiOptimizer"):
        run.optimizer.exclude_from_weight_decay(var_names=["bias"])

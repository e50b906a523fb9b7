"""The rules of the optimizers, clips, decay, accumulation and the live learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from updates import GRADS, P0, Run, close, trained

from kdist import optimizers
from kdist.errors import ConfigError


def by_formula(rule, **start):
    """`P0` after GRADS, where ``rule(p, g, slots)`` changes a parameter's slots and gives its new value."""
    out = {}
    for name, p in P0.items():
        p, slots = p.astype(np.float64), {k: np.full(p.shape, v) for k, v in start.items()}
        for g in GRADS:
            p = rule(p, g[name].astype(np.float64), slots)
        out[name] = p
    return out


@pytest.mark.parametrize("name", optimizers.names())
def test_every_name_makes_finite_updates(name):
    optimizer = optimizers.get(name)
    assert optimizer.name == name == optimizers.get(name.upper()).name
    after = trained(optimizer)
    for key, before in P0.items():
        assert np.isfinite(after[key]).all()
        assert (np.asarray(after[key]) != before).any()
        assert after[key].dtype == jnp.float32


def sgd(p, g, s):
    return p - 0.01 * g


def momentum(p, g, s):
    s["m"] = 0.9 * s["m"] - 0.1 * g
    return p + s["m"]


def nesterov(p, g, s):
    s["m"] = 0.9 * s["m"] - 0.1 * g
    return p + 0.9 * s["m"] - 0.1 * g


def rmsprop(p, g, s):
    s["v"] = 0.9 * s["v"] + 0.1 * g**2
    return p - 1e-3 * g / np.sqrt(s["v"] + 1e-7)


def centered_rmsprop(p, g, s):
    s["v"] = 0.8 * s["v"] + 0.2 * g**2
    s["mean"] = 0.8 * s["mean"] + 0.2 * g
    s["b"] = 0.5 * s["b"] + 0.01 * g / np.sqrt(s["v"] - s["mean"] ** 2 + 1e-3)
    return p - s["b"]


def adagrad(p, g, s):
    s["a"] = s["a"] + g**2
    return p - 1e-3 * g / np.sqrt(s["a"] + 1e-7)


def adadelta(p, g, s):
    s["a"] = 0.95 * s["a"] + 0.05 * g**2
    delta = -np.sqrt(s["d"] + 1e-7) / np.sqrt(s["a"] + 1e-7) * g
    s["d"] = 0.95 * s["d"] + 0.05 * delta**2
    return p + 1e-3 * delta


def adam(p, g, s):
    s["t"] = s["t"] + 1
    s["m"] = 0.9 * s["m"] + 0.1 * g
    s["v"] = 0.999 * s["v"] + 0.001 * g**2
    m, v = s["m"] / (1 - 0.9 ** s["t"]), s["v"] / (1 - 0.999 ** s["t"])
    return p - 1e-3 * m / (np.sqrt(v) + 1e-7)


def adamw(p, g, s):
    return adam(p - 1e-3 * 4e-3 * p, g, s)


def adamax(p, g, s):
    s["t"] = s["t"] + 1
    s["m"] = 0.9 * s["m"] + 0.1 * g
    s["u"] = np.maximum(0.999 * s["u"], np.abs(g))
    return p - 1e-3 * s["m"] / ((1 - 0.9 ** s["t"]) * (s["u"] + 1e-7))


def lion(p, g, s):
    step = np.sign(0.9 * s["m"] + 0.1 * g)
    s["m"] = 0.99 * s["m"] + 0.01 * g
    return p - 1e-3 * step


def decayed_sgd(p, g, s):
    return p - 0.1 * 0.01 * p - 0.1 * g


@pytest.mark.parametrize(
    ("optimizer", "rule", "start"),
    [
        (optimizers.SGD(), sgd, {}),
        (optimizers.SGD(0.1, momentum=0.9), momentum, {"m": 0.0}),
        (optimizers.SGD(0.1, momentum=0.9, nesterov=True), nesterov, {"m": 0.0}),
        (optimizers.RMSprop(), rmsprop, {"v": 0.0}),
        (optimizers.RMSprop(0.01, 0.8, 0.5, 1e-3, centered=True), centered_rmsprop, {"v": 0.0, "mean": 0.0, "b": 0.0}),
        (optimizers.Adagrad(), adagrad, {"a": 0.1}),
        (optimizers.Adadelta(), adadelta, {"a": 0.0, "d": 0.0}),
        (optimizers.Adam(), adam, {"t": 0, "m": 0.0, "v": 0.0}),
        (optimizers.AdamW(), adamw, {"t": 0, "m": 0.0, "v": 0.0}),
        (optimizers.Adamax(), adamax, {"t": 0, "m": 0.0, "u": 0.0}),
        (optimizers.Lion(), lion, {"m": 0.0}),
        (optimizers.SGD(0.1, weight_decay=0.01), decayed_sgd, {}),
    ],
    ids=lambda a: getattr(a, "__name__", None),
)
def test_formulas(optimizer, rule, start):
    found, expected = trained(optimizer), by_formula(rule, **start)
    moved = jax.tree.map(lambda a, before: np.asarray(a, np.float64) - before, found, P0)
    jax.tree.map(
        lambda m, e, before: np.testing.assert_allclose(m, e - before, rtol=1e-3, atol=3e-7), moved, expected, P0
    )


def test_momentum_with_a_changing_rate_is_keras():
    """Keras has the rate inside the buffer: what went in before a drop still moves at the old rate."""
    run = Run(optimizers.SGD(1.0, momentum=0.9), {"w": np.zeros(1, np.float32)})
    m = p = 0.0
    for rate in (1.0, 1.0, 0.1, 0.1):
        run.optimizer.learning_rate = rate
        m = 0.9 * m - rate * 0.5
        p += m
        close(run.step({"w": np.full(1, 0.5, np.float32)}), {"w": np.array([p])})


@pytest.mark.parametrize("name", optimizers.names())
def test_the_rate_is_set_while_training_without_a_recompile(name):
    run = Run(optimizers.get(name, learning_rate=0.25))
    assert run.optimizer.learning_rate == 0.25
    run.step(GRADS[0])
    run.optimizer.learning_rate = 0.0
    before = run.params
    after = run.step(GRADS[1])
    assert run.optimizer.learning_rate == 0.0
    assert run._update._cache_size() == 1
    if name == "schedulefreeadamw":  # its average moves without a step, too
        return
    if name == "ftrl":  # divides by the rate
        assert not np.isfinite(after["w"]).any()
    else:
        close(after, before)


def test_the_rate_can_be_set_before_training_and_reads_as_a_person_wrote_it():
    optimizer = optimizers.Adam(1e-3)
    assert optimizer.learning_rate == 1e-3
    optimizer.learning_rate = 0.3
    optimizer.learning_rate = 0.7
    run = Run(optimizer)
    assert run.optimizer.learning_rate == 0.7
    close(run.step(GRADS[0]), jax.tree.map(lambda p, g: p - 0.7 * np.sign(g), P0, GRADS[0]), rtol=1e-4)


def test_a_schedule_is_evaluated_at_the_count_before_the_update():
    run = Run(optimizers.SGD(optax.piecewise_constant_schedule(1.0, {1: 0.1, 2: 0.1})), {"w": np.zeros(1, np.float32)})
    found = [float(run.step({"w": np.ones(1, np.float32)})["w"][0]) for _ in range(3)]
    np.testing.assert_allclose(found, [-1.0, -1.1, -1.11], rtol=1e-6)


def test_under_a_schedule_the_rate_read_is_that_of_the_next_update():
    optimizer = optimizers.SGD(optax.piecewise_constant_schedule(1.0, {1: 0.1}))
    assert callable(optimizer.learning_rate)
    run = Run(optimizer)
    assert optimizer.learning_rate == 1.0
    run.step(GRADS[0])
    assert optimizer.learning_rate == pytest.approx(0.1)


@pytest.mark.parametrize("attached", [False, True])
def test_a_schedule_refuses_to_be_set(attached):
    optimizer = optimizers.SGD(optax.constant_schedule(0.5))
    if attached:
        Run(optimizer).step(GRADS[0])
    with pytest.raises(TypeError, match="is a schedule; it cannot be set"):
        optimizer.learning_rate = 0.1


def clipped(g, limit):
    return g * limit / max(np.linalg.norm(g), limit)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"clipnorm": 1.0}, {k: clipped(g, 1.0) for k, g in GRADS[0].items()}),
        ({"clipvalue": 0.35}, {k: np.clip(g, -0.35, 0.35) for k, g in GRADS[0].items()}),
        (
            {"global_clipnorm": 1.0},
            {k: g / np.sqrt(sum((h**2).sum() for h in GRADS[0].values())) for k, g in GRADS[0].items()},
        ),
        ({"global_clipnorm": 100.0}, GRADS[0]),
    ],
    ids=str,
)
def test_clips(arguments, expected):
    after = trained(optimizers.SGD(1.0, **arguments), GRADS[:1])
    close(jax.tree.map(lambda a, p: p - a, after, P0), expected)


def test_decay_is_of_every_parameter_and_not_clipped():
    after = trained(optimizers.SGD(0.5, clipvalue=0.1, weight_decay=0.2), GRADS[:1])
    close(after, jax.tree.map(lambda p, g: p * (1 - 0.5 * 0.2) - 0.5 * np.clip(g, -0.1, 0.1), P0, GRADS[0]))


def test_accumulation_updates_by_the_mean_gradient():
    run = Run(optimizers.SGD(0.5, clipvalue=0.3, gradient_accumulation_steps=3))
    close(run.step(GRADS[0]), P0)
    close(run.step(GRADS[1]), P0)
    mean = jax.tree.map(lambda *g: sum(g) / 3, *GRADS)
    close(run.step(GRADS[2]), jax.tree.map(lambda p, g: p - 0.5 * np.clip(g, -0.3, 0.3), P0, mean))
    run.optimizer.learning_rate = 0.0
    assert run.optimizer.learning_rate == 0.0
    close(run.step(GRADS[0]), run.params)


def test_with_accumulation_a_schedule_counts_batches():
    """As in Keras: of four batches, two updates, the rates are those of batches 1 and 3."""
    run = Run(
        optimizers.SGD(lambda count: jnp.asarray(count, jnp.float32), gradient_accumulation_steps=2),
        {"w": np.zeros(1, np.float32)},
    )
    found = [float(run.step({"w": np.ones(1, np.float32)})["w"][0]) for _ in range(4)]
    np.testing.assert_allclose(found, [0.0, -1.0, -1.0, -4.0])


def test_amsgrad_differs_from_adam_once_gradients_shrink():
    small = jax.tree.map(lambda g: 0.01 * g, GRADS[0])
    plain, amsgrad = (trained(optimizers.Adam(amsgrad=a, beta_2=0.5), [GRADS[0], small, small]) for a in (False, True))
    assert (np.abs(plain["w"] - P0["w"]) > np.abs(amsgrad["w"] - P0["w"])).all()


@pytest.mark.parametrize("relative_step", [False, True])
def test_adafactor_takes_at_most_the_relative_step(relative_step):
    one, capped = (trained(optimizers.Adafactor(rate, relative_step=relative_step), GRADS[:1]) for rate in (1.0, 2.0))
    close(one, capped)  # at the first step the limit is 1


def test_a_whole_number_is_a_rate():
    assert optimizers.SGD(1).learning_rate == 1.0


class TestOptaxTransformations:
    """What a user built of optax is taken as it is; its rate is live if it was injected."""

    def test_injected_rate(self):
        run = Run(optimizers.get(optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)))
        assert run.optimizer.learning_rate == 0.5
        run.optimizer.learning_rate = 0.0
        close(run.step(GRADS[0]), P0)

    def test_plain_transformation_has_none(self):
        optimizer = Run(optimizers.get(optax.adam(0.5))).optimizer
        with pytest.raises(AttributeError, match="inject_hyperparams"):
            _ = optimizer.learning_rate
        with pytest.raises(AttributeError, match="inject_hyperparams"):
            optimizer.learning_rate = 0.1

    def test_extra_arguments_are_a_transformation_too(self):
        close(trained(optimizers.get(optax.with_extra_args_support(optax.sgd(0.01)))), trained(optimizers.SGD()))


def test_the_rule_sees_decayed_parameters():
    """As in Keras: here the rule moves by the parameters themselves."""

    class Grow(optimizers.Optimizer):
        def rule(self, learning_rate):
            return optax.stateless(lambda g, p: jax.tree.map(lambda p: learning_rate * p, p))

    after = trained(Grow(0.5, weight_decay=0.2), GRADS[:1])
    close(after, jax.tree.map(lambda p: p * (1 - 0.5 * 0.2) * 1.5, P0))


@pytest.mark.parametrize(
    ("arguments", "undecayed"),
    [
        ({"var_names": ["b"]}, ["b"]),
        ({"var_names": ["^[bw]$"]}, ["b", "w"]),
        ({"var_list": ["w"]}, ["w"]),
        ({"var_list": ["b"], "var_names": ["w"]}, ["b", "w"]),
        ({"var_names": ["scale"]}, []),
        ({"var_names": "b"}, ["b"]),
        ({}, []),
    ],
    ids=str,
)
def test_excluded_from_weight_decay(arguments, undecayed):
    optimizer = optimizers.SGD(0.5, weight_decay=0.2)
    optimizer.exclude_from_weight_decay(**arguments)
    still = jax.tree.map(np.zeros_like, P0)
    after = trained(optimizer, [still])
    close(after, {name: p * (1.0 if name in undecayed else 0.9) for name, p in P0.items()})


def test_exclusion_comes_before_training_and_names_what_exists():
    optimizer = optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_list=["kernle"])
    with pytest.raises(ConfigError, match="Unknown parameter in exclude_from_weight_decay.*'kernle'.*Known: b, w"):
        trained(optimizer)
    trained(optimizers.AdamW())
    optimizer = optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_names=["b"])
    trained(optimizer)
    with pytest.raises(ConfigError, match="before training"):
        optimizer.exclude_from_weight_decay(var_names=["w"])


def test_a_function_of_nothing_is_called_when_training_starts():
    rates = [0.5]
    optimizer = optimizers.SGD(lambda: rates[0])
    assert optimizer.learning_rate == 0.5
    rates[0] = 0.25
    run = Run(optimizer)
    rates[0] = 99.0
    assert optimizer.learning_rate == 0.25
    run.step(GRADS[0])
    run.optimizer.learning_rate = 0.0
    before = run.params
    close(run.step(GRADS[1]), before)


def test_a_schedule_of_optional_arguments_is_one_of_the_step():
    run = Run(optimizers.SGD(lambda step=100: 0.5 / (step + 1)))
    assert run.optimizer.learning_rate == 0.5
    run.step(GRADS[0])
    assert run.optimizer.learning_rate == 0.25


@pytest.mark.parametrize("accumulate", [None, 2])
def test_iterations_are_updates(accumulate):
    optimizer = optimizers.Adam(gradient_accumulation_steps=accumulate)
    assert optimizer.iterations == 0
    run = Run(optimizer)
    found = []
    for g in GRADS:
        found.append(optimizer.iterations)
        run.step(g)
    assert found == ([0, 1, 2] if accumulate is None else [0, 0, 1])
    assert type(optimizer.iterations) is int


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(0.5, 0.5), (lambda: 0.5, 0.5), (optax.constant_schedule(0.5), 0.5)],
)
def test_rates_to_log(rate, expected):
    optimizer = optimizers.SGD(rate)
    assert optimizer.learning_rates() == {"learning_rate": expected}
    Run(optimizer).step(GRADS[0])
    assert optimizer.learning_rates() == {"learning_rate": expected}


@pytest.mark.parametrize("name", optimizers.names())
def test_a_configuration_makes_the_same_optimizer(name):
    optimizer = optimizers.get(name, learning_rate=0.25, use_ema=True, clipnorm=2.0)
    config = optimizer.get_config()
    again = optimizers.get({"class_name": type(optimizer).__name__, "config": config, "module": "keras.optimizers"})
    assert type(again) is type(optimizer)
    assert again.get_config() == config
    assert type(optimizer).from_config(config).clipnorm == 2.0


def test_a_configuration_holds_schedules_and_inner_optimizers():
    schedule = optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    optimizer = optimizers.LossScaleOptimizer(optimizers.SGD(schedule, momentum=0.5), initial_scale=4.0)
    again = optimizers.get({"class_name": "lossscaleoptimizer", "config": optimizer.get_config()})
    assert again.initial_scale == 4.0
    assert again.inner_optimizer.momentum == 0.5
    assert again.learning_rate.get_config() == schedule.get_config()


def test_the_common_arguments_are_taken_by_position_as_in_keras():
    optimizer = optimizers.SGD(0.1, 0.9, True, 0.01, 1.0)
    assert (optimizer.weight_decay, optimizer.clipnorm) == (0.01, 1.0)
    muon = optimizers.Muon(0.1, 0.9, 0.99, 0.0, 1e-7, 0.0, None, 0.5)
    assert muon.clipvalue == 0.5


def test_decay_is_ignored_with_a_warning():
    with pytest.warns(UserWarning, match="decay is ignored"):
        optimizers.SGD(0.1, decay=1e-6)


EVERYTHING = {
    "plain": {},
    "options": {
        "weight_decay": 0.1,
        "global_clipnorm": 1.0,
        "use_ema": True,
        "ema_overwrite_frequency": 2,
        "loss_scale_factor": 4.0,
        "gradient_accumulation_steps": 2,
    },
    "schedule": {"learning_rate": lambda step: 1},
}


@pytest.mark.parametrize("name", optimizers.names())
@pytest.mark.parametrize("options", EVERYTHING)
def test_the_state_stays_of_one_type(name, options):
    """As the carry of a loop needs it: no structure, shape or dtype changes, and nothing is weakly typed."""
    stays_of_one_type(optimizers.get(name, **EVERYTHING[options]))
    if options == "plain":
        stays_of_one_type(optimizers.LossScaleOptimizer(optimizers.get(name)))


def stays_of_one_type(optimizer):
    state = jax.eval_shape(optimizer.tx.init, P0)
    updates, after = jax.eval_shape(optimizer.tx.update, GRADS[0], state, P0)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    kinds = [[(a.shape, a.dtype, a.weak_type) for a in jax.tree.leaves(tree)] for tree in (state, after)]
    assert kinds[0] == kinds[1]
    assert not any(weak for _, _, weak in kinds[0])
    assert {str(dtype) for _, dtype, _ in kinds[0]} <= {"int32", "float32"}
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(updates)] == [(a.shape, a.dtype) for a in jax.tree.leaves(P0)]


def test_the_state_is_carried_by_a_loop():
    optimizer = optimizers.LossScaleOptimizer(optimizers.Adam(1e-3, use_ema=True, gradient_accumulation_steps=2))
    tx = optimizer.tx

    @jax.jit
    def run(params):
        def body(_, carry):
            params, state = carry
            updates, state = tx.update(jax.tree.map(jnp.sign, params), state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, 6, body, (params, tx.init(params)))

    params, state = run(P0)
    assert state.good_steps == 6
    close(params, jax.tree.map(lambda p: p - 3e-3 * np.sign(p), P0), rtol=1e-3)

"""Optimizers: Keras's formulas where optax has them, the live learning rate, clips, decay, accumulation and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdist import optimizers
from kdist.errors import ConfigError

P0 = {"w": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "b": np.array([0.1, -0.2], np.float32)}
GRADS = [
    {"w": np.array([[0.3, -0.4], [1.0, 0.2]], np.float32), "b": np.array([3.0, -4.0], np.float32)},
    {"w": np.array([[-0.1, 0.7], [0.5, -0.6]], np.float32), "b": np.array([0.2, 0.3], np.float32)},
    {"w": np.array([[0.9, 0.1], [-0.2, 0.4]], np.float32), "b": np.array([-1.0, 0.5], np.float32)},
]


class Run:
    """The least that holds an optimizer's state: parameters that take one update after the other."""

    def __init__(self, optimizer, params=P0):
        self.optimizer = optimizer
        self.params = jax.device_put(params, jax.devices()[0])
        self.opt_state = jax.device_put(jax.jit(optimizer.tx.init)(self.params), jax.devices()[0])
        self._update = jax.jit(optimizer.tx.update)
        optimizer.attach(self)

    def read_opt_state(self):
        return self.opt_state

    def write_opt_state(self, opt_state):
        self.opt_state = opt_state

    def step(self, grads):
        updates, self.opt_state = self._update(grads, self.opt_state, self.params)
        self.params = optax.apply_updates(self.params, updates)
        return self.params


def trained(optimizer, grads=GRADS):
    run = Run(optimizer)
    for g in grads:
        run.step(g)
    return run.params


def close(found, expected, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), found, expected)


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
    if name not in ("muon", "schedulefreeadamw"):  # these keep a moving average outside the update
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


def test_adafactor_takes_at_most_the_relative_step():
    fast, capped = (trained(optimizers.Adafactor(2.0, relative_step=r), GRADS[:1]) for r in (False, True))
    moved = [np.abs(a["w"] - P0["w"]).sum() for a in (fast, capped)]
    assert moved[0] == pytest.approx(2 * moved[1], rel=1e-5)  # the first relative step is 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: optimizers.get("Adm"), ConfigError, r"Unknown optimizer 'Adm'\. Did you mean 'adam'\?"),
        (lambda: optimizers.get("sdg"), ConfigError, "Did you mean 'sgd'"),
        (lambda: optimizers.get("adam", learn_rate=1.0), ConfigError, "Did you mean 'learning_rate'"),
        (lambda: optimizers.get("sgd", beta_1=0.9), ConfigError, "Unknown argument of SGD 'beta_1'"),
        (lambda: optimizers.get(optimizers.Adam), ConfigError, "Could not interpret optimizer identifier"),
        (lambda: optimizers.get(0.1), ConfigError, "Could not interpret optimizer identifier"),
        (lambda: optimizers.get(optax.sgd(0.1), learning_rate=1.0), ConfigError, "go with an optimizer's name"),
        (lambda: optimizers.SGD("fast"), ConfigError, "learning_rate must be a number or a schedule"),
        (lambda: optimizers.SGD(True), ConfigError, "learning_rate must be a number or a schedule"),
        (lambda: optimizers.SGD(momentum=1.5), ConfigError, r"momentum must lie in \[0, 1\]"),
        (lambda: optimizers.SGD(clipnorm=1.0, clipvalue=1.0), ConfigError, "Only one of clipnorm"),
        (lambda: optimizers.SGD(clipnorm=0.0), ConfigError, "A clip must be positive"),
        (lambda: optimizers.SGD(gradient_accumulation_steps=1), ConfigError, "an integer of 2 or more"),
        (lambda: optimizers.SGD(gradient_accumulation_steps=2.0), ConfigError, "an integer of 2 or more"),
        (lambda: optimizers.AdamW(weight_decay=None), ConfigError, "AdamW needs a weight_decay"),
        (lambda: optimizers.Lion(beta_1=0.0), ConfigError, r"beta_1 must lie in \(0, 1\]"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


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

"""Every optimizer of kdist against the one of that name in Keras: the same gradients, all options, all steps.

Adam, AdamW, Adamax and Muon (whose other half is Adam) are compared with an epsilon of 1e-12: optax adds it
elsewhere than Keras, and that small it changes nothing in float32.  Nadam is optax's, with another momentum
at the start: it is compared where the two must meet.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdist import optimizers
from kdist.optimizers import schedules

keras = pytest.importorskip("keras", reason="numbers are compared with Keras 3 (extra: bench)")

STEPS = 7
TINY = {"epsilon": 1e-12}
RATE = {"learning_rate": 0.05}

OPTIMIZERS = {
    "sgd": ("SGD", {}),
    "rmsprop": ("RMSprop", {}),
    "adam": ("Adam", TINY),
    "adamw": ("AdamW", TINY),
    "adadelta": ("Adadelta", {"learning_rate": 1.0}),
    "adagrad": ("Adagrad", {}),
    "adamax": ("Adamax", TINY),
    "adafactor": ("Adafactor", {}),
    "ftrl": ("Ftrl", {}),
    "lion": ("Lion", {}),
    "lamb": ("Lamb", {}),
    "muon": ("Muon", TINY),
    "schedulefreeadamw": ("ScheduleFreeAdamW", {}),
}

VARIANTS = {
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "rmsprop-momentum": ("RMSprop", {"momentum": 0.5}),
    "rmsprop-centered": ("RMSprop", {"centered": True, "momentum": 0.5}),
    "amsgrad": ("Adam", {"amsgrad": True, "beta_2": 0.6}),
    "ftrl-regularised": (
        "Ftrl",
        {
            "l1_regularization_strength": 0.05,
            "l2_regularization_strength": 0.1,
            "l2_shrinkage_regularization_strength": 0.2,
            "beta": 0.3,
            "learning_rate_power": -0.7,
        },
    ),
    "adafactor-fast": ("Adafactor", {"learning_rate": 0.9, "relative_step": False}),  # the limit 1 / sqrt(t) holds
    "muon-plain": ("Muon", {**TINY, "nesterov": False, "rms_rate": None, "adam_lr_ratio": 0.5}),
    "muon-excluding": ("Muon", {**TINY, "exclude_layers": ["k.r"]}),
    "muon-adam-decayed": ("Muon", {**TINY, "weight_decay": None, "adam_weight_decay": 0.3}),
    "schedulefree-warmup": ("ScheduleFreeAdamW", {"warmup_steps": 4}),
}


def piecewise(module):
    return module.schedules.PiecewiseConstantDecay([1, 3], [0.05, 0.01, 0.1])


OPTIONS = {
    "plain": {},
    "clipnorm": {"clipnorm": 0.7},
    "clipvalue": {"clipvalue": 0.4},
    "global_clipnorm": {"global_clipnorm": 1.1},
    "weight_decay": {"weight_decay": 0.3},
    "ema": {"use_ema": True, "ema_momentum": 0.8},
    "ema-overwrite": {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 2},
    "accumulation": {"gradient_accumulation_steps": 2},
    "accumulation-all": {
        "gradient_accumulation_steps": 2,
        "use_ema": True,
        "ema_momentum": 0.8,
        "ema_overwrite_frequency": 2,
        "clipnorm": 0.7,
        "weight_decay": 0.3,
    },
    "schedule": {"learning_rate": piecewise},
    "schedule-accumulation": {"learning_rate": piecewise, "gradient_accumulation_steps": 2, "weight_decay": 0.3},
    "loss_scale_factor": {"loss_scale_factor": 8.0},
}

COMPILED = ("accumulation", "accumulation-all", "schedule-accumulation")
"""Options with a conditional in the step: cheaper compiled, and everything else cheaper op by op."""

SOME = ("sgd", "adam", "ftrl")
"""Optimizers that meet every option: what clips, averages and accumulates is one piece of code around all of them."""
OPTIONS_OF_ALL = ("plain", "weight_decay", "schedule", "accumulation")

CASES = [
    pytest.param(name, option, marks=[] if name in SOME or option in OPTIONS_OF_ALL else [pytest.mark.slow])
    for name in OPTIMIZERS
    for option in OPTIONS
    if name in SOME or option != "accumulation-all"
]
CASES += [(name, option) for name in VARIANTS for option in ("plain", "weight_decay", "schedule")]


SHAPES = {"bias": (4,), "kernel": (3, 4)}


def start():
    rng = np.random.default_rng(3)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


@functools.cache
def gradients(steps=STEPS):
    rng = np.random.default_rng(4)
    return [{k: rng.normal(size=shape).astype(np.float32) for k, shape in SHAPES.items()} for _ in range(steps)]


def arguments(module, given, option):
    """The constructor's arguments, with what differs between the two packages filled in."""
    together = {**RATE, **given, **option}
    rate = together["learning_rate"]
    return {**together, "learning_rate": rate(module) if callable(rate) else rate}


def by_keras(optimizer, grads, *, compiled, params=None):
    """Parameters after each step."""
    variables = [keras.Variable(p, name=name) for name, p in (params or start()).items()]
    optimizer.build(variables)
    step = jax.jit(optimizer.stateless_apply) if compiled else None
    after = []
    for g in grads:
        g = [jnp.asarray(v) for v in g.values()]
        if step is None:
            optimizer.apply(g, variables)
        else:
            own = [v.value for v in optimizer.variables]
            values, own = step(own, g, [v.value for v in variables])
            for variable, value in zip([*variables, *optimizer.variables], [*values, *own], strict=True):
                variable.assign(value)
        after.append({v.name: np.asarray(v.value) for v in variables})
    return after


def by_kdist(optimizer, grads, *, compiled, params=None):
    """Parameters after each step, and the state: of one compiled loop, which keeps its structure and dtypes."""
    tx, params = optimizer.tx, params or start()

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    if compiled:
        stacked = jax.tree.map(lambda *g: np.stack(g), *grads)
        (_, state), after = jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g))(params, stacked)
        return [{k: np.asarray(a[i]) for k, a in after.items()} for i in range(len(grads))], state
    carry, after = (params, tx.init(params)), []
    for g in grads:
        carry, now = step(carry, g)
        after.append(now)
    return after, carry[1]


def assert_close(found, expected, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 3e-6, **tolerance}
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        for name in b:
            np.testing.assert_allclose(a[name], b[name], err_msg=f"{name} after step {step}", **tolerance)


@pytest.mark.parametrize(("name", "option"), CASES)
def test_updates(name, option):
    cls, given = {**OPTIMIZERS, **VARIANTS}[name]
    ours, theirs = (getattr(m, cls)(**arguments(m, given, OPTIONS[option])) for m in (optimizers, keras.optimizers))
    scale = ours.loss_scale_factor or 1.0
    grads = [{k: g * scale for k, g in grad.items()} for grad in gradients()]
    expected = by_keras(theirs, grads, compiled=option in COMPILED)
    found, state = by_kdist(ours, grads, compiled=option in COMPILED or cls == "Muon")
    assert_close(found, expected)
    average = optimizers.ema_params(state)
    assert (average is not None) == ours.use_ema
    if average is not None:
        averages = [np.asarray(a.value) for a in theirs._model_variables_moving_average]
        assert_close([average], [dict(zip(average, averages, strict=True))])


def test_the_options_are_seen():
    """Every option moves SGD, or its average, elsewhere: the comparison compares something."""
    plain, _ = by_kdist(optimizers.SGD(**RATE), gradients(), compiled=False)
    for name, option in OPTIONS.items():
        optimizer = optimizers.SGD(**arguments(optimizers, {}, option))
        after, state = by_kdist(optimizer, gradients(), compiled=name in COMPILED)
        last = optimizers.ema_params(state) if name == "ema" else after[-1]
        assert (np.abs(last["kernel"] - plain[-1]["kernel"]).max() > 1e-3) == (name != "plain")


def test_embeddings_are_not_orthogonalised():
    params = {"embedding": start()["kernel"]}
    grads = [{"embedding": g["kernel"]} for g in gradients()[:3]]
    for arguments in ({}, {"exclude_embeddings": False}):
        ours, theirs = (m.Muon(0.05, **TINY, **arguments) for m in (optimizers, keras.optimizers))
        expected = by_keras(theirs, grads, compiled=False, params=params)
        assert_close(by_kdist(ours, grads, compiled=True, params=params)[0], expected)


def test_adafactor_factors_as_keras_where_the_last_two_dimensions_are_the_largest():
    rng = np.random.default_rng(5)
    params, *grads = ({"kernel": rng.normal(size=(2, 3, 5, 4)).astype(np.float32)} for _ in range(4))
    ours, theirs = (m.Adafactor(0.1) for m in (optimizers, keras.optimizers))
    expected = by_keras(theirs, grads, compiled=False, params=params)
    assert_close(by_kdist(ours, grads, compiled=False, params=params)[0], expected)


def test_nadam_takes_the_steps_of_keras_in_the_long_run():
    """Keras's momentum grows to beta_1: under a steady gradient, the first steps differ and later ones do not."""
    grads = gradients()[:1] * 150
    ours, theirs = (m.Nadam(0.01) for m in (optimizers, keras.optimizers))
    moved = []
    for after in (by_kdist(ours, grads, compiled=True)[0], by_keras(theirs, grads, compiled=True)):
        kernel = np.stack([start()["kernel"], *(a["kernel"] for a in after)])
        moved.append(np.abs(np.diff(kernel, axis=0)))
    ratios = moved[0] / moved[1]
    np.testing.assert_allclose(ratios[0], 1.474 / 1.063, rtol=1e-3)
    np.testing.assert_allclose(ratios[-1], 1, rtol=2e-3)


def test_excluded_parameters_do_not_decay():
    ours, theirs = (m.AdamW(0.05, 0.3, **TINY) for m in (optimizers, keras.optimizers))
    for optimizer in (ours, theirs):
        optimizer.exclude_from_weight_decay(var_names=["bi.s"])
    expected = by_keras(theirs, gradients(), compiled=False)
    assert_close(by_kdist(ours, gradients(), compiled=False)[0], expected)


# Wrappers ---------------------------------------------------------------------------------------

BAD = {3: np.inf, 4: np.nan, 8: -np.inf}


def scaled_gradients(scales):
    """What a loss times the scale of each step gives; some are not finite."""
    grads = gradients(12)
    grads = [{k: g * scale for k, g in grad.items()} for grad, scale in zip(grads, scales, strict=True)]
    for step, value in BAD.items():
        grads[step] = {**grads[step], "bias": np.full(4, value, np.float32)}
    return grads


@pytest.mark.parametrize(
    "inner",
    [{}, {"gradient_accumulation_steps": 2}, {"use_ema": True, "ema_overwrite_frequency": 2}],
    ids=["plain", "accumulation", "ema"],
)
def test_loss_scaling(inner):
    """Scale, counter, updates and skipped batches; the scale doubles after two good batches in a row."""
    scales = [16, 16, 32, 32, 16, 8, 8, 16, 16, 8, 8, 16]
    ours, theirs = (
        m.LossScaleOptimizer(m.Adam(0.05, **TINY, **inner), initial_scale=16.0, dynamic_growth_steps=2)
        for m in (optimizers, keras.optimizers)
    )
    grads = scaled_gradients(scales)
    expected = by_keras(theirs, grads, compiled=True)
    params, found, update = start(), [], jax.jit(ours.tx.update)
    state = ours.tx.init(params)
    for g, scale in zip(grads, scales, strict=True):
        assert optimizers.loss_scale(state) == scale
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
        found.append(jax.device_get(params))
    assert_close(found, expected)
    assert optimizers.loss_scale(state) == theirs.dynamic_scale.value
    assert state.good_steps == theirs.step_counter.value
    skipped = [step for step in range(1, 12) if all((found[step][k] == found[step - 1][k]).all() for k in SHAPES)]
    assert set(BAD) <= set(skipped)
    if not inner:
        assert set(BAD) == set(skipped)


@pytest.mark.parametrize("loss_scale_factor", [None, 4.0])
def test_parts(loss_scale_factor):
    """A map by path, by expression and by default; a part's own options hold within the part."""

    def make(m):
        chosen = m.OptimizerMap(m.SGD(0.1, momentum=0.9, loss_scale_factor=99.0))
        chosen["ker.*"] = m.Adam(0.05, **TINY, global_clipnorm=0.5, use_ema=True, ema_overwrite_frequency=2)
        return m.MultiOptimizer(chosen, loss_scale_factor=loss_scale_factor)

    ours, theirs = make(optimizers), make(keras.optimizers)
    grads = [{k: g * (loss_scale_factor or 1.0) for k, g in grad.items()} for grad in gradients()]
    expected = by_keras(theirs, grads, compiled=False)
    found, state = by_kdist(ours, grads, compiled=False)
    assert_close(found, expected)
    assert [o.name for o in ours.optimizers] == ["adam", "sgd"]
    assert [o.loss_scale_factor for o in ours.optimizers] == [o.loss_scale_factor for o in theirs.optimizers]
    scale = optimizers.loss_scale(state)
    assert scale is None if loss_scale_factor is None else scale == loss_scale_factor


# Names and signatures ---------------------------------------------------------------------------

CLASSES = sorted({cls for cls, _ in OPTIMIZERS.values()} | {"Nadam", "Optimizer", "MultiOptimizer", "OptimizerMap"})


@pytest.mark.parametrize("cls", CLASSES)
def test_signatures(cls):
    """Names, order and defaults of all arguments, by position too."""
    ours, theirs = (inspect.signature(getattr(m, cls)).parameters for m in (optimizers, keras.optimizers))
    expected = {k: p for k, p in theirs.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    assert list(ours) == list(expected)
    assert {k: p.default for k, p in ours.items()} == {k: p.default for k, p in expected.items()}


def test_the_signature_of_loss_scaling():
    ours, theirs = (inspect.signature(m.LossScaleOptimizer).parameters.values() for m in (optimizers, keras.optimizers))
    assert [p.default for p in ours] == [p.default for p in theirs]
    assert [p.name for p in ours][:-1] == [p.name for p in theirs][:-1]


def test_every_name_of_keras_is_known():
    for name in ("sgd", "RMSprop", "ADAM", "adamw", "adadelta", "adagrad", "adamax", "adafactor", "nadam"):
        assert type(optimizers.get(name)).__name__ == type(keras.optimizers.get(name)).__name__
    for name in ("ftrl", "lion", "muon", "schedulefreeadamw"):
        assert type(optimizers.get(name)).__name__ == type(keras.optimizers.get(name)).__name__


# Schedules --------------------------------------------------------------------------------------

SCHEDULES = [
    ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_rate": 0.6}),
    ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_rate": 0.6, "staircase": True}),
    ("InverseTimeDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_rate": 0.6}),
    ("InverseTimeDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_rate": 0.6, "staircase": True}),
    ("PiecewiseConstantDecay", {"boundaries": [3, 7, 11], "values": [1.0, 0.5, 0.25, 0.125]}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 7}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "end_learning_rate": 0.02, "power": 0.5}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "power": 2.0, "cycle": True}),
    ("CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 7}),
    ("CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "alpha": 0.2}),
    ("CosineDecay", {"initial_learning_rate": 0.01, "decay_steps": 7, "warmup_target": 0.1, "warmup_steps": 4}),
    ("CosineDecay", {"initial_learning_rate": 0.01, "decay_steps": 7, "warmup_target": 0.1}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 5}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 5, "t_mul": 1.0, "m_mul": 0.8}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 5, "m_mul": 0.5, "alpha": 0.1}),
]


@pytest.mark.parametrize(("cls", "given"), SCHEDULES)
def test_schedules(cls, given):
    ours, theirs = (getattr(m.schedules, cls)(**given) for m in (optimizers, keras.optimizers))
    steps = np.arange(25, dtype=np.int32)
    found = jax.jit(jax.vmap(ours))(steps)
    assert found.dtype == jnp.float32
    # Keras operation by operation: compiled as one, step / 7 may be step * (1 / 7), more than 1, and its power NaN.
    np.testing.assert_allclose(found, jax.vmap(theirs)(steps), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ours(3), found[3], rtol=1e-6)
    assert ours.get_config() == theirs.get_config()
    assert schedules.deserialize(schedules.serialize(ours)).get_config() == ours.get_config()
    mine, their = (inspect.signature(getattr(m.schedules, cls)).parameters for m in (optimizers, keras.optimizers))
    assert [(p.name, p.default) for p in mine.values()] == [(p.name, p.default) for p in their.values()]

"""Losses and gradients that are not finite: skipped, or the end of training, at the exact step for any K."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdist
from kdist.callbacks import Callback, TerminateOnNaN
from kdist.data import Feeder
from kdist.errors import ConfigError, NonFiniteError

ROWS, STEPS, BAD = 8, 7, 4
"""Rows of a batch, batches of an epoch, and the one of them that is bad."""
optimizers = kdist.optimizers


@pytest.fixture(autouse=True)
def auto_fuses(monkeypatch):
    """However slow this machine is, "auto" finds that many steps fit into an execution."""
    monkeypatch.setattr("kdist.pace.EXECUTION_SECONDS", 1e4)


class Net(nn.Module):
    """Batch statistics and dropout, which a bad batch must not touch; with a convolution it runs as a chain on CPU."""

    convolution: bool = False
    heads: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        if self.convolution:
            x = nn.Conv(3, (2,), use_bias=False)(x[..., None]).reshape(x.shape[0], -1)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(8, use_bias=False)(x))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        return {"a": nn.Dense(2)(x), "b": nn.Dense(2)(x)} if self.heads else nn.Dense(2)(x)


CASES = {
    # name: devices, arguments of the module, arguments of the Trainer
    "loop": (1, {}, {}),
    "eight devices": (8, {}, {}),
    "chain": (2, {"convolution": True}, {}),
    "microbatches": (2, {}, {"microbatches": 2}),
    "several outputs": (1, {"heads": True}, {"loss": {"a": "mse", "b": "mae"}, "metrics": {"a": "mae"}}),
    "accumulation": (1, {}, {"optimizer": optimizers.Adam(0.01, gradient_accumulation_steps=3)}),
    "average": (1, {}, {"optimizer": optimizers.Adam(0.01, use_ema=True, ema_momentum=0.6)}),
    "loss scale": (1, {}, {"precision": "mixed_float16"}),
    "eager": (1, {}, {"run_eagerly": True}),
}


def batches(bad=(BAD,)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS, ROWS, 6)).astype(np.float32)
    y = rng.normal(size=(STEPS, ROWS, 2)).astype(np.float32)
    for step in bad:
        x[step, 3, 1] = np.nan
    return x, y


def loader(x, y, heads=False):
    x, y = x.reshape(-1, *x.shape[2:]), y.reshape(-1, *y.shape[2:])
    return kdist.data.from_arrays(x, {"a": y, "b": y} if heads else y, batch_size=ROWS, shuffle=False)


def trainer_of(case, k=1, nonfinite=None):
    devices, module, arguments = CASES[case]
    arguments = {"optimizer": "adam", "loss": "mse", "metrics": ["mae"], **arguments}
    distribution = kdist.DataParallel(devices=jax.devices()[:devices])
    return kdist.Trainer(
        Net(**module), steps_per_execution=k, nonfinite=nonfinite, distribution=distribution, **arguments
    )


def without_the_bad(case, epochs, *, goes_on):
    """The state and losses of single steps on the good batches, up to the first bad one or past it."""
    trainer, (x, y), heads = trainer_of(case), batches(), case == "several outputs"
    state, losses = trainer.init(loader(x, y, heads).arrays), []
    for step in list(range(STEPS)) * epochs:
        if step == BAD:
            if not goes_on:
                break
            state = dataclasses.replace(state, step=state.step + 1)  # dropout goes on
            continue
        state, results = trainer.train_on_batch(state, loader(x[step : step + 1], y[step : step + 1], heads))
        losses.append(results["loss"])
    average = optimizers.ema_params(state.opt_state, state.params)
    return state if average is None else dataclasses.replace(state, params=average), losses


def numbers(state):
    tree = jax.device_get((state.step, state.params, state.model_state, state.opt_state))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(tree))
    return tree


def same(got, want, **tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 0, "atol": 0, **tolerance})


@pytest.mark.parametrize("case", ["loop", *(pytest.param(c, marks=pytest.mark.slow) for c in CASES if c != "loop")])
def test_a_skipped_step_leaves_no_trace(case):
    want, losses = without_the_bad(case, 2, goes_on=True)
    first = None
    for k in (1, 3, "auto") if case in ("loop", "chain") else (1, 3):
        trainer = trainer_of(case, k, "skip")
        rows = loader(*batches(), heads=case == "several outputs")
        state, history = trainer.fit(trainer.init(rows.arrays), rows, epochs=2)
        assert int(state.step) == 2 * STEPS
        assert history.history["skipped_steps"] == [1, 1]
        means = [np.mean(losses[: STEPS - 1]), np.mean(losses[STEPS - 1 :])]
        np.testing.assert_allclose(history.history["loss"], means, rtol=1e-5)
        assert np.isfinite(list(history.history.values())).all()
        if first is None:
            first = numbers(state)
            same(first, numbers(want), rtol=1e-5, atol=1e-6)
        same(numbers(state), first)


@pytest.mark.parametrize(
    "case", ["eight devices", *(pytest.param(c, marks=pytest.mark.slow) for c in ("loop", "chain"))]
)
def test_training_ends_just_before_the_bad_step(case):
    want, losses = without_the_bad(case, 1, goes_on=False)
    first = None
    for nonfinite, k in (("stop", 1), ("raise", 3), ("stop", "auto")):
        trainer, rows, good = trainer_of(case, k, nonfinite), loader(*batches()), loader(*batches(bad=()))
        state = trainer.init(rows.arrays)
        told = r"Epoch 1, step 5: the loss or a gradient is NaN or infinite.*weights before this step"
        if nonfinite == "raise":
            with pytest.raises(NonFiniteError, match=told):
                trainer.fit(state, rows, epochs=2, validation=good)
        else:
            with pytest.warns(UserWarning, match=told):
                _, history = trainer.fit(state, rows, epochs=2, validation=good)
            assert history.epoch == [0] and len(history.history["val_loss"]) == 1
            np.testing.assert_allclose(history.history["loss"], [np.mean(losses)], rtol=1e-5)
        assert int(trainer.state.step) == BAD
        if first is None:
            first = numbers(trainer.state)
            same(first, numbers(want), rtol=1e-5, atol=1e-6)
        same(numbers(trainer.state), first)


@pytest.mark.parametrize("k", [1, 2, "auto"])
def test_an_error_names_the_step_of_a_later_epoch_and_the_model_can_go_on(k):
    """Batches come from a generator, of which those of the first epoch are good."""
    (x, y), (bad, _) = batches(bad=()), batches()
    model = kdist.Model(Net())
    one = kdist.DataParallel(devices=jax.devices()[:1])
    model.compile("adam", "mse", steps_per_execution=k, nonfinite="raise", distribution=one)
    assert model.nonfinite == "raise"
    with pytest.raises(NonFiniteError, match="Epoch 2, step 5: "):
        model.fit(zip([*x, *bad], [*y, *y], strict=True), steps_per_epoch=STEPS, epochs=3, verbose=0)
    assert int(model.state.step) == STEPS + BAD
    assert all(np.isfinite(w).all() for w in model.get_weights())
    history = model.fit(x[0], y[0], verbose=0)
    assert np.isfinite(history.history["loss"][0])


class Watches(Callback):
    """Notes the ends of executions, and whether the weights were good."""

    def __init__(self):
        super().__init__()
        self.ends, self.good = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(batch)
        self.good.append(all(np.isfinite(w).all() for w in jax.tree.leaves(jax.device_get(self.model.state.params))))


@pytest.mark.parametrize("k, ends", [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2])])
def test_no_hook_is_told_of_the_execution_that_was_ended(k, ends):
    trainer, rows, watches = trainer_of("loop", k, "raise"), loader(*batches()), Watches()
    with pytest.raises(NonFiniteError):
        trainer.fit(trainer.init(rows.arrays), rows, epochs=1, callbacks=watches)
    assert watches.ends == ends and all(watches.good)


class Saves(Callback):
    """Notes where each save would find the run, by the position that it is told and by the state."""

    def __init__(self):
        super().__init__()
        self.positions, self.steps = [], []

    def is_save_due(self):
        return True

    def save_run(self, epoch, step, *, last=False):
        self.positions.append(step)
        self.steps.append(int(self.model.state.step))


@pytest.mark.parametrize("k", [1, 3, "auto"])
def test_a_save_is_never_beyond_the_bad_step(k):
    trainer, rows, saves = trainer_of("loop", k, "raise"), loader(*batches()), Saves()
    with pytest.raises(NonFiniteError):
        trainer.fit(trainer.init(rows.arrays), rows, epochs=1, callbacks=saves)
    assert saves.positions == saves.steps and saves.steps[-1] == BAD


# What is bad, and what is not ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 8])
def test_a_gradient_of_nan_is_as_bad_as_a_loss(n):
    """The distance of equals has a value, 0, and no derivative: so it is in the first batch."""
    model = kdist.Model((lambda key, x: {"w": np.zeros((6, 2), np.float32)}, lambda p, x: x @ p["w"]))
    x, y = batches(bad=())
    y[0] = 0

    def distance(y_true, y_pred):
        return jnp.sqrt(jnp.sum((y_true - y_pred) ** 2, -1))

    arguments = {"loss": distance, "distribution": kdist.DataParallel(devices=jax.devices()[:n])}
    model.compile(optimizers.SGD(0.1), nonfinite="skip", **arguments)
    rows = x.reshape(-1, 6), y.reshape(-1, 2)
    history = model.fit(*rows, ROWS, shuffle=False, verbose=0)
    assert history.history["skipped_steps"] == [1]
    want = kdist.Model((lambda key, x: {"w": np.zeros((6, 2), np.float32)}, lambda p, x: x @ p["w"]))
    want.compile(optimizers.SGD(0.1), nonfinite="skip", **arguments)
    want.fit(rows[0][ROWS:], rows[1][ROWS:], ROWS, shuffle=False, verbose=0)
    assert model.get_weights()[0].any()
    same(model.get_weights(), want.get_weights())


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_what_a_loss_scale_skips_is_not_counted(nonfinite):
    """Scaled by 2**40 the gradient overflows in float16 until the scale has been halved often enough."""
    arguments = {
        "optimizer": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.1), initial_scale=2.0**40),
        "precision": "mixed_float16",
        "distribution": kdist.DataParallel(devices=jax.devices()[:1]),
    }
    states = []
    for policy in (None, nonfinite):
        optimizer = arguments["optimizer"]()
        trainer = kdist.Trainer(Net(), **{**arguments, "optimizer": optimizer}, loss="mse", nonfinite=policy)
        rows = loader(*batches(bad=()))
        state, history = trainer.fit(trainer.init(rows.arrays), rows, epochs=2)
        assert history.history.get("skipped_steps", [0, 0]) == [0, 0]
        states.append(state)
    assert optimizers.loss_scale(states[0].opt_state) < 2.0**40
    same(numbers(states[1]), numbers(states[0]), rtol=1e-5, atol=1e-6)


def test_a_model_without_a_loss_has_no_bad_step():
    trainer = kdist.Trainer(Net(), optimizer="sgd", loss=None, nonfinite="raise")
    rows = loader(*batches(bad=()))
    with pytest.warns(UserWarning, match="nothing is learnt"):
        state, history = trainer.fit(trainer.init(rows.arrays), rows, epochs=1)
    assert int(state.step) == STEPS and history.history["loss"] == [0]


class Doubles(kdist.Trainer):
    """Moves twice as far as kdist's own step."""

    def train_step(self, step, state, batch):
        after, sums = step.train(state, batch)
        return dataclasses.replace(
            after, params=jax.tree.map(lambda new, old: 2 * new - old, after.params, state.params)
        ), sums


def test_a_step_of_ones_own_is_not_taken_either():
    trainer, rows = Doubles(nn.Dense(2), optimizer="sgd", loss="mse", nonfinite="stop"), loader(*batches(bad=(0,)))
    state = trainer.init(rows.arrays)
    before = jax.device_get(state.params)
    with pytest.warns(UserWarning, match="Epoch 1, step 1"):
        state, _ = trainer.fit(state, rows, epochs=1)
    same(jax.device_get(state.params), before)


# Around it ----------------------------------------------------------------------------------------


def test_an_epoch_of_which_nothing_is_left_has_a_loss_of_nan():
    """And TerminateOnNaN leaves it to the policy."""
    trainer, rows = trainer_of("loop", 3, "skip"), loader(*batches(bad=range(STEPS)))
    state = trainer.init(rows.arrays)
    before = jax.device_get(state.params)
    state, history = trainer.fit(state, rows, epochs=2, callbacks=TerminateOnNaN(raise_error=True))
    assert history.history["skipped_steps"] == [STEPS, STEPS]
    assert np.isnan(history.history["loss"]).all()
    same(jax.device_get(state.params), before)


def test_train_on_batch_follows_the_policy():
    x, y = batches()
    model = kdist.Model(Net())
    model.compile("adam", "mse", nonfinite="skip")
    model.train_on_batch(x[0], y[0])
    before = model.get_weights()
    assert np.isnan(model.train_on_batch(x[BAD], y[BAD]))
    same(model.get_weights(), before)
    model.compile("adam", "mse", nonfinite="raise")
    with pytest.raises(NonFiniteError, match="train_on_batch, step 1: "):
        model.train_on_batch(x[BAD], y[BAD])
    same(model.get_weights(), before)


def test_another_policy_is_refused():
    with pytest.raises(ConfigError, match="nonfinite must be None, 'raise', 'skip' or 'stop'. Received: 'ignore'"):
        kdist.Model(Net()).compile("adam", "mse", nonfinite="ignore")


# What it costs ------------------------------------------------------------------------------------

COMPILED: list[str] = []


@jax.monitoring.register_event_duration_secs_listener
def _on_event(event, seconds, **about):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(about.get("fun_name", ""))


@pytest.mark.parametrize("nonfinite", [None, "skip", "stop"])
def test_the_program(nonfinite):
    """Without a policy nothing is looked at; with one no collective, no copy to the host and no compile come on top."""
    trainer, rows = trainer_of("eight devices", 3, nonfinite), loader(*batches(bad=()))
    state = trainer.init(rows.arrays)
    execution = trainer.bind(state, rows.arrays).execution
    before = COMPILED.count("jit(loop)")
    state, _ = trainer.fit(state, rows, epochs=3)
    assert trainer.traces["train"] == COMPILED.count("jit(loop)") - before == 1
    over = execution.not_over()
    with Feeder(rows, trainer.distribution, multiple=8) as feeder:
        feed = next(feeder.chunks(0)).feed
    now = state if nonfinite is None else (state, over)
    lowered = execution._train.lower(now, feed, np.int32(0), np.int32(2), 2)
    assert ("is_finite" in lowered.as_text()) == (nonfinite is not None)
    compiled = lowered.compile()
    assert compiled.as_text().count(" all-reduce(") == 1
    donated = sum(a.nbytes for a in jax.tree.leaves((state.step, state.params, state.model_state, state.opt_state)))
    assert compiled.memory_analysis().alias_size_in_bytes >= donated
    ((after, flag, sums),) = execution.train(state, over, feed, 0, 2)
    assert len(sums.vectors) == 1
    assert all(a.is_deleted() for a in jax.tree.leaves(state.params))
    assert (flag is None) == (nonfinite is None) and not any(a.is_deleted() for a in jax.tree.leaves(after))

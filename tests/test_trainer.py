"""Trainer: without the facade, with another step, with callbacks that change it, and after an exception."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import kdist
from kdist.callbacks import Callback
from kdist.errors import ConfigError, DataError, NotCompiledError
from kdist.typing import Batch

RATE = 0.1


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(24, 3)).astype(np.float32), rng.normal(size=(24, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def one():
    return kdist.DataParallel(devices=jax.devices()[:1])


def loader(data, **kwargs):
    return kdist.data.from_arrays(*data, **{"batch_size": 8, "shuffle": False, **kwargs})


def leaves(tree):
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(a, b, **kwargs):
    for mine, theirs in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(mine, theirs, **{"rtol": 2e-5, "atol": 1e-6, **kwargs})


def by_hand(tx, params, data, epochs, batch_size=8):
    """Plain JAX and optax: the loss of every epoch, and the parameters."""
    x, y = data

    def loss(params, x, y):
        return jnp.mean((x @ params["kernel"] + params["bias"] - y) ** 2)

    opt_state, means = tx.init(params), []
    for _ in range(epochs):
        values = []
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            value, grads = jax.value_and_grad(loss)(params, x[rows], y[rows])
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            values.append(float(value))
        means.append(np.mean(values))
    return means, params


# Without the facade ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 8])
def test_any_optax_transformation_and_any_function(n, data):
    def squared(y_true, y_pred):
        return ((y_true - y_pred) ** 2).mean(axis=-1)

    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
    distribution = kdist.DataParallel(devices=jax.devices()[:n])
    trainer = kdist.Trainer(nn.Dense(2), optimizer=tx, loss=squared, metrics=["mae"], distribution=distribution)
    state = trainer.init(data)
    assert isinstance(state, kdist.TrainState) and int(state.step) == 0
    losses, params = by_hand(tx, jax.tree.map(np.array, state.params), data, 2)
    state, history = trainer.fit(state, loader(data), epochs=2, validation=loader(data))
    np.testing.assert_allclose(history.history["loss"], losses, rtol=1e-5)
    assert_same(state.params, params)
    assert int(state.step) == 6 and history.epoch == [0, 1]
    assert list(history.history) == ["loss", "mae", "val_loss", "val_mae"]

    results = trainer.evaluate(state, loader(data))
    assert list(results) == ["loss", "mae"]
    assert results["loss"] == pytest.approx(history.history["val_loss"][-1], rel=1e-5)
    parts = trainer.predict(state, loader(data, batch_size=7))
    assert iter(parts) is parts
    predictions = np.concatenate(list(parts))
    np.testing.assert_allclose(predictions, data[0] @ params["kernel"] + params["bias"], rtol=1e-4, atol=1e-5)


def test_init_is_a_function_of_the_seed(data, one):
    def init(seed):
        return kdist.Trainer(nn.Dense(2), optimizer="adam", loss="mse", distribution=one, seed=seed).init(data)

    first, again, other = init(0), init(0), init(1)
    assert_same(first.params, again.params, rtol=0, atol=0)
    assert not np.allclose(first.params["kernel"], other.params["kernel"])
    assert jax.random.key_data(first.key).tolist() != jax.random.key_data(other.key).tolist()


def test_init_takes_a_batch_a_tuple_or_inputs(data, one):
    trainer = kdist.Trainer(nn.Dense(2), optimizer="sgd", loss="mse", distribution=one)
    states = [trainer.init(example) for example in (Batch(*data), data, (data[0],), data[0])]
    for state in states[1:]:
        assert_same(state.params, states[0].params, rtol=0, atol=0)


def test_two_fits_are_one_long_fit(data, one):
    def run(*spans):
        trainer = kdist.Trainer(nn.Dense(2), optimizer="adam", loss="mse", distribution=one)
        state, losses = trainer.init(data), []
        for start, stop in spans:
            state, history = trainer.fit(state, loader(data, shuffle=True), epochs=stop, initial_epoch=start)
            losses += history.history["loss"]
        return losses, state

    straight, first = run((0, 3))
    resumed, second = run((0, 1), (1, 3))
    assert straight == resumed
    assert_same(first.params, second.params, rtol=0, atol=0)


def test_what_is_missing_is_said(data, one):
    without_optimizer = kdist.Trainer(nn.Dense(2), optimizer=None, loss="mse", distribution=one)
    state = without_optimizer.init(data)
    with pytest.raises(NotCompiledError, match="optimizer=None"):
        without_optimizer.fit(state, loader(data), epochs=1)
    with pytest.raises(DataError, match="targets.*y"):
        without_optimizer.evaluate(state, kdist.data.from_arrays(data[0]))
    without_loss = kdist.Trainer(nn.Dense(2), optimizer="sgd", loss=None, distribution=one)
    with pytest.warns(UserWarning, match="no loss.*nothing is learnt"):
        without_loss.fit(without_loss.init(data), loader(data), epochs=1)


def test_train_on_batch_takes_one_step_of_a_loader_of_many(data, one):
    trainer = kdist.Trainer(nn.Dense(2), optimizer="sgd", loss="mse", distribution=one)
    state, first = trainer.train_on_batch(trainer.init(data), loader(data))
    assert int(state.step) == 1
    alone = loader([a[:8] for a in data])
    same, results = trainer.train_on_batch(trainer.init(data), alone)
    assert first == results
    assert_same(state.params, same.params, rtol=0, atol=0)


# Another step ------------------------------------------------------------------------------------


class SignDescent(kdist.Trainer):
    """Updates by the sign of what kdist's own step changed."""

    def train_step(self, step, state, batch):
        after, sums = step.train(state, batch)
        params = jax.tree.map(lambda new, old: old + 0.01 * jnp.sign(new - old), after.params, state.params)
        return dataclasses.replace(after, params=params), sums


@pytest.mark.parametrize("n, k", [(1, 3), (8, 1)])
def test_a_subclass_trains_with_its_own_step(n, k, data):
    distribution = kdist.DataParallel(devices=jax.devices()[:n])
    trainer = SignDescent(nn.Dense(2), optimizer="sgd", loss="mse", distribution=distribution, steps_per_execution=k)
    state = trainer.init(data)
    params = jax.tree.map(np.array, state.params)
    state, _ = trainer.fit(state, loader(data), epochs=1)
    for rows in (slice(0, 8), slice(8, 16), slice(16, 24)):
        error = data[0][rows] @ params["kernel"] + params["bias"] - data[1][rows]
        gradient = {"bias": error.sum(axis=0), "kernel": data[0][rows].T @ error}
        params = jax.tree.map(lambda p, g: p - 0.01 * np.sign(g), params, gradient)
    assert_same(state.params, params)
    assert int(state.step) == 3


# Microbatches, eager runs, precision -------------------------------------------------------------


@pytest.mark.parametrize("n, microbatches", [(1, 5), (8, 3)])
def test_microbatches_give_the_result_of_the_whole_batch(n, microbatches, data):
    weights = np.linspace(0, 2, 24, dtype=np.float32)
    results = []
    for m in (1, microbatches):
        distribution = kdist.DataParallel(devices=jax.devices()[:n])
        trainer = kdist.Trainer(
            nn.Dense(2), optimizer="sgd", loss="mse", metrics=["mae"], microbatches=m, distribution=distribution
        )
        rows = kdist.data.from_arrays(*data, weights, batch_size=10, shuffle=False)  # 10, 10 and 4 rows
        state, history = trainer.fit(trainer.init(data), rows, epochs=2)
        results.append((history.history, state))
    (whole, first), (parts, second) = results
    for name in ("loss", "mae"):
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-5)
    assert_same(first.params, second.params)


class Looks(nn.Module):
    """A dense layer that notes the first input it is given, if there is a value to be noted."""

    @nn.compact
    def __call__(self, x):
        if not isinstance(x, jax.core.Tracer):
            LOOKED.append(float(x[0, 0]))
        return nn.Dense(2)(x)


LOOKED = []


def test_run_eagerly_shows_values_and_gives_the_same_numbers(data, one):
    results = []
    for eagerly in (False, True):
        model = kdist.Model(Looks())
        model.compile("sgd", "mse", metrics=["mae"], run_eagerly=eagerly, distribution=one)
        model.build((None, 3))
        model.set_weights([np.zeros(2), np.ones((3, 2))])
        LOOKED.clear()
        history = model.fit(
            *data, batch_size=12, epochs=2, shuffle=False, validation_data=data, validation_batch_size=24, verbose=0
        )
        # The batches of an epoch, then the validation's.
        assert LOOKED == ([float(data[0][i, 0]) for i in (0, 12, 0)] * 2 if eagerly else [])
        results.append((history.history, model.get_weights(), model.predict(data[0], batch_size=24, verbose=0)))
    for name, values in results[0][0].items():
        np.testing.assert_allclose(values, results[1][0][name], rtol=1e-5)
    assert_same(results[0][1:], results[1][1:])


def test_run_eagerly_lets_a_loss_look_at_the_targets(data, one):
    looked = []

    def loss(y_true, y_pred):
        if not isinstance(y_true, jax.core.Tracer):
            looked.append(float(y_true[0, 0]))
        return jnp.square(y_true - y_pred).mean(axis=-1)

    trainer = kdist.Trainer(nn.Dense(2), optimizer="sgd", loss=loss, run_eagerly=True, distribution=one)
    trainer.fit(trainer.init(data), loader(data), epochs=1)
    assert looked == pytest.approx([float(data[1][i, 0]) for i in (0, 8, 16)])


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(data, one):
    dtypes = []

    class Notes(nn.Module):
        @nn.compact
        def __call__(self, x):
            dtypes.append(x.dtype)
            return nn.Dense(2)(x)

    trainer = kdist.Trainer(Notes(), optimizer="adam", loss="mse", precision="mixed_bfloat16", distribution=one)
    state = trainer.init(data)
    dtypes.clear()
    state, history = trainer.fit(state, loader(data), epochs=2)
    assert set(dtypes) == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.opt_state))} <= {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }
    (prediction,) = trainer.predict(state, loader((data[0][:8], None)))
    assert prediction.dtype == jnp.bfloat16
    assert history.history["loss"][1] < history.history["loss"][0]


# What callbacks may change -----------------------------------------------------------------------


def batches(n, **kwargs):
    """A linear model whose every step has the same gradient: its weight falls by the rate each step."""
    model = kdist.Model((lambda key, x: {"w": jnp.zeros(())}, lambda p, x: x * p["w"]))
    distribution = kdist.DataParallel(devices=jax.devices()[:1])
    model.compile(kdist.optimizers.SGD(1.0), lambda y_true, y_pred: y_pred[:, 0], distribution=distribution, **kwargs)
    return model, np.ones((n, 1), np.float32), np.ones((n, 1), np.float32)


def at(hook, action):
    """A callback that does something at each call of a hook."""
    return type("At", (Callback,), {hook: lambda self, i, logs=None: action(self.model, i)})()


@pytest.mark.parametrize("k, weight", [(1, -1.0 - 5 * 0.5), ("auto", -1.0 - 5 * 0.5), (2, -2.0 - 4 * 0.5), (3, -4.5)])
def test_a_learning_rate_set_at_a_batch_end_counts_from_the_next_execution(k, weight):
    model, x, y = batches(6, steps_per_execution=k)

    def halve(model, batch):
        model.optimizer.learning_rate = 0.5

    model.fit(x, y, batch_size=1, callbacks=at("on_train_batch_end", halve), verbose=0)
    assert model.get_weights() == [pytest.approx(weight)]
    assert model.optimizer.learning_rate == 0.5
    assert model.trainer.traces["train"] == 1  # and without a recompile


@pytest.mark.parametrize("k", [1, "auto"])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_batch_begin"])
def test_weights_set_at_a_batch_are_trained_from(k, hook):
    model, x, y = batches(5, steps_per_execution=k)

    def jump(model, batch):
        if batch == 2:
            model.set_weights([np.float32(100)])

    model.fit(x, y, batch_size=1, callbacks=at(hook, jump), verbose=0)
    assert model.get_weights() == [pytest.approx(100 - (2 if hook == "on_train_batch_end" else 3))]


def test_weights_read_at_a_batch_end_are_those_after_it():
    model, x, y = batches(4)
    seen = []
    look = at("on_train_batch_end", lambda model, batch: seen.append(float(model.get_weights()[0])))
    model.fit(x, y, batch_size=1, epochs=2, callbacks=look, verbose=0)
    assert seen == [-1, -2, -3, -4, -5, -6, -7, -8]


def test_rate_and_weights_set_at_the_end_of_an_epoch():
    model, x, y = batches(4)
    rates = []

    def change(model, epoch):
        rates.append(model.optimizer.learning_rate)
        model.optimizer.learning_rate = 10.0
        model.params = {"w": np.float32(1000)}

    model.fit(x, y, batch_size=1, epochs=2, callbacks=at("on_epoch_end", change), verbose=0)
    assert rates == [1.0, 10.0]
    model.set_weights([np.float32(0)])
    model.fit(x, y, batch_size=1, verbose=0)
    assert model.get_weights() == [pytest.approx(-40.0)]


# After an exception ------------------------------------------------------------------------------


class Fails(Callback):
    """Raises at a hook with a number; notes whether training was ended."""

    def __init__(self, hook, number, error):
        super().__init__()
        self.ended = False

        def fail(i, logs=None):
            if i == number:
                raise error

        setattr(self, hook, fail)

    def on_train_end(self, logs=None):
        self.ended = True


@pytest.mark.parametrize(
    "hook, number, steps",
    [("on_train_batch_end", 1, 2), ("on_train_batch_begin", 2, 2), ("on_epoch_end", 0, 6), ("on_epoch_begin", 1, 6)],
)
@pytest.mark.parametrize("error", [KeyboardInterrupt("ctrl-c"), RuntimeError("bug")])
def test_an_exception_keeps_the_weights_reached(hook, number, steps, error):
    model, x, y = batches(6)
    fails = Fails(hook, number, error)
    with pytest.raises(type(error)):
        model.fit(x, y, batch_size=1, epochs=3, callbacks=fails, verbose=0)
    assert model.get_weights() == [pytest.approx(-steps)]
    assert int(model.trainer.state.step) == steps
    assert not fails.ended
    assert model.history.epoch == ([0] if number == 1 and hook == "on_epoch_begin" else [])
    model.fit(x, y, batch_size=1, verbose=0)  # and training can go on
    assert model.get_weights() == [pytest.approx(-steps - 6)]


def test_an_nnx_module_holds_the_weights_reached_before_an_exception(data):
    linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    start = np.array(linear.kernel[...])
    model = kdist.Model(linear)
    model.compile("sgd", "mse", distribution=kdist.DataParallel(devices=jax.devices()[:1]))
    with pytest.raises(KeyboardInterrupt):
        model.fit(*data, batch_size=8, callbacks=Fails("on_train_batch_end", 1, KeyboardInterrupt()), verbose=0)
    assert not np.allclose(linear.kernel[...], start)
    np.testing.assert_array_equal(linear.kernel[...], model.get_weights()[1])


def test_a_prediction_that_is_left_half_way_closes_its_callbacks(data, one):
    closed = []

    class Closes(Callback):
        def close(self):
            closed.append(True)

    trainer = kdist.Trainer(nn.Dense(2), optimizer=None, loss=None, distribution=one, steps_per_execution=1)
    parts = trainer.predict(trainer.init(data), loader(data, batch_size=4), callbacks=[Closes()])
    assert next(parts).shape == (4, 2) and not closed
    parts.close()
    assert closed == [True]


@pytest.mark.parametrize(
    "argument, value",
    [
        ("steps_per_execution", 0),
        ("steps_per_execution", "all"),
        ("microbatches", 0),
        ("microbatches", 1.5),
        ("precision", "float17"),
        ("optimizer", "adamm"),
        ("loss", "msee"),
        ("metrics", "mae"),
        ("metrics", ["maee"]),
        ("distribution", "data"),
        ("distribution", 8),
    ],
)
def test_wrong_arguments_are_refused_by_name(argument, value, one):
    arguments = {"optimizer": "sgd", "loss": "mse", "distribution": one, argument: value}
    with pytest.raises(ConfigError, match=argument.rstrip("s")) as error:
        kdist.Trainer(nn.Dense(2), **arguments)
    assert "Received" in str(error.value) or "Did you mean" in str(error.value)

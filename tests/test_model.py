"""Model: what each method computes, against plain NumPy, for every kind of module.

The model is ``x @ kernel + bias`` under squared error, whose steps a few lines of NumPy repeat exactly.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kdist
from kdist.errors import CheckpointError, CheckpointMismatchError, ConfigError, NotCompiledError

KINDS = ("linen", "nnx", "pair", "sequential")
RATE = 0.1
BIAS = np.array([0.5, -0.5], np.float32)
KERNEL = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)


def make(kind, **kwargs):
    if kind == "linen":
        return kdist.Model(nn.Dense(2), **kwargs)
    if kind == "nnx":
        return kdist.Model(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), **kwargs)
    if kind == "sequential":
        return kdist.Sequential([nn.Dense(2)], **kwargs)

    def init(key, x):
        return {"bias": jnp.zeros(2), "kernel": jax.random.normal(key, (x.shape[1], 2))}

    return kdist.Model((init, lambda params, x: x @ params["kernel"] + params["bias"]), **kwargs)


def compiled(kind="linen", rate=RATE, n=1, metrics=()):
    """A model with the weights BIAS and KERNEL, under plain gradient descent; its programs are made once."""
    model = programs(kind, n, tuple(metrics))
    model.set_weights([BIAS, KERNEL])
    model.optimizer.learning_rate = rate
    return model


@functools.cache
def programs(kind, n, metrics):
    return fresh(kind, n, metrics)


def fresh(kind="linen", n=1, metrics=()):
    model = make(kind)
    distribution = kdist.DataParallel(devices=jax.devices()[:n])
    model.compile(kdist.optimizers.SGD(RATE), "mse", metrics=list(metrics), distribution=distribution)
    model.build((None, 3))
    model.set_weights([BIAS, KERNEL])
    return model


@pytest.fixture
def data(rng):
    return rng.normal(size=(20, 3)).astype(np.float32), rng.normal(size=(20, 2)).astype(np.float32)


def reference(x, y, order, batch_size, weight=None):
    """The losses of each batch before its update, and the weights after the last, in float64."""
    bias, kernel = BIAS.astype(float), KERNEL.astype(float)
    losses = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        w = np.ones(len(rows)) if weight is None else weight[rows]
        error = x[rows] @ kernel + bias - y[rows]
        losses.append((len(rows), np.mean(w[:, None] * error**2)))
        gradient = 2 * w[:, None] * error / error.size
        bias = bias - RATE * gradient.sum(axis=0)
        kernel = kernel - RATE * x[rows].T @ gradient
    return losses, [bias, kernel]


def mean(losses):
    return sum(n * value for n, value in losses) / sum(n for n, _ in losses)


def mse(x, y, weights, weight=None):
    bias, kernel = weights
    w = np.ones(len(x)) if weight is None else weight
    return np.mean(w[:, None] * (x @ kernel + bias - y) ** 2)


def assert_weights(model, expected):
    for mine, wanted in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=2e-5, atol=1e-6)


# Training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_fit_evaluate_and_predict_are_numpys(kind, data):
    x, y = data
    model = compiled(kind)
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    losses, weights = reference(x, y, np.arange(20), 8)
    first = mean(losses)
    # Two epochs of 8, 8 and 4 rows: the batches must not run on from one epoch into the next.
    bias, kernel = weights
    second = []
    for rows in (slice(0, 8), slice(8, 16), slice(16, 20)):
        error = x[rows] @ kernel + bias - y[rows]
        second.append((len(error), np.mean(error**2)))
        gradient = 2 * error / error.size
        bias, kernel = bias - RATE * gradient.sum(axis=0), kernel - RATE * x[rows].T @ gradient
    assert list(history.history) == ["loss"]
    np.testing.assert_allclose(history.history["loss"], [first, mean(second)], rtol=1e-5)
    assert_weights(model, [bias, kernel])
    np.testing.assert_allclose(model.evaluate(x, y, batch_size=8, verbose=0), mse(x, y, [bias, kernel]), rtol=1e-5)
    predictions = model.predict(x, batch_size=8, verbose=0)
    assert isinstance(predictions, np.ndarray) and predictions.dtype == np.float32
    np.testing.assert_allclose(predictions, x @ kernel + bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model(x), predictions, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 8])
def test_sample_weights_divide_by_rows_not_by_weights(n, data, rng):
    x, y = data
    weight = rng.uniform(0, 3, 20).astype(np.float32)
    model = fresh(n=n)
    distribution = model.trainer.distribution
    model.compile(kdist.optimizers.SGD(RATE), "mse", None, ["mae"], ["mae"], distribution=distribution)
    history = model.fit(x, y, batch_size=8, sample_weight=weight, shuffle=False, verbose=0)
    losses, weights = reference(x, y, np.arange(20), 8, weight)
    np.testing.assert_allclose(history.history["loss"], [mean(losses)], rtol=1e-5)
    assert_weights(model, weights)
    results = model.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
    absolute = np.abs(x @ weights[1] + weights[0] - y).mean(axis=1)
    expected = {
        "loss": mse(x, y, weights, weight),
        "mae": absolute.mean(),
        "weighted_mae": (weight * absolute).sum() / weight.sum(),
    }
    assert list(results) == list(expected)  # alphabetical, as it happens
    np.testing.assert_allclose(list(results.values()), list(expected.values()), rtol=1e-5)


def test_weights_of_zero_take_a_row_out_of_the_update(data):
    x, y = data
    weight = (np.arange(20) != 3).astype(np.float32)
    spoiled = y.copy()
    spoiled[3] = 1e6
    model = compiled()
    model.fit(x, y, batch_size=8, sample_weight=weight, verbose=0)
    clean = model.get_weights()
    compiled().fit(x, spoiled, batch_size=8, sample_weight=weight, verbose=0)
    assert_weights(model, clean)


def test_history_is_returned_and_kept(data):
    model = compiled()
    history = model.fit(*data, batch_size=8, epochs=3, verbose=0, validation_split=0.25)
    assert model.history is history
    assert history.epoch == [0, 1, 2]
    assert history.params == {"verbose": 0, "epochs": 3, "steps": 2}
    assert {name: len(values) for name, values in history.history.items()} == {"loss": 3, "val_loss": 3}
    assert all(type(value) is float for values in history.history.values() for value in values)
    again = model.fit(*data, batch_size=8, verbose=0)
    assert again is not history and model.history is again and again.epoch == [0]


def test_positional_arguments_are_kerass(data):
    model = compiled()
    x, y = data
    history = model.fit(x, y, 8, 2, 0, None, 0.5)
    assert history.epoch == [0, 1] and history.params["steps"] == 2 and "val_loss" in history.history
    assert model.evaluate(x, y, 8, 0) == pytest.approx(mse(x, y, model.get_weights()), rel=1e-5)
    assert model.predict(x, 8, 0).shape == (20, 2)


# Validation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tuple", "list", "weights", "loader"])
def test_validation_data(form, data):
    x, y = data
    held_x, held_y, weight = x[:7] + 1, y[:7] - 1, np.arange(7, dtype=np.float32)
    model = compiled(metrics=["mae"])
    validation = {
        "tuple": (held_x, held_y),
        "list": [held_x, held_y],
        "weights": (held_x, held_y, weight),
        "loader": kdist.data.from_arrays(held_x, held_y, batch_size=3, shuffle=True),
    }[form]
    history = model.fit(x, y, batch_size=8, verbose=0, validation_data=validation).history
    assert list(history) == ["loss", "mae", "val_loss", "val_mae"]
    trained = model.get_weights()
    expected = mse(held_x, held_y, trained, weight if form == "weights" else None)
    np.testing.assert_allclose(history["val_loss"], [expected], rtol=1e-5)
    errors = np.abs(held_x @ trained[1] + trained[0] - held_y)
    np.testing.assert_allclose(history["val_mae"], [errors.mean()], rtol=1e-5)


@pytest.mark.parametrize("fraction, train_rows", [(0.25, 15), (0.5, 10), (0.33, 13), (0.01, 19)])
def test_validation_split_holds_out_the_last_rows_before_shuffling(fraction, train_rows, data, rng):
    x, y = data
    weight = rng.uniform(0.5, 2, 20).astype(np.float32)
    model = compiled(rate=0.0)
    history = model.fit(x, y, batch_size=8, sample_weight=weight, validation_split=fraction, verbose=0)
    start = [BIAS, KERNEL]
    training, held_out = slice(0, train_rows), slice(train_rows, 20)
    assert history.params["steps"] == -(-train_rows // 8)
    np.testing.assert_allclose(
        [history.history["loss"][0], history.history["val_loss"][0]],
        [mse(x[rows], y[rows], start, weight[rows]) for rows in (training, held_out)],
        rtol=1e-5,
    )


def test_validation_data_win_over_validation_split(data):
    x, y = data
    model = compiled(rate=0.0)
    history = model.fit(x, y, batch_size=8, validation_split=0.5, validation_data=(x[:5], y[:5]), verbose=0)
    assert history.params["steps"] == 3
    np.testing.assert_allclose(history.history["val_loss"], [mse(x[:5], y[:5], [BIAS, KERNEL])], rtol=1e-5)


@pytest.mark.parametrize(
    "freq, epochs", [(1, [0, 1, 2, 3]), (2, [1, 3]), ([1, 4], [0, 3]), (5, []), (np.int64(2), [1, 3])]
)
def test_validation_freq(freq, epochs, data):
    seen = []

    class Seen(kdist.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if "val_loss" in logs:
                seen.append(epoch)

    compiled().fit(
        *data, batch_size=8, epochs=4, validation_data=data, validation_freq=freq, callbacks=Seen(), verbose=0
    )
    assert seen == epochs


@pytest.mark.parametrize("size", [1, 7, 64])
def test_validation_batch_size_changes_no_number(size, data):
    history = (
        compiled(rate=0.0).fit(*data, batch_size=8, validation_data=data, validation_batch_size=size, verbose=0).history
    )
    np.testing.assert_allclose(history["val_loss"], [mse(*data, [BIAS, KERNEL])], rtol=1e-5)


# The order of rows -------------------------------------------------------------------------------


class Rows(kdist.callbacks.Callback):
    """Which row each step saw, told by its loss: row i has target ``2 ** i``, the prediction is 0."""

    def __init__(self):
        super().__init__()
        self.epochs = {}

    def on_epoch_begin(self, epoch, logs=None):
        self.rows = self.epochs[epoch] = []
        self.total = 0.0

    def on_train_batch_end(self, batch, logs=None):
        total = logs["loss"] * (batch + 1)
        self.rows.append(round(float(np.log2(total - self.total)) / 2))
        self.total = total


def orders(*, seed=0, n=1, cache="auto", **kwargs):
    model = kdist.Model((lambda key, x: {"w": jnp.zeros(())}, lambda p, x: x * p["w"]), seed=seed)
    distribution = kdist.DataParallel(devices=jax.devices()[:n])
    model.compile(kdist.optimizers.SGD(0.0), "mse", distribution=distribution)
    rows = Rows()
    x, y = np.ones((8, 1), np.float32), (2.0 ** np.arange(8))[:, None]
    model.fit(x, y, batch_size=1, callbacks=rows, verbose=0, cache=cache, **kwargs)
    return rows.epochs


def test_the_order_is_a_function_of_seed_and_epoch():
    straight = orders(epochs=3)
    assert [sorted(rows) for rows in straight.values()] == [list(range(8))] * 3
    assert len({tuple(rows) for rows in straight.values()}) == 3
    assert orders(epochs=3, initial_epoch=1) == {1: straight[1], 2: straight[2]}
    assert orders(epochs=3, cache=False) == straight
    assert orders(epochs=1, seed=1)[0] != straight[0]
    assert orders(epochs=2, shuffle=False) == {0: list(range(8)), 1: list(range(8))}


@pytest.mark.parametrize("initial_epoch, epochs", [(2, 2), (5, 2), (0, 0)])
def test_no_epoch_is_left_to_train(initial_epoch, epochs, data):
    calls = []

    class Calls(kdist.callbacks.Callback):
        def on_train_begin(self, logs=None):
            calls.append("begin")

        def on_train_end(self, logs=None):
            calls.append("end")

    model = compiled()
    history = model.fit(*data, epochs=epochs, initial_epoch=initial_epoch, callbacks=Calls(), verbose=0)
    assert calls == ["begin", "end"] and history.epoch == [] and history.history == {}
    assert_weights(model, [BIAS, KERNEL])


# One batch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_on_batch_methods(kind, data):
    x, y = data
    model = compiled(kind, metrics=["mae"])
    start = [BIAS, KERNEL]
    tested = model.test_on_batch(x, y)
    assert_weights(model, start)
    trained = model.train_on_batch(x, y)
    errors = np.abs(x @ KERNEL + BIAS - y).mean()
    np.testing.assert_allclose(tested, [mse(x, y, start), errors], rtol=1e-5)
    np.testing.assert_allclose(trained, tested, rtol=1e-6)
    _, weights = reference(x, y, np.arange(20), 20)
    assert_weights(model, weights)
    np.testing.assert_allclose(model.predict_on_batch(x), x @ weights[1] + weights[0], rtol=1e-4, atol=1e-5)
    as_dict = model.test_on_batch(x, y, return_dict=True)
    assert list(as_dict) == ["loss", "mae"] and all(type(v) is float for v in as_dict.values())


def test_on_batch_methods_take_weights_lists_and_any_number_of_rows(data):
    x, y = data
    weight = np.arange(5, dtype=np.float32)
    model = compiled(n=8)  # five rows on eight devices
    value = model.train_on_batch(x[:5].tolist(), y[:5].tolist(), weight.tolist())
    assert type(value) is float
    assert value == pytest.approx(mse(x[:5], y[:5], [BIAS, KERNEL], weight), rel=1e-5)
    _, weights = reference(x[:5], y[:5], np.arange(5), 5, weight)
    assert_weights(model, weights)
    assert model.predict_on_batch(x[:1]).shape == (1, 2)


def test_train_on_batch_goes_on_where_the_last_call_stopped(data):
    x, y = data
    model = fresh()
    values = [model.train_on_batch(x[rows], y[rows]) for rows in (slice(0, 8), slice(8, 16), slice(16, 20))]
    losses, weights = reference(x, y, np.arange(20), 8)
    np.testing.assert_allclose(values, [value for _, value in losses], rtol=1e-5)
    assert_weights(model, weights)
    assert int(model.trainer.state.step) == 3


# Calling it --------------------------------------------------------------------------------------


class Dropped(nn.Module):
    """Dropout and batch statistics, to tell training from evaluation."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


def test_calling_the_model_changes_nothing_and_obeys_training():
    x = np.ones((64, 4), np.float32) * np.arange(64)[:, None]
    model = kdist.Model(Dropped())
    quiet = model(x)
    before = jax.tree.map(np.array, model.variables)
    loud = model(x, training=True)
    assert int((np.asarray(loud) == 0).sum()) > 50 and not (np.asarray(quiet)[1:] == 0).any()
    np.testing.assert_allclose(model(x), quiet)
    jax.tree.map(np.testing.assert_array_equal, model.variables, before)
    assert set(model.variables) == {"params", "batch_stats"}


def test_calling_the_model_is_traceable_and_differentiable(data):
    x, _ = data
    model = compiled()
    gradient = jax.jit(jax.grad(lambda x: model(x).sum()))(x)
    np.testing.assert_allclose(gradient, np.tile(KERNEL.sum(axis=1), (20, 1)), rtol=1e-6)
    assert isinstance(model(x), jax.Array)


def test_predict_needs_no_compile_and_uses_running_statistics():
    x = np.random.default_rng(1).normal(3, 2, size=(40, 4)).astype(np.float32)
    model = kdist.Model(Dropped())
    np.testing.assert_allclose(model.predict(x, batch_size=7, verbose=0), x / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_fit_updates_batch_statistics_and_evaluate_does_not():
    x = np.random.default_rng(1).normal(3, 2, size=(40, 4)).astype(np.float32)
    model = kdist.Model(Dropped())
    model.compile("sgd", "mse", distribution=kdist.DataParallel(devices=jax.devices()[:2]))
    model.build(x)
    read = lambda: np.array(model.variables["batch_stats"]["BatchNorm_0"]["mean"])  # noqa: E731
    start = read()
    model.evaluate(x, x, verbose=0)
    np.testing.assert_array_equal(read(), start)
    model.fit(x, x, batch_size=40, verbose=0)
    np.testing.assert_allclose(read(), 0.01 * x.mean(axis=0), rtol=1e-4)


# Building and variables --------------------------------------------------------------------------


class Sum(nn.Module):
    """Two inputs, one output."""

    @nn.compact
    def __call__(self, a, b):
        return nn.Dense(2)(a) + nn.Dense(2)(b)


@pytest.mark.parametrize(
    "x",
    [
        [(None, 3), (None, 5)],
        ((2, 3), (2, 5)),
        {"a": (None, 3), "b": (None, 5)},
        [np.zeros((4, 3)), np.zeros((4, 5))],
        {"b": np.zeros((4, 5)), "a": np.zeros((4, 3))},
    ],
)
def test_build_takes_shapes_and_arrays(x):
    model = kdist.Model(Sum())
    assert not model.built
    model.build(x)
    assert model.built
    assert jax.tree.map(np.shape, model.params) == {
        "Dense_0": {"bias": (2,), "kernel": (3, 2)},
        "Dense_1": {"bias": (2,), "kernel": (5, 2)},
    }


def test_build_again_keeps_the_variables_and_seeds_decide_them():
    model, same, other = (kdist.Model(nn.Dense(2), seed=seed) for seed in (0, 0, 1))
    for m in (model, same, other):
        m.build((None, 3))
    first = model.get_weights()
    model.build((None, 3))
    assert_weights(model, first)
    assert_weights(same, first)
    assert not np.allclose(other.get_weights()[1], first[1])


def test_weights_are_copies_in_both_directions(data):
    model = compiled()
    taken = model.get_weights()
    taken[0][:] = 7
    assert_weights(model, [BIAS, KERNEL])
    given = [np.zeros(2, np.float32), np.ones((3, 2), np.float32)]
    model.set_weights(given)
    kept = model.get_weights()
    given[1][:] = 9
    model.fit(*data, batch_size=8, verbose=0)
    np.testing.assert_array_equal(kept[1], np.ones((3, 2)))
    np.testing.assert_array_equal(given[1], np.full((3, 2), 9))
    assert not np.allclose(model.get_weights()[1], 1)


def test_variables_are_assignable(data):
    model = compiled()
    model.variables = {"params": {"bias": np.zeros(2), "kernel": jnp.ones((3, 2))}}
    assert_weights(model, [np.zeros(2), np.ones((3, 2))])
    model.params = {"kernel": np.zeros((3, 2)), "bias": np.array([1.0, 2.0])}
    np.testing.assert_allclose(model.predict(data[0], verbose=0), np.tile([1, 2], (20, 1)))
    model.fit(*data, batch_size=8, verbose=0)  # what was assigned is trained from, and may be donated
    assert jax.tree.map(np.shape, model.params) == {"bias": (2,), "kernel": (3, 2)}


def test_weights_of_other_collections_come_after_the_parameters():
    model = kdist.Model(Dropped())
    model.build((None, 4))
    assert [np.shape(w) for w in model.get_weights()] == [(4,)] * 4
    model.set_weights([np.full(4, value, np.float32) for value in (1, 2, 3, 4)])
    assert model.params["BatchNorm_0"]["bias"][0] == 1 and model.params["BatchNorm_0"]["scale"][0] == 2
    assert model.variables["batch_stats"]["BatchNorm_0"]["mean"][0] == 3
    assert model.variables["batch_stats"]["BatchNorm_0"]["var"][0] == 4


def test_an_nnx_module_holds_the_trained_state(data):
    linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    model = kdist.Model(linear)
    model.compile("sgd", "mse", distribution=kdist.DataParallel(devices=jax.devices()[:2]))
    model.fit(*data, batch_size=8, verbose=0)
    np.testing.assert_array_equal(linear.bias[...], model.get_weights()[0])
    np.testing.assert_allclose(linear(data[0]), model.predict(data[0], verbose=0), rtol=1e-5)
    model.fit(*data, batch_size=8, verbose=0)  # what it holds is not what the next fit uses up
    model.set_weights([BIAS, KERNEL])
    np.testing.assert_array_equal(linear.kernel[...], KERNEL)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_survive_a_directory(kind, tmp_path):
    model, other = compiled(kind), make(kind, seed=5)
    model.save_weights(tmp_path / "new" / "weights")
    other.build((None, 3))
    other.load_weights(tmp_path / "new" / "weights")
    for mine, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_weights_of_another_model_are_refused(tmp_path):
    fresh().save_weights(tmp_path / "w")
    other = kdist.Model(nn.Dense(4))
    other.build((None, 3))
    before = other.get_weights()
    with pytest.raises(
        CheckpointMismatchError, match=r"params.kernel: expected float32\[3, 4\], found float32\[3, 2\]"
    ):
        other.load_weights(tmp_path / "w")
    with pytest.raises(CheckpointError, match="nowhere"):
        other.load_weights(tmp_path / "nowhere")
    assert_weights(other, before)


# Compiling again ---------------------------------------------------------------------------------


def test_recompile_keeps_weights_and_starts_the_optimizer_anew(data):
    model = fresh()
    model.compile(kdist.optimizers.SGD(0.01, momentum=0.9), "mse", distribution=model.trainer.distribution)
    model.fit(*data, batch_size=8, verbose=0)
    trained = model.get_weights()
    model.compile(kdist.optimizers.SGD(0.0, momentum=0.9), "mae", distribution=model.trainer.distribution)
    assert_weights(model, trained)
    model.fit(*data, batch_size=8, verbose=0)  # a momentum that was kept would still move them
    assert_weights(model, trained)
    assert model.trainer.state.step == 3  # of the second fit alone


def test_recompile_with_the_same_optimizer_goes_on_with_its_state(data):
    """As in Keras; its momentum moves the weights further, though the rate is 0 now."""
    model = fresh()
    optimizer = kdist.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, "mse", distribution=model.trainer.distribution)
    model.fit(*data, batch_size=8, verbose=0)
    trace = jax.tree.map(np.array, model.state.opt_state)
    model.compile(model.optimizer, "mae", distribution=kdist.DataParallel(devices=jax.devices()[:2]))
    jax.tree.map(np.testing.assert_array_equal, trace, model.state.opt_state)
    model.fit(*data, batch_size=8, verbose=0)
    assert model.state.step == 6


def test_recompile_onto_other_devices(data):
    model = fresh(n=1)
    model.compile(kdist.optimizers.SGD(RATE), "mse", distribution=kdist.DataParallel(devices=jax.devices()[:4]))
    model.fit(*data, batch_size=8, shuffle=False, verbose=0)
    _, weights = reference(*data, np.arange(20), 8)
    assert_weights(model, weights)


def test_recompile_forgets_loss_and_metrics(data):
    model = fresh(metrics=["mae"])
    model.compile("sgd", "mse")
    assert list(model.evaluate(*data, verbose=0, return_dict=True)) == ["loss"]
    model.compile("sgd")
    with pytest.warns(UserWarning, match="no loss"):
        assert model.fit(*data, batch_size=8, verbose=0).history == {"loss": [0.0]}


def test_one_optimizer_serves_the_model_compiled_last(data):
    model = fresh()
    assert model.optimizer.learning_rate == pytest.approx(RATE)
    model.optimizer.learning_rate = 0.5
    assert model.optimizer.learning_rate == 0.5
    model.fit(*data, batch_size=20, verbose=0)
    _, weights = reference(*data, np.arange(20), 20)
    moved = [start + 5 * (end - start) for start, end in zip([BIAS, KERNEL], weights, strict=True)]
    assert_weights(model, moved)


# Several inputs and outputs ----------------------------------------------------------------------


class Two(nn.Module):
    """Inputs ``a, b``, passed through: outputs ``scale * a`` and ``scale * b``."""

    form: str

    @nn.compact
    def __call__(self, a, b):
        scale = self.param("scale", nn.initializers.ones, ())
        outputs = {
            "tuple": (scale * a, scale * b),
            "list": [scale * a, scale * b],
            "dict": {"p": scale * a, "q": scale * b},
        }
        return outputs[self.form]


class NamedTwo(Two):
    """The same, with names for its outputs."""

    output_names = ("left", "right")


A, B = np.full((6, 2), 1.0, np.float32), np.full((6, 1), 3.0, np.float32)
YA, YB = np.zeros((6, 2), np.float32), np.full((6, 1), 1.0, np.float32)
INPUTS = {"list": [A, B], "tuple": (A, B), "dict": {"b": B, "a": A}}
TARGETS = {"list": [YA, YB], "tuple": (YA, YB), "dict": {"q": YB, "p": YA}}


FORMS = [("list", "tuple"), ("tuple", "list"), ("dict", "dict"), ("list", "dict")]


@pytest.mark.parametrize(
    "x_form, y_form, out_form",
    [  # by default each form of targets and outputs with one of inputs
        pytest.param(x_form, *form, marks=[] if i == j % len(INPUTS) else [pytest.mark.slow])
        for i, x_form in enumerate(INPUTS)
        for j, form in enumerate(FORMS)
    ],
)
def test_structures_of_inputs_and_outputs(x_form, y_form, out_form):
    model = kdist.Model(Two(out_form))
    model.compile(kdist.optimizers.SGD(0.0), "mse", distribution=kdist.DataParallel(devices=jax.devices()[:1]))
    x, y = INPUTS[x_form], TARGETS[y_form]
    results = model.evaluate(x, y, batch_size=4, verbose=0)
    assert results == [5.0, 1.0, 4.0]  # 1 of a against 0, and 4 of 3 against 1
    named = ["p_loss", "q_loss"] if out_form == "dict" else ["output_0_loss", "output_1_loss"]
    assert model.metrics_names == ["loss", *named]
    out = model.predict(x, batch_size=4, verbose=0)
    assert type(out) is {"tuple": tuple, "list": list, "dict": dict}[out_form]
    leaves = list(out.values()) if out_form == "dict" else out
    np.testing.assert_array_equal(leaves[0], A)
    np.testing.assert_array_equal(leaves[1], B)


@pytest.mark.parametrize(
    "loss, weights, expected",
    [
        ("mse", None, [5.0, 1.0, 4.0]),
        ("mse", 0.5, [2.5, 1.0, 4.0]),
        (["mse", "mae"], [1, 10], [21.0, 1.0, 2.0]),
        ({"q": "mae", "p": "mse"}, {"q": 10, "p": 1}, [21.0, 1.0, 2.0]),
        ({"p": "mse", "q": "mae"}, {"p": 0.0, "q": 2.0}, [4.0, 1.0, 2.0]),
        (["mse", None], [3.0, 5.0], 3.0),
        ({"q": "mse"}, None, 4.0),
    ],
)
def test_loss_weights(loss, weights, expected):
    model = kdist.Model(Two("dict"))
    distribution = kdist.DataParallel(devices=jax.devices()[:1])
    model.compile("sgd", loss, loss_weights=weights, distribution=distribution)
    assert model.evaluate(INPUTS["dict"], TARGETS["dict"], verbose=0) == expected


def test_the_list_of_evaluate_has_losses_by_output_then_metrics_by_output():
    model = kdist.Model(NamedTwo("tuple"))
    model.compile(
        "sgd",
        ["mse", "mae"],
        metrics=[["mae", "mse"], ["mse"]],
        weighted_metrics={"right": ["mse"], "left": ["mse"]},
        distribution=kdist.DataParallel(devices=jax.devices()[:1]),
    )
    values = model.evaluate(INPUTS["list"], TARGETS["list"], verbose=0)
    by_name = {
        "loss": 3.0,
        "left_loss": 1.0,
        "right_loss": 2.0,
        "left_mae": 1.0,
        "left_mse": 1.0,
        "left_weighted_mse": 1.0,
        "right_mse": 4.0,
        "right_weighted_mse": 4.0,
    }
    assert dict(zip(model.metrics_names, values, strict=True)) == by_name
    assert model.metrics_names == list(by_name)
    as_dict = model.evaluate(INPUTS["list"], TARGETS["list"], verbose=0, return_dict=True)
    assert list(as_dict.items()) == sorted(by_name.items())
    assert list(model.fit(INPUTS["list"], TARGETS["list"], verbose=0).history) == sorted(by_name)


def test_weights_by_output():
    model = kdist.Model(Two("dict"))
    model.compile("sgd", "mse", distribution=kdist.DataParallel(devices=jax.devices()[:1]))
    ramp = np.arange(6, dtype=np.float32)  # its mean is 2.5
    for weight, expected in [
        (ramp, [12.5, 2.5, 10.0]),
        ({"p": ramp}, [6.5, 2.5, 4.0]),
        ([None, ramp], [11.0, 1.0, 10.0]),
    ]:
        got = model.evaluate(INPUTS["dict"], TARGETS["dict"], sample_weight=weight, verbose=0)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


class Ordered(nn.Module):
    """Outputs whose order of definition is not alphabetical."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, ())
        return {"z": scale * x, "a": 2 * scale * x}


def test_outputs_of_a_dict_keep_one_order_everywhere():
    model = kdist.Model(Ordered())
    distribution = kdist.DataParallel(devices=jax.devices()[:1])
    model.compile("sgd", "mse", distribution=distribution)
    x = np.ones((4, 1), np.float32)
    values = model.evaluate(x, {"z": 0 * x, "a": 0 * x}, verbose=0)
    by_name = dict(zip(model.metrics_names, values, strict=True))
    assert by_name == {"loss": 5.0, "z_loss": 1.0, "a_loss": 4.0}
    predictions = model.predict(x, verbose=0)
    np.testing.assert_array_equal(predictions["z"], x)
    np.testing.assert_array_equal(predictions["a"], 2 * x)


# Looking at it -----------------------------------------------------------------------------------


class Tower(nn.Module):
    """Two named layers."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.relu(nn.Dense(8, name="body")(x)))


class NNXTower(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs):
        self.body = nnx.Linear(3, 8, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.body(x)))


def towers():
    return [kdist.Model(Tower(), name="tower"), kdist.Model(NNXTower(nnx.Rngs(0)), name="tower")]


@pytest.mark.parametrize("which", [0, 1])
def test_layers_by_name_and_by_index(which):
    model = towers()[which]
    with pytest.raises(NotCompiledError, match="build"):
        model.get_layer("body")
    model.build((None, 3))
    size = (lambda layer: layer.features) if which == 0 else (lambda layer: layer.out_features)
    assert size(model.get_layer("body")) == 8
    assert size(model.get_layer(index=1)) == 2
    assert size(model.get_layer(index=-1)) == 2
    assert size(model.get_layer("body", 1)) == 2  # the index wins
    for arguments, words in [
        ({}, "name or layer index"),
        ({"name": "bodi"}, r"bodi.*\['body', 'head'\]"),
        ({"index": 2}, "2.*2 layers"),
        ({"index": -3}, "-3.*2 layers"),
        ({"index": "a"}, "'a'.*2 layers"),
    ]:
        with pytest.raises(ConfigError, match=words):
            model.get_layer(**arguments)


def test_metrics_names_need_targets():
    model = fresh()
    with pytest.raises(NotCompiledError, match="fit or evaluate"):
        _ = model.metrics_names
    model.evaluate(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0)
    assert model.metrics_names == ["loss"]


def test_odds_and_ends_of_the_interface():
    model = make("linen", name="mine")
    assert model.name == "mine" and not model.compiled and model.optimizer is None and model.history is None
    model.compile()
    assert model.compiled and model.optimizer.name == "rmsprop"
    model.reset_metrics()
    for flag in ("stop_training", "stop_evaluating", "stop_predicting"):
        assert getattr(model, flag) is False
        setattr(model, flag, True)
        assert getattr(model, flag) is True

"""Whole runs against Keras on the same weights, data and order: histories, results of every method, predictions.

Adam is compared with an epsilon of 1e-12: optax adds it to the bias-corrected root, Keras to the uncorrected one, and
that small it changes nothing in float32.
"""

import flax.linen as nn
import jax
import numpy as np
import pytest

import kdist

keras = pytest.importorskip("keras", reason="numbers are compared with Keras 3 (extra: bench)")

N, D, C = 50, 4, 3  # 50 rows in batches of 16: the last batch is short
BATCH, EPOCHS = 16, 3


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.softmax(nn.Dense(C, name="top")(nn.tanh(nn.Dense(5, name="bottom")(x))))


class TwoHeads(nn.Module):
    @nn.compact
    def __call__(self, x):
        return {"a": nn.softmax(nn.Dense(C, name="head_a")(x)), "b": nn.Dense(1, name="head_b")(x)}


def keras_mlp():
    return keras.Sequential(
        [keras.Input((D,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(C, activation="softmax")]
    )


def keras_two_heads():
    x = keras.Input((D,))
    heads = {
        "a": keras.layers.Dense(C, activation="softmax", name="a")(x),
        "b": keras.layers.Dense(1, name="b")(x),
    }
    return keras.Model(x, heads)


def pair(module, keras_model, dense_names, x):
    """A kdist model, and the Keras model with its weights."""
    model = kdist.Model(module)
    model.build(x)
    weights = [np.asarray(model.params[name][leaf]) for name in dense_names for leaf in ("kernel", "bias")]
    keras_model.set_weights(weights)
    return model, keras_model


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N + 20, D)).astype(np.float32)
    y = rng.integers(0, C, N + 20)
    w = rng.uniform(0, 2, N + 20).astype(np.float32)
    return x, y, w


# SGD over 8 devices, where batches are padded; Adam on one.
OPTIMIZERS = {
    "sgd": (
        lambda: kdist.optimizers.SGD(0.1, momentum=0.9, nesterov=True, clipnorm=0.1),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, clipnorm=0.1),
    ),
    "adam": (
        lambda: kdist.optimizers.Adam(0.01, epsilon=1e-12, weight_decay=0.1),
        lambda: keras.optimizers.Adam(0.01, epsilon=1e-12, weight_decay=0.1),
    ),
}


@pytest.fixture(scope="module", params=list(OPTIMIZERS))
def trained(request, data):
    """Both models after a fit with sample weights, metrics and validation, and what it returned."""
    x, y, w = data
    ours, theirs = pair(MLP(), keras_mlp(), ["bottom", "top"], x[:1])
    our_optimizer, their_optimizer = OPTIMIZERS[request.param]
    settings = {
        "loss": "sparse_categorical_crossentropy",
        "metrics": ["accuracy"],
        "weighted_metrics": ["sparse_categorical_crossentropy"],
    }
    n = 8 if request.param == "sgd" else 1
    ours.compile(our_optimizer(), **settings, distribution=kdist.DataParallel(devices=jax.devices()[:n]))
    theirs.compile(their_optimizer(), **settings)
    fit = {
        "batch_size": BATCH,
        "epochs": EPOCHS,
        "shuffle": False,
        "verbose": 0,
        "sample_weight": w[:N],
        "validation_data": (x[N:], y[N:], w[N:]),
    }
    return ours, theirs, ours.fit(x[:N], y[:N], **fit), theirs.fit(x[:N], y[:N], **fit)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_history(trained):
    *_, ours, theirs = trained
    assert list(ours.history) == list(theirs.history)
    assert ours.epoch == theirs.epoch
    for name, values in theirs.history.items():
        assert_close(ours.history[name], values)


def test_weights(trained):
    ours, theirs, *_ = trained
    params = ours.params
    mine = [np.asarray(params[name][leaf]) for name in ("bottom", "top") for leaf in ("kernel", "bias")]
    for a, b in zip(mine, [np.asarray(v.value) for v in theirs.weights], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("trained", ["sgd"], indirect=True)
def test_results_after_training(trained, data):
    ours, theirs, *_ = trained
    x, y, w = data
    assert_close(ours.predict(x, batch_size=BATCH, verbose=0), theirs.predict(x, batch_size=BATCH, verbose=0))
    assert_close(ours.predict_on_batch(x[:7]), theirs.predict_on_batch(x[:7]))
    arguments = {"batch_size": BATCH, "sample_weight": w, "verbose": 0}
    a, b = (m.evaluate(x, y, **arguments) for m in (ours, theirs))
    assert isinstance(a, list) and len(a) == 3
    assert_close(a, b)
    a, b = (m.evaluate(x, y, **arguments, return_dict=True) for m in (ours, theirs))
    assert list(a) == list(b)
    assert_close(list(a.values()), list(b.values()))


@pytest.mark.parametrize("trained", ["sgd"], indirect=True)
def test_single_batches(trained, data):
    ours, theirs, *_ = trained
    x, y, w = data
    rows = slice(0, 13)
    for method in ("test_on_batch", "train_on_batch", "test_on_batch"):
        a, b = (getattr(m, method)(x[rows], y[rows], w[rows]) for m in (ours, theirs))
        assert [type(v) for v in a] == [float] * 3
        assert_close(a, b)
    a, b = (m.train_on_batch(x[rows], y[rows], w[rows], return_dict=True) for m in (ours, theirs))
    assert list(a) == list(b)
    assert_close(list(a.values()), list(b.values()))


def test_two_outputs(data):
    x, y, _ = data
    ours, theirs = pair(TwoHeads(), keras_two_heads(), ["head_a", "head_b"], x[:1])
    targets = {"a": y, "b": x.sum(1, keepdims=True)}
    settings = {
        "loss": {"a": "sparse_categorical_crossentropy", "b": "mse"},
        "loss_weights": {"a": 0.3, "b": 2.0},
        "metrics": {"a": ["accuracy"], "b": ["mae", "mse"]},
    }
    one = kdist.DataParallel(devices=jax.devices()[:1])
    ours.compile(kdist.optimizers.SGD(0.05), **settings, distribution=one)
    theirs.compile(keras.optimizers.SGD(0.05), **settings)
    a, b = (m.fit(x, targets, batch_size=BATCH, epochs=2, shuffle=False, verbose=0).history for m in (ours, theirs))
    assert list(a) == list(b)
    for name, values in b.items():
        assert_close(a[name], values)
    a, b = (m.evaluate(x, targets, batch_size=BATCH, verbose=0, return_dict=True) for m in (ours, theirs))
    assert list(a) == list(b)
    assert_close(list(a.values()), list(b.values()))
    # The order of the list is kdist's own: loss, losses by output, metrics by output.
    values = ours.evaluate(x, targets, batch_size=BATCH, verbose=0)
    assert ours.metrics_names == ["loss", "a_loss", "b_loss", "a_accuracy", "b_mae", "b_mse"]
    assert_close(values, [a[name] for name in ours.metrics_names])
    predicted = ours.predict(x, verbose=0)
    assert list(predicted) == ["a", "b"]
    jax.tree.map(assert_close, predicted, theirs.predict(x, verbose=0))


def test_targets_without_the_last_axis(data):
    """``(N,)`` against ``(N, 1)``; the validation rows are taken from the end."""
    x, y, _ = data
    ours, theirs = pair(nn.Sequential([nn.Dense(1), nn.sigmoid]), one_unit(), ["layers_0"], x[:1])
    bits = (y > 0).astype(np.float32)
    fit = {"batch_size": 10, "epochs": 2, "shuffle": False, "validation_split": 0.3, "verbose": 0}
    histories = []
    one = {"distribution": kdist.DataParallel(devices=jax.devices()[:1])}
    for m, sgd, where in ((ours, kdist.optimizers.SGD(0.1), one), (theirs, keras.optimizers.SGD(0.1), {})):
        m.compile(sgd, "binary_crossentropy", metrics=["accuracy"], **where)
        histories.append(m.fit(x, bits, **fit).history)
    assert list(histories[0]) == list(histories[1])
    for name, values in histories[1].items():
        assert_close(histories[0][name], values)


def one_unit():
    return keras.Sequential([keras.Input((D,)), keras.layers.Dense(1, activation="sigmoid")])

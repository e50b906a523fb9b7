"""Sequential: layers in a row, their names, and what becomes of the model when layers come and go."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kdist
from kdist.errors import ConfigError, NotCompiledError

X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)


def compiled(layers):
    model = kdist.Sequential(layers)
    model.compile("sgd", "mse", distribution=kdist.DataParallel(devices=jax.devices()[:1]))
    return model


def scale(x):
    return 2 * x


def linear():
    return nnx.Linear(2, 2, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "layers, names",
    [
        ([nn.Dense(2), nn.relu, nn.Dense(2), nn.relu], ["dense", "relu", "dense_1", "relu_1"]),
        ([nn.Dense(2, name="head"), nn.Dense(2)], ["head", "dense"]),
        ([nn.LayerNorm(), nn.Dropout(0.5), nn.BatchNorm()], ["layer_norm", "dropout", "batch_norm"]),
        ([linear(), scale, linear()], ["linear", "scale", "linear_1"]),
        ([(lambda key, x: {}, scale)], ["tuple"]),
    ],
)
def test_names_of_layers(layers, names):
    model = kdist.Sequential(layers)
    for name, layer in zip(names, layers, strict=True):
        assert model.get_layer(name) is layer


@pytest.mark.parametrize("first", [nn.Dense(2), nn.Dense(2, name="dense")])
def test_a_name_that_is_taken_is_refused(first):
    model = kdist.Sequential([first])
    with pytest.raises(ConfigError, match="'dense'.*name of its own"):
        model.add(nn.Dense(2, name="dense"))
    assert model.layers == [first]


def test_params_are_keyed_by_layer_and_the_layers_are_applied_in_order():
    model = kdist.Sequential([nn.Dense(3), nn.relu, scale, nn.Dense(2, use_bias=False)])
    model.build((None, 4))
    assert jax.tree.map(np.shape, model.params) == {
        "dense": {"bias": (3,), "kernel": (4, 3)},
        "dense_1": {"kernel": (3, 2)},
    }
    p = jax.tree.map(np.array, model.params)
    hidden = 2 * np.maximum(X @ p["dense"]["kernel"] + p["dense"]["bias"], 0)
    np.testing.assert_allclose(model(X), hidden @ p["dense_1"]["kernel"], rtol=1e-5, atol=1e-6)


def test_layers_is_a_copy_and_cannot_be_assigned():
    first, second = nn.Dense(3), nn.Dense(2)
    model = kdist.Sequential([first])
    model.add(second)
    assert model.layers == [first, second]
    model.layers.clear()
    assert len(model.layers) == 2
    with pytest.raises(AttributeError, match="layers"):
        model.layers = []
    assert model.get_layer(index=-1) is second and model.name == "sequential"


def test_linen_nnx_pairs_and_functions_train_together():
    last = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    start = np.array(last.kernel[...])
    pair = (lambda key, x: {"b": jnp.ones(x.shape[-1])}, lambda p, x: x + p["b"])
    model = compiled([nn.Dense(5), nn.BatchNorm(), nn.relu, last, pair])
    history = model.fit(X, np.zeros((12, 3)), epochs=5, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert not np.allclose(last.kernel[...], start)
    np.testing.assert_array_equal(last.kernel[...], model.params["linear"]["kernel"])
    assert set(model.variables["batch_stats"]) == {"batch_norm"}
    np.testing.assert_allclose(model.predict(X, verbose=0), model(X), rtol=1e-5, atol=1e-6)


def test_the_train_flag_and_keys_of_their_own_reach_every_layer():
    model = kdist.Sequential([nn.Dropout(0.5), nn.Dropout(0.5, name="second"), scale])
    ones = np.ones((200, 10), np.float32)
    np.testing.assert_array_equal(model(ones), 2 * ones)
    kept = (np.asarray(model(ones, training=True)) != 0).mean()
    assert 0.2 < kept < 0.3  # half of a half: one key for both would keep a half


@pytest.mark.parametrize("change", [lambda m: m.pop(), lambda m: m.add(nn.Dense(2))])
def test_a_changed_model_is_built_and_compiled_anew(change):
    model = compiled([nn.Dense(3), nn.Dense(2)])
    model.build(X)
    change(model)
    assert not model.compiled and not model.built
    with pytest.raises(NotCompiledError, match="compile"):
        model.fit(X, X[:, :2], verbose=0)
    width = 3 if len(model.layers) == 1 else 2
    assert model(X).shape == (12, width)
    model.compile("sgd", "mse", distribution=kdist.DataParallel(devices=jax.devices()[:1]))
    assert len(model.fit(X, X[:, :width], verbose=0).history["loss"]) == 1


def test_pop_returns_the_layer():
    layer = nn.Dense(3)
    model = kdist.Sequential([layer])
    assert model.pop() is layer and model.layers == []
    with pytest.raises(ConfigError, match="no layers"):
        model.pop()


def test_a_model_without_layers_cannot_be_trained_but_can_be_filled():
    model = compiled(None)
    for call in (lambda: model.fit(X, X, verbose=0), lambda: model.build((None, 4)), lambda: model.predict(X)):
        with pytest.raises(ConfigError, match="no layers.*add"):
            call()


@pytest.mark.parametrize("layer", [nn.Dense, "relu", None, 3, [nn.Dense(2)]])
def test_what_is_no_layer_is_refused(layer):
    with pytest.raises(ConfigError, match="A layer is.*Received"):
        kdist.Sequential([layer])
    model = kdist.Sequential()
    with pytest.raises(ConfigError, match="A layer is.*Received"):
        model.add(layer)
    assert model.layers == []


def test_a_layer_alone_in_place_of_a_list_is_refused():
    with pytest.raises(ConfigError, match="list"):
        kdist.Sequential(nn.Dense(2))


def test_one_nnx_layer_twice_is_refused_or_shared():
    """Two places of one NNX module would be trained apart, and the module could hold only one of them."""
    shared = linear()
    with pytest.raises(ConfigError, match="twice|once|shared"):
        kdist.Sequential([shared, nn.relu, shared])


def test_layers_cannot_be_frozen_by_a_flag():
    kdist.Sequential([nn.Dense(2)], trainable=True)
    with pytest.raises(ConfigError, match="optax.set_to_zero"):
        kdist.Sequential([nn.Dense(2)], trainable=False)

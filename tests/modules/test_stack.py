"""Sequential: names of layers, adding and removing them, and what each layer gets."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kdist
from kdist.errors import ConfigError

X = np.arange(12.0, dtype=np.float32).reshape(4, 3)


def names(*layers):
    return [row.name for row in built(*layers)._layers()]


def built(*layers, **arguments):
    model = kdist.Sequential(layers, **arguments)
    model.build(X)
    return model


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Dense(2), nn.Dense(2), nn.Dense(2)], ["dense", "dense_1", "dense_2"]),
        ([nn.Dense(2), nn.relu, nn.Dense(2), nn.relu], ["dense", "relu", "dense_1", "relu_1"]),
        ([nn.Dense(2, name="in"), nn.Dense(2)], ["in", "dense"]),
        ([nn.Dense(2), nn.Dense(2, name="out"), nn.Dense(2)], ["dense", "out", "dense_1"]),
        ([nn.Dense(2), nn.Dense(2, name="dense_1"), nn.Dense(2)], ["dense", "dense_1", "dense_2"]),
        ([lambda x: x, lambda x: x], ["lambda", "lambda_1"]),
        ([functools.partial(nn.leaky_relu, negative_slope=0.3)], ["leaky_relu"]),
        ([nn.BatchNorm(), nn.LayerNorm()], ["batch_norm", "layer_norm"]),
        ([nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nn.Dense(1)], ["linear", "dense"]),
    ],
    ids=lambda a: str(len(a)),
)
def test_names(layers, expected):
    assert names(*layers) == expected


@pytest.mark.parametrize(
    "layers",
    [[nn.Dense(2, name="a"), nn.Dense(3, name="a")], [nn.Dense(2), nn.Dense(2, name="dense")]],
    ids=["both explicit", "explicit after implicit"],
)
def test_a_name_cannot_be_given_twice(layers):
    with pytest.raises(ConfigError, match="Two layers are named"):
        kdist.Sequential(layers)


@pytest.mark.parametrize("layer", [nn.Dense, "dense", 3, None, nnx.Linear])
def test_what_is_no_layer(layer):
    with pytest.raises(ConfigError, match="A layer is a Linen or NNX module"):
        kdist.Sequential([nn.Dense(1), layer])


def test_params_are_keyed_by_name():
    model = built(nn.Dense(5), nn.BatchNorm(), nn.relu, nn.Dense(2, name="head"))
    assert {name: sorted(tree) for name, tree in model.params.items()} == {
        "dense": ["bias", "kernel"],
        "batch_norm": ["bias", "scale"],
        "head": ["bias", "kernel"],
    }
    assert set(model.variables["batch_stats"]) == {"batch_norm"}
    assert model.params["head"]["kernel"].shape == (5, 2)


def test_equal_layers_start_differently():
    model = built(nn.Dense(3), nn.Dense(3))
    assert (np.asarray(model.params["dense"]["kernel"]) != np.asarray(model.params["dense_1"]["kernel"])).any()


def test_the_outputs_are_those_of_the_layers_in_order():
    linear = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    model = built(linear, jnp.tanh, nn.Dense(2))
    dense = model.params["dense"]
    expected = np.tanh(linear(X)) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(model.predict(X, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_each_dropout_has_a_mask_of_its_own():
    class Drop(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dropout(0.5, deterministic=not train)(x)

    model = kdist.Sequential([Drop(), Drop()])
    x = np.ones((16, 64), np.float32)
    kept = (np.asarray(model(x, training=True)) != 0).mean()
    assert 0.15 < kept < 0.35  # a quarter; a mask used twice would keep half
    np.testing.assert_array_equal(model(x), x)


def test_add_pop_layers_and_get_layer():
    first, last = nn.Dense(4), nn.Dense(1, name="head")
    model = kdist.Sequential()
    with pytest.raises(ConfigError, match="no layers"):
        model.pop()
    with pytest.raises(ConfigError, match="no layers"):
        model.build(X)
    model.add(first)
    model.add(last)
    layers = model.layers
    assert layers == [first, last]
    layers.clear()
    assert len(model.layers) == 2
    assert model.get_layer("head") is last
    assert model.get_layer(index=0) is first
    assert model.get_layer("head", 0) is first  # the position counts
    assert model.get_layer(index=-1) is last
    for arguments, message in [
        ({}, "Provide either"),
        ({"name": "tail"}, r"No such layer: tail.*\['dense', 'head'\]"),
        ({"index": 2}, "no layer 2: the model has 2"),
        ({"index": -3}, "no layer -3"),
    ]:
        with pytest.raises(ConfigError, match=message):
            model.get_layer(**arguments)
    assert model.pop() is last
    model.build(X)
    assert set(model.params) == {"dense"}


def test_batch_statistics_and_nnx_layers_are_trained(devices, rng):
    linear = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    before = np.array(linear.kernel.get_value())
    model = kdist.Sequential([linear, nn.BatchNorm(), jax.nn.relu, nn.Dense(1)])
    model.compile("sgd", "mse", distribution=devices(2))
    model.fit(rng.normal(size=(16, 3)), rng.normal(size=(16, 1)), batch_size=8, verbose=0)
    assert (np.asarray(linear.kernel.get_value()) != before).any()
    assert (np.asarray(model.variables["batch_stats"]["batch_norm"]["mean"]) != 0).all()

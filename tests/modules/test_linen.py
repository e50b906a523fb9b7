"""Linen modules: flags, several inputs, dropout keys, batch statistics, loops inside, names of outputs and layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdist
from kdist.modules import Variables, adapt

KEYS = [jax.random.key(0), jax.random.key(1)]
X = jnp.arange(12.0).reshape(4, 3)


def apply(module, x, *, train, key=KEYS[0], variables=None):
    adapter = adapt(module)
    variables = variables or adapter.init(jax.random.key(7), x)
    return adapter.apply(variables, x, train=train, key=key)


class Flag(nn.Module):
    """Adds 1 when it trains, by whichever flag it is told."""

    @nn.compact
    def __call__(self, x, train):
        return x + (1.0 if train else 0.0)


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, *, training=False):
        return x + (1.0 if training else 0.0)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return x + (0.0 if deterministic else 1.0)


class Average(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average):
        return x + (0.0 if use_running_average else 1.0)


@pytest.mark.parametrize("cls", [Flag, Training, Deterministic, Average])
def test_the_train_flag(cls):
    np.testing.assert_array_equal(apply(cls(), X, train=True)[0], X + 1)
    np.testing.assert_array_equal(apply(cls(), X, train=False)[0], X)


class Difference(nn.Module):
    @nn.compact
    def __call__(self, a, b):
        return a - 2 * b


class OfAPair(nn.Module):
    @nn.compact
    def __call__(self, pair):
        a, b = pair.values() if isinstance(pair, dict) else pair
        return a - 2 * b


@pytest.mark.parametrize("module", [Difference(), OfAPair()], ids=["two parameters", "one parameter"])
@pytest.mark.parametrize("x", [(X, X + 1), [X, X + 1], {"a": X, "b": X + 1}], ids=["tuple", "list", "dict"])
def test_several_inputs(module, x):
    np.testing.assert_array_equal(apply(module, x, train=False)[0], X - 2 * (X + 1))


class Drop(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dropout(0.5, deterministic=not train)(x))


def test_dropout_is_drawn_from_the_key():
    x = jnp.ones((8, 32))
    a, again, b = (apply(Drop(), x, train=True, key=KEYS[i])[0] for i in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert (a != b).any()
    assert 0.1 < (a != 0).mean() < 0.4  # two layers that keep half each, with masks of their own
    np.testing.assert_array_equal(apply(Drop(), x, train=False)[0], x)


def test_another_random_stream_is_served():
    class Noise(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + jax.random.normal(self.make_rng("noise"), x.shape)

    a, b = (apply(Noise(), X, train=True, key=key)[0] for key in KEYS)
    assert (a != b).all()


def test_batch_statistics_move_only_in_training():
    module = nn.BatchNorm(momentum=0.9)
    variables = adapt(module).init(KEYS[0], X)
    assert set(variables.model_state) == {"batch_stats"}
    outputs, after, _ = apply(module, X, train=True, variables=variables)
    np.testing.assert_allclose(after["batch_stats"]["mean"], 0.1 * X.mean(0), rtol=1e-6)
    np.testing.assert_allclose(outputs.mean(0), 0, atol=1e-6)
    outputs, after, _ = apply(module, X, train=False, variables=variables)
    np.testing.assert_allclose(outputs, X, rtol=1e-4)
    assert after is variables.model_state


def test_passing_collections_are_not_carried():
    class Sows(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("intermediates", "seen", x)
            return nn.Dense(2)(x)

    variables = adapt(Sows()).init(KEYS[0], X)
    assert variables.model_state == {}
    outputs, after, _ = apply(Sows(), X, train=True, variables=variables)
    assert outputs.shape == (4, 2) and after == {}


class Recurrent(nn.Module):
    """Flax's RNN is a `lax.scan` inside the module."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.RNN(nn.LSTMCell(3))(x)[:, -1])


def test_a_loop_inside_the_module_trains_alike_on_one_and_eight_devices(devices, rng):
    x, y = rng.normal(size=(20, 5, 2)), rng.normal(size=(20, 1))
    losses = []
    for n in (1, 8):
        model = kdist.Model(Recurrent())
        model.compile(kdist.optimizers.SGD(0.1), "mse", distribution=devices(n))
        losses.append(model.fit(x, y, batch_size=8, epochs=2, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][1] < losses[0][0]


def test_output_names():
    class Named(nn.Module):
        output_names = ["left", "right"]

        @nn.compact
        def __call__(self, x):
            return x, x

    assert adapt(Named()).output_names == ("left", "right")
    assert adapt(nn.Dense(1)).output_names is None


def test_layers():
    class Net(nn.Module):
        def setup(self):
            self.first = nn.Dense(5)
            self.second = nn.Dense(2)

        def __call__(self, x):
            return self.second(nn.relu(self.first(x)))

    adapter = adapt(Net())
    rows = adapter.layers(adapter.init(KEYS[0], X), X)
    assert [(r.name, r.kind, r.output.shape) for r in rows] == [("first", "Dense", (4, 5)), ("second", "Dense", (4, 2))]
    alone = adapt(nn.Dense(2))
    (row,) = alone.layers(alone.init(KEYS[0], X), X)
    assert (row.name, row.kind, row.output.shape) == ("", "Dense", (4, 2))


def test_a_module_without_parameters():
    variables = adapt(Flag()).init(KEYS[0], X)
    assert variables == Variables({}, {})

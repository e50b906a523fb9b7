"""NNX modules: variables by type, random streams, batch statistics, lists, shared layers, and arrays put back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kdist
from kdist.modules import adapt

KEYS = [jax.random.key(0), jax.random.key(1)]
X = jnp.arange(12.0).reshape(4, 3)


def start(module):
    adapter = adapt(module)
    return adapter, adapter.init(KEYS[0], X)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(self.drop(self.norm(x)))


def test_variables_are_dicts_by_attribute_and_type():
    _, variables = start(Net(nnx.Rngs(0)))
    assert set(variables.params) == {"layers", "norm", "head"}
    assert set(variables.params["layers"]) == {0, 1}
    assert variables.params["layers"][1]["kernel"].shape == (4, 4)
    assert set(variables.model_state) == {"batch_stats"}
    assert set(variables.model_state["batch_stats"]["norm"]) == {"mean", "var"}


def test_modes():
    adapter, variables = start(Net(nnx.Rngs(0)))
    train, after, _ = adapter.apply(variables, X, train=True, key=KEYS[0])
    again, _, _ = adapter.apply(variables, X, train=True, key=KEYS[0])
    other, _, _ = adapter.apply(variables, X, train=True, key=KEYS[1])
    still, same, _ = adapter.apply(variables, X, train=False, key=KEYS[0])
    np.testing.assert_array_equal(train, again)
    assert (train != other).any() and (train != still).any()
    assert (after["batch_stats"]["norm"]["mean"] != variables.model_state["batch_stats"]["norm"]["mean"]).any()
    assert same is variables.model_state


def test_evaluation_does_not_depend_on_the_mode_that_the_module_is_in():
    module = Net(nnx.Rngs(0))
    module.eval()
    expected = module(X)
    adapter, variables = start(module)
    np.testing.assert_allclose(adapter.apply(variables, X, train=False, key=KEYS[0])[0], expected, rtol=1e-6)
    module.train()
    adapter, variables = start(module)
    np.testing.assert_allclose(adapter.apply(variables, X, train=False, key=KEYS[0])[0], expected, rtol=1e-6)
    assert module.drop.deterministic is False  # the user's module is left as it was


class Shared(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(3, 3, rngs=rngs)
        self.b = self.a

    def __call__(self, x):
        return self.b(self.a(x))


def test_a_shared_layer_is_one_set_of_arrays():
    module = Shared(nnx.Rngs(0))
    adapter, variables = start(module)
    assert len(jax.tree.leaves(variables.params)) == 2
    outputs, _, _ = adapter.apply(variables, X, train=True, key=KEYS[0])
    np.testing.assert_allclose(outputs, module(X), rtol=1e-6)


class Noisy(nnx.Module):
    """Draws from a stream of its own."""

    def __init__(self, rngs):
        self.rngs = rngs
        self.scale = nnx.Param(jnp.ones(3))

    def __call__(self, x):
        return x + self.scale * (jax.random.normal(self.rngs.noise(), x.shape) + self.rngs.noise.count.get_value())


def test_random_streams_come_from_the_key_and_not_from_the_module():
    adapter, variables = start(Noisy(nnx.Rngs(noise=3)))
    assert variables.model_state == {}
    a, again, b = (adapter.apply(variables, X, train=True, key=KEYS[i])[0] for i in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert (a != b).all()


class Calls(nnx.Variable):
    pass


class Counting(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 1, rngs=rngs)
        self.calls = Calls(jnp.int32(0))

    def __call__(self, x):
        self.calls[...] += 1
        return self.linear(x)


def test_a_variable_type_of_ones_own_is_a_collection(devices, rng):
    module = Counting(nnx.Rngs(0))
    adapter, variables = start(module)
    assert set(variables.model_state) == {"calls"}
    assert int(adapter.apply(variables, X, train=True, key=KEYS[0])[1]["calls"]["calls"]) == 1
    model = kdist.Model(module)
    model.compile("sgd", "mse", distribution=devices(8))
    model.fit(rng.normal(size=(24, 3)), rng.normal(size=(24, 1)), batch_size=8, epochs=2, verbose=0)
    assert int(model.variables["calls"]["calls"]) == 6 == int(module.calls.get_value())


def test_the_module_holds_the_trained_state_and_stays_usable(devices, rng):
    module = Net(nnx.Rngs(0))
    before = np.array(module.head.kernel.get_value())
    x, y = rng.normal(size=(32, 3)).astype(np.float32), rng.normal(size=(32, 1))
    model = kdist.Model(module)
    model.compile("adam", "mse", distribution=devices(8))
    model.fit(x, y, batch_size=16, verbose=0)
    kept = module.head.kernel.get_value()
    once = np.array(kept)
    assert (once != before).any()
    model.fit(x, y, batch_size=16, verbose=0)
    np.testing.assert_array_equal(kept, once)  # the second fit donated other arrays
    assert (np.asarray(module.head.kernel.get_value()) != once).any()
    module.eval()
    np.testing.assert_allclose(module(x), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    mean = model.variables["batch_stats"]["norm"]["mean"]
    np.testing.assert_array_equal(module.norm.mean.get_value(), mean)


def test_assigned_variables_reach_the_module():
    module = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    model = kdist.Model(module)
    model.build(X)
    model.set_weights([np.full(1, 2.0, np.float32), np.ones((3, 1), np.float32)])
    np.testing.assert_array_equal(module(X), X.sum(1, keepdims=True) + 2)


class Two(nnx.Module):
    output_names = ("sum", "difference")

    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, a, b):
        return self.scale * (a + b), self.scale * (a - b)


@pytest.mark.parametrize("x", [(X, X + 1), [X, X + 1], {"b": X + 1, "a": X}], ids=["tuple", "list", "dict"])
def test_several_inputs_and_outputs(x):
    adapter = adapt(Two(nnx.Rngs(0)))
    assert adapter.output_names == ("sum", "difference")
    total, difference = adapter.apply(adapter.init(KEYS[0], x), x, train=False, key=KEYS[0])[0]
    np.testing.assert_array_equal(total, 2 * X + 1)
    np.testing.assert_array_equal(difference, -jnp.ones_like(X))


def test_layers():
    adapter, variables = start(Net(nnx.Rngs(0)))
    rows = {r.name: (r.kind, r.output.shape) for r in adapter.layers(variables, X)}
    assert rows == {
        "layers/0": ("Linear", (4, 4)),
        "layers/1": ("Linear", (4, 4)),
        "norm": ("BatchNorm", (4, 4)),
        "drop": ("Dropout", (4, 4)),
        "head": ("Linear", (4, 1)),
    }

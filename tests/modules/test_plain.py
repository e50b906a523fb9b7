"""Pairs of pure functions, and single functions, as models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdist
from kdist.modules import adapt
from kdist.modules.plain import from_function

KEYS = [jax.random.key(0), jax.random.key(1)]
X = jnp.arange(12.0).reshape(4, 3)


def init(key, x):
    return {"w": jnp.ones((x.shape[-1], 1))}


def linear(params, x):
    return x @ params["w"]


def with_flag(params, x, train):
    return x @ params["w"] * (2.0 if train else 1.0)


def with_key(params, x, *, key):
    return x @ params["w"] + jax.random.normal(key, (len(x), 1))


def with_both(params, x, key, deterministic=True):
    return x @ params["w"] + (0.0 if deterministic else jax.random.normal(key, (len(x), 1)))


@pytest.mark.parametrize(
    ("fn", "train_factor", "noisy_when"),
    [(linear, 1, ()), (with_flag, 2, ()), (with_key, 1, (True, False)), (with_both, 1, (True,))],
)
def test_flags_and_keys_go_by_their_names(fn, train_factor, noisy_when):
    adapter = adapt((init, fn))
    variables = adapter.init(KEYS[0], X)
    for train in (True, False):
        a, again, b = (adapter.apply(variables, X, train=train, key=KEYS[i])[0] for i in (0, 0, 1))
        np.testing.assert_array_equal(a, again)
        if train in noisy_when:
            assert (a != b).all()
        else:
            np.testing.assert_array_equal(a, X.sum(1, keepdims=True) * (train_factor if train else 1))
            np.testing.assert_array_equal(a, b)


def test_several_inputs():
    adapter = adapt((lambda key, x: {}, lambda params, a, b: a - b))
    for x in ((X, X + 1), {"b": X + 1, "a": X}):
        outputs, state, _ = adapter.apply(adapter.init(KEYS[0], x), x, train=True, key=KEYS[0])
        np.testing.assert_array_equal(outputs, -jnp.ones_like(X))
        assert state == {}


def test_it_trains(devices):
    model = kdist.Model((init, linear))
    model.compile(kdist.optimizers.SGD(0.01), "mse", distribution=devices(8))
    # By hand: w = 1, predictions 3, gradient 2 * (3 - 0) for each weight.
    assert model.train_on_batch(np.ones((8, 3)), np.zeros((8, 1))) == pytest.approx(9.0)
    np.testing.assert_allclose(model.params["w"], np.full((3, 1), 1 - 0.06), rtol=1e-6)


def test_a_function_of_its_inputs_has_no_variables():
    adapter = from_function(jax.nn.relu)
    variables = adapter.init(KEYS[0], X)
    assert jax.tree.leaves(variables) == []
    np.testing.assert_array_equal(adapter.apply(variables, -X, train=True, key=KEYS[0])[0], jnp.zeros_like(X))


def test_layers():
    adapter = adapt((init, linear))
    (row,) = adapter.layers(adapter.init(KEYS[0], X), X)
    assert (row.name, row.kind, row.output.shape) == ("", "linear", (4, 1))

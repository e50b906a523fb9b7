"""How inputs become call arguments, how the train flag is found, and what is taken for a module."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdist.errors import ConfigError, DataError
from kdist.modules import ModuleAdapter, adapt, is_module
from kdist.modules.adapter import CallSignature


def one(x): ...
def one_train(x, train): ...
def one_training(x, *, training=False): ...
def one_deterministic(x, deterministic=True): ...
def one_average(x, use_running_average): ...
def both_flags(x, train, deterministic): ...
def flag_first(train, x): ...
def two(a, b): ...
def two_train(a, b, train): ...
def variadic(*parts): ...
def two_and_key(a, /, b, *, key=None): ...


@pytest.mark.parametrize(
    ("fn", "flags"),
    [
        (one, {}),
        (one_train, {"train": True}),
        (one_training, {"training": True}),
        (one_deterministic, {"deterministic": False}),
        (one_average, {"use_running_average": False}),
        (both_flags, {"train": True, "deterministic": False}),
        (flag_first, {"train": True}),
    ],
)
def test_the_train_flag_goes_by_its_name(fn, flags):
    signature = CallSignature(fn)
    assert signature.arguments(1, train=True) == ((1,), flags)
    assert signature.arguments(1, train=False) == ((1,), {name: not value for name, value in flags.items()})


@pytest.mark.parametrize(
    ("fn", "x", "args", "kwargs"),
    [
        (one, (1, 2), ((1, 2),), {}),
        (one, [1, 2], ([1, 2],), {}),
        (one, {"a": 1}, ({"a": 1},), {}),
        (one_train, [1, 2], ([1, 2],), {"train": False}),
        (two, (1, 2), (1, 2), {}),
        (two, [1, 2], (1, 2), {}),
        (two, {"b": 2, "a": 1}, (), {"a": 1, "b": 2}),
        (two_train, (1, 2), (1, 2), {"train": False}),
        (two_train, {"a": 1, "b": 2}, (), {"a": 1, "b": 2, "train": False}),
        (variadic, [1, 2, 3], (1, 2, 3), {}),
        (two_and_key, (1, 2), (1, 2), {}),
    ],
)
def test_inputs_are_spread_over_several_parameters(fn, x, args, kwargs):
    assert CallSignature(fn).arguments(x, train=False) == (args, kwargs)


@pytest.mark.parametrize(("x", "received"), [(1, "one array"), ((1, 2, 3), "3 arrays"), ([1], "one array")])
def test_too_few_or_too_many_inputs(x, received):
    with pytest.raises(DataError, match=rf"takes the inputs \['a', 'b'\], but x is {received}"):
        CallSignature(two).arguments(x, train=False)


def test_a_dict_with_a_key_that_no_parameter_has():
    with pytest.raises(DataError, match=r"takes the inputs \['a', 'b'\].*the keys \['a', 'c'\]; see 'b', 'c'"):
        CallSignature(two).arguments({"a": 1, "c": 2}, train=False)


def test_a_function_without_a_signature_takes_one_argument():
    assert CallSignature(np.sin).arguments(3, train=True) == ((3,), {})


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (nn.Dense, "That is a class: call it to make an instance"),
        (nnx.Linear, "That is a class"),
        (jnp.sin, "Expected a flax.linen.Module instance"),
        ((jnp.sin, 3), "a pair of functions"),
        ("dense", "Received: 'dense'"),
        (None, "Received: None"),
    ],
)
def test_what_is_no_module(thing, message):
    assert not is_module(thing)
    with pytest.raises(ConfigError, match=message):
        adapt(thing)


@pytest.mark.parametrize(
    "module", [nn.Dense(1), nnx.Linear(2, 1, rngs=nnx.Rngs(0)), (lambda key, x: {}, lambda params, x: x)]
)
def test_adapt(module):
    adapter = adapt(module)
    assert isinstance(adapter, ModuleAdapter)
    assert adapt(adapter) is adapter

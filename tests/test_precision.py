"""The precision policy: what is cast, what is not, and which names there are."""

import jax.numpy as jnp
import pytest

from kdist import precision
from kdist.errors import ConfigError


@pytest.mark.parametrize(
    ("identifier", "dtype"),
    [
        (None, jnp.float32),
        ("float32", jnp.float32),
        ("mixed_bfloat16", jnp.bfloat16),
        ("mixed_float16", jnp.float16),
        (precision.Precision("mixed_bfloat16"), jnp.bfloat16),
    ],
)
def test_cast(identifier, dtype):
    policy = precision.get(identifier)
    tree = {"a": jnp.ones(2), "n": jnp.arange(2), "b": jnp.ones(2, jnp.bool_)}
    cast = policy.cast(tree)
    assert policy.compute_dtype == dtype
    assert {k: v.dtype for k, v in cast.items()} == {"a": dtype, "n": jnp.int32, "b": jnp.bool_}


def test_float32_leaves_everything_as_it_is():
    tree = {"half": jnp.ones(2, jnp.float16)}
    assert precision.get(None).cast(tree) is tree


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("mixed_bfloat", "Did you mean 'mixed_bfloat16'"),
        (16, "Unknown precision '16'"),
    ],
)
def test_unknown_names(identifier, message):
    with pytest.raises(ConfigError, match=message):
        precision.get(identifier)

"""Fingerprints of arrays: the same wherever they are computed, and other ones for other bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdist.checkpoint import fingerprints as module
from kdist.checkpoint.fingerprints import fingerprint_on_host, fingerprints

DTYPES = ["bool", "int8", "uint16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64"]


SMALL = ["int2", "uint2", "int4", "uint4", "float4_e2m1fn", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"]


@pytest.mark.parametrize("dtype", [*DTYPES, "complex128", *SMALL])
@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 5)])
def test_on_the_host_and_on_the_devices(monkeypatch, rng, dtype, shape):
    monkeypatch.setattr(module, "BLOCK", 16)
    array = (rng.normal(size=shape) * 50).astype(jnp.dtype(dtype))
    with jax.enable_x64(True):
        assert fingerprint_on_host(array) == fingerprints({"a": array})["a"]
    assert fingerprint_on_host(array.T) == fingerprint_on_host(np.ascontiguousarray(array.T))


def test_every_bit_and_place_counts(rng):
    array = rng.normal(size=(5, 3)).astype(np.float32)
    found = {fingerprint_on_host(array), fingerprint_on_host(array[::-1])}
    for bit in range(32 * array.size):
        other = array.copy()
        other.view(np.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
        found.add(fingerprint_on_host(other))
    assert len(found) == 2 + 32 * array.size

"""Fingerprints of arrays, computed where they lie: Orbax does not notice a flipped bit, and this does.

A fingerprint is a uint32: the sum, modulo 2**32, over the elements of an array of a hash of bits and index.  It is the
same however an array is split over devices.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

GOLDEN = np.uint32(0x9E3779B9)
BLOCK = 1 << 20
"""So many words are hashed at once on the host."""


@jax.jit
def _hashes(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_hash(leaf) for leaf in leaves])


def fingerprints(arrays: dict[str, Any]) -> dict[str, int]:
    """The fingerprint of each array, by name.  All processes call it.

    Args:
        arrays: Arrays of any shape and dtype, typed keys too, on any devices.

    Returns:
        Integers from 0 to 2**32 - 1.

    Example:
        >>> found = fingerprints({"a": jnp.arange(3.0), "b": jnp.arange(3.0).at[1].set(1.0000001)})
        >>> found["a"] == fingerprints({"a": jnp.arange(3.0)})["a"], found["a"] == found["b"]
        (True, False)
    """
    together: dict[Any, dict[str, jax.Array]] = {}  # by devices: a program runs on those of all its arguments
    for name, array in arrays.items():
        a = array if isinstance(array, jax.Array) else jnp.asarray(array)
        a = jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a
        together.setdefault(frozenset(a.sharding.device_set), {})[name] = a
    found: dict[str, int] = {}
    for group in together.values():
        found |= dict(zip(group, np.asarray(_hashes(list(group.values()))).tolist(), strict=True))
    return {name: found[name] for name in arrays}


def fingerprint_on_host(array: np.ndarray) -> int:
    """The fingerprint of an array in the host's memory: the same, and nothing is compiled or cast for it.

    Args:
        array: Of any shape and dtype.

    Example:
        >>> fingerprint_on_host(np.arange(3, dtype=np.float32)) == fingerprints({"a": jnp.arange(3.0)})["a"]
        True
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    words = flat.view({1: np.uint8, 2: np.uint16}.get(flat.dtype.itemsize, np.uint32))
    total = 0
    for start in range(0, len(words), BLOCK):
        block = words[start : start + BLOCK].astype(np.uint32)
        index = np.arange(start, start + len(block), dtype=np.uint64).astype(np.uint32)
        total += int(_mixed(block ^ (index * GOLDEN)).sum(dtype=np.uint64))
    return total % 2**32


def _hash(leaf: jax.Array) -> jax.Array:
    """The sum over bits and indices."""
    words = _words(leaf)
    index = jnp.zeros((), jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_mixed(words ^ (index * GOLDEN)), dtype=jnp.uint32)


def _mixed(h: Any) -> Any:
    """MurmurHash3's finalizer (Appleby, 2011, public domain) of uint32s."""
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _words(leaf: jax.Array) -> jax.Array:
    """The bits of each element as uint32; what is wider than that has a further axis."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag], axis=-1)
    size = leaf.dtype.itemsize
    if size > 4:
        return jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size]).astype(jnp.uint32)

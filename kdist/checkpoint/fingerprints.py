"""Fingerprints of arrays, computed where they lie: Orbax does not notice a flipped bit, and this does.

A fingerprint is a uint32: the sum, modulo 2**32, over the elements of an array of a hash of bits and index.  It is the
same however an array is split over devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Name = TypeVar("Name")

GOLDEN = np.uint32(0x9E3779B9)
BLOCK = 1 << 20
"""So many words are hashed at once on the host."""


@jax.jit
def _hashes(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_hash(leaf) for leaf in leaves])


class Fingerprints(Generic[Name]):
    """The fingerprints of arrays, which the devices begin to compute.  All processes make it.

    Args:
        arrays: Arrays of numbers of any shape and dtype, on any devices, by name; they may be donated at once.

    Example:
        >>> Fingerprints({"a": jnp.arange(3.0)}).read() == fingerprints({"a": jnp.arange(3.0)})
        True
    """

    def __init__(self, arrays: Mapping[Name, Any]) -> None:
        together: dict[Any, dict[Name, jax.Array]] = {}  # by devices: a program runs on those of all its arguments
        for name, array in arrays.items():
            a = array if isinstance(array, jax.Array) else jnp.asarray(array)
            together.setdefault(frozenset(a.sharding.device_set), {})[name] = a
        self._names = list(arrays)
        self._found = [(list(group), _hashes(list(group.values()))) for group in together.values()]

    def read(self) -> dict[Name, int]:
        """Waits for them: integers from 0 to 2**32 - 1, by name."""
        found = {
            n: value
            for names, values in self._found
            for n, value in zip(names, np.asarray(values).tolist(), strict=True)
        }
        return {name: found[name] for name in self._names}


def fingerprints(arrays: Mapping[Name, Any]) -> dict[Name, int]:
    """The fingerprint of each array, by name.  All processes call it.

    Args:
        arrays: Arrays of numbers of any shape and dtype, on any devices.

    Returns:
        Integers from 0 to 2**32 - 1.

    Example:
        >>> found = fingerprints({"a": jnp.arange(3.0), "b": jnp.arange(3.0).at[1].set(1.0000001)})
        >>> found["a"] == fingerprints({"a": jnp.arange(3.0)})["a"], found["a"] == found["b"]
        (True, False)
    """
    return Fingerprints(arrays).read()


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
    mask = np.uint32(2 ** min(_bits(flat.dtype), 32) - 1)  # a number of 4 bits has a byte to itself here
    total = 0
    for start in range(0, len(words), BLOCK):
        block = words[start : start + BLOCK].astype(np.uint32) & mask
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
    bits = min(_bits(leaf.dtype), 32)
    return jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)


def _bits(dtype: Any) -> int:
    """The bits of a number: of int4, float8_e4m3 and the like too."""
    if dtype == jnp.bool_ or jnp.issubdtype(dtype, jnp.complexfloating):
        return 8 * np.dtype(dtype).itemsize
    return int((jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo)(dtype).bits)

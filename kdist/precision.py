"""The precision policy: which dtype the forward and backward pass compute in.

Parameters, optimizer state, losses and metrics are always float32.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kdist.errors import unknown_name
from kdist.typing import PyTree

_COMPUTE_DTYPES = {
    "float32": jnp.float32,
    "mixed_bfloat16": jnp.bfloat16,
    "mixed_float16": jnp.float16,
}


@dataclasses.dataclass(frozen=True)
class Precision:
    """Casts floating-point leaves to the dtype that the model computes in."""

    name: str = "float32"

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of the forward and backward pass."""
        return jnp.dtype(_COMPUTE_DTYPES[self.name])

    def cast(self, tree: PyTree) -> PyTree:
        """`tree` with its floating-point leaves in `compute_dtype`; float32 leaves all as they are."""
        if self.compute_dtype == jnp.float32:
            return tree

        def leaf(a: jax.Array) -> jax.Array:
            return a.astype(self.compute_dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a

        return jax.tree.map(leaf, tree)


def get(identifier: str | Precision | None) -> Precision:
    """The policy of that name.

    Args:
        identifier: None or "float32", "mixed_bfloat16", "mixed_float16" (which wants a loss scale), or a policy.

    Raises:
        ConfigError: The name is unknown.
    """
    if identifier is None:
        return Precision()
    if isinstance(identifier, Precision):
        return identifier
    if identifier not in _COMPUTE_DTYPES:
        raise unknown_name("precision", str(identifier), _COMPUTE_DTYPES)
    return Precision(identifier)

"""Flax modules and pairs of functions, behind one `ModuleAdapter`."""

from __future__ import annotations

import sys
from typing import Any

from kdist.errors import ConfigError
from kdist.modules.adapter import Applied, Layer, ModuleAdapter, Variables

__all__ = ["Applied", "Layer", "ModuleAdapter", "Variables", "adapt", "is_module"]


def is_module(thing: Any) -> bool:
    """Whether `adapt` takes it: a Linen or NNX module, or a pair of functions."""
    import flax.linen

    nnx = sys.modules.get("flax.nnx")  # an NNX module exists only if its package was imported
    pair = isinstance(thing, tuple) and len(thing) == 2 and all(map(callable, thing))
    return pair or isinstance(thing, flax.linen.Module) or (nnx is not None and isinstance(thing, nnx.Module))


def adapt(module: Any) -> ModuleAdapter:
    """The adapter of a module.

    Args:
        module: A Linen module, an NNX module, a pair ``(init_fn, apply_fn)``, or an adapter.

    Raises:
        ConfigError: It is none of these.
    """
    import flax.linen

    if isinstance(module, ModuleAdapter):
        return module
    if not is_module(module):
        raise ConfigError(
            "Expected a flax.linen.Module instance, a flax.nnx.Module instance or a pair of functions "
            f"(init_fn(key, x) -> params, apply_fn(params, x) -> outputs). Received: {module!r}."
            + (" That is a class: call it to make an instance." if isinstance(module, type) else "")
        )
    if isinstance(module, tuple):
        from kdist.modules.plain import FunctionsAdapter

        return FunctionsAdapter(*module)
    if isinstance(module, flax.linen.Module):
        from kdist.modules.linen import LinenAdapter

        return LinenAdapter(module)
    from kdist.modules.nnx import NNXAdapter

    return NNXAdapter(module)

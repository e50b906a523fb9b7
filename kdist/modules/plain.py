"""Pairs of pure functions, and single functions, as a `ModuleAdapter`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from kdist.modules.adapter import Applied, CallSignature, Layer, ModuleAdapter, Variables, shapes
from kdist.naming import function_name
from kdist.typing import PyTree


class FunctionsAdapter(ModuleAdapter):
    """``init_fn(key, x) -> params`` and ``apply_fn(params, x) -> outputs``.

    `apply_fn` may also take the train flag and a `key`, each by its name.
    """

    def __init__(self, init_fn: Callable[..., PyTree], apply_fn: Callable[..., PyTree]) -> None:
        self.init_fn = init_fn
        self.apply_fn = apply_fn
        self._signature = CallSignature(apply_fn, skip=1, no_input=("key",))

    def init(self, key: jax.Array, x: PyTree) -> Variables:
        """See `ModuleAdapter.init`."""
        return Variables(self.init_fn(key, x), {})

    def apply(self, variables: Variables, x: PyTree, *, train: bool, key: jax.Array) -> Applied:
        """See `ModuleAdapter.apply`."""
        args, kwargs = self._signature.arguments(x, train=train)
        if "key" in self._signature.names:
            kwargs["key"] = key
        return Applied(self.apply_fn(variables.params, *args, **kwargs), variables.model_state, [])

    def layers(self, variables: Variables, x: PyTree) -> list[Layer]:
        """One line: what the function does inside is its own."""
        out = jax.eval_shape(lambda v, x: self.apply(v, x, train=False, key=jax.random.key(0)).outputs, variables, x)
        return [Layer("", function_name(self.apply_fn), shapes(out), self.apply_fn)]


def from_function(fn: Callable[..., Any]) -> FunctionsAdapter:
    """A function of its inputs alone, such as `jax.nn.relu`, as a model without variables."""
    signature = CallSignature(fn)

    def apply(params: PyTree, x: PyTree, *, train: bool) -> PyTree:
        args, kwargs = signature.arguments(x, train=train)
        return fn(*args, **kwargs)

    return FunctionsAdapter(lambda key, x: {}, apply)

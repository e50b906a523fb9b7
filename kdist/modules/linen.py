"""Linen modules as a `ModuleAdapter`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from kdist.modules.adapter import Applied, CallSignature, Layer, ModuleAdapter, Variables, shapes
from kdist.typing import PyTree

PENALTIES = "losses"
"""The collection that a module sows what it adds to the loss into: ``self.sow("losses", "l2", value)``."""
_PASSING = ("intermediates", PENALTIES, "perturbations")
"""Collections that one call makes and nobody carries to the next."""


class LinenAdapter(ModuleAdapter):
    """A `flax.linen.Module`.

    What it sows into "losses" is added to the loss.  Every random stream that it asks for is served: "dropout" by a
    key of its own, any other by Linen's fallback to "params".
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.output_names = _as_names(getattr(module, "output_names", None))
        self._signature = CallSignature(type(module).__call__, skip=1)

    def init(self, key: jax.Array, x: PyTree) -> Variables:
        """See `ModuleAdapter.init`."""
        args, kwargs = self._signature.arguments(x, train=False)
        collections = dict(self.module.init(_streams(key), *args, **kwargs))
        params = collections.pop("params", {})
        return Variables(params, {k: v for k, v in collections.items() if k not in _PASSING})

    def apply(self, variables: Variables, x: PyTree, *, train: bool, key: jax.Array) -> Applied:
        """See `ModuleAdapter.apply`."""
        args, kwargs = self._signature.arguments(x, train=train)
        collections = {"params": variables.params, **variables.model_state}
        mutable = [PENALTIES, *(variables.model_state if train else ())]
        outputs, updated = self.module.apply(collections, *args, rngs=_streams(key), mutable=mutable, **kwargs)
        after = {name: updated[name] for name in variables.model_state} if train else variables.model_state
        return Applied(outputs, after, jax.tree.leaves(updated.get(PENALTIES, {})))

    def layers(self, variables: Variables, x: PyTree) -> list[Layer]:
        """The module's direct children, or the module itself if it has none."""
        found: dict[str, Layer] = {}

        def record(next_fn: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            outputs = next_fn(*args, **kwargs)
            path = context.module.path
            if len(path) <= 1 and context.method_name == "__call__":
                name = path[0] if path else ""
                found[name] = Layer(name, type(context.module).__name__, shapes(outputs), context.module.clone())
            return outputs

        def run(variables: Variables, x: PyTree) -> PyTree:
            with nn.intercept_methods(record):
                return self.apply(variables, x, train=False, key=jax.random.key(0)).outputs

        jax.eval_shape(run, variables, x)
        children = [layer for name, layer in found.items() if name]
        return children or [Layer("", type(self.module).__name__, found[""].output, self.module)]


def _streams(key: jax.Array) -> dict[str, jax.Array]:
    params, dropout = jax.random.split(key)
    return {"params": params, "dropout": dropout}


def _as_names(names: Any) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)

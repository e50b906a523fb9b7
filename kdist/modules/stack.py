"""Layers one after the other, as one `ModuleAdapter`: what `kdist.Sequential` is made of."""

from __future__ import annotations

from typing import Any

import jax

from kdist.errors import ConfigError
from kdist.modules import adapt, is_module
from kdist.modules.adapter import Applied, Layer, ModuleAdapter, Variables, shapes
from kdist.modules.plain import from_function
from kdist.naming import function_name, snake_case
from kdist.typing import PyTree


class StackAdapter(ModuleAdapter):
    """Adapters in order; the variables of each stand under its name in every collection."""

    def __init__(self, layers: dict[str, Any]) -> None:
        self.named = layers
        self._adapters = {name: as_layer(layer) for name, layer in layers.items()}

    def init(self, key: jax.Array, x: PyTree) -> Variables:
        """See `ModuleAdapter.init`; each layer sees the outputs of those before it."""
        params: dict[str, PyTree] = {}
        model_state: dict[str, PyTree] = {}
        for i, (name, adapter) in enumerate(self._adapters.items()):
            layer_key = jax.random.fold_in(key, i)
            variables = adapter.init(layer_key, x)
            x = adapter.apply(variables, x, train=False, key=layer_key).outputs
            if variables.params:
                params[name] = variables.params
            for collection, tree in variables.model_state.items():
                model_state.setdefault(collection, {})[name] = tree
        return Variables(params, model_state)

    def apply(self, variables: Variables, x: PyTree, *, train: bool, key: jax.Array) -> Applied:
        """See `ModuleAdapter.apply`."""
        after: dict[str, PyTree] = {collection: {} for collection in variables.model_state}
        penalties: list[jax.Array] = []
        for i, (name, adapter) in enumerate(self._adapters.items()):
            layer_key = jax.random.fold_in(key, i)
            x, updated, more = adapter.apply(self._of(variables, name), x, train=train, key=layer_key)
            for collection, tree in updated.items():
                after[collection][name] = tree
            penalties += more
        return Applied(x, after, penalties)

    def layers(self, variables: Variables, x: PyTree) -> list[Layer]:
        """A line a layer."""
        rows = []
        key = jax.random.key(0)
        for name, adapter in self._adapters.items():
            own = self._of(variables, name)
            x = shapes(jax.eval_shape(lambda v, x, a=adapter: a.apply(v, x, train=False, key=key).outputs, own, x))
            layer = self.named[name]
            kind = type(layer).__name__ if not _is_function(layer) else function_name(layer)
            rows.append(Layer(name, kind, x, layer))
        return rows

    def write_back(self, variables: Variables) -> None:
        """Gives NNX layers their trained arrays."""
        for name, adapter in self._adapters.items():
            adapter.write_back(self._of(variables, name))

    @staticmethod
    def _of(variables: Variables, name: str) -> Variables:
        state = {c: tree[name] for c, tree in variables.model_state.items() if name in tree}
        return Variables(variables.params.get(name, {}), state)


def as_layer(layer: Any) -> ModuleAdapter:
    """The adapter of a layer.

    Args:
        layer: A Linen or NNX module, a pair of functions, or a function of its input alone.

    Raises:
        ConfigError: It is none of these.
    """
    if _is_function(layer):
        return from_function(layer)
    if not is_module(layer):
        raise ConfigError(
            "A layer is a Linen or NNX module, a function of its input or a pair (init_fn, apply_fn). "
            f"Received: {layer!r}."
        )
    return adapt(layer)


def layer_name(layer: Any) -> str:
    """A layer's own name: its `name`, else its class in snake case, or the function's name."""
    if _is_function(layer):
        return function_name(layer)
    name = getattr(layer, "name", None)
    return name if isinstance(name, str) and name else snake_case(type(layer).__name__)


def _is_function(layer: Any) -> bool:
    return callable(layer) and not isinstance(layer, type) and not is_module(layer)

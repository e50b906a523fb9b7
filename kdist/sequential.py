"""Sequential: a Model made of layers in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdist.errors import ConfigError
from kdist.model import Model
from kdist.modules.stack import StackAdapter, as_layer, layer_name


class Sequential(Model):
    """Layers, one after the other: Linen or NNX modules and plain functions.

    A layer is named by its own name, else by its class in snake case or the function's name, numbered
    from the second on: ``dense``, ``dense_1``; ``params`` is keyed by these names.

    Args:
        layers: The layers in order, or None to `add` them.
        seed: See `Model`.
        name: See `Model`.

    Example:
        >>> import flax.linen as nn, kdist
        >>> model = kdist.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)])
        >>> model.build((None, 4))
        >>> model.params["dense_1"]["kernel"].shape
        (16, 3)
    """

    def __init__(self, layers: Sequence[Any] | None = None, *, seed: int = 0, name: str | None = None) -> None:
        self._layer_list: list[Any] = []
        super().__init__(StackAdapter({}), seed=seed, name=name or "sequential")
        for layer in layers or ():
            self.add(layer)

    def add(self, layer: Any) -> None:
        """Adds a layer at the end; the model is then to be built and compiled anew.

        Raises:
            ConfigError: It is no layer.
        """
        as_layer(layer)
        self._set_layers([*self._layer_list, layer])

    def pop(self) -> Any:
        """Removes the last layer, and returns it.

        Raises:
            ConfigError: There is none.
        """
        if not self._layer_list:
            raise ConfigError("There are no layers in the model.")
        removed = self._layer_list[-1]
        self._set_layers(self._layer_list[:-1])
        return removed

    @property
    def layers(self) -> list[Any]:
        """The layers, in a list of its own."""
        return list(self._layer_list)

    def _set_layers(self, layers: list[Any]) -> None:
        self._layer_list = layers
        self._set_module(StackAdapter(_named(layers)))

    def _build(self, batch: Any) -> None:
        if not self._layer_list:
            raise ConfigError("The model has no layers: add some first.")
        super()._build(batch)

    def _named_layers(self) -> dict[str, Any]:
        return _named(self._layer_list)


def _named(layers: Sequence[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    own_names = [getattr(layer, "name", None) for layer in layers]
    for layer, own in zip(layers, own_names, strict=True):
        base = layer_name(layer)
        if isinstance(own, str) and own and own in named:
            raise ConfigError(f"Two layers are named {own!r}. Give each layer a name of its own.")
        name, n = base, 0
        while name in named:
            n += 1
            name = f"{base}_{n}"
        named[name] = layer
    return named

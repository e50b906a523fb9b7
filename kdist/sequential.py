"""Sequential: a Model made of layers in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdist.errors import ConfigError
from kdist.model import Model
from kdist.modules import is_module
from kdist.modules.stack import StackAdapter, layer_name


class Sequential(Model):
    """Layers, one after the other: Linen or NNX modules and plain functions.

    A layer is named by its own name, else by its class in snake case or the function's name, numbered
    from the second on: ``dense``, ``dense_1``; ``params`` is keyed by these names.

    Args:
        layers: The layers in order, or None, the default, to `add` them.
        trainable: Only True, the default.
        seed: See `Model`.
        name: See `Model`.

    Raises:
        ConfigError: `trainable` is not True, `layers` is no list, one of them is no layer, or one stands in two places.

    Example:
        >>> import flax.linen as nn, kdist
        >>> model = kdist.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)])
        >>> model.build((None, 4))
        >>> model.params["dense_1"]["kernel"].shape
        (16, 3)
    """

    def __init__(
        self,
        layers: Sequence[Any] | None = None,
        *,
        trainable: bool = True,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        self._layer_list: list[Any] = []
        if trainable is not True:
            raise ConfigError(
                "Flax's layers cannot be frozen by a flag: leave their parameters as they are with "
                f"optax.multi_transform and optax.set_to_zero. Received: trainable={trainable!r}."
            )
        if layers is not None and not isinstance(layers, (list, tuple)):
            raise ConfigError(f"layers must be a list of layers. Received: {layers!r}.")
        super().__init__(StackAdapter({}), seed=seed, name=name or "sequential")
        if layers:
            self._set_layers(list(layers))

    def add(self, layer: Any) -> None:
        """Adds a layer at the end; the model is then to be built and compiled anew.

        Args:
            layer: A Linen or NNX module, or a function of one array.

        Raises:
            ConfigError: It is no layer.

        Example:
            >>> import flax.linen as nn, kdist
            >>> model = kdist.Sequential()
            >>> model.add(nn.Dense(2))
            >>> len(model.layers)
            1
        """
        self._set_layers([*self._layer_list, layer])

    def pop(self) -> Any:
        """Removes the last layer, and returns it.

        Raises:
            ConfigError: There is none.

        Example:
            >>> import flax.linen as nn, kdist
            >>> kdist.Sequential([nn.Dense(2), nn.Dense(3)]).pop().features
            3
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
        self._set_module(StackAdapter(_named(layers)))
        self._layer_list = layers

    def _build(self, batch: Any) -> None:
        if not self._layer_list:
            raise ConfigError("The model has no layers: add some first.")
        super()._build(batch)

    def _named_layers(self) -> dict[str, Any]:
        return _named(self._layer_list)


def _named(layers: Sequence[Any]) -> dict[str, Any]:
    """The layers by name.

    Raises:
        ConfigError: Two share a name of their own, or one with variables stands in two places.
    """
    named: dict[str, Any] = {}
    for layer in layers:
        own = getattr(layer, "name", None)
        if isinstance(own, str) and own and own in named:
            raise ConfigError(f"Two layers are named {own!r}. Give each layer a name of its own.")
        if is_module(layer) and any(layer is other for other in named.values()):
            raise ConfigError(
                f"The same {type(layer).__name__} object is in the list twice, but each place has weights of its own. "
                "Make a layer for each place; to share weights, write a module that calls one layer twice."
            )
        base, n = layer_name(layer), 0
        name = base
        while name in named:
            n += 1
            name = f"{base}_{n}"
        named[name] = layer
    return named

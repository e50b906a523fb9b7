"""The outputs of a model, by position and by name, and what is given for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdist.errors import ConfigError, DataError
from kdist.typing import PyTree


class Outputs:
    """The outputs of a model by position and by name.

    Attributes:
        names: A name for each, in their order.
        by_key: Whether the model returns them as a dict.

    Args:
        example: The outputs, as a tree of `jax.ShapeDtypeStruct`: an array, tuple, list or dict.
        names: Names that the module gives them, if it does.

    Raises:
        ConfigError: The module names another number of outputs than it has.
    """

    def __init__(self, example: PyTree, names: Sequence[str] | None = None) -> None:
        self.by_key = isinstance(example, Mapping)
        if isinstance(example, Mapping):
            ours: tuple[str, ...] = tuple(example)
            self.names = tuple(names) if names is not None and set(names) == set(ours) else ours
        else:
            several = isinstance(example, (list, tuple))
            ours = tuple(f"output_{i}" for i in range(len(example) if several else 1))
            self.names = ours if names is None else tuple(names)
        if len(self.names) != len(ours):
            raise ConfigError(f"The module names {len(self.names)} outputs, {self.names}, but has {len(ours)}.")
        self._example = example

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each, rows first.

        Raises:
            ConfigError: One is not an array.
        """
        predictions = self.split_predictions(self._example)
        if not all(hasattr(a, "shape") for a in predictions):
            raise ConfigError(
                "The model's outputs are nested. For losses and metrics return an array, or one list, tuple or dict "
                "of arrays."
            )
        return tuple(a.shape for a in predictions)

    def split_predictions(self, y_pred: PyTree) -> list[Any]:
        """The model's outputs as a list in the order of `names`."""
        if isinstance(y_pred, Mapping):
            return [y_pred[name] for name in self.names]
        return list(y_pred) if isinstance(y_pred, (list, tuple)) else [y_pred]

    def split(self, tree: PyTree, what: str, *, shared: bool = False, among: Sequence[int] | None = None) -> list[Any]:
        """Something given by output, such as targets, as a list in the order of `names`.

        Args:
            tree: One thing for a single output, or a list, tuple or dict with an entry an output.
            what: What to call it in messages.
            shared: Whether one array may stand for every output.
            among: Outputs, by number, for which alone there may be entries.

        Raises:
            DataError: It has another number of entries, or other names, than the outputs.
        """
        if tree is None:
            return [None] * len(self.names)
        if isinstance(tree, Mapping):
            unknown = sorted(set(tree) - set(self.names))
            if unknown:
                raise DataError(f"{what} has the key {unknown[0]!r}, but the model's outputs are {list(self.names)}.")
            return [tree.get(name) for name in self.names]
        several = len(self.names) > 1
        if among is not None and len(among) < len(self.names):
            entries = tree if isinstance(tree, (list, tuple)) else [tree]
            if len(entries) == len(among):
                found = dict(zip(among, entries, strict=True))
                return [found.get(i) for i in range(len(self.names))]
        if isinstance(tree, (list, tuple)):
            if len(tree) != len(self.names):
                raise DataError(
                    f"{what} has {len(tree)} entries, but the model has {len(self.names)} outputs: {list(self.names)}."
                )
            return list(tree)
        if several and not shared:
            raise DataError(
                f"{what} is one array, but the model has {len(self.names)} outputs. Pass a list in the order "
                f"{list(self.names)}, or a dict of these names."
            )
        return [tree] * len(self.names)

    def by_name(self, given: Any, what: str, *, whole: bool) -> list[Any]:
        """An argument of `compile` that is given by output, as a list in the order of `names`.

        Args:
            given: A dict by name, a list or tuple with an entry an output, or one thing for all.
            what: What to call it in messages.
            whole: Whether a dict must name every output.

        Raises:
            ConfigError: It has another number of entries, or other names, than the outputs.
        """
        names = self.names
        if isinstance(given, Mapping):
            unknown = sorted(set(given) - set(names))
            if unknown:
                raise ConfigError(f"{what} has the key {unknown[0]!r}, but the model's outputs are {list(names)}.")
            missing = [name for name in names if name not in given]
            if whole and missing:
                raise ConfigError(
                    f"{what} has no entry for the output {missing[0]!r}; the model's outputs are {list(names)}. Name "
                    "each, with None for none."
                )
            return [given.get(name) for name in names]
        if isinstance(given, (list, tuple)):
            if len(given) != len(names):
                raise ConfigError(
                    f"{what} has {len(given)} entries, but the model has {len(names)} outputs: {list(names)}. "
                    "Give one for each, None for none."
                )
            return list(given)
        return [given] * len(names)

"""What the trainer asks of a model, whatever it is made of: the `ModuleAdapter` protocol.

Also the two rules that all adapters share: how an input structure becomes call arguments, and how
the train flag is found from a signature.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from kdist.errors import DataError
from kdist.typing import PyTree

TRAIN_FLAGS = ("train", "training")
EVAL_FLAGS = ("deterministic", "use_running_average")


class Variables(NamedTuple):
    """A module's arrays.

    Attributes:
        params: What the optimizer changes.
        model_state: Other collections by name, such as ``{"batch_stats": ...}``.
    """

    params: PyTree
    model_state: dict[str, PyTree]


class Applied(NamedTuple):
    """What a forward pass gives.

    Attributes:
        outputs: The outputs, leaves ``[b, ...]``.
        model_state: The collections of `Variables.model_state` as they are afterwards.
        penalties: What the module adds to the loss, arrays that are summed: each about the parameters alone,
            or a mean over the rows.
    """

    outputs: PyTree
    model_state: dict[str, PyTree]
    penalties: list[jax.Array]


class Layer(NamedTuple):
    """One line of a model's summary.

    Attributes:
        name: The path of the layer in the variables, joined by "/".
        kind: The class or function it is.
        output: Its output, as a tree of `jax.ShapeDtypeStruct`, or None if it was not called.
        layer: The layer itself.
    """

    name: str
    kind: str
    output: PyTree
    layer: Any


class ModuleAdapter(abc.ABC):
    """A model as pure functions of its variables.

    `init` and `apply` are traced under `jax.jit`; `apply` also inside `jax.shard_map`, where an input
    holds the rows of one shard.
    """

    output_names: tuple[str, ...] | None = None
    """Names that the module itself gives its outputs."""

    @abc.abstractmethod
    def init(self, key: jax.Array, x: PyTree) -> Variables:
        """Fresh variables for inputs like `x`."""

    @abc.abstractmethod
    def apply(self, variables: Variables, x: PyTree, *, train: bool, key: jax.Array) -> Applied:
        """The outputs, and what else a forward pass leaves behind.

        Args:
            variables: As `init` made them.
            x: Inputs, leaves ``[b, ...]``.
            train: Whether dropout acts and batch statistics are updated.
            key: What the module's randomness is drawn from, all streams of it.
        """

    @abc.abstractmethod
    def layers(self, variables: Variables, x: PyTree) -> list[Layer]:
        """The layers in the order they are called, with the shapes of their outputs."""

    def write_back(self, variables: Variables) -> None:
        """Gives trained arrays to a module that holds its own."""


class CallSignature:
    """How a module's call takes inputs and the train flag, read once from its signature."""

    def __init__(self, fn: Callable[..., Any], *, skip: int = 0, no_input: tuple[str, ...] = ()) -> None:
        try:
            parameters = list(inspect.signature(fn).parameters.values())[skip:]
        except (TypeError, ValueError):  # built in C: one positional argument
            parameters = []
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.names = {p.name for p in named}
        positional = [
            p.name
            for p in parameters
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            and p.name not in (*TRAIN_FLAGS, *EVAL_FLAGS, *no_input)
        ]
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.inputs = positional
        self._required = [p.name for p in parameters if p.name in positional and p.default is p.empty]

    def arguments(self, x: PyTree, *, train: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for a call with inputs `x`.

        A list or tuple is spread over the positional parameters if there are more than one, a dict
        over the parameters of its names; a single parameter gets the structure whole.

        Raises:
            DataError: The inputs are too few or too many, or a dict has a key that no parameter is named by.
        """
        flags: dict[str, Any] = {name: train for name in TRAIN_FLAGS if name in self.names}
        flags.update({name: not train for name in EVAL_FLAGS if name in self.names})
        several = len(self.inputs) > 1 or self.variadic
        if several and isinstance(x, Mapping):
            odd = sorted((set(x) - set(self.inputs)) | (set(self._required) - set(x)))
            self._check(not odd, f"a dict with the keys {sorted(x)}; see {', '.join(map(repr, odd))}")
            return (), {**x, **flags}
        args = tuple(x) if several and isinstance(x, (list, tuple)) else (x,)
        fits = len(self._required) <= len(args) and (self.variadic or len(args) <= max(1, len(self.inputs)))
        self._check(fits, f"{len(args)} arrays" if len(args) > 1 else "one array")
        return args, flags

    def _check(self, fits: bool, received: str) -> None:
        if not fits:
            raise DataError(
                f"The module takes the inputs {self.inputs}, but x is {received}. Pass a list in this order, or a dict "
                "of these names."
            )


def shapes(tree: PyTree) -> PyTree:
    """`tree` with a `jax.ShapeDtypeStruct` in place of each array."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)

"""NNX modules as a `ModuleAdapter`.

The object graph is walked once, when the adapter is made; after that a module is merged from pure
dicts inside the compiled program.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kdist.modules.adapter import Applied, CallSignature, Layer, ModuleAdapter, Variables, shapes
from kdist.naming import snake_case
from kdist.typing import PyTree

Path = tuple[Any, ...]

PENALTIES = ("loss", "losses")
"""What a variable type is called, in snake case, whose sown values are added to the loss: for instance of
``class Losses(nnx.Variable)``, with ``self.sow(Losses, "l2", value)``."""


class NNXAdapter(ModuleAdapter):
    """A `flax.nnx.Module`, put in train or eval mode by its own `train` and `eval`.

    Variables become nested dicts by attribute: `nnx.Param` the parameters, every other type a
    collection named after it (`nnx.BatchStat`: "batch_stats", as in Linen).  What is sown into a variable
    type called `Loss` or `Losses` is added to the loss.  Random streams are not state here:
    their keys are derived from the step's key, and their counts start at 0 in every step.
    """

    def __init__(self, module: nnx.Module) -> None:
        self.module = module
        names = getattr(module, "output_names", None)
        self.output_names = None if names is None else tuple(names)
        self._signature = CallSignature(type(module).__call__, skip=1)
        copy = nnx.clone(module)
        nnx.pop(copy, _is_passing)  # what an earlier call may have left behind
        copy.train()
        self._train_graph, state = nnx.split(copy)
        copy.eval()
        self._eval_graph, _ = nnx.split(copy)
        self._template = list(nnx.to_flat_state(state))

    def init(self, key: jax.Array, x: PyTree) -> Variables:
        """The variables that the module holds, copied: it was initialised where it was made."""
        state = nnx.to_flat_state(nnx.state(self.module, nnx.Not(_is_passing)))
        return self._collect((path, jnp.copy(v.get_value())) for path, v in state)

    def apply(self, variables: Variables, x: PyTree, *, train: bool, key: jax.Array) -> Applied:
        """See `ModuleAdapter.apply`."""
        module = self._merge(variables, train=train, key=key)
        args, kwargs = self._signature.arguments(x, train=train)
        outputs, *sown = _captured(module, args, kwargs)
        penalties = jax.tree.leaves(sown)
        if not (train and variables.model_state):
            return Applied(outputs, variables.model_state, penalties)
        values = {path: v.get_value() for path, v in nnx.to_flat_state(nnx.state(module))}
        state = self._collect((path, values[path]) for path, _ in self._template).model_state
        return Applied(outputs, state, penalties)

    def layers(self, variables: Variables, x: PyTree) -> list[Layer]:
        """The module's direct children that were called, or the module itself if it has none."""
        outputs: dict[str, PyTree] = {}

        def run(variables: Variables, x: PyTree) -> PyTree:
            module = self._merge(variables, train=False, key=jax.random.key(0))
            for name, child in _children(module):
                _record_calls(name, child, outputs)
            args, kwargs = self._signature.arguments(x, train=False)
            return module(*args, **kwargs)

        whole = jax.eval_shape(run, variables, x)
        rows = [
            Layer("/".join(map(str, name)), type(child).__name__, outputs.get("/".join(map(str, name))), child)
            for name, child in _children(self.module)
        ]
        return rows or [Layer("", type(self.module).__name__, shapes(whole), self.module)]

    def write_back(self, variables: Variables) -> None:
        """Puts trained arrays, copied, into the module that was handed in."""
        state = [
            (path, v.replace(jnp.copy(self._look_up(variables, path, v))))
            for path, v in self._template
            if not isinstance(v, nnx.RngState)
        ]
        nnx.update(self.module, nnx.from_flat_state(state))

    def _merge(self, variables: Variables, *, train: bool, key: jax.Array) -> nnx.Module:
        state = []
        for i, (path, v) in enumerate(self._template):
            if isinstance(v, nnx.RngKey):
                keys = jax.random.fold_in(key, i)
                shape = v.get_value().shape
                value = jax.random.split(keys, shape) if shape else keys
            elif isinstance(v, nnx.RngState):
                value = jnp.zeros_like(v.get_value())
            else:
                value = self._look_up(variables, path, v)
            state.append((path, v.replace(value)))
        graph = self._train_graph if train else self._eval_graph
        return nnx.merge(graph, nnx.from_flat_state(state))

    def _collect(self, leaves: Iterator[tuple[Path, jax.Array]]) -> Variables:
        kinds = {path: _collection(v) for path, v in self._template}
        collections: dict[str, dict[Any, Any]] = {"params": {}}
        for path, value in leaves:
            kind = kinds.get(path)
            if kind is None:
                continue
            node = collections.setdefault(kind, {})
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = value
        return Variables(collections.pop("params"), collections)

    @staticmethod
    def _look_up(variables: Variables, path: Path, v: nnx.Variable) -> jax.Array:
        kind = _collection(v)
        node = variables.params if kind == "params" else variables.model_state[str(kind)]
        for part in path:
            node = node[part]
        return node


def _captured(module: nnx.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """A call's outputs, and what it sowed into the variable types that penalties have."""
    types = [kind for kind in _subclasses(nnx.Variable) if snake_case(kind.__name__) in PENALTIES]
    if not types:
        return (module(*args, **kwargs),)
    return nnx.capture(lambda module: module(*args, **kwargs), *types)(module)


def _subclasses(cls: type[nnx.Variable]) -> list[type[nnx.Variable]]:
    children: list[type[nnx.Variable]] = cls.__subclasses__()
    return children + [found for child in children for found in _subclasses(child)]


def _is_passing(path: Path, v: nnx.Variable) -> bool:
    """Whether a variable is made by one call and carried to no other."""
    return isinstance(v, nnx.Intermediate) or _collection(v) in PENALTIES


def _collection(v: nnx.Variable) -> str | None:
    """The collection that a variable is kept in; None for what a call makes or draws."""
    if isinstance(v, nnx.Param):
        return "params"
    if isinstance(v, (nnx.RngState, nnx.Intermediate)):
        return None
    return "batch_stats" if isinstance(v, nnx.BatchStat) else snake_case(type(v).__name__)


def _children(module: nnx.Module) -> list[tuple[Path, nnx.Module]]:
    found: list[tuple[Path, nnx.Module]] = []
    for name, child in vars(module).items():
        if isinstance(child, nnx.Module) and not callable(child):
            found += [((name, i), part) for i, part in enumerate(child) if isinstance(part, nnx.Module)]
        elif isinstance(child, nnx.Module) and not isinstance(child, nnx.Rngs):
            found.append(((name,), child))
    return found


def _record_calls(path: Path, child: nnx.Module, outputs: dict[str, PyTree]) -> None:
    """Makes this one object note the shape of what it returns, through a subclass of its own."""
    cls = type(child)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = cls.__call__(self, *args, **kwargs)
        outputs["/".join(map(str, path))] = shapes(out)
        return out

    child.__class__ = type(cls.__name__, (cls,), {"__call__": call})

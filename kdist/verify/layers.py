"""Which layers of a model are called, in their order, and what each gives."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kdist.modules import ModuleAdapter
from kdist.typing import PyTree


class Layer(NamedTuple):
    """A layer that was called."""

    name: str
    kind: str

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})" if self.name else self.kind


@contextlib.contextmanager
def calls_of(adapter: ModuleAdapter, note: Callable[[Layer, PyTree], None]) -> Iterator[None]:
    """Notes what the layers right below the model give, Linen's and NNX's."""
    import flax.linen as nn

    def intercept(next_fn: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output, path = next_fn(*args, **kwargs), context.module.path
        if len(path) <= 1 and context.method_name == "__call__":
            note(Layer("/".join(path), type(context.module).__name__), output)
        return output

    with nn.intercept_methods(intercept), _calls_of_nnx(getattr(adapter, "module", None), note):
        yield


@contextlib.contextmanager
def _calls_of_nnx(module: Any, note: Callable[[Layer, PyTree], None]) -> Iterator[None]:
    """Notes calls through the classes of the module's layers: the objects are made anew for each program."""
    nnx = sys.modules.get("flax.nnx")  # an NNX module exists only if its package was imported
    if nnx is None or not isinstance(module, nnx.Module):
        yield
        return
    paths: dict[int, tuple[Any, ...]] = {}

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not paths:  # the model itself is called first
                paths.update({id(layer): path for path, layer in nnx.iter_modules(self)})
            output = call(self, *args, **kwargs)
            path = paths.get(id(self), ())
            if path and all(isinstance(part, int) for part in path[1:]):
                note(Layer("/".join(map(str, path)), type(self).__name__), output)
            return output

        return noted

    kinds = {type(layer) for _, layer in nnx.iter_modules(module) if callable(layer)}
    calls: dict[Any, Any] = {kind: kind.__call__ for kind in kinds}
    inherited = {kind for kind in kinds if "__call__" not in vars(kind)}
    try:
        for kind, call in calls.items():
            kind.__call__ = noting(call)
        yield
    finally:
        for kind, call in calls.items():
            if kind in inherited:
                del kind.__call__
            else:
                kind.__call__ = call

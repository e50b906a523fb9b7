"""kdist: Keras's training interface over any Flax model, fused and sharded over a mesh of devices.

Importing it imports nothing: a command such as `kdist launch` would wait a second for JAX, which it does not use.  What
is public stands in `kdist.api`, and comes from there, all of it, when one of the names is first used.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kdist.api import *  # noqa: F403  (one list of the names)
else:

    def __getattr__(name):
        from importlib import import_module, util

        # `from kdist import step` asks here first: a module of the package must not wait for all the others.
        if util.find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        api = import_module(f"{__name__}.api")
        if name not in ("__all__", *getattr(api, "__all__", ())):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(api, name)
        return globals()[name]

    def __dir__():
        return sorted({*globals(), *__getattr__("__all__")})

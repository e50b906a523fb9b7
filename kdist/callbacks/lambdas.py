"""LambdaCallback: a callback of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdist.callbacks.base import Callback
from kdist.errors import ConfigError, unknown_name

Hook = Callable[..., Any]


class LambdaCallback(Callback):
    """A callback of the functions that are given, for short things.

    Args:
        on_epoch_begin: A function ``(epoch, logs)``; none by default.
        on_epoch_end: Alike; none by default.
        on_train_begin: A function ``(logs)``; none by default.
        on_train_end: Alike; none by default.
        on_train_batch_begin: A function ``(batch, logs)``; none by default.  With a batch hook, steps run one by one,
            as under any callback that watches batches.
        on_train_batch_end: Alike; none by default.
        hooks: Any other hook of `Callback` by its name; other names become attributes.

    Raises:
        ConfigError: A name begins with ``on_`` but is no hook, or what is given is no function.

    Example:
        >>> import flax.linen as nn, kdist, numpy as np
        >>> model = kdist.Model(nn.Dense(1))
        >>> model.compile("sgd", "mse")
        >>> tell = LambdaCallback(on_epoch_end=lambda epoch, logs: print(epoch, sorted(logs)))
        >>> history = model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=2, verbose=0, callbacks=tell)
        0 ['loss']
        1 ['loss']
    """

    def __init__(
        self,
        on_epoch_begin: Hook | None = None,
        on_epoch_end: Hook | None = None,
        on_train_begin: Hook | None = None,
        on_train_end: Hook | None = None,
        on_train_batch_begin: Hook | None = None,
        on_train_batch_end: Hook | None = None,
        **hooks: Any,
    ) -> None:
        super().__init__()
        hooks |= {
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_end": on_epoch_end,
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_train_batch_begin": on_train_batch_begin,
            "on_train_batch_end": on_train_batch_end,
        }
        known = [name for name in dir(Callback) if name.startswith("on_")]
        for name, hook in hooks.items():
            if name.startswith("on_") and name not in known:
                raise unknown_name("hook", name, known)
            if hook is None:
                continue  # the hook of Callback, which does nothing, stays
            if name in known and not callable(hook):
                raise ConfigError(f"{name} must be a function. Received: {hook!r}.")
            setattr(self, name, hook)

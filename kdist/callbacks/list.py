"""Callbacks as one: the list that calls them in order, and knows which of them watch batches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any

from kdist.callbacks.base import Callback
from kdist.callbacks.history import History
from kdist.callbacks.progress import ProgressBar
from kdist.errors import ConfigError
from kdist.typing import Logs

_HOOKS = {kind: [f"on_{kind}_batch_begin", f"on_{kind}_batch_end"] for kind in ("train", "test", "predict")}
_HOOKS["train"] += ["on_batch_begin", "on_batch_end"]


def _overrides(callback: Callback, hook: str) -> bool:
    return getattr(type(callback), hook, None) is not getattr(Callback, hook) or hook in vars(callback)


class CallbackList:
    """Callbacks as one; each hook calls all of them in order, with the same logs.

    Args:
        callbacks: A callback, or lists of them, nested as you like; none by default.
        add_history: Whether a History is added if there is none; False by default.
        add_progbar: Whether a ProgressBar is added if there is none; False by default.
        model: What the callbacks see as `model`; none by default.
        params: What they see as `params`.

    Raises:
        ConfigError: Something in the list is no Callback.

    Example:
        >>> callbacks = CallbackList([[History()]], epochs=1)
        >>> callbacks.on_epoch_end(0, {"loss": 0.5})
        >>> callbacks.history.history
        {'loss': [0.5]}
    """

    def __init__(
        self,
        callbacks: Any = None,
        add_history: bool = False,
        add_progbar: bool = False,
        model: Any = None,
        **params: Any,
    ) -> None:
        self.callbacks: list[Callback] = []
        self._watchers: dict[str, list[Callback]] = {kind: [] for kind in _HOOKS}  # those with batch hooks
        for callback in _flatten(callbacks):
            self.append(callback)
        if add_history and not any(isinstance(c, History) for c in self.callbacks):
            self.append(History())
        if add_progbar and not any(isinstance(c, ProgressBar) for c in self.callbacks):
            self.append(ProgressBar())
        self.params: dict[str, Any] = {}
        self.history = next((c for c in self.callbacks if isinstance(c, History)), None)
        if model is not None:
            self.set_model(model)
        if params:
            self.set_params(params)

    def append(self, callback: Callback) -> None:
        """Adds a callback at the end."""
        self.callbacks.append(callback)
        for kind, hooks in _HOOKS.items():
            if any(_overrides(callback, hook) for hook in hooks):
                self._watchers[kind].append(callback)

    def set_model(self, model: Any) -> None:
        """Gives every callback the model."""
        for callback in self.callbacks:
            callback.set_model(model)

    def set_params(self, params: dict[str, Any]) -> None:
        """Gives every callback the parameters."""
        self.params = params
        for callback in self.callbacks:
            callback.set_params(params)

    def close(self) -> None:
        """Closes every callback, the others too if one raises."""
        with contextlib.ExitStack() as stack:
            for callback in reversed(self.callbacks):
                stack.callback(callback.close)

    def stride(self, kind: str) -> int | None:
        """After how many batches nothing may run before batch hooks have returned; None if none mind.

        Args:
            kind: "train", "test" or "predict".
        """
        strides = [c.batch_stride for c in self._watchers[kind] if not c.async_safe]
        return math.gcd(*strides) if strides else None

    def reads_logs(self, kind: str) -> bool:
        """Whether any callback wants the logs of the next batch hook of this kind."""
        return any(c.reads_logs for c in self._watchers[kind])

    def listens(self, kind: str) -> bool:
        """Whether any callback has batch hooks of this kind at all, so that logs are wanted."""
        return bool(self._watchers[kind])

    def state_dict(self) -> list[list[Any]]:
        """What the callbacks have to know when the run goes on in another process: a class name and a state each."""
        return [[type(callback).__name__, callback.state_dict()] for callback in self.callbacks]

    def load_state_dict(self, states: list[list[Any]]) -> None:
        """Gives each callback what the one of that class had, in their order.

        Args:
            states: What `state_dict` gave.
        """
        left = list(states)
        for callback in self.callbacks:
            found = next((entry for entry in left if entry[0] == type(callback).__name__), None)
            if found is not None:
                left.remove(found)
                callback.load_state_dict(found[1])

    def call(self, hook: str, *args: Any) -> None:
        """Calls a hook by its name on every callback."""
        for callback in self.callbacks:
            getattr(callback, hook)(*args)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

        def hook(*args: Any, logs: Logs | None = None) -> None:
            self.call(name, *args, *(() if logs is None else (logs,)))

        return hook


def _flatten(callbacks: Any) -> Iterable[Callback]:
    if callbacks is None:
        return
    if isinstance(callbacks, (list, tuple)):
        for callback in callbacks:
            yield from _flatten(callback)
    elif isinstance(callbacks, Callback):
        yield callbacks
    else:
        raise ConfigError(f"Expected a kdist.callbacks.Callback, or a list of them. Received: {callbacks!r}.")

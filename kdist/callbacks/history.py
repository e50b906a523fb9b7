"""History: the logs of every epoch, as `fit` returns them."""

from __future__ import annotations

from typing import Any

from kdist.callbacks.base import Callback
from kdist.typing import Logs


class History(Callback):
    """Records the logs of each epoch.

    Attributes:
        history: Log name to the list of its values, one an epoch in which it was logged.
        epoch: The epochs recorded.
        params: "verbose", "epochs" and "steps".
        input_bound: The share of each epoch's training, 0 to 1, in which the devices waited for data.

    Example:
        >>> history = History()
        >>> history.on_train_begin()
        >>> history.on_epoch_end(0, {"loss": 0.5})
        >>> history.epoch, history.history
        ([0], {'loss': [0.5]})
    """

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[str, list[Any]] = {}
        self.epoch: list[int] = []
        self.input_bound: list[float] = []

    def set_params(self, params: dict[str, Any]) -> None:
        """Keeps the three parameters that Keras has."""
        self.params = {name: params.get(name) for name in ("verbose", "epochs", "steps")}

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Forgets the epochs, but not the values, of an earlier `fit`."""
        self.epoch = []

    def state_dict(self) -> dict[str, Any]:
        """See `Callback.state_dict`."""
        return {"epoch": self.epoch, "history": self.history, "input_bound": self.input_bound}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Callback.load_state_dict`."""
        self.epoch, self.history, self.input_bound = state["epoch"], state["history"], state["input_bound"]

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Records the epoch."""
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)
        share = getattr(self.model, "input_bound", None)
        if share is not None:
            self.input_bound.append(share)

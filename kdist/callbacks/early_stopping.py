"""EarlyStopping: the end of training when it has stopped getting better."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from kdist.callbacks.messages import say
from kdist.callbacks.monitors import MonitorCallback
from kdist.callbacks.variables import copied
from kdist.typing import Logs, PyTree


class EarlyStopping(MonitorCallback):
    """Stops when a log has not improved for some epochs.

    It never stops at the first epoch, nor at one that improves: a run that misses `baseline` but still gets better goes
    on.

    Args:
        monitor: The log; "val_loss" by default.
        min_delta: By how much it must be better to count; 0.0 by default.
        patience: After how many epochs without improvement to stop; 0 is as 1; 0 by default.
        verbose: 1 to say what was done; 0 by default.
        mode: See `MonitorCallback`.
        baseline: A value to beat: until it is, `patience` runs on though the log improves; none by default.
        restore_best_weights: Whether training ends with the weights of the best epoch, however it ended; False by
            default.  A copy of them is kept on the devices.
        start_from_epoch: The first epoch, from 0, that counts; 0 by default.

    Attributes:
        stopped_epoch: The epoch it stopped at; 0 if it did not.
        best_epoch: The epoch with the best value.
        wait: How many epochs it has waited.
        best_weights: While it trains, the variables of the best epoch.

    Example:
        >>> import flax.linen as nn, kdist, numpy as np
        >>> model = kdist.Model(nn.Dense(1))
        >>> model.compile("sgd", "mse")
        >>> stop = EarlyStopping("loss", patience=2, min_delta=100)
        >>> history = model.fit(np.ones((8, 3)), np.zeros((8, 1)), epochs=9, verbose=0, callbacks=stop)
        >>> len(history.epoch), stop.best_epoch
        (3, 0)
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = patience
        self.verbose = verbose
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self._reset()

    def _reset(self) -> None:
        self.wait = self.stopped_epoch = self.best_epoch = 0
        self.best = None
        self.best_weights: PyTree = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Forgets an earlier training."""
        super().on_train_begin(logs)
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        """See `Callback.state_dict`."""
        numbers = {name: getattr(self, name) for name in ("wait", "best", "best_epoch", "stopped_epoch")}
        return {**numbers, "best_weights": jax.tree.leaves(self.best_weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Callback.load_state_dict`."""
        leaves = state["best_weights"]
        structure = jax.tree.structure((self.model.state.params, self.model.state.model_state))
        vars(self).update({**state, "best_weights": jax.tree.unflatten(structure, leaves) if leaves else None})

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Compares, and stops when patience is at its end."""
        current = self.current(logs)
        if current is None or epoch < self.start_from_epoch:
            return
        self.wait += 1
        if self.improves(current):
            self.best, self.best_epoch = current, epoch
            if self.restore_best_weights:
                self.best_weights = copied((self.model.state.params, self.model.state.model_state))
            if self.baseline is None or self.improves(current, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Restores the best weights, if that was asked for."""
        if self.stopped_epoch > 0 and self.verbose > 0:
            say(f"Epoch {self.stopped_epoch + 1}: early stopping")
        if self.best_weights is None:
            return
        if self.verbose > 0:
            say(f"Weights of epoch {self.best_epoch + 1}, the best, are restored.")
        params, model_state = self.best_weights
        self.model.state = dataclasses.replace(self.model.state, params=params, model_state=model_state)
        self.best_weights = None  # they are the model's now, and used up by its next step

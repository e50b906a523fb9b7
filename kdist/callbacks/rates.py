"""Callbacks that change the learning rate, between epochs and without a recompile."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from kdist.callbacks.base import Callback
from kdist.callbacks.messages import say, warn
from kdist.callbacks.monitors import MonitorCallback
from kdist.errors import ConfigError
from kdist.typing import Logs


class ReduceLROnPlateau(MonitorCallback):
    """Multiplies the learning rate by a factor when a log has stopped improving.

    The rate that an epoch was trained with is added to its logs, as "learning_rate".

    Args:
        monitor: The log; "val_loss" by default.
        factor: In [0, 1); 0.1 by default.
        patience: After how many epochs without improvement; 10 by default.
        verbose: 1 to say when it does; 0 by default.
        mode: See `MonitorCallback`.
        min_delta: By how much the log must be better to count; 0.0001 by default.
        cooldown: How many epochs to wait after a reduction before counting again; 0 by default.
        min_lr: The rate is not reduced below; 0.0 by default.
        kwargs: Ignored, with a warning.

    Attributes:
        wait: The epochs without improvement so far.
        cooldown_counter: The epochs of cooldown that are left.

    Raises:
        ConfigError: The factor is out of its range.
        TypeError: When training begins, if the rate is a schedule, which cannot be set.

    Example:
        >>> import flax.linen as nn, kdist, numpy as np
        >>> model = kdist.Model(nn.Dense(1))
        >>> model.compile(kdist.optimizers.SGD(0.1), "mse")
        >>> reduce = ReduceLROnPlateau("loss", patience=1, min_delta=100)
        >>> history = model.fit(np.ones((8, 3)), np.zeros((8, 1)), epochs=3, verbose=0, callbacks=reduce)
        >>> history.history["learning_rate"]
        [0.1, 0.1, 0.01]
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        if kwargs:
            warn(f"ReduceLROnPlateau has no {', '.join(kwargs)}: ignored, as in Keras. What was epsilon is min_delta.")
        if not 0 <= factor < 1:
            raise ConfigError(f"ReduceLROnPlateau needs a factor in [0, 1): it only reduces. Received: {factor!r}.")
        self.factor = factor
        self.patience = patience
        self.verbose = verbose
        self.cooldown = cooldown
        self.min_lr = min_lr
        self._reset()

    def _reset(self) -> None:
        self.best = None
        self.wait = self.cooldown_counter = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Forgets an earlier training, and refuses a schedule."""
        super().on_train_begin(logs)
        self._reset()
        for optimizer, _ in _optimizers(self.model):
            optimizer.learning_rate = optimizer.learning_rate

    def state_dict(self) -> dict[str, Any]:
        """See `Callback.state_dict`."""
        return {name: getattr(self, name) for name in ("best", "wait", "cooldown_counter")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Callback.load_state_dict`."""
        vars(self).update(state)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Compares, and reduces when patience is at its end."""
        logs = {} if logs is None else logs
        logs.update(self.model.optimizer.learning_rates())
        current = self.current(logs)
        if current is None:
            return
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.wait = 0
        if self.improves(current):
            self.best = current
            self.wait = 0
        elif self.cooldown_counter == 0:
            self.wait += 1
            if self.wait >= self.patience and self._reduce(epoch):
                self.cooldown_counter = self.cooldown
                self.wait = 0

    def _reduce(self, epoch: int) -> bool:
        """Whether any rate could be reduced."""
        reduced = False
        for optimizer, name in _optimizers(self.model):
            old = optimizer.learning_rate
            if np.float32(old) > np.float32(self.min_lr):
                reduced = True
                optimizer.learning_rate = max(old * self.factor, self.min_lr)
                if self.verbose > 0:
                    say(f"Epoch {epoch + 1}: ReduceLROnPlateau reduces {name} to {optimizer.learning_rate}.")
        return reduced


class LearningRateScheduler(Callback):
    """Sets the learning rate of each epoch.

    It is added to the logs, as "learning_rate".

    Args:
        schedule: A function of the epoch, from 0, and the present rate, or of the epoch alone, that returns the rate.
        verbose: 1 to say what is set; 0 by default.

    Raises:
        ConfigError: The schedule returns something else than a number.
        TypeError: The optimizer's rate is a schedule itself.

    Example:
        >>> import flax.linen as nn, kdist, numpy as np
        >>> model = kdist.Model(nn.Dense(1))
        >>> model.compile(kdist.optimizers.SGD(0.1), "mse")
        >>> halve = LearningRateScheduler(lambda epoch, rate: rate / 2)
        >>> history = model.fit(np.ones((8, 3)), np.zeros((8, 1)), epochs=2, verbose=0, callbacks=halve)
        >>> history.history["learning_rate"]
        [0.05, 0.025]
    """

    def __init__(self, schedule: Callable[..., Any], verbose: int = 0) -> None:
        super().__init__()
        if not callable(schedule):
            raise ConfigError(f"schedule must be a function of the epoch (and the rate). Received: {schedule!r}.")
        self.schedule = schedule
        self.verbose = verbose
        self._takes_rate = _accepts_two(schedule)

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Sets the rate."""
        for optimizer, name in _optimizers(self.model):
            rate = self.schedule(epoch, optimizer.learning_rate) if self._takes_rate else self.schedule(epoch)
            optimizer.learning_rate = _number(rate)
            if self.verbose > 0:
                say(f"Epoch {epoch + 1}: LearningRateScheduler sets {name} to {optimizer.learning_rate}.")

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Logs the rate."""
        if logs is not None:
            logs.update(self.model.optimizer.learning_rates())


def _optimizers(model: Any) -> list[tuple[Any, str]]:
    """The optimizers that have a rate, and what that is called: one, or the parts of a MultiOptimizer."""
    if model.optimizer is None:
        raise ConfigError("The model has no optimizer, so there is no learning rate to set.")
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # of a LossScaleOptimizer
    parts = getattr(optimizer, "optimizers", None)
    if parts is None:
        return [(model.optimizer, "learning_rate")]
    return [(part, f"learning_rate_{part.name}") for part in parts]


def _accepts_two(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with two arguments, by its signature; one that hides it is not taken to."""
    try:
        inspect.signature(function).bind(0, 0.0)
    except (TypeError, ValueError):
        return False
    return True


def _number(rate: Any) -> float:
    if np.ndim(rate) == 0 and not isinstance(rate, (bool, np.bool_)):
        value = rate.item() if hasattr(rate, "item") else rate
        if isinstance(value, numbers.Real):
            return float(value)
    raise ConfigError(f"The schedule of a LearningRateScheduler must return a number. Received: {rate!r}.")

"""MonitorCallback: a logged value that gets better or worse, for callbacks that act on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kdist.callbacks.base import Callback
from kdist.callbacks.messages import warn
from kdist.errors import ConfigError, unknown_name
from kdist.typing import Logs

LARGER_IS_BETTER = ("acc", "auc", "f1", "precision", "recall", "r2")
"""Where a metric does not say its direction, a name that holds one of these does."""


class MonitorCallback(Callback):
    """Watches one of the logs.

    Args:
        monitor: The log's name; "val_loss" by default.
        mode: "min" if smaller is better, "max" if larger is, or "auto": as the compiled metric of that name says; a
            loss is better smaller; "auto" by default.
        min_delta: By how much a value must be better than the best to count; 0.0 by default.
        best: The best value so far, if there is one; none by default.

    Attributes:
        best: The best value so far.

    Raises:
        ConfigError: When training begins, if "auto" cannot tell the direction.

    Example:
        >>> class Cheer(MonitorCallback):
        ...     def on_epoch_end(self, epoch, logs=None):
        ...         if self.improves(self.current(logs)):
        ...             print("Hooray!")
        >>> cheer = Cheer("loss")
        >>> cheer.on_epoch_end(0, {"loss": 0.5})
        Hooray!
    """

    def __init__(
        self, monitor: str = "val_loss", mode: str = "auto", min_delta: float = 0.0, best: float | None = None
    ) -> None:
        super().__init__()
        if mode not in ("auto", "min", "max"):
            warn(f"{type(self).__name__} mode {mode!r} is unknown: expected 'auto', 'min' or 'max'. Taken as 'auto'.")
            mode = "auto"
        self.monitor = monitor
        self.mode = mode
        self.min_delta = abs(min_delta)
        self.best = best
        self._direction: str | None = None

    def set_model(self, model: Any) -> None:
        """Called before the first hook; another model may have other metrics."""
        super().set_model(model)
        self._direction = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Finds the direction, so that an unknown name is an error now and not after an epoch."""
        if getattr(self.model, "metric_directions", None):
            self._direction = self._resolved()

    @property
    def direction(self) -> str:
        """The mode, resolved: "min" or "max".

        Raises:
            ConfigError: There is no metric of that name that says its direction.
        """
        if self._direction is None:
            self._direction = self._resolved()
        return self._direction

    def current(self, logs: Logs | None) -> float | None:
        """The logged value; None, with a warning, where it is missing or is not one number."""
        logs = logs or {}
        value = logs.get(self.monitor)
        name = type(self).__name__
        if value is None:
            warn(f"{name} is conditioned on {self.monitor!r}, which is not available. Available: {', '.join(logs)}.")
            return None
        if np.ndim(value):
            warn(f"{name} can only monitor one number, but {self.monitor!r} is {value}.")
            return None
        return float(value)

    def improves(self, current: float | None, best: float | None = None) -> bool:
        """Whether a value is better than the best, by `min_delta`; a number is better than none and than NaN.

        Args:
            current: The value.
            best: What it is compared with; `self.best` by default.
        """
        best = self.best if best is None else best
        if current is None:
            return False
        if best is None or math.isnan(best):
            return best is None or not math.isnan(current)
        if self.direction == "min":
            return current < best - self.min_delta
        return current > best + self.min_delta

    def _resolved(self) -> str:
        if self.mode != "auto":
            return self.mode
        directions = getattr(self.model, "metric_directions", {})
        name = self.monitor.removeprefix("val_")
        direction = directions.get(name)
        if direction is not None:
            return {"up": "max", "down": "min"}[direction]
        if name.endswith("loss"):
            return "min"
        explicit = "Pass mode='max' or mode='min'"
        if any(word in name.lower() for word in LARGER_IS_BETTER):
            warn(
                f"{type(self).__name__} takes {self.monitor!r} as better when larger, by its name: the metric does "
                f"not say. {explicit} to be sure."
            )
            return "max"
        if name in directions:
            raise ConfigError(
                f"{type(self).__name__} cannot tell from mode='auto' whether a larger {self.monitor!r} is better. "
                f"{explicit}."
            )
        unknown = unknown_name("monitor", self.monitor, [*directions, *(f"val_{n}" for n in directions)])
        raise ConfigError(f"{unknown} {explicit} if another callback logs it.")

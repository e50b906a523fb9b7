"""Counting batches over the epochs of a fit, for callbacks that act on every n-th."""

from __future__ import annotations

from typing import Any

from kdist.errors import ConfigError
from kdist.typing import Logs


def check_frequency(name: str, value: Any) -> int | None:
    """A frequency as callbacks take it: None for "epoch", else a count of batches.

    Args:
        name: The argument, for the message.
        value: "epoch" or a positive integer.

    Raises:
        ConfigError: It is neither.  False is not either: it would save at every batch.
    """
    if value == "epoch":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"Invalid value for {name}: expected 'epoch' or a number of batches. Received: {value!r}.")
    return value


class BatchCounter:
    """Batches since training began, told by the first and the last step of each execution.

    An execution may pass over a multiple of n, as with an integer ``steps_per_execution``: then the n-th is due at its
    end, and the next n batches are counted from there.

    Args:
        every: n, or None for never.

    Attributes:
        total: Batches so far.
    """

    def __init__(self, every: int | None) -> None:
        self.every = every
        self.restart()

    def restart(self) -> None:
        """Training begins."""
        self.total = 0
        self._since = 0
        self._last: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """What it has counted."""
        return {"total": self.total, "since": self._since, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on counting.

        Args:
            state: What `state_dict` gave.
        """
        self.total, self._since, self._last = state["total"], state["since"], state["last"]

    def begin(self, batch: int, logs: Logs | None = None) -> None:
        """Takes note of where training begins, which may be inside an epoch: `on_train_batch_begin`."""
        if self._last is None:
            self._last = batch - 1

    def due(self, batch: int) -> bool:
        """Counts an execution that ended with this step of its epoch; whether n batches have passed."""
        before = -1 if self._last is None or batch <= self._last else self._last  # -1 where an epoch begins
        passed = batch - before
        self.total += passed
        self._since += passed
        self._last = batch
        if self.every is None or self._since < self.every:
            return False
        self._since = 0
        return True

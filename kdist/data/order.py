"""The order of the rows in an epoch: a pure function of the seed and the epoch's number."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kdist.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class EpochOrder:
    """Rows in batches, in an order for each epoch.

    Where an epoch has fewer steps than a pass over the rows, epochs go through the rows one after the other, and the
    last of a pass gets what is left of it.

    Attributes:
        num_rows: How many rows a pass has.
        batch_size: B, the rows of a step.
        shuffle: Whether each pass has an order of its own; "batch" draws the order of whole batches, and does nothing
            where `steps` is given.
        seed: What the orders are drawn from.
        steps: The most steps of an epoch; None for a whole pass.
        of: How many rows there are to choose from, where a pass takes fewer: other ones each pass, if it is shuffled.

    Example:
        >>> order = EpochOrder(10, 4, False, 0, steps=2)
        >>> [order.rows(epoch).tolist() for epoch in range(3)]
        [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9], [0, 1, 2, 3, 4, 5, 6, 7]]
    """

    num_rows: int
    batch_size: int
    shuffle: bool | str
    seed: int
    steps: int | None = None
    of: int | None = None

    @property
    def num_steps(self) -> int:
        """S, the most steps of an epoch."""
        return self._steps_of_a_pass if self.steps is None else self.steps

    @property
    def _steps_of_a_pass(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def pass_of(self, epoch: int) -> tuple[int, int]:
        """Which pass over the rows an epoch is of, and which part of the pass it is."""
        return (epoch, 0) if self.steps is None else divmod(epoch, -(-self._steps_of_a_pass // self.steps))

    def rows(self, epoch: int) -> np.ndarray:
        """The rows of an epoch in their order."""
        number, part = self.pass_of(epoch)
        rows = self._pass(number)
        if self.steps is None:
            return rows
        length = self.steps * self.batch_size
        return rows[part * length : (part + 1) * length]

    def _pass(self, number: int) -> np.ndarray:
        rows = np.arange(self.num_rows if self.of is None else self.of)
        if not self.shuffle or (self.shuffle == "batch" and self.steps is not None):
            return rows[: self.num_rows]
        rng = np.random.default_rng((self.seed, number))
        if self.shuffle != "batch":
            return rng.permutation(rows)[: self.num_rows]
        whole = self.num_rows // self.batch_size * self.batch_size  # a last, shorter batch stays where it is
        batches = rng.permutation(rows[:whole].reshape(-1, self.batch_size))
        return np.concatenate([batches.ravel(), rows[whole : self.num_rows]])


def check_shuffle(shuffle: Any) -> None:
    """Refuses what is no way to shuffle.

    Raises:
        ConfigError: It is not True, False or "batch".
    """
    if not (isinstance(shuffle, (bool, np.bool_)) or shuffle == "batch"):
        raise ConfigError(f"shuffle must be True, False or 'batch'. Received: {shuffle!r}.")

"""The order of the rows in an epoch: a pure function of the seed and the epoch's number."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kdist.errors import ConfigError, DataError


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
        drop_remainder: Whether a pass has full batches alone: of rows that are shuffled it leaves out others each time;
            of whole batches and of rows in their own order the last.

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
    drop_remainder: bool = False

    @property
    def rows_of_a_pass(self) -> int:
        """How many rows a pass takes."""
        return self._whole if self.drop_remainder else self.num_rows

    @property
    def _whole(self) -> int:
        """Rows in full batches."""
        return self.num_rows // self.batch_size * self.batch_size

    def in_order(self) -> EpochOrder:
        """The same rows as they are numbered, all of them."""
        return dataclasses.replace(self, shuffle=False, drop_remainder=False)

    @property
    def num_steps(self) -> int:
        """S, the most steps of an epoch."""
        return self._steps_of_a_pass if self.steps is None else self.steps

    @property
    def _steps_of_a_pass(self) -> int:
        return -(-self.rows_of_a_pass // self.batch_size)

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
            return rows[: self.rows_of_a_pass]
        rng = np.random.default_rng((self.seed, number))
        if self.shuffle != "batch":
            return rng.permutation(rows)[: self.rows_of_a_pass]
        batches = rng.permutation(rows[: self._whole].reshape(-1, self.batch_size))
        return np.concatenate([batches.ravel(), rows[self._whole : self.rows_of_a_pass]])  # a shorter one stays last


def check_shuffle(shuffle: Any) -> None:
    """Refuses what is no way to shuffle.

    Raises:
        ConfigError: It is not True, False or "batch".
    """
    if not (isinstance(shuffle, (bool, np.bool_)) or shuffle == "batch"):
        raise ConfigError(f"shuffle must be True, False or 'batch'. Received: {shuffle!r}.")


def check_drop_remainder(drop_remainder: Any, rows: int, batch_size: int) -> None:
    """Refuses to drop all rows, and what does not say whether to drop some.

    Raises:
        ConfigError: It is neither True nor False.
        DataError: It is True, and no batch is full.
    """
    if not isinstance(drop_remainder, (bool, np.bool_)):
        raise ConfigError(f"drop_remainder must be True or False. Received: {drop_remainder!r}.")
    if drop_remainder and rows < batch_size:
        raise DataError(
            f"drop_remainder=True leaves nothing of {rows} rows in batches of {batch_size}: choose a smaller "
            "batch_size, or keep the remainder."
        )

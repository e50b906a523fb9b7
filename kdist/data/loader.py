"""The protocol of a loader: rows by number, and the order of an epoch.

A loader does not iterate: it answers which rows step s of epoch e holds, and reads rows by number.
So any position can be reached without producing what comes before it, each process reads only its
own rows, and straight and resumed runs see the same ones.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from kdist.typing import Batch


@runtime_checkable
class Loader(Protocol):
    """Random-access data, the same in every process.

    A loader may also have `arrays`, a Batch of all rows in memory, which are then checked before the
    first step; `readers`, how many threads may call `read` at the same time, by default one;
    `seconds_a_row`, which reading one takes, to keep chunks short where that is long; ``in_order()``, a
    loader of every row in its natural order, which is evaluated and predicted in place of one that
    shuffles; ``fingerprint()``, what decides which rows come when, as JSON, for runs that go on; and
    ``close()``, called when nothing is read for a while.

    Example:
        >>> class Squares:
        ...     batch_size, num_rows, nbytes, cache, num_steps = 4, 10, 80, False, 3
        ...     def order(self, epoch):
        ...         return np.random.default_rng(epoch).permutation(self.num_rows)
        ...     def read(self, rows):
        ...         x = np.arange(self.num_rows, dtype=np.float32)[rows]
        ...         return Batch(x[..., None], x[..., None] ** 2)
        >>> import flax.linen as nn, kdist
        >>> isinstance(Squares(), Loader), kdist.Model(nn.Dense(1)).predict(Squares(), verbose=0).shape
        (True, (10, 1))
    """

    @property
    def batch_size(self) -> int:
        """B, the global number of rows of a step."""

    @property
    def num_rows(self) -> int:
        """Rows of a pass over the data."""

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""

    @property
    def cache(self) -> bool | str:
        """True or False to force or forbid keeping the rows on the devices, or "auto"."""

    @property
    def num_steps(self) -> int:
        """S, the most steps of an epoch; the last may hold fewer than B rows."""

    def order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch in their order, as many as `num_steps` take: a pure function of seed and epoch."""

    def read(self, rows: np.ndarray | slice) -> Batch:
        """Those rows, as a batch of NumPy arrays ``[*rows.shape, ...]``."""

"""The digits by a dense network in NNX.

kdist train configs/digits_nnx.py
"""

import dataclasses

from digits import Digits
from flax import nnx

import kdist


class MLP(nnx.Module):
    """Two hidden layers with dropout."""

    def __init__(self, hidden: int, dropout: float, *, rngs: nnx.Rngs):
        """Makes the layers."""
        self.first = nnx.Linear(64, hidden, rngs=rngs)
        self.second = nnx.Linear(hidden, hidden, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.logits = nnx.Linear(hidden, 10, rngs=rngs)

    def __call__(self, x):
        """Maps images ``[rows, 8, 8, 1]`` to logits ``[rows, 10]``."""
        x = nnx.relu(self.first(x.reshape(x.shape[0], -1)))
        x = self.dropout(nnx.relu(self.second(x)))
        return self.logits(x)


@dataclasses.dataclass(frozen=True)
class DigitsNNX(Digits):
    """The fields of the run."""

    name: str = "digits_nnx"
    width: int = 96
    """Units of each hidden layer."""

    def make_module(self):
        """The network, its parameters drawn from the run's seed."""
        return MLP(self.width, self.dropout, rngs=nnx.Rngs(self.seed))


def config() -> kdist.Config:
    """The run as it stands in this file."""
    return DigitsNNX()

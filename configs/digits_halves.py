"""Two inputs and two outputs: from the halves of a digit, which digit it is and how much ink it took.

kdist train configs/digits_halves.py
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from digits import Digits

import kdist
from kdist.config import Data


class Halves(nn.Module):
    """A tower for each half; both are looked at for both answers."""

    width: int

    @nn.compact
    def __call__(self, top, bottom):
        """Maps halves ``[rows, 4, 8, 1]`` to logits ``[rows, 10]`` and ink ``[rows, 1]``."""
        towers = [nn.relu(nn.Dense(self.width)(half.reshape(half.shape[0], -1))) for half in (top, bottom)]
        both = nn.relu(nn.Dense(self.width)(jnp.concatenate(towers, axis=-1)))
        return {"digit": nn.Dense(10)(both), "ink": nn.Dense(1)(both)}


@dataclasses.dataclass(frozen=True)
class DigitsHalves(Digits):
    """The fields of the run."""

    name: str = "digits_halves"
    width: int = 64
    """Units of each tower."""

    def make_module(self):
        """The network."""
        return Halves(self.width)

    def make_loss(self):
        """Cross-entropy for the digit, squared error for the ink."""
        return {"digit": super().make_loss(), "ink": "mse"}

    def make_metrics(self):
        """Accuracy of the digit, mean absolute error of the ink."""
        return {"digit": ["accuracy"], "ink": ["mae"]}

    def make_data(self):
        """The digits, cut in two, with the mean of their pixels."""
        data = super().make_data()

        def halves(x, y):
            targets = {"digit": y, "ink": x.mean(axis=(1, 2))}
            return {"top": x[:, :4], "bottom": x[:, 4:]}, targets

        x, y = halves(data.x, data.y)
        return Data(x, y, validation=halves(*data.validation))


def config() -> kdist.Config:
    """The run as it stands in this file."""
    return DigitsHalves()

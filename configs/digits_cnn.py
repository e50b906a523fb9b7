"""The digits again, by a convolutional network in Linen with batch normalisation.

kdist train configs/digits_cnn.py
"""

import dataclasses

import flax.linen as nn
from digits import Digits

import kdist


class CNN(nn.Module):
    """Two convolutions and two dense layers."""

    features: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Maps images ``[rows, 8, 8, 1]`` to logits ``[rows, 10]``."""
        for features in (self.features, 2 * self.features):
            x = nn.Conv(features, (3, 3))(x)
            # Named the mesh's axis, it normalises by the rows of all devices: their number then does not matter.
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name="data")(x)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


@dataclasses.dataclass(frozen=True)
class DigitsCNN(Digits):
    """The fields of the run."""

    name: str = "digits_cnn"
    epochs: int = 10
    features: int = 16
    """Channels of the first convolution."""

    def make_module(self):
        """The network."""
        return CNN(self.features)


def config() -> kdist.Config:
    """The run as it stands in this file."""
    return DigitsCNN()

"""Handwritten digits, scikit-learn's own 1,797 images of 8 x 8 pixels, and a small dense network.

kdist train configs/digits.py
"""

import dataclasses

import flax.linen as nn
import numpy as np
from sklearn.datasets import load_digits

import kdist
from kdist.config import Data


class MLP(nn.Module):
    """Dense layers with dropout; logits of ten classes."""

    hidden: tuple[int, ...]
    dropout: float

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Maps images ``[rows, 8, 8, 1]`` to logits ``[rows, 10]``."""
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(10)(x)


@dataclasses.dataclass(frozen=True)
class Digits(kdist.Config):
    """The fields of the run; set any of them on the command line."""

    name: str = "digits"
    epochs: int = 40
    learning_rate: float | None = 2e-3
    metrics: tuple[str, ...] = ("accuracy",)
    hidden: tuple[int, ...] = (128, 64)
    """Widths of the hidden layers."""
    dropout: float = 0.2
    """The fraction of activations dropped in training."""
    held_out: int = 360
    """How many images, drawn once, are for validation."""

    def make_module(self):
        """The network."""
        return MLP(self.hidden, self.dropout)

    def make_loss(self):
        """Cross-entropy, from logits."""
        return kdist.losses.SparseCategoricalCrossentropy(from_logits=True)

    def make_data(self):
        """Images scaled to [0, 1] and their labels, mixed by a seed of their own."""
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        x = (images[order] / 16.0).reshape(-1, 8, 8, 1).astype(np.float32)
        y = labels[order].astype(np.int32)
        held_out = self.held_out
        return Data(x[held_out:], y[held_out:], validation=(x[:held_out], y[:held_out]))


def config() -> kdist.Config:
    """The run as it stands in this file."""
    return Digits()

"""The model of Keras's own trainer tests: a kernel of ones, inputs of ones, targets of zeros; and how it learns.

Under the mean squared error of C outputs of D inputs, a step of gradient descent at rate r multiplies every output,
at first D, by ``1 - 2 r D / C``.
"""

import flax.linen as nn
import jax
import numpy as np

import kdist

RATE, D, C = 0.01, 4, 3
SHRINK = 1 - 2 * RATE * D / C


class Ones(nn.Module):
    """One layer without bias, whose kernel is all ones."""

    features: int = C

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features, use_bias=False, kernel_init=nn.initializers.ones, name="dense")(x)


def data(rows, features=C, *, targets=0.0):
    """Inputs of ones and targets of one number."""
    return np.ones((rows, D), np.float32), np.full((rows, features), targets, np.float32)


def losses(epochs, steps):
    """The mean loss of each epoch of so many steps."""
    each = D**2 * SHRINK ** (2 * np.arange(epochs * steps))
    return each.reshape(epochs, steps).mean(axis=1)


def model(module=None, *, n=8, optimizer=None, loss="mse", **settings):
    """A compiled model on n devices."""
    made = kdist.Model(Ones() if module is None else module)
    where = {"distribution": kdist.DataParallel(devices=jax.devices()[:n])}
    made.compile(kdist.optimizers.SGD(RATE) if optimizer is None else optimizer, loss, **settings, **where)
    return made

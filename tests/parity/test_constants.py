"""Numbers that Keras's own tests use, as tests of kdist alone: a kernel of ones, inputs of ones, targets of zeros.

Each step of SGD(0.01) multiplies the outputs, at first 4, by 1 - 0.08 / 3 times the weight of the loss.
"""

import flax.linen as nn
import numpy as np
import pytest

import kdist

X, Y = np.ones((100, 4), np.float32), np.zeros((100, 3), np.float32)


class Ones(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, use_bias=False, kernel_init=nn.initializers.ones)(x)


class TwoOnes(nn.Module):
    output_names = ("a", "b")

    @nn.compact
    def __call__(self, x):
        return [nn.Dense(3, use_bias=False, kernel_init=nn.initializers.ones)(x) for _ in range(2)]


@pytest.mark.parametrize("n", [1, 8])
def test_single_batches(devices, n):
    model = kdist.Model(Ones())
    model.compile(kdist.optimizers.SGD(0.01), "mse", distribution=devices(n))
    found = [model.train_on_batch(X, Y), model.train_on_batch(X, Y), model.test_on_batch(X, Y)]
    np.testing.assert_allclose(found, [16.0, 15.158, 14.360], rtol=5e-5)
    np.testing.assert_allclose(model.predict_on_batch(X), np.full((100, 3), 3.789511), rtol=1e-6)
    w = np.arange(100) / 50
    found = [model.train_on_batch(X, Y, sample_weight=w) for _ in range(2)]
    np.testing.assert_allclose(found, [14.217, 13.476], rtol=5e-5)


@pytest.mark.parametrize(
    ("module", "y", "loss_weights", "expected"),
    [
        (Ones, Y, 0.2, [3.182979, 3.115617, 3.049681]),
        (Ones, Y, [0.2], [3.182979, 3.115617, 3.049681]),
        (TwoOnes, [Y, Y], [0.1, 0.2], [4.778718, 4.694403, 4.611693]),
        (TwoOnes, [Y, Y], {"b": 0.2, "a": 0.1}, [4.778718, 4.694403, 4.611693]),
    ],
)
def test_loss_weights(module, y, loss_weights, expected):
    model = kdist.Model(module())
    model.compile(kdist.optimizers.SGD(0.01), "mse", loss_weights)
    history = model.fit(X, y, batch_size=50, epochs=3, verbose=0)
    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-6)


def test_the_batch_size_of_an_evaluation_changes_nothing():
    model = kdist.Model(Ones())
    model.compile(kdist.optimizers.SGD(0.01), "mse", metrics=["mae"])
    found = [model.evaluate(X, Y, batch_size=size, verbose=0) for size in (100, 32, 7)]
    np.testing.assert_allclose(found, [[16.0, 4.0]] * 3, rtol=1e-6)

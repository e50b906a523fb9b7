"""What tests of callbacks share: a stand-in for a model, whose hooks are called by hand, and a small real one."""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdist


@pytest.fixture
def stand_in():
    """A model that is nothing but a weight, and metrics that say their direction."""
    state = kdist.TrainState(jnp.int32(0), {"w": jnp.float32(-1)}, {"stats": {"n": jnp.float32(-1)}}, (), None)
    directions = {"loss": "down", "a_loss": "down", "mse": "down", "acc": "up", "count": None, "my_f1": None}
    model = types.SimpleNamespace(state=state, stop_training=False, metric_directions=directions)

    def set_weights(value):
        model.state = dataclasses.replace(model.state, params={"w": jnp.float32(value)})

    model.set_weights = set_weights
    return model


@pytest.fixture
def drive():
    """``drive(callback, model, name, values)`` calls the hooks of a training with these logs; the epochs it took."""

    def drive(callback, model, name, values):
        callback.set_model(model)
        model.stop_training = False
        callback.on_train_begin()
        epochs = 0
        for epoch, value in enumerate(values):
            epochs += 1
            callback.on_epoch_begin(epoch)
            callback.on_epoch_end(epoch, {} if value is None else {name: value})
            if model.stop_training:
                break
        callback.on_train_end()
        return epochs

    return drive


@pytest.fixture(scope="session")
def make_model():
    """``make_model()``: a compiled model on one device; `compile`'s arguments can be given."""

    def make(optimizer="sgd", loss="mse", metrics=None, units=1, **arguments):
        model = kdist.Model(nn.Dense(units))
        arguments = {"distribution": kdist.DataParallel(devices=jax.devices()[:1]), **arguments}
        model.compile(optimizer, loss, metrics=metrics, **arguments)
        return model

    return make


@pytest.fixture(scope="session")
def data():
    """Ten rows of three numbers, and a target."""
    rng = np.random.default_rng(0)
    return rng.random((10, 3), np.float32), rng.random((10, 1), np.float32)

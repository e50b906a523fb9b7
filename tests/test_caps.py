"""Caps from the environment: a script is tried out in fewer epochs and steps."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import kdist
from kdist.errors import ConfigError

X, Y = np.ones((12, 2), np.float32), np.zeros((12, 1), np.float32)


@pytest.fixture(scope="module")
def model():
    made = kdist.Model(nn.Dense(1))
    made.compile("sgd", "mse", distribution=kdist.DataParallel(devices=jax.devices()[:1]))
    return made


def test_epochs(model, monkeypatch):
    monkeypatch.setenv("KDIST_MAX_EPOCHS", "2")
    with pytest.warns(UserWarning, match="KDIST_MAX_EPOCHS=2 ends the training after 2 of 5 epochs"):
        assert model.fit(X, Y, epochs=5, verbose=0).epoch == [0, 1]
    assert model.fit(X, Y, epochs=2, verbose=0).epoch == [0, 1]  # no more than that was asked for: nothing to warn of


def test_steps(model, monkeypatch):
    monkeypatch.setenv("KDIST_MAX_STEPS_PER_EPOCH", "2")
    before = int(model.state.step) if model.built else 0
    with pytest.warns(UserWarning, match="KDIST_MAX_STEPS_PER_EPOCH=2 ends each epoch after 2 of 6 steps") as warned:
        model.fit(X, Y, batch_size=2, epochs=2, validation_data=(X, Y), verbose=0)
    assert len(warned) == 2  # the training's and the validation's
    assert int(model.state.step) == before + 4
    with pytest.warns(UserWarning, match="after 2 steps"):
        assert len(model.predict((X for _ in range(3)), verbose=0)) == 24
    with pytest.warns(UserWarning, match="after 2 of 6 steps"):
        model.evaluate(X, Y, batch_size=2, verbose=0)
    model.evaluate(X, Y, verbose=0)


@pytest.mark.parametrize("variable", ["KDIST_MAX_EPOCHS", "KDIST_MAX_STEPS_PER_EPOCH"])
@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_nonsense(model, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable} must be a positive integer"):
        model.fit(X, Y, epochs=5, verbose=0)

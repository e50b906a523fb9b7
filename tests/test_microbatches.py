"""microbatches="auto": the fewest that fit, by the memory of the compiled program, before the first step."""

import flax.linen as nn
import jax
import pytest

import kdist
from kdist.errors import ConfigError
from kdist.plan import plan

ROWS, WIDTH = 1024, 4096


class MLP(nn.Module):
    """Its hidden layer is all that takes memory: 16 kB a row."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(WIDTH)(x)))


def compiled(microbatches, devices=2):
    model = kdist.Model(MLP())
    model.compile(
        "sgd", "mse", microbatches=microbatches, distribution=kdist.DataParallel(devices=jax.devices()[:devices])
    )
    return model


def needs(x, y, parts):
    """Bytes that a device needs with so many parts."""
    model = compiled(parts)
    model.build(x)
    return plan(model.trainer, (x, y)).bytes


@pytest.fixture
def rows(rng):
    return rng.normal(size=(ROWS, 8)).astype("float32"), rng.normal(size=(ROWS, 1)).astype("float32")


def with_memory(monkeypatch, count):
    monkeypatch.setattr(kdist.DataParallel, "memory_bytes", property(lambda self: count))


def test_the_fewest_that_fit_and_the_same_numbers(rows, monkeypatch):
    needed = {parts: needs(*rows, parts) for parts in (1, 2, 4)}
    assert needed[1] > needed[2] > needed[4]
    whole = compiled(1).fit(*rows, batch_size=ROWS, epochs=2, verbose=0).history["loss"]
    for wanted in (1, 2, 4):
        with_memory(monkeypatch, 1.01 * needed[wanted] / kdist.trainer.MEMORY_SHARE)
        model = compiled("auto")
        history = model.fit(*rows, batch_size=ROWS, epochs=2, verbose=0).history
        assert model.trainer.microbatches == wanted
        assert history["loss"] == pytest.approx(whole, rel=1e-5)


def test_they_stay_and_evaluation_needs_none(rows, monkeypatch):
    with_memory(monkeypatch, 1.01 * needs(*rows, 2) / kdist.trainer.MEMORY_SHARE)
    model = compiled("auto")
    model.fit(*rows, batch_size=ROWS, verbose=0)
    with_memory(monkeypatch, 1.0)
    model.fit(*rows, batch_size=ROWS, verbose=0)
    assert model.trainer.microbatches == 2
    assert model.predict(rows[0], verbose=0).shape == (ROWS, 1)


def test_nothing_fits(rows, monkeypatch):
    with_memory(monkeypatch, 1000.0)
    with pytest.raises(ConfigError, match="a step needs .* GiB a device in 1, 2, 4, ... parts"):
        compiled("auto").fit(*rows, batch_size=ROWS, verbose=0)


def test_a_cpu_has_what_the_machine_has(rows):
    model = compiled("auto")
    model.fit(*rows, batch_size=ROWS, verbose=0)
    assert model.trainer.microbatches == 1


@pytest.mark.parametrize("microbatches", [0, "all", 1.5, True])
def test_what_it_cannot_be(microbatches):
    with pytest.raises(ConfigError, match="microbatches must be a positive integer or 'auto'"):
        compiled(microbatches)

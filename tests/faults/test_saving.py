"""Model.save and Model.restore: a model in a directory, by step, for any devices, and never a wrong one."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import kdist
from kdist.callbacks import Callback
from kdist.checkpoint import series
from kdist.errors import CheckpointError, CheckpointMismatchError, ConfigError, NotCompiledError

ROWS, BATCH = 24, 8
STEPS = ROWS // BATCH


class Net(nn.Module):
    """Batch statistics and dropout: a state with all that a state can hold."""

    units: int = 16

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(self.units)(x))
        return nn.Dense(1)(nn.Dropout(0.25, deterministic=not train)(nn.relu(x)))


@pytest.fixture
def make(devices):
    """``make()``: a compiled model that is not built."""

    def make(count=1, optimizer="adam", **arguments):
        model = kdist.Model(Net(**arguments))
        model.compile(optimizer, "mse", metrics=["mae"], distribution=devices(count))
        return model

    return make


@pytest.fixture
def data(rng):
    return rng.random((ROWS, 6), np.float32), rng.random((ROWS, 1), np.float32)


def fit(model, data, epochs, initial_epoch=0, callbacks=()):
    return model.fit(
        *data, batch_size=BATCH, epochs=epochs, initial_epoch=initial_epoch, verbose=0, callbacks=list(callbacks)
    )


def arrays(model):
    """All arrays of its state, keys as integers."""
    return [
        np.asarray(jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a)
        for a in jax.tree.leaves(model.state)
    ]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


class SaveAt(Callback):
    """Saves the model within a pause, after the execution that ends with some step of an epoch."""

    def __init__(self, directory, epoch, batch):
        super().__init__()
        self.directory, self.when = directory, (epoch, batch)
        self.epoch, self.due = 0, False

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.due = (self.epoch, batch) == self.when

    def is_save_due(self):
        return self.due

    def save_run(self, epoch, step, *, last=False):
        self.due = False
        self.model.save(self.directory)


def test_round_trip_into_a_model_that_is_not_built(tmp_path, make, data):
    model, other = make(), make()
    fit(model, data, 2)
    model.save(tmp_path / "a" / "model")
    assert not other.built
    assert other.restore(tmp_path / "a" / "model") == 2
    assert_same(arrays(other), arrays(model))
    assert fit(other, data, 4, initial_epoch=2).epoch == [2, 3]
    fit(model, data, 4, initial_epoch=2)
    assert_same(arrays(other), arrays(model))


@pytest.mark.slow
@pytest.mark.parametrize("before", [1, 8])
def test_onto_other_devices(tmp_path, make, data, before):
    model = make(before)
    fit(model, data, 1)
    model.save(tmp_path)
    for after in (1, 2, 8):
        other = make(after)
        other.restore(tmp_path)
        assert_same(arrays(other), arrays(model))
        assert all(len(a.sharding.device_set) == after for a in jax.tree.leaves(other.state))
        assert fit(other, data, 2, initial_epoch=1).epoch == [1]


@pytest.mark.slow
def test_by_step(tmp_path, make, data):
    model, states = make(), {}
    for epoch in range(3):
        fit(model, data, epoch + 1, initial_epoch=epoch)
        model.save(tmp_path)
        states[(epoch + 1) * STEPS] = arrays(model)
    assert series.numbers(tmp_path) == list(states) == [STEPS, 2 * STEPS, 3 * STEPS]
    for step, state in states.items():
        other = make()
        assert other.restore(tmp_path, step=step) == step // STEPS
        assert_same(arrays(other), state)
    for step in (np.int64(STEPS), "latest"):
        assert model.restore(tmp_path, step) == (1 if step == STEPS else 3)
    for step in (1, 0, 10**30):
        with pytest.raises(CheckpointError, match=f"There are no training states at {tmp_path}/{step}"):
            model.restore(tmp_path, step=step)
    for step in (-1, 1.0, "3", "newest", None, True):
        with pytest.raises(ConfigError, match="step must be 'latest' or an integer of 0 or more"):
            model.restore(tmp_path, step=step)


def test_a_later_step_is_not_overwritten(tmp_path, make, data):
    model = make()
    fit(model, data, 2)
    model.save(tmp_path)
    model.save(tmp_path)  # the same step again is replaced
    earlier = make()
    fit(earlier, data, 1)
    with pytest.raises(CheckpointError, match=f"Cannot write step {STEPS} to .*: it holds the later step {2 * STEPS}"):
        earlier.save(tmp_path)
    assert series.numbers(tmp_path) == [2 * STEPS]
    assert earlier.restore(tmp_path) == 2
    earlier.save(tmp_path)


@pytest.mark.parametrize("batch", [*(pytest.param(b, marks=pytest.mark.slow) for b in (0, 1)), 2])
def test_saved_by_a_callback_within_an_epoch(tmp_path, make, data, batch):
    """It goes on at the very batch, with the metrics of the epoch and the history before it."""
    model, other = make(), make()
    straight = fit(model, data, 3, callbacks=[SaveAt(tmp_path, 1, batch)])
    assert series.numbers(tmp_path) == [STEPS + batch + 1]
    assert other.restore(tmp_path) == 1
    resumed = fit(other, data, 3, initial_epoch=1, callbacks=[SaveAt(tmp_path / "unused", 9, 9)])
    assert_same(arrays(other), arrays(model))
    assert resumed.epoch == straight.epoch == [0, 1, 2]
    assert resumed.history == straight.history


@pytest.mark.slow
def test_another_model_or_optimizer(tmp_path, make, data):
    model = make()
    fit(model, data, 1)
    model.save(tmp_path)
    for other, said in (
        (make(units=5), r"params\.Dense_0\.kernel: expected float32\[6, 5\], found float32\[6, 16\]"),
        (make(optimizer="sgd"), r"expected nothing, found float32"),
    ):
        with pytest.raises(CheckpointMismatchError, match="not of this model: .* arrays differ") as raised:
            other.restore(tmp_path)
        with pytest.raises(CheckpointMismatchError, match=said):
            other.restore(tmp_path, step=STEPS)
        lines = str(raised.value).splitlines()
        assert 2 <= len(lines) <= 12
    assert series.numbers(tmp_path) == [STEPS]  # it is whole, and stays


def test_nothing_to_save_or_restore(tmp_path, make, data):
    model = make()
    with pytest.raises(NotCompiledError):
        kdist.Model(Net()).restore(tmp_path)
    with pytest.raises(NotCompiledError):
        model.save(tmp_path)
    for built in (False, True):
        if built:
            model.build(data[0])
        for place in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(CheckpointError, match=f"There are no checkpoints in {place}"):
                model.restore(place)
    assert list(tmp_path.iterdir()) == []

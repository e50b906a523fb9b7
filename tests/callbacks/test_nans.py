"""TerminateOnNaN: a run whose loss is no number ends, in order or with an error."""

import types

import numpy as np
import pytest

from kdist import checkpoint
from kdist.callbacks import BackupAndRestore, Callback, TerminateOnNaN

INF, NAN = float("inf"), float("nan")


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


class Ends(Callback):
    """Notes how training ended."""

    def __init__(self):
        super().__init__()
        self.hooks = []

    def on_test_end(self, logs=None):
        self.hooks.append("test")

    def on_epoch_end(self, epoch, logs=None):
        self.hooks.append(f"epoch {epoch}")

    def on_train_end(self, logs=None):
        self.hooks.append("train")


@pytest.mark.parametrize("loss", [INF, -INF, NAN, np.float32(NAN)])
def test_it_stops(capsys, loss):
    callback = TerminateOnNaN()
    callback.set_model(types.SimpleNamespace(stop_training=False))
    callback.on_train_batch_end(0, {"loss": 1.0})
    callback.on_train_batch_end(1, {})
    assert not callback.model.stop_training
    callback.on_train_batch_end(2, {"loss": loss})
    callback.on_train_batch_end(3, {"loss": loss})  # an execution may be under way: it is said once
    assert callback.model.stop_training
    assert capsys.readouterr().out == "Batch 2: Invalid loss, terminating training\n"


@pytest.mark.parametrize("k", ["auto", 1, 4])
def test_the_epoch_is_ended_in_order(make_model, capsys, k):
    model, ends = make_model(steps_per_execution=k), Ends()
    x, y = np.ones((6, 1)), np.array([[1.0], [1.0], [INF], [1.0], [1.0], [1.0]])
    callbacks = [TerminateOnNaN(), ends]
    history = model.fit(x, y, 1, 9, 0, callbacks, validation_data=(x[:1], y[:1]), shuffle=False)
    assert len(history.history["loss"]) == 1 and not np.isfinite(history.history["loss"][0])
    assert ends.hooks == ["test", "epoch 0", "train"]
    assert "Invalid loss, terminating training" in capsys.readouterr().out


def test_an_error_ends_it_at_once(model, tmp_path):
    ends = Ends()
    callbacks = [ends, BackupAndRestore(tmp_path / "backup", save_freq=1), TerminateOnNaN(raise_error=True)]
    x, y = np.ones((2, 1)), np.array([[1.0], [INF]])
    before = int(model.state.step) if model.built else 0
    with pytest.raises(RuntimeError, match="NaN or Inf loss encountered: it is inf at batch 1"):
        model.fit(x, y, batch_size=1, epochs=1, verbose=0, shuffle=False, callbacks=callbacks)
    assert ends.hooks == []
    assert checkpoint.series.numbers(tmp_path / "backup") == [before + 1]  # that of the good batch


@pytest.mark.parametrize("raise_error", [False, True])
def test_a_good_run_is_left_alone(make_model, raise_error):
    x, y = np.ones((2, 1)), np.ones((2, 1))
    history = make_model().fit(x, y, epochs=2, verbose=0, callbacks=TerminateOnNaN(raise_error))
    assert len(history.epoch) == 2


def test_it_costs_no_fusing():
    assert TerminateOnNaN.async_safe

"""EarlyStopping: at which epoch it stops, and with which weights training ends."""

import jax
import numpy as np
import pytest

from kdist.callbacks import BackupAndRestore, Callback, EarlyStopping, LambdaCallback

NAN = float("nan")


@pytest.mark.parametrize("patience", [0, 1, 2, 3])
def test_patience(stand_in, drive, patience):
    stopper = EarlyStopping("loss", patience=patience)
    drive(stopper, stand_in, "loss", [10.0, 9.0, 8.0, 9.0, 8.9, 8.8, 8.7, 8.6, 8.5])
    assert stopper.stopped_epoch == max(patience, 1) + 2


@pytest.mark.parametrize(
    ("arguments", "values", "epochs", "best_epoch"),
    [
        ({"patience": 2}, [0.2, 0.15, 0.1, 0.11, 0.12, 0.0], 5, 2),
        ({"patience": 0}, [1.0, 1.0, 1.0], 2, 0),
        ({"patience": 0, "mode": "max", "monitor": "acc"}, [0.1, 0.2, 0.2, 0.9], 3, 1),
        ({"patience": 2, "min_delta": 0.5}, [3.0, 2.6, 2.4, 2.3, 2.2, 2.1], 5, 2),  # against the best, not the last
        # A baseline that is not reached uses patience up, though the log improves; an improving epoch never stops.
        ({"patience": 5, "baseline": 0.5}, [0.9, 0.8, 0.7, 0.71, 0.72, 0.73], 5, 2),
        ({"patience": 1, "baseline": 0.5}, [0.9, 0.8, 0.7, 0.6, 0.55], 5, 4),
        ({"patience": 2, "baseline": 0.5}, [0.9, 0.4, 0.41, 0.42, 0.43], 4, 1),
        ({"patience": 0, "start_from_epoch": 2}, [1.0, 2.0, 3.0, 4.0, 5.0], 4, 2),
        ({"patience": 2, "start_from_epoch": 2}, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 5, 2),
        ({"patience": 2}, [NAN, NAN, NAN, NAN], 3, 0),
        ({"patience": 2}, [NAN, 1.0, 0.5, NAN, NAN, NAN], 5, 2),
    ],
)
def test_sequences(stand_in, drive, arguments, values, epochs, best_epoch):
    stopper = EarlyStopping(**{"monitor": "loss", **arguments})
    assert drive(stopper, stand_in, stopper.monitor, values) == epochs
    assert stopper.best_epoch == best_epoch


def test_a_missing_log_is_warned_of_and_does_not_count(stand_in, drive):
    stopper = EarlyStopping("val_loss", patience=2)
    with pytest.warns(UserWarning, match="conditioned on 'val_loss', which is not available") as warned:
        assert drive(stopper, stand_in, "val_loss", [1.0, None, 2.0, None, 3.0, 4.0]) == 5
    assert len(warned) == 2


class Weights(Callback):
    """Sets the weights to the number of the epoch, as training would; stops after an epoch."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after = stop_after

    def on_epoch_begin(self, epoch, logs=None):
        self.model.set_weights(epoch)

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training |= epoch == self.stop_after


@pytest.mark.parametrize(
    ("arguments", "values", "stop_after", "weights"),
    [
        ({"patience": 2}, [0.2, 0.15, 0.1, 0.11, 0.12, 0.13], None, 2),
        ({"patience": 5, "baseline": 0.5}, [0.9, 0.8, 0.7, 0.71, 0.72, 0.73], None, 2),
        ({"patience": 5, "baseline": 0.5}, [0.9, 0.8, 0.7, 0.71, 0.72, 0.73], 3, 2),  # another callback stops
        ({"patience": 9}, [0.9, 0.8, 0.85], None, 1),  # nobody stops
        ({"patience": 0, "start_from_epoch": 9}, [0.1, 0.2, 0.3], None, 2),  # no epoch counted
    ],
)
def test_the_best_weights_come_back_however_training_ended(stand_in, arguments, values, stop_after, weights):
    callbacks = [Weights(stop_after), EarlyStopping("loss", restore_best_weights=True, **arguments)]
    for callback in callbacks:
        callback.set_model(stand_in)
        callback.on_train_begin()
    for epoch, value in enumerate(values):
        for callback in callbacks:
            callback.on_epoch_begin(epoch)
        for callback in reversed(callbacks):
            callback.on_epoch_end(epoch, {"loss": value})
        if stand_in.stop_training:
            break
    for callback in callbacks:
        callback.on_train_end()
    assert stand_in.state.params["w"] == weights
    assert callbacks[1].best_weights is None  # they are the model's now


def test_nothing_is_carried_to_the_next_training(stand_in, drive):
    stopper = EarlyStopping("loss", patience=1, restore_best_weights=True)
    assert drive(stopper, stand_in, "loss", [0.1, 0.2]) == 2
    assert (stopper.best, stopper.wait, stopper.stopped_epoch) == (0.1, 1, 1)
    stopper.on_train_begin()
    assert (stopper.best, stopper.wait, stopper.stopped_epoch, stopper.best_epoch) == (None, 0, 0, 0)
    assert stopper.best_weights is None
    assert drive(stopper, stand_in, "loss", [5.0, 4.0, 3.0]) == 3


def test_what_it_says(stand_in, drive, capsys):
    drive(EarlyStopping("loss", verbose=1, restore_best_weights=True), stand_in, "loss", [1.0, 0.5, 0.7])
    assert capsys.readouterr().out == "Epoch 3: early stopping\nWeights of epoch 2, the best, are restored.\n"


@pytest.mark.parametrize("count", [1, 8])
def test_a_real_run(make_model, devices, data, count):
    model = make_model("sgd", metrics=["mse"], distribution=devices(count))
    x, y = data
    stopper = EarlyStopping("mse", patience=2, min_delta=100, restore_best_weights=True)
    first = []
    keep = LambdaCallback(on_epoch_end=lambda epoch, logs: first.append(model.get_weights()) if epoch == 0 else None)
    for _ in range(2):  # the object is used again, and the restored arrays are trained further
        history = model.fit(x, y, epochs=9, callbacks=[keep, stopper], verbose=0)
        assert (history.epoch, stopper.stopped_epoch) == ([0, 1, 2], 2)
        for a, b in zip(first[-1], model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    assert model.trainer.traces["train"] == 1
    for leaf in jax.tree.leaves(model.variables):
        assert leaf.sharding == devices(count).replicated


def test_the_best_weights_go_on_with_the_run(make_model, data, tmp_path):
    """An interrupted run restores the weights of an epoch before the interruption, as one that was not."""
    values = [3.0, 1.0, 2.0, 2.0, 2.0, 2.0]

    class Logs(Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_loss"] = values[epoch]
            if epoch == self.dies:
                raise RuntimeError("died")

    def run(directory, dies=None):
        model, log = make_model(), Logs()
        log.dies = dies
        stop = EarlyStopping(patience=3, restore_best_weights=True, mode="min")
        model.fit(*data, epochs=6, verbose=0, callbacks=[log, stop, BackupAndRestore(tmp_path / directory)])
        return model.get_weights(), stop

    straight, stop = run("a")
    with pytest.raises(RuntimeError, match="died"):
        run("b", dies=3)
    resumed, again = run("b")
    assert (stop.best_epoch, stop.stopped_epoch) == (again.best_epoch, again.stopped_epoch) == (1, 4)
    for a, b in zip(straight, resumed, strict=True):
        np.testing.assert_array_equal(a, b)

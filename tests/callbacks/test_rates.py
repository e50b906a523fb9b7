"""ReduceLROnPlateau and LearningRateScheduler: the rate of each epoch."""

import types

import numpy as np
import pytest

import kdist
from kdist.callbacks import LearningRateScheduler, ReduceLROnPlateau
from kdist.errors import ConfigError


class Rate:
    """An optimizer that is nothing but a rate."""

    def __init__(self, learning_rate, name="sgd"):
        self.learning_rate, self.name = learning_rate, name

    def learning_rates(self):
        return {"learning_rate": self.learning_rate}


def rates(callback, values, rate=0.1):
    """The rate after each epoch."""
    callback.set_model(types.SimpleNamespace(optimizer=Rate(rate), metric_directions={"loss": "down"}))
    callback.on_train_begin()
    found = []
    for epoch, value in enumerate(values):
        logs = {"loss": value}
        callback.on_epoch_begin(epoch)
        before = callback.model.optimizer.learning_rate
        callback.on_epoch_end(epoch, logs)
        assert logs["learning_rate"] == before  # what the epoch was trained with
        found.append(callback.model.optimizer.learning_rate)
    return found


@pytest.mark.parametrize(
    ("arguments", "values", "expected"),
    [
        ({"patience": 1}, [1, 1, 1, 0.5, 0.5], [0.1, 0.01, 0.001, 0.001, 0.0001]),
        ({"patience": 0}, [1, 1, 0.5], [0.1, 0.01, 0.01]),
        ({"patience": 2}, [1, 1, 1, 1, 1], [0.1, 0.1, 0.01, 0.01, 0.001]),
        ({"patience": 1, "min_delta": 0.5}, [2, 1.6, 1.4, 1.3], [0.1, 0.01, 0.01, 0.001]),
        ({"patience": 1, "mode": "max"}, [1, 2, 1], [0.1, 0.1, 0.01]),
        ({"patience": 1, "factor": 0.5}, [1, 1], [0.1, 0.05]),
        ({"patience": 1, "min_lr": 0.005}, [1, 1, 1, 1], [0.1, 0.01, 0.005, 0.005]),
        ({"patience": 1, "min_lr": 0.2}, [1, 1], [0.1, 0.1]),  # it never raises the rate
        ({"patience": 1, "cooldown": 2}, [1, 1, 1, 1, 1, 1], [0.1, 0.01, 0.01, 0.001, 0.001, 0.0001]),
        ({"patience": 1, "cooldown": 3}, [1, 1, 1, 1, 1], [0.1, 0.01, 0.01, 0.01, 0.001]),
        # The epoch that ends the cooldown counts; an epoch that improves in it makes a new best.
        ({"patience": 2, "cooldown": 1}, [1, 1, 1, 1, 1], [0.1, 0.1, 0.01, 0.01, 0.001]),
        ({"patience": 1, "cooldown": 3}, [1, 1, 0.5, 0.7, 0.7], [0.1, 0.01, 0.01, 0.01, 0.001]),
    ],
)
def test_plateaus(arguments, values, expected):
    callback = ReduceLROnPlateau("loss", **arguments)
    for _ in range(2):  # nothing is carried to the next training
        np.testing.assert_allclose(rates(callback, values), expected, rtol=1e-12)


def test_a_reduction_that_changes_nothing_is_none(capsys):
    """A float32 rate at its minimum is read as a number a little above it."""
    rates(ReduceLROnPlateau("loss", patience=1, min_lr=1 / 3, verbose=1), [1, 1, 1], rate=float(np.float32(1 / 3)))
    assert capsys.readouterr().out == ""


def test_a_missing_log_is_warned_of():
    callback = ReduceLROnPlateau("val_loss", patience=1)
    with pytest.warns(UserWarning, match="ReduceLROnPlateau is conditioned on 'val_loss', which is not available"):
        assert rates(callback, [1, 1]) == [0.1, 0.1]


@pytest.mark.parametrize("factor", [1, 1.5, -0.1])
def test_factors_are_checked(factor):
    with pytest.raises(ConfigError, match=r"needs a factor in \[0, 1\)"):
        ReduceLROnPlateau(factor=factor)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (lambda epoch, rate: rate / 2, [0.05, 0.025, 0.0125]),
        (lambda epoch: 1.0 / (2.0 + epoch), [1 / 2, 1 / 3, 1 / 4]),
        (lambda epoch, rate=7.0: rate, [0.1, 0.1, 0.1]),
        (lambda *arguments: arguments[1] * 2, [0.2, 0.4, 0.8]),
        (lambda epoch: np.float32(0.5), [0.5] * 3),
        (lambda epoch: np.array(0.5), [0.5] * 3),
        (lambda epoch: 1, [1.0] * 3),  # Keras refuses an int
        ({0: 1.0, 1: 2.0, 2: 3.0}.__getitem__, [1.0, 2.0, 3.0]),
    ],
)
def test_schedules(schedule, expected):
    assert rates(LearningRateScheduler(schedule), [1, 1, 1]) == expected


@pytest.mark.parametrize("value", [None, "0.1", [0.1], np.ones(2), True, 1j])
def test_a_schedule_must_return_a_number(value):
    with pytest.raises(ConfigError, match="must return a number. Received: "):
        rates(LearningRateScheduler(lambda epoch: value), [1])


def test_an_error_inside_a_schedule_is_its_own():
    """In Keras a TypeError makes it call the schedule again, without the rate."""
    with pytest.raises(TypeError, match="unsupported operand"):
        rates(LearningRateScheduler(lambda epoch, rate: rate + None), [1])
    with pytest.raises(ConfigError, match="schedule must be a function"):
        LearningRateScheduler(0.1)


def test_what_they_say(capsys):
    rates(ReduceLROnPlateau("loss", patience=1, verbose=1), [1, 1], rate=1.0)
    rates(LearningRateScheduler(lambda epoch: 0.5, verbose=1), [1])
    assert capsys.readouterr().out.splitlines() == [
        "Epoch 2: ReduceLROnPlateau reduces learning_rate to 0.1.",
        "Epoch 1: LearningRateScheduler sets learning_rate to 0.5.",
    ]


@pytest.mark.parametrize(
    "callback", [ReduceLROnPlateau("loss", patience=1), LearningRateScheduler(lambda epoch, rate: rate / 2)]
)
def test_a_schedule_in_the_optimizer_cannot_be_set(make_model, data, callback):
    model = make_model(kdist.optimizers.Adam(lambda step: 0.1))
    with pytest.raises(TypeError, match="learning rate is a schedule"):
        model.fit(*data, epochs=1, verbose=0, callbacks=callback)
    with pytest.raises(ConfigError, match="has no optimizer"):
        callback.set_model(types.SimpleNamespace(optimizer=None))
        callback.on_train_begin()
        callback.on_epoch_begin(0)


def test_real_runs(make_model, data):
    model = make_model(kdist.optimizers.Adam(0.1))
    reduce = ReduceLROnPlateau("loss", patience=1, min_delta=100, cooldown=2)
    history = model.fit(*data, epochs=4, verbose=0, callbacks=reduce).history
    assert history["learning_rate"] == [0.1, 0.1, 0.01, 0.01]
    assert model.optimizer.learning_rate == 0.001
    halve = LearningRateScheduler(lambda epoch, rate: rate / 2)
    history = model.fit(*data, epochs=2, verbose=0, callbacks=halve).history
    assert history["learning_rate"] == [0.0005, 0.00025]
    assert type(history["learning_rate"][0]) is float
    assert model.trainer.traces["train"] == 1


def test_each_part_of_a_multi_optimizer(make_model, data):
    parts = kdist.optimizers.OptimizerMap(kdist.optimizers.Adam(0.1), {".*bias": kdist.optimizers.SGD(1.0)})
    model = make_model(kdist.optimizers.MultiOptimizer(parts))
    reduce = ReduceLROnPlateau("loss", patience=1, min_delta=100)
    history = model.fit(*data, epochs=3, verbose=0, callbacks=reduce).history
    assert history["learning_rate_adam"] == [0.1, 0.1, 0.01]
    assert history["learning_rate_sgd"] == [1.0, 1.0, 0.1]
    halve = LearningRateScheduler(lambda epoch, rate: rate / 2)
    history = model.fit(*data, epochs=1, verbose=0, callbacks=halve).history
    assert (history["learning_rate_adam"], history["learning_rate_sgd"]) == ([0.0005], [0.005])


def test_what_reduce_lr_on_plateau_does_not_know_is_ignored_with_a_warning():
    with pytest.warns(UserWarning, match="has no epsilon, of: ignored, as in Keras"):
        ReduceLROnPlateau(epsilon=1e-3, of=2)

"""MonitorCallback: which direction is better, and what is better than the best."""

import numpy as np
import pytest

from kdist.callbacks import EarlyStopping, ModelCheckpoint, MonitorCallback, ReduceLROnPlateau
from kdist.errors import ConfigError

NAN = float("nan")


@pytest.mark.parametrize(
    ("mode", "monitor", "direction"),
    [
        ("max", "val_mse", "max"),
        ("min", "val_acc", "min"),
        ("auto", "val_mse", "min"),
        ("auto", "loss", "min"),
        ("auto", "val_loss", "min"),
        ("auto", "val_a_loss", "min"),
        ("auto", "acc", "max"),
        ("auto", "val_acc", "max"),
        ("auto", "val_other_loss", "min"),  # a loss by its name
        ("max", "nowhere", "max"),
    ],
)
def test_direction(stand_in, mode, monitor, direction):
    callback = MonitorCallback(monitor, mode)
    callback.set_model(stand_in)
    assert callback.direction == direction
    callback.on_train_begin()
    assert callback.direction == direction


@pytest.mark.parametrize("monitor", ["my_f1", "val_my_f1", "out_AUC", "val_recall_at_3", "r2"])
def test_direction_by_name_is_said(stand_in, monitor):
    callback = MonitorCallback(monitor)
    callback.set_model(stand_in)
    with pytest.warns(UserWarning, match=f"takes '{monitor}' as better when larger, by its name"):
        callback.on_train_begin()
    assert callback.direction == "max"


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ("val_count", "cannot tell from mode='auto' whether a larger 'val_count' is better. Pass mode="),
        ("val_mze", "Unknown monitor 'val_mze'. Did you mean 'val_mse'?"),
        ("learning_rate", "Unknown monitor 'learning_rate'.* if another callback logs it"),
    ],
)
@pytest.mark.parametrize("kind", [EarlyStopping, ReduceLROnPlateau])
def test_unknown_names_are_an_error_before_the_first_epoch(stand_in, kind, monitor, message):
    callback = kind(monitor=monitor)
    callback.set_model(stand_in)
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        callback.on_train_begin()


def test_a_model_without_metrics_yet_is_asked_later(stand_in):
    callback = MonitorCallback("acc")
    stand_in.metric_directions = {}
    callback.set_model(stand_in)
    callback.on_train_begin()
    stand_in.metric_directions = {"acc": "up"}
    assert callback.direction == "max"


def test_another_model_is_asked_anew(stand_in):
    callback = MonitorCallback("acc")
    callback.set_model(stand_in)
    assert callback.direction == "max"
    stand_in.metric_directions = {"acc": "down"}
    callback.set_model(stand_in)
    assert callback.direction == "min"


@pytest.mark.parametrize("make", [MonitorCallback, EarlyStopping, lambda mode: ModelCheckpoint("x", mode=mode)])
def test_unknown_mode_is_auto_with_a_warning(make):
    with pytest.warns(UserWarning, match="mode 'maximum' is unknown"):
        assert make(mode="maximum").mode == "auto"


@pytest.mark.parametrize(
    ("mode", "min_delta", "current", "best", "improves"),
    [
        ("max", 0.5, 0.75, 0.0, True),
        ("max", 0.5, 0.5, None, True),
        ("max", 0.5, 0.5, 0.0, False),  # strictly
        ("max", 0.5, 0.2, 0.5, False),
        ("max", -0.5, 0.4, 0.0, False),  # its sign does not matter
        ("min", 0.5, -0.6, 0.0, True),
        ("min", 0.5, -0.5, 0.0, False),
        ("min", 0.0, 1.0, 1.0, False),
        ("min", 0.0, NAN, 1.0, False),
        ("min", 0.0, NAN, None, True),  # something is better than nothing,
        ("min", 0.0, 5.0, NAN, True),  # and a number than NaN, where Keras would wait for ever
        ("min", 0.0, NAN, NAN, False),
        ("min", 0.0, None, None, False),
    ],
)
def test_improvement(mode, min_delta, current, best, improves):
    callback = MonitorCallback(mode=mode, min_delta=min_delta, best=best)
    assert callback.improves(current) is improves


@pytest.mark.parametrize(
    ("logs", "message"),
    [
        ({"loss": 1.0, "mae": 2.0}, "conditioned on 'val_loss', which is not available. Available: loss, mae"),
        ({}, "not available. Available: $|Available: ."),
        (None, "not available"),
        ({"val_loss": np.array([1.0, 2.0])}, r"can only monitor one number, but 'val_loss' is \[1. 2.\]"),
    ],
)
def test_what_cannot_be_compared_is_warned_of(logs, message):
    with pytest.warns(UserWarning, match=message):
        assert MonitorCallback().current(logs) is None


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.array(1.0)])
def test_numbers_of_any_kind(value):
    current = MonitorCallback().current({"val_loss": value})
    assert current == 1.0 and type(current) is float

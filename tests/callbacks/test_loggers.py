"""JSONLLogger: a line an epoch that any JSON reader takes, also after an exception."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

import kdist
from kdist.callbacks import Callback, JSONLLogger

LOGS = {"loss": np.float32(0.5), "f1": np.array([0.25, np.nan]), "bad": float("inf"), "rows": 3}


def lines(path):
    refuse = lambda name: pytest.fail(f"{name} is not JSON")  # noqa: E731
    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def log(path, epochs, append=False):
    logger = JSONLLogger(path, append=append)
    logger.on_train_begin()
    for epoch in epochs:
        logger.on_epoch_end(epoch, LOGS)
        assert lines(path)[-1]["epoch"] == epoch  # flushed as it is written
    logger.close()


def test_a_line_an_epoch_in_a_directory_that_is_made(tmp_path):
    path = tmp_path / "new" / "deep" / "history.jsonl"
    log(path, [0, 1])
    expected = {"loss": 0.5, "f1": [0.25, "nan"], "bad": "inf", "rows": 3.0}
    assert lines(path) == [{"epoch": 0, **expected}, {"epoch": 1, **expected}]
    assert list(lines(path)[0]) == ["epoch", *LOGS]


def test_append_goes_on_and_the_default_starts_anew(tmp_path):
    path = tmp_path / "history.jsonl"
    log(path, [0])
    log(path, [1], append=True)
    assert [line["epoch"] for line in lines(path)] == [0, 1]
    log(path, [5])
    assert [line["epoch"] for line in lines(path)] == [5]


def test_the_file_is_whole_and_closed_after_an_exception(tmp_path):
    class Fails(Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("out of patience")

    model = kdist.Model(nn.Dense(1))
    model.compile("sgd", "mse", distribution=kdist.DataParallel(devices=jax.devices()[:1]))
    logger = JSONLLogger(tmp_path / "history.jsonl")
    with pytest.raises(RuntimeError, match="out of patience"):
        model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=5, callbacks=[logger, Fails()], verbose=0)
    assert [line["epoch"] for line in lines(tmp_path / "history.jsonl")] == [0, 1]
    assert [line["loss"] for line in lines(tmp_path / "history.jsonl")] == model.history.history["loss"]
    # Closing again, as a second exception would, and logging after the end harm nothing.
    logger.close()
    logger.on_epoch_end(9, {"loss": 1.0})
    assert len(lines(tmp_path / "history.jsonl")) == 2

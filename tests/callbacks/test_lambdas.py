"""LambdaCallback: the functions that are given are called, and nothing else is watched."""

import pytest

from kdist.callbacks import Callback, CallbackList, LambdaCallback
from kdist.errors import ConfigError


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def test_every_hook(model, data):
    calls = []
    hooks = [name for name in dir(Callback) if name.startswith("on_")]

    def record(hook):
        if "batch" in hook or "epoch" in hook:
            return lambda index, logs: calls.append(hook)
        return lambda logs: calls.append(hook)

    callback = LambdaCallback(**{hook: record(hook) for hook in hooks})
    model.fit(*data, validation_data=data, verbose=0, callbacks=callback)
    model.predict(data[0], verbose=0, callbacks=callback)
    # on_batch_begin and on_batch_end are called by the default train hooks, which are replaced here.
    assert set(calls) == set(hooks) - {"on_batch_begin", "on_batch_end"}


def test_the_aliases_of_batch_hooks(model, data):
    batches = []
    callback = LambdaCallback(on_batch_end=lambda batch, logs: batches.append((batch, sorted(logs))))
    model.fit(*data, batch_size=5, verbose=0, callbacks=callback)
    assert batches == [(0, ["loss"]), (1, ["loss"])]


@pytest.mark.parametrize(
    ("hooks", "watches"),
    [([], False), (["on_epoch_end"], False), (["on_train_batch_end"], True), (["on_batch_begin"], True)],
)
def test_what_it_watches(hooks, watches):
    callback = LambdaCallback(**{hook: print for hook in hooks})
    assert CallbackList(callback).listens("train") is watches


def test_names():
    assert LambdaCallback(custom_method=len).custom_method is len
    with pytest.raises(ConfigError, match="Unknown hook 'on_epoc_end'. Did you mean 'on_epoch_end'?"):
        LambdaCallback(on_epoc_end=print)
    with pytest.raises(ConfigError, match="on_train_end must be a function. Received: 7"):
        LambdaCallback(on_train_end=7)

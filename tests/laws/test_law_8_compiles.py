"""Law 8: a fit compiles at most two training programs and one for validation, and inside an epoch nothing is
copied from the devices but the sums that logs are made of.

Compiles are counted by JAX's own events, and kdist's counter must agree; copies by what every read of an array
goes through.
"""

import jax
import numpy as np
import pytest
from jax._src import array
from models import FEATURES, crossentropy, data, make

import kdist

PROGRAMS = ("jit(loop)", "jit(single)")
COMPILED: list[str] = []


@jax.monitoring.register_event_duration_secs_listener
def _on_event(event, seconds, **about):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(about.get("fun_name", ""))


class Epochs(kdist.callbacks.Callback):
    """Notes how many programs had been compiled by the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.compiled = []

    def on_epoch_end(self, epoch, logs=None):
        self.compiled.append(list(COMPILED))


CASES = {
    # name: family, arguments of compile, arguments of fit.  43 rows: 11 steps, the last of 3 rows
    "auto": ("mlp", {}, {}),
    "streamed": ("mlp", {"steps_per_execution": 4}, {"cache": False}),
    "chain": ("cnn", {"steps_per_execution": 4, "microbatches": 2}, {}),
}


def build(case, batch_size=4, kind="linen"):
    family, compile_arguments, fit_arguments = CASES[case]
    x, y, weight = data(43, images=family == "cnn")
    model = make(family, kind, batch_norm=True)
    distribution = kdist.DataParallel(devices=jax.devices()[:8])
    model.compile("adam", crossentropy(), metrics=["accuracy"], distribution=distribution, **compile_arguments)
    model.build(x)

    def fit(epochs, *callbacks, **more):
        validation = (x[:13], y[:13])
        arguments = {**fit_arguments, "sample_weight": weight, "validation_data": validation, **more}
        model.fit(x, y, batch_size, epochs, 0, list(callbacks), **arguments)

    return model, fit


@pytest.mark.parametrize("case", CASES)
def test_a_fit_compiles_once_for_training_and_once_for_validation(case, monkeypatch):
    if case == "streamed":
        monkeypatch.setattr("kdist.data.feed.MAX_CHUNK_STEPS", 4)
    model, fit = build(case, kind="nnx" if case == "auto" else "linen")
    epochs = Epochs()
    before = len(COMPILED)
    fit(4, epochs)
    programs = [name for name in COMPILED[before:] if name in PROGRAMS]
    traces = model._trainer.traces
    assert 1 <= traces["train"] <= 2
    assert traces["test"] == 1
    assert traces["predict"] == 0
    assert len(programs) == traces["train"] + traces["test"]
    assert epochs.compiled[-1] == epochs.compiled[0], "an epoch after the first compiled something"
    fit(2)
    assert COMPILED[before:].count(PROGRAMS[0]) + COMPILED[before:].count(PROGRAMS[1]) == len(programs)


def test_compile_counts_see_a_compile():
    """The counter that the law rests on is not blind: another batch shape is another program."""
    before = len(COMPILED)
    jax.jit(lambda x: x + 1).lower(np.ones(3)).compile()
    assert len(COMPILED) == before + 1


class Copies:
    """Every array read by the host while it is the current one."""

    def __init__(self, monkeypatch):
        self.shapes = []
        value = array.ArrayImpl._value

        def noted(one):
            if one._npy_value is None:
                self.shapes.append(one.shape)
            return value.fget(one)

        monkeypatch.setattr(array.ArrayImpl, "_value", property(noted))


def test_copies_are_seen(monkeypatch):
    copies = Copies(monkeypatch)
    a = jax.device_put(np.ones((2, 3)), kdist.DataParallel().replicated)
    jax.device_get({"a": a + 1})
    np.asarray(a + 2)
    float((a + 3).sum())
    assert copies.shapes == [(2, 3), (2, 3), ()]


class Silent(kdist.callbacks.Callback):
    """Marks where the epochs begin and end in the list of copies, and counts executions."""

    async_safe = True

    def __init__(self, copies):
        super().__init__()
        self.copies, self.epochs, self.executions = copies, [], 0

    def on_epoch_begin(self, epoch, logs=None):
        self.executions, self.start = 0, len(self.copies.shapes)

    def on_train_batch_end(self, batch, logs=None):
        self.executions += 1

    def on_test_batch_end(self, batch, logs=None):
        self.executions += 1

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append((self.executions, self.copies.shapes[self.start :]))


@pytest.mark.parametrize("case", ["streamed", "chain"])
def test_an_epoch_copies_nothing_but_sums(case, monkeypatch):
    model, fit = build(case)
    copies = Copies(monkeypatch)
    silent = Silent(copies)
    fit(2, silent)
    sums = (4,)  # of the loss and of the accuracy, a numerator and a denominator each, in one vector
    for executions, shapes in silent.epochs:
        assert executions == 3 + 1  # four steps each of 11; the 4 of validation are one
        reads = 11 + 4 if case == "chain" else executions  # a chain's steps have sums of their own
        assert shapes == [sums] * reads, "more was copied than one vector a program"
    assert FEATURES in {w.shape[0] for w in model.get_weights()} or case == "chain"

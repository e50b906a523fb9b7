"""Keras's trainer tests of `steps_per_execution` and `steps_per_epoch`, told again for kdist.

Keras rounds an epoch of S steps up to a multiple of K; here it has S steps exactly (semantics, the table of versions).
"""

import contextlib

import jax
import numpy as np
import ones
import pytest

import kdist

SIZE, M = 8, 10  # ten batches of eight rows
_rng = np.random.default_rng(2)
X = _rng.normal(size=(SIZE * M, ones.D)).astype(np.float32)
Y = _rng.normal(size=(SIZE * M, 1)).astype(np.float32)


class Watch(kdist.callbacks.Callback):
    """Notes the index that each hook of a batch is given, and the running loss after it, epoch by epoch."""

    def __init__(self):
        super().__init__()
        self.begun, self.ended, self.losses = [], [], []

    def on_epoch_begin(self, epoch, logs=None):
        for seen in (self.begun, self.ended, self.losses):
            seen.append([])

    def on_batch_begin(self, batch, logs=None):
        self.begun[-1].append(batch)

    def on_batch_end(self, batch, logs=None):
        self.ended[-1].append(batch)
        self.losses[-1].append(logs["loss"])


def batches():
    """The rows as batches."""
    for i in range(0, len(X), SIZE):
        yield X[i : i + SIZE], Y[i : i + SIZE]


def run(k, *, data=None, epochs=2, warns=False, **kwargs):
    """A fit with K steps an execution: the model and what was watched."""
    model, watch = ones.model(ones.Ones(1), n=4, steps_per_execution=k), Watch()
    arguments = {"x": X, "y": Y, "batch_size": SIZE} if data is None else {"x": data}
    warned = pytest.warns(UserWarning, match="ran out of data") if warns else contextlib.nullcontext()
    with warned:
        model.fit(**arguments, epochs=epochs, shuffle=False, verbose=0, callbacks=[watch], **kwargs)
    return model, watch


@pytest.fixture(scope="module")
def straight():
    """Two epochs, step by step."""
    return run(1)


def same_model(model, expected):
    """Asserts that two models have the same history and weights."""
    np.testing.assert_allclose(model.history.history["loss"], expected.history.history["loss"], rtol=1e-5)
    np.testing.assert_allclose(model.get_weights()[0], expected.get_weights()[0], rtol=1e-5)


@pytest.mark.parametrize("data", [None, batches], ids=["arrays", "of unknown length"])
@pytest.mark.parametrize("k", [3, 101])
def test_hooks_are_called_for_executions(k, data, straight):
    """The first with the index of its first step; the last with the step it was planned to, though the epoch ends."""
    model, watch = run(k, data=data)
    begun = list(range(0, M, k))
    assert watch.begun == [begun, begun]
    assert watch.ended == [[first + k - 1 for first in begun]] * 2
    same_model(model, straight[0])
    if data is None:
        np.testing.assert_allclose(model.predict(X, SIZE, 0), straight[0].predict(X, SIZE, 0), rtol=1e-5)
        assert model.evaluate(X, Y, SIZE, 0) == pytest.approx(straight[0].evaluate(X, Y, SIZE, 0), rel=1e-5)


@pytest.mark.parametrize(
    ("size", "steps", "data"),
    [
        (10, [10, 10], batches),
        (5, [5, 5], None),
        (5, [5, 5], batches),
        (8, [8, 2], None),
        (8, [8, 2], batches),
        (12, [10, 10], None),
    ],
)
def test_executions_of_two_steps_in_epochs_of_some(size, steps, data):
    warns = size in (8, 12)
    model, watch = run(2, data=data, steps_per_epoch=size, warns=warns)
    expected, single = run(1, data=data, steps_per_epoch=size, warns=warns)
    assert [len(losses) for losses in single.losses] == steps
    assert [len(losses) for losses in watch.losses] == [-(-n // 2) for n in steps]
    for pairs, singles in zip(watch.losses, single.losses, strict=True):
        ends = [*singles[1::2], *singles[len(singles) - len(singles) % 2 :]]
        np.testing.assert_allclose(pairs, ends, rtol=1e-5)
    same_model(model, expected)


@pytest.mark.parametrize(
    ("size", "steps"),
    [(10, [10] * 4), (5, [5] * 4), (9, [9, 1, 9, 1]), (11, [10] * 4)],
    ids=["one pass", "half a pass", "too few", "more than there are"],
)
def test_steps_of_an_epoch(size, steps, straight):
    """Whatever the epochs, the batches come in their order, and together they are the same training."""
    model, watch = run(1, epochs=4, steps_per_epoch=size, warns=size in (9, 11))
    assert [len(losses) for losses in watch.losses] == steps
    passes = sum(steps) // M
    whole = straight[0] if passes == 2 else run(1, epochs=passes)[0]
    np.testing.assert_allclose(model.get_weights()[0], whole.get_weights()[0], rtol=1e-5)
    if size == 10:
        np.testing.assert_allclose(watch.losses[:2], straight[1].losses, rtol=1e-5)


def test_executions_of_evaluations_and_predictions():
    class Begun(kdist.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.tested, self.predicted = [], []

        def on_test_batch_begin(self, batch, logs=None):
            self.tested.append(batch)

        def on_predict_batch_begin(self, batch, logs=None):
            self.predicted.append(batch)

    model, begun = ones.model(steps_per_execution=3), Begun()
    x, y = ones.data(100)
    model.predict(x, batch_size=16, callbacks=[begun], verbose=0)
    model.evaluate(x, y, batch_size=16, callbacks=[begun], verbose=0)
    assert begun.tested == begun.predicted == [0, 3, 6]


def test_no_program_is_compiled_more_than_twice():
    """100 steps in executions of 20, several times; and once more with other rows."""
    model = ones.model(ones.Ones(1), steps_per_execution=20)
    x, y = ones.data(100, 1)
    for rows in (x, 2 * x):
        model.fit(rows, y, batch_size=1, epochs=2, verbose=0)
        model.evaluate(rows, y, batch_size=1, verbose=0)
        model.predict(rows, batch_size=1, verbose=0)
    traces = model.trainer.traces
    assert all(1 <= traces[kind] <= 2 for kind in ("train", "test", "predict")), traces


@pytest.mark.parametrize("n", [1, 8])
def test_training_leaves_the_weights_where_they_are(n):
    """Their shardings do not change, and no device is left out."""
    model = ones.model(n=n, optimizer="adam")
    model.build(np.ones((1, ones.D)))
    before = jax.tree.map(lambda a: a.sharding, model.state)
    model.fit(*ones.data(64), epochs=2, verbose=0)
    assert jax.tree.map(lambda a: a.sharding, model.state) == before
    assert all(len(a.sharding.device_set) == n for a in jax.tree.leaves(model.params))

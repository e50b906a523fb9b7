"""Profiler: which executions a trace spans, and that JAX writes it."""

import jax
import pytest

from kdist.callbacks import Callback, CallbackList, Profiler, TensorBoard
from kdist.callbacks.profiler import profiled_batches
from kdist.errors import ConfigError


@pytest.fixture
def traced(monkeypatch):
    """What the profiler is told, and when the steps begin and end."""
    events = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: events.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    return events


def run(profiler, events, epochs, k, *, late):
    """The hooks of epochs with so many steps; an execution may end after the next has begun."""
    profiler.on_train_begin()
    for epoch, steps in enumerate(epochs):
        waiting = []
        for first in range(0, steps, k):
            profiler.on_train_batch_begin(first)
            events.append(first)
            waiting.append(min(first + k, steps) - 1)
            if not late or len(waiting) > 1:
                profiler.on_train_batch_end(waiting.pop(0))
        for last in waiting:
            profiler.on_train_batch_end(last)
        profiler.on_epoch_end(epoch)
    profiler.on_train_end()
    profiler.close()


@pytest.mark.parametrize(
    ("steps", "epochs", "k", "expected"),
    [
        ((1, 3), [4], 1, [0, "start", 1, 2, "stop", 3]),
        ((0, 1), [2], 1, ["start", 0, "stop", 1]),
        ((3, 5), [4, 4], 1, [0, 1, 2, "start", 3, 0, "stop", 1, 2, 3]),  # over epochs
        ((5, 6), [12], 4, [0, 4, "start", 8, "stop"]),  # whole executions: that of step 5 had begun
        ((4, 9), [16], 4, [0, "start", 4, 8, "stop", 12]),
        ((1, 99), [4], 2, [0, "start", 2, "stop"]),  # training ends before
    ],
)
def test_what_is_traced(traced, steps, epochs, k, expected):
    for _ in range(2):  # and the object is used again
        traced.clear()
        run(Profiler("logs", steps), traced, epochs, k, late=False)
        assert traced == expected


@pytest.mark.parametrize(("steps", "begun"), [((1, 3), [1, 2]), ((5, 6), [5])])
def test_an_end_that_comes_late_ends_nothing_but_its_own(traced, steps, begun):
    run(Profiler("logs", steps), traced, [8], 1, late=True)
    assert set(begun) <= set(traced[traced.index("start") + 1 : traced.index("stop")])


def test_nothing_to_trace_is_said(traced):
    with pytest.warns(UserWarning, match="Profiler traced nothing: no execution began at step 10 or later, of 4 steps"):
        run(Profiler("logs"), traced, [4], 1, late=False)
    assert traced == [0, 1, 2, 3]


def test_an_exception_ends_the_trace(traced, make_model, data):
    class Dies(Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        make_model().fit(*data, batch_size=2, verbose=0, callbacks=[Profiler("logs", (1, 99)), Dies()])
    assert traced == ["start", "stop"]


def test_jax_writes_it(make_model, data, tmp_path):
    make_model().fit(*data, batch_size=2, verbose=0, callbacks=Profiler(tmp_path, (2, 4)))
    assert len(list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))) == 1


def test_it_costs_no_fusing():
    callbacks = CallbackList(Profiler("logs"))
    assert callbacks.stride("train") is None and not callbacks.reads_logs("train")
    callbacks = CallbackList(TensorBoard("logs", profile_batch=(2, 3)))
    assert callbacks.stride("train") is None and not callbacks.reads_logs("train")


@pytest.mark.parametrize("steps", [(3, 3), (-1, 2), (1,), (1, 2, 3), ("1", "2")])
def test_steps_are_checked(steps):
    with pytest.raises(ConfigError, match=r"steps must be \(start, stop\) with 0 <= start < stop"):
        Profiler("logs", steps)


@pytest.mark.parametrize(
    ("value", "steps"),
    [(0, None), ((0, 0), None), (5, (4, 5)), ((10, 20), (9, 20)), ([1, 1], (0, 1)), ("2,3", (1, 3)), ("7", (6, 7))],
)
def test_profile_batch(value, steps):
    assert profiled_batches(value) == steps


@pytest.mark.parametrize("value", [-1, (0, 3), (5, 2), (1, 2, 3), "a,b", None, "", {}])
def test_profile_batch_is_checked(value):
    with pytest.raises(ConfigError, match="profile_batch must be a batch, from 1, or"):
        profiled_batches(value)

"""Stalls: their arithmetic by a clock of the test's own, and that fits measure, show and say them."""

import threading
import time
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdist
from kdist import stalls as stalls_file
from kdist.callbacks import CallbackList, History, ProgressBar
from kdist.data import from_arrays, from_batches
from kdist.stalls import Stalls

LIMIT = 60.0
"""Seconds after which a test gives up."""


class Result:
    """What an execution gives: ready when the test says so."""

    def __init__(self, ready=False):
        self.ready = ready
        self.said_so = threading.Event()

    def is_ready(self):
        if self.ready:
            self.said_so.set()
        return self.ready


class Clock:
    """A clock that the test moves; it knows when a thread has read it after a result was found ready."""

    def __init__(self):
        self.now = 100.0
        self.result = Result()
        self.noted = threading.Event()

    def perf_counter(self):
        now = self.now
        if threading.current_thread() is not threading.main_thread() and self.result.said_so.is_set():
            self.noted.set()
        return now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stalls_file, "time", clock)
    return clock


def waits(clock, *seconds):
    """Chunks, each of which takes so many seconds to come; a function is called while it is waited for."""
    for i, wait in enumerate(seconds):
        for part in wait if isinstance(wait, tuple) else (wait,):
            if callable(part):
                part()
            else:
                clock.now += part
        yield i


def test_a_wait_of_idle_devices_is_a_stall(clock):
    with Stalls() as stalls:
        stalls.begin()
        for _ in stalls.watch(waits(clock, 50, 3, 1)):
            stalls.dispatched(Result(ready=True))
            clock.now += 4
        stalls.end()
        assert stalls.seconds == 3 + 1  # not the 50 before the first execution
        assert stalls.share == (3 + 1) / (4 + 3 + 4 + 1 + 4)


def test_a_wait_of_busy_devices_is_none(clock):
    with Stalls() as stalls:
        for _ in stalls.watch(waits(clock, 50, 3, 1)):
            stalls.dispatched(Result(ready=False))
        assert stalls.seconds == stalls.share == 0


def test_of_a_wait_in_which_they_become_idle_the_rest_is_a_stall(clock):
    def become_idle():
        clock.result.ready = True
        assert clock.noted.wait(LIMIT)

    with Stalls() as stalls:
        for _ in stalls.watch(waits(clock, 50, (3, become_idle, 2))):
            stalls.dispatched(clock.result)
        assert stalls.seconds == 2
        assert stalls.share == 2 / (3 + 2)


def test_an_epoch_after_the_first_waits_for_its_first_chunk_too_and_starts_from_nothing(clock):
    with Stalls() as stalls:
        assert stalls.share == 0
        for wait in (50, 6):
            stalls.begin()
            for _ in stalls.watch(waits(clock, wait)):
                stalls.dispatched(Result(ready=True))
                clock.now += 2
            stalls.end()
            clock.now += 1000  # a validation
        assert stalls.seconds == 6
        assert stalls.share == 6 / (6 + 2)
    assert stalls.share == 6 / (6 + 2)


def test_the_clock_stops_after_an_exception(clock):
    with pytest.raises(OSError), Stalls() as stalls:
        stalls.dispatched(Result(ready=True))
        clock.now += 1

        def fail():
            raise OSError

        list(stalls.watch(waits(clock, 3, (fail,))))
    clock.now += 1000
    assert (stalls.seconds, stalls.share) == (3, 3 / 4)


@pytest.mark.parametrize(
    "stalled, other, due",
    [(3, 1, True), (1, 3.9, True), (1, 4, False), (0.9, 0.1, False), (0, 1, False)],
    ids=["most", "above", "at the limit", "too short to mind", "none"],
)
def test_a_hint_is_due_above_the_limits_and_once(clock, stalled, other, due):
    with Stalls() as stalls:
        for expected in (due, False):
            stalls.begin()
            for _ in stalls.watch(waits(clock, 0, stalled)):
                stalls.dispatched(Result(ready=True))
            clock.now += other
            stalls.end()
            assert stalls.is_hint_due() is expected


def test_devices_are_asked_and_not_waited_for():
    """With a real execution, of about half a second."""
    work = jax.jit(lambda a, n: jax.lax.fori_loop(0, n, lambda i, a: jnp.tanh(a @ a), a))
    a = jnp.ones((300, 300))
    jax.block_until_ready(work(a, 1))  # compiled
    result = work(a, 500)
    with Stalls() as stalls:
        stalls.dispatched(result)
        assert list(stalls.watch(iter([1]))) == [1]
        assert not result.is_ready()
        assert stalls.seconds == 0
        jax.block_until_ready(result)

        def slow():
            time.sleep(0.02)
            yield 1

        assert list(stalls.watch(slow())) == [1]
        assert stalls.seconds >= 0.02


# In a fit -----------------------------------------------------------------------------------------

X, Y = np.ones((40, 2), np.float32), np.ones((40, 1), np.float32)
SLEEP = 0.02


def slow(batches=5):
    """A function that makes an iterator over batches, each of which takes a while."""

    def make():
        for i in range(batches):
            time.sleep(SLEEP)
            yield X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]

    return make


@pytest.fixture
def trainer(devices):
    return kdist.Trainer(nn.Dense(1), optimizer="sgd", loss="mse", distribution=devices(1))


def fit(trainer, data, *, verbose=0, epochs=3, **arguments):
    callbacks = CallbackList([ProgressBar(), History()], model=trainer, verbose=verbose, epochs=epochs)
    _, history = trainer.fit(trainer.init((X, Y)), data, epochs=epochs, callbacks=callbacks, **arguments)
    return history


def test_a_slow_generator_is_what_training_waits_for(trainer):
    history = fit(trainer, from_batches(slow()))
    assert list(history.history) == ["loss"]
    assert len(history.input_bound) == len(history.epoch) == 3
    assert min(history.input_bound[1:]) > 0.6
    assert max(history.input_bound) <= 1
    assert trainer.input_bound == history.input_bound[-1]
    assert not [t for t in threading.enumerate() if t.name.startswith("kdist-stalls")]


def test_rows_on_the_devices_are_not_waited_for_nor_does_validation_count(trainer):
    history = fit(trainer, from_arrays(X, Y, batch_size=8), validation=from_batches(slow()))
    assert history.input_bound == [0, 0, 0]
    assert list(history.history) == ["loss", "val_loss"]


def test_evaluations_and_single_batches_change_nothing(trainer):
    assert trainer.input_bound == 0
    fit(trainer, from_batches(slow()))
    before = trainer.input_bound
    trainer.evaluate(trainer.state, from_batches(slow()))
    trainer.train_on_batch(trainer.state, from_arrays(X, Y))
    assert trainer.input_bound == before


def test_a_model_and_its_callbacks_have_it_too(devices, capsys):
    model = kdist.Model(nn.Dense(1))
    model.compile("sgd", "mse", distribution=devices(1))
    history = model.fit(slow(), epochs=2, verbose=2)
    assert model.input_bound == history.input_bound[-1] > 0.6
    assert f"input-bound {model.input_bound:.0%}  loss" in capsys.readouterr().out.splitlines()[1]


@pytest.mark.parametrize("verbose", [0, 2])
def test_one_hint_a_fit_names_the_next_thing_to_try(trainer, monkeypatch, capsys, verbose):
    monkeypatch.setattr(stalls_file, "HINT_SECONDS", SLEEP)
    fit(trainer, from_batches(slow()), verbose=verbose)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (4 if verbose else 0)
    hints = [line for line in lines if line.startswith("Training waited for data ")]
    assert len(hints) == (1 if verbose else 0)
    assert all("% of the time. The next thing to try: " in hint and "from_source" in hint for hint in hints)


def test_no_hint_where_nothing_is_waited_for(trainer, monkeypatch, capsys):
    monkeypatch.setattr(stalls_file, "HINT_SECONDS", 0)
    fit(trainer, from_arrays(X, Y, batch_size=8), verbose=2)
    assert "try" not in capsys.readouterr().out


def test_a_callback_reads_it_while_the_epoch_runs(trainer):
    seen = []
    watch = kdist.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(trainer.input_bound))
    trainer.fit(trainer.init((X, Y)), from_batches(slow()), epochs=2, callbacks=watch)
    assert len(seen) == 10
    assert all(0 <= share <= 1 for share in seen) and seen[-1] > 0


def test_a_history_without_a_run_has_no_shares():
    history = History()
    history.on_epoch_end(0, {"loss": 1.0})
    history.set_model(types.SimpleNamespace(input_bound=0.25))
    history.on_epoch_end(1, {"loss": 1.0})
    assert history.input_bound == [0.25]

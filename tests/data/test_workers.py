"""Workers that read: they change no data, and end when reading ends, however it ends."""

import contextlib
import multiprocessing
import threading
import time

import flax.linen as nn
import jax
import numpy as np
import pytest
from numbers_source import ROWS, Broken, Deadly, EveryThird, Noise, Position, Rows, X, negative

import kdist
from kdist.data import from_batches, from_source
from kdist.data.workers import Workers, check_workers, result_of
from kdist.errors import ConfigError, DataError

SECONDS = 30
"""After so long a wait is a failure."""


@contextlib.contextmanager
def nothing_left():
    """Asserts that no thread or process that was started inside is still there; what ends by itself is waited for."""
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + SECONDS
    while left := [t for t in threading.enumerate() if t not in before] + multiprocessing.active_children():
        assert time.monotonic() < until, left
        time.sleep(0.01)


@pytest.fixture
def model():
    made = kdist.Model(nn.Dense(1), seed=0)
    made.compile("sgd", "mse", distribution=kdist.DataParallel(devices=jax.devices()[:1]), steps_per_execution=1)
    made.build(X)
    return made


def read(loader, epoch=0):
    """The rows of an epoch as a loader reads them, batch by batch."""
    order = loader.order(epoch)
    parts = [loader.read(order[i : i + 4]) for i in range(0, len(order), 4)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves).tolist(), *parts)


TRANSFORMS = [EveryThird(), negative, Noise(), Position()]


def test_processes_change_nothing_and_end_with_an_error():
    arguments = {"transforms": TRANSFORMS[1:], "batch_size": 4}
    passes = [np.arange(20), np.arange(20) + ROWS]
    with nothing_left():
        loader = from_source(Broken(at=20), **arguments, workers=2, use_multiprocessing=True)
        found = [loader.read(rows) for rows in passes]
        with pytest.raises(
            DataError, match="Row 20 of the Broken could not be read: KeyError: 'the disk is gone'"
        ) as e:
            loader.read(np.arange(ROWS))
        assert "in __getitem__" in str(e.value.__cause__)  # the traceback of the other process
    expected = [from_source(Rows(), **arguments).read(rows) for rows in passes]
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert (found[0].x[:, 0] != found[1].x[:, 0]).all()


def test_a_killed_process_ends_the_training_and_no_more(model):
    with nothing_left():
        loader = from_source(Deadly(), batch_size=4, workers=1, use_multiprocessing=True, shuffle=False)
        with pytest.raises(DataError, match="A worker process that reads data has died"):
            model.fit(loader, verbose=0)
    assert np.isfinite(model.fit(from_source(Rows()), verbose=0).history["loss"][0])


@pytest.mark.slow
def test_processes_filter_as_one_thread_does():
    arguments = {"transforms": TRANSFORMS, "batch_size": 4}
    with nothing_left():
        loader = from_source(Rows(), **arguments, workers=2, use_multiprocessing=True)
        assert read(loader) == read(from_source(Rows(), **arguments))
        loader.close()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_change_nothing_and_end(workers):
    arguments = {"transforms": TRANSFORMS, "batch_size": 4}
    with nothing_left():
        loader = from_source(Rows(), **arguments, workers=workers)
        for epoch in (0, 1):
            assert read(loader, epoch) == read(from_source(Rows(), **arguments), epoch)
        loader.close()


@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
def test_threads_end_with_what_they_read_for(model, call):
    loader = from_source(Rows(), batch_size=4, workers=2)
    with nothing_left():
        getattr(model, call)(loader, verbose=0)


@pytest.mark.parametrize("at", [0, 7])
def test_threads_end_after_an_error(model, at):
    """Whether it is in the first batch, which is looked at before training, or a later one."""
    with nothing_left():
        loader = from_source(Broken(at=at), batch_size=4, workers=2)
        with pytest.raises(DataError, match=f"Row {at} of the Broken could not be read"):
            model.fit(loader, verbose=0)
    with nothing_left():
        with pytest.raises(DataError, match=f"Row {at} of the Broken could not be read"):
            loader.read(np.arange(ROWS))
    with nothing_left():
        with pytest.raises(DataError, match=f"Row {at} of the Broken could not be read"):
            from_source(Broken(at=at), transforms=[EveryThird()], workers=2)


def test_a_loader_in_two_places(model):
    """Trained and validated on, and evaluated by a callback in between: who ends first ends nobody else's reading."""

    class Evaluate(kdist.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.evaluate(loader, verbose=0)

    loader = from_source(Rows(), batch_size=4, workers=2)
    with nothing_left():
        history = model.fit(loader, epochs=2, validation_data=loader, callbacks=[Evaluate()], verbose=0).history
    assert np.isfinite(history["val_loss"]).all()


def test_readers_at_once():
    """Of one loader, closed by a third in between."""
    loader = from_source(Rows(), workers=3)
    expected = loader.read(np.arange(ROWS)).x.tolist()
    failures = []

    def run():
        try:
            for _ in range(20):
                assert loader.read(np.arange(ROWS)).x.tolist() == expected
        except BaseException as error:
            failures.append(error)

    with nothing_left():
        loader.close()
        readers = [threading.Thread(target=run) for _ in range(2)]
        for reader in readers:
            reader.start()
        while any(reader.is_alive() for reader in readers):
            loader.close()
        for reader in readers:
            reader.join()
        loader.close()
    assert not failures


def test_a_copy_of_a_loader_has_workers_of_its_own():
    loader = from_source(Rows(), workers=2, batch_size=4)
    changed = loader.with_steps(2)
    with nothing_left():
        np.testing.assert_array_equal(loader.read(np.arange(4)).x, changed.read(np.arange(4)).x)
        loader.close()
        np.testing.assert_array_equal(changed.read(np.arange(4)).x, X[:4])
        changed.close()


class Locked(Rows):
    """Cannot be sent anywhere."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize("arguments", [{}, {"transforms": [EveryThird()]}], ids=["", "filtered"])
def test_processes_need_what_can_be_pickled(model, arguments):
    with nothing_left(), pytest.raises(DataError, match="use_multiprocessing=True sends .*cannot be pickled.*threads"):
        loader = from_source(Locked(), workers=2, use_multiprocessing=True, **arguments)
        model.fit(loader, verbose=0)
    with nothing_left(), pytest.raises(DataError, match="cannot be pickled"):
        loader = from_source(Rows(), transforms=[lambda row: row], workers=2, use_multiprocessing=True)
        model.fit(loader, verbose=0)


class Batches:
    """Batches by number, as Keras's Sequence has them; one may be broken."""

    def __init__(self, at=None):
        self.at = at

    def on_epoch_end(self):
        pass

    def __len__(self):
        return 6

    def __getitem__(self, n):
        if n == self.at:
            raise KeyError("the disk is gone")
        return X[4 * n : 4 * n + 4], np.float32(X[4 * n : 4 * n + 4, :1])


@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize("steps", [None, 2])
def test_readers_of_batches_end(model, call, steps):
    arguments = {"steps_per_epoch" if call == "fit" else "steps": steps}
    with nothing_left():
        getattr(model, call)(from_batches(Batches(), workers=2), verbose=0, **arguments)


def test_readers_of_batches_end_after_an_error(model):
    with nothing_left():
        with pytest.raises(DataError, match="Batch 3 of the Batches could not be read: KeyError: 'the disk is gone'"):
            model.fit(from_batches(Batches(at=3), workers=2), verbose=0)


def test_calls_by_hand():
    with nothing_left():
        with contextlib.closing(Workers([3, 5], "__getitem__", 2, processes=False)) as workers:
            assert [result_of(workers.submit(i)) for i in (1, 0)] == [5, 3]
            with pytest.raises(IndexError):
                result_of(workers.submit(2))


@pytest.mark.parametrize("workers", [-1, 1.5, True, None, "2"])
def test_what_is_no_number_of_workers(workers):
    with pytest.raises(ConfigError, match="workers must be an integer of 0 or more"):
        check_workers(workers)

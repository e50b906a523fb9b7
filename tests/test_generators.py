"""Generators in `fit`, `evaluate`, `predict` and Keras 2's methods: what is read, by whom, and what an error leaves."""

import itertools
import threading
import traceback

import flax.linen as nn
import jax
import numpy as np
import pytest

import kdist
from kdist.callbacks import LambdaCallback
from kdist.errors import ConfigError, DataError

ROWS, SIZE, BATCHES = 12, 2, 6
X = np.arange(ROWS, dtype=np.float32)[:, None] / ROWS
Y = X * 2 + 1


@pytest.fixture(scope="module")
def model():
    """A model of one device, which every test may train on."""
    made = kdist.Model(nn.Dense(1, use_bias=False))
    made.compile("sgd", "mse", distribution=kdist.DataParallel(devices=jax.devices()[:1]), steps_per_execution=1)
    made.build(X)
    return made


@pytest.fixture(scope="module")
def start(model):
    return model.get_weights()


@pytest.fixture(autouse=True)
def anew(model, start):
    """Each test starts with the same weights."""
    model.set_weights(start)


class Counted:
    """A generator of batches, endless or of so many; it counts and can fail."""

    def __init__(self, length=None, fails_at=None):
        self.numbers = itertools.count() if length is None else iter(range(length))
        self.fails_at = fails_at
        self.taken, self.readers = 0, set()

    def __iter__(self):
        return self

    def __next__(self):
        n = next(self.numbers)
        self.taken += 1
        self.readers.add(threading.get_ident())
        if n == self.fails_at:
            raise OSError("the disk is gone")
        return pair(n)


class Numbered:
    """Batches by number, without anything else that Keras's Sequence has."""

    def __init__(self, length=BATCHES):
        self.length, self.read, self.readers = length, [], set()

    def __len__(self):
        return self.length

    def __getitem__(self, n):
        self.read.append(n)
        self.readers.add(threading.get_ident())
        return pair(n)


class Sequence(Numbered):
    """As Keras's Sequence."""

    ended = 0

    def on_epoch_end(self):
        self.ended += 1


def pair(n):
    rows = slice(SIZE * (n % BATCHES), SIZE * (n % BATCHES + 1))
    return X[rows], Y[rows]


def old(model, method, *args, **kwargs):
    """One of Keras 2's methods, which says that it is deprecated."""
    with pytest.warns(DeprecationWarning, match=f"^{method} is deprecated: .* takes generators too"):
        return getattr(model, method)(*args, **kwargs)


# What is read ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (3, 2), (4, 3)])
@pytest.mark.parametrize("method", ["fit", "fit_generator"])
def test_exactly_what_is_trained_on_is_read(model, method, steps, epochs):
    source = Counted()
    call = model.fit if method == "fit" else lambda *args, **kwargs: old(model, method, *args, **kwargs)
    history = call(source, steps_per_epoch=steps, epochs=epochs, verbose=0)
    assert source.taken == steps * epochs
    assert len(history.history["loss"]) == epochs
    assert next(source)[0] is not None  # what comes next is whole


@pytest.mark.parametrize("method", ["evaluate", "predict", "evaluate_generator", "predict_generator"])
def test_exactly_what_is_evaluated_is_read(model, method):
    source = Counted()
    call = getattr(model, method)
    found = call(source, steps=3, verbose=0) if "_" not in method else old(model, method, source, 3)
    assert source.taken == 3
    if method.startswith("predict"):
        np.testing.assert_allclose(found, model.predict(X[: 3 * SIZE], verbose=0), rtol=2e-5, atol=2e-6)
    else:
        np.testing.assert_allclose(found, model.evaluate(X[: 3 * SIZE], Y[: 3 * SIZE], verbose=0), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("first", [0, 1])
def test_an_epoch_of_batches_by_number_has_exactly_its_steps(model, first):
    source = Numbered()
    old(model, "fit_generator", source, 4, 3, 0, initial_epoch=first)
    expected = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5][4 * first :]
    # The first batch is looked at before it is known which epoch comes first.
    assert source.read[-len(expected) :] == expected


@pytest.mark.parametrize("method", ["evaluate_generator", "predict_generator"])
def test_batches_by_number_begin_again_where_they_end(model, method):
    source = Numbered()
    found = old(model, method, source, BATCHES + 2)
    assert source.read == [*range(BATCHES), 0, 1]
    if method == "predict_generator":
        twice = np.concatenate([X, X[: 2 * SIZE]])
        np.testing.assert_allclose(found, model.predict(twice, verbose=0), rtol=2e-5, atol=2e-6)


def test_exactly_what_is_validated_is_read(model):
    training, validation = Counted(), Counted()
    history = model.fit(
        training, steps_per_epoch=2, epochs=3, validation_data=validation, validation_steps=3, verbose=0
    ).history
    assert (training.taken, validation.taken) == (6, 9)
    assert len(history["val_loss"]) == 3


def test_validation_batches_by_number_start_over(model):
    validation = Numbered()
    old(model, "fit_generator", Counted(), 2, 3, 0, validation_data=validation, validation_steps=2)
    assert validation.read == [0, 1] * 3


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("steps", "shuffled"), [(None, True), (BATCHES, False)])
def test_shuffling_of_batches_by_number(model, steps, shuffled, workers):
    """Keras 2 shuffles them unless it is given steps; every batch is read once an epoch."""
    sequence = Sequence()
    old(model, "fit_generator", sequence, steps, 2, 0, workers=workers)
    assert len(sequence.read) == 2 * BATCHES and sequence.ended == 2
    if workers == 1:  # what threads note may be in another order
        epochs = [sequence.read[:BATCHES], sequence.read[BATCHES:]]
        assert [sorted(order) for order in epochs] == [list(range(BATCHES))] * 2
        assert (epochs == [list(range(BATCHES))] * 2) is not shuffled


@pytest.mark.parametrize("method", ["fit", "fit_generator"])
def test_a_sequence_ends_its_epochs(model, method):
    sequence = Sequence()
    if method == "fit":
        model.fit(sequence, epochs=3, shuffle=False, verbose=0)
    else:
        old(model, method, sequence, epochs=3, shuffle=False, verbose=0)
    assert sequence.ended == 3 and sequence.read == list(range(BATCHES)) * 3


# Who reads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Counted, Numbered])
@pytest.mark.parametrize("workers", [0, 1])
def test_no_workers_read_in_the_calling_thread(model, kind, workers):
    """With one, only the first batch is read there, since the model is bound to it."""
    source = kind()
    old(model, "fit_generator", source, 3, 2, 0, workers=workers)
    assert threading.get_ident() in source.readers
    assert len(source.readers) == (1 if workers == 0 else 2)


def test_a_sequence_that_wants_no_workers_is_read_in_the_calling_thread(model):
    sequence = Sequence()
    sequence.workers = 0
    model.fit(sequence, epochs=2, shuffle=False, verbose=0)
    assert sequence.readers == {threading.get_ident()}


def test_workers_change_no_number(model, start):
    results = []
    for workers in (0, 1, 3):
        model.set_weights(start)
        history = old(model, "fit_generator", Numbered(), epochs=2, verbose=0, workers=workers, shuffle=False)
        results.append([history.history["loss"], *model.get_weights()])
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, results[0], other)


@pytest.mark.parametrize("queue", [1, 2])
def test_the_queue_bounds_what_is_read_ahead(model, queue):
    """One chunk of the queue's size may be used while the next is read."""
    source, excess = Counted(), []
    watch = LambdaCallback(on_train_batch_end=lambda batch, logs: excess.append(source.taken - (batch + 1)))
    old(model, "fit_generator", source, 12, 1, 0, [watch], max_queue_size=queue)
    assert len(excess) == 12 and max(excess) < 2 * queue
    assert source.taken == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_queue_size": 0}, "max_queue_size must be a positive integer"),
        ({"max_queue_size": 2.5}, "max_queue_size must be a positive integer"),
        ({"workers": -1}, "workers must be an integer of 0 or more"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be a positive integer"),
    ],
    ids=str,
)
def test_arguments_out_of_range(model, arguments, message):
    sequence = Numbered()
    with pytest.warns(DeprecationWarning), pytest.raises(ConfigError, match=message):
        model.fit_generator(sequence, **arguments)
    assert sequence.read == []


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("at", [0, 2])
def test_an_error_in_a_generator_comes_out_and_leaves_the_model_usable(model, at, workers):
    with pytest.raises(DataError, match=f"Batch {at} of the Counted could not be read: OSError: the disk") as caught:
        old(model, "fit_generator", Counted(fails_at=at), 4, verbose=0, workers=workers, max_queue_size=1)
    assert "raise OSError" in "".join(traceback.format_exception(caught.value))
    before = model.evaluate(X, Y, verbose=0)
    assert np.isfinite(before)
    history = model.fit(Counted(), steps_per_epoch=BATCHES, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0] and model.evaluate(X, Y, verbose=0) < before


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_an_error_in_an_evaluation_comes_out(model, start, method):
    with pytest.raises(DataError, match="OSError: the disk is gone"):
        getattr(model, method)(Counted(fails_at=2), steps=4, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], start[0])


def test_an_error_in_a_validation_keeps_what_was_trained(model, start):
    with pytest.raises(DataError, match="OSError: the disk is gone"):
        model.fit(Counted(), steps_per_epoch=2, validation_data=Counted(fails_at=1), validation_steps=2, verbose=0)
    assert (model.get_weights()[0] != start[0]).any()
    assert np.isfinite(model.evaluate(X, Y, verbose=0))


def test_a_batch_of_another_structure_is_refused_where_it_comes(model):
    def changing():
        yield from (pair(0), pair(1), (*pair(2), np.ones(SIZE)))

    with pytest.raises(DataError, match="same structure"):
        model.fit(changing(), verbose=0)
    assert np.isfinite(model.evaluate(X, Y, verbose=0))


def test_a_generator_goes_on_in_the_next_fit(model):
    """The thread that read it ahead has let go of it; nothing is read that is not trained on."""
    source = Counted()
    for n in range(1, 4):
        model.fit(source, steps_per_epoch=3, verbose=0)
        assert source.taken == 3 * n


def test_a_callback_that_stops_leaves_a_generator_that_can_be_read(model):
    def stop(batch, logs):
        model.stop_training = batch == 1

    source = Counted()
    old(model, "fit_generator", source, 10, 5, 0, [LambdaCallback(on_train_batch_end=stop)], max_queue_size=2)
    assert 2 <= source.taken <= 4  # and at most a chunk that was read ahead
    taken = source.taken
    model.fit(source, steps_per_epoch=1, verbose=0)
    assert source.taken == taken + 1


def test_a_generator_in_two_places_is_read_by_one_at_a_time(model):
    """As data to train on and to validate with: nothing is read ahead beyond an epoch."""
    source = Counted()
    history = model.fit(
        source, steps_per_epoch=3, epochs=2, validation_data=source, validation_steps=2, verbose=0
    ).history
    assert len(history["val_loss"]) == 2 and source.taken == 10


# Numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 2, 2, 2, 2, 2), (1, 5, 2, 4)], ids=str)
def test_batches_train_as_their_rows_do(model, start, sizes):
    """A step a batch, whatever its size: the same as `train_on_batch` for each."""
    bounds = list(itertools.pairwise(np.cumsum([0, *sizes])))
    model.fit(((X[a:b], Y[a:b]) for a, b in bounds), verbose=0)
    found = model.get_weights()
    model.set_weights(start)
    for a, b in bounds:
        model.train_on_batch(X[a:b], Y[a:b])
    np.testing.assert_allclose(found[0], model.get_weights()[0], rtol=2e-5, atol=2e-6)


def test_class_weights_of_a_generator(model, start):
    """Each batch is weighed by its own targets."""
    labels = (np.arange(ROWS) % 3).astype(np.float32)[:, None]
    weights = {0: 0.0, 2: 4.0}
    model.fit(X, labels, batch_size=SIZE, shuffle=False, class_weight=weights, verbose=0)
    expected = model.get_weights()
    model.set_weights(start)
    pieces = ((X[i : i + SIZE], labels[i : i + SIZE]) for i in range(0, ROWS, SIZE))
    old(model, "fit_generator", pieces, BATCHES, 1, 0, class_weight=weights)
    np.testing.assert_allclose(model.get_weights()[0], expected[0], rtol=2e-5, atol=2e-6)


class Difference(nn.Module):
    """A model of one or two inputs."""

    @nn.compact
    def __call__(self, a, b=None):
        return nn.Dense(1)(a if b is None else a - 2 * b)


@pytest.mark.filterwarnings("ignore:predict_generator is deprecated")
@pytest.mark.parametrize("rest", [(Y,), (Y, np.ones(ROWS, np.float32))], ids=["y", "y, weight"])
@pytest.mark.parametrize("structure", [list, tuple])
def test_predict_generator_takes_all_inputs(structure, rest):
    model = kdist.Model(Difference())
    inputs = structure([X, X + 5])
    expected = model.predict(inputs if structure is list else list(inputs), verbose=0)
    found = model.predict_generator(iter([(inputs, *rest)]), steps=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_workers_of_a_generator_are_checked():
    with pytest.raises(ConfigError, match="workers must be an integer of 0 or more. Received: -1"):
        kdist.data.from_batches(iter([X]), workers=-1)


def test_inputs_by_a_name_that_the_module_lacks_are_refused(model):
    with pytest.raises(DataError, match="cannot be applied to inputs x of"):
        model.fit({"a": X}, Y, verbose=0)

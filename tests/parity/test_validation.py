"""Validation inside `fit` against Keras: every form of its data, its steps, batches, split and frequency.

Where Keras repeats the first two batches of a generator for each validation (quirk A2), kdist goes on without.
"""

import numpy as np
import pytest

from .models import BATCH, Batches, D, N, Pair, Values, W, X, Y, callback, keras, keras_values, same

HELD_OUT = slice(0, 11)  # in batches of 4: 4, 4 and 3 rows
VX, VY, VW = X[HELD_OUT] + 1, Y[HELD_OUT] - 1, W[HELD_OUT]
SIZE = 4


@pytest.fixture(scope="module")
def pair():
    pair = Pair(Values(), keras_values((D,)), X, ["bottom", "top"])
    return pair.compile("mse", metrics=["mae"], weighted_metrics=["MAE"])


def batches(*arrays, size=SIZE):
    """Batches of so many rows, the last one short."""
    return [tuple(a[i : i + size] for a in arrays) for i in range(0, len(arrays[0]), size)]


class PyBatches(keras.utils.PyDataset):
    """Batches as Keras's PyDataset; without a length they never end."""

    def __init__(self, *arrays, endless=False):
        super().__init__()
        self.batches, self.endless = batches(*arrays), endless

    @property
    def num_batches(self):
        return None if self.endless else len(self.batches)

    def __getitem__(self, index):
        return self.batches[index % len(self.batches)]


def fit(epochs=2, make=None, **kwargs):
    """A call for `Pair`: a fit that returns what the history has, and the losses after each batch of each validation.

    Args:
        epochs: How many.
        make: What makes the validation data; anew for each framework, since a generator is used up.
        kwargs: Arguments of `fit`.
    """

    def call(model):
        watch = callback(Batches, model)
        arguments = {"batch_size": BATCH, "epochs": epochs, "shuffle": False, "verbose": 0, **kwargs}
        if make is not None:
            arguments["validation_data"] = make()
        history = model.fit(X, Y, callbacks=[watch], **arguments)
        return {"history": history.history, "epoch": history.epoch, "tested": watch.tested}

    return call


FORMS = {
    "a tuple": lambda: (VX, VY),
    "a list": lambda: [VX, VY],
    "weights": lambda: (VX, VY, VW),
    "weights in a list": lambda: [VX, VY, VW],
    "a PyDataset": lambda: PyBatches(VX, VY),
    "a PyDataset with weights": lambda: PyBatches(VX, VY, VW),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_validation_data(name, pair):
    found = pair.agree(fit(make=FORMS[name], validation_batch_size=SIZE))
    assert [len(losses) for losses in found["tested"]] == [3, 3]


# As `FORMS` in kdist; Keras takes a generator object once, and none of the others.
FRESH = {
    "a callable": lambda: lambda: iter(batches(VX, VY, VW)),
    "a generator function": lambda: _generator,
}


def _generator():
    yield from batches(VX, VY, VW)


@pytest.mark.parametrize("name", FRESH)
def test_what_makes_an_iterator_is_called_for_each_validation(name, pair):
    expected = pair.ask_keras(fit(make=FORMS["weights"], validation_batch_size=SIZE))
    same(pair.ask_kdist(fit(make=FRESH[name])), expected)


def test_a_generator_for_one_epoch(pair):
    pair.agree(fit(epochs=1, make=_generator))


def test_an_endless_generator_goes_on_without_repetition(pair):
    """Keras sees batches 0, 1 in the first validation and 0, 1 in the second; kdist 0, 1 and then 2, 0."""

    def endless():
        while True:
            yield from batches(VX, VY)

    found = pair.ask_kdist(fit(make=endless, validation_steps=2))
    pieces = batches(VX, VY)
    x, y = (np.concatenate([piece[i] for k in (2, 0) for piece in [pieces[k]]]) for i in range(2))
    # The second validation, alone, of the same two batches after the same training.
    expected = pair.ask_keras(fit(make=lambda: PyBatches(x, y), validation_freq=[2]))["history"]
    assert found["history"]["val_loss"][1] == pytest.approx(expected["val_loss"][0], rel=1e-4)
    assert [len(losses) for losses in found["tested"]] == [2, 2]


def test_a_generator_that_ends_before_the_last_epoch(pair):
    """Keras would validate on its first two batches again; kdist says so, and goes on training without validation."""
    with pytest.warns(UserWarning, match="exhausted.*validat"):
        found = pair.ask_kdist(fit(epochs=3, make=_generator))
    assert len(found["history"]["loss"]) == 3
    assert len(found["history"]["val_loss"]) == 1


# Steps and batches -------------------------------------------------------------------------------

STEPS = {
    "the first two": {"validation_steps": 2, "validation_batch_size": SIZE},
    "as many as there are": {"validation_steps": 3, "validation_batch_size": SIZE},
    "without a batch size": {"validation_steps": 1},
    "one": {"validation_steps": 1, "validation_batch_size": 5},
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("form", ["a tuple", "weights"])
def test_validation_steps_of_arrays_start_anew_each_time(name, form, pair):
    pair.agree(fit(make=FORMS[form], **STEPS[name]))


def test_validation_steps_of_a_dataset_start_anew_each_time(pair):
    for endless in (False, True):
        found = pair.agree(fit(make=lambda e=endless: PyBatches(VX, VY, endless=e), validation_steps=2))
        assert [len(losses) for losses in found["tested"]] == [2, 2]


def test_more_validation_steps_than_data(pair):
    """Both evaluate what there is, and say so."""
    call = fit(make=FORMS["a tuple"], validation_steps=5, validation_batch_size=SIZE)
    expected = pair.ask_keras(call)
    with pytest.warns(UserWarning, match="3 of 5 steps"):
        found = pair.ask_kdist(call)
    same(found, expected)


@pytest.mark.parametrize("size", [1, 4, 11, 64])
def test_validation_batch_size(size, pair):
    found = pair.agree(fit(make=FORMS["weights"], validation_batch_size=size))
    assert len(found["tested"][0]) == -(-11 // size)


def test_validation_batch_size_is_the_batch_size_if_not_given(pair):
    assert [len(losses) for losses in pair.agree(fit(make=FORMS["a tuple"]))["tested"]] == [2, 2]


# Split and frequency -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {"validation_split": 0.5},
        {"validation_split": 0.3, "sample_weight": W},
        {"validation_split": 0.5, "validation_steps": 1, "validation_batch_size": 3},
        {"validation_split": 0.01},
        {"validation_split": 0.0},
        {"validation_split": 0.5, "steps_per_epoch": 1},
    ],
    ids=lambda kwargs: ", ".join(kwargs),
)
def test_validation_split(kwargs, pair):
    pair.agree(fit(**kwargs))


def test_validation_split_takes_the_last_rows_of_every_structure():
    """Of inputs, targets and weights alike, before shuffling: with the rate 0 both losses are plain numbers."""
    pair = Pair(Values(), keras_values((D,)), X, ["bottom", "top"]).compile("mse", rate=0.0)
    call = lambda m: m.fit(X, Y, validation_split=0.4, sample_weight=W, batch_size=N, shuffle=True, verbose=0)  # noqa: E731
    pair.agree(call)


def test_validation_data_win_over_the_split(pair):
    expected = pair.agree(fit(make=FORMS["a tuple"]))
    same(pair.agree(fit(make=FORMS["a tuple"], validation_split=0.5)), expected)


@pytest.mark.parametrize(
    ("freq", "validations"), [(1, 4), (2, 2), (3, 1), (5, 0), ([1, 4], 2), ([2], 1), ([], 0), ([7], 0)], ids=str
)
def test_validation_freq(freq, validations, pair):
    found = pair.agree(fit(epochs=4, make=FORMS["a tuple"], validation_freq=freq))
    assert len(found["tested"]) == len(found["history"].get("val_loss", [])) == validations
    assert len(found["history"]["loss"]) == 4


def test_validation_freq_counts_epochs_from_the_first_of_all(pair):
    """Not from the one that this fit starts with."""
    found = pair.agree(fit(epochs=5, initial_epoch=2, make=FORMS["a tuple"], validation_freq=2))
    assert found["epoch"] == [2, 3, 4] and len(found["tested"]) == 1


def test_validation_arguments_without_data_do_nothing(pair):
    """As in Keras, where only `validation_data` or a split makes a validation."""
    found = pair.agree(fit(validation_steps=3, validation_batch_size=2, validation_freq=2))
    assert found["tested"] == [] and list(found["history"]) == ["MAE", "loss", "mae"]

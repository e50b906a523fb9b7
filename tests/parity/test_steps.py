"""Steps of epochs, evaluations and predictions against Keras, batch by batch.

With `steps_per_epoch` the iterator lives on from epoch to epoch; where data end inside an epoch, both warn, end the
epoch and begin anew.  Keras puts the first two batches of a generator back each time (quirk A2); kdist goes on without
repetition, and stops when the generator has ended.
"""

import numpy as np
import pytest

from .models import Batches, D, Pair, Values, X, Y, callback, keras, keras_values, same

ROWS, SIZE, M = 20, 4, 5  # five batches of four rows
X, Y = X[:ROWS], Y[:ROWS]


@pytest.fixture(scope="module")
def pair():
    return Pair(Values(), keras_values((D,)), X, ["bottom", "top"]).compile("mse", metrics=["mae"])


@pytest.fixture(scope="module")
def still():
    """A pair that does not learn, so that the loss tells which batch it is of."""
    return Pair(Values(), keras_values((D,)), X, ["bottom", "top"]).compile("mse", rate=0.0)


def batches(*arrays, size=SIZE):
    """Batches of so many rows."""
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


def fit(x, y=None, epochs=1, **kwargs):
    """A call for `Pair`: a fit that returns its history, and the running loss after each batch of each epoch.

    Where `x` is a function, it makes the data, anew for each framework.
    """

    def call(model):
        watch = callback(Batches, model)
        arguments = {"epochs": epochs, "shuffle": False, "verbose": 0, **kwargs}
        history = model.fit(x() if callable(x) else x, y, callbacks=[watch], **arguments)
        return {"history": history.history, "epoch": history.epoch, "trained": watch.trained}

    return call


def steps(found):
    """How many batches each epoch had."""
    return [len(losses) for losses in found["trained"]]


def warned(pair, call, *words):
    """What Keras has, which kdist must have too, with a warning that has these words."""
    expected = pair.ask_keras(call)
    with pytest.warns(UserWarning) as caught:
        found = pair.ask_kdist(call)
    message = " ".join(str(w.message) for w in caught)
    assert all(word in message for word in words), message
    same(found, expected)
    return found


# steps_per_epoch ---------------------------------------------------------------------------------

# S and epochs, and the steps that the epochs have, of five batches.
WHOLE = [(5, 2, [5, 5]), (1, 3, [1, 1, 1]), (5, 1, [5]), (2, 2, [2, 2]), (3, 1, [3])]
CUT = [(3, 4, [3, 2, 3, 2]), (8, 2, [5, 5]), (4, 4, [4, 1, 4, 1]), (2, 4, [2, 2, 1, 2])]


@pytest.mark.parametrize(("size", "epochs", "expected"), WHOLE)
def test_epochs_of_so_many_steps_go_on_in_the_data(size, epochs, expected, pair):
    found = pair.agree(fit(X, Y, epochs, batch_size=SIZE, steps_per_epoch=size))
    assert steps(found) == expected


@pytest.mark.parametrize(("size", "epochs", "expected"), CUT)
def test_data_that_end_inside_an_epoch_end_it(size, epochs, expected, pair):
    call = fit(X, Y, epochs, batch_size=SIZE, steps_per_epoch=size)
    found = warned(pair, call, f"of {size} steps", "steps * epochs", ".repeat()")
    assert steps(found) == expected


@pytest.mark.parametrize(("size", "epochs", "expected"), [(3, 4, [3, 2, 3, 2]), (5, 2, [5, 5])])
def test_a_dataset_goes_on_too(size, epochs, expected, pair):
    call = fit(lambda: PyBatches(X, Y), epochs=epochs, steps_per_epoch=size)
    found = pair.agree(call) if size == M else warned(pair, call, f"of {size} steps")
    assert steps(found) == expected


def test_an_endless_dataset_goes_on(pair):
    found = pair.agree(fit(lambda: PyBatches(X, Y, endless=True), epochs=3, steps_per_epoch=3))
    assert steps(found) == [3, 3, 3]


@pytest.mark.parametrize("size", [3, 7, 20])
def test_the_batch_size_follows_from_the_steps(size, pair):
    """``ceil(rows / steps)``, unless it is given."""
    found = pair.agree(fit(X, Y, 2, steps_per_epoch=size))
    assert steps(found) == [size, size]


def test_batch_sizes_of_steps_that_do_not_divide_leave_fewer_batches(pair):
    """20 rows in 8 steps: batches of 3 make 7."""
    assert steps(warned(pair, fit(X, Y, 1, steps_per_epoch=8), "7 of 8 steps")) == [7]


@pytest.mark.parametrize("kwargs", [{"batch_size": SIZE}, {}], ids=["batch size", "no batch size"])
def test_minus_one_is_no_limit(kwargs, pair):
    """As in Keras with a batch size; without one, 32 rows, where Keras has a negative size (semantics 8, 17)."""
    expected = pair.ask_keras(fit(X, Y, 2, batch_size=kwargs.get("batch_size", 32), steps_per_epoch=-1))
    same(pair.ask_kdist(fit(X, Y, 2, steps_per_epoch=-1, **kwargs)), expected)


def test_each_pass_is_shuffled_and_an_epoch_cuts_it_anywhere(still):
    """Five batches in epochs of two and three steps: together they are one pass, in one order."""
    y = np.arange(ROWS, dtype=np.float32)[:, None] * 100
    whole = still.ask_kdist(fit(X, y, 1, batch_size=1, shuffle=True, steps_per_epoch=20))
    cut = still.ask_kdist(fit(X, y, 2, batch_size=1, shuffle=True, steps_per_epoch=10))
    straight = still.ask_kdist(fit(X, y, 1, batch_size=1))
    seen = [value for losses in cut["trained"] for value in _each(losses)]
    np.testing.assert_allclose(sorted(seen), sorted(_each(straight["trained"][0])), rtol=1e-3, atol=1)
    assert not np.allclose(seen, _each(straight["trained"][0]), rtol=1e-3)
    np.testing.assert_allclose(seen, _each(whole["trained"][0]), rtol=1e-3, atol=1)


def _each(running):
    """The losses of equal batches, from their running means."""
    return np.diff([0.0, *(mean * (i + 1) for i, mean in enumerate(running))])


def test_shuffle_batch_moves_whole_batches(still):
    """As in Keras 2 (semantics 8, 5): batches stay together, in another order each pass, the short one stays last."""
    y = np.arange(18, dtype=np.float32)[:, None] * 100
    straight = still.ask_kdist(fit(X[:18], y, 1, batch_size=SIZE))["trained"][0]
    found = still.ask_kdist(fit(X[:18], y, 3, batch_size=SIZE, shuffle="batch"))["trained"]
    plain = _each(straight[:4])
    orders = [[int(np.abs(plain - value).argmin()) for value in _each(losses[:4])] for losses in found]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders) and len(set(map(tuple, orders))) > 1
    for losses in found:
        np.testing.assert_allclose(sorted(_each(losses[:4])), sorted(plain), rtol=1e-4)
        assert losses[4] == pytest.approx(straight[4], rel=1e-4)


# Generators --------------------------------------------------------------------------------------


def four():
    """A generator of four batches."""
    yield from batches(X, Y)[:4]


def endless():
    """Batches without end."""
    while True:
        yield from batches(X, Y)


def seen(found, pair):
    """Which of the five batches each step of a fit at rate 0 had."""
    known = [float(pair.ours.test_on_batch(*piece)) for piece in batches(X, Y)]
    return [[int(np.abs(np.array(known) - value).argmin()) for value in _each(losses)] for losses in found["trained"]]


@pytest.mark.parametrize(("size", "epochs"), [(2, 3), (5, 2), (7, 2)])
def test_an_endless_generator(size, epochs, pair, still):
    pair.agree(fit(endless, epochs=epochs, steps_per_epoch=size))
    found = still.ask_kdist(fit(endless, epochs=epochs, steps_per_epoch=size))
    order = [i % M for i in range(size * epochs)]
    assert seen(found, still) == [order[i : i + size] for i in range(0, size * epochs, size)]


def test_a_generator_that_ends_is_one_epoch(pair):
    pair.agree(fit(four))


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [({"epochs": 3}, [[0, 1, 2, 3]]), ({"epochs": 3, "steps_per_epoch": 3}, [[0, 1, 2], [3]])],
    ids=["whole", "steps"],
)
def test_a_generator_that_ends_early_ends_training(kwargs, expected, still):
    """Keras goes on with its first two batches; kdist says in which epoch it ended, and trains on nothing twice."""
    with pytest.warns(UserWarning, match="ran out of data") as caught:
        found = still.ask_kdist(fit(four, **kwargs))
    assert f"epoch {len(expected) + 1}" in str(caught[-1].message)
    assert [order for order in seen(found, still) if order] == expected
    assert len(found["history"]["loss"]) == len(expected)


FRESH = {
    "a callable": lambda: lambda: iter(batches(X, Y)),
    "a list of batches": lambda: batches(X, Y),
    "a PyDataset": lambda: PyBatches(X, Y),
    "batches as lists": lambda: lambda: (list(piece) for piece in batches(X, Y)),
}


@pytest.mark.parametrize("name", FRESH)
def test_what_can_be_iterated_again_is_a_pass_an_epoch(name, pair):
    """Keras takes of these the PyDataset (quirks 37 and 38), and the same batches from arrays."""
    expected = pair.ask_keras(fit(X, Y, 2, batch_size=SIZE))
    same(pair.ask_kdist(fit(FRESH[name], epochs=2)), expected)


def test_an_iterator_is_taken_as_a_generator_is(pair):
    expected = pair.ask_keras(fit(X, Y, batch_size=SIZE))
    same(pair.ask_kdist(fit(lambda: iter(batches(X, Y)))), expected)


def test_generators_take_no_shuffle_without_a_word(pair):
    """Keras warns at every fit of a generator, since shuffling is its default; kdist only where it was asked for."""
    pair.ask_kdist(lambda m: m.fit(four(), verbose=0))


# Evaluation and prediction -----------------------------------------------------------------------

STEPS = {
    "the first two": {"steps": 2, "batch_size": SIZE},
    "all": {"steps": 5, "batch_size": SIZE},
    "without a batch size": {"steps": 3},
    "one of all rows": {"steps": 1},
    "a last short batch": {"steps": 3, "batch_size": 8},
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_of_evaluate_and_predict(name, pair):
    pair.agree(lambda m: m.evaluate(X, Y, verbose=0, return_dict=True, **STEPS[name]))
    pair.agree(lambda m: m.predict(X, verbose=0, **STEPS[name]))


@pytest.mark.parametrize("make", [four, lambda: PyBatches(X, Y), endless, lambda: PyBatches(X, Y, endless=True)])
def test_steps_of_evaluating_and_predicting_batches(make, pair):
    pair.agree(lambda m: m.evaluate(make(), steps=3, verbose=0))
    pair.agree(lambda m: m.predict(make(), steps=3, verbose=0))


@pytest.mark.parametrize("make", [four, lambda: PyBatches(X, Y)])
def test_all_of_evaluated_and_predicted_batches(make, pair):
    pair.agree(lambda m: m.evaluate(make(), verbose=0))
    pair.agree(lambda m: m.predict(make(), verbose=0))


def test_more_steps_than_data(pair):
    warned(pair, lambda m: m.evaluate(X, Y, batch_size=SIZE, steps=7, verbose=0), "5 of 7 steps")
    warned(pair, lambda m: m.predict(X, batch_size=SIZE, steps=7, verbose=0), "5 of 7 steps")

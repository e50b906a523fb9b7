"""Data that cannot be trained on, found where they are read: by kdist's own errors, and the model can go on.

What is refused before anything is read is in tests/test_bad_input.py.
"""

import multiprocessing
import re
import threading

import flax.linen as nn
import jax
import numpy as np
import pytest
from numbers_source import ROWS, Broken, Rows, X, Y

import kdist
from kdist.data import from_batches, from_source
from kdist.errors import DataError, KDistError

BATCH = (X[:4], Y[:4])


@pytest.fixture(scope="module")
def model():
    made = kdist.Model(nn.Dense(1), seed=0)
    made.compile("sgd", "mse", distribution=kdist.DataParallel(devices=jax.devices()[:2]), steps_per_execution=1)
    made.build(X)
    return made


@pytest.fixture(autouse=True)
def goes_on(model):
    """After each test the weights are whole, another `fit` works, and no thread or process is left."""
    before = set(threading.enumerate())
    yield
    assert not set(threading.enumerate()) - before
    assert not multiprocessing.active_children()
    assert all(np.isfinite(w).all() for w in model.get_weights())
    loss = model.fit(X, Y, verbose=0).history["loss"]
    assert np.isfinite(loss).all()


def raised(model, call, *data, **arguments):
    """The error of a call, without what it holds."""
    with pytest.raises(KDistError) as caught:
        getattr(model, call)(*data, verbose=0, **arguments)
    assert isinstance(caught.value, DataError)
    return str(caught.value)


# Batches -----------------------------------------------------------------------------------------


def batches(*items):
    return lambda: iter(items)


CHANGES = {
    # what comes after two good batches, and words of the error
    "a list of four": ([*BATCH, X, X], r"\(x, y, sample_weight\)", "list of 4"),
    "a tuple of none": ((), r"\(x, y, sample_weight\)", "tuple of 0"),
    "no targets": ((X[:4],), "All batches must have the same structure"),
    "a dict": ({"a": X[:4], "b": Y[:4]}, "All batches must have the same structure"),
    "a dict of inputs": (({"a": X[:4]}, Y[:4]), "All batches must have the same structure"),
    "weights too": ((*BATCH, np.ones(4)), "All batches must have the same structure"),
    "a number": (3.0, "x is a float, not an array"),
    "text": ("rows.csv", "x is a str, not an array"),
    "None": (None, "structure|x is"),
    "another width": ((X[:4, :2], Y[:4]), "shape|features", "2"),
    "another rank": ((X[:4, 0], Y[:4]), "shape"),
    "targets of another width": ((X[:4], np.ones((4, 2))), r"targets of shape \(2,\)"),
    "objects": ((X[:4].astype(object), Y[:4]), "x has dtype object"),
    "strings": ((X[:4], np.array(["a"] * 4)), "y has dtype <U1"),
    "x longer than y": ((X[:4], Y[:3]), "same number of rows", "x: 4", "y: 3"),
    "rows of unequal length": ((np.array([np.ones(3), np.ones(2)], object), Y[:2]), "x has dtype object"),
    "one number": ((np.float32(3), Y[:4]), "x is a single number"),
    "no rows": ((X[:0], Y[:0]), "no rows|0 rows|empty"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_is_not_like_those_before(model, name, workers):
    item, *words = CHANGES[name]
    message = raised(model, "fit", from_batches(batches(BATCH, BATCH, item), workers=workers))
    for word in words:
        assert re.search(word, message), message


def test_batches_of_another_length_or_type_that_the_model_takes(model):
    items = [BATCH, (X[:3], Y[:3]), (X[:4].astype(np.float64), Y[:4]), (X[:4].astype(np.int8), Y[:4])]
    assert np.isfinite(model.fit(batches(*items), verbose=0).history["loss"][0])


NOTHING = {
    "a generator": lambda: iter(()),
    "a function": lambda: batches(),
    "an object": lambda: from_batches(set()),
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
def test_sources_of_nothing(model, name, call):
    assert "The data are empty" in raised(model, call, NOTHING[name]())


def test_validation_of_nothing(model):
    message = raised(model, "fit", X, Y, validation_data=batches())
    assert message.startswith("validation_data: The data are empty")


def test_more_steps_than_there_are_batches(model):
    with pytest.warns(UserWarning, match="Your input ran out of data: Epoch 1 had 2 of 5 steps"):
        model.fit(batches(BATCH, BATCH), steps_per_epoch=5, verbose=0)


# Rows --------------------------------------------------------------------------------------------


class Odd(Rows):
    """Row 9 is something else."""

    def __init__(self, row):
        super().__init__()
        self.row = row

    def __getitem__(self, n):
        return self.row if n == 9 else super().__getitem__(n)


ROW = (X[0], Y[0])
ODD = {
    # row 9, and words of the error, which names it
    "no targets": ((X[0],), r"Row 9 of the Odd is \(float32\[3\],\), "),
    "weights too": ((*ROW, 1.0), r"Row 9 of the Odd is \(float32\[3\], float32\[1\], float64\[\]\)"),
    "four": ((*ROW, 1.0, 1.0), "Row 9 of the Odd is"),
    "a dict": ({"x": X[0]}, r"Row 9 of the Odd is \{x: float32\[3\]\}"),
    "nothing": (None, "Row 9 of the Odd is None. Leave rows out by a grain.transforms.Filter"),
    "another width": ((X[0, :2], Y[0]), r"Row 9 of the Odd is \(float32\[2\], float32\[1\]\)"),
    "another rank": ((X[0], Y[0, 0]), r"Row 9 of the Odd is \(float32\[3\], float32\[\]\)"),
    "a complex number": ((X[0] * 1j, Y[0]), r"Row 9 of the Odd is \(complex64\[3\], float32\[1\]\)"),
    "text": (("a", Y[0]), "Row 9 of the Odd is"),
    "objects": ((X[0].astype(object), Y[0]), r"Row 9 of the Odd is \(object\[3\], float32\[1\]\)"),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    ("batch_size", "workers"), [(4, 0), (ROWS, 0), (1, 0), (4, 2)], ids=["later", "first", "alone", "threads"]
)
def test_a_row_that_is_not_like_the_others(model, name, batch_size, workers):
    """Whether it is read among others, alone, or in the batch that is looked at before training."""
    row, message = ODD[name]
    loader = from_source(Odd(row), batch_size=batch_size, workers=workers, shuffle=False)
    with pytest.raises(DataError, match=message):
        model.fit(loader, verbose=0)


def test_a_type_that_changes_is_found_from_either_side(model):
    """Integers among numbers, as a file of Python's numbers has them: rows of each kind alone are of another type."""
    rows = [(x, float(n) if n < 4 else n) for n, x in enumerate(X)]
    with pytest.raises(DataError, match=r"Row 4 of the list is \(float32\[3\], int64\[\]\), row 0 is .*float64\[\]"):
        model.fit(from_source(rows, batch_size=4, shuffle=False), verbose=0)
    with pytest.raises(
        DataError, match=r"Row 4 of the list is \(float32\[3\], int32\[\]\), the first are .*float32\[\]"
    ):
        from_source(rows, batch_size=4).read(np.arange(4, 7))


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"a": 1.0}, r"\{a: float64\[\]\}"),
        ((1.0, 2.0), r"\(float64\[\], float64\[\]\)"),
        ({"a": 1.0, "b": X}, r"\{a: float64\[\], b: float32\[23, 3\]\}"),
        ({"a": 1, "b": 2.0}, r"\{a: int64\[\], b: float64\[\]\}"),
    ],
    ids=["a name less", "tuple", "shape", "type"],
)
def test_rows_of_names_that_are_not_alike(odd, message):
    with pytest.raises(DataError, match=f"Row 1 of the list is {message}, row 0 is .a: float64"):
        from_source([{"a": 1.0, "b": 2.0}, odd]).example()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a", "b"], "x has dtype <U1"),
        ([{}, {}], "Rows of the list cannot be put together|x is"),
        ([(), ()], r"A batch must be x, \(x,\)"),
        ([(1, 2, 3, 4)] * 3, r"Rows of the list.*\(x, y, sample_weight\).*of 4"),
        ([None, None], "Row 0 of the list is None"),
        ([X[0].astype(object)] * 3, "x has dtype object"),
        ([2**40, 3], "x holds integers from 3 to 1099511627776"),
    ],
    ids=["text", "empty dicts", "empty tuples", "four", "None", "objects", "large"],
)
def test_rows_that_are_none(model, rows, message):
    with pytest.raises(DataError, match=message):
        model.predict(from_source(rows), verbose=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("call", ["fit", "evaluate", "predict", "validation_data"])
@pytest.mark.parametrize("at", [0, 13])
def test_a_row_that_cannot_be_read(model, workers, call, at):
    """The error names it, and says where that was."""
    loader = from_source(Broken(at=at), batch_size=4, workers=workers)
    with pytest.raises(DataError, match=f"Row {at} of the Broken could not be read: KeyError: 'the disk is gone'") as e:
        if call == "validation_data":
            model.fit(X, Y, validation_data=loader, verbose=0)
        else:
            getattr(model, call)(loader, verbose=0)
    cause = e.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert isinstance(cause, KeyError)
    trace = cause.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    assert trace.tb_frame.f_code.co_filename.endswith("numbers_source.py")


def test_a_transform_that_fails_names_the_row(model):
    def divide(row):
        return row[0], 1 // int(row[0][0] * 32 - 27)

    with pytest.raises(DataError, match="Row 9 of the Rows could not be read: ZeroDivisionError"):
        model.fit(from_source(Rows(), transforms=[divide]), verbose=0)


def test_what_was_trained_before_the_bad_row_stays(model):
    weights = model.get_weights()
    with pytest.raises(DataError, match="Row 20"):
        model.fit(from_source(Broken(at=20), batch_size=1, shuffle=False), epochs=2, verbose=0)
    with pytest.raises(DataError, match="Row 20"):
        model.fit(from_source(Broken(at=20), batch_size=4, shuffle=False), verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    model.set_weights(weights)


@pytest.mark.parametrize("name", ["y", "sample_weight"])
@pytest.mark.parametrize("make", [from_source, lambda rows: rows], ids=["loader", "object"])
def test_targets_and_weights_beside_rows(model, name, make):
    message = raised(model, "fit", make(Rows()), **{name: Y})
    assert f"{name} goes into the" in message and "(x, y, sample_weight)" in message


@pytest.mark.parametrize("make", [from_source, lambda rows: rows], ids=["loader", "object"])
def test_a_part_of_rows_to_validate(model, make):
    message = raised(model, "fit", make(Rows()), validation_split=0.5)
    assert "validation_split takes rows from the end of arrays" in message and "Pass validation_data" in message


@pytest.mark.parametrize("data", [from_source(Rows(), batch_size=4), Rows()], ids=["loader", "object"])
def test_more_steps_than_there_are_rows(model, data):
    """As with arrays."""
    for arguments in ({"x": data}, {"x": X, "y": Y}):
        with pytest.warns(UserWarning, match=r"Your input ran out of data: Epoch 1 had \d of 100 steps"):
            if isinstance(data, Rows) or "y" in arguments:
                arguments["batch_size"] = 4
            history = model.fit(**arguments, steps_per_epoch=100, epochs=1, verbose=0)
        assert len(history.history["loss"]) == 1


@pytest.mark.parametrize("source", [[], X[:0], Rows(0)], ids=["list", "array", "object"])
def test_no_rows(source):
    with pytest.raises(DataError, match="The data are empty: the .* has no rows"):
        from_source(source)


@pytest.mark.parametrize("source", [3, None, iter([1]), {"a": X}, {1, 2}, list, lambda: 3], ids=type)
def test_what_has_no_rows_by_number(source):
    with pytest.raises(DataError, match="Expected rows by number: an object with __len__ and __getitem__"):
        from_source(source)


def test_rows_without_targets(model):
    assert "There are no targets" in raised(model, "fit", from_source(X))
    assert "There are no targets" in raised(model, "evaluate", from_source(X))


def test_rows_that_do_not_fit_the_model(model):
    with pytest.raises(DataError, match="targets"):
        model.fit(from_source([(x, np.ones(2)) for x in X], workers=2), verbose=0)
    with pytest.raises(DataError, match="shape"):
        model.fit(from_source([(x[:2], y) for x, y in zip(X, Y, strict=True)], workers=2), verbose=0)


@pytest.mark.parametrize("at", [2, 19])
@pytest.mark.parametrize("call", ["fit", "evaluate"])
@pytest.mark.parametrize("kind", ["rows", "batches"])
def test_labels_that_are_no_class(at, call, kind):
    classes = kdist.Model(nn.Dense(3), seed=0)
    loss = kdist.losses.SparseCategoricalCrossentropy(from_logits=True)
    classes.compile("sgd", loss, distribution=kdist.DataParallel(devices=jax.devices()[:1]), steps_per_execution=1)
    labels = np.arange(ROWS) % 3
    labels[at] = 7
    if kind == "rows":
        data = from_source(list(zip(X, labels, strict=True)), batch_size=4, shuffle=False, workers=1)
    else:
        data = [(X[i : i + 4], labels[i : i + 4]) for i in range(0, ROWS, 4)]
    if call == "evaluate":
        classes.build(X)
    assert "7" in raised(classes, call, data)

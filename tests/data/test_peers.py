"""The datasets of torch, Hugging Face and TensorFlow, where they are installed, train as arrays do.

`test_rows.py` and `test_sources.py` have stand-ins with the same interface, which run everywhere.
"""

import warnings

import flax.linen as nn
import jax
import numpy as np
import pytest

import kdist
from kdist.data import from_batches, from_source

ROWS, SIZE = 13, 4
X = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)


def module(name):
    """The module, or a skip: what it warns of as it is imported is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def model():
    made = kdist.Model(nn.Dense(1))
    made.compile("sgd", "mse", distribution=kdist.DataParallel(devices=jax.devices()[:2]))
    made.build(X)
    return made


@pytest.fixture(scope="module")
def start(model):
    return model.get_weights()


@pytest.fixture
def check(model, start):
    """``check(source, rows=...)``: that it trains, validates, evaluates and predicts as the arrays do."""

    def results(data, **arguments):
        model.set_weights(start)
        history = model.fit(*data, epochs=2, shuffle=False, verbose=0, **arguments).history
        return history, model.evaluate(*data, verbose=0), model.predict(data[0], verbose=0)

    def check(make):
        expected = results((X, Y), batch_size=SIZE, validation_data=(X, Y))
        found = results((make(),), validation_data=make())
        assert list(found[0]) == list(expected[0])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)

    return check


@pytest.mark.parametrize("workers", [0, 2])
def test_a_torch_dataset(check, workers):
    """By number, read by threads or none."""
    torch = module("torch")
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    check(lambda: from_source(dataset, batch_size=SIZE, shuffle=False, workers=workers))


def test_a_torch_dataset_is_taken_as_it_is(model):
    torch = module("torch")
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    assert model.evaluate(dataset, batch_size=SIZE, verbose=0) == model.evaluate(X, Y, batch_size=SIZE, verbose=0)


@pytest.mark.parametrize("explicit", [False, True])
def test_a_torch_loader(check, explicit):
    """Which is iterated over anew each epoch; it yields lists of tensors."""
    torch = module("torch")
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    loader = torch.utils.data.DataLoader(dataset, batch_size=SIZE)
    check((lambda: from_batches(loader)) if explicit else (lambda: loader))


def test_torch_tensors_are_arrays(model):
    torch = module("torch")
    found = model.evaluate(torch.from_numpy(X), torch.from_numpy(Y), verbose=0)
    assert found == model.evaluate(X, Y, verbose=0)


@pytest.mark.parametrize("form", [None, "numpy"])
def test_a_hugging_face_dataset(check, form):
    """Whose rows are dicts, of Python's lists or of arrays."""
    datasets = module("datasets")
    dataset = datasets.Dataset.from_dict({"inputs": X, "target": Y}).with_format(form)

    def pair(row):
        return np.float32(row["inputs"]), np.float32(row["target"])

    check(lambda: from_source(dataset, batch_size=SIZE, shuffle=False, transforms=[pair]))


def test_a_tensorflow_dataset(check):
    """Which is iterated over anew each epoch."""
    tensorflow = module("tensorflow")
    dataset = tensorflow.data.Dataset.from_tensor_slices((X, Y)).batch(SIZE)
    check(lambda: dataset)


def test_an_endless_tensorflow_dataset(model):
    tensorflow = module("tensorflow")
    dataset = tensorflow.data.Dataset.from_tensor_slices((X, Y)).batch(SIZE).repeat()
    assert len(model.fit(dataset, steps_per_epoch=3, epochs=3, verbose=0).history["loss"]) == 3

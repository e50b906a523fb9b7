"""Sample and class weights against Keras: their layouts, what they weight, and what they do not.

Where Keras fails or is wrong, kdist is compared with the weights that were meant: weights a row for outputs with time
steps (quirk A1), class weights of time steps (A8), weights by name for outputs in a list, class weights of generators.
"""

import numpy as np
import pytest

import kdist

from .models import (
    BATCH,
    LABELS,
    RATE,
    SEQUENCES,
    STEP_LABELS,
    STEP_VALUES,
    STEP_W,
    C,
    Classes,
    D,
    Heads,
    N,
    Pair,
    T,
    Values,
    W,
    X,
    Y,
    keras,
    keras_classes,
    keras_heads,
    keras_values,
    same,
)

ONE_HOT = np.eye(C, dtype=np.float32)[LABELS]
SPARSE = "sparse_categorical_crossentropy"
CLASS_WEIGHT = {0: 0.2, 1: 3.0, 2: 1.5}
METRICS = {"metrics": ["accuracy"], "weighted_metrics": ["acc"]}  # one function under two names


@pytest.fixture(scope="module")
def sparse():
    return Pair(Classes(), keras_classes((D,)), X, ["top"]).compile(SPARSE, **METRICS)


@pytest.fixture(scope="module")
def one_hot():
    return Pair(Classes(), keras_classes((D,)), X, ["top"]).compile("categorical_crossentropy", **METRICS)


@pytest.fixture(scope="module")
def step_classes():
    return Pair(Classes(), keras_classes((T, D)), SEQUENCES, ["top"]).compile(SPARSE, **METRICS)


@pytest.fixture(scope="module")
def step_values():
    pair = Pair(Values(), keras_values((T, D)), SEQUENCES, ["bottom", "top"])
    return pair.compile("mse", metrics=["mae"], weighted_metrics=["MAE"])


def fit(x, y, **kwargs):
    """A call for `Pair`: a short fit without shuffling."""
    arguments = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0, **kwargs}
    return lambda model: model.fit(x, y, **arguments)


def batches(x, y, *weight):
    """The same rows as a fit without shuffling takes, as a list of batches."""
    return [tuple(a[i : i + BATCH] for a in (x, y, *weight)) for i in range(0, len(x), BATCH)]


class PyBatches(keras.utils.PyDataset):
    """Batches as Keras's PyDataset."""

    def __init__(self, *arrays):
        super().__init__()
        self.batches = batches(*arrays)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


# Sample weights ----------------------------------------------------------------------------------

ROW_WEIGHTS = {
    "a row": W,
    "a column": W[:, None],
    "ones": np.ones(N),
    "zeros": np.zeros(N),
    "whole numbers": np.arange(N) % 3,
    "float64": W.astype(np.float64),
}


@pytest.mark.parametrize("name", ROW_WEIGHTS)
def test_weights_a_row(name, sparse):
    w = ROW_WEIGHTS[name]
    sparse.agree(fit(X, LABELS, sample_weight=w))
    sparse.agree(lambda m: m.evaluate(X, LABELS, sample_weight=w, batch_size=BATCH, verbose=0))


def test_weights_of_validation_data_weight_its_loss_and_weighted_metrics(sparse):
    held_out = (X[:10], LABELS[:10], W[:10])
    found = sparse.agree(fit(X, LABELS, validation_data=held_out))["history"]
    unweighted = sparse.agree(fit(X, LABELS, validation_data=held_out[:2]))["history"]
    assert found["val_loss"] != unweighted["val_loss"] and found["loss"] == unweighted["loss"]
    assert found["val_accuracy"] == unweighted["val_accuracy"] == unweighted["val_acc"]


STEP_WEIGHTS = {
    "a step": STEP_W,
    "a row in a column": STEP_W[:, :1],
    "masked steps": (STEP_W > 1).astype(np.float32),
    "padded ends": (np.arange(T) < 1 + np.arange(N)[:, None] % T).astype(np.float32),
    "zeros": np.zeros((N, T)),
}


@pytest.mark.parametrize("name", STEP_WEIGHTS)
@pytest.mark.parametrize("kind", ["step_classes", "step_values"])
def test_weights_a_time_step(name, kind, request):
    y = {"step_classes": STEP_LABELS, "step_values": STEP_VALUES}[kind]
    pair = request.getfixturevalue(kind)
    pair.agree(fit(SEQUENCES, y, sample_weight=STEP_WEIGHTS[name]))
    pair.agree(lambda m: m.evaluate(SEQUENCES, y, sample_weight=STEP_WEIGHTS[name], batch_size=BATCH, verbose=0))


@pytest.mark.parametrize("rows", [N, T], ids=["rows", "as many rows as steps"])
def test_weights_a_row_of_outputs_with_steps(rows, step_classes):
    """Keras's loss fails, or weights the steps if there are as many as rows; kdist has what a column gives in Keras."""
    x, y, w = SEQUENCES[:rows], STEP_LABELS[:rows], W[:rows]
    expected = step_classes.ask_keras(fit(x, y, sample_weight=w[:, None]))
    same(step_classes.ask_kdist(fit(x, y, sample_weight=w)), expected)


@pytest.mark.parametrize("mode", ["temporal", ["temporal"], {"output_0": "temporal"}])
def test_sample_weight_mode_changes_no_number(mode, step_classes):
    """An argument of Keras 2: the rank of the weights says it all."""
    call = fit(SEQUENCES, STEP_LABELS, sample_weight=STEP_W)
    expected = step_classes.ask_keras(call)
    model = kdist.Model(Classes())
    model.compile(kdist.optimizers.SGD(RATE), SPARSE, **METRICS, sample_weight_mode=mode)
    model.build(SEQUENCES)
    same(call(model).history, expected["history"])


@pytest.mark.parametrize("reduction", ["sum", "mean_with_sample_weight"])
def test_weights_under_other_reductions(reduction):
    """On one device and, as everywhere here, on eight; the epoch averages batches by their rows, not their weights."""
    pair = Pair(Classes(), keras_classes((T, D)), SEQUENCES, ["top"])
    pair.compile(lambda lib: lib.losses.SparseCategoricalCrossentropy(reduction=reduction), rate=0.02)
    pair.agree(fit(SEQUENCES, STEP_LABELS, sample_weight=STEP_W))


def test_weights_by_output():
    """One array for all, or a structure like the targets, or one of names or positions; None for none."""
    y = {"dict": {"p": ONE_HOT, "q": Y}, "list": [ONE_HOT, Y]}
    other = W[::-1].copy()
    settings = {"metrics": {"q": ["mae"]}, "weighted_metrics": {"p": ["mae"], "q": ["mae"]}}
    forms = {
        "dict": [W, {"p": W, "q": other}, {"q": other, "p": None}],
        "list": [W[:, None], [W, other], (None, other)],
    }
    meant = {"dict": {"p": None, "q": other}, "list": [None, other]}
    as_meant = {"dict": [{"q": other}, [None, other]], "list": [{"q": other}]}
    for form, weights in forms.items():
        pair = Pair(Heads(form), keras_heads(form), X, ["p", "q"]).compile("mse", **settings, eagerly=True)

        def batch(w, y=y[form]):
            return lambda m: m.test_on_batch(X, y, w, return_dict=True)

        for w in weights:
            pair.agree(batch(w))
        for w in as_meant[form]:  # where Keras has a KeyError or a TypeError
            same(pair.ask_kdist(batch(w)), pair.ask_keras(batch(meant[form])))


# Class weights -----------------------------------------------------------------------------------

TARGETS = {
    "labels": ("sparse", LABELS),
    "labels in a column": ("sparse", LABELS[:, None]),
    "labels as floats": ("sparse", LABELS.astype(np.float32)),
    "one-hot": ("one_hot", ONE_HOT),
}
CLASS_WEIGHTS = {
    "all classes": CLASS_WEIGHT,
    "a missing class": {0: 0.2, 2: 4},
    "classes that do not occur": {**CLASS_WEIGHT, 7: 100.0},
    "none": {},
    "keys of NumPy": {np.int64(1): np.float32(3)},
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("weights", CLASS_WEIGHTS)
def test_class_weight(name, weights, request):
    """A class weight is a sample weight: the loss and weighted metrics have it, the other metrics not."""
    kind, y = TARGETS[name]
    found = request.getfixturevalue(kind).agree(fit(X, y, class_weight=CLASS_WEIGHTS[weights]))["history"]
    assert (found["accuracy"] == pytest.approx(found["acc"])) == (weights == "none")


def test_class_weight_is_not_for_validation(sparse):
    kwargs = {"validation_data": (X[:10], LABELS[:10])}
    weighted = sparse.agree(fit(X, LABELS, class_weight=CLASS_WEIGHT, epochs=1, **kwargs))["history"]
    assert weighted["val_accuracy"] == weighted["val_acc"]
    assert weighted["accuracy"] != weighted["acc"]
    sparse.agree(fit(X, LABELS, class_weight=CLASS_WEIGHT, validation_split=0.3))


@pytest.mark.parametrize("keys", [{"0": 0.2, "1": 3.0, "2": 1.5}, {0.0: 0.2, 1.0: 3.0, 2.0: 1.5}])
def test_class_weight_with_keys_that_are_whole_numbers_in_other_dress(keys, sparse):
    """As Keras has it after 3.15."""
    same(
        sparse.ask_kdist(fit(X, LABELS, class_weight=keys)), sparse.ask_keras(fit(X, LABELS, class_weight=CLASS_WEIGHT))
    )


def test_class_weight_of_time_steps(step_classes):
    """Keras takes the largest of the labels of a row for its class; kdist weights each step by its own."""
    table = np.array([CLASS_WEIGHT[c] for c in range(C)], np.float32)
    expected = step_classes.ask_keras(fit(SEQUENCES, STEP_LABELS, sample_weight=table[STEP_LABELS]))
    same(step_classes.ask_kdist(fit(SEQUENCES, STEP_LABELS, class_weight=CLASS_WEIGHT)), expected)


@pytest.mark.parametrize("name", TARGETS)
def test_class_weight_of_a_batch(name, request):
    kind, y = TARGETS[name]
    pair = request.getfixturevalue(kind)
    pair.agree(lambda m: m.train_on_batch(X, y, class_weight=CLASS_WEIGHT))
    pair.agree(lambda m: m.train_on_batch(X, y, class_weight={2: 0.0}, return_dict=True))


def test_class_weight_of_a_py_dataset(sparse):
    found = sparse.agree(
        lambda m: m.fit(PyBatches(X, LABELS), epochs=2, shuffle=False, class_weight=CLASS_WEIGHT, verbose=0)
    )
    same(found, sparse.ask_kdist(fit(X, LABELS, class_weight=CLASS_WEIGHT)))


@pytest.mark.parametrize("kind", ["generator", "callable", "fit_generator"])
def test_class_weight_of_generators(kind, sparse):
    """Keras 3 refuses it for generators, Keras 2 took it (semantics 8, 19); rows are weighted as those of arrays."""
    pieces = batches(X, LABELS)

    def endless():
        while True:
            yield from pieces

    call = {
        "generator": lambda m: m.fit(
            endless(), epochs=2, steps_per_epoch=len(pieces), class_weight=CLASS_WEIGHT, verbose=0
        ),
        "callable": lambda m: m.fit(lambda: iter(pieces), epochs=2, class_weight=CLASS_WEIGHT, verbose=0),
        "fit_generator": lambda m: _deprecated(m, endless(), len(pieces)),
    }[kind]
    same(sparse.ask_kdist(call), sparse.ask_keras(fit(X, LABELS, class_weight=CLASS_WEIGHT)))


def _deprecated(model, generator, steps):
    with pytest.warns(DeprecationWarning, match="fit_generator"):
        return model.fit_generator(generator, steps, epochs=2, verbose=0, class_weight=CLASS_WEIGHT)

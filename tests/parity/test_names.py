"""Names of logs and their order against Keras: of metrics as given, numbered, prefixed, in dicts, lists and histories.

What kdist has its own way: one canonical order of lists, no value twice, `metrics_names` that label them, names that
would collide refused.
"""

import numpy as np
import pytest

import kdist
from kdist.errors import ConfigError

from .models import (
    BATCH,
    LABELS,
    Classes,
    D,
    Heads,
    Pair,
    Values,
    W,
    X,
    Y,
    keras_classes,
    keras_heads,
    keras_values,
    same,
)


@pytest.fixture(scope="module")
def values():
    return Pair(Values(), keras_values((D,)), X, ["bottom", "top"], n=1)


@pytest.fixture(scope="module")
def classes():
    return Pair(Classes(), keras_classes((D,)), X, ["top"], n=1)


@pytest.fixture(scope="module")
def heads():
    return Pair(Heads(), keras_heads(), X, ["p", "q"], n=1)


def my_metric(y_true, y_pred):
    """A metric of a user's own."""
    return abs(y_true - y_pred).mean(axis=-1)


def one(lib):
    """A metric that is one number a batch."""

    def always_one(y_true, y_pred):
        return 1.0 + 0.0 * y_pred.mean()

    return always_one


# One output --------------------------------------------------------------------------------------

# name: metrics, weighted_metrics, the names that they are logged by, in the order of a list.
ONE_OUTPUT = {
    "a string as it is written": (["mse", "MAE"], None, ["mse", "MAE"]),
    "a class by name": (["MeanSquaredError"], None, ["MeanSquaredError"]),
    "in snake case": (["mean_absolute_error"], None, ["mean_absolute_error"]),
    "an object": (lambda lib: [lib.metrics.MeanSquaredError()], None, ["mean_squared_error"]),
    "an object with a name": (lambda lib: [lib.metrics.MeanSquaredError(name="mine")], None, ["mine"]),
    "a class": (lambda lib: [lib.metrics.MeanAbsoluteError], None, ["mean_absolute_error"]),
    "a function": ([my_metric], None, ["my_metric"]),
    "a function of one number": (lambda lib: [one(lib)], None, ["always_one"]),
    "a lambda": ([lambda y_true, y_pred: abs(y_true - y_pred)], None, ["lambda"]),
    "a tuple": (("mse", "mae"), None, ["mse", "mae"]),
    "nested": ([["mse", ["mae"]]], None, ["mse", "mae"]),
    "a dict, whose key is not looked at": ({"anything": ["mse", "mae"]}, None, ["mse", "mae"]),
    "not the alphabet": (["mse", "mae", "MAPE"], None, ["mse", "mae", "MAPE"]),
    "weighted with a name of its own": (["mae"], ["mse"], ["mae", "mse"]),
    "weighted alone": (None, ["mse"], ["mse"]),
}


@pytest.mark.parametrize("name", ONE_OUTPUT)
def test_names_of_one_output(name, values):
    """Without repeated names, the list is Keras's list, and `metrics_names` label it."""
    metrics, weighted, names = ONE_OUTPUT[name]
    values.compile("mse", metrics=metrics, weighted_metrics=weighted, eagerly=True)
    listed = values.agree(lambda m: m.test_on_batch(X, Y, W))
    assert values.ours.metrics_names == ["loss", *names]
    by_name = values.agree(lambda m: m.test_on_batch(X, Y, W, return_dict=True))
    assert list(by_name) == sorted(["loss", *names])
    same(listed, [by_name[name] for name in values.ours.metrics_names])


# Where Keras's list repeats the first value of a name, kdist's has each once.
REPEATED = {
    "twice": (["mse", "mse"], None, ["mse", "mse_1"]),
    "three times": (["mse", "mae", "mse", "mse"], None, ["mse", "mae", "mse_1", "mse_2"]),
    "weighted too": (["mse"], ["mse"], ["mse", "weighted_mse"]),
    "weighted twice": (["mse"], ["mse", "mse"], ["mse", "weighted_mse", "weighted_mse_1"]),
    "weighted twice alone": (None, ["mse", "mse"], ["mse", "weighted_mse"]),
}


@pytest.mark.parametrize("name", REPEATED)
def test_repeated_names_are_numbered_and_listed_once(name, values):
    metrics, weighted, names = REPEATED[name]
    values.compile("mse", metrics=metrics, weighted_metrics=weighted, eagerly=True)
    by_name = values.agree(lambda m: m.test_on_batch(X, Y, W, return_dict=True))
    listed = values.ours.test_on_batch(X, Y, W)
    assert values.ours.metrics_names == ["loss", *names]
    same(listed, [by_name[name] for name in values.ours.metrics_names])


ACCURACIES = {
    "labels": (LABELS, ["accuracy", "acc", "Accuracy", "ACC"]),
    "labels in a column": (LABELS[:, None], ["accuracy"]),
    "one-hot": (np.eye(3, dtype=np.float32)[LABELS], ["accuracy", "acc"]),
}


@pytest.mark.parametrize("name", ACCURACIES)
def test_accuracy_by_shape_keeps_the_name_it_was_asked_by(name, classes):
    y, metrics = ACCURACIES[name]
    loss = "categorical_crossentropy" if name == "one-hot" else "sparse_categorical_crossentropy"
    found = classes.compile(loss, metrics=metrics, eagerly=True).agree(
        lambda m: m.test_on_batch(X, y, return_dict=True)
    )
    assert list(found) == sorted(["loss", *metrics])


def test_binary_accuracy_by_shape(values):
    bits = (Y > 0).astype(np.float32)
    for y in (bits, bits[:, 0]):
        values.compile("mse", metrics=["accuracy"], eagerly=True)
        values.agree(lambda m, y=y: m.test_on_batch(X, y))


@pytest.mark.parametrize("name", ["crossentropy", "ce"])
@pytest.mark.parametrize("y", ["labels", "one-hot"])
def test_crossentropy_by_shape(name, y, classes):
    """As a loss it is Keras's; as a metric Keras refuses it, in spite of its page (semantics 8, 13)."""
    y = LABELS if y == "labels" else np.eye(3, dtype=np.float32)[LABELS]
    loss = classes.compile(name, eagerly=True).agree(lambda m: m.test_on_batch(X, y))
    classes.ours.compile("sgd", name, metrics=[name])
    found = classes.ours.test_on_batch(X, y, return_dict=True)
    assert list(found) == sorted([name, "loss"])
    assert found[name] == pytest.approx(found["loss"]) == pytest.approx(loss, rel=1e-5)


def test_no_metric_is_a_float_alone(values):
    """Whatever way it is asked for."""
    values.compile("mse", eagerly=True)
    for call in (
        lambda m: m.evaluate(X, Y, batch_size=BATCH, verbose=0),
        lambda m: m.test_on_batch(X, Y),
        lambda m: m.train_on_batch(X, Y),
    ):
        assert type(values.agree(call)) is float
    assert values.agree(lambda m: m.evaluate(X, Y, verbose=0, return_dict=True)).keys() == {"loss"}
    assert values.ours.metrics_names == ["loss"]


def test_a_metric_named_as_the_loss_is_refused(values):
    """In Keras it overwrites the loss in the logs."""
    values.ours.compile("sgd", "mse", metrics=[kdist.metrics.MeanAbsoluteError(name="loss")])
    with pytest.raises(ConfigError, match="'loss'"):
        values.ours.evaluate(X, Y, verbose=0)


# Several outputs ---------------------------------------------------------------------------------

SEVERAL = {
    "prefixed": (
        {"p": ["accuracy"], "q": ["mae", "mse"]},
        None,
        ["p_accuracy", "q_mae", "q_mse"],
    ),
    "not the alphabet": ({"q": ["mse", "mae"]}, None, ["q_mse", "q_mae"]),
    "one name for both": ([["mae"], ["mae"]], None, ["p_mae", "q_mae"]),
    "numbered": ([["mae", "mae"], ["mae"]], None, ["p_mae", "p_mae_1", "q_mae"]),
    "weighted": (
        {"q": ["mae"]},
        {"q": ["mae", "mae"], "p": ["mae"]},
        ["p_mae", "q_mae", "q_weighted_mae", "q_weighted_mae_1"],
    ),
    "weighted alone": (None, {"q": ["mae"]}, ["q_mae"]),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_names_of_several_outputs(name, heads):
    """The list has losses by output, then metrics by output; Keras's has the alphabet after the losses."""
    metrics, weighted, names = SEVERAL[name]
    heads.compile("mse", metrics=metrics, weighted_metrics=weighted, eagerly=True)
    y = {"p": np.eye(3, dtype=np.float32)[LABELS], "q": Y}
    by_name = heads.agree(lambda m: m.test_on_batch(X, y, W, return_dict=True))
    listed = heads.ours.test_on_batch(X, y, W)
    assert heads.ours.metrics_names == ["loss", "p_loss", "q_loss", *names]
    same(listed, [by_name[name] for name in heads.ours.metrics_names])


def test_one_loss_of_several_outputs_is_not_logged_by_output(heads):
    y = {"p": np.eye(3, dtype=np.float32)[LABELS], "q": Y}
    heads.compile({"p": None, "q": "mse"}, metrics={"p": ["mae"]}, eagerly=True)
    assert list(heads.agree(lambda m: m.test_on_batch(X, y, return_dict=True))) == ["loss", "p_mae"]
    assert heads.ours.metrics_names == ["loss", "p_mae"]


def test_the_name_of_a_loss_object_is_not_that_of_an_output(heads):
    heads.compile(lambda lib: [lib.losses.MeanSquaredError(name="mine"), lib.losses.MeanAbsoluteError()], eagerly=True)
    y = [np.eye(3, dtype=np.float32)[LABELS], Y]
    assert list(heads.agree(lambda m: m.test_on_batch(X, y, return_dict=True))) == ["loss", "p_loss", "q_loss"]


# Histories ---------------------------------------------------------------------------------------


def test_history_has_the_alphabet_then_that_of_validation(values):
    """Keras sorts once more with the ``val_`` names among the others, which moves what comes after "val"."""
    values.compile("mse", metrics=["mse", "MAE"], weighted_metrics=["mse"])

    def call(model):
        held_out = (X[:6], Y[:6], W[:6])
        return model.fit(X, Y, BATCH, 2, 0, shuffle=False, sample_weight=W, validation_data=held_out)

    found, expected = values.ask_kdist(call)["history"], values.ask_keras(call)["history"]
    names = ["MAE", "loss", "mse", "weighted_mse"]
    assert list(found) == [*names, *(f"val_{name}" for name in names)]
    same(dict(sorted(found.items())), expected)


def test_compiling_again_changes_the_names(values):
    for metrics in (["mse"], ["mae"]):
        values.compile("mse", metrics=metrics, eagerly=True)
        assert list(values.agree(lambda m: m.test_on_batch(X, Y, return_dict=True))) == sorted(["loss", *metrics])

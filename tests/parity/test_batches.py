"""Single batches, uneven batches, averages over batches, and structures of inputs and outputs, against Keras."""

import flax.linen as nn
import numpy as np
import pytest

import kdist

from .models import BATCH, LABELS, C, Classes, D, N, Pair, Values, W, X, Y, keras, keras_classes, keras_values, same

UNEVEN = (1, 5, 2, 8, 6)  # rows of batches, 22 in all; none divides by eight devices but one


@pytest.fixture(scope="module")
def bare():
    """A pair without metrics."""
    return Pair(Values(), keras_values((D,)), X, ["bottom", "top"]).compile("mse", metrics=None)


@pytest.fixture(scope="module")
def classes():
    pair = Pair(Classes(), keras_classes((D,)), X, ["top"])
    metrics = {"metrics": ["accuracy"], "weighted_metrics": ["acc"]}
    return pair.compile("sparse_categorical_crossentropy", **metrics)


def uneven(*arrays):
    """A generator of the rows in batches of `UNEVEN` sizes."""
    start = 0
    for size in UNEVEN:
        yield tuple(a[start : start + size] for a in arrays)
        start += size


# One batch ---------------------------------------------------------------------------------------

ARGUMENTS = {
    "plain": (X, LABELS),
    "one row": (X[:1], LABELS[:1]),
    "fewer rows than devices": (X[:5], LABELS[:5]),
    "weights": (X, LABELS, W),
    "weights in a column": (X, LABELS, W[:, None]),
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("method", ["train_on_batch", "test_on_batch"])
def test_a_batch(method, name, classes):
    """Its own results, before the update; floats, in a list or by name."""
    listed = classes.agree(lambda m: getattr(m, method)(*ARGUMENTS[name]))
    assert type(listed) is list and [type(v) for v in listed] == [float] * 3
    by_name = classes.agree(lambda m: getattr(m, method)(*ARGUMENTS[name], return_dict=True))
    assert list(by_name) == ["acc", "accuracy", "loss"] and {type(v) for v in by_name.values()} == {float}


def test_a_batch_of_a_model_without_metrics_gives_a_float(bare):
    for method in ("train_on_batch", "test_on_batch"):
        assert type(bare.agree(lambda m, method=method: getattr(m, method)(X, Y))) is float
        assert list(bare.agree(lambda m, method=method: getattr(m, method)(X, Y, return_dict=True))) == ["loss"]


def test_batches_one_after_the_other(classes):
    """No metric is carried from one to the next; the weights are, and are those that `evaluate` has."""

    def call(model):
        results = [model.train_on_batch(X[i : i + 8], LABELS[i : i + 8]) for i in (0, 8, 14)]
        results += [model.train_on_batch(X, LABELS, class_weight={0: 2.0}), model.test_on_batch(X[:3], LABELS[:3])]
        return [*results, model.evaluate(X, LABELS, verbose=0, return_dict=True)["loss"]]

    classes.agree(call)


def test_prediction_of_a_batch(classes):
    for rows in (1, 5, 16, N):
        found = classes.agree(lambda m, rows=rows: m.predict_on_batch(X[:rows]))
        assert type(found) is np.ndarray and found.dtype == np.float32 and found.shape == (rows, C)


def test_positional_arguments(classes):
    """In the order of Keras: weights, class weights, and whether a dict is wanted."""
    classes.agree(lambda m: m.train_on_batch(X, LABELS, None, {1: 3.0}, True))
    classes.agree(lambda m: m.test_on_batch(X, LABELS, W, True))


# Averages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: uneven(X, LABELS), lambda: uneven(X, LABELS, W)], ids=["plain", "weights"])
def test_batches_of_uneven_sizes(make, classes):
    """A loss averages over rows; and the batch of one row is a step as any other."""
    found = classes.agree(lambda m: m.fit(make(), verbose=0, shuffle=False))
    classes.agree(lambda m: m.evaluate(make(), verbose=0, return_dict=True))
    assert len(found["history"]["loss"]) == 1


def test_methods_of_keras_2_for_generators(classes):
    """They have the numbers of the methods that took them over, weighted by rows."""

    def old(model):
        with pytest.warns(DeprecationWarning, match="_generator is deprecated"):
            history = model.fit_generator(uneven(X, LABELS, W), steps_per_epoch=len(UNEVEN), verbose=0).history
            values = model.evaluate_generator(uneven(X, LABELS), steps=len(UNEVEN))
            predictions = model.predict_generator(uneven(X, LABELS), steps=3)
        return [history, dict(zip(model.metrics_names, values, strict=True)), predictions]

    def new(model):
        history = model.fit(uneven(X, LABELS, W), shuffle=False, verbose=0).history
        values = model.evaluate(uneven(X, LABELS), verbose=0, return_dict=True)
        return [history, values, model.predict(uneven(X, LABELS), steps=3, verbose=0)]

    found, expected = classes.ask_kdist(old), classes.ask_keras(new)
    same([found[0], dict(sorted(found[1].items())), found[2]], expected)


@pytest.mark.parametrize("size", [1, 3, 8, 22, 50])
def test_the_batch_size_of_an_evaluation_changes_nothing(size, classes):
    expected = classes.ask_kdist(lambda m: m.evaluate(X, LABELS, sample_weight=W, batch_size=N, verbose=0))
    call = lambda m: m.evaluate(X, LABELS, sample_weight=W, batch_size=size, verbose=0, return_dict=True)  # noqa: E731
    found = classes.agree(call)
    same(list(found.values()), [expected[classes.ours.metrics_names.index(name)] for name in found])


def test_a_metric_of_one_number_a_batch_counts_batches_alike():
    """Its mean is over batches whatever their size, as in Keras; on one device, since a shard sees not the batch."""

    def spread(y_true, y_pred):
        return (y_pred * y_pred).mean() - y_pred.mean() ** 2

    pair = Pair(Values(), keras_values((D,)), X, ["bottom", "top"], n=1).compile("mse", metrics=[spread])
    pair.agree(lambda m: m.evaluate(X, Y, batch_size=BATCH, verbose=0))
    pair.agree(lambda m: m.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0))


@pytest.mark.parametrize("reduction", ["sum", "sum_over_batch_size"])
def test_the_loss_of_an_epoch_is_weighted_by_rows_whatever_the_reduction(reduction):
    pair = Pair(Values(), keras_values((D,)), X, ["bottom", "top"])
    pair.compile(lambda lib: lib.losses.MeanSquaredError(reduction=reduction), rate=0.01)
    pair.agree(lambda m: m.fit(X, Y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0))


def test_losses_are_of_float32_whatever_the_targets_are(bare):
    for y in ((Y * 3).astype(kind) for kind in (np.float16, np.float64, np.int8)):
        bare.agree(lambda m, y=y: m.evaluate(X, y, batch_size=BATCH, verbose=0))


# Predictions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 22, 50])
def test_predictions_of_arrays(size, classes):
    found = classes.agree(lambda m: m.predict(X, batch_size=size, verbose=0))
    assert type(found) is np.ndarray and found.shape == (N, C)


@pytest.mark.parametrize("make", [lambda: uneven(X), lambda: uneven(X, LABELS), lambda: uneven(X, LABELS, W)])
def test_predictions_of_uneven_batches(make, classes):
    """In order, all of them; targets and weights are not looked at."""
    expected = classes.ask_kdist(lambda m: m.predict(X, verbose=0))
    same(classes.agree(lambda m: m.predict(make(), verbose=0)), expected)


class Sum(nn.Module):
    """Both inputs through one layer each; the outputs are nested."""

    @nn.compact
    def __call__(self, inputs):
        left, right = inputs.values() if isinstance(inputs, dict) else inputs
        a, b = nn.Dense(2, use_bias=False, name="left")(left), nn.Dense(2, use_bias=False, name="right")(right)
        return {"sum": a + b, "parts": (a, [b])}


class KerasSum(keras.Model):
    """The same in Keras."""

    def __init__(self):
        super().__init__()
        self.left, self.right = (keras.layers.Dense(2, use_bias=False) for _ in range(2))

    def call(self, inputs):
        left, right = inputs.values() if isinstance(inputs, dict) else inputs
        a, b = self.left(left), self.right(right)
        return {"sum": a + b, "parts": (a, [b])}


INPUTS = {
    "a list": [X, X[:, :2]],
    "a tuple": (X, X[:, :2]),
    "a dict": {"left": X, "right": X[:, :2]},
}


@pytest.mark.parametrize("name", INPUTS)
def test_structures_of_inputs_and_outputs(name):
    """A tuple of arrays is inputs, not inputs and targets; outputs keep their nesting and types."""
    x = INPUTS[name]
    theirs = KerasSum()
    theirs({k: v[:1] for k, v in x.items()} if isinstance(x, dict) else [a[:1] for a in x])
    pair = Pair(Sum(), theirs, x, ["left", "right"])
    found = pair.agree(lambda m: m.predict(x, batch_size=BATCH, verbose=0))
    same(found, pair.agree(lambda m: m.predict_on_batch(x)))
    pieces = x.values() if isinstance(x, dict) else x

    def batches():
        for batch in uneven(*pieces):
            yield (dict(zip(x, batch, strict=True)) if isinstance(x, dict) else type(x)(batch),)

    same(pair.agree(lambda m: m.predict(batches(), verbose=0)), found)


def test_integer_inputs_and_vector_metrics():
    """An embedding of integers; F1 of each class comes out as an array, in a history too."""
    ids = (np.abs(X) * 3).astype(np.int32) % 7
    y = np.eye(C, dtype=np.float32)[LABELS]

    class Embedded(nn.Module):
        @nn.compact
        def __call__(self, x):
            embedded = nn.Embed(7, 4, name="table")(x).mean(1)
            return nn.softmax(nn.Dense(C, use_bias=False, name="top")(embedded))

    theirs = keras.Sequential(
        [
            keras.Input((D,), dtype="int32"),
            keras.layers.Embedding(7, 4),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(C, use_bias=False, activation="softmax"),
        ]
    )
    model = kdist.Model(Embedded())
    model.build(ids)
    theirs.set_weights([np.array(model.params["table"]["embedding"]), np.array(model.params["top"]["kernel"])])
    results = []
    for m, lib in ((model, kdist), (theirs, keras)):
        m.compile(lib.optimizers.SGD(0.5), "categorical_crossentropy", metrics=[lib.metrics.F1Score()])
        history = m.fit(ids, y, BATCH, 2, 0, shuffle=False).history
        results.append([history, m.evaluate(ids, y, verbose=0), m.predict(ids, verbose=0)])
    same(*results)
    assert [np.shape(v) for v in results[0][0]["f1_score"]] == [(C,), (C,)]

"""What a tired person types: refused before the first step, by an error that names the argument and says what to do.

A row of a table is a call, the class of its exception, and words that the message must hold: the argument,
what came, and what to do.  After each, weights and step count must be as they were.
"""

import collections
import re

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import kdist
from kdist.callbacks import Callback
from kdist.errors import (
    CheckpointMismatchError,
    ConfigError,
    DataError,
    DistributionError,
    KDistError,
    NotCompiledError,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 4)).astype(np.float32)
Y = RNG.normal(size=(20, 3)).astype(np.float32)
LABELS = RNG.permutation(np.arange(20) % 3)
Pair = collections.namedtuple("Pair", "first second")


class Two(nn.Module):
    """Two inputs by name, two outputs by name."""

    @nn.compact
    def __call__(self, a, b):
        return {"p": nn.Dense(3)(a), "q": nn.Dense(1)(b)}


X2, Y2 = {"a": X, "b": X}, {"p": Y, "q": Y[:, :1]}


def distribution():
    return kdist.DataParallel(devices=jax.devices()[:1])


def make(module, loss, **kwargs):
    model = kdist.Model(module)
    model.compile("sgd", loss, distribution=distribution(), **kwargs)
    return model


@pytest.fixture(scope="module")
def regression():
    model = make(nn.Dense(3), "mse")
    model.fit(X, Y, batch_size=8, verbose=0)
    return model


@pytest.fixture(scope="module")
def classes():
    model = make(nn.Dense(3), kdist.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X, LABELS, batch_size=8, verbose=0)
    return model


@pytest.fixture(scope="module")
def two():
    model = make(Two(), "mse")
    model.fit(X2, Y2, batch_size=8, verbose=0)
    return model


def refused(model, call, error, *words):
    """Asserts that the call raises `error`, which is kdist's own and a ValueError, with all of the words, and
    that it leaves the model as it was."""
    assert issubclass(error, KDistError) and issubclass(error, ValueError)
    before, step = model.get_weights(), int(model.trainer.state.step)
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    for word in words:
        assert re.search(word, message, re.IGNORECASE | re.DOTALL), f"{word!r} is not in: {message}"
    assert int(model.trainer.state.step) == step
    for mine, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def spoiled(array, value, row=7):
    array = array.copy()
    array[row] = value
    return array


# fit: the data -----------------------------------------------------------------------------------

DATA = {
    # Of issue 2.
    "x longer than y": ((X, Y[:15]), DataError, "same number of rows", "x: 20", "y: 15"),
    "inputs of two lengths": (([X, X[:9]], Y), DataError, "same number of rows", "20", "9"),
    "no rows": ((X[:0], Y[:0]), DataError, "empty", "x has 0 rows"),
    "no arrays": (([], Y), DataError, "x is a list of nothing"),
    "objects": ((X.astype(object), Y), DataError, "x has dtype object", "convert"),
    "ragged rows": ((np.array([np.ones(2), np.ones(3)] * 10, object), Y), DataError, "x has dtype object", "pad"),
    "strings": ((np.array(["a"] * 20), Y), DataError, "x has dtype <U1", "encode"),
    "objects as targets": ((X, Y.astype(object)), DataError, "y has dtype object", "convert"),
    "a namedtuple of inputs": ((Pair(X, X), Y), DataError, "x is a namedtuple Pair", "first", "tuple", "dict"),
    "a namedtuple of targets": ((X, Pair(Y, Y)), DataError, "y is a namedtuple Pair", "tuple", "dict"),
    "targets too wide": ((X, np.ones((20, 4))), DataError, "targets", "rows x 4", "rows x 3"),
    "targets of too many dimensions": ((X, np.ones((20, 2, 3))), DataError, "targets", "rows x 2 x 3", "rows x 3"),
    "targets of too few dimensions": ((X, Y[:, 0]), DataError, "targets", "predictions of shape rows x 3"),
    # And what else.
    "nothing": ((), DataError, "x is required"),
    "no targets": ((X,), DataError, "y", "targets"),
    "both in one tuple": (((X, Y),), DataError, "y", "targets"),
    "lists of numbers": ((X.tolist(), Y), DataError, r"x\b.*list of numbers", r"np.asarray\(x\)"),
    "targets as a list": ((X, LABELS.tolist()), DataError, r"y is a list of numbers", r"np.asarray\(y\)"),
    "targets as lists": ((X, Y.tolist()), DataError, r"y\b.*list of numbers", r"np.asarray\(y\)"),
    "a number": ((3.0, Y), DataError, "x is a float", "array"),
    "an array of no dimension": ((np.float32(3), Y), DataError, "x is a single number", "rows"),
    "a file name": (("train.csv", Y), DataError, "x is a str", "array"),
    "dates": ((np.zeros(20, "datetime64[D]"), Y), DataError, "x has dtype datetime64", "convert"),
    "integers beyond 32 bits": ((X, LABELS + 2**40), DataError, "y holds integers", "int32"),
    "inputs too narrow": ((X[:, :3], Y), DataError, "x|input", r"\b3\b", r"\b4\b"),
    "inputs of one dimension": ((X[:, 0], Y), DataError, "x|input", "shape"),
    "a dict for one input": (({"a": X}, Y), DataError, "x|input", "dict|'a'"),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_cannot_be_trained_on(name, regression):
    arguments, error, *words = DATA[name]
    arguments = arguments if isinstance(arguments, tuple) else (arguments,)
    refused(regression, lambda: regression.fit(*arguments, batch_size=8, verbose=0), error, *words)


BATCHES = {
    "targets beside a generator": ((((X, Y) for _ in range(3)), Y), DataError, "y goes into the batches", "generator"),
    "a generator of nothing": (iter(()), DataError, "empty", "at least one"),
    "a generator of namedtuples": (iter([Pair(X, Y)]), DataError, "namedtuple Pair", "plain tuple"),
    "a generator of four": (iter([(X, Y, None, None)]), DataError, r"\(x, y, sample_weight\)", "tuple of 4"),
    "a generator of no targets": (iter([X]), DataError, "targets"),
    "a generator of names": (iter(["a.csv"]), DataError, "x is a str"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_that_cannot_be_trained_on(name, regression):
    arguments, error, *words = BATCHES[name]
    arguments = arguments if isinstance(arguments, tuple) else (arguments,)
    refused(regression, lambda: regression.fit(*arguments, verbose=0), error, *words)


def test_data_frames_and_scipy_matrices_are_taken_or_named(regression):
    class Frame:
        """Like a data frame: an array on request."""

        def __array__(self, dtype=None, copy=None):
            return X.astype(np.float64)

    class Sparse:
        """Like a sparse matrix: no array."""

        shape = (20, 4)

    assert "loss" in regression.fit(Frame(), Y, batch_size=8, verbose=0).history
    refused(regression, lambda: regression.fit(Sparse(), Y, verbose=0), DataError, "x is a Sparse", "NumPy")


# fit: the other arguments ------------------------------------------------------------------------


class Sub(Callback):
    """A callback."""


CONFIG = [
    *[("batch_size", value, ConfigError, "positive integer") for value in (0, -1, 1.5, 8.0, "8", True, [8])],
    *[("validation_batch_size", value, ConfigError, "positive integer") for value in (0, -1, 2.5)],
    *[("epochs", value, ConfigError, "integer of 0 or more") for value in (-1, 1.5, "1", None, True)],
    *[("initial_epoch", value, ConfigError, "integer of 0 or more") for value in (-1, 0.5)],
    *[("verbose", value, ConfigError, "'auto', 0, 1 or 2") for value in (3, "yes", None, -1)],
    *[("validation_split", value, ConfigError, r"\[0, 1\)") for value in (1, 1.5, -0.1, "0.2", None, np.nan, True)],
    ("validation_split", 0.99, DataError, "0 to train on"),
    *[("shuffle", value, ConfigError, "True, False or 'batch'") for value in ("batches", None, "yes", 3)],
    *[("cache", value, ConfigError, "True, False or 'auto'") for value in ("always", None)],
    *[("validation_freq", value, ConfigError, "1 or more") for value in (0, -1, 1.5, None, [0], ["a"], [1.5])],
    *[("steps_per_epoch", value, ConfigError, "positive integer") for value in (0, -2, 1.5, "3", True)],
    *[("validation_steps", value, ConfigError, "positive integer") for value in (0, -2, 1.5, "3", True)],
    *[("class_weight", value, ConfigError, "dict") for value in ([1.0, 2.0], "balanced", {"a": 1.0}, {0: "b"})],
    ("class_weight", {-1: 1.0}, ConfigError, "0 or more"),
    ("class_weight", {0: 2.0}, DataError, "one-hot"),
    *[("callbacks", value, ConfigError, "callbacks.Callback") for value in (Sub, [Sub], print, "early", {"a": 1})],
    ("sample_weight", np.ones(5), DataError, "20.*5|5.*20"),
    ("sample_weight", np.ones((20, 3)), DataError, r"\(rows,\)"),
    ("sample_weight", np.ones((20, 2, 2)), DataError, r"\(rows,\)"),
    ("sample_weight", [1.0] * 20, DataError, r"np.asarray\(sample_weight\)"),
    ("sample_weight", [None] * 20, DataError, "sample_weight"),
    ("sample_weight", np.array([None] * 20), DataError, "dtype object"),
    ("sample_weight", [np.ones(20), np.ones(20)], DataError, "2 entries.*1 output"),
    ("sample_weight", {"z": np.ones(20)}, DataError, "'z'"),
    ("sample_weight", "balanced", DataError, "str"),
    ("sample_weight", {0: 1.0, 1: 2.0}, DataError, "float"),
    ("sample_weight", 2.0, DataError, "float"),
    *[("validation_data", value, DataError, "x, y") for value in ((X,), (X, Y, None, None), X, {"x": X}, "val", ())],
    ("validation_data", iter([(X, Y[:3])]), DataError, "20.*3"),
    ("validation_data", iter(()), DataError, "empty"),
    ("validation_data", iter([X]), DataError, "targets"),
    ("validation_data", Pair(X, Y), DataError, "namedtuple"),
    ("validation_data", (X[:0], Y[:0]), DataError, "empty"),
    ("validation_data", (X, Y[:3]), DataError, "20.*3"),
    ("validation_data", (X, None), DataError, "targets"),
    ("validation_data", (X, LABELS), DataError, "targets"),
    ("validation_data", (X[:, :2], Y), DataError, r"\b2\b"),
    ("validation_data", (X, Y, np.ones(4)), DataError, "20.*4|4.*20"),
]  # fmt: skip


@pytest.mark.parametrize("argument, value, error, words", CONFIG, ids=[f"{c[0]}-{i}" for i, c in enumerate(CONFIG)])
def test_arguments_of_fit(argument, value, error, words, regression):
    arguments = {"batch_size": 8, "verbose": 0, argument: value}
    if argument.startswith("validation_") and argument not in ("validation_data", "validation_split"):
        arguments["validation_data"] = (X, Y)
    refused(regression, lambda: regression.fit(X, Y, **arguments), error, argument, words)


def test_the_value_that_came_is_in_the_message(regression):
    for argument, value in [("batch_size", -7), ("epochs", 2.25), ("verbose", "loud"), ("validation_split", 1.75)]:
        refused(
            regression, lambda a=argument, v=value: regression.fit(X, Y, **{a: v}), ConfigError, argument, repr(value)
        )


# Labels ------------------------------------------------------------------------------------------

LABEL_ERRORS = {
    "too low": (spoiled(LABELS, -1), "0 .. 2", "-1", "index 7"),
    "as many as classes": (spoiled(LABELS, 3), "0 .. 2", "first is 3", "index 7"),
    "too high, as a column": (spoiled(LABELS, 9)[:, None], "first is 9", "7"),
    "all of them from 1": (LABELS + 1, "0 .. 2", "first is 3", f"index {(LABELS == 2).argmax()}"),
    "unsigned": (spoiled(LABELS, 200).astype(np.uint8), "first is 200", "index 7"),
    "NaN": (spoiled(LABELS.astype(float), np.nan), "nan", "index 7"),
    "fractions": (spoiled(LABELS.astype(float), 0.5), "integers", r"0\.5", "index 7"),
    "one-hot": (np.eye(3)[LABELS], "integer label", "categorical_crossentropy"),
    "of another rank": (np.zeros((20, 2), int), "targets", "rows x 2"),
}


@pytest.mark.parametrize("name", LABEL_ERRORS)
@pytest.mark.parametrize("how", ["fit", "validation_data", "evaluate", "train_on_batch"])
def test_labels_that_are_no_class(name, how, classes):
    y, *words = LABEL_ERRORS[name]
    call = {
        "fit": lambda: classes.fit(X, y, batch_size=8, verbose=0),
        "validation_data": lambda: classes.fit(X, LABELS, batch_size=8, validation_data=(X, y), verbose=0),
        "evaluate": lambda: classes.evaluate(X, y, verbose=0),
        "train_on_batch": lambda: classes.train_on_batch(X, y),
    }[how]
    refused(classes, call, DataError, *words, *(["validation"] if how == "validation_data" else []))


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, bool])
def test_labels_of_any_kind_that_are_classes_are_taken(kind, classes):
    labels = (LABELS % 2).astype(kind)
    assert classes.evaluate(X, labels, verbose=0) == pytest.approx(classes.evaluate(X, LABELS % 2, verbose=0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_found_when_asked(bad, regression):
    fit = regression.fit
    kwargs = {"check_finite": True, "verbose": 0}
    weight = np.ones(20, np.float32)
    for call, name in [
        (lambda: fit(spoiled(X, bad), Y, **kwargs), "x"),
        (lambda: fit(X, spoiled(Y, bad), **kwargs), "y"),
        (lambda: fit(X, Y, sample_weight=spoiled(weight, bad), **kwargs), "sample_weight"),
        (lambda: fit(X, Y, validation_data=(spoiled(X, bad), Y), **kwargs), "x"),
    ]:
        refused(regression, call, DataError, rf"\b{name} holds NaN or infinity", "1 of 20", "row 7")


# What is odd and yet means something -------------------------------------------------------------


@pytest.mark.parametrize("size", [np.int64(8), 8, np.uint8(8)])
def test_batch_sizes_of_numpy_are_taken(size, regression):
    assert regression.fit(X, Y, batch_size=size, verbose=0).params["steps"] == 3


def test_batches_larger_than_the_data_and_single_rows(regression):
    expected = regression.evaluate(X, Y, batch_size=8, verbose=0)
    assert regression.evaluate(X, Y, batch_size=1000, verbose=0) == pytest.approx(expected, rel=1e-5)
    assert regression.fit(X[:1], Y[:1], verbose=0).params["steps"] == 1
    assert regression.predict(X[:1], verbose=0).shape == (1, 3)


def test_a_batch_far_larger_than_the_data_costs_no_memory():
    """A batch_size of a million is one batch of all rows, not a million rows of padding."""
    loader = kdist.data.from_arrays(X, Y, batch_size=10**6, shuffle=False)
    with kdist.data.Feeder(loader, distribution()) as feeder:
        (chunk,) = feeder.chunks(0)
    assert sum(leaf.size for leaf in jax.tree.leaves(chunk.feed)) < 10_000


@pytest.mark.parametrize("kind", [np.uint8, np.float16, np.int8, bool, np.float64])
def test_inputs_of_small_and_large_types_are_taken(kind):
    x = (np.abs(X) * 3).astype(kind)
    model = make(nn.Dense(3), "mse")
    losses = model.fit(x, Y, batch_size=20, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[1] < losses[0]
    np.testing.assert_allclose(
        model.predict(x, verbose=0), model.predict(x.astype(np.float32), verbose=0), rtol=2e-2, atol=2e-2
    )


def test_targets_that_are_repeated_are_warned_of(regression):
    with pytest.warns(UserWarning, match="repeating"):
        regression.evaluate(X, Y[:, :1], verbose=0)


# compile -----------------------------------------------------------------------------------------

COMPILE = {
    "unknown loss": ({"loss": "msee"}, "Unknown loss 'msee'", "Did you mean 'mse'"),
    "unknown loss of an output": ({"loss": {"p": "mae", "q": "categorical_crossentrop"}}, "categorical_crossentropy'"),
    "a metric as a loss": ({"loss": "accuracy"}, "Unknown loss 'accuracy'"),
    "no loss": ({"loss": ""}, "Unknown loss ''"),
    "a number as a loss": ({"loss": 3}, "loss", "Received: 3"),
    "unreduced": ({"loss": kdist.losses.MeanSquaredError(reduction=None)}, "reduction", "sum_over_batch_size"),
    "unknown metric": ({"metrics": ["acuracy"]}, "Unknown metric 'acuracy'", "Did you mean 'accuracy'"),
    "unknown weighted metric": ({"weighted_metrics": ["maee"]}, "Unknown metric 'maee'", "Did you mean"),
    "metrics as a string": ({"metrics": "accuracy"}, "metrics must be a list", "Received: 'accuracy'"),
    "no metric": ({"metrics": [None]}, "metric", "Received: None"),
    "metrics as third": ({"loss_weights": ["accuracy"]}, "third argument", r"metrics=\["),
    "metric objects as third": ({"loss_weights": [kdist.metrics.BinaryAccuracy()]}, "third argument", r"metrics=\["),
    "weights as an array": ({"loss_weights": np.array([1.0])}, "loss_weights", "list"),
    "weights as text": ({"loss_weights": "a"}, "loss_weights", "number"),
    "unknown optimizer": ({"optimizer": "adamm"}, "Unknown optimizer 'adamm'", "Did you mean 'adam'"),
    "optimizer class": ({"optimizer": kdist.optimizers.Adam}, "class Adam", "Create one"),
    "optax function": ({"optimizer": optax.adam}, "instance|call", "adam"),
    "optimizer number": ({"optimizer": 0.01}, "optimizer", "0.01"),
    "no steps": ({"steps_per_execution": 0}, "steps_per_execution", "positive integer or 'auto'", "Received: 0"),
    "half steps": ({"steps_per_execution": 1.5}, "steps_per_execution", "1.5"),
    "other steps": ({"steps_per_execution": "all"}, "steps_per_execution", "'all'"),
    "no parts": ({"microbatches": 0}, "microbatches", "positive integer", "0"),
    "unknown precision": ({"precision": "float17"}, "precision 'float17'", "mixed_bfloat16"),
    "devices by name": ({"distribution": "data"}, "distribution", "DataParallel", "'data'"),
    "devices by number": ({"distribution": 8}, "distribution", "DataParallel", "8"),
    "target tensors": ({"target_tensors": X}, "target_tensors"),
    "weight mode": ({"sample_weight_mode": "sequence"}, "sample_weight_mode", "'temporal'", "'sequence'"),
    "weight modes": ({"sample_weight_mode": [None, 3]}, "sample_weight_mode", "3"),
    "eager": ({"run_eagerly": "yes"}, "run_eagerly", "'yes'"),
    "jit": ({"jit_compile": None}, "jit_compile", "'auto'", "None"),
    "scale": ({"auto_scale_loss": "auto"}, "auto_scale_loss", "'auto'"),
}


@pytest.mark.parametrize("name", COMPILE)
def test_arguments_of_compile(name):
    arguments, *words = COMPILE[name]
    model = make((lambda key, x: {"w": np.ones(3, np.float32)}, lambda p, x: x * p["w"]), "mse")
    model.build(Y)
    before = model.trainer
    call = lambda: model.compile(**{"optimizer": "sgd", "loss": "mse", **arguments})  # noqa: E731
    refused(model, call, ConfigError, *words)
    assert model.trainer is before and model.compiled  # still as it was compiled


def test_unknown_keywords_are_a_type_error(regression):
    for call in (lambda: regression.compile(metric=["mae"]), lambda: regression.fit(X, Y, epoch=3)):
        with pytest.raises(TypeError, match="metric|epoch"):
            call()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"devices": 4}, "devices"),
        ({"devices": ()}, "devices"),
        ({"zero_stage": 4}, "zero_stage.*4"),
        ({"replicas": 0}, "replicas.*0"),
    ],
)
def test_arguments_of_data_parallel(arguments, words):
    with pytest.raises(ConfigError, match=words):
        kdist.DataParallel(**arguments)


# Losses and metrics that do not map to the outputs -----------------------------------------------

MAPPING = {
    "losses: too few": (True, {"loss": ["mse"]}, "loss has 1 entries", "2 outputs", "None for none"),
    "losses: too many": (True, {"loss": ["mse"] * 3}, "loss has 3 entries", "2 outputs"),
    "losses: two for one output": (False, {"loss": ["mse", "mae"]}, "loss has 2 entries", "1 output"),
    "losses: none at all": (False, {"loss": []}, "loss has 0 entries", "1 output"),
    "losses: unknown output": (True, {"loss": {"p": "mse", "z": "mse"}}, "loss", "'z'", r"\['p', 'q'\]"),
    "weights: too few": (True, {"loss_weights": [1.0]}, "loss_weights has 1 entries", "2 outputs"),
    "weights: unknown output": (True, {"loss_weights": {"z": 1.0}}, "loss_weights", "'z'"),
    "metrics: too few": (True, {"metrics": ["mae"]}, "metrics has 1 entries", "2 outputs", "dict"),
    "metrics: unknown output": (True, {"metrics": {"z": ["mae"]}}, "metrics", "'z'"),
}


@pytest.mark.parametrize("name", MAPPING)
def test_what_does_not_map_to_the_outputs(name):
    several, arguments, *words = MAPPING[name]
    one = (lambda key, x: {"w": np.ones(3, np.float32)}, lambda p, x: x[:, :3] * p["w"])
    both = (one[0], lambda p, x: {"p": x["a"][:, :3] * p["w"], "q": x["b"][:, :1]})
    model = make(both if several else one, **{"loss": "mse", **arguments})
    model.build(X2 if several else X)
    x, y = (X2, Y2) if several else (X, Y)
    refused(model, lambda: model.fit(x, y, verbose=0), ConfigError, *words)


STRUCTURES = {
    "an input of another name": ({"a": X, "c": X}, Y2, "'c'", r"\['a', 'b'\]"),
    "an input too many by name": ({"a": X, "b": X, "c": X}, Y2, "'c'"),
    "an input missing": ({"a": X}, Y2, "'?b'?"),
    "an input too many": ([X, X, X], Y2, "3", "2|a.*b"),
    "one array for two inputs": (X, Y2, "b"),
    "one array for two outputs": (X2, Y, "y is one array", "2 outputs", r"\['p', 'q'\]"),
    "targets missing": (X2, {"p": Y}, "'q'", "no targets"),
    "targets of another name": (X2, {"p": Y, "z": Y}, "'z'", r"\['p', 'q'\]"),
    "targets too few": (X2, [Y], "y has 1 entries", "2 outputs"),
    "targets too many": (X2, [Y, Y, Y], "y has 3 entries", "2 outputs"),
    "targets of another length": (X2, {"p": Y, "q": Y[:5, :1]}, "same number of rows", "5"),
    "targets of another shape": (X2, {"p": Y[:, :2], "q": Y[:, :1]}, "'p'", "rows x 2", "rows x 3"),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_that_do_not_fit(name, two):
    x, y, *words = STRUCTURES[name]
    refused(two, lambda: two.fit(x, y, batch_size=8, verbose=0), DataError, *words)


# Not compiled, not built -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
def test_not_compiled(method):
    model = kdist.Model(nn.Dense(3))
    model.build(X)
    refused(model, lambda: getattr(model, method)(X, Y), NotCompiledError, "compile", r"\(\)")
    with pytest.raises(RuntimeError):  # as Keras 2 has it; and a ValueError, as Keras 3 does
        getattr(model, method)(X, Y)


@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_compiled_without_an_optimizer(method):
    model = kdist.Model(nn.Dense(3))
    model.compile(None, "mse", distribution=distribution())
    model.build(X)
    refused(model, lambda: getattr(model, method)(X, Y), NotCompiledError, "optimizer=None", "needs")


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.params,
        lambda m: m.variables,
        lambda m: m.get_weights(),
        lambda m: m.set_weights([]),
        lambda m: m.summary(),
        lambda m: m.save_weights("w"),
        lambda m: m.load_weights("w"),
        lambda m: setattr(m, "params", {}),
    ],
)
def test_not_built(call):
    with pytest.raises(NotCompiledError, match=r"build\(x\)"):
        call(kdist.Model(nn.Dense(3)))


# The model itself and its weights ----------------------------------------------------------------


@pytest.mark.parametrize("module", [nn.Dense, "resnet", None, jax.nn.relu, [nn.Dense(3)], (1, 2), 3])
def test_what_is_no_module(module):
    with pytest.raises(ConfigError, match="flax.linen.Module.*Received"):
        kdist.Model(module)


@pytest.mark.parametrize("seed", [1.5, "a", None, True])
def test_what_is_no_seed(seed):
    with pytest.raises(ConfigError, match="seed must be an integer of 0 or more. Received"):
        kdist.Model(nn.Dense(3), seed=seed)


@pytest.mark.parametrize("shapes", [4, "4", None, (-1, 4), (None, 0), [], (None, 4.0), {"a": None}])
def test_what_is_no_input_to_build_with(shapes):
    model = kdist.Model(nn.Dense(3))
    with pytest.raises(DataError, match=r"\bx\b|shape"):
        model.build(shapes)
    assert not model.built


WEIGHTS = [
    (lambda w: w[:1], "2 weights", "list of 1"),
    (lambda w: [*w, w[0]], "2 weights", "list of 3"),
    (lambda w: w[::-1], "params.bias", r"expected float32\[3\]", r"received float32\[4, 3\]"),
    (lambda w: [w[0], w[1].T], "params.kernel", r"\[4, 3\]", r"\[3, 4\]"),
    (lambda w: [w[0].astype(complex), w[1]], "params.bias", "complex"),
    (lambda w: [w[0].astype(object), w[1]], "params.bias", "object"),
    (lambda w: ["a", "b"], "params.bias"),
    (lambda w: None, "list", "None"),
    (lambda w: {"bias": w[0], "kernel": w[1]}, "list", "dict"),
]


@pytest.mark.parametrize("change, words", [(c, w) for c, *w in WEIGHTS])
def test_weights_that_do_not_fit(change, words, regression):
    given = change(regression.get_weights())
    refused(regression, lambda: regression.set_weights(given), CheckpointMismatchError, *words)


@pytest.mark.parametrize(
    "new, words",
    [
        ({"params": {"bias": np.zeros(3)}}, ["kernel"]),
        ({"params": {"bias": np.zeros(3), "kernel": np.zeros((4, 3)), "extra": np.zeros(1)}}, ["extra"]),
        ({"params": {"bias": np.zeros(3), "kernel": np.zeros((4, 3))}, "other": {"m": np.zeros(1)}}, ["other"]),
        ({}, ["kernel"]),
    ],
)  # fmt: skip
def test_variables_that_do_not_fit(new, words, regression):
    refused(regression, lambda: setattr(regression, "variables", new), CheckpointMismatchError, *words)


# predict, evaluate, calling ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: m.predict(None), ["x is required"]),
        (lambda m: m.predict(X[:0]), ["empty"]),
        (lambda m: m.predict(X.tolist()), ["list of numbers"]),
        (lambda m: m.predict(X[:, :2], verbose=0), ["x|input", r"\b2\b"]),
        (lambda m: m.predict_on_batch(X[:, :2]), ["x|input", r"\b2\b"]),
        (lambda m: m.evaluate(X), ["y", "targets"]),
        (lambda m: m.evaluate(X, Y[:3]), ["20", "3"]),
        (lambda m: m.test_on_batch(X, Y[:3]), ["20", "3"]),
        (lambda m: m.train_on_batch(X), ["y", "targets"]),
        (lambda m: m.train_on_batch(Pair(X, X), Y), ["namedtuple"]),
        (lambda m: m.predict_on_batch(X[:0]), ["empty"]),
        (lambda m: m.evaluate(kdist.data.from_arrays(X, Y), Y), ["y goes into the loader"]),
        (lambda m: m.fit(kdist.data.from_arrays(X, Y), sample_weight=np.ones(20)), ["sample_weight goes into"]),
        (lambda m: m.fit(kdist.data.from_arrays(X, Y), validation_split=0.5), ["validation_split"]),
    ],
)
def test_other_methods(call, words, regression):
    refused(regression, lambda: call(regression), DataError, *words)


@pytest.mark.parametrize("argument, value", [("batch_size", 0), ("batch_size", 2.5), ("verbose", 7), ("steps", 0)])
@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_arguments_of_evaluate_and_predict(method, argument, value, regression):
    data = (X, Y) if method == "evaluate" else (X,)
    call = lambda: getattr(regression, method)(*data, **{argument: value})  # noqa: E731
    refused(regression, call, ConfigError, argument, str(value))


def test_an_error_in_the_users_own_module_is_not_hidden():
    class Broken(nn.Module):
        @nn.compact
        def __call__(self, x):
            raise ZeroDivisionError("my own bug")

    with pytest.raises(ZeroDivisionError, match="my own bug"):
        kdist.Model(Broken()).build(X)


def test_devices_that_do_not_divide_leave_the_model_as_it_was(regression):
    before = regression.get_weights()
    with pytest.raises(DistributionError, match="8 devices.*3 replicas"):
        regression.compile("sgd", "mse", distribution=kdist.DataParallel(replicas=3))
    assert regression.built
    np.testing.assert_array_equal(regression.get_weights()[1], before[1])

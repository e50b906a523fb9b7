"""What Keras refuses or crashes on: refused here, by a ValueError that says what to do, or taken as what it means.

The rows of `semantics.md` 1 and `quirks.md` B that `test_bad_input.py` does not have: data that come in batches, class
weights, steps, modes of weights, and Keras 2's methods for generators.
"""

import collections
import warnings

import flax.linen as nn
import jax
import numpy as np
import pytest

import kdist
from kdist.errors import ConfigError, DataError, KDistError, NotCompiledError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 4)).astype(np.float32)
Y = RNG.normal(size=(20, 3)).astype(np.float32)
LABELS = np.arange(20) % 3
SEQUENCES = RNG.normal(size=(20, 5, 4)).astype(np.float32)
W = np.ones(20, np.float32)
Pair = collections.namedtuple("Pair", "x y")


class Two(nn.Module):
    """Two outputs, in a list."""

    output_names = ("p", "q")

    @nn.compact
    def __call__(self, x):
        return [nn.Dense(3)(x), nn.Dense(1)(x)]


class Numbered:
    """Batches by number, in the manner of Keras's PyDataset."""

    def __init__(self, *item):
        self.item = item

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.item

    def on_epoch_end(self):
        """What tells it from rows by number."""


def make(module, loss="mse", **settings):
    model = kdist.Model(module)
    model.compile("sgd", loss, distribution=kdist.DataParallel(devices=jax.devices()[:1]), **settings)
    return model


@pytest.fixture(scope="module")
def model():
    return make(nn.Dense(3))


@pytest.fixture(scope="module")
def classes():
    return make(nn.Dense(3), kdist.losses.SparseCategoricalCrossentropy(from_logits=True))


@pytest.fixture(scope="module")
def two():
    return make(Two())


def refused(call, error, words):
    """Asserts that the call raises `error`, one of kdist's own and a ValueError, with these words."""
    assert issubclass(error, KDistError) and issubclass(error, ValueError)
    with pytest.raises(error, match=f"(?is){words}"):
        call()


def generate(*items):
    """A generator of these."""
    yield from items


# Batches -----------------------------------------------------------------------------------------

# What is yielded, and the words.
BATCHES = {
    "nothing at all": ((), "empty.*at least one"),
    "four parts": (((X, Y, W, W),), r"\(x, y, sample_weight\).*of 4"),
    "an empty tuple": (((),), r"\(x, y\).*of 0"),
    "a namedtuple": ((Pair(X, Y),), "namedtuple Pair.*plain tuple"),
    "no targets": (((X,),), "y|targets"),
    "a bare array": ((X,), "y|targets"),
    "a dict, which is all inputs": (({"x": X, "y": Y},), "inputs|targets|y"),
    "rows of other numbers": (((X, Y[:5]),), "same number of rows.*20.*5"),
    "no rows": (((X[:0], Y[:0]),), "empty|0 rows"),
    "strings": (((np.array(["a"] * 20), Y),), "dtype <U1"),
    "None": ((None,), "x is required|NoneType"),
    "inputs of another width": (((X[:, :3], Y),), r"\b3\b"),
    "targets of another width": (((X, Y[:, :2]),), "targets"),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_what_a_generator_must_not_yield(name, method, model):
    items, words = BATCHES[name]
    model.build(X)
    refused(lambda: getattr(model, method)(generate(*items), verbose=0), DataError, words)


def test_later_batches_are_checked_too(model):
    """The first is fine; the second has other columns, or no targets, and is named."""
    for second, words in (((X[:, :3], Y), r"\b3\b"), ((X,), "y|targets"), ((X, Y, W, W), "of 4")):
        refused(lambda second=second: model.fit(generate((X, Y), second), verbose=0), DataError, words)


ARGUMENTS_BESIDE = {
    "y": Y,
    "sample_weight": W,
    "validation_split": 0.2,
}


@pytest.mark.parametrize("argument", ARGUMENTS_BESIDE)
@pytest.mark.parametrize("kind", ["generator", "numbered", "callable", "loader"])
def test_arguments_that_batches_refuse(argument, kind, model):
    x = {
        "generator": generate((X, Y)),
        "numbered": Numbered(X, Y),
        "callable": lambda: generate((X, Y)),
        "loader": kdist.data.from_arrays(X, Y),
    }[kind]
    refused(lambda: model.fit(x, verbose=0, **{argument: ARGUMENTS_BESIDE[argument]}), DataError, argument)


def test_targets_beside_batches_are_refused_by_evaluate_too(model):
    refused(lambda: model.evaluate(generate((X, Y)), Y, verbose=0), DataError, r"\by\b.*generator")
    refused(lambda: model.evaluate(Numbered(X, Y), sample_weight=W, verbose=0), DataError, "sample_weight.*Numbered")


NO_DATA = {"a set": {1, 2}, "an object": object(), "a function of no batches": lambda: 3, "a class": Numbered}


@pytest.mark.parametrize("name", NO_DATA)
def test_what_is_no_data_at_all(name, model):
    refused(lambda: model.fit(NO_DATA[name], verbose=0), DataError, "x|batches|array")


# Steps -------------------------------------------------------------------------------------------

BAD_STEPS = (0, -2, 1.5, "3", True, [3])


@pytest.mark.parametrize("value", BAD_STEPS, ids=repr)
def test_numbers_of_steps(value, model):
    words = "positive integer.*received"
    refused(lambda: model.fit(X, Y, steps_per_epoch=value, verbose=0), ConfigError, f"steps_per_epoch.*{words}")
    held_out = {"validation_data": (X, Y), "validation_steps": value}
    refused(lambda: model.fit(X, Y, verbose=0, **held_out), ConfigError, f"validation_steps.*{words}")
    refused(lambda: model.evaluate(X, Y, steps=value, verbose=0), ConfigError, f"steps.*{words}")
    refused(lambda: model.predict(X, steps=value, verbose=0), ConfigError, f"steps.*{words}")


@pytest.mark.parametrize("value", [-1, None, True, 2.0, "two", [2]], ids=repr)
def test_steps_per_execution(value):
    refused(lambda: make(nn.Dense(3), steps_per_execution=value), ConfigError, "steps_per_execution.*positive integer")


@pytest.mark.parametrize("value", [(1, 2), {1}, "2", {"every": 2}, True], ids=repr)
def test_validation_freq(value, model):
    words = "validation_freq.*list.*received"
    refused(lambda: model.fit(X, Y, validation_data=(X, Y), validation_freq=value, verbose=0), ConfigError, words)


# Weights of classes and rows ---------------------------------------------------------------------

CLASS_WEIGHTS = {
    "no mapping": ([1.0, 2.0], ConfigError, "class_weight.*dict"),
    "a name": ("balanced", ConfigError, "class_weight.*dict"),
    "names of classes": ({"cat": 1.0}, ConfigError, "class_weight.*integers.*'cat'"),
    "no number": ({0: "heavy"}, ConfigError, "class_weight.*numbers.*'heavy'"),
    "None": ({0: None}, ConfigError, "class_weight.*numbers"),
    "a class below 0": ({-1: 1.0}, ConfigError, "class_weight.*-1"),
}


@pytest.mark.parametrize("name", CLASS_WEIGHTS)
def test_what_is_no_class_weight(name, classes):
    value, error, words = CLASS_WEIGHTS[name]
    refused(lambda: classes.fit(X, LABELS, class_weight=value, verbose=0), error, words)
    refused(lambda: classes.train_on_batch(X, LABELS, class_weight=value), error, words)


def test_class_and_sample_weights_together(classes):
    words = "class_weight and sample_weight"
    both = {"class_weight": {0: 2.0}, "sample_weight": W}
    refused(lambda: classes.fit(X, LABELS, verbose=0, **both), DataError, words)
    refused(lambda: classes.train_on_batch(X, LABELS, **both), DataError, words)
    for x in (generate((X, LABELS, W)), Numbered(X, LABELS, W)):
        refused(lambda x=x: classes.fit(x, class_weight={0: 2.0}, verbose=0), DataError, words)


def test_class_weights_of_several_outputs(two):
    words = "class_weight.*single output"
    refused(lambda: two.fit(X, [Y, Y[:, :1]], class_weight={0: 2.0}, verbose=0), DataError, words)
    refused(lambda: two.train_on_batch(X, [Y, Y[:, :1]], class_weight={0: 2.0}), DataError, words)


def test_class_weights_of_targets_that_are_no_classes():
    """A number each time step: which of them would be the class of the row?"""
    steps = make(nn.Dense(1))
    refused(
        lambda: steps.fit(SEQUENCES, SEQUENCES[..., 0], class_weight={0: 2.0}, verbose=0), DataError, "class_weight"
    )


def test_one_array_of_weights_for_several_outputs_has_one_a_row(two):
    for w in (np.ones((20, 3)), np.ones((20, 2, 1))):
        refused(
            lambda w=w: two.fit(X, [Y, Y[:, :1]], sample_weight=w, verbose=0), DataError, r"sample_weight|\(rows,\)"
        )


@pytest.mark.parametrize("mode", ["sometimes", 3, ["temporal", "x"], {"output_0": "x"}], ids=repr)
def test_sample_weight_mode(mode):
    refused(lambda: make(nn.Dense(3), sample_weight_mode=mode), ConfigError, "sample_weight_mode.*'temporal'.*received")


@pytest.mark.parametrize("weight", [W, np.ones((20, 1, 1))], ids=["rows", "rank 3"])
def test_temporal_mode_wants_weights_of_time_steps(weight):
    steps = make(nn.Dense(3), sample_weight_mode="temporal")
    call = lambda: steps.fit(SEQUENCES, SEQUENCES[..., :3], sample_weight=weight, verbose=0)  # noqa: E731
    refused(call, DataError, "temporal|steps")


def test_temporal_mode_wants_time_steps():
    rows = make(nn.Dense(3), sample_weight_mode="temporal")
    refused(lambda: rows.fit(X, Y, sample_weight=np.ones((20, 3)), verbose=0), DataError, "temporal|steps|rows")


# compile, and what maps to outputs ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"jit_compile": "yes"}, "jit_compile.*'yes'"),
        ({"auto_scale_loss": "yes"}, "auto_scale_loss.*'yes'"),
        ({"run_eagerly": "yes"}, "run_eagerly.*'yes'"),
        ({"metrics": kdist.metrics.AUC()}, "metrics must be a list"),
        ({"weighted_metrics": "mae"}, "weighted_metrics must be a list"),
    ],
)
def test_arguments_of_compile(settings, words):
    refused(lambda: make(nn.Dense(3), **settings), ConfigError, words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"metrics": ["mae"] * 3}, r"metrics has 3 entries.*2 outputs.*\['p', 'q'\]"),
        ({"weighted_metrics": [["mae"]]}, "metrics has 1 entries.*2 outputs"),
        ({"loss": {"p": "mse"}}, "loss.*'q'"),  # of outputs in a list every one is to be named (semantics 8, 12)
        ({"loss": ["mse", "mae"], "loss_weights": [1.0] * 3}, "loss_weights has 3 entries"),
    ],
)
def test_what_does_not_map_to_the_outputs(settings, words):
    model = make(Two(), **{"loss": "mse", **settings})
    refused(lambda: model.evaluate(X, [Y, Y[:, :1]], verbose=0), ConfigError, words)


def test_evaluate_takes_no_other_arguments(model):
    refused(lambda: model.evaluate(X, Y, verbose=0, batchsize=3), ConfigError, "batchsize")


# Keras 2's methods for generators ----------------------------------------------------------------


def deprecated(call):
    """The result of a call that is told to be deprecated."""
    with pytest.warns(DeprecationWarning):
        return call()


GENERATORS = {
    "no steps": (lambda m: m.fit_generator(generate((X, Y))), "steps_per_epoch.*generator"),
    "no steps to evaluate": (lambda m: m.evaluate_generator(generate((X, Y))), "steps.*generator"),
    "no steps to predict": (lambda m: m.predict_generator(generate(X)), "steps.*generator"),
    "no steps to validate": (
        lambda m: m.fit_generator(generate((X, Y)), 1, validation_data=generate((X, Y))),
        "validation_steps.*generator",
    ),
    "one part": (lambda m: m.fit_generator(generate((X,)), 1), r"\(x, y\).*of 1"),
    "four parts": (lambda m: m.fit_generator(generate((X, Y, W, W)), 1), r"\(x, y\).*of 4"),
    "no tuple": (lambda m: m.fit_generator(generate(X), 1), r"\(x, y\).*ndarray"),
    "one part to evaluate": (lambda m: m.evaluate_generator(generate((X,)), 1), r"\(x, y\).*of 1"),
    "an empty batch": (lambda m: m.evaluate_generator(generate((X[:0], Y[:0])), 1), "empty|0 rows"),
    "four parts to predict": (lambda m: m.predict_generator(generate((X, Y, W, W)), 1), r"\(x, y\).*of 4"),
    "validation data of one part": (
        lambda m: m.fit_generator(generate((X, Y)), 1, validation_data=(X,)),
        "validation_data",
    ),
    "validation data of four": (
        lambda m: m.fit_generator(generate((X, Y)), 1, validation_data=(X, Y, W, W)),
        "validation_data",
    ),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_methods(name, model):
    call, words = GENERATORS[name]
    deprecated(lambda: refused(lambda: call(model), DataError, words))


def test_generator_methods_warn_of_processes_that_duplicate_data(model):
    with pytest.warns(UserWarning, match="duplicate"), pytest.warns(DeprecationWarning):
        model.fit_generator(generate((X, Y)), 1, workers=4, use_multiprocessing=True, verbose=0)


def test_generator_methods_need_compiling():
    for call in (
        lambda m: m.fit_generator(generate((X, Y)), 1),
        lambda m: m.evaluate_generator(generate((X, Y)), 1),
    ):
        deprecated(lambda call=call: refused(lambda: call(kdist.Model(nn.Dense(3))), NotCompiledError, "compile"))


# What Keras crashes on, and what it is taken as here ---------------------------------------------

TAKEN = {
    "whole numbers for numbers": lambda: make(nn.Dense(3), loss_weights=2).fit(X, Y, verbose=0),
    "a rate that is an int": lambda: make(nn.Dense(3)).compile(kdist.optimizers.SGD(1, momentum=0), "mse"),
    "a dict of losses for one output": lambda: make(nn.Dense(3), {"output_0": "mse"}).fit(X, Y, verbose=0),
    "nested lists of callbacks": lambda: make(nn.Dense(3)).fit(
        X, Y, verbose=0, callbacks=[[kdist.callbacks.Callback()], []]
    ),
    "batches as lists": lambda: make(nn.Dense(3)).fit(generate([X, Y]), verbose=0),
    "an iterator": lambda: make(nn.Dense(3)).fit(iter([(X, Y)]), verbose=0),
    "a list of batches": lambda: make(nn.Dense(3)).fit([(X, Y), (X, Y)], epochs=2, verbose=0),
    "a generator function": lambda: make(nn.Dense(3)).fit(lambda: generate((X, Y)), epochs=2, verbose=0),
    "no optimizer, to evaluate": lambda: _compiled_without_optimizer().evaluate(X, Y, verbose=0),
    "no epoch": lambda: make(nn.Dense(3)).fit(X, Y, epochs=0, verbose=0),
    "steps of all": lambda: make(nn.Dense(3)).fit(X, Y, steps_per_epoch=-1, verbose=0),
    "lists of numbers for a batch": lambda: make(nn.Dense(3)).train_on_batch(X.tolist(), Y.tolist()),
}


def _compiled_without_optimizer():
    model = kdist.Model(nn.Dense(3))
    model.compile(None, "mse")
    return model


@pytest.mark.parametrize("name", TAKEN)
def test_what_keras_crashes_on_and_means_something(name):
    TAKEN[name]()


def test_a_second_fit_with_averaged_weights():
    """Keras gives the averages and the weights one buffer at the end of a fit, and crashes in the next (quirk 24)."""
    model = kdist.Model(nn.Dense(3))
    model.compile(kdist.optimizers.SGD(0.1, use_ema=True), "mse")
    losses = [model.fit(X, Y, verbose=0).history["loss"][0] for _ in range(3)]
    assert losses[2] < losses[0]
    model.train_on_batch(X, Y)


def test_sizes_of_batches_that_are_made_elsewhere(model):
    """Keras says nothing; what has no effect is warned of here."""
    with pytest.warns(UserWarning, match="batch_size=7"):
        model.fit(generate((X, Y)), batch_size=7, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(generate((X, Y)), verbose=0)

"""Several outputs against Keras: every form of outputs, targets, losses, their weights, and metrics.

Names, their order and the values are compared in the history of a fit; the weights after it, too.
"""

import flax.linen as nn
import jax
import numpy as np
import pytest

import kdist

from .models import BATCH, LABELS, RATE, D, Heads, Pair, UnnamedHeads, W, X, Y, keras, keras_heads, same

FORMS = ("dict", "list", "tuple")
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]
TARGETS = {"dict": {"p": ONE_HOT, "q": Y}, "list": [ONE_HOT, Y], "tuple": (ONE_HOT, Y)}
LABEL_TARGETS = {"p": LABELS, "q": Y}
SPARSE = {"p": "sparse_categorical_crossentropy", "q": "mse"}


@pytest.fixture(scope="module")
def pairs():
    """A pair for each form of outputs."""
    return {form: Pair(Heads(form), keras_heads(form), X, ["p", "q"]) for form in FORMS}


def fit(y, epochs=2, **kwargs):
    """A call for `Pair.agree`: a short fit without shuffling."""
    arguments = {"batch_size": BATCH, "epochs": epochs, "shuffle": False, "verbose": 0, **kwargs}
    return lambda model: model.fit(X, y, **arguments)


# Outputs and targets -----------------------------------------------------------------------------


@pytest.mark.parametrize("y_form", FORMS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_targets_fits_every_form_of_outputs(form, y_form, pairs):
    pair = pairs[form]
    if pair.ours.trainer.plan.loss is None:
        pair.compile("mse", eagerly=True)
    found = pair.agree(fit(TARGETS[y_form]))
    assert list(found["history"]) == ["loss", "p_loss", "q_loss"]


def test_predictions_have_the_form_of_the_outputs(pairs):
    for form, container in zip(FORMS, (dict, list, tuple), strict=True):
        pair = pairs[form]
        for method in (lambda m: m.predict(X, batch_size=BATCH, verbose=0), lambda m: m.predict_on_batch(X)):
            assert type(pair.agree(method)) is container


# Losses ------------------------------------------------------------------------------------------

LOSSES = {
    "a list": ("list", ["mse", "mae"], None),
    "a list for a dict": ("dict", ["mse", "mae"], None),
    "a dict": ("dict", {"q": "mae", "p": "mse"}, None),
    "None in a list": ("list", ["mse", None], None),
    "None first": ("tuple", (None, "mae"), None),
    "None in a dict": ("tuple", {"p": "mse", "q": None}, None),
    "part of a dict": ("dict", {"q": "mse"}, None),
    "weights in a list": ("list", {"q": "mae", "p": "mse"}, [0.3, 2.0]),
    "weights in a tuple": ("dict", {"p": "mse", "q": "mae"}, (0.3, 2.0)),
    "weights in a dict": ("dict", {"p": "mse", "q": "mae"}, {"q": 2.0, "p": 0.3}),
    "weights in a dict for a list": ("list", ["mse", "mae"], {"q": 2.0, "p": 0.3}),
    "a weight for one loss of all": ("dict", "mse", 0.3),
    "a weight of 0": ("tuple", ("mse", "mae"), [0.0, 2.0]),
}


NO_LOSS = [("list", None), ("list", [None, None]), ("dict", None)]
ONLY_METRICS = [{}, {"metrics": [["mae"], ["mse"]]}, {"weighted_metrics": [["mse"], []]}]


@pytest.mark.parametrize(
    ("form", "loss", "settings"),
    [
        pytest.param(*no_loss, settings, marks=[] if i == j else [pytest.mark.slow])
        for i, no_loss in enumerate(NO_LOSS)
        for j, settings in enumerate(ONLY_METRICS)
    ],
    ids=str,
)
def test_without_losses_nothing_is_learnt_and_the_loss_is_0(form, loss, settings):
    """Metrics are computed all the same."""
    pair = Pair(Heads(form), keras_heads(form), X, ["p", "q"])  # Keras keeps the loss that a model once had
    pair.compile(loss, eagerly=True, **settings)
    with pytest.warns(UserWarning, match="has no loss"):
        found = pair.agree(fit(TARGETS[form]))
    assert found["history"]["loss"] == [0.0, 0.0]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_weights(name, pairs):
    form, loss, weights = LOSSES[name]
    pairs[form].compile(loss, loss_weights=weights, eagerly=True).agree(fit(TARGETS[form], epochs=1))


@pytest.fixture(scope="module")
def one_loss():
    """A pair with a loss for its first output only, whose Keras model never had metrics."""
    return Pair(Heads("list"), keras_heads("list"), X, ["p", "q"]).compile(["mse", None], metrics=None, eagerly=True)


@pytest.mark.parametrize(
    "y", [[ONE_HOT], ONE_HOT, [ONE_HOT, None], {"p": ONE_HOT}], ids=["list", "bare", "None", "dict"]
)
def test_targets_of_an_output_without_loss_may_be_left_out(y, one_loss):
    one_loss.agree(fit(y))


def test_one_number_for_all_loss_weights(pairs):
    """Keras has no length of a number where there are several losses; kdist counts each alike, and takes whole ones."""
    pair = pairs["list"]
    expected = pair.compile(["mse", "mae"], loss_weights=[2.0, 2.0], eagerly=True).ask_keras(fit(TARGETS["list"]))
    pair.ours.compile(kdist.optimizers.SGD(RATE), ["mse", "mae"], loss_weights=2)
    same(pair.ask_kdist(fit(TARGETS["list"])), expected)


def test_loss_of_a_function_and_of_an_object(pairs):
    def absolute(y_true, y_pred):
        return abs(y_true - y_pred).mean(axis=-1)

    pair = pairs["dict"]
    pair.compile(
        lambda lib: {"p": lib.losses.CategoricalCrossentropy(label_smoothing=0.1), "q": absolute}, eagerly=True
    )
    pair.agree(fit(TARGETS["dict"]))


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
def test_reductions_that_differ_by_output(reduction, pairs):
    """The gradient of each output has a denominator of its own; the log averages the total over rows."""
    pair = pairs["dict"]
    pair.compile(
        lambda lib: {
            "p": lib.losses.MeanSquaredError(reduction="sum"),
            "q": lib.losses.MeanAbsoluteError(reduction=reduction),
        },
        eagerly=True,
        rate=0.01,
    )
    pair.agree(fit(TARGETS["dict"], sample_weight={"p": W, "q": W[::-1]}))


# Metrics -----------------------------------------------------------------------------------------

METRICS = {
    "lists in a list": ("list", [["accuracy"], ["mae", "mse"]]),
    "lists for a dict": ("dict", [["accuracy"], ["mae", "mse"]]),
    "one each": ("list", ["accuracy", "mae"]),
    "one each in a tuple": ("dict", ("accuracy", ("mae",))),
    "a dict of lists": ("dict", {"q": ["mae", "mse"], "p": ["accuracy"]}),
    "a dict of one each": ("list", {"p": "acc", "q": "mae"}),
    "part of a dict": ("dict", {"q": ["mae"]}),
    "an empty list": ("list", [[], ["mae"]]),
    "None": ("list", [None, ["mae"]]),
    "None in a dict": ("dict", {"p": None, "q": "mae"}),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_outputs(name, pairs):
    form, metrics = METRICS[name]
    loss = SPARSE if form == "dict" else list(SPARSE.values())
    y = LABEL_TARGETS if form == "dict" else list(LABEL_TARGETS.values())
    pair = pairs[form].compile(loss, metrics=metrics, weighted_metrics=metrics, eagerly=True)
    pair.agree(lambda m: m.test_on_batch(X, y, W, return_dict=True))


def test_metrics_over_batches_and_epochs(pairs):
    """Short last batches, sample weights, training and validation at once."""
    metrics = {"p": ["accuracy", "sparse_categorical_crossentropy"], "q": ["mae", "root_mean_squared_error"]}
    pair = pairs["dict"].compile(SPARSE, metrics=metrics, weighted_metrics=metrics)
    found = pair.agree(
        fit(LABEL_TARGETS, sample_weight=W, validation_data=(X[:5], {"p": LABELS[:5], "q": Y[:5]}, W[:5]))
    )
    assert len(found["history"]) == 2 * (3 + 8)


@pytest.mark.parametrize("form", FORMS)
def test_one_output_in_a_container(form):
    """A dict of one output is one output: its metrics have no prefix of their own, unless Keras has one."""
    wrap = {"dict": lambda o: {"p": o}, "list": lambda o: [o], "tuple": lambda o: (o,)}[form]

    class One(nn.Module):
        output_names = ("p",)

        @nn.compact
        def __call__(self, x):
            return wrap(nn.Dense(1, use_bias=False, name="p")(x))

    x = keras.Input((D,))
    theirs = keras.Model(x, wrap(keras.layers.Dense(1, use_bias=False, name="p")(x)))
    pair = Pair(One(), theirs, X, ["p"]).compile("mse", metrics=["mae"], eagerly=True)
    found = pair.agree(lambda m: m.test_on_batch(X, wrap(Y), return_dict=True))
    assert list(found) == ["loss", "mae"]


def test_outputs_without_names_are_numbered():
    """Keras names such losses after the loss, twice the same and the second lost; kdist: `output_0`, `output_1`."""
    model = kdist.Model(UnnamedHeads("list"))
    model.compile("sgd", "mse", metrics=[["mae"], ["mae"]], distribution=kdist.DataParallel(devices=jax.devices()[:1]))
    found = model.evaluate(X, TARGETS["list"], return_dict=True, verbose=0)
    assert list(found) == ["loss", "output_0_loss", "output_0_mae", "output_1_loss", "output_1_mae"]
    assert found["loss"] == pytest.approx(found["output_0_loss"] + found["output_1_loss"])


def test_a_list_follows_the_order_of_the_outputs_and_a_dict_the_alphabet():
    class Backwards(nn.Module):
        output_names = ("z", "a")

        @nn.compact
        def __call__(self, x):
            return [nn.Dense(1, use_bias=False, name=name)(x) for name in self.output_names]

    x = keras.Input((D,))
    theirs = keras.Model(x, [keras.layers.Dense(1, use_bias=False, name=name)(x) for name in ("z", "a")])
    metrics = {"a": ["mse"], "z": ["mae"]}
    pair = Pair(Backwards(), theirs, X, ["z", "a"]).compile({"a": "mae", "z": "mse"}, metrics=metrics, eagerly=True)
    expected = pair.agree(lambda m: m.test_on_batch(X, [Y, 2 * Y], return_dict=True))
    assert list(expected) == ["a_loss", "a_mse", "loss", "z_loss", "z_mae"]
    values = pair.ours.test_on_batch(X, [Y, 2 * Y])
    assert pair.ours.metrics_names == ["loss", "z_loss", "a_loss", "z_mae", "a_mse"]
    same(values, [expected[name] for name in pair.ours.metrics_names])

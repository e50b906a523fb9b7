"""The signatures of Keras's methods and ours: names, order and defaults, and every difference with its reason."""

import inspect

import pytest

import kdist

keras = pytest.importorskip("keras", reason="signatures are compared with Keras 3 (extra: bench)")

METHODS = [
    "compile",
    "fit",
    "evaluate",
    "predict",
    "train_on_batch",
    "test_on_batch",
    "predict_on_batch",
    "get_layer",
    "reset_metrics",
    "get_weights",
    "set_weights",
]

DEFAULTS = {("compile", "steps_per_execution"): "auto"}  # as far as nobody can see the difference
ADDED = {
    # Devices, precision and memory, which Keras sets elsewhere or not at all; what Keras 2 had besides.
    "compile": ["distribution", "precision", "microbatches", "sample_weight_mode", "target_tensors", "nonfinite"],
    "fit": ["cache", "check_finite"],  # where the rows are kept, and whether they are read first
}

# Of Keras 2, which Keras 3 has no more: name and default in their order, as the Sequential page has them.
_READING = [("max_queue_size", 10), ("workers", 1), ("use_multiprocessing", False)]
_REQUIRED = inspect.Parameter.empty
GENERATOR_METHODS = {
    "fit_generator": [
        ("generator", _REQUIRED),
        ("steps_per_epoch", None),
        ("epochs", 1),
        ("verbose", 1),
        ("callbacks", None),
        ("validation_data", None),
        ("validation_steps", None),
        ("class_weight", None),
        *_READING,
        ("shuffle", True),
        ("initial_epoch", 0),
    ],
    "evaluate_generator": [("generator", _REQUIRED), ("steps", None), *_READING, ("verbose", 0)],
    "predict_generator": [("generator", _REQUIRED), ("steps", None), *_READING, ("verbose", 0)],
}


def parameters(cls, method):
    """The parameters of a method by name, without self and without catch-alls."""
    found = inspect.signature(getattr(cls, method)).parameters
    return {n: p for n, p in found.items() if n != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


@pytest.mark.parametrize("method", METHODS)
def test_positional_arguments_are_those_of_keras(method):
    theirs = {name: p.default for name, p in parameters(keras.Model, method).items()}
    ours = parameters(kdist.Model, method)
    positional = {name: p.default for name, p in ours.items() if p.kind is not p.KEYWORD_ONLY}
    assert list(positional) == list(theirs)
    changed = {name: default for (owner, name), default in DEFAULTS.items() if owner == method}
    assert positional == theirs | changed


@pytest.mark.parametrize("method", METHODS)
def test_what_is_added_goes_by_name(method):
    added = [name for name, p in parameters(kdist.Model, method).items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert added == ADDED.get(method, [])


@pytest.mark.parametrize("method", GENERATOR_METHODS)
def test_methods_for_generators_are_those_of_keras_2(method):
    ours = {name: p.default for name, p in parameters(kdist.Model, method).items()}
    assert list(ours.items()) == GENERATOR_METHODS[method]


def test_a_sequential_takes_layers_and_a_name():
    """`trainable` is Keras's alone: what is trained is the optimizer's business here."""
    theirs, ours = (parameters(cls, "__init__") for cls in (keras.Sequential, kdist.Sequential))
    assert list(theirs) == ["layers", "trainable", "name"]
    assert list(ours) == ["layers", "trainable", "seed", "name"]


@pytest.fixture(scope="module")
def trained():
    import flax.linen as nn
    import numpy as np

    model = kdist.Model(nn.Dense(1))
    model.compile("sgd", "mse")
    model.fit(np.ones((8, 2)), np.zeros((8, 1)), verbose=0)
    return model


@pytest.mark.parametrize(
    "name",
    [
        "optimizer",
        "loss",
        "metrics",
        "metrics_names",
        "history",
        "stop_training",
        "stop_evaluating",
        "stop_predicting",
        "compiled",
        "built",
        "run_eagerly",
        "jit_compile",
        "steps_per_execution",
    ],
)
def test_attributes_that_users_rely_on(name, trained):
    assert hasattr(trained, name)

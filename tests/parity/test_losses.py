"""Every loss of kdist against the one of that name in Keras, for all reductions, layouts and sample weights."""

import jax.numpy as jnp
import numpy as np
import pytest

import kdist
from kdist.losses import REDUCTIONS

keras = pytest.importorskip("keras", reason="numbers are compared with Keras 3 (extra: bench)")

N, T, C = 5, 4, 3

VALUE_LAYOUTS = {
    "rows": ((N, C), (N, C)),
    "rows against a column": ((N,), (N, 1)),
    "steps": ((N, T, C), (N, T, C)),
    "steps against a column": ((N, T), (N, T, 1)),
}
LABEL_LAYOUTS = {
    "labels": ((N,), (N, C)),
    "labels in a column": ((N, 1), (N, C)),
    "labels of steps": ((N, T), (N, T, C)),
    "labels of steps in a column": ((N, T, 1), (N, T, C)),
}
SAME_LAYOUTS = {name: VALUE_LAYOUTS[name] for name in ("rows", "steps")}


def signed(rng, true, pred):
    return rng.normal(size=true), rng.normal(size=pred)


def positive(rng, true, pred):
    return rng.uniform(0.1, 2, true), rng.uniform(0.1, 2, pred)


def probabilities(rng, true, pred):
    return rng.uniform(size=true).round(), rng.uniform(-0.1, 1.1, pred).clip(0, 1)  # some exactly 0 and 1


def logits_of_bits(rng, true, pred):
    return rng.uniform(size=true).round(), rng.normal(0, 5, pred)


def distributions(rng, true, pred):
    # Unnormalised predictions: Keras renormalises them.
    return np.eye(C)[rng.integers(0, C, true[:-1])], rng.uniform(0.01, 1, pred)


def logits_of_classes(rng, true, pred):
    return np.eye(C)[rng.integers(0, C, true[:-1])], rng.normal(0, 5, pred)


def labels(rng, true, pred):
    return rng.integers(0, C, true), rng.uniform(0.01, 1, pred)


def labels_and_logits(rng, true, pred):
    return rng.integers(0, C, true), rng.normal(0, 5, pred)


def labels_out_of_range(rng, true, pred):
    return rng.integers(-2, C + 2, true), rng.normal(0, 5, pred)


LOSSES = [
    ("MeanSquaredError", {}, VALUE_LAYOUTS, signed),
    ("MeanAbsoluteError", {}, VALUE_LAYOUTS, signed),
    ("MeanAbsolutePercentageError", {}, VALUE_LAYOUTS, signed),
    ("MeanSquaredLogarithmicError", {}, VALUE_LAYOUTS, signed),
    ("CosineSimilarity", {}, VALUE_LAYOUTS, signed),
    ("CosineSimilarity", {"axis": 1}, SAME_LAYOUTS, signed),
    ("Huber", {}, VALUE_LAYOUTS, signed),
    ("Huber", {"delta": 0.3}, VALUE_LAYOUTS, signed),
    ("LogCosh", {}, VALUE_LAYOUTS, signed),
    ("Poisson", {}, VALUE_LAYOUTS, positive),
    ("KLDivergence", {}, VALUE_LAYOUTS, positive),
    ("BinaryCrossentropy", {}, VALUE_LAYOUTS, probabilities),
    ("BinaryCrossentropy", {"from_logits": True, "label_smoothing": 0.2}, VALUE_LAYOUTS, logits_of_bits),
    ("CategoricalCrossentropy", {}, SAME_LAYOUTS, distributions),
    ("CategoricalCrossentropy", {"label_smoothing": 0.1}, SAME_LAYOUTS, distributions),
    ("CategoricalCrossentropy", {"from_logits": True}, SAME_LAYOUTS, logits_of_classes),
    ("SparseCategoricalCrossentropy", {}, LABEL_LAYOUTS, labels),
    ("SparseCategoricalCrossentropy", {"from_logits": True}, LABEL_LAYOUTS, labels_and_logits),
    ("SparseCategoricalCrossentropy", {"from_logits": True}, LABEL_LAYOUTS, labels_out_of_range),
    ("SparseCategoricalCrossentropy", {"from_logits": True, "ignore_class": 1}, LABEL_LAYOUTS, labels_and_logits),
    ("SparseCategoricalCrossentropy", {"ignore_class": -1}, LABEL_LAYOUTS, labels),
]

CASES = [
    pytest.param(name, arguments, true, pred, make, id=f"{name}-{arguments}-{make.__name__}-{layout}")
    for name, arguments, layouts, make in LOSSES
    for layout, (true, pred) in layouts.items()
]


def weights_for(rng, shape):
    """Sample weights for loss values of a shape, as far as Keras takes them: it broadcasts without aligning."""
    found = {
        "none": None,
        "zero": np.zeros(shape),
        "all": rng.uniform(0, 2, shape),
        "column": rng.uniform(0, 2, (N, 1)),
    }
    found["some zero"] = found["all"] * (found["all"] > 1)
    return found


def test_every_loss_is_compared():
    registered = {type(kdist.losses.get(name)).__name__ for name in kdist.losses.names()} - {"str"}
    assert {name for name, *_ in LOSSES} == registered


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("name", "arguments", "true", "pred", "make"), CASES)
def test_loss(rng, name, arguments, true, pred, make, reduction):
    y, p = (a if a.dtype.kind == "i" else a.astype(np.float32) for a in make(rng, true, pred))
    ours = getattr(kdist.losses, name)(**arguments, reduction=reduction)
    theirs = getattr(keras.losses, name)(**arguments, reduction=reduction)
    shape = np.shape(getattr(keras.losses, name)(**arguments, reduction=None)(y, p))
    weights = weights_for(rng, shape)
    found = {kind: float(ours(jnp.asarray(y), p, w)) for kind, w in weights.items()}
    expected = {kind: float(theirs(y, p, w)) for kind, w in weights.items()}
    assert found == pytest.approx(expected, rel=2e-5, abs=1e-5)


@pytest.mark.parametrize(("name", "arguments", "true", "pred", "make"), CASES)
def test_unreduced_values(rng, name, arguments, true, pred, make):
    y, p = make(rng, true, pred)
    ours = getattr(kdist.losses, name)(**arguments, reduction=None)(jnp.asarray(y), p)
    theirs = getattr(keras.losses, name)(**arguments, reduction=None)(y, p)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in kdist.losses.names() if name not in kdist.losses.BY_SHAPE])
def test_names_are_those_of_keras(name):
    assert type(kdist.losses.get(name)).__name__ == type(keras_by_name(name)).__name__


def keras_by_name(name):
    found = keras.losses.get(name)
    # A string in lower case is a function in Keras; kdist gives the class of it.
    by_function = {
        "mean_squared_error": "MeanSquaredError",
        "mean_absolute_error": "MeanAbsoluteError",
        "mean_absolute_percentage_error": "MeanAbsolutePercentageError",
        "mean_squared_logarithmic_error": "MeanSquaredLogarithmicError",
        "cosine_similarity": "CosineSimilarity",
        "huber": "Huber",
        "log_cosh": "LogCosh",
        "poisson": "Poisson",
        "kl_divergence": "KLDivergence",
        "binary_crossentropy": "BinaryCrossentropy",
        "categorical_crossentropy": "CategoricalCrossentropy",
        "sparse_categorical_crossentropy": "SparseCategoricalCrossentropy",
    }
    return (
        getattr(keras.losses, by_function[found.__name__])()
        if callable(found) and hasattr(found, "__name__")
        else found
    )

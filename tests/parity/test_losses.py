"""Every loss of kdist against the one of that name in Keras: values, gradients, names and signatures."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdist
from kdist.losses import REDUCTIONS

from .tables import first_of_each

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
STEP_LAYOUT = {"steps": VALUE_LAYOUTS["steps"]}
# Keras multiplies every row's probabilities with every row's labels where labels are in a column.
FLAT_LABEL_LAYOUTS = {name: LABEL_LAYOUTS[name] for name in ("labels", "labels of steps")}
EMBEDDING_LAYOUTS = {name: LABEL_LAYOUTS[name] for name in ("labels", "labels in a column")}
SEQUENCE_LAYOUTS = {"sequences": ((N, 2), (N, T, C))}


def signed(rng, true, pred):
    return rng.normal(size=true), rng.normal(size=pred)


def positive(rng, true, pred):
    return rng.uniform(0.1, 2, true), rng.uniform(0.1, 2, pred)


def probabilities(rng, true, pred):
    return rng.uniform(size=true).round(), rng.uniform(-0.1, 1.1, pred).clip(0, 1)  # some exactly 0 and 1


def inner_probabilities(rng, true, pred):
    return rng.uniform(size=true).round(), rng.uniform(0.01, 0.99, pred)


def logits_of_bits(rng, true, pred):
    return rng.uniform(size=true).round(), rng.normal(0, 5, pred)


def scores_of_signs(rng, true, pred):
    return 2 * rng.uniform(size=true).round() - 1, rng.normal(size=pred)


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


def embeddings(rng, true, pred):
    vectors = rng.normal(size=pred)
    return (np.arange(pred[0]) % 2).reshape(true), vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def near_embeddings(rng, true, pred):
    """Classes that lie apart, so that some anchors have no loss in float32."""
    vectors = np.eye(pred[-1])[np.arange(pred[0]) % 2] + rng.normal(0, 0.3, pred)
    return (np.arange(pred[0]) % 2).reshape(true), vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def sequences(rng, true, pred):
    kept = np.arange(true[1]) < rng.integers(0, true[1] + 1, (true[0], 1))
    return np.where(kept, rng.integers(1, C, true), 0), rng.normal(0, 3, pred)


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
    ("Hinge", {}, VALUE_LAYOUTS, scores_of_signs),
    ("Hinge", {}, VALUE_LAYOUTS, logits_of_bits),
    ("SquaredHinge", {}, VALUE_LAYOUTS, scores_of_signs),
    ("SquaredHinge", {}, VALUE_LAYOUTS, logits_of_bits),
    ("CategoricalHinge", {}, SAME_LAYOUTS, logits_of_classes),
    ("Poisson", {}, VALUE_LAYOUTS, positive),
    ("KLDivergence", {}, VALUE_LAYOUTS, positive),
    ("BinaryCrossentropy", {}, VALUE_LAYOUTS, probabilities),
    ("BinaryCrossentropy", {"from_logits": True, "label_smoothing": 0.2}, VALUE_LAYOUTS, logits_of_bits),
    ("BinaryCrossentropy", {"axis": 1}, STEP_LAYOUT, probabilities),
    ("BinaryFocalCrossentropy", {}, VALUE_LAYOUTS, probabilities),
    ("BinaryFocalCrossentropy", {"apply_class_balancing": True, "alpha": 0.7}, VALUE_LAYOUTS, probabilities),
    ("BinaryFocalCrossentropy", {"gamma": 0.5, "axis": 1}, SAME_LAYOUTS, inner_probabilities),
    ("BinaryFocalCrossentropy", {"from_logits": True, "label_smoothing": 0.2}, VALUE_LAYOUTS, logits_of_bits),
    ("CategoricalCrossentropy", {}, SAME_LAYOUTS, distributions),
    ("CategoricalCrossentropy", {"label_smoothing": 0.1}, SAME_LAYOUTS, distributions),
    ("CategoricalCrossentropy", {"from_logits": True}, SAME_LAYOUTS, logits_of_classes),
    ("CategoricalFocalCrossentropy", {}, SAME_LAYOUTS, distributions),
    ("CategoricalFocalCrossentropy", {"alpha": [0.2, 0.5, 1.0], "gamma": 3.0}, SAME_LAYOUTS, distributions),
    ("CategoricalFocalCrossentropy", {"from_logits": True, "label_smoothing": 0.1}, SAME_LAYOUTS, logits_of_classes),
    ("CategoricalGeneralizedCrossEntropy", {}, FLAT_LABEL_LAYOUTS, labels),
    ("CategoricalGeneralizedCrossEntropy", {"q": 0.9}, FLAT_LABEL_LAYOUTS, labels),
    ("SparseCategoricalCrossentropy", {}, LABEL_LAYOUTS, labels),
    ("SparseCategoricalCrossentropy", {"from_logits": True}, LABEL_LAYOUTS, labels_and_logits),
    ("SparseCategoricalCrossentropy", {"from_logits": True}, LABEL_LAYOUTS, labels_out_of_range),
    ("SparseCategoricalCrossentropy", {"from_logits": True, "ignore_class": 1}, LABEL_LAYOUTS, labels_and_logits),
    ("SparseCategoricalCrossentropy", {"ignore_class": -1}, LABEL_LAYOUTS, labels),
    ("Dice", {}, VALUE_LAYOUTS, probabilities),
    ("Dice", {"axis": -1}, SAME_LAYOUTS, probabilities),
    ("Dice", {"axis": (1, 2)}, STEP_LAYOUT, probabilities),
    ("Dice", {"axis": (0, 1)}, STEP_LAYOUT, probabilities),
    ("Tversky", {"alpha": 0.2, "beta": 0.9}, VALUE_LAYOUTS, probabilities),
    ("Tversky", {}, SAME_LAYOUTS, probabilities),
    ("Tversky", {"alpha": 0.2, "axis": (-1,)}, SAME_LAYOUTS, probabilities),
    ("Tversky", {"beta": 0.2, "axis": 0}, SAME_LAYOUTS, probabilities),
    ("Circle", {}, EMBEDDING_LAYOUTS, embeddings),
    ("Circle", {"gamma": 20.0, "margin": 0.25}, EMBEDDING_LAYOUTS, near_embeddings),
    ("Circle", {"remove_diagonal": False}, EMBEDDING_LAYOUTS, embeddings),
    ("CTC", {}, SEQUENCE_LAYOUTS, sequences),
]

CASES = first_of_each(
    pytest.param(name, arguments, true, pred, make, id=f"{name}-{arguments}-{make.__name__}-{layout}")
    for name, arguments, layouts, make in LOSSES
    for layout, (true, pred) in layouts.items()
)
CLASSES = sorted({name for name, *_ in LOSSES})


def pair(name, arguments, **more):
    """The loss in kdist and in Keras."""
    theirs = dict(arguments)
    if name == "Tversky":  # Keras 3.15 takes what `alpha` weighs for `beta`, and the other way round
        theirs |= {"alpha": arguments.get("beta", 0.5), "beta": arguments.get("alpha", 0.5)}
    return getattr(kdist.losses, name)(**arguments, **more), getattr(keras.losses, name)(**theirs, **more)


def rows(rng, true, pred, make):
    return (a if a.dtype.kind == "i" else a.astype(np.float32) for a in make(rng, true, pred))


def weights_for(rng, name, arguments, y, p):
    """Sample weights, as far as Keras takes them: it broadcasts without aligning."""
    ours, theirs = pair(name, arguments, reduction=None)
    shape = jax.eval_shape(theirs, y, p).shape or (len(p),)
    if ours.across_rows and shape[0] != len(p):  # a value a class of the whole batch: no weights fit in Keras
        return {"none": None}
    found = {
        "none": None,
        "zero": np.zeros(shape),
        "all": rng.uniform(0, 2, shape),
        "column": rng.uniform(0, 2, (len(p), 1)),
    }
    found["some zero"] = found["all"] * (found["all"] > 1)
    return found


def test_every_loss_is_compared():
    registered = {type(kdist.losses.get(name)).__name__ for name in kdist.losses.names()} - {"str"}
    assert set(CLASSES) == registered


@pytest.mark.parametrize(("name", "arguments", "true", "pred", "make"), CASES)
def test_loss(rng, name, arguments, true, pred, make):
    check_loss(rng, name, arguments, true, pred, make, REDUCTIONS[0])


@pytest.mark.parametrize("reduction", REDUCTIONS[1:])
@pytest.mark.parametrize(("name", "arguments", "true", "pred", "make"), first_of_each(CASES, of=1))
def test_loss_under_other_reductions(rng, name, arguments, true, pred, make, reduction):
    check_loss(rng, name, arguments, true, pred, make, reduction)


def check_loss(rng, name, arguments, true, pred, make, reduction):
    y, p = rows(rng, true, pred, make)
    ours, theirs = pair(name, arguments, reduction=reduction)
    weights = weights_for(rng, name, arguments, y, p)
    found = {kind: float(ours(jnp.asarray(y), p, w)) for kind, w in weights.items()}
    expected = {kind: float(theirs(y, p, w)) for kind, w in weights.items()}
    assert found == pytest.approx(expected, rel=2e-5, abs=1e-5)


@pytest.mark.parametrize(("name", "arguments", "true", "pred", "make"), CASES)
def test_unreduced_values(rng, name, arguments, true, pred, make):
    y, p = rows(rng, true, pred, make)
    ours, theirs = (loss(y, p) for loss in pair(name, arguments, reduction=None))
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "arguments", "true", "pred", "make"), CASES)
def test_gradient(rng, name, arguments, true, pred, make):
    y, p = rows(rng, true, pred, make)
    weight = weights_for(rng, name, arguments, y, p).get("all")
    found, expected = (jax.jit(jax.grad(loss, 1))(y, p, weight) for loss in pair(name, arguments))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


# Names ----------------------------------------------------------------------------------------------

OURS_ONLY = {"CategoricalGeneralizedCrossEntropy", "categorical_generalized_cross_entropy"}
"""Strings that Keras, which has the class, does not know."""


@pytest.mark.parametrize("name", sorted(set(kdist.losses.names()) - set(kdist.losses.BY_SHAPE)))
def test_names_are_those_of_keras(name):
    cls = type(kdist.losses.get(name))
    if name in OURS_ONLY:
        assert cls.__name__ in OURS_ONLY
        with pytest.raises(ValueError, match="Could not interpret"):
            keras.losses.get(name)
        return
    theirs = keras.losses.get(name)
    # A string in lower case is a function in Keras; kdist gives the class of it.
    if inspect.isfunction(theirs):
        assert theirs.__name__ == cls.fn.__name__
    else:
        assert type(theirs).__name__ == cls.__name__ == name


def test_every_loss_of_keras_is_there():
    theirs = {name for name, thing in vars(keras.losses).items() if inspect.isclass(thing) or inspect.isfunction(thing)}
    assert theirs - {"get", "serialize", "deserialize"} <= set(kdist.losses.__all__)
    accepted = vars(keras.src.losses)["ALL_OBJECTS_DICT"].keys() - {"Loss", "LossFunctionWrapper"}
    assert accepted | OURS_ONLY | set(kdist.losses.BY_SHAPE) == set(kdist.losses.names())


def parameters(thing):
    """Names and defaults of arguments in their order; a default name is compared in use."""
    return [(p.name, None if p.name == "name" else p.default) for p in inspect.signature(thing).parameters.values()]


@pytest.mark.parametrize("name", [*CLASSES, "Loss"])
def test_arguments_of_classes(name):
    ours, theirs = getattr(kdist.losses, name), getattr(keras.losses, name)
    assert parameters(ours) == parameters(theirs)
    if name != "Loss":
        assert ours().name == theirs().name
        assert ours().reduction == theirs().reduction and ours().dtype == theirs().dtype


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_of_functions(name):
    ours = getattr(kdist.losses, name).fn
    assert parameters(ours) == parameters(getattr(keras.losses, ours.__name__))


@pytest.mark.parametrize(
    ("name", "arguments", "true", "pred", "error"),
    [
        ("CategoricalCrossentropy", {"axis": True}, (N, C), (N, C), ValueError),
        ("CategoricalFocalCrossentropy", {"axis": True}, (N, C), (N, C), ValueError),
        ("CategoricalGeneralizedCrossEntropy", {"q": 0.0}, (N,), (N, C), ValueError),
        ("CategoricalGeneralizedCrossEntropy", {"q": 1.0}, (N,), (N, C), ValueError),
        ("Dice", {"reduction": "average"}, (N, C), (N, C), ValueError),
        ("BinaryCrossentropy", {}, (N, 1), (N, C), ValueError),
        ("CTC", {}, (N,), (N, T, C), ValueError),
        ("CTC", {}, (N, T), (N, C), ValueError),
        ("CategoricalCrossentropy", {}, (N, 1), (N, 1), SyntaxWarning),
        ("CategoricalFocalCrossentropy", {}, (N, 1), (N, 1), SyntaxWarning),
    ],
)
def test_mistakes_that_keras_finds_too(name, arguments, true, pred, error):
    for losses in (kdist.losses, keras.losses):
        with pytest.raises(error):  # warnings are errors
            getattr(losses, name)(**arguments)(np.zeros(true), np.full(pred, 0.5))

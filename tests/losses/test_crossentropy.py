"""Cross-entropies of labels, at the edges: unknown and ignored ones, ranks, axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdist import losses
from kdist.errors import ConfigError, DataError


def log_softmax(a):
    return a - np.log(np.exp(a).sum(-1, keepdims=True))


LOGITS = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0], [0.2, 0.1, 0.0], [1.0, 1.0, 1.0]], np.float32)


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("labels", [[0, 2, 1, 1], [-1, 2, 3, 1], [-1, 7, 3, -5]], ids=["known", "some", "none known"])
def test_labels_out_of_range_cost_nothing_and_count(labels, from_logits):
    """As in Keras; optax gives NaN, or wraps around."""
    pred = LOGITS if from_logits else np.exp(LOGITS)
    known = [i for i, label in enumerate(labels) if 0 <= label < 3]
    expected = -sum(log_softmax(LOGITS.astype(np.float64))[i, labels[i]] for i in known) / len(labels)
    loss = losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    assert float(loss(np.array(labels), pred)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 3.0, 0.5], [[1.0], [2.0], [3.0], [0.5]]], ids=str)
@pytest.mark.parametrize("ignored", [-1, 255, 1])
def test_ignored_labels_do_not_count(ignored, weight):
    labels = np.array([0, ignored, 2, ignored])
    each = -log_softmax(LOGITS.astype(np.float64))[[0, 2], [0, 2]]
    w = np.ones(4) if weight is None else np.ravel(weight)
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored)
    found = float(loss(labels, LOGITS, None if weight is None else np.array(weight)))
    assert found == pytest.approx((each * w[[0, 2]]).sum() / 2, rel=1e-5)


def test_all_labels_ignored_is_zero():
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    assert float(loss(np.zeros(4, int), LOGITS)) == 0.0


@pytest.mark.parametrize("weight", [(4,), (4, 1), (4, 2)], ids=str)
@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
def test_ignored_labels_of_sequences_with_weights(reduction, weight):
    labels = np.array([[0, -1], [1, 1], [-1, -1], [2, 0]])
    logits = np.stack([LOGITS, -LOGITS], axis=1)
    w = np.arange(1.0, 1 + np.prod(weight)).reshape(weight)
    wide = np.broadcast_to(w.reshape(4, -1), (4, 2))
    kept = labels != -1
    each = -np.take_along_axis(log_softmax(logits.astype(np.float64)), np.maximum(labels, 0)[..., None], -1)[..., 0]
    total = (each * kept * wide).sum()
    expected = {"sum": total, "mean_with_sample_weight": total / (kept * wide).sum()}.get(reduction, total / kept.sum())
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1, reduction=reduction)
    assert float(loss(labels, logits, w)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("true", [(4, 2), (4, 1, 2), (4, 2, 1)])
def test_classes_on_another_axis(true):
    labels = np.array([[0, 1], [1, 1], [2, 0], [-1, 2]])
    logits = np.stack([LOGITS, -LOGITS], axis=1)
    last = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)(labels, logits)
    second = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1, axis=1)
    assert float(second(labels.reshape(true), logits.swapaxes(1, 2))) == pytest.approx(float(last))


@pytest.mark.parametrize("name", ["CategoricalCrossentropy", "CategoricalFocalCrossentropy"])
def test_distributions_on_another_axis(name):
    """Smoothing divides by the number of classes, where Keras takes the length of the last axis for it."""
    true, pred = np.eye(3)[[[0, 1], [2, 2]]], np.random.default_rng(0).uniform(size=(2, 2, 3))
    last = getattr(losses, name)(label_smoothing=0.3)(true, pred)
    second = getattr(losses, name)(label_smoothing=0.3, axis=1)(true.swapaxes(1, 2), pred.swapaxes(1, 2))
    assert float(second) == pytest.approx(float(last))


@pytest.mark.parametrize("fn", [losses.categorical_crossentropy, losses.categorical_focal_crossentropy])
def test_functions_refuse_an_axis_that_is_none(fn):
    with pytest.raises(ConfigError, match="axis must be an integer"):
        fn(jnp.eye(3), jnp.eye(3), axis=True)


@pytest.mark.parametrize("name", ["categorical_crossentropy", "categorical_focal_crossentropy"])
def test_one_class_is_a_mistake(name):
    with pytest.warns(SyntaxWarning, match=f"'{name}'.*have one class.*'binary_crossentropy'"):
        losses.get(name)(np.ones((4, 1)), np.ones((4, 1)))


@pytest.mark.parametrize("alpha", [[0.5, 1.0], [0.5]])
def test_focal_weights_that_are_not_one_a_class(alpha):
    with pytest.raises(DataError, match="alpha must be a number, or one for each of 3 classes"):
        losses.CategoricalFocalCrossentropy(alpha=alpha)(np.eye(3), np.eye(3))


@pytest.mark.parametrize("q", [0, 1, -0.5, 2])
def test_generalized_cross_entropy_between_two_losses(q):
    with pytest.raises(ConfigError, match=f"q must be between 0 and 1.*Received: {q}"):
        losses.CategoricalGeneralizedCrossEntropy(q=q)


@pytest.mark.parametrize("label", [0, 3, -1], ids=["probability 0", "above", "below"])
def test_generalized_cross_entropy_has_finite_slopes(label):
    """Where the probability is 0, as that of a label that is no class is, the true slope is infinite."""
    loss = losses.CategoricalGeneralizedCrossEntropy()
    value, slope = jax.value_and_grad(lambda p: loss(np.array([label, 1]), p))(jnp.array([[0.0, 0.5, 0.5]] * 2))
    assert float(value) == pytest.approx((2 + 2 * (1 - 0.5**0.5)) / 2)
    np.testing.assert_allclose(slope, [[0, 0, 0], [0, -(0.5**-0.5) / 2, 0]], rtol=1e-6)

"""Hinges, overlaps, the circle loss and CTC against formulas in NumPy, and where Keras's numbers are not to be had."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdist import losses
from kdist.errors import ConfigError

SCORES = np.array([[0.5, -2.0, 3.0], [-0.3, 0.1, 0.0]], np.float32)


@pytest.mark.parametrize("zero", [0, -1])
@pytest.mark.parametrize(("name", "power"), [("hinge", 1), ("squared_hinge", 2)])
def test_hinge_takes_both_kinds_of_labels(name, power, zero):
    true = np.array([[1, zero, zero], [1, 1, zero]])
    signs = np.where(true == zero, -1, 1)
    expected = (np.maximum(1 - signs * SCORES, 0) ** power).mean()
    assert float(losses.get(name)(true, SCORES)) == pytest.approx(expected)


def test_hinge_labels_are_told_element_by_element():
    """Keras would keep this 0, since a label of the batch is -1; a shard cannot know."""
    assert float(losses.Hinge()(np.array([[0.0], [-1.0]]), np.array([[2.0], [2.0]]))) == 3.0


TRUE = np.array([[1, 1, 0], [0, 1, 0]], np.float32)
PRED = np.array([[0.5, 1, 0.25], [0.5, 0, 0]], np.float32)


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0,), (0, 1), [0, 1]])
def test_dice(axis):
    axes = tuple(axis) if isinstance(axis, list) else axis
    both, true, pred = (a.sum(axes) for a in (TRUE * PRED, TRUE, PRED))
    expected = 1 - 2 * both / (true + pred + 1e-7)
    np.testing.assert_allclose(losses.dice(TRUE, PRED, axis), expected, rtol=1e-6)
    assert float(losses.Dice(axis=axis)(TRUE, PRED)) == pytest.approx(expected.mean())
    assert float(losses.Dice(axis=axis, reduction="sum")(TRUE, PRED)) == pytest.approx(expected.sum())


@pytest.mark.parametrize(("alpha", "beta", "below"), [(1, 0, 1.5 + 1), (0, 1, 1.5 + 1.5), (0.5, 0.2, 1.5 + 0.5 + 0.3)])
def test_tversky_alpha_is_of_what_is_wrongly_predicted(alpha, beta, below):
    """As the paper has it and Keras's documentation; up to 3.15 its code has the two the other way round."""
    pred = np.array([[0.5, 1, 0.5], [0.5, 0, 0]], np.float32)  # shared 1.5, wrongly predicted 1, missed 1.5
    assert float(losses.Tversky(alpha=alpha, beta=beta)(TRUE, pred)) == pytest.approx(1 - 1.5 / below, rel=1e-5)
    assert float(losses.tversky(TRUE, pred, alpha, beta)) == pytest.approx(1 - 1.5 / below, rel=1e-5)


@pytest.mark.parametrize("cls", [losses.Dice, losses.Tversky])
@pytest.mark.parametrize("axis", [-2, (-2, -1)])
def test_rows_are_axis_0(cls, axis):
    with pytest.raises(ConfigError, match="has the rows.*Write 0 for it"):
        cls(axis=axis)(TRUE, PRED)


@pytest.mark.parametrize("weight", [np.array([2.0, 1.0]), np.array([[2.0], [1.0]]), np.array([[2.0, 2, 2], [1, 1, 1]])])
@pytest.mark.parametrize(
    ("reduction", "factor"), [("sum_over_batch_size", 1.5), ("mean_with_sample_weight", 1.0), ("sum", None)]
)
def test_weights_of_a_number_a_batch(reduction, factor, weight):
    factor = weight.sum() if factor is None else factor
    expected = float(losses.dice(TRUE, PRED)) * factor
    assert float(losses.Dice(reduction=reduction)(TRUE, PRED, weight)) == pytest.approx(expected)


@pytest.mark.parametrize("cls", [losses.Dice, losses.Tversky])
def test_nothing_there_and_nothing_predicted(cls):
    value, slope = jax.value_and_grad(lambda p: cls()(np.zeros((2, 3)), p))(jnp.zeros((2, 3)))
    assert float(value) == 1.0 and not np.isnan(slope).any()


ANGLES = np.array([0.0, 0.4, 1.5, 2.0, 3.1])
VECTORS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1).astype(np.float32)


def circle_of(anchor, others, same, gamma, margin):
    """The loss of one anchor, in float64, as the paper writes it: log(1 + sum(exp) sum(exp))."""
    d = np.maximum(1 - others.astype(np.float64) @ anchor, 0)
    near = np.exp(-gamma * (margin + d) * (margin - d))[same]
    far = np.exp(gamma * np.maximum(1 + margin - d, 0) * (1 - margin - d))[~same]
    return np.log1p(near.sum() * far.sum())


@pytest.mark.parametrize("remove_diagonal", [True, False])
def test_circle(remove_diagonal):
    labels = np.array([0, 0, 1, 1, 0])
    found = losses.Circle(gamma=4.0, margin=0.3, remove_diagonal=remove_diagonal, reduction=None)(labels, VECTORS)
    for i, value in enumerate(found):
        others = np.arange(5) != i if remove_diagonal else np.ones(5, bool)
        expected = circle_of(VECTORS[i], VECTORS[others], labels[others] == labels[i], 4.0, 0.3)
        assert float(value) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("labels_shape", [(3,), (3, 1)])
def test_circle_of_a_reference_set(labels_shape):
    labels, refs = np.array([0, 0, 1]), np.array([0, 1])
    found = losses.circle(
        labels, VECTORS[:3], refs.reshape(2, *labels_shape[1:]), VECTORS[3:], remove_diagonal=False, gamma=4.0
    )
    expected = [circle_of(v, VECTORS[3:], refs == label, 4.0, 0.4) for v, label in zip(VECTORS, labels, strict=False)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("labels", "having"), [([0, 0, 0, 0, 0], 0), ([0, 1, 2, 3, 4], 0), ([0, 0, 1, 2, 3], 2)], ids=str
)
def test_anchors_without_a_comparison_cost_nothing(labels, having):
    """They leave the denominator; in Keras the gradient of such a batch is NaN."""
    loss = losses.Circle(gamma=4.0)
    values = losses.circle(np.array(labels), VECTORS, gamma=4.0)
    assert (values > 0).sum() == having
    value, slope = jax.value_and_grad(lambda p: loss(np.array(labels), p))(VECTORS)
    assert float(value) == pytest.approx(float(values.sum() / max(having, 1)))
    assert np.isfinite(slope).all() and np.any(slope) == (having > 0)


def test_ctc_adds_up_the_alignments():
    """Of two steps: the label once, before or after a blank, or twice."""
    logits = np.array([[[0.2, 1.0, -0.5], [0.3, -0.1, 0.8]]], np.float32)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    one = p[0, 1] * p[1, 0] + p[0, 0] * p[1, 1] + p[0, 1] * p[1, 1]
    for labels, likelihood in [([1, 0], one), ([1, 2], p[0, 1] * p[1, 2]), ([0, 0], p[0, 0] * p[1, 0])]:
        assert float(losses.CTC()(np.array([labels]), logits)) == pytest.approx(-np.log(likelihood), rel=1e-5)

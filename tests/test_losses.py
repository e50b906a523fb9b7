"""Losses against closed formulas in NumPy, at the edges: weights, ranks, labels, masks and padding."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import kdist
from kdist import losses
from kdist.errors import ConfigError, DataError

Y = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]], np.float32)
P = np.array([[1.0, 1.0], [0.0, 0.0], [3.0, 0.0]], np.float32)
VALUES = np.array([0.5, 2.0, 2.5])  # mean squared errors of the rows
W = np.array([2.0, 0.5, 0.0], np.float32)
VALID = np.array([1.0, 1.0, 0.0], np.float32)


@pytest.mark.parametrize(
    ("reduction", "weight", "expected"),
    [
        ("sum_over_batch_size", None, VALUES.mean()),
        ("sum_over_batch_size", W, (VALUES * W).sum() / 3),
        ("sum_over_batch_size", 0 * W, 0.0),
        ("mean", W, (VALUES * W).sum() / 3),
        ("sum", None, VALUES.sum()),
        ("sum", W, (VALUES * W).sum()),
        ("mean_with_sample_weight", None, VALUES.mean()),
        ("mean_with_sample_weight", W, (VALUES * W).sum() / W.sum()),
        ("mean_with_sample_weight", 0 * W, 0.0),
    ],
)
def test_reductions(reduction, weight, expected):
    assert float(losses.MeanSquaredError(reduction=reduction)(Y, P, weight)) == pytest.approx(expected)


@pytest.mark.parametrize("weight", [None, W, W[:, None]], ids=["plain", "rows", "column"])
@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
def test_rows_that_only_fill_a_batch_do_not_count(reduction, weight):
    loss = losses.MeanSquaredError(reduction=reduction)
    padded = loss.sums(Y, P, weight, valid=VALID).value()
    short = loss.sums(Y[:2], P[:2], None if weight is None else weight[:2]).value()
    assert float(padded) == pytest.approx(float(short))


@pytest.mark.parametrize("weight", [None, W], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
def test_sums_of_parts_add_up(reduction, weight):
    loss = losses.MeanSquaredError(reduction=reduction)
    parts = [loss.sums(Y[i], P[i], None if weight is None else weight[i]) for i in (slice(1), slice(1, 3))]
    total = sum(float(s.sum) for s in parts)
    if reduction != "sum":
        total /= sum(float(s.denominator) for s in parts)
    assert total == pytest.approx(float(loss(Y, P, weight)))


def test_no_reduction_gives_a_value_a_row():
    np.testing.assert_allclose(losses.MeanSquaredError(reduction=None)(Y, P), VALUES)
    np.testing.assert_allclose(losses.MeanSquaredError(reduction="none")(Y, P, W), VALUES * W)


STEPS_Y, STEPS_P = np.zeros((3, 3, 1), np.float32), np.arange(9, dtype=np.float32).reshape(3, 3, 1)
SQUARES = np.arange(9.0).reshape(3, 3) ** 2


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        # Keras would multiply the wrong axis where rows and steps are equal in number.
        (W, (SQUARES * W[:, None]).mean()),
        (W[:, None], (SQUARES * W[:, None]).mean()),
        (SQUARES.astype(np.float32), (SQUARES * SQUARES).mean()),
        (SQUARES[..., None].astype(np.float32), (SQUARES * SQUARES).mean()),
    ],
    ids=["rows", "column", "steps", "steps in a column"],
)
def test_weights_of_sequences(weight, expected):
    assert float(losses.MeanSquaredError()(STEPS_Y, STEPS_P, weight)) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(2,), (3, 2), (3, 3, 2)])
def test_weights_that_do_not_fit(shape):
    with pytest.raises(DataError, match=r"sample_weight of shape .* does not fit values of shape \(3, 3\)"):
        losses.MeanSquaredError()(STEPS_Y, STEPS_P, np.ones(shape))


@pytest.mark.parametrize(
    ("true", "pred", "together"),
    [
        ((4,), (4, 1), ((4, 1), (4, 1))),
        ((4, 1), (4,), ((4, 1), (4, 1))),
        ((4, 5), (4, 5, 1), ((4, 5), (4, 5))),
        ((4, 5, 1), (4, 5), ((4, 5), (4, 5))),
        ((4,), (4, 3), ((4,), (4, 3))),
        ((4, 1), (4, 3), ((4, 1), (4, 3))),
    ],
)
def test_align_ranks(true, pred, together):
    aligned = losses.align_ranks(jnp.zeros(true), jnp.zeros(pred))
    assert tuple(a.shape for a in aligned) == together


@pytest.mark.parametrize(("true", "pred"), [((4,), (4, 1)), ((4, 5), (4, 5, 1))])
def test_a_missing_last_axis_does_not_broadcast(true, pred):
    y, p = np.arange(np.prod(true), dtype=np.float32), np.zeros(pred, np.float32)
    assert float(losses.MeanSquaredError()(y.reshape(true), p)) == pytest.approx((y**2).mean())


@pytest.mark.parametrize(
    ("name", "true", "pred", "message"),
    [
        ("mse", (4, 2), (4, 3), "rows x 2 cannot be compared with predictions of shape rows x 3"),
        ("mae", (4, 5), (4, 3, 2), "cannot be compared"),
        ("binary_crossentropy", (4, 1), (4, 3), "expected the same shape"),
        ("categorical_crossentropy", (4,), (4, 3), "expected the same shape"),
        ("kl_divergence", (4, 2), (4, 3), "expected the same shape"),
        ("sparse_categorical_crossentropy", (4, 3), (4, 3), "for one-hot targets use 'categorical_crossentropy'"),
    ],
)
def test_shapes_that_cannot_match(name, true, pred, message):
    with pytest.raises(DataError, match=message):
        losses.get(name)(np.zeros(true, np.float32), np.zeros(pred, np.float32))


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


def test_large_labels_stay_exact():
    """As float32, labels above 2**24 would be rounded, and ids collide."""
    seen = []

    def loss(y_true, y_pred):
        seen.append(y_true.dtype)
        return (y_true - 2**24).astype(jnp.float32) * y_pred[:, 0]

    assert float(losses.get(loss)(np.array([2**24 + 1]), np.ones((1, 1), np.float32))) == 1.0
    assert jnp.issubdtype(seen[0], jnp.integer)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_losses_are_float32_whatever_the_outputs_are(dtype):
    value = losses.MeanSquaredError()(np.zeros((2, 1)), jnp.full((2, 1), 1.5, dtype))
    assert value.dtype == jnp.float32 and float(value) == 2.25


@pytest.mark.parametrize(
    ("weight", "valid", "expected"),
    [(None, None, 1.5), (W, None, 1.5 * W.mean()), (None, VALID, 1.5)],
    ids=["plain", "weighted", "padded"],
)
def test_a_scalar_loss_is_the_mean_over_its_rows(weight, valid, expected):
    loss = losses.get(lambda y_true, y_pred: jnp.float32(1.5))
    assert float(loss.sums(Y, P, weight, valid).value()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (losses.mean_squared_error, "mean_squared_error"),
        (lambda y, p: p, "lambda"),
        (functools.partial(losses.huber, delta=2.0), "huber"),
    ],
)
def test_names_of_functions(fn, name):
    assert losses.get(fn).name == name


@pytest.mark.parametrize(
    ("identifier", "cls", "name"),
    [
        ("mse", losses.MeanSquaredError, "mse"),
        ("MSE", losses.MeanSquaredError, "MSE"),
        ("MeanSquaredError", losses.MeanSquaredError, "mean_squared_error"),
        ("KLDivergence", losses.KLDivergence, "kl_divergence"),
        (losses.Huber, losses.Huber, "huber_loss"),
        (losses.Huber(name="mine"), losses.Huber, "mine"),
    ],
)
def test_get(identifier, cls, name):
    loss = losses.get(identifier)
    assert type(loss) is cls and loss.name == name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.get("Mse"), r"Unknown loss 'Mse'\. Did you mean 'mse'\?"),
        (lambda: losses.get("logcosh"), "Did you mean '(log_cosh|LogCosh)'"),
        (lambda: losses.get("zzzzzz"), r"Unknown loss 'zzzzzz'\. Known: "),
        (lambda: losses.get(3), "Expected a loss"),
        (lambda: losses.get(losses.MeanSquaredError(reduction=None)), "cannot be trained on"),
        (lambda: losses.Huber(reduction="average"), "Unknown reduction 'average'"),
    ],
)
def test_errors_of_get(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_loss_of_ones_own():
    class Cubic(kdist.losses.Loss):
        def call(self, y_true, y_pred):
            return jnp.abs(y_pred - y_true) ** 3

    loss = losses.get(Cubic)
    assert loss.name == "cubic"
    assert float(loss(Y, P)) == pytest.approx((np.abs(Y - P) ** 3).mean())
    with pytest.raises(NotImplementedError, match="must define call"):
        kdist.losses.Loss()(Y, P)


@pytest.mark.parametrize(
    ("true", "pred", "kind"),
    [
        ((8,), (8, 1), "binary"),
        ((8, 1), (8, 1), "binary"),
        ((8, 5), (8, 5, 1), "binary"),
        ((8,), (8,), "binary"),
        ((8,), (8, 3), "sparse"),
        ((8, 1), (8, 3), "sparse"),
        ((8, 5), (8, 5, 3), "sparse"),
        ((8, 3), (8, 3), "categorical"),
        ((8, 5, 3), (8, 5, 3), "categorical"),
    ],
)
def test_kind_of_targets(true, pred, kind):
    classes = {
        "binary": losses.BinaryCrossentropy,
        "sparse": losses.SparseCategoricalCrossentropy,
        "categorical": losses.CategoricalCrossentropy,
    }
    assert losses.target_kind(true, pred) == kind
    for name in losses.BY_SHAPE:
        loss = losses.for_shapes(losses.get(name), true, pred)
        assert type(loss) is classes[kind] and loss.name == name

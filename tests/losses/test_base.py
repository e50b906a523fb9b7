"""What every loss has: reductions, weights, rows that only fill a batch, and the dtype that it computes in."""

import jax.numpy as jnp
import numpy as np
import pytest

import kdist
from kdist import losses
from kdist.errors import DataError

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


def test_a_loss_of_ones_own():
    class Cubic(kdist.losses.Loss):
        def call(self, y_true, y_pred):
            return jnp.abs(y_pred - y_true) ** 3

    loss = losses.get(Cubic)
    assert loss.name == "cubic"
    assert float(loss(Y, P)) == pytest.approx((np.abs(Y - P) ** 3).mean())
    with pytest.raises(NotImplementedError, match="must define call"):
        kdist.losses.Loss()(Y, P)


@pytest.mark.parametrize("weight", [None, W, np.outer(W, [1, 3])], ids=["plain", "rows", "steps"])
def test_a_scalar_without_a_reduction_is_left_alone(weight):
    class OneNumber(losses.Loss):
        def call(self, y_true, y_pred):
            return y_pred.mean()

    expected = P.mean() if weight is None else P.mean() * weight
    np.testing.assert_allclose(OneNumber(reduction=None)(Y, P, weight), expected, rtol=1e-6)


def test_a_dtype_of_ones_own():
    loss = losses.MeanSquaredError(dtype="bfloat16")
    assert loss.dtype == loss.values(Y, P).dtype == jnp.bfloat16


def test_alone_a_shard_has_all_rows():
    assert losses.ALONE.places(4).tolist() == [0, 1, 2, 3]
    assert losses.ALONE.sum({"a": 1}) == {"a": 1}

"""Shapes that go together, and those that do not."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdist import losses
from kdist.errors import ConfigError, DataError


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
        ("binary_focal_crossentropy", (4, 1), (4, 3), "expected the same shape"),
        ("categorical_focal_crossentropy", (4, 2), (4, 3), "expected the same shape"),
        ("hinge", (4, 2), (4, 3), "expected the same shape"),
        ("categorical_hinge", (4, 1), (4, 3), "expected the same shape"),
        ("dice", (4, 1), (4, 3), "expected the same shape"),
        ("tversky", (4, 2), (4, 3), "expected the same shape"),
        ("circle", (4, 3), (4, 3), "one integer label a row, and one embedding"),
        ("circle", (4,), (4, 2, 3), "one integer label a row, and one embedding"),
        ("ctc", (4,), (4, 5, 3), "labels, rows x length, and logits, rows x steps x classes"),
        ("ctc", (4, 2), (4, 3), "labels, rows x length, and logits, rows x steps x classes"),
        ("categorical_generalized_cross_entropy", (4, 3), (4, 3), "one integer label a prediction"),
        ("sparse_categorical_crossentropy", (4, 3), (4, 3), "for one-hot targets use 'categorical_crossentropy'"),
    ],
)
def test_shapes_that_cannot_match(name, true, pred, message):
    with pytest.raises(DataError, match=message):
        losses.get(name)(np.zeros(true, np.float32), np.zeros(pred, np.float32))


@pytest.mark.parametrize(
    ("true", "rank", "axis", "expected"),
    [
        ((4,), 2, -1, (4,)),
        ((4, 1), 2, -1, (4,)),
        ((4, 5, 1), 3, -1, (4, 5)),
        ((4, 1, 5), 3, 1, (4, 5)),
        ((4, 5, 1), 3, 1, (4, 5)),
        ((4, 1), 3, -1, (4, 1)),
    ],
)
def test_class_indices(true, rank, axis, expected):
    found = losses.class_indices(jnp.full(true, 2.0), rank, axis)
    assert found.shape == expected and found.dtype == jnp.int32 and (found == 2).all()


@pytest.mark.parametrize("axis", [True, False, 0, None, 1.0])
@pytest.mark.parametrize(
    "cls",
    [
        losses.CosineSimilarity,
        losses.BinaryCrossentropy,
        losses.BinaryFocalCrossentropy,
        losses.CategoricalCrossentropy,
        losses.CategoricalFocalCrossentropy,
        losses.SparseCategoricalCrossentropy,
    ],
)
def test_an_axis_that_is_none(cls, axis):
    with pytest.raises(ConfigError, match=f"axis must be an integer other than 0.*Received: {axis}"):
        cls(axis=axis)

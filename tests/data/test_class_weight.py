"""Weights of classes as sample weights: every form of targets, what is refused, and that other classes count 1."""

import types

import numpy as np
import pytest

from kdist.data import ClassWeight
from kdist.errors import ConfigError, DataError
from kdist.typing import Batch

WEIGHTS = {0: 0.5, 2: 3.0}
LABELS = np.array([0, 1, 2, 2])
EXPECTED = [0.5, 1, 3, 3]
STEPS = np.array([[0, 1, 2], [2, 2, 5]])
EXPECTED_STEPS = [[0.5, 1, 3], [3, 3, 1]]
HOT = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (LABELS, EXPECTED),
        (LABELS[:, None], EXPECTED),
        (LABELS.astype(np.float32), EXPECTED),
        (LABELS.astype(np.uint8), EXPECTED),
        (LABELS == 0, [1, 0.5, 0.5, 0.5]),
        (HOT[LABELS], EXPECTED),
        (HOT[LABELS].astype(np.int8), EXPECTED),
        (HOT[LABELS] * 0.9 + 0.1 / 3, EXPECTED),  # smoothed
        (np.eye(6)[STEPS], EXPECTED_STEPS),
        (STEPS[..., None], EXPECTED_STEPS),
        ([LABELS], EXPECTED),
        ({"out": LABELS}, EXPECTED),
        (np.array([-1, 0, 7, 2**31 - 1]), [1, 0.5, 1, 1]),  # in a table of three, not of 2**31
        (LABELS[:0], []),
    ],
    ids=lambda value: "",
)
def test_weights_of_targets(y, expected):
    found = ClassWeight(WEIGHTS).of(y)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))


def test_labels_of_time_steps_are_taken_where_the_loss_says_so():
    np.testing.assert_array_equal(ClassWeight(WEIGHTS, of_steps=True).of(STEPS), EXPECTED_STEPS)
    with pytest.raises(DataError, match=r"\(2, 3\) that are neither"):
        ClassWeight(WEIGHTS).of(STEPS)


@pytest.mark.parametrize("weights", [{}, {5: 2.0}, {7: 0}])
def test_classes_that_are_not_named_count_one(weights):
    np.testing.assert_array_equal(ClassWeight(weights).of(LABELS), np.ones(4))


@pytest.mark.parametrize(
    "weights",
    [
        {0.0: 0.5, 2.0: 3.0},
        {np.int64(0): np.float32(0.5), np.uint8(2): 3},
        {"0": "0.5", "2": 3},  # as JSON has it
        types.MappingProxyType(WEIGHTS),
    ],
    ids=["floats", "numpy", "json", "a mapping"],
)
def test_whole_numbers_in_other_dress(weights):
    np.testing.assert_array_equal(ClassWeight(weights).of(LABELS), EXPECTED)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 1], "a dict of classes and numbers"),
        ("balanced", "a dict of classes and numbers. Received: 'balanced'"),
        ({"cat": 1.0}, "integers .* Received: 'cat': 1.0"),
        ({0: "heavy"}, "Received: 0: 'heavy'"),
        ({0: None}, "Received: 0: None"),
        ({None: 1}, "Received: None: 1"),
        ({0.5: 2.0}, "Received: 0.5: 2.0"),  # not class 0
        ({float("inf"): 2.0}, "Received: inf: 2.0"),
        ({float("nan"): 2.0}, "Received: nan: 2.0"),
        ({-1: 2.0}, "classes of 0 or more. Received: -1"),
    ],
    ids=str,
)
def test_what_is_no_class_weight(weights, message):
    with pytest.raises(ConfigError, match=message):
        ClassWeight(weights)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([LABELS, LABELS], "a single output"),
        ({}, "a single output"),
        (np.array([[0.2, 0.2], [1, 0]]), "neither"),
        (np.array([[1.5, -0.5]]), "neither"),  # sums to 1, but is no distribution
        (HOT[STEPS % 3][None], r"a row or a time step, but the targets have shape \(1, 2, 3, 3\)"),
        (STEPS[None, ..., None], r"shape \(1, 2, 3, 1\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_targets_without_classes(y, message):
    with pytest.raises(DataError, match=message):
        ClassWeight(WEIGHTS).of(y)


def test_a_batch_is_weighed_once():
    batch = ClassWeight(WEIGHTS).weigh(Batch(LABELS, LABELS))
    np.testing.assert_array_equal(batch.weight, EXPECTED)
    assert batch.x is LABELS and batch.valid is None
    with pytest.raises(DataError, match="cannot be given at the same time"):
        ClassWeight(WEIGHTS).weigh(batch)

"""F scores by hand, and arguments that make no sense."""

import numpy as np
import pytest

from kdist import metrics
from kdist.errors import ConfigError, DataError

Y = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
P = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.7, 0.1], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (metrics.F1Score(), [1 / 2, 0.0, 0.0]),  # zeros are no prediction, though they are the largest of their row
        (metrics.F1Score(average="macro"), 1 / 6),
        (metrics.F1Score(average="weighted"), 1 / 3),
        (metrics.F1Score(average="micro"), 1 / 3),
        (metrics.FBetaScore(beta=2, threshold=0.3), [1 / 2, 5 / 6, 0.0]),
    ],
    ids=repr,
)
def test_by_hand(metric, expected):
    np.testing.assert_allclose(metric(Y, P), expected, rtol=1e-6)


def test_a_result_a_class_is_a_numpy_array():
    assert isinstance(metrics.F1Score()(Y, P), np.ndarray)
    assert type(metrics.F1Score(average="micro")(Y, P)) is float


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"average": "mikro"}, "Did you mean 'micro'"),
        ({"beta": 0.0}, "beta must be a number greater than 0"),
        ({"beta": True}, "beta must be"),
        ({"beta": "2"}, "beta must be"),
        ({"threshold": 0.0}, r"threshold must be None or a number in \(0, 1\]"),
        ({"threshold": 1.5}, "threshold must be"),
    ],
    ids=repr,
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        metrics.FBetaScore(**arguments)


@pytest.mark.parametrize(("true", "pred"), [((4,), (4,)), ((4,), (4, 3)), ((4, 2, 3), (4, 2, 3))])
def test_shapes_that_do_not_fit(true, pred):
    with pytest.raises(DataError, match=r"of one shape \(rows, classes\)"):
        metrics.F1Score()(np.ones(true), np.ones(pred))

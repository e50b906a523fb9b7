"""BatchCounter: when n batches have passed, over epochs, executions of any length and a start inside an epoch."""

import pytest

from kdist.callbacks.batches import BatchCounter, check_frequency
from kdist.errors import ConfigError


def epochs(*steps, k=1, start=0):
    """The first and last step of each execution of some epochs."""
    for n in steps:
        for first in range(start, n, k):
            yield first, min(first + k, n) - 1
        start = 0


@pytest.mark.parametrize(
    ("every", "executions", "due"),
    [
        (1, epochs(2, 2), [1, 2, 3, 4]),
        (15, epochs(*[5] * 10), [15, 30, 45]),
        (3, epochs(4, 4, 4), [3, 6, 9, 12]),
        (3, epochs(5, 5, k=2), [4, 7, 10]),  # 2 4 5 | 7 9 10: at the end of the execution that passes it
        (2, epochs(1, 1, 1, 1), [2, 4]),  # epochs of one batch
        (2, epochs(5, 5, start=3), [2, 4, 6]),  # 2 batches, then 5
        (None, epochs(5), []),
    ],
)
def test_due(every, executions, due):
    counter = BatchCounter(every)
    for _ in range(2):
        found = []
        counter.restart()
        for first, last in (executions := list(executions)):
            counter.begin(first)
            if counter.due(last):
                found.append(counter.total)
        assert found == due


@pytest.mark.parametrize("value", ["batch", "epochs", 0.15, 0, -1, False, True, None, [1]])
def test_other_frequencies_are_refused(value):
    with pytest.raises(ConfigError, match="Invalid value for save_freq: expected 'epoch' or a number of batches"):
        check_frequency("save_freq", value)


def test_frequencies():
    assert check_frequency("save_freq", "epoch") is None
    assert check_frequency("save_freq", 7) == 7

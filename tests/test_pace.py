"""How many steps an execution fuses: K as it was given, or what takes a quarter of a second."""

import pytest

from kdist import pace
from kdist.pace import EXECUTION_SECONDS, TIMED, Pace


@pytest.mark.parametrize("k", [1, 3, 100])
def test_a_given_k_is_kept(k):
    """Whatever the bound, so that it compiles once; and nothing is timed."""
    paced = Pace(k)
    assert paced.given == k
    assert [paced.steps("train", most) for most in (1, 3, 1000)] == [k] * 3
    assert not paced.is_wanted("train")
    paced.measure("train", 1, 1e-6)
    paced.measure("train", 1, 1e-6)
    assert paced.steps("train", 1000) == k


def test_auto_starts_with_one_step_and_times_a_few():
    paced = Pace("auto")
    assert paced.given is None and paced.steps("train", 1000) == 1
    for _ in range(TIMED):
        assert paced.is_wanted("train")
        paced.measure("train", 1, 1.0)
    assert not paced.is_wanted("train")


@pytest.mark.parametrize(
    ("timings", "expected"),
    [
        ([(1, 60.0)], 1),  # the first compiles and says nothing
        ([(1, 60.0), (1, 0.01)], 25),
        ([(1, 60.0), (1, 0.01), (25, 0.125)], 50),  # what one step took too long for, 25 correct
        ([(1, 60.0), (1, 5.0), (1, 0.05)], 5),  # a hiccup does not stay
        ([(1, 60.0), (1, 10.0)], 1),  # never none
    ],
)
def test_auto_takes_a_quarter_of_a_second(timings, expected):
    assert EXECUTION_SECONDS == 0.25
    paced = Pace("auto")
    for steps, seconds in timings:
        paced.measure("train", steps, seconds)
    assert paced.steps("train", 1000) == expected
    assert paced.steps("train", 2) == min(2, expected)  # auto keeps within the bound


def test_kinds_have_their_own_pace():
    paced = Pace("auto")
    for _ in range(TIMED):
        paced.measure("train", 1, 0.025)
    assert (paced.steps("train", 100), paced.steps("test", 100)) == (10, 1)
    assert (paced.is_wanted("train"), paced.is_wanted("test"), paced.is_wanted("predict")) == (False, True, True)


def test_all_processes_take_the_pace_of_the_first(monkeypatch):
    monkeypatch.setattr(pace, "agree", lambda value: value + 7)
    paced = Pace("auto")
    paced.measure("train", 1, 1.0)
    paced.measure("train", 1, 0.25)
    assert paced.steps("train", 1000) == 8

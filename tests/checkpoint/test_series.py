"""A series of checkpoints by number: the newest is found, old ones go, other files stay."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdist.checkpoint import Series, series
from kdist.checkpoint import writing as writing_module
from kdist.errors import CheckpointError


@pytest.fixture
def directory(tmp_path):
    for name in ("2", "10", "9", ".10.new", "x7", "notes"):
        (tmp_path / name).mkdir()
    return tmp_path


def save(directory, saves, **retention):
    """Saves by number, in this order, each with a value or none; which are there then."""
    made = Series(directory, **retention)
    for number, value in saves:
        made.save(number, {"weights": {"w": jnp.full(2, number)}}, {"n": number}, value=value)
    made.finish()
    return series.numbers(directory)


def test_numbers(directory):
    assert series.numbers(directory) == [2, 9, 10]
    assert series.numbers(directory / "nowhere") == []


@pytest.mark.parametrize(("below", "newest"), [(None, 10), (10, 9), (3, 2), (2, None), (0, None)])
def test_newest(directory, below, newest):
    assert series.newest(directory, below) == newest


def test_number_0_is_one(tmp_path):
    assert series.newest(tmp_path) is None
    (tmp_path / "0").mkdir()
    assert series.newest(tmp_path) == 0


def test_clear(directory):
    series.clear(directory)
    assert sorted(p.name for p in directory.iterdir()) == [".10.new", "notes", "x7"]
    for p in directory.iterdir():
        p.rmdir()
    (directory / "3").mkdir()
    series.clear(directory)
    assert not directory.exists()
    series.clear(directory)


VALUES = [(1, 0.5), (2, 0.2), (3, 0.9), (4, 0.2), (5, 0.4)]
MISSING = [(1, None), (2, 0.5), (3, float("nan")), (4, None)]


@pytest.mark.parametrize(
    ("saves", "retention", "kept"),
    [
        (VALUES, {"keep": 1}, [5]),
        (VALUES, {"keep": 3}, [3, 4, 5]),
        (VALUES, {"keep": None}, [1, 2, 3, 4, 5]),
        (VALUES, {"keep": 1, "every": 2}, [2, 4, 5]),
        (VALUES, {"keep": 1, "best": "min"}, [2, 5]),  # the first of equal ones
        (VALUES, {"keep": 1, "best": "max"}, [3, 5]),
        (VALUES, {"keep": 2, "every": 3, "best": "min"}, [2, 3, 4, 5]),
        (MISSING, {"keep": 1, "best": "min"}, [2, 4]),
        (MISSING[:1], {"keep": 1, "best": "max"}, [1]),
        ([(7, 0.1), (2, 0.2), (1, 0.3)], {"keep": 2}, [1, 2]),  # newest is what was written last
        ([(1, 0.1), (2, 0.2), (1, 0.9), (3, 0.5)], {"keep": 1, "best": "min"}, [2, 3]),  # its value is the new one
    ],
)
def test_what_is_kept(tmp_path, saves, retention, kept):
    assert save(tmp_path, saves, **retention) == kept


def test_the_best_of_an_earlier_run_is_known(tmp_path):
    assert save(tmp_path, [(1, 0.1), (2, 0.7)], keep=1, best="min") == [1, 2]
    assert save(tmp_path, [(3, 0.5), (4, 0.6)], keep=1, best="min") == [1, 4]
    assert save(tmp_path, [(5, 0.05)], keep=1, best="min") == [5]


def test_others_go_as_soon_as_a_save_is_found_complete(tmp_path):
    made = Series(tmp_path, keep=1)
    for number in (1, 2):
        made.save(number, {"weights": {"w": jnp.ones(2)}}, {})
    while made.under_way:
        made.check()
    assert series.numbers(tmp_path) == [2]


def test_a_save_that_failed_is_found_by_a_check(tmp_path, monkeypatch):
    """And the next one is not in its way."""
    made, write = Series(tmp_path, keep=1), writing_module.Path.write_text
    monkeypatch.setattr(writing_module.Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError("no space")))
    made.save(1, {"weights": {"w": jnp.ones(2)}}, {})
    with pytest.raises(CheckpointError, match=rf"Cannot write training states to {tmp_path}/1, on process 0.*no space"):
        while made.under_way:
            made.check()
    monkeypatch.setattr(writing_module.Path, "write_text", write)
    made.finish()
    made.save(2, {"weights": {"w": jnp.ones(2)}}, {})
    made.finish()
    assert series.numbers(tmp_path) == [2]


def test_what_a_killed_run_moved_away_counts(tmp_path):
    save(tmp_path, [(3, None)], keep=1)
    (tmp_path / "3").rename(tmp_path / ".3.old")
    assert series.numbers(tmp_path) == [3] and series.newest(tmp_path) == 3
    assert save(tmp_path, [(4, None)], keep=1) == [4]
    assert [p.name for p in tmp_path.iterdir()] == ["4"]


def test_what_is_saved_was_copied(tmp_path):
    """The next step reuses the memory of an array that is donated to it, while it is still being written."""
    import jax

    from kdist.checkpoint import load_weights

    add = jax.jit(lambda a: a + 1, donate_argnums=0)
    made = Series(tmp_path, keep=None)
    a = jnp.zeros((1000, 1000))
    for number in range(3):
        made.save(number, {"weights": {"w": a}}, {})
        for _ in range(10):
            a = add(a)
    made.finish()
    for number in range(3):
        found = load_weights(tmp_path / str(number), {"w": jnp.ones((1000, 1000))})
        np.testing.assert_array_equal(found["w"], 10 * number)

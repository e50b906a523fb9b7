"""A series of checkpoints by number: the newest is found, old ones go, other files stay."""

import pytest

from kdist.checkpoint import series


@pytest.fixture
def directory(tmp_path):
    for name in ("2", "10", "9", ".10.new", "x7", "notes"):
        (tmp_path / name).mkdir()
    return tmp_path


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


@pytest.mark.parametrize(("count", "kept"), [(1, [10]), (2, [9, 10]), (9, [2, 9, 10])])
def test_keep_newest(directory, count, kept):
    series.keep_newest(directory, count)
    assert series.numbers(directory) == kept


def test_clear(directory):
    series.clear(directory)
    assert sorted(p.name for p in directory.iterdir()) == [".10.new", "notes", "x7"]
    for p in directory.iterdir():
        p.rmdir()
    (directory / "3").mkdir()
    series.clear(directory)
    assert not directory.exists()
    series.clear(directory)


@pytest.mark.parametrize(("written", "kept"), [((2,), [2, 10]), ((10, 2), [2, 10]), ((9, 2, 7), [2, 9])])
def test_what_was_written_last_is_newest(directory, written, kept):
    series.keep_newest(directory, 2, written)
    assert series.numbers(directory) == kept

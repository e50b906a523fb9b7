"""Batches that come one after the other as epochs: what is read, when a pass starts and ends, what is a batch."""

import collections
import itertools

import numpy as np
import pytest

from kdist.data import BatchLoader, batches, from_batches, is_loader, unpack
from kdist.data.sources import Anew, ByNumber, Once
from kdist.errors import ConfigError, DataError
from kdist.typing import Batch

Point = collections.namedtuple("Point", ["a", "b"])
X = np.arange(8, dtype=np.float32).reshape(4, 2)


def batch(n, rows=2):
    """A batch that is known by its number."""
    return np.full((rows, 1), n, np.float32)


class Numbered:
    """Batches by number, and a diary of what was asked of them."""

    def __init__(self, length):
        self.length, self.diary = length, []

    def __len__(self):
        return self.length

    def __getitem__(self, n):
        self.diary.append(n)
        return batch(n)

    def on_epoch_begin(self):
        self.diary.append("begin")

    def on_epoch_end(self):
        self.diary.append("end")


class Counted:
    """An iterator that counts what was taken from it."""

    def __init__(self, length=None):
        self.numbers = itertools.count() if length is None else iter(range(length))
        self.taken = 0

    def __iter__(self):
        return self

    def __next__(self):
        n = next(self.numbers)
        self.taken += 1
        return batch(n)


def epochs(loader, count, *, fresh=False):
    """The numbers of the batches of each epoch."""
    return [[int(b.x[0, 0]) for b in loader.batches(epoch, fresh=fresh)] for epoch in range(count)]


SOURCES = {
    "an iterator": lambda n: Counted(n),
    "a generator": lambda n: (batch(i) for i in range(n)),
    "a function": lambda n: lambda: (batch(i) for i in range(n)),
    "a list": lambda n: [batch(i) for i in range(n)],
    "numbered": Numbered,
}
PASSES = [
    # steps, fresh, and the epochs of five batches; first of a source that starts again, then of one that is read once
    (None, False, [[0, 1, 2, 3, 4]] * 3, [[0, 1, 2, 3, 4], [], []]),
    (2, False, [[0, 1], [2, 3], [4]], [[0, 1], [2, 3], [4]]),
    (2, True, [[0, 1]] * 3, [[0, 1], [2, 3], [4]]),
    (5, False, [[0, 1, 2, 3, 4]] * 3, [[0, 1, 2, 3, 4], [], []]),
    (7, False, [[0, 1, 2, 3, 4]] * 3, [[0, 1, 2, 3, 4], [], []]),
]


@pytest.mark.parametrize("looked", [False, True], ids=["", "after its example"])
@pytest.mark.parametrize(("steps", "fresh", "again", "once"), PASSES)
@pytest.mark.parametrize("name", SOURCES)
def test_epochs(name, steps, fresh, again, once, looked):
    """Looking at the first batch loses none and repeats none."""
    loader = from_batches(SOURCES[name](5), steps=steps)
    if looked:
        assert loader.batch_size == 2
    assert epochs(loader, 3, fresh=fresh) == (again if loader.source.restarts else once)


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (2, 3), (5, 1), (3, 2)])
def test_no_more_is_taken_than_is_trained_on(steps, count):
    source = Counted()
    loader = from_batches(source, steps=steps)
    loader.example()
    assert source.taken == 1
    assert [n for epoch in epochs(loader, count) for n in epoch] == list(range(steps * count))
    assert source.taken == steps * count


@pytest.mark.parametrize(
    ("steps", "count", "diary"),
    [
        (None, 2, ["begin", 0, 1, 2, "end", "begin", 0, 1, 2, "end"]),
        (3, 2, ["begin", 0, 1, 2, "end", "begin", 0, 1, 2, "end"]),  # it ends with its last batch
        (2, 3, ["begin", 0, 1, 2, "end", "begin", 0, 1]),  # the second epoch of one batch ends the pass
        (2, 1, ["begin", 0, 1]),
    ],
)
def test_a_sequence_is_told_of_passes(steps, count, diary):
    numbered = Numbered(3)
    epochs(from_batches(numbered, steps=steps), count)
    assert numbered.diary == diary


def test_an_interrupted_pass_starts_over_where_it_can():
    numbered = Numbered(3)
    loader = from_batches(numbered)
    next(loader.batches(0, fresh=True))
    assert epochs(loader, 1) == [[0, 1, 2]]


def test_shuffled_passes_are_permutations_of_their_own():
    orders = epochs(from_batches(Numbered(20), shuffle=True, seed=3), 3)
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders == epochs(from_batches(Numbered(20), shuffle=True, seed=3), 3)
    assert orders != epochs(from_batches(Numbered(20), shuffle=True, seed=4), 3)


def test_the_order_of_an_epoch_does_not_depend_on_those_before():
    expected = epochs(from_batches(Numbered(20), shuffle=True), 3)[2]
    loader = from_batches(Numbered(20), shuffle=True)
    loader.example()
    assert [int(b.x[0, 0]) for b in loader.batches(2, fresh=False)] == expected


# Where it is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a function", "a list", "numbered"])
def test_an_epoch_is_the_same_whatever_was_read_before(name):
    """By copies of the loader too; what starts over leaves the rest where it is."""
    loader = from_batches(SOURCES[name](5))
    for _ in range(2):
        assert loader.batch_size == 2
        assert epochs(loader.with_steps(2), 1, fresh=True) == [[0, 1]]
        assert epochs(loader.with_steps(3), 1) == [[0, 1, 2]]
        assert epochs(loader, 1) == [[0, 1, 2, 3, 4]]
    training, validation = loader.with_steps(2), loader.map(lambda b: b).with_steps(3)
    for epoch, expected in enumerate([[0, 1], [2, 3], [4], [0, 1]]):
        assert [int(b.x[0, 0]) for b in training.batches(epoch, fresh=False)] == expected
        assert epochs(validation, 1, fresh=True) == [[0, 1, 2]]


def test_what_goes_on_reads_nothing_twice():
    """Where there is no way back than from the start, an epoch goes on from the one before it."""
    taken, makes = [], []

    def make():
        makes.append(1)
        for n in range(10):
            taken.append(n)
            yield batch(n)

    loader = from_batches(make, steps=3)
    assert epochs(loader, 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert (taken, len(makes)) == (list(range(9)), 1)


def test_copies_lose_nothing_of_an_iterator():
    source = Counted()
    loader = from_batches(source)
    loader.example()
    found = [epochs(copy, 1)[0] for copy in (loader.with_steps(2), loader.with_steps(3), loader.with_steps(1))]
    assert found == [[0, 1], [2, 3, 4], [5]] and source.taken == 6


def test_a_loader_looked_at_after_it_was_read():
    loader = from_batches(Counted())
    assert epochs(loader.with_steps(2), 1) == [[0, 1]]
    assert loader.example().x[0, 0] == 0
    assert epochs(loader.with_steps(2), 1) == [[2, 3]]


@pytest.mark.parametrize("looked", [False, True], ids=["", "after its example"])
@pytest.mark.parametrize("name", ["a generator", "an iterator"])
@pytest.mark.parametrize(
    ("steps", "epoch", "start", "expected"), [(3, 2, 1, [7, 8]), (3, 0, 2, [2]), (None, 2, 7, [7, 8])]
)
def test_a_fresh_iterator_is_counted_to_where_a_run_goes_on(name, steps, epoch, start, expected, looked):
    loader = from_batches(SOURCES[name](9), steps=steps)
    if looked:
        loader.example()
    assert [int(b.x[0, 0]) for b in loader.batches(epoch, fresh=False, start=start)] == expected


@pytest.mark.parametrize(
    ("name", "by"), [("a generator", "kdist"), ("a generator", "hand"), ("an iterator", "kdist")], ids=str
)
def test_an_iterator_that_was_read_goes_on(name, by):
    """Only a generator knows of what others took."""
    source = SOURCES[name](12)
    if by == "kdist":
        assert epochs(from_batches(source, steps=3), 1) == [[0, 1, 2]]
    else:
        next(source), next(source), next(source)
    assert [int(b.x[0, 0]) for b in from_batches(source, steps=3).batches(1, fresh=False)] == [3, 4, 5]


def test_iterators_that_cannot_be_remembered_count_as_fresh():
    class Unhashable(Counted):
        __hash__ = None

    for source in (map(batch, range(9)), iter([batch(n) for n in range(9)]), Unhashable(9)):
        assert [int(b.x[0, 0]) for b in from_batches(source, steps=2).batches(2, fresh=False)] == [4, 5]


def test_after_an_error_reading_starts_over():
    fails = [True]

    def make():
        yield batch(0)
        yield batch(1)
        if fails:
            fails.clear()
            raise OSError("the disk is gone")
        yield batch(2)

    loader = from_batches(make, steps=3)
    with pytest.raises(DataError, match="Batch 2 of the function make could not be read: OSError: the disk is gone"):
        epochs(loader, 1)
    assert epochs(loader, 1) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("own", "other", "agreed"), [(5, 4, 4), (4, 5, 4), (None, 3, 3), (3, None, 3), (None, None, None)]
)
def test_processes_agree_on_the_number_of_steps(monkeypatch, own, other, agreed):
    most = 2**31 - 1
    monkeypatch.setattr(batches, "agree_on_least", lambda n: min(n, most if other is None else other))
    source = (lambda: iter(())) if own is None else [batch(n) for n in range(own)]
    assert from_batches(source, per_process=True).num_steps == agreed
    assert from_batches(source).num_steps == own


def test_what_is_no_batch_is_named():
    loader = from_batches([(X, X), (X, X), (X, X[:2])])
    with pytest.raises(DataError, match="^Step 2, from the list: All arrays must have the same number of rows"):
        list(loader.batches(0, fresh=True))
    with pytest.raises(DataError, match="^The first batch, from the list: x is a str"):
        from_batches([("text", X)]).example()


def test_with_steps_and_map():
    numbered = Numbered(5)
    loader = from_batches(numbered)
    assert (loader.num_steps, loader.with_steps(2).num_steps, loader.with_steps(None).num_steps) == (5, 2, 5)
    doubled = loader.map(lambda b: type(b)(b.x * 2)).map(lambda b: type(b)(b.x + 1))
    assert epochs(doubled, 1) == [[1, 3, 5, 7, 9]]
    assert numbered.diary.count("begin") == 1


@pytest.mark.parametrize(
    ("source", "kind", "length"),
    [
        ((x for x in [X]), Once, None),
        (iter([X]), Once, None),
        (Counted(1), Once, None),
        ([X], Anew, 1),
        (lambda: [X], Anew, None),
        (Numbered(3), ByNumber, 3),
        ({"a": 1}.values(), Anew, 1),
    ],
    ids=["generator", "iterator", "class", "list", "function", "numbered", "view"],
)
def test_kinds_of_sources(source, kind, length):
    loader = from_batches(source)
    assert isinstance(loader, BatchLoader)
    assert type(loader.source) is kind and loader.num_steps == length


@pytest.mark.parametrize("source", ["text", b"bytes", {"a": X}, 3, None, Numbered], ids=str)
def test_what_is_no_source(source):
    with pytest.raises(DataError, match="Expected batches: a generator"):
        from_batches(source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a positive integer"),
        ({"steps": 2.0}, "steps must be a positive integer"),
        ({"max_queue_size": 0}, "max_queue_size must be a positive integer"),
        ({"workers": -1}, "workers must be an integer of 0 or more"),
        ({"workers": 1.5}, "workers must be an integer of 0 or more"),
        ({"workers": True}, "workers must be an integer of 0 or more"),
    ],
    ids=str,
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ConfigError, match=message):
        from_batches(Numbered(2), **arguments)


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "numbered"])
def test_sources_of_nothing(name):
    with pytest.raises(DataError, match="The data are empty: the .* yielded no batch"):
        from_batches(SOURCES[name](0)).example()


# What a batch is ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "structure"),
    [
        (X, (True, False, False)),
        ((X,), (True, False, False)),
        ([X], (True, False, False)),
        ((X, X), (True, True, False)),
        ([X, X], (True, True, False)),
        ((X, X, X[:, 0]), (True, True, True)),
        ((X, None, None), (True, False, False)),
        ((X, X, None), (True, True, False)),
        ({"a": X}, (True, False, False)),
        (((X, X), {"b": X}), (True, True, False)),
    ],
)
def test_items_that_are_batches(item, structure):
    found = unpack(item)
    assert tuple(part is not None for part in (found.x, found.y, found.weight)) == structure
    assert found.valid is None


def test_batches_are_converted_as_arrays_are():
    found = unpack((X.astype(np.float64), np.arange(4), np.arange(4)))
    assert (found.x.dtype, found.y.dtype, found.weight.dtype) == (np.float32, np.int32, np.float32)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((), "a tuple of 0"),
        ((X, X, X, X), "a tuple of 4"),
        ([X] * 4, "a list of 4"),
        (Point(X, X), "namedtuple Point"),
        ((Point(X, X), X), "x is a namedtuple"),
        ((X, X[:2]), "x: 4; y: 2"),
        ((X, X, np.ones(3)), "sample_weight: 3"),
        ((X[:0], X[:0]), "x has 0 rows"),
        (None, "x is required"),
        ((None, X), "x is required"),
        ("text", "x is a str"),
        (3.0, "x is a float"),
        ((X, "text"), "y is a str"),
        ((X, np.float32(1)), "y is a single number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_items_that_are_none(item, message):
    with pytest.raises(DataError, match=message):
        unpack(item)


def test_what_changes_batches_changes_those_that_were_looked_at_before():
    loader = from_batches(lambda: (np.full((2, 1), i) for i in range(3)))
    assert loader.example().x[0] == 0
    doubled = loader.map(lambda batch: Batch(batch.x + 10))
    assert doubled.example().x[0] == 10
    assert [int(batch.x[0, 0]) for batch in doubled.batches(0, fresh=True)] == [10, 11, 12]


def test_asking_whether_it_is_a_loader_reads_nothing():
    source = iter([np.ones((2, 1))])
    assert is_loader(from_batches(source))
    assert len(list(source)) == 1

"""Fingerprints of data, and positions in them that are reached without reading what comes before."""

import json

import flax.linen as nn
import grain
import numpy as np
import pytest

import kdist
from kdist.callbacks import BackupAndRestore, LambdaCallback
from kdist.data import check_same_data, described, example_batch, fingerprint, from_arrays, from_batches, from_source
from kdist.errors import DataError

X, Y = np.arange(24, dtype=np.float32).reshape(12, 2), np.arange(12, dtype=np.float32)[:, None]


class Rows:
    """Rows that remember which were read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return len(X)

    def __getitem__(self, row):
        self.read.append(row)
        return X[row], Y[row]


def double(row):
    return row[0] * 2, row[1]


def of(loader):
    return json.loads(json.dumps(fingerprint(loader, described(example_batch(loader)))))


MAKERS = {
    "arrays": lambda **given: from_arrays(X, Y, **{"batch_size": 4, **given}),
    "source": lambda **given: from_source(Rows(), **{"batch_size": 4, **given}),
    "batches": lambda **given: from_batches(lambda: iter([(X, Y)]), **given),
}


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("arrays", {"batch_size": 6}, "batch_size was 4 and is 6"),
        ("arrays", {"seed": 1}, "seed was 0 and is 1"),
        ("arrays", {"shuffle": False}, "shuffle was True and is False"),
        ("arrays", {"steps": 2}, "steps was 3 and is 2"),
        ("source", {"batch_size": 6}, "batch_size was 4 and is 6"),
        ("source", {"seed": 1}, "seed was 0 and is 1"),
        ("source", {"transforms": [double]}, "transforms was [] and is ['double']"),
        ("batches", {"steps": 2}, "steps was None and is 2"),
    ],
)
def test_what_has_changed_is_said(kind, change, said):
    before = of(MAKERS[kind]())
    check_same_data(before, of(MAKERS[kind]()))
    with pytest.raises(DataError) as caught:
        check_same_data(before, of(MAKERS[kind](**change)))
    assert said in str(caught.value)


def test_other_rows_and_other_kinds_are_seen():
    for other in (from_arrays(X + 1, Y, batch_size=4), from_arrays(X[:8], Y[:8], batch_size=4), MAKERS["source"]()):
        with pytest.raises(DataError, match="was"):
            check_same_data(of(MAKERS["arrays"]()), of(other))


def test_workers_are_no_part_of_it():
    check_same_data(of(MAKERS["source"]()), of(MAKERS["source"](workers=2)))


def test_a_backup_of_other_data_is_refused(tmp_path):
    def fit(loader, *callbacks):
        model = kdist.Model(nn.Dense(1))
        model.compile("sgd", "mse")
        return model.fit(loader, epochs=3, verbose=0, callbacks=[BackupAndRestore(tmp_path), *callbacks])

    def dies(epoch, logs):
        if epoch == 1:
            raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        fit(MAKERS["source"](), LambdaCallback(on_epoch_end=dies))
    with pytest.raises(DataError, match="batch_size was 4 and is 6"):
        fit(MAKERS["source"](batch_size=6))
    assert fit(MAKERS["source"](workers=1)).epoch == [2]


# Positions -------------------------------------------------------------------------------------------


def numbers():
    """Seven batches of one row."""
    return ((np.full((1, 1), i, np.float32),) for i in range(7))


def dataset(**shuffle):
    rows = grain.MapDataset.range(7)
    rows = rows.shuffle(seed=3) if shuffle else rows
    return rows.map(lambda i: np.array([i], np.float32)).batch(1)


class Numbered:
    """Batches by number."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 7

    def __getitem__(self, n):
        self.read.append(n)
        return np.full((1, 1), n, np.float32)

    def on_epoch_end(self):
        pass


SOURCES = {"function": lambda: numbers, "numbered": Numbered, "grain": dataset, "shuffled": lambda: dataset(shuffle=1)}


def seen(loader, epoch, start=0):
    return [int(batch.x[0, 0]) for batch in loader.batches(epoch, fresh=False, start=start)]


@pytest.mark.parametrize("steps", [None, 2, 7, 9])
@pytest.mark.parametrize("kind", SOURCES)
def test_any_position_is_that_of_a_straight_run(kind, steps):
    def make():
        return from_batches(SOURCES[kind](), steps=steps)

    straight = make()
    expected = [seen(straight, epoch) for epoch in range(6)]
    assert sorted(sum(expected[: 1 if steps in (None, 7, 9) else 4], [])) == list(range(7))
    for epoch in range(6):
        for start in range(len(expected[epoch])):
            resumed = make()
            resumed.example()  # as fit does first
            assert seen(resumed, epoch, start) == expected[epoch][start:]


def test_batches_by_number_before_the_position_are_not_read():
    source = Numbered()
    assert seen(from_batches(source, steps=3), 3, 1) == [1, 2]  # of the second pass: 0, 1, 2
    assert source.read == [1, 2]


def test_rows_before_the_position_are_not_read(devices):
    rows = Rows()
    loader = from_source(rows, batch_size=4)
    order = loader.order(5)
    with kdist.data.Feeder(loader, devices(1)) as feeder:
        rows.read.clear()
        (chunk,) = feeder.chunks(5, start=2)
    assert sorted(rows.read) == sorted(order[8:])
    assert chunk.first_step == 2

"""Fingerprints of data, and positions in them that are reached without reading what comes before."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import flax.linen as nn
import grain
import numpy as np
import pytest

import kdist
from kdist.callbacks import BackupAndRestore, LambdaCallback
from kdist.data import (
    NpyRows,
    ParquetRows,
    check_same_data,
    described,
    example_batch,
    fingerprint,
    from_arrays,
    from_batches,
    from_source,
)
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
        ("source", {"transforms": [double]}, "transforms was [] and is ['double#"),
        ("arrays", {"drop_remainder": True}, "drop_remainder was False and is True"),
        ("source", {"drop_remainder": True}, "drop_remainder was False and is True"),
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
    began = []
    fit(MAKERS["source"](workers=1), LambdaCallback(on_epoch_begin=lambda epoch, logs: began.append(epoch)))
    assert began == [1, 2]


# What is seen ------------------------------------------------------------------------------------------


class Scale(grain.transforms.RandomMap):
    """A transform with settings."""

    def __init__(self, *by):
        self.by = by

    def random_map(self, element, rng):
        return element[0] * self.by[0], element[1]


@dataclasses.dataclass
class Shift(grain.transforms.Map):
    by: float = 1.0

    def map(self, element):
        return element[0] + self.by, element[1]


def scaled(by):
    return lambda row: (row[0] * by, row[1])


def default(row, by=3):
    return row[0] * by, row[1]


def files(directory, shift=0):
    np.save(directory / "x.npy", X + shift)
    return NpyRows(directory / "x.npy")


def parquet(directory, shift=0):
    pytest.importorskip("pyarrow", reason="pyarrow, which reads Parquet, is not installed")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": X[:, 0] + shift}), directory / "0.parquet")
    return ParquetRows(directory)


PAIRS = list(zip(X, Y, strict=True))
OTHERS = [(x + 1, y) for x, y in PAIRS]


def rows_of(source, **given):
    return from_source(source, batch_size=4, **given)


def mix(weights, *lists):
    return grain.MapDataset.mix([grain.MapDataset.source(rows) for rows in lists], weights=weights)


def grain_loader(seed=1, workers=0):
    sampler = grain.samplers.IndexSampler(
        12, shuffle=True, seed=seed, num_epochs=1, shard_options=grain.sharding.NoSharding()
    )
    batch = grain.transforms.Batch(4)
    return grain.DataLoader(data_source=PAIRS, sampler=sampler, operations=[batch], worker_count=workers)


ROWS = grain.MapDataset.source(PAIRS)
DIFFERENT = {
    "content": (lambda d: rows_of(PAIRS), lambda d: rows_of(OTHERS)),
    "order": (lambda d: rows_of(PAIRS), lambda d: rows_of(PAIRS[::-1])),
    "files": (lambda d: rows_of(files(d)), lambda d: rows_of(files(d, 1))),
    "parquet": (lambda d: rows_of(parquet(d), transforms=[to_x]), lambda d: rows_of(parquet(d, 1), transforms=[to_x])),
    "closures": (lambda d: rows_of(PAIRS, transforms=[scaled(2)]), lambda d: rows_of(PAIRS, transforms=[scaled(3)])),
    "partials": (
        lambda d: rows_of(PAIRS, transforms=[functools.partial(default, by=2)]),
        lambda d: rows_of(PAIRS, transforms=[functools.partial(default, by=4)]),
    ),
    "lambdas": (
        lambda d: rows_of(PAIRS, transforms=[lambda row: row]),
        lambda d: rows_of(PAIRS, transforms=[lambda row: (row[0] * 9, row[1])]),
    ),
    "fields": (lambda d: rows_of(PAIRS, transforms=[Scale(1)]), lambda d: rows_of(PAIRS, transforms=[Scale(5)])),
    "arrays in fields": (
        lambda d: rows_of(PAIRS, transforms=[Scale(np.ones(2, np.float32))]),
        lambda d: rows_of(PAIRS, transforms=[Scale(np.zeros(2, np.float32))]),
    ),
    "dataclasses": (lambda d: rows_of(PAIRS, transforms=[Shift(1)]), lambda d: rows_of(PAIRS, transforms=[Shift(2)])),
    "classes": (lambda d: rows_of(PAIRS, transforms=[Scale(1)]), lambda d: rows_of(PAIRS, transforms=[Shift(1)])),
    "grain seeds": (lambda d: rows_of(ROWS.shuffle(seed=1)), lambda d: rows_of(ROWS.shuffle(seed=2))),
    "grain fields": (lambda d: rows_of(ROWS.map(Shift(1))), lambda d: rows_of(ROWS.map(Shift(2)))),
    "random fields": (
        lambda d: rows_of(ROWS.seed(1).random_map(Scale(1))),
        lambda d: rows_of(ROWS.seed(1).random_map(Scale(2))),
    ),
    "weights": (lambda d: rows_of(mix([1, 2], PAIRS, PAIRS)), lambda d: rows_of(mix([2, 1], PAIRS, PAIRS))),
    "parents": (lambda d: rows_of(mix([1, 1], PAIRS, PAIRS)), lambda d: rows_of(mix([1, 1], PAIRS, OTHERS))),
    "batches, seeds": (
        lambda d: from_batches(ROWS.shuffle(seed=1).batch(4)),
        lambda d: from_batches(ROWS.shuffle(seed=2).batch(4)),
    ),
    "batches, shuffled": (lambda d: from_batches(ROWS.batch(4)), lambda d: from_batches(ROWS.shuffle(seed=2).batch(4))),
    "batches, mapped": (lambda d: from_batches(ROWS.batch(4)), lambda d: from_batches(ROWS.map(double).batch(4))),
    "batches in turn": (
        lambda d: from_batches(ROWS.shuffle(seed=1).batch(4).to_iter_dataset()),
        lambda d: from_batches(ROWS.shuffle(seed=2).batch(4).to_iter_dataset()),
    ),
    "a grain loader": (lambda d: from_batches(grain_loader()), lambda d: from_batches(grain_loader(2))),
    "a list of batches": (lambda d: from_batches([(X, Y)] * 3), lambda d: from_batches([(X, Y), (X + 1, Y), (X, Y)])),
    "by number, seeds": (
        lambda d: from_batches(Numbered(), shuffle=True, seed=1),
        lambda d: from_batches(Numbered(), shuffle=True, seed=2),
    ),
    "by number, order": (
        lambda d: from_batches(Numbered(), shuffle=True),
        lambda d: from_batches(Numbered(), shuffle=False),
    ),
    "functions": (lambda d: from_batches(numbers), lambda d: from_batches(lambda: iter([np.ones((1, 1))]))),
    "generators": (lambda d: from_batches(numbers()), lambda d: from_batches(np.ones((1, 1)) for _ in range(3))),
}


def to_x(row):
    return (np.float32([row["a"]]),)


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_changed_pipeline_is_seen_and_the_same_one_is_not(name, tmp_path):
    before, after = DIFFERENT[name]
    first, again, other = (of(make(tmp_path)) for make in (before, before, after))
    check_same_data(first, again)
    with pytest.raises(DataError, match="was .* and is"):
        check_same_data(first, other)


def test_what_a_stage_was_is_said():
    one, other = (of(rows_of(ROWS.shuffle(seed=seed))) for seed in (1, 2))
    with pytest.raises(
        DataError, match=r"source\[1\] was ShuffleMapDataset\(seed=1\) and is ShuffleMapDataset\(seed=2\)"
    ):
        check_same_data(one, other)


def test_who_reads_is_no_part_of_grain_datasets():
    threads = [of(from_batches(ROWS.batch(4).to_iter_dataset(grain.ReadOptions(num_threads=n)))) for n in (1, 3)]
    check_same_data(*threads)
    check_same_data(*(of(from_batches(grain_loader(workers=n))) for n in (0, 2)))


def test_reading_does_not_change_it():
    """Caches and counters that objects keep."""
    dataset = ROWS.seed(1).shuffle().random_map(Scale(2)).batch(4)
    loaders = [from_batches(dataset), from_source(Rows(), batch_size=4, transforms=[Scale(2)])]
    before = [of(loader) for loader in loaders]
    assert len(list(dataset)) == 3
    loaders[1].read(loaders[1].order(0))
    assert before == [of(loader) for loader in (from_batches(dataset), loaders[1], loaders[1].in_order())][:2]


class Random(Rows):
    """Rows that are drawn when they are read."""

    def __getitem__(self, row):
        return np.random.default_rng().normal(size=2), Y[row]


class Told(Random):
    """Rows that are not read for it."""

    def fingerprint(self):
        return {"version": 3}


def test_rows_that_a_source_draws_and_what_a_source_says_itself():
    assert of(rows_of(Random()))["source"] == "Random of 12 rows, drawn at random"
    assert of(rows_of(Told()))["source"] == "Told({'version': 3})"


def test_no_more_than_some_rows_are_read():
    rows = Rows()
    many = from_source(Many(rows), batch_size=4)
    many.example()
    rows.read.clear()
    assert many.fingerprint() == many.fingerprint()
    assert len(rows.read) <= 32


class Many:
    """Very many rows."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return 1 << 40

    def __getitem__(self, row):
        return self.rows[row % len(X)]


PROCESS = """
import json, pathlib, tempfile, test_fingerprint as t
with tempfile.TemporaryDirectory() as directory:
    told = {}
    for name, (before, after) in t.DIFFERENT.items():
        if name != "parquet":
            told[name] = [t.of(make(pathlib.Path(directory))) for make in (before, after)]
print(json.dumps(told))
"""


def test_two_processes_tell_the_same():
    """With other hashes of texts, and other addresses."""
    running = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.path.dirname(__file__)}
        process = subprocess.Popen([sys.executable, "-c", PROCESS], env=environment, stdout=subprocess.PIPE, text=True)
        running.append(process)
    try:
        first, second = (json.loads(process.communicate(timeout=60)[0]) for process in running)
    finally:
        for process in running:
            process.kill()
            process.wait()
    check_same_data(first, second)
    assert "0x" not in str(first)


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

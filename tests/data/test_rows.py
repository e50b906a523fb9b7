"""Rows by number: every source gives what arrays give, transforms depend on seed, row and pass alone, none is lost."""

import functools
import json
import math
import operator
import os
import socket
import subprocess
import sys

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbers_source import FEATURES, ROWS, Double, EveryThird, Noise, Nothing, Position, Rows, X, Y, negative

import kdist
from kdist.data import Feeder, NpyRows, feed, from_arrays, from_source
from kdist.data.files import decode_arrays, encode_arrays
from kdist.errors import ConfigError, DataError

THIRD = [row for row in range(ROWS) if row % 3 == 0]


@pytest.fixture(scope="module")
def model():
    made = kdist.Model(nn.Dense(1), seed=0)
    where = kdist.DataParallel(devices=jax.devices()[:2])
    # Two steps an execution: where time decides, losses are summed up in other portions each time, and rounded so.
    made.compile("sgd", "mse", metrics=["mae"], distribution=where, steps_per_execution=2)
    made.build(X)
    return made


@pytest.fixture(scope="module")
def start(model):
    return model.get_weights()


@pytest.fixture(autouse=True)
def anew(model, start):
    """Each test starts with the same weights."""
    model.set_weights(start)


def history(model, start, *data, **arguments):
    """What three epochs from the start come to, and the weights after them."""
    model.set_weights(start)
    return model.fit(*data, epochs=3, verbose=0, **arguments).history, [a.tolist() for a in model.get_weights()]


# Sources -----------------------------------------------------------------------------------------


class TorchLike:
    """A stand-in for torch's TensorDataset, for where torch is not installed: rows of tensors, which NumPy converts."""

    class Tensor:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return np.array(self.array, dtype, copy=copy)

    def __len__(self):
        return ROWS

    def __getitem__(self, n):
        return self.Tensor(X[n]), self.Tensor(Y[n])


class HuggingFaceLike:
    """A stand-in for `datasets.Dataset`: rows are dicts of Python's numbers and lists."""

    def __len__(self):
        return ROWS

    def __getitem__(self, n):
        return {"inputs": X[n].tolist(), "target": Y[n].tolist()}


class ToPair(grain.transforms.Map):
    def map(self, element):
        return np.float32(element["inputs"]), np.float32(element["target"])


def npy(directory):
    np.save(directory / "x.npy", X)
    np.save(directory / "y.npy", Y)
    return NpyRows(directory / "x.npy", directory / "y.npy"), []


def shards(directory):
    for name, array in (("x", X), ("y", Y)):
        (directory / name).mkdir()
        for i, part in enumerate(np.split(array, [5, 6, 17])):
            np.save(directory / name / f"{i}.npy", part)
    return NpyRows(directory / "x", directory / "y"), []


def split(row):
    return row[:-1], row[-1:]


def mapped(directory):
    np.save(directory / "rows.npy", np.concatenate([X, Y], axis=1))
    return np.load(directory / "rows.npy", mmap_mode="r"), [split]


def one_file(directory):
    np.save(directory / "rows.npy", np.concatenate([X, Y], axis=1))
    return directory / "rows.npy", [split]


def records(directory):
    record = pytest.importorskip("array_record.python.array_record_module", reason="needs array_record")
    writer = record.ArrayRecordWriter(str(directory / "rows.array_record"), "group_size:1")
    for x, y in zip(X, Y, strict=True):
        writer.write(encode_arrays(x, y))
    writer.close()
    return str(directory / "rows.array_record"), [decode_arrays]


def parquet(directory):
    pytest.importorskip("pyarrow", reason="pyarrow, which reads Parquet, is not installed")
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"inputs": X.tolist(), "target": Y.tolist()})
    pyarrow.parquet.write_table(table.slice(0, 9), directory / "0.parquet", row_group_size=4)
    pyarrow.parquet.write_table(table.slice(9), directory / "1.parquet")
    return directory, [ToPair()]


SOURCES = {
    "a list": lambda directory: (list(zip(X, Y, strict=True)), []),
    "a list of lists": lambda directory: ([[x, y] for x, y in zip(X, Y, strict=True)], []),
    "an object": lambda directory: (Rows(), []),
    "torch": lambda directory: (TorchLike(), []),
    "hugging face": lambda directory: (HuggingFaceLike(), [ToPair()]),
    "grain": lambda directory: (grain.MapDataset.range(ROWS).map(Rows().__getitem__), []),
    "npy": npy,
    "shards": shards,
    "a mapped array": mapped,
    "a path": one_file,
    "records": records,
    "parquet": parquet,
}


@pytest.fixture(scope="module")
def expected(model, start):
    """What arrays give."""
    return history(model, start, X, Y, batch_size=5, validation_data=(X, Y), validation_batch_size=9)


@pytest.mark.parametrize("name", SOURCES)
def test_rows_from_anywhere_train_as_arrays_do(model, start, expected, tmp_path, name):
    """The same numbers bit for bit; and the source is validated, evaluated and predicted too."""
    source, transforms = SOURCES[name](tmp_path)
    make = functools.partial(from_source, source, transforms=transforms)
    assert history(model, start, make(batch_size=5), validation_data=make(batch_size=9, shuffle=False)) == expected
    assert model.evaluate(make(shuffle=False), verbose=0) == model.evaluate(X, Y, verbose=0)
    np.testing.assert_array_equal(model.predict(make(shuffle=False), verbose=0), model.predict(X, verbose=0))


@pytest.mark.parametrize("name", ["an object", "torch"])
def test_objects_with_rows_are_taken_as_they_are(model, start, name):
    source = SOURCES[name](None)[0]
    arguments = {"batch_size": 5, "steps_per_epoch": 1}
    assert history(model, start, source, **arguments) == history(model, start, X, Y, **arguments)
    assert model.evaluate(source, verbose=0) == model.evaluate(X, Y, verbose=0)
    weights = {"class_weight": {0: 1.0, 1: 3.0}}
    labels = (np.arange(ROWS) % 2).astype(np.float32)[:, None]
    rows = [(x, y) for x, y in zip(X, labels, strict=True)]
    assert history(model, start, from_source(rows), **weights) == history(model, start, X, labels, **weights)


def test_weights_in_rows(model, start):
    weights = np.linspace(0, 2, ROWS, dtype=np.float32)
    rows = list(zip(X, Y, weights, strict=True))
    assert history(model, start, from_source(rows)) == history(model, start, X, Y, sample_weight=weights)


@pytest.mark.parametrize("shuffle", [True, False, "batch"])
@pytest.mark.parametrize("steps", [None, 2])
def test_orders_are_those_of_arrays(shuffle, steps):
    arguments = {"batch_size": 5, "shuffle": shuffle, "seed": 3, "steps": steps}
    rows, arrays = from_source(Rows(), **arguments), from_arrays(X, Y, **arguments)
    for epoch in range(6):
        np.testing.assert_array_equal(rows.order(epoch), arrays.order(epoch))


def test_a_weighted_mix(model):
    """Of two sources in the proportion of their weights; each pass is one over the mix."""
    ones, twos = (grain.MapDataset.source([(X[0], np.float32([n]))] * 30) for n in (1, 2))
    mix = grain.MapDataset.mix([ones, twos], weights=[2, 1])
    loader = from_source(mix, batch_size=6, shuffle=False)
    y = np.array([mix[i][1] for i in range(len(mix))])
    assert (y == 1).sum() == 2 * (y == 2).sum() > 0
    np.testing.assert_array_equal(loader.read(loader.order(0)).y, y)
    loss = model.evaluate(loader, verbose=0)
    assert loss == model.evaluate(np.tile(X[0], (len(y), 1)), y, batch_size=6, verbose=0)


def test_what_grain_shuffles_is_shuffled_anew_each_pass():
    loader = from_source(grain.MapDataset.range(40).shuffle(seed=1).map(np.float32), batch_size=40, shuffle=False)
    first, second = (loader.read(loader.order(epoch)).x.tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


# Transforms --------------------------------------------------------------------------------------


def read(loader, epoch=0):
    """The rows of an epoch."""
    return loader.read(loader.order(epoch))


@pytest.mark.parametrize(
    ("transforms", "x", "y"),
    [
        ([negative], -X, Y),
        ([Double()], 2 * X, Y),
        ([Position()], X, np.arange(ROWS, dtype=np.float32)[:, None]),
        ([Double(), negative, Double()], -4 * X, Y),
        ([EveryThird()], X[THIRD], Y[THIRD]),
        ([EveryThird(), Position()], X[THIRD], np.float32(THIRD)[:, None]),
        ([operator.itemgetter(0)], X, None),
    ],
    ids=["function", "Map", "MapWithIndex", "several", "Filter", "Filter, MapWithIndex", "callable"],
)
@pytest.mark.parametrize(
    "source", [Rows(), grain.MapDataset.range(ROWS).map(Rows().__getitem__)], ids=["object", "grain"]
)
def test_transforms(transforms, x, y, source):
    """In every pass the same, and alike in every place where a loader reads."""
    loader = from_source(source, transforms=transforms, shuffle=False, batch_size=4)
    assert loader.num_rows == len(x)
    assert loader.num_steps == -(-len(x) // 4)
    for found in (read(loader, 0), read(loader, 2), loader.read(slice(None))):
        np.testing.assert_array_equal(found.x, x)
        assert (found.y is None) if y is None else (found.y == y).all()
    np.testing.assert_array_equal(loader.example().x, x[:4])
    np.testing.assert_array_equal(read(loader.map(lambda batch: batch), 1).x, x)


@pytest.mark.parametrize("cache", [True, False])
def test_filtered_rows_train_as_those_that_are_kept(model, start, cache):
    loader = from_source(Rows(), transforms=[EveryThird()], batch_size=3, cache=cache)
    assert history(model, start, loader) == history(model, start, X[THIRD], Y[THIRD], batch_size=3)


def test_random_transforms_depend_on_seed_row_and_pass_alone():
    def noise(seed=0, batch_size=4, epoch=0, shuffle=False, before=()):
        loader = from_source(Rows(), transforms=[*before, Noise()], seed=seed, batch_size=batch_size, shuffle=shuffle)
        found = read(loader, epoch)
        row = np.argsort(found.x[:, -1])  # back into the order of the source
        return found.x[row, 0].tolist()

    first = noise()
    assert len(set(first)) == ROWS
    assert first == noise() == noise(batch_size=7) == noise(shuffle=True)
    assert not set(first) & set(noise(epoch=1))
    assert noise(epoch=1) == noise(epoch=1, shuffle=True)
    assert not set(first) & set(noise(seed=1))
    kept = [EveryThird()]
    first = noise(before=kept)
    assert len(set(first)) == len(THIRD)
    assert first == noise(before=kept, batch_size=2, shuffle=True)
    assert not set(first) & set(noise(before=kept, epoch=1))


def test_a_pass_in_parts_draws_as_a_whole_one():
    loader = from_source(Rows(), transforms=[Noise()], batch_size=4)
    parts = loader.with_steps(2)
    for number in (0, 1):
        found = [read(parts, epoch).x for epoch in range(3 * number, 3 * number + 3)]
        np.testing.assert_array_equal(np.concatenate(found), read(loader, number).x)


def test_random_transforms_of_validation_are_the_same_each_time(model):
    loader = from_source(Rows(), transforms=[Noise()], batch_size=4, shuffle=False)
    assert model.evaluate(loader, verbose=0) == model.evaluate(loader, verbose=0)
    x = read(loader).x
    np.testing.assert_allclose(model.predict(loader, verbose=0), model.predict(x, verbose=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([grain.transforms.Batch(4)], r"batch_size says how rows become batches: leave grain.transforms.Batch out"),
        ([Double], r"must be a function of a row, or a Map.*Received: <class .*Double"),
        ([3], r"must be a function of a row.*Received: 3"),
        ([lambda row, rng: row], r"takes one row. Received: .*lambda.*grain.transforms.RandomMap"),
        ([lambda: 0], "takes one row"),
        ([Noise(), EveryThird()], "A Filter after a RandomMap would keep other rows each epoch.*Filter first"),
        (negative, "transforms must be a list. Received: <function negative"),
    ],
    ids=["Batch", "class", "number", "two arguments", "none", "Filter late", "no list"],
)
def test_transforms_that_are_refused(transforms, message):
    with pytest.raises(ConfigError, match=message):
        from_source(Rows(), transforms=transforms)


def test_a_filter_that_keeps_nothing():
    with pytest.raises(DataError, match="The data are empty: the filters keep none of the 23 rows of the Rows"):
        from_source(Rows(), transforms=[Nothing()])


# Arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be .*Received: 0"),
        ({"steps": 0}, "steps must be .*Received: 0"),
        ({"steps": 1.5}, "steps must be .*Received: 1.5"),
        ({"shuffle": "rows"}, "shuffle must be True, False or 'batch'. Received: 'rows'"),
        ({"shuffle": 1}, "shuffle must be True, False or 'batch'. Received: 1"),
        ({"seed": -1}, "seed must be an integer from 0.*Received: -1"),
        ({"seed": True}, "seed must be an integer from 0.*Received: True"),
        ({"seed": 2**32}, "seed must be an integer from 0.*Received: 4294967296"),
        ({"workers": -1}, "workers must be an integer of 0 or more. Received: -1"),
        ({"workers": True}, "workers must be an integer of 0 or more. Received: True"),
        ({"cache": True, "transforms": [Noise()]}, "a random transform changes them each epoch"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ConfigError, match=message):
        from_source(Rows(), **arguments)


def test_the_fingerprint_says_what_decides_the_rows():
    def print_of(source=None, **arguments):
        return from_source(Rows() if source is None else source, **arguments).fingerprint()

    first = print_of()
    assert first == print_of() == print_of(workers=2) == print_of(workers=2, use_multiprocessing=True)
    changed = [
        print_of(Rows(ROWS + 1)),
        print_of([1, 2]),
        print_of(batch_size=3),
        print_of(shuffle=False),
        print_of(seed=1),
        print_of(steps=2),
        print_of(transforms=[negative]),
        print_of(transforms=[Double(), negative]),
        print_of(transforms=[EveryThird()]),
    ]
    assert all(changed[i] != other for i in range(len(changed)) for other in [first, *changed[:i]])


# Every row once ----------------------------------------------------------------------------------


class Count(kdist.metrics.Metric):
    """How often each of so many rows was seen; targets are their numbers."""

    def __init__(self, rows):
        super().__init__("count")
        self.rows = rows

    def sums(self, y_true, y_pred, weight=None):
        weight = jnp.ones(len(y_pred)) if weight is None else weight
        return jnp.zeros(self.rows).at[y_true[:, 0].astype(int)].add(weight)

    def result(self, sums):
        return sums


def numbered(count):
    return [(np.float32([n]), np.float32([n])) for n in range(count)]


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 8), st.integers(1, 4), st.booleans(), st.data())
def test_every_row_counts_once_in_an_evaluation_and_comes_in_order(count, batch_size, n, k, cache, data):
    model = kdist.Model(nn.Dense(1, use_bias=False, kernel_init=nn.initializers.ones), seed=0)
    where = kdist.DataParallel(devices=jax.devices()[:n])
    model.compile("sgd", "mse", metrics=[Count(count)], distribution=where, steps_per_execution=k)
    loader = from_source(numbered(count), batch_size=batch_size, shuffle=data.draw(st.booleans()), cache=cache)
    assert model.evaluate(loader, verbose=0, return_dict=True)["count"].tolist() == [1] * count
    assert model.predict(loader, verbose=0)[:, 0].tolist() == list(range(count))


@settings(deadline=None)
@given(
    rows=st.integers(1, 60),
    batch_size=st.integers(1, 16),
    n=st.integers(1, 8),
    k=st.integers(1, 5),
    steps=st.none() | st.integers(1, 9),
    most=st.integers(1, 6),
    shuffle=st.sampled_from([True, False, "batch"]),
    drop=st.booleans(),
)
def test_the_epochs_of_a_pass_hold_every_row_once(rows, batch_size, n, k, steps, most, shuffle, drop):
    """Over lengths, batch sizes, devices, steps of an execution, of an epoch and of a chunk; or no row twice."""
    drop = drop and rows >= batch_size
    given = {"batch_size": batch_size, "steps": steps, "shuffle": shuffle, "drop_remainder": drop}
    loader = from_source(numbered(rows), **given)
    where = kdist.DataParallel(devices=jax.devices()[:n])
    steps_of_a_pass = rows // batch_size if drop else math.ceil(rows / batch_size)
    assert loader.num_steps == (steps_of_a_pass if steps is None else steps)
    epochs = 1 if steps is None else math.ceil(steps_of_a_pass / steps)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed, "MAX_CHUNK_STEPS", most)
        with Feeder(loader, where, multiple=n, steps_per_execution=k) as feeder:
            for epoch in range(epochs):
                order = []
                for chunk in feeder.chunks(epoch, then=epoch + 1 if epoch + 1 < epochs else None):
                    x, valid = np.asarray(chunk.feed.rows.x)[..., 0], chunk.feed.rows.valid
                    counts = np.ones(x.shape, bool) if valid is None else np.asarray(valid) == 1
                    assert counts[: chunk.num_steps].sum(1).tolist() == chunk.rows.tolist()
                    order += x[: chunk.num_steps][counts[: chunk.num_steps]].astype(int).tolist()
                assert order == loader.order(epoch).tolist()
                seen += order
    assert len(set(seen)) == len(seen) == loader.num_rows == (rows // batch_size * batch_size if drop else rows)
    if not drop or shuffle is not True:
        assert sorted(seen) == list(range(loader.num_rows))
    arrays = from_arrays(np.zeros(rows), **given)
    assert arrays.num_rows == loader.num_rows
    assert [arrays.order(epoch).tolist() for epoch in range(3)] == [loader.order(epoch).tolist() for epoch in range(3)]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("make", ["rows", "arrays"])
def test_dropping_the_remainder(make, cache):
    """Other rows are left out each epoch of training, and none by what is not training."""
    model = kdist.Model(nn.Dense(1, use_bias=False, kernel_init=nn.initializers.ones), seed=0)
    where = kdist.DataParallel(devices=jax.devices()[:2])
    model.compile(kdist.optimizers.SGD(0.0), "mse", metrics=[Count(11)], distribution=where)
    x = np.arange(11, dtype=np.float32)[:, None]
    given = {"batch_size": 4, "drop_remainder": True, "cache": cache}
    loader = from_source(numbered(11), **given) if make == "rows" else from_arrays(x, x, **given)
    counts = model.fit(loader, epochs=4, validation_data=loader, verbose=0).history
    assert {int(epoch.sum()) for epoch in counts["count"]} == {8}
    assert len({tuple(epoch.tolist()) for epoch in counts["count"]}) > 1
    assert all(epoch.tolist() == [1] * 11 for epoch in counts["val_count"])
    assert model.evaluate(loader, verbose=0, return_dict=True)["count"].tolist() == [1] * 11
    assert model.predict(loader, verbose=0)[:, 0].tolist() == x[:, 0].tolist()
    assert model.predict(loader, steps=2, verbose=0)[:, 0].tolist() == x[:8, 0].tolist()
    with pytest.raises(DataError, match="leaves nothing of 3 rows in batches of 4"):
        from_source(numbered(3), **given) if make == "rows" else from_arrays(x[:3], **given)
    with pytest.raises(ConfigError, match="drop_remainder must be True or False. Received: 'yes'"):
        given["drop_remainder"] = "yes"
        from_source(numbered(3), **given) if make == "rows" else from_arrays(x[:3], **given)


@pytest.mark.parametrize("workers", [0, 2])
def test_types_that_become_the_same_are_the_same(workers):
    """Whoever reads the row."""
    rows = [(x.astype(np.float64 if n in (0, 9) else np.float32), n) for n, x in enumerate(X)]
    loader = from_source(rows, workers=workers, shuffle=False, batch_size=ROWS)
    np.testing.assert_array_equal(read(loader).x, X)
    loader.close()
    rows[5] = (X[5].astype(np.int32), 5)
    loader = from_source(rows, workers=workers, shuffle=False, batch_size=4)
    with pytest.raises(DataError, match=r"Row 5 of the list is \(int32\[3\], "):
        read(loader)
    loader.close()


class Gathers(Rows):
    """Gives rows stacked, as `give` does."""

    def __init__(self, give):
        super().__init__()
        self.gather = give


def fails(rows):
    raise OSError("disk")


@pytest.mark.parametrize("workers", [0, 2])
def test_gathering_too_few_rows_or_failing(workers):
    def message(give):
        loader = from_source(Gathers(give), workers=workers, shuffle=False, batch_size=4)
        with pytest.raises(DataError) as caught:
            read(loader)
        loader.close()
        return str(caught.value), caught.value.__cause__

    assert message(lambda rows: (X[:3], Y[:3]))[0] == "the Gathers: gather was asked for 4 rows, and gave 3."
    said, cause = message(fails)
    assert said == "Rows 0, 1, 2, 3 of the Gathers could not be gathered: OSError: disk"
    assert isinstance(cause, OSError)


def test_rows_without_end():
    for endless in (grain.MapDataset.range(8).repeat(), grain.MapDataset.range(8).repeat().batch(4)):
        with pytest.raises(DataError, match="The data are endless.*leave out `.repeat"):
            from_source(endless)


def test_lists_of_features_are_one_array(model):
    """A row that holds numbers in a list, as JSON and Parquet have them."""
    rows = [(x.tolist(), y.tolist()) for x, y in zip(X, Y, strict=True)]
    found = read(from_source(rows, shuffle=False))
    assert found.x.shape == (ROWS, FEATURES)
    np.testing.assert_array_equal(found.x, X)
    np.testing.assert_array_equal(found.y, Y)


# Processes ---------------------------------------------------------------------------------------

TWO = """
import json, sys, warnings
import grain, numpy as np
import kdist
from kdist.data import described, example_batch, fingerprint, from_source
from numbers_source import EveryThird, Nothing, Rows

me = int(sys.argv[2])
kdist.initialize(sys.argv[1], 2, me, initialization_timeout=60)
said = {}
for name, source, transforms in (
    ("empty", [] if me else Rows(), []),
    ("filtered", Rows(), [Nothing() if me == 0 else EveryThird()]),
    ("dropped", Rows(23 if me else 3), []),
):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from_source(source, batch_size=8, transforms=transforms, per_process=True, drop_remainder=True)
    except kdist.errors.DataError as error:
        said[name] = str(error)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    loader = from_source(Rows(23 if me else 9), batch_size=4, per_process=True, drop_remainder=True)
said["rows"] = [loader.num_rows, loader.num_steps, loader.in_order().order(1).tolist()]
said["order"] = loader.order(0).tolist()
said["fingerprint"] = fingerprint(loader, described(example_batch(loader)))
print(json.dumps(said))
"""


def test_two_processes_refuse_together_and_drop_alike():
    """Where the data of one are too few, no other waits for it."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.path.dirname(__file__)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, coordinator, str(i)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    try:
        first, second = (json.loads(p.communicate(timeout=60)[0].splitlines()[-1]) for p in running)
    finally:
        for process in running:
            process.kill()
            process.wait()
    other = "With per_process=True each process needs rows of its own."
    assert first["empty"] == f"The data are empty: process 1 has no rows. {other}"
    assert second["empty"] == f"The data are empty: on process 1, the list has no rows. {other}"
    filtered = "the filters keep none of the 23 rows of the Rows"
    assert first["filtered"] == f"The data are empty: on process 0, {filtered}. {other}"
    assert second["filtered"] == f"The data are empty: process 0 has no rows. {other}"
    assert first["dropped"] == second["dropped"]
    assert "drop_remainder=True leaves nothing of 3 rows in batches of 4" in first["dropped"]
    assert first["rows"] == second["rows"] == [8, 4, list(range(9))]
    assert len(set(first["order"])) == len(set(second["order"])) == 8
    assert first["fingerprint"] == second["fingerprint"]

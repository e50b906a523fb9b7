"""Grain's own datasets and loaders, of batches, taken as they are: in fit, evaluate, predict and as validation data."""

import flax.linen as nn
import grain
import jax
import numpy as np
import pytest
from numbers_source import ROWS, Rows, X, Y

import kdist
from kdist.data import from_batches, from_source
from kdist.errors import ConfigError, DataError

SIZE = 5


@pytest.fixture(scope="module")
def model():
    made = kdist.Model(nn.Dense(1), seed=0)
    where = kdist.DataParallel(devices=jax.devices()[:2])
    made.compile("sgd", "mse", distribution=where, steps_per_execution=2)
    made.build(X)
    return made


@pytest.fixture(scope="module")
def start(model):
    return model.get_weights()


@pytest.fixture(autouse=True)
def anew(model, start):
    """Each test starts with the same weights."""
    model.set_weights(start)


def rows():
    return grain.MapDataset.range(ROWS).map(Rows().__getitem__)


def loader():
    sampler = grain.samplers.SequentialSampler(ROWS)
    return grain.DataLoader(data_source=Rows(), sampler=sampler, operations=[grain.transforms.Batch(SIZE)])


DATASETS = {
    "MapDataset": lambda: rows().batch(SIZE),
    "IterDataset": lambda: rows().batch(SIZE).to_iter_dataset(),
    "IterDataset of rows": lambda: rows().to_iter_dataset().batch(SIZE),
    "DataLoader": loader,
}


@pytest.fixture(scope="module")
def expected(model, start):
    """What arrays in the same order give: training, evaluation, prediction."""
    model.set_weights(start)
    model.fit(X, Y, batch_size=SIZE, shuffle=False, epochs=2, verbose=0, validation_data=(X, Y))
    return model.history.history


@pytest.mark.parametrize("name", DATASETS)
def test_they_train_as_arrays_do(model, start, expected, name):
    data = DATASETS[name]()
    assert model.fit(data, epochs=2, verbose=0, validation_data=data).history == expected
    assert model.evaluate(data, verbose=0) == model.evaluate(X, Y, batch_size=SIZE, verbose=0)
    np.testing.assert_array_equal(model.predict(data, verbose=0), model.predict(X, batch_size=SIZE, verbose=0))


@pytest.mark.parametrize("name", DATASETS)
def test_epochs_of_some_steps(model, start, name):
    """The next epoch goes on where the last ended."""
    found = model.fit(DATASETS[name](), epochs=2, steps_per_epoch=2, verbose=0).history["loss"]
    model.set_weights(start)
    arguments = {"batch_size": SIZE, "shuffle": False, "steps_per_epoch": 2}
    assert found == model.fit(X, Y, **arguments, epochs=2, verbose=0).history["loss"]


def firsts(dataset, epochs=2):
    """The first input of each row, by epoch."""
    batches = from_batches(dataset)
    return [[n for b in batches.batches(epoch, fresh=False) for n in b.x[:, 0].tolist()] for epoch in range(epochs)]


def test_a_map_dataset_is_shuffled_anew_each_pass():
    first, second = firsts(rows().shuffle(seed=1).batch(SIZE))
    assert sorted(first) == sorted(second) == X[:, 0].tolist()
    assert first != second
    assert firsts(rows().shuffle(seed=1).batch(SIZE)) == [first, second]


def test_random_maps_of_grain_differ_each_pass():
    class Noise(grain.transforms.RandomMap):
        def random_map(self, element, rng):
            return np.float32([rng.uniform()]), element[1]

    first, second = firsts(rows().seed(1).random_map(Noise()).batch(SIZE))
    assert not set(first) & set(second)


def test_batches_that_are_filtered(model):
    """What a filter of batches leaves out is no batch, and no step."""
    data = rows().batch(SIZE).filter(lambda batch: batch[0][0, 0] != X[SIZE, 0])
    left = np.delete(np.arange(ROWS), slice(SIZE, 2 * SIZE))
    assert from_batches(data).num_steps is None
    assert firsts(data) == [X[left, 0].tolist()] * 2
    assert len(model.fit(data, epochs=2, verbose=0, validation_data=data).history["val_loss"]) == 2
    assert model.evaluate(data, verbose=0) == pytest.approx(model.evaluate(X[left], Y[left], verbose=0), rel=1e-5)
    assert model.predict(data, verbose=0).shape == (len(left), 1)


def test_rows_that_are_filtered_before_batches_are_made(model):
    data = rows().filter(lambda row: row[1][0] > 0).to_iter_dataset().batch(SIZE)
    left = Y[:, 0] > 0
    assert firsts(data) == [X[left, 0].tolist()] * 2
    assert model.evaluate(data, verbose=0) == pytest.approx(model.evaluate(X[left], Y[left], verbose=0), rel=1e-5)


def test_a_dataset_without_end_trains_for_its_steps(model, start):
    data = rows().batch(SIZE).repeat()
    assert from_batches(data).num_steps is None
    found = model.fit(data, epochs=3, steps_per_epoch=4, verbose=0).history["loss"]
    model.set_weights(start)
    one = rows().batch(SIZE).repeat(3)
    assert found == model.fit(one, epochs=3, steps_per_epoch=4, verbose=0).history["loss"]


def test_a_dataset_without_end_has_no_rows_to_count():
    with pytest.raises(DataError, match=r"The data are endless: the .*Epochs repeat it: leave out `.repeat\(\)`"):
        from_source(rows().repeat())


def test_rows_of_grain_that_a_filter_left_out():
    with pytest.raises(DataError, match="Row 1 of the FilterMapDataset is None. Leave rows out by a .*Filter"):
        from_source(rows().filter(lambda row: row[0][0] != X[1, 0]), shuffle=False).example()


def test_datasets_of_rows_are_not_kept_on_the_devices():
    with pytest.raises(ConfigError, match="cache=True keeps rows as they are first read"):
        from_source(rows(), cache=True)


@pytest.mark.parametrize("name", ["IterDataset", "DataLoader"])
def test_what_has_no_rows_by_number(name):
    with pytest.raises(DataError, match=r"Expected rows by number.*go through kdist.data.from_batches"):
        from_source(DATASETS[name]())


@pytest.mark.parametrize("name", DATASETS)
def test_nothing_stands_beside_them(model, name):
    with pytest.raises(DataError, match="y goes into the batches"):
        model.fit(DATASETS[name](), Y, verbose=0)
    with pytest.raises(DataError, match="validation_split takes rows from the end of arrays.*Pass validation_data"):
        model.fit(DATASETS[name](), validation_split=0.2, verbose=0)

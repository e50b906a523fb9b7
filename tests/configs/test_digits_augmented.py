"""The augmented digits: what the transforms do, and that they are a function of row, epoch and seed."""

import numpy as np
import pytest

FIELDS = {"devices": 1, "batch_size": 64, "epochs": 3, "verbose": 0}


def read(config, epoch, rows=None):
    """Rows of the training data, as they are in an epoch."""
    loader = config.make_data().x
    order = loader.order(epoch)
    return loader.read(order if rows is None else np.sort(order)[rows])


def test_a_crop_moves_an_image_by_some_pixels(load):
    _, augmented = load("digits_augmented")
    image = np.arange(1.0, 65.0, dtype=np.float32).reshape(8, 8, 1)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    places = {padded[top : top + 8, left : left + 8].tobytes() for top in range(5) for left in range(5)}
    rng = np.random.default_rng(0)
    moved = [augmented.RandomCrop(2).random_map((image, 7), rng) for _ in range(500)]
    assert {row.tobytes() for row, _ in moved} == places
    assert all(row.shape == (8, 8, 1) and row.dtype == np.float32 and label == 7 for row, label in moved)
    assert np.array_equal(augmented.RandomCrop(0).random_map((image, 7), rng)[0], image)


@pytest.mark.parametrize("probability, share", [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_a_flip_mirrors_left_and_right_with_its_probability(load, probability, share):
    _, augmented = load("digits_augmented")
    image = np.arange(64.0, dtype=np.float32).reshape(8, 8, 1)
    rng = np.random.default_rng(0)
    rows = [augmented.RandomFlip(probability).random_map((image, 7), rng) for _ in range(1000)]
    mirrored = [np.array_equal(row, image[:, ::-1]) for row, _ in rows]
    assert np.mean(mirrored) == pytest.approx(share, abs=0.05)
    assert all(np.array_equal(row, image) for (row, _), m in zip(rows, mirrored, strict=True) if not m)
    assert {label for _, label in rows} == {7}


def test_a_row_depends_on_its_number_the_epoch_and_the_seed_alone(load):
    config, _ = load("digits_augmented", flip=0.5, **FIELDS)
    first = read(config, 0)
    assert np.array_equal(first.x, read(config, 0).x)
    assert np.array_equal(first.x, read(config.replace(workers=2), 0).x)
    some = read(config, 0, slice(100, 200))
    assert np.array_equal(some.x, read(config, 0, slice(0, 300)).x[100:200])  # whoever reads it, with whatever else
    for other in (read(config, 1, slice(100, 200)), read(config.replace(seed=1), 0, slice(100, 200))):
        same = (some.x == other.x).all(axis=(1, 2, 3))
        assert np.array_equal(some.y, other.y) and same.mean() < 0.3


def test_only_training_is_augmented(load):
    config, _ = load("digits_augmented", **FIELDS)
    plain, _ = load("digits_cnn")
    data, without = config.make_data(), plain.make_data()
    assert all(np.array_equal(a, b) for a, b in zip(data.validation, without.validation, strict=True))
    rows = read(config.replace(crop=0), 0, slice(None))
    assert np.array_equal(rows.x, without.x) and np.array_equal(rows.y, without.y)
    assert not np.array_equal(read(config, 0, slice(None)).x, without.x)


def test_it_learns(load):
    config, _ = load("digits_augmented", **{**FIELDS, "batch_size": 32})
    model, data = config.make_model(), config.make_data()
    history = model.fit(data.x, epochs=3, validation_data=data.validation, verbose=0).history
    assert history["val_accuracy"][-1] > 0.85

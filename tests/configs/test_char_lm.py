"""The character-level language model: its text, its windows, what the model sees, and what it writes."""

import math

import numpy as np
import pytest

from kdist.errors import ConfigError

TINY = {"devices": 1, "window": 8, "width": 16, "layers": 1, "heads": 2, "batch_size": 4, "held_out": 100, "verbose": 0}
TEXT = "def one(x):\n    return x + 1\n" * 60


@pytest.fixture
def tiny(load, tmp_path):
    """A small config over two modules, and the file's module."""
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text(f"{name} = 3\n{TEXT}")
    return load("char_lm", directory=str(tmp_path), **TINY)


def test_a_text_is_encoded_and_decoded(load):
    _, lm = load("char_lm")
    assert lm.encode(lm.ALPHABET).tolist() == list(range(96)) and lm.encode(TEXT).dtype == np.uint8
    assert lm.decode(lm.encode(TEXT)) == TEXT
    assert lm.decode(lm.encode("\tif é == '\x00':")) == "        if ? == '?':"


def test_the_library_is_read_as_text_that_everybody_has(load):
    config, lm = load("char_lm")
    text = lm.read_library(config.directory)
    assert len(text) > 1_000_000 and text.max() < len(lm.ALPHABET)
    assert "def " in lm.decode(text[:20_000]) and "self" in lm.decode(text[-config.held_out :])
    assert np.array_equal(text, lm.read_library(config.directory))


def test_a_directory_without_modules(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no .py files in .*empty. Set `directory`"):
        tiny[0].replace(directory=str(tmp_path / "empty")).make_data()


@pytest.mark.parametrize("characters, rows", [(9, 1), (16, 1), (17, 2), (100, 12)])
def test_windows_cover_the_text_once_but_for_a_remainder(tiny, characters, rows):
    _, lm = tiny
    text = np.arange(characters, dtype=np.uint8)
    windows = lm.Windows(text, 8)
    assert len(windows) == rows and characters - (rows * 8 + 1) < 8
    inputs, targets = zip(*(lm.NextCharacter().map(windows[i]) for i in range(rows)), strict=True)
    assert all(a.shape == b.shape == (8,) for a, b in zip(inputs, targets, strict=True))
    assert np.array_equal(np.concatenate(inputs), text[: rows * 8])
    assert np.array_equal(np.concatenate(targets), text[1 : rows * 8 + 1])


def test_epochs_go_through_the_training_text_and_validation_through_the_end_of_it(tiny):
    config, lm = tiny
    text = lm.read_library(config.directory)
    data = config.replace(steps=10).make_data()
    assert data.x.num_rows == (len(text) - 101) // 8 and data.x.num_steps == 10 and data.x.batch_size == 4
    epochs = -(-data.x.num_rows // 40)
    seen = np.concatenate([data.x.order(epoch) for epoch in range(epochs)])
    assert not np.array_equal(seen, np.sort(seen)) and np.array_equal(np.sort(seen), np.arange(data.x.num_rows))
    rows = data.validation.read(data.validation.order(0))
    assert (rows.x.dtype, rows.y.dtype) == (np.uint8, np.int32)
    assert np.array_equal(rows.x.ravel(), text[-100:-4]) and np.array_equal(rows.y.ravel(), text[-99:-3])


def test_the_model_sees_only_what_came_before(tiny):
    config, _ = tiny
    model = config.make_model()
    ids = np.arange(16, dtype=np.uint8).reshape(2, 8)
    changed = ids.copy()
    changed[:, 5] += 50
    before, after = np.asarray(model(ids)), np.asarray(model(changed))
    assert before.shape == (2, 8, 96)
    np.testing.assert_allclose(before[:, :5], after[:, :5], rtol=1e-6)
    assert (np.abs(before[:, 5:] - after[:, 5:]).max(axis=-1) > 1e-4).all()


def test_the_learning_rate_rises_and_falls(tiny):
    optimizer = tiny[0].replace(epochs=4, steps=25, learning_rate=0.5).make_optimizer()
    rate = optimizer.learning_rate
    assert [float(rate(step)) for step in (0, 5, 10, 55, 100)] == pytest.approx([0, 0.25, 0.5, 0.25, 0], abs=1e-6)


def test_it_learns_a_text_and_goes_on_with_it(tiny, tmp_path):
    config, _ = tiny
    config = config.replace(epochs=4, steps=18, window=24, batch_size=8, learning_rate=2e-2)
    model, data = config.make_model(), config.make_data()
    history = model.fit(data.x, epochs=4, validation_data=data.validation, verbose=0).history
    bits = history["val_bits_per_character"]
    assert bits[-1] < 0.5 < bits[0] < math.log2(96)
    assert bits == pytest.approx([loss / math.log(2) for loss in history["val_loss"]], rel=1e-5)

    model.save_weights(tmp_path / "weights")
    prompt = TEXT[:40]  # longer than a window
    text = config.sample(tmp_path / "weights", prompt, length=12, temperature=0.1)
    assert len(text) == 52 and text.startswith(TEXT[:45]) and "ret" in text[45:]
    assert text == config.sample(tmp_path / "weights", prompt, length=12, temperature=0.1)
    wild = config.sample(tmp_path / "weights", "d", length=8, temperature=50.0)
    assert wild[0] == "d" and len(wild) == 9 and wild != TEXT[:9]

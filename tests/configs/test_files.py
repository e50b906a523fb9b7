"""Every file of configs/ trains through the command line, and the first of them reaches what the README promises."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from kdist import config as configs
from kdist.cli import main
from kdist.data import example_batch, is_loader

FILES = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
_TEXT = "--window 16 --width 16 --steps 6 --held-out 2000 --layers".split()
SMALL = {"char_lm": [*_TEXT, "1"], "transformer_1b": [*_TEXT, "2", "--learning-rate", "1e-2"]}
"""Overrides that make a run short."""


def train(path, directory, *arguments):
    assert main(["train", str(path), "--run-dir", str(directory), "--verbose", "0", *arguments]) == 0
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def test_there_is_a_config_for_each_kind_of_model():
    wanted = {"char_lm", "digits", "digits_augmented", "digits_cnn", "digits_nnx", "digits_halves", "transformer_1b"}
    assert {path.stem for path in FILES} >= wanted


HAS_TESTS_OF_ITS_OWN = {"char_lm", "digits_augmented"}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in HAS_TESTS_OF_ITS_OWN else [])
        for p in FILES
        if p.stem != "digits"
    ],
)
def test_it_trains_and_its_weights_load_into_its_model(path, tmp_path):
    small = ["--epochs", "2", "--devices", "1", "--batch-size", "64", *SMALL.get(path.stem, [])]
    logs = train(path, tmp_path / "run", *small)
    assert len(logs) == 2 and logs[1]["loss"] < logs[0]["loss"]
    validated = {name.removeprefix("val_") for name in logs[0] if name.startswith("val_")}
    assert validated and validated == set(logs[0]) - {"epoch"} - {f"val_{name}" for name in validated}

    fields = json.loads((tmp_path / "run" / "config.json").read_text())["fields"]
    config = configs.load(str(path)).replace(**{**fields, "seed": 9})
    model, data = config.make_model(), config.make_data()
    model.build(example_batch(data.x).x if is_loader(data.x) else jax.tree.map(lambda a: a[:2], data.x))
    fresh = model.get_weights()
    model.load_weights(tmp_path / "run" / "weights")
    assert not any(np.array_equal(a, b) for a, b in zip(fresh, model.get_weights(), strict=True))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_says_what_it_is_and_how_it_is_run(path):
    text = path.read_text()
    assert text.startswith('"""') and f"kdist train configs/{path.name}" in text


def test_the_digits_reach_their_accuracy(tmp_path):
    path = next(path for path in FILES if path.stem == "digits")
    logs = train(path, tmp_path / "run", "--devices", "1")
    assert len(logs) == configs.load(str(path)).epochs
    assert logs[-1]["val_accuracy"] > 0.97
    assert max(line["val_accuracy"] for line in logs) < 1.0  # a perfect score on held-out images would be a leak

"""Wrong command lines and wrong configs: a line that says what to do, the right exit code, and no traceback."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

import kdist
from kdist.cli import main, verify
from kdist.config import Data

X, Y = np.zeros((64, 3), np.float32), np.zeros((64, 1), np.float32)
MADE = {"data": Data(X, Y), "none": None, "pair": (X, Y), "no targets": Data(X), "no rows": Data(X[:0], Y[:0])}


@dataclasses.dataclass(frozen=True)
class Wrong(kdist.Config):
    """A config that makes other data than it should."""

    loss: str = "mse"
    makes: str = "data"

    def make_module(self):
        return nn.Dense(1)

    def make_data(self):
        return MADE[self.makes]


def said(capsys, *arguments):
    """The exit code of a command that ends at once, and what it says on the error stream."""
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return code, text


@pytest.mark.parametrize("command", ["train", "plan", "verify"])
@pytest.mark.parametrize(
    ("makes", "code", "message"),
    [
        ("none", 2, "make_data of Wrong must return a kdist.config.Data. It returned a NoneType"),
        ("pair", 2, "It returned a tuple: wrap it, as in Data(x, y)"),
        ("no targets", 1, "There are no targets"),
        ("no rows", 1, "The data are empty"),
    ],
)
def test_data_that_are_none(command, makes, code, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ended, text = said(capsys, command, f"{__name__}:Wrong", "--makes", makes)
    assert ended == code and text.startswith("kdist: ") and message in text


@pytest.mark.parametrize("command", ["train", "plan", "verify"])
def test_a_config_without_a_model(command, capsys):
    wanted = (2, "kdist: Config of kdist.config:Config must define make_module().\n")
    assert said(capsys, command, "kdist.config:Config") == wanted


@pytest.mark.parametrize("command", ["train", "plan", "verify"])
@pytest.mark.parametrize(
    ("error", "message"),
    [(RuntimeError("Unable to initialize backend 'tpu'"), "backend 'tpu'"), (AssertionError(), "none")],
)
def test_devices_that_cannot_be_used(command, error, message, capsys, monkeypatch):
    """JAX raises the second where a platform that is wanted has no plugin."""

    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    code, text = said(capsys, command, f"{__name__}:Wrong")
    assert code == 1 and text.startswith("kdist: JAX cannot use its devices: ") and message in text
    assert "JAX_PLATFORMS is 'cpu'; `kdist doctor` looks for the cause." in text


def test_a_run_directory_without_a_name(capsys):
    assert said(capsys, "train", f"{__name__}:Wrong", "--run-dir", "") == (
        2,
        "kdist: run_dir is empty. Give a directory, or leave it out.\n",
    )


def test_one_device_has_nothing_to_be_compared_with_and_others_are_simulated(capfd, monkeypatch):
    """As many as the config asks for, where that is more than are simulated otherwise."""
    assert said(capfd, "verify", f"{__name__}:Wrong", "--devices", "1")[0] == 2
    started = []
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(
        verify, "_on_simulated_devices", lambda count, arguments: started.append((count, arguments)) or 0
    )
    for given, count in (([], 8), (["--devices", "4"], 8), (["--devices", "12"], 12)):
        assert said(capfd, "verify", f"{__name__}:Wrong", *given) == (0, "")
        assert started.pop() == (count, [f"{__name__}:Wrong", *given])

"""`kdist train`: overrides of every kind of field, exit codes, and what a run leaves on the disk and on the screen."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import kdist
from kdist import config as configs
from kdist.cli import main
from kdist.cli.configs import override
from kdist.errors import ConfigError

BODY = '''
import dataclasses
import flax.linen as nn
import numpy as np
import kdist
from kdist.config import Data


@dataclasses.dataclass(frozen=True)
class Tiny(kdist.Config):
    """A line through points."""

    epochs: int = 2
    devices: int | None = 1
    hidden: tuple[int, ...] = (4,)
    rate: float = 0.5
    rows: int = 48

    def make_module(self):
        return nn.Sequential([*(nn.Dense(width) for width in self.hidden), nn.Dense(1)])

    def make_data(self):
        x = np.linspace(-1, 1, self.rows, dtype=np.float32)[:, None]
        return Data(x, 2 * x, validation=(x[:8], 2 * x[:8]))


def config():
    return Tiny()
'''


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A config file, whose module is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "tiny_run.py"
    path.write_text(BODY)
    yield str(path)
    sys.modules.pop("tiny_run", None)


# Overrides ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, field, value",
    [
        ("--epochs 7", "epochs", 7),
        ("--epochs=7", "epochs", 7),
        ("--hidden 32 16 8", "hidden", (32, 16, 8)),
        ("--hidden 5", "hidden", (5,)),
        ("--metrics mae mse", "metrics", ("mae", "mse")),
        ("--learning-rate 0.25", "learning_rate", 0.25),
        ("--learning_rate 1e-4", "learning_rate", 1e-4),
        ("--learning_rate None", "learning_rate", None),
        ("--rate 2", "rate", 2.0),
        ("--steps-per-execution 16", "steps_per_execution", 16),
        ("--steps_per_execution auto", "steps_per_execution", "auto"),
        ("--precision mixed_bfloat16", "precision", "mixed_bfloat16"),
        ("--no-shuffle", "shuffle", False),
        ("--check-finite", "check_finite", True),
        ("--cache False", "cache", False),
        ("--cache auto", "cache", "auto"),
        ("--verbose 2", "verbose", 2),
        ("--verbose auto", "verbose", "auto"),
        ("--devices None", "devices", None),
        ("--devices 4", "devices", 4),
        ("--run-dir some/where", "run_dir", "some/where"),
        ("--loss mae", "loss", "mae"),
        ("--validation-split 0.25", "validation_split", 0.25),
    ],
)
def test_every_kind_of_field_can_be_set(arguments, field, value, source):
    before = configs.load(source)
    after = override(before, source, arguments.split())
    got = getattr(after, field)
    assert got == value and type(got) is type(value)
    assert after.replace(**{field: getattr(before, field)}) == before  # and nothing else


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--epoch 3", "Unknown config field 'epoch'. Did you mean 'epochs'"),
        ("--batchsize=3", "Unknown config field 'batchsize'. Did you mean 'batch_size'"),
        ("--learning-rat 3", "Did you mean 'learning_rate'"),
        ("--hiden 3 4", "Did you mean 'hidden'"),
        ("epochs=3", "--field value.*epochs=3"),
    ],
)
def test_an_unknown_field_is_named_with_its_closest_match(arguments, words, source, capsys):
    with pytest.raises(ConfigError, match=words):
        override(configs.load(source), source, arguments.split())
    assert main(["train", source, *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert re.search(words, captured.err) and captured.err.startswith("kdist: ") and "Traceback" not in captured.err


@pytest.mark.parametrize("arguments", ["--epochs three", "--precision float17", "--learning-rate", "--hidden a"])
def test_a_value_that_does_not_fit_its_field_is_a_usage_error(arguments, source, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", source, *arguments.split()])
    assert stopped.value.code == 2
    assert arguments.split()[0] in capsys.readouterr().err


# Exit codes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["train", "no/such.py"], 2, "no config file no/such.py"),
        (["train", "digits"], 2, "module:function"),
        (["train"], 2, "CONFIG"),
        (["train", "SOURCE", "--optimizer", "adamm"], 2, "Did you mean 'adam'"),
        (["train", "SOURCE", "--batch-size", "0"], 2, "batch_size must be a positive integer"),
        (["train", "SOURCE", "--devices", "99"], 2, "devices must lie in 1 .. 8"),
        (["train", "SOURCE", "--rows", "0"], 1, "empty"),
    ],
)
def test_mistakes_are_told_in_a_line_and_an_exit_code(arguments, code, words, source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([source if a == "SOURCE" else a for a in arguments]) == code
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == "" and "Traceback" not in captured.err


@pytest.mark.parametrize(
    "body, words", [("x = 1\n", "does not define `config`"), ("def config(): pass\n", "must return")]
)
def test_files_without_a_config(body, words, source, tmp_path, capsys):
    Path(source).write_text(body)
    assert main(["train", source, "--run-dir", str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--help"], 0, "train the model"),
        (["train", "--help"], 0, "--epochs 3"),
        (["train", "SOURCE", "--help"], 0, "--learning-rate"),
        (["--version"], 0, kdist.__version__),
    ],
)
def test_help_goes_to_stdout(arguments, code, words, source, capsys):
    try:
        got = main([source if a == "SOURCE" else a for a in arguments])
    except SystemExit as stopped:
        got = stopped.code
    assert got == code
    captured = capsys.readouterr()
    assert words in captured.out and captured.err == ""


@pytest.mark.parametrize("arguments", [[], ["fly"], ["trian", "x.py"]])
def test_a_command_that_is_not_there_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: kdist" in capsys.readouterr().err


# The run -----------------------------------------------------------------------------------------


def history(directory):
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_config_its_history_and_its_weights(source, tmp_path, capsys):
    directory = tmp_path / "runs" / "first"
    arguments = ["train", source, "--run-dir", str(directory), "--epochs", "3", "--hidden", "6", "--seed", "5"]
    assert main([*arguments, "--learning-rate", "0.05"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "\x1b" not in captured.out
    lines = captured.out.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["Epoch 1/3", "Epoch 2/3", "Epoch 3/3"]
    assert lines[3].startswith("3 epochs in ") and "val_loss" in lines[3]
    assert lines[4] == f"Run: {directory}" and len(lines) == 5

    assert sorted(p.name for p in directory.iterdir()) == ["checkpoints", "config.json", "history.jsonl", "weights"]
    written = json.loads((directory / "config.json").read_text())
    assert written["source"] == source
    fields = written["fields"]
    assert (fields["epochs"], fields["hidden"], fields["learning_rate"], fields["seed"]) == (3, [6], 0.05, 5)
    assert {"kdist", "jax", "flax", "optax"} <= set(written["versions"])
    assert {"platform", "devices", "processes", "zero_stage"} <= set(written["mesh"])
    logs = history(directory)
    assert [line["epoch"] for line in logs] == [0, 1, 2]
    assert set(logs[0]) == {"epoch", "loss", "val_loss"} and logs[2]["loss"] < logs[0]["loss"]

    config = configs.load(source).replace(hidden=(6,), seed=1)
    model, data = config.make_model(), config.make_data()
    model.build(data.x)
    model.load_weights(directory / "weights")
    assert model.evaluate(*data.validation, verbose=0) == pytest.approx(logs[2]["val_loss"], rel=1e-5)

    # The directory is taken now, and stays as it is.
    before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    assert main(arguments) == 2
    assert f"{directory} holds a run already" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()} == before


def test_the_same_config_gives_the_same_run_and_verbose_0_says_nothing(source, tmp_path, capsys):
    for name in "ab":
        assert main(["train", source, "--run-dir", str(tmp_path / name), "--verbose", "0"]) == 0
    assert capsys.readouterr() == ("", "")
    assert history(tmp_path / "a") == history(tmp_path / "b")


def test_a_run_directory_that_cannot_be_one(source, tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert main(["train", source, "--run-dir", str(tmp_path / "taken")]) == 2
    assert "taken is a file" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"
    assert main(["train", source, "--run-dir", str(tmp_path / "taken" / "below")]) in (1, 2)
    assert "taken" in capsys.readouterr().err


def test_the_default_directory_is_named_by_the_run_and_the_time(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", source, "--name", "mine", "--verbose", "0", "--epochs", "1"]) == 0
    (directory,) = (tmp_path / "runs" / "mine").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}", directory.name)


def test_a_run_that_fails_at_once_takes_no_directory(source, tmp_path):
    """So that the corrected command can be given the same --run-dir."""
    directory = str(tmp_path / "run")
    assert main(["train", source, "--run-dir", directory, "--batch-size", "0"]) == 2
    assert main(["train", source, "--run-dir", directory, "--verbose", "0"]) == 0


# As a program ------------------------------------------------------------------------------------


def test_python_m_kdist_in_a_terminal_and_ctrl_c(source, tmp_path):
    """The bar appears; after Ctrl-C the cursor is shown again, no traceback is, and the run is on the disk."""
    directory = tmp_path / "run"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "kdist", "train", source, "--run-dir", str(directory), "--epochs", "1000000"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "XLA_FLAGS": ""}
    listening = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a background job ignores it, and its children
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    signal.signal(signal.SIGINT, listening)
    limit = threading.Timer(240, process.kill)
    limit.start()
    os.close(theirs)
    output, interrupted = "", False
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not data:
            break
        output += data.decode(errors="replace")
        if not interrupted and "Epoch       3/1000000" in output:
            process.send_signal(signal.SIGINT)
            interrupted = True
    code = process.wait(timeout=60)
    limit.cancel()
    os.close(ours)
    assert interrupted, output
    assert code == 130, output
    assert "\x1b[?25l" in output and "━" in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    assert "Traceback" not in output
    assert "Interrupted" in output and str(directory) in re.sub(r"\s", "", output)
    logs = history(directory)
    assert [line["epoch"] for line in logs] == list(range(len(logs))) and len(logs) >= 2

    config = configs.load(source)
    model, data = config.make_model(), config.make_data()
    model.build(data.x)
    model.load_weights(directory / "weights")
    assert np.isfinite(model.evaluate(*data.validation, verbose=0))


# Going on ----------------------------------------------------------------------------------------


def test_a_run_goes_on(source, tmp_path, capsys):
    """As one that never ended: the same history and the same weights; and the same command begins and goes on."""
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    command = ["train", source, "--verbose", "0", "--resume"]
    assert main([*command, "--run-dir", str(straight), "--epochs", "4"]) == 0
    for epochs in ("2", "4", "4"):
        assert main([*command, "--run-dir", str(parts), "--epochs", epochs]) == 0
    assert history(parts) == history(straight)
    config = configs.load(source)
    models = []
    for directory in (straight, parts):
        model, data = config.make_model(), config.make_data()
        model.build(data.x)
        model.load_weights(directory / "weights")
        models.append(model.get_weights())
    for a, b in zip(*models, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_goes_on_with_the_same_fields_only(source, tmp_path, capsys):
    command = ["train", source, "--verbose", "0", "--run-dir", str(tmp_path / "run"), "--epochs", "1"]
    assert main([*command, "--learning-rate", "0.05"]) == 0
    before = (tmp_path / "run" / "history.jsonl").read_text()
    assert main([*command, "--learning-rate", "0.1", "--resume"]) == 2
    assert "learning_rate was 0.05 and is 0.1" in capsys.readouterr().err
    assert (tmp_path / "run" / "history.jsonl").read_text() == before


def test_there_is_nothing_to_go_on_with(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", source, "--resume"]) == 2
    assert "--resume: there is no run in runs" in capsys.readouterr().err


def test_the_newest_run_goes_on(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", source, "--epochs", "1", "--verbose", "0"]) == 0
    assert main(["train", source, "--epochs", "2", "--verbose", "0", "--resume"]) == 0
    (run,) = (tmp_path / "runs").glob("*/*")
    assert [line["epoch"] for line in history(run)] == [0, 1]

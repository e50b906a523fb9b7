"""`kdist inspect`: what is in a checkpoint, whether it is what was written, and how two differ."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdist
from kdist.checkpoint import RunCheckpoints, save_state, save_weights
from kdist.cli import main
from kdist.cli.inspect import Entry, difference

NOTE = {
    "position": {"epoch": 3, "step": 5, "part": {"logs": {"loss": 0.125}}},
    "data": {"seed": 7},
    "names": ["loss"] * 99,
}


@pytest.fixture(scope="module")
def state():
    trainer = kdist.Trainer(
        nn.Dense(2), optimizer="adam", loss="mse", distribution=kdist.DataParallel(devices=jax.devices()[:1])
    )
    return trainer.init((np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)))


@pytest.fixture
def run(tmp_path, state):
    """A directory of steps 4 and 10."""
    with RunCheckpoints(tmp_path / "run", keep=None) as checkpoints:
        for step in (4, 10):
            kernel = state.params["kernel"].at[0, 0].set(step)
            params = {**state.params, "kernel": kernel}
            checkpoints.save(dataclasses.replace(state, step=jnp.int32(step), params=params), NOTE)
    return tmp_path / "run"


def damage(checkpoint, tree):
    """Other contents for a tree, which are whole by themselves."""
    other = checkpoint.parent / "other"
    save_weights(other, {"params": {"kernel": jnp.zeros((3, 2)), "bias": jnp.ones(2)}})
    os.rename(checkpoint / tree, checkpoint.parent / "before")
    os.rename(other / "weights", checkpoint / tree)


def table(text):
    """The rows of a table by their first cell."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {cells[0]: cells[1:] for cells in lines}


def inspect(capsys, *arguments):
    code = main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_all_that_is_in_it(run, capsys):
    code, out, err = inspect(capsys, run)
    assert (code, err) == (0, "")
    assert f"Checkpoint: {run / '10'}" in out
    found = table(out)
    assert found["weights.params.kernel"] == ["float32", "[3, 2]", "24", "verified"]
    assert found["training.step"] == ["int32", "[]", "4", "verified"]
    assert found["training.key"] == ["uint32", "[2]", "8", "verified"]
    assert found["position.epoch"] == ["3"] and found["position.part.logs.loss"] == ["0.125"]
    assert found["versions.kdist"] == [repr(kdist.__version__)] and found["versions.jax"] == [repr(jax.__version__)]
    assert found["data.seed"] == ["7"] and found["names"][0].endswith("...]")
    on_disk = sum(file.stat().st_size for file in (run / "10").rglob("*") if file.is_file())
    assert f"{on_disk:,} on the disk: none damaged" in out


def test_which_checkpoint(run, tmp_path, state, capsys):
    assert str(run / "4") in inspect(capsys, run, "--step", "4")[1]
    assert str(run / "4") in inspect(capsys, run / "4")[1]
    save_weights(tmp_path / "weights", {"params": state.params})
    code, out, _ = inspect(capsys, tmp_path / "weights")
    names = {name for name in table(out) if not name.startswith("versions.")}
    assert code == 0 and names == {"weights.params.kernel", "weights.params.bias"}
    os.makedirs(tmp_path / "trained")
    os.rename(run, tmp_path / "trained" / "checkpoints")
    assert str(tmp_path / "trained" / "checkpoints" / "10") in inspect(capsys, tmp_path / "trained")[1]


def test_arrays_that_are_not_what_was_written(run, capsys):
    damage(run / "10", "weights")
    code, out, _ = inspect(capsys, run)
    assert code == 1
    found = table(out)
    assert found["weights.params.kernel"][-1] == "DAMAGED" == found["weights.params.bias"][-1]
    assert found["training.step"][-1] == "verified"
    assert out.rstrip().endswith("2 damaged")
    assert inspect(capsys, run, "--step", "4")[0] == 0


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "d"])
def test_a_tree_that_cannot_be_read(run, capsys, name):
    os.rename(run / "10" / "weights" / name, run / "gone")
    code, out, _ = inspect(capsys, run)
    assert code == 1
    found = table(out)
    assert found["weights.params.kernel"] == ["?", "?", "0", "DAMAGED"]
    assert found["training.step"][-1] == "verified"


def test_an_array_that_is_gone_and_one_that_was_never_written(run, capsys):
    file = run / "10" / "weights" / "_METADATA"
    note = json.loads(file.read_text())
    del note["tree_metadata"]["('params.bias',)"]
    file.write_text(json.dumps(note))
    (run / "10" / "evil").mkdir()
    code, out, _ = inspect(capsys, run)
    found = table(out)
    assert code == 1 and found["weights.params.bias"][-1] == "DAMAGED" == found["evil"][-1]
    assert found["weights.params.kernel"][-1] == "verified"


def test_names_do_not_command_the_terminal(tmp_path, capsys):
    save_weights(tmp_path / "w", {"a\x1b[2Jb": jnp.ones(1), "[bold]c": jnp.ones(1)})
    code, out, _ = inspect(capsys, tmp_path / "w")
    assert code == 0 and "\x1b" not in out and r"a\x1b[2Jb" in out and "weights.[bold]c" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 1, "There are no checkpoints at .*nowhere: it is not a directory"),
        (["."], 1, "that Orbax can read"),
        (["run", "--step", "5"], 1, "There is no step 5 in run. There are: 4, 10"),
        (["run", "nowhere"], 1, "no checkpoints at .*nowhere"),
        ([], 2, "the following arguments are required: DIR"),
        (["run", "--step", "new"], 2, "--step"),
        (["run", "--stop", "5"], 2, "unrecognized arguments: --stop"),
        (["run", "run", "run"], 2, "unrecognized arguments: run"),
    ],
)
def test_mistakes(run, capsys, monkeypatch, arguments, code, words):
    monkeypatch.chdir(run.parent)
    try:
        got = main(["inspect", *arguments])
    except SystemExit as stopped:
        got = stopped.code
    captured = capsys.readouterr()
    assert got == code and captured.out == ""
    assert re.search(words, captured.err)


def test_two_that_are_equal(run, capsys):
    code, out, _ = inspect(capsys, run, run / "10")
    assert code == 0 and {cells[0] for cells in table(out).values()} == {"equal"}
    assert out.rstrip().endswith(f"{len(table(out))} equal, 0 not")


def test_two_that_differ(run, tmp_path, state, capsys):
    code, out, _ = inspect(capsys, run / "4", run / "10")
    found = table(out)
    assert code == 1
    assert found["weights.params.kernel"] == found["training.step"] == ["differ by up to 6"]
    assert found["weights.params.bias"] == ["equal"]

    save_state(
        tmp_path / "other", dataclasses.replace(state, params={"kernel": jnp.ones((3, 4)), "b": jnp.ones(2)}), {}
    )
    found = table(inspect(capsys, run, tmp_path / "other")[1])
    assert found["weights.params.kernel"] == ["float32[3, 2] in the first, float32[3, 4] in the second"]
    assert found["weights.params.bias"] == ["only in the first"]
    assert found["weights.params.b"] == ["only in the second"]

    damage(run / "10", "weights")
    code, out, _ = inspect(capsys, run / "10", run / "10")  # nobody knows what damaged ones are equal to
    assert code == 1 and table(out)["weights.params.bias"] == ["DAMAGED in the first and the second"]


NAN = math.nan


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (np.float32([1, NAN]), np.float32([1, NAN]), "equal"),
        (np.float32([1, NAN]), np.float32([1, 2]), "differ by up to nan"),
        (np.float32([NAN, 1]), np.float32([NAN, 2]), "differ by up to 1"),
        (np.float32([math.inf, 1]), np.float32([math.inf, 1.5]), "differ by up to 0.5"),
        (np.float32([0.0]), np.float32([-0.0]), "differ by up to 0"),
        (np.uint8([0, 255]), np.uint8([255, 0]), "differ by up to 255"),
        (np.array([True, False]), np.array([True, True]), "differ by up to 1"),
        (np.complex64([1j]), np.complex64([1]), "differ by up to 1.41421"),
        (np.array([1, 2], jnp.bfloat16), np.array([1, 4], jnp.bfloat16), "differ by up to 2"),
    ],
)
def test_differences(a, b, said):
    entry = lambda array: Entry(jax.ShapeDtypeStruct(array.shape, array.dtype), array)  # noqa: E731
    assert difference(entry(a), entry(b)) == difference(entry(b), entry(a)) == said


def test_no_accelerator_is_touched(tmp_path, state):
    """The platform of the environment is not asked for: a run may have it for itself."""
    save_weights(tmp_path / "w", {"params": state.params})
    command = [sys.executable, "-m", "kdist", "inspect", str(tmp_path / "w")]
    environment = {**os.environ, "JAX_PLATFORMS": "nowhere"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "none damaged" in done.stdout

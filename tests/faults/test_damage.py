"""What is damaged is never taken for a checkpoint: the newest good one is restored bit for bit, with a warning.

Here two checkpoints are in a directory, and the newer one is damaged in every way that a disk, a copy or a user can.
"""

import gc
import random
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest

import kdist
from kdist.callbacks import BackupAndRestore
from kdist.checkpoint import RunCheckpoints, series
from kdist.errors import CheckpointCorruptError, CheckpointError

from . import bombs

# Orbax leaves tasks behind when a read fails, which say so when they are collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

X, Y = np.random.default_rng(0).random((8, 3), np.float32), np.ones((8, 1), np.float32)
BATCH = 4
MOST_BYTES = 32 << 20
"""How much memory it may take to refuse an array of some bytes."""
OLDER, NEWER = 2, 4
"""The steps that are in the directory: the ends of two epochs."""


def bits(state):
    """All that makes up a state, with its shapes and dtypes."""
    arrays = [
        np.asarray(jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a)
        for a in jax.tree.leaves(state)
    ]
    return [(a.dtype, a.shape, a.tobytes()) for a in arrays]


class Saved(NamedTuple):
    """Two checkpoints, and what is in them by step: the bits of the state, and the note as text."""

    directory: Any
    model: kdist.Model
    contents: dict[int, tuple[Any, str]]

    def files(self):
        """Those of the newer checkpoint, relative to the directory."""
        paths = sorted((self.directory / str(NEWER)).rglob("*"))
        return [path.relative_to(self.directory) for path in paths if path.is_file()]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, devices_of_one):
    directory = tmp_path_factory.mktemp("saved")
    model = kdist.Model(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(1)]))
    model.compile("adam", "mse", metrics=["mae"], distribution=devices_of_one)
    contents = {}
    for epoch, step in enumerate((OLDER, NEWER)):
        model.fit(X, Y, batch_size=BATCH, epochs=epoch + 1, initial_epoch=epoch, verbose=0)
        model.save(directory)
        contents[step] = bits(model.state), repr(RunCheckpoints(directory).note(step))
    return Saved(directory, model, contents)


@pytest.fixture(scope="module")
def devices_of_one():
    return kdist.DataParallel(devices=jax.devices()[:1])


@pytest.fixture
def copy(saved, tmp_path):
    """``copy()``: the two checkpoints, to be damaged; the copy before is gone."""

    def make():
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return shutil.copytree(saved.directory, tmp_path / "copy")

    return make


def restored(directory, saved):
    """Which step is restored, and what was warned of; it must be what was written at that step."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        state, note = RunCheckpoints(directory).restore(saved.model.state)
    step = int(state.step)
    assert (bits(state), repr(note)) == saved.contents[step]
    return step, [str(w.message) for w in said if issubclass(w.category, UserWarning)]


def check(directory, saved):
    """That a damaged directory restores to the newest good checkpoint, and again; whether that is the older one."""
    step, said = restored(directory, saved)
    if step == NEWER:  # the damage does not matter
        assert said == [] and series.numbers(directory) == [OLDER, NEWER]
        return False
    (line,) = said
    assert str(directory / str(NEWER)) in line and f"Step {OLDER} is used, and [{NEWER}] set aside" in line
    assert (directory / f"{NEWER}.corrupt").exists()
    assert restored(directory, saved) == (OLDER, [])
    return True


def flip(path, chance):
    """Flips one bit of a file; False if it has none."""
    content = bytearray(path.read_bytes())
    if content:
        bit = chance.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
    return bool(content)


@pytest.mark.parametrize("flips", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_flipped_bits(saved, copy, flips):
    chance, files, noticed = random.Random(flips), saved.files(), 0
    for number in range(flips):
        directory = copy()
        if flip(directory / files[number % len(files)], chance):
            noticed += check(directory, saved)
    assert noticed > flips / 4  # others are where nobody reads, in copies that Orbax keeps of metadata


def test_flipped_bits_of_the_note(saved, copy):
    """Epochs, losses and what callbacks remember are as much of a run as arrays."""
    name = f"{NEWER}/about/note.json"
    content = (saved.directory / name).read_bytes()
    places = range(content.index(b"position"), content.index(b"callbacks"), 7)
    for place in places:
        directory = copy()
        (directory / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert check(directory, saved), place


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["deleted", "truncated", "emptied"])
def test_every_file(saved, copy, damage):
    noticed = set()
    for name in saved.files():
        directory = copy()
        path = directory / name
        if damage == "deleted":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if damage == "truncated" else 0])
        if check(directory, saved):
            noticed.add(name.name)
    assert {"note.json", "manifest.ocdbt"} <= noticed


@pytest.mark.parametrize("told", [True, False])
def test_an_array_that_would_be_unpacked_to_gigabytes(saved, copy, told):
    directory = copy()
    bombs.put(bombs.frame(3 << 30, told=told), directory / str(NEWER) / "weights", "params.layers_0.kernel")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before = peak_bytes()
    with pytest.raises(CheckpointCorruptError, match="cannot be read"):
        RunCheckpoints(directory).restore(saved.model.state, step=NEWER)
    assert check(directory, saved)
    assert peak_bytes() - before < MOST_BYTES
    gc.collect()  # what Orbax left behind, while that is ignored


def peak_bytes():
    """The most memory that this process has held."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


@pytest.mark.parametrize("damage", ["flipped", "emptied", "deleted", "no directory", "an empty directory"])
def test_a_damaged_step_that_is_asked_for_is_an_error(saved, copy, damage):
    directory = copy()
    step = directory / str(NEWER)
    (data,) = (step / "weights" / "d").iterdir()
    if damage == "flipped":
        content = data.read_bytes()
        data.write_bytes(content[:100] + bytes([content[100] ^ 8]) + content[101:])
    elif damage == "emptied":
        data.write_bytes(b"")
    elif damage == "deleted":
        data.unlink()
    else:
        shutil.rmtree(step)
        if damage == "an empty directory":
            step.mkdir()
    before = bits(saved.model.state)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"{step}"):
            saved.model.restore(directory, step=NEWER)
    assert bits(saved.model.state) == before  # the model is as it was, and so is the directory
    assert saved.model.restore(directory, step=OLDER) == 1
    assert not (directory / f"{NEWER}.corrupt").exists()
    saved.model.restore(saved.directory)


def test_nothing_good_is_an_error_each_time(saved, copy):
    directory = copy()
    for file in directory.rglob("manifest.ocdbt"):
        file.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(CheckpointCorruptError, match=f"No checkpoint in {directory} can be read. Give another"):
            RunCheckpoints(directory).restore(saved.model.state)
    assert series.numbers(directory) == [OLDER, NEWER]


def go_on(saved, directory):
    """Trains on for an epoch, from what is in the directory; what was warned of."""
    backup = BackupAndRestore(directory, delete_checkpoint=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        saved.model.fit(X, Y, batch_size=BATCH, epochs=3, verbose=0, callbacks=backup)
    assert int(saved.model.state.step) == 6
    return [str(w.message) for w in said if issubclass(w.category, UserWarning)]


def test_junk_with_other_names_is_left_alone(saved, copy):
    directory = copy()
    names = ["abc", "7.tmp", "-3", "007", "+7", "7_0", " 7", "\u0667", "5.corrupt", ".7.new"]
    for name in names:
        (directory / name).mkdir()
        (directory / f"{name}.txt").write_text("mine")
    assert restored(directory, saved) == (NEWER, [])
    for _ in range(2):
        assert go_on(saved, directory) == []
        assert series.numbers(directory) == [6]
    assert all((directory / name).is_dir() and (directory / f"{name}.txt").is_file() for name in names)


@pytest.mark.parametrize("name", ["6", "12", "9" * 30])
@pytest.mark.parametrize("what", ["an empty directory", "a directory", "a file"])
def test_junk_named_like_a_later_step_is_set_aside(saved, copy, name, what):
    directory = copy()
    if what == "a file":
        (directory / name).write_text("0")
    else:
        (directory / name).mkdir()
        if what == "a directory":
            (directory / name / "notes.txt").write_text("mine")
    (line,) = go_on(saved, directory)
    assert f"Step {NEWER} is used, and [{name}] set aside" in line
    assert (directory / f"{name}.corrupt").exists()
    assert go_on(saved, directory) == []


@pytest.mark.parametrize("kept", [[], [OLDER]])
def test_a_run_that_was_killed_between_two_renames(saved, copy, kept):
    """Where a step is saved again, the old one is moved away just before the new one is put in its place."""
    directory = copy()
    (directory / str(NEWER)).rename(directory / f".{NEWER}.old")
    shutil.copytree(directory / f".{NEWER}.old", directory / f".{NEWER}.new")
    if not kept:
        shutil.rmtree(directory / str(OLDER))
    with RunCheckpoints(directory, keep=None):
        assert restored(directory, saved) == (NEWER, [])
    assert series.numbers(directory) == [*kept, NEWER]
    assert go_on(saved, directory) == []

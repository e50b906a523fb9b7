"""A disk that is full, a directory that cannot be written, or that another run writes to: a clear error, nothing lost.

A full disk is a limit on the size of files (RLIMIT_FSIZE), which comes in the middle of a run of its own process.
"""

import os
import re
import shutil
import socket
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

import kdist
from kdist.callbacks import BackupAndRestore
from kdist.checkpoint import RunCheckpoints
from kdist.errors import CheckpointError

from .processes import free_port, workers
from .runs import Run
from .training import STEPS, Job

X, Y = np.ones((8, 3), np.float32), np.zeros((8, 1), np.float32)
BOUND = 20
"""The seconds from the end of one of two processes to that of the other."""
FULL = (STEPS + 15, STEPS + 20)
"""The steps that may be the first that does not fit: the disk is full from step 46 on, and one may be under way."""


@pytest.fixture
def fit():
    """``fit(directory)`` trains two steps with a backup after each; the steps that were taken."""

    def fit(directory):
        model = kdist.Model(nn.Dense(1))
        model.compile("adam", "mse", distribution=kdist.DataParallel(devices=jax.devices()[:1]))
        model.build(X)
        try:
            callbacks = BackupAndRestore(directory, save_freq=1, delete_checkpoint=False)
            model.fit(X, Y, batch_size=4, verbose=0, callbacks=callbacks)
        finally:
            steps.append(int(model.state.step))

    steps = fit.steps = []
    return fit


def failed_step(text, run):
    """The step that could not be written; the last error names it, and the process, the host and the cause."""
    error = [line for line in text.splitlines() if line.startswith("kdist.errors.CheckpointError")][-1]
    place = rf"{re.escape(str(run.backup))}/(\d+), on process 0 of host {re.escape(socket.gethostname())}"
    found = re.search(rf"Cannot write training states to {place}: .*File too large", error)
    assert found, error
    return int(found[1])


def test_a_full_disk(tmp_path):
    """An error at the next execution; what was saved before is whole, and the run goes on from there."""
    run = Run(tmp_path / "run", Job("", k=1, save_freq=5, epochs=3))
    with run.start(full=True) as worker:
        assert run.take(worker) == 1, worker.said()
    step = failed_step(worker.said(), run)
    assert step in FULL and str(step - 5) in run.steps() and str(step) not in run.steps()
    assert len(run.losses) < 3 * STEPS  # it is not trained to the end in vain
    run.finish()
    assert run.steps() == [str(3 * STEPS)]  # and what was half written is gone


@pytest.mark.slow
def test_a_full_disk_at_the_end(tmp_path):
    """A fit does not end well whose last save failed."""
    run = Run(tmp_path / "run", Job("", k=1, epochs=2))
    with run.start(full=True) as worker:
        assert run.take(worker) == 1 and run.outcome is None, worker.said()
    assert failed_step(worker.said(), run) == 2 * STEPS
    assert str(STEPS) in run.steps() and len(run.losses) == 2 * STEPS
    run.finish()


@pytest.mark.slow
def test_a_full_disk_of_one_of_two(tmp_path):
    """Process 0 is the one that writes."""
    run = Run(tmp_path / "run", Job("", k=1, save_freq=5))
    coordinator = f"127.0.0.1:{free_port()}"
    made = [run.start(coordinator=coordinator, process_id=i, full=i == 0) for i in range(2)]
    with workers(made) as running:
        codes = [run.take(running[0])]
        ended = time.monotonic()
        codes.append(run.take(running[1]))
        assert time.monotonic() - ended < BOUND
    assert codes == [1, 1], "\n\n".join(worker.said() for worker in running)
    step = failed_step(running[0].said(), run)
    assert "CheckpointError: Cannot write training states" in running[1].said()
    assert step in FULL and str(step - 5) in run.steps()


def test_a_run_in_a_directory_of_another(tmp_path, fit):
    """The second is refused while the first lives, however that ends."""
    run = Run(tmp_path / "run", Job("", data="generator", k=1))
    with run.start(signals=["stall"]) as worker:
        worker.read_until("loss 0")
        with pytest.raises(CheckpointError) as refused:
            fit(run.backup)
        with pytest.raises(CheckpointError):
            fit(run.backup)
        worker.process.kill()
        worker.process.wait()
    said = f"Another run writes to {run.backup}: process {worker.process.pid} on {socket.gethostname()}. End that one"
    assert said in str(refused.value)
    assert fit.steps == [0, 0]
    shutil.rmtree(run.backup)
    fit(run.backup)
    assert fit.steps[-1] == 2


def test_two_runs_of_one_process(tmp_path, fit):
    with RunCheckpoints(tmp_path / "backup"):
        with pytest.raises(CheckpointError, match=f"Another run writes to .*: process {os.getpid()} on "):
            fit(tmp_path / "backup")
    fit(tmp_path / "backup")


def test_a_directory_that_cannot_be_written(fit):
    """Nobody can make one there, root neither."""
    with pytest.raises(CheckpointError, match="^Cannot write checkpoints to /proc/kdist/backup: "):
        fit("/proc/kdist/backup")
    assert fit.steps == [0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission(tmp_path, fit):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match=f"^Cannot write checkpoints to {tmp_path}/backup: .*Permission denied"):
        fit(tmp_path / "backup")
    assert fit.steps == [0]


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_a_file_in_the_place_of_the_directory(tmp_path, fit, below):
    file = tmp_path / "file"
    file.write_text("mine")
    directory = Path(file, below)
    with pytest.raises(CheckpointError, match=f"^Cannot write checkpoints to {directory}: "):
        fit(directory)
    assert fit.steps == [0] and file.read_text() == "mine"

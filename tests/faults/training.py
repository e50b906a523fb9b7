"""A fit that is interrupted, and started again with the same script. Usage: training.py JSON, the fields of a `Job`.

It prints a line for every execution, ``loss EPOCH BATCH VALUES``, and at the end one with all that the run came to.
"""

import dataclasses
import hashlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import kdist
from kdist.checkpoint.directory import by_path
from kdist.data import stream

FOREVER = 120.0
"""Longer than any test waits."""
BATCH, STEPS = 4, 30
THIRD_EPOCH = 6 * STEPS
"""A read of a row in the third epoch, where each of two processes reads two rows a step, and 36 before training."""
FILE_BYTES = 4096
"""The size of a file at which a full disk is full."""


@dataclasses.dataclass
class Job:
    """What is run, and what goes wrong.

    Attributes:
        directory: Of the backup.
        data: "arrays", "source" (with no, one or two workers: "source 0", ...) or "generator".
        k: The steps of an execution.
        save_freq: Of the backup.
        epochs: Of the fit.
        validated: Whether epochs are validated; by a "generator" where the data are one.
        signals: The phases in each of which SIGTERM comes once: "compile", "train", "validation", "save" (before it
            begins), "background" (while it is written), "stall" (of the input) or "stalled validation".
        stalls: "stall" or "stalled validation", without a signal of its own.
        handles: Whether the script has a handler of its own for it.
        full: Whether the disk is full from the second epoch on.
        coordinator: Where two processes meet; empty for one.
        process_id: Which of them this is.
    """

    directory: str
    data: str = "arrays"
    k: int = 2
    save_freq: int | str = "epoch"
    epochs: int = 3
    validated: bool = False
    signals: list[str] = dataclasses.field(default_factory=list)
    stalls: str = ""
    handles: bool = False
    full: bool = False
    coordinator: str = ""
    process_id: int = 0


class Phases:
    """Sends this process SIGTERM in each of some phases, once.

    Attributes:
        left: The phases that are still to come.
        stalls: The one in which the input stalls, and a signal comes from outside.
        pause: Seconds that a batch takes, from a signal on: two processes agree in a second or two on where they end,
            and training is not to be over by then.
        epoch: The epoch that is trained; -1 before the first.
    """

    def __init__(self) -> None:
        self.left: list[str] = []
        self.stalls = ""
        self.pause = 0.0
        self.epoch = -1

    def reach(self, phase: str) -> None:
        if phase in self.left:
            self.left.remove(phase)
            print(f"signalled at {time.time()}", flush=True)
            self.pause = 0.1 if jax.process_count() > 1 else 0.0
            os.kill(os.getpid(), signal.SIGTERM)

    def block(self, phase: str) -> None:
        """Where an input stalls, if it is to."""
        if phase in self.left:
            threading.Timer(0.5, self.reach, [phase]).start()
        elif phase == self.stalls:
            print("stalled", flush=True)
        else:
            return
        time.sleep(FOREVER)


PHASES = Phases()


class Net(nn.Module):
    """A model with dropout, large enough that its files do not fit a full disk."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if train and PHASES.epoch >= 0:
            PHASES.reach("compile")  # it is being traced
        x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(1)(nn.Dropout(0.25, deterministic=not train)(x))


class Backup(kdist.callbacks.BackupAndRestore):
    """A backup with phases, from the second epoch on."""

    def save_run(self, epoch: int, step: int, *, last: bool = False) -> None:
        first = (epoch, step) <= (1, 0)
        if not first:
            PHASES.reach("save")
        super().save_run(epoch, step, last=last)
        print(f"saved {int(self.model.state.step)}", flush=True)
        if not first:
            PHASES.reach("background")


class Reporter(kdist.callbacks.Callback):
    """Prints the losses; reaches phases in the middle of the second epoch."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        PHASES.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        print(f"loss {PHASES.epoch} {batch} {json.dumps(logs)}", flush=True)
        time.sleep(PHASES.pause)
        if PHASES.epoch == 1 and batch >= STEPS // 2:
            PHASES.reach("train")
            if self.job.full:
                resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, resource.RLIM_INFINITY))

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if PHASES.epoch == 1:
            PHASES.reach("validation")


def rows() -> tuple[np.ndarray, np.ndarray]:
    """One row more than fills all batches but the last."""
    rng = np.random.default_rng(0)
    n = BATCH * (STEPS - 1) + 1
    return rng.random((n, 6), np.float32), rng.random((n, 1), np.float32)


class Source(list[tuple[np.ndarray, np.ndarray]]):
    """Rows by number; on each of two processes it stalls when a third epoch is read."""

    reads = 0

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        self.reads += 1
        if self.reads == THIRD_EPOCH:
            PHASES.block("stall")
        return super().__getitem__(index)


def generate() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Other batches in every epoch; it stalls in the second one."""
    rng = np.random.default_rng(1)
    for number in range(1000):
        if number == STEPS + STEPS // 2:
            PHASES.block("stall")
        yield rng.random((BATCH, 6), np.float32), rng.random((BATCH, 1), np.float32)


def generate_validation() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows, for every epoch anew; it stalls in the second one."""
    x, y = rows()
    yield x, y
    if PHASES.epoch == 1:
        PHASES.block("stalled validation")
    yield x, y


def fit(model: kdist.Model, job: Job) -> kdist.callbacks.History:
    """Trains on the data of the job."""
    x, y = rows()
    callbacks = [Reporter(job), Backup(job.directory, job.save_freq, delete_checkpoint=False)]
    how = {"epochs": job.epochs, "verbose": 0, "callbacks": callbacks}
    if job.validated:
        generated = job.data == "generator"
        how |= {"validation_data": generate_validation if generated else (x, y)}
        how |= {} if generated else {"validation_batch_size": BATCH}
    if job.data == "arrays":
        return model.fit(x, y, batch_size=BATCH, **how)
    if job.data == "generator":
        return model.fit(generate(), steps_per_epoch=STEPS, **how)
    workers = int(job.data.removeprefix("source "))
    source = Source(zip(x, y, strict=True))
    return model.fit(kdist.data.from_source(source, batch_size=BATCH, workers=workers), **how)


def digests(tree: Any) -> dict[str, str]:
    """A digest of every array, by its path."""

    def digest(a: Any) -> str:
        bits = jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a
        return hashlib.sha256(np.asarray(bits).tobytes()).hexdigest()

    return {path: digest(a) for path, a in by_path(tree).items()}


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    if job.handles:
        signal.signal(signal.SIGTERM, lambda number, frame: print("own handler", flush=True))
    if job.coordinator:
        kdist.initialize(job.coordinator, 2, job.process_id, initialization_timeout=60)
        stream.MAX_STREAM_STEPS = 10  # several chunks in an epoch
    PHASES.left, PHASES.stalls = job.signals, job.stalls
    model = kdist.Model(Net())
    model.compile("adam", "mse", metrics=["mae"], steps_per_execution=job.k)
    history = fit(model, job)
    state = dataclasses.asdict(model.state)
    print("end " + json.dumps({"state": digests(state), "history": history.history, "epoch": history.epoch}))


if __name__ == "__main__":
    main()

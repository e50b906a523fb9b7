"""What checkpoints cost: ratios against the same run without them, a copy to the host and Orbax alone.

    python tools/bench_checkpoint.py                        # the whole table
    python tools/bench_checkpoint.py --rows save restore    # rows whose names start so

`measure.py` measures the two sides of a row in turn and prints the ratio.  The state is that of Adam for an MLP, 50 MB,
on one device; checkpoints are written to the directory for temporary files.

Both sides share the machine with whatever else runs on it, the disk too: leave it alone meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import baselines
import jax
import jax.numpy as jnp
import measure
import numpy as np
from measure import Row, Side, noise, timed

import kdist
from kdist.checkpoint import RunCheckpoints, load_state, save_state
from kdist.checkpoint.directory import stored
from kdist.checkpoint.fingerprints import fingerprints
from kdist.checkpoint.state import trees_of
from kdist.watchdog import VARIABLE

BATCH_SIZE = 128


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much each row computes."""

    layers: tuple[int, ...] = (2048, 1200)  # with Adam's moments, 50 MB
    save_rows: int = 15_000
    save_epochs: int = 3
    watch_rows: int = 60_000
    watch_epochs: int = 4
    rounds: int = 7


FULL = Sizes()
QUICK = Sizes(layers=(64,), save_rows=500, save_epochs=2, watch_rows=500, watch_epochs=1, rounds=1)


def compiled(layers: tuple[int, ...]) -> kdist.Model:
    """An MLP, ready to train."""
    model = kdist.Model(baselines.MLP(layers))
    model.compile("adam", kdist.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def directory() -> Path:
    """A new one, for as long as this process lives."""
    path = tempfile.mkdtemp(prefix="kdist-bench-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


def fit_side(layers: tuple[int, ...], rows: int, epochs: int, make: Callable[[], list[Any]]) -> Side:
    """Seconds an epoch of `fit` with callbacks that are made for each call."""
    model, (x, y) = compiled(layers), noise(rows, 784)
    return timed(lambda: model.fit(x, y, batch_size=BATCH_SIZE, epochs=epochs, verbose=0, callbacks=make()), epochs)


def trained(sizes: Sizes) -> kdist.TrainState:
    """A state whose moments are not zero."""
    model = compiled(sizes.layers)
    model.fit(*noise(BATCH_SIZE, 784), batch_size=BATCH_SIZE, verbose=0)
    return jax.block_until_ready(model.state)


# Sides -------------------------------------------------------------------------------------------


def saving_each_epoch(sizes: Sizes) -> tuple[Side, Side]:
    path = directory()
    plain = (sizes.layers, sizes.save_rows, sizes.save_epochs)
    return fit_side(*plain, lambda: [kdist.callbacks.BackupAndRestore(path)]), fit_side(*plain, list)


def saves(sizes: Sizes) -> Iterator[Callable[[], RunCheckpoints]]:
    """Beginnings of saves, each of a later step, of which none is under way."""
    state = trained(sizes)
    checkpoints = RunCheckpoints(directory())
    checkpoints.open()
    atexit.register(checkpoints.close)
    for step in itertools.count(1):
        later = dataclasses.replace(state, step=jnp.int32(step))
        checkpoints.finish()

        def begin(later: kdist.TrainState = later) -> RunCheckpoints:
            checkpoints.save(later, {"epoch": 1})
            return checkpoints

        yield begin


def blocked_in_a_save(sizes: Sizes) -> tuple[Side, Side]:
    begins, state = saves(sizes), trained(sizes)
    leaves = stored(state).values()

    def copy() -> None:
        for leaf in leaves:
            np.array(leaf)  # on a CPU `jax.device_get` copies nothing

    def ours() -> float:
        begin = next(begins)
        began = time.perf_counter()
        begin()
        return time.perf_counter() - began

    return ours, timed(copy)


def fingerprints_in_a_save(sizes: Sizes) -> tuple[Side, Side]:
    trees = {name: stored(tree) for name, tree in trees_of(trained(sizes)).items()}
    begins, arrays = saves(sizes), {(tree, name): a for tree in trees for name, a in trees[tree].items()}

    def save() -> float:
        begin = next(begins)
        began = time.perf_counter()
        begin().finish()
        return time.perf_counter() - began

    return timed(lambda: fingerprints(arrays)), save


def restoring(sizes: Sizes) -> tuple[Side, Side]:
    from orbax.checkpoint import v1 as ocp

    state, path = trained(sizes), directory() / "state"
    save_state(path, state, {})
    like = {
        name: {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for n, a in stored(tree).items()}
        for name, tree in trees_of(state).items()
    }
    return (
        timed(lambda: jax.block_until_ready(load_state(path, state)[0])),
        timed(lambda: jax.block_until_ready(ocp.load_checkpointables(path, like))),
    )


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Without a watchdog."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "0"
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


def watching(sizes: Sizes) -> tuple[Side, Side]:
    """A run that listens for SIGTERM after each execution, and is watched, but never saves before its end."""
    path, plain = directory(), ((128,), sizes.watch_rows, sizes.watch_epochs)
    without = fit_side(*plain, list)

    def theirs() -> float:
        with unwatched():
            return without()

    return fit_side(*plain, lambda: [kdist.callbacks.BackupAndRestore(path, save_freq=1 << 30)]), theirs


# The table ---------------------------------------------------------------------------------------

ROWS: list[Row] = [
    Row(
        "save",
        "fit, a state of 50 MB saved each epoch by BackupAndRestore",
        "fit alone",
        saving_each_epoch,
        at_most=1.05,
        unit="epoch",
    ),
    Row(
        "blocked",
        "time until a save of 50 MB lets go",
        "a copy to the host",
        blocked_in_a_save,
        at_most=1.3,
        unit="call",
    ),
    Row("fingerprints", "fingerprints of 50 MB", "a save of them", fingerprints_in_a_save, at_most=0.2, unit="call"),
    Row("restore", "load_state, 50 MB", "Orbax alone", restoring, at_most=1.3, unit="call"),
    Row(
        "watch",
        "fit at auto K, listening for SIGTERM and watched",
        "fit alone, KDIST_HANG_SECONDS=0",
        watching,
        at_most=1.01,
        unit="epoch",
    ),
]


if __name__ == "__main__":
    measure.main(__doc__, ROWS, FULL, QUICK)

"""One of two processes that save, until one has a full disk. Usage: filling.py COORDINATOR ID FULL DIRECTORY.

It prints ``failed STEP MESSAGE`` when `fit` raises.
"""

import resource
import sys
import time
from pathlib import Path

import flax.linen as nn
import numpy as np

import kdist
from kdist.callbacks import BackupAndRestore, LambdaCallback
from kdist.errors import CheckpointError

FILE_BYTES = 4096
"""The size of a file at which a full disk is full."""
EPOCHS, FITTING = 200, 2
"""So many epochs there would be, and so many are saved before it is full."""
STEPS, STEP_SECONDS = 10, 0.1
"""How many steps an epoch has, each an execution, and how long each of those takes at least."""


def fill(epoch: int, logs: object) -> None:
    if epoch == FITTING:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, resource.RLIM_INFINITY))


def main() -> None:
    coordinator, process_id, full, directory = sys.argv[1:]
    kdist.initialize(coordinator, 2, int(process_id), initialization_timeout=60)
    model = kdist.Model(nn.Sequential([nn.Dense(128), nn.Dense(1)]))
    distribution = kdist.DataParallel(zero_stage=1)  # so that both have something to write
    model.compile("adam", "mse", distribution=distribution, steps_per_execution=1)
    x, y = np.random.default_rng(0).random((8 * STEPS, 64), np.float32), np.ones((8 * STEPS, 1), np.float32)
    callbacks = [
        BackupAndRestore(Path(directory)),
        LambdaCallback(on_train_batch_end=lambda batch, logs: time.sleep(STEP_SECONDS)),
        *([LambdaCallback(on_epoch_end=fill)] if full == process_id else []),
    ]
    try:
        model.fit(x, y, batch_size=8, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    except CheckpointError as error:
        print(f"failed {int(model.state.step)} {error}", flush=True)
        raise


if __name__ == "__main__":
    main()

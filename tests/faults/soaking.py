"""A long fit that saves often, and says after each epoch what it holds. Usage: soaking.py DIRECTORY EPOCHS."""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

import kdist

BATCH, STEPS, SAVE_FREQ = 4, 500, 20
SHARED = Path("/dev/shm")


class Meter(kdist.callbacks.Callback):
    """Prints what the process holds at the end of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.shared: set[str] = set()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        gc.collect()
        self.shared |= mapped()
        held = {
            "step": int(self.model.state.step),
            "memory": memory(),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "shared": sum((SHARED / name).exists() for name in self.shared),
        }
        print("held " + json.dumps(held), flush=True)


def memory() -> int:
    """Bytes of this process in memory that are its own."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def processes() -> list[str]:
    """This process and those that it started."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return ["self", *children]


def mapped() -> set[str]:
    """The names of the shared memory that these have mapped or opened."""
    names = set()
    for process in processes():
        try:
            lines = Path(f"/proc/{process}/maps").read_text().splitlines()
            lines += [os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()]
        except OSError:  # it has just ended
            continue
        names |= {line.split(f"{SHARED}/")[1] for line in lines if f"{SHARED}/" in line and "(deleted)" not in line}
    return names


def main() -> None:
    directory, epochs = sys.argv[1], int(sys.argv[2])
    rng = np.random.default_rng(0)
    rows = [(rng.random(6, np.float32), rng.random(1, np.float32)) for _ in range(BATCH * STEPS)]
    model = kdist.Model(nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(1)]))
    model.compile("adam", "mse", steps_per_execution=1)
    loader = kdist.data.from_source(rows, batch_size=BATCH, workers=2, use_multiprocessing=True)
    backup = kdist.callbacks.BackupAndRestore(directory, save_freq=SAVE_FREQ)
    model.fit(loader, epochs=epochs, verbose=0, callbacks=[Meter(), backup])


if __name__ == "__main__":
    main()

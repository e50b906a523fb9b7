"""One process that joins a run, or is to be refused; prints what came of it as one JSON line, and how long it took.

Usage: start.py ADDRESS NUM_PROCESSES PROCESS_ID SECONDS [WHAT].  WHAT: "agree" compares values afterwards, "old" says
that this process has another version of optax, "config" trains with other arguments on process 1, and "cache" trains
with the compile cache of the environment.
"""

import json
import os
import sys
import time

import numpy as np

import kdist
from kdist.distribution import check_agreement, rendezvous
from kdist.errors import DistributionError
from kdist.versions import installed


def compared(process_id: int, processes: int) -> dict:
    """What is said of values that differ, and the seconds that it takes where none does."""
    check_agreement(warm="up")
    began = time.perf_counter()
    for _ in range(5):
        check_agreement(epochs=3, code="x" * 5000)
    seconds = (time.perf_counter() - began) / 5
    found = {"seconds": seconds}
    last = int(process_id == processes - 1)
    cases = {
        "one": {"epochs": 3 + last, "batch_size": 8},
        "two": {"epochs": 3 + last, "code": "x" * 5000 + str(last)},
        "a name": {"epochs": 3, f"name {last}": 1},
    }
    for name, values in cases.items():
        try:
            check_agreement(**values)
        except DistributionError as error:
            found[name] = str(error)
    check_agreement(still="well")
    return found


def trained(process_id: int) -> dict:
    """What is said of processes that train with other arguments."""
    import flax.linen as nn

    x = np.ones((8, 3), np.float32)
    found = {}
    for name, seed, arguments in (("seed", process_id, {}), ("microbatches", 0, {"microbatches": 1 + process_id})):
        model = kdist.Model(nn.Dense(1), seed=seed)
        model.compile("sgd", "mse", **arguments)
        try:
            model.fit(x, x[:, :1], batch_size=4, epochs=1, verbose=0)
        except DistributionError as error:
            found[name] = [str(error), sum(model._trainer.traces.values())]
    return found


def cached() -> str | None:
    """The compile cache that a training has used."""
    import flax.linen as nn
    import jax

    x = np.ones((8, 3), np.float32)
    model = kdist.Model(nn.Dense(1))
    model.compile("sgd", "mse")
    model.fit(x, x[:, :1], batch_size=4, epochs=1, verbose=2)
    return jax.config.jax_compilation_cache_dir


def main() -> None:
    address, processes, process_id, seconds = sys.argv[1], *map(int, sys.argv[2:5])
    what = sys.argv[5] if len(sys.argv) > 5 else ""
    if what == "old":
        rendezvous.installed = lambda: installed() | {"optax": "0.0.1"}
    began, found = time.monotonic(), {"error": None}
    try:
        if address == "environment":
            kdist.initialize(initialization_timeout=seconds)
        else:
            kdist.initialize(address, processes, process_id, initialization_timeout=seconds)
    except DistributionError as error:
        found["error"] = str(error)
    found["seconds"] = time.monotonic() - began
    if found["error"] is None:
        import jax

        found["joined"] = [jax.process_index(), jax.process_count()]
        found["compared"] = compared(process_id, processes) if what == "agree" else None
        found["cache"] = cached() if what == "cache" else None
        found["trained"] = trained(process_id) if what == "config" else None
    print(json.dumps(found), flush=True)
    if found["error"]:
        os._exit(1)


if __name__ == "__main__":
    main()

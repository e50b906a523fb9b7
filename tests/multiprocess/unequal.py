"""One process of a run whose processes have unequal batches of their own; prints what came of it as one JSON line.

Usage: unequal.py COORDINATOR NUM_PROCESSES PROCESS_ID.
"""

import json
import sys
import warnings

import flax.linen as nn
import jax
import numpy as np

import kdist
from kdist.data import from_batches

CASES = {
    # name: rows of the batches of each process, which share their number of them; batch statistics, steps at a time, K
    "batch statistics": (((8, 8, 8, 4, 4), (8, 4, 8, 8, 8)), True, 2, 2),
    "no batch statistics": (((8, 3, 8, 9, 5), (8, 8, 5, 2, 8)), False, 2, 1),
}


class Model(nn.Module):
    """With batch statistics, or without."""

    statistics: bool

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train)(x) if self.statistics else x)


def batches(process, sizes):
    """The batches of a process; no row is like another."""
    draw = np.random.default_rng(process)
    for size in sizes:
        x = draw.normal(size=(size, 3)).astype(np.float32)
        yield x, x[:, :1] * 2 - 1


def model(statistics=False, k="auto"):
    made = kdist.Model(Model(statistics), seed=0)
    made.compile("sgd", "mse", steps_per_execution=k)
    return made


def trained(loader, *arguments):
    """Weights and losses, the steps of each epoch, and what was said."""
    made, steps = model(*arguments), []
    count = kdist.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: steps.append(made.optimizer.iterations))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = made.fit(loader, epochs=2, verbose=0, callbacks=[count]).history
    weights = [w.tolist() for w in made.get_weights()]
    return {"weights": weights, "loss": history["loss"], "steps": steps}, [str(w.message) for w in caught]


def refused(make):
    """What is said of batches whose type changes on process 1 alone."""

    def changing():
        for n, (x, y) in enumerate(batches(0, [8] * 6)):
            yield x, y.astype(np.int32) if n >= 3 and not kdist.is_main_process() else y

    try:
        model().fit(make(changing), verbose=0)
    except kdist.errors.KDistError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    coordinator, num_processes, process_id = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    kdist.initialize(coordinator, num_processes, process_id, initialization_timeout=60, heartbeat_timeout=20)
    me, found, said = jax.process_index(), {}, {}
    for name, (sizes, statistics, ahead, k) in CASES.items():
        loader = from_batches(lambda sizes=sizes: batches(me, sizes[me]), per_process=True, max_queue_size=ahead)
        found[name], said[name] = trained(loader, statistics, k)
    shorter = from_batches(list(batches(me, [8] * (5 - me))), per_process=True)  # as a loader of torch, with a length
    found["one is shorter"], said["one is shorter"] = trained(shorter)
    refusals = [refused(make) for make in (from_batches, lambda made: from_batches(made, per_process=True))]
    print(json.dumps({"found": found, "said": said, "refusals": refusals}))


if __name__ == "__main__":
    main()

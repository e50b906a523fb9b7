"""One process of a run: joins the others through kdist.initialize, trains, and prints its numbers as one JSON line.

Usage: worker.py COORDINATOR NUM_PROCESSES PROCESS_ID. The tests also call `numbers` in their own, single process.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

import kdist
from kdist.data.arrays import ArrayLoader

sys.path.insert(0, str(Path(__file__).parents[1] / "laws"))

RUNS = {
    # name: model, arguments of it, of compile, of the loader; neither 27 nor 43 rows divide by anything here
    "resident": ("mlp", "linen", {"batch_norm": True, "dropout": 0.25}, {}, 27, {"batch_size": 10, "cache": True}),
    "streamed": (
        "mlp",
        "nnx",
        {"batch_norm": True},
        {"steps_per_execution": 3, "microbatches": 2},
        43,
        {"batch_size": 5, "cache": False},
    ),
    "chain": ("cnn", "linen", {}, {"steps_per_execution": 11}, 43, {"batch_size": 2, "cache": True}),
}


class CountedLoader(ArrayLoader):
    """Arrays, and how many rows of them were read for the chunks of steps."""

    counts = {"rows": 0}

    def read(self, rows):
        if np.ndim(rows) == 2:
            self.counts["rows"] += np.size(rows)
        return super().read(rows)


def numbers(name: str) -> dict:
    """What a run gives: lists and floats, fit for JSON."""
    from models import crossentropy, data, make

    family, kind, module, arguments, rows, feeding = RUNS[name]
    x, y, weight = data(rows, images=family == "cnn")
    model = make(family, kind, **module)
    model.compile(
        kdist.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=1.0),
        crossentropy(),
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
        **arguments,
    )
    loader = kdist.data.from_arrays(x, y, weight, seed=3, **feeding)
    counted = CountedLoader(**vars(loader))
    CountedLoader.counts["rows"] = 0
    history = model.fit(counted, epochs=2, validation_data=(x[:13], y[:13]), verbose=0).history
    return {
        "history": history,
        "rows_read": CountedLoader.counts["rows"],
        "weights": [w.tolist() for w in model.get_weights()],
        "evaluate": model.evaluate(x, y, feeding["batch_size"], 0, weight),
        "predict": model.predict(x, feeding["batch_size"], 0).tolist(),
        "on_batch": model.train_on_batch(x[:7], y[:7], weight[:7]),
    }


def main() -> None:
    coordinator, num_processes, process_id = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    kdist.initialize(coordinator, num_processes, process_id, initialization_timeout=60, heartbeat_timeout=20)
    about = {
        "process_count": jax.process_count(),
        "devices": [jax.device_count(), jax.local_device_count()],
        "main": kdist.is_main_process(),
    }
    print(json.dumps({"about": about, "runs": {name: numbers(name) for name in RUNS}}))


if __name__ == "__main__":
    main()

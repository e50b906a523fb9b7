"""One process of a run: joins the others through kdist.initialize, trains, and prints its numbers as one JSON line.

Usage: worker.py COORDINATOR NUM_PROCESSES PROCESS_ID. The tests also call `numbers` in their own, single process.
"""

import json
import sys
import warnings
from pathlib import Path

import grain
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
        {"steps_per_execution": 3, "microbatches": 2, "distribution": kdist.DataParallel(3)},
        43,
        {"batch_size": 5, "cache": False},
    ),
    "windows": (
        "mlp",
        "linen",
        {},
        {"steps_per_execution": 2, "distribution": kdist.DataParallel(3, replicas=2)},
        43,
        {"batch_size": 6, "steps": 3, "cache": False},
    ),
    "chain": ("cnn", "linen", {}, {"steps_per_execution": 11}, 43, {"batch_size": 2, "cache": True}),
}


STREAMS = {
    # name: the sizes of the batches, those that process 1 lacks at the end, arguments of compile, of fit
    "steps": (
        (5, 3, 8, 5, 2, 6, 5, 1, 4),
        0,
        {"steps_per_execution": 2},
        {"steps_per_epoch": 4, "epochs": 2, "class_weight": {0: 0.5, 2: 3.0}},
    ),
    "one ends earlier": ((5, 3, 4, 20), 1, {}, {"epochs": 2}),  # before the longest batch
    "one ends inside an epoch": ((4,) * 7, 2, {"steps_per_execution": 2}, {"steps_per_epoch": 3, "epochs": 4}),
}
"""Generators; what both have is the data of one process."""


SOURCES = ("rows", "rows of each", "batches of each")
"""Random transforms of rows that all have; rows, and then batches, that each process has its own part of."""
PARTS, PART = 2, 5


class Jitter(grain.transforms.RandomMap):
    """Noise that depends on the row and the epoch."""

    def random_map(self, element, rng):
        x, y = element
        return x + rng.normal(size=x.shape).astype(np.float32), y


def parts_of(x, y):
    """The rows of each process: five of ten in turn, as the batches of ten of one process hold them."""
    steps = len(x) // (PARTS * PART)
    turns = [a[: steps * PARTS * PART].reshape(steps, PARTS, PART, *a.shape[1:]) for a in (x, y)]
    return [tuple(a[:, part].reshape(-1, *a.shape[3:]) for a in turns) for part in range(PARTS)]


def source_numbers(name: str) -> dict:
    """What training on rows by number gives, and on data that each process has a part of."""
    from models import crossentropy, data, make

    x, y, _ = data(43)
    model = make("mlp", "linen")
    model.compile(kdist.optimizers.SGD(0.1, momentum=0.9), crossentropy(), metrics=["accuracy"])
    several, said = jax.process_count() > 1, []
    if name == "rows":
        rows = list(zip(x, y, strict=True))
        loader = kdist.data.from_source(rows, batch_size=10, seed=3, transforms=[Jitter()], workers=2)
    else:
        parts = parts_of(x, y)
        first = jax.process_index() == 0
        mine = parts[jax.process_index()] if several else (x[:40], y[:40])
        if several and first:  # which has three rows more than the other, and they are too many
            mine = tuple(np.concatenate([a, a[:3]]) for a in mine)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if name == "rows of each":
                rows = list(zip(*mine, strict=True))
                loader = kdist.data.from_source(rows, batch_size=10, shuffle=False, per_process=several)
            else:
                size = PART if several else PARTS * PART
                sizes = [size] * 4 + [3] * (several and first)
                loader = kdist.data.from_batches(lambda: generate(sizes, *mine), per_process=several)
        said = [str(w.message)[:60] for w in caught]
    history = model.fit(loader, epochs=2, verbose=0, validation_data=loader).history
    return {
        "history": history,
        "weights": [w.tolist() for w in model.get_weights()],
        "evaluate": model.evaluate(loader, verbose=0),
        "said": said,
    }


def refusals() -> dict:
    """What is said of data that are not alike; every process must hear of it, and go on."""
    from models import crossentropy, data, make

    x, y, _ = data(43)
    model = make("mlp", "linen")
    model.compile("sgd", crossentropy())
    main, said = kdist.is_main_process(), {}
    wrong = {
        "dtype": lambda: kdist.data.from_batches([(x[:8], y[:8] if main else y[:8].astype(np.float32))] * 2),
        "batch size": lambda: kdist.data.from_batches([(x[:8], y[:8]) if main else (x[:6], y[:6])] * 2),
        "rows": lambda: kdist.data.from_source(list(zip(x, y, strict=True))[: 43 if main else 42]),
        "predict": lambda: kdist.data.from_source(x[:40], batch_size=8, per_process=True),
    }
    for name, make_loader in wrong.items():
        try:
            model.predict(make_loader(), verbose=0) if name == "predict" else model.fit(make_loader(), verbose=0)
        except kdist.errors.KDistError as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


class CountedLoader(ArrayLoader):
    """Arrays, and how many rows of them were read for the chunks of steps."""

    counts = {"rows": 0}

    def read(self, rows):
        if np.ndim(rows) == 2:
            self.counts["rows"] += np.size(rows)
        return super().read(rows)


def generate(sizes, *arrays):
    """Batches of these sizes from the first rows on."""
    for stop, size in zip(np.cumsum(sizes), sizes, strict=True):
        yield tuple(a[stop - size : stop] for a in arrays)


def stream_numbers(name: str) -> dict:
    """What training on a generator gives, what is said when it ends, and the rows of a chunk that lie here."""
    from models import crossentropy, data, make

    sizes, lacking, arguments, fitting = STREAMS[name]
    common = sizes[: len(sizes) - lacking]
    x, y, _ = data(sum(sizes))
    model = make("mlp", "linen")
    model.compile(kdist.optimizers.SGD(0.1, momentum=0.9), crossentropy(), metrics=["accuracy"], **arguments)
    first_of_several = jax.process_count() > 1 and kdist.is_main_process()
    batches = generate(sizes if first_of_several else common, x, y)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = model.fit(batches, verbose=0, validation_data=lambda: generate(common, x, y), **fitting).history
    size = 16
    loader = kdist.data.from_batches([(x[:size], y[:size])])
    with kdist.data.StreamFeeder(loader, kdist.DataParallel(), multiple=8) as feeder:
        (chunk,) = feeder.chunks(0)
        shards = chunk.feed.rows.x.addressable_shards
    return {
        "history": history,
        "weights": [w.tolist() for w in model.get_weights()],
        "evaluate": model.evaluate(generate(common, x, y), verbose=0),
        "predict": model.predict(generate(common, x), verbose=0).tolist(),
        "said": [str(w.message).split(":")[1].strip()[:40] for w in caught if "ran out of data" in str(w.message)],
        "placed": sorted(row for shard in shards for row in range(*shard.index[1].indices(size))),
    }


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
    runs = {name: numbers(name) for name in RUNS}
    streams = {name: stream_numbers(name) for name in STREAMS}
    sources = {name: source_numbers(name) for name in SOURCES}
    print(json.dumps({"about": about, "runs": runs, "streams": streams, "sources": sources, "refusals": refusals()}))


if __name__ == "__main__":
    main()

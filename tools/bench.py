"""How fast kdist is: ratios against hand-written JAX and against Keras, each measured in one run.

    pip install -e '.[bench]'
    python tools/bench.py                    # the whole table
    python tools/bench.py --rows mnist cnn   # rows whose names start so

`measure.py` measures the two sides of a row in turn and prints the ratio.  A side's time is that of
whole calls, from arrays on the host to results on the host, so nothing is left running when the clock
stops.  Time is given by the optimizer step (or batch) where there are steps.  What is compared with is
in `baselines.py`.

Both sides share the machine with whatever else runs on it: leave it alone meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import io
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import baselines
import jax
import measure
import numpy as np
from measure import Row, Side, fastest, in_fresh_process, noise, timed

import kdist

# What is measured --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much each row computes; an epoch's rows are never a multiple of its batch, as in life."""

    digits_rows: int = 1797
    digits_epochs: int = 40
    mnist_rows: int = 60_000
    mnist_epochs: int = 2
    cnn_rows: int = 4000
    cnn_width: int = 16
    devices_rows: int = 12_000
    evaluate_calls: int = 10
    rounds: int = 9


FULL = Sizes()
QUICK = Sizes(
    digits_rows=200,
    digits_epochs=2,
    mnist_rows=1000,
    mnist_epochs=1,
    cnn_rows=150,
    cnn_width=4,
    devices_rows=1000,
    evaluate_calls=1,
    rounds=1,
)

# Data and models ---------------------------------------------------------------------------------

DIGITS = (64, 32)
MNIST = (128,)


def digits(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits, 64 pixels each."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32)[: sizes.digits_rows], y.astype(np.int32)[: sizes.digits_rows]


def compiled(module: Any, **arguments: Any) -> kdist.Model:
    """The module in kdist, ready to train."""
    model = kdist.Model(module)
    loss = kdist.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, **{"metrics": ["accuracy"], **arguments})
    return model


# Sides -------------------------------------------------------------------------------------------


def fit_side(
    module: Any, x: np.ndarray, y: np.ndarray, batch_size: int, epochs: int, *, verbose: Any = 0, **arguments: Any
) -> Side:
    """A `fit` of kdist's; `cache` and `callbacks` go to fit, other arguments to compile."""
    given = {name: arguments.pop(name) for name in ("cache", "callbacks") if name in arguments}
    model = compiled(module, **arguments)

    def fit() -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # no terminal: plain lines
            model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=verbose, **given)

    return timed(fit, epochs * steps(x, batch_size))


def digits_metrics(sizes: Sizes) -> tuple[Side, Side]:
    """With five metrics and three callbacks that act at epochs, against none of either."""
    x, y = digits(sizes)
    metrics = [
        "accuracy",
        kdist.metrics.SparseTopKCategoricalAccuracy(k=3, name="top_3"),
        kdist.metrics.SparseTopKCategoricalAccuracy(k=5, name="top_5"),
        kdist.metrics.SparseCategoricalCrossentropy(from_logits=True),
        kdist.metrics.MeanMetric(lambda y_true, y_pred: y_pred.max(-1), name="largest_logit"),
    ]
    directory = tempfile.mkdtemp(prefix="kdist-bench-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    callbacks = [
        kdist.callbacks.EarlyStopping(monitor="loss", patience=1000),
        kdist.callbacks.ReduceLROnPlateau(monitor="loss", patience=1000),
        kdist.callbacks.CSVLogger(Path(directory, "log.csv")),
    ]
    run = functools.partial(fit_side, baselines.MLP(DIGITS), x, y, 32, sizes.digits_epochs)
    return run(metrics=metrics, callbacks=callbacks), run(metrics=[])


def hand_side(fit: baselines.Fit, x: np.ndarray, batch_size: int, epochs: int) -> Side:
    """A hand-written fit."""
    return timed(lambda: fit(epochs), epochs * steps(x, batch_size))


def steps(x: np.ndarray, batch_size: int) -> int:
    """Batches of an epoch."""
    return -(-len(x) // batch_size)


def resident_side(module: Any, x: np.ndarray, y: np.ndarray, batch_size: int, epochs: int) -> Side:
    """The better of two whole-epoch scans."""
    fits = [baselines.resident_fit(module, x, y, batch_size, gather=gather) for gather in ("once", "each")]
    return fastest([hand_side(fit, x, batch_size, epochs) for fit in fits])


def digits_fit(sizes: Sizes, *, verbose: Any) -> tuple[Side, Side]:
    module, (x, y), epochs = baselines.MLP(DIGITS), digits(sizes), sizes.digits_epochs
    return fit_side(module, x, y, 32, epochs, verbose=verbose), resident_side(module, x, y, 32, epochs)


def digits_fit_keras(sizes: Sizes) -> tuple[Side, Side]:
    (x, y), epochs = digits(sizes), sizes.digits_epochs
    peer = baselines.keras_mlp(64, DIGITS, steps_per_execution=32)
    theirs = timed(lambda: peer.fit(x, y, batch_size=32, epochs=epochs, verbose=0), epochs * steps(x, 32))
    return fit_side(baselines.MLP(DIGITS), x, y, 32, epochs), theirs


def digits_evaluate(sizes: Sizes, *, keras_steps: int) -> tuple[Side, Side]:
    x, y = digits(sizes)
    model, peer = compiled(baselines.MLP(DIGITS)), baselines.keras_mlp(64, DIGITS, steps_per_execution=keras_steps)
    return (
        repeated(lambda: model.evaluate(x, y, verbose=0), sizes, steps(x, 32)),
        repeated(lambda: peer.evaluate(x, y, verbose=0), sizes, steps(x, 32)),
    )


def digits_predict(sizes: Sizes, *, keras_steps: int) -> tuple[Side, Side]:
    x, _ = digits(sizes)
    model, peer = compiled(baselines.MLP(DIGITS)), baselines.keras_mlp(64, DIGITS, steps_per_execution=keras_steps)
    return (
        repeated(lambda: model.predict(x, verbose=0), sizes, steps(x, 32)),
        repeated(lambda: peer.predict(x, verbose=0), sizes, steps(x, 32)),
    )


def repeated(work: Callable[[], Any], sizes: Sizes, units: int) -> Side:
    """A side of several calls, for work that is short."""
    calls = range(sizes.evaluate_calls)
    return timed(lambda: [work() for _ in calls], units * len(calls))


def mnist_resident(sizes: Sizes) -> tuple[Side, Side]:
    module, (x, y), epochs = baselines.MLP(MNIST), noise(sizes.mnist_rows, 784), sizes.mnist_epochs
    return fit_side(module, x, y, 128, epochs, cache=True), resident_side(module, x, y, 128, epochs)


def mnist_streamed(sizes: Sizes) -> tuple[Side, Side]:
    module, (x, y), epochs = baselines.MLP(MNIST), noise(sizes.mnist_rows, 784), sizes.mnist_epochs
    theirs = baselines.streamed_fit(module, x, y, 128, fused=32)
    return fit_side(module, x, y, 128, epochs, cache=False), hand_side(theirs, x, 128, epochs)


def cnn_fit(sizes: Sizes, *, steps_per_execution: int | str) -> tuple[Side, Side]:
    module, (x, y) = baselines.CNN(sizes.cnn_width), noise(sizes.cnn_rows, 28, 28, 1)
    ours = fit_side(module, x, y, 64, 1, steps_per_execution=steps_per_execution)
    return ours, hand_side(baselines.loop_fit(module, x, y, 64), x, 64, 1)


def devices_fit(sizes: Sizes) -> tuple[Side, Side]:
    module, (x, y) = baselines.MLP(MNIST), noise(sizes.devices_rows, 784)
    return fit_side(module, x, y, 128, 1), hand_side(baselines.sharded_fit(module, x, y, 128), x, 128, 1)


def compile_time(_: Sizes) -> tuple[Side, Side]:
    """What a first `fit` takes longer than a second: tracing, lowering and compiling the step.

    Both train the same 256 steps, K at a time, on a built model, with JAX's caches emptied before.
    """
    x, y = noise(256 * 32, 64)

    def side(k: int) -> float:
        jax.clear_caches()
        model = compiled(baselines.MLP(DIGITS), steps_per_execution=k)
        model.build(x[:32])
        fit = timed(lambda: model.fit(x, y, batch_size=32, verbose=0))
        return fit() - fit()

    return functools.partial(side, 256), functools.partial(side, 1)


# In processes of their own -----------------------------------------------------------------------


def import_time(_: Sizes) -> tuple[Side, Side]:
    code = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
    return in_fresh_process(code.format("from kdist import *")), in_fresh_process(
        code.format("import jax, flax, optax")
    )


def first_step(_: Sizes) -> tuple[Side, Side]:
    code = "import bench; print(bench.{}())"
    return in_fresh_process(code.format(kdist_first_step.__name__)), in_fresh_process(
        code.format(hand_first_step.__name__)
    )


class _AfterFirstStep(kdist.callbacks.Callback):
    seconds = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seconds = self.seconds or time.perf_counter()
        self.model.stop_training = True


def kdist_first_step() -> float:
    """Seconds from `fit` on a fresh model to the results of its first step, in this process."""
    (x, y), clock = digits(FULL), _AfterFirstStep()
    model = compiled(baselines.MLP(DIGITS))
    jax.devices()
    began = time.perf_counter()
    model.fit(x, y, verbose=0, callbacks=clock)
    return clock.seconds - began


def hand_first_step() -> float:
    """The same by hand."""
    x, y = digits(FULL)
    jax.devices()
    return timed(lambda: baselines.first_step(baselines.MLP(DIGITS), x, y, 32))()


# The table ---------------------------------------------------------------------------------------

_DIGITS = "digits MLP 64-32-10, batch 32"
_MNIST = "MLP 784-128-10, batch 128"
_CNN = "CNN 28x28, batch 64"

ROWS = [
    Row(
        "digits-fit",
        f"{_DIGITS}: fit, verbose=0",
        "whole-epoch scan",
        functools.partial(digits_fit, verbose=0),
        at_most=1.5,
    ),
    Row(
        "digits-lines",
        f"{_DIGITS}: fit, printing lines",
        "whole-epoch scan",
        functools.partial(digits_fit, verbose="auto"),
        at_most=1.5,
    ),
    Row("digits-keras", f"{_DIGITS}: fit", "Keras, steps_per_execution=32", digits_fit_keras, at_least=5),
    *(
        Row(
            f"digits-{name}-{k}",
            f"{_DIGITS}: {name}",
            f"Keras, steps_per_execution={k}",
            functools.partial(sides, keras_steps=k),
            at_least=3,
            unit="batch",
        )
        for name, sides in (("evaluate", digits_evaluate), ("predict", digits_predict))
        for k in (1, 32)
    ),
    Row(
        "digits-metrics",
        f"{_DIGITS}: fit, five metrics and three callbacks",
        "fit, none of either",
        digits_metrics,
        at_most=1.15,
    ),
    Row("mnist-resident", f"{_MNIST}: cache=True", "whole-epoch scan", mnist_resident, at_most=1.1),
    Row("mnist-streamed", f"{_MNIST}: cache=False", "scan of 32 streamed steps", mnist_streamed, at_most=1.1),
    Row(
        "cnn-auto",
        f"{_CNN}: fit",
        "loop of jitted steps",
        functools.partial(cnn_fit, steps_per_execution="auto"),
        at_most=1.05,
    ),
    Row(
        "cnn-16",
        f"{_CNN}: steps_per_execution=16",
        "loop of jitted steps",
        functools.partial(cnn_fit, steps_per_execution=16),
        at_most=1.05,
    ),
    Row("devices-8", f"{_MNIST}, 8 devices: fit", "scan inside shard_map", devices_fit, at_most=1.1, devices=8),
    Row(
        "compile",
        "compile time, steps_per_execution=256",
        "steps_per_execution=1",
        compile_time,
        at_most=1.2,
        unit="call",
    ),
    Row(
        "first-step",
        "fit of a fresh model to its first step",
        "init + jit of a step",
        first_step,
        at_most=1.3,
        unit="call",
    ),
    Row("import", "from kdist import *", "import jax, flax, optax", import_time, at_most=1.2, unit="call"),
]


if __name__ == "__main__":
    measure.main(__doc__, ROWS, FULL, QUICK)

"""Every loss and metric through a model on eight devices, against Keras 3 on one: 13 rows in batches of 8.

A device has one row of a batch, and three rows that must not count fill the second batch.  The cases are those of
test_losses and test_metrics, each an output of one model, so that few programs compile.  An output is its own input,
until a fit bends it.

By default run the first case of each class; of a loss with options that mix rows and options that do not, the first of
both.  All cases, with more layouts of weights, are slow, a class at a time.
"""

import dataclasses
import functools
import inspect
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import kdist

from . import test_losses as of_losses
from . import test_metrics as of_metrics
from .models import Pair, keras, same

N, BATCH = 13, 8
ROWS = (BATCH, N - BATCH)
REDUCTIONS = tuple(name for name in kdist.losses.REDUCTIONS if name != "mean")  # the first by another name
RATE = 1e-3


@dataclasses.dataclass
class Output:
    """An output of the model.

    Attributes:
        y: Targets.
        p: Predictions.
        w: Sample weights or None.
        ours: kdist's loss, or what makes its metric.
        theirs: The same of Keras.
    """

    y: np.ndarray
    p: np.ndarray
    w: np.ndarray | None
    ours: Any
    theirs: Any

    def batches(self):
        """(targets, predictions, weights) of each batch, as Keras has them."""
        return of_metrics.in_batches(self.y, self.p, self.w, slice(BATCH), slice(BATCH, N))


def columns(outputs, *names):
    """An attribute each, as a dict by output."""
    return [{key: getattr(output, name) for key, output in outputs.items()} for name in names]


def bent(x, kernel):
    """Every input, bent by its element of the kernel: some losses are blind to its scale, others to its offset."""
    return {name: x[name] + kernel[i] * x[name] ** 2 for i, name in enumerate(sorted(x))}


class Bend(nn.Module):
    @nn.compact
    def __call__(self, x):
        return bent(x, self.param("kernel", nn.initializers.zeros, len(x)))


class Bends(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Bend(name="bend")(x)


class KerasBend(keras.layers.Layer):
    def build(self, shapes):
        self.kernel = self.add_weight(shape=(len(shapes),), initializer="zeros")

    def call(self, x):
        return bent(x, self.kernel)


def keras_bends(x):
    """`Bends` in Keras."""
    inputs = {name: keras.Input(a.shape[1:], name=name) for name, a in x.items()}
    return keras.Model(inputs, KerasBend()(inputs))


def rows(rng, true, pred, make):
    """Targets and predictions of a table's shapes, but N rows of them."""
    return of_losses.rows(rng, (N, *true[1:]), (N, *pred[1:]), make)


def evaluate(devices, outputs, **compiled):
    """What `Model.evaluate` finds on eight devices, by log name."""
    x, y, w = columns(outputs, "p", "y", "w")
    model = kdist.Model(Bends())
    model.compile(None, distribution=devices(8), **compiled)
    return model.evaluate(x, y, BATCH, 0, w, return_dict=True)


def close(found, expected):
    """Asserts equality but for float32 sums in another order: of 1e2 values, which costs less than 1e-5 of them."""
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def groups(cases, first):
    """The first cases as one group, and all cases of each class as a slow one."""
    by_class = {name: [case for case in cases if case[0] == name] for name, *_ in cases}
    slow = [pytest.param(of_class, id=name, marks=pytest.mark.slow) for name, of_class in by_class.items()]
    return [pytest.param(first, id="first"), *slow]


def firsts(cases, kind=lambda *case: None):
    """The first case of each class and `kind`."""
    chosen = {}
    for case in cases:
        chosen.setdefault((case[0], kind(*case)), case)
    return list(chosen.values())


# Losses -----------------------------------------------------------------------------------------

ALL_LOSSES = [case.values for case in of_losses.CASES]
# Keras counts 0 for labels that are no class; kdist refuses them (README, "Coming from Keras").
REFUSED = [case for case in ALL_LOSSES if case[-1] is of_losses.labels_out_of_range]
LOSSES = [case for case in ALL_LOSSES if case not in REFUSED]


def mixes_rows(name, arguments, *_):
    """Whether a row's part in a loss depends on more than the row: on others, or on how many are left out."""
    return "ignore_class" in arguments or of_losses.pair(name, arguments)[0].across_rows


FIRST_LOSSES = firsts(LOSSES, mixes_rows)
MIXING_LOSSES = [case for case in FIRST_LOSSES if mixes_rows(*case)]


def loss_outputs(rng, cases, reduction, kinds):
    """An output for each case and kind of weights; without weights where Keras takes none."""
    outputs = {}
    for i, (name, arguments, true, pred, make) in enumerate(cases):
        y, p = rows(rng, true, pred, make)
        weights = of_losses.weights_for(rng, name, arguments, y, p)
        for kind in kinds:
            w = weights.get(kind)
            losses = of_losses.pair(name, arguments, reduction=reduction)
            key = f"{name}_{i}_{reduction}_{kind.replace(' ', '_')}"
            outputs[key] = Output(y, p, None if w is None else w.astype(np.float32), *losses)
    return outputs


def check_losses(devices, outputs):
    """Compares with Keras's losses of the batches: logs weigh them by their rows, whatever the reduction."""
    # One program: operation by operation, each of them would be compiled for each shape.
    theirs = jax.jit(lambda: {f"{key}_loss": [o.theirs(*b) for b in o.batches()] for key, o in outputs.items()})()
    expected = {name: np.average(values, weights=ROWS) for name, values in theirs.items()}
    close(evaluate(devices, outputs, loss=columns(outputs, "ours")[0]), {**expected, "loss": sum(expected.values())})


@pytest.mark.parametrize(
    "reduction", [REDUCTIONS[0], *(pytest.param(r, marks=pytest.mark.slow) for r in REDUCTIONS[1:])]
)
@pytest.mark.parametrize("cases", groups(LOSSES, FIRST_LOSSES))
def test_losses(rng, devices, cases, reduction):
    kinds = ("none", "some zero") if cases is FIRST_LOSSES else ("none", "zero", "all", "column", "some zero")
    check_losses(devices, loss_outputs(rng, cases, reduction, kinds))


def test_losses_that_are_functions(rng, devices):
    outputs = loss_outputs(rng, [case for case in FIRST_LOSSES if case[0] == "Huber"], REDUCTIONS[0], ("none", "all"))
    for output in outputs.values():
        output.ours = kdist.losses.FunctionLoss(kdist.losses.huber)
    check_losses(devices, outputs)


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_are_no_class_are_refused(rng, devices, case):
    outputs = loss_outputs(rng, [case], REDUCTIONS[0], ("none",))
    with pytest.raises(kdist.errors.DataError, match="the 3 classes of the model"):
        evaluate(devices, outputs, loss=columns(outputs, "ours")[0])


def check_fit(outputs):
    """Two epochs on both frameworks: every loss, and every element of the kernel."""
    x, y, w, ours, theirs = columns(outputs, "p", "y", "w", "ours", "theirs")
    pair = Pair(Bends(), keras_bends(x), x, ["bend"]).compile(lambda lib: ours if lib is kdist else theirs, RATE)

    def fit(model):
        return model.fit(x, y, BATCH, epochs=2, verbose=0, shuffle=False, sample_weight=w)

    expected, found = pair.ask_keras(fit), pair.ask_kdist(fit)
    same(found, expected)
    ours, theirs = np.asarray(pair.ours.params["bend"]["kernel"]), np.asarray(pair.theirs.weights[0].value)
    for name, one, other in zip(sorted(x), ours, theirs, strict=True):
        assert other != 0, name
        # The sum of four gradients, which may nearly cancel out.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * RATE, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("cases", groups(LOSSES, FIRST_LOSSES))
def test_fit(rng, cases):
    check_fit(loss_outputs(rng, cases, REDUCTIONS[0], ("some zero",)))


@pytest.mark.slow
@pytest.mark.parametrize("reduction", REDUCTIONS[1:])
@pytest.mark.parametrize("cases", groups(LOSSES, [FIRST_LOSSES[0], *MIXING_LOSSES]))
def test_fit_with_other_reductions(rng, cases, reduction):
    """Where a loss has a denominator, and a gradient, of its own; without weights, some have those of the default."""
    check_fit(loss_outputs(rng, cases, reduction, ("none", "some zero")))


# Metrics ----------------------------------------------------------------------------------------

METRICS = [case.values for case in of_metrics.CASES]
FIRST_METRICS = firsts(METRICS)


def metric_outputs(rng, cases):
    """An output for each case and kind of weights but none: that all metrics are compared with, too."""
    outputs = {}
    for i, (name, arguments, make, true, pred) in enumerate(cases):
        y, p = rows(rng, true, pred, make)
        metrics = [functools.partial(getattr(lib.metrics, name), **arguments) for lib in (kdist, keras)]
        weights = of_metrics.weights_for(rng, name, y.shape, p.shape)
        del weights["none"]
        for kind, w in weights.items():
            w = w if w.dtype.kind == "i" else w.astype(np.float32)
            outputs[f"{name}_{i}_{kind.replace(' ', '_')}"] = Output(y, p, w, *metrics)
    return outputs


def check_metrics(devices, outputs):
    """Compares with Keras's metrics of all rows at once, which test_metrics finds to be those of batches."""
    compiled = {
        "metrics": {key: [o.ours(name="plain")] for key, o in outputs.items()},
        "weighted_metrics": {key: [o.ours(name="weighted")] for key, o in outputs.items() if o.w is not None},
    }
    expected = {"loss": 0.0}
    for key, o in outputs.items():
        expected[f"{key}_plain"] = of_metrics.keras_value(o.theirs(), [(o.y, o.p, None)])
        if o.w is not None:
            expected[f"{key}_weighted"] = of_metrics.keras_value(o.theirs(), [(o.y, o.p, o.w)])
    close(evaluate(devices, outputs, **compiled), expected)


@pytest.mark.parametrize("cases", groups(METRICS, FIRST_METRICS))
def test_metrics(rng, devices, cases):
    check_metrics(devices, metric_outputs(rng, cases))


class OfPairs:
    """Keras's reduction of values, given targets and predictions."""

    def __init__(self, reduction):
        self.reduction = reduction
        self.result = reduction.result

    def update_state(self, y, p, w):
        self.reduction.update_state(keras.losses.huber(y, p), w)


HUBER = functools.partial(keras.metrics.MeanMetricWrapper, keras.losses.huber)
OF_FUNCTIONS = {
    "MeanMetric": (functools.partial(kdist.metrics.MeanMetric, kdist.losses.huber), HUBER),
    "LossMean": (functools.partial(kdist.metrics.LossMean, kdist.losses.Huber()), HUBER),
    "Mean": (functools.partial(kdist.metrics.Mean, fn=kdist.losses.huber), lambda: OfPairs(keras.metrics.Mean())),
    "Sum": (functools.partial(kdist.metrics.Sum, fn=kdist.losses.huber), lambda: OfPairs(keras.metrics.Sum())),
}
"""Metrics made of a function or a loss."""


def test_metrics_of_functions(rng, devices):
    y, p = rows(rng, (N, 3), (N, 3), of_metrics.signed)
    w = of_metrics.weights_for(rng, "MeanSquaredError", y.shape, p.shape)["a row"].astype(np.float32)
    outputs = {name: Output(y, p, w, *metrics) for name, metrics in OF_FUNCTIONS.items()}
    y, p = rows(rng, (N,), (N, 3), of_metrics.labels)  # that of nnx takes no weights, but leaves out what fills a batch
    foreign = functools.partial(kdist.metrics.ForeignMetric, nnx.metrics.Accuracy())
    outputs["ForeignMetric"] = Output(y, p, None, foreign, keras.metrics.SparseCategoricalAccuracy)
    check_metrics(devices, outputs)


# Completeness -----------------------------------------------------------------------------------


def public(module, kind):
    """The public names of a module that `kind` is true of."""
    return {name for name in module.__all__ if kind(getattr(module, name))}


def functions_of(module, classes):
    """What the functions are called that classes are of."""
    return {cls.fn.__name__ for cls in (getattr(module, name) for name in classes) if hasattr(cls, "fn")}


def test_no_loss_is_left_out():
    tried = {name for name, *_ in FIRST_LOSSES}
    classes = public(kdist.losses, lambda c: isinstance(c, type) and issubclass(c, kdist.losses.Loss))
    assert tried | {"FunctionLoss"} == classes - {"Loss"}
    functions = {name for name in public(kdist.losses, inspect.isfunction) if hasattr(keras.losses, name)}
    assert functions_of(kdist.losses, tried) == functions - {"get"}


def test_no_metric_is_left_out():
    tried = {name for name, *_ in FIRST_METRICS}
    classes = public(kdist.metrics, lambda c: isinstance(c, type) and issubclass(c, kdist.metrics.Metric))
    assert tried | OF_FUNCTIONS.keys() | {"ForeignMetric", "MeanMetricWrapper"} == classes - {"Metric"}
    functions = public(kdist.metrics, inspect.isfunction) - {"get", "names", "for_shapes"}
    assert functions <= functions_of(kdist.metrics, tried)

"""Law 6: rows that only fill a batch change nothing, and sums of parts add up to the sums of the whole.

Every loss and metric in the registries is tried on its sums, by itself; a few end to end, on eight devices.
"""

import functools
import itertools

import jax
import numpy as np
import pytest
from models import CLASSES, KINDS, crossentropy, data, make, same

import kdist
from kdist import losses, metrics
from kdist.errors import DataError
from kdist.objective import Outputs, Plan

LOSSES = [getattr(losses, name) for name in losses.names() if isinstance(getattr(losses, name, None), type)]
METRICS = [getattr(metrics, name) for name in metrics.names() if isinstance(getattr(metrics, name, None), type)]
SPARSE = {
    losses.SparseCategoricalCrossentropy,
    metrics.SparseCategoricalCrossentropy,
    metrics.SparseCategoricalAccuracy,
    metrics.SparseTopKCategoricalAccuracy,
}
ZERO_ONE = {losses.BinaryCrossentropy, metrics.BinaryCrossentropy, metrics.BinaryAccuracy, metrics.AUC}
ZERO_ONE |= {metrics.Precision, metrics.Recall, metrics.Accuracy}
CASES = [*itertools.product([(4, 3), (4, 2, 3)], ["none", "rows", "steps"])]
"""Rows of class scores and of steps of them; every further shape would cost a compile an operation."""


def rows_for(cls, shape, weights):
    """Targets of the kind that the class takes, predictions in (0, 1) that sum to 1, and weights, some of them 0."""
    rng = np.random.default_rng(11)
    pred = rng.uniform(0.05, 1, shape).astype(np.float32)
    pred /= pred.sum(-1, keepdims=True)
    if cls in SPARSE:
        true = rng.integers(0, shape[-1], shape[:-1]).astype(np.int32)
    elif cls in ZERO_ONE:
        true = rng.integers(0, 2, shape).astype(np.float32)
        pred = true * rng.integers(0, 2, shape) if cls is metrics.Accuracy else pred
    else:
        true = rng.uniform(0.05, 1, shape).astype(np.float32)
    shape_of_weight = {"none": None, "rows": shape[:1], "steps": shape[:-1]}[weights]
    if shape_of_weight is None:
        return true, pred, None
    return true, pred, rng.choice([0, 0.5, 1, 2.5], shape_of_weight).astype(np.float32)


def take(rows, index):
    return [None if a is None else a[index] for a in rows]


def filled(rows, by=2):
    """The rows, `by` copies of some of them, and which of all count."""
    n = len(rows[1])
    index = np.concatenate([np.arange(n), np.arange(by) % n])
    return take(rows, index), (np.arange(n + by) < n).astype(np.float32)


def add(a, b):
    return jax.tree.map(lambda x, y: x + y, a, b)


def check_loss(loss, case):
    shape, weights = case
    true, pred, weight = rows = rows_for(type(loss), shape, weights)
    whole = loss.sums(true, pred, weight)
    padded, valid = filled(rows)
    same(loss.sums(*padded, valid), whole)
    same(loss.sums(true, pred, weight, np.ones(shape[0], np.float32)), whole)
    same(whole.value(), loss(true, pred, weight))
    half = shape[0] // 2
    parts = [loss.sums(*take(rows, slice(*bounds))) for bounds in ((0, half), (half, None))]
    same(add(*parts), whole)
    nothing = loss.sums(*padded, np.zeros_like(valid))
    same(add(nothing, whole), whole)
    same(nothing.value(), 0.0)


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
@pytest.mark.parametrize("cls", LOSSES, ids=lambda c: c.__name__)
def test_every_loss_with_every_reduction(cls, reduction):
    for case in CASES:
        check_loss(cls(reduction=reduction), case)


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
def test_a_loss_that_ignores_a_class(reduction):
    for case in CASES:
        check_loss(losses.SparseCategoricalCrossentropy(ignore_class=1, reduction=reduction), case)


def check_metric(metric, case):
    shape, weights = case
    true, pred, _ = rows = rows_for(type(metric), shape, weights)
    plan = Plan.of(None, weighted_metrics=[metric])
    objective = plan.bind(Outputs(jax.ShapeDtypeStruct(pred.shape, np.float32)), true)

    def sums(rows, valid):  # as the step takes them: here the weights of a row meet its validity
        return objective.metric_sums(*map(jax.numpy.asarray, rows[:2]), rows[2], valid)

    whole = sums(rows, None)
    padded, valid = filled(rows)
    same(sums(padded, valid), whole)
    same(metric.result(jax.device_get(sums(padded, valid))[metric.name]), metric(*rows))
    half = shape[0] // 2
    parts = [sums(take(rows, slice(*bounds)), None) for bounds in ((0, half), (half, None))]
    same(add(*parts), whole)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(sums(padded, np.zeros_like(valid))))


@pytest.mark.parametrize(
    "metric",
    [
        *(cls() for cls in METRICS),
        metrics.Precision(thresholds=[0.7, 0.2]),
        metrics.Precision(top_k=2),
        metrics.Recall(class_id=1),
        metrics.AUC(curve="PR", num_thresholds=7),
        metrics.SparseCategoricalCrossentropy(ignore_class=1),
        metrics.MeanMetric(lambda y, p: abs(y - p), name="a_function"),
    ],
    ids=repr,
)
def test_every_metric(metric):
    for case in CASES:
        check_metric(metric, case)


def compiled(kind, loss, **arguments):
    model = make("mlp", kind)
    model.compile(None, loss, distribution=kdist.DataParallel(devices=jax.devices()[:8]), **arguments)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_counts_every_row_once(kind):
    """Over batches and tails that do not divide by eight; the wanted values are those of one array."""
    x, y, weight = data(13)
    counted = [metrics.SparseCategoricalAccuracy, functools.partial(metrics.SparseTopKCategoricalAccuracy, 2)]
    model = compiled(kind, crossentropy(), metrics=[m() for m in counted], weighted_metrics=[m() for m in counted])
    for batch_size in (4, 5, 64):
        got = model.evaluate(x, y, batch_size, 0, weight)
        pred = model.predict(x, batch_size, 0)
        assert pred.shape == (13, CLASSES)
        same(pred, np.asarray(model(x)))
        same(got[0], float(crossentropy()(y, pred, weight)))
        same(got[1:], [m()(y, pred) for m in counted] + [m()(y, pred, weight) for m in counted])


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
def test_an_evaluation_with_every_reduction(reduction):
    x, y, weight = data(13)
    loss = crossentropy(reduction=reduction)
    model = compiled("linen", loss)
    got = model.evaluate(x, y, 13, 0, weight)
    same(got, float(loss(y, np.asarray(model(x)), weight)))


def one_number(y_true, y_pred):
    return ((y_true - y_pred) ** 2).mean()


def test_a_loss_of_one_number_a_batch_is_refused_where_it_would_be_padded():
    x, _, _ = data(16)
    y = np.ones((16, CLASSES), np.float32)
    model = compiled("linen", one_number)
    with pytest.raises(DataError, match="one value a row"):
        model.evaluate(x[:13], y[:13], 8, 0)
    want = float(one_number(y, np.asarray(model(x))))
    same(model.evaluate(x, y, 8, 0), want)

"""Law 6: rows that only fill a batch change nothing, and sums of parts add up to the sums of the whole.

Every public loss and metric is tried on its sums, by itself (every.py has what they take); a few end to end, on eight
devices.  A loss that compares rows with each other has no sums of parts by themselves: its parts are shards, under a
real `jax.shard_map`.
"""

import functools

import jax
import numpy as np
import pytest
from every import LOSSES, METRICS, cases, few_cases, made, rows_for
from jax.sharding import PartitionSpec
from models import CLASSES, KINDS, crossentropy, data, make, same

import kdist
from kdist import losses, metrics
from kdist.errors import DataError
from kdist.losses import Shards
from kdist.metrics.base import exact_sums
from kdist.objective import Objective, Outputs, Plan


def take(rows, index):
    return [None if a is None else a[index] for a in rows]


def filled(rows, by=2):
    """The rows, `by` copies of some of them, and which of all count."""
    n = len(rows[1])
    index = np.concatenate([np.arange(n), np.arange(by) % n])
    return take(rows, index), (np.arange(n + by) < n).astype(np.float32)


def add(a, b):
    return jax.tree.map(lambda x, y: x + y, a, b)


def on_shards(loss, rows, valid, n=2):
    """The sums over the parts of n shards, which reach each other's rows."""
    devices = jax.sharding.Mesh(jax.devices()[:n], "shards")

    def summed(rows, valid):
        shards = Shards(
            sum=lambda tree: jax.lax.psum(tree, "shards"),
            gather=lambda a: jax.lax.all_gather(a, "shards", tiled=True),
            index=jax.lax.axis_index("shards"),
        )
        return jax.lax.psum(loss.sums(*rows, valid, shards), "shards")

    specs = {"in_specs": PartitionSpec("shards"), "out_specs": PartitionSpec(), "check_vma": False}
    return jax.jit(jax.shard_map(summed, mesh=devices, **specs))(rows, valid)


def halves(loss, rows, valid):
    """The sums over the halves of some rows, added up."""
    if loss.across_rows:
        return on_shards(loss, rows, valid)
    half = len(valid) // 2
    return add(*(loss.sums(*take(rows, part), valid[part]) for part in (slice(half), slice(half, None))))


def check_loss(loss, case):
    rows = rows_for(loss, case)
    everything = np.ones(len(rows[1]), np.float32)
    padded, valid = filled(rows)

    @jax.jit  # one program: operation by operation, each would be compiled for each shape
    def tried(rows, everything, padded, valid):
        whole, nothing = loss.sums(*rows), loss.sums(*padded, jax.numpy.zeros_like(valid))
        found = {
            "rows that fill": loss.sums(*padded, valid),
            "all rows count": loss.sums(*rows, everything),
            "halves": halves(loss, rows, everything),
            "halves of what is filled": halves(loss, padded, valid),
            "nothing added": add(nothing, whole),
        }
        return found, whole, nothing.value(), (whole.value(), loss(*rows))

    found, whole, of_nothing, values = tried(rows, everything, padded, valid)
    same(found, dict.fromkeys(found, whole))
    same(of_nothing, 0.0)
    same(*values)


OPTIONS = {
    "a class ignored": lambda: losses.SparseCategoricalCrossentropy(ignore_class=1),
    "dice of each column": lambda: losses.Dice(axis=0),
    "dice of each row": lambda: losses.Dice(axis=-1),
    "dice over rows and columns": lambda: losses.Dice(axis=(0, 1)),
    "lopsided tversky": lambda: losses.Tversky(alpha=0.2, beta=0.9),
    "circle with the diagonal": lambda: losses.Circle(gamma=4.0, remove_diagonal=False),
}


every_loss = pytest.mark.parametrize(
    "make_loss",
    [
        *(pytest.param(functools.partial(made, cls), id=cls.__name__) for cls in LOSSES),
        *(pytest.param(loss, id=name) for name, loss in OPTIONS.items()),
    ],
)


@every_loss
def test_every_loss(make_loss):
    """tests/losses has every reduction, on shards and padded, with fewer shapes and options."""
    loss = make_loss()
    tried = list(few_cases(loss))
    assert tried
    for case in tried:
        check_loss(loss, case)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
@every_loss
def test_every_loss_with_every_reduction(make_loss, reduction):
    loss = make_loss()
    loss.reduction = reduction
    for case in cases(loss):
        check_loss(loss, case)


def check_metric(metric, case):
    true, pred, weight = rows = rows_for(metric, case)
    given = {"metrics_": [metric]} if weight is None else {"weighted_metrics": [metric]}
    outputs = Outputs(jax.ShapeDtypeStruct(pred.shape, np.float32))
    objective = Objective(Plan.of(None, **given), outputs, true, weight)

    def sums(rows, valid):  # as the step takes them: here the weights of a row meet its validity
        return objective.metric_sums(*map(jax.numpy.asarray, rows[:2]), rows[2], valid)

    def result(sums):  # in float64, as the host has them
        return metric.result(exact_sums(sums)[metric.name])

    whole, want = sums(rows, None), metric(*rows)
    padded, valid = filled(rows)
    same(sums(padded, valid), whole)
    same(result(sums(padded, valid)), want)
    half = len(pred) // 2
    parts = add(*(sums(take(rows, part), None) for part in (slice(half), slice(half, None))))
    if not isinstance(metric, metrics.R2Score):  # its moments are about a reference that each part has for itself
        same(parts, whole)
    same(result(parts), want)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(sums(padded, np.zeros_like(valid))))


@pytest.mark.parametrize(
    "chosen", [pytest.param(few_cases, id="few"), pytest.param(cases, id="all", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "metric",
    [
        *map(made, METRICS),
        metrics.Precision(thresholds=[0.7, 0.2]),
        metrics.Precision(top_k=2),
        metrics.Recall(class_id=1),
        metrics.AUC(curve="PR", num_thresholds=7),
        metrics.SparseCategoricalCrossentropy(ignore_class=1),
        metrics.F1Score(average="weighted", threshold=0.4),
        metrics.MeanIoU(CLASSES, ignore_class=1),
        metrics.R2Score(class_aggregation=None),
        metrics.R2Score(class_aggregation="variance_weighted_average", num_regressors=1),
    ],
    ids=repr,
)
def test_every_metric(metric, chosen):
    tried = list(chosen(metric))
    assert tried
    for case in tried:
        check_metric(metric, case)


@pytest.mark.parametrize(
    ("module", "tried"), [pytest.param(losses, LOSSES, id="losses"), pytest.param(metrics, METRICS, id="metrics")]
)
def test_no_name_is_left_out(module, tried):
    """Whatever a name stands for is of a class that is tried above."""
    names = [name for name in module.names() if name.lower() not in module.BY_SHAPE]
    assert len(names) > 50
    assert {type(module.get(name)) for name in names} <= set(tried)


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

"""Metric objects of clu and flax.nnx, and of metrax by its protocol: values, rows that do not count, and refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kdist
from kdist import metrics
from kdist.errors import ConfigError, DataError
from kdist.metrics.base import exact_sums


class Ratio:
    """A total and a count that merge by adding up."""

    @classmethod
    def empty(cls):
        return cls(jnp.float32(0), jnp.float32(0))

    def merge(self, other):
        return type(self)(self.total + other.total, self.count + other.count)

    def compute(self):
        return self.total / self.count


def of_jax(cls):
    cls.__annotations__ = {"total": jax.Array, "count": jax.Array}
    return jax.tree_util.register_dataclass(dataclasses.dataclass(cls))


@of_jax
class SquaredError(Ratio):
    """As in metrax."""

    @classmethod
    def from_model_output(cls, predictions, labels, sample_weights=None):
        weights = jnp.ones_like(labels) if sample_weights is None else sample_weights
        return cls((weights * (predictions - labels) ** 2).sum(), weights.sum())


@of_jax
class NoWeights(Ratio):
    """Takes no weights, so that every row counts."""

    @classmethod
    def from_model_output(cls, y_pred, y_true):
        return cls(abs(y_pred - y_true).sum(), jnp.float32(y_pred.size))


@of_jax
class Largest(Ratio):
    """Merges by the maximum."""

    @classmethod
    def from_model_output(cls, preds, targets, mask=None):
        return cls(abs(preds - targets).max(), jnp.float32(1))

    def merge(self, other):
        return type(self)(jnp.maximum(self.total, other.total), self.count)


@of_jax
class MeanOfBatches(Ratio):
    """Adds up, but a batch is one number."""

    @classmethod
    def from_model_output(cls, preds, targets, mask=None):
        return cls(abs(preds - targets).mean(), jnp.float32(1))


@of_jax
class DeafToItsMask(Ratio):
    """Has a mask, and counts all rows."""

    @classmethod
    def from_model_output(cls, preds, targets, mask=None):
        return cls(abs(preds - targets).sum(), jnp.float32(preds.size))


@of_jax
class OfTheLoss(Ratio):
    """Asks for what a model does not give."""

    @classmethod
    def from_model_output(cls, loss, **_):
        return cls(loss.sum(), loss.size)


@of_jax
class Several(Ratio):
    """Computes more than numbers."""

    @classmethod
    def from_model_output(cls, preds, mask=None):
        return cls((preds * mask).sum(), mask.sum())

    def compute(self):
        return {"mean": self.total / self.count}


Y, P = np.array([1.0, 2.0, 3.0], np.float32), np.array([1.5, 2.0, 5.0], np.float32)
LABELS = np.array([0, 1, 1, 0], np.int32)
SCORES = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], np.float32)


def filled(metric, y, p):
    """The value with rows in front that do not count, as a step computes it."""
    y, p = (jnp.concatenate([a[:2], a]) for a in (jnp.asarray(y), jnp.asarray(p)))
    valid = (jnp.arange(len(y)) >= 2).astype(jnp.float32)
    return metric.result(exact_sums(jax.jit(metric.sums)(y, p, valid)))


def test_metrax_protocol():
    """A class or one of its objects; weights count."""
    for given in (SquaredError, SquaredError.empty()):
        metric = metrics.get(given)
        assert metric.name == "squared_error" and not metric.exact
        assert metric(Y, P) == pytest.approx(4.25 / 3)
        assert metric(Y, P, [1.0, 1.0, 0.5]) == pytest.approx(2.25 / 2.5)
        assert filled(metric, Y, P) == pytest.approx(4.25 / 3)


def test_sums_add_up_and_nothing_is_zero():
    metric = metrics.ForeignMetric(SquaredError, name="mse_of_metrax")
    assert metric.name == "mse_of_metrax"
    first, second = (exact_sums(metric.sums(Y[part], P[part])) for part in (slice(1), slice(1, 3)))
    assert metric.result(jax.tree.map(np.add, first, second)) == pytest.approx(4.25 / 3)
    assert metric.result(jax.tree.map(np.zeros_like, first)) == 0.0


def test_clu():
    clu = pytest.importorskip("clu.metrics")
    accuracy = metrics.get(clu.Accuracy)
    assert accuracy.name == "accuracy" and not accuracy.exact
    assert accuracy(LABELS, SCORES) == filled(accuracy, LABELS, SCORES) == 0.5
    steps = np.stack([LABELS, LABELS], 1), np.stack([SCORES, SCORES], 1)
    assert filled(accuracy, *steps) == 0.5
    average = metrics.get(clu.Average.from_output("y_pred"))
    assert average(Y, P) == filled(average, Y, P) == pytest.approx(P.mean())
    hits = clu.Average.from_fun(lambda logits, labels, **_: logits.argmax(-1) == labels)
    assert filled(metrics.ForeignMetric(hits, name="hits"), LABELS, SCORES) == 0.5


def test_nnx():
    accuracy = metrics.get(nnx.metrics.Accuracy())
    assert accuracy.name == "accuracy" and not accuracy.exact
    assert accuracy(LABELS, SCORES) == filled(accuracy, LABELS, SCORES) == 0.5
    average = metrics.get(nnx.metrics.Average("y_pred"))
    assert average(Y, P) == filled(average, Y, P) == pytest.approx(P.mean())


def test_an_nnx_metric_that_was_used_starts_anew():
    used = nnx.metrics.Accuracy()
    used.update(logits=jnp.asarray(SCORES), labels=jnp.asarray(1 - LABELS))
    assert metrics.get(used)(LABELS, SCORES) == 0.5


def test_without_weights_batches_cannot_be_padded():
    metric = metrics.get(NoWeights)
    assert metric.exact
    assert metric(Y, P) == pytest.approx(2.5 / 3)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Largest, "do not merge by adding up"),
        (MeanOfBatches, "are not those of parts, added up"),
        (DeafToItsMask, "rows whose mask is 0 count"),
        (Several, "computes .*mean.*: expected a number or an array"),
        (nnx.metrics.Welford("y_pred"), "do not merge by adding up|not those of parts"),
    ],
    ids=lambda a: getattr(a, "__name__", ""),
)
def test_what_does_not_add_up_is_refused(metric, message):
    with pytest.raises(ConfigError, match=message):
        metrics.get(metric)(Y, P)


def test_clu_metrics_that_do_not_add_up_are_refused():
    clu = pytest.importorskip("clu.metrics")
    for cls in (clu.LastValue.from_output("y_pred"), clu.CollectingMetric.from_outputs(["y_pred"])):
        with pytest.raises(ConfigError, match="cannot be computed in parts"):
            metrics.get(cls)(Y, P)
    with pytest.raises(ConfigError, match="needs 'loss'"):
        metrics.get(clu.Average.from_output("loss"))(Y, P)


@pytest.mark.parametrize("metric", [OfTheLoss, nnx.metrics.Average("loss")], ids=["clu", "nnx"])
def test_what_a_model_does_not_give(metric):
    with pytest.raises(ConfigError, match="needs loss.*predictions.*targets"):
        metrics.get(metric)


@pytest.mark.parametrize("metric", [nnx.metrics.Accuracy(), NoWeights], ids=["mask", "neither"])
def test_no_sample_weights_where_there_is_only_a_mask(metric):
    with pytest.raises(ConfigError, match="takes no sample weights"):
        metrics.get(metric)(LABELS, SCORES, np.ones(4))


def test_in_an_evaluation(devices):
    """On eight devices, with rows that fill the last batch; one without weights refuses them."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(21, 4)).astype(np.float32), rng.normal(size=(21, 3)).astype(np.float32)
    module = (lambda key, x: jax.random.normal(key, (4, 3)), lambda params, x: x @ params)
    model = kdist.Model(module)
    model.compile(None, "mse", metrics=[SquaredError, "mse"], distribution=devices(8))
    found = model.evaluate(x, y, 16, 0, return_dict=True)
    assert found["squared_error"] == pytest.approx(found["mse"], rel=1e-5)
    model.compile(None, "mse", metrics=[NoWeights], distribution=devices(8))
    with pytest.raises(DataError, match="one value a row"):
        model.evaluate(x, y, 16, 0)

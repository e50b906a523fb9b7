"""Every metric of kdist against the one of that name in Keras, over two batches, with and without weights; and the
options of the metrics that have thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdist

keras = pytest.importorskip("keras", reason="numbers are compared with Keras 3 (extra: bench)")

N, T, C = 12, 4, 3
HALVES = (slice(N // 2), slice(N // 2, N))


def signed(rng, true, pred):
    return rng.normal(size=true), rng.normal(size=pred)


def positive(rng, true, pred):
    return rng.uniform(0.1, 2, true), rng.uniform(0.1, 2, pred)


def small_whole_numbers(rng, true, pred):
    return rng.integers(0, 3, true).astype(float), rng.integers(0, 3, pred).astype(float)


def bits(rng, true, pred):
    return rng.uniform(size=true).round(), rng.uniform(size=pred)


def logits_of_bits(rng, true, pred):
    return rng.uniform(size=true).round(), rng.normal(0, 3, pred)


def one_hot(rng, true, pred):
    return np.eye(true[-1])[rng.integers(0, true[-1], true[:-1])], rng.uniform(0.01, 1, pred)


def labels(rng, true, pred):
    return rng.integers(0, pred[-1], true), rng.uniform(0.01, 1, pred)


def labels_and_ties(rng, true, pred):
    return rng.integers(0, pred[-1], true), rng.integers(0, 3, pred).astype(float)


def labels_out_of_range(rng, true, pred):
    return rng.integers(-2, pred[-1] + 2, true), rng.normal(size=pred)


ROWS, COLUMN, STEPS = ((N, C), (N, C)), ((N,), (N, 1)), ((N, T, C), (N, T, C))
COLUMNS = ((N, 1), (N, 1))  # where Keras's metric, unlike its loss, does not align (N,) with (N, 1)
LABELS, LABEL_COLUMN, LABEL_STEPS = ((N,), (N, C)), ((N, 1), (N, C)), ((N, T), (N, T, C))
MANY = ((N,), (N, 8))

METRICS = [
    ("MeanSquaredError", {}, signed, [ROWS, COLUMN, STEPS]),
    ("RootMeanSquaredError", {}, signed, [ROWS, COLUMN, STEPS]),
    ("MeanAbsoluteError", {}, signed, [ROWS, COLUMN, STEPS]),
    ("MeanAbsolutePercentageError", {}, signed, [ROWS, COLUMN, STEPS]),
    ("MeanSquaredLogarithmicError", {}, positive, [ROWS, COLUMN, STEPS]),
    ("LogCoshError", {}, signed, [ROWS, COLUMN, STEPS]),
    ("Poisson", {}, positive, [ROWS, COLUMNS, STEPS]),
    ("KLDivergence", {}, positive, [ROWS, COLUMNS, STEPS]),
    ("CosineSimilarity", {}, signed, [ROWS, STEPS]),
    ("BinaryCrossentropy", {}, bits, [ROWS, COLUMNS, STEPS]),
    ("BinaryCrossentropy", {"from_logits": True, "label_smoothing": 0.1}, logits_of_bits, [ROWS]),
    ("CategoricalCrossentropy", {}, one_hot, [ROWS, STEPS]),
    ("CategoricalCrossentropy", {"from_logits": True, "label_smoothing": 0.1}, one_hot, [ROWS]),
    ("SparseCategoricalCrossentropy", {}, labels, [LABELS, LABEL_COLUMN, LABEL_STEPS]),
    ("SparseCategoricalCrossentropy", {"from_logits": True}, labels, [LABELS]),
    ("SparseCategoricalCrossentropy", {"ignore_class": 1}, labels, [LABELS]),
    ("Accuracy", {}, small_whole_numbers, [ROWS, COLUMN, STEPS]),
    ("BinaryAccuracy", {}, bits, [ROWS, COLUMN, STEPS]),
    ("BinaryAccuracy", {"threshold": 0.3}, bits, [ROWS]),
    ("CategoricalAccuracy", {}, one_hot, [ROWS, STEPS]),
    ("SparseCategoricalAccuracy", {}, labels, [LABELS, LABEL_COLUMN, LABEL_STEPS]),
    ("SparseCategoricalAccuracy", {}, labels_out_of_range, [LABELS]),
    ("TopKCategoricalAccuracy", {"k": 2}, one_hot, [ROWS, STEPS]),
    ("SparseTopKCategoricalAccuracy", {"k": 2}, labels, [LABELS, LABEL_STEPS]),
    ("SparseTopKCategoricalAccuracy", {}, labels, [MANY]),
    ("SparseTopKCategoricalAccuracy", {"k": 3}, labels_and_ties, [MANY]),
    ("Precision", {}, bits, [ROWS, COLUMN]),
    ("Precision", {"thresholds": 0.3}, bits, [COLUMN]),
    ("Precision", {"thresholds": [0.9, 0.1, 0.5]}, bits, [COLUMN]),
    ("Precision", {"top_k": 2}, bits, [ROWS]),
    ("Precision", {"top_k": 2, "thresholds": 0.6}, bits, [ROWS]),
    ("Precision", {"class_id": 1}, bits, [ROWS]),
    ("Precision", {"class_id": 1, "top_k": 2}, bits, [ROWS]),
    ("Recall", {}, bits, [ROWS, COLUMN]),
    ("Recall", {"thresholds": 0.3}, bits, [COLUMN]),
    ("Recall", {"thresholds": [0.9, 0.1, 0.5]}, bits, [COLUMN]),
    ("Recall", {"top_k": 2}, bits, [ROWS]),
    ("Recall", {"class_id": 1}, bits, [ROWS]),
    ("Recall", {"class_id": 1, "top_k": 2}, bits, [ROWS]),
    ("AUC", {}, bits, [ROWS]),
    ("AUC", {"num_thresholds": 7}, bits, [COLUMN]),
    ("AUC", {"curve": "PR"}, bits, [COLUMN]),
    ("AUC", {"curve": "PR", "summation_method": "minoring", "num_thresholds": 7}, bits, [COLUMN]),
    ("AUC", {"curve": "PR", "summation_method": "majoring", "num_thresholds": 7}, bits, [COLUMN]),
    ("AUC", {"summation_method": "minoring", "num_thresholds": 7}, bits, [COLUMN]),
    ("AUC", {"summation_method": "majoring", "num_thresholds": 7}, bits, [COLUMN]),
    ("AUC", {"thresholds": [0.7, 0.2, 0.4]}, bits, [COLUMN]),
    ("AUC", {"from_logits": True, "num_thresholds": 7}, logits_of_bits, [COLUMN]),
]

CASES = [
    pytest.param(name, arguments, make, true, pred, id=f"{name}-{arguments}-{make.__name__}-{true}-{pred}")
    for name, arguments, make, layouts in METRICS
    for true, pred in layouts
]


def weights_for(rng, name, arguments, pred):
    one_by_one = name in ("Precision", "Recall", "AUC")
    found = {"none": None, "a row": rng.uniform(-1, 2, N).clip(0)}  # some of them 0
    if len(pred) == 3 and not one_by_one:
        found["a step"] = rng.uniform(0, 2, pred[:2])
    if one_by_one and pred[-1] > 1:
        outputs = 1 if "class_id" in arguments else pred[-1]
        found = {k: w if w is None else np.repeat(w[:, None], outputs, 1) for k, w in found.items()}
    return found


def keras_value(metric, batches):
    for y, p, w in batches:
        metric.update_state(y, p, w)
    return np.asarray(metric.result())


def our_value(metric, batches):
    """The metric over batches as a fit computes it: the sums of each, added up in float64, and their result."""
    sums = []
    for y, p, w in batches:
        y, p = jnp.asarray(y), jnp.asarray(p)
        sums.append(metric.sums(y, p, None if w is None else metric.weigh(y, p, jnp.asarray(w))))
    exact = jax.tree.map(lambda *parts: sum(np.asarray(a, np.float64) for a in parts), *sums)
    return np.asarray(metric.result(exact))


def test_every_metric_is_compared():
    public = {name for name, thing in vars(kdist.metrics).items() if isinstance(thing, type) and name[0] != "_"}
    ours = {name for name in public if issubclass(getattr(kdist.metrics, name), kdist.metrics.Metric)}
    assert {name for name, *_ in METRICS} == ours - {"Metric", "MeanMetric"}


@pytest.mark.parametrize(("name", "arguments", "make", "true", "pred"), CASES)
def test_metric(rng, name, arguments, make, true, pred):
    y, p = (a if a.dtype.kind == "i" else a.astype(np.float32) for a in make(rng, true, pred))
    for kind, weight in weights_for(rng, name, arguments, pred).items():
        w = None if weight is None else weight.astype(np.float32)
        batches = [(y[part], p[part], None if w is None else w[part]) for part in HALVES]
        ours = our_value(getattr(kdist.metrics, name)(**arguments), batches)
        theirs = keras_value(getattr(keras.metrics, name)(**arguments), batches)
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6, err_msg=f"weights: {kind}")


@pytest.mark.parametrize("name", ["Precision", "Recall", "AUC"])
def test_weight_a_row_counts_for_every_output(rng, name):
    """Keras refuses weights ``(N,)`` for predictions ``(N, C)`` here; kdist repeats them."""
    y, p = (a.astype(np.float32) for a in bits(rng, (N, C), (N, C)))
    w = rng.uniform(0, 2, N)
    ours = getattr(kdist.metrics, name)()(y, p, w)
    theirs = keras_value(getattr(keras.metrics, name)(), [(y, p, np.repeat(w[:, None], C, 1))])
    assert ours == pytest.approx(float(theirs), rel=2e-5)


@pytest.mark.parametrize("name", sorted({name for name, *_ in METRICS}))
def test_default_names_are_those_of_keras(name):
    keras.utils.clear_session()  # Keras numbers the names of further objects of a class
    assert getattr(kdist.metrics, name)().name == getattr(keras.metrics, name)().name


@pytest.mark.parametrize("name", sorted({name for name, *_ in METRICS}))
def test_direction_is_that_of_keras(name):
    assert getattr(kdist.metrics, name)().direction == getattr(keras.metrics, name)()._direction

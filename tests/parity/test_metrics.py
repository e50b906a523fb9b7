"""Every metric of kdist against the one of that name in Keras: values over two batches, with and without weights and
with rows that only fill a batch, options, signatures, names and directions."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdist

from .tables import first_of_each

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


def signs(rng, true, pred):
    return rng.choice([-1.0, 1.0], true), rng.normal(size=pred)


def classes_of_both(rng, true, pred):
    return rng.integers(-1, C + 1, true), rng.integers(-1, C + 1, pred)


def sorted_ids(rng, true, pred):
    return rng.integers(0, pred[-1], true), rng.permuted(np.broadcast_to(np.arange(pred[-1]), pred), axis=-1)


def far_from_zero(rng, true, pred):
    return rng.normal(20, 1, true), rng.normal(20, 1, pred)


def labels_and_ties(rng, true, pred):
    return rng.integers(0, pred[-1], true), rng.integers(0, 3, pred).astype(float)


def labels_out_of_range(rng, true, pred):
    return rng.integers(-2, pred[-1] + 2, true), rng.normal(size=pred)


ROWS, COLUMN, STEPS = ((N, C), (N, C)), ((N,), (N, 1)), ((N, T, C), (N, T, C))
COLUMNS = ((N, 1), (N, 1))  # where Keras's metric, unlike its loss, does not align (N,) with (N, 1)
LABELS, LABEL_COLUMN, LABEL_STEPS = ((N,), (N, C)), ((N, 1), (N, C)), ((N, T), (N, T, C))
MANY = ((N,), (N, 8))

IMAGES = ((N, T, T), (N, T, T))

METRICS = [
    ("MeanSquaredError", {}, signed, [ROWS, COLUMN, STEPS]),
    ("RootMeanSquaredError", {}, signed, [ROWS, COLUMN, STEPS]),
    ("MeanAbsoluteError", {}, signed, [ROWS, COLUMN, STEPS]),
    ("MeanAbsolutePercentageError", {}, signed, [ROWS, COLUMN, STEPS]),
    ("MeanSquaredLogarithmicError", {}, positive, [ROWS, COLUMN, STEPS]),
    ("LogCoshError", {}, signed, [ROWS, COLUMN, STEPS]),
    ("Hinge", {}, signs, [ROWS, COLUMNS, STEPS]),
    ("Hinge", {}, bits, [ROWS]),
    ("SquaredHinge", {}, signs, [ROWS, COLUMNS, STEPS]),
    ("SquaredHinge", {}, bits, [COLUMNS]),
    ("CategoricalHinge", {}, one_hot, [ROWS, STEPS]),
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
    ("SparseTopKCategoricalAccuracy", {"k": 2, "from_sorted_ids": True}, sorted_ids, [LABELS]),
    ("TruePositives", {}, bits, [ROWS, COLUMN]),
    ("TrueNegatives", {}, bits, [ROWS, COLUMN]),
    ("FalsePositives", {}, bits, [ROWS, COLUMN]),
    ("FalseNegatives", {}, bits, [ROWS, COLUMN]),
    ("TruePositives", {"thresholds": [0.8, 0.2]}, bits, [COLUMN]),
    ("TrueNegatives", {"thresholds": [0.8, 0.2]}, bits, [COLUMN]),
    ("FalsePositives", {"thresholds": [0.0, 0.5, 1.0]}, bits, [COLUMN]),
    ("FalseNegatives", {"thresholds": [0.7]}, bits, [COLUMN]),
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
    ("AUC", {"num_thresholds": 7}, logits_of_bits, [COLUMN]),  # beyond [0, 1]
    ("AUC", {"curve": "PRGAIN"}, bits, [ROWS, COLUMN]),
    ("AUC", {"curve": "prgain", "summation_method": "Minoring", "num_thresholds": 9}, bits, [COLUMN]),
    ("AUC", {"curve": "PRGAIN", "summation_method": "majoring", "num_thresholds": 9}, bits, [COLUMN]),
    ("AUC", {"multi_label": True}, bits, [ROWS]),
    ("AUC", {"multi_label": True, "num_labels": C, "curve": "PR"}, bits, [ROWS]),
    ("AUC", {"multi_label": True, "label_weights": [0.5, 0.0, 2.0], "num_thresholds": 9}, bits, [ROWS]),
    ("AUC", {"multi_label": True, "label_weights": [0.5, 0.0, 2.0], "curve": "pr"}, bits, [ROWS]),
    ("AUC", {"multi_label": True, "thresholds": [0.2, 0.3, 0.9]}, bits, [ROWS]),
    ("AUC", {"label_weights": [0.5, 0.0, 2.0], "num_thresholds": 9}, bits, [ROWS]),
    ("SensitivityAtSpecificity", {"specificity": 0.5}, bits, [ROWS, COLUMN]),
    ("SensitivityAtSpecificity", {"specificity": 0.4, "num_thresholds": 5, "class_id": 1}, bits, [ROWS]),
    ("SpecificityAtSensitivity", {"sensitivity": 0.5}, bits, [ROWS, COLUMN]),
    ("SpecificityAtSensitivity", {"sensitivity": 0.3, "num_thresholds": 1}, bits, [ROWS]),
    ("PrecisionAtRecall", {"recall": 0.5}, bits, [ROWS, COLUMN]),
    ("PrecisionAtRecall", {"recall": 0.2, "num_thresholds": 9}, bits, [COLUMN]),
    ("RecallAtPrecision", {"precision": 0.5}, bits, [ROWS, COLUMN]),
    ("RecallAtPrecision", {"precision": 0.99, "class_id": 0}, bits, [ROWS]),
    ("FBetaScore", {}, one_hot, [ROWS]),
    ("FBetaScore", {"beta": 0.5, "average": "macro"}, one_hot, [ROWS]),
    ("FBetaScore", {"beta": 2.0, "average": "weighted", "threshold": 0.4}, bits, [ROWS, COLUMNS]),
    ("FBetaScore", {"beta": 2.0, "average": "micro", "threshold": 0.4}, bits, [ROWS]),
    ("F1Score", {}, one_hot, [ROWS]),
    ("F1Score", {"average": "micro"}, one_hot, [ROWS]),
    ("F1Score", {"average": "macro", "threshold": 0.5}, bits, [ROWS, COLUMNS]),
    ("IoU", {"num_classes": C, "target_class_ids": [0, 2]}, classes_of_both, [((N,), (N,)), IMAGES]),
    ("IoU", {"num_classes": C, "target_class_ids": [0, 2], "ignore_class": 0}, classes_of_both, [IMAGES]),
    ("IoU", {"num_classes": 9, "target_class_ids": [0, 8]}, classes_of_both, [IMAGES]),
    ("BinaryIoU", {}, bits, [COLUMNS, IMAGES]),
    ("BinaryIoU", {"target_class_ids": [1], "threshold": 0.3}, bits, [COLUMNS]),
    ("MeanIoU", {"num_classes": C}, classes_of_both, [((N,), (N,)), IMAGES]),
    ("MeanIoU", {"num_classes": C, "sparse_y_pred": False}, labels, [LABELS, LABEL_STEPS]),
    ("OneHotIoU", {"num_classes": C, "target_class_ids": [1]}, one_hot, [ROWS, STEPS]),
    ("OneHotMeanIoU", {"num_classes": C}, one_hot, [ROWS, STEPS]),
    ("OneHotMeanIoU", {"num_classes": C, "ignore_class": 1}, one_hot, [ROWS]),
    ("R2Score", {}, signed, [ROWS, COLUMN, COLUMNS]),
    ("R2Score", {"class_aggregation": None}, signed, [ROWS]),
    ("R2Score", {"class_aggregation": "variance_weighted_average"}, signed, [ROWS]),
    ("R2Score", {"num_regressors": 3}, signed, [ROWS, COLUMNS]),
    ("PearsonCorrelation", {}, signed, [ROWS, STEPS]),
    ("PearsonCorrelation", {"axis": 1}, far_from_zero, [((N, C, C), (N, C, C))]),
    ("ConcordanceCorrelation", {}, signed, [ROWS, STEPS]),
    ("ConcordanceCorrelation", {}, far_from_zero, [ROWS]),
]

ONLY_OURS = {"Metric", "LossMean", "ForeignMetric"}
OF_VALUES = {"Mean", "Sum"}

CASES = first_of_each(
    pytest.param(name, arguments, make, true, pred, id=f"{name}-{arguments}-{make.__name__}-{true}-{pred}")
    for name, arguments, make, layouts in METRICS
    for true, pred in layouts
)


NO_ARGUMENTS = {"num_classes": 3, "target_class_ids": [0], "specificity": 0.5, "sensitivity": 0.5}
NO_ARGUMENTS |= {"recall": 0.5, "precision": 0.5}


def default(cls):
    """An object of a class, with some value where there is no default."""
    parameters = inspect.signature(cls).parameters.values()
    return cls(**{p.name: NO_ARGUMENTS[p.name] for p in parameters if p.default is p.empty})


def weights_for(rng, name, true, pred):
    if name.endswith("IoU"):  # Keras wants whole numbers, one for each label
        return {"none": None, "a label": rng.integers(0, 3, true[:-1] if name.startswith("OneHot") else true)}
    if name == "R2Score":  # Keras takes rows of weight 0 for rows when it adjusts the score
        return {"none": None, "a row": rng.uniform(0.1, 2, pred[0])}
    found = {"none": None, "a row": rng.uniform(-1, 2, pred[0]).clip(0)}  # some of them 0
    if len(pred) == 3 and issubclass(getattr(kdist.metrics, name), kdist.metrics.MeanMetric):
        found["a step"] = rng.uniform(0, 2, pred[:2])
    return found


def keras_value(metric, batches):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Explicitly requested dtype int64")  # by Keras's table of confusions, on JAX
        for y, p, w in batches:
            metric.update_state(y, p, w)
    return np.asarray(metric.result())


def added_up(metric, batches):
    """The metric over batches as a fit computes it: the sums of each, added up in float64, and their result."""
    sums = []
    for y, p, w in batches:
        y, p = jnp.asarray(y), jnp.asarray(p, jnp.float32)
        sums.append(metric.sums(y, p, None if w is None else metric.weigh(y, p, jnp.asarray(w, jnp.float32))))
    exact = jax.tree.map(lambda *parts: sum(np.asarray(a, np.float64) for a in parts), *sums)
    return np.asarray(metric.result(exact))


def in_batches(y, p, w, *bounds):
    return [(y[part], p[part], None if w is None else w[part]) for part in bounds]


def test_every_metric_is_compared():
    public = {name for name, thing in vars(kdist.metrics).items() if isinstance(thing, type) and name[0] != "_"}
    ours = {name for name in public if issubclass(getattr(kdist.metrics, name), kdist.metrics.Metric)}
    assert {name for name, *_ in METRICS} == ours - ONLY_OURS - OF_VALUES - {"MeanMetric", "MeanMetricWrapper"}
    theirs = {n for n, t in vars(keras.metrics).items() if isinstance(t, type) and issubclass(t, keras.metrics.Metric)}
    assert ours - ONLY_OURS - {"MeanMetric"} == theirs - {"Metric"}


@pytest.mark.parametrize(("name", "arguments", "make", "true", "pred"), CASES)
def test_metric(rng, name, arguments, make, true, pred):
    y, p = (a if a.dtype.kind == "i" else a.astype(np.float32) for a in make(rng, true, pred))
    for kind, weight in weights_for(rng, name, true, pred).items():
        w = weight if weight is None or weight.dtype.kind == "i" else weight.astype(np.float32)
        theirs = keras_value(getattr(keras.metrics, name)(**arguments), in_batches(y, p, w, *HALVES))
        metric = getattr(kdist.metrics, name)(**arguments)
        ours = added_up(metric, in_batches(y, p, w, *HALVES))
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6, err_msg=f"weights: {kind}")


@pytest.mark.parametrize(("name", "arguments", "make", "true", "pred"), first_of_each(CASES, of=1))
def test_how_rows_lie_in_batches_does_not_matter(rng, name, arguments, make, true, pred):
    y, p = (a if a.dtype.kind == "i" else a.astype(np.float32) for a in make(rng, true, pred))
    for weight in weights_for(rng, name, true, pred).values():
        w = weight if weight is None or weight.dtype.kind == "i" else weight.astype(np.float32)
        check_rows_do_not_matter(getattr(kdist.metrics, name)(**arguments), y, p, w)


def check_rows_do_not_matter(metric, y, p, w):
    """One batch, batches of one row and a half, and rows of weight 0 in front: the same as two halves."""
    halves = added_up(metric, in_batches(y, p, w, *HALVES))
    pieces = [*(slice(i, i + 1) for i in range(N // 2)), HALVES[1]]  # few sizes: each is compiled for
    for bounds in ([slice(N)], pieces):
        np.testing.assert_allclose(added_up(metric, in_batches(y, p, w, *bounds)), halves, rtol=1e-5, atol=1e-6)
    if w is None and "ignore_class" in getattr(metric, "arguments", {}) and metric.arguments["ignore_class"]:
        return  # Keras's, without weights, counts labels that are ignored
    kept = np.ones(N, np.float32) if w is None else w
    filled = [[np.concatenate([a, a]) for a in half] for half in in_batches(y, p, kept, *HALVES)]
    for *_, weight in filled:
        weight[: N // 2] = 0
    np.testing.assert_allclose(added_up(metric, filled), halves, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [None, (N,), (N, T)], ids=str)
@pytest.mark.parametrize("name", sorted(OF_VALUES))
def test_reductions_of_values(rng, name, weights):
    values = rng.normal(size=(N, T, C)).astype(np.float32)
    weight = None if weights is None else rng.uniform(size=weights).astype(np.float32)
    theirs, ours = getattr(keras.metrics, name)(), getattr(kdist.metrics, name)()
    theirs.update_state(values, sample_weight=weight)
    np.testing.assert_allclose(ours(values, sample_weight=weight), float(theirs.result()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["Precision", "Recall", "AUC", "TruePositives"])
def test_weights_of_outputs(rng, name):
    y, p = (a.astype(np.float32) for a in bits(rng, (N, C), (N, C)))
    w = rng.uniform(0, 2, (N, C)).astype(np.float32)
    ours = getattr(kdist.metrics, name)()(y, p, w)
    assert ours == pytest.approx(float(keras_value(getattr(keras.metrics, name)(), [(y, p, w)])), rel=2e-5)


NAMES = sorted({name for name, *_ in METRICS} | OF_VALUES | {"MeanMetricWrapper"})


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_those_of_keras(name):
    """Arguments, their order and their defaults but for names; what kdist takes beyond them comes after."""
    ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (kdist.metrics, keras.metrics))
    kwargs = [p.name for p in theirs.values() if p.kind is not p.VAR_KEYWORD]
    assert list(ours)[: len(kwargs)] == kwargs
    for argument in set(kwargs) - {"name", "fn"}:
        assert ours[argument].default == theirs[argument].default, argument


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"MeanMetricWrapper"}))
def test_names_and_directions_are_those_of_keras(name):
    keras.utils.clear_session(free_memory=False)  # Keras numbers the names of further objects of a class
    ours, theirs = default(getattr(kdist.metrics, name)), default(getattr(keras.metrics, name))
    assert ours.name == theirs.name
    assert ours.direction == getattr(theirs, "_direction", None)


def test_every_string_of_keras_is_known():
    """Those whose class needs arguments, or a function, are refused; accuracy is found by shapes."""
    from keras.src.metrics import ALL_OBJECTS_DICT

    for string, cls in ALL_OBJECTS_DICT.items():
        if string in ("Metric", "metric", "MeanMetricWrapper", "mean_metric_wrapper", "Accuracy", "accuracy"):
            continue
        needs = [p for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
        if needs or cls.__name__ in OF_VALUES:
            with pytest.raises(kdist.errors.ConfigError, match=needs[0].name if needs else "fn="):
                kdist.metrics.get(string)
            assert string not in kdist.metrics.names()
        else:
            assert type(kdist.metrics.get(string)).__name__ == cls.__name__
            assert string in kdist.metrics.names()


def test_weights_of_iou_are_not_truncated(rng):
    """Keras's table of confusions has integers: there, weights of 0.9 are 0."""
    y, p = rng.integers(0, C, N), rng.integers(0, C, N)
    weight = np.full(N, 0.9, np.float32)
    with pytest.warns(UserWarning, match="Consider using integer weights"):
        assert keras_value(keras.metrics.MeanIoU(C), [(y, p, weight)]) == 0
    assert kdist.metrics.MeanIoU(C)(y, p, weight) == pytest.approx(kdist.metrics.MeanIoU(C)(y, p))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int8", "float16", "bool"])
def test_targets_of_any_dtype_are_computed_with_in_float32(dtype):
    """Through a model, which casts them: 0 - 1 of an unsigned integer is 255."""
    rng = np.random.default_rng(0)
    y, p = (rng.uniform(size=(N, C)) > 0.5).astype(dtype), rng.normal(size=(N, C)).astype(np.float32)
    names = ["hinge", "squared_hinge", "mae", "mape", "msle", "cosine_similarity", "poisson"]
    model = kdist.Model((lambda key, x: {}, lambda params, x: x))
    model.compile(None, "mse", metrics=names, distribution=kdist.DataParallel(devices=jax.devices()[:1]))
    found = model.evaluate(p, y, verbose=0, return_dict=True)
    for name in names:
        metric = keras.metrics.get(name)
        metric = keras.metrics.MeanMetricWrapper(metric) if inspect.isfunction(metric) else metric
        metric.update_state(y, p)
        np.testing.assert_allclose(found[name], metric.result(), rtol=1e-5, err_msg=name)

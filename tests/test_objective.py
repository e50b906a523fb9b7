"""Objective: which loss and metric each output has, under which names and in which order they are logged."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdist import losses, metrics
from kdist.errors import ConfigError, DataError
from kdist.objective import Objective, Outputs, Plan


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


ONE = array(8, 3)
PAIR = [array(8, 3), array(8, 1)]
NAMED = {"digit": array(8, 3), "ink": array(8, 1)}
Y_ONE = array(8, 3)
Y_PAIR = [array(8, 3), array(8, 1)]


def names(outputs, y, loss, given=None, weighted=None, output_names=None):
    plan = Plan.of(loss, None, given, weighted)
    return list(Objective(plan, Outputs(outputs, output_names), y).log_names)


@pytest.mark.parametrize(
    ("given", "weighted", "expected"),
    [
        (None, None, []),
        (["mse"], None, ["mse"]),
        (["MSE", "accuracy"], None, ["MSE", "accuracy"]),
        (["acc", metrics.MeanAbsoluteError()], None, ["acc", "mean_absolute_error"]),
        ([metrics.MeanAbsoluteError(name="off")], None, ["off"]),
        ([["mse"], ["mae"]], None, ["mse", "mae"]),
        ({"anything": "mse"}, None, ["mse"]),
        (["mse", "mse", "mse"], None, ["mse", "mse_1", "mse_2"]),
        (["mse"], ["mse"], ["mse", "weighted_mse"]),
        (["mse"], ["mse", "mse"], ["mse", "weighted_mse", "weighted_mse_1"]),
        (["mse"], ["mae"], ["mse", "mae"]),
        (None, ["mse"], ["mse"]),
        ([lambda y, p: p.mean(-1)], None, ["lambda"]),
    ],
)
def test_names_of_one_output(given, weighted, expected):
    assert names(ONE, Y_ONE, "mse", given, weighted) == ["loss", *expected]


@pytest.mark.parametrize(
    ("outputs", "output_names", "loss", "given", "weighted", "expected"),
    [
        (PAIR, None, "mse", None, None, ["output_0_loss", "output_1_loss"]),
        (PAIR, None, ["mse", "mae"], None, None, ["output_0_loss", "output_1_loss"]),
        (PAIR, None, ["mse", None], None, None, []),
        (PAIR, ("a", "b"), "mse", None, None, ["a_loss", "b_loss"]),
        (NAMED, None, "mse", None, None, ["digit_loss", "ink_loss"]),
        (NAMED, None, {"ink": "mse", "digit": "mae"}, None, None, ["digit_loss", "ink_loss"]),
        (NAMED, None, {"ink": "mse"}, None, None, []),
        (NAMED, ("ink", "digit"), "mse", None, None, ["ink_loss", "digit_loss"]),
        (NAMED, None, "mse", ["mse", "mae"], None, ["digit_loss", "ink_loss", "digit_mse", "ink_mae"]),
        (NAMED, None, "mse", [["mse", "mae"], None], None, ["digit_loss", "ink_loss", "digit_mse", "digit_mae"]),
        (NAMED, None, "mse", {"ink": "mse"}, None, ["digit_loss", "ink_loss", "ink_mse"]),
        (
            NAMED,
            None,
            "mse",
            {"digit": ["mse"], "ink": ["mse"]},
            {"ink": ["mse", "mae"]},
            ["digit_loss", "ink_loss", "digit_mse", "ink_mse", "ink_weighted_mse", "ink_mae"],
        ),
        (PAIR, None, ["mse", None], [["mse"], ["mae"]], None, ["output_0_mse", "output_1_mae"]),
        (PAIR, None, ["mse", None], [["mse"], ["mse"]], None, ["output_0_mse", "output_1_mse"]),
        (tuple(PAIR), None, "mse", None, None, ["output_0_loss", "output_1_loss"]),
    ],
)
def test_names_of_several_outputs(outputs, output_names, loss, given, weighted, expected):
    y = {"digit": Y_PAIR[0], "ink": Y_PAIR[1]} if isinstance(outputs, dict) else Y_PAIR
    assert names(outputs, y, loss, given, weighted, output_names) == ["loss", *expected]


@pytest.mark.parametrize(
    ("outputs", "y", "plan", "error", "message"),
    [
        (PAIR, Y_PAIR, {"loss": ["mse"]}, ConfigError, "loss has 1 entries, but the model has 2 outputs"),
        (PAIR, Y_PAIR, {"loss": ["mse"] * 3}, ConfigError, "loss has 3 entries, but the model has 2 outputs"),
        (ONE, Y_ONE, {"loss": ["mse", "mae"]}, ConfigError, "loss has 2 entries, but the model has 1 outputs"),
        (NAMED, None, {"loss": {"digits": "mse"}}, ConfigError, "loss has the key 'digits', but the model's outputs"),
        (
            NAMED,
            Y_PAIR,
            {"loss": "mse", "loss_weights": {"ik": 1.0}},
            ConfigError,
            "loss_weights has the key 'ik', but the model's outputs are",
        ),
        (PAIR, Y_PAIR, {"loss": "mse", "loss_weights": [1.0]}, ConfigError, "loss_weights has 1 entries"),
        (NAMED, Y_PAIR, {"loss": "mse", "loss_weights": {"ink": 1.0}}, ConfigError, "'digit' .*no number for it"),
        (PAIR, Y_PAIR, {"loss": {"output_0": "mse"}}, ConfigError, "loss has no entry for the output 'output_1'"),
        (PAIR, Y_PAIR, {"loss": "mse", "metrics_": ["mse"]}, ConfigError, "metrics has 1 entries"),
        (PAIR, Y_PAIR, {"loss": "mse", "weighted_metrics": ["mse"] * 3}, ConfigError, "weighted_metrics has 3 entries"),
        (NAMED, Y_PAIR, {"loss": "mse", "metrics_": {"x": "mse"}}, ConfigError, "metrics has the key 'x'"),
        (
            ONE,
            Y_ONE,
            {"loss": "mse", "metrics_": [metrics.MeanMetric(lambda y, p: p, name="loss")]},
            ConfigError,
            "twi",
        ),
        (ONE, Y_ONE, {"loss": "mse", "metrics_": [None]}, ConfigError, "Expected a metric in metrics. Received: None"),
        (PAIR, array(8, 3), {"loss": "mse"}, DataError, "y is one array, but the model has 2 outputs"),
        (PAIR, [array(8, 3)], {"loss": "mse"}, DataError, "y has 1 entries, but the model has 2 outputs"),
        (NAMED, {"digits": array(8, 3)}, {"loss": "mse"}, DataError, "y has the key 'digits'"),
        (NAMED, {"digit": array(8, 3)}, {"loss": "mse"}, DataError, "'ink' has a loss, but y has no targets for it"),
        (
            NAMED,
            {"digit": array(8, 3)},
            {"loss": {"digit": "mse"}, "metrics_": {"ink": "mse"}},
            DataError,
            "'ink' has metrics, but y has no targets for it",
        ),
        (ONE, array(8, 4), {"loss": "mse"}, DataError, "'output_0', loss 'mse': Targets of shape rows x 4"),
        (ONE, array(8, 2), {"loss": "mse"}, DataError, "cannot be compared"),
        (ONE, array(8, 4), {"loss": "sparse_categorical_crossentropy"}, DataError, "for one-hot targets use"),
        (ONE, Y_ONE, {"loss": "mse", "metrics_": ["sparse_categorical_accuracy"]}, DataError, "metric 'sparse_cat"),
        (ONE, Y_ONE, {"loss": lambda y, p: y @ p}, DataError, "it cannot be computed for targets of shape"),
    ],
)
def test_what_does_not_fit_is_refused_when_bound(outputs, y, plan, error, message):
    if y is Y_PAIR and isinstance(outputs, dict):
        y = dict(zip(outputs, Y_PAIR, strict=True))
    with pytest.raises(error, match=message):
        Objective(Plan.of(**plan), Outputs(outputs), y)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"loss": "msee"}, "Did you mean 'mse'"),
        ({"loss": {"a": ["mse", "huuber"]}}, "Did you mean 'huber'"),
        ({"loss": "mse", "metrics_": ["accurracy"]}, "Did you mean 'accuracy'"),
        ({"loss": "mse", "weighted_metrics": {"a": "precison"}}, "Did you mean 'precision'"),
        ({"loss": "mse", "metrics_": "accuracy"}, "metrics must be a list, a tuple or a dict"),
        ({"loss": "mse", "loss_weights": ["accuracy"]}, "loss_weights, the third argument of compile"),
        ({"loss": "mse", "loss_weights": True}, "must be a number"),
        ({"loss": "mse", "loss_weights": {"a": np.ones(2)}}, "must be a number"),
    ],
)
def test_what_no_shape_can_mend_is_refused_when_compiled(plan, message):
    with pytest.raises(ConfigError, match=message):
        Plan.of(**plan)


@pytest.mark.parametrize("given", [None, 2, 0.5, [1, None], {"a": 1}])
def test_loss_weights_are_numbers(given):
    assert Plan.of("mse", given).loss_weights == given


def test_a_module_that_names_too_many_outputs():
    with pytest.raises(ConfigError, match="names 3 outputs"):
        Outputs(PAIR, ("a", "b", "c"))


def test_broadcasting_is_warned_of():
    with pytest.warns(UserWarning, match=r"loss 'mse' compares targets of shape \(8, 1\) with predictions of shape"):
        Objective(Plan.of("mse"), Outputs(ONE), array(8, 1))


@pytest.mark.parametrize(
    ("loss", "y", "pred"),
    [
        ("mse", array(8), array(8, 1)),
        ("sparse_categorical_crossentropy", array(8, 1, dtype=jnp.int32), ONE),
        ("mse", array(8, 5), array(8, 5, 1)),
    ],
)
def test_what_is_aligned_is_not_warned_of(loss, y, pred):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Objective(Plan.of(loss), Outputs(pred), y)


def test_accuracy_of_several_labels_a_row_is_warned_of():
    with pytest.warns(UserWarning, match="use 'binary_accuracy'"):
        names(ONE, Y_ONE, "binary_crossentropy", ["accuracy"])


def test_crossentropy_is_resolved_by_shapes():
    plan = Plan.of("crossentropy", metrics_=[["accuracy", "ce"], ["acc", "crossentropy"]])
    objective = Objective(plan, Outputs(PAIR), [array(8, dtype=jnp.int32), array(8)])
    sums = objective.metric_sums(
        [np.arange(8) % 3, np.ones(8)], [np.full((8, 3), 1 / 3), np.full((8, 1), 0.25)], None, None
    )
    found = {name: float(np.divide(*sums[name])) for name in ("output_0_ce", "output_1_acc", "output_1_crossentropy")}
    expected = {"output_0_ce": np.log(3), "output_1_acc": 0.0, "output_1_crossentropy": np.log(4)}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "given", "exact"),
    [
        ("mse", ["mae", metrics.AUC()], False),
        (lambda y, p: ((y - p) ** 2).mean(), None, True),
        (lambda y, p: ((y - p) ** 2).mean(-1), None, False),
        ("mse", [lambda y, p: p.max()], True),
    ],
)
def test_whether_batches_can_be_padded(loss, given, exact):
    assert Objective(Plan.of(loss, None, given), Outputs(array(8, 3)), Y_ONE).exact is exact


class TestSums:
    """The numbers of two outputs through `loss_sums`, `step_sums` and `results`."""

    y = [np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32)]
    pred = [np.array([[1.0], [2.0], [3.0], [4.0]], np.float32), np.array([[2.0], [2.0], [2.0], [2.0]], np.float32)]
    shapes = [array(4, 1), array(4, 1)]

    def results(self, plan, weight=None, valid=None, names=("a", "b")):
        objective = Objective(plan, Outputs(self.shapes, names), self.shapes)
        sums = objective.loss_sums(self.y, self.pred, weight, valid)
        metric_sums = objective.metric_sums(self.y, self.pred, weight, valid)
        rows = jnp.float32(4 if valid is None else valid.sum())
        totals = objective.step_sums(sums, rows, metric_sums)
        return objective.results(jax.tree.map(lambda a: np.asarray(a, np.float64), totals))

    def test_total_is_the_weighted_sum(self):
        found = self.results(Plan.of(["mse", "mae"], [0.1, 0.5], [["mae"], None]))
        assert found == pytest.approx({"loss": 0.75 + 1.0, "a_loss": 7.5, "b_loss": 2.0, "a_mae": 2.5})
        assert list(found) == ["loss", "a_loss", "b_loss", "a_mae"]

    @pytest.mark.parametrize("given", [2, {"a": 2, "b": 2}, [2, 2.0]])
    def test_forms_of_loss_weights(self, given):
        assert self.results(Plan.of("mse", given))["loss"] == pytest.approx(2 * 7.5 + 2 * 4.0)

    @pytest.mark.parametrize("given", [{"a": 3, "b": None}, [3, None]])
    def test_an_output_without_a_weight_counts_once(self, given):
        assert self.results(Plan.of("mse", given))["loss"] == pytest.approx(3 * 7.5 + 4.0)

    def test_weights_reach_losses_and_weighted_metrics_only(self):
        w = np.array([1.0, 0.0, 0.0, 1.0], np.float32)
        found = self.results(Plan.of("mse", None, [["mae"], None], [["mae"], None]), w)
        assert found == pytest.approx(
            {"loss": 17 / 4 + 8 / 4, "a_loss": 17 / 4, "b_loss": 8 / 4, "a_mae": 2.5, "a_weighted_mae": 2.5}
        )
        found = self.results(Plan.of("mse", None, [["mae"], None], [["mae"], None]), np.array([4.0, 0, 0, 0], "f4"))
        assert (found["a_mae"], found["a_weighted_mae"]) == (2.5, 1.0)

    def test_weights_by_output(self):
        w = np.array([0.0, 0.0, 0.0, 2.0], np.float32)
        for weight in ((w, None), {"a": w}):
            found = self.results(Plan.of("mse"), weight)
            assert found == pytest.approx({"loss": 8.0 + 4.0, "a_loss": 8.0, "b_loss": 4.0})

    def test_padding_counts_nowhere(self):
        found = self.results(
            Plan.of("mse", None, [["mae"], [metrics.Recall(name="hits")]]), valid=np.array([1.0, 1, 0, 0], np.float32)
        )
        assert found == pytest.approx({"loss": 2.5 + 4.0, "a_loss": 2.5, "b_loss": 4.0, "a_mae": 1.5, "b_hits": 0.0})

    def test_losses_that_are_averaged_alike_share_a_gradient(self):
        plan = Plan.of(["mse", losses.MeanSquaredError(reduction="sum")])
        objective = Objective(plan, Outputs(self.shapes), self.shapes)
        assert objective.groups(objective.loss_sums(self.y, self.pred, None, None)) == [[0], [1]]
        objective = Objective(Plan.of("mse"), Outputs(self.shapes), self.shapes)
        assert objective.groups(objective.loss_sums(self.y, self.pred, None, None)) == [[0, 1]]


@pytest.mark.parametrize(
    ("labels", "ignored", "message"),
    [
        ([0, 1, 3, 2], None, "Found 1 others; the first is 3 at index 2"),
        ([0, -1, 9, 2], None, r"must be integers in 0 \.\. 2, .* Found 2 others; the first is -1 at index 1"),
        ([0, -1, 9, 2], -1, "Found 1 others; the first is 9 at index 2"),
        ([[0, 1], [2, 5]], None, r"the first is 5 at index \(1, 1\)"),
        ([0.0, np.nan, 1.0], None, "the first is nan at index 1"),
    ],
)
def test_labels_that_are_no_class(labels, ignored, message):
    labels = np.array(labels)
    loss = losses.SparseCategoricalCrossentropy(ignore_class=ignored)
    objective = Objective(Plan.of(loss), Outputs(array(*labels.shape, 3)), array(*labels.shape, dtype=labels.dtype))
    with pytest.raises(DataError, match=message):
        objective.check_labels(labels)


@pytest.mark.parametrize(
    ("loss", "labels"),
    [("sparse_categorical_crossentropy", [0, 1, 2]), ("sparse_categorical_crossentropy", [[0], [1], [2]])],
)
def test_labels_that_are_classes(loss, labels):
    labels = np.array(labels)
    objective = Objective(Plan.of(loss), Outputs(array(3, 3)), array(*labels.shape, dtype=jnp.int32))
    objective.check_labels(labels)
    assert objective.trainable

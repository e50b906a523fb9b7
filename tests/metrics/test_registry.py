"""What `get` makes of names, objects, classes and functions, and the rule for "accuracy" and "crossentropy"."""

import functools

import pytest

from kdist import losses, metrics
from kdist.errors import ConfigError


@pytest.mark.parametrize("name", ["accuracy", "acc", "Accuracy", "ACC"])
@pytest.mark.parametrize(
    ("true", "pred", "cls"),
    [
        ((8,), (8, 1), metrics.BinaryAccuracy),
        ((8, 1), (8, 1), metrics.BinaryAccuracy),
        ((8, 5), (8, 5, 1), metrics.BinaryAccuracy),
        ((8,), (8,), metrics.BinaryAccuracy),
        ((8,), (8, 3), metrics.SparseCategoricalAccuracy),
        ((8, 1), (8, 3), metrics.SparseCategoricalAccuracy),
        ((8, 5), (8, 5, 3), metrics.SparseCategoricalAccuracy),
        ((8, 3), (8, 3), metrics.CategoricalAccuracy),
        ((8, 5, 3), (8, 5, 3), metrics.CategoricalAccuracy),
    ],
)
def test_the_accuracy_rule(name, true, pred, cls):
    bound = metrics.for_shapes(metrics.get(name), true, pred)
    assert type(bound) is cls and bound.name == name


@pytest.mark.parametrize(
    ("true", "pred", "cls"),
    [
        ((8,), (8, 1), metrics.BinaryCrossentropy),
        ((8,), (8, 3), metrics.SparseCategoricalCrossentropy),
        ((8, 3), (8, 3), metrics.CategoricalCrossentropy),
    ],
)
@pytest.mark.parametrize("name", ["crossentropy", "ce", "CE"])
def test_crossentropy_by_shape(name, true, pred, cls):
    bound = metrics.for_shapes(metrics.get(name), true, pred)
    assert type(bound) is cls and bound.name == name


@pytest.mark.parametrize(
    ("identifier", "cls", "name", "direction"),
    [
        ("mse", metrics.MeanSquaredError, "mse", "down"),
        ("MSE", metrics.MeanSquaredError, "MSE", "down"),
        ("mean_squared_error", metrics.MeanSquaredError, "mean_squared_error", "down"),
        ("KLD", metrics.KLDivergence, "KLD", "down"),
        ("AUC", metrics.AUC, "AUC", "up"),
        ("auc", metrics.AUC, "auc", "up"),
        ("f_beta_score", metrics.FBetaScore, "f_beta_score", "up"),
        ("binary_io_u", metrics.BinaryIoU, "binary_io_u", "up"),
        ("R2Score", metrics.R2Score, "R2Score", "up"),
        ("log_cosh_error", metrics.LogCoshError, "log_cosh_error", "down"),
        ("hinge", metrics.Hinge, "hinge", "down"),
        ("huber", metrics.LossMean, "huber", "down"),
        ("Huber", metrics.LossMean, "Huber", "down"),
        ("log_cosh", metrics.LossMean, "log_cosh", "down"),
        ("binary_focal_crossentropy", metrics.LossMean, "binary_focal_crossentropy", "down"),
        (metrics.Recall, metrics.Recall, "recall", "up"),
        (metrics.Recall(name="hits"), metrics.Recall, "hits", "up"),
        (losses.Huber(), metrics.LossMean, "huber_loss", "down"),
        (losses.huber, metrics.MeanMetric, "huber", "down"),
        (metrics.pearson_correlation, metrics.MeanMetric, "pearson_correlation", None),
        (functools.partial(losses.huber, delta=2.0), metrics.MeanMetric, "huber", None),
    ],
)
def test_get(identifier, cls, name, direction):
    metric = metrics.get(identifier)
    assert (type(metric), metric.name, metric.direction) == (cls, name, direction)


def test_every_name_is_accepted():
    for name in metrics.names():
        metric = metrics.get(name)
        assert metric == name if name.lower() in metrics.BY_SHAPE else metric.name == name


class OfKeras:
    """What a metric object of Keras looks like."""

    def update_state(self, y_true, y_pred):
        """Adds a batch."""

    def __call__(self, y_true, y_pred):
        return 0.0


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("acuracy", r"Unknown metric 'acuracy'\. Did you mean 'accuracy'\?"),
        ("Mse", r"Did you mean 'MSE'\?|Did you mean 'mse'\?"),
        ("io_u", r"without num_classes and target_class_ids\. .*kdist\.metrics\.IoU\(num_classes=\.\.\., target_class"),
        ("MeanIoU", r"without num_classes\."),
        ("precision_at_recall", r"kdist\.metrics\.PrecisionAtRecall\(recall=\.\.\.\)"),
        (metrics.SpecificityAtSensitivity, "without sensitivity"),
        (None, "Expected a metric"),
        (7, "Expected a metric"),
        (int, "Expected a metric"),
        (OfKeras(), r"Is kdist\.metrics\.OfKeras what you mean\?"),
    ],
)
def test_errors(identifier, message):
    with pytest.raises(ConfigError, match=message):
        metrics.get(identifier)


def test_the_name_of_keras_for_mean_metrics():
    assert metrics.MeanMetricWrapper is metrics.MeanMetric

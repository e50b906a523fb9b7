"""Losses from names, classes, objects and functions."""

import functools

import pytest

from kdist import losses
from kdist.errors import ConfigError


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (losses.mean_squared_error, "mean_squared_error"),
        (lambda y, p: p, "lambda"),
        (functools.partial(losses.huber, delta=2.0), "huber"),
    ],
)
def test_names_of_functions(fn, name):
    assert losses.get(fn).name == name


@pytest.mark.parametrize(
    ("identifier", "cls", "name"),
    [
        ("mse", losses.MeanSquaredError, "mse"),
        ("MSE", losses.MeanSquaredError, "MSE"),
        ("MeanSquaredError", losses.MeanSquaredError, "mean_squared_error"),
        ("KLDivergence", losses.KLDivergence, "kl_divergence"),
        (losses.Huber, losses.Huber, "huber_loss"),
        (losses.Huber(name="mine"), losses.Huber, "mine"),
        ("bce", losses.BinaryCrossentropy, "bce"),
        ("MSLE", losses.MeanSquaredLogarithmicError, "MSLE"),
        ("categorical_generalized_cross_entropy", losses.CategoricalGeneralizedCrossEntropy, None),
    ],
)
def test_get(identifier, cls, name):
    loss = losses.get(identifier)
    assert type(loss) is cls and loss.name == (name or identifier)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.get("Mse"), r"Unknown loss 'Mse'\. Did you mean 'mse'\?"),
        (lambda: losses.get("logcosh"), "Did you mean '(log_cosh|LogCosh)'"),
        (lambda: losses.get("zzzzzz"), r"Unknown loss 'zzzzzz'\. Known: "),
        (lambda: losses.get(3), "Expected a loss"),
        (lambda: losses.get(losses.MeanSquaredError(reduction=None)), "cannot be trained on"),
        (lambda: losses.Huber(reduction="average"), "Unknown reduction 'average'"),
    ],
)
def test_errors_of_get(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("true", "pred", "kind"),
    [
        ((8,), (8, 1), "binary"),
        ((8, 1), (8, 1), "binary"),
        ((8, 5), (8, 5, 1), "binary"),
        ((8,), (8,), "binary"),
        ((8,), (8, 3), "sparse"),
        ((8, 1), (8, 3), "sparse"),
        ((8, 5), (8, 5, 3), "sparse"),
        ((8, 3), (8, 3), "categorical"),
        ((8, 5, 3), (8, 5, 3), "categorical"),
    ],
)
def test_kind_of_targets(true, pred, kind):
    classes = {
        "binary": losses.BinaryCrossentropy,
        "sparse": losses.SparseCategoricalCrossentropy,
        "categorical": losses.CategoricalCrossentropy,
    }
    assert losses.target_kind(true, pred) == kind
    for name in losses.BY_SHAPE:
        loss = losses.for_shapes(losses.get(name), true, pred)
        assert type(loss) is classes[kind] and loss.name == name


CLASSES = [cls for cls in map(lambda n: getattr(losses, n), losses.__all__) if isinstance(cls, type)]
CLASSES = [cls for cls in CLASSES if issubclass(cls, losses.Loss) and cls not in (losses.Loss, losses.FunctionLoss)]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_loss_has_its_strings_and_its_function(cls):
    function = cls.fn
    for identifier in (cls.__name__, function.__name__, function, cls):
        assert type(losses.get(identifier)) is cls
    assert losses.get(cls.__name__).name == cls().name
    assert losses.get(function).name == losses.get(function.__name__).name == function.__name__
    assert getattr(losses, function.__name__) is function


@pytest.mark.parametrize(
    ("cls", "arguments", "across_rows", "compares_shapes", "class_axis"),
    [
        (losses.MeanSquaredError, {}, False, True, None),
        (losses.SparseCategoricalCrossentropy, {"axis": 1}, False, False, 1),
        (losses.CategoricalGeneralizedCrossEntropy, {}, False, False, -1),
        (losses.CTC, {}, False, False, None),
        (losses.Circle, {}, True, False, None),
        (losses.Dice, {}, True, True, None),
        (losses.Dice, {"axis": [0, 1]}, True, True, None),
        (losses.Dice, {"axis": (1, 2)}, False, True, None),
        (losses.Tversky, {"axis": 0}, True, True, None),
        (losses.Tversky, {"axis": -1}, False, True, None),
    ],
)
def test_what_a_loss_needs(cls, arguments, across_rows, compares_shapes, class_axis):
    loss = cls(**arguments)
    assert (loss.across_rows, loss.compares_shapes, loss.class_axis) == (across_rows, compares_shapes, class_axis)

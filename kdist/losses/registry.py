"""A loss from what `compile` accepts: a name, an object, a class or a function."""

from __future__ import annotations

import inspect
from typing import Any

from kdist.errors import ConfigError, unknown_name
from kdist.losses.base import Formula, FunctionLoss, Loss
from kdist.losses.crossentropy import BinaryCrossentropy, CategoricalCrossentropy, SparseCategoricalCrossentropy
from kdist.losses.focal import BinaryFocalCrossentropy, CategoricalFocalCrossentropy, CategoricalGeneralizedCrossEntropy
from kdist.losses.hinges import CategoricalHinge, Hinge, SquaredHinge
from kdist.losses.overlap import Dice, Tversky
from kdist.losses.regression import (
    CosineSimilarity,
    Huber,
    KLDivergence,
    LogCosh,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    Poisson,
)
from kdist.losses.sequence import CTC
from kdist.losses.shapes import target_kind
from kdist.losses.similarity import Circle
from kdist.naming import snake_case

_CLASSES: tuple[type[Formula], ...] = (
    CosineSimilarity,
    Huber,
    KLDivergence,
    LogCosh,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    Poisson,
    BinaryCrossentropy,
    CategoricalCrossentropy,
    SparseCategoricalCrossentropy,
    BinaryFocalCrossentropy,
    CategoricalFocalCrossentropy,
    CategoricalGeneralizedCrossEntropy,
    CategoricalHinge,
    Hinge,
    SquaredHinge,
    Dice,
    Tversky,
    Circle,
    CTC,
)
_SHORT: dict[str, type[Formula]] = {
    "bce": BinaryCrossentropy,
    "kld": KLDivergence,
    "mae": MeanAbsoluteError,
    "mape": MeanAbsolutePercentageError,
    "mse": MeanSquaredError,
    "msle": MeanSquaredLogarithmicError,
}
_BY_NAME: dict[str, type[Formula]] = {
    **{cls.__name__: cls for cls in _CLASSES},
    **{snake_case(cls.__name__): cls for cls in _CLASSES},
    **_SHORT,
    **{name.upper(): cls for name, cls in _SHORT.items()},
}
_BY_FUNCTION = {cls.fn: cls for cls in _CLASSES}

BY_SHAPE = ("crossentropy", "ce")
"""Names that stand for one of three losses, by the shapes of targets and predictions."""


def names() -> list[str]:
    """Every string that `get` accepts: a class's name, it in snake case, or a short form in lower or upper case.

    Example:
        >>> "Hinge" in names(), "squared_hinge" in names(), "MSE" in names()
        (True, True, True)
    """
    return sorted((*_BY_NAME, *BY_SHAPE))


def get(identifier: Any) -> Loss | str | None:
    """A loss from what `compile` accepts.

    Args:
        identifier: A name, a Loss, a Loss class, a callable ``(y_true, y_pred)``, or None.  One of kdist's own
            functions stands for its class.

    Returns:
        A Loss, one of the names in `BY_SHAPE` (which `for_shapes` resolves), or None.

    Raises:
        ConfigError: The name is unknown, or the thing is no loss.

    Example:
        >>> get("mse")
        <MeanSquaredError 'mse', reduction='sum_over_batch_size'>
    """
    if identifier is None or isinstance(identifier, Loss):
        loss = identifier
    elif isinstance(identifier, str):
        if identifier in BY_SHAPE:
            return identifier
        if identifier not in _BY_NAME:
            raise unknown_name("loss", identifier, names())
        cls = _BY_NAME[identifier]
        loss = cls() if identifier == cls.__name__ else cls(name=identifier)
    elif inspect.isclass(identifier) and issubclass(identifier, Loss):
        loss = identifier()
    elif inspect.isfunction(identifier) and identifier in _BY_FUNCTION:
        loss = _BY_FUNCTION[identifier](name=identifier.__name__)
    elif callable(identifier) and not inspect.isclass(identifier):
        loss = FunctionLoss(identifier)
    else:
        raise ConfigError(
            f"Expected a loss: a name, a kdist.losses.Loss or a callable (y_true, y_pred). Received: {identifier!r}."
        )
    if loss is not None and loss.reduction is None:
        raise ConfigError(
            f"{loss!r} cannot be trained on: its values are not reduced to one number. "
            "Use reduction='sum_over_batch_size' or 'sum'."
        )
    return loss


def for_shapes(loss: Loss | str, true_shape: tuple[int, ...], pred_shape: tuple[int, ...]) -> Loss:
    """`loss`, with "crossentropy" resolved for targets and predictions of these shapes.

    Args:
        loss: What `get` returned: a Loss, or one of the names in `BY_SHAPE`.
        true_shape: Shape of the targets, rows first.
        pred_shape: Shape of the predictions, rows first.

    Example:
        >>> for_shapes("crossentropy", (8,), (8, 3))
        <SparseCategoricalCrossentropy 'crossentropy', reduction='sum_over_batch_size'>
    """
    if isinstance(loss, Loss):
        return loss
    kind = target_kind(true_shape, pred_shape)
    cls = {
        "binary": BinaryCrossentropy,
        "sparse": SparseCategoricalCrossentropy,
        "categorical": CategoricalCrossentropy,
    }[kind]
    return cls(name=loss)

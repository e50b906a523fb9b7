"""Losses, by Keras's names, arguments, defaults and values (formulas: Keras's documentation of `keras.losses`).

optax's function is used where it has the same formula.  To add a loss: the function and its class, and
one `_register` line here.
"""

from __future__ import annotations

import inspect
from typing import Any

from kdist.errors import ConfigError, unknown_name
from kdist.losses.base import (
    EPSILON,
    REDUCTIONS,
    FunctionLoss,
    Loss,
    LossSum,
    align_ranks,
    align_weight,
    safe_divide,
    target_kind,
)
from kdist.losses.crossentropy import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    SparseCategoricalCrossentropy,
    binary_crossentropy,
    categorical_crossentropy,
    sparse_categorical_crossentropy,
)
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
    cosine_similarity,
    huber,
    kl_divergence,
    log_cosh,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    poisson,
)

__all__ = [
    "BY_SHAPE",
    "BinaryCrossentropy",
    "CategoricalCrossentropy",
    "CosineSimilarity",
    "EPSILON",
    "FunctionLoss",
    "Huber",
    "KLDivergence",
    "LogCosh",
    "Loss",
    "LossSum",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Poisson",
    "REDUCTIONS",
    "SparseCategoricalCrossentropy",
    "align_ranks",
    "align_weight",
    "binary_crossentropy",
    "categorical_crossentropy",
    "cosine_similarity",
    "for_shapes",
    "get",
    "huber",
    "kl_divergence",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "names",
    "poisson",
    "safe_divide",
    "sparse_categorical_crossentropy",
    "target_kind",
]

_BY_NAME: dict[str, type[Loss]] = {}

BY_SHAPE = ("crossentropy", "ce")
"""Names that stand for one of three losses, by the shapes of targets and predictions."""


def _register(cls: type[Loss], *names: str) -> None:
    for name in (cls.__name__, *names):
        _BY_NAME[name] = cls


_register(MeanSquaredError, "mean_squared_error", "mse", "MSE")
_register(MeanAbsoluteError, "mean_absolute_error", "mae", "MAE")
_register(MeanAbsolutePercentageError, "mean_absolute_percentage_error", "mape", "MAPE")
_register(MeanSquaredLogarithmicError, "mean_squared_logarithmic_error", "msle", "MSLE")
_register(CosineSimilarity, "cosine_similarity")
_register(Huber, "huber")
_register(LogCosh, "log_cosh")
_register(Poisson, "poisson")
_register(KLDivergence, "kl_divergence", "kld", "KLD")
_register(BinaryCrossentropy, "binary_crossentropy", "bce", "BCE")
_register(CategoricalCrossentropy, "categorical_crossentropy")
_register(SparseCategoricalCrossentropy, "sparse_categorical_crossentropy")


def names() -> list[str]:
    """Every string that `get` accepts."""
    return sorted((*_BY_NAME, *BY_SHAPE))


def get(identifier: Any) -> Loss | str | None:
    """A loss from what `compile` accepts.

    Args:
        identifier: A name, a Loss, a Loss class, a callable ``(y_true, y_pred)``, or None.

    Returns:
        A Loss, one of the names in `BY_SHAPE` (which `for_shapes` resolves), or None.

    Raises:
        ConfigError: The name is unknown, or the thing is no loss.
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
    """`loss`, with "crossentropy" resolved for targets and predictions of these shapes."""
    if isinstance(loss, Loss):
        return loss
    kind = target_kind(true_shape, pred_shape)
    cls = {
        "binary": BinaryCrossentropy,
        "sparse": SparseCategoricalCrossentropy,
        "categorical": CategoricalCrossentropy,
    }[kind]
    return cls(name=loss)

"""Losses: functions of (y_true, y_pred), and their reduction to additive sums.

Names, arguments, defaults and values are Keras's (formulas: Keras 3 documentation of
`keras.losses`); optax's function is used where it has the same formula.  To add a loss: write the
function, and one `_register` line at the end of the file.

Shapes: b rows (of a shard or of a batch), C classes; targets and predictions are ``[b, ...]``.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kdist.errors import ConfigError, DataError, unknown_name

EPSILON = 1e-7
"""Keras's epsilon: probabilities are clipped to [EPSILON, 1 - EPSILON]."""

REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSum:
    """A loss over some rows, as additive sums: its value is ``sum / denominator``.

    Attributes:
        sum: The weighted sum of the loss values, a scalar.
        denominator: What to divide by once both are added up over shards, or None for "nothing".
        per_row: Whether the denominator is the number of valid rows, as it is for every loss that
            is averaged in the default way.  Such losses share one denominator and one gradient.
    """

    sum: jax.Array
    denominator: jax.Array | None
    per_row: bool = dataclasses.field(metadata={"static": True})

    def value(self) -> jax.Array:
        """The loss; 0 where nothing counted."""
        if self.denominator is None:
            return self.sum
        return safe_divide(self.sum, self.denominator)


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """``numerator / denominator``, and 0 where the denominator is 0."""
    return jnp.where(denominator == 0, 0.0, numerator / jnp.where(denominator == 0, 1, denominator))


class Loss:
    """A function of targets and predictions, with a reduction over rows and elements.

    Subclass it and override `call`, or hand a plain function ``f(y_true, y_pred)`` to `compile`.

    Args:
        reduction: "sum_over_batch_size" (or "mean": sum of weighted values over the number of
            values), "mean_with_sample_weight" (over the sum of the weights), "sum", or None.
        name: The name of the loss in logs.
        dtype: The dtype that values are computed in; float32 by default.
    """

    default_name: str | None = None
    class_axis: int | None = None
    """The axis of the predictions that targets, being class indices, point into; None if they are values."""
    keeps_targets = False
    """Whether `call` gets the targets in the dtype they came in, and not as `dtype`."""

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = None, dtype: Any = None
    ) -> None:
        if reduction not in (*REDUCTIONS, "none", None):
            raise ConfigError(f"Unknown reduction {reduction!r}. Expected one of {', '.join(REDUCTIONS)} or None.")
        self.reduction = None if reduction == "none" else reduction
        self.name = name or self.default_name or snake_case(type(self).__name__)
        self.dtype = jnp.dtype(dtype or jnp.float32)

    def call(self, y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
        """Loss values: ``[b, ...]``, or one scalar that is the mean over the rows seen.

        Args:
            y_true: Targets ``[b, ...]``.
            y_pred: Predictions ``[b, ...]``, floating point.
        """
        raise NotImplementedError(f"{type(self).__name__} must define call(y_true, y_pred).")

    def mask(self, y_true: jax.Array, y_pred: jax.Array) -> jax.Array | None:
        """Which values count, shaped like the result of `call`; None means all of them."""
        return None

    def values(self, y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
        """`call`, on targets and predictions of one dtype and of ranks that match."""
        y_pred = jnp.asarray(y_pred).astype(self.dtype)
        y_true = jnp.asarray(y_true)
        if not self.keeps_targets:
            y_true = y_true.astype(self.dtype)
        return jnp.asarray(self.call(*align_ranks(y_true, y_pred)))

    def sums(
        self,
        y_true: jax.Array,
        y_pred: jax.Array,
        weight: jax.Array | None = None,
        valid: jax.Array | None = None,
    ) -> LossSum:
        """The loss over these rows as additive sums.

        Args:
            y_true: Targets ``[b, ...]``.
            y_pred: Predictions ``[b, ...]``.
            weight: Sample weights ``[b]`` or of any shape that the loss values start with.
            valid: ``[b]``, 1 for rows that count and 0 for padding; None if all count.
        """
        values = self.values(y_true, y_pred)
        rows = jnp.float32(y_pred.shape[0]) if valid is None else valid.sum()
        if values.ndim == 0:  # a mean over the rows seen, so the same for each of them
            values = jnp.broadcast_to(values, y_pred.shape[:1])
        mask = self.mask(jnp.asarray(y_true), y_pred)
        kept = [w for w in (valid, mask) if w is not None]
        weighted = _product(values, *kept, *([] if weight is None else [weight]))
        if self.reduction == "sum":
            return LossSum(weighted.sum(), None, False)
        if self.reduction == "mean_with_sample_weight" and weight is not None:
            widest = max((weight, *kept), key=lambda w: w.ndim)
            ones = jnp.ones(widest.shape, values.dtype)
            return LossSum(weighted.sum(), _product(ones, weight, *kept).sum(), False)
        if mask is not None:
            return LossSum(weighted.sum(), _product(jnp.ones_like(values), *kept).sum(), False)
        return LossSum(weighted.reshape(values.shape[0], -1).mean(axis=1).sum(), rows, True)

    def __call__(self, y_true: jax.Array, y_pred: jax.Array, sample_weight: jax.Array | None = None) -> jax.Array:
        """The reduced loss of one batch, a scalar; unreduced values if the reduction is None."""
        y_pred = jnp.asarray(y_pred)
        weight = None if sample_weight is None else jnp.asarray(sample_weight, jnp.float32)
        if self.reduction is None:
            values = self.values(y_true, y_pred)
            return values if weight is None else _product(values, weight)
        return self.sums(y_true, y_pred, weight).value()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, reduction={self.reduction!r}>"


class Formula(Loss):
    """A Loss that is a plain function, `fn`, with its further arguments."""

    fn: Callable[..., jax.Array]

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
        **arguments: Any,
    ) -> None:
        super().__init__(reduction, name, dtype)
        self.arguments = arguments

    def call(self, y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
        """The function's value."""
        return self.fn(y_true, y_pred, **self.arguments)


class FunctionLoss(Formula):
    """A Loss made of a function that is not kdist's own; it gets integer targets as integers."""

    keeps_targets = True

    def __init__(self, fn: Callable[..., jax.Array], name: str | None = None) -> None:
        super().__init__(name=name or function_name(fn))
        self.fn = fn


# Shapes and names ------------------------------------------------------------------------------


def align_ranks(y_true: jax.Array, y_pred: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keras's alignment of ranks that differ by one where the longer one ends in 1.

    ``(b,)`` against ``(b, 1)`` gains the last axis; ``(b, T)`` against ``(b, T, 1)`` loses it.
    """
    if y_true.ndim + 1 == y_pred.ndim and y_pred.shape[-1] == 1:
        return (y_true[:, None], y_pred) if y_true.ndim == 1 else (y_true, y_pred[..., 0])
    if y_pred.ndim + 1 == y_true.ndim and y_true.shape[-1] == 1:
        return (y_true, y_pred[:, None]) if y_pred.ndim == 1 else (y_true[..., 0], y_pred)
    return y_true, y_pred


def _product(values: jax.Array, *weights: jax.Array) -> jax.Array:
    for weight in weights:
        values = values * align_weight(weight, values.shape).astype(values.dtype)
    return values


def align_weight(weight: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`weight` with axes of 1 appended, so that it multiplies values of `shape` row by row.

    Raises:
        DataError: The shapes do not start alike.
    """
    if weight.ndim == len(shape) + 1 and weight.shape[-1] == 1:
        weight = weight[..., 0]
    wide = weight.shape + (1,) * (len(shape) - weight.ndim)
    if len(wide) != len(shape) or any(a not in (1, b) for a, b in zip(wide, shape, strict=True)):
        raise DataError(
            f"sample_weight of shape {weight.shape} does not fit values of shape {shape}. "
            "Give one weight a row, (rows,), or one a time step, (rows, steps)."
        )
    return weight.reshape(wide)


def target_kind(true_shape: tuple[int, ...], pred_shape: tuple[int, ...]) -> str:
    """Which of "binary", "sparse" and "categorical" targets of these shapes are (Keras's rule).

    Args:
        true_shape: Shape of the targets, rows first.
        pred_shape: Shape of the predictions, rows first.
    """
    if pred_shape[-1] == 1 or (len(true_shape) == len(pred_shape) == 1):
        return "binary"
    if len(true_shape) < len(pred_shape) or (true_shape[-1] == 1 and pred_shape[-1] > 1):
        return "sparse"
    return "categorical"


def snake_case(name: str) -> str:
    """``MeanSquaredError`` as ``mean_squared_error``, ``RMSprop`` as ``rm_sprop``."""
    out = ""
    for i, c in enumerate(name):
        new_word = c.isupper() and i and (not name[i - 1].isupper() or name[i + 1 : i + 2].islower())
        out += "_" + c if new_word else c
    return out.lower()


def function_name(fn: Callable[..., Any]) -> str:
    """A name for a function in logs: its own, in snake case; a lambda is ``lambda``."""
    inner = getattr(fn, "func", fn)  # functools.partial
    name = getattr(inner, "__name__", type(inner).__name__)
    return "lambda" if name == "<lambda>" else snake_case(name)


def _elementwise(y_true: jax.Array, y_pred: jax.Array) -> None:
    try:
        together = jnp.broadcast_shapes(y_true.shape, y_pred.shape)
    except ValueError:
        together = None
    if together is None or together[0] != y_pred.shape[0]:
        raise DataError(_mismatch(y_true, y_pred, "the same shape"))


def _same_shape(y_true: jax.Array, y_pred: jax.Array) -> None:
    if y_true.shape != y_pred.shape:
        raise DataError(_mismatch(y_true, y_pred, "the same shape"))


def _mismatch(y_true: jax.Array, y_pred: jax.Array, expected: str) -> str:
    true, pred = (" x ".join(("rows", *map(str, a.shape[1:]))) for a in (y_true, y_pred))
    return f"Targets of shape {true} cannot be compared with predictions of shape {pred}: expected {expected}."


# Regression ------------------------------------------------------------------------------------


def mean_squared_error(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean((y - p)^2)`` over the last axis."""
    _elementwise(y_true, y_pred)
    return _last_mean(optax.losses.squared_error(y_pred, jnp.broadcast_to(y_true, y_pred.shape)))


def mean_absolute_error(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean(|y - p|)`` over the last axis."""
    _elementwise(y_true, y_pred)
    return _last_mean(jnp.abs(y_true - y_pred))


def mean_absolute_percentage_error(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``100 mean(|y - p| / max(|y|, 1e-7))`` over the last axis."""
    _elementwise(y_true, y_pred)
    return 100.0 * _last_mean(jnp.abs(y_true - y_pred) / jnp.maximum(jnp.abs(y_true), EPSILON))


def mean_squared_logarithmic_error(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean((log(p + 1) - log(y + 1))^2)`` over the last axis, both clipped below at 1e-7."""
    _elementwise(y_true, y_pred)
    log_pred, log_true = (jnp.log1p(jnp.maximum(a, EPSILON)) for a in (y_pred, y_true))
    return _last_mean(jnp.square(log_pred - log_true))


def cosine_similarity(y_true: jax.Array, y_pred: jax.Array, axis: int = -1) -> jax.Array:
    """Minus the cosine of the angle between targets and predictions: -1 is alike."""
    _elementwise(y_true, y_pred)
    unit_true, unit_pred = (
        a * jax.lax.rsqrt(jnp.maximum(jnp.square(a).sum(axis, keepdims=True), 1e-12)) for a in (y_true, y_pred)
    )
    return -(unit_true * unit_pred).sum(axis)


def huber(y_true: jax.Array, y_pred: jax.Array, delta: float = 1.0) -> jax.Array:
    """Squared error up to `delta` (halved), linear beyond; mean over the last axis."""
    _elementwise(y_true, y_pred)
    return _last_mean(optax.losses.huber_loss(y_pred, jnp.broadcast_to(y_true, y_pred.shape), delta=delta))


def log_cosh(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean(log(cosh(p - y)))`` over the last axis."""
    _elementwise(y_true, y_pred)
    return _last_mean(optax.losses.log_cosh(y_pred, jnp.broadcast_to(y_true, y_pred.shape)))


def poisson(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``mean(p - y log(p + 1e-7))`` over the last axis."""
    _elementwise(y_true, y_pred)
    return _last_mean(y_pred - y_true * jnp.log(y_pred + EPSILON))


def kl_divergence(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """``sum(y log(y / p))`` over the last axis, both clipped to [1e-7, 1]."""
    _same_shape(y_true, y_pred)
    y_true, y_pred = (jnp.clip(a, EPSILON, 1.0) for a in (y_true, y_pred))
    return (y_true * jnp.log(y_true / y_pred)).sum(-1)


def _last_mean(values: jax.Array) -> jax.Array:
    """The mean over the last axis; values of rank 1 are per row already."""
    return values.mean(-1) if values.ndim > 1 else values


# Cross-entropies -------------------------------------------------------------------------------


def binary_crossentropy(
    y_true: jax.Array, y_pred: jax.Array, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> jax.Array:
    """``-(y log p + (1 - y) log(1 - p))``, mean over `axis`; probabilities are clipped, logits are not."""
    _same_shape(y_true, y_pred)
    y_true = y_true * (1.0 - label_smoothing) + 0.5 * label_smoothing
    if from_logits:
        values = optax.losses.sigmoid_binary_cross_entropy(y_pred, y_true)
    else:
        p = jnp.clip(y_pred, EPSILON, 1.0 - EPSILON)
        values = -(y_true * jnp.log(p) + (1.0 - y_true) * jnp.log1p(-p))
    return values.mean(axis) if values.ndim > 1 else values


def categorical_crossentropy(
    y_true: jax.Array, y_pred: jax.Array, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> jax.Array:
    """``-sum(y log p)`` over the classes; probabilities are renormalised and clipped, logits are not."""
    _same_shape(y_true, y_pred)
    y_true = y_true * (1.0 - label_smoothing) + label_smoothing / y_pred.shape[axis]
    if from_logits:
        return optax.losses.softmax_cross_entropy(y_pred, y_true, axis=axis)
    return -(y_true * jnp.log(_probabilities(y_pred, axis))).sum(axis)


def sparse_categorical_crossentropy(
    y_true: jax.Array,
    y_pred: jax.Array,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
) -> jax.Array:
    """``-log p[y]`` for integer labels; labels outside 0 .. C-1 (and `ignore_class`) have loss 0."""
    y_pred = jnp.moveaxis(y_pred, axis, -1)
    labels = _labels(y_true, y_pred.ndim)
    if labels.shape != y_pred.shape[:-1]:
        expected = "one integer label a prediction (for one-hot targets use 'categorical_crossentropy')"
        raise DataError(_mismatch(y_true, y_pred, expected))
    known = (labels >= 0) & (labels < y_pred.shape[-1])
    if ignore_class is not None:
        known &= labels != ignore_class
    index = jnp.where(known, labels, 0)
    if from_logits:
        values = optax.losses.softmax_cross_entropy_with_integer_labels(y_pred, index)
    else:
        p = jnp.take_along_axis(y_pred, index[..., None], axis=-1)[..., 0] / y_pred.sum(-1)
        values = -jnp.log(jnp.clip(p, EPSILON, 1.0 - EPSILON))
    return jnp.where(known, values, 0.0)


def _probabilities(y_pred: jax.Array, axis: int) -> jax.Array:
    return jnp.clip(y_pred / y_pred.sum(axis, keepdims=True), EPSILON, 1.0 - EPSILON)


def _labels(y_true: jax.Array, pred_rank: int) -> jax.Array:
    """Integer labels, without the last axis of 1 that ``(b, 1)`` targets have."""
    y_true = y_true[..., 0] if y_true.ndim == pred_rank and y_true.shape[-1] == 1 else y_true
    return y_true.astype(jnp.int32)


# Classes ---------------------------------------------------------------------------------------


class MeanSquaredError(Formula):
    """See `mean_squared_error`."""

    fn = staticmethod(mean_squared_error)


class MeanAbsoluteError(Formula):
    """See `mean_absolute_error`."""

    fn = staticmethod(mean_absolute_error)


class MeanAbsolutePercentageError(Formula):
    """See `mean_absolute_percentage_error`."""

    fn = staticmethod(mean_absolute_percentage_error)


class MeanSquaredLogarithmicError(Formula):
    """See `mean_squared_logarithmic_error`."""

    fn = staticmethod(mean_squared_logarithmic_error)


class CosineSimilarity(Formula):
    """See `cosine_similarity`."""

    fn = staticmethod(cosine_similarity)

    def __init__(self, axis=-1, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction, name, dtype, axis=axis)


class Huber(Formula):
    """See `huber`."""

    fn = staticmethod(huber)
    default_name = "huber_loss"

    def __init__(self, delta=1.0, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction, name, dtype, delta=delta)


class LogCosh(Formula):
    """See `log_cosh`."""

    fn = staticmethod(log_cosh)


class Poisson(Formula):
    """See `poisson`."""

    fn = staticmethod(poisson)


class KLDivergence(Formula):
    """See `kl_divergence`."""

    fn = staticmethod(kl_divergence)


class _Smoothed(Formula):
    """Cross-entropies over targets that are distributions."""

    def __init__(
        self,
        from_logits=False,
        label_smoothing=0.0,
        axis=-1,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction, name, dtype, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis)


class BinaryCrossentropy(_Smoothed):
    """See `binary_crossentropy`."""

    fn = staticmethod(binary_crossentropy)


class CategoricalCrossentropy(_Smoothed):
    """See `categorical_crossentropy`."""

    fn = staticmethod(categorical_crossentropy)


class SparseCategoricalCrossentropy(Formula):
    """See `sparse_categorical_crossentropy`.

    With `ignore_class`, positions of that label count neither in the sum nor in the denominator.
    """

    fn = staticmethod(sparse_categorical_crossentropy)
    keeps_targets = True
    class_axis = -1

    def __init__(
        self,
        from_logits=False,
        ignore_class=None,
        axis=-1,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction, name, dtype, from_logits=from_logits, ignore_class=ignore_class, axis=axis)
        self.class_axis = axis
        self.ignore_class = ignore_class

    def mask(self, y_true: jax.Array, y_pred: jax.Array) -> jax.Array | None:
        """Everything but `ignore_class`."""
        if self.ignore_class is None:
            return None
        return _labels(y_true, y_pred.ndim) != self.ignore_class


# Registry --------------------------------------------------------------------------------------

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
    elif callable(identifier):
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

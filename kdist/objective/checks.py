"""Checks before training: whether losses and metrics can be computed for these shapes, and labels are classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist.errors import DataError
from kdist.losses import Loss
from kdist.metrics import Metric
from kdist.objective.outputs import Outputs
from kdist.objective.plan import Plan
from kdist.objective.terms import LossTerm, MetricTerm
from kdist.typing import PyTree


def check_shapes(
    terms: Sequence[LossTerm | MetricTerm], outputs: Outputs, targets: Sequence[Any], weights: Sequence[Any]
) -> list[LossTerm | MetricTerm]:
    """Traces every loss and metric on shapes alone.

    Returns:
        Those that are one number a batch, so that batches cannot be padded.

    Raises:
        DataError: One cannot be computed for these targets, predictions and weights.
    """
    numbers = []
    for term in terms:
        thing: Loss | Metric = term.loss if isinstance(term, LossTerm) else term.metric
        kind = "loss" if isinstance(term, LossTerm) else "metric"
        i = term.output
        shapes = [outputs.shapes[i], targets[i].shape] + ([] if weights[i] is None else [weights[i].shape])
        rows = 7 + max(n for shape in shapes for n in (0, *shape[1:]))  # like no other dimension
        pred, true, *weight = (
            jax.ShapeDtypeStruct((rows, *shape[1:]), dtype)
            for shape, dtype in zip(shapes, (jnp.float32, targets[i].dtype, jnp.float32), strict=False)
        )
        where = f"Output {outputs.names[i]!r}, {kind} {thing.name!r}: "
        try:
            if _is_one_number(thing, true, pred):
                numbers.append(term)
            jax.eval_shape(thing.sums, true, pred, *weight)
        except DataError as error:
            raise DataError(where + str(error).replace(f"({rows},", "(rows,")) from None
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{where}it cannot be computed for targets of shape {true.shape[1:]} {true.dtype} and predictions "
                f"of shape {pred.shape[1:]} (without the rows): {error}"
            ) from error
        if isinstance(term, LossTerm):
            _warn_of_repeating(term.loss, targets[i].shape, outputs.shapes[i])
    return numbers


def _is_one_number(thing: Loss | Metric, true: jax.ShapeDtypeStruct, pred: jax.ShapeDtypeStruct) -> bool:
    """Whether it gives one number for all of the rows that it sees.

    Raises:
        DataError: It gives neither that nor values with the rows first.
    """
    if not hasattr(thing, "values"):
        return getattr(thing, "exact", False)
    if getattr(thing, "across_rows", False):
        return False
    values = jax.eval_shape(thing.values, true, pred)
    if values.ndim and values.shape[0] != pred.shape[0]:
        raise DataError(
            f"it returns values of shape {values.shape[1:]} without the rows. Return one value a row "
            "(a mean over every dimension but the first), or one number."
        )
    return values.ndim == 0


def _warn_of_repeating(loss: Loss, true_shape: tuple[int, ...], pred_shape: tuple[int, ...]) -> None:
    if loss.compares_shapes and len(true_shape) == len(pred_shape) and true_shape != pred_shape:
        warnings.warn(
            f"The loss {loss.name!r} compares targets of shape {true_shape} with predictions of shape "
            f"{pred_shape} by repeating one of them. If that is not meant, give both the same shape.",
            stacklevel=2,
        )


def check_weights(plan: Plan, outputs: Outputs, given: PyTree, weights: Sequence[Any]) -> None:
    """Refuses sample weights that do not mean what they seem to.

    Args:
        plan: Says where weights are "temporal".
        outputs: The model's outputs.
        given: Sample weights as they were given.
        weights: The same by output.

    Raises:
        DataError: Weights for each time step are shared by several outputs, or are wanted and not given.
    """
    shared = hasattr(given, "shape") and len(outputs.names) > 1
    if shared and len(given.shape) > 1 and given.shape[1:] != (1,):
        raise DataError(
            f"One sample_weight for {len(outputs.names)} outputs must have the shape (rows,) or (rows, 1). Received: "
            f"{tuple(given.shape)}. Give a list or dict with weights for each output."
        )
    modes = outputs.by_name(plan.sample_weight_mode, "sample_weight_mode", whole=False)
    for name, mode, weight in zip(outputs.names, modes, weights, strict=True):
        if mode == "temporal" and weight is not None and len(weight.shape) != 2:
            raise DataError(
                f"sample_weight_mode='temporal' asks for weights of shape (rows, steps) for output {name!r}. Received: "
                f"{tuple(weight.shape)}."
            )


def check_labels(terms: Sequence[LossTerm], outputs: Outputs, targets: Sequence[Any]) -> None:
    """Refuses integer labels that are no class of their output.

    Args:
        terms: The losses.
        outputs: The model's outputs.
        targets: Targets by output, NumPy arrays.

    Raises:
        DataError: One is not, naming the first.
    """
    for term in terms:
        labels = targets[term.output]
        if term.loss.class_axis is None or labels is None:
            continue
        classes = outputs.shapes[term.output][term.loss.class_axis]
        bad = ~((labels >= 0) & (labels < classes) & (labels == np.floor(labels)))
        ignored = getattr(term.loss, "ignore_class", None)
        if ignored is not None:
            bad &= labels != ignored
        if bad.any():
            index = np.unravel_index(int(bad.argmax()), bad.shape)
            where = int(index[0]) if len(index) == 1 or bad.ndim == 1 else tuple(map(int, index))
            raise DataError(
                f"Labels of {outputs.names[term.output]!r} must be integers in 0 .. {classes - 1}, the "
                f"{classes} classes of the model. Found {bad.sum()} others; the first is {labels[index]} at "
                f"index {where}."
            )

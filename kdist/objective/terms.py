"""Terms: which loss and which metrics each output has, and the names that they are logged under."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kdist import losses, metrics
from kdist.errors import ConfigError, DataError
from kdist.losses import Loss
from kdist.metrics import Metric
from kdist.objective.outputs import Outputs
from kdist.objective.plan import Plan, leaves


class LossTerm(NamedTuple):
    """The loss of an output, by its number, and what it counts in the total."""

    output: int
    loss: Loss
    weight: float


class MetricTerm(NamedTuple):
    """A metric of an output, by its number."""

    output: int
    metric: Metric
    weighted: bool
    log_name: str


def compared(plan: Plan, outputs: Outputs) -> list[int]:
    """The outputs, by number, that have a loss or metrics, and so need targets.

    Raises:
        ConfigError: Losses or metrics do not map to the outputs.
    """
    per_output = zip(
        outputs.by_name(plan.loss, "loss", whole=not outputs.by_key),
        _by_output(plan.metrics, "metrics", outputs),
        _by_output(plan.weighted_metrics, "weighted_metrics", outputs),
        strict=True,
    )
    return [i for i, (loss, plain, weighted) in enumerate(per_output) if loss is not None or plain or weighted]


def bind_losses(plan: Plan, outputs: Outputs, targets: Sequence[Any]) -> list[LossTerm]:
    """The losses, in the order of the outputs.

    Raises:
        ConfigError: Losses or loss weights do not map to the outputs.
        DataError: An output with a loss has no targets.
    """
    per_output = outputs.by_name(plan.loss, "loss", whole=not outputs.by_key)
    weights = outputs.by_name(plan.loss_weights, "loss_weights", whole=False)
    terms = []
    for i, loss in enumerate(per_output):
        if loss is None:
            continue
        name = outputs.names[i]
        if targets[i] is None:
            raise DataError(f"Output {name!r} has a loss, but y has no targets for it.")
        if isinstance(plan.loss_weights, Mapping) and name not in plan.loss_weights:
            raise ConfigError(
                f"Output {name!r} has a loss, but loss_weights has no number for it: {plan.loss_weights}."
            )
        bound = losses.for_shapes(loss, targets[i].shape, outputs.shapes[i])
        terms.append(LossTerm(i, bound, 1.0 if weights[i] is None else float(weights[i])))
    return terms


def name_losses(terms: Sequence[LossTerm], outputs: Outputs) -> list[str]:
    """What the losses of the outputs are logged as; nothing where there is only one."""
    return [f"{outputs.names[t.output]}_loss" for t in terms] if len(terms) > 1 else []


def bind_metrics(plan: Plan, outputs: Outputs, targets: Sequence[Any]) -> list[MetricTerm]:
    """The metrics, by output; those without weights first.

    Raises:
        ConfigError: Metrics do not map to the outputs.
        DataError: An output with metrics has no targets.
    """
    plain = _by_output(plan.metrics, "metrics", outputs)
    weighted = _by_output(plan.weighted_metrics, "weighted_metrics", outputs)
    several = len(outputs.names) > 1
    terms: list[MetricTerm] = []
    for i, output in enumerate(outputs.names):
        prefix = f"{output}_" if several else ""
        taken = {t.log_name for t in terms}
        for metric, is_weighted in [(m, False) for m in plain[i]] + [(m, True) for m in weighted[i]]:
            if targets[i] is None:
                raise DataError(f"Output {output!r} has metrics, but y has no targets for it.")
            bound = metrics.for_shapes(metric, targets[i].shape, outputs.shapes[i])
            name = prefix + bound.name
            if is_weighted and name in taken:
                name = f"{prefix}weighted_{bound.name}"
            base, n = name, 0
            while name in taken:
                n += 1
                name = f"{base}_{n}"
            taken.add(name)
            terms.append(MetricTerm(i, bound, is_weighted, name))
            if isinstance(metric, str):
                _warn_of_several_labels(metric, plan, i, targets[i].shape, outputs)
    return terms


def _by_output(given: Any, what: str, outputs: Outputs) -> list[list[Any]]:
    if len(outputs.names) == 1:
        if None in leaves(given):
            raise ConfigError(f"Expected a metric in {what}. Received: None. Leave it out.")
        return [_metrics_in(given)]
    if isinstance(given, (list, tuple)) and not given:
        return [[] for _ in outputs.names]
    if isinstance(given, (list, tuple)) and len(given) != len(outputs.names):
        raise ConfigError(
            f"{what} has {len(given)} entries, but the model has {len(outputs.names)} outputs: {list(outputs.names)}. "
            "Give a list with one entry (a metric or a list of metrics) an output, or a dict by output name."
        )
    return [_metrics_in(entry) for entry in outputs.by_name(given, what, whole=False)]


def _metrics_in(tree: Any) -> list[Any]:
    return [leaf for leaf in leaves(tree) if leaf is not None]


def _warn_of_several_labels(name: str, plan: Plan, i: int, true_shape: tuple[int, ...], outputs: Outputs) -> None:
    """Warns where "accuracy" means the largest of several outputs that are trained as labels of their own."""
    shape = outputs.shapes[i]
    loss = outputs.by_name(plan.loss, "loss", whole=False)[i]
    several = len(shape) > 1 and shape[-1] > 1 and true_shape == shape
    if name.lower() in ("accuracy", "acc") and several and isinstance(loss, losses.BinaryCrossentropy):
        warnings.warn(
            f"metrics=[{name!r}] compares the largest of {shape[-1]} outputs with the largest target, but the loss "
            "is a binary cross-entropy. For several labels a row use 'binary_accuracy'.",
            stacklevel=2,
        )

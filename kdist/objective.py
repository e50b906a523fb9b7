"""What is computed of targets and predictions: the losses and metrics of each output.

Two stages, because names are checked when a model is compiled and shapes are known when it is built.
`Plan` is what `compile` was given, with every name resolved.  `Objective` is the plan bound to the
outputs of a model: which loss and which metrics each has, and under what name they are logged.

Everything here is a function of arrays on one shard and gives additive sums; nothing is reduced over
devices (that is `step.py`'s) but the results of sums that have been, on the host.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdist import losses, metrics
from kdist.errors import ConfigError, DataError
from kdist.losses import Loss, LossSum
from kdist.metrics import Metric
from kdist.typing import Logs, PyTree, Sums


class Outputs:
    """The outputs of a model by position and by name.

    Args:
        example: The outputs, as a tree of `jax.ShapeDtypeStruct`: an array, tuple, list or dict.
        names: Names that the module gives them, if it does.

    Raises:
        ConfigError: The module names another number of outputs than it has.
    """

    def __init__(self, example: PyTree, names: Sequence[str] | None = None) -> None:
        if isinstance(example, Mapping):
            ours: tuple[str, ...] = tuple(example)
            self.names = tuple(names) if names is not None and set(names) == set(ours) else ours
        else:
            several = isinstance(example, (list, tuple))
            ours = tuple(f"output_{i}" for i in range(len(example) if several else 1))
            self.names = ours if names is None else tuple(names)
        if len(self.names) != len(ours):
            raise ConfigError(f"The module names {len(self.names)} outputs, {self.names}, but has {len(ours)}.")
        predictions = self.split_predictions(example)
        if not all(hasattr(a, "shape") for a in predictions):
            raise ConfigError(
                "The model's outputs are nested. For losses and metrics return an array, or one list, tuple or dict "
                "of arrays."
            )
        self.shapes = tuple(a.shape for a in predictions)

    def split_predictions(self, y_pred: PyTree) -> list[Any]:
        """The model's outputs as a list in the order of `names`."""
        if isinstance(y_pred, Mapping):
            return [y_pred[name] for name in self.names]
        return list(y_pred) if isinstance(y_pred, (list, tuple)) else [y_pred]

    def split(self, tree: PyTree, what: str, *, shared: bool = False) -> list[Any]:
        """Something given by output, such as targets, as a list in the order of `names`.

        Args:
            tree: One thing for a single output, or a list, tuple or dict with an entry an output.
            what: What to call it in messages.
            shared: Whether one array may stand for every output.

        Raises:
            DataError: It has another number of entries, or other names, than the outputs.
        """
        if tree is None:
            return [None] * len(self.names)
        if isinstance(tree, Mapping):
            unknown = sorted(set(tree) - set(self.names))
            if unknown:
                raise DataError(f"{what} has the key {unknown[0]!r}, but the model's outputs are {list(self.names)}.")
            return [tree.get(name) for name in self.names]
        if isinstance(tree, (list, tuple)):
            if len(tree) != len(self.names):
                raise DataError(
                    f"{what} has {len(tree)} entries, but the model has {len(self.names)} outputs: {list(self.names)}."
                )
            return list(tree)
        if len(self.names) > 1 and not shared:
            raise DataError(
                f"{what} is one array, but the model has {len(self.names)} outputs. Pass a list in the order "
                f"{list(self.names)}, or a dict of these names."
            )
        return [tree] * len(self.names)


class _LossTerm(NamedTuple):
    output: int
    loss: Loss
    weight: float


class _MetricTerm(NamedTuple):
    output: int
    metric: Metric
    weighted: bool
    log_name: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a model was compiled with, names resolved.

    Attributes:
        loss: A Loss (or a name that shapes resolve), or a list, tuple or dict of them by output.
        loss_weights: A number, or a list, tuple or dict of numbers by output, or None.
        metrics: Metrics, or lists, tuples or dicts of them by output.
        weighted_metrics: Alike, evaluated with the sample weights.
    """

    loss: Any = None
    loss_weights: Any = None
    metrics: Any = ()
    weighted_metrics: Any = ()

    @classmethod
    def of(cls, loss: Any, loss_weights: Any = None, metrics_: Any = None, weighted_metrics: Any = None) -> Plan:
        """Resolves every name.

        Raises:
            ConfigError: A name is unknown or an argument has a wrong type.
        """
        _check_loss_weights(loss_weights)
        for name, value in (("metrics", metrics_), ("weighted_metrics", weighted_metrics)):
            if value is not None and not isinstance(value, (list, tuple, Mapping)):
                raise ConfigError(f"{name} must be a list, a tuple or a dict. Received: {value!r}.")
            if isinstance(value, (list, tuple)) and list(value) == [None]:
                raise ConfigError(f"Expected a metric in {name}. Received: None. Leave it out.")
        return cls(
            _map_leaves(losses.get, loss),
            loss_weights,
            _map_leaves(_metric, metrics_ or ()),
            _map_leaves(_metric, weighted_metrics or ()),
        )

    def bind(self, outputs: Outputs, y: PyTree, weight: PyTree = None) -> Objective:
        """The objective for a model with these outputs and targets like `y`.

        Args:
            outputs: The model's outputs.
            y: Targets, arrays or `jax.ShapeDtypeStruct`.
            weight: Sample weights, alike, or None.

        Raises:
            ConfigError: Losses, weights or metrics do not map to the outputs.
            DataError: Targets or weights do not fit them.
        """
        return Objective(self, outputs, y, weight)


def _check_loss_weights(value: Any) -> None:
    entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
    for entry in entries:
        if entry is not None and (isinstance(entry, bool) or not isinstance(entry, (int, float))):
            raise ConfigError(
                f"loss_weights, the third argument of compile, must be a number or a list, tuple or dict of numbers. "
                f"Received: {value!r}. Pass metrics by name: compile(optimizer, loss, metrics=[...])."
            )


def _metric(identifier: Any) -> Any:
    """A metric, or None for an output that has none."""
    return None if identifier is None else metrics.get(identifier)


def _map_leaves(fn: Any, tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {k: _map_leaves(fn, v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_map_leaves(fn, v) for v in tree]
    return fn(tree)


class Objective:
    """The losses and metrics of a model's outputs.

    Attributes:
        log_names: Every name logged, in the canonical order: loss, losses by output, metrics by output.
        exact: Whether a loss or metric is one number a batch, so that batches cannot be padded.
    """

    def __init__(self, plan: Plan, outputs: Outputs, y: PyTree, weight: PyTree = None) -> None:
        self.outputs = outputs
        targets = outputs.split(y, "y")
        self._losses = self._bind_losses(plan, targets)
        self._metrics = self._bind_metrics(plan, targets)
        self._loss_names = self._name_losses()
        self.log_names = ("loss", *self._loss_names, *(m.log_name for m in self._metrics))
        repeated = {n for n in self.log_names if self.log_names.count(n) > 1}
        if repeated:
            raise ConfigError(
                f"The name {min(repeated)!r} would be logged twice. Give the metric another name, such as "
                f"kdist.metrics.MeanMetric(fn, name='my_{min(repeated)}')."
            )
        self.exact = self._check_shapes(targets, outputs.split(weight, "sample_weight", shared=True))

    @property
    def trainable(self) -> bool:
        """Whether any output has a loss."""
        return bool(self._losses)

    # On a shard ---------------------------------------------------------------------------------

    def loss_sums(self, y: PyTree, y_pred: PyTree, weight: PyTree, valid: jax.Array | None) -> list[LossSum]:
        """The sums of every loss over the rows of a shard."""
        true, pred, weights = self._split(y, y_pred, weight)
        return [t.loss.sums(true[t.output], pred[t.output], weights[t.output], valid) for t in self._losses]

    def groups(self, sums: Sequence[LossSum]) -> list[list[int]]:
        """The losses, by number, that share a denominator, and so a gradient."""
        shared = [i for i, s in enumerate(sums) if s.per_row]
        alone = [[i] for i, s in enumerate(sums) if not s.per_row]
        return ([shared] if shared else []) + alone

    def weight_of(self, i: int) -> float:
        """What loss i is multiplied by in the total."""
        return self._losses[i].weight

    def metric_sums(self, y: PyTree, y_pred: PyTree, weight: PyTree, valid: jax.Array | None) -> Sums:
        """The sums of every metric over the rows of a shard, by log name."""
        true, pred, weights = self._split(y, y_pred, weight)
        out = {}
        for term in self._metrics:
            y_true, y_pred = true[term.output], pred[term.output].astype(jnp.float32)
            w = weights[term.output] if term.weighted else None
            w = None if w is None else term.metric.weigh(y_true, y_pred, w)
            if valid is not None:
                w = valid if w is None else w * valid.reshape(-1, *(1,) * (w.ndim - 1))
            out[term.log_name] = term.metric.sums(y_true, y_pred, w)
        return out

    def _split(self, y: PyTree, y_pred: PyTree, weight: PyTree) -> tuple[list[Any], list[Any], list[Any]]:
        return (
            self.outputs.split(y, "y"),
            self.outputs.split_predictions(y_pred),
            self.outputs.split(weight, "sample_weight", shared=True),
        )

    # After the reduction over shards ------------------------------------------------------------

    def step_sums(self, reduced: Sequence[LossSum], rows: jax.Array, metric_sums: Sums) -> Sums:
        """The sums of a step: its losses, weighted by its rows, and the metrics'.

        Args:
            reduced: Sums of every loss over the global batch.
            rows: How many rows of the batch count.
            metric_sums: Of the global batch, by log name.
        """
        values = [s.value() for s in reduced]
        total = sum((t.weight * v for t, v in zip(self._losses, values, strict=True)), jnp.float32(0))
        out = {"loss": (total * rows, rows)}
        if self._loss_names:
            out.update({n: (v * rows, rows) for n, v in zip(self._loss_names, values, strict=True)})
        return {**out, **metric_sums}

    def results(self, sums: Sums) -> Logs:
        """What the sums come to, by log name in the canonical order; on the host.

        Args:
            sums: NumPy sums that have been added up.
        """
        by_name = {term.log_name: term.metric for term in self._metrics}
        out: Logs = {}
        for name in self.log_names:
            if name in by_name:
                out[name] = by_name[name].result(sums[name])
            else:
                numerator, rows = sums[name]
                out[name] = float(numerator / rows)
        return out

    # On the host, before training ---------------------------------------------------------------

    def check_labels(self, y: PyTree) -> None:
        """Refuses integer labels that are no class of their output.

        Args:
            y: Targets as NumPy arrays.

        Raises:
            DataError: One is not, naming the first.
        """
        targets = self.outputs.split(y, "y")
        for term in self._losses:
            labels = targets[term.output]
            if term.loss.class_axis is None or labels is None:
                continue
            classes = self.outputs.shapes[term.output][term.loss.class_axis]
            bad = ~((labels >= 0) & (labels < classes) & (labels == np.floor(labels)))
            ignored = getattr(term.loss, "ignore_class", None)
            if ignored is not None:
                bad &= labels != ignored
            if bad.any():
                index = np.unravel_index(int(bad.argmax()), bad.shape)
                where = int(index[0]) if len(index) == 1 or bad.ndim == 1 else tuple(map(int, index))
                raise DataError(
                    f"Labels of {self.outputs.names[term.output]!r} must be integers in 0 .. {classes - 1}, the "
                    f"{classes} classes of the model. Found {bad.sum()} others; the first is {labels[index]} at "
                    f"index {where}."
                )

    # Binding ------------------------------------------------------------------------------------

    def _bind_losses(self, plan: Plan, targets: list[Any]) -> list[_LossTerm]:
        names = self.outputs.names
        per_output = self._by_output(plan.loss, "loss")
        weights = self._by_output(plan.loss_weights, "loss_weights")
        terms = []
        for i, loss in enumerate(per_output):
            if loss is None:
                continue
            if targets[i] is None:
                raise DataError(f"Output {names[i]!r} has a loss, but y has no targets for it.")
            bound = losses.for_shapes(loss, targets[i].shape, self.outputs.shapes[i])
            terms.append(_LossTerm(i, bound, 1.0 if weights[i] is None else float(weights[i])))
        return terms

    def _by_output(self, given: Any, what: str) -> list[Any]:
        names = self.outputs.names
        if isinstance(given, Mapping):
            unknown = sorted(set(given) - set(names))
            if unknown:
                raise ConfigError(f"{what} has the key {unknown[0]!r}, but the model's outputs are {list(names)}.")
            return [given.get(name) for name in names]
        if isinstance(given, list | tuple):
            if len(given) != len(names):
                raise ConfigError(
                    f"{what} has {len(given)} entries, but the model has {len(names)} outputs: {list(names)}. "
                    "Give one for each, None for none."
                )
            return list(given)
        return [given] * len(names)

    def _name_losses(self) -> list[str]:
        if len(self._losses) < 2:
            return []
        return [f"{self.outputs.names[t.output]}_loss" for t in self._losses]

    def _bind_metrics(self, plan: Plan, targets: list[Any]) -> list[_MetricTerm]:
        plain = self._metrics_by_output(plan.metrics, "metrics")
        weighted = self._metrics_by_output(plan.weighted_metrics, "weighted_metrics")
        several = len(self.outputs.names) > 1
        terms: list[_MetricTerm] = []
        for i, output in enumerate(self.outputs.names):
            prefix = f"{output}_" if several else ""
            taken = {t.log_name for t in terms}
            for metric, is_weighted in [(m, False) for m in plain[i]] + [(m, True) for m in weighted[i]]:
                if targets[i] is None:
                    raise DataError(f"Output {output!r} has metrics, but y has no targets for it.")
                if isinstance(metric, str):
                    self._warn_of_accuracy_trap(metric, i, targets[i].shape)
                bound = metrics.for_shapes(metric, targets[i].shape, self.outputs.shapes[i])
                name = prefix + bound.name
                if is_weighted and name in taken:
                    name = f"{prefix}weighted_{bound.name}"
                base, n = name, 0
                while name in taken:
                    n += 1
                    name = f"{base}_{n}"
                taken.add(name)
                terms.append(_MetricTerm(i, bound, is_weighted, name))
        return terms

    def _metrics_by_output(self, given: Any, what: str) -> list[list[Any]]:
        names = self.outputs.names
        if len(names) == 1:
            if None in _leaves(given):
                raise ConfigError(f"Expected a metric in {what}. Received: None. Leave it out.")
            return [list(_flatten(given))]
        if isinstance(given, Mapping):
            unknown = sorted(set(given) - set(names))
            if unknown:
                raise ConfigError(f"{what} has the key {unknown[0]!r}, but the model's outputs are {list(names)}.")
            return [list(_flatten(given.get(name, ()))) for name in names]
        if given and len(given) != len(names):
            raise ConfigError(
                f"{what} has {len(given)} entries, but the model has {len(names)} outputs: {list(names)}. "
                "Give a list with one entry (a metric or a list of metrics) an output, or a dict by output name."
            )
        return [list(_flatten(entry)) for entry in given] or [[] for _ in names]

    def _warn_of_accuracy_trap(self, name: str, i: int, true_shape: tuple[int, ...]) -> None:
        shape = self.outputs.shapes[i]
        binary = any(t.output == i and isinstance(t.loss, losses.BinaryCrossentropy) for t in self._losses)
        several = len(shape) > 1 and shape[-1] > 1
        if name.lower() in ("accuracy", "acc") and binary and several and true_shape == shape:
            warnings.warn(
                f"metrics=[{name!r}] compares the largest of {shape[-1]} outputs with the largest target, but the loss "
                "is a binary cross-entropy. For several labels a row use 'binary_accuracy'.",
                stacklevel=2,
            )

    def _check_shapes(self, targets: list[Any], weights: list[Any]) -> bool:
        """Traces every loss and metric on shapes alone; whether one of them is a number a batch."""
        exact = False
        checks: list[tuple[int, str, Any]] = [
            *((t.output, f"loss {t.loss.name!r}", t.loss) for t in self._losses),
            *((t.output, f"metric {t.metric.name!r}", t.metric) for t in self._metrics),
        ]
        for i, what, thing in checks:
            shapes = [self.outputs.shapes[i], targets[i].shape] + ([] if weights[i] is None else [weights[i].shape])
            rows = 7 + max(n for shape in shapes for n in (0, *shape[1:]))  # like no other dimension
            pred, true, *weight = (
                jax.ShapeDtypeStruct((rows, *shape[1:]), dtype)
                for shape, dtype in zip(shapes, (jnp.float32, targets[i].dtype, jnp.float32), strict=False)
            )
            where = f"Output {self.outputs.names[i]!r}, {what}: "
            try:
                if hasattr(thing, "values"):
                    values = jax.eval_shape(thing.values, true, pred)
                    exact |= values.ndim == 0
                    if values.ndim and values.shape[0] != rows:
                        raise DataError(
                            f"it returns values of shape {values.shape[1:]} without the rows. Return one value a row "
                            "(a mean over every dimension but the first), or one number."
                        )
                jax.eval_shape(thing.sums, true, pred, *weight)
            except DataError as error:
                raise DataError(where + str(error).replace(f"({rows},", "(rows,")) from None
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{where}it cannot be computed for targets of shape {true.shape[1:]} {true.dtype} and predictions "
                    f"of shape {pred.shape[1:]} (without the rows): {error}"
                ) from error
        for term in self._losses:
            true_shape, pred_shape = targets[term.output].shape, self.outputs.shapes[term.output]
            if term.loss.class_axis is None and len(true_shape) == len(pred_shape) and true_shape != pred_shape:
                warnings.warn(
                    f"The loss {term.loss.name!r} compares targets of shape {true_shape} with predictions of shape "
                    f"{pred_shape} by repeating one of them. If that is not meant, give both the same shape.",
                    stacklevel=2,
                )
        return exact


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, (list, tuple, Mapping)):
        return [leaf for value in (tree.values() if isinstance(tree, Mapping) else tree) for leaf in _leaves(value)]
    return [tree]


def _flatten(tree: Any) -> list[Any]:
    return [leaf for leaf in _leaves(tree) if leaf is not None]

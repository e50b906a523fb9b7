"""The objective: a plan bound to the outputs of a model, as sums on a shard and results on the host.

Everything here is a function of arrays on one shard and gives additive sums; nothing is reduced over
devices (that is `step.py`'s) but the results of sums that have been, on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist.errors import ConfigError
from kdist.losses import ALONE, LossSum, Shards, safe_divide
from kdist.metrics import MeanMetric, Metric
from kdist.objective.checks import check_labels, check_shapes, check_weights
from kdist.objective.outputs import Outputs
from kdist.objective.plan import Plan
from kdist.objective.terms import MetricTerm, bind_losses, bind_metrics, compared, name_losses
from kdist.typing import Logs, PyTree, Sums


class Objective:
    """The losses and metrics of a model's outputs.

    Args:
        plan: What the model was compiled with.
        outputs: The model's outputs.
        y: Targets, arrays or `jax.ShapeDtypeStruct`; None for a model that is trained by penalties alone.
        weight: Sample weights, alike, or None.
        penalized: Whether the module adds penalties to the loss.

    A model without losses minimises its penalties, and 0 where it has none.

    Raises:
        ConfigError: Losses, weights or metrics do not map to the outputs.
        DataError: Targets or weights do not fit them.

    Attributes:
        log_names: Every name logged, in the canonical order: loss, losses by output, metrics by output.
        exact: Whether a loss or metric is one number a batch, so that batches cannot be padded.
        across_rows: Whether a loss needs the rows of all shards.
        trainable: Whether there is anything to minimise: a loss of an output, or penalties of the module.
    """

    def __init__(
        self, plan: Plan, outputs: Outputs, y: PyTree, weight: PyTree = None, *, penalized: bool = False
    ) -> None:
        self.outputs = outputs
        self._compared = compared(plan, outputs)
        targets = self._targets(y)
        self._losses = bind_losses(plan, outputs, targets)
        self._penalized = penalized or not self._losses
        self.trainable = penalized or bool(self._losses)
        self._metrics = bind_metrics(plan, outputs, targets)
        self._loss_names = name_losses(self._losses, outputs)
        self.log_names = ("loss", *self._loss_names, *(m.log_name for m in self._metrics))
        repeated = {n for n in self.log_names if self.log_names.count(n) > 1}
        if repeated:
            raise ConfigError(
                f"The name {min(repeated)!r} would be logged twice. Give the metric another name, such as "
                f"kdist.metrics.MeanMetric(fn, name='my_{min(repeated)}')."
            )
        weights = outputs.split(weight, "sample_weight", shared=True)
        check_weights(plan, outputs, weight, weights)
        numbers = check_shapes([*self._losses, *self._metrics], outputs, targets, weights)
        self.exact = bool(numbers)
        self._of_batches = {
            t.log_name for t in numbers if isinstance(t, MetricTerm) and isinstance(t.metric, MeanMetric)
        }
        self.across_rows = any(term.loss.across_rows for term in self._losses)

    @property
    def metrics(self) -> list[Metric]:
        """The metrics, in the order of their log names."""
        return [term.metric for term in self._metrics]

    @property
    def directions(self) -> dict[str, str | None]:
        """By log name: "down" if less is better, "up" if more is, None if nobody knows."""
        known = {term.log_name: term.metric.direction for term in self._metrics}
        return {name: known.get(name, "down") for name in self.log_names}

    # On a shard ---------------------------------------------------------------------------------

    def loss_sums(
        self,
        y: PyTree,
        y_pred: PyTree,
        weight: PyTree = None,
        valid: jax.Array | None = None,
        penalties: Sequence[jax.Array] = (),
        shards: Shards = ALONE,
    ) -> list[LossSum]:
        """The sums of every loss, and of the penalties last, over the rows of a shard."""
        true, pred, weights = self._split(y, y_pred, weight)
        sums = [t.loss.sums(true[t.output], pred[t.output], weights[t.output], valid, shards) for t in self._losses]
        if not self._penalized:
            return sums
        rows = np.float32(jax.tree.leaves(y_pred)[0].shape[0]) if valid is None else valid.sum()
        total = sum((jnp.sum(penalty, dtype=jnp.float32) for penalty in penalties), jnp.float32(0))
        return [*sums, LossSum(total * rows, rows, True)]

    def groups(self, sums: Sequence[LossSum]) -> list[list[int]]:
        """The losses, by number, that share a denominator, and so a gradient."""
        shared = [i for i, s in enumerate(sums) if s.per_row]
        alone = [[i] for i, s in enumerate(sums) if not s.per_row]
        return ([shared] if shared else []) + alone

    def weight_of(self, i: int) -> float:
        """What loss i is multiplied by in the total; penalties count as they are."""
        return self._losses[i].weight if i < len(self._losses) else 1.0

    def metric_sums(self, y: PyTree, y_pred: PyTree, weight: PyTree, valid: jax.Array | None) -> Sums:
        """The sums of every metric over the rows of a shard, by log name."""
        true, pred, weights = self._split(y, y_pred, weight)
        out = {}
        for term in self._metrics:
            y_true, y_pred = _widened(true[term.output]), pred[term.output].astype(jnp.float32)
            w = weights[term.output] if term.weighted else None
            w = None if w is None else term.metric.weigh(y_true, y_pred, w)
            if valid is not None:
                w = valid if w is None else w * valid.reshape(-1, *(1,) * (w.ndim - 1))
            out[term.log_name] = term.metric.sums(y_true, y_pred, w)
        return out

    def _targets(self, y: PyTree) -> list[Any]:
        return self.outputs.split(y if self._compared else None, "y", among=self._compared)

    def _split(self, y: PyTree, y_pred: PyTree, weight: PyTree) -> tuple[list[Any], list[Any], list[Any]]:
        return (
            self._targets(y),
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
        total = sum((self.weight_of(i) * value for i, value in enumerate(values)), jnp.float32(0))
        out = {"loss": (total * rows, rows)}
        # Penalties stand after the losses, and are logged in the total only.
        out.update({name: (value * rows, rows) for name, value in zip(self._loss_names, values, strict=False)})
        return {**out, **{name: self._of_step(name, sums) for name, sums in metric_sums.items()}}

    def _of_step(self, name: str, sums: PyTree) -> PyTree:
        """The sums of a metric; one that is a number a batch counts once a batch, whatever the batch's length."""
        if name not in self._of_batches:
            return sums
        total, rows = sums
        return safe_divide(total, rows), jnp.where(rows == 0, 0.0, 1.0)

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
        check_labels(self._losses, self.outputs, self._targets(y))


def _widened(y_true: jax.Array) -> jax.Array:
    """Targets as metrics compute with them: float32, but for integers of 32 bits, which may be labels beyond 2**24."""
    return y_true.astype(
        jnp.int32 if jnp.issubdtype(y_true.dtype, jnp.integer) and y_true.itemsize > 2 else jnp.float32
    )

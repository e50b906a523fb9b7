"""The pure train, test and predict step; the only file that writes a collective.

A train step is two halves.  Inside `jax.shard_map`, each shard works on its rows: forward pass, the
*sum* of each loss over the rows with its denominator, the gradient of the sums; then one reduction of
all of it over the mesh, and one division.  Outside it, in the same program, the optimizer sees the
global gradient, so what needs the whole tree (clipping by global norm, Lamb) needs no special case.

Where the state is split over the devices (`DataParallel.zero_stage`), the reduction leaves each of them with its part
of the gradient, the optimizer works on parts, and parameters are gathered: at stages 1 and 2 once, after the update; at
stage 3 where a layer reads them (`gathering.py`), or before the loop over microbatches, which holds no collective.

`check_vma` is off: gradients of replicated arguments then arrive local to the shard, not summed, and
modules with a `lax.scan` of their own, such as Flax's RNN, trace as they do outside.

Shapes: B global batch, b rows on a shard, M microbatches.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from kdist import gathering, optimizers
from kdist.distribution import BATCH_AXES, DataParallel
from kdist.gathering import Split, is_split
from kdist.losses import ALONE, LossSum, Shards
from kdist.modules import Applied, ModuleAdapter, Variables
from kdist.objective import Objective
from kdist.precision import Precision
from kdist.state import TrainState, shardings
from kdist.typing import Batch, PyTree, Sums

WHOLE, ROWS = PartitionSpec(), PartitionSpec(BATCH_AXES)

Axes = list[int | None]
"""By leaf of the parameters, the dimension that it is split on."""


_COLLECTIVES = gathering.Collectives(
    gather=lambda part, axis: jax.lax.all_gather(part, "data", axis=axis, tiled=True),
    scatter=lambda gradient, axis: jax.lax.psum_scatter(gradient, "data", scatter_dimension=axis, tiled=True),
)


class _Local(NamedTuple):
    """What a shard knows before the reduction; all of it adds up."""

    grads: list[PyTree]  # one tree a group of losses that share a denominator
    losses: list[LossSum]
    rows: Any
    metrics: Sums


class _Seeds(NamedTuple):
    """What differentiation starts from, for losses that are means and for sums; 1 without a loss scale."""

    mean: jax.Array | float
    sum: jax.Array | float


@dataclasses.dataclass(frozen=True)
class Step:
    """One optimizer step, one evaluation step and one prediction step, as pure functions.

    Attributes:
        adapter: The model.
        objective: Its losses and metrics; None for a model that only predicts.
        tx: The optimizer; None for a model that is not trained.
        distribution: The mesh; None runs the whole batch as one shard, without shard_map or jit.
        precision: The compute dtype.
        microbatches: M, the parts that a shard's rows are worked through in.
        unroll: Whether to repeat the microbatch in the program where it would otherwise be a loop.
        checked: Whether a training step with a gradient that is not finite says that its loss is NaN.
    """

    adapter: ModuleAdapter
    objective: Objective | None
    tx: optax.GradientTransformation | None
    distribution: DataParallel | None
    precision: Precision
    microbatches: int = 1
    unroll: bool = False
    checked: bool = False

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        """One update.

        Args:
            state: The state before it.
            batch: Global, leaves ``[B, ...]``.

        Returns:
            The state after it, and the sums of the losses and metrics of the batch before it.
        """
        assert self.tx is not None
        # At both ends: from one end alone, XLA would carry something else through the loop, and gather it each step.
        state = self._in_place(state)
        key = jax.random.fold_in(state.key, state.step)
        scale = optimizers.loss_scale(state.opt_state)
        of_params, of_grads = self._specs(state.params, from_stage=3), self._specs(state.params, from_stage=1)
        grads, model_state, sums = self._on_shards(
            functools.partial(self._gradients, self._axes(state.params)),
            ((of_params, WHOLE), ROWS, WHOLE, WHOLE),
            (of_grads, WHOLE, WHOLE),
        )((state.params, state.model_state), batch, key, scale)
        if self.checked and not _is_scale_adaptive(state.opt_state):
            sums = _with_loss_of_nan_if_bad(sums, grads)
        params = self._split(state.params)
        updates, opt_state = self.tx.update(grads, state.opt_state, params)
        params = self._split(optax.apply_updates(params, updates))
        return self._in_place(TrainState(state.step + 1, params, model_state, opt_state, state.key)), sums

    def test(self, state: TrainState, batch: Batch) -> Sums:
        """The sums of the losses and metrics of a batch, with the module in evaluation mode."""
        return self._forward_only(self._evaluate, state, batch, WHOLE)

    def predict(self, state: TrainState, batch: Batch) -> PyTree:
        """The model's outputs for a batch, leaves ``[B, ...]``."""
        return self._forward_only(self._predict, state, batch.x, ROWS)

    # On one shard -------------------------------------------------------------------------------

    def _gradients(
        self, axes: Axes, variables: tuple[PyTree, PyTree], batch: Batch, key: jax.Array, scale: jax.Array | None
    ) -> tuple[PyTree, PyTree, Sums]:
        """The global gradient, times the loss scale if there is one; this shard's part of it where that is split."""
        params, model_state = self._parts(axes, variables)
        late = self._stage == 3 and self.microbatches == 1
        if not late:
            params = jax.tree.map(
                lambda a: gathering.whole(a, _COLLECTIVES) if is_split(a) else a, params, is_leaf=is_split
            )
        key = self._shard_key(key)
        shards = 1 if self.distribution is None else self.distribution.num_devices
        # Sums are differentiated, and divided afterwards.  Scaled sums would overflow where their scaled mean does
        # not, so that the scale enters divided by the rows.
        rows = 1 if scale is None else _rows(batch) * shards
        seeds = _Seeds(1.0, 1.0) if scale is None else _Seeds(mean=scale / rows, sum=scale)
        run = self._microbatch if self.microbatches == 1 else self._microbatch_loop
        local, model_state = run(params, model_state, batch, key, seeds)

        # What the forward pass gathered late was scattered on the way back.
        parts = [self._scattered(axes, tree, already=late) for tree in local.grads]
        rest = [_only(tree, [axis is None for axis in axes]) for tree in local.grads]
        local, totals = self._sum((local._replace(grads=rest), _floats(model_state)))
        local = local._replace(grads=[_filled(a, b) for a, b in zip(parts, local.grads, strict=True)])
        model_state = _filled(jax.tree.map(lambda a: (a / shards).astype(a.dtype), totals), model_state)
        grads = [
            _divide(tree, local.losses[group[0]].denominator, rows)
            for group, tree in zip(self._objective.groups(local.losses), local.grads, strict=True)
        ]
        total = jax.tree.map(lambda *parts: sum(parts), *grads)
        return total, model_state, self._step_sums(local)

    def _microbatch_loop(
        self, params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array, seeds: _Seeds
    ) -> tuple[_Local, PyTree]:
        parts = jax.tree.map(lambda a: a.reshape(self.microbatches, -1, *a.shape[1:]), batch)

        def body(carry: tuple[Any, PyTree], step: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            i, part = step
            so_far, model_state = carry
            local, model_state = self._microbatch(params, model_state, part, jax.random.fold_in(key, i), seeds)
            return (jax.tree.map(jnp.add, so_far, local), model_state), None

        first = jax.tree.map(lambda a: a[0], parts)
        zeros = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype),
            jax.eval_shape(self._microbatch, params, model_state, first, key, seeds)[0],
        )
        steps = (jnp.arange(self.microbatches), parts)
        (local, model_state), _ = jax.lax.scan(body, (zeros, model_state), steps, unroll=self.unroll)
        return local, model_state

    def _microbatch(
        self, params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array, seeds: _Seeds
    ) -> tuple[_Local, PyTree]:
        """Sums and gradients of some rows, with nothing divided or reduced."""
        objective = self._objective

        def groups_of_losses(params: PyTree) -> tuple[list[jax.Array], Any]:
            y_pred, after, penalties = self._forward(params, model_state, batch.x, train=True, key=key)
            sums = self._loss_sums(batch, y_pred, penalties)
            grouped = [
                sum((objective.weight_of(i) * sums[i].sum for i in group), jnp.float32(0))
                for group in objective.groups(sums)
            ]
            return grouped, (sums, y_pred, after)

        grouped, pullback, (sums, y_pred, after) = jax.vjp(groups_of_losses, params, has_aux=True)
        grads = []
        for i, group in enumerate(objective.groups(sums)):  # nearly always one: losses that are averaged alike share it
            seed = seeds.sum if sums[group[0]].denominator is None else seeds.mean
            (grad,) = pullback([jnp.full_like(g, seed if i == j else 0) for j, g in enumerate(grouped)])
            grads.append(jax.tree.map(lambda a: a.part if is_split(a) else a, grad, is_leaf=is_split))
        return self._local(batch, y_pred, sums, grads), after

    def _evaluate(self, axes: Axes, variables: tuple[PyTree, PyTree], batch: Batch, key: jax.Array) -> Sums:
        y_pred, _, penalties = self._forward(*self._parts(axes, variables), batch.x, train=False, key=key)
        sums = self._loss_sums(batch, y_pred, penalties)
        return self._step_sums(self._sum(self._local(batch, y_pred, sums, [])))

    def _predict(self, axes: Axes, variables: tuple[PyTree, PyTree], x: PyTree, key: jax.Array) -> PyTree:
        return self._forward(*self._parts(axes, variables), x, train=False, key=key)[0]

    def _forward(self, params: PyTree, model_state: PyTree, x: PyTree, *, train: bool, key: jax.Array) -> Applied:
        def apply(params: PyTree, model_state: PyTree, x: PyTree, key: jax.Array) -> Applied:
            variables = Variables(self.precision.cast(params), model_state)
            return self.adapter.apply(variables, self.precision.cast(x), train=train, key=key)

        if any(map(is_split, jax.tree.leaves(params, is_leaf=is_split))):
            apply = functools.partial(gathering.call, apply, collectives=_COLLECTIVES)
        applied = apply(params, model_state, x, key)
        # A collection keeps its dtypes, whatever the forward pass computed in.
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), applied.model_state, model_state)
        return applied._replace(model_state=after)

    def _loss_sums(self, batch: Batch, y_pred: PyTree, penalties: list[jax.Array]) -> list[LossSum]:
        shards = self._all_shards if self._objective.across_rows else ALONE
        return self._objective.loss_sums(batch.y, y_pred, batch.weight, batch.valid, penalties, shards)

    def _local(self, batch: Batch, y_pred: PyTree, sums: list[LossSum], grads: list[PyTree]) -> _Local:
        rows = np.float32(_rows(batch)) if batch.valid is None else batch.valid.sum()
        metric_sums = self._objective.metric_sums(batch.y, y_pred, batch.weight, batch.valid)
        return _Local(grads, sums, rows, metric_sums)

    # Over all shards ----------------------------------------------------------------------------

    def _forward_only(self, fn: Callable[..., Any], state: TrainState, rows: PyTree, out_specs: Any) -> Any:
        in_specs = ((self._specs(state.params, from_stage=3), WHOLE), ROWS, WHOLE)
        fn = functools.partial(fn, self._axes(state.params))
        return self._on_shards(fn, in_specs, out_specs)((state.params, state.model_state), rows, state.key)

    def _on_shards(self, fn: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        if self.distribution is None:
            return fn
        return jax.shard_map(fn, mesh=self.distribution.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def _sum(self, tree: PyTree) -> PyTree:
        """The one reduction of a step.

        XLA would keep it over a single device too, and would reduce constants, such as the rows of a batch
        that is full, in a collective of their own.
        """
        if self.distribution is None or self.distribution.num_devices == 1:
            return tree
        leaves, structure = jax.tree.flatten(tree)
        known = [not isinstance(leaf, jax.core.Tracer) for leaf in leaves]
        summed = iter(jax.lax.psum([a for a, k in zip(leaves, known, strict=True) if not k], BATCH_AXES))
        shards = self.distribution.num_devices
        return jax.tree.unflatten(
            structure, [a * shards if k else next(summed) for a, k in zip(leaves, known, strict=True)]
        )

    @property
    def _stage(self) -> int:
        """How much of the state is split: 0 where there is one device to split it over."""
        return self.distribution.zero_stage if self.distribution and self.distribution.shards > 1 else 0

    def _axes(self, params: PyTree) -> Axes:
        if not (self._stage and self.distribution):
            return [None for _ in jax.tree.leaves(params)]
        return [self.distribution.shard_axis(a.shape) for a in jax.tree.leaves(params)]

    def _specs(self, params: PyTree, *, from_stage: int) -> PyTree:
        """How shard_map takes or gives the parameters or their gradients, which are split from some stage on."""
        distribution = self.distribution
        if self._stage < from_stage or distribution is None:
            return WHOLE
        return jax.tree.map(lambda a: distribution.shard_spec(a.shape), params)

    def _in_place(self, state: TrainState) -> TrainState:
        """The state, each array where it is kept."""
        if not (self._stage and self.distribution):
            return state
        return jax.lax.with_sharding_constraint(state, shardings(state, self.distribution))

    def _split(self, params: PyTree) -> PyTree:
        """The parameters as the optimizer works on them: each shard on its parts."""
        distribution = self.distribution
        if not self._stage or distribution is None:
            return params
        places = jax.tree.map(lambda a: distribution.opt_sharding(a.shape), params)
        return jax.lax.with_sharding_constraint(params, places)

    def _parts(self, axes: Axes, variables: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        """The variables that a shard is given, with a `Split` for each parameter that it has a part of."""
        if self._stage < 3 or not self.distribution:
            return variables
        leaves, structure = jax.tree.flatten(variables[0])
        shards = self.distribution.shards
        parts = [
            a if axis is None else Split(a, axis, a.shape[axis] * shards, a.dtype)
            for a, axis in zip(leaves, axes, strict=True)
        ]
        return jax.tree.unflatten(structure, parts), variables[1]

    def _scattered(self, axes: Axes, grads: PyTree, *, already: bool) -> PyTree:
        """The sum over shards of those gradients that are split, of which each shard gets its part; None for others."""
        leaves, structure = jax.tree.flatten(grads)
        parts = [
            a if already or axis is None else _COLLECTIVES.scatter(a, axis)
            for a, axis in zip(leaves, axes, strict=True)
        ]
        parts = _only(jax.tree.unflatten(structure, parts), [axis is not None for axis in axes])
        over_replicas = self.distribution is not None and self.distribution.mesh.shape["replica"] > 1
        return jax.lax.psum(parts, "replica") if over_replicas and jax.tree.leaves(parts) else parts

    @property
    def _all_shards(self) -> Shards:
        """What a loss that compares rows with each other reaches the other shards by."""
        if self.distribution is None or self.distribution.num_devices == 1:
            return ALONE
        return Shards(
            sum=lambda tree: jax.lax.psum(tree, BATCH_AXES),
            gather=lambda rows: jax.lax.all_gather(rows, BATCH_AXES, tiled=True),
            index=jax.lax.axis_index(BATCH_AXES),
        )

    def _shard_key(self, key: jax.Array) -> jax.Array:
        """A shard's own key, for dropout that differs from shard to shard."""
        return key if self.distribution is None else jax.random.fold_in(key, jax.lax.axis_index(BATCH_AXES))

    def _step_sums(self, reduced: _Local) -> Sums:
        return self._objective.step_sums(reduced.losses, reduced.rows, reduced.metrics)

    @property
    def _objective(self) -> Objective:
        assert self.objective is not None
        return self.objective


def _rows(batch: Batch) -> int:
    return jax.tree.leaves(batch.x)[0].shape[0]


def _divide(gradients: PyTree, denominator: jax.Array | None, rows: int) -> PyTree:
    """The gradients of a mean from those of a sum over `rows`; where nothing counted, both are 0."""
    if denominator is None:
        return gradients
    divisor = jnp.where(denominator == 0, 1, denominator)
    divisor = divisor if rows == 1 else divisor / rows
    return jax.tree.map(lambda g: (g / divisor).astype(g.dtype), gradients)


def _is_scale_adaptive(opt_state: PyTree) -> bool:
    """Whether the optimizer takes gradients that are not finite for a loss scale that is too large."""

    def is_adaptive(part: Any) -> bool:
        return isinstance(part, optimizers.LossScaleState)

    return any(map(is_adaptive, jax.tree.leaves(opt_state, is_leaf=is_adaptive)))


def _with_loss_of_nan_if_bad(sums: Sums, grads: PyTree) -> Sums:
    """The sums, with a loss of NaN if a gradient is not finite, which spoils the parameters as a loss of NaN does."""
    finite = functools.reduce(jnp.logical_and, [jnp.isfinite(g).all() for g in jax.tree.leaves(grads)], jnp.bool_(True))
    total, *rows = sums["loss"]
    return {**sums, "loss": (jnp.where(finite, total, jnp.nan), *rows)}


def _floats(tree: PyTree) -> PyTree:
    """The floating-point leaves, which a mean over shards makes sense of; counters are the same on every shard."""
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.floating) else None, tree)


def _only(tree: PyTree, kept: list[bool]) -> PyTree:
    """`tree` with None in place of the leaves that are not kept."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [a if keep else None for a, keep in zip(leaves, kept, strict=True)])


def _filled(tree: PyTree, other: PyTree) -> PyTree:
    """`tree` with the leaves of `other` where it has None."""
    return jax.tree.map(lambda a, b: b if a is None else a, tree, other, is_leaf=lambda a: a is None)

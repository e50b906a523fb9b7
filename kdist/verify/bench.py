"""Makes the sides of a trainer and compares them; where two part, looks for the first place and the likely reason."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import get_opaque_trace_state
from jax.sharding import PartitionSpec

from kdist.data import ArrayLoader
from kdist.distribution import BATCH_AXES, DataParallel
from kdist.modules import Variables
from kdist.trainer import Trainer
from kdist.typing import Batch, PyTree
from kdist.verify import reasons
from kdist.verify.differences import difference, differences, first_other_row
from kdist.verify.layers import Layer, calls_of
from kdist.verify.sides import Seen, Side, held_key, keep

TOLERANCES = {"bf16": 0.05, "f16": 0.01, "f32": 1e-3}
"""What two sides may differ by, relatively, by the coarsest dtype that the model computes in."""
NEARLY = 10
"""So many tolerances may still be rounding, in 16 bits."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two ways to train, side by side.

    Attributes:
        name: What is compared, such as "1 device : 8 devices".
        losses: The loss of each side, over all batches that were compared.
        difference: The largest relative difference of a gradient; of a parameter's change where steps are fused.
        tolerance: What it may be.
        where: The first place where they part; None if they agree.
        reason: The likely reason, and what to do.
        note: What was held equal, since it differs by design; empty if nothing was.

    Example:
        >>> Comparison("1 device : 8 devices", (0.5, 0.5), 1e-7, 1e-3).agrees
        True
    """

    name: str
    losses: tuple[float, float]
    difference: float
    tolerance: float
    where: str | None = None
    reason: str = ""
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the two sides are the same to rounding."""
        return self.where is None


Why = Callable[[Seen, Seen], tuple[str, str]]
"""Where two sides part, and the likely reason."""


class Bench:
    """Makes the sides of a trainer, and compares them.

    Args:
        trainer: What is verified.
        rows: What it is trained on.
        batch_size: B.

    Attributes:
        variables: What training starts from.
    """

    def __init__(self, trainer: Trainer, rows: Batch, batch_size: int) -> None:
        self._trainer, self._rows, self._batch_size = trainer, rows, batch_size
        self._all = trainer.distribution
        self._one = DataParallel(devices=self._all.mesh.devices.flat[:1].tolist())
        self._steps = math.ceil(len(jax.tree.leaves(rows.x)[0]) / batch_size)
        self._first: Batch = jax.tree.map(lambda a: a[:batch_size], rows)
        self._frozen = optax.chain(keep(), optax.set_to_zero())
        self._state = trainer.init(self._first)
        self.variables: Variables = jax.device_get(Variables(self._state.params, self._state.model_state))
        text = str(jax.make_jaxpr(self._forward(self._one))(*self._inputs(self._one)))
        self._dtype = next((name for name in TOLERANCES if f":{name}[" in text), "f32")
        self._draws, self._synchronised = "random_bits" in text, "psum" in text
        self._base = self._see(self._frozen, self._all, held=True)

    def devices(self) -> Comparison:
        """One device against all of them."""
        one = self._see(self._frozen, self._one, held=True)
        name = f"1 device : {self._all.num_devices} devices"
        return self._compared(name, one, self._base, self._why_of_devices, reasons.HELD if self._draws else "")

    def fusing(self) -> Comparison:
        """One step at a time against all of them in one program, with the trainer's own optimizer and keys."""
        assert self._trainer.optimizer is not None
        tx = optax.chain(self._trainer.optimizer.tx, keep())
        single, fused = (self._see(tx, self._all, k=k) for k in (1, self._steps))
        note = "" if self._steps > 1 else "There is one batch only: nothing was fused."

        def why(single: Seen, fused: Seen) -> tuple[str, str]:
            return self._first_parted(single, fused, "change"), reasons.IN_PYTHON

        return self._compared(f"K=1 : K={self._steps}", single, fused, why, note)

    def feeds(self, before: Batch, *, once: bool) -> Comparison:
        """Rows that were read before and are kept on the devices against the rows that are streamed.

        Args:
            before: The rows as they were read before.
            once: Whether that is the same reading.
        """
        resident = self._see(self._frozen, self._all, rows=before, cache=True, held=True)
        note = "The data can be read once only: both sides had the same reading." if once else ""

        def why(resident: Seen, streamed: Seen) -> tuple[str, str]:
            other = first_other_row(before, self._rows)
            if other is not None:
                return other, reasons.UNSEEDED
            return self._first_parted(resident, streamed), reasons.IN_PYTHON

        return self._compared("resident : streamed", resident, self._base, why, note)

    def _see(
        self,
        tx: optax.GradientTransformation,
        distribution: DataParallel,
        *,
        k: int = 1,
        rows: Batch | None = None,
        cache: bool = False,
        held: bool = False,
    ) -> Seen:
        rows = self._rows if rows is None else rows
        loader = ArrayLoader(rows, self._batch_size, shuffle=False, seed=0, cache=cache)
        key = held_key() if held else jax.random.key(self._trainer.seed)
        return Side(self._trainer, tx, distribution, k).see(self.variables, key, loader)

    def _compared(self, name: str, a: Seen, b: Seen, why: Why, note: str) -> Comparison:
        furthest = max(differences(a.total, b.total).values(), default=0.0)
        others = {**differences(a.model_state, b.model_state), **differences(a.loss, b.loss)}
        most, tolerance = max(furthest, *others.values()), TOLERANCES[self._dtype]
        where, reason = why(a, b) if most > tolerance else (None, "")
        if not math.isfinite(a.loss + b.loss):
            where, reason = "the loss", reasons.NOT_FINITE
        elif where and self._dtype != "f32" and most < NEARLY * tolerance:
            reason = f"{reasons.ROUNDING.format(dtype=self._dtype)} If not: {reason}"
        return Comparison(name, (a.loss, b.loss), furthest, tolerance, where, reason, note)

    # Where and why ------------------------------------------------------------------------------

    def _why_of_devices(self, one: Seen, many: Seen) -> tuple[str, str]:
        layer = self._first_layer()
        parted = [path.split("/")[1:] for path in self._parted(one.model_state, many.model_state, "batch_stats/")]
        if layer is None and not parted:
            reason = reasons.ONE_NUMBER if self._is_loss_one_number() else reasons.AFTER_THE_OUTPUTS
            return self._first_parted(one, many), reason
        where = self._first_parted(one, many) if layer is None else f"the output of {layer}"
        axes = BATCH_AXES if self._all.mesh.shape["replica"] > 1 else "data"
        if layer and not (layer.kind == "BatchNorm" or any(path[0] == layer.name for path in parted)):
            return where, reasons.OTHER_ROWS.format(axes=axes)
        if self._synchronised and self._trainer.microbatches > 1:
            return where, reasons.OF_MICROBATCHES
        if self._synchronised and self._batch_size % self._all.num_devices:
            return where, reasons.FILLED.format(rows=self._batch_size, n=self._all.num_devices)
        return where, reasons.NOT_SYNCHRONISED.format(axes=axes)

    def _is_loss_one_number(self) -> bool:
        return Side(self._trainer, self._frozen, self._all, 1).bind(self._state, self._first).objective.exact

    def _parted(self, a: PyTree, b: PyTree, prefix: str = "") -> list[str]:
        tolerance = TOLERANCES[self._dtype]
        return [path for path, off in differences(a, b).items() if off > tolerance and path.startswith(prefix)]

    def _first_parted(self, a: Seen, b: Seen, what: str = "gradient") -> str:
        """The first of the model's state and gradients, in the order of the layers, that is not the same."""
        states = [path.partition("/") for path in self._parted(a.model_state, b.model_state)]
        parted = [(path, f"the {kind} of {path}") for kind, _, path in states]
        parted += [(path, f"the {what} of {path}") for path in self._parted(a.total, b.total)]
        layers = [layer.name for layer in self._trainer.adapter.layers(self.variables, self._first.x)]

        def place(found: tuple[str, str]) -> int:
            return next((i for i, name in enumerate(layers) if f"{found[0]}/".startswith(f"{name}/")), len(layers))

        return min(parted, key=place)[1] if parted else "the loss"

    def _first_layer(self) -> Layer | None:
        """The first layer of the model whose output for the first batch is not the same on one device and on all."""
        outputs = []
        for distribution in (self._one, self._all):
            called: list[Layer] = []
            values = jax.jit(self._forward(distribution, called))(*self._inputs(distribution))
            rows = jax.tree.map(lambda a: a[: self._batch_size], jax.device_get(values))
            outputs.append(list(zip([*called, Layer("", "the model")], rows, strict=True)))
        tolerance = TOLERANCES[self._dtype]
        return next(
            (
                layer
                for (layer, one), (_, many) in zip(*outputs, strict=False)
                if any(difference(one[i], many[i]) > tolerance for i in one.keys() & many.keys())
            ),
            None,
        )

    def _forward(self, distribution: DataParallel, called: list[Layer] | None = None) -> Callable[..., list[PyTree]]:
        """``(variables, x, key) -> outputs``, those of each layer that is noted in `called`, and last the model's.

        Each is the arrays of it that have the rows first, by number.
        """
        adapter, precision = self._trainer.adapter, self._trainer.precision

        def forward(variables: Variables, x: PyTree, key: jax.Array) -> list[PyTree]:
            cast = Variables(precision.cast(variables.params), variables.model_state)
            outputs: list[PyTree] = []
            here = get_opaque_trace_state()

            def note(layer: Layer, output: PyTree) -> None:
                # What a layer gives inside a scan or a remat of the model's own stays in there.
                if called is not None and get_opaque_trace_state() == here:
                    called.append(layer)
                    outputs.append(output)

            with calls_of(adapter, note):
                outputs.append(adapter.apply(cast, precision.cast(x), train=True, key=key).outputs)
            rows = len(jax.tree.leaves(x)[0])
            leaves = [dict(enumerate(jax.tree.leaves(out))) for out in outputs]
            return [{i: a for i, a in by_number.items() if jnp.shape(a)[:1] == (rows,)} for by_number in leaves]

        in_specs, out_specs = (PartitionSpec(), PartitionSpec(BATCH_AXES), PartitionSpec()), PartitionSpec(BATCH_AXES)
        return jax.shard_map(forward, mesh=distribution.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def _inputs(self, distribution: DataParallel) -> tuple[Variables, PyTree, jax.Array]:
        """What the forward pass of the first batch takes, filled up so that it divides over the devices."""
        rows = len(jax.tree.leaves(self._first.x)[0])
        filled = np.arange(-(-rows // distribution.num_devices) * distribution.num_devices) % rows
        return self.variables, jax.tree.map(lambda a: a[filled], self._first.x), held_key()

"""What a training step will need, before there is a machine for it: its own program, compiled for that machine here.

What is compiled is the program that `fit` would run; nothing is run.  Bytes and collectives are read off it.  Seconds
are a roofline: each resource at its published peak, so that real steps take longer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax

from kdist.chips import CHIPS, Chip, chip_of
from kdist.distribution import DataParallel
from kdist.errors import ConfigError, DataError, DistributionError
from kdist.footprint import Footprint, footprint
from kdist.programs import Moved, Work, collectives, work
from kdist.typing import Batch

if TYPE_CHECKING:
    from kdist.trainer import Trainer


LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""The TPU library is not to ask the machine's metadata server, nor to be the only one of its kind on this machine."""


@dataclasses.dataclass(frozen=True)
class Plan(Footprint):
    """What a step of training needs of a device: memory, as `Footprint` has it, and time.

    Attributes:
        devices: N, over all slices.
        chip: What each of them is; None where nothing is published of it.
        batch_size: Rows of a step, over all devices.
        microbatches: The parts that a shard's rows are worked through in.
        zero_stage: How much of the state is split.
        capacity: Bytes that a device has; None if that is not known.
        collectives: Those of a step; None if the compiler refused the program, since it cannot fit.
        work: The arithmetic of a step.
        link_seconds: What the collectives take at the bandwidth of the links.
    """

    devices: int
    chip: Chip | None
    batch_size: int
    microbatches: int
    zero_stage: int
    capacity: float | None
    collectives: list[Moved] | None
    work: Work
    link_seconds: float

    @property
    def fits(self) -> bool | None:
        """Whether a device has that much; None if nobody knows."""
        if self.collectives is None:
            return False
        return None if self.capacity is None else self.bytes <= self.capacity

    @property
    def compute_seconds(self) -> float:
        """The arithmetic at the chip's peak."""
        return math.nan if self.chip is None else self.work.flops / self.chip.flops

    @property
    def memory_seconds(self) -> float:
        """Operands and results of the arithmetic, and the state twice, at the bandwidth of the memory."""
        if self.chip is None:
            return math.nan
        state = 2 * (self.params_bytes + self.opt_bytes)
        return (self.work.memory_bytes + state) / self.chip.memory_bandwidth

    @property
    def step_seconds(self) -> float:
        """What a step takes at the least, if nothing is hidden behind anything but memory behind arithmetic."""
        return max(self.compute_seconds, self.memory_seconds) + self.link_seconds

    @property
    def mfu(self) -> float:
        """The share of the peak that the step would reach; what is computed twice to save memory counts twice."""
        return self.compute_seconds / self.step_seconds


def devices_of(topology: str, slices: int = 1) -> list[Any]:
    """The devices of a TPU slice, or of several, that need not be there; those that are there for "local".

    Args:
        topology: A chip and a shape, such as "v5e:16x16"; or "local".
        slices: How many such slices.

    Raises:
        ConfigError: There is no such topology.
        DistributionError: The compiler for TPUs is not installed.
    """
    if slices < 1:
        raise ConfigError(f"slices must be at least 1. Received: {slices}.")
    if topology == "local":
        if slices > 1:
            raise ConfigError(f"The devices that are here are no slices. For {slices}, give the topology of each.")
        return jax.devices()
    kind = topology.partition(":")[0]
    if kind not in CHIPS or not re.fullmatch(r"\w+:\d+(x\d+){1,2}", topology):
        raise ConfigError(
            f"topology must be 'local' or a chip of {', '.join(CHIPS)} and a shape, such as v5e:16x16. "
            f"Received: {topology!r}."
        )
    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise DistributionError(
            "Programs for TPUs are compiled by libtpu, which needs no TPU: pip install 'kdist[tpu]'. Or plan for the "
            "devices that are here: --topology local."
        ) from error
    from jax.experimental import topologies

    how = {"num_slices": slices} if slices > 1 else {}
    try:
        with _quiet():
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **how)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"There is no topology {topology!r}: {error}") from error
    return list(found.devices)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the TPU library, which is no Python, says on standard error of a machine that has no TPU."""
    sys.stderr.flush()
    with open(os.devnull, "w") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def plan(trainer: Trainer, batch: Any) -> Plan:
    """What `fit` of this trainer will need, on the devices of its distribution.

    Args:
        trainer: It trains nothing here.
        batch: A global batch, ``(x, y)`` or ``(x, y, sample_weight)``, of arrays or of shapes, rows first.

    Raises:
        ConfigError: Losses or metrics do not map to the outputs, or there is no optimizer.
        DataError: The batch does not fit the model, or has no targets.

    Example:
        >>> import flax.linen as nn, kdist, numpy as np
        >>> trainer = kdist.Trainer(nn.Dense(2), optimizer="adam", loss="mse", distribution=DataParallel(
        ...     devices=jax.devices()[:1]))
        >>> x, y = np.ones((8, 3), np.float32), np.ones((8, 2), np.float32)
        >>> found = plan(trainer, (x, y))
        >>> found.params_bytes, found.opt_bytes, found.work.flops, found.collectives
        (32, 76, 192.0, [])
    """
    if trainer.optimizer is None:
        raise ConfigError("A model without an optimizer is not trained: there is nothing to plan.")
    distribution = trainer.distribution
    shapes = _shapes(batch)
    if shapes.y is None and trainer.plan.needs_targets:
        raise DataError("There are no targets: training needs y.")
    rows = jax.tree.leaves(shapes.x)[0].shape[0]
    state = trainer.shapes(shapes)
    found = trainer.choose_microbatches(state, shapes)
    if found is None:
        execution = trainer.bind(state, shapes).execution
        found = footprint(execution, state, shapes, distribution, trainer.microbatches)
    chip = chip_of(distribution.mesh.devices.flat[0].device_kind)
    moved = collectives(found.text) if found.text else None
    return Plan(
        **vars(found),
        devices=distribution.num_devices,
        chip=chip,
        batch_size=rows,
        microbatches=trainer.microbatches,
        zero_stage=distribution.zero_stage,
        capacity=distribution.memory_bytes,
        collectives=moved,
        work=work(found.jaxpr),
        link_seconds=_link_seconds(moved, chip, distribution),
    )


def _shapes(batch: Any) -> Batch:
    from kdist.trainer import as_batch

    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), as_batch(batch))


def _link_seconds(moved: list[Moved] | None, chip: Chip | None, distribution: DataParallel) -> float:
    """What collectives take: over the network of the data centre where they reach beyond a slice."""
    if moved is None or chip is None:
        return 0.0 if moved == [] else math.nan
    devices = distribution.mesh.devices.flat
    inside = len(devices) // len({getattr(device, "slice_index", 0) for device in devices})
    return sum(m.sent / (chip.slice_bandwidth if m.between or m.group > inside else chip.link_bandwidth) for m in moved)

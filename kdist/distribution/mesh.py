"""The device mesh, and how batches and states lie on it.

The mesh has the axes ``("replica", "data")``: "data" inside a slice, where links are fast, and
"replica" across slices or nodes.  Both carry the batch.  Axes are Auto, built from
`jax.sharding.Mesh`, since Explicit axes refuse sharding constraints.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdist.chips import chip_of
from kdist.errors import ConfigError, DistributionError
from kdist.typing import PyTree

BATCH_AXES = ("replica", "data")
"""The mesh axes that a batch is split over; a reduction over rows is one over both."""


@dataclasses.dataclass(frozen=True)
class DataParallel:
    """Every device works on its rows of each batch; the state is the same on all of them, or split over them.

    Splitting saves memory and changes no number (ZeRO: Rajbhandari et al., arXiv 1910.02054).  An array is split over
    the "data" axis on its largest dimension that divides; one that has none stays whole.

    Attributes:
        zero_stage: How much of the state is split.  0, the default: nothing.  1: the optimizer's state; gradients are
            reduced and scattered in one go, and updated parameters gathered.  2: the same, since gradients never
            outlive a step here.  3: the parameters too, which are gathered where a layer needs them, forward and
            backward.
        devices: The devices to use; all devices of all processes by default.
        replicas: Length of the mesh's "replica" axis; "auto", the default, is the number of TPU slices.  From stage 1
            on, gradients are reduced and scattered inside a replica, and their parts added up over replicas.  Stage 0
            asks for one sum over all devices, which XLA does in the same way for TPU slices: what goes from slice to
            slice is a part of the gradient there too.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> import jax
        >>> DataParallel(devices=jax.devices()[:1]).num_devices
        1
    """

    zero_stage: int = 0
    devices: Sequence[jax.Device] | None = None
    replicas: int | str = "auto"

    def __post_init__(self) -> None:
        """Checks the arguments that need no devices.

        Raises:
            ConfigError: One of them is out of its range.
        """
        if isinstance(self.zero_stage, bool) or self.zero_stage not in (0, 1, 2, 3):
            raise ConfigError(f"zero_stage must be 0, 1, 2 or 3. Received: {self.zero_stage!r}.")
        whole = isinstance(self.replicas, int) and not isinstance(self.replicas, bool) and self.replicas > 0
        if not (self.replicas == "auto" or whole):
            raise ConfigError(f"replicas must be 'auto' or a positive integer. Received: {self.replicas!r}.")
        if self.devices is not None:
            if not isinstance(self.devices, Sequence) or isinstance(self.devices, str):
                raise ConfigError(
                    f"devices must be a list of devices, such as jax.devices()[:4]. Received: {self.devices!r}."
                )
            object.__setattr__(self, "devices", tuple(self.devices))
            if not self.devices:
                raise ConfigError("devices must name at least one device, or be None for all. Received: ().")

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The mesh of axes `BATCH_AXES`.

        Raises:
            DistributionError: The devices do not divide into `replicas`.
        """
        devices = np.asarray(self.devices if self.devices is not None else jax.devices(), dtype=object)
        replicas = self.replicas
        if replicas == "auto":
            replicas = len({getattr(d, "slice_index", 0) for d in devices})
        if devices.size % int(replicas):
            raise DistributionError(
                f"{devices.size} devices do not divide into {replicas} replicas. Give a number of replicas "
                "that divides the number of devices, or 'auto'."
            )
        return Mesh(devices.reshape(int(replicas), -1), BATCH_AXES)

    @property
    def num_devices(self) -> int:
        """N, the number of shards of a batch."""
        return self.mesh.size

    @property
    def shards(self) -> int:
        """How many parts a split array has: the length of the "data" axis; 1 where nothing is split."""
        return self.mesh.shape["data"] if self.zero_stage else 1

    def shard_axis(self, shape: Sequence[int]) -> int | None:
        """The dimension that an array is split on: the largest that divides by `shards`; None if it stays whole.

        Args:
            shape: Of the array.

        Example:
            >>> DataParallel(zero_stage=1, devices=jax.devices()[:1]).shard_axis((3, 5)) is None  # one device has all
            True
        """
        sizes = [n if n % self.shards == 0 else 0 for n in shape] if self.shards > 1 else []
        return sizes.index(max(sizes)) if any(sizes) else None

    def shard_spec(self, shape: Sequence[int]) -> PartitionSpec:
        """How an array is split; see `shard_axis`.

        Args:
            shape: Of the array.

        Example:
            >>> DataParallel(zero_stage=1, devices=jax.devices()[:1]).shard_spec((3, 5))
            P()
        """
        axis = self.shard_axis(shape)
        return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, "data")

    def param_sharding(self, shape: Sequence[int]) -> NamedSharding:
        """The sharding of a parameter: split at stage 3.

        Args:
            shape: Of the parameter.

        Example:
            >>> DataParallel(devices=jax.devices()[:1]).param_sharding((3, 5)).is_fully_replicated
            True
        """
        return NamedSharding(self.mesh, self.shard_spec(shape) if self.zero_stage == 3 else PartitionSpec())

    def opt_sharding(self, shape: Sequence[int]) -> NamedSharding:
        """The sharding of an array in the optimizer's state: split from stage 1 on.

        Args:
            shape: Of the array.

        Example:
            >>> DataParallel(devices=jax.devices()[:1]).opt_sharding((3, 5)).is_fully_replicated
            True
        """
        return NamedSharding(self.mesh, self.shard_spec(shape))

    @property
    def platform(self) -> str:
        """The backend of the devices: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    @property
    def memory_bytes(self) -> float | None:
        """The memory of a device, as its maker or the runtime says; None if neither does, as of a CPU."""
        device = self.mesh.devices.flat[0]
        chip = chip_of(device.device_kind)
        if chip is not None:
            return chip.memory
        return (device.memory_stats() or {}).get("bytes_limit")

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def batch_sharding(self, axis: int = 0) -> NamedSharding:
        """The sharding of an array whose dimension `axis` is the global batch.

        Args:
            axis: The dimension that is split; 0 by default.

        Example:
            >>> import jax
            >>> batch = jax.device_put(np.zeros((8, 3)), DataParallel(devices=jax.devices()[:1]).batch_sharding())
            >>> batch.sharding.spec[0]
            ('replica', 'data')
        """
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


def bytes_a_device(tree: PyTree) -> int:
    """The bytes that one device holds of a tree.

    Args:
        tree: Arrays, or shapes with shardings.

    Example:
        >>> bytes_a_device({"w": jax.numpy.ones((3, 4))})
        48
    """
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def whole(array: jax.Array) -> jax.Array:
    """An array of which this process can read every element.  All processes call it.

    Args:
        array: On any devices, split over those of other processes too.

    Example:
        >>> whole(jax.numpy.arange(3)).tolist()
        [0, 1, 2]
    """
    if array.is_fully_addressable or array.is_fully_replicated:
        return array
    assert isinstance(array.sharding, NamedSharding)
    return jax.jit(lambda a: a, out_shardings=NamedSharding(array.sharding.mesh, PartitionSpec()))(array)

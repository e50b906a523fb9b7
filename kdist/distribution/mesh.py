"""The device mesh, and how batches and states lie on it.

The mesh has the axes ``("replica", "data")``: "data" inside a slice, where links are fast, and
"replica" across slices or nodes.  Both carry the batch.  Axes are Auto, built from
`jax.sharding.Mesh`, since Explicit axes refuse sharding constraints.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdist.errors import ConfigError, DistributionError

BATCH_AXES = ("replica", "data")
"""The mesh axes that a batch is split over; a reduction over rows is one over both."""


@dataclasses.dataclass(frozen=True)
class DataParallel:
    """Every device works on its rows of each batch; the state is the same on all of them.

    Attributes:
        zero_stage: How much of the state is sharded: only 0, the default, which is nothing, so far.
        devices: The devices to use; all devices of all processes by default.
        replicas: Length of the mesh's "replica" axis; "auto", the default, is the number of TPU slices.

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
        if self.zero_stage != 0:
            raise ConfigError(
                f"This version replicates the state: zero_stage must be 0. Received: {self.zero_stage!r}."
            )
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
    def platform(self) -> str:
        """The backend of the devices: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

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

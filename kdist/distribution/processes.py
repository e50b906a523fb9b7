"""Process start-up: how a process finds its place among the several of a run, and joins them."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterator

import jax
from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm
from jax._src.clusters import ClusterEnv
from jax._src.xla_bridge import backends_are_initialized

from kdist.distribution import rendezvous
from kdist.errors import DistributionError

SHUTDOWN_SECONDS = 300
"""How long a process that is done waits for the others, which may still write; an `Alarm` tells failures at once."""


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    initialization_timeout: int = 300,
    heartbeat_timeout: int = 60,
    bind_address: str | None = None,
) -> None:
    """Joins the processes of a run.  Call it first, before any other use of JAX.

    What is not given is taken from ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, or found
    where JAX knows the environment (Cloud TPU, GKE, Kubernetes, Slurm, Open MPI).  Where there is nothing to join, it
    does nothing.

    The processes meet before JAX joins them: one that is missing, that has other versions of kdist, Python, JAX, Flax
    or optax, or that counts them differently is named in an error that all of them raise.

    Args:
        coordinator_address: ``host:port`` of process 0, reachable from all; found as said above by default.
        num_processes: How many processes there are; found as said above by default.
        process_id: Which of them this is, from 0; found as said above by default.
        initialization_timeout: Seconds to wait for all to join; 300 by default. The least of all processes' counts.
        heartbeat_timeout: Seconds after which a silent process counts as dead; 60 by default.
        bind_address: ``host:port`` that process 0 listens on, as ``0.0.0.0:8476`` for every interface of the host; by
            default ``JAX_COORDINATOR_BIND_ADDRESS``, or the coordinator's address and no other.

    Raises:
        DistributionError: Arguments are missing or out of range, JAX was already in use, the port is, the coordinator's
            address leads nowhere from other hosts, or the processes did not come together in time or are not alike.

    Example:
        >>> initialize(num_processes=1)  # nothing to join
    """
    if jax.distributed.is_initialized():
        return
    membership = find(coordinator_address, num_processes, process_id, seconds=initialization_timeout)
    if membership is None:
        return
    bind_address = bind_address or membership.bind_address
    membership.check(bind_address)
    if backends_are_initialized():
        raise DistributionError(
            f"{membership} cannot join the run, since JAX was used before. Call kdist.initialize before any other use "
            "of JAX."
        )
    _, bind_address = rendezvous.meet(
        membership.coordinator_address,
        membership.num_processes,
        membership.process_id,
        seconds=initialization_timeout,
        bind_address=bind_address,
    )
    try:
        jax.distributed.initialize(
            membership.coordinator_address,
            membership.num_processes,
            membership.process_id,
            membership.local_device_ids,
            cluster_detection_method="deactivate",  # it was asked
            initialization_timeout=initialization_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            coordinator_bind_address=bind_address,
        )
    except (RuntimeError, ValueError) as error:
        raise DistributionError(f"{membership} could not join the run: {error}") from error


@dataclasses.dataclass(frozen=True)
class Membership:
    """A process's place among the several of a run.

    Attributes:
        coordinator_address: ``host:port`` of process 0.
        num_processes: How many there are, two or more.
        process_id: Which of them this is.
        launcher: What they were started by: "Slurm", "Open MPI", ...; "arguments or JAX_*" if nothing had to be found.
        local_device_ids: The devices that this process uses, where the launcher gives each process one; else None.
    """

    coordinator_address: str
    num_processes: int
    process_id: int
    launcher: str
    local_device_ids: list[int] | None = None

    def __str__(self) -> str:
        return (
            f"Process {self.process_id} of {self.num_processes} (coordinator {self.coordinator_address}, from "
            f"{self.launcher})"
        )

    @property
    def bind_address(self) -> str:
        """Where process 0 listens, unless it is told otherwise."""
        return os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or self.coordinator_address

    def check(self, bind_address: str) -> None:
        """Refuses addresses that processes on other hosts cannot reach, where the launcher tells that there are some.

        Args:
            bind_address: Where process 0 listens.

        Raises:
            DistributionError: It leads to the loopback interface.
        """
        elsewhere = self._elsewhere()
        addresses = {"coordinator_address": self.coordinator_address}
        if self.process_id == 0:
            addresses["bind_address"] = bind_address
        for name, address in addresses.items():
            if elsewhere and rendezvous.is_loopback(address):
                raise DistributionError(
                    f"{name} {address} is the loopback interface on {socket.gethostname()} (a host's own name may lead "
                    f"there too: see /etc/hosts), and some processes are on other hosts: {elsewhere}. Give the address "
                    "of process 0's host in the network that joins them."
                )

    def _elsewhere(self) -> str:
        """What in the environment says that processes of this run are on other hosts; empty if nothing does.

        A launcher may start processes that start runs of their own, so its numbers must be those of this run.
        """
        told = os.environ
        own = str(self.num_processes), str(self.process_id)
        if (told.get("SLURM_NTASKS"), told.get("SLURM_PROCID")) == own and _number("SLURM_STEP_NUM_NODES") > 1:
            return f"SLURM_STEP_NUM_NODES={told['SLURM_STEP_NUM_NODES']}"
        if (told.get("OMPI_COMM_WORLD_SIZE"), told.get("OMPI_COMM_WORLD_RANK")) == own:
            local = _number("OMPI_COMM_WORLD_LOCAL_SIZE")
            if 0 < local < self.num_processes:
                return f"OMPI_COMM_WORLD_LOCAL_SIZE={local} of {self.num_processes}"
        for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
            workers = [worker for worker in told.get(name, "").split(",") if worker]
            slices = max(1, _number("MEGASCALE_NUM_SLICES"))
            hosts = {worker.partition(":")[0] for worker in workers}
            if len(workers) * slices == self.num_processes and (len(hosts) > 1 or slices > 1):
                return f"{name}={told[name]}" + f" in {slices} slices" * (slices > 1)
        return ""


_LAUNCHERS = {
    "OmpiCluster": "Open MPI",
    "SlurmCluster": "Slurm",
    "GkeTpuCluster": "Cloud TPU on GKE",
    "GceTpuCluster": "Cloud TPU",
    "K8sCluster": "Kubernetes",
}
"""JAX's names of the environments that it knows, and ours."""


def launchers() -> Iterator[tuple[str, type[ClusterEnv]]]:
    """The environments of a launcher that JAX finds itself in, with their names; it takes the first.

    Each is looked for only when it is asked for: some ask the network.

    Example:
        >>> "Slurm" in dict(launchers())
        False
    """
    for env in ClusterEnv._cluster_types:
        if not env.opt_in_only_method and env.is_env_present():
            yield _LAUNCHERS.get(env.__name__, env.__name__), env


def find(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    seconds: int = 300,
) -> Membership | None:
    """The place of this process among several, from arguments and the environment as `initialize` says.

    Args:
        coordinator_address: As there.
        num_processes: As there.
        process_id: As there.
        seconds: How long to wait for a name of the coordinator to become known.

    Returns:
        The place; None if this process is alone.

    Raises:
        DistributionError: Something is missing, out of range, or cannot be read.

    Example:
        >>> find("10.0.0.1:8476", 2, 1).bind_address
        '10.0.0.1:8476'
    """
    coordinator_address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _from_environment(num_processes, "JAX_NUM_PROCESSES")
    process_id = _from_environment(process_id, "JAX_PROCESS_ID")
    launcher, devices = "arguments or JAX_*", None
    if None in (coordinator_address, num_processes, process_id) and num_processes != 1:
        try:
            launcher, env = next(launchers(), (launcher, None))
            if env is not None:
                num_processes = env.get_process_count() if num_processes is None else num_processes
                if num_processes == 1:
                    return None
                process_id = env.get_process_id() if process_id is None else process_id
                coordinator_address = coordinator_address or env.get_coordinator_address(
                    timeout_secs=seconds, override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT")
                )
                local = None if running_in_cloud_tpu_vm else env.get_local_process_id()
                if local is not None and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
                    devices = [local]
        except (RuntimeError, ValueError, KeyError, OSError, ImportError) as error:
            raise DistributionError(
                f"The environment cannot be read ({launcher}): {error!r}. Give coordinator_address, num_processes and "
                "process_id instead."
            ) from error
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise DistributionError(f"process_id must lie in 0 .. num_processes - 1. Received: {given}.")
    if num_processes == 1 or given == dict.fromkeys(given):
        return None
    if coordinator_address is None or num_processes is None or process_id is None:
        missing = [name for name, value in given.items() if value is None]
        raise DistributionError(
            f"kdist.initialize needs {', '.join(missing)} too, or none of the three. Received: {given}."
        )
    rendezvous.split(coordinator_address)
    return Membership(coordinator_address, num_processes, process_id, launcher, devices)


def _number(name: str) -> int:
    """A count in the environment; 0 if there is none."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else 0


def _from_environment(value: int | None, name: str) -> int | None:
    if value is not None or not os.environ.get(name):
        return value
    try:
        return int(os.environ[name])
    except ValueError:
        raise DistributionError(f"{name} must be an integer. Received: {os.environ[name]!r}.") from None

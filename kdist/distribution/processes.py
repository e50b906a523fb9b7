"""Process start-up, and what the processes of a run decide together."""

from __future__ import annotations

import os

import jax
import numpy as np

from kdist.errors import DistributionError

_CLUSTER_VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "TPU_WORKER_HOSTNAMES",
    "MEGASCALE_COORDINATOR_ADDRESS",
    "SLURM_STEP_NUM_TASKS",
    "OMPI_COMM_WORLD_SIZE",
)


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

    With no arguments the processes are found from the environment where JAX knows it (Cloud TPU,
    GKE, Slurm, Open MPI); on one process it does nothing.

    Args:
        coordinator_address: ``host:port`` of process 0, reachable from all.
        num_processes: How many processes there are.
        process_id: Which of them this is, from 0.
        initialization_timeout: Seconds to wait for all to join.
        heartbeat_timeout: Seconds after which a silent process counts as dead.
        bind_address: ``host:port`` that process 0 listens on; the coordinator's address by default,
            not every interface of the host.

    Raises:
        DistributionError: Arguments are missing or out of range, JAX was already in use, or the
            processes did not come together in time.
    """
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 3:
        if num_processes is None and not any(os.environ.get(name) for name in _CLUSTER_VARIABLES):
            return
    elif num_processes == 1:
        return
    elif missing:
        raise DistributionError(
            f"kdist.initialize needs {', '.join(missing)} too, or none of the three. Received: {given}."
        )
    elif not 0 <= process_id < num_processes:  # type: ignore[operator]
        raise DistributionError(
            f"process_id must lie in 0 .. num_processes - 1. Received: process_id={process_id}, "
            f"num_processes={num_processes}."
        )
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=initialization_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            coordinator_bind_address=bind_address or coordinator_address,
        )
    except (RuntimeError, ValueError) as error:
        raise DistributionError(
            f"Process {process_id} of {num_processes} could not join the run at {coordinator_address}: {error} "
            "Call kdist.initialize before any other use of JAX, and give all processes the same "
            "coordinator_address and num_processes."
        ) from error


def is_main_process() -> bool:
    """Whether this is process 0, the one that prints and writes logs."""
    return jax.process_index() == 0


def agree(value: int) -> int:
    """Process 0's value, 0 .. 2**32 - 1, on every process.  All must call it, at the same point."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.uint32(value)))

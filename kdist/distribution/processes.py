"""Process start-up, and what the processes of a run decide together."""

from __future__ import annotations

import os

import jax
import numpy as np

from kdist.errors import DistributionError

_CLUSTER_VARIABLES = (
    "TPU_WORKER_HOSTNAMES",
    "MEGASCALE_COORDINATOR_ADDRESS",
    "KUBERNETES_SERVICE_HOST",
    "SLURM_JOB_ID",
    "OMPI_MCA_orte_hnp_uri",
)


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

    What is not given is taken from ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and
    ``JAX_PROCESS_ID``, or found where JAX knows the environment (Cloud TPU, GKE, Slurm, Open MPI).  Where
    there is nothing to join, it does nothing.

    Args:
        coordinator_address: ``host:port`` of process 0, reachable from all; found as said above by default.
        num_processes: How many processes there are; found as said above by default.
        process_id: Which of them this is, from 0; found as said above by default.
        initialization_timeout: Seconds to wait for all to join; 300 by default.
        heartbeat_timeout: Seconds after which a silent process counts as dead; 60 by default.
        bind_address: ``host:port`` that process 0 listens on; by default the coordinator's address if that is given,
            not every interface of the host.

    Raises:
        DistributionError: Arguments are missing or out of range, JAX was already in use, or the
            processes did not come together in time.

    Example:
        >>> initialize(num_processes=1)  # nothing to join
    """
    if jax.distributed.is_initialized():
        return
    coordinator_address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _from_environment(num_processes, "JAX_NUM_PROCESSES")
    process_id = _from_environment(process_id, "JAX_PROCESS_ID")
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if num_processes == 1 and coordinator_address is None:
        return
    if 0 < len(missing) < 3:
        raise DistributionError(
            f"kdist.initialize needs {', '.join(missing)} too, or none of the three. Received: {given}."
        )
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise DistributionError(f"process_id must lie in 0 .. num_processes - 1. Received: {given}.")
    alone = len(missing) == 3 and not any(name in os.environ for name in _CLUSTER_VARIABLES)
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=initialization_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            coordinator_bind_address=bind_address or coordinator_address,
        )
    except (RuntimeError, ValueError) as error:
        # JAX asks the environment itself, and says so when there is no cluster; or it is in use already.
        if len(missing) == 3 and (alone or "coordinator_address should be defined" in str(error)):
            return
        raise DistributionError(
            f"This process could not join the run ({given}): {error} Call kdist.initialize before any other use of "
            "JAX, give all processes the same coordinator_address and num_processes, and each its own process_id."
        ) from error


def _from_environment(value: int | None, name: str) -> int | None:
    if value is not None or not os.environ.get(name):
        return value
    try:
        return int(os.environ[name])
    except ValueError:
        raise DistributionError(f"{name} must be an integer. Received: {os.environ[name]!r}.") from None


def is_main_process() -> bool:
    """Whether this is process 0, the one that prints and writes logs.

    Example:
        >>> is_main_process()
        True
    """
    return jax.process_index() == 0


TEXT_BYTES = 256
"""How much of a value is compared between processes."""


def check_agreement(**values: int | str) -> None:
    """Refuses, on every process, values that are not the same on all.  All must call it, at the same point.

    Args:
        values: Numbers or text, by the name that the error calls them; of text the first 256 bytes count.

    Raises:
        DistributionError: One differs; it names the value and the processes.

    Example:
        >>> check_agreement(epochs=3, batch_size=32)  # one process always agrees with itself
    """
    if jax.process_count() == 1:
        return
    texts = [str(value).encode()[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0") for value in values.values()]
    everywhere = gather(b"".join(texts))
    for n, name in enumerate(values):
        own = slice(n * TEXT_BYTES, (n + 1) * TEXT_BYTES)
        found = [told[own].rstrip(b"\0").decode(errors="replace") for told in everywhere]
        other = next((i for i, value in enumerate(found) if value != found[0]), None)
        if other is not None:
            raise DistributionError(
                f"All processes must train alike, but {name} is {found[0]} on process 0 and {found[other]} on process "
                f"{other}. Give every process the same data, arguments and callbacks."
            )


def gather(told: bytes) -> list[bytes]:
    """What each process tells, in their order.  All must call it, at the same point, with as many bytes.

    Args:
        told: What this process tells.

    Example:
        >>> gather(b"one process hears itself")
        [b'one process hears itself']
    """
    if jax.process_count() == 1:
        return [told]
    from jax.experimental import multihost_utils

    return [one.tobytes() for one in multihost_utils.process_allgather(np.frombuffer(told, np.uint8))]


def agree(value: int) -> int:
    """Process 0's value, 0 .. 2**32 - 1, on every process.  All must call it, at the same point.

    Args:
        value: This process's value; only that of process 0 counts.

    Example:
        >>> import random
        >>> seed = agree(random.getrandbits(32))  # the same on all processes
        >>> 0 <= seed < 2**32
        True
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.uint32(value)))


def agree_on_least(value: int) -> int:
    """The least of all processes' values, of 32 bits.  All must call it, at the same point.

    Args:
        value: This process's value.

    Example:
        >>> agree_on_least(len(["a", "b", "c"]))  # as many rows as every process has
        3
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(value)).min())


def agree_on_most(value: int) -> int:
    """The greatest of all processes' values, of 32 bits.  All must call it, at the same point.

    Args:
        value: This process's value.

    Example:
        >>> agree_on_most(len(["a", "b", "c"]))  # as many rows as the longest process has
        3
    """
    return -agree_on_least(-value)

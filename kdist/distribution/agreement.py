"""What the processes of a run decide together.  All must call these at the same point; on one they cost nothing."""

from __future__ import annotations

import hashlib
import json

import jax

from kdist.distribution import rendezvous
from kdist.distribution.store import exchange
from kdist.errors import DistributionError


def is_main_process() -> bool:
    """Whether this is process 0, the one that prints and writes logs.

    Example:
        >>> is_main_process()
        True
    """
    return jax.process_index() == 0


def check_agreement(**values: int | str) -> None:
    """Refuses, on every process, values that are not the same on all.

    Args:
        values: Numbers or text, by the name that the error calls them.

    Raises:
        DistributionError: Some differ; it names each, with its values and the processes that have them.

    Example:
        >>> check_agreement(epochs=3, batch_size=32)  # one process always agrees with itself
    """
    everywhere = gather(json.dumps({name: str(value) for name, value in values.items()}).encode())
    if len(set(everywhere)) > 1:
        differ = rendezvous.differences({process: json.loads(text) for process, text in enumerate(everywhere)})
        raise DistributionError(
            f"All processes must train alike, but {differ}. Give every process the same data, arguments and callbacks."
        )


def gather(told: bytes) -> list[bytes]:
    """What each process tells, in their order.

    Where all tell the same, none hears more than that.

    Args:
        told: What this process tells.

    Example:
        >>> gather(b"one process hears itself")
        [b'one process hears itself']
    """
    if len(exchange({hashlib.sha256(told).hexdigest(): b""})) == 1:
        return [told] * jax.process_count()
    heard = exchange({str(jax.process_index()): told})
    return [heard[str(process)] for process in range(jax.process_count())]


def agree(value: int) -> int:
    """Process 0's value on every process.

    Args:
        value: This process's value; only that of process 0 counts.

    Example:
        >>> import random
        >>> seed = agree(random.getrandbits(32))  # the same on all processes
        >>> 0 <= seed < 2**32
        True
    """
    (name,) = exchange({str(value): b""} if is_main_process() else {})
    return int(name)


def agree_on_least(value: int) -> int:
    """The least of all processes' values.

    Args:
        value: This process's value.

    Example:
        >>> agree_on_least(len(["a", "b", "c"]))  # as many rows as every process has
        3
    """
    return min(map(int, exchange({str(value): b""})))

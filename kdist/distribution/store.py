"""What the processes of a run tell each other on the host: the key-value store of JAX's coordination service.

Process 0 holds it.  It is used where collectives would do as well, since those wait for all that the devices have to
compute before, need a program for each shape, and hang where one process fails.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from jax._src.distributed import global_state

_PLACE = "kdist/told/"
_LONG = 7 * 24 * 3600 * 1000  # milliseconds; a watchdog ends what lasts too long
_numbers = itertools.count()


def store() -> Any:
    """The client of the store; None if this process is alone.

    Example:
        >>> store() is None
        True
    """
    return global_state.client if global_state.num_processes > 1 else None


def exchange(told: Mapping[str, bytes]) -> dict[str, bytes]:
    """What all processes tell, by name.  All must call it, at the same point of their main threads.

    Each waits for the others, for some milliseconds.  What is told under the same name must be the same: that two
    processes say so costs no more than if one does.

    Args:
        told: What this process tells; nothing, if it has nothing to say.

    Example:
        >>> exchange({"rows": b"128"})  # one process hears itself
        {'rows': b'128'}
    """
    client = store()
    if client is None:
        return dict(told)
    number = next(_numbers)
    place = f"{_PLACE}{number}/"
    for name, value in told.items():
        client.key_value_set_bytes(f"{place}{name}", value, allow_overwrite=True)
    client.wait_at_barrier(_PLACE, _LONG)
    heard = {key.removeprefix(place): value for key, value in client.key_value_dir_get_bytes(place)}
    if global_state.process_id == 0 and number:
        client.key_value_delete(f"{_PLACE}{number - 1}/")  # all have read it, or they would not be here
    return heard

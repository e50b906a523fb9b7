"""What decides which rows a run sees when, in a few words: so that a run that goes on does so with the same data."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import numpy as np

from kdist.data.batches import BatchLoader
from kdist.errors import DataError


def fingerprint(loader: Any, row: str) -> dict[str, Any]:
    """The fingerprint of a loader, fit for JSON; how many workers read is no part of it.

    Args:
        loader: The data.
        row: Structure, shapes and types of a row.

    Example:
        >>> from kdist.data import described, example_batch, from_arrays
        >>> loader = from_arrays(np.ones((8, 3)), batch_size=4)
        >>> told = fingerprint(loader, described(example_batch(loader)))
        >>> told["rows"], told["batch_size"], told["row"]
        (8, 4, '{x: float32[3]}')
    """
    told = {"kind": type(loader).__name__, "row": row, "batch_size": loader.batch_size, "steps": loader.num_steps}
    if isinstance(loader, BatchLoader):
        return {**told, "source": str(loader.source)}
    told["rows"] = loader.num_rows
    arrays = getattr(loader, "arrays", None)
    if arrays is not None:
        ends = [np.ascontiguousarray(a[[0, -1]]).tobytes() for a in jax.tree.leaves(arrays)]
        told |= {"seed": loader.seed, "shuffle": loader.shuffle, "first and last row": zlib.crc32(b"".join(ends))}
    own = getattr(loader, "fingerprint", None)
    return told if own is None else {**told, **own()}


def check_same_data(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses data other than those that a run began with.

    Args:
        before: The fingerprint of then.
        now: That of now.

    Raises:
        DataError: They differ; it says in what.

    Example:
        >>> check_same_data({"batch_size": 32}, {"batch_size": 64})
        Traceback (most recent call last):
        kdist.errors.DataError: These are not the data that the run began with: batch_size was 32 and is 64. ...
    """
    changed = [
        f"{name} was {before.get(name)} and is {now.get(name)}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise DataError(
            f"These are not the data that the run began with: {'; '.join(changed)}. Go on with the same ones, or start "
            "anew in another directory."
        )

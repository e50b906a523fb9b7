"""What decides which rows a run sees when, in a few words: so that a run that goes on does so with the same data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from kdist.data.arrays import ArrayLoader
from kdist.data.batches import BatchLoader
from kdist.data.identity import closed_over, identity, rows_identity, stages
from kdist.data.sources import Anew, ByNumber, Mapped, Once, Source
from kdist.errors import DataError


def fingerprint(loader: Any, row: str) -> dict[str, Any]:
    """The fingerprint of a loader, fit for JSON; how many workers read is no part of it.

    It may read some rows of a source: ask for it before others read there.

    Args:
        loader: The data.
        row: Structure, shapes and types of a row.

    Example:
        >>> import numpy as np
        >>> from kdist.data import described, example_batch, from_arrays
        >>> loader = from_arrays(np.ones((8, 3)), batch_size=4)
        >>> told = fingerprint(loader, described(example_batch(loader)))
        >>> told["rows"], told["batch_size"], told["row"]
        (8, 4, '{x: float32[3]}')
    """
    told = {"kind": type(loader).__name__, "row": row, "batch_size": loader.batch_size, "steps": loader.num_steps}
    if isinstance(loader, BatchLoader):
        # Processes with batches of their own have other ones, but one fingerprint.
        return {**told, **({"source": str(loader.source)} if loader.per_process else _of_batches(loader.source))}
    told["rows"] = loader.num_rows
    if isinstance(loader, ArrayLoader):
        told |= {"seed": loader.seed, "shuffle": loader.shuffle, "drop_remainder": loader.drop_remainder}
    arrays = getattr(loader, "arrays", None)
    if arrays is not None:
        told["arrays"] = [rows_identity(array) for array in jax.tree.leaves(arrays)]
    own = getattr(loader, "fingerprint", None)
    return told if own is None else {**told, **own()}


def _of_batches(source: Source) -> dict[str, Any]:
    """What decides which batches come when."""
    if isinstance(source, ByNumber):
        order = {"seed": source._seed} if source._shuffle else {}
        return {"source": str(source), "batches": source.length, "shuffle": bool(source._shuffle), **order}
    if isinstance(source, Mapped):
        return {"source": stages(source._dataset)}
    if isinstance(source, Anew):
        return {"source": closed_over(source._make)}
    if isinstance(source, Once):
        return {"source": identity(source._iterator)}
    return {"source": str(source)}


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
    changed = list(_changes("", before, now))
    if changed:
        raise DataError(
            f"These are not the data that the run began with: {'; '.join(changed)}. Go on with the same ones, or start "
            "anew in another directory."
        )


def _changes(name: str, before: Any, now: Any) -> Iterator[str]:
    """What differs, the smallest part by its name."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from _changes(f"{name}.{key}".lstrip("."), before.get(key), now.get(key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from _changes(f"{name}[{i}]", one, other)
    elif before != now:
        yield f"{name} was {before} and is {now}"

"""Advice on data that come too slowly: what to try next, by how they are read now."""

from __future__ import annotations

import os

from kdist.data.arrays import ArrayLoader
from kdist.data.batches import BatchLoader
from kdist.data.feed import RESIDENT_BYTES
from kdist.data.loader import Loader
from kdist.data.rows import RowLoader
from kdist.data.sources import ByNumber


def next_to_try(loader: Loader | RowLoader | BatchLoader) -> str:
    """What would make a loader's data come faster, in a few words.

    Example:
        >>> from kdist.data import from_batches
        >>> next_to_try(from_batches(iter([]), workers=0))
        'workers=1, which reads ahead in a thread'
    """
    if isinstance(loader, ArrayLoader):
        return f"cache=True, which keeps all {_size(loader.nbytes)} on each device"
    if isinstance(loader, RowLoader):
        if not loader.random and not loader.per_process and loader.nbytes <= RESIDENT_BYTES:
            return f"cache=True in from_source, which keeps all {_size(loader.nbytes)} on each device"
        return _workers(loader.workers, loader.use_multiprocessing)
    if not isinstance(loader, BatchLoader):
        return f"a faster `read` of the {type(loader).__name__}, or kdist.data.from_source(..., workers=2)"
    if isinstance(loader.source, ByNumber):
        return _workers(loader.source.workers, loader.source.use_multiprocessing)
    if not loader.source.threaded:
        return "workers=1, which reads ahead in a thread"
    return (
        f"in place of {loader.source}, kdist.data.from_source(rows, workers=2) or a PyDataset with workers=2; or more "
        "workers of its own"
    )


def _workers(workers: int, use_multiprocessing: bool) -> str:
    cores = os.cpu_count() or 1
    if not use_multiprocessing:
        return "workers=2" if workers < 2 else "use_multiprocessing=True, which gives each worker an interpreter"
    more = f"workers={min(2 * workers, cores)}, or " if workers < cores else ""
    return f"{more}doing once, before training, what is done to the rows each time"


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{max(1, nbytes // 1_000_000)} MB"

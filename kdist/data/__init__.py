"""Data: from arrays and batches to chunks on the devices, in an order that only seed and epoch decide."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kdist.data.arrays import DEFAULT_BATCH_SIZE, ArrayLoader, from_arrays
from kdist.data.batches import BatchLoader, described, from_batches, unpack
from kdist.data.class_weight import ClassWeight
from kdist.data.feed import CHUNKS_AHEAD, Chunk, ChunkFeeder, Feed, Feeder, shapes_of_chunk
from kdist.data.files import NpyRows, ParquetRows, decode_arrays, encode_arrays
from kdist.data.fingerprint import check_same_data, fingerprint
from kdist.data.loader import Loader
from kdist.data.rows import RowLoader, from_source
from kdist.data.stream import StreamFeeder
from kdist.errors import ConfigError
from kdist.typing import Batch

AnyLoader = Loader | BatchLoader

__all__ = [
    "CHUNKS_AHEAD",
    "AnyLoader",
    "ArrayLoader",
    "BatchLoader",
    "Chunk",
    "ChunkFeeder",
    "ClassWeight",
    "DEFAULT_BATCH_SIZE",
    "Feed",
    "Feeder",
    "Loader",
    "NpyRows",
    "ParquetRows",
    "RowLoader",
    "StreamFeeder",
    "check_same_data",
    "decode_arrays",
    "described",
    "encode_arrays",
    "example_batch",
    "fingerprint",
    "from_arrays",
    "from_batches",
    "from_source",
    "is_loader",
    "shapes_of_chunk",
    "unpack",
    "with_steps",
]


def is_loader(thing: Any) -> bool:
    """Whether it is a loader, of rows by number or of batches.

    Args:
        thing: Anything.

    Example:
        >>> is_loader(from_arrays(np.ones((8, 3)))), is_loader(np.ones((8, 3)))
        (True, False)
    """
    # In this order: to see whether it is a `Loader` asks for its properties, and a BatchLoader would read for them.
    return isinstance(thing, (BatchLoader, RowLoader)) or isinstance(thing, Loader)


def example_batch(loader: AnyLoader) -> Batch:
    """A batch like the loader's, with as many rows as a step takes.

    Args:
        loader: A loader of rows or of batches.

    Raises:
        DataError: There is no batch.

    Example:
        >>> example_batch(from_arrays(np.ones((8, 3)), np.zeros(8), batch_size=4)).x.shape
        (4, 3)
    """
    if isinstance(loader, (BatchLoader, RowLoader)):
        return loader.example()
    return loader.read(np.arange(min(loader.batch_size, loader.num_rows)))


def with_steps(loader: AnyLoader, steps: int) -> AnyLoader:
    """The loader with epochs of at most so many steps.

    Args:
        loader: A loader of kdist; it stays as it is.
        steps: The most steps of an epoch.

    Raises:
        ConfigError: It is a loader of the user's own.

    Example:
        >>> loader = from_arrays(np.ones((8, 3)), batch_size=2)
        >>> loader.num_steps, with_steps(loader, 3).num_steps
        (4, 3)
    """
    if isinstance(loader, (BatchLoader, RowLoader)):
        return loader.with_steps(steps)
    if isinstance(loader, ArrayLoader):
        return dataclasses.replace(loader, steps=steps)
    raise ConfigError(
        f"The number of steps goes into the loader: give the {type(loader).__name__} a `num_steps` of {steps}, and an "
        "`order` of so many batches."
    )

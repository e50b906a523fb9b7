"""Data: from arrays to chunks of batches on the devices, in an order that only seed and epoch decide."""

from kdist.data.arrays import ArrayLoader, from_arrays
from kdist.data.feed import Chunk, Feed, Feeder
from kdist.data.loader import Loader, first_rows

__all__ = ["ArrayLoader", "Chunk", "Feed", "Feeder", "Loader", "first_rows", "from_arrays"]

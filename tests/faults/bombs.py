"""A few kilobytes in the place of an array that would be gigabytes, if they were unpacked."""

import struct
from pathlib import Path

import tensorstore

MAGIC = b"\x28\xb5\x2f\xfd"
BLOCK_BYTES = 128 << 10
"""The most that a block of a frame may be unpacked."""
REPEATED = 1
"""The type of a block that is one byte, so many times."""


def frame(nbytes: int, *, told: bool) -> bytes:
    """A frame of Zstandard (RFC 8878) with so many zeros, a multiple of a block.

    Args:
        nbytes: How many.
        told: Whether its header says how many there are; else it has a window of a block.
    """
    header = b"\xa0" + struct.pack("<I", nbytes) if told else b"\x00\x38"
    count = nbytes // BLOCK_BYTES
    kind = REPEATED << 1 | BLOCK_BYTES << 3
    blocks = [(kind | (number + 1 == count)).to_bytes(3, "little") + b"\0" for number in range(count)]
    return MAGIC + header + b"".join(blocks)


def put(content: bytes, tree: Path, name: str) -> None:
    """Replaces what a matrix of a checkpoint is stored as, in one piece; all that refers to it stays right.

    Args:
        content: What it is to be.
        tree: The directory of its tree.
        name: Its path there.
    """
    store = {"driver": "ocdbt", "base": f"file://{tree}/", "path": f"{name}/c/0/0"}
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    shard = {"driver": "zarr3_sharding_indexed", "base": store, "grid_shape": [1, 1], "index_codecs": codecs}
    first = bytes(8)  # the indices of the piece, of four bytes each
    shards = tensorstore.KvStore.open(shard).result()
    assert first in shards.list().result()
    shards.write(first, content).result()

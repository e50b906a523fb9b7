"""Weights as grey pictures, in PNG."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np


class Picture(NamedTuple):
    """A grey picture.

    Attributes:
        height: In pixels.
        width: In pixels.
        png: The file's bytes.
    """

    height: int
    width: int
    png: bytes


def pictures(name: str, weight: np.ndarray) -> list[tuple[str, Picture]]:
    """A weight, without its dimensions of 1, as pictures that are black at its smallest value and white at its largest.

    Args:
        name: What a picture is called; of several, each has its number behind it.
        weight: A vector becomes a row, a matrix lies on its longer side, ``[h, w, n]`` becomes n pictures; what has
            more dimensions has none.

    Returns:
        Names and pictures.

    Example:
        >>> [(name, picture.height, picture.width) for name, picture in pictures("kernel", np.ones((5, 2)))]
        [('kernel', 2, 5)]
    """
    pixels = np.squeeze(weight)
    if pixels.ndim > 3:
        return []
    grey = _grey(pixels)
    if pixels.ndim == 3:
        return [(f"{name}/{i}", _picture(grey[..., i])) for i in range(grey.shape[-1])]
    row = np.atleast_2d(grey)
    return [(name, _picture(row.T if row.shape[0] > row.shape[1] else row))]


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Values from 0 to 255; what is not finite is black."""
    finite = np.isfinite(pixels)
    low, high = (pixels[finite].min(), pixels[finite].max()) if finite.any() else (0.0, 0.0)
    scale = 255 / (high - low) if high > low else 0.0
    return ((np.where(finite, pixels, low) - low) * scale).astype(np.uint8)


def _picture(grey: np.ndarray) -> Picture:
    height, width = grey.shape
    rows = np.pad(grey, ((0, 0), (1, 0)))  # each row begins with its filter, 0 for none
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows.tobytes())) + _chunk(b"IEND", b"")
    return Picture(height, width, b"\x89PNG\r\n\x1a\n" + chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

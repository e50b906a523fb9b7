"""Memory for chunks: used again when no array in it is left, and aligned, so that a CPU need not copy it."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np

ALIGNMENT = 64
"""Bytes; XLA takes arrays that begin at a multiple of it as they are, where the device is the CPU."""
SMALLEST = 1 << 20
"""Below so many bytes memory is not worth keeping."""
MOST_KEPT = 8
"""At most so many pieces of one size are kept while nobody uses them."""

_FREE: dict[int, list[np.ndarray]] = {}


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array like `numpy.empty`'s, whose memory is lent again after the last view of it is gone.

    Fresh memory costs a fault for each page that is written, which is a third of what it takes to gather rows.

    Example:
        >>> empty((4, 2), np.float32).shape
        (4, 2)
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if nbytes < SMALLEST:
        return np.empty(shape, dtype)
    free = _FREE.setdefault(nbytes, [])
    try:
        memory = free.pop()
    except IndexError:
        memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    # Views of this array hold it; were it a view of `memory`, they would hold `memory` alone.
    lease = np.frombuffer(memory.data, np.uint8, nbytes, start)
    weakref.finalize(lease, _give_back, free, memory).atexit = False
    return lease.view(dtype).reshape(shape)


def _give_back(free: list[np.ndarray], memory: np.ndarray) -> None:
    if len(free) < MOST_KEPT:
        free.append(memory)


def take(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``array[rows]`` in lent memory.

    Args:
        array: ``[n, ...]``.
        rows: Integers from 0 to n - 1, of any shape.

    Example:
        >>> take(np.array([10, 20, 30]), np.array([[2, 0]])).tolist()
        [[30, 10]]
    """
    out = empty((*rows.shape, *array.shape[1:]), array.dtype)
    return np.take(array, rows, axis=0, out=out, mode="clip")  # the default mode would gather into a copy first

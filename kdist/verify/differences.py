"""How far apart two arrays are, or two trees of them."""

from __future__ import annotations

import math

import jax
import numpy as np

from kdist.optimizers.transforms import path_name
from kdist.typing import Batch, PyTree

FLOOR = 1e-3
"""An array is not asked to be more exact than this share of the largest number of all: some gradients are 0 but for
rounding, such as those of a bias before a BatchNorm."""


def differences(a: PyTree, b: PyTree) -> dict[str, float]:
    """By path, how far two arrays are apart, relative to the largest number of either."""
    pairs = [
        (path_name(path), np.asarray(one), np.asarray(other))
        for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    ]
    floor = FLOOR * max((_largest(one) for _, one, _ in pairs if one.dtype.kind not in "iub"), default=0.0)
    return {path: difference(one, other, floor) for path, one, other in pairs}


def difference(a: np.ndarray, b: np.ndarray, floor: float = 0.0) -> float:
    """How far two arrays are apart, relative to the largest number of either, or to the floor; 0 for the same."""
    a, b = _exact(a), _exact(b)
    if np.array_equal(a, b, equal_nan=True):
        return 0.0
    if not np.isfinite([a, b]).all():
        return math.inf
    return _largest(a - b) / max(_largest(a), _largest(b), floor)


def _largest(a: np.ndarray) -> float:
    """The largest magnitude of what is finite."""
    return float(np.abs(_exact(a)).max(initial=0.0, where=np.isfinite(_exact(a))))


def _exact(a: np.ndarray) -> np.ndarray:
    return a.astype(np.complex128 if np.iscomplexobj(a) else np.float64)


def first_other_row(a: Batch, b: Batch) -> str | None:
    """The first row that is not the same in two readings, by the leaf and the number that it was read as."""
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        same = (one == other) | ((one != one) & (other != other))
        if not same.all():
            row = int(np.flatnonzero(~same.reshape(len(one), -1).all(1))[0])
            return f"row {row} of {path_name(path)}, as it was read"
    return None

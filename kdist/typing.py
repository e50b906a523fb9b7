"""The vocabulary of kdist: what a batch is, and names for what flows between the floors.

Shapes: B global batch, b rows on one shard, K steps of an execution, N devices.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

PyTree = Any
"""A nested structure of arrays, in JAX's sense."""

Logs = dict[str, Any]
"""Metric name to value: floats, or NumPy arrays for metrics with a vector result."""

Sums = dict[str, PyTree]
"""Additive sums by log name: two of them merge by ``+``, and zeros are the empty one."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """What one optimizer step sees.

    Attributes:
        x: Inputs, leaves ``[B, ...]``.
        y: Targets by output, leaves ``[B, ...]``, or None.
        weight: Sample weights: one array ``[B]`` or ``[B, T]`` for every output, a tuple with an
            entry an output, or None for no weights.
        valid: ``[B]`` float32, 1 for a row of the data and 0 for a row that only fills the batch,
            or None where every row is of the data.
    """

    x: PyTree
    y: PyTree = None
    weight: PyTree = None
    valid: Any = None

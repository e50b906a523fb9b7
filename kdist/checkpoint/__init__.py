"""Checkpoints: the only place that touches Orbax, which is imported when one is written or read."""

from kdist.checkpoint import series
from kdist.checkpoint.notes import plain
from kdist.checkpoint.run import RunCheckpoints
from kdist.checkpoint.series import Series
from kdist.checkpoint.state import is_finite, load_state, save_state
from kdist.checkpoint.weights import load_weights, save_weights

__all__ = [
    "RunCheckpoints",
    "Series",
    "is_finite",
    "load_state",
    "load_weights",
    "plain",
    "save_state",
    "save_weights",
    "series",
]

"""Checkpoints: the only place that touches Orbax, which is imported when one is written or read."""

from kdist.checkpoint import series
from kdist.checkpoint.run import RunCheckpoints
from kdist.checkpoint.state import is_finite, load_state, save_state
from kdist.checkpoint.weights import load_weights, save_weights

__all__ = ["RunCheckpoints", "is_finite", "load_state", "load_weights", "save_state", "save_weights", "series"]

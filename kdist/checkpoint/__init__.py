"""Checkpoints: the only place that touches Orbax, which is imported when one is written or read."""

from kdist.checkpoint.weights import load_weights, save_weights

__all__ = ["load_weights", "save_weights"]

"""How things without a name of their own are called in logs and parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def snake_case(name: str) -> str:
    """``MeanSquaredError`` as ``mean_squared_error``, ``RMSprop`` as ``rm_sprop``."""
    out = ""
    for i, c in enumerate(name):
        new_word = c.isupper() and i and (not name[i - 1].isupper() or name[i + 1 : i + 2].islower())
        out += "_" + c if new_word else c
    return out.lower()


def function_name(fn: Callable[..., Any]) -> str:
    """A name for a function in logs: its own, in snake case; a lambda is ``lambda``."""
    inner = getattr(fn, "func", fn)  # functools.partial
    name = getattr(inner, "__name__", type(inner).__name__)
    return "lambda" if name == "<lambda>" else snake_case(name)

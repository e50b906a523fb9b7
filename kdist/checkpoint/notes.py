"""What is written beside the arrays, as JSON: numbers come back bit for bit, and nothing is executed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

_ARRAY = "__array__"


def to_json(note: Any) -> str:
    """A note as text: dicts, lists, strings, numbers, None, and NumPy arrays of numbers.

    Args:
        note: The note.

    Example:
        >>> from_json(to_json({"loss": 0.1, "f1": np.float32([0.5, 1])}))
        {'loss': 0.1, 'f1': array([0.5, 1. ], dtype=float32)}
    """
    return json.dumps(note, default=_encoded)


def from_json(text: str) -> Any:
    """The note of a text.

    Args:
        text: What `to_json` made.

    Raises:
        ValueError: It is something else.
    """
    return json.loads(text, object_hook=_decoded)


def _encoded(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"A note cannot hold a {type(value).__name__}: {value!r}.")
    return {_ARRAY: array.tolist(), "dtype": array.dtype.name}


def _decoded(found: dict[str, Any]) -> Any:
    if found.keys() != {_ARRAY, "dtype"}:
        return found
    dtype = np.dtype(str(found["dtype"]))
    if dtype.kind not in "biuf":
        raise ValueError(f"An array of {dtype} in a note.")
    return np.asarray(found[_ARRAY], dtype)

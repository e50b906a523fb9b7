"""What is written beside the arrays, as JSON: numbers come back bit for bit, and nothing is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

_ARRAY = "__array__"
_MARK = "__on_devices__"


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


def plain(value: Any) -> Any:
    """What a note can hold of anything: what is more than data is said by its name.

    Args:
        value: Dicts and lists of anything.

    Example:
        >>> from kdist import losses, optimizers
        >>> plain({"loss": losses.Huber(), "rate": 0.1, "metrics": ["mae", max]})
        {'loss': 'huber_loss', 'rate': 0.1, 'metrics': ['mae', 'max']}
        >>> plain(optimizers.SGD(0.1))["class_name"]
        'SGD'
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, (np.generic, np.ndarray, jax.Array)) and not value.ndim:
        return value.item()
    if hasattr(value, "get_config"):
        return {"class_name": type(value).__name__, "config": plain(value.get_config())}
    return str(getattr(value, "name", getattr(value, "__name__", type(value).__name__)))


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


def without_arrays(note: Any, found: dict[str, jax.Array]) -> Any:
    """A note with a mark in the place of each array that is on devices.

    Args:
        note: Dicts and lists of anything.
        found: Where the arrays are put, by the name that is in their mark.

    Example:
        >>> import jax.numpy as jnp
        >>> found = {}
        >>> note = without_arrays({"best": [jnp.ones(2)], "wait": 3}, found)
        >>> note["wait"], list(found), marked(note)
        (3, ['0'], {'0': ShapeDtypeStruct(shape=(2,), dtype=float32)})
        >>> with_arrays(note, found)["best"][0].tolist()
        [1.0, 1.0]
    """
    if isinstance(note, dict):
        return {name: without_arrays(value, found) for name, value in note.items()}
    if isinstance(note, (list, tuple)):
        return [without_arrays(value, found) for value in note]
    if not isinstance(note, jax.Array):
        return note
    name = str(len(found))
    found[name] = note
    return {_MARK: name, "shape": list(note.shape), "dtype": note.dtype.name}


def marked(note: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays that a note has marks for, by name.

    Args:
        note: What `without_arrays` gave.
    """
    if isinstance(note, dict) and _MARK in note:
        shape = tuple(int(n) for n in note["shape"])
        return {str(note[_MARK]): jax.ShapeDtypeStruct(shape, np.dtype(str(note["dtype"])))}
    inside = note.values() if isinstance(note, dict) else note if isinstance(note, list) else ()
    return {name: array for value in inside for name, array in marked(value).items()}


def with_arrays(note: Any, arrays: dict[str, Any]) -> Any:
    """The note with the arrays in the places of their marks.

    Args:
        note: What `without_arrays` gave.
        arrays: By name.
    """
    if isinstance(note, dict):
        if _MARK in note:
            return arrays[str(note[_MARK])]
        return {name: with_arrays(value, arrays) for name, value in note.items()}
    return [with_arrays(value, arrays) for value in note] if isinstance(note, list) else note

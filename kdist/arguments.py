"""What `fit` and its kin accept, checked by name and turned into loaders."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from kdist.data import ArrayLoader, Loader, from_arrays
from kdist.data.arrays import DEFAULT_BATCH_SIZE, as_arrays, check_batch_size, check_lengths
from kdist.errors import CheckpointMismatchError, ConfigError, DataError, said_of
from kdist.typing import PyTree


def as_loader(x: Any, y: Any, sample_weight: Any, batch_size: int | None) -> Loader:
    """A loader of all rows in their order, for `evaluate` and `predict`."""
    if isinstance(x, Loader):
        _refuse_with_loader(y=y, sample_weight=sample_weight)
        return x
    size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    return from_arrays(x, y, sample_weight, batch_size=size, shuffle=False)


def one_batch(x: Any, y: Any, sample_weight: Any) -> Loader:
    """A loader whose only step is this batch, for the ``*_on_batch`` methods."""
    x, y, sample_weight = (_from_lists(value) for value in (x, y, sample_weight))
    loader = from_arrays(x, y, sample_weight, shuffle=False, cache=False)
    return dataclasses.replace(loader, batch_size=loader.num_rows)


def training_and_validation(
    x: Any,
    y: Any,
    sample_weight: Any,
    *,
    batch_size: int | None,
    validation_split: Any,
    validation_data: Any,
    validation_batch_size: int | None,
    shuffle: Any,
    seed: int,
    cache: bool | str,
    check_finite: bool,
) -> tuple[Loader, Loader | None]:
    """The two loaders of `fit`, from its arguments.

    Raises:
        DataError: The data cannot be trained on as they are.
        ConfigError: An argument is out of its range.
    """
    size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    check_batch_size(size)
    if validation_batch_size is not None:
        check_batch_size(validation_batch_size, "validation_batch_size")
    if not isinstance(shuffle, (bool, np.bool_)):
        raise ConfigError(f"shuffle must be True or False. Received: {shuffle!r}.")
    fraction = _check_fraction(validation_split)
    common: dict[str, Any] = {"seed": seed, "cache": cache, "check_finite": check_finite}
    evaluation = {**common, "batch_size": validation_batch_size or size, "shuffle": False}

    validation = None if validation_data is None else _validation(validation_data, evaluation)
    if isinstance(x, Loader):
        _refuse_with_loader(y=y, sample_weight=sample_weight, validation_split=fraction or None)
        return x, validation
    loader = from_arrays(x, y, sample_weight, batch_size=size, shuffle=bool(shuffle), **common)
    if fraction and validation is None:
        return _split(loader, fraction, evaluation["batch_size"])
    return loader, validation


def _validation(data: Any, arguments: dict[str, Any]) -> Loader:
    if isinstance(data, Loader):
        return data
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        as_arrays(data, "validation_data")
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
        raise DataError(
            "validation_data must be (x, y), (x, y, sample_weight) or a loader. Received: "
            + (f"{len(data)} entries." if isinstance(data, (tuple, list)) else f"a {type(data).__name__}.")
        )
    with said_of("validation_data"):
        return from_arrays(*data, **arguments)


def _split(loader: ArrayLoader, fraction: float, batch_size: int) -> tuple[Loader, Loader]:
    """The first rows to train on, the last `fraction` of them to validate."""
    rows = loader.num_rows
    at = math.floor(rows * (1 - fraction))
    if at in (0, rows):
        raise DataError(
            f"validation_split={fraction} of {rows} rows leaves {at} to train on and {rows - at} to validate. "
            "Give more rows or another fraction."
        )

    training = dataclasses.replace(loader, arrays=loader.read(slice(None, at)))
    held_out = loader.read(slice(at, None))
    return training, dataclasses.replace(loader, arrays=held_out, batch_size=int(batch_size), shuffle=False)


def check_count(name: str, value: Any) -> int:
    """A whole number of 0 or more.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ConfigError(f"{name} must be an integer of 0 or more. Received: {value!r}.")
    return int(value)


def check_validation_freq(value: Any) -> None:
    """An integer of 1 or more, or a list of epochs.

    Raises:
        ConfigError: It is not.
    """
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= 1 for n in entries):
        raise ConfigError(
            f"validation_freq must be an integer of 1 or more, or a list of epochs counted from 1. Received: {value!r}."
        )


def refuse_unsupported(**arguments: Any) -> None:
    """Refuses arguments of Keras's interface that this version does not have yet.

    Raises:
        ConfigError: One of them is set.
    """
    for name, value in arguments.items():
        if value is not None:
            raise ConfigError(f"{name} is not supported yet; it must be None. Received: {value!r}.")


def _refuse_with_loader(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise DataError(f"{name} goes into the loader, which x is. Received both.")


def _check_fraction(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value < 1:
        raise ConfigError(f"validation_split must be a fraction in [0, 1). Received: {value!r}.")
    return float(value)


def _from_lists(tree: Any) -> Any:
    """Lists of numbers, however nested, as arrays: what is unambiguous for a single batch."""
    if isinstance(tree, (list, tuple)) and not hasattr(tree, "_fields"):
        if tree and all(_is_numbers(item) for item in tree):
            return np.asarray(tree)
        return type(tree)(_from_lists(item) for item in tree)
    return {k: _from_lists(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def _is_numbers(item: Any) -> bool:
    if isinstance(item, (list, tuple)):
        return all(_is_numbers(part) for part in item)
    return isinstance(item, (bool, int, float, np.number))


def example_inputs(x: Any) -> PyTree:
    """Inputs to build a model with: a batch as it is, or zeros for shapes with the rows first.

    Raises:
        DataError: `x` is neither.
    """
    if isinstance(x, jax.ShapeDtypeStruct):
        return np.zeros(x.shape, x.dtype)
    if _is_shape(x):
        if any(d is not None and d < 1 for d in x):
            raise DataError(f"Expected a shape such as (None, 28, 28, 1), without dimensions below 1. Received: {x!r}.")
        return np.zeros([1 if d is None else d for d in x], np.float32)
    if isinstance(x, (list, tuple)) and x and all(map(_is_example, x)):
        return type(x)(example_inputs(part) for part in x)
    if isinstance(x, Mapping) and x and all(map(_is_example, x.values())):
        return {name: example_inputs(part) for name, part in x.items()}
    if not jax.tree.leaves(x):
        raise DataError(f"Expected a batch of inputs or their shapes, such as (None, 28, 28, 1). Received: {x!r}.")
    inputs = as_arrays(x, "x")
    check_lengths({"x": inputs})
    return inputs


def _is_example(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct) or _is_shape(x)


def _is_shape(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and len(x) > 0 and all(d is None or isinstance(d, int) for d in x)


def replacement(new: PyTree, old: PyTree) -> PyTree:
    """The arrays of `new` in the places of those of `old`, on the same devices.

    Raises:
        CheckpointMismatchError: Structure, a shape or the kind of a dtype differ.
    """
    found = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(new)}
    expected = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old)}
    if set(found) != set(expected):
        raise CheckpointMismatchError(
            f"The variables have other paths than the model's. Missing: {sorted(set(expected) - set(found))}. "
            f"Unknown: {sorted(set(found) - set(expected))}."
        )

    def place(path: str) -> jax.Array:
        value, there = np.asarray(found[path]), expected[path]
        if value.shape != there.shape or not np.can_cast(value.dtype, there.dtype, "same_kind"):
            raise CheckpointMismatchError(
                f"{path}: expected {there.dtype}{list(there.shape)}, received {value.dtype}{list(value.shape)}."
            )
        # A copy: the array is donated to the next execution, and must not be the caller's.
        return jax.device_put(np.array(value, there.dtype), there.sharding)

    return jax.tree.unflatten(jax.tree.structure(old), [place(path) for path in expected])


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")

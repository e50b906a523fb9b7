"""What `fit` and its kin accept, checked by name and turned into loaders."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from kdist.data import (
    DEFAULT_BATCH_SIZE,
    AnyLoader,
    ArrayLoader,
    BatchLoader,
    ClassWeight,
    Loader,
    from_arrays,
    from_batches,
    from_source,
    is_loader,
    with_steps,
)
from kdist.data.arrays import as_arrays, check_batch_size, check_lengths
from kdist.data.batches import holds_batches
from kdist.data.order import check_shuffle
from kdist.data.rows import RowLoader, has_rows
from kdist.errors import ConfigError, DataError, said_of
from kdist.typing import Batch, PyTree


def as_loader(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int | None = None,
    steps: int | None = None,
    class_weight: ClassWeight | None = None,
    shuffle: bool | str = False,
    seed: int = 0,
    cache: bool | str = "auto",
    check_finite: bool = False,
) -> AnyLoader:
    """The loader of what was passed as data.

    Args:
        x: Arrays, rows by number (see `kdist.data.from_source`), batches from anywhere (see `kdist.data.from_batches`),
            or a loader.
        y: Targets, with arrays only.
        sample_weight: Weights, with arrays only.
        batch_size: Rows of a step, with arrays and rows only; 32 by default, or what makes `steps` of the arrays.
        steps: The most steps of an epoch.
        class_weight: What the loss of each class counts.
        shuffle: See `kdist.data.from_arrays`.
        seed: What orders are drawn from.
        cache: See `kdist.data.from_arrays`.
        check_finite: See `kdist.data.from_arrays`.

    Raises:
        DataError: They are no data, or targets are not where they belong.
        ConfigError: An argument is out of its range.
    """
    if is_loader(x) or _are_batches(x, y):
        _refuse_beside(x, y=y, sample_weight=sample_weight)
        if batch_size is not None:
            warnings.warn(
                f"batch_size={batch_size} has no effect: the {type(x).__name__} makes its own batches.", stacklevel=3
            )
        loader = x if is_loader(x) else from_batches(x, shuffle=bool(shuffle), seed=seed)
        loader = loader if steps is None else with_steps(loader, steps)
        return loader if class_weight is None else _weigh(loader, class_weight)
    size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    if _are_rows(x):
        _refuse_beside(x, y=y, sample_weight=sample_weight)
        rows = from_source(x, batch_size=size, shuffle=shuffle, seed=seed, steps=steps)
        return rows if class_weight is None else _weigh(rows, class_weight)
    arrays = from_arrays(
        x,
        y,
        sample_weight,
        batch_size=size,
        shuffle=shuffle,
        seed=seed,
        cache=cache,
        steps=steps,
        check_finite=check_finite,
    )
    if batch_size is None and steps is not None:
        arrays = dataclasses.replace(arrays, batch_size=-(-arrays.num_rows // steps))
    return arrays if class_weight is None else _weigh(arrays, class_weight)


def one_batch(x: Any, y: Any, sample_weight: Any, class_weight: ClassWeight | None = None) -> Loader:
    """A loader whose only step is this batch, for the ``*_on_batch`` methods."""
    x, y, sample_weight = (_from_lists(value) for value in (x, y, sample_weight))
    loader = from_arrays(x, y, sample_weight, shuffle=False, cache=False)
    arrays = loader.arrays if class_weight is None else class_weight.weigh(loader.arrays)
    return dataclasses.replace(loader, arrays=arrays, batch_size=loader.num_rows)


def training_and_validation(
    x: Any,
    y: Any,
    sample_weight: Any,
    *,
    batch_size: int | None,
    validation_split: Any,
    validation_data: Any,
    validation_batch_size: int | None,
    steps_per_epoch: Any,
    validation_steps: Any,
    class_weight: ClassWeight | None,
    shuffle: bool | str,
    seed: int,
    cache: bool | str,
    check_finite: bool,
) -> tuple[AnyLoader, AnyLoader | None]:
    """The two loaders of `fit`, from its arguments.

    Raises:
        DataError: The data cannot be trained on as they are.
        ConfigError: An argument is out of its range.
    """
    for name, size in (("batch_size", batch_size), ("validation_batch_size", validation_batch_size)):
        if size is not None:
            check_batch_size(size, name)
    check_shuffle(shuffle)
    fraction = _check_fraction(validation_split)
    common: dict[str, Any] = {"seed": seed, "cache": cache, "check_finite": check_finite}
    steps = check_steps("steps_per_epoch", steps_per_epoch)
    evaluation = {
        **common,
        "batch_size": batch_size if validation_batch_size is None else validation_batch_size,
        "steps": check_steps("validation_steps", validation_steps),
    }
    training = {**common, "batch_size": batch_size, "steps": steps, "class_weight": class_weight, "shuffle": shuffle}
    if validation_data is not None:
        return as_loader(x, y, sample_weight, **training), _validation(validation_data, evaluation)
    if not fraction:
        return as_loader(x, y, sample_weight, **training), None
    if is_loader(x) or _are_batches(x, y) or _are_rows(x):
        raise DataError(
            f"validation_split takes rows from the end of arrays, and x is a {type(x).__name__}. Pass validation_data."
        )
    first, last = _split(from_arrays(x, y, sample_weight, check_finite=check_finite).arrays, fraction)
    checked = {"check_finite": False}
    return (
        as_loader(first.x, first.y, first.weight, **{**training, **checked}),
        as_loader(last.x, last.y, last.weight, **{**evaluation, **checked}),
    )


def _are_arrays(x: Any) -> bool:
    """Whether `x` is an array, or could be a structure of arrays."""
    containers = (list, tuple, Mapping, str, bytes)
    return isinstance(x, containers) or hasattr(x, "__array__") or hasattr(x, "toarray")


def _are_rows(x: Any) -> bool:
    """Whether `x` has rows by number: a torch Dataset, a Hugging Face dataset, an object of one's own."""
    return not _are_arrays(x) and has_rows(x) and not holds_batches(x)


def _are_batches(x: Any, y: Any) -> bool:
    """Whether `x` is something that yields batches, and no array or structure of arrays."""
    if isinstance(x, list) and x and y is None:
        return all(isinstance(item, tuple) and not hasattr(item, "_fields") for item in x)
    if _are_arrays(x) or _are_rows(x):
        return False
    return isinstance(x, Iterable) or holds_batches(x) or (callable(x) and not isinstance(x, type))


def _weigh(loader: AnyLoader, class_weight: ClassWeight) -> AnyLoader:
    if isinstance(loader, (BatchLoader, RowLoader)):
        return loader.map(class_weight.weigh)
    if isinstance(loader, ArrayLoader):
        return dataclasses.replace(loader, arrays=class_weight.weigh(loader.arrays))
    raise DataError(f"class_weight goes into the loader, which x, a {type(loader).__name__}, is: make it give weights.")


def _validation(data: Any, arguments: dict[str, Any]) -> AnyLoader:
    with said_of("validation_data"):
        if is_loader(data) or _are_batches(data, None):
            return as_loader(data, **{**arguments, "batch_size": None})
        if _are_rows(data):
            return as_loader(data, **arguments)
        if isinstance(data, tuple) and hasattr(data, "_fields"):
            as_arrays(data, "it")
        if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
            raise DataError(
                "expected (x, y), (x, y, sample_weight), batches or a loader. Received: "
                + (f"{len(data)} entries." if isinstance(data, (tuple, list)) else f"a {type(data).__name__}.")
            )
        return as_loader(*data, **arguments)


def _split(rows: Batch, fraction: float) -> tuple[Batch, Batch]:
    """The first rows to train on, the last `fraction` of them to validate."""
    count = jax.tree.leaves(rows.x)[0].shape[0]
    at = math.floor(count * (1 - fraction))
    if at in (0, count):
        raise DataError(
            f"validation_split={fraction} of {count} rows leaves {at} to train on and {count - at} to validate. "
            "Give more rows or another fraction."
        )
    return jax.tree.map(lambda a: a[:at], rows), jax.tree.map(lambda a: a[at:], rows)


def check_steps(name: str, value: Any) -> int | None:
    """A number of steps, of 1 or more; None, which -1 means too, for no limit.

    Raises:
        ConfigError: It is none of these.
    """
    if value is None or (isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value == -1):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ConfigError(f"{name} must be a positive integer, or None or -1 for no limit. Received: {value!r}.")
    return int(value)


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


def _refuse_beside(x: Any, **arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            where = "loader" if is_loader(x) else "batches"
            raise DataError(
                f"{name} goes into the {where}: x is a {type(x).__name__}, which must itself yield (x, y) or "
                f"(x, y, sample_weight). Received {name} too."
            )


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

"""Reads and transforms rows by number, and puts them together: what each worker does, of a process of its own too.

Row r of pass e has the number ``e * n + r`` in a source of n rows, which is also what grain draws the random numbers
of a random transform from.  So a row's transform depends on the seed, the row and the pass alone, not on who reads it,
when or with how many workers.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from kdist.data.arrays import narrowed
from kdist.data.batches import layout, rows_of, unpack
from kdist.data.sources import as_data_error, is_map_dataset
from kdist.errors import ConfigError, DataError
from kdist.typing import Batch, PyTree


class RowReader:
    """Reads rows of a source by number, and stacks them; what worker processes hold a copy of.

    Args:
        source: Has `__len__` and `__getitem__`; it may have ``gather(rows)`` too, which gives some rows stacked.
        transforms: What is done to each row, in order.
        seed: What random transforms draw from.
        name: What to call the source in messages.
    """

    def __init__(self, source: Any, transforms: Sequence[Any], seed: int, name: str) -> None:
        self.name = name
        self.num_rows = len(source)
        dataset = is_map_dataset(source)
        self._gather: Callable[[np.ndarray], Any] | None = None if transforms else getattr(source, "gather", None)
        self._wraps = not (transforms or dataset)  # grain takes numbers beyond the first pass itself
        self._rows = _apply(source, transforms, seed) if transforms else source

    def read(self, numbers: np.ndarray) -> Batch:
        """Those rows, leaves ``[len(numbers), ...]``.

        Raises:
            DataError: A row cannot be read, or has another structure, shape or type than the first; it names the row.
                Types of 64 bits and those of 32 that they become are one.
        """
        if self._gather is not None:
            return self._gathered(self._gather, numbers % self.num_rows)
        rows = self._each(numbers)
        try:
            return unpack(_stack([tuple(row) if isinstance(row, list) else row for row in rows]))
        except (ValueError, TypeError, KeyError) as error:
            raise self._odd_row(numbers, rows, error) from error

    def _gathered(self, gather: Callable[[np.ndarray], Any], rows: np.ndarray) -> Batch:
        some = ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        with as_data_error(f"Rows {some} of {self.name} could not be gathered"):
            gathered = gather(rows)
        batch = unpack(gathered)
        if rows_of(batch) != len(rows):
            raise DataError(f"{self.name}: gather was asked for {len(rows)} rows, and gave {rows_of(batch)}.")
        return batch

    def kept(self, numbers: np.ndarray) -> np.ndarray:
        """Whether the filters keep each of those rows, bool ``[len(numbers)]``."""
        return np.array([row is not None for row in self._each(numbers)], bool)

    def _each(self, numbers: np.ndarray) -> list[Any]:
        rows: list[Any] = []
        try:
            for number in (numbers % self.num_rows if self._wraps else numbers).tolist():
                rows.append(self._rows[number])
        except Exception as error:  # a source may raise anything
            row = numbers[len(rows)] % self.num_rows
            raise DataError(f"Row {row} of {self.name} could not be read: {type(error).__name__}: {error}") from error
        return rows

    def _odd_row(self, numbers: np.ndarray, rows: list[Any], error: Exception) -> DataError:
        """What to say of rows that do not go together: the first that is unlike the first of all."""
        known, kind = layout(rows[0]), _kind(rows[0])
        for number, row in zip(numbers.tolist(), rows, strict=True):
            if row is None:
                return DataError(
                    f"Row {number % self.num_rows} of {self.name} is None. Leave rows out by a grain.transforms.Filter "
                    "in `transforms`."
                )
            if _kind(row) != kind:
                return DataError(
                    f"All rows must be alike. Row {number % self.num_rows} of {self.name} is {layout(row)}, row "
                    f"{numbers[0] % self.num_rows} is {known}."
                )
        return DataError(f"Rows of {self.name} cannot be put together: each is {known}. {error}")


# Transforms ------------------------------------------------------------------------------------------


def is_a(kind: str, transform: Any) -> bool:
    """Whether a transform is one of grain's, of this kind: "Map", "Filter" and so on."""
    import grain

    return isinstance(transform, getattr(grain.transforms, kind))


def as_transform(transform: Any) -> Any:
    """A transform of grain's, or a function of a row.

    Raises:
        ConfigError: It is neither.
    """
    if is_a("Batch", transform):
        raise ConfigError("batch_size says how rows become batches: leave grain.transforms.Batch out of `transforms`.")
    if any(is_a(kind, transform) for kind in ("Map", "MapWithIndex", "RandomMap", "Filter")):
        return transform
    if not callable(transform) or isinstance(transform, type):
        raise ConfigError(
            "Each of `transforms` must be a function of a row, or a Map, MapWithIndex, RandomMap or Filter of "
            f"grain.transforms. Received: {transform!r}."
        )
    try:
        with contextlib.suppress(ValueError):  # not every callable has a signature
            inspect.signature(transform).bind(None)
    except TypeError as error:
        raise ConfigError(
            f"A function among `transforms` takes one row. Received: {shown(transform)}. One that draws random numbers "
            "is a grain.transforms.RandomMap with a method random_map(element, rng)."
        ) from error
    return transform


def _apply(source: Any, transforms: Sequence[Any], seed: int) -> Any:
    """The source's rows, transformed, as a grain.MapDataset."""
    import grain

    rows = source if is_map_dataset(source) else grain.MapDataset.source(source)
    rows = rows.seed(seed)
    for transform in transforms:
        if is_a("Filter", transform):
            rows = rows.filter(transform)
        elif is_a("RandomMap", transform):
            rows = rows.random_map(transform)
        elif is_a("MapWithIndex", transform):
            rows = rows.map_with_index(functools.partial(_map_row, transform, len(source)))
        else:
            rows = rows.map(transform)
    return rows


def _map_row(transform: Any, num_rows: int, number: int, row: Any) -> Any:
    return transform.map_with_index(number % num_rows, row)


def shown(transform: Any) -> str:
    """A transform in messages."""
    return getattr(transform, "__qualname__", type(transform).__qualname__)


# Stacking --------------------------------------------------------------------------------------------


def _stack(rows: list[Any]) -> PyTree:
    """Rows of one structure as that structure of stacked arrays."""
    first = rows[0]
    if isinstance(first, dict):
        if any(not isinstance(row, dict) or row.keys() != first.keys() for row in rows):
            raise ValueError("their names differ")
        return {name: _stack([row[name] for row in rows]) for name in first}
    if isinstance(first, (tuple, list)) and not _is_numbers(first):
        if any(type(row) is not type(first) for row in rows):
            raise ValueError("their structures differ")
        return type(first)(_stack(list(column)) for column in zip(*rows, strict=True))
    if isinstance(first, (bool, int, float, np.generic)) and all(type(row) is type(first) for row in rows):
        return np.asarray(rows)
    arrays = [np.asarray(row) for row in rows]
    kinds = {narrowed(dtype) for dtype in {a.dtype for a in arrays}}
    if len(kinds) > 1 and arrays[0].dtype.kind not in "SU":  # texts are refused whatever their lengths
        raise ValueError("their types differ")
    return np.stack(arrays)


def _kind(row: Any) -> str:
    """The layout of a row once it is in a batch."""
    return layout(jax.tree.map(lambda a: np.empty(np.shape(a), narrowed(np.asarray(a).dtype)), row))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], (bool, int, float, list))

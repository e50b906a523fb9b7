"""Arrays and structures of arrays as a loader."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from kdist.data.buffers import take
from kdist.data.files import forget
from kdist.data.order import EpochOrder, check_drop_remainder, check_shuffle
from kdist.errors import ConfigError, DataError
from kdist.typing import Batch, PyTree

DEFAULT_BATCH_SIZE = 32
LARGE_BYTES = 2 << 30
"""Of a file that is mapped into memory no more than this is copied without a warning."""

_NARROWED = {
    np.dtype(wide): np.dtype(narrow)
    for wide, narrow in (
        (np.float64, np.float32),
        (np.complex128, np.complex64),
        (np.int64, np.int32),
        (np.uint64, np.uint32),
    )
}


@dataclasses.dataclass(frozen=True)
class ArrayLoader:
    """Rows of arrays in memory; see `from_arrays`, which makes and checks them.

    Attributes:
        arrays: All rows, a `Batch` of leaves ``[num_rows, ...]``.
        batch_size: B, the rows of a step.
        shuffle: True, False or "batch".
        seed: What the orders are drawn from.
        cache: True, False or "auto".
        steps: The most steps of an epoch; None, the default, for all rows.
        drop_remainder: Whether a pass has full batches alone; False by default.

    Example:
        >>> loader = from_arrays(np.arange(10.0), batch_size=4, shuffle=False)
        >>> loader.num_rows, loader.num_steps, loader.read(loader.order(0)[:4]).x.tolist()
        (10, 3, [0.0, 1.0, 2.0, 3.0])
    """

    arrays: Batch
    batch_size: int
    shuffle: bool | str
    seed: int
    cache: bool | str
    steps: int | None = None
    drop_remainder: bool = False
    readers: ClassVar[int] = 2
    """See `Loader`."""

    @property
    def num_rows(self) -> int:
        """Rows of a pass, without those that are dropped."""
        return self._epochs.rows_of_a_pass

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(a.nbytes for a in jax.tree.leaves(self.arrays))

    @property
    def num_steps(self) -> int:
        """S, the most steps of an epoch."""
        return self._epochs.num_steps

    def order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch in their order; see `Loader.order`."""
        return self._epochs.rows(epoch)

    @property
    def _epochs(self) -> EpochOrder:
        rows = jax.tree.leaves(self.arrays)[0].shape[0]
        drop = self.drop_remainder
        return EpochOrder(rows, self.batch_size, self.shuffle, self.seed, self.steps, drop_remainder=drop)

    def in_order(self) -> ArrayLoader:
        """The same rows as they lie in the arrays, all of them: what is evaluated and predicted."""
        return dataclasses.replace(self, shuffle=False, drop_remainder=False)

    def read(self, rows: np.ndarray | slice) -> Batch:
        """Those rows, gathered all at once."""
        batch = jax.tree.map(lambda a: a[rows] if isinstance(rows, slice) else take(a, rows), self.arrays)
        if not isinstance(rows, slice):
            jax.tree.map(forget, self.arrays)
        return batch


def from_arrays(
    x: PyTree,
    y: PyTree = None,
    sample_weight: PyTree = None,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    shuffle: bool | str = True,
    seed: int = 0,
    cache: bool | str = "auto",
    steps: int | None = None,
    check_finite: bool = False,
    drop_remainder: bool = False,
) -> ArrayLoader:
    """A loader of arrays.

    `shuffle` and `drop_remainder` are for training: an evaluation, a validation and a prediction take every row once,
    in the order of the arrays; with `steps`, the first of them.

    Args:
        x: Inputs: an array ``[rows, ...]``, or a list, tuple or dict of arrays.
        y: Targets, alike; none by default.
        sample_weight: Weights ``[rows]`` or ``[rows, steps]``, or a structure of them like `y`; none by default.
        batch_size: Rows of a step, over all devices and processes; 32 by default.
        shuffle: Whether each epoch has an order of its own, drawn from `seed` and the epoch; "batch" draws the order of
            whole batches, and does nothing where `steps` is given; True by default.
        seed: What the orders are drawn from; 0 by default.
        cache: Whether the rows are kept on the devices: True, False, or "auto" by their size; "auto" by default.
        steps: The most steps of an epoch; epochs then share a pass over the data.  All of them by default.
        check_finite: Whether to read everything once, now, and refuse NaN and infinity; False by default.  It is never
            done unasked, since it reads all of the data.
        drop_remainder: Whether an epoch leaves out the rows that fill no batch: others each epoch, if rows are
            shuffled; False by default.

    Returns:
        The loader. float64 becomes float32 and 64-bit integers 32-bit ones.

    Raises:
        DataError: Lengths differ, there are no rows, or fewer than a batch has and they are dropped, or something is no
            array of numbers.
        ConfigError: `batch_size` is not a positive integer, or another argument is none of its values.

    Example:
        >>> loader = from_arrays(np.arange(10.0), batch_size=4, shuffle=False, steps=2)
        >>> [loader.order(epoch).tolist() for epoch in range(3)]
        [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9], [0, 1, 2, 3, 4, 5, 6, 7]]
    """
    check_batch_size(batch_size)
    if steps is not None:
        check_batch_size(steps, "steps")
    check_shuffle(shuffle)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ConfigError(f"seed must be an integer of 0 or more. Received: {seed!r}.")
    if cache not in (True, False, "auto"):
        raise ConfigError(f"cache must be True, False or 'auto'. Received: {cache!r}.")
    named = {"x": x, "y": y, "sample_weight": sample_weight}
    arrays = {name: as_arrays(value, name) for name, value in named.items()}
    check_drop_remainder(drop_remainder, check_lengths(arrays), batch_size)
    if check_finite:
        for name, value in arrays.items():
            _check_finite(value, name)
    batch = Batch(x=arrays["x"], y=arrays["y"], weight=as_float32(arrays["sample_weight"]))
    return ArrayLoader(batch, int(batch_size), shuffle, int(seed), cache, steps, bool(drop_remainder))


def check_batch_size(batch_size: Any, name: str = "batch_size") -> None:
    """Refuses a batch size that is not a positive whole number.

    Raises:
        ConfigError: It is not.
    """
    whole = isinstance(batch_size, (int, np.integer)) and not isinstance(batch_size, bool)
    if not whole or batch_size < 1:
        raise ConfigError(f"{name} must be a positive integer. Received: {batch_size!r}.")


def as_arrays(tree: PyTree, name: str) -> PyTree:
    """The structure with NumPy arrays of 32-bit numbers (or smaller) as leaves.

    Args:
        tree: Arrays, or lists, tuples and dicts of them, or None.
        name: What to call it in messages.

    Raises:
        DataError: A leaf is no array of numbers, or a container is a namedtuple.
    """
    if tree is None:
        return None
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        raise DataError(
            f"{name} is a namedtuple {type(tree).__name__}{tree._fields}, which could mean its fields or its "
            "positions. Pass a plain tuple, or a dict of names."
        )
    if isinstance(tree, Mapping):
        return {key: as_arrays(value, f"{name}[{key!r}]") for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        first = tree
        while isinstance(first, (list, tuple)) and first:
            first = first[0]
        if isinstance(first, (list, tuple, bool, int, float, str, bytes)):
            what = "nothing" if isinstance(first, (list, tuple)) else "numbers or strings"
            raise DataError(f"{name} is a {type(tree).__name__} of {what}, not of arrays. Pass np.asarray({name}).")
        return type(tree)(as_arrays(value, f"{name}[{i}]") for i, value in enumerate(tree))
    return _as_array(tree, name)


def _as_array(value: Any, name: str) -> np.ndarray:
    if hasattr(value, "toarray"):  # a scipy sparse matrix
        value = value.toarray()
    if not hasattr(value, "__array__"):
        raise DataError(
            f"{name} is a {type(value).__name__}, not an array. Pass a NumPy or JAX array, or a list, tuple or "
            "dict of arrays."
        )
    array = np.asarray(value)
    if array.dtype.kind in "OSUTMmV" and not _is_extended(array.dtype):
        raise DataError(
            f"{name} has dtype {array.dtype}, which is not numeric. Convert it first: encode strings as integers, "
            "and stack rows of unequal length into one padded array."
        )
    if array.ndim == 0:
        raise DataError(f"{name} is a single number. Its first dimension must be the rows.")
    if isinstance(value, np.memmap) and array.dtype.itemsize > 4 and array.nbytes > LARGE_BYTES:
        warnings.warn(
            f"{name} is an array of {array.nbytes / 1e9:.0f} GB in a file, of {array.dtype}, and is copied into memory "
            "to make 32-bit numbers of it. kdist.data.from_source(path) converts rows as they are read.",
            stacklevel=2,
        )
    narrow = narrowed(array.dtype)
    if narrow.kind in "iu" and narrow != array.dtype:
        limits = np.iinfo(narrow)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise DataError(
                f"{name} holds integers from {array.min()} to {array.max()}, which do not fit {limits.dtype}, the "
                "widest integers that JAX uses by default."
            )
    return array.astype(narrow, copy=False)


def narrowed(dtype: np.dtype) -> np.dtype:
    """The type that arrays of a type become: of 32 bits where it has 64.

    Example:
        >>> narrowed(np.dtype("float64")), narrowed(np.dtype("int8"))
        (dtype('float32'), dtype('int8'))
    """
    return _NARROWED.get(dtype, dtype)


def _is_extended(dtype: np.dtype) -> bool:
    """Whether it is one of JAX's small floats, which NumPy itself calls void."""
    return jax.dtypes.issubdtype(dtype, np.number)


def as_float32(tree: PyTree) -> PyTree:
    """Sample weights as float32."""
    return jax.tree.map(lambda a: a.astype(np.float32, copy=False), tree)


def check_lengths(arrays: Mapping[str, PyTree]) -> int:
    """The number of rows that all of these have.

    Raises:
        DataError: `x` has no arrays, lengths differ, or there are no rows.
    """
    if not jax.tree.leaves(arrays["x"]):
        raise DataError("x is required: pass an array, or a list, tuple or dict of arrays. Received: None.")
    lengths = {name: sorted({a.shape[0] for a in jax.tree.leaves(value)}) for name, value in arrays.items()}
    found = {n for sizes in lengths.values() for n in sizes}
    if len(found) > 1:
        sizes = "; ".join(f"{name}: {', '.join(map(str, n))}" for name, n in lengths.items() if n)
        raise DataError(f"All arrays must have the same number of rows. Received rows: {sizes}.")
    if found == {0}:
        raise DataError("The data are empty: x has 0 rows.")
    return found.pop()


def _check_finite(tree: PyTree, name: str) -> None:
    for path, array in jax.tree_util.tree_leaves_with_path(tree):
        if not np.issubdtype(array.dtype, np.inexact):
            continue
        bad = ~np.isfinite(array).reshape(array.shape[0], -1).all(axis=1)
        if bad.any():
            raise DataError(
                f"{name}{jax.tree_util.keystr(path)} holds NaN or infinity in {bad.sum()} of {bad.size} rows; "
                f"the first is row {bad.argmax()}."
            )

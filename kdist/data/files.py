"""Rows by number in files: shards of NumPy arrays, ArrayRecord and Parquet."""

from __future__ import annotations

import io
import mmap
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdist.errors import DataError


class NpyRows:
    """The rows of ``.npy`` files, which stay on disk: row i is the i-th of the first column, or one of each column.

    Args:
        columns: A path for each column (inputs, targets, weights): a file, or a directory of files that are read in the
            order of their names.

    Raises:
        DataError: There is no such file, its array is no table of rows, shards differ in the shape or type of their
            rows, or columns in length.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     for i in range(2):
        ...         np.save(pathlib.Path(directory, f"part-{i}.npy"), np.arange(3) + 3 * i)
        ...     rows = NpyRows(directory)
        ...     len(rows), int(rows[4]), rows.gather(np.array([5, 0])).tolist()
        (6, 4, [5, 0])
    """

    def __init__(self, *columns: str | Path) -> None:
        if not columns:
            raise DataError("Expected the path of a .npy file, or of a directory of them, for each column.")
        self.columns = tuple(map(str, columns))
        self._open()

    def _open(self) -> None:
        self._shards = [_open_shards(_files(Path(column), ".npy")) for column in self.columns]
        lengths = [sum(map(len, shards)) for shards in self._shards]
        if len(set(lengths)) > 1:
            told = ", ".join(f"{n} in {column}" for n, column in zip(lengths, self.columns, strict=True))
            raise DataError(f"All columns must have the same number of rows. Received: {told}.")
        self._num_rows = lengths[0]
        self._starts = [np.cumsum([0, *map(len, shards)]) for shards in self._shards]

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> Any:
        if not 0 <= row < self._num_rows:
            raise IndexError(f"row {row} of {self._num_rows}")
        found = []
        for shards, starts in zip(self._shards, self._starts, strict=True):
            shard = int(np.searchsorted(starts, row, side="right")) - 1
            found.append(np.array(shards[shard][row - starts[shard]]))
        return found[0] if len(found) == 1 else tuple(found)

    def gather(self, rows: np.ndarray) -> Any:
        """Some rows at once, leaves ``[len(rows), ...]``."""
        gathered = [_take(shards, s, rows) for shards, s in zip(self._shards, self._starts, strict=True)]
        return gathered[0] if len(gathered) == 1 else tuple(gathered)

    def __getstate__(self) -> tuple[str, ...]:
        return self.columns

    def __setstate__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self._open()


class ParquetRows:
    """The rows of Parquet files, read a group of rows at a time; row i is a dict of its columns.

    Args:
        path: A file, or a directory of files that are read in the order of their names.

    Raises:
        DataError: There is no such file, or pyarrow is not installed.

    Example:
        >>> import pyarrow, pyarrow.parquet, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     table = pyarrow.table({"age": [31, 47], "label": [0, 1]})
        ...     pyarrow.parquet.write_table(table, f"{directory}/part-0.parquet")
        ...     rows = ParquetRows(directory)
        ...     len(rows), rows[1]
        (2, {'age': 47, 'label': 1})
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._open()

    def _open(self) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise DataError("Parquet files need the package pyarrow: pip install pyarrow.") from error
        self._files = [pyarrow.parquet.ParquetFile(file) for file in _files(Path(self.path), ".parquet")]
        self._groups = [(f, g) for f, file in enumerate(self._files) for g in range(file.num_row_groups)]
        lengths = [self._files[f].metadata.row_group(g).num_rows for f, g in self._groups]
        self._starts = np.cumsum([0, *lengths])
        self._held: tuple[int, dict[str, list[Any]]] = (-1, {})
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> dict[str, Any]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        with self._lock:  # pyarrow's files are not for several threads at once
            if self._held[0] != group:
                file, number = self._groups[group]
                self._held = (group, self._files[file].read_row_group(number).to_pydict())
            columns = self._held[1]
        return {name: values[row - self._starts[group]] for name, values in columns.items()}

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Name, rows and checksum of the footer of each file, which tells what is in it: rows come by whole groups."""
        files = _files(Path(self.path), ".parquet")
        return [(f.name, r.metadata.num_rows, _footer(f)) for f, r in zip(files, self._files, strict=True)]

    def __getstate__(self) -> str:
        return self.path

    def __setstate__(self, path: str) -> None:
        self.path = path
        self._open()


def open_rows(path: str | Path) -> Any:
    """The rows of a file, or of a directory of files of one kind, by the ends of their names.

    Raises:
        DataError: There is no such file, or none of a kind that is known.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"There are no data at {path}: no such file or directory.")
    kinds = {file.suffix for file in (path.iterdir() if path.is_dir() else [path])}
    known = [kind for kind in (".npy", ".parquet", ".array_record") if kind in kinds]
    if len(known) != 1:
        found = ", ".join(sorted(kinds)) or "nothing"
        raise DataError(f"Expected .npy, .parquet or .array_record files, of one kind, at {path}. Found: {found}.")
    if known == [".npy"]:
        return NpyRows(path)
    if known == [".parquet"]:
        return ParquetRows(path)
    import grain

    return grain.sources.ArrayRecordDataSource(list(map(str, _files(path, ".array_record"))))


def _files(path: Path, kind: str) -> list[Path]:
    files = sorted(path.glob(f"*{kind}")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise DataError(f"There are no {kind} files at {path}.")
    return files


def _footer(file: Path) -> int:
    """The checksum of a Parquet file's footer: sizes, places and extremes of its columns."""
    with file.open("rb") as content:
        content.seek(-8, io.SEEK_END)  # its length, and the mark of the format
        length = int.from_bytes(content.read(4), "little")
        content.seek(-8 - length, io.SEEK_END)
        return zlib.crc32(content.read(length))


def _open_shards(files: Sequence[Path]) -> list[np.ndarray]:
    shards = [_open_npy(file) for file in files]
    for file, shard in zip(files, shards, strict=True):
        first = shards[0]
        if (shard.shape[1:], shard.dtype) != (first.shape[1:], first.dtype):
            raise DataError(
                f"All shards must have rows alike. Those of {files[0]} are {first.dtype}{list(first.shape[1:])}, those "
                f"of {file} are {shard.dtype}{list(shard.shape[1:])}."
            )
    return shards


def _open_npy(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{file} cannot be read as a NumPy array: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise DataError(f"{file} holds no array with rows.")
    return array


def _take(shards: Sequence[np.ndarray], starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    out = np.empty((len(rows), *shards[0].shape[1:]), shards[0].dtype)
    shard = np.searchsorted(starts, rows, side="right") - 1
    for n in np.unique(shard):
        here = shard == n
        out[here] = shards[n][rows[here] - starts[n]]
        forget(shards[n])
    return out


def forget(array: np.ndarray) -> None:
    """Gives back the memory that reading from a file mapped into memory has taken; other arrays stay as they are."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    mapped = array.base
    # Of mode "c" what was changed is in memory alone.
    if isinstance(array, np.memmap) and array.mode != "c" and isinstance(mapped, mmap.mmap):
        if hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def encode_arrays(*columns: Any) -> bytes:
    """A row of arrays or numbers as bytes, for files of records.

    Args:
        *columns: Arrays of any shape, or numbers: the input, the target and so on.

    Example:
        >>> decode_arrays(encode_arrays(np.arange(3), 1.5))
        (array([0, 1, 2]), array(1.5))
    """
    content = io.BytesIO()
    for column in columns:
        np.save(content, np.asarray(column), allow_pickle=False)
    return content.getvalue()


def decode_arrays(record: bytes) -> tuple[np.ndarray, ...]:
    """The row that `encode_arrays` made bytes of: a transform for ArrayRecord files, see tools/write_array_record.py.

    Args:
        record: What `encode_arrays` returned.

    Raises:
        ValueError: The bytes are something else.

    Example:
        >>> record = encode_arrays(np.zeros((2, 2)), 7)
        >>> image, label = decode_arrays(record)
        >>> image.shape, int(label)
        ((2, 2), 7)
    """
    content = io.BytesIO(record)
    columns = []
    while content.tell() < len(record):
        columns.append(np.load(content, allow_pickle=False))
    return tuple(columns)

"""Loggers: the logs of each epoch in a file; only process 0 writes."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from kdist.callbacks.base import Callback
from kdist.distribution import is_main_process
from kdist.errors import ConfigError
from kdist.typing import Logs


class FileLogger(Callback):
    """A file that is open while training runs, and that a line an epoch is written to.

    A run that goes on in another process goes on after the lines that it had written then, and no line is there twice.

    Args:
        filename: The file; its directory is made.
        append: Whether to go on after what the file holds; else it is started anew.
    """

    def __init__(self, filename: str | os.PathLike[str], append: bool = False) -> None:
        super().__init__()
        self.filename = Path(filename)
        self.append = append
        self._file: IO[str] | None = None
        self._keep: int | None = None  # so much of the file, until the first line is written

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Opens the file; what it is not to hold is cut off when the first line is written."""
        if is_main_process():
            self.filename.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.filename, "a", encoding="utf-8", newline="")  # noqa: SIM115
            self._keep = self._file.tell() if self.append else 0

    def state_dict(self) -> dict[str, Any]:
        """See `Callback.state_dict`."""
        return {"length": 0 if self._file is None else self._file.tell() if self._keep is None else self._keep}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Callback.load_state_dict`."""
        if self._file is not None:
            self._keep = min(state["length"], self._file.tell())

    def _cut(self) -> None:
        if self._file is not None and self._keep is not None:
            self._file.truncate(self._keep)
            self._file.seek(0, os.SEEK_END)
            self._keep = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Writes the epoch's line, and flushes it."""
        if self._file is not None:
            self._cut()
            self.write(self._file, epoch, {name: plain(value) for name, value in (logs or {}).items()})
            self._file.flush()

    def write(self, file: IO[str], epoch: int, logs: Logs) -> None:
        """Writes the line of an epoch; logs are floats, or lists of them."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._cut()
            self._file.close()
            self._file = None


class JSONLLogger(FileLogger):
    r"""A line of JSON an epoch: ``{"epoch": 0, "loss": ..., ...}``, flushed as it is written.

    Args:
        filename: The file; its directory is made.
        append: Whether to go on after what the file holds; else it is started anew; False by default.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     logger = JSONLLogger(f"{directory}/history.jsonl")
        ...     logger.on_train_begin()
        ...     logger.on_epoch_end(0, {"loss": 0.5})
        ...     logger.close()
        ...     pathlib.Path(directory, "history.jsonl").read_text()
        '{"epoch": 0, "loss": 0.5}\n'
    """

    def write(self, file: IO[str], epoch: int, logs: Logs) -> None:
        """Writes the epoch's line."""
        file.write(json.dumps(jsonable({"epoch": epoch, **logs})) + "\n")


class CSVLogger(FileLogger):
    r"""A table: "epoch", then a column for each log of the first epoch, in alphabetical order.

    If that epoch was not validated, there is a column for the validation of each, too.  What an epoch lacks is ``NA``,
    what it has more is left out; vectors are written ``[a, b]``.

    Args:
        filename: The file; its directory is made.
        separator: What stands between columns: one character; "," by default.
        append: Whether to go on after what the file holds, in its columns; else it is started anew; False by default.

    Raises:
        ConfigError: When training begins, if the file to append to is no such table.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     logger = CSVLogger(f"{directory}/history.csv")
        ...     logger.on_train_begin()
        ...     logger.on_epoch_end(0, {"loss": 0.5})
        ...     logger.close()
        ...     pathlib.Path(directory, "history.csv").read_text()
        'epoch,loss,val_loss\n0,0.5,NA\n'
    """

    def __init__(self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False) -> None:
        super().__init__(filename, append)
        if not isinstance(separator, str) or len(separator) != 1:
            raise ConfigError(f"separator must be one character. Received: {separator!r}.")
        self.separator = separator
        self._columns: list[str] = []

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Opens the file."""
        self._columns = self._columns_of_file() if self.append and is_main_process() else []
        super().on_train_begin(logs)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Callback.load_state_dict`."""
        super().load_state_dict(state)
        self._columns = self._columns_of_file() if self._keep else []

    def _columns_of_file(self) -> list[str]:
        if not self.filename.exists():
            return []
        with self.filename.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file, delimiter=self.separator), [])
        if header and header[0] != "epoch":
            raise ConfigError(
                f"CSVLogger cannot append to {self.filename}: its first column is not 'epoch' with the separator "
                f"{self.separator!r}. Give another file, or append=False."
            )
        return header

    def write(self, file: IO[str], epoch: int, logs: Logs) -> None:
        """Writes the epoch's line, under a header if it is the first."""
        writer = csv.writer(file, delimiter=self.separator, lineterminator="\n")
        if not self._columns:
            names = sorted(logs)
            if not any(name.startswith("val_") for name in names):
                names += [f"val_{name}" for name in names]
            self._columns = ["epoch", *names]
            writer.writerow(self._columns)
        row = {"epoch": epoch, **logs}
        writer.writerow([row.get(column, "NA") for column in self._columns])


def plain(value: Any) -> Any:
    """A log as a float, or a list of floats; a string of somebody's own stays."""
    if isinstance(value, str):
        return value
    return [plain(v) for v in value] if np.ndim(value) else float(value)


def jsonable(value: Any) -> Any:
    """The same, and what it is in, with NaN and infinities as strings, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {name: jsonable(v) for name, v in value.items()}
    if isinstance(value, list):
        return [jsonable(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

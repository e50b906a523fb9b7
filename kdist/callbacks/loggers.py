"""Loggers: the logs of each epoch in a file; only process 0 writes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from kdist.callbacks.base import Callback
from kdist.distribution import is_main_process
from kdist.typing import Logs


class JSONLLogger(Callback):
    """A line of JSON an epoch: ``{"epoch": 0, "loss": ..., ...}``, flushed as it is written.

    Args:
        filename: The file; its directory is made.
        append: Whether to go on after what the file holds; else it is started anew.
    """

    def __init__(self, filename: str | os.PathLike[str], append: bool = False) -> None:
        super().__init__()
        self.filename = Path(filename)
        self.append = append
        self._file: IO[str] | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Opens the file."""
        if is_main_process():
            self.filename.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.filename, "a" if self.append else "w", encoding="utf-8")  # noqa: SIM115

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Writes the epoch's line."""
        if self._file is not None:
            line = {"epoch": epoch, **{name: _plain(value) for name, value in (logs or {}).items()}}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _plain(value: Any) -> Any:
    """A number or list, with NaN and infinities as strings, which JSON has no numbers for."""
    if np.ndim(value):
        return [_plain(v) for v in value]
    value = float(value)
    return value if np.isfinite(value) else str(value)

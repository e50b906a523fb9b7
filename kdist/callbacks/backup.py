"""BackupAndRestore: a run that is started again goes on where it was."""

from __future__ import annotations

import os
from pathlib import Path

from kdist import checkpoint
from kdist.callbacks.base import Callback
from kdist.callbacks.batches import BatchCounter, check_frequency
from kdist.callbacks.messages import warn
from kdist.data import check_same_data
from kdist.errors import CheckpointError, CheckpointMismatchError, ConfigError
from kdist.typing import Logs


class BackupAndRestore(Callback):
    """Saves the whole state as training goes, and goes on from there when `fit` is called again.

    A run that was killed is started with the same script: it begins with the epoch, and with an integer `save_freq` the
    very batch, that came next.  A backup is complete or it is not there; it is removed when training ends as it should.

    Args:
        backup_dir: A directory of its own.
        save_freq: "epoch", the default, or every how many batches, counted over epochs.  Executions end there.
        double_checkpoint: Whether the backup before the newest is kept, and used if the newest cannot be read; False by
            default.
        delete_checkpoint: Whether the backup is removed at the end of training; True by default.

    Raises:
        ConfigError: An argument is wrong.
        CheckpointMismatchError: When training begins, if the backup is of another model.
        DataError: When training begins, if it was made with other data, another order or batch size.

    Example:
        >>> import flax.linen as nn, kdist, numpy as np, tempfile
        >>> def run(callbacks):
        ...     model = kdist.Model(nn.Dense(1))
        ...     model.compile("adam", "mse")
        ...     return model.fit(np.ones((8, 3)), np.zeros((8, 1)), epochs=3, verbose=0, callbacks=callbacks)
        >>> def dies(epoch, logs):
        ...     if epoch == 1:
        ...         raise RuntimeError
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     backup = BackupAndRestore(directory + "/backup")
        ...     try:
        ...         history = run([backup, kdist.callbacks.LambdaCallback(on_epoch_end=dies)])
        ...     except RuntimeError:
        ...         history = run([backup])
        >>> history.epoch
        [2]
    """

    reads_logs = False

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        save_freq: int | str = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
    ) -> None:
        super().__init__()
        if not backup_dir:
            raise ConfigError(f"Empty backup_dir: give a directory for the backup. Received: {backup_dir!r}.")
        self.backup_dir = Path(backup_dir)
        self.save_freq = save_freq
        self.double_checkpoint = double_checkpoint
        self.delete_checkpoint = delete_checkpoint
        every = check_frequency("save_freq", save_freq)
        self._counter = BatchCounter(every)
        self._epoch = self._next = 0
        if every is not None:
            self.batch_stride = every
            vars(self).update(on_train_batch_begin=self._counter.begin, on_train_batch_end=self._end_batch)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Restores the newest backup that can be read, if there is one."""
        self._counter.restart()
        number = checkpoint.series.newest(self.backup_dir)
        self._next = 0 if number is None else number + 1
        while number is not None and not self._restored(number):
            number = checkpoint.series.newest(self.backup_dir, below=number)

    def _restored(self, number: int) -> bool:
        """Restores a backup; False, with a warning, if it cannot be read but there is an older one."""
        try:
            state, meta = checkpoint.load_state(self.backup_dir / str(number), self.model.state)
        except CheckpointMismatchError:
            raise
        except CheckpointError as error:
            if checkpoint.series.newest(self.backup_dir, below=number) is None:
                raise
            warn(f"The newest backup cannot be read, so an older one is used. {error}")
            return False
        check_same_data(meta.get("data", {}), self.model.data_fingerprint)
        self.model.state = state
        self.model.start_at(meta["epoch"], meta["step"])
        return True

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def _end_batch(self, batch: int, logs: Logs | None = None) -> None:
        if self._counter.due(batch):
            self._save(self._epoch, batch + 1)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Saves, if it is the time."""
        if self._counter.every is None:
            self._save(epoch + 1, 0)

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Removes the backup: training is over."""
        if self.delete_checkpoint:
            checkpoint.series.clear(self.backup_dir)

    def _save(self, epoch: int, step: int) -> None:
        meta = {"epoch": epoch, "step": step, "data": self.model.data_fingerprint}
        checkpoint.save_state(self.backup_dir / str(self._next), self.model.state, meta)
        checkpoint.series.keep_newest(self.backup_dir, 2 if self.double_checkpoint else 1)
        self._next += 1

"""BackupAndRestore: a run that is started again goes on where it was."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from kdist import checkpoint
from kdist.callbacks.base import Callback
from kdist.callbacks.batches import BatchCounter, check_frequency
from kdist.callbacks.messages import warn
from kdist.distribution import agree
from kdist.errors import ConfigError
from kdist.typing import Logs


class BackupAndRestore(Callback):
    """Saves the whole state as training goes, and goes on from there when `fit` is called again.

    A run that was killed is started with the same script: it begins with the epoch, and with an integer `save_freq` the
    very batch, that came next, and as if it had never stopped: the metrics of the epoch, the history and what callbacks
    remember go on too.  It is saved in the background.  A backup is complete or it is not there, every array in it is
    verified when it is read, parameters that are NaN are not saved, and all is removed when training ends as it should.

    Where the machine is about to be taken away (SIGTERM), the run saves at the end of the execution, and the process
    ends with exit code 42, which says: start it again.

    Args:
        backup_dir: A directory of its own.
        save_freq: "epoch", the default, or every how many batches, counted over epochs.  Executions end there.
        double_checkpoint: Whether the backup before the newest is kept, and used if the newest cannot be read; False by
            default.
        delete_checkpoint: Whether the backup is removed at the end of training; True by default.
        min_seconds: With "epoch", at least so many seconds lie between two saves, but for that of the last epoch; 0.0
            by default.

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
        [0, 1, 2]
    """

    reads_logs = False
    keeps_run = True

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        save_freq: int | str = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
        *,
        min_seconds: float = 0.0,
    ) -> None:
        super().__init__()
        if not backup_dir:
            raise ConfigError(f"Empty backup_dir: give a directory for the backup. Received: {backup_dir!r}.")
        self.backup_dir = Path(backup_dir)
        self.save_freq = save_freq
        self.double_checkpoint = double_checkpoint
        self.delete_checkpoint = delete_checkpoint
        self.min_seconds = min_seconds
        every = check_frequency("save_freq", save_freq)
        self._counter = BatchCounter(every)
        self._due = self._ended = False
        self._checkpoints: checkpoint.RunCheckpoints | None = None
        if every is not None:
            self.batch_stride = every
            vars(self).update(on_train_batch_begin=self._counter.begin, on_train_batch_end=self._end_batch)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Restores the newest backup that can be read, if there is one."""
        self._counter.restart()
        self._due = self._ended = False
        self._saved_at = time.monotonic()
        checkpoints = checkpoint.RunCheckpoints(self.backup_dir, keep=2 if self.double_checkpoint else 1)
        self._checkpoints = checkpoints
        checkpoints.open()
        restored = checkpoints.restore(self.model.state)
        if restored is not None:
            state, progress = restored
            self.model.state = state
            self.model.go_on(progress)

    def state_dict(self) -> dict[str, Any]:
        """See `Callback.state_dict`."""
        return {"counted": self._counter.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Callback.load_state_dict`."""
        self._counter.load_state_dict(state["counted"])

    def _end_batch(self, batch: int, logs: Logs | None = None) -> None:
        self._due = self._counter.due(batch) or self._due

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Takes note, if it is the time to save."""
        if self._counter.every is None:
            last = epoch + 1 == self.params.get("epochs") or self.model.stop_training
            self._due = last or not self.min_seconds or self._is_time()

    def _is_time(self) -> bool:
        """Whether the last save is long ago, by the clock of process 0."""
        return bool(agree(int(time.monotonic() - self._saved_at >= self.min_seconds)))

    def is_save_due(self) -> bool:
        """Whether it is the time to save; that the last save has failed is found out here, by all processes."""
        assert self._checkpoints is not None
        self._checkpoints.check()
        return self._due

    def save_run(self, epoch: int, step: int, *, last: bool = False) -> None:
        """Saves, in the background unless it is the last time."""
        assert self._checkpoints is not None
        self._due, self._saved_at = False, time.monotonic()
        if checkpoint.is_finite(self.model.state):
            self._checkpoints.save(self.model.state, self.model.progress())
        else:
            warn(f"Epoch {epoch + 1}, step {step}: parameters are NaN or infinite, so the backup before is kept.")
        if last:
            self._checkpoints.finish()

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Takes note: training is over."""
        self._ended = True

    def close(self) -> None:
        """Waits for the last save; removes the backup, if training ended as it should."""
        checkpoints, self._checkpoints = self._checkpoints, None
        if checkpoints is not None:
            try:
                if self._ended and self.delete_checkpoint:
                    checkpoints.clear()
            finally:
                checkpoints.close()

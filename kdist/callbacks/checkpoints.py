"""ModelCheckpoint and OrbaxCheckpoint: the model on disk, after epochs or batches, all of them or the best."""

from __future__ import annotations

import os
import warnings
from typing import Any

from kdist import checkpoint
from kdist.callbacks.batches import BatchCounter, check_frequency
from kdist.callbacks.messages import say
from kdist.callbacks.monitors import MonitorCallback
from kdist.checkpoint.state import trees_of
from kdist.errors import ConfigError
from kdist.typing import Logs

FILE_SUFFIXES = (".keras", ".h5")


class TemplateError(ConfigError, KeyError):
    """A path has a field that is not logged; a KeyError too, as Keras raises."""

    __str__ = Exception.__str__  # KeyError shows the repr


class ModelCheckpoint(MonitorCallback):
    """Writes the model to an Orbax directory, which `Model.load_weights` reads.

    ``state, meta = kdist.checkpoint.load_state(directory, model.state)`` reads all of it, to train further.  Training
    waits until it is written; a checkpoint is complete or it is not there.

    Args:
        filepath: The directory.  ``{epoch}`` and ``{batch}`` in it, counted from 1, and the names of logs are filled
            in, as in ``runs/digits/{epoch:02d}-{val_loss:.2f}``; without a field the checkpoint is replaced.
        monitor: The log that tells the best; "val_loss" by default.
        verbose: 1 to say what is done; 0 by default.
        save_best_only: Whether to save only when the log is better than ever before, in earlier fits too; False by
            default.  Where it is missing or no number, it is saved, with a warning.
        save_weights_only: Whether to leave out the optimizer's state; False by default.
        mode: See `MonitorCallback`.
        save_freq: "epoch", the default, or every how many batches, counted over epochs.  Executions end there;
            an integer ``steps_per_execution`` is honoured first, and saves at the end of the execution.
        initial_value_threshold: The value to be better than; none by default.

    Raises:
        ConfigError: An argument is wrong: also a path that ends like a file of Keras's, or has a field that is not
            logged.

    Example:
        >>> import flax.linen as nn, kdist, numpy as np, pathlib, tempfile
        >>> model = kdist.Model(nn.Dense(1))
        >>> model.compile("sgd", "mse")
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save = ModelCheckpoint(directory + "/epoch{epoch}", save_weights_only=True)
        ...     history = model.fit(np.ones((8, 3)), np.zeros((8, 1)), epochs=2, verbose=0, callbacks=save)
        ...     sorted(path.name for path in pathlib.Path(directory).iterdir())
        ['epoch1', 'epoch2']
    """

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: int | str = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        super().__init__(monitor, mode, best=initial_value_threshold)
        self.filepath = os.fspath(filepath)
        if self.filepath.endswith(FILE_SUFFIXES):
            raise ConfigError(
                f"Checkpoints are Orbax directories, not files: give a path without a suffix. Received: {filepath!r}."
            )
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq = save_freq
        every = check_frequency("save_freq", save_freq)
        self._counter = BatchCounter(every)
        self._epoch = 0
        if every is not None:
            self.batch_stride = every
            vars(self).update(on_train_batch_begin=self._counter.begin, on_train_batch_end=self._end_batch)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Batches are counted from here; a path that cannot be filled in is found before the first epoch."""
        self._counter.restart()
        self._try_path()
        if self.save_best_only:
            super().on_train_begin(logs)

    def state_dict(self) -> dict[str, Any]:
        """See `Callback.state_dict`."""
        return {"best": self.best, "counted": self._counter.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Callback.load_state_dict`."""
        self.best = state["best"]
        self._counter.load_state_dict(state["counted"])

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def _end_batch(self, batch: int, logs: Logs | None = None) -> None:
        if self._counter.due(batch):
            self._consider(self.path(self._epoch, batch, logs or {}), logs or {}, (self._epoch, batch + 1))

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Saves, if it is the time."""
        if self._counter.every is None:
            self._consider(self.path(epoch, None, logs or {}), logs or {}, (epoch + 1, 0))

    def path(self, epoch: int, batch: int | None, logs: Logs) -> str:
        """Where to save.

        Args:
            epoch: The epoch, from 0.
            batch: The batch, from 0; None at the end of an epoch.
            logs: The logs.

        Raises:
            TemplateError: The path has a field that there is no value for.
        """
        fields = {**logs, "epoch": epoch + 1} | ({} if batch is None else {"batch": batch + 1})
        try:
            return self.filepath.format(**fields)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise TemplateError(
                f"The path {self.filepath!r} cannot be filled in: {error!r}. There are values for {', '.join(fields)}."
            ) from error

    def _try_path(self) -> None:
        """Fills in the path with what the model logs; other callbacks may log more, so that is not refused."""
        names, every = list(self.model.metric_directions), self._counter.every
        after_epochs = [] if every is not None else [*(f"val_{name}" for name in names), "learning_rate"]
        try:
            self.path(0, None if every is None else 0, dict.fromkeys([*names, *after_epochs], 0.0))
        except TemplateError as error:
            if not isinstance(error.__cause__, KeyError) or error.__cause__.args == ("batch",):
                raise
            warnings.warn(f"{error} Unless a callback logs it, nothing can be saved.", stacklevel=2)

    def _consider(self, path: str, logs: Logs, position: tuple[int, int]) -> None:
        """Saves, unless only the best is wanted and this is not; the position is the epoch and step to go on from."""
        prefix = f"Epoch {self._epoch + 1}: "
        if self.save_best_only:
            current = self.current(logs)
            best = "none" if self.best is None else f"{self.best:.5f}"
            if current is not None and not self.improves(current):
                if self.verbose > 0:
                    say(f"{prefix}{self.monitor} did not improve from {best}")
                return
            if current is not None:
                prefix += f"{self.monitor} improved from {best} to {current:.5f}, "
                self.best = current
        if self.verbose > 0:
            say(f"{prefix}saving the model to {path}")
        self._save(path, position)

    def _save(self, path: str, position: tuple[int, int]) -> None:
        state = self.model.state
        if self.save_weights_only:
            checkpoint.save_weights(path, {"params": state.params, **state.model_state})
        else:
            checkpoint.save_state(path, state, dict(zip(("epoch", "step"), position, strict=True)))


class OrbaxCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint into ``directory/<number>``, in the background, of which only some are kept.

    The number is the epoch, from 0, or with an integer `save_freq` the batches so far.  Newest is what was written
    last, so that the checkpoints of an earlier run, whatever their numbers, go first.  A save that fails ends the fit.

    Args:
        directory: Where to.
        monitor: See `ModelCheckpoint`.
        verbose: Alike; 0 by default.
        save_best_only: Alike; but where the log is missing, nothing is saved; False by default.
        mode: Alike; "auto" by default.
        save_freq: Alike; "epoch" by default.
        initial_value_threshold: Alike; none by default.
        max_to_keep: How many of the newest are kept; None for all; 1 by default.
        save_on_background: Whether training goes on while a checkpoint is written; True by default.
        save_weights_only: Alike; False by default.
        keep_every: The numbers whose multiples are kept too; none by default.
        keep_best: Whether the best by `monitor` is kept too; False by default.

    Raises:
        ConfigError: An argument is wrong.
        CheckpointError: In `fit`, on all processes: a checkpoint could not be written.

    Example:
        >>> save = OrbaxCheckpoint("runs/digits", max_to_keep=3, keep_best=True)
        >>> save.path(epoch=7, batch=None, logs={})
        'runs/digits/7'
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        mode: str = "auto",
        save_freq: int | str = "epoch",
        initial_value_threshold: float | None = None,
        max_to_keep: int | None = 1,
        save_on_background: bool = True,
        save_weights_only: bool = False,
        *,
        keep_every: int | None = None,
        keep_best: bool = False,
    ) -> None:
        super().__init__(
            directory, monitor, verbose, save_best_only, save_weights_only, mode, save_freq, initial_value_threshold
        )
        for name, count in (("max_to_keep", max_to_keep), ("keep_every", keep_every)):
            if count is not None and count < 1:
                raise ConfigError(f"{name} must be a positive number or None. Received: {count!r}.")
        self.directory = self.filepath
        self.max_to_keep = max_to_keep
        self.save_on_background = save_on_background
        self.keep_every = keep_every
        self.keep_best = keep_best
        self._series: checkpoint.Series | None = None
        self._value: float | None = None

    def path(self, epoch: int, batch: int | None, logs: Logs) -> str:
        """See `ModelCheckpoint.path`."""
        return os.path.join(self.directory, str(epoch if batch is None else self._counter.total))

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """See `ModelCheckpoint.on_train_begin`."""
        super().on_train_begin(logs)
        self._series = checkpoint.Series(
            self.directory,
            keep=self.max_to_keep,
            every=self.keep_every,
            best=self.direction if self.keep_best else None,
            kind="weights" if self.save_weights_only else "training states",
        )

    def is_save_due(self) -> bool:
        """Never; but that the last save has failed is found out here, by all processes."""
        if self._series is not None:
            self._series.check()
        return False

    def close(self) -> None:
        """Waits for the last save."""
        series, self._series = self._series, None
        if series is not None:
            series.close()

    def _consider(self, path: str, logs: Logs, position: tuple[int, int]) -> None:
        self._value = self.current(logs) if self.save_best_only or self.keep_best else None
        if not self.save_best_only or self._value is not None:
            super()._consider(path, logs, position)

    def _save(self, path: str, position: tuple[int, int]) -> None:
        assert self._series is not None
        trees, meta = trees_of(self.model.state), dict(zip(("epoch", "step"), position, strict=True))
        if self.save_weights_only:
            trees, meta = {"weights": trees["weights"]}, {}
        self._series.save(int(os.path.basename(path)), trees, meta, value=self._value)
        if not self.save_on_background:
            self._series.finish()

"""The base class of callbacks; hooks, order and logs are Keras's."""

from __future__ import annotations

from typing import Any

from kdist.typing import Logs


class Callback:
    """Something that happens at the seams of training: override the hooks you need.

    `fit` calls ``on_train_begin``; for each epoch ``on_epoch_begin(epoch)``, for each execution
    ``on_train_batch_begin(first step)`` and ``on_train_batch_end(last step, logs)``, the test hooks if
    it validates, ``on_epoch_end(epoch, logs)``; then ``on_train_end(logs)``.  Batch logs are running
    means up to that step.  Overriding a batch hook makes ``steps_per_execution="auto"`` run one step
    at a time, and the next starts when the hook has returned, so a hook may change weights or rate.
    On several processes each must have the same callbacks, and what they do to the model be the same.

    A hook gets `epoch`, counted from 0; `batch`, the step of the epoch, counted from 0; and `logs`, values by name:
    floats, or arrays for metrics that are vectors.

    Attributes:
        model: The model (or Trainer) that is being trained; it may be read and changed.
        params: "verbose", "epochs", "steps" (of an epoch) and "rows" (of an epoch).
        async_safe: Set to True in a callback whose batch hooks only look: it then costs no fusing, and
            is called for one execution while the next is running.
        batch_stride: Set to n in a callback whose batch hooks act on every n-th batch only, counted through all
            epochs of a `fit`: steps are fused up to there, and nothing runs while it acts.
        reads_logs: Set to False while batch hooks do without logs: they are computed only if a callback reads them.
        keeps_run: Set to True in a callback that saves the run in `save_run`: when the machine is about to be taken
            away, it is called too, and then the process ends.

    Example:
        >>> import flax.linen as nn, kdist, numpy as np
        >>> class Announce(Callback):
        ...     def on_epoch_end(self, epoch, logs=None):
        ...         print("epoch", epoch, sorted(logs))
        >>> model = kdist.Model(nn.Dense(1))
        >>> model.compile("sgd", "mse")
        >>> _ = model.fit(np.ones((8, 3)), np.zeros((8, 1)), verbose=0, callbacks=Announce())
        epoch 0 ['loss']
    """

    async_safe = False
    batch_stride = 1
    reads_logs = True
    keeps_run = False

    def __init__(self) -> None:
        self.model: Any = None
        self.params: dict[str, Any] = {}

    def set_model(self, model: Any) -> None:
        """Called before the first hook."""
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        """Called before the first hook."""
        self.params = params

    def close(self) -> None:
        """Called last, after an exception too: let go of files, threads and the screen."""

    def state_dict(self) -> dict[str, Any]:
        """What it has to know when the run goes on in another process.

        Dicts and lists of numbers, strings and arrays; what is on the devices stays there until it is written.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; called after `on_train_begin`.

        Args:
            state: What it gave.
        """

    def is_save_due(self) -> bool:
        """Whether `save_run` is to be called; asked after each execution and epoch, and the same on all processes."""
        return False

    def save_run(self, epoch: int, step: int, *, last: bool = False) -> None:
        """Training pauses between two executions, when all other hooks have returned and all results are read.

        Args:
            epoch: The epoch to go on with.
            step: The step of it to go on with.
            last: Whether the process is about to end, so that what is saved must be on the disk on return.
        """

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Training starts."""

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Training ends, with the logs of the last epoch; not called after an exception."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """An epoch, counted from 0, starts."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """An epoch ends; keys added to `logs` are seen by later callbacks and by the history."""

    def on_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """An alias of `on_train_batch_begin`."""

    def on_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """An alias of `on_train_batch_end`."""

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """An execution starts at this step of the epoch."""
        self.on_batch_begin(batch, logs=logs)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """An execution has ended with this step of the epoch."""
        self.on_batch_end(batch, logs=logs)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """An evaluation starts, in `fit` too."""

    def on_test_end(self, logs: Logs | None = None) -> None:
        """An evaluation ends, with its results."""

    def on_test_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """An execution of an evaluation starts at this step."""

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """An execution of an evaluation has ended with this step."""

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        """A prediction starts."""

    def on_predict_end(self, logs: Logs | None = None) -> None:
        """A prediction ends."""

    def on_predict_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """An execution of a prediction starts at this step."""

    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """An execution of a prediction has ended; logs hold its "outputs"."""

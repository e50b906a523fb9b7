"""Profiler: a trace of what the devices and the host do in a few steps of training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax

from kdist.callbacks.base import Callback
from kdist.callbacks.messages import warn
from kdist.distribution import is_main_process
from kdist.errors import ConfigError
from kdist.typing import Logs


class Profiler(Callback):
    """Traces some steps with `jax.profiler`, on process 0, for TensorBoard's or XProf's profile page.

    Whole executions are traced, as they run without a profiler: from the first that begins at step `start` or later,
    to the first of them that ends at step `stop` or later.  With ``steps_per_execution=1`` these are exactly the steps
    ``start .. stop - 1``.

    Args:
        log_dir: Where the trace is written, under ``plugins/profile``.
        steps: ``(start, stop)``, counted from 0 over the epochs of a fit; (10, 20) by default.  Step 0 compiles.

    Raises:
        ConfigError: They are no two such numbers.

    Example:
        >>> profiler = Profiler("runs/digits", steps=(10, 20))
        >>> profiler.steps
        (10, 20)
    """

    async_safe = True
    reads_logs = False

    def __init__(self, log_dir: str | os.PathLike[str], steps: Sequence[int] = (10, 20)) -> None:
        super().__init__()
        if len(steps) != 2 or not all(isinstance(s, int) for s in steps) or not 0 <= steps[0] < steps[1]:
            raise ConfigError(f"steps must be (start, stop) with 0 <= start < stop. Received: {steps!r}.")
        self.log_dir = os.fspath(log_dir)
        self.steps = (steps[0], steps[1])
        self._reset()

    def _reset(self) -> None:
        self._before = self._last = 0
        self._from: int | None = None
        self._done = not is_main_process()

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Steps are counted from here."""
        self._reset()

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Starts the trace, if this is the execution."""
        if not self._done and self._from is None and self._before + batch >= self.steps[0]:
            self._from = self._before + batch
            jax.profiler.start_trace(self.log_dir)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Ends the trace, if this is the execution; its results have been read, so that it is over."""
        self._last = batch
        reached = self._before + batch + 1
        # The execution that ends here may have begun before the trace: it is told of one late.
        if self._from is not None and reached > self._from and reached >= self.steps[1]:
            self._stop()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Steps are counted over epochs."""
        self._before += self._last + 1

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Says so where there was nothing to trace."""
        if not self._done and self._from is None:
            warn(
                f"Profiler traced nothing: no execution began at step {self.steps[0]} or later, of {self._before} "
                "steps. Choose earlier steps, or a smaller steps_per_execution."
            )

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._from is not None:
            self._stop()

    def _stop(self) -> None:
        self._from, self._done = None, True
        jax.profiler.stop_trace()


def profiled_batches(value: Any) -> tuple[int, int] | None:
    """The steps that TensorBoard's `profile_batch` means, as `Profiler` counts them; None for none.

    Args:
        value: A batch, counted from 1, or the first and the last of several, or ``"first,last"``; 0 for none.

    Raises:
        ConfigError: It is none of these.
    """
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (tuple, list)) else [value]
    try:
        batches = [int(part) for part in parts]
    except (TypeError, ValueError):
        batches = []
    if batches == [0] or batches == [0, 0]:
        return None
    if len(batches) not in (1, 2) or not 1 <= batches[0] <= batches[-1]:
        raise ConfigError(f"profile_batch must be a batch, from 1, or (first, last) of them, or 0. Got: {value!r}.")
    return batches[0] - 1, batches[-1]

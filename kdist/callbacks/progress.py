"""Progress for a person: a live bar in a terminal, plain lines elsewhere, nothing on other processes."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from kdist.callbacks.base import Callback
from kdist.distribution import is_main_process
from kdist.typing import Logs

HEARTBEAT_SECONDS = 30.0
"""Where there is no terminal, a line is printed this often inside a long epoch."""
LEAST_INPUT_BOUND = 0.05
"""From this share of its time on it is shown that training waits for data."""


class ProgressBar(Callback):
    """Shows epochs, steps, the time left, samples a second, the share of time that data are waited for, and metrics.

    In a terminal a bar moves while an epoch runs and leaves one line behind.  Elsewhere (a file, a
    pipe, a log of a pod) there is one line an epoch, and a line every half minute inside it.

    Example:
        >>> bar = ProgressBar()
        >>> bar.set_params({"verbose": 2, "epochs": 1, "steps": 5, "rows": 40})
        >>> bar.on_epoch_begin(0)
        >>> bar.on_epoch_end(0, {"loss": 0.5})  # doctest: +ELLIPSIS
        Epoch 1/1  5 steps  ...  loss 0.5000
    """

    async_safe = True

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._task: Any = None
        self._fitting = False
        self._quiet = True
        self._live = False
        self._started = self._last_line = 0.0
        self._clock = (0.0, 0)
        self._compiled = False

    def set_params(self, params: dict[str, Any]) -> None:
        """Decides whether and how to show anything."""
        super().set_params(params)
        verbose = params.get("verbose", 1)
        self._quiet = not is_main_process() or verbose in (0, None, False)
        self._live = verbose in (1, True, "auto") and sys.stdout.isatty()

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """From here to the end, evaluations are part of an epoch."""
        self._fitting = True

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Starts the bar of an epoch."""
        epochs = self.params.get("epochs") or 1
        self._begin(f"Epoch {epoch + 1:>{len(str(epochs))}}/{epochs}")

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Moves the bar."""
        self._update(batch + 1, logs)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Leaves the epoch's line."""
        self._end(logs)

    def on_train_end(self, logs: Logs | None = None) -> None:
        """The last epoch is over."""
        self.close()

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Starts the bar of an evaluation; inside `fit`, only says that it validates."""
        if not self._fitting:
            self._begin("Evaluate")
        elif self._bar is not None:
            self._bar.update(self._task, metrics="validating ...")

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Moves the bar."""
        if not self._fitting:
            self._update(batch + 1, logs)

    def on_test_end(self, logs: Logs | None = None) -> None:
        """Leaves the evaluation's line."""
        if not self._fitting:
            self._end(logs)

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        """Starts the bar of a prediction."""
        self._begin("Predict")

    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Moves the bar."""
        self._update(batch + 1, None)

    def on_predict_end(self, logs: Logs | None = None) -> None:
        """Leaves the prediction's line."""
        self._end(None)

    def close(self) -> None:
        """Takes a live bar off the screen, so that the terminal is whole after an exception too."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._fitting = False

    # Drawing ------------------------------------------------------------------------------------

    def _begin(self, title: str) -> None:
        self._title, self._step, self._updates, self._speed = title, 0, 0, ""
        self._started = self._last_line = time.perf_counter()
        self._clock = (self._started, 0)
        self.reads_logs = self._live and not self._quiet
        if not self.reads_logs:
            return
        if self._bar is None:
            self._bar = _live_bar()
            self._bar.start()
        news = "" if self._compiled else "compiling ..."
        self._task = self._bar.add_task(title, total=self.params.get("steps"), rate="", metrics=news)

    def _update(self, step: int, logs: Logs | None) -> None:
        self._step = step
        self._updates += 1
        if not self._compiled:  # the first execution compiled: the rate is that of those after it
            self._compiled, self._clock = True, (time.perf_counter(), step)
        self._speed = self._rate()
        if self._quiet:
            return
        if self._bar is not None:
            rate = _join(self._speed, self._input_bound())
            self._bar.update(self._task, completed=step, rate=rate, metrics=_format(logs, short=True))
        elif self.reads_logs:
            self._last_line, self.reads_logs = time.perf_counter(), False
            steps = self.params.get("steps")
            done = f"{step}/{steps}" if steps else str(step)
            left = f"{_duration(self._elapsed() / step * (steps - step))} left" if steps else ""
            news = (self._speed, self._input_bound(), left, _format(logs))
            print(_join(self._title, f"{done} steps", *news), flush=True)
        else:  # a line is due: the next update is to come with logs
            self.reads_logs = time.perf_counter() - self._last_line > HEARTBEAT_SECONDS

    def _end(self, logs: Logs | None) -> None:
        if self._quiet:
            return
        steps = self.params.get("steps") or self._step
        news = (_duration(self._elapsed()), self._speed, self._input_bound(), _format(logs))
        line = _join(self._title, f"{steps} steps", *news)
        if self._bar is None:
            print(line, flush=True)
            return
        self._bar.remove_task(self._task)
        self._bar.console.print(_highlight(self._title, line), soft_wrap=True, highlight=False)

    def _elapsed(self) -> float:
        return time.perf_counter() - self._started

    def _input_bound(self) -> str:
        share = getattr(self.model, "input_bound", 0.0) if self._fitting else 0.0
        return f"input-bound {share:.0%}" if share >= LEAST_INPUT_BOUND else ""

    def _rate(self) -> str:
        (since, before), steps = self._clock, self.params.get("steps")
        rows = self.params.get("rows") if steps else None
        if self._updates < 3:  # an update comes an execution late: two are no measure
            since, before = self._started, 0
        done = min(self._step, steps or self._step) - before
        if done <= 0:
            return ""
        rate = done / max(time.perf_counter() - since, 1e-9)
        return f"{rate:,.1f} steps/s" if rows is None else f"{rate * rows / steps:,.0f} samples/s"


ProgbarLogger = ProgressBar


def _live_bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("[cyan]{task.fields[rate]}"),
        TextColumn("{task.fields[metrics]}"),
        transient=True,
    )


def _highlight(title: str, line: str) -> Any:
    from rich.text import Text

    text = Text(line)
    text.stylize("bold", 0, len(title))
    text.highlight_regex(r"\b(?P<name>val_\w+) ", style_prefix="")
    text.highlight_regex(r"val_\S+ \S+", "green")
    return text


def _join(*parts: str) -> str:
    """The parts that are not empty."""
    return "  ".join(part for part in parts if part)


def _format(logs: Logs | None, *, short: bool = False) -> str:
    """The logs as ``name value`` pairs: the loss first, then the rest as they come."""
    items = list((logs or {}).items())
    items.sort(key=lambda item: (item[0].startswith("val_"), not item[0].endswith("loss")))
    return "  ".join(f"{name} {_number(value)}" for name, value in (items[:4] if short else items))


def _number(value: Any) -> str:
    if np.ndim(value):
        return "[" + " ".join(_number(v) for v in value) + "]"
    return f"{value:.4f}" if abs(value) > 1e-3 or value == 0 else f"{value:.2e}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds >= 1 else f"{seconds * 1000:.0f}ms"
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"

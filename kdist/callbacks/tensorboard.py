"""TensorBoard: curves, histograms and images in event files, through tensorboardX."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from kdist.callbacks.base import Callback
from kdist.callbacks.batches import BatchCounter, check_frequency
from kdist.callbacks.pictures import Picture, pictures
from kdist.callbacks.profiler import Profiler, profiled_batches
from kdist.callbacks.variables import named
from kdist.distribution import is_main_process
from kdist.errors import ConfigError
from kdist.typing import Logs


class TensorBoard(Callback):
    """Writes event files for TensorBoard: the runs "train" and "validation" below one directory, from process 0.

    Each epoch ``epoch_<name>`` of all logs, and ``epoch_learning_rate``; after each evaluation
    ``evaluation_<name>_vs_iterations``; with an integer `update_freq` ``batch_<name>``, the running means of the epoch.
    A vector is written as ``<name>/0``, ``<name>/1``, ...  It needs ``pip install 'kdist[tensorboard]'``.

    Args:
        log_dir: Where to; "logs" by default.
        histogram_freq: Every how many epochs weights are written as histograms; 0, the default, for never.
        write_graph: Accepted for Keras's sake; a compiled JAX program is no graph that TensorBoard shows; True by
            default.
        write_images: Whether weights are written as images too, grey from the smallest to the largest; False by
            default.
        write_steps_per_second: Whether the speed is written, by epoch and with the batches; False by default.
        update_freq: "epoch", or every how many batches they are written; "batch" is 1; "epoch" by default.  Executions
            end there.
        profile_batch: A batch, from 1, or the first and last of several, to trace: see `Profiler`; 0 for none.
        embeddings_freq: Only 0, the default.
        embeddings_metadata: Only None, the default.

    Raises:
        ConfigError: An argument is out of its range, or tensorboardX is not installed.

    Example:
        >>> board = TensorBoard("runs/digits", update_freq=100)
        >>> board.update_freq
        100
    """

    async_safe = True

    def __init__(
        self,
        log_dir: str | os.PathLike[str] = "logs",
        histogram_freq: int = 0,
        write_graph: bool = True,
        write_images: bool = False,
        write_steps_per_second: bool = False,
        update_freq: int | str = "epoch",
        profile_batch: Any = 0,
        embeddings_freq: int = 0,
        embeddings_metadata: Any = None,
    ) -> None:
        super().__init__()
        if embeddings_freq or embeddings_metadata is not None:
            raise ConfigError(
                "TensorBoard writes no embeddings: leave embeddings_freq=0 and embeddings_metadata=None, and write "
                "model.params to the projector's files yourself."
            )
        self.log_dir = os.fspath(log_dir)
        self.histogram_freq = histogram_freq
        self.write_graph = write_graph
        self.write_images = write_images
        self.write_steps_per_second = write_steps_per_second
        self.update_freq = 1 if update_freq == "batch" else update_freq
        every = check_frequency("update_freq", self.update_freq)
        self._counter = BatchCounter(every)
        steps = profiled_batches(profile_batch)
        self._profiler = None if steps is None else Profiler(os.path.join(self.log_dir, "train"), steps)
        self.reads_logs = every is not None
        if every is not None:
            self.async_safe, self.batch_stride = False, every  # the curves are of these very batches
        if every is not None or self._profiler is not None:  # else there is nothing to listen to
            vars(self).update(on_train_batch_begin=self._begin_batch, on_train_batch_end=self._end_batch)
        _summary_writer()  # an error now, not after an epoch
        self._writers: dict[str, Any] = {}
        self._clock = self._epoch_clock = (0.0, 0)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Batches are counted from here."""
        self._counter.restart()
        self._clock = (time.perf_counter(), 0)
        if self._profiler is not None:
            self._profiler.on_train_begin()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Starts the clock of the epoch."""
        if self.write_steps_per_second:
            self._epoch_clock = (time.perf_counter(), self._iterations())

    def _begin_batch(self, batch: int, logs: Logs | None = None) -> None:
        self._counter.begin(batch)
        if self._profiler is not None:
            self._profiler.on_train_batch_begin(batch)

    def _end_batch(self, batch: int, logs: Logs | None = None) -> None:
        if self._profiler is not None:
            self._profiler.on_train_batch_end(batch)
        if not self._counter.due(batch):
            return
        values = {f"batch_{name}": value for name, value in (logs or {}).items()}
        if self.write_steps_per_second:
            self._clock, speed = _lap(self._clock, self._counter.total)
            values["batch_steps_per_second"] = speed
        self._write("train", values, self._counter.total)

    def on_test_end(self, logs: Logs | None = None) -> None:
        """Writes the results of an evaluation."""
        if getattr(self.model, "optimizer", None) is not None:
            values = {f"evaluation_{name}_vs_iterations": value for name, value in (logs or {}).items()}
            self._write("validation", values, self._iterations())

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Writes the epoch's logs, and the weights where they are due."""
        logs = logs or {}
        train = {f"epoch_{name}": value for name, value in logs.items() if not name.startswith("val_")}
        train |= {f"epoch_{name}": rate for name, rate in self.model.optimizer.learning_rates().items()}
        if self.write_steps_per_second:
            _, train["epoch_steps_per_second"] = _lap(self._epoch_clock, self._iterations())
        self._write("train", train, epoch)
        validation = {f"epoch_{n.removeprefix('val_')}": v for n, v in logs.items() if n.startswith("val_")}
        self._write("validation", validation, epoch)
        if self.histogram_freq and epoch % self.histogram_freq == 0:
            self._write_weights(epoch)
        if self._profiler is not None:
            self._profiler.on_epoch_end(epoch)

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Says so where there was nothing to trace."""
        if self._profiler is not None:
            self._profiler.on_train_end()

    def close(self) -> None:
        """Closes the event files; those of the next call are new ones."""
        if self._profiler is not None:
            self._profiler.close()
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _iterations(self) -> int:
        """Updates so far; steps where an optax transformation does not count updates."""
        iterations = getattr(self.model.optimizer, "iterations", None)
        return int(self.model.state.step) if iterations is None else iterations

    def _writer(self, run: str) -> Any:
        if run not in self._writers:
            # The name of an event file has whole seconds only: another of the same second would replace it.
            directory = os.path.join(self.log_dir, run)
            suffix = f".{os.getpid()}.{time.monotonic_ns()}"
            self._writers[run] = _summary_writer()(directory, filename_suffix=suffix)
        return self._writers[run]

    def _write(self, run: str, values: Logs, step: int) -> None:
        if not is_main_process():
            return
        for name, value in values.items():
            numbers = {f"{name}/{i}": v for i, v in enumerate(value)} if np.ndim(value) else {name: value}
            for tag, number in numbers.items():
                self._writer(run).add_scalar(tag, float(number), step)

    def _write_weights(self, epoch: int) -> None:
        if not is_main_process():
            return
        writer = self._writer("train")
        for name, array in named(self.model.state).items():
            values = np.asarray(array, np.float32)
            if np.isfinite(values).all():
                writer.add_histogram(f"{name}/histogram", values, epoch)
            if self.write_images and values.size:
                for tag, image in pictures(f"{name}/image", values):
                    writer.file_writer.add_summary(_image_summary(tag, image), epoch)


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError("TensorBoard needs tensorboardX: pip install 'kdist[tensorboard]'.") from error
    return SummaryWriter


def _image_summary(tag: str, image: Picture) -> Any:
    from tensorboardX.proto.summary_pb2 import Summary

    encoded = Summary.Image(height=image.height, width=image.width, colorspace=1, encoded_image_string=image.png)
    return Summary(value=[Summary.Value(tag=tag, image=encoded)])


def _lap(clock: tuple[float, int], steps: int) -> tuple[tuple[float, int], float]:
    """The clock from now on, and the steps a second since it was last read."""
    now = time.perf_counter()
    return (now, steps), (steps - clock[1]) / max(now - clock[0], 1e-9)

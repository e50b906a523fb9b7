"""One pass over the data: what an execution of each kind runs, and what becomes of its results."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from kdist.binding import Binding
from kdist.data import Chunk
from kdist.data.feed import CHUNK_BYTES
from kdist.errors import CheckpointMismatchError
from kdist.execution import NONFINITE, Packed
from kdist.stalls import Stalls
from kdist.state import TrainState
from kdist.typing import Logs, PyTree, Sums


class Run(Protocol):
    """What passes share with callbacks; the Trainer is one."""

    state: TrainState | None
    steps_per_execution: int | str
    stop_training: bool
    stop_evaluating: bool
    stop_predicting: bool


class Pass:
    """One kind of pass over the data.

    Args:
        run: Where callbacks say to stop.
        binding: The programs.
        state: What is evaluated or predicted with; training moves on the run's own.

    Attributes:
        steps: How many steps were dispatched.
    """

    kind: str
    stop_flag: str
    most_steps = 1 << 30
    bad_step: int | None = None
    """The step of the epoch, from 0, that ended the pass since its loss is not finite; all processes read it alike."""

    def __init__(self, run: Run, binding: Binding, state: TrainState) -> None:
        self.binding = binding
        self._run = run
        self._state = state
        self._totals: Packed | None = None
        self._results: Logs | None = None
        self.steps = 0

    @property
    def stopped(self) -> bool:
        """Whether a callback asked to stop."""
        return getattr(self._run, self.stop_flag)

    def run(self, chunk: Chunk, start: int, steps: int) -> Any:
        """Dispatches an execution; does not wait for it."""
        raise NotImplementedError

    def read(self, result: Any) -> None:
        """Waits for the results and takes them in, here as sums.

        They are added up in float64, where the counts of an epoch of any length stay exact.
        """
        self._results = None
        for sums in jax.device_get(result):
            exact = jax.tree.map(lambda a: a.astype(np.float64), sums)
            self._totals = exact if self._totals is None else jax.tree.map(np.add, self._totals, exact)

    def results(self) -> Logs:
        """What has been read so far comes to, in the canonical order."""
        if self._results is None:
            sums = self.sums()
            with np.errstate(invalid="ignore"):  # 0 / 0 where every step was skipped
                self._results = {} if sums is None else self.binding.objective.results(sums)
        return dict(self._results)

    def sums(self) -> Sums | None:
        """What has been read so far, added up: NumPy arrays of float64; None before anything was."""
        return None if self._totals is None else self._totals.sums()

    def logs(self) -> Logs:
        """The results as callbacks get them, in alphabetical order."""
        return alphabetical(self.results())


class EarlierPart(NamedTuple):
    """The part of an epoch that was trained before the run was interrupted.

    Attributes:
        sums: The sums of its losses and metrics, leaf by leaf.
        logs: What they come to.
    """

    sums: list[np.ndarray]
    logs: Logs


class TrainPass(Pass):
    """Training: the run's state moves on.

    Args:
        run: As in `Pass`.
        binding: As in `Pass`.
        state: As in `Pass`.
        stalls: Told of each execution, if it is given.
        before: The part of the epoch that was trained before the run was interrupted, if it was.
    """

    kind = "train"
    stop_flag = "stop_training"

    def __init__(
        self,
        run: Run,
        binding: Binding,
        state: TrainState,
        stalls: Stalls | None = None,
        before: EarlierPart | None = None,
    ) -> None:
        super().__init__(run, binding, state)
        self._stalls = stalls
        self._before = before
        self._over = binding.execution.not_over()

    def run(self, chunk: Chunk, start: int, steps: int) -> Any:
        """See `Pass.run`."""
        assert self._run.state is not None
        parts = []
        with _uninterrupted():  # between a dispatch, which uses the state up, and the new state there is none
            execution = self.binding.execution
            for state, over, sums in execution.train(self._run.state, self._over, chunk.feed, start, steps):
                self._run.state, self._over = state, over
                parts.append(sums)
        if self._stalls is not None:
            self._stalls.dispatched(parts[-1])
        return chunk.first_step + start, steps, parts

    def results(self) -> Logs:
        """See `Pass.results`."""
        return dict(self._before.logs) if self._totals is None and self._before else super().results()

    def sums(self) -> Sums | None:
        """See `Pass.sums`; with those of the part before."""
        sums = super().sums()
        if sums is None or self._before is None:
            return sums
        leaves, structure = jax.tree.flatten(sums)
        if [np.shape(a) for a in leaves] != [np.shape(a) for a in self._before.sums]:
            raise CheckpointMismatchError(
                "The interrupted epoch was trained with other losses, metrics or another `nonfinite`: compile as then, "
                "or go on from the end of an epoch."
            )
        return jax.tree.unflatten(structure, [a + b for a, b in zip(leaves, self._before.sums, strict=True)])

    def part(self) -> EarlierPart | None:
        """What a run needs to know that goes on inside this epoch; None if there is nothing so far."""
        sums = self.sums()
        if sums is None:
            return self._before
        return EarlierPart(jax.tree.leaves(sums), {**self.results(), **self._skipped()})

    def read(self, result: Any) -> None:
        """See `Pass.read`; notes the step that ended training, and does not count what was left out from there."""
        first, steps, parts = result
        before = self._taken_and_bad()
        super().read(parts)
        taken, bad = self._taken_and_bad() - before
        if self.binding.execution.nonfinite in ("raise", "stop"):
            self.steps -= steps - int(taken)
            if bad:
                self.bad_step = first + int(taken)
                self._run.stop_training = True

    def logs(self) -> Logs:
        """See `Pass.logs`; with the steps that were skipped, where some may be."""
        return alphabetical({**self.results(), **self._skipped()})

    def _skipped(self) -> Logs:
        sums = self.sums()
        if sums is None or self.binding.execution.nonfinite != "skip":
            return {}
        return {"skipped_steps": int(sums[NONFINITE][1])}

    def _taken_and_bad(self) -> np.ndarray:
        """How many steps were taken in this pass so far, and how many were bad; 0 and 0 where nobody looks."""
        sums = {} if self._totals is None else self._totals.sums()
        return np.array(sums.get(NONFINITE, (0, 0)))


class TestPass(Pass):
    """Evaluation."""

    kind = "test"
    stop_flag = "stop_evaluating"

    def run(self, chunk: Chunk, start: int, steps: int) -> Any:
        """See `Pass.run`."""
        return self.binding.execution.test(self._state, chunk.feed, start, steps)


class PredictPass(Pass):
    """Prediction: outputs are copied to the host as they come, without the rows that fill batches."""

    kind = "predict"
    stop_flag = "stop_predicting"

    def __init__(self, run: Run, binding: Binding, state: TrainState, width: int, chunk_steps: int) -> None:
        super().__init__(run, binding, state)
        k = run.steps_per_execution
        wanted = k if isinstance(k, int) else max(1, CHUNK_BYTES // (binding.output_bytes * width))
        self.most_steps = min(wanted, chunk_steps)
        self._outputs: list[PyTree] = []

    def run(self, chunk: Chunk, start: int, steps: int) -> Any:
        """See `Pass.run`."""
        parts = self.binding.execution.predict(self._state, chunk.feed, start, steps, self.most_steps)
        return chunk.rows[start : start + steps], parts

    def read(self, result: Any) -> None:
        """Waits for the outputs, and keeps the rows that are of the data."""
        rows, parts = result

        def trim(*leaves: np.ndarray) -> np.ndarray:
            batches = leaves[0] if len(leaves) == 1 else np.concatenate(leaves)
            if (rows[:-1] == rows[0]).all() and rows[-1] <= rows[0]:  # as nearly always: no copy
                real = batches[: len(rows), : rows[0]]
                return real.reshape(-1, *real.shape[2:])[: rows.sum()]
            return batches[: len(rows)][np.arange(batches.shape[1]) < rows[:, None]]

        self._outputs.append(jax.tree.map(trim, *jax.device_get(parts)))

    def logs(self) -> Logs:
        """The outputs of the last execution."""
        return {"outputs": self._outputs[-1]}

    def take(self) -> list[PyTree]:
        """The outputs read since the last call."""
        taken, self._outputs = self._outputs, []
        return taken


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keeps Ctrl-C back until the end of the block."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    arrived: list[tuple[Any, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: arrived.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if arrived:
        handler(*arrived[0])


def alphabetical(logs: Logs) -> Logs:
    """The logs with their names in alphabetical order, as callbacks and histories have them."""
    return dict(sorted(logs.items()))

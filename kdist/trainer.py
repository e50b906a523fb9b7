"""The host loop: dispatch execution n+1, then read the results of execution n."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist import optimizers
from kdist import precision as precisions
from kdist.binding import Binding, bind, misfit_as_data_error
from kdist.callbacks import CallbackList, History
from kdist.data import Chunk, Feeder, Loader, first_rows
from kdist.distribution import DataParallel, agree, check_agreement
from kdist.errors import ConfigError, DataError, NotCompiledError, said_of
from kdist.modules import Variables, adapt
from kdist.objective import Plan
from kdist.passes import Pass, PredictPass, TestPass, TrainPass, alphabetical
from kdist.state import TrainState
from kdist.step import Step
from kdist.typing import Batch, Logs, PyTree, Sums

EXECUTION_SECONDS = 0.25
"""steps_per_execution="auto" fuses this much work, so that a bar moves and a preemption is answered."""

RUNS_ONCE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""How initialisers are compiled on CPU: drawing weights takes a millisecond, optimising that a second."""
TIMED = 3
"""How many executions "auto" waits for to learn how long a step takes."""


class Trainer:
    """Training without the Keras-style facade: a state goes in, and a trained state comes out.

    Args:
        module: A Linen or NNX module, or a pair of pure functions.
        optimizer: An `optax.GradientTransformation`, a kdist optimizer or its name.
        loss: A callable ``(y_true, y_pred)``, a kdist loss or its name; or a structure by output.
        metrics: Metrics, alike.
        loss_weights: See `Model.compile`.
        weighted_metrics: See `Model.compile`.
        distribution: The devices; all of them by default.
        steps_per_execution: K, or "auto".
        precision: None, "float32" or "mixed_bfloat16".
        microbatches: How many parts a shard's rows are worked through in.
        seed: What parameters and dropout are drawn from.
        run_eagerly: Whether to compile nothing, for debugging.

    To train with another step, subclass and override `train_step`.

    Attributes:
        state: The current state, replaced at every execution; callbacks may read and replace it.
        stop_training: Set it in a callback to end training after the current execution.
        stop_evaluating: Alike.
        stop_predicting: Alike.

    Raises:
        ConfigError: An argument is wrong.
    """

    def __init__(
        self,
        module: Any,
        *,
        optimizer: Any,
        loss: Any,
        metrics: Any = (),
        loss_weights: Any = None,
        weighted_metrics: Any = None,
        distribution: DataParallel | None = None,
        steps_per_execution: int | str = "auto",
        precision: Any = None,
        microbatches: int = 1,
        seed: int = 0,
        run_eagerly: bool = False,
    ) -> None:
        self.adapter = adapt(module)
        self.optimizer = None if optimizer is None else optimizers.get(optimizer)
        self.plan = Plan.of(loss, loss_weights, metrics, weighted_metrics)
        if distribution is not None and not isinstance(distribution, DataParallel):
            raise ConfigError(f"distribution must be a kdist.DataParallel or None. Received: {distribution!r}.")
        self.distribution = distribution or DataParallel()
        if steps_per_execution != "auto":
            _check_positive("steps_per_execution", steps_per_execution, "or 'auto'")
        self.steps_per_execution = steps_per_execution
        self.precision = precisions.get(precision)
        self.microbatches = _check_positive("microbatches", microbatches)
        self.seed = seed
        self.run_eagerly = bool(run_eagerly)
        if self.run_eagerly and jax.process_count() > 1:
            raise ConfigError("run_eagerly=True works on one process only. Debug there, or with jax.debug.print.")
        self.state: TrainState | None = None
        self.stop_training = self.stop_evaluating = self.stop_predicting = False
        self._bindings: dict[Any, Binding] = {}
        if self.optimizer is not None:
            self.optimizer.attach(self)

    def train_step(self, step: Step, state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        """One optimizer step: override this to train in another way.

        It is traced into the execution, on global arrays: plain jax.numpy works here, and XLA splits it
        over the devices.

        Args:
            step: kdist's own step; ``step.train(state, batch)`` is what this method does by default.
            state: Before the step.
            batch: The global batch, leaves ``[B, ...]``; rows with ``batch.valid == 0`` only fill it.

        Returns:
            The state after it, and the sums of its losses and metrics, as `Objective.results` takes them.
        """
        return step.train(state, batch)

    # State and programs -------------------------------------------------------------------------

    def init(self, batch: Any) -> TrainState:
        """A fresh state for batches like this one.

        Args:
            batch: A `Batch`, a tuple ``(x, y)`` or inputs alone; arrays with the rows first.

        Returns:
            The state, on the devices.
        """
        tx = None if self.optimizer is None else self.optimizer.tx

        def init(x: PyTree) -> TrainState:
            init_key, key = jax.random.split(jax.random.key(self.seed))
            variables = self.adapter.init(init_key, x)
            opt_state = () if tx is None else tx.init(variables.params)
            return jax.tree.map(_own, TrainState(jnp.int32(0), *variables, opt_state, key))

        x = as_batch(batch).x
        with misfit_as_data_error(x):
            options = RUNS_ONCE if self.distribution.platform == "cpu" else None
            return jax.jit(init, out_shardings=self.distribution.replicated, compiler_options=options)(x)

    def init_opt_state(self, params: PyTree) -> PyTree:
        """The optimizer's state at its start, for these parameters."""
        if self.optimizer is None:
            return ()
        tx = self.optimizer.tx
        init = jax.jit(lambda p: jax.tree.map(_own, tx.init(p)), out_shardings=self.distribution.replicated)
        return init(params)

    def bind(self, state: TrainState, batch: Any) -> Binding:
        """Losses, metrics and programs for batches like this one, made once for each shape.

        Args:
            state: A state of the model.
            batch: As in `init`; only structure, shapes and dtypes matter, and the rows may differ.

        Raises:
            ConfigError: Losses or metrics do not map to the outputs.
            DataError: Targets do not fit the outputs.
        """
        batch = as_batch(batch)
        leaves, structure = jax.tree.flatten((batch.x, batch.y, batch.weight))
        key = (structure, tuple((a.shape[1:], a.dtype) for a in leaves))
        if key not in self._bindings:
            self._bindings[key] = bind(
                self.adapter,
                self.plan,
                None if self.optimizer is None else self.optimizer.tx,
                Variables(state.params, state.model_state),
                batch,
                train_step=self.train_step,
                distribution=self.distribution,
                precision=self.precision,
                microbatches=self.microbatches,
                eagerly=self.run_eagerly,
            )
        return self._bindings[key]

    @property
    def traces(self) -> dict[str, int]:
        """How many programs were compiled so far, by "train", "test" and "predict"."""
        counts = [binding.execution.traces for binding in self._bindings.values()]
        return {kind: sum(c[kind] for c in counts) for kind in ("train", "test", "predict")}

    @property
    def log_names(self) -> list[str] | None:
        """The names of what is logged, in the canonical order; None before targets were seen."""
        objectives = [b.step.objective for b in self._bindings.values() if b.step.objective is not None]
        return list(objectives[-1].log_names) if objectives else None

    def read_opt_state(self) -> PyTree | None:
        """The optimizer state, which the learning rate lives in."""
        return None if self.state is None else self.state.opt_state

    def write_opt_state(self, opt_state: PyTree) -> None:
        """Replaces the optimizer state."""
        assert self.state is not None
        self.state = dataclasses.replace(self.state, opt_state=opt_state)

    # Passes over data ---------------------------------------------------------------------------

    def fit(
        self,
        state: TrainState,
        loader: Loader,
        *,
        epochs: int,
        initial_epoch: int = 0,
        callbacks: Any = (),
        validation: Loader | None = None,
        validation_freq: int | Sequence[int] = 1,
    ) -> tuple[TrainState, History]:
        """Trains.

        Args:
            state: Where to start; its arrays are used up.
            loader: The data.
            epochs: The epoch to stop before, counted from 0.
            initial_epoch: The epoch to start with; the order of the rows is that of this epoch.
            callbacks: Callbacks, or a CallbackList, which is used as it is.
            validation: Data to evaluate after an epoch.
            validation_freq: Every how many epochs, or the epochs, counted from 1.

        Returns:
            The trained state, and the logs.

        Raises:
            NotCompiledError: There is no optimizer or no loss.
            DataError: The data do not fit the model.
        """
        if self.optimizer is None:
            raise NotCompiledError("Training needs an optimizer. Received: optimizer=None.")
        self.state = state
        self.stop_training = False
        with contextlib.ExitStack() as stack:
            binding = self._bind_loader(state, loader)
            if not binding.objective.trainable:
                raise NotCompiledError("Training needs a loss. Received: loss=None.")
            feeder = stack.enter_context(self._feeder(loader, binding, training=True))
            if validation is not None:
                with said_of("validation_data"):
                    validation_binding = self._bind_loader(state, validation)
                validation_feeder = stack.enter_context(self._feeder(validation, validation_binding))
            callbacks = stack.enter_context(self._callbacks(callbacks, loader, epochs=epochs, add_history=True))
            check_agreement(
                **self._vital(loader, callbacks),
                epochs=epochs,
                initial_epoch=initial_epoch,
                validation_rows=0 if validation is None else validation.num_rows,
            )
            stack.callback(self._write_back)

            callbacks.on_train_begin({})
            logs: Logs = {}
            for epoch in range(initial_epoch, epochs):
                callbacks.on_epoch_begin(epoch, {})
                train = TrainPass(self, binding, state)
                self._run(train, feeder.chunks(epoch, then=epoch + 1 if epoch + 1 < epochs else None), callbacks)
                logs = train.logs()
                if validation is not None and _due(epoch, validation_freq):
                    results = self._test(self.state, validation_binding, validation_feeder, callbacks, again=True)
                    logs = {**logs, **{f"val_{name}": value for name, value in alphabetical(results).items()}}
                callbacks.on_epoch_end(epoch, dict(logs))
                if agree(int(self.stop_training)):
                    break
            callbacks.on_train_end(logs)
            return self.state, callbacks.history or History()

    def evaluate(self, state: TrainState, loader: Loader, *, callbacks: Any = ()) -> Logs:
        """Losses and metrics over the data, every row exactly once.

        Args:
            state: The variables to evaluate.
            loader: The data.
            callbacks: Callbacks, or a CallbackList.

        Returns:
            Values by log name, in the canonical order.
        """
        binding = self._bind_loader(state, loader)
        with self._feeder(loader, binding) as feeder, self._callbacks(callbacks, loader) as callbacks:
            check_agreement(**self._vital(loader, callbacks))
            return self._test(state, binding, feeder, callbacks, again=False)

    def predict(self, state: TrainState, loader: Loader, *, callbacks: Any = ()) -> Iterator[PyTree]:
        """The model's outputs for the data, in order, as they are computed.

        Args:
            state: The variables to predict with.
            loader: The data; targets in them are ignored.
            callbacks: Callbacks, or a CallbackList.

        Yields:
            Outputs of consecutive rows: NumPy arrays with the rows first.
        """
        self.stop_predicting = False
        binding = self.bind(state, Batch(loader.read(np.arange(1)).x))
        with self._feeder(loader, binding) as feeder, self._callbacks(callbacks, loader) as callbacks:
            check_agreement(**self._vital(loader, callbacks))
            predict = PredictPass(self, binding, state, loader, feeder.chunk_steps)
            callbacks.on_predict_begin({})
            for _ in self._sweep(predict, feeder.chunks(0), callbacks):
                yield from predict.take()
            yield from predict.take()
            callbacks.on_predict_end({})

    def _test(
        self, state: TrainState, binding: Binding, feeder: Feeder, callbacks: CallbackList, *, again: bool
    ) -> Logs:
        self.stop_evaluating = False
        test = TestPass(self, binding, state)
        callbacks.on_test_begin({})
        self._run(test, feeder.chunks(0, then=0 if again else None), callbacks)
        callbacks.on_test_end(test.logs())
        return test.results()

    def _run(self, pass_: Pass, chunks: Iterator[Chunk], callbacks: CallbackList) -> None:
        for _ in self._sweep(pass_, chunks, callbacks):
            pass

    def _sweep(self, pass_: Pass, chunks: Iterator[Chunk], callbacks: CallbackList) -> Iterator[None]:
        """The loop: dispatches an execution, then reads the results of the one before it.

        At most two are ever under way.  If a callback watches batches, an execution is read before
        the next is dispatched.
        """
        kind = pass_.kind
        watched, listened = callbacks.watches(kind), callbacks.listens(kind)
        waiting: list[tuple[Any, int]] = []

        def finish() -> None:
            result, last = waiting.pop(0)
            pass_.read(result)
            if listened:
                callbacks.call(f"on_{kind}_batch_end", last, pass_.logs())

        for chunk in chunks:
            start = 0
            while start < chunk.num_steps:
                planned = self._plan_steps(pass_, watched)
                steps = min(planned, chunk.num_steps - start)
                first = chunk.first_step + start
                last = first + (steps if self.steps_per_execution == "auto" else planned) - 1
                if listened:
                    callbacks.call(f"on_{kind}_batch_begin", first, {})
                began = time.perf_counter()
                result = pass_.run(chunk, start, steps)
                if self.steps_per_execution == "auto" and pass_.binding.timed[kind] < TIMED and not watched:
                    jax.block_until_ready(result)
                    self._measure(pass_, steps, time.perf_counter() - began)
                start += steps
                waiting.append((result, last))
                if watched or len(waiting) > 1:
                    finish()
                yield
                if self._stops(pass_, watched):
                    break
            else:
                continue
            break
        while waiting:
            finish()

    def _stops(self, pass_: Pass, watched: bool) -> bool:
        """Whether a callback asked to stop here; on several processes, whether process 0's did."""
        if jax.process_count() == 1:
            return pass_.stopped
        return watched and bool(agree(int(pass_.stopped)))

    # steps_per_execution ------------------------------------------------------------------------

    def _plan_steps(self, pass_: Pass, watched: bool) -> int:
        if isinstance(self.steps_per_execution, int):
            return self.steps_per_execution
        return 1 if watched else min(pass_.binding.pace.get(pass_.kind, 1), pass_.most_steps)

    def _measure(self, pass_: Pass, steps: int, seconds: float) -> None:
        """Sets the pace of a kind of step, by its executions after the first, which compiles.

        One step is timed, then as many as that one allows, which corrects what a hiccup has spoiled.
        """
        binding, kind = pass_.binding, pass_.kind
        binding.timed[kind] += 1
        if binding.timed[kind] > 1:
            binding.pace[kind] = agree(max(1, int(EXECUTION_SECONDS * steps / seconds)))

    # Small parts --------------------------------------------------------------------------------

    def _bind_loader(self, state: TrainState, loader: Loader) -> Binding:
        """The binding for a loader's batches, its labels checked where all of them are at hand."""
        batch = first_rows(loader)
        if batch.y is None:
            raise DataError("There are no targets: training and evaluation need y.")
        binding = self.bind(state, batch)
        arrays = getattr(loader, "arrays", None)
        if arrays is not None:
            binding.objective.check_labels(arrays.y)
        return binding

    def _vital(self, loader: Loader, callbacks: CallbackList) -> dict[str, int]:
        """What decides how many executions of how many steps there are."""
        k = self.steps_per_execution
        return {
            "the number of rows": loader.num_rows,
            "batch_size": loader.batch_size,
            "steps_per_execution": k if isinstance(k, int) else 0,
            "the number of callbacks that watch batches": sum(map(callbacks.watches, ("train", "test", "predict"))),
        }

    def _feeder(self, loader: Loader, binding: Binding, *, training: bool = False) -> Feeder:
        """The feeder of a loader.

        Rows that only fill a batch would enter the batch statistics of a model that keeps some, so in
        training its shorter last batch is run at its own shape, where that divides.
        """
        k = self.steps_per_execution
        exact = "possibly" if training and binding.has_state else "never"
        if binding.step.objective is not None and binding.step.objective.exact:
            exact = "always"
        return Feeder(
            loader,
            self.distribution,
            multiple=self.distribution.num_devices * (self.microbatches if training else 1),
            steps_per_execution=k if isinstance(k, int) else 1,
            exact=exact,
        )

    @contextlib.contextmanager
    def _callbacks(
        self, callbacks: Any, loader: Loader, *, epochs: int | None = None, add_history: bool = False
    ) -> Iterator[CallbackList]:
        if not isinstance(callbacks, CallbackList):
            callbacks = CallbackList(callbacks, add_history=add_history, model=self, verbose=0, epochs=epochs)
        callbacks.set_params({**callbacks.params, "steps": loader.num_steps, "rows": loader.num_rows})
        try:
            yield callbacks
        finally:
            callbacks.close()

    def _write_back(self) -> None:
        assert self.state is not None
        variables = Variables(self.state.params, self.state.model_state)
        if not any(a.is_deleted() for a in jax.tree.leaves(variables)):  # as after an error inside a program
            self.adapter.write_back(variables)


def as_batch(batch: Any) -> Batch:
    """A Batch from a Batch, a tuple ``(x,)``, ``(x, y)`` or ``(x, y, weight)``, or inputs alone."""
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        raise DataError(f"A batch cannot be the namedtuple {type(batch).__name__}{batch._fields}: pass a plain tuple.")
    return Batch(*batch) if isinstance(batch, tuple) and len(batch) <= 3 else Batch(batch)


def _due(epoch: int, freq: int | Sequence[int]) -> bool:
    return epoch + 1 in freq if isinstance(freq, Sequence) else (epoch + 1) % freq == 0


def _check_positive(name: str, value: Any, otherwise: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ConfigError(f"{name} must be a positive integer {otherwise}".rstrip() + f". Received: {value!r}.")
    return int(value)


def _own(a: jax.Array) -> jax.Array:
    """The array in a buffer of its own, since each is donated, and not weakly typed, since it is carried."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return a
    return jnp.copy(jax.lax.convert_element_type(a, a.dtype))

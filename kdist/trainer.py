"""Trainer: fits, evaluations and predictions, made of passes over data; callbacks are told, checks come first."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist import checkpoint, compile_cache, optimizers
from kdist import precision as precisions
from kdist.binding import Binding, bind, misfit_as_data_error
from kdist.callbacks import CallbackList, History
from kdist.data import (
    AnyLoader,
    BatchLoader,
    Chunk,
    ChunkFeeder,
    Feeder,
    Loader,
    StreamFeeder,
    check_same_data,
    described,
    example_batch,
    fingerprint,
)
from kdist.distribution import Alarm, DataParallel, agree, agree_on_least, check_agreement
from kdist.errors import ConfigError, DataError, NotCompiledError, said_of
from kdist.footprint import Footprint, footprint
from kdist.loop import end_if_nonfinite, hint_if_late, sweep, warn_if_short, warn_of_the_end
from kdist.metrics import Metric
from kdist.modules import Variables, adapt
from kdist.objective import Objective, Plan
from kdist.passes import Pass, PredictPass, TestPass, TrainPass, alphabetical
from kdist.pauses import Pauses, Position, Reach
from kdist.stalls import Stalls
from kdist.state import TrainState, shardings
from kdist.step import Step
from kdist.typing import Batch, Logs, PyTree, Sums
from kdist.watchdog import Watchdog

log = logging.getLogger(__name__)

RUNS_ONCE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""How initialisers are compiled on CPU: drawing weights takes a millisecond, optimising that a second."""


MEMORY_SHARE = 0.9
"""microbatches="auto" fills so much of a device's memory: the runtime needs some, and memory is never without gaps."""

Drive = Callable[[Iterator[Callable[[], None]]], None]
"""Runs executions to their end."""


def exhaust(executions: Iterator[Any]) -> None:
    """Runs executions one after the other."""
    collections.deque(executions, maxlen=0)


class Trainer:
    """Training without the Keras-style facade: a state goes in, and a trained state comes out.

    Args:
        module: A Linen or NNX module, or a pair of pure functions.
        optimizer: An `optax.GradientTransformation`, a kdist optimizer or its name.
        loss: A callable ``(y_true, y_pred)``, a kdist loss or its name; or a structure by output.
        metrics: Metrics, alike; none by default.
        loss_weights: See `Model.compile`.
        weighted_metrics: See `Model.compile`.
        distribution: The devices; all of them by default.
        steps_per_execution: K, or "auto", the default.
        precision: None, the default, "float32", "mixed_bfloat16" or "mixed_float16".
        microbatches: How many parts a shard's rows are worked through in; 1 by default.  "auto": the fewest, a power of
            two, with which the batch fits in the memory of a device.
        seed: What parameters and dropout are drawn from; 0 by default.
        run_eagerly: Whether to compile nothing, for debugging; False by default.
        auto_scale_loss: Whether "mixed_float16" gets a loss scale that adapts itself; True by default.
        sample_weight_mode: See `Model.compile`.
        nonfinite: See `Model.compile`.

    To train with another step, subclass and override `train_step`.

    Attributes:
        state: The current state, replaced at every execution; callbacks may read and replace it.
        stop_training: Set it in a callback to end training after the current execution.
        stop_evaluating: Alike.
        stop_predicting: Alike.
        last_results: Losses and metrics of the last pass, by log name.
        config: What the run is made of, for its checkpoints: set it to a dict; by default they name what was compiled.

    Raises:
        ConfigError: An argument is wrong.

    Example:
        >>> import flax.linen as nn, kdist, numpy as np, optax
        >>> trainer = kdist.Trainer(nn.Dense(1), optimizer=optax.sgd(0.1), loss="mse")
        >>> loader = kdist.data.from_arrays(np.ones((8, 3)), np.zeros((8, 1)), batch_size=4)
        >>> state = trainer.init(loader.arrays)
        >>> state, history = trainer.fit(state, loader, epochs=2)
        >>> int(state.step), history.epoch
        (4, [0, 1])
        >>> list(trainer.evaluate(state, loader)), sum(len(part) for part in trainer.predict(state, loader))
        (['loss'], 8)
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
        microbatches: int | str = 1,
        seed: int = 0,
        run_eagerly: bool = False,
        auto_scale_loss: bool = True,
        sample_weight_mode: Any = None,
        nonfinite: str | None = None,
    ) -> None:
        self.adapter = adapt(module)
        self.precision = precisions.get(precision)
        self.optimizer = None if optimizer is None else optimizers.get(optimizer)
        scaled = isinstance(self.optimizer, optimizers.LossScaleOptimizer)
        if self.optimizer is not None and auto_scale_loss and self.precision.name == "mixed_float16" and not scaled:
            self.optimizer = optimizers.LossScaleOptimizer(self.optimizer)
        self.plan = Plan.of(loss, loss_weights, metrics, weighted_metrics, sample_weight_mode)
        if distribution is not None and not isinstance(distribution, DataParallel):
            raise ConfigError(f"distribution must be a kdist.DataParallel or None. Received: {distribution!r}.")
        distribution = distribution or DataParallel()
        # Operation by operation, what is split would be gathered over and over.
        self.distribution = dataclasses.replace(distribution, zero_stage=0) if run_eagerly else distribution
        if steps_per_execution != "auto":
            _check_positive("steps_per_execution", steps_per_execution, "or 'auto'")
        self.steps_per_execution = steps_per_execution
        self._chooses_microbatches = microbatches == "auto" and not run_eagerly
        self.microbatches = 1 if microbatches == "auto" else _check_positive("microbatches", microbatches, "or 'auto'")
        self.seed = seed
        self.run_eagerly = bool(run_eagerly)
        if self.run_eagerly and jax.process_count() > 1:
            raise ConfigError("run_eagerly=True works on one process only. Debug there, or with jax.debug.print.")
        if nonfinite not in (None, "raise", "skip", "stop"):
            raise ConfigError(f"nonfinite must be None, 'raise', 'skip' or 'stop'. Received: {nonfinite!r}.")
        self.nonfinite = nonfinite
        self.config: dict[str, Any] | None = None
        self.state: TrainState | None = None
        self.stop_training = self.stop_evaluating = self.stop_predicting = False
        self._bindings: dict[Any, Binding] = {}
        self._start: Position | None = None
        self._resumed: dict[str, Any] | None = None
        self._position = Position(0)
        self._watchdog, self._alarm = Watchdog(), Alarm()
        self._callback_list: CallbackList | None = None
        self._stalls: Stalls | None = None
        self.last_results: Logs = {}
        self._fitted: AnyLoader | None = None
        self._fingerprint: dict[str, Any] = {}
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

        Example:
            >>> import dataclasses, flax.linen as nn, jax, kdist, numpy as np
            >>> class Mixup(kdist.Trainer):
            ...     def train_step(self, step, state, batch):
            ...         other = jax.random.permutation(jax.random.fold_in(state.key, state.step), batch.x.shape[0])
            ...         x, y = (0.7 * a + 0.3 * a[other] for a in (batch.x, batch.y))
            ...         return step.train(state, dataclasses.replace(batch, x=x, y=y))
            >>> trainer = Mixup(nn.Dense(1), optimizer="sgd", loss="mse")
            >>> loader = kdist.data.from_arrays(np.ones((8, 3)), np.zeros((8, 1)), batch_size=4)
            >>> state, history = trainer.fit(trainer.init(loader.arrays), loader, epochs=1)
            >>> int(state.step)
            2
        """
        return step.train(state, batch)

    # State and programs -------------------------------------------------------------------------

    def init(self, batch: Any) -> TrainState:
        """A fresh state for batches like this one.

        Args:
            batch: A `Batch`, a tuple ``(x, y)`` or inputs alone; arrays with the rows first.

        Returns:
            The state, on the devices.

        Raises:
            DataError: The module cannot take these inputs.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse")
            >>> state = trainer.init((np.ones((4, 3)), np.zeros((4, 1))))
            >>> int(state.step), state.params["kernel"].shape
            (0, (3, 1))
        """
        compile_cache.enable()
        x = as_batch(batch).x
        with misfit_as_data_error(x):
            options = RUNS_ONCE if self.distribution.platform == "cpu" else None
            places = shardings(jax.eval_shape(self._fresh_state, x), self.distribution)
            return jax.jit(self._fresh_state, out_shardings=places, compiler_options=options)(x)

    def shapes(self, batch: Any) -> TrainState:
        """What `init` would give: a `jax.ShapeDtypeStruct` with a sharding in place of each array.

        Nothing is computed, and the devices need not be there, so that programs can be compiled for others.

        Args:
            batch: As in `init`, or the shapes of arrays.

        Raises:
            DataError: The module cannot take these inputs.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse")
            >>> trainer.shapes(jax.ShapeDtypeStruct((4, 3), np.float32)).params["kernel"].shape
            (3, 1)
        """
        x = as_batch(batch).x
        with misfit_as_data_error(x):
            state = jax.eval_shape(self._fresh_state, x)
        places = shardings(state, self.distribution)
        return jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), state, places)

    def _fresh_state(self, x: PyTree) -> TrainState:
        init_key, key = jax.random.split(jax.random.key(self.seed))
        variables = self.adapter.init(init_key, x)
        opt_state = () if self.optimizer is None else self.optimizer.tx.init(variables.params)
        return jax.tree.map(_own, TrainState(jnp.int32(0), *variables, opt_state, key))

    def init_opt_state(self, params: PyTree) -> PyTree:
        """The optimizer's state at its start, for these parameters.

        Args:
            params: The parameters, a tree of arrays as in ``state.params``.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse")
            >>> state = trainer.init(np.ones((4, 3)))
            >>> fresh = trainer.init_opt_state(state.params)
            >>> jax.tree.structure(fresh) == jax.tree.structure(state.opt_state)
            True
        """
        if self.optimizer is None:
            return ()
        tx = self.optimizer.tx

        def init(params: PyTree) -> PyTree:
            return jax.tree.map(_own, tx.init(params))

        places = jax.tree.map(lambda a: self.distribution.opt_sharding(a.shape), jax.eval_shape(init, params))
        return jax.jit(init, out_shardings=places)(params)

    def bind(self, state: TrainState, batch: Any) -> Binding:
        """Losses, metrics and programs for batches like this one, made once for each shape.

        Args:
            state: A state of the model.
            batch: As in `init`; only structure, shapes and dtypes matter, and the rows may differ.

        Raises:
            ConfigError: Losses or metrics do not map to the outputs.
            DataError: Targets do not fit the outputs.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse")
            >>> batch = (np.ones((4, 3)), np.zeros((4, 1)))
            >>> trainer.bind(trainer.init(batch), batch).objective.log_names, trainer.log_names
            (('loss',), ['loss'])
        """
        compile_cache.enable()
        batch = as_batch(batch)
        leaves, structure = jax.tree.flatten((batch.x, batch.y, batch.weight))
        key = (structure, tuple((a.shape[1:], a.dtype) for a in leaves), self.microbatches)
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
                steps_per_execution=self.steps_per_execution,
                eagerly=self.run_eagerly,
                nonfinite=self.nonfinite,
            )
        return self._bindings[key]

    def choose_microbatches(self, state: TrainState, batch: Any) -> Footprint | None:
        """With ``microbatches="auto"``, sets the fewest with which the batch fits; once they are chosen, they stay.

        Programs are compiled for it, and not run.  All processes choose the same.

        Args:
            state: A state of the model, or its shapes.
            batch: A global batch, arrays or shapes.

        Returns:
            What a step needs with so many; None if nothing was compiled, since they were chosen or given, or the
            memory of the devices is not known.

        Raises:
            ConfigError: Not even one row at a time fits.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse", microbatches="auto")
            >>> batch = (np.ones((4, 3)), np.zeros((4, 1)))
            >>> found = trainer.choose_microbatches(trainer.init(batch), batch)
            >>> trainer.microbatches
            1
        """
        memory = self.distribution.memory_bytes
        if not self._chooses_microbatches or memory is None:  # a CPU has what the machine has
            return None
        batch = as_batch(batch)
        shard = -(-jax.tree.leaves(batch.x)[0].shape[0] // self.distribution.num_devices)
        needed = []
        for parts in [2**n for n in range(shard.bit_length())]:
            self.microbatches = parts
            found = footprint(self.bind(state, batch).execution, state, batch, self.distribution, parts)
            needed.append(found.bytes)
            fits = bool(found.text) and found.bytes <= MEMORY_SHARE * memory
            if agree_on_least(int(fits)):
                self._chooses_microbatches = False
                log.info("microbatches: %d, which need %.2f GiB a device", parts, found.bytes / 2**30)
                return found
        raise ConfigError(
            f"microbatches='auto': a step needs {' then '.join(f'{n / 2**30:.2f}' for n in needed)} GiB a device in "
            f"1, 2, 4, ... parts, and {MEMORY_SHARE:.0%} of {memory / 2**30:.2f} GiB are there. Split the state "
            "(DataParallel(zero_stage=1), or 3), use jax.checkpoint in the model, a smaller batch or more devices."
        )

    @property
    def traces(self) -> dict[str, int]:
        """How many programs were compiled so far, by "train", "test" and "predict"."""
        counts = [binding.execution.traces for binding in self._bindings.values()]
        return {kind: sum(c[kind] for c in counts) for kind in ("train", "test", "predict")}

    @property
    def data_fingerprint(self) -> dict[str, Any]:
        """What decides which rows the `fit` under way sees when; see `kdist.data.fingerprint`. Empty between fits."""
        if self._fitted is not None and not self._fingerprint:
            self._fingerprint = fingerprint(self._fitted, described(example_batch(self._fitted)))
        return self._fingerprint

    def _forget_data(self) -> None:
        self._fitted, self._fingerprint = None, {}

    @property
    def input_bound(self) -> float:
        """The share of the epoch's training, so far, in which the devices waited for data: 0 to 1.

        Rows that are kept on the devices are not waited for.  Each process measures its own.
        """
        return 0.0 if self._stalls is None else self._stalls.share

    @property
    def log_names(self) -> list[str] | None:
        """The names of what is logged, in the canonical order; None before targets were seen."""
        objective = self._last_objective
        return None if objective is None else list(objective.log_names)

    @property
    def metric_directions(self) -> dict[str, str | None]:
        """By log name: "down" if less is better, "up" if more, None if nobody knows; empty before the first batch."""
        objective = self._last_objective
        return {} if objective is None else objective.directions

    @property
    def metrics(self) -> list[Metric]:
        """The metrics of all outputs, in the order of their log names; empty before targets were seen."""
        return [] if self._last_objective is None else self._last_objective.metrics

    @property
    def _last_objective(self) -> Objective | None:
        objectives = [b.step.objective for b in list(self._bindings.values()) if b.step.objective is not None]
        return objectives[-1] if objectives else None

    def start_at(self, epoch: int, step: int = 0) -> None:
        """Makes the run begin there: to be called by a callback in `on_train_begin`, and good for one `fit`.

        Args:
            epoch: The epoch, counted from 0.
            step: The step of this epoch; 0 by default.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse")
            >>> loader = kdist.data.from_arrays(np.ones((8, 3)), np.zeros((8, 1)), batch_size=4)
            >>> state = trainer.init(loader.arrays)
            >>> class Skip(kdist.callbacks.Callback):
            ...     def on_train_begin(self, logs=None):
            ...         self.model.start_at(epoch=2, step=1)
            >>> state, history = trainer.fit(state, loader, epochs=3, callbacks=Skip())
            >>> history.epoch, int(state.step)
            ([2], 1)
        """
        self._start = Position(epoch, step)

    def progress(self) -> dict[str, Any]:
        """What, besides the state, a run has to know to go on from where it is, for a checkpoint; see `go_on`.

        It is of the last pause: call it in `Callback.save_run`, or when `fit` has returned.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse")
            >>> loader = kdist.data.from_arrays(np.ones((8, 3)), np.zeros((8, 1)), batch_size=4)
            >>> state, _ = trainer.fit(trainer.init(loader.arrays), loader, epochs=3)
            >>> trainer.progress()["position"]["epoch"]
            3
        """
        callbacks = [] if self._callback_list is None else self._callback_list.state_dict()
        return {
            "position": self._position.to_note(),
            "callbacks": callbacks,
            "data": self.data_fingerprint,
            "mesh": self._described_mesh(),
            "config": checkpoint.plain(self._compiled_with() if self.config is None else self.config),
        }

    def _described_mesh(self) -> dict[str, Any]:
        mesh = self.distribution.mesh
        return {
            "platform": self.distribution.platform,
            "processes": jax.process_count(),
            "devices": mesh.size,
            "replicas": mesh.shape["replica"],
            "zero_stage": self.distribution.zero_stage,
        }

    def _compiled_with(self) -> dict[str, Any]:
        names = ("optimizer", "precision", "steps_per_execution", "microbatches", "nonfinite", "seed")
        plan = self.plan
        return {
            "loss": plan.loss,
            "loss_weights": plan.loss_weights,
            "metrics": plan.metrics,
            "weighted_metrics": plan.weighted_metrics,
            **{name: getattr(self, name) for name in names},
        }

    def go_on(self, progress: dict[str, Any]) -> None:
        """Makes the next `fit`, or the one that is about to begin, go on from there.

        Args:
            progress: What `progress` gave.

        Raises:
            CheckpointError: It is something else.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse")
            >>> loader = kdist.data.from_arrays(np.ones((8, 3)), np.zeros((8, 1)), batch_size=4)
            >>> state, _ = trainer.fit(trainer.init(loader.arrays), loader, epochs=2)
            >>> trainer.go_on(trainer.progress())
            >>> trainer.fit(state, loader, epochs=3)[1].epoch
            [2]
        """
        self._start = Position.from_note(progress.get("position", {}))
        self._resumed = progress

    def read_opt_state(self) -> PyTree | None:
        """The optimizer state, which the learning rate lives in.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse")
            >>> loader = kdist.data.from_arrays(np.ones((8, 3)), np.zeros((8, 1)), batch_size=4)
            >>> state = trainer.init(loader.arrays)
            >>> trainer.read_opt_state() is None  # before a state was trained
            True
            >>> state, _ = trainer.fit(state, loader, epochs=1)
            >>> trainer.read_opt_state() is state.opt_state
            True
        """
        return None if self.state is None else self.state.opt_state

    def write_opt_state(self, opt_state: PyTree) -> None:
        """Replaces the optimizer state.

        Args:
            opt_state: A state of the same tree, shapes and dtypes, on the devices.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse")
            >>> loader = kdist.data.from_arrays(np.ones((8, 3)), np.zeros((8, 1)), batch_size=4)
            >>> state = trainer.init(loader.arrays)
            >>> state, _ = trainer.fit(state, loader, epochs=1)
            >>> trainer.write_opt_state(trainer.init_opt_state(state.params))  # forget the moments
            >>> trainer.optimizer.iterations
            0
        """
        assert self.state is not None
        self.state = dataclasses.replace(self.state, opt_state=opt_state)

    # Passes over data ---------------------------------------------------------------------------

    def fit(
        self,
        state: TrainState,
        loader: AnyLoader,
        *,
        epochs: int,
        initial_epoch: int = 0,
        callbacks: Any = (),
        validation: AnyLoader | None = None,
        validation_freq: int | Sequence[int] = 1,
    ) -> tuple[TrainState, History]:
        """Trains.

        Args:
            state: Where to start; its arrays are used up.
            loader: The data.
            epochs: The epoch to stop before, counted from 0.
            initial_epoch: The epoch to start with; the order of the rows is that of this epoch; 0 by default.
            callbacks: Callbacks, or a CallbackList, which is used as it is; none by default.
            validation: Data to evaluate after an epoch; none by default.
            validation_freq: Every how many epochs, or the epochs, counted from 1; 1 by default.

        Returns:
            The trained state, and the logs.

        Raises:
            NotCompiledError: There is no optimizer.
            DataError: The data do not fit the model.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse")
            >>> loader = kdist.data.from_arrays(np.ones((8, 3)), np.zeros((8, 1)), batch_size=4)
            >>> state = trainer.init(loader.arrays)
            >>> state, history = trainer.fit(state, loader, epochs=2, validation=loader)
            >>> int(state.step), sorted(history.history)
            (4, ['loss', 'val_loss'])
        """
        self.state = state
        self.stop_training = False
        validation = None if validation is None else _in_order(validation)
        with contextlib.ExitStack() as stack:
            # Outermost: callbacks wait for what they save, and an alarm would not wait so long.
            callbacks = stack.enter_context(self._callbacks(callbacks, loader, epochs=epochs, add_history=True))
            stack.enter_context(self._guarded())
            pauses = stack.enter_context(Pauses(callbacks, self._watchdog))
            binding = self._bind_for_training(state, loader)
            feeder = self._feeder(state, loader, binding, training=True)
            stack.enter_context(feeder)
            if validation is not None:
                with said_of("validation_data"):
                    validation_binding = self._bind_loader(state, validation, "validation_data")
                validation_feeder = stack.enter_context(self._feeder(state, validation, validation_binding))
            check_agreement(
                **self._vital(callbacks),
                epochs=epochs,
                initial_epoch=initial_epoch,
            )
            stack.callback(self._write_back)

            log.info("data: %s", feeder)
            self._fitted = loader
            stack.callback(self._forget_data)
            if any(callback.keeps_run for callback in callbacks.callbacks):
                _ = self.data_fingerprint  # some rows are read for it: now, and not beside the thread that reads them
            self._stalls = stalls = stack.enter_context(Stalls())
            self._callback_list = callbacks
            stack.callback(setattr, self, "_callback_list", None)
            callbacks.on_train_begin({})
            logs: Logs = {}
            here = self._take_start(initial_epoch, loader, callbacks)
            while here.epoch < epochs and not here.stopped:
                epoch = here.epoch
                stalls.begin()
                then = epoch + 1 if epoch + 1 < epochs else None
                chunks = feeder.chunks(epoch, start=here.step, then=then, wait=pauses.together)
                chunks = pauses.waits(chunks if feeder.resident else stalls.watch(chunks))
                train = TrainPass(self, binding, state, stalls, here.part)
                reach = functools.partial(self._reach, here, train)
                drive = functools.partial(pauses.drive, reach=reach)
                head = pauses.head(chunks, reach)
                if head is None and here.part is None:
                    warn_of_the_end(loader, f"there is nothing for epoch {epoch + 1}, and training ends")
                    break
                callbacks.on_epoch_begin(epoch, {})
                chunks = chunks if head is None else itertools.chain([head], chunks)
                self._run(train, chunks, callbacks, drive, seen=here.seen)
                end_if_nonfinite(train, f"Epoch {epoch + 1}")
                stalls.end()
                if not self.stop_training:
                    warn_if_short(loader, here.step + train.steps, f"Epoch {epoch + 1}")
                logs = train.logs()
                if validation is not None and _due(epoch, validation_freq):
                    results = self._validate(
                        validation, validation_binding, validation_feeder, callbacks, pauses, reach
                    )
                    logs = {**logs, **{f"val_{name}": value for name, value in alphabetical(results).items()}}
                callbacks.on_epoch_end(epoch, dict(logs))
                if callbacks.params.get("verbose"):
                    hint_if_late(loader, stalls)
                stopped = bool(agree(int(self.stop_training)))
                here = self._position = Position(epoch + 1, 0, here.seen + train.steps, stopped=stopped)
                pauses.at(lambda: self._position)
            if epochs > 0:
                self._adopt_average()
            callbacks.on_train_end(logs)
            if callbacks.params.get("verbose"):
                compile_cache.tell()
            return self.state, callbacks.history or History()

    def train_on_batch(self, state: TrainState, loader: Loader) -> tuple[TrainState, Logs]:
        """One optimizer step on the first batch, without callbacks.

        Args:
            state: Where to start; its arrays are used up.
            loader: The data, of which the first batch is taken.

        Returns:
            The state after the step, and the losses and metrics of the batch before it, in the canonical order.

        Raises:
            NotCompiledError: There is no optimizer.
            DataError: The data do not fit the model.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse")
            >>> loader = kdist.data.from_arrays(np.ones((8, 3)), np.zeros((8, 1)), batch_size=8)
            >>> state = trainer.init(loader.arrays)
            >>> state, results = trainer.train_on_batch(state, loader)
            >>> int(state.step), list(results)
            (1, ['loss'])
        """
        self.state = state
        binding = self._bind_for_training(state, loader)
        with self._feeder(state, loader, binding, training=True) as feeder:
            check_agreement(**self._vital(CallbackList()))
            train = TrainPass(self, binding, state)
            chunk = next(feeder.chunks(0))
            self._run(train, iter([chunk._replace(rows=chunk.rows[:1])]), CallbackList())
            self._write_back()
            end_if_nonfinite(train, "train_on_batch")
            return self.state, train.results()

    def evaluate(self, state: TrainState, loader: AnyLoader, *, callbacks: Any = ()) -> Logs:
        """Losses and metrics over the data, every row exactly once.

        Args:
            state: The variables to evaluate.
            loader: The data.
            callbacks: Callbacks, or a CallbackList; none by default.

        Returns:
            Values by log name, in the canonical order.

        Raises:
            DataError: There are no targets, or the data do not fit the model.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> trainer = kdist.Trainer(nn.Dense(1, kernel_init=nn.initializers.ones), optimizer=None, loss="mse")
            >>> loader = kdist.data.from_arrays(np.ones((8, 3)), np.zeros((8, 1)), batch_size=4)
            >>> trainer.evaluate(trainer.init(loader.arrays), loader)
            {'loss': 9.0}
        """
        loader = _in_order(loader)
        with self._callbacks(callbacks, loader) as callbacks, contextlib.ExitStack() as stack:
            stack.enter_context(self._guarded())
            binding = self._bind_loader(state, loader)
            feeder = stack.enter_context(self._feeder(state, loader, binding))
            check_agreement(**self._vital(callbacks))
            test = self._test(state, binding, feeder.chunks(0), callbacks)
            if not self.stop_evaluating:
                warn_if_short(loader, test.steps, "The evaluation")
            return test.results()

    def predict(self, state: TrainState, loader: AnyLoader, *, callbacks: Any = ()) -> Iterator[PyTree]:
        """The model's outputs for the data, in order, as they are computed.

        Args:
            state: The variables to predict with.
            loader: The data; targets in them are ignored.
            callbacks: Callbacks, or a CallbackList; none by default.

        Yields:
            Outputs of consecutive rows: NumPy arrays with the rows first.

        Raises:
            DataError: The data do not fit the model, or processes hold rows of their own.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse")
            >>> loader = kdist.data.from_arrays(np.ones((8, 3)), np.zeros((8, 1)), batch_size=4)
            >>> state = trainer.init(loader.arrays)
            >>> np.concatenate(list(trainer.predict(state, loader))).shape
            (8, 1)
        """
        self.stop_predicting = False
        loader = _in_order(loader)
        if getattr(loader, "per_process", False) and jax.process_count() > 1:
            raise DataError("predict gives every process all rows in order, and with per_process=True nobody has all.")
        binding = self.bind(state, Batch(self._example(loader).x))
        with self._feeder(state, loader, binding) as feeder, self._callbacks(callbacks, loader) as callbacks:
            check_agreement(**self._vital(callbacks))
            with self._lent(state):
                callbacks.on_predict_begin({})  # it may put other variables in
                assert self.state is not None
                predict = PredictPass(self, binding, self.state, feeder.width, feeder.chunk_steps)
                for _ in sweep(predict, feeder.chunks(0), callbacks):
                    yield from predict.take()
                yield from predict.take()
                if not self.stop_predicting:
                    warn_if_short(loader, predict.steps, "The prediction")
                callbacks.on_predict_end({})

    def _validate(
        self,
        validation: AnyLoader,
        binding: Binding,
        feeder: ChunkFeeder,
        callbacks: CallbackList,
        pauses: Pauses,
        reach: Reach,
    ) -> Logs:
        """The results of the validation data; none if they are exhausted."""
        assert self.state is not None
        chunks = pauses.waits(feeder.chunks(0, then=0, wait=pauses.together))
        head = pauses.head(chunks, reach)
        if head is None:
            warn_of_the_end(validation, "there is nothing left to validate with")
            return {}
        drive = functools.partial(pauses.drive, reach=reach)
        test = self._test(self.state, binding, itertools.chain([head], chunks), callbacks, drive)
        if not self.stop_evaluating:
            warn_if_short(validation, test.steps, "The validation")
        return test.results()

    def _test(
        self,
        state: TrainState,
        binding: Binding,
        chunks: Iterator[Chunk],
        callbacks: CallbackList,
        drive: Drive = exhaust,
    ) -> TestPass:
        self.stop_evaluating = False
        with self._lent(state):
            callbacks.on_test_begin({})  # it may put other variables in
            assert self.state is not None
            test = TestPass(self, binding, self.state)
            self._run(test, chunks, callbacks, drive if self.state is state else exhaust)
            callbacks.on_test_end(test.logs())
        return test

    @contextlib.contextmanager
    def _lent(self, state: TrainState) -> Iterator[None]:
        """Makes a state the one that callbacks see; a run's own comes back if it is another."""
        own, self.state = self.state, state
        try:
            yield
        finally:
            if own is not state and own is not None:
                self.state = own

    def _run(
        self, pass_: Pass, chunks: Iterator[Chunk], callbacks: CallbackList, drive: Drive = exhaust, *, seen: int = 0
    ) -> None:
        """Runs a pass; what drives its executions may pause between them."""
        drive(self._watched(sweep(pass_, chunks, callbacks, seen=seen), pass_))
        self.last_results = pass_.results()

    # Small parts --------------------------------------------------------------------------------

    def _bind_loader(self, state: TrainState, loader: AnyLoader, name: str = "the data") -> Binding:
        """The binding for a loader's batches, its labels checked where all of them are at hand."""
        batch = self._example(loader, name)
        binding = None if batch.y is None and self.plan.needs_targets else self.bind(state, batch)
        if binding is None or binding.step.objective is None:
            raise DataError("There are no targets: training and evaluation need y.")
        arrays = getattr(loader, "arrays", None)
        if arrays is not None:
            binding.objective.check_labels(arrays.y)
        return binding

    @staticmethod
    def _example(loader: AnyLoader, name: str = "the data") -> Batch:
        """A batch of the loader, once all processes have data that are alike."""
        batch = example_batch(loader)
        if jax.process_count() == 1:
            return batch
        alike: dict[str, int | str] = {
            f"the number of rows of {name}": 0 if isinstance(loader, BatchLoader) else loader.num_rows,
            f"batch_size of {name}": loader.batch_size,
            f"the number of steps of {name}": loader.num_steps or 0,
            f"the seed of {name}": getattr(loader, "seed", 0),
            f"a row of {name}": described(batch),
        }
        check_agreement(**alike)
        return batch

    def _bind_for_training(self, state: TrainState, loader: AnyLoader) -> Binding:
        if self.optimizer is None:
            raise NotCompiledError("Training needs an optimizer. Received: optimizer=None.")
        binding = self._bind_loader(state, loader)
        if self._chooses_microbatches:
            self.choose_microbatches(state, example_batch(loader))
            binding = self._bind_loader(state, loader)
        if not binding.objective.trainable and type(self).train_step is Trainer.train_step:
            warnings.warn(
                "The model has no loss and its module no penalties: nothing is learnt, and the loss is 0. Give compile "
                "a loss.",
                stacklevel=2,
            )
        return binding

    def _vital(self, callbacks: CallbackList) -> dict[str, int | str]:
        """What, besides the data, decides what is computed, and in how many executions of how many steps."""
        k, distribution = self.steps_per_execution, self.distribution
        return {
            "seed": self.seed,
            "microbatches": self.microbatches,
            "precision": self.precision.name,
            "zero_stage": distribution.zero_stage,
            "replicas": distribution.replicas,
            "steps_per_execution": k if isinstance(k, int) else 0,
            "nonfinite": str(self.nonfinite),
            "the number of callbacks that watch batches": sum(
                callbacks.stride(kind) or 0 for kind in ("train", "test", "predict")
            ),
        }

    def _feeder(
        self, state: TrainState, loader: AnyLoader, binding: Binding, *, training: bool = False
    ) -> Feeder | StreamFeeder:
        """The feeder of a loader.

        Rows that only fill a batch would enter the batch statistics of a model that keeps some, so in
        training a batch of another length is run at its own shape, where that divides.
        """
        k = self.steps_per_execution if isinstance(self.steps_per_execution, int) else None
        exact = "possibly" if training and binding.has_state else "never"
        objective = binding.step.objective
        if objective is not None and objective.exact:
            exact = "always"
        multiple = self.distribution.num_devices * (self.microbatches if training else 1)

        def check(batch: Batch) -> None:  # of batches that come later; one of other shapes is bound anew, or refused
            if objective is None:  # a prediction
                self.bind(state, Batch(batch.x))
            else:
                self.bind(state, batch).objective.check_labels(batch.y)

        if not isinstance(loader, BatchLoader):
            checked_at_once = objective is None or hasattr(loader, "arrays")
            return Feeder(
                loader,
                self.distribution,
                multiple=multiple,
                steps_per_execution=k or 1,
                exact=exact,
                check=None if checked_at_once else lambda batch: binding.objective.check_labels(batch.y),
            )
        return StreamFeeder(
            loader,
            self.distribution,
            multiple=multiple,
            steps_per_execution=k,
            exact=exact,
            fresh=not training,
            check=check,
        )

    def _reach(self, here: Position, train: TrainPass, settle: Callable[[], None]) -> Position:
        """Waits for all that is under way, and notes where that leaves the run.

        Args:
            here: Where this pass over the data began.
            train: The pass.
            settle: Does the waiting.
        """
        settle()
        self._position = Position(here.epoch, here.step + train.steps, here.seen + train.steps, train.part())
        return self._position

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Ends this process where nothing happens any more, or another process has failed."""
        outer = self._alarm  # of a fit, where a callback evaluates in it
        try:
            with self._watchdog, Alarm() as self._alarm:
                yield
        finally:
            self._alarm = outer

    def _watched(self, executions: Iterator[Callable[[], None]], pass_: Pass) -> Iterator[Callable[[], None]]:
        """The executions of a pass, with word to the watchdog of each; the first compiles."""
        with self._watchdog.phase("compile"):
            first = next(executions, None)
        for settle in executions if first is None else itertools.chain([first], executions):
            self._watchdog.beat(pass_.steps)
            self._alarm.check()
            yield settle

    def _take_start(self, initial_epoch: int, loader: AnyLoader, callbacks: CallbackList) -> Position:
        """Where to begin: where a callback or a checkpoint said, once, else at `initial_epoch`."""
        here, self._start = self._start or Position(initial_epoch), None
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            if resumed.get("data"):
                check_same_data(resumed["data"], self.data_fingerprint)
            callbacks.load_state_dict(resumed.get("callbacks", []))
        if here.part is None and loader.num_steps is not None and here.step >= loader.num_steps:
            here = Position(here.epoch + 1)
        self._position = here
        return here

    def _adopt_average(self) -> None:
        """Makes the averages of the parameters the parameters, where the optimizer keeps some."""
        assert self.state is not None
        average = optimizers.ema_params(self.state.opt_state, self.state.params)
        if average is not None:
            self.state = dataclasses.replace(self.state, params=jax.tree.map(jnp.copy, average))

    @contextlib.contextmanager
    def _callbacks(
        self, callbacks: Any, loader: AnyLoader, *, epochs: int | None = None, add_history: bool = False
    ) -> Iterator[CallbackList]:
        if not isinstance(callbacks, CallbackList):
            callbacks = CallbackList(callbacks, add_history=add_history, model=self, verbose=0, epochs=epochs)
        rows = None
        if not isinstance(loader, BatchLoader):
            rows = min(loader.num_rows, loader.num_steps * loader.batch_size)
        callbacks.set_params({**callbacks.params, "steps": loader.num_steps, "rows": rows})
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


def _in_order(loader: AnyLoader) -> AnyLoader:
    """The rows as they are numbered, each once, where the loader can give them so."""
    return loader.in_order() if hasattr(loader, "in_order") else loader


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

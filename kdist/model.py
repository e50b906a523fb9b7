"""Model: the Keras-style facade.  It checks arguments, keeps a Trainer and computes nothing itself."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from kdist import arguments
from kdist.binding import misfit_as_data_error
from kdist.callbacks import CallbackList, History
from kdist.caps import capped_epochs, capped_steps
from kdist.data import AnyLoader, ClassWeight, example_batch
from kdist.distribution import DataParallel
from kdist.errors import ConfigError, DataError, NotCompiledError
from kdist.generators import GeneratorMethods
from kdist.metrics import Metric
from kdist.modules import ModuleAdapter, Variables, adapt
from kdist.optimizers import Optimizer
from kdist.passes import alphabetical
from kdist.saving import ModelSaving
from kdist.state import TrainState, shardings
from kdist.summary import summary_table
from kdist.trainer import Trainer
from kdist.typing import Batch, Logs, PyTree
from kdist.variables import ModelVariables

_NOT_COMPILED = "You must call `compile()` before training or evaluating the model."


class Model(ModelVariables, ModelSaving, GeneratorMethods):
    """A Flax model with Keras's training interface.

    Args:
        module: A `flax.linen.Module`, a `flax.nnx.Module` or a pair ``(init_fn, apply_fn)``.
        seed: What parameters, dropout and the order of the data are drawn from; 0 by default.
        name: The name in `summary`; that of the module's class by default.

    Attributes:
        history: The History of the last `fit`.

    Example:
        >>> import flax.linen as nn, kdist, numpy as np
        >>> model = kdist.Model(nn.Dense(1))
        >>> model.compile("sgd", "mse")
        >>> history = model.fit(np.ones((8, 3)), np.zeros((8, 1)), epochs=2, verbose=0)
        >>> sorted(history.history)
        ['loss']
    """

    def __init__(self, module: Any, *, seed: int = 0, name: str | None = None) -> None:
        self.seed = arguments.check_count("seed", seed)
        self.name = name or ("model" if isinstance(module, tuple) else type(module).__name__.lower())
        self.history: History | None = None
        self._set_module(module)

    def _set_module(self, module: Any) -> None:
        self.adapter: ModuleAdapter = adapt(module)
        self._compiled = False
        self.loss: Any = None
        self.run_eagerly = False
        self.jit_compile: bool | str = "auto"
        self._trainer = Trainer(self.adapter, optimizer=None, loss=None, seed=self.seed)
        self._example: Batch | None = None

    # Compiling and building ---------------------------------------------------------------------

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int | str = "auto",
        jit_compile: bool | str = "auto",
        auto_scale_loss: bool = True,
        *,
        distribution: DataParallel | None = None,
        precision: Any = None,
        microbatches: int | str = 1,
        sample_weight_mode: Any = None,
        target_tensors: None = None,
        nonfinite: str | None = None,
    ) -> None:
        """Sets how the model is trained; weights are kept, the optimizer starts anew unless it is the same object.

        Args:
            optimizer: A name, a `kdist.optimizers` object or an optax transformation; None for a model that is only
                evaluated; "rmsprop" by default.
            loss: A name, a `kdist.losses` object or a callable ``(y_true, y_pred)``; with several outputs one for all,
                or a list, tuple or dict with one for each, None, the default, for none.
            loss_weights: A number, or a list, tuple or dict of them: what each loss counts in the total; none by
                default.
            metrics: A list of names, `kdist.metrics` objects or callables; with several outputs a list with one entry
                an output, or a dict; none by default.
            weighted_metrics: Alike, evaluated with the sample weights; none by default.
            run_eagerly: Compile nothing, so that prints and debuggers work inside the model; False by default.
            steps_per_execution: How many optimizer steps run as one program; "auto" fuses as far as no callback can see
                the difference; "auto" by default.
            jit_compile: True or "auto" compiles; False is `run_eagerly`; "auto" by default.
            auto_scale_loss: Whether ``precision="mixed_float16"`` gets a `kdist.optimizers.LossScaleOptimizer`, which
                keeps small gradients from vanishing; True by default.  bfloat16 needs none.
            distribution: The devices; all of them by default.
            precision: None, the default, or "float32", "mixed_bfloat16" or "mixed_float16".
            microbatches: Work each batch through in this many parts, to save memory, with the result of the whole
                batch; 1 by default.  "auto": the fewest, a power of two, with which it fits on a device.
            sample_weight_mode: "temporal" insists on weights for each time step, ``[rows, steps]``; None, the default,
                takes weights of any shape that fits.  A list or dict of these for several outputs.
            target_tensors: Only None, the default: it has no meaning in JAX.
            nonfinite: What becomes of a training step whose loss or gradient is NaN or infinite.  None, the default,
                does not look.  "skip" does not take the step: weights, optimizer and batch statistics stay, its rows
                count in no log, and ``logs["skipped_steps"]`` says how many steps of the epoch were skipped; the loss
                of an epoch of which nothing is left is NaN.  "stop" ends training just before the step, with a warning,
                and "raise" with a `NonFiniteError` that names it, whatever `steps_per_execution` is.  A gradient that
                a `LossScaleOptimizer` skips, since its scale is too large, is none of these.

        Raises:
            ConfigError: An argument is wrong or a name is unknown.

        Example:
            >>> import flax.linen as nn, kdist
            >>> model = kdist.Model(nn.Dense(3))
            >>> model.compile(kdist.optimizers.Adam(1e-3), "mse", metrics=["mae"])
            >>> model.optimizer.learning_rate
            0.001
        """
        if target_tensors is not None:
            raise ConfigError(
                f"target_tensors must be None: JAX has no tensors that feed themselves; targets are passed to fit. "
                f"Received: {target_tensors!r}."
            )
        for name, value, choices in (
            ("run_eagerly", run_eagerly, (True, False)),
            ("jit_compile", jit_compile, (True, False, "auto")),
            ("auto_scale_loss", auto_scale_loss, (True, False)),
        ):
            if value not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}. Received: {value!r}.")
        trainer = Trainer(
            self.adapter,
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            distribution=distribution,
            steps_per_execution=steps_per_execution,
            precision=precision,
            microbatches=microbatches,
            seed=self.seed,
            run_eagerly=run_eagerly or jit_compile is False,
            auto_scale_loss=auto_scale_loss,
            sample_weight_mode=sample_weight_mode,
            nonfinite=nonfinite,
        )
        if jit_compile is True and run_eagerly:
            warnings.warn("run_eagerly=True: nothing is compiled, jit_compile=True has no effect.", stacklevel=2)
        if self._trainer.state is not None:
            same = trainer.optimizer is not None and trainer.optimizer is self._trainer.optimizer
            self._adopt(self._trainer.state, trainer, keep_optimizer=same)
        self._trainer, self._compiled = trainer, True
        self.loss, self.run_eagerly, self.jit_compile = loss, run_eagerly, jit_compile

    @staticmethod
    def _adopt(state: TrainState, trainer: Trainer, *, keep_optimizer: bool = False) -> None:
        """Gives a trainer the variables of another one's state, and the optimizer's, on its own devices."""
        if not keep_optimizer:
            state = dataclasses.replace(state, step=jax.numpy.zeros_like(state.step), opt_state=())
        state = jax.device_put(state, shardings(state, trainer.distribution))
        if not keep_optimizer:
            state = dataclasses.replace(state, opt_state=trainer.init_opt_state(state.params))
        trainer.state = state

    def build(self, x: Any) -> None:
        """Initialises the variables, unless they are already.

        Args:
            x: A batch of inputs, or their shapes with the rows first: ``(None, 28, 28, 1)``, a
                `jax.ShapeDtypeStruct` (for integer inputs), or a list or dict of them.

        Raises:
            DataError: It is neither.

        Example:
            >>> import flax.linen as nn, kdist
            >>> model = kdist.Model(nn.Dense(3))
            >>> model.build((None, 4))
            >>> model.params["kernel"].shape
            (4, 3)
        """
        self._build(Batch(arguments.example_inputs(x)))

    def _build(self, batch: Batch) -> None:
        if self._trainer.state is None:
            if any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(batch.x)):
                raise NotCompiledError("The model has no variables yet: call build(x) before tracing it.")
            self._trainer.state = self._trainer.init(batch)
        if self._example is None:
            x = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), batch.x)
            self._example = Batch(x)

    def _build_for(self, loader: AnyLoader) -> None:
        if not self.built or self._example is None:
            self._build(example_batch(loader))

    @property
    def built(self) -> bool:
        """Whether the variables exist."""
        return self._trainer.state is not None

    @property
    def state(self) -> TrainState:
        """All that training reads and writes, on the devices; it may be replaced, in a callback too.

        Its arrays are used up by the next execution: copy what you keep.
        """
        return self._state

    @state.setter
    def state(self, new: TrainState) -> None:
        self._trainer.state = new

    @property
    def trainer(self) -> Trainer:
        """The Trainer underneath."""
        return self._trainer

    @property
    def steps_per_execution(self) -> int | str:
        """K, or "auto"."""
        return self._trainer.steps_per_execution

    @property
    def nonfinite(self) -> str | None:
        """What becomes of a training step whose loss is not finite; see `compile`."""
        return self._trainer.nonfinite

    @property
    def metrics(self) -> list[Metric]:
        """The metrics of all outputs, in the order of `metrics_names`; empty before targets were seen."""
        return self._trainer.metrics

    @property
    def compiled(self) -> bool:
        """Whether `compile` was called."""
        return self._compiled

    # Training -----------------------------------------------------------------------------------

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool | str = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | list[int] = 1,
        *,
        cache: bool | str = "auto",
        check_finite: bool = False,
    ) -> History:
        """Trains the model.

        Args:
            x: Inputs ``[rows, ...]``: an array, or a list, tuple or dict of arrays.  Or batches ``(x, y)`` or
                ``(x, y, sample_weight)``: a generator, an iterator, a function that makes one, an object to iterate
                over or with batches by number (see `kdist.data.from_batches`), or a kdist loader.
            y: Targets ``[rows, ...]``, alike, by output; with arrays only; none by default.
            batch_size: Rows of an optimizer step, over all devices; 32 by default.  With arrays only.
            epochs: The epoch to stop before, counted from 0: a final index, not a count; 1 by default.
            verbose: 0 silent, 1 or "auto" a bar in a terminal and a line an epoch elsewhere, 2 lines; "auto" by
                default.
            callbacks: A callback, or a list of them; none by default.
            validation_split: The fraction of rows, from the end, that is evaluated and not trained on; 0.0 by default.
            validation_data: ``(x, y)`` or ``(x, y, sample_weight)`` to evaluate after each epoch, or batches, as for
                `x`; none by default.
            shuffle: Whether each epoch has an order of its own, drawn from the seed and the epoch; "batch" for an order
                of whole batches; True by default.  Batches that are made elsewhere come as they come.
            class_weight: Weights by class, integers from 0: what rows of the class count in the loss and in weighted
                metrics; 1 for a class that is missing; none by default.  For one output; not used in validation.
            sample_weight: Weights ``[rows]``, or ``[rows, steps]`` for sequences; a structure like `y` for several
                outputs; none by default.  With arrays only.
            initial_epoch: The epoch to start with; the rows come in the order of that epoch; 0 by default.
            steps_per_epoch: The most steps of an epoch; the next epoch goes on with the data where this one ended.
                None, the default, or -1: a whole pass.
            validation_steps: The most steps of a validation; None, the default, or -1 for all.
            validation_batch_size: `batch_size` by default.
            validation_freq: Validate every so many epochs, or after the epochs of a list, from 1; 1 by default.
            cache: Whether rows are kept on the devices: True, False or "auto", by their size; "auto" by default.
            check_finite: Whether to read all inputs, targets and weights once, first, and refuse NaN and infinity;
                False by default.  Never done unasked: it reads all of the data.

        Returns:
            The History: ``history.history["loss"]`` has a value an epoch.

        Raises:
            NotCompiledError: `compile` was not called, or with no optimizer.
            DataError: The data cannot be trained on as they are.
            ConfigError: An argument is out of its range.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> x, y = np.ones((8, 3)), np.zeros((8, 1))
            >>> model = kdist.Model(nn.Dense(1))
            >>> model.compile("sgd", "mse")
            >>> history = model.fit(x, y, batch_size=4, epochs=3, validation_data=(x, y), verbose=0)
            >>> len(history.history["val_loss"])
            3
            >>> batches = lambda: ((x, y) for _ in range(5))
            >>> model.fit(batches, epochs=2, steps_per_epoch=2, verbose=0).epoch
            [0, 1]
        """
        self._check_compiled()
        epochs = capped_epochs(arguments.check_count("epochs", epochs))
        initial_epoch = arguments.check_count("initial_epoch", initial_epoch)
        arguments.check_validation_freq(validation_freq)
        loader, validation = arguments.training_and_validation(
            x,
            y,
            sample_weight,
            batch_size=batch_size,
            validation_split=validation_split,
            validation_data=validation_data,
            validation_batch_size=validation_batch_size,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            class_weight=self._class_weight(class_weight),
            shuffle=shuffle,
            seed=self.seed,
            cache=cache,
            check_finite=check_finite,
        )
        loader = capped_steps(loader)
        validation = None if validation is None else capped_steps(validation)
        self._build_for(loader)
        restored, self._restored = self._restored, None
        if restored is not None and restored["position"]["epoch"] == initial_epoch:
            self.go_on(restored)
        self.history = None
        callback_list = self._callback_list(callbacks, verbose, epochs=epochs, add_history=True)
        try:
            _, history = self._trainer.fit(
                self._state,
                loader,
                epochs=epochs,
                initial_epoch=initial_epoch,
                callbacks=callback_list,
                validation=validation,
                validation_freq=validation_freq,
            )
        finally:
            self.history = callback_list.history
        return history

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> float | list[Any] | Logs:
        """The loss and metrics over all rows, in evaluation mode; each row counts exactly once.

        Args:
            x: Inputs, as in `fit`, or a loader.
            y: Targets, as in `fit`.
            batch_size: Rows of a step; 32 by default.
            verbose: As in `fit`.
            sample_weight: As in `fit`.
            steps: The most steps; None, the default, or -1 for all.  Arrays without a `batch_size` are divided into so
                many.
            callbacks: As in `fit`.
            return_dict: Whether to return a dict by name, in alphabetical order; False by default.
            kwargs: Nothing else.

        Returns:
            The loss if there are no metrics; else a list labelled by `metrics_names`; or a dict.

        Raises:
            NotCompiledError: `compile` was not called.
            DataError: The data do not fit the model.
            ConfigError: An argument is unknown or out of its range.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> model = kdist.Model(nn.Dense(1, kernel_init=nn.initializers.ones))
            >>> model.compile("sgd", "mse", metrics=["mae"])
            >>> model.evaluate(np.ones((4, 2)), np.zeros((4, 1)), verbose=0)
            [4.0, 2.0]
        """
        if kwargs:
            raise ConfigError(f"evaluate takes no argument {sorted(kwargs)[0]!r}. Received: {kwargs}.")
        self._check_compiled()
        steps = arguments.check_steps("steps", steps)
        loader = capped_steps(arguments.as_loader(x, y, sample_weight, batch_size=batch_size, steps=steps))
        self._build_for(loader)
        callback_list = self._callback_list(callbacks, verbose)
        logs = self._trainer.evaluate(self._state, loader, callbacks=callback_list)
        return _as_results(logs, return_dict)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> PyTree:
        """The model's outputs for all rows, in order, in evaluation mode.

        Args:
            x: Inputs, as in `fit`; targets and weights in batches are ignored.
            batch_size: Rows of a step; 32 by default.
            verbose: As in `fit`.
            steps: The most steps; None, the default, or -1 for all.  Arrays without a `batch_size` are divided into so
                many.
            callbacks: As in `fit`.

        Returns:
            NumPy arrays ``[rows, ...]``, structured like the model's outputs.

        Raises:
            DataError: The data do not fit the model.
            ConfigError: An argument is out of its range.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> kdist.Model(nn.Dense(3)).predict(np.ones((5, 2)), verbose=0).shape
            (5, 3)
        """
        steps = arguments.check_steps("steps", steps)
        loader = capped_steps(arguments.as_loader(x, batch_size=batch_size, steps=steps))
        self._build_for(loader)
        callback_list = self._callback_list(callbacks, verbose)
        parts = list(self._trainer.predict(self._state, loader, callbacks=callback_list))
        return jax.tree.map(_joined, *parts)

    # One batch ----------------------------------------------------------------------------------

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> float | list[Any] | Logs:
        """One optimizer step on this batch; the results are those of the batch before the update.

        Args:
            x: Inputs ``[B, ...]``.
            y: Targets ``[B, ...]``; none by default.
            sample_weight: Weights ``[B]``, or ``[B, steps]``; none by default.
            class_weight: As in `fit`; not together with `sample_weight`.
            return_dict: As in `evaluate`.

        Returns:
            As `evaluate` does.

        Raises:
            NotCompiledError: `compile` was not called, or with no optimizer.
            DataError: The batch does not fit the model.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> model = kdist.Model(nn.Dense(1, kernel_init=nn.initializers.ones))
            >>> model.compile("sgd", "mse", metrics=["mae"])
            >>> model.train_on_batch(np.ones((4, 2)), np.zeros((4, 1)))
            [4.0, 2.0]
        """
        self._check_compiled()
        loader = arguments.one_batch(x, y, sample_weight, self._class_weight(class_weight))
        self._build_for(loader)
        _, results = self._trainer.train_on_batch(self._state, loader)
        return _as_results(results, return_dict)

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> float | list[Any] | Logs:
        """The loss and metrics of this batch, in evaluation mode; arguments as in `train_on_batch`.

        Args:
            x: Inputs ``[B, ...]``.
            y: Targets ``[B, ...]``; None, the default, for a model that has no loss but its own penalties.
            sample_weight: Weights ``[B]``, or ``[B, steps]``; None by default, and all rows count alike.
            return_dict: As in `evaluate`.

        Raises:
            NotCompiledError: `compile` was not called.
            DataError: The batch does not fit the model.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> model = kdist.Model(nn.Dense(1, kernel_init=nn.initializers.ones))
            >>> model.compile("sgd", "mse")
            >>> model.test_on_batch(np.ones((4, 2)), np.zeros((4, 1)), return_dict=True)
            {'loss': 4.0}
        """
        self._check_compiled()
        loader = arguments.one_batch(x, y, sample_weight)
        self._build_for(loader)
        return _as_results(self._trainer.evaluate(self._state, loader), return_dict)

    def predict_on_batch(self, x: Any) -> PyTree:
        """The outputs for this batch, NumPy arrays ``[B, ...]``.

        Args:
            x: Inputs ``[B, ...]``.

        Raises:
            DataError: The inputs do not fit the model.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> kdist.Model(nn.Dense(3)).predict_on_batch(np.ones((5, 2))).shape
            (5, 3)
        """
        loader = arguments.one_batch(x, None, None)
        self._build_for(loader)
        (outputs,) = self._trainer.predict(self._state, loader)
        return outputs

    def __call__(self, x: Any, training: bool = False) -> PyTree:
        """The outputs for these inputs, as JAX arrays; differentiable and traceable.

        Args:
            x: Inputs ``[rows, ...]``.
            training: Whether dropout acts and batch statistics are those of the batch.  The model's
                state does not change.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> kdist.Model(nn.Dense(3))(np.ones((5, 2))).shape
            (5, 3)
        """
        self._build(Batch(jax.tree.map(lambda a: a if hasattr(a, "shape") else np.asarray(a), x)))
        state = self._state
        cast = self._trainer.precision.cast
        key = jax.random.fold_in(state.key, state.step)
        variables = Variables(cast(state.params), state.model_state)
        with misfit_as_data_error(x):
            return self.adapter.apply(variables, cast(x), train=bool(training), key=key).outputs

    # Looking at it ------------------------------------------------------------------------------

    def summary(self, print_fn: Any = None) -> None:
        """Prints a table: layer, output shape, parameters, and bytes on a device.

        Args:
            print_fn: What to print with; `print` by default.

        Example:
            >>> import flax.linen as nn, kdist
            >>> model = kdist.Sequential([nn.Dense(2), nn.relu], name="small")
            >>> model.build((None, 4))
            >>> lines = []
            >>> model.summary(lines.append)
            >>> lines[0].splitlines()[0].strip()
            'Model: small'
        """
        (print_fn or print)(summary_table(self.name, self._layers(), self._state))

    def get_layer(self, name: str | None = None, index: int | None = None) -> Any:
        """A layer by its name or its position; the position counts if both are given.

        Args:
            name: The name of a layer, as `summary` prints it; none by default.
            index: Its position, from 0; a negative one counts from the end; none by default.

        Raises:
            ConfigError: There is no such layer, or neither is given.

        Example:
            >>> import flax.linen as nn, kdist
            >>> model = kdist.Sequential([nn.Dense(2), nn.Dense(3)])
            >>> model.get_layer("dense_1").features, model.get_layer(index=0).features
            (3, 2)
        """
        layers = self._named_layers()
        if index is not None:
            if not isinstance(index, (int, np.integer)) or not -len(layers) <= index < len(layers):
                raise ConfigError(f"There is no layer {index!r}: the model has {len(layers)} layers.")
            return list(layers.values())[index]
        if name is None:
            raise ConfigError("Provide either a layer name or layer index.")
        if name not in layers:
            raise ConfigError(f"No such layer: {name}. Existing layers are: {list(layers)}.")
        return layers[name]

    def _named_layers(self) -> dict[str, Any]:
        return {layer.name: layer.layer for layer in self._layers()}

    def _layers(self) -> list[Any]:
        state = self._state
        if self._example is None:
            raise NotCompiledError("The model has not seen inputs yet: call build(x) first.")
        return self.adapter.layers(Variables(state.params, state.model_state), self._example.x)

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer; its `learning_rate` is that of the run, and can be set."""
        return self._trainer.optimizer

    @property
    def metrics_names(self) -> list[str]:
        """Labels of the values that `evaluate` returns.

        Raises:
            NotCompiledError: No data with targets have been seen, which the names depend on.
        """
        self._check_compiled()
        if self._trainer.log_names is None:
            raise NotCompiledError("The names are known once the model has seen targets: call fit or evaluate first.")
        return self._trainer.log_names

    stop_training = property(
        lambda self: self._trainer.stop_training,
        lambda self, value: setattr(self._trainer, "stop_training", bool(value)),
        doc="Set it in a callback to end training after the current execution.",
    )
    stop_evaluating = property(
        lambda self: self._trainer.stop_evaluating,
        lambda self, value: setattr(self._trainer, "stop_evaluating", bool(value)),
        doc="Set it in a callback to end an evaluation.",
    )
    stop_predicting = property(
        lambda self: self._trainer.stop_predicting,
        lambda self, value: setattr(self._trainer, "stop_predicting", bool(value)),
        doc="Set it in a callback to end a prediction.",
    )

    def start_at(self, epoch: int, step: int = 0) -> None:
        """Makes the run begin there: to be called by a callback in `on_train_begin`, and good for one `fit`.

        Args:
            epoch: The epoch, counted from 0.
            step: The step of this epoch; 0 by default.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> model = kdist.Model(nn.Dense(1, kernel_init=nn.initializers.ones))
            >>> model.compile("sgd", "mse")
            >>> class Skip(kdist.callbacks.Callback):
            ...     def on_train_begin(self, logs=None):
            ...         self.model.start_at(epoch=2)
            >>> model.fit(np.ones((4, 2)), np.zeros((4, 1)), epochs=4, verbose=0, callbacks=Skip()).epoch
            [2, 3]
        """
        self._trainer.start_at(epoch, step)

    def progress(self) -> dict[str, Any]:
        """What, besides its state, the model has to know to be trained on from here; see `Trainer.progress`.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> model = kdist.Model(nn.Dense(1))
            >>> model.compile("sgd", "mse")
            >>> history = model.fit(np.ones((8, 3)), np.zeros((8, 1)), epochs=3, verbose=0)
            >>> model.progress()["position"]["epoch"]
            3
        """
        return self._trainer.progress()

    def go_on(self, progress: dict[str, Any]) -> None:
        """Makes the next `fit`, or the one that is about to begin, go on from there; see `Trainer.go_on`.

        Args:
            progress: What `progress` gave.

        Raises:
            CheckpointError: It is something else.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> model = kdist.Model(nn.Dense(1))
            >>> model.compile("sgd", "mse")
            >>> history = model.fit(np.ones((8, 3)), np.zeros((8, 1)), epochs=3, verbose=0)
            >>> model.go_on(model.progress())
            >>> model.fit(np.ones((8, 3)), np.zeros((8, 1)), epochs=4, verbose=0).epoch
            [3]
        """
        self._trainer.go_on(progress)

    @property
    def input_bound(self) -> float:
        """The share of the epoch's training in which the devices waited for data; see `Trainer.input_bound`."""
        return self._trainer.input_bound

    @property
    def data_fingerprint(self) -> dict[str, Any]:
        """What decides which rows the run sees when; see `kdist.data.fingerprint`."""
        return self._trainer.data_fingerprint

    @property
    def metric_directions(self) -> dict[str, str | None]:
        """By log name: "down" if less is better, "up" if more is, None if nobody knows."""
        return self._trainer.metric_directions

    def get_metrics_result(self) -> Logs:
        """The losses and metrics of the last pass over data: after a `fit` that validated, of the validation.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> model = kdist.Model(nn.Dense(1, kernel_init=nn.initializers.ones))
            >>> model.compile("sgd", "mse")
            >>> _ = model.evaluate(np.ones((4, 2)), np.zeros((4, 1)), verbose=0)
            >>> model.get_metrics_result()
            {'loss': 4.0}
        """
        return alphabetical(self._trainer.last_results)

    def reset_metrics(self) -> None:
        """Forgets the last results; every pass starts its metrics anew by itself.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np
            >>> model = kdist.Model(nn.Dense(1, kernel_init=nn.initializers.ones))
            >>> model.compile("sgd", "mse")
            >>> _ = model.evaluate(np.ones((4, 2)), np.zeros((4, 1)), verbose=0)
            >>> model.reset_metrics()
            >>> model.get_metrics_result()
            {}
        """
        self._trainer.last_results = {}

    # Small parts --------------------------------------------------------------------------------

    @property
    def _state(self) -> TrainState:
        if self._trainer.state is None:
            raise NotCompiledError("The model has no variables yet: call build(x) or fit first.")
        return self._trainer.state

    # Checks -------------------------------------------------------------------------------------

    def _class_weight(self, given: Any) -> ClassWeight | None:
        return None if given is None else ClassWeight(given, of_steps=self._trainer.plan.takes_labels)

    def _check_compiled(self) -> None:
        if not self._compiled:
            raise NotCompiledError(_NOT_COMPILED)

    def _callback_list(
        self, callbacks: Any, verbose: int | str, *, epochs: int | None = None, add_history: bool = False
    ) -> CallbackList:
        if verbose not in ("auto", 0, 1, 2):
            raise ConfigError(f"verbose must be 'auto', 0, 1 or 2. Received: {verbose!r}.")
        if isinstance(callbacks, CallbackList):
            return callbacks
        return CallbackList(
            callbacks, add_history=add_history, add_progbar=verbose != 0, model=self, verbose=verbose, epochs=epochs
        )


def _as_results(logs: Logs, return_dict: bool) -> float | list[Any] | Logs:
    """Values as `evaluate` returns them: a dict, a list in the canonical order, or the only value."""
    if return_dict:
        return alphabetical(logs)
    values = list(logs.values())
    return values[0] if len(values) == 1 else values


def _joined(*parts: np.ndarray) -> np.ndarray:
    """The outputs of all batches as one array."""
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise DataError(
            f"The outputs of batches differ in their shapes without the rows, {sorted(shapes)}: one array cannot hold "
            "them. Predict batches of each shape apart."
        )
    return np.concatenate(parts)

"""Model: the Keras-style facade.  It checks arguments, keeps a Trainer and computes nothing itself."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kdist import arguments
from kdist.binding import misfit_as_data_error
from kdist.callbacks import Callback, CallbackList, History
from kdist.data import Loader, first_rows
from kdist.distribution import DataParallel
from kdist.errors import CheckpointMismatchError, ConfigError, NotCompiledError
from kdist.modules import ModuleAdapter, Variables, adapt
from kdist.optimizers import Optimizer
from kdist.passes import alphabetical
from kdist.state import TrainState
from kdist.summary import summary_table
from kdist.trainer import Trainer
from kdist.typing import Batch, Logs, PyTree

_NOT_COMPILED = "You must call `compile()` before training or evaluating the model."


class Model:
    """A Flax model with Keras's training interface.

    Args:
        module: A `flax.linen.Module`, a `flax.nnx.Module` or a pair ``(init_fn, apply_fn)``.
        seed: What parameters, dropout and the order of the data are drawn from.
        name: The name in `summary`.

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
        microbatches: int = 1,
        sample_weight_mode: None = None,
        target_tensors: None = None,
    ) -> None:
        """Sets how the model is trained; weights are kept, the optimizer starts anew.

        Args:
            optimizer: A name, a `kdist.optimizers` object or an optax transformation; None for a model
                that is only evaluated.
            loss: A name, a `kdist.losses` object or a callable ``(y_true, y_pred)``; with several
                outputs one for all, or a list, tuple or dict with one for each, None for none.
            loss_weights: A number, or a list, tuple or dict of them: what each loss counts in the total.
            metrics: A list of names, `kdist.metrics` objects or callables; with several outputs a list
                with one entry an output, or a dict.
            weighted_metrics: Alike, evaluated with the sample weights.
            run_eagerly: Compile nothing, so that prints and debuggers work inside the model.
            steps_per_execution: How many optimizer steps run as one program; "auto" fuses as far as no
                callback can see the difference.
            jit_compile: Accepted for Keras's sake; everything is compiled but with `run_eagerly`.
            auto_scale_loss: Accepted for Keras's sake; bfloat16 needs no scaling.
            distribution: The devices; all of them by default.
            precision: None or "float32", or "mixed_bfloat16".
            microbatches: Work each batch through in this many parts, to save memory, with the result of
                the whole batch.
            sample_weight_mode: Only None: the rank of the weights says it.
            target_tensors: Only None: it has no meaning in JAX.

        Raises:
            ConfigError: An argument is wrong or a name is unknown.
        """
        if target_tensors is not None or sample_weight_mode is not None:
            raise ConfigError(
                "target_tensors and sample_weight_mode must be None: targets are passed to fit, and weights for each "
                "time step are told by their shape (rows, steps)."
            )
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
            run_eagerly=run_eagerly,
        )
        if jit_compile is True and run_eagerly:
            warnings.warn("run_eagerly=True: nothing is compiled, jit_compile=True has no effect.", stacklevel=2)
        if self._trainer.state is not None:
            self._adopt(self._trainer.state, trainer)
        self._trainer, self._compiled = trainer, True

    @staticmethod
    def _adopt(state: TrainState, trainer: Trainer) -> None:
        """Gives a trainer the variables of another one's state, on its own devices."""
        place = trainer.distribution.replicated
        params, model_state, key, step = (
            jax.device_put(tree, place) for tree in (state.params, state.model_state, state.key, state.step)
        )
        opt_state = trainer.init_opt_state(params)
        trainer.state = TrainState(jax.numpy.zeros_like(step), params, model_state, opt_state, key)

    def build(self, x: Any) -> None:
        """Initialises the variables, unless they are already.

        Args:
            x: A batch of inputs, or their shapes with the rows first: ``(None, 28, 28, 1)``, a
                `jax.ShapeDtypeStruct` (for integer inputs), or a list or dict of them.

        Raises:
            DataError: It is neither.
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

    def _build_for(self, loader: Loader) -> None:
        if not self.built or self._example is None:
            self._build(first_rows(loader))

    @property
    def built(self) -> bool:
        """Whether the variables exist."""
        return self._trainer.state is not None

    @property
    def trainer(self) -> Trainer:
        """The Trainer underneath."""
        return self._trainer

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
        shuffle: bool = True,
        class_weight: None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: None = None,
        validation_steps: None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | list[int] = 1,
        *,
        cache: bool | str = "auto",
        check_finite: bool = False,
    ) -> History:
        """Trains the model.

        Args:
            x: Inputs ``[rows, ...]``: an array, or a list, tuple or dict of arrays; or a kdist loader.
            y: Targets ``[rows, ...]``, alike, by output.
            batch_size: Rows of an optimizer step, over all devices; 32 by default.
            epochs: The epoch to stop before, counted from 0: a final index, not a count.
            verbose: 0 silent, 1 or "auto" a bar in a terminal and a line an epoch elsewhere, 2 lines.
            callbacks: A callback, or a list of them.
            validation_split: The fraction of rows, from the end, that is evaluated and not trained on.
            validation_data: ``(x, y)`` or ``(x, y, sample_weight)`` to evaluate after each epoch, or a
                loader.
            shuffle: Whether each epoch has an order of its own, drawn from the seed and the epoch.
            class_weight: Not yet supported: weight rows by `sample_weight`.
            sample_weight: Weights ``[rows]``, or ``[rows, steps]`` for sequences.
            initial_epoch: The epoch to start with; the rows come in the order of that epoch.
            steps_per_epoch: Not yet supported: an epoch is one pass over the data.
            validation_steps: Not yet supported: all validation data are evaluated.
            validation_batch_size: `batch_size` by default.
            validation_freq: Validate every so many epochs, or after the epochs of a list, from 1.
            cache: Whether rows are kept on the devices: True, False or "auto", by their size.
            check_finite: Whether to read all inputs, targets and weights once, first, and refuse NaN and
                infinity.  Never done unasked: it reads all of the data.

        Returns:
            The History: ``history.history["loss"]`` has a value an epoch.

        Raises:
            NotCompiledError: `compile` was not called, or with no optimizer or no loss.
            DataError: The data cannot be trained on as they are.
            ConfigError: An argument is out of its range.
        """
        self._check_compiled()
        arguments.refuse_unsupported(
            class_weight=class_weight, steps_per_epoch=steps_per_epoch, validation_steps=validation_steps
        )
        epochs = arguments.check_count("epochs", epochs)
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
            shuffle=shuffle,
            seed=self.seed,
            cache=cache,
            check_finite=check_finite,
        )
        self._build_for(loader)
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
        steps: None = None,
        callbacks: Any = None,
        return_dict: bool = False,
    ) -> float | list[Any] | Logs:
        """The loss and metrics over all rows, in evaluation mode; each row counts exactly once.

        Args:
            x: Inputs, as in `fit`, or a loader.
            y: Targets, as in `fit`.
            batch_size: Rows of a step; 32 by default.
            verbose: As in `fit`.
            sample_weight: As in `fit`.
            steps: Not yet supported: all data are evaluated.
            callbacks: As in `fit`.
            return_dict: Whether to return a dict by name.

        Returns:
            The loss if there are no metrics; else a list labelled by `metrics_names`; or a dict.

        Raises:
            NotCompiledError: `compile` was not called.
            DataError: The data do not fit the model.
        """
        self._check_compiled()
        arguments.refuse_unsupported(steps=steps)
        loader = arguments.as_loader(x, y, sample_weight, batch_size)
        self._build_for(loader)
        callback_list = self._callback_list(callbacks, verbose)
        logs = self._trainer.evaluate(self._state, loader, callbacks=callback_list)
        return _as_results(logs, return_dict)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        steps: None = None,
        callbacks: Any = None,
    ) -> PyTree:
        """The model's outputs for all rows, in order, in evaluation mode.

        Args:
            x: Inputs, as in `fit`, or a loader.
            batch_size: Rows of a step; 32 by default.
            verbose: As in `fit`.
            steps: Not yet supported: all data are predicted.
            callbacks: As in `fit`.

        Returns:
            NumPy arrays ``[rows, ...]``, structured like the model's outputs.
        """
        arguments.refuse_unsupported(steps=steps)
        loader = arguments.as_loader(x, None, None, batch_size)
        self._build_for(loader)
        callback_list = self._callback_list(callbacks, verbose)
        parts = list(self._trainer.predict(self._state, loader, callbacks=callback_list))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    # One batch ----------------------------------------------------------------------------------

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, class_weight: None = None, return_dict: bool = False
    ) -> float | list[Any] | Logs:
        """One optimizer step on this batch; the results are those of the batch before the update.

        Args:
            x: Inputs ``[B, ...]``.
            y: Targets ``[B, ...]``.
            sample_weight: Weights ``[B]``, or ``[B, steps]``.
            class_weight: Not yet supported.
            return_dict: As in `evaluate`.

        Returns:
            As `evaluate` does.
        """
        self._check_compiled()
        arguments.refuse_unsupported(class_weight=class_weight)
        loader = arguments.one_batch(x, y, sample_weight)
        self._build_for(loader)
        collect = _LastLogs()
        self._trainer.fit(self._state, loader, epochs=1, callbacks=collect)
        return _as_results({name: collect.logs[name] for name in self.metrics_names}, return_dict)

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> float | list[Any] | Logs:
        """The loss and metrics of this batch, in evaluation mode; arguments as in `train_on_batch`."""
        self._check_compiled()
        loader = arguments.one_batch(x, y, sample_weight)
        self._build_for(loader)
        return _as_results(self._trainer.evaluate(self._state, loader), return_dict)

    def predict_on_batch(self, x: Any) -> PyTree:
        """The outputs for this batch, NumPy arrays ``[B, ...]``."""
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
        """
        self._build(Batch(jax.tree.map(lambda a: a if hasattr(a, "shape") else np.asarray(a), x)))
        state = self._state
        cast = self._trainer.precision.cast
        key = jax.random.fold_in(state.key, state.step)
        variables = Variables(cast(state.params), state.model_state)
        with misfit_as_data_error(x):
            return self.adapter.apply(variables, cast(x), train=bool(training), key=key)[0]

    # Variables ----------------------------------------------------------------------------------

    @property
    def _state(self) -> TrainState:
        if self._trainer.state is None:
            raise NotCompiledError("The model has no variables yet: call build(x) or fit first.")
        return self._trainer.state

    @property
    def variables(self) -> dict[str, PyTree]:
        """Every collection by name, ``{"params": ..., "batch_stats": ...}``; assignable once built.

        The arrays are those that training goes on with: copy what you keep beyond the next `fit`.
        """
        return {"params": self._state.params, **self._state.model_state}

    @variables.setter
    def variables(self, new: Mapping[str, PyTree]) -> None:
        placed = arguments.replacement(new, self.variables)
        params = placed.pop("params")
        self._trainer.state = dataclasses.replace(self._state, params=params, model_state=placed)
        self.adapter.write_back(Variables(params, placed))

    @property
    def params(self) -> PyTree:
        """The parameters."""
        return self._state.params

    @params.setter
    def params(self, new: PyTree) -> None:
        self.variables = {**self.variables, "params": new}

    def get_weights(self) -> list[np.ndarray]:
        """Copies of the parameters, then of the other collections, in tree order."""
        params, model_state = self._state.params, self._state.model_state
        return [np.array(a) for a in jax.tree.leaves((params, model_state))]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Replaces them by such a list.

        Raises:
            CheckpointMismatchError: Number, shapes or dtypes differ.
        """
        mine, structure = jax.tree.flatten((self._state.params, self._state.model_state))
        if not isinstance(weights, (list, tuple)) or len(weights) != len(mine):
            received = (
                f"a list of {len(weights)}" if isinstance(weights, (list, tuple)) else f"a {type(weights).__name__}"
            )
            raise CheckpointMismatchError(f"Expected a list of the model's {len(mine)} weights. Received: {received}.")
        params, model_state = jax.tree.unflatten(structure, list(weights))
        self.variables = {"params": params, **model_state}

    def save_weights(self, directory: str | os.PathLike[str]) -> None:
        """Writes the variables to a directory; see `load_weights`.

        Raises:
            CheckpointError: It cannot be written.
        """
        from kdist import checkpoint

        checkpoint.save_weights(directory, self.variables)

    def load_weights(self, directory: str | os.PathLike[str]) -> None:
        """Reads variables that `save_weights` wrote; the model must be built.

        Raises:
            CheckpointError: There are none.
            CheckpointMismatchError: They are of another model; nothing is cast or left out.
        """
        from kdist import checkpoint

        self.variables = checkpoint.load_weights(directory, self.variables)

    # Looking at it ------------------------------------------------------------------------------

    def summary(self, print_fn: Any = None) -> None:
        """Prints a table: layer, output shape, parameters, and bytes on a device.

        Args:
            print_fn: What to print with; `print` by default.
        """
        (print_fn or print)(summary_table(self.name, self._layers(), self._state))

    def get_layer(self, name: str | None = None, index: int | None = None) -> Any:
        """A layer by its name or its position; the position counts if both are given.

        Raises:
            ConfigError: There is no such layer, or neither is given.
        """
        layers = self._named_layers()
        if index is not None:
            if not -len(layers) <= index < len(layers):
                raise ConfigError(f"There is no layer {index}: the model has {len(layers)} layers.")
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

    def reset_metrics(self) -> None:
        """Does nothing: no metric is carried from one call to the next."""

    # Checks -------------------------------------------------------------------------------------

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


class _LastLogs(Callback):
    """Keeps the logs of the last epoch."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self.logs = logs or {}


def _as_results(logs: Logs, return_dict: bool) -> float | list[Any] | Logs:
    """Values as `evaluate` returns them: a dict, a list in the canonical order, or the only value."""
    if return_dict:
        return alphabetical(logs)
    values = list(logs.values())
    return values[0] if len(values) == 1 else values

"""A model in a directory, to be trained on from there by another process; a mixin of `Model`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from kdist.errors import CheckpointError, ConfigError
from kdist.pauses import Position
from kdist.state import TrainState
from kdist.typing import Batch, PyTree

if TYPE_CHECKING:
    from kdist.checkpoint import RunCheckpoints

MOST_ELEMENTS = 1 << 28
"""Of a row of inputs: what a checkpoint says of them is not believed beyond that."""


class ModelSaving:
    """`save` and `restore`: a training state by its step, with all that a run goes on from."""

    state: TrainState
    build: Callable[[Any], None]
    progress: Callable[[], dict[str, Any]]
    _check_compiled: Callable[[], None]
    _example: Batch | None
    _restored: dict[str, Any] | None = None

    if TYPE_CHECKING:

        @property
        def built(self) -> bool:
            """Whether the variables exist."""

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the state of the model and its optimizer to ``directory/<step>``.  All processes call it.

        Args:
            directory: Of its own; its parents are made.  Earlier steps in it are kept, and this one, if it is there, is
                replaced.

        Raises:
            NotCompiledError: `compile` was not called, or the model is not built.
            CheckpointError: It cannot be written, holds a later step, or another run writes to it.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np, tempfile
            >>> x, y = np.ones((8, 3)), np.zeros((8, 1))
            >>> def compiled():
            ...     model = kdist.Model(nn.Dense(1))
            ...     model.compile("adam", "mse")
            ...     return model
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     model = compiled()
            ...     history = model.fit(x, y, epochs=2, verbose=0)
            ...     model.save(directory)
            ...     other = compiled()
            ...     other.fit(x, y, epochs=4, initial_epoch=other.restore(directory), verbose=0).epoch
            [2, 3]
        """
        self._check_compiled()
        state = self.state
        with _run(directory) as run:
            run.save(state, {**self.progress(), "inputs": _described(self._example and self._example.x)})

    def restore(self, directory: str | os.PathLike[str], step: int | str = "latest") -> int:
        """Takes the state that `save`, `BackupAndRestore` or a run wrote; the model must be compiled.

        It is built, if it is not yet.  The next `fit` with the returned `initial_epoch` goes on at the very step, with
        the metrics of the epoch and what callbacks remember.  All processes call it.

        Args:
            directory: Where from.
            step: "latest", the default: the newest that can be read, with a warning if that is not the newest; or the
                step itself, which must be readable.

        Returns:
            The epoch to go on with, from 0.

        Raises:
            NotCompiledError: `compile` was not called.
            CheckpointError: There is no checkpoint, or none that can be read.
            CheckpointMismatchError: It is of another model or optimizer; nothing is cast or left out.
            ConfigError: `step` is neither.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np, tempfile
            >>> model = kdist.Model(nn.Dense(1))
            >>> model.compile("adam", "mse")
            >>> history = model.fit(np.ones((8, 3)), np.zeros((8, 1)), epochs=2, verbose=0)
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     model.save(directory)
            ...     model.restore(directory), model.restore(directory, step=2)
            (2, 2)
        """
        if step != "latest" and (isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 0):
            raise ConfigError(f"step must be 'latest' or an integer of 0 or more. Received: {step!r}.")
        self._check_compiled()
        run, number = _run(directory), None if isinstance(step, str) else int(step)
        if not self.built:
            self.build(_inputs(run.note(number).get("inputs"), run.directory))
        found = run.restore(self.state, number)
        if found is None:
            raise CheckpointError(f"There are no checkpoints in {run.directory}.")
        self.state, self._restored = found
        return Position.from_note(self._restored.get("position", {})).epoch


def _run(directory: str | os.PathLike[str]) -> RunCheckpoints:
    from kdist.checkpoint import RunCheckpoints

    return RunCheckpoints(directory, keep=None)


def _described(inputs: PyTree) -> Any:
    """Shapes and dtypes of a row of inputs, as JSON can hold them."""
    if isinstance(inputs, Mapping):
        return {"dict": {name: _described(value) for name, value in inputs.items()}}
    if isinstance(inputs, (list, tuple)):
        return {"list" if isinstance(inputs, list) else "tuple": [_described(value) for value in inputs]}
    return None if inputs is None else {"shape": list(inputs.shape[1:]), "dtype": inputs.dtype.name}


def _inputs(note: Any, where: Any) -> PyTree:
    """Inputs of one row, as `jax.ShapeDtypeStruct`, from what a checkpoint says of them."""
    try:
        if "dict" in note:
            return {str(name): _inputs(value, where) for name, value in note["dict"].items()}
        if "list" in note:
            return [_inputs(value, where) for value in note["list"]]
        if "tuple" in note:
            return tuple(_inputs(value, where) for value in note["tuple"])
        shape, dtype = tuple(int(n) for n in note["shape"]), np.dtype(str(note["dtype"]))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"The checkpoint in {where} does not say what the model's inputs are. Call build(x) before restore."
        ) from error
    if min(shape, default=1) < 1 or math.prod(shape) > MOST_ELEMENTS:
        raise CheckpointError(f"The checkpoint in {where} speaks of inputs of shape {shape}, which cannot be.")
    return jax.ShapeDtypeStruct((1, *shape), dtype)

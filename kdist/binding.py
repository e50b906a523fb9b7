"""Binding: losses, metrics and programs, made for batches of one structure and shape."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax
import optax

from kdist.distribution import DataParallel
from kdist.errors import ConfigError, DataError, KDistError, NotCompiledError
from kdist.execution import Execution, loops_are_slow
from kdist.modules import ModuleAdapter, Variables
from kdist.objective import Objective, Outputs, Plan
from kdist.pace import Pace
from kdist.precision import Precision
from kdist.state import TrainState
from kdist.step import Step
from kdist.typing import Batch, PyTree, Sums


@dataclasses.dataclass
class Binding:
    """What is made for batches of one structure and shape.

    Attributes:
        step: The step, with its objective.
        execution: The programs.
        output_bytes: Bytes of a row's outputs.
        has_state: Whether the model has state besides parameters, such as batch statistics.
        pace: How many steps an execution fuses.
    """

    step: Step
    execution: Execution
    output_bytes: int
    has_state: bool
    pace: Pace

    @property
    def objective(self) -> Objective:
        """The losses and metrics.

        Raises:
            NotCompiledError: The batches had no targets.
        """
        if self.step.objective is None:
            raise NotCompiledError("Losses and metrics need targets.")
        return self.step.objective


def bind(
    adapter: ModuleAdapter,
    plan: Plan,
    tx: optax.GradientTransformation | None,
    variables: Variables,
    batch: Batch,
    *,
    train_step: Callable[[Step, TrainState, Batch], tuple[TrainState, Sums]],
    distribution: DataParallel,
    precision: Precision,
    microbatches: int,
    steps_per_execution: int | str,
    eagerly: bool,
    nonfinite: str | None,
) -> Binding:
    """The binding of a model to batches like this one.

    Args:
        adapter: The model.
        plan: What it was compiled with.
        tx: The optimizer; None for a model that is not trained.
        variables: Variables of the shapes that it has.
        batch: Inputs, and targets if there are any; only shapes and dtypes matter.
        train_step: ``(step, state, batch) -> (state, sums)``, what a training step does with the `Step`.
        distribution: The mesh.
        precision: The compute dtype.
        microbatches: The parts that a shard's rows are worked through in.
        steps_per_execution: K, or "auto".
        eagerly: Whether to compile nothing.
        nonfinite: What becomes of a training step whose loss is not finite; see `Execution`.

    Raises:
        ConfigError: Losses or metrics do not map to the outputs, or a loss does not go with microbatches.
        DataError: Targets do not fit the outputs, or an output does not have the rows first.
    """

    def forward(variables: Variables, x: PyTree) -> tuple[PyTree, list[jax.Array]]:
        cast = Variables(precision.cast(variables.params), variables.model_state)
        applied = adapter.apply(cast, precision.cast(x), train=False, key=jax.random.key(0))
        return applied.outputs, applied.penalties

    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (variables, batch.x))
    with misfit_as_data_error(batch.x):
        jaxpr, (out, penalties) = jax.make_jaxpr(forward, return_shape=True)(*abstract)
    rows = jax.tree.leaves(batch.x)[0].shape[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(out):
        if not leaf.shape or leaf.shape[0] != rows:
            raise DataError(
                f"Output{jax.tree_util.keystr(path)} of the model has shape {leaf.shape} for {rows} rows of input. "
                "Outputs must have the rows first."
            )
    objective = None
    if batch.y is not None or not plan.needs_targets:
        outputs = Outputs(out, adapter.output_names)
        objective = Objective(plan, outputs, batch.y, batch.weight, penalized=bool(penalties))
        if objective.across_rows and microbatches > 1:
            raise ConfigError(
                "A loss that compares the rows of a batch with each other needs all of them at once: microbatches must "
                f"be 1. Received: {microbatches}."
            )
    slow = loops_are_slow(jaxpr, distribution.platform)
    step = Step(
        adapter=adapter,
        objective=objective,
        tx=tx,
        distribution=None if eagerly else distribution,
        precision=precision,
        microbatches=microbatches,
        unroll=slow,
        checked=nonfinite is not None,
    )
    execution = Execution(
        lambda state, batch: train_step(step, state, batch),
        step.test,
        step.predict,
        distribution=distribution,
        chain=slow,
        eagerly=eagerly,
        nonfinite=nonfinite,
    )
    row_bytes = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(out)) // rows
    has_state = bool(jax.tree.leaves(variables.model_state))
    return Binding(step, execution, max(1, row_bytes), has_state, Pace(steps_per_execution))


@contextlib.contextmanager
def misfit_as_data_error(x: PyTree) -> Iterator[None]:
    """Says of an error that a module raises for inputs what the inputs were.

    Raises:
        DataError: The module raised an error of Flax's, a TypeError, a ValueError or an IndexError.
    """
    from flax.errors import FlaxError

    try:
        yield
    except KDistError:
        raise
    except (FlaxError, TypeError, ValueError, IndexError, DeprecationWarning) as error:
        found = jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", x)
        raise DataError(
            f"The model cannot be applied to inputs x of {found}: {error} Check the shape of x against the model's "
            "layers, and its structure against the parameters of its call."
        ) from error

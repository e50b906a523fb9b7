"""Programs of K steps: the only file that compiles.

A train execution is one program whose state is donated and whose number of steps is an *argument*: a
loop from `start` to `start + steps` over the batches of a feed.  So an epoch's shorter last execution
is the same program, and compile time does not grow with K.

Where losses that are not finite are watched for, the program does it, step by step, so that what is to
happen does not depend on K.  The state goes with a flag then: whether training is over.  A step that is
bad, and each after the one that ended training, is computed and not taken: one selection an array, in
the same kernel as the update, where a branch would be a second copy of the state.

Where a loop is a trap, a program of one step is dispatched `steps` times instead, without waiting in
between: on CPU, XLA runs gradients of convolutions inside a while loop some 17 times slower than
outside it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdist.data import Feed
from kdist.distribution import DataParallel
from kdist.state import TrainState
from kdist.typing import Batch, PyTree, Sums

IN_FLIGHT = 8
"""Single-step programs that a chain may have under way: with several CPU devices a process, a long
queue of programs with collectives starves their rendezvous."""

NONFINITE = "(nonfinite)"
"""Under this name, which no metric has, the sums of a watched step hold how many steps were taken, and how many bad."""


def loops_are_slow(forward: Any, platform: str) -> bool:
    """Whether steps of this model are faster dispatched one by one than in a loop.

    Args:
        forward: The jaxpr of the model's forward pass.
        platform: The backend: "cpu", "gpu" or "tpu".
    """
    return platform == "cpu" and any(
        equation.primitive.name == "conv_general_dilated" for equation in _equations(forward)
    )


def _equations(jaxpr: Any) -> Iterator[Any]:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from _equations(inner)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Many small sums as one vector of each dtype: one addition a step, one copy to the host an execution.

    Attributes:
        vectors: By dtype; on the devices, or NumPy.  Two of the same sums merge by ``+``, vector by vector.
        structure: The tree of the sums.
        shapes: The shapes of its leaves, each with the number of its vector.

    Example:
        >>> Packed.of({"loss": (jnp.ones(()), jnp.zeros(2))}).sums()
        {'loss': (Array(1., dtype=float32), Array([0., 0.], dtype=float32))}
    """

    vectors: list[Any]
    structure: jax.tree_util.PyTreeDef = dataclasses.field(metadata={"static": True})
    shapes: tuple[tuple[int, tuple[int, ...]], ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, sums: Sums) -> Packed:
        """Packs the leaves, which are ravelled."""
        leaves, structure = jax.tree.flatten(sums)
        dtypes = list(dict.fromkeys(jnp.result_type(a) for a in leaves))
        kinds = [dtypes.index(jnp.result_type(a)) for a in leaves]
        flat = [[jnp.ravel(a) for a, k in zip(leaves, kinds, strict=True) if k == kind] for kind in range(len(dtypes))]
        shapes = tuple((k, jnp.shape(a)) for k, a in zip(kinds, leaves, strict=True))
        return cls([jnp.concatenate(parts) for parts in flat], structure, shapes)

    def sums(self) -> Sums:
        """The tree of the sums, as it was."""
        taken = [0] * len(self.vectors)
        leaves = []
        for kind, shape in self.shapes:
            start, taken[kind] = taken[kind], taken[kind] + math.prod(shape)
            leaves.append(self.vectors[kind][start : taken[kind]].reshape(shape))
        return jax.tree.unflatten(self.structure, leaves)


class Execution:
    """The compiled programs of one model.

    Args:
        train: ``(state, batch) -> (state, sums)``.
        test: ``(state, batch) -> sums``.
        predict: ``(state, batch) -> outputs``.
        distribution: The mesh.
        chain: Dispatch single steps in place of a loop.
        eagerly: Compile nothing: run every operation as it is reached, for debugging.
        nonfinite: What becomes of a training step whose loss is not finite: None does not look; "skip" leaves the
            state as it is, but for the count of steps; "raise" and "stop" end training before it.

    Attributes:
        nonfinite: As it was given.
        traces: How often each program was traced, by "train", "test" and "predict"; each is a compile.
    """

    def __init__(
        self,
        train: Callable[[TrainState, Batch], tuple[TrainState, Sums]],
        test: Callable[[TrainState, Batch], Sums],
        predict: Callable[[TrainState, Batch], PyTree],
        *,
        distribution: DataParallel,
        chain: bool = False,
        eagerly: bool = False,
        nonfinite: str | None = None,
    ) -> None:
        self.nonfinite = nonfinite
        self.traces: collections.Counter[str] = collections.Counter()
        self._chain = chain or eagerly
        self._eagerly = eagerly
        self._distribution = distribution
        whole = distribution.replicated if jax.process_count() > 1 else None  # predictions in every process

        def train_packed(state: TrainState, batch: Batch) -> tuple[TrainState, Packed]:
            state, sums = train(state, batch)
            return state, Packed.of(sums)

        step = train_packed if nonfinite is None else _watched(train, ends=nonfinite != "skip")
        self._train = self._program("train", step, _added_up, donate_argnums=0)
        self._test = self._program("test", lambda state, batch: (None, Packed.of(test(state, batch))), _added_up)
        self._predict = self._program(
            "predict", lambda state, batch: (None, predict(state, batch)), _stacked, out_shardings=(None, whole)
        )

    def not_over(self) -> jax.Array | None:
        """The flag that a pass begins with; None where nothing is watched for."""
        if self.nonfinite is None:
            return None
        return jax.make_array_from_callback((), self._distribution.replicated, lambda _: np.zeros((), bool))

    def train(
        self, state: TrainState, over: jax.Array | None, feed: Feed, start: int, steps: int
    ) -> Iterator[tuple[TrainState, jax.Array | None, Packed]]:
        """Runs `steps` optimizer steps on batches ``start ..`` of a feed; `state` and `over` are used up.

        Args:
            state: The state before them.
            over: The flag that the execution before gave, or `not_over`.
            feed: Where batches are read from.
            start: The first of them.
            steps: How many.

        Yields:
            The state after each program, one or `steps` of them, the flag, and sums to be added up.
        """
        if over is None:
            for after, sums in self._run(self._train, state, feed, start, steps):
                yield after, None, sums
        else:
            for (after, flag), sums in self._run(self._train, (state, over), feed, start, steps):
                yield after, flag, sums

    def trace(self, state: TrainState, feed: Feed) -> jax.stages.Traced:
        """The training program for a state and a feed of these shapes, traced and not yet compiled.

        Args:
            state: Arrays, or `jax.ShapeDtypeStruct` with shardings.
            feed: Alike.
        """
        flag = jax.ShapeDtypeStruct((), bool, sharding=self._distribution.replicated)
        carried = state if self.nonfinite is None else (state, flag)
        counts = (np.int32(0),) if self._chain else (np.int32(0), np.int32(1), 0)
        return self._train.trace(carried, feed, *counts)  # type: ignore[attr-defined]

    def test(self, state: TrainState, feed: Feed, start: int, steps: int) -> list[Packed]:
        """Evaluates `steps` batches; returns sums to be added up."""
        return [sums for _, sums in self._run(self._test, state, feed, start, steps)]

    def predict(self, state: TrainState, feed: Feed, start: int, steps: int, room: int) -> list[PyTree]:
        """The outputs of `steps` batches, in parts with leaves ``[batches, W, ...]``.

        Args:
            state: The variables to predict with.
            feed: Where batches are read from.
            start: The first of them.
            steps: How many.
            room: The most that `steps` will be, which fixes the shape: batches beyond `steps` are empty.
        """
        parts = [outputs for _, outputs in self._run(self._predict, state, feed, start, steps, room)]
        return [jax.tree.map(lambda a: a[None], part) for part in parts] if self._chain else parts

    def _program(
        self, kind: str, step: Callable[..., Any], keep: Callable[..., Any], **jit_arguments: Any
    ) -> Callable[..., Any]:
        """The program ``(state, feed, start, steps, room) -> (state, results)`` of a step.

        Args:
            kind: What its traces are counted under.
            step: ``(state, batch) -> (state or None, result)``; None leaves the state as it is.
            keep: ``keep(results, result, i)`` puts away the result of step i;
                ``keep(None, shapes, room)`` makes the empty results.
            jit_arguments: For `jax.jit`.
        """
        # Jitted inside the program too: its trace for shapes is then the trace of the loop's body.
        step = step if self._eagerly else jax.jit(step)

        def single(state: TrainState, feed: Feed, i: jax.Array) -> tuple[TrainState | None, PyTree]:
            self.traces[kind] += 1
            return step(state, feed.batch(i, self._distribution))

        def eager(state: TrainState, feed: Feed, i: jax.Array) -> tuple[TrainState | None, PyTree]:
            # On split rows each operation would be a program with collectives, and many of those under way starve.
            whole = jax.device_put(feed.batch(i, None), self._distribution.replicated)
            return step(state, jax.block_until_ready(whole))

        def loop(
            state: TrainState, feed: Feed, start: jax.Array, steps: jax.Array, room: int
        ) -> tuple[TrainState | None, PyTree]:
            self.traces[kind] += 1

            def body(i: jax.Array, carry: tuple[TrainState | None, PyTree]) -> tuple[TrainState | None, PyTree]:
                now, results = carry
                after, result = step(state if now is None else now, feed.batch(start + i, self._distribution))
                return after, keep(results, result, i)

            after, shapes = jax.eval_shape(lambda: step(state, feed.batch(start, self._distribution)))
            first = None if after is None else state
            return jax.lax.fori_loop(0, steps, body, (first, keep(None, shapes, room)))

        if self._eagerly:
            return eager
        if self._chain:
            return jax.jit(single, **jit_arguments)
        return jax.jit(loop, static_argnums=4, **jit_arguments)

    def _run(
        self, program: Callable[..., Any], state: PyTree, feed: Feed, start: int, steps: int, room: int = 0
    ) -> Iterator[tuple[Any, PyTree]]:
        if not self._chain:
            yield program(state, feed, np.int32(start), np.int32(steps), room)
            return
        under_way: collections.deque[PyTree] = collections.deque()
        for i in range(start, start + steps):
            after, result = program(state, feed, np.int32(i))
            state = state if after is None else after
            yield state, result
            under_way.append(result)
            if self._distribution.num_devices > 1 and len(under_way) > IN_FLIGHT:
                jax.block_until_ready(under_way.popleft())


def _watched(
    train: Callable[[TrainState, Batch], tuple[TrainState, Sums]], *, ends: bool
) -> Callable[[tuple[TrainState, jax.Array], Batch], tuple[tuple[TrainState, jax.Array], Packed]]:
    """A training step that is not taken if its loss is not finite, nor once training is over.

    Args:
        train: The step, on a state alone.
        ends: Whether such a loss ends training.
    """

    def step(now: tuple[TrainState, jax.Array], batch: Batch) -> tuple[tuple[TrainState, jax.Array], Packed]:
        state, over = now
        after, sums = train(state, batch)
        bad = ~jnp.isfinite(sums["loss"][0]) & ~over
        taken = ~(bad | over)
        kept = jax.tree.map(lambda new, old: jnp.where(taken, new, old), after, state)
        sums = jax.tree.map(lambda a: jnp.where(taken, a, jnp.zeros_like(a)), sums)
        sums = {**sums, NONFINITE: (taken.astype(jnp.float32), bad.astype(jnp.float32))}
        if ends:
            return (kept, over | bad), Packed.of(sums)
        # The step counts all the same, so that the next one has another key.
        return (dataclasses.replace(kept, step=after.step), over), Packed.of(sums)

    return step


def _added_up(results: PyTree | None, result: PyTree, i: jax.Array | int) -> PyTree:
    if results is None:
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), result)
    return jax.tree.map(jnp.add, results, result)


def _stacked(results: PyTree | None, result: PyTree, i: jax.Array | int) -> PyTree:
    if results is None:
        return jax.tree.map(lambda a: jnp.zeros((i, *a.shape), a.dtype), result)
    return jax.tree.map(lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, i, 0), results, result)

"""Programs of K steps: the only file that compiles.

A train execution is one program whose state is donated and whose number of steps is an *argument*: a
loop from `start` to `start + steps` over the batches of a feed.  So an epoch's shorter last execution
is the same program, and compile time does not grow with K.

Where a loop is a trap, a program of one step is dispatched `steps` times instead, without waiting in
between: on CPU, XLA runs gradients of convolutions inside a while loop some 17 times slower than
outside it.
"""

from __future__ import annotations

import collections
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


class Execution:
    """The compiled programs of one model.

    Args:
        train: ``(state, batch) -> (state, sums)``.
        test: ``(state, batch) -> sums``.
        predict: ``(state, batch) -> outputs``.
        distribution: The mesh.
        chain: Dispatch single steps in place of a loop.
        eagerly: Compile nothing: run every operation as it is reached, for debugging.

    Attributes:
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
    ) -> None:
        self.traces: collections.Counter[str] = collections.Counter()
        self._chain = chain or eagerly
        self._eagerly = eagerly
        self._distribution = distribution
        whole = distribution.replicated if jax.process_count() > 1 else None  # predictions in every process
        self._train = self._program("train", train, _added_up, donate_argnums=0)
        self._test = self._program("test", lambda state, batch: (None, test(state, batch)), _added_up)
        self._predict = self._program(
            "predict", lambda state, batch: (None, predict(state, batch)), _stacked, out_shardings=(None, whole)
        )

    def train(self, state: TrainState, feed: Feed, start: int, steps: int) -> Iterator[tuple[TrainState, Sums]]:
        """Runs `steps` optimizer steps on batches ``start ..`` of a feed; `state` is used up.

        Yields:
            The state after each program, one or `steps` of them, and sums to be added up.
        """
        return self._run(self._train, state, feed, start, steps)

    def test(self, state: TrainState, feed: Feed, start: int, steps: int) -> list[Sums]:
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
        mesh = None if self._eagerly else self._distribution
        # Jitted inside the program too: its trace for shapes is then the trace of the loop's body.
        step = step if self._eagerly else jax.jit(step)

        def single(state: TrainState, feed: Feed, i: jax.Array) -> tuple[TrainState | None, PyTree]:
            self.traces[kind] += 1
            return step(state, feed.batch(i, mesh))

        def loop(
            state: TrainState, feed: Feed, start: jax.Array, steps: jax.Array, room: int
        ) -> tuple[TrainState | None, PyTree]:
            self.traces[kind] += 1

            def body(i: jax.Array, carry: tuple[TrainState | None, PyTree]) -> tuple[TrainState | None, PyTree]:
                now, results = carry
                after, result = step(state if now is None else now, feed.batch(start + i, mesh))
                return after, keep(results, result, i)

            after, shapes = jax.eval_shape(lambda: step(state, feed.batch(start, mesh)))
            first = None if after is None else state
            last, results = jax.lax.fori_loop(0, steps, body, (first, keep(None, shapes, room)))
            return last, _unpacked(results, shapes) if keep is _added_up else results

        if self._eagerly:
            return single
        if self._chain:
            return jax.jit(single, **jit_arguments)
        return jax.jit(loop, static_argnums=4, **jit_arguments)

    def _run(
        self, program: Callable[..., Any], state: TrainState, feed: Feed, start: int, steps: int, room: int = 0
    ) -> Iterator[tuple[TrainState, PyTree]]:
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


def _added_up(results: list[jax.Array] | None, result: Sums, i: jax.Array | int) -> list[jax.Array]:
    """The sums so far, in a vector for each dtype: one addition a step in place of one for each of many scalars."""
    kinds = _by_dtype(jax.tree.leaves(result))
    if results is None:
        return [jnp.zeros(sum(math.prod(a.shape) for a in kind), kind[0].dtype) for kind in kinds]
    packed = [jnp.concatenate([jnp.ravel(a) for a in kind]) for kind in kinds]
    return [so_far + more for so_far, more in zip(results, packed, strict=True)]


def _unpacked(results: list[jax.Array], shapes: Sums) -> Sums:
    """What `_added_up` has put into vectors, as a tree of these shapes."""
    leaves, structure = jax.tree.flatten(shapes)
    parts: dict[Any, Iterator[jax.Array]] = {}
    for vector, kind in zip(results, _by_dtype(leaves), strict=True):
        ends = np.cumsum([math.prod(a.shape) for a in kind])
        parts[vector.dtype] = iter(jnp.split(vector, ends[:-1]))
    return jax.tree.unflatten(structure, [next(parts[a.dtype]).reshape(a.shape) for a in leaves])


def _by_dtype(leaves: list[Any]) -> list[list[Any]]:
    kinds: dict[Any, list[Any]] = {}
    for leaf in leaves:
        kinds.setdefault(leaf.dtype, []).append(leaf)
    return list(kinds.values())


def _stacked(results: PyTree | None, result: PyTree, i: jax.Array | int) -> PyTree:
    if results is None:
        return jax.tree.map(lambda a: jnp.zeros((i, *a.shape), a.dtype), result)
    return jax.tree.map(lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, i, 0), results, result)

"""How kdist scales: what grows with the number of chips, and what must not.

    pip install -e '.[tpu]'
    python tools/bench_scale.py                      # the whole table
    python tools/bench_scale.py --rows compile host  # rows whose names start so

There is no TPU here: training programs are compiled for slices of one chip, v5p, from 8 chips to 1,024, and nothing of
them is run.  Each chip has the same rows at every size.  A size is measured in turn with the others, with JAX's caches
emptied before; the ratio is that of the largest size to the smallest.  What takes time is the compiler's code for large
collectives, one kernel each, which is longer the more rings a slice has; so a small model written as one scan, of which
little else is to be compiled, shows most growth, and the same program by hand is beside it.  Seconds of compiling are
those of processors, which whatever else runs here changes little.

The rows that run train on simulated devices, beside the same training by hand, as in `measure.py`: leave the machine
alone meanwhile.  What they hold against each other is by how much a step grows with the number of devices.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import importlib
import math
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import baselines
import flax.linen as nn
import jax
import jax.numpy as jnp
import measure
import numpy as np
from measure import Result, Row, Side, duration, noise, timed

import kdist
from kdist.data import Feed
from kdist.plan import devices_of
from kdist.programs import collectives
from kdist.typing import Batch, PyTree

CLASSES = 10
ROWS_A_CHIP = 8
BATCHES = 4
"""Those of a chunk."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much each row computes.

    Attributes:
        topologies: Of one chip, from few to many.
        layers: Of the scan that is compiled.
        deep: Of the MLP that is compiled, whose layers are written one after the other.
        width: Of its layers; it divides by all numbers of chips.
        steps: K, those of a program that is run.
        epochs: Programs of a call.
        rounds: How often each is measured.
    """

    topologies: tuple[str, ...] = ("v5p:2x2x2", "v5p:4x4x4", "v5p:4x8x8", "v5p:8x8x16")
    layers: int = 12
    deep: int = 24
    width: int = 8192
    steps: int = 64
    epochs: int = 64
    rounds: int = 5


FULL = Sizes()
QUICK = Sizes(topologies=("v5p:2x2x2", "v5p:4x4x4"), layers=2, deep=2, width=512, steps=4, epochs=1, rounds=1)

# Programs for TPUs -------------------------------------------------------------------------------


class Layer(nn.Module):
    """A dense layer, as `nn.scan` calls it."""

    @nn.compact
    def __call__(self, x, _):
        return x + nn.relu(nn.Dense(x.shape[-1])(x)), None


class Stack(nn.Module):
    """Layers of one width, as a scan, and logits, whose bias divides by no number of chips."""

    layers: int

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers)
        return nn.Dense(CLASSES)(stack()(x, None)[0])


Lower = Callable[[kdist.DataParallel, Sizes], tuple[Any, jax.stages.Lowered]]
"""Makes a training program for a distribution: the shapes of its state, and itself."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A training program, compiled.

    Attributes:
        seconds: To trace, lower and compile it, of all processors.
        text_bytes: Of its text.
        instructions: In it.
        lowered: Its collectives by kind, as kdist wrote them: those of a loop count once.
        compiled: Those of a step, as XLA left them.
        split_bytes: Of the state that its stage splits, on a chip, as the program gives it back.
        least_bytes: The same if each array were split that has a dimension which divides.
    """

    seconds: float
    text_bytes: int
    instructions: int
    lowered: dict[str, int]
    compiled: dict[str, int]
    split_bytes: int
    least_bytes: int


def compiled_for(topology: str, stage: int, sizes: Sizes, lower: Lower) -> Program:
    """The program that trains a model on this slice.

    Raises:
        DistributionError: The compiler for TPUs is not installed.
    """
    distribution = kdist.DataParallel(stage, devices=devices_of(topology))
    chips = distribution.num_devices
    jax.clear_caches()
    gc.collect()
    began = time.process_time()
    state, lowered = lower(distribution, sizes)
    compiled = lowered.compile()
    seconds = time.process_time() - began
    text, (places, _) = compiled.as_text(), compiled.output_shardings
    split = {0: (), 1: ("opt_state",), 3: ("params", "opt_state")}[stage]
    return Program(
        seconds=seconds,
        text_bytes=len(text.encode()),
        instructions=len(re.findall(r"^\s*(?:ROOT )?%[\w.\-]+ = ", text, re.MULTILINE)),
        lowered=written(lowered.as_text()),
        compiled=left(text),
        split_bytes=sum(bytes_a_chip(getattr(state, part), getattr(places, part)) for part in split),
        least_bytes=sum(
            math.prod(a.shape) * a.dtype.itemsize // (chips if any(n % chips == 0 for n in a.shape) else 1)
            for part in split
            for a in jax.tree.leaves(getattr(state, part))
        ),
    )


def rows_of(distribution: kdist.DataParallel, width: int) -> Batch:
    """A batch of the same rows a chip."""
    rows = ROWS_A_CHIP * distribution.num_devices
    return Batch(jax.ShapeDtypeStruct((rows, width), jnp.float32), jax.ShapeDtypeStruct((rows,), jnp.int32))


def chunk_of(batch: Batch, distribution: kdist.DataParallel) -> Batch:
    """Batches as they lie on the chips."""
    place = distribution.batch_sharding(axis=1)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((BATCHES, *a.shape), a.dtype, sharding=place), batch)


def by_kdist(module: nn.Module, width: int, distribution: kdist.DataParallel) -> tuple[Any, jax.stages.Lowered]:
    """The state, and the program that `fit` would run."""
    trainer = kdist.Trainer(
        module,
        optimizer="adam",
        loss=kdist.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        distribution=distribution,
    )
    batch = rows_of(distribution, width)
    state = trainer.shapes(batch)
    feed = Feed(chunk_of(batch, distribution), None, False)
    return state, trainer.bind(state, batch).execution.trace(state, feed).lower()


def stack(distribution: kdist.DataParallel, sizes: Sizes) -> tuple[Any, jax.stages.Lowered]:
    """A scan over layers, by kdist."""
    return by_kdist(Stack(sizes.layers), sizes.width, distribution)


def mlp(distribution: kdist.DataParallel, sizes: Sizes) -> tuple[Any, jax.stages.Lowered]:
    """Layers one after the other, by kdist: a quarter as wide."""
    width = max(sizes.width // 4, distribution.num_devices)
    return by_kdist(baselines.MLP((width,) * sizes.deep), width, distribution)


def stack_by_hand(distribution: kdist.DataParallel, sizes: Sizes) -> tuple[Any, jax.stages.Lowered]:
    """The scan over layers as one writes it in JAX: a `jit` whose arrays lie as they do in kdist's."""
    module, chunk = Stack(sizes.layers), chunk_of(rows_of(distribution, sizes.width), distribution)
    rows = chunk.y.shape[1]
    shapes = jax.eval_shape(lambda x: baselines.init(module, x), jax.ShapeDtypeStruct(chunk.x.shape[1:], jnp.float32))
    places = baselines.State(
        jax.tree.map(lambda a: distribution.param_sharding(a.shape), shapes.params),
        jax.tree.map(lambda a: distribution.opt_sharding(a.shape), shapes.opt_state),
    )
    state = jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes, places)

    def run(state: baselines.State, x: jax.Array, y: jax.Array, steps: jax.Array) -> tuple[Any, jax.Array]:
        def step(i: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
            now = jax.lax.with_sharding_constraint(carry[0], places)
            grads, sums = jax.grad(lambda p: baselines.loss_and_sums(module, p, x[i], y[i]), has_aux=True)(now.params)
            after = baselines.update(now, jax.tree.map(lambda g: g / rows, grads))
            return jax.lax.with_sharding_constraint(after, places), carry[1] + sums

        return jax.lax.fori_loop(0, steps, step, (state, jnp.zeros(2)))

    return state, jax.jit(run, donate_argnums=0).lower(state, chunk.x, chunk.y, np.int32(1))


def written(text: str) -> dict[str, int]:
    """The collectives in a lowered program, each once, by XLA's names."""
    found = re.findall(r'"?stablehlo\.(all_reduce|all_gather|reduce_scatter|all_to_all|collective_\w+)"?\(', text)
    return dict(collections.Counter(kind.replace("_", "-") for kind in found))


def left(text: str) -> dict[str, int]:
    """The collectives of a step of a compiled program, whichever chips are in a group."""
    moved = collectives(text)
    return {kind: sum(m.count for m in moved if m.kind == kind) for kind in {m.kind for m in moved}}


def bytes_a_chip(shapes: PyTree, places: PyTree) -> int:
    """What a chip holds of arrays that lie so."""
    return sum(
        math.prod(place.shard_shape(a.shape)) * a.dtype.itemsize
        for a, place in zip(jax.tree.leaves(shapes), jax.tree.leaves(places), strict=True)
    )


first_compiled = functools.cache(compiled_for)
"""It warms up what is timed, and tells all that does not differ from time to time."""

# Rows of programs --------------------------------------------------------------------------------


def count(kinds: dict[str, int]) -> str:
    """Collectives in words."""
    return " + ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))


def times(factor: float) -> str:
    """A factor in words."""
    return f"{factor:.2f} times"


def grown(last: float, first: float) -> float:
    """By what factor."""
    return last / first


def grown_in_all(last: dict[str, int], first: dict[str, int]) -> float:
    """By what factor the number of collectives, whichever they are."""
    return sum(last.values()) / sum(first.values())


def grown_by_kind(last: dict[str, int], first: dict[str, int]) -> float:
    """By what factor the number of collectives of the kind that grew most."""
    return max(n / first[kind] if kind in first else math.inf for kind, n in last.items())


@dataclasses.dataclass(frozen=True)
class Grown:
    """What came of such a row: by topology what was found in each round, and what the last of them is held against."""

    name: str
    found: dict[str, list[Any]]
    base: list[Any]
    missing: str = ""


@dataclasses.dataclass(frozen=True)
class Growth:
    """A line that says how something of a program changes with the number of chips.

    Attributes:
        name: What ``--rows`` picks it by.
        what: It.
        stage: Of ZeRO.
        of: Takes it from a program.
        at_most: The limit of the ratio of the largest size to the smallest.
        ratio: How that is taken.
        shown: Says it.
        base: Takes from the program of the largest size what it is held against, in place of the smallest size.
        against: Says what that is.
        timed: Whether it differs from time to time, so that each round compiles anew.
        lower: What is compiled.
    """

    name: str
    what: str
    stage: int
    of: Callable[[Program], Any]
    at_most: float
    ratio: Callable[[Any, Any], float] = grown
    shown: Callable[[Any], str] = "{:,}".format
    base: Callable[[Program], Any] | None = None
    against: str = ""
    timed: bool = False
    lower: Lower = stack
    devices: int = 1

    def measure(self, sizes: Sizes, rounds: int) -> Grown:
        """All sizes in turn, there and back, once they are warm."""
        found: dict[str, list[Any]] = {topology: [] for topology in sizes.topologies}
        try:
            programs = {topology: first_compiled(topology, self.stage, sizes, self.lower) for topology in found}
        except kdist.errors.DistributionError as error:
            return Grown(self.name, found, [], str(error))
        for i in range(rounds if self.timed else 1):
            for topology in found if i % 2 == 0 else reversed(found):
                if self.timed:
                    programs[topology] = compiled_for(topology, self.stage, sizes, self.lower)
                found[topology].append(self.of(programs[topology]))
        *_, last = found
        base = [self.base(programs[last])] if self.base else found[sizes.topologies[0]]
        return Grown(self.name, found, base)

    def line(self, result: Grown) -> str:
        """The row as Markdown: all sizes but the smallest, the smallest, and the ratio of the largest to it."""
        chips = [f"{math.prod(map(int, t.partition(':')[2].split('x'))):,}" for t in result.found]
        smallest, *others = result.found
        what = f"stage {self.stage}: {self.what}, {' / '.join(chips[1:])} chips"
        against = self.against or f"{chips[0]} chips"
        if result.missing:
            return f"| {what} | {against} | | | | | <= {self.at_most:g} | not measured: {result.missing} |"
        ours = " / ".join(self._typical(result.found[topology]) for topology in others)
        every = [self.ratio(*pair) for pair in zip(result.found[others[-1]], result.base, strict=True)]
        ratio = statistics.median(every)
        return (
            f"| {what} | {against} | {ours} | {self._typical(result.base)} | **{ratio:.2f}** | "
            f"{min(every):.2f} .. {max(every):.2f} | <= {self.at_most:g} | {'yes' if ratio <= self.at_most else 'NO'} |"
        )

    def _typical(self, found: list[Any]) -> str:
        return self.shown(statistics.median(found) if self.timed else found[0])


def compile_growth(sizes: Sizes, *, stage: int) -> tuple[Side, Side]:
    """By what factor the largest slice takes longer to compile for than the smallest: kdist, and by hand.

    Raises:
        ImportError: The compiler for TPUs is not installed.
    """
    importlib.import_module("libtpu")

    def side(lower: Lower) -> float:
        few, many = (compiled_for(topology, stage, sizes, lower) for topology in ends)
        return many.seconds / few.seconds

    ends = (sizes.topologies[0], sizes.topologies[-1])
    return functools.partial(side, stack), functools.partial(side, stack_by_hand)


# Programs that run -------------------------------------------------------------------------------


def on_host(work: Callable[[], Any], units: int) -> Side:
    """A side that calls `work`; seconds that the calling thread computes, by the unit, whatever it waits for."""

    def side() -> float:
        gc.collect()
        began = time.thread_time()
        work()
        return (time.thread_time() - began) / units

    return side


def host_fit(sizes: Sizes, *, devices: int, by: Callable[..., Side] = timed) -> tuple[Side, Side]:
    """Epochs of one program of K steps each, on an MLP so small that little but the host and the simulation is left.

    Raises:
        RuntimeError: This process has another number of devices.
    """
    if jax.device_count() != devices:
        raise RuntimeError(f"This row is of {devices} devices, and here are {jax.device_count()}. Unset XLA_FLAGS.")
    batch_size, epochs, module = 128, sizes.epochs, baselines.MLP((128,))
    x, y = noise(sizes.steps * batch_size, 64)
    model = kdist.Model(module)
    loss = kdist.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], steps_per_execution=sizes.steps)
    by_hand = baselines.sharded_fit(module, x, y, batch_size)
    return (
        by(
            lambda: model.fit(x, y, batch_size=batch_size, epochs=epochs, cache=True, verbose=0),
            epochs * sizes.steps,
        ),
        by(lambda: by_hand(epochs), epochs * sizes.steps),
    )


@dataclasses.dataclass(frozen=True)
class HostGrowth(Row):
    """By what factor a step costs the host more on simulated devices than on one: in each round, a process for either.

    Attributes:
        few: The row of one device.
        many: That of several.
    """

    few: Row | None = None
    many: Row | None = None

    def measure(self, sizes: Sizes, rounds: int) -> Result:
        """The factor of kdist, and that of the training by hand, which is what the simulation costs."""
        assert self.few is not None and self.many is not None
        result = Result(self.name, [], [])
        for _ in range(rounds):
            few, many = (measure.measure_apart(row, 1, sizes is QUICK) for row in (self.few, self.many))
            result.ours.append(many.ours[0] / few.ours[0])
            result.theirs.append(many.theirs[0] / few.theirs[0])
        return result


# The table ---------------------------------------------------------------------------------------

STAGES = (0, 1, 3)
WHAT = "MLP 64-128-10, batch 128, 64 steps a program, devices: {}: fit"
BY_HAND = "scan inside shard_map"
THREAD = {
    devices: Row(
        f"thread-{devices}",
        f"{WHAT.format(devices)}, what its thread computes",
        BY_HAND,
        functools.partial(host_fit, devices=devices, by=on_host),
        at_most=1.5,
        devices=devices,
    )
    for devices in (1, 8, 64)
}
ROWS: list[Row | Growth] = [
    *(
        Row(
            f"host-{devices}",
            WHAT.format(devices),
            BY_HAND,
            functools.partial(host_fit, devices=devices),
            at_most=1.1,
            devices=devices,
        )
        for devices in (1, 8, 64)
    ),
    *THREAD.values(),
    *(
        HostGrowth(
            f"growth-{many}",
            f"what its thread computes for a step on {many} devices, on one 1",
            f"{BY_HAND}, likewise",
            THREAD[many].sides,
            at_most=1.1,
            shown=times,
            few=THREAD[1],
            many=THREAD[many],
        )
        for many in (8, 64)
    ),
    *(
        Growth(f"compile-{stage}", "compile time, MLP", stage, lambda p: p.seconds, 1.5, shown=duration, lower=mlp)
        for stage in STAGES
    ),
    *(
        Growth(f"scan-{stage}", "compile time, scan", stage, lambda p: p.seconds, 1.5, shown=duration, timed=True)
        for stage in STAGES
    ),
    *(
        Row(
            f"hand-{stage}",
            f"stage {stage}: compile time, scan, for the largest slice, for the smallest 1",
            "jit with shardings, likewise",
            functools.partial(compile_growth, stage=stage),
            at_most=1.1,
            unit="program",
            shown=times,
        )
        for stage in STAGES
    ),
    *(Growth(f"text-{stage}", "bytes of the program", stage, lambda p: p.text_bytes, 1.5) for stage in STAGES),
    *(Growth(f"instructions-{stage}", "instructions", stage, lambda p: p.instructions, 1.5) for stage in STAGES),
    *(
        Growth(f"lowered-{stage}", "collectives lowered", stage, lambda p: p.lowered, 1, grown_by_kind, count)
        for stage in STAGES
    ),
    *(
        Growth(
            f"collectives-{stage}", "collectives a step, compiled", stage, lambda p: p.compiled, 1, grown_in_all, count
        )
        for stage in STAGES
    ),
    *(
        Growth(
            f"state-{stage}",
            f"bytes of {what} a chip",
            stage,
            lambda p: p.split_bytes,
            1,
            base=lambda p: p.least_bytes,
            against="an Nth of each array that divides, the others whole",
        )
        for stage, what in ((1, "moments"), (3, "parameters and moments"))
    ),
]


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # what is read from there is not compiled
    measure.main(__doc__, ROWS, FULL, QUICK)

"""Training programs for TPU slices that are not there: which collectives were written, and which XLA left.

Run as a script, since the compiler for TPUs does not take the flags that simulate devices: it is given a list of
`[topology, slices, stage, microbatches, compiled]` as JSON, and prints a line of JSON for each.
"""

import collections
import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp

import kdist
from kdist.data.feed import shapes_of_chunk
from kdist.plan import devices_of
from kdist.programs import collectives
from kdist.typing import Batch

COLLECTIVES = {f"stablehlo.{kind}" for kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")}
COLLECTIVES |= {"stablehlo.collective_permute", "stablehlo.collective_broadcast"}
WIDTH = 512
"""Divides by every number of chips."""


class MLP(nn.Module):
    """Four parameters: all but the last bias divide by the number of chips."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(WIDTH)(x)))


def lowered(distribution, microbatches=1):
    """The training program of the MLP, as kdist wrote it."""
    trainer = kdist.Trainer(
        MLP(),
        optimizer="adam",
        loss=kdist.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        distribution=distribution,
        microbatches=microbatches,
    )
    rows = 4 * distribution.num_devices
    batch = Batch(jax.ShapeDtypeStruct((rows, WIDTH), jnp.float32), jax.ShapeDtypeStruct((rows,), jnp.int32))
    state = trainer.shapes(batch)
    feed = shapes_of_chunk(batch, distribution, distribution.num_devices * microbatches)
    return trainer.bind(state, batch).execution.trace(state, feed).lower()


def written(program):
    """How often each collective is in a lowered program, by kind, size of its groups, and how many loops it is in."""
    module = program.compiler_ir("stablehlo")
    functions = {op.attributes["sym_name"].value: op for op in module.body.operations if "sym_name" in op.attributes}
    found = collections.Counter()

    def walk(op, depth):
        if op.name in COLLECTIVES:
            _, size = op.attributes["replica_groups"].type.shape
            found[op.name.removeprefix("stablehlo."), size, depth] += 1
        if op.name == "func.call":
            walk(functions[op.attributes["callee"].value], depth)
        for region in op.regions:
            for inner in (inner for block in region for inner in block):
                walk(inner.operation, depth + (op.name == "stablehlo.while"))

    walk(functions["main"].operation, 0)
    return found


def main(wanted):
    for topology, slices, stage, microbatches, compiled in wanted:
        program = lowered(kdist.DataParallel(stage, devices=devices_of(topology, slices)), microbatches)
        moved = collectives(program.compile().as_text()) if compiled else []
        left = [[move.kind, move.group, move.count] for move in moved]
        print(json.dumps({"written": [[*key, n] for key, n in written(program).items()], "left": left}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

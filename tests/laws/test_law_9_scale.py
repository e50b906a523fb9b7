"""Law 9 on slices of any size: a step holds exactly the collectives of its stage, none in the loop over microbatches.

Exact counts are of the program as kdist wrote it, and of what XLA made of it on eight simulated devices; on TPUs XLA
combines collectives, and does some by others.
"""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import lowered
import pytest

import kdist
from kdist.programs import Moved, collectives

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu compiles programs for TPUs: pip install 'kdist[tpu]'"
)
STAGES, MICROBATCHES = (0, 1, 2, 3), (1, 2)
PARAMS, SPLIT = 4, 3
"""Of the MLP in `lowered.py`: all but the last bias are split."""


def asked_for(*, replicas, shards, stage, microbatches):
    """What kdist writes: a collective an array, all of them in the loop over steps and in no other.

    At stages 1 and 2 the updated parameters are gathered too, which is written as where they are to lie.
    """
    # The sums of losses and of hits.  What microbatches add up is not known before: the denominator, the rows and the
    # number of predictions too.
    sums = 2 if microbatches == 1 else 5
    whole = PARAMS - SPLIT if stage else PARAMS
    found = {("all_reduce", replicas * shards, 1): whole + sums}
    if stage:
        found["reduce_scatter", shards, 1] = SPLIT
        if replicas > 1:
            found["all_reduce", replicas, 1] = SPLIT
    if stage == 3:  # the last kernel is gathered once more, for the gradient of what it multiplies
        found["all_gather", shards, 1] = SPLIT + (1 if microbatches == 1 else 0)
    return found


def left(*, replicas, stage):
    """What XLA leaves of it on CPUs: sums of one group are one collective, and what is gathered twice stays."""
    found = {("all-reduce", 8): 1}
    if stage:
        found |= {("reduce-scatter", 8 // replicas): SPLIT, ("all-gather", 8 // replicas): SPLIT}
        if replicas > 1:
            found["all-reduce", replicas] = 1
    return found


@pytest.mark.parametrize("microbatches", MICROBATCHES)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_eight_simulated_devices(stage, replicas, microbatches):
    distribution = kdist.DataParallel(stage, devices=jax.devices()[:8], replicas=replicas)
    program = lowered.lowered(distribution, microbatches)
    expected = asked_for(replicas=replicas, shards=8 // replicas, stage=stage, microbatches=microbatches)
    assert lowered.written(program) == expected
    # What is in the loop over microbatches would count as often as that runs.
    moved = {(m.kind, m.group): m.count for m in collectives(program.compile().as_text())}
    assert moved == left(replicas=replicas, stage=stage)


def programs(*wanted):
    """What `lowered.py` says of each topology, slices, stage, microbatches and whether to compile."""
    command = [sys.executable, lowered.__file__, json.dumps(wanted)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for line in ended.stdout.splitlines():
        found = json.loads(line)
        yield (
            {tuple(key): n for *key, n in found["written"]},
            {tuple(key): n for *key, n in found["left"]},
        )


TOPOLOGIES = {("v5e:2x4", 1): (1, 8), ("v5e:16x16", 1): (1, 256), ("v5e:4x4", 2): (2, 16)}
"""Replicas and shards of a topology and a number of slices."""


@needs_libtpu
def test_slices_of_tpus():
    wanted = [(*where, stage, m, False) for where in TOPOLOGIES for stage in STAGES for m in MICROBATCHES]
    for (*where, stage, microbatches, _), (written, _) in zip(wanted, programs(*wanted), strict=True):
        replicas, shards = TOPOLOGIES[tuple(where)]
        expected = asked_for(replicas=replicas, shards=shards, stage=stage, microbatches=microbatches)
        assert written == expected, (where, stage, microbatches)


@needs_libtpu
@pytest.mark.parametrize("microbatches", MICROBATCHES)
def test_eight_chips_as_compiled(microbatches):
    """XLA combines some, and does a small reduce-scatter as an all-reduce; none is in the loop over microbatches."""
    once = {("all-reduce", 8): 2, ("reduce-scatter", 8): 1}
    nothing, moments, all_of_it = programs(*(("v5e:2x4", 1, stage, microbatches, True) for stage in (0, 1, 3)))
    assert nothing[1] == {("all-reduce", 8): 1}
    assert moments[1] == {**once, ("all-gather", 8): 2}
    assert all_of_it[1] == {**once, ("all-gather", 8): 3 if microbatches == 1 else 2}


@needs_libtpu
def test_two_slices_reduce_hierarchically():
    """Gradients are reduced and scattered inside a slice; between slices their parts are added up: also at stage 0,
    which asks for one sum over all chips."""
    for (written, moved), stage in zip(
        programs(*(("v5e:4x4", 2, stage, 2, True) for stage in (0, 1))), (0, 1), strict=True
    ):
        assert (("all_reduce", 32, 1) in written) and not any(group == 32 for _, group in moved)
        assert moved["reduce-scatter", 16] == 1 and moved["all-gather", 16] == 2
        assert moved["all-reduce", 2] == (3 if stage == 0 else 4)


def test_what_slices_send_to_each_other_counts():
    """TPU programs write it as what the host receives: beside the result, a context of four bytes and a token."""
    attributes = (
        'frontend_attributes={_xla_megascale_target="{1,3:4}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    text = f"""
ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8]{{0}} parameter(0)
  %t = token[] after-all()
  %s = (f32[8]{{0}}, u32[], token[]) send(%a, %t), channel_id=2, {attributes}
  %r = (f32[8]{{0}}, u32[], token[]) recv(%t), channel_id=1, {attributes}
}}"""
    assert collectives(text) == [
        Moved("all-reduce", group=3, count=1, sent=pytest.approx(2 * 32 * 2 / 3), between=True)
    ]

"""What a step costs: arithmetic of traced programs, and collectives of compiled ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import kdist
from kdist.programs import Moved, Work, collectives, work

ONES = np.ones((4, 4), np.float32)
DOT, BYTES = 2 * 4**3, 3 * ONES.nbytes


def of(fn, *args):
    return work(jax.make_jaxpr(fn)(*args))


def test_matrix_multiplications():
    assert of(jnp.matmul, ONES, ONES) == Work(DOT, BYTES)
    batched = np.ones((5, 4, 4), np.float32)
    assert of(jnp.matmul, batched, batched) == Work(5 * DOT, 5 * BYTES)
    assert of(lambda a: jnp.einsum("ijk,lk->ijl", a, ONES), batched).flops == 2 * 5 * 4 * 4 * 4


def test_a_gradient_is_two_more():
    assert of(jax.grad(lambda a, b: jnp.sin(a @ b).sum(), argnums=(0, 1)), ONES, ONES).flops == 3 * DOT


def test_convolutions_with_groups_strides_and_their_gradients():
    x, kernel = np.ones((2, 8, 8, 6), np.float32), np.ones((3, 3, 2, 9), np.float32)

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
        )

    assert of(conv, x, kernel).flops == 2 * (2 * 4 * 4 * 9) * (3 * 3 * 2)


def layers(x, kernels):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]


@pytest.mark.parametrize(
    ("fn", "times"),
    [
        pytest.param(layers, 7, id="scan"),
        pytest.param(jax.checkpoint(layers), 7, id="checkpoint"),
        pytest.param(lambda x, k: jax.lax.cond(x.sum() > 0, lambda: layers(x, k), lambda: x @ k[0]), 7, id="cond"),
        pytest.param(lambda x, k: jax.lax.fori_loop(0, x[0, 0].astype(int), lambda i, x: x @ k[0], x), 1, id="while"),
    ],
)
def test_loops_and_branches(fn, times):
    assert of(jax.jit(fn), ONES, np.ones((7, 4, 4), np.float32)).flops == times * DOT


def test_a_device_does_its_part():
    mesh = kdist.DataParallel(devices=jax.devices()[:4]).mesh
    rows = PartitionSpec("data")
    split = jax.shard_map(lambda a: a @ ONES, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    assert of(split, np.ones((16, 4), np.float32)).flops == DOT


# Compiled ----------------------------------------------------------------------------------------


def compiled(fn, *args, spec):
    mesh = kdist.DataParallel(devices=jax.devices()[:8], replicas=2).mesh
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return collectives(jax.jit(mapped).lower(*args).compile().as_text())


SPLIT = PartitionSpec(("replica", "data"))


def test_each_kind_is_counted_with_what_a_device_sends():
    x = np.ones((64, 16), np.float32)  # 8 rows of 64 bytes a device
    a_shard = 8 * 64

    def some(a):
        return (
            jax.lax.psum(a, ("replica", "data"))
            + jax.lax.psum_scatter(jnp.tile(a, (4, 1)), "data", tiled=True)
            + jax.lax.all_gather(a, "data", tiled=True)[:8]
            + jax.lax.ppermute(a, "data", [(i, (i + 1) % 4) for i in range(4)])
        )

    found = {(move.kind, move.group): move for move in compiled(some, x, spec=SPLIT)}
    assert found["all-reduce", 8].sent == 2 * a_shard * 7 / 8
    assert found["reduce-scatter", 4].sent == found["all-gather", 4].sent == 3 * a_shard
    assert [move.count for move in found.values()] == [1] * len(found)
    assert {kind for kind, _ in found} == {"all-reduce", "reduce-scatter", "all-gather", "collective-permute"}


def test_in_a_loop_over_layers_each_counts():
    def summed(x):
        return jax.lax.scan(lambda x, _: (jax.lax.psum(x, "data") * 0.1, None), x, None, length=6)[0]

    assert compiled(summed, np.ones((8, 16), np.float32), spec=SPLIT) == [Moved("all-reduce", 4, 6, 6 * 2 * 64 * 3 / 4)]


def test_one_device_sends_nothing():
    assert collectives(jax.jit(jnp.matmul).lower(ONES, ONES).compile().as_text()) == []


TEXT = """
HloModule jit_loop, is_scheduled=true

%fused (p: bf16[1,16]) -> (bf16[1,16], bf16[8,16]) {{
  %p = bf16[1,16]{{1,0:T(8,128)(2,1)}} parameter(0)
  %g.1 = bf16[8,16]{{1,0:T(8,128)(2,1)S(1)}} all-gather(%p), channel_id=3, {groups}, dimensions={{0}}
  ROOT %c = (bf16[1,16]{{1,0}}, bf16[8,16]{{1,0}}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}}

ENTRY %main (a: bf16[1,16]) -> bf16[8,16] {{
  %a = bf16[1,16]{{1,0:T(8,128)(2,1)}} parameter(0)
  %start = (bf16[1,16]{{1,0}}, bf16[8,16]{{1,0}}) fusion(%a), kind=kCustom, calls=%fused
  %done = bf16[8,16]{{1,0}} fusion(%a), kind=kCustom, calls=%fused
  %other = (bf16[1,16]{{1,0}}, bf16[8,16]{{1,0}}) all-gather-start(%a), channel_id=4, {groups}, dimensions={{0}}
  ROOT %end = bf16[8,16]{{1,0}} all-gather-done(%other)
}}
"""


@pytest.mark.parametrize(
    "groups",
    [
        "replica_groups={{0,1,2,3,4,5,6,7}}",
        "replica_groups=[2,8]<=[16]",
        "replica_groups=mesh['axis_0'=2,'axis_1'=8,'axis_2'=1] {'axis_1'}",
    ],
)
def test_programs_of_tpus(groups):
    """A collective that computation hides is there twice, on one channel; its start holds its operand too."""
    assert collectives(TEXT.format(groups=groups)) == [Moved("all-gather", 8, 2, 2 * 8 * 16 * 2 * 7 / 8)]

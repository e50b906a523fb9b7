"""Law 5: ZeRO 0 == 1 == 2 == 3, on eight devices, for what looks at the whole gradient and the whole state.

Each device holds its part of what a stage splits and no more; a stack of layers is never whole at stage 3.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import CLASSES, FEATURES, crossentropy, data, make, moved, same
from test_law_9_collectives import collectives, programs

import kdist
from kdist.gathering import Collectives, Split, call

optimizers = kdist.optimizers


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        optimizer: Makes the optimizer.
        kind: Linen or NNX.
        batch_norm: Whether there are batch statistics.  Before them a bias has a gradient of 0, whose noise some
            optimizers take for a direction.
        replicas: The length of the "replica" axis.
        arguments: For `Model.compile`.
    """

    optimizer: object
    kind: str = "linen"
    batch_norm: bool = False
    replicas: int = 1
    arguments: dict = dataclasses.field(default_factory=dict)


def everything():
    return optimizers.AdamW(0.02, weight_decay=0.1, global_clipnorm=0.05, use_ema=True, ema_momentum=0.5)


CASES = {
    "adam": Case(lambda: optimizers.Adam(0.01)),
    "nnx": Case(lambda: optimizers.SGD(0.1, momentum=0.9), kind="nnx", batch_norm=True),
    "decay, global norm, averages, microbatches": Case(everything, arguments={"microbatches": 2}),
    "lamb over two replicas": Case(lambda: optimizers.Lamb(0.01), replicas=2),
    "adafactor": Case(lambda: optimizers.Adafactor(0.01)),
    "accumulation": Case(lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2)),
    "float16 with a loss scale": Case(lambda: optimizers.SGD(0.1), arguments={"precision": "mixed_float16"}),
    "microbatches over two replicas": Case(
        lambda: optimizers.SGD(0.1, momentum=0.9), replicas=2, arguments={"microbatches": 2}
    ),
}


def trained(name, stage, devices=8):
    """The model of a case after an epoch with a tail, and what a user can see of it."""
    case = CASES[name]
    x, y, weight = data(27)
    model = make("mlp", case.kind, batch_norm=case.batch_norm)
    distribution = kdist.DataParallel(
        zero_stage=stage, devices=jax.devices()[:devices], replicas=case.replicas if devices > 1 else 1
    )
    model.compile(case.optimizer(), crossentropy(), metrics=["accuracy"], distribution=distribution, **case.arguments)
    model.build(x)
    before = model.get_weights()
    seen = {"history": model.fit(x, y, 16, 3, sample_weight=weight, verbose=0).history}
    seen["weights"] = model.get_weights()
    assert moved(before, seen["weights"])
    seen["opt_state"] = [np.asarray(a) for a in jax.tree.leaves(model.state.opt_state)]
    seen["evaluate"] = model.evaluate(x, y, 16, return_dict=True, verbose=0)
    seen["predict"] = model.predict(x, 16, verbose=0)
    return model, seen


@functools.cache
def replicated(name):
    return trained(name, 0)[1]


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_every_stage_gives_the_same(name, stage):
    loose = "precision" in CASES[name].arguments or CASES[name].batch_norm  # over two rows a shard, which may be near
    same(trained(name, stage)[1], replicated(name), rtol=2e-3 if loose else 1e-4, atol=2e-4 if loose else 1e-5)


def test_stage_two_is_stage_one():
    same(trained("adam", 2)[1], trained("adam", 1)[1], rtol=0, atol=0)


def test_one_device_splits_nothing():
    model, _ = trained("adam", 3, devices=1)
    assert all(a.sharding.is_fully_replicated for a in jax.tree.leaves(model.state))


def held(tree):
    """Bytes that the first device holds of a tree."""
    return sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(tree))


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_each_device_holds_its_part(stage):
    """What divides is split by eight: here all but the last bias, of three numbers, and Adam's scalars."""
    model, _ = trained("adam", stage)
    rest = CLASSES * 4
    params, moments = (sum(a.nbytes for a in jax.tree.leaves(model.params)) - rest for _ in range(2))
    scalars = sum(a.nbytes for a in jax.tree.leaves(model.state.opt_state) if a.ndim == 0)
    assert held(model.params) == (params / 8 if stage == 3 else params) + rest
    assert held(model.state.opt_state) == 2 * ((moments / 8 if stage else moments) + rest) + scalars


def test_shards_lie_inside_a_replica():
    model, _ = trained("lamb over two replicas", 3)
    assert model.params["hidden"]["kernel"].sharding.spec == jax.sharding.PartitionSpec(None, "data")
    assert model.params["hidden"]["kernel"].addressable_shards[0].data.shape == (FEATURES, 2)


def compiled_at(stage, devices):
    model = make("mlp", "linen")
    distribution = kdist.DataParallel(zero_stage=stage, devices=jax.devices()[:devices])
    model.compile(optimizers.Adam(0.01), crossentropy(), distribution=distribution)
    return model


@pytest.mark.parametrize(("saved", "restored"), [((3, 8), (0, 1)), ((0, 2), (3, 8)), ((1, 8), (3, 4))])
def test_a_checkpoint_is_restored_at_any_stage_on_any_devices(tmp_path, saved, restored):
    x, y, _ = data(27)
    straight, first, second = compiled_at(*restored), compiled_at(*saved), compiled_at(*restored)
    straight.fit(x, y, 16, 4, verbose=0)
    first.fit(x, y, 16, 2, verbose=0)
    first.save(tmp_path)
    second.fit(x, y, 16, 4, initial_epoch=second.restore(tmp_path), verbose=0)
    same(second.get_weights(), straight.get_weights(), rtol=1e-4, atol=1e-5)
    places = kdist.state.shardings(second.state, second.trainer.distribution)
    assert jax.tree.map(lambda a: a.sharding.spec, second.state.opt_state) == jax.tree.map(
        lambda place: place.spec, places.opt_state
    )


def test_weights_are_set_and_a_recompiled_model_keeps_them():
    x, y, _ = data(27)
    model, other = compiled_at(3, 8), compiled_at(0, 1)
    model.build(x)
    other.build(x)
    other.set_weights([w + 1 for w in model.get_weights()])
    model.set_weights(other.get_weights())
    assert model.params["hidden"]["kernel"].sharding.spec == jax.sharding.PartitionSpec(None, "data")
    model.compile("adam", crossentropy(), distribution=kdist.DataParallel(zero_stage=1))
    assert model.params["hidden"]["kernel"].sharding.is_fully_replicated
    same(model.predict(x, verbose=0), other.predict(x, verbose=0))
    same(model.evaluate(x, y, verbose=0), other.evaluate(x, y, verbose=0))


# Collectives -------------------------------------------------------------------------------------

SPLIT = 5  # of the six parameters of the MLP with batch statistics


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("stage", [1, 3])
def test_a_step_holds_one_of_each_for_a_parameter(stage, microbatches):
    """A reduce-scatter and an all-gather for each that is split; one all-reduce of all the rest."""
    x, y, _ = data(48)
    model = make("mlp", "linen", batch_norm=True)
    distribution = kdist.DataParallel(zero_stage=stage)
    model.compile("adam", crossentropy(), metrics=["accuracy"], distribution=distribution, microbatches=microbatches)
    model.build(x)
    text = programs(model, x, y, None, batch_size=32, microbatches=microbatches)
    counts = {kind: {name: collectives(t).count(name) for name in set(collectives(t))} for kind, t in text.items()}
    gathers = {"all-gather": SPLIT} if stage == 3 else {}
    assert counts["train"] == {"all-reduce": 1, "reduce-scatter": SPLIT, "all-gather": SPLIT}
    assert counts["test"] == {"all-reduce": 1, **gathers}
    assert counts["predict"] == gathers


# Layer by layer ----------------------------------------------------------------------------------

LAYERS, WIDTH = 5, 16


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.tanh(nn.Dense(WIDTH, dtype=x.dtype, kernel_init=nn.initializers.normal(0.1))(x)), None


class Stack(nn.Module):
    """A `nn.scan` over layers, rematerialised or not."""

    remat: bool

    @nn.compact
    def __call__(self, x):
        layer = nn.remat(Layer, prevent_cse=False) if self.remat else Layer
        scanned = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        return nn.Dense(CLASSES)(scanned()(nn.Dense(WIDTH)(x), None)[0])


class NNXStack(nnx.Module):
    """The same by `nnx.scan`."""

    def __init__(self):
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap(in_axes=0, out_axes=0)
        def layers(rngs):
            return nnx.Linear(WIDTH, WIDTH, kernel_init=nnx.initializers.normal(0.1), rngs=rngs)

        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(FEATURES, WIDTH, rngs=rngs), nnx.Linear(WIDTH, CLASSES, rngs=rngs)
        self.layers = layers(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return x + nnx.tanh(layer(x))

        return self.last(run(self.first(x), self.layers))


STACKS = {"scan": lambda: Stack(False), "scan of checkpoint": lambda: Stack(True), "nnx": NNXStack}


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", STACKS)
def test_a_stack_of_layers_is_never_whole(name, precision):
    x, y, _ = data(32)
    weights = {}
    for stage in (0, 3):
        model = kdist.Model(STACKS[name]())
        model.compile(
            optimizers.SGD(0.2), crossentropy(), distribution=kdist.DataParallel(zero_stage=stage), precision=precision
        )
        model.build(x)
        text = programs(model, x, y, None, batch_size=32, kinds=["train"])["train"]  # four rows a device
        stacks = [f"[{LAYERS},{WIDTH},{WIDTH}]" in text, f"[{LAYERS},{WIDTH},{WIDTH // 8}]" in text]
        stacks[1] |= f"[{LAYERS},{WIDTH // 8},{WIDTH}]" in text
        assert stacks == [stage == 0, stage == 3]
        model.fit(x, y, 32, 2, verbose=0)
        weights[stage] = model.get_weights()
    loose = precision != "float32"
    same(weights[3], weights[0], rtol=0.02 if loose else 1e-4, atol=2e-3 if loose else 1e-5)


# The evaluation of a function on parts -----------------------------------------------------------

TWO = Collectives(
    gather=lambda a, axis: jnp.concatenate([a, 2 * a], axis),
    scatter=lambda a, axis: sum(w * part for w, part in zip((1, 2), jnp.split(a, 2, axis), strict=True)),
)
"""As if a second shard held twice what this one has."""


def of_two(a, axis):
    return Split(a, axis, 2 * a.shape[axis], a.dtype)


def loop(p, x):
    return jax.lax.fori_loop(0, 2, lambda i, x: x @ p, x)


def branch(p, x):
    return jax.lax.cond(x.sum() > 0, lambda x: x @ p, lambda x: x - p[0], x)


FUNCTIONS = {
    "read twice": lambda p, x: x @ p + p[0],
    "returned as it is": lambda p, x: p,
    "transposed and cast": lambda p, x: x.astype(jnp.bfloat16) @ p.T.astype(jnp.bfloat16),
    "cast twice": lambda p, x: x @ p.astype(jnp.bfloat16).astype(jnp.float32),
    "to integers": lambda p, x: x + p.astype(jnp.int32),
    "jit in jit": lambda p, x: jax.jit(lambda p: jax.jit(jnp.sin)(p) + 1)(p) @ x,
    "a loop": loop,
    "a branch": branch,
    "checkpoint with a policy": lambda p, x: jax.checkpoint(
        lambda p, x: jnp.sin(x @ p), policy=jax.checkpoint_policies.everything_saveable
    )(p, x),
    "a gradient of its own": lambda p, x: jax.nn.relu(p) @ x,
    "scanned over": lambda p, x: jax.lax.scan(lambda c, row: (c + row, c * row), x[0], p)[1],
    "scanned with": lambda p, x: jax.lax.scan(lambda c, row: (jnp.sin(c @ p) + row, None), x[0], x, reverse=True)[0],
}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_parts_give_what_the_whole_gives(name, axis):
    fn = FUNCTIONS[name]
    x = jnp.linspace(0.1, 1, 16).reshape(4, 4)
    part = jnp.cos(jnp.arange(8.0)).reshape((2, 4) if axis == 0 else (4, 2))

    def on_parts(part):
        return call(fn, of_two(part, axis), x, collectives=TWO)

    def on_whole(part):
        return fn(TWO.gather(part, axis), x)

    def total(of):
        return lambda part: (of(part).astype(jnp.float32) * x).sum()

    same(on_parts(part), on_whole(part), rtol=1e-6, atol=1e-6)
    loose = "cast" in name
    same(
        jax.grad(total(on_parts))(part),
        jax.grad(total(on_whole))(part),
        rtol=0.02 if loose else 1e-5,
        atol=0.05 if loose else 1e-5,
    )

"""Law 9: the compiled program of a training step holds one all-reduce and no other collective; an evaluation's one,
a prediction's none; and on one device there is none at all.
"""

import re

import jax
import numpy as np
import pytest
from models import CLASSES, KINDS, crossentropy, data, make

import kdist
from kdist.data import Feeder

COLLECTIVES = (
    "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
)
KINDS_OF_STEP = ("train", "test", "predict")
INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?\S+ = .*?\s({COLLECTIVES})(?:-start)?\(", re.MULTILINE)


def programs(model, x, y, weight, *, batch_size=16, cache=True, microbatches=1, kinds=KINDS_OF_STEP):
    """The compiled text of the train, test and predict programs that a fit on these data runs."""
    trainer = model._trainer
    loader = kdist.data.from_arrays(x, y, weight, batch_size=batch_size, cache=cache)
    execution = trainer.bind(trainer.state, loader.read(np.arange(batch_size))).execution
    multiple = trainer.distribution.num_devices * microbatches
    with Feeder(loader, trainer.distribution, multiple=multiple) as feeder:
        feed = next(feeder.chunks(0)).feed
    chained = (trainer.state, feed, np.int32(0))
    looped = (*chained, np.int32(2), 2)
    text = {}
    for kind in kinds:
        program = getattr(execution, f"_{kind}")
        text[kind] = program.lower(*(chained if execution._chain else looped)).compile().as_text()
    return text


def collectives(text):
    return INSTRUCTION.findall(text)


def compiled(family, n, *, kind="linen", optimizer="adam", batch_norm=True, rows=43, weighted=True, **arguments):
    x, y, weight = data(rows, images=family == "cnn")
    model = make(family, kind, batch_norm=batch_norm)
    devices = kdist.DataParallel(devices=jax.devices()[:n])
    model.compile(
        optimizer,
        crossentropy(),
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
        distribution=devices,
        **arguments,
    )
    model.build(x)
    return model, x, y, weight if weighted else None


def computations(text):
    """The text of each computation of a module by its name."""
    found, name = {}, None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = re.sub(r"^ENTRY ", "", line).split()[0].lstrip("%")
            found[name] = ""
        elif name is not None:
            found[name] += line + "\n"
    return found


def deepest_loop(text):
    """Around how many while loops the all-reduce lies, and how many are inside one another at the most."""
    parts = computations(text)

    def depths(name, depth):
        yield depth, len(collectives(parts[name]))
        for line in parts[name].splitlines():
            inner = depth + (1 if re.search(r"\swhile\(", line) else 0)
            for called in re.findall(r"(?:body|condition|calls|to_apply)=%?([\w.\-]+)", line):
                yield from depths(called, inner)

    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE).group(1)
    found = list(depths(entry, 0))
    (around,) = [depth for depth, count in found if count]
    return around, max(depth for depth, _ in found)


CASES = {
    "resident": ("mlp", {}, {}),
    "streamed": ("mlp", {}, {"cache": False}),
    "nothing padded": ("mlp", {"rows": 48, "weighted": False}, {}),
    "no batch norm": ("mlp", {"rows": 48, "weighted": False, "batch_norm": False}, {}),
    "nnx": ("mlp", {"kind": "nnx"}, {}),
    "padded": ("mlp", {}, {"batch_size": 10}),
    "microbatches": ("mlp", {"microbatches": 4}, {"microbatches": 4}),
    "global norm": ("mlp", {"optimizer": kdist.optimizers.SGD(0.1, global_clipnorm=1.0)}, {}),
    "bfloat16": ("mlp", {"precision": "mixed_bfloat16"}, {}),
    "chain": ("cnn", {}, {}),
    "chain of microbatches": ("cnn", {"microbatches": 4}, {"microbatches": 4}),
}


@pytest.mark.parametrize("case", CASES)
def test_eight_devices_reduce_once_a_step(case):
    family, arguments, feeding = CASES[case]
    text = programs(*compiled(family, 8, **arguments), kinds=["train"], **feeding)
    assert collectives(text["train"]) == ["all-reduce"]


@pytest.mark.parametrize("case", ["resident", "nothing padded", "chain"])
def test_an_evaluation_reduces_once_a_step_and_a_prediction_never(case):
    family, arguments, feeding = CASES[case]
    text = programs(*compiled(family, 8, **arguments), kinds=["test", "predict"], **feeding)
    assert collectives(text["test"]) == ["all-reduce"]
    assert collectives(text["predict"]) == []


def test_the_reduction_is_outside_the_loop_over_microbatches():
    text = programs(*compiled("mlp", 8, microbatches=4), microbatches=4, kinds=["train", "test"])
    assert deepest_loop(text["train"]) == (1, 2)  # in the loop over steps, which holds the one over microbatches
    assert deepest_loop(text["test"]) == (1, 1)


def test_one_device_reduces_nothing():
    text = programs(*compiled("mlp", 1, microbatches=2), microbatches=2)
    assert [collectives(text[kind]) for kind in ("train", "test", "predict")] == [[], [], []]


@pytest.mark.parametrize("kind", KINDS)
def test_several_denominators_share_the_reduction(kind):
    """Outputs with reductions of their own have gradients of their own, in the same all-reduce."""
    x, labels, weight = data(43)
    y = {"a": x[:, :2], "b": labels, "c": x[:, 2:4]}
    loss = {
        "a": kdist.losses.MeanSquaredError(reduction="sum"),
        "b": crossentropy(ignore_class=1),
        "c": kdist.losses.MeanAbsoluteError(reduction="mean_with_sample_weight"),
    }
    model = make("heads", kind)
    model.compile("sgd", loss, distribution=kdist.DataParallel(devices=jax.devices()[:8]))
    model.build(x)
    assert collectives(programs(model, x, y, weight, kinds=["train"])["train"]) == ["all-reduce"]


@pytest.mark.parametrize(
    ("loss", "extra"),
    [
        pytest.param(kdist.losses.Dice(), {"all-reduce"}, id="dice"),
        pytest.param(kdist.losses.Circle(), {"all-gather", "all-reduce", "reduce-scatter"}, id="circle"),
    ],
)
def test_a_loss_of_all_rows_adds_only_its_own(loss, extra):
    """Beside the reduction of a step, what it needs of other shards, and the way back; nothing of a gradient's size."""
    x, labels, _ = data(48)
    y = labels if isinstance(loss, kdist.losses.Circle) else np.eye(CLASSES, dtype=np.float32)[labels]
    model = make("mlp", "linen")
    model.compile("sgd", loss, distribution=kdist.DataParallel(devices=jax.devices()[:8]))
    model.build(x)
    found = collectives(programs(model, x, y, None, kinds=["train"])["train"])
    assert "all-reduce" in found
    assert set(found) <= extra
    assert 1 < len(found) <= 6


def test_the_pattern_finds_every_collective():
    """What the law rests on: programs that hold the others are seen to."""
    mesh = kdist.DataParallel(devices=jax.devices()[:8]).mesh
    spec = jax.sharding.PartitionSpec("data")

    def text(fn):
        mapped = jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return collectives(jax.jit(mapped).lower(np.ones((64, 8), np.float32)).compile().as_text())

    assert text(lambda a: jax.lax.psum(a, "data")) == ["all-reduce"]
    assert text(lambda a: jax.lax.all_gather(a, "data", tiled=True)) == ["all-gather"]
    assert text(lambda a: jax.lax.psum_scatter(a, "data", tiled=True)) == ["reduce-scatter"]
    assert text(lambda a: jax.lax.ppermute(a, "data", [(i, (i + 1) % 8) for i in range(8)])) == ["collective-permute"]
    assert text(lambda a: jax.lax.all_to_all(a, "data", 0, 1)) == ["all-to-all"]

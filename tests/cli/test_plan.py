"""kdist plan: on the devices that are here, and for TPU slices where the compiler for them is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kdist
from kdist import footprint
from kdist.cli import main
from kdist.programs import need

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ["--batch-size", "32"]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu compiles programs for TPUs: pip install 'kdist[tpu]'"
)


def test_what_a_config_needs_here(capsys):
    assert main(["plan", str(CONFIGS / "digits.py"), *SMALL, "--zero-stage", "3"]) == 0
    out = capsys.readouterr().out
    assert "digits on local" in out and "32 rows on 8 devices: 4 each" in out
    assert "all-gathers a step" in out and "reduce-scatters a step" in out and "Estimates:" in out
    assert "what a device has is not known" in out  # a CPU does not say


def test_microbatches_are_chosen_and_each_program_is_compiled_once(capsys, monkeypatch):
    texts = []

    def counted(lowered):
        texts.append(lowered.as_text())
        return need(lowered)

    monkeypatch.setattr(footprint, "need", counted)
    monkeypatch.setattr(kdist.DataParallel, "memory_bytes", property(lambda self: 1e12))
    assert main(["plan", str(CONFIGS / "digits.py"), *SMALL, "--microbatches", "auto"]) == 0
    assert "4 each, 4 at a time" in capsys.readouterr().out
    assert len(texts) == 1


def test_a_search_tries_all_that_divides_and_names_the_best(capsys, monkeypatch):
    from kdist.cli import plan

    monkeypatch.setattr(plan, "BATCH_FACTORS", (0.3, 1))
    monkeypatch.setattr(plan, "MICROBATCHES", (1, 2))
    monkeypatch.setattr(plan, "STAGES", (0, 1))
    assert main(["plan", str(CONFIGS / "digits.py"), "--search", *SMALL]) == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.split()[:1] == ["32"]]) == 4  # 10 rows do not divide
    assert "Best that fits: --batch-size 32 --microbatches 1 --zero-stage 0" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v9z:2x2"], "topology must be 'local' or a chip of v5e"),
        (["--topology", "v5e"], "such as v5e:16x16"),
        (["--topology", "v5e:2x4", "--slices", "0"], "slices must be at least 1"),
        (["--slices", "2"], "no slices"),
        (["--topology", "v5e:2x4", "--devices", "4"], "with --topology, set it to None"),
        (["--devices", "9"], "devices must lie in 1 .. 8"),
        (["--batch-size", "0"], "batch_size must be a positive integer"),
        (["--search", "--batch-size", "0"], "batch_size must be a positive integer"),
        (["--batch-sise", "3"], "batch_sise"),
        (["--search", "--batch-size", "1"], "divides by 8 devices"),
    ],
)
def test_mistakes(arguments, message, capsys):
    assert main(["plan", str(CONFIGS / "digits.py"), *arguments]) in (1, 2)
    assert message in capsys.readouterr().err


# For TPUs ----------------------------------------------------------------------------------------

SCRIPT = """
import dataclasses, json, sys
import flax.linen as nn, jax, jax.numpy as jnp
import kdist
from kdist.plan import devices_of, plan

L, D = 24, 2048

class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.relu(nn.Dense(D, use_bias=False)(x)), None

class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=L)
        return stack()(x, None)[0]

for topology, slices, stage in json.loads(sys.argv[1]):
    devices = devices_of(topology, slices)
    distribution = kdist.DataParallel(stage, devices=devices)
    trainer = kdist.Trainer(Stack(), optimizer="adam", loss="mse", distribution=distribution)
    batch = jax.ShapeDtypeStruct((8 * len(devices), D), jnp.float32)
    found = plan(trainer, (batch, batch))
    moves = [dataclasses.asdict(move) for move in found.collectives]
    print(json.dumps({"bytes": found.bytes, "params": found.params_bytes, "opt": found.opt_bytes,
        "temporaries": found.temporary_bytes, "moves": moves, "flops": found.work.flops, "chip": found.chip.name,
        "fits": found.fits, "step": found.step_seconds, "mfu": found.mfu}))
"""
WHOLE = 24 * 2048 * 2048 * 4
"""Bytes of the parameters of that model."""


def plans(*wanted):
    """Plans of the script's model, for topology, slices and stage, by a process that has no simulated devices."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", SCRIPT, json.dumps(wanted)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(line) for line in ended.stdout.splitlines()]


@needs_libtpu
def test_a_slice_of_256_chips():
    """At stage 3 the model is never whole: all that a chip needs is a fifth of it, with six whole layers in it."""
    whole, moments, parts = plans(("v5e:16x16", 1, 0), ("v5e:16x16", 1, 1), ("v5e:16x16", 1, 3))
    assert whole["params"] == moments["params"] == WHOLE and parts["params"] == WHOLE // 256
    assert whole["opt"] // WHOLE == 2 and moments["opt"] < 2 * WHOLE / 256 + 64 > parts["opt"]
    assert moments["bytes"] < whole["bytes"] / 1.8
    assert parts["bytes"] < WHOLE / 5
    for found in (whole, moments, parts):
        assert found["chip"] == "v5e" and found["fits"] is True and 0 < found["mfu"] < 1
        assert found["flops"] == pytest.approx(3 * 24 * 2 * 8 * 2048**2, rel=0.01)
        assert found["step"] > 3 * 24 * 2 * 8 * 2048**2 / 197e12


@needs_libtpu
def test_collectives_of_eight_chips_and_of_two_slices():
    def counts(found):
        return {(move["kind"], move["group"]): move["count"] for move in found["moves"]}

    moments, parts, two = plans(("v5e:2x4", 1, 1), ("v5e:2x4", 1, 3), ("v5e:2x4", 2, 3))
    assert counts(moments) == {("all-gather", 8): 1, ("all-reduce", 8): 1, ("reduce-scatter", 8): 1}
    # Forward and backward, a layer at a time.
    assert counts(parts) == {("all-gather", 8): 48, ("all-reduce", 8): 1, ("reduce-scatter", 8): 24}
    # Parts lie inside a slice; their gradients, and the sums, are added up over the slices.
    assert counts(two)["all-gather", 8] == 48
    assert all(group in (2, 8, 16) for _, group in counts(two))
    assert two["params"] == parts["params"] == WHOLE // 8

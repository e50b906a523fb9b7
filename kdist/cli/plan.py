"""``kdist plan CONFIG --topology v5e:16x16``: whether it fits there, and what a step takes, before it is rented."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from kdist.cli import AddParser, check_devices
from kdist.cli.configs import data_of, loaded
from kdist.config import Config, Data
from kdist.data import example_batch, from_arrays, is_loader
from kdist.data.arrays import check_batch_size
from kdist.errors import ConfigError, KDistError
from kdist.plan import Plan, devices_of, plan
from kdist.typing import Batch

MARGIN = 0.1
"""The share of a device's memory that had better stay free, for what is left out below."""
LEFT_OUT = (
    "Estimates: the program is that of fit, compiled here; nothing was run. Seconds are a roofline of published peaks: "
    "matrix units and memory at their peak, elementwise work fused, collectives by ring at the full bandwidth of all "
    "links and hidden behind nothing. Left out: the runtime's own memory, fragmentation, evaluation, checkpoints, "
    "input that cannot keep up, latency of small collectives, stragglers."
)
BATCH_FACTORS, MICROBATCHES, STAGES = (0.5, 1, 2, 4), (1, 2, 4), (0, 1, 3)
"""What a search tries: batch sizes relative to the config's, and all of the others."""


def declare(add_parser: AddParser) -> None:
    """Adds the parser; see `kdist.cli`."""
    command = add_parser(
        description="Compile the training program of a config for a TPU slice on this machine (pip install "
        "'kdist[tpu]'; no TPU is needed), and tell what it needs. Fields of the config can be set as in train: "
        "kdist plan configs/char_lm.py --topology v5e:4x4 --zero-stage 1. The exit code is 1 if it does not fit.",
    )
    command.add_argument("config", metavar="CONFIG", help="a Python file, or module:function")
    command.add_argument("--topology", default="local", help="such as v5e:16x16, or local, the default: these devices")
    command.add_argument("--slices", type=int, default=1, metavar="N", help="how many such slices; 1 by default")
    command.add_argument("--search", action="store_true", help="try batch sizes, microbatches and ZeRO stages too")


def main(options: argparse.Namespace, rest: list[str]) -> int:
    """Plans; 1 if nothing that was tried fits."""
    if options.topology != "local":
        jax.config.update("jax_platforms", "cpu")
    config = loaded(options.config, rest, "plan")
    check_devices()
    check_batch_size(config.batch_size)
    devices = _devices(config, options.topology, options.slices)
    row = example_row(data_of(config))
    console = Console(highlight=False, soft_wrap=True)
    where = options.topology if options.slices == 1 else f"{options.slices} x {options.topology}"
    if options.search:
        return _search(config, devices, row, where, console)
    found = planned(config, devices, row)
    show(found, f"{config.name} on {where}", console)
    console.print(LEFT_OUT)
    return int(found.fits is False)


def _devices(config: Config, topology: str, slices: int) -> list[Any]:
    """All of a slice, or of several; of those that are here, the ones that the config takes."""
    if topology != "local" and config.devices is not None:
        raise ConfigError(f"devices={config.devices} is of those that are here: with --topology, set it to None.")
    found = devices_of(topology, slices)
    if topology != "local":
        return found
    return config.make_model().trainer.distribution.mesh.devices.flatten().tolist()


def example_row(data: Data) -> Batch:
    """The shapes of a batch of one row."""
    loader = data.x if is_loader(data.x) else from_arrays(data.x, data.y, data.sample_weight, batch_size=1)
    batch = example_batch(loader)
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype)), batch
    )


def planned(config: Config, devices: list[Any], row: Batch) -> Plan:
    """The plan of a config on these devices.

    Args:
        config: What is trained.
        devices: Where, in thought.
        row: What `example_row` gave.
    """
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((config.batch_size, *a.shape[1:]), a.dtype), row)
    return plan(config.make_model(devices).trainer, batch)


def show(found: Plan, title: str, console: Console) -> None:
    """Prints a plan as a table."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _lines(found):
        table.add_row(name, value)
    console.print(table)


def _lines(found: Plan) -> Iterator[tuple[str, str]]:
    a_device = found.batch_size / found.devices
    yield (
        "batch",
        f"{found.batch_size:,} rows on {found.devices:,} devices: {a_device:g} each, "
        f"{a_device / found.microbatches:g} at a time",
    )
    yield "ZeRO stage", str(found.zero_stage)
    yield "memory a device", _memory(found)
    yield "  parameters", size(found.params_bytes)
    yield "  optimizer", size(found.opt_bytes)
    yield "  batch", f"{size(found.batch_bytes)}  (3 chunks of some 16 MiB over all devices)"
    yield "  temporaries", f"{size(found.temporary_bytes)}  (activations, gradients, what is gathered)"
    for move in found.collectives or []:
        yield (
            f"{move.kind}s a step",
            f"{move.count} among {move.group}{' slices' * move.between}, {size(move.sent)} sent by a device",
        )
    if not found.collectives:
        yield "collectives a step", "none" if found.collectives == [] else "the compiler refused the program"
    yield "arithmetic a step", f"{found.work.flops / 1e9:,.1f} GFLOP a device"
    if found.chip is not None and found.collectives is not None:
        yield (
            "a step at least",
            f"{duration(found.step_seconds)} = max(arithmetic {duration(found.compute_seconds)}, memory "
            f"{duration(found.memory_seconds)}) + links {duration(found.link_seconds)}",
        )
        yield "rows a second, MFU", f"at most {rate(found):,.0f}, {found.mfu:.0%}"
        yield (
            "by",
            f"{found.chip.flops / 1e12:g} TFLOP/s, {found.chip.memory_bandwidth / 1e9:g} GB/s, links "
            f"{found.chip.link_bandwidth / 1e9:g} GB/s, network {found.chip.slice_bandwidth / 1e9:g} GB/s "
            f"({found.chip.source})",
        )
    yield "compiled in", duration(found.compile_seconds)


def _memory(found: Plan) -> str:
    needed = found.bytes
    if found.capacity is None:
        return f"{size(needed)}; what a device has is not known"
    left = 1 - needed / found.capacity
    if not found.fits:
        return f"{size(needed)} of {size(found.capacity)}: DOES NOT FIT"
    advice = "" if left >= MARGIN else f", less than the {MARGIN:.0%} that had better stay free"
    return f"{size(needed)} of {size(found.capacity)}: fits, {left:.0%} stay free{advice}"


def rate(found: Plan) -> float:
    """Rows a second at the most; 0 where nobody knows."""
    return 0.0 if math.isnan(found.step_seconds) else found.batch_size / found.step_seconds


def _search(config: Config, devices: list[Any], row: Batch, where: str, console: Console) -> int:
    table = Table(title=f"{config.name} on {where}", title_justify="left", box=None, pad_edge=False)
    for column in ("batch", "microbatches", "ZeRO", "memory", "fits", "step at least", "rows/s at most", "MFU"):
        table.add_column(column, justify="right")
    plans: list[Plan] = []
    sizes = dict.fromkeys(max(1, round(config.batch_size * factor)) for factor in BATCH_FACTORS)
    tried = list(itertools.product(sizes, MICROBATCHES, STAGES))
    for n, (batch_size, microbatches, stage) in enumerate(tried):
        if batch_size % (len(devices) * microbatches):
            continue
        with console.status(f"{n + 1} of {len(tried)}"):
            fields = {"batch_size": batch_size, "microbatches": microbatches, "zero_stage": stage}
            found = planned(config.replace(**fields), devices, row)
        plans.append(found)
        fits = {None: "?", True: "yes", False: "no"}[found.fits]
        timed = not math.isnan(found.step_seconds)
        seconds, share = (duration(found.step_seconds), f"{found.mfu:.0%}") if timed else ("", "")
        table.add_row(
            *map(str, (batch_size, microbatches, stage, size(found.bytes), fits, seconds, f"{rate(found):,.0f}", share))
        )
    if not plans:
        raise KDistError(f"No batch size of {list(sizes)} divides by {len(devices)} devices. Set batch_size.")
    console.print(table)
    fitting = [p for p in plans if p.fits is not False]
    if not fitting:
        console.print("Nothing that was tried fits: take a larger slice, or a smaller model or batch.")
        return 1
    best = max(fitting, key=lambda p: (rate(p), -p.zero_stage, -p.microbatches))
    console.print(
        f"Best that fits: --batch-size {best.batch_size} --microbatches {best.microbatches} --zero-stage "
        f"{best.zero_stage}\n{LEFT_OUT}"
    )
    return 0


def size(count: float) -> str:
    """Bytes for a reader."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{count:,.2f} {unit}"


def duration(seconds: float) -> str:
    """Seconds for a reader."""
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{seconds * 1e3:.3g} ms"
        if seconds >= 1e-3
        else f"{seconds * 1e6:.3g} us"
    )

"""Rows of a benchmark: two sides measured in turn, and their ratios as a table.

What the benchmarks beside this file share; what they measure is in them.  The two sides of a row are
measured A B B A ..., after a warm-up that compiles; the ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

SECONDS_A_PROCESS = 600
"""A process that takes longer is killed."""


class Sizes(Protocol):
    """How much each row computes, as a benchmark defines it."""

    @property
    def rounds(self) -> int:
        """How often each side is measured."""


Side = Callable[[], float]
"""Does the work once and gives its seconds, or what else is measured."""


# Sides -------------------------------------------------------------------------------------------


def timed(work: Callable[[], Any], units: int = 1) -> Side:
    """A side that calls `work`, which must return only when all is computed; seconds by the unit."""

    def side() -> float:
        gc.collect()
        began = time.perf_counter()
        work()
        return (time.perf_counter() - began) / units

    return side


def fastest(sides: Sequence[Side]) -> Side:
    """The side that is fastest here, of several ways to write the same."""
    times = {side: (side(), min(side() for _ in range(3)))[1] for side in sides}
    return min(times, key=times.__getitem__)


def in_fresh_process(code: str) -> Side:
    """A side that is the number printed by a new Python process, which can import what is beside this file."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}

    def side() -> float:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=Path(__file__).parent,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=SECONDS_A_PROCESS,
        )
        return float(done.stdout.split()[-1])

    return side


def noise(rows: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels and labels."""
    rng = np.random.default_rng(0)
    return rng.random((rows, *shape), np.float32), rng.integers(0, 10, rows, np.int32)


# Rows --------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Seconds, in the unit that suits them."""
    for scale, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {name}"
    return f"{seconds / 1e-6:.3g} us"


def memory(nbytes: float) -> str:
    """Bytes, by the million."""
    return f"{nbytes / 1e6:.0f} MB"


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a row: what both sides gave in every round, or why there is nothing."""

    name: str
    ours: list[float]
    theirs: list[float]
    missing: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: What ``--rows`` picks it by.
        what: What kdist does.
        against: What it is compared with.
        sides: Makes kdist's side and the other one, for the benchmark's sizes.
        at_most: The limit of kdist's number over the other's, or
        at_least: the limit of the other's over kdist's.
        unit: What the numbers are of: "step", "batch" or "call".
        shown: Says such a number.
        devices: Simulated devices; a process of its own if more than one.
    """

    name: str
    what: str
    against: str
    sides: Callable[[Any], tuple[Side, Side]]
    at_most: float | None = None
    at_least: float | None = None
    unit: str = "step"
    shown: Callable[[float], str] = duration
    devices: int = 1

    def measure(self, sizes: Sizes, rounds: int) -> Result:
        """Both sides, warmed up and then in turn."""
        try:
            ours, theirs = self.sides(sizes)
        except ImportError as error:
            return Result(self.name, [], [], f"{error}: pip install -e '.[bench]'")
        result = Result(self.name, [], [])
        ours(), theirs()
        for i in range(rounds):
            turns = [(ours, result.ours), (theirs, result.theirs)]
            for side, numbers in turns if i % 2 == 0 else reversed(turns):
                numbers.append(side())
        return result

    def ratios(self, result: Result) -> list[float]:
        """The ratio of every round, the way that the limit is stated."""
        pairs = zip(result.ours, result.theirs, strict=True)
        return [ours / theirs if self.at_most else theirs / ours for ours, theirs in pairs]

    def line(self, result: Result) -> str:
        """The row as Markdown."""
        limit = f"<= {self.at_most:g}" if self.at_most else f">= {self.at_least:g}"
        if result.missing:
            return f"| {self.what} | {self.against} | | | | | {limit} | not measured: {result.missing} |"
        ours, theirs = (self.shown(statistics.median(numbers)) for numbers in (result.ours, result.theirs))
        every = self.ratios(result)
        ratio = statistics.median(every)
        met = (self.at_most is None or ratio <= self.at_most) and (self.at_least is None or ratio >= self.at_least)
        return (
            f"| {self.what} | {self.against} | {ours} / {self.unit} | {theirs} / {self.unit} | "
            f"**{ratio:.2f}** | {min(every):.2f} .. {max(every):.2f} | {limit} | {'yes' if met else 'NO'} |"
        )


@dataclasses.dataclass(frozen=True)
class Same:
    """A line that says whether two ways give the same numbers; what they give is no time, and once is enough.

    Attributes:
        name: What ``--rows`` picks it by.
        what: What kdist does.
        against: What must give the same.
        numbers: Both ways' numbers, for the benchmark's sizes.
        unit: What each number is of.
    """

    name: str
    what: str
    against: str
    numbers: Callable[[Any], tuple[list[float], list[float]]]
    unit: str = "epoch"
    devices: int = 1

    def measure(self, sizes: Sizes, rounds: int) -> Result:
        """Both ways, once."""
        return Result(self.name, *self.numbers(sizes))

    def line(self, result: Result) -> str:
        """The row as Markdown."""
        furthest = max(abs(a - b) for a, b in zip(result.ours, result.theirs, strict=True))
        return (
            f"| {self.what} | {self.against} | {result.ours[-1]:.6g} | {result.theirs[-1]:.6g} | "
            f"{f'differ by up to {furthest:.1e}' if furthest else '**equal**'} | each {self.unit} of "
            f"{len(result.ours)} | equal | {'NO' if furthest else 'yes'} |"
        )


HEADER = (
    "| kdist | against | kdist takes | the other takes | ratio | lowest .. highest | limit | met |\n"
    "|---|---|---|---|---|---|---|---|"
)


def measure_apart(row: Row | Same, rounds: int, quick: bool) -> Result:
    """The row in a process that has as many simulated devices as it wants: this script again."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={row.devices}"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "results.json")
        command = [sys.executable, sys.argv[0], "--rows", row.name, "--rounds", str(rounds), "--json", str(path)]
        command += ["--quick"] if quick else []
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=SECONDS_A_PROCESS)
        (found,) = json.loads(path.read_text())["rows"]
    return Result(row.name, found["ours"], found["theirs"], found["missing"])


def machine() -> str:
    """Processor, cores and versions."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    packages = []
    for name in ("jax", "jaxlib", "flax", "optax", "numpy", "grain", "keras"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages.append(f"{name} {importlib.metadata.version(name)}")
    python = f"Python {platform.python_version()}"
    return ", ".join([f"{model}, {os.cpu_count()} cores", jax.default_backend(), python, *packages])


def main(description: str | None, rows: Sequence[Row | Same], full: Sizes, quick: Sizes) -> None:
    """Measures and prints what the command line asks for.

    Args:
        description: What the benchmark is.
        rows: Its rows.
        full: Their sizes.
        quick: Their sizes with ``--quick``.
    """
    names = ", ".join(row.name for row in rows)
    parser = argparse.ArgumentParser(
        description=description, epilog=f"rows: {names}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only rows whose names start so")
    parser.add_argument("--rounds", type=int, help=f"how often each side is measured; {full.rounds} by default")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round: does it run?")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every measurement here")
    options = parser.parse_args()
    sizes = quick if options.quick else full
    chosen = [row for row in rows if options.rows is None or row.name.startswith(tuple(options.rows))]
    if not chosen:
        parser.error(f"--rows: no row starts with {options.rows}. There are: {names}")
    rounds = sizes.rounds if options.rounds is None else options.rounds
    if rounds < 1:
        parser.error(f"--rounds must be 1 or more. Received: {rounds}")

    print(f"{machine()}\n\n{HEADER}", flush=True)
    results = []
    for row in chosen:
        apart = row.devices not in (1, jax.device_count())
        results.append(measure_apart(row, rounds, options.quick) if apart else row.measure(sizes, rounds))
        print(row.line(results[-1]), flush=True)
    if options.json:
        found = {"machine": machine(), "rows": [dataclasses.asdict(result) for result in results]}
        options.json.write_text(json.dumps(found, indent=1))

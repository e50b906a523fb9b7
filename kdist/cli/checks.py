"""What `kdist doctor` checks: each check yields what it finds, with what to do where a run would suffer from it."""

from __future__ import annotations

import contextlib
import difflib
import enum
import glob
import importlib.metadata
import json
import math
import operator
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from jax._src.hardware_utils import num_available_tpu_chips_and_device_id

from kdist import caps, compile_cache, watchdog
from kdist.distribution import processes, rendezvous
from kdist.errors import DistributionError
from kdist.versions import MISSING, TESTED, installed, version_of

MB, GB = 10**6, 10**9
LEAST_RAM, LITTLE_RAM = 256 * MB, 2 * GB
LEAST_DISK, LITTLE_DISK = 100 * MB, 5 * GB
LITTLE_SHARED = 256 * MB
LEAST_FILES, LITTLE_FILES = 64, 1024
MOST_CACHE = 20 * GB
MOST_SKEW = 2.0
"""Seconds between two clocks from which on logs and checkpoints of several hosts are hard to put in order."""
VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_COORDINATOR_BIND_ADDRESS",
    "JAX_COORDINATOR_PORT",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "JAX_LOCAL_DEVICE_IDS",
    compile_cache.VARIABLE,
    watchdog.VARIABLE,
    caps.EPOCHS,
    caps.STEPS,
)
"""What kdist and JAX read from the environment about a run."""
DEVICES = """
import json, jax
jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
print(json.dumps([[d.platform, d.device_kind, (d.memory_stats() or {}).get("bytes_limit", 0)]
                  for d in jax.local_devices()]))
"""


class Mark(enum.Enum):
    """What a finding means for a run."""

    OK = "ok"
    WARNING = "warning"
    FAIL = "FAIL"


class Finding(NamedTuple):
    """One line.

    Attributes:
        mark: What it means.
        text: What was found.
        remedy: What to do; empty if there is nothing to.
    """

    mark: Mark
    text: str
    remedy: str = ""


def ok(text: str) -> Finding:
    """A finding that is as it should be."""
    return Finding(Mark.OK, text)


def warning(text: str, remedy: str) -> Finding:
    """A finding that a run may suffer from."""
    return Finding(Mark.WARNING, text, remedy)


def fail(text: str, remedy: str = "") -> Finding:
    """A finding that would stop a run; without a remedy where the text itself says one."""
    return Finding(Mark.FAIL, text, remedy)


# What is installed -------------------------------------------------------------------------------


def versions() -> Iterator[Finding]:
    """Packages, against what kdist asks for and what it was tested with."""
    here = installed()
    broken = [
        f"{name}{wanted} (here: {version_of(name)})"
        for name, wanted in _required()
        if not _fits(version_of(name), wanted)
    ]
    for plugin in ("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin"):
        if version_of(plugin) not in (MISSING, here["jaxlib"]):
            broken.append(f"{plugin}=={here['jaxlib']}, as jaxlib (here: {version_of(plugin)})")
    if broken:
        yield fail(f"kdist needs {', '.join(broken)}", "pip install -U kdist, with the extra [tpu] or [cuda]")
    other = [
        f"{name} {here[name]} ({tested})"
        for name, tested in TESTED.items()
        if here[name] != tested and not here[name].startswith(f"{tested}.")
    ]
    if other:
        yield warning(f"not those tested, in brackets: {', '.join(other)}", "run kdist's tests, or install those")
    if not broken and not other:
        yield ok(", ".join(f"{name} {version}" for name, version in here.items()) + ": as tested")


def _required() -> Iterator[tuple[str, str]]:
    """The packages that kdist depends on, with their bounds."""
    try:
        lines = importlib.metadata.requires("kdist") or []
    except importlib.metadata.PackageNotFoundError:  # it runs from a directory
        return
    for line in lines:
        found = re.fullmatch(r"([\w.-]+)([<>=!\d.,]*)", line)  # one with a marker belongs to an extra
        if found:
            yield found[1], found[2]


_BOUNDS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


def _fits(version: str, bounds: str) -> bool:
    """Whether a version, by its numbers, is within bounds such as ``>=0.12.3,<0.13``."""
    if version == MISSING:
        return False
    pairs = re.findall(r"([<>=!]+)([\d.]+)", bounds)
    return all(_BOUNDS[bound](_numbers(version), _numbers(limit)) for bound, limit in pairs)


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.findall(r"\d+", version)[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))


# Devices -----------------------------------------------------------------------------------------


def devices(seconds: float) -> Iterator[Finding]:
    """What JAX finds, and that it computes."""
    environ = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", DEVICES], capture_output=True, text=True, timeout=seconds, check=False, env=environ
        )
    except subprocess.TimeoutExpired:
        yield fail(
            f"JAX has not found and used any within {seconds:g} s",
            "end other processes that hold them; on several hosts start doctor on all at once; or --timeout 60",
        )
        return
    if done.returncode != 0:
        yield fail(
            f"JAX cannot use any: {_gist(done.stderr) or f'its process ended with {done.returncode}'}",
            "see JAX_PLATFORMS, XLA_FLAGS and the driver, and that nothing else holds the devices",
        )
        return
    found = json.loads(done.stdout.splitlines()[-1])
    platform, kind, size = found[0]
    text = f"{len(found)} x {platform}" + f" ({kind})" * (kind != platform) + f", {size / GB:.1f} GB each" * (size > 0)
    hardware = _hardware()
    if platform == "cpu" and hardware and not os.environ.get("JAX_PLATFORMS"):
        extra = {"gpu": "cuda", "tpu": "tpu"}[hardware]
        yield warning(
            f"{text}, though there is a {hardware.upper()}", f"pip install 'kdist[{extra}]', and see its driver"
        )
    else:
        yield ok(text)


def _hardware() -> str:
    """The kind of accelerator that this host has, asked without using it; empty if it has none."""
    if num_available_tpu_chips_and_device_id()[0]:
        return "tpu"
    return "gpu" if glob.glob("/dev/nvidia[0-9]*") else ""


def _gist(log: str) -> str:
    """The line of an error stream that says what is wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for pattern in (r"Unknown flag", r"^[\w.]*(Error|Exception)\b", r"^[EF]\d{4} "):
        found = [line for line in lines if re.search(pattern, line)]
        if found:
            return found[-1]
    return lines[-1] if lines else ""


# The environment ---------------------------------------------------------------------------------


def environment() -> Iterator[Finding]:
    """Variables that are misspelt, and flags that are none or contradict each other."""
    sound = True
    for name in sorted(os.environ):
        known = name in VARIABLES or hasattr(jax.config, name.lower())
        close = difflib.get_close_matches(name, VARIABLES, 1, 0.8)
        if name.startswith(("JAX_", "KDIST_")) and not known and close:
            sound = False
            yield warning(f"{name} is read by nobody", f"did you mean {close[0]}?")
    flags: dict[str, str] = {}
    words = os.environ.get("XLA_FLAGS", "").split()
    if words and not words[0].startswith("--"):  # XLA takes it for the name of a file of flags
        words = []
    for word in words:
        name, _, value = word.partition("=")
        if not word.startswith("--"):
            sound = False
            yield warning(f"XLA_FLAGS has {word!r}, which XLA ignores", "write --name=value, parted by spaces")
        elif flags.setdefault(name, value) != value:
            sound = False
            yield warning(f"XLA_FLAGS has {name}={flags[name]} and {name}={value}", "keep one; the last counts")
    if sound:
        told = [f"{name}={os.environ[name]}" for name in ("JAX_PLATFORMS", "XLA_FLAGS") if os.environ.get(name)]
        yield ok(", ".join(told) or "nothing that changes how JAX runs")


def launcher(seconds: float) -> Iterator[Finding]:
    """Who started this process, and as which of several."""
    names = []
    with contextlib.suppress(OSError, RuntimeError, ImportError):  # what is found below is told with its error
        for name, _ in processes.launchers():
            names.append(name)
    if len(names) > 1:
        yield warning(f"{' and '.join(names)} are found; JAX takes {names[0]}", "unset the variables of the others")
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if tasks != "1" and "Slurm" not in names and "SLURM_JOB_ID" in os.environ:
        yield warning(f"a job of Slurm's with {tasks} tasks, outside of any", "start the command with srun")
    try:
        membership = processes.find(seconds=int(seconds))
        if membership is not None:
            membership.check(membership.bind_address)
    except DistributionError as error:
        yield fail(str(error))
        return
    if membership is None:
        yield ok(f"one process{f', of {names[0]}' if names else ''}")
        return
    yield ok(str(membership))
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        if "JAX" in membership.launcher and os.environ.get(name, "1") not in ("1", str(membership.num_processes)):
            yield warning(
                f"JAX_NUM_PROCESSES={membership.num_processes} and {name}={os.environ[name]}", "see which is meant"
            )
    proxies = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")]
    if proxies:
        yield warning(
            f"processes may be looked for through {', '.join(proxies)}", "unset it, or name all hosts in no_proxy"
        )


def peers(seconds: float) -> Iterator[Finding]:
    """Whether the processes of the run reach each other, are alike, and have the same time."""
    try:
        membership = processes.find(seconds=int(seconds) + 1)
    except DistributionError:
        return  # which the check of the launcher tells
    if membership is None:
        yield ok("one process has none")
        return
    here = membership.coordinator_address
    try:
        met, bound = rendezvous.meet(
            here, membership.num_processes, membership.process_id, seconds=seconds, bind_address=membership.bind_address
        )
    except rendezvous.AbsentError as error:
        yield warning(str(error), "start doctor on all processes at once, with the run's own launcher")
        return
    except DistributionError as error:
        yield fail(str(error))
        return
    if not met:
        yield ok(f"process 0 is reached at {here}, and all {membership.num_processes} are there")
        return
    skew = max(met, key=lambda process: abs(process.ahead))
    text = f"all {len(met)} reach process 0, which listens at {bound}; clocks within {abs(skew.ahead):.1f} s"
    if abs(skew.ahead) <= MOST_SKEW:
        yield ok(text)
    else:
        yield warning(f"{text}: that of process {skew.process_id} ({skew.host}) is off", "let NTP or chrony set it")


# This host ---------------------------------------------------------------------------------------


def memory() -> Iterator[Finding]:
    """RAM, as far as this process may use it."""
    lines = dict(re.findall(r"(\w+):\s+(\d+) kB", _text(Path("/proc/meminfo"))))
    if "MemAvailable" not in lines:
        yield ok("not known on this system")
        return
    total, free = int(lines["MemTotal"]) * 1024, int(lines["MemAvailable"]) * 1024
    group = Path("/sys/fs/cgroup")
    limit = _text(group / "memory.max")
    if limit.isdecimal() and int(limit) < total:
        total = int(limit)
        free = min(free, total - int(_text(group / "memory.current") or 0))
    yield _amount(
        f"{free / GB:.1f} GB of {total / GB:.1f} GB are free", free, LEAST_RAM, LITTLE_RAM, "end other programs"
    )


def shared_memory() -> Iterator[Finding]:
    """Where worker processes of the data put what they have read."""
    if sys.platform != "linux":
        yield ok("not limited on this system")
        return
    if not os.path.isdir("/dev/shm"):
        yield warning("there is no /dev/shm", "data with worker processes need it: mount a tmpfs there")
        return
    usage = shutil.disk_usage("/dev/shm")
    text = f"{usage.free / GB:.2f} GB of {usage.total / GB:.2f} GB are free in /dev/shm"
    yield _amount(text, usage.free, 0, LITTLE_SHARED, "for data with workers: docker run --shm-size=8g, or empty it")


def open_files() -> Iterator[Finding]:
    """How many files and connections a process may have open."""
    most, hard = (
        math.inf if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    yield _amount(f"at most {most}", most, LEAST_FILES, LITTLE_FILES, f"ulimit -n {min(hard, 65536)}")


def run_directory(directory: str) -> Iterator[Finding]:
    """Whether a run can be written, and how much."""
    path = Path(directory).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    remedy = "give another: --run-dir here, and run_dir to the run"
    if not there.is_dir():
        yield fail(f"{there} is a file", remedy)
        return
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"kdist doctor")
            file.flush()
    except OSError as error:
        yield fail(f"{there} cannot be written: {error}", remedy)
        return
    free = shutil.disk_usage(there).free
    yield _amount(f"{path} can be written; {free / GB:.1f} GB are free", free, LEAST_DISK, LITTLE_DISK, "make room")


def cache() -> Iterator[Finding]:
    """Whether compiled programs can be kept."""
    choice = compile_cache.choose(_hardware() or "cpu")
    if choice.path is None or choice.remote:
        yield ok(f"{choice.path or 'none'} ({choice.reason})")
        return
    path = Path(choice.path)
    if not path.exists():
        there = next(parent for parent in path.parents if parent.exists())
        if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
            yield ok(f"{path} will be made ({choice.reason})")
        else:
            yield warning(f"{path} cannot be made in {there}", f"set {compile_cache.VARIABLE} to a directory of yours")
        return
    trouble = compile_cache.trouble(path)
    size = sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file()) if not trouble else 0
    if trouble:
        yield warning(f"{path}: {trouble}", f"mend it, or set {compile_cache.VARIABLE} to a directory of yours")
    elif size > MOST_CACHE:
        yield warning(f"{path} has grown to {size / GB:.0f} GB", "delete it: nothing limits it, and it is made again")
    else:
        yield ok(f"{path}, {size / GB:.2f} GB ({choice.reason})")


def _amount(text: str, amount: float, least: float, little: float, remedy: str) -> Finding:
    """A finding on how much there is of something."""
    if amount < least:
        return fail(text, remedy)
    return warning(text, remedy) if amount < little else ok(text)


def _text(path: Path) -> str:
    """What a small file holds; nothing if there is none."""
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""

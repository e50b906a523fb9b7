"""``kdist launch -n 2 -- COMMAND``: several processes of one run on this host, as on a cluster.

Each runs the same command, and finds in its environment who it is; `kdist.initialize` reads that.  What they print
comes out line by line, with the number of the process in front.  They live and end together: signals go to all, one
that fails ends the others, and whatever happens to the launcher, nothing is left running.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from kdist.cli import AddParser, refuse
from kdist.errors import ConfigError
from kdist.exits import HUNG, PREEMPTED

GUARD = Path(__file__).with_name("guard.py")
COLLECTIVE_SECONDS = 300
"""After so long a collective of simulated devices that is not joined by all becomes an error."""
LONGEST_LINE = 1 << 20
"""Bytes after which a line is cut: a process that writes no newline must not fill the memory."""
DRAIN_SECONDS = 2.0
"""How long the last lines of a process are waited for, whose pipes something that left its session may hold open."""
PLATFORMS = ("cpu", "cuda")

_output = threading.Lock()


def declare(add_parser: AddParser) -> None:
    """Adds the parser; see `kdist.cli`."""
    parser = add_parser(
        description="Run a command in several processes of one run on this host, each with simulated devices or its "
        "share of the GPUs: kdist launch -n 2 --devices 4 -- kdist train configs/digits.py. Each line that they print "
        "has the number of its process in front; they read nothing. Signals go to all; one that fails ends the others.",
    )
    parser.add_argument("-n", "--processes", type=_positive, required=True, metavar="N", help="how many processes")
    parser.add_argument(
        "--devices",
        type=_positive,
        metavar="D",
        help="devices of each process: simulated ones (cpu), or its share of the GPUs (cuda); by default one CPU "
        "device, or all GPUs",
    )
    parser.add_argument("--platform", choices=PLATFORMS, default="cpu", help="what JAX runs on; cpu by default")
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="from the first signal, or the first process that fails, until what is left is killed; 30 by default",
    )
    parser.add_argument(
        "--restart",
        type=_count,
        default=0,
        metavar="N",
        help=f"start again up to N times when the run was preempted and saved (exit code {PREEMPTED}); the command "
        "should say --resume; 0 by default",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and run nothing")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what each process runs")


def main(options: argparse.Namespace, rest: list[str]) -> int:
    """Launches, and returns the exit code of the run."""
    refuse(rest)
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Runs the command in several processes.

    Args:
        options: What the parser of `declare` found.

    Returns:
        0 if all ended with 0, else the exit code of the first that failed; 43 if the watchdog of any ended it, since
        the others then fail because of it, and may be gone before.

    Raises:
        ConfigError: There is no command, or no such program.
    """
    command = options.program[options.program[:1] == ["--"] :]
    if not command:
        raise ConfigError("What is to be run is missing, as in kdist launch -n 2 -- kdist train configs/digits.py")
    path = os.environ.get("PATH", os.defpath)
    own = os.path.dirname(sys.executable)  # `kdist` and `python` are to be those of this environment
    if path.split(os.pathsep)[0] != own:
        path = os.pathsep.join([own, path])
    if shutil.which(command[0], path=path) is None:
        raise ConfigError(f"There is no program {command[0]!r} that can be run.")
    common = {**os.environ, "PATH": path}
    common.setdefault("PYTHONUNBUFFERED", "1")  # lines come when they are printed, not when a buffer is full
    with _reserved_port() as port:
        environments = [
            {**common, **_environment(options, f"127.0.0.1:{port}", rank)} for rank in range(options.processes)
        ]
        if options.dry_run:
            for rank, environment in enumerate(environments):
                changed = [f"{k}={v}" for k, v in environment.items() if os.environ.get(k) != v]
                print(f"[{rank}] {shlex.join(['env', *changed, *command])}")
            return 0
        for restart in range(options.restart + 1):
            if restart > 0:
                _say(f"preempted and saved; starts again ({restart} of {options.restart})")
            group = _Group(command, environments, options.grace)
            code = group.run()
            if code != PREEMPTED or group.told:
                break
    return code


def _count(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, not {text}")
    return int(text)


def _positive(text: str) -> int:
    return _count(text, 1)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < threading.TIMEOUT_MAX:
            return value
    raise argparse.ArgumentTypeError(f"must be seconds, 0 or more, not {text}")


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    """A port that is kept for the coordinator: until it listens, and between restarts, nobody else gets it.

    On Linux a socket that is bound and does not listen keeps the port out of what the system gives away, and one that
    sets SO_REUSEADDR, as kdist and gRPC do, may listen there.  Other systems would refuse that too, and there the port
    was free a moment ago, no more.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        if sys.platform != "linux":
            held.close()
        yield port


def _environment(options: argparse.Namespace, coordinator: str, rank: int) -> Mapping[str, str]:
    """What a process finds in its environment beside what this one has."""
    own = {
        "JAX_COORDINATOR_ADDRESS": coordinator,
        "JAX_NUM_PROCESSES": str(options.processes),
        "JAX_PROCESS_ID": str(rank),
        "JAX_PLATFORMS": options.platform,
    }
    if options.platform == "cpu":
        given = os.environ.get("XLA_FLAGS", "")  # of a flag given twice the last counts
        count = f"--xla_force_host_platform_device_count={options.devices}" if options.devices else ""
        flags = f"--xla_cpu_collective_timeout_seconds={COLLECTIVE_SECONDS} {given} {count}"
        own["XLA_FLAGS"] = " ".join(flags.split())
    elif options.devices:
        wanted = range(rank * options.devices, (rank + 1) * options.devices)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(n) for n in range(options.processes * options.devices)]
        if len(names) < options.processes * options.devices:
            raise ConfigError(
                f"{options.processes} processes of {options.devices} GPUs need "
                f"{options.processes * options.devices}, and CUDA_VISIBLE_DEVICES has {len(names)}: {visible}."
            )
        own["CUDA_VISIBLE_DEVICES"] = ",".join(names[n] for n in wanted)
    return own


class _Group:
    """Processes that are started and end together.

    Attributes:
        told: Whether this process was told to end, so that the run is over and is not to be started again.
    """

    def __init__(self, command: Sequence[str], environments: Sequence[Mapping[str, str]], grace: float) -> None:
        self.told = False
        self._command, self._environments, self._grace = command, environments, grace
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        # Signals that came, and processes that ended with their codes; what a handler puts may interrupt a `get`.
        self._events: queue.SimpleQueue[signal.Signals | tuple[int, int]] = queue.SimpleQueue()

    def run(self) -> int:
        """The exit code, when all have ended."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {n: signal.signal(n, lambda n, _: self._events.put(signal.Signals(n))) for n in numbers}
        reading, writing = os.pipe()  # never written to: it ends with this process
        try:
            for rank, environment in enumerate(self._environments):
                self._start(rank, environment, reading)
            return self._wait()
        finally:
            for process in self._running.values():
                _kill(process)
            os.close(reading)
            os.close(writing)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, rank: int, environment: Mapping[str, str], pipe: int) -> None:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), str(pipe), *self._command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[pipe],
            start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, and is passed on
        )
        self._running[rank] = process
        threading.Thread(target=self._follow, args=(rank, process), daemon=True).start()

    def _follow(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        """Passes on what a process prints, and tells when it has ended."""
        assert process.stdout is not None and process.stderr is not None
        pairs = ((process.stdout, sys.stdout.fileno()), (process.stderr, sys.stderr.fileno()))
        copies = [threading.Thread(target=_copy, args=(*pair, rank), daemon=True) for pair in pairs]
        for copy in copies:
            copy.start()
        code = process.wait()
        _kill(process)  # what it started and left behind
        for copy in copies:
            copy.join(DRAIN_SECONDS)
        self._events.put((rank, code if code >= 0 else 128 - code))

    def _wait(self) -> int:
        codes: list[int] = []
        deadline: float | None = None
        killed = False
        while self._running:
            try:
                event = self._events.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                _say(f"kills what is left after {self._grace:g} s: {self._names()}")
                for process in self._running.values():
                    _kill(process)
                deadline, killed = None, True
                continue
            failing = not any(codes)
            if isinstance(event, signal.Signals):
                self.told = True
                number = event
                _say(f"passes {number.name} on to {self._names()}")
            else:
                rank, code = event
                del self._running[rank]
                codes.append(code)
                if killed or not (code and failing and self._running):
                    continue
                number = signal.SIGTERM
                _say(f"process {rank} ended with {code}, which ends {self._names()}")
            for process in self._running.values():
                process.send_signal(number)
            if deadline is None:
                deadline = time.monotonic() + self._grace
        failures = [code for code in codes if code]
        return HUNG if HUNG in failures else next(iter(failures), 0)

    def _names(self) -> str:
        return ", ".join(str(rank) for rank in self._running)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a guard, its command and what that started; those that are gone already, too."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter where all are dead already
        os.killpg(process.pid, signal.SIGKILL)


def _copy(stream: BinaryIO, to: int, rank: int) -> None:
    """Passes lines on, whole, with the process in front; in colour if they go to a terminal."""
    prefix = f"[{rank}] "
    if os.isatty(to) and "NO_COLOR" not in os.environ:
        prefix = f"\033[{31 + rank % 6}m[{rank}]\033[0m "
    with stream:
        while line := stream.readline(LONGEST_LINE):
            try:
                _write(to, prefix.encode() + line.removesuffix(b"\n") + b"\n")
            except BrokenPipeError:
                return  # nobody reads on: the process hears of it when it next writes


def _say(text: str) -> None:
    _write(sys.stderr.fileno(), f"kdist launch: {text}\n".encode())


def _write(to: int, line: bytes) -> None:
    with _output:
        while line:
            line = line[os.write(to, line) :]

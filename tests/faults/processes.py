"""How fault tests start worker scripts, follow what they print, and end them whatever happens."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

SECONDS = 90
"""After so long a worker is killed: start-up included, on a busy machine."""


def free_port() -> int:
    """A port that nobody listened at just now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Worker:
    """A Python script as a process of its own, on one simulated device, as long as a `with` block.

    Args:
        script: The script.
        arguments: Its arguments.

    Attributes:
        process: The process.
        lines: What it printed, as far as it was read.
    """

    process: subprocess.Popen[str]

    def __init__(self, script: Path, *arguments: str) -> None:
        self._command = [sys.executable, str(script), *arguments]
        self.lines, self._errors = list[str](), list[str]()

    def __enter__(self) -> Self:
        own = "--xla_force_host_platform_device_count=1 --xla_cpu_collective_timeout_seconds=60"
        environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {own}"}  # the last of a flag counts
        pipe = subprocess.PIPE  # not files, which a worker whose disk is full could not write to
        self.process = subprocess.Popen(self._command, stdout=pipe, stderr=pipe, text=True, env=environment)
        self._killer = threading.Timer(SECONDS, self.process.kill)
        self._killer.start()
        self._listener = threading.Thread(target=lambda: self._errors.extend(self.process.stderr))
        self._listener.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._killer.cancel()
        self.process.kill()  # SIGTERM is a notice that nobody may read
        self.process.wait()
        self._listener.join()
        self.process.stdout.close()
        self.process.stderr.close()

    def read(self) -> Iterator[str]:
        """The lines that it prints, as they come."""
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            yield self.lines[-1]

    def read_until(self, start: str) -> str:
        """The next line that starts so; the test fails if there is none."""
        for line in self.read():
            if line.startswith(start):
                return line
        self.process.kill()
        pytest.fail(f"the worker did not say {start!r}\n{self.said()}")

    def end(self) -> int:
        """Its exit code, when it has ended; all its lines have been read then."""
        for _ in self.read():
            pass
        return self.process.wait()

    def said(self) -> str:
        """The end of its error stream, when it has ended."""
        self._listener.join()
        return "".join(self._errors)[-8000:]


@contextlib.contextmanager
def workers(made: list[Worker]) -> Iterator[list[Worker]]:
    """Several that run at the same time."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(worker) for worker in made]

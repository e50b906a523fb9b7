"""Two processes of one run, which are killed if they do not end: SIGTERM is a notice that nobody may read."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest


def printed_by_both(directory, worker, seconds):
    """What each of two processes printed last, as JSON; both must end well within so many seconds.

    Args:
        directory: Where their streams go.
        worker: The script, which is called with the coordinator, the number of processes and its own.
        seconds: After so long both are killed.
    """
    coordinator = f"127.0.0.1:{free_port()}"
    running, files = [], []
    deadline = time.monotonic() + seconds
    try:
        for i in range(2):
            out, err = (directory / f"{i}.{name}" for name in ("out", "err"))
            files.append((out, err))
            with out.open("w") as stdout, err.open("w") as stderr:
                command = [sys.executable, str(worker), coordinator, "2", str(i)]
                running.append(subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment()))
        for process in running:
            process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pytest.fail(f"no end after {seconds} s\n\n{ends(files)}")
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0, 0], ends(files)
    return [json.loads(out.read_text().splitlines()[-1]) for out, _ in files]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment() -> dict[str, str]:
    own = "--xla_force_host_platform_device_count=4 --xla_cpu_collective_timeout_seconds=60"
    # The rest as here, so that both sides round alike; of a flag given twice the last counts.
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {own}"}


def ends(files) -> str:
    """The end of what each process wrote to its error stream."""
    return "\n\n".join(err.read_text()[-4000:] for _, err in files)

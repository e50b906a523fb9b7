"""A PATH on which the tools of clouds and clusters are stand-ins, and scripts of launch/ that run with it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
STAND_IN = Path(__file__).with_name("stand_in.py")
TOOLS = ("gcloud", "kubectl", "srun", "scontrol", "nvidia-smi", "uv", "python3", "hostname")
SECONDS = 120
"""After so long a script is killed."""


class Stage:
    """Where scripts run.

    Attributes:
        directory: The state of the stand-ins.
        environment: That of the scripts; tests may change it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        tools = directory / "bin"
        tools.mkdir()
        for name in TOOLS:
            tool = tools / name
            tool.write_text(f"#!{sys.executable} -IS\n{STAND_IN.read_text()}")
            tool.chmod(0o755)
        # Those, then what belongs to this Python (`kdist`), then the system's; no tool of the user's own.
        path = [str(tools), os.path.dirname(sys.executable), "/usr/bin", "/bin"]
        kept = {name: os.environ[name] for name in ("HOME", "XLA_FLAGS", "JAX_PLATFORMS") if name in os.environ}
        self.environment = {
            **kept,
            "PATH": os.pathsep.join(path),
            "STAND_IN_DIRECTORY": str(directory),
            "KDIST_POLL_SECONDS": "0.05",
        }

    @contextlib.contextmanager
    def started(self, script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A script as a process that leads a group, as one that is started from a terminal does."""
        command = ["bash", str(LAUNCH / script), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=self.environment, start_new_session=True, **pipes) as process:
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def run(self, script: str, *arguments: str, code: int = 0) -> tuple[str, str]:
        """What a script that must end with this code writes to both its streams."""
        with self.started(script, *arguments) as process:
            out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
        return out, err

    def calls(self, tool: str) -> list[list[str]]:
        """The arguments of each call of a tool."""
        calls = self.directory / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [arguments for name, *arguments in map(json.loads, lines) if name == tool]


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)

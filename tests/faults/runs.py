"""Runs of `training.py` that are interrupted and started again, and what they come to."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from .processes import Worker
from .training import Job

SCRIPT = Path(__file__).with_name("training.py")


class Run:
    """A run of `training.py`, in as many processes, one after the other, as it takes.

    Args:
        home: A directory of its own.
        job: What it trains; its `directory` is set here.

    Attributes:
        backup: The directory of the backups.
        losses: The logs of every execution, by epoch and batch, as they were printed.
        outcome: What it came to; None until it has ended well.
    """

    def __init__(self, home: Path, job: Job) -> None:
        self.backup = home / "backup"
        self.job = dataclasses.replace(job, directory=str(self.backup))
        self.losses: dict[tuple[str, str], str] = {}
        self.outcome: dict[str, Any] | None = None

    def steps(self) -> list[str]:
        """The names of the backups."""
        return sorted(p.name for p in self.backup.iterdir() if p.name != ".lock")

    def start(self, **changes: Any) -> Worker:
        """Starts it, or starts it again; use what this returns as a context manager.

        Args:
            changes: Fields of the job, for this time.
        """
        return Worker(SCRIPT, json.dumps(dataclasses.asdict(dataclasses.replace(self.job, **changes))))

    def take(self, worker: Worker) -> int:
        """Waits for its end, and takes in what it printed; the exit code.

        An execution that was run before must have given the very same logs.
        """
        code = worker.end()
        for line in worker.lines:
            kind, _, rest = line.partition(" ")
            if kind == "loss":
                epoch, batch, logs = rest.split(" ", 2)
                assert self.losses.setdefault((epoch, batch), logs) == logs, (epoch, batch)
            elif kind == "end":
                self.outcome = json.loads(rest)
        return code

    def finish(self) -> None:
        """Starts it, and it ends well."""
        with self.start() as worker:
            assert self.take(worker) == 0, worker.said()

    def check_like(self, straight: "Run") -> None:
        """That it came to what another has, bit for bit: losses, arrays of the state, and history."""
        assert self.outcome is not None and straight.outcome is not None
        assert self.losses == straight.losses
        assert self.outcome == straight.outcome

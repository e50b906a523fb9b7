"""``kdist doctor``: whether a run would work here; a line a check, with what to do where it would not.

Nothing hangs: the checks run side by side in threads that are not waited for longer than `--timeout`, and devices are
asked for in a process of their own, since a runtime that finds none may also wait for good, or abort.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator

from kdist.cli import AddParser, checks, refuse
from kdist.cli.checks import Finding, Mark, fail

SECONDS = 9.0
"""How long a check may take, by default."""


def declare(add_parser: AddParser) -> None:
    """Adds the parser; see `kdist.cli`."""
    command = add_parser(
        description="Check what a run needs, a line each, with a remedy. Of several processes, start it on all at "
        "once, as the run itself: then they meet, and versions and clocks are compared. The exit code is 1 if a run "
        "would fail.",
    )
    command.add_argument("--run-dir", default="runs", metavar="DIR", help='where a run is to write; "runs" by default')
    command.add_argument(
        "--timeout", type=_seconds, default=SECONDS, metavar="SECONDS", help=f"for each check; {SECONDS:g} by default"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise argparse.ArgumentTypeError(f"expected a number of seconds. Received: {text!r}.")
    return seconds


def main(options: argparse.Namespace, rest: list[str]) -> int:
    """Runs all checks; 1 if a run would fail."""
    refuse(rest)
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    styles = {Mark.OK: "green", Mark.WARNING: "yellow", Mark.FAIL: "bold red"}
    marks = []
    for name, finding in examined(options.run_dir, options.timeout):
        marks.append(finding.mark)
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        line = _line(f"{name:<14}{finding.text}{remedy}")
        console.print(Text.assemble((f"{finding.mark.value:<9}", styles[finding.mark]), line))
    failed = marks.count(Mark.FAIL)
    console.print("A run would work." if not failed else f"A run would fail: see the {failed} marked FAIL.")
    return int(failed > 0)


def _line(text: str) -> str:
    """A text on one line, of characters that a terminal only shows."""
    return "".join(c if c.isprintable() else " " for c in text)


def examined(run_dir: str, seconds: float) -> Iterator[tuple[str, Finding]]:
    """What each check finds, in their order, with its name; one that gives no answer in time is a failure.

    Args:
        run_dir: Where a run is to write.
        seconds: How long they may take.
    """
    wanted: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": checks.versions,
        "devices": lambda: checks.devices(seconds - 0.5),
        "environment": checks.environment,
        "launcher": lambda: checks.launcher(seconds),
        "peers": lambda: checks.peers(max(seconds / 2, seconds - 2)),
        "memory": checks.memory,
        "shared memory": checks.shared_memory,
        "open files": checks.open_files,
        "run directory": lambda: checks.run_directory(run_dir),
        "compile cache": checks.cache,
    }
    deadline = time.monotonic() + seconds
    running = {name: _Running(name, check) for name, check in wanted.items()}
    for name, check in running.items():
        for finding in check.findings(deadline, seconds):
            yield name, finding


class _Running(threading.Thread):
    """A check under way."""

    def __init__(self, name: str, check: Callable[[], Iterator[Finding]]) -> None:
        super().__init__(name=f"kdist-doctor-{name}", daemon=True)
        self._check, self._found = check, list[Finding]()
        self.start()

    def run(self) -> None:
        try:
            self._found.extend(self._check())
        except Exception as error:  # of whatever kind: the other checks go on
            self._found.append(fail(f"the check itself failed: {error!r}", "report it, with this line"))

    def findings(self, deadline: float, seconds: float) -> list[Finding]:
        self.join(max(0.0, deadline - time.monotonic()))
        if self.is_alive():
            late = fail(f"no answer within {seconds:g} s", "see what it waits for, or give it longer: --timeout")
            return [*self._found, late]
        return self._found

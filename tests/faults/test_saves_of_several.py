"""Saves of two processes, of which one fails: both say so, at the same step, with the same words, and soon."""

import re
import socket
import time
from pathlib import Path

import pytest

from kdist.checkpoint import series

from .filling import FITTING, STEPS
from .processes import Worker, free_port, workers

BOUND = 10
"""The seconds from the error to the end of both, though Orbax waits for the process that failed."""
SCRIPT = Path(__file__).with_name("filling.py")


@pytest.mark.slow
@pytest.mark.parametrize("full", [0, 1])
def test_the_disk_of_one_of_two_is_full(tmp_path, full):
    coordinator = f"127.0.0.1:{free_port()}"
    made = [Worker(SCRIPT, coordinator, str(i), str(full), str(tmp_path / "run")) for i in range(2)]
    with workers(made) as running:
        lines = [worker.read_until("failed ") for worker in running]
        raised = time.monotonic()
        assert [worker.end() for worker in running] == [1, 1]
        assert time.monotonic() - raised < BOUND
    assert lines[0] == lines[1]
    step, message = re.fullmatch(r"failed (\d+) (.*)", lines[0]).groups()
    assert int(step) // STEPS == FITTING + 1  # between two executions, and not where the next save begins
    place = rf"{re.escape(str(tmp_path))}/run/\d+, on process {full} of host {re.escape(socket.gethostname())}"
    assert re.search(f"Cannot write training states to {place}: .*File too large", message)
    assert series.numbers(tmp_path / "run")  # what was saved before is there

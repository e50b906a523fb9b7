"""One of two processes is stopped (SIGSTOP): the other ends by itself, and it too, when it goes on."""

import re
import signal
import time

import pytest

from .processes import free_port, workers
from .runs import Run
from .training import Job

LIMIT = 4
"""The seconds without progress that the watchdog allows."""
BOUND = LIMIT + 16
"""The seconds to the end of each: the other's watchdog, its words to one that does not answer, and a busy machine."""


@pytest.mark.parametrize("stopped", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_of_two_is_stopped(tmp_path, monkeypatch, stopped):
    monkeypatch.setenv("KDIST_HANG_SECONDS", f"step={LIMIT},data={LIMIT},save={LIMIT}")
    run = Run(tmp_path / "run", Job("", epochs=100_000))
    coordinator, other = f"127.0.0.1:{free_port()}", 1 - stopped
    with workers([run.start(coordinator=coordinator, process_id=i) for i in range(2)]) as running:
        running[stopped].read_until("loss 1 ")
        running[stopped].process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert run.take(running[other]) == 43, running[other].said()
        assert time.monotonic() - began < BOUND
        began = time.monotonic()
        running[stopped].process.send_signal(signal.SIGCONT)
        assert run.take(running[stopped]) != 0
        assert time.monotonic() - began < BOUND
    last = re.escape(f"HangError: process {other} of 2 has not progressed for {LIMIT} s in phase ")
    text = running[other].said()
    assert re.search(rf"{last}'(step|data|save)', after step \d+\.", text.splitlines()[-1]), text
    assert "in fit" in text  # the stack of the thread that trains

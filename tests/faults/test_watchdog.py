"""A process that hangs is ended with its stacks, within its limit; one that progresses is not."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdist.errors import ConfigError
from kdist.watchdog import LIMITS, Watchdog

WORKER = Path(__file__).with_name("hanging.py")
SECONDS = 30
"""After so long a process is killed: start-up included, on a busy machine."""


class Recorder(Watchdog):
    """Notes that it would end the process, and in which phase, and watches no more."""

    def __init__(self, limits=None):
        super().__init__(limits)
        self.ended = []

    def _end(self, phase, seconds):
        self.ended.append((phase, self._step, seconds))
        self._over.set()


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("KDIST_HANG_SECONDS", raising=False)


def wait_for_end(watchdog, seconds=5.0):
    assert watchdog._over.wait(seconds)
    (ended,) = watchdog.ended
    return ended


def test_a_stuck_process_ends_with_its_stacks():
    run = subprocess.run([sys.executable, str(WORKER), "stuck"], capture_output=True, text=True, timeout=SECONDS)
    assert run.returncode == 43, run.stderr
    assert run.stdout == "before the end"
    assert run.stderr.count("in wait_for_rows") == 2  # both threads
    assert run.stderr.splitlines()[-1] == (
        "kdist.errors.HangError: process 0 of 1 has not progressed for 1 s in phase 'data', after step 12. The stacks "
        "above show what each thread waits for; if that may take so long, set KDIST_HANG_SECONDS=data=2 (0 for no "
        "limit)."
    )


def test_a_process_that_was_stopped_goes_on():
    with subprocess.Popen([sys.executable, str(WORKER), "stopped"], stdout=subprocess.PIPE, text=True) as process:
        killer = threading.Timer(SECONDS, process.kill)
        killer.start()
        try:
            assert process.stdout.readline() == "watched\n"
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            time.sleep(2.0)  # longer than its limit
            process.send_signal(signal.SIGCONT)
            assert process.wait() == 0
        finally:
            killer.cancel()
            process.kill()


def test_limits_are_those_of_the_innermost_phase():
    with Recorder({"data": 0.1}) as watchdog, watchdog.phase("save"), watchdog.phase("data"):
        phase, step, seconds = wait_for_end(watchdog)
    assert (phase, step) == ("data", None) and 0.1 <= seconds < 5
    with Recorder({"data": 0.1}) as watchdog, watchdog.phase("data"), watchdog.phase("save"):
        assert not watchdog._over.wait(0.5)


def test_it_is_start_up_until_the_first_beat_and_then_step():
    with Recorder({"start-up": 0.1}) as watchdog:
        assert wait_for_end(watchdog)[:2] == ("start-up", None)
    with Recorder({"start-up": 0.1, "step": 0.2}) as watchdog:
        watchdog.beat(5)
        with watchdog.phase("data"):
            pass
        assert wait_for_end(watchdog)[:2] == ("step", 5)


@pytest.mark.parametrize("progress", ["beat", "phase"])
def test_what_progresses_goes_on(progress):
    with Recorder({"step": 0.5, "data": 0.5}) as watchdog:
        for step in range(18):
            watchdog.beat(step if progress == "beat" else 0)
            with watchdog.phase("data"):
                time.sleep(0.05)
    assert watchdog.ended == []


def test_a_phase_that_raises_is_over():
    watchdog = Recorder({"data": 0.1})
    with watchdog:
        with pytest.raises(LookupError), watchdog.phase("data"):
            raise LookupError
        assert not watchdog._over.wait(0.4)


def test_inside_itself_it_goes_on_and_afterwards_it_can_be_entered_again():
    watchdog = Recorder({"step": 0.1})
    with watchdog:
        watchdog.beat(3)
        with watchdog:
            pass
        assert wait_for_end(watchdog)[:2] == ("step", 3)
    with watchdog:
        assert not watchdog._over.wait(0.4)  # start-up again


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", {}),
        ("12.5", dict.fromkeys(LIMITS, 12.5)),
        ("compile=900, step=300", {"compile": 900, "step": 300}),
        ("data=0", {"data": float("inf")}),
        ("0", dict.fromkeys(LIMITS, float("inf"))),
    ],
)
def test_the_environment_goes_first(monkeypatch, text, expected):
    monkeypatch.setenv("KDIST_HANG_SECONDS", text)
    assert Watchdog({"step": 7, "save": 8})._limits == {**LIMITS, "step": 7, "save": 8, **expected}


def test_without_limits_there_is_no_thread(monkeypatch):
    monkeypatch.setenv("KDIST_HANG_SECONDS", "0")
    before = threading.active_count()
    with Watchdog():
        assert threading.active_count() == before


@pytest.mark.parametrize("text", ["long", "-1", "nan", "inf", "step=", "step", "stpe=3", "step=3,", "step=3;data=4"])
def test_nonsense_in_the_environment(monkeypatch, text):
    monkeypatch.setenv("KDIST_HANG_SECONDS", text)
    with pytest.raises(ConfigError, match="The environment variable KDIST_HANG_SECONDS must") as raised:
        Watchdog()
    assert str(raised.value).endswith(f"Received: {text!r}.")


def test_nonsense_in_the_arguments():
    with pytest.raises(ConfigError, match="limits must give seconds"):
        Watchdog({"step": None})
    with pytest.raises(ConfigError, match="Unknown phase 'saev'. Did you mean 'save'"), Watchdog().phase("saev"):
        pass

"""An exception on one of two processes ends both within ten seconds, and both say where it came from.

The limits of JAX itself, 60 s for heartbeats and 300 s for a shutdown, stay as they are: nothing here waits for them.
"""

import itertools
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdist.distribution import alarm as alarms
from kdist.distribution.alarm import Alarm
from kdist.errors import DistributionError

from .processes import free_port

WORKER = Path(__file__).with_name("several.py")
SECONDS = 60
"""After so long both processes are killed: start-up included, on a busy machine."""
BOUND = 10
"""The seconds from the failure to the end of both."""


def run(directory, what, who, ending=(0, 1)):
    """Exit codes, output and errors of both, and the seconds from the failure to the end of those that are to end."""
    coordinator, running, files = f"127.0.0.1:{free_port()}", [], []
    try:
        for i in range(2):
            out, err = directory / f"{i}.out", directory / f"{i}.err"
            files.append((out, err))
            with out.open("w") as stdout, err.open("w") as stderr:
                command = [sys.executable, str(WORKER), coordinator, str(i), what, str(who)]
                running.append(subprocess.Popen(command, stdout=stdout, stderr=stderr))
        deadline = time.monotonic() + SECONDS
        for process in (running[i] for i in ending):
            process.wait(max(0.1, deadline - time.monotonic()))
        ended = time.time()
    except subprocess.TimeoutExpired:
        pytest.fail(f"no end after {SECONDS} s\n\n" + "\n\n".join(err.read_text()[-4000:] for _, err in files))
    finally:
        for process in running:
            process.kill()  # SIGTERM is a notice that nobody may read
            process.wait()
    outs, errs = ([file.read_text() for file in kind] for kind in zip(*files, strict=True))
    failed = re.search(r"failed at ([\d.]+)", outs[who])
    return [process.returncode for process in running], outs, errs, failed and ended - float(failed[1])


def end(text: str) -> str:
    """The last lines of an error stream."""
    return "\n".join(text.splitlines()[-12:])


def check_both_fell(result, who):
    codes, _, errs, seconds = result
    assert codes == [1, 1], "\n\n".join(errs)
    assert seconds < BOUND
    own, other = end(errs[who]), end(errs[1 - who])
    assert own.endswith(f"LookupError: row 7 is missing\nThis was process {who} of 2.") and "in fail" in own
    assert "LookupError: row 7 is missing" in other and "in fail" in other
    last = f"The above happened on process {who} of 2, which failed; process {1 - who} cannot go on without it."
    assert last in other.splitlines()[-2:]  # what ends with an error of its own names itself after it


@pytest.mark.parametrize("who", [0, 1])
def test_an_exception_while_the_other_waits_in_a_collective(tmp_path, who):
    check_both_fell(run(tmp_path, "in_a_collective", who), who)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["in_python", "asleep", "outside"])
@pytest.mark.parametrize("who", [0, 1])
def test_an_exception_while_the_other_does_something_else(tmp_path, what, who):
    check_both_fell(run(tmp_path, what, who), who)


@pytest.mark.slow
def test_what_asks_is_told_by_an_error(tmp_path):
    result = run(tmp_path, "in_python", 1)
    check_both_fell(result, 1)
    assert "kdist.errors.DistributionError: Traceback" in result[2][0] and "alarm.check()" in result[2][0]


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_failure_that_is_caught_on_one_process_ends_the_other(tmp_path, who):
    other = 1 - who
    codes, _, errs, seconds = run(tmp_path, "caught", who, ending=(other,))
    assert codes[other] == 1 and seconds < BOUND, errs[other]
    assert f"on process {who} of 2, which failed" in end(errs[other])


@pytest.mark.slow
def test_errors_that_all_raise_alike_may_be_caught(tmp_path):
    codes, outs, errs, _ = run(tmp_path, "alike", 1)
    assert codes == [0, 0], "\n\n".join(errs)
    assert [out.splitlines()[-1] for out in outs] == ["went on"] * 2


@pytest.mark.parametrize("who", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_is_stuck_ends_both(tmp_path, who):
    codes, _, errs, seconds = run(tmp_path, "stuck", who)
    assert (codes[who], codes[1 - who]) == (43, 1), "\n\n".join(errs)
    assert seconds < BOUND
    line = f"HangError: process {who} of 2 has not progressed for 2 s in phase 'data', after step 1."
    assert line in errs[who].splitlines()[-1] and "in stuck" in errs[who]
    assert line in end(errs[1 - who]) and f"on process {who} of 2, which failed" in end(errs[1 - who])


def test_one_process_has_no_thread():
    before = threading.active_count()
    with Alarm() as alarm:
        assert threading.active_count() == before
        alarm.check()
    with pytest.raises(LookupError) as raised, Alarm():
        raise LookupError("row 7 is missing")
    assert not hasattr(raised.value, "__notes__")


class Store:
    """The key-value store of a run in which process 7 has failed, or nobody."""

    def __init__(self, **texts):
        self.texts = {f"kdist/failed/{number.strip('_')}/7": text for number, text in texts.items()}

    def key_value_dir_get(self, prefix):
        return [(key, text) for key, text in self.texts.items() if key.startswith(prefix)]

    def key_value_set(self, key, value, allow_overwrite):
        self.texts[key] = value


@pytest.fixture
def store(monkeypatch):
    """``store(...)``: makes this process one of several, with a store."""

    def make(**texts):
        made = Store(**texts)
        monkeypatch.setattr(alarms, "store", lambda: made)
        monkeypatch.setattr(alarms, "_numbers", itertools.count())
        monkeypatch.setattr(alarms, "_failed", set())
        return made

    return make


def test_what_is_published(store):
    made = store()
    with pytest.raises(LookupError), Alarm():
        raise LookupError("row 7 is missing")
    assert list(made.texts) == ["kdist/failed/0/0"]
    assert made.texts["kdist/failed/0/0"].endswith("LookupError: row 7 is missing")
    with pytest.raises(LookupError), Alarm():
        raise LookupError("x" * 10**6)
    assert len(made.texts["kdist/failed/1/0"]) == alarms.MOST_CHARACTERS - 1  # and a newline


@pytest.mark.parametrize("error", [SystemExit(42), GeneratorExit()])
def test_leaving_is_no_failure(store, error):
    made = store()
    with pytest.raises(type(error)), Alarm():
        raise error
    with Alarm():
        pass
    assert made.texts == {}


def test_a_failure_before_this_one_is_a_note_and_told_once(store):
    made = store(_0="ValueError: boom")
    with pytest.raises(LookupError, match="row 7 is missing") as raised, Alarm(), Alarm():
        raise LookupError("row 7 is missing")
    (note,) = raised.value.__notes__
    assert note.startswith("ValueError: boom\nThe above happened on process 7")
    assert list(made.texts) == ["kdist/failed/0/7"]  # the first failure is the cause


def test_what_counts(store):
    """Not what this process failed in too; what it got through well does, and an end for good."""
    made = store(_0="boom")
    with pytest.raises(LookupError), Alarm():
        raise LookupError
    assert alarms._look() is None
    made.texts["kdist/failed/1/7"] = "bang"
    with Alarm():
        pass
    assert alarms._look().startswith("bang")
    with pytest.raises(LookupError), Alarm():
        raise LookupError
    assert alarms._look().startswith("bang")
    made.texts = {"kdist/failed/0/7": "boom", "kdist/failed/exit/7": "gone"}
    assert alarms._look().startswith("gone")


def test_check_tells_what_the_thread_heard(store):
    store(exit="boom")
    with pytest.raises(DistributionError, match="(?s)^boom\n.*cannot go on without it.$") as raised, Alarm() as alarm:
        deadline = time.monotonic() + BOUND
        while time.monotonic() < deadline:
            alarm.check()
    assert not hasattr(raised.value, "__notes__")

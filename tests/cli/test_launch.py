"""`kdist launch`: who the processes are, what of them comes out, and how they end; with real processes.

The launched commands are small scripts without JAX. What must outlive or end the launcher runs it as a process.
"""

import contextlib
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from kdist.cli import main
from kdist.cli.launch import COLLECTIVE_SECONDS, _reserved_port

LIMIT = 30.0
"""After so many seconds everything that a test started is over, whatever happened."""


def launched(capfd, *arguments, script):
    """The exit code of a launch of a shell script, and the lines of both its streams."""
    code = main(["launch", *arguments, "--", "sh", "-c", script])
    return code, *(text.splitlines() for text in capfd.readouterr())


@contextlib.contextmanager
def launcher(*arguments, seconds=LIMIT, **streams):
    """The launcher as a process, which is killed at the end, or after so many seconds."""
    command = [sys.executable, "-m", "kdist", "launch", *arguments]
    process = subprocess.Popen(command, text=True, **streams)
    killer = threading.Timer(seconds, process.kill)
    killer.start()
    try:
        yield process
    finally:
        killer.cancel()
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def usage_error(capfd, *arguments):
    """What is said of arguments that are wrong."""
    try:
        code = main(["launch", *arguments])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    return capfd.readouterr().err


# Who they are ------------------------------------------------------------------------------------


def test_each_process_finds_who_it_is(capfd, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_dump_to=/nowhere")
    script = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS on $JAX_PLATFORMS; $XLA_FLAGS"'
    code, out, _ = launched(capfd, "-n", "3", "--devices", "2", script=script)
    assert code == 0
    said = [
        re.fullmatch(r"\[(\d)\] (\d) of 3 at (127\.0\.0\.1:\d+) on cpu; (.*)", line).groups() for line in sorted(out)
    ]
    assert [(rank, own) for rank, own, _, _ in said] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert len({address for _, _, address, _ in said}) == 1
    for *_, flags in said:
        assert "--xla_dump_to=/nowhere" in flags and flags.endswith("--xla_force_host_platform_device_count=2")
        assert flags.startswith(f"--xla_cpu_collective_timeout_seconds={COLLECTIVE_SECONDS} ")  # the user's own wins


@pytest.mark.parametrize(
    "visible, arguments, want",
    [
        (None, "--devices 2", ["0,1", "2,3"]),
        ("4,5,GPU-a,7", "--devices 2", ["4,5", "GPU-a,7"]),
        ("3,1,2", "--devices 1", ["3", "1"]),
        ("3,1", "", ["3,1", "3,1"]),
    ],
)
def test_gpus_are_shared_out(capfd, monkeypatch, visible, arguments, want):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    options = ["-n", "2", "--platform", "cuda", *arguments.split()]
    code, out, _ = launched(capfd, *options, script='echo "$JAX_PLATFORMS $CUDA_VISIBLE_DEVICES"')
    assert code == 0
    assert sorted(out) == [f"[{rank}] cuda {gpus}" for rank, gpus in enumerate(want)]


def test_the_launcher_does_not_wait_for_jax():
    script = "import sys; from kdist.cli import main; print(main(sys.argv[1:]), 'jax' in sys.modules)"
    for arguments, code in ((["launch", "-n", "1", "--", "true"], 0), (["launch", "-n", "1", "--", "no-program"], 2)):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=LIMIT)
        assert done.stdout == f"{code} False\n", done.stderr


def test_the_port_is_kept_for_the_coordinator():
    with _reserved_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.socket() as coordinator:
            coordinator.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            coordinator.bind(("127.0.0.1", port))
            coordinator.listen()
            with socket.create_connection(("127.0.0.1", port), 5):
                accepted, _ = coordinator.accept()
                accepted.close()
        with _reserved_port() as another:
            assert another != port


# What comes out ----------------------------------------------------------------------------------


def test_lines_are_whole_and_named(capfd):
    """Written in pieces by two processes at once, on both streams; the last one has no newline."""
    code = """
import os, sys, time
for n in range(20):
    for stream in (sys.stdout, sys.stderr):
        stream.write(f"line {n} ")
        stream.flush()
        time.sleep(0.002)
        stream.write("x" * 5000 + "\\n")
        stream.flush()
print("end", end="")
"""
    assert main(["launch", "-n", "2", "--", "python", "-c", code]) == 0
    out, err = capfd.readouterr()
    want = [f"line {n} {'x' * 5000}" for n in range(20)]
    for rank in (0, 1):
        assert [line[4:] for line in out.splitlines() if line.startswith(f"[{rank}] ")] == [*want, "end"]
        assert [line[4:] for line in err.splitlines() if line.startswith(f"[{rank}] ")] == want
    assert len(out.splitlines()) == 42 and len(err.splitlines()) == 40


def test_lines_come_as_they_are_printed_and_in_colour_on_a_terminal(tmp_path):
    """Python's own buffer must not hold them back: the second process ends only when the first line was seen."""
    seen = tmp_path / "seen"
    waits = f"import os, time\nprint('here')\nwhile not os.path.exists({str(seen)!r}): time.sleep(0.01)"
    parent, child = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "PYTHONUNBUFFERED")}
    with launcher("-n", "1", "--", "python", "-c", waits, stdout=child, env=environment) as process:
        os.close(child)
        assert os.read(parent, 100) == b"\033[31m[0]\033[0m here\r\n"
        seen.touch()
        assert process.wait(LIMIT) == 0
    os.close(parent)


def test_it_ends_when_nobody_reads_any_more():
    with launcher("-n", "2", "--", "yes", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline()[3:] == " y\n"
        process.stdout.close()
        assert process.wait(LIMIT) == 128 + signal.SIGPIPE


# How they end ------------------------------------------------------------------------------------

WAITS = "test $JAX_PROCESS_ID = 1 && until test -e 0; do sleep 0.01; done"
IS_THERE = "touch $JAX_PROCESS_ID; while :; do sleep 0.01; done"
"""Process 1 goes on when process 0 has set its traps; that one waits for signals."""


@pytest.mark.parametrize(
    "script, code",
    [
        ("exit 0", 0),
        ("exit $((3 * JAX_PROCESS_ID))", 3),
        ("exit 42", 42),
        ("exit $((43 * JAX_PROCESS_ID))", 43),
        ("kill -KILL $$", 137),
        # The one that hangs lets the others leave first.
        (f"{WAITS} && exit 1; trap 'exit 43' TERM; {IS_THERE}", 43),
        # What a process ends with because of another is not how the run ended.
        (f"{WAITS} && exit 5; trap 'exit 42' TERM; {IS_THERE}", 5),
    ],
)
def test_exit_codes_are_kept(capfd, tmp_path, monkeypatch, script, code):
    monkeypatch.chdir(tmp_path)
    assert launched(capfd, "-n", "2", script=script)[0] == code


def test_one_that_fails_ends_those_that_ignore_it(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    script = f"{WAITS} && exit 7; trap 'echo told' TERM; {IS_THERE}"
    code, out, err = launched(capfd, "-n", "2", "--grace", "0.5", script=script)
    assert code == 7
    assert 0.5 <= time.monotonic() - began < 10
    assert out == ["[0] told"]
    assert err == [
        "kdist launch: process 1 ended with 7, which ends 0",
        "kdist launch: kills what is left after 0.5 s: 0",
    ]


def test_what_a_command_leaves_behind_ends_with_it(capfd):
    """It holds the streams open, and would hold up the launcher."""
    began = time.monotonic()
    code, out, _ = launched(capfd, "-n", "2", script="sleep 30 & echo done")
    assert (code, sorted(out)) == (0, ["[0] done", "[1] done"])
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_go_to_all_a_second_one_too(number):
    """To the command, not to what it started: data workers must go on for as long as it saves."""
    script = """
import signal, subprocess, sys
got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda n, _: (got.append(n), print(signal.Signals(n).name)))
worker = subprocess.Popen(["sleep", "30"])
print("ready")
while len(got) < 2:
    signal.sigtimedwait([], 0.01)
sys.exit(42 if worker.poll() is None else 1)
"""
    arguments = ["-n", "2", "--restart", "3", "--", "python", "-c", script]
    with launcher(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert {process.stdout.readline() for _ in range(2)} == {"[0] ready\n", "[1] ready\n"}
        for _ in range(2):
            process.send_signal(number)
            assert {process.stdout.readline() for _ in range(2)} == {f"[{n}] {number.name}\n" for n in (0, 1)}
        assert process.wait(LIMIT) == 42  # not started again: it was the launcher that was told to end
        assert "starts again" not in process.stderr.read()


def test_a_killed_launcher_leaves_nothing_behind(tmp_path):
    """Nor does one whose processes ignore everything, and have started others."""
    fifo = tmp_path / "held"
    os.mkfifo(fifo)
    script = f"trap '' TERM INT HUP; exec 9>{shlex.quote(str(fifo))}; sleep {LIMIT} & echo $JAX_PROCESS_ID >&9; wait"
    with launcher("-n", "2", "--", "sh", "-c", script) as process, fifo.open() as held:
        assert {held.readline() for _ in range(2)} == {"0\n", "1\n"}
        process.kill()
        began = time.monotonic()
        assert held.read() == ""  # ends when the last process that holds it does
        assert time.monotonic() - began < 5


def test_a_killed_guard_leaves_nothing_behind(capfd, tmp_path):
    fifo = tmp_path / "held"
    os.mkfifo(fifo)
    script = f"exec 9>{shlex.quote(str(fifo))}; echo hello >&9; kill -KILL $PPID; exec sleep {LIMIT}"
    reader = threading.Thread(target=fifo.read_text)
    reader.start()
    began = time.monotonic()
    assert launched(capfd, "-n", "1", script=script)[0] == 137
    reader.join(LIMIT)
    assert time.monotonic() - began < 10


# Starting again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("restarts, code, runs", [(0, 42, 1), (1, 42, 2), (5, 0, 3)])
def test_a_preempted_run_is_started_again(capfd, tmp_path, monkeypatch, restarts, code, runs):
    """It would end well in its third start."""
    monkeypatch.chdir(tmp_path)
    script = f"{WAITS} && exit 0; echo run >> log; test $(wc -l < log) = 3 || exit 42; touch 0"
    got, _, err = launched(capfd, "-n", "2", "--restart", str(restarts), script=script)
    assert got == code
    assert (tmp_path / "log").read_text() == "run\n" * runs
    assert sum("starts again" in line for line in err) == runs - 1


def test_what_failed_is_not_started_again(capfd, tmp_path):
    log = tmp_path / "log"
    assert launched(capfd, "-n", "1", "--restart", "3", script=f"echo run >> {log}; exit 1")[0] == 1
    assert log.read_text() == "run\n"


# Usage -------------------------------------------------------------------------------------------


def test_a_dry_run_prints_what_could_be_pasted(capfd, tmp_path):
    command = ["sh", "-c", f'touch "{tmp_path}/made by $JAX_PROCESS_ID"']
    assert main(["launch", "-n", "2", "--devices", "4", "--dry-run", "--", *command]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert list(tmp_path.iterdir()) == []
    assert [line[:4] for line in lines] == ["[0] ", "[1] "]
    for line in lines:
        subprocess.run(line[4:], shell=True, check=True, timeout=LIMIT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made by 0", "made by 1"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("-n 2", "What is to be run is missing"),
        ("-n 2 --", "What is to be run is missing"),
        ("-n 2 -- no-such-program --now", "no program 'no-such-program'"),
        (f"-n 2 -- {__file__}", "that can be run"),
        ("-n 0 -- true", "must be a whole number, 1 or more, not 0"),
        ("-n two -- true", "must be a whole number, 1 or more, not two"),
        ("-- true", "-n/--processes"),
        ("-n 2 --grace -1 -- true", "0 or more"),
        ("-n 2 --grace nan -- true", "0 or more"),
        ("-n 2 --grace soon -- true", "must be seconds, 0 or more, not soon"),
        ("-n 2 --restart -1 -- true", "0 or more"),
        ("-n 2 --devices 0 -- true", "1 or more"),
        ("-n 2 --platform abacus -- true", "invalid choice"),
        ("-n 2 --bogus -- true", "--bogus"),
    ],
)
def test_usage_errors(capfd, arguments, said):
    assert said in usage_error(capfd, *arguments.split())


def test_too_few_gpus(capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    said = usage_error(capfd, "-n", "2", "--devices", "2", "--platform", "cuda", "--", "true")
    assert "need 4, and CUDA_VISIBLE_DEVICES has 3" in said


# A run -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_is_told_to_end_saves_and_goes_on(tmp_path):
    directory = tmp_path / "run"
    train = ["kdist", "train", "configs/digits.py", "--run-dir", str(directory), "--resume", "--epochs"]
    options = ["launch", "-n", "2", "--devices", "2", "--grace", "60", "--"]
    with launcher(*options[1:], *train, "2000", seconds=300, stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            if line.startswith("[0]") and "loss" in line:
                break
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait() == 42
    done = len((directory / "history.jsonl").read_text().splitlines())
    command = [sys.executable, "-m", "kdist", *options, *train, str(done + 2)]
    assert subprocess.run(command, timeout=300, check=False).returncode == 0
    assert len((directory / "history.jsonl").read_text().splitlines()) == done + 2


@pytest.mark.slow
def test_a_config_is_trained_by_two_processes(tmp_path):
    directory = tmp_path / "run"
    train = ["kdist", "train", "configs/digits.py", "--epochs", "2", "--run-dir", str(directory)]
    command = [sys.executable, "-m", "kdist", "launch", "-n", "2", "--devices", "2", "--", *train]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert f"[0] Run: {directory}" in done.stdout.splitlines()
    assert (directory / "weights").is_dir()
    assert len((directory / "history.jsonl").read_text().splitlines()) == 2

"""`kdist doctor`: each check says what is there, what is wrong and what to do, and none hangs."""

import concurrent.futures
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from kdist import compile_cache
from kdist.cli import checks, main
from kdist.cli.checks import Mark
from kdist.distribution import processes, rendezvous
from kdist.versions import TESTED, installed

SECONDS = 60.0
"""A limit that no check here comes near."""


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    """An environment that knows of no launcher and no cache."""
    for name in dict(os.environ):
        if name.startswith(("JAX_", "KDIST_", "SLURM_", "OMPI_", "TPU_", "XDG_")) or "proxy" in name.lower():
            monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def only(findings):
    """The one finding of a check."""
    [finding] = findings
    return finding


def of(findings, mark):
    """The texts and remedies of all findings with a mark."""
    return [f"{finding.text} -> {finding.remedy}" for finding in findings if finding.mark is mark]


# The command ---------------------------------------------------------------------------------------


def test_a_line_a_check_and_exit_code_0(tmp_path):
    command = [sys.executable, "-c", "import sys; from kdist.cli import main; sys.exit(main())", "doctor"]
    arguments = ["--run-dir", str(tmp_path), "--timeout", str(SECONDS)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "A run would work." and "\033" not in done.stdout
    assert {line[:9].strip() for line in lines} <= {"ok", "warning"}
    assert list(dict.fromkeys(line[9:23].strip() for line in lines)) == [
        "versions",
        "devices",
        "environment",
        "launcher",
        "peers",
        "memory",
        "shared memory",
        "open files",
        "run directory",
        "compile cache",
    ]
    assert "devices       8 x cpu" in done.stdout


@pytest.fixture
def quick(monkeypatch):
    """Devices without a process."""
    monkeypatch.setattr(checks, "devices", lambda seconds: iter([checks.ok("there are some")]))


def test_what_would_stop_a_run_is_exit_code_1(tmp_path, capsys, quick):
    file = tmp_path / "file"
    file.touch()
    assert main(["doctor", "--run-dir", str(file / "run"), "--timeout", str(SECONDS)]) == 1
    out = capsys.readouterr().out
    assert f"FAIL     run directory {file} is a file -> give another: --run-dir" in out
    assert out.endswith("A run would fail: see the 1 marked FAIL.\n")


@pytest.mark.parametrize("seconds", ["x", "0", "nan", "inf"])
def test_a_time_limit_is_a_number(seconds, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--timeout", seconds])
    assert ended.value.code == 2
    assert f"expected a number of seconds. Received: '{seconds}'." in capsys.readouterr().err


def test_unknown_arguments_are_refused(capsys):
    assert main(["doctor", "more"]) == 2
    assert "unrecognized arguments: more" in capsys.readouterr().err


def test_a_check_that_hangs_or_breaks_does_not_stop_the_others(monkeypatch, capsys, tmp_path, quick):
    never = threading.Event()

    def half():
        yield checks.ok("so far so good")
        never.wait()

    def broken():
        yield from {}["none"]

    monkeypatch.setattr(checks, "memory", half)
    monkeypatch.setattr(checks, "cache", broken)
    began = time.monotonic()
    assert main(["doctor", "--run-dir", str(tmp_path), "--timeout", "2"]) == 1
    assert time.monotonic() - began < 10
    never.set()
    out = capsys.readouterr().out
    assert "ok       memory        so far so good\nFAIL     memory        no answer within 2 s" in out
    assert "FAIL     compile cache the check itself failed: KeyError('none')" in out
    assert "ok       run directory" in out


def test_what_a_check_says_stays_on_its_line(monkeypatch, capsys, tmp_path, quick):
    monkeypatch.setattr(checks, "memory", lambda: iter([checks.ok("two\nlines \033[31m[bold]" + "x" * 300)]))
    assert main(["doctor", "--run-dir", str(tmp_path), "--timeout", str(SECONDS)]) == 0
    assert f"ok       memory        two lines  [31m[bold]{'x' * 300}\n" in capsys.readouterr().out


# Versions ------------------------------------------------------------------------------------------


def test_the_versions_tested_are_those_that_pyproject_names(request):
    text = (request.config.rootpath / "pyproject.toml").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("# Tested with")]
    for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain"):
        assert f"{name} {TESTED[name]}" in line
    assert f'python_version = "{TESTED["python"]}"' in text


@pytest.fixture
def here(monkeypatch):
    """``here(name=version)``: what is installed, where it is not what was tested."""

    def pretend(**other):
        found = {"kdist": "0.1.0", **TESTED} | {name.replace("_", "-"): version for name, version in other.items()}
        monkeypatch.setattr(checks, "installed", lambda: found)
        monkeypatch.setattr(checks, "version_of", lambda name: found.get(name) or installed().get(name, "99"))
        return list(checks.versions())

    monkeypatch.setattr(
        checks.importlib.metadata, "requires", lambda name: ["jax>=0.10.0", "orbax-checkpoint<0.13,>=0.12.3"]
    )
    return pretend


def test_versions(here):
    cuda = {"jax_cuda12_plugin": "0.10.2", "jax_cuda13_plugin": "not installed", "jax_rocm7_plugin": "not installed"}
    assert only(here(**cuda)).mark is Mark.OK
    assert only(here(**cuda, python="3.11.9")).mark is Mark.OK
    assert of(here(**cuda, jax="0.10.1", python="3.12.1"), Mark.WARNING)[0].startswith(
        "not those tested, in brackets: python 3.12.1 (3.11), jax 0.10.1 (0.10.2) -> "
    )
    assert "orbax-checkpoint<0.13,>=0.12.3 (here: 0.13.0)" in of(here(**cuda, orbax_checkpoint="0.13.0"), Mark.FAIL)[0]
    assert "jax>=0.10.0 (here: 0.9.9)" in of(here(**cuda, jax="0.9.9"), Mark.FAIL)[0]
    assert "jax>=0.10.0 (here: not installed)" in of(here(**cuda, jax="not installed"), Mark.FAIL)[0]
    [text] = of(here(**{**cuda, "jax_cuda12_plugin": "0.10.1"}), Mark.FAIL)
    assert "jax-cuda12-plugin==0.10.2, as jaxlib (here: 0.10.1)" in text


# Devices -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_PLATFORMS": "nonsense"}, "Unable to initialize backend 'nonsense'"),
        ({"XLA_FLAGS": "--xla_no_such_flag=1"}, "Unknown flag in XLA_FLAGS: --xla_no_such_flag=1"),
    ],
)
def test_without_devices_what_jax_says_is_told(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    finding = only(checks.devices(SECONDS))
    assert finding.mark is Mark.FAIL and message in finding.text and "see JAX_PLATFORMS" in finding.remedy


def test_devices_that_do_not_answer(monkeypatch):
    monkeypatch.setattr(checks, "DEVICES", "import time; time.sleep(60)")
    finding = only(checks.devices(0.3))
    assert finding.mark is Mark.FAIL and "within 0.3 s" in finding.text


def test_a_device_is_told_by_kind_and_memory(monkeypatch):
    found = [["tpu", "TPU v5 lite", 16 * 10**9]] * 4
    monkeypatch.setattr(checks, "DEVICES", f"print('noise'); print({json.dumps(json.dumps(found))})")
    assert only(checks.devices(SECONDS)) == checks.ok("4 x tpu (TPU v5 lite), 16.0 GB each")


def test_an_accelerator_that_is_not_used_is_warned_of(monkeypatch):
    monkeypatch.setattr(checks, "DEVICES", """print('[["cpu", "cpu", 0]]')""")
    monkeypatch.setattr(checks, "_hardware", lambda: "gpu")
    assert only(checks.devices(SECONDS)).mark is Mark.OK  # the person said so, with JAX_PLATFORMS
    monkeypatch.delenv("JAX_PLATFORMS")
    finding = only(checks.devices(SECONDS))
    assert finding.mark is Mark.WARNING and "kdist[cuda]" in finding.remedy and "1 x cpu" in finding.text


# The environment -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "mark", "text"),
    [
        ({}, Mark.OK, "JAX_PLATFORMS=cpu, XLA_FLAGS=--xla_force"),
        ({"JAX_ENABLE_X64": "1", "JAX_PROCESS_ID": "0", "JAX_PLAYGROUND": "1"}, Mark.OK, "JAX_PLATFORMS=cpu"),
        (
            {"JAX_NUM_PROCESS": "2"},
            Mark.WARNING,
            "JAX_NUM_PROCESS is read by nobody -> did you mean JAX_NUM_PROCESSES?",
        ),
        ({"KDIST_COMPILE_CASH": "2"}, Mark.WARNING, "did you mean KDIST_COMPILE_CACHE?"),
        ({"XLA_FLAGS": "--a=1 b"}, Mark.WARNING, "XLA_FLAGS has 'b', which XLA ignores"),
        ({"XLA_FLAGS": "--a=1 --a=2"}, Mark.WARNING, "XLA_FLAGS has --a=1 and --a=2 -> keep one; the last counts"),
        ({"XLA_FLAGS": "--a=1 --a=1"}, Mark.OK, "--a=1"),
        ({"XLA_FLAGS": "flags.txt"}, Mark.OK, "XLA_FLAGS=flags.txt"),
    ],
)
def test_the_environment(monkeypatch, variables, mark, text):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    finding = only(checks.environment())
    assert finding.mark is mark and text in f"{finding.text} -> {finding.remedy}"


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node7",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
JAX = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:80", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "1"}
OMPI = {
    "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.96.0.1:9",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}


@pytest.mark.parametrize(
    ("variables", "findings"),
    [
        ({}, [(Mark.OK, "one process")]),
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, [(Mark.OK, "one process, of Slurm")]),
        (SLURM, [(Mark.OK, "Process 1 of 2 (coordinator node7:61447, from Slurm)")]),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, [(Mark.WARNING, "with srun"), (Mark.OK, "one process")]),
        (
            {**SLURM, **OMPI},
            [(Mark.WARNING, "Open MPI and Slurm are found; JAX takes Open MPI"), (Mark.OK, "from Open MPI")],
        ),
        ({**JAX, **SLURM}, [(Mark.OK, "of 3 "), (Mark.WARNING, "JAX_NUM_PROCESSES=3 and SLURM_NTASKS=2")]),
        ({"JAX_NUM_PROCESSES": "3"}, [(Mark.FAIL, "needs coordinator_address, process_id too")]),
        ({**SLURM, "SLURM_PROCID": "x"}, [(Mark.FAIL, "The environment cannot be read (Slurm)")]),
        (
            {**SLURM, "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "2"},
            [(Mark.FAIL, "is the loopback interface")],
        ),
        (
            {**JAX, "https_proxy": "http://p"},
            [(Mark.OK, "of 3"), (Mark.WARNING, "https_proxy -> unset it, or name all")],
        ),
        ({"https_proxy": "http://p"}, [(Mark.OK, "one process")]),
    ],
)
def test_the_launcher(monkeypatch, variables, findings):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = list(checks.launcher(SECONDS))
    assert [finding.mark for finding in found] == [mark for mark, _ in findings]
    for finding, (_, text) in zip(found, findings, strict=True):
        assert text in f"{finding.text} -> {finding.remedy}"


# Peers ---------------------------------------------------------------------------------------------


@pytest.fixture
def among(monkeypatch, address):
    """``among(process_id)``: this process is that one of two."""
    return lambda process_id: monkeypatch.setattr(
        processes, "find", lambda seconds: processes.Membership(address, 2, process_id, "a test")
    )


def test_one_process_has_no_peers():
    assert only(checks.peers(SECONDS)).mark is Mark.OK


@pytest.mark.parametrize(("ahead", "mark"), [(0.0, Mark.OK), (100.0, Mark.WARNING), (-100.0, Mark.WARNING)])
def test_process_0_compares_clocks(monkeypatch, among, address, ahead, mark):
    among(0)
    now = time.time
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = pool.submit(lambda: only(checks.peers(SECONDS)))
        other = rendezvous.Process.here(1, 2, SECONDS)
        line = json.dumps(vars(other) | {"clock": now() + ahead}).encode() + b"\n"
        deadline = time.monotonic() + SECONDS
        while not found.done():
            assert time.monotonic() < deadline
            try:
                with socket.create_connection(rendezvous.split(address), timeout=SECONDS) as connection:
                    connection.sendall(line)
                    assert json.loads(connection.recv(1000)) == {"error": None, "absent": False}
            except ConnectionRefusedError:
                continue
        finding = found.result(SECONDS)
    assert finding.mark is mark and f"which listens at {address}; clocks within" in finding.text
    assert ("that of process 1 (" in finding.text) == (mark is Mark.WARNING)


def test_others_reach_process_0(among, address):
    among(1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        zero = pool.submit(rendezvous.meet, address, 2, 0, seconds=SECONDS, bind_address=address)
        assert only(checks.peers(SECONDS)) == checks.ok(f"process 0 is reached at {address}, and all 2 are there")
        zero.result(SECONDS)


@pytest.mark.parametrize("process_id", [0, 1])
def test_who_is_alone_is_told_to_start_all(among, process_id):
    among(process_id)
    finding = only(checks.peers(0.3))
    assert finding.mark is Mark.WARNING and "on all processes at once" in finding.remedy
    assert ("Process 1 of 2 has not joined" if process_id == 0 else "could not join process 0") in finding.text


def test_a_port_in_use_would_stop_a_run(among, address):
    among(0)
    with socket.create_server(rendezvous.split(address)):
        finding = only(checks.peers(SECONDS))
    assert finding.mark is Mark.FAIL and "is in use" in finding.text


# This host -----------------------------------------------------------------------------------------


def test_memory_is_that_of_the_container(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable: 8000000 kB\n",
        "/sys/fs/cgroup/memory.max": "max",
        "/sys/fs/cgroup/memory.current": "3900000000",
    }
    monkeypatch.setattr(checks, "_text", lambda path: files.get(str(path), ""))
    assert only(checks.memory()) == checks.ok("8.2 GB of 16.4 GB are free")
    files["/sys/fs/cgroup/memory.max"] = "4000000000"
    finding = only(checks.memory())
    assert finding.mark is Mark.FAIL and finding.text == "0.1 GB of 4.0 GB are free"
    files.clear()
    assert only(checks.memory()).mark is Mark.OK


def test_shared_memory(monkeypatch):
    for free, mark in ((10**9, Mark.OK), (64 * 10**6, Mark.WARNING)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(10**9, 0, free))
        assert only(checks.shared_memory()).mark is mark
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    assert only(checks.shared_memory()).mark is Mark.WARNING


def test_open_files(monkeypatch):
    for most, mark in ((32, Mark.FAIL), (256, Mark.WARNING), (1024, Mark.OK), (resource.RLIM_INFINITY, Mark.OK)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, most=most: (most, resource.RLIM_INFINITY))
        finding = only(checks.open_files())
        assert finding.mark is mark and (mark is Mark.OK or finding.remedy == "ulimit -n 65536")


def test_the_run_directory(monkeypatch, tmp_path):
    directory = str(tmp_path / "a" / "b")
    assert only(checks.run_directory(directory)).text.startswith(f"{directory} can be written; ")
    assert not list(tmp_path.iterdir())  # nothing is left behind
    for free, mark in ((10**10, Mark.OK), (10**9, Mark.WARNING), (10**7, Mark.FAIL)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(10**12, 0, free))
        assert only(checks.run_directory(directory)).mark is mark
    finding = only(checks.run_directory("/proc/runs"))  # where nobody can write, not even root
    assert finding.mark is Mark.FAIL and "/proc cannot be written" in finding.text


def test_the_compile_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "_hardware", lambda: "")
    assert "KDIST_COMPILE_CACHE" in only(checks.cache()).text
    monkeypatch.setattr(checks, "_hardware", lambda: "gpu")
    path = tmp_path / ".cache/kdist/jax"
    assert only(checks.cache()) == checks.ok(f"{path} will be made (default)")
    path.mkdir(parents=True)
    (path / "program-cache").write_bytes(b"x" * 100)
    assert only(checks.cache()) == checks.ok(f"{path}, 0.00 GB (default)")
    monkeypatch.setattr(checks, "MOST_CACHE", 99)
    assert "delete it" in only(checks.cache()).remedy
    path.chmod(0o777)
    assert "others may write to it" in of([only(checks.cache())], Mark.WARNING)[0]
    monkeypatch.setenv(compile_cache.VARIABLE, "/proc/none/cache")
    assert only(checks.cache()).mark is Mark.WARNING or os.access("/proc", os.W_OK)
    monkeypatch.setenv(compile_cache.VARIABLE, "gs://bucket/cache")
    assert only(checks.cache()) == checks.ok("gs://bucket/cache (KDIST_COMPILE_CACHE)")

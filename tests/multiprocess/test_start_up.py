"""How processes come together: who is missing, unlike the others or in the way is named, by all, in time.

Each test starts real processes, which are killed after `SECONDS`.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pair import environment, free_port

START = Path(__file__).with_name("start.py")
SECONDS = 60
"""After so long all are killed."""


class Started:
    """Processes of one test."""

    def __init__(self):
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.running, self.said = [], []

    def start(self, count, number, seconds=30, what="", *, address=None, **variables):
        """One more."""
        command = [sys.executable, str(START), address or self.address, *map(str, (count, number, seconds)), what]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**environment(), **variables})
        self.running.append(process)
        return process

    def found(self):
        """What each has printed last, once all have ended."""
        deadline = time.monotonic() + SECONDS
        outputs = [process.communicate(timeout=max(0.1, deadline - time.monotonic())) for process in self.running]
        assert all(out for out, _ in outputs), outputs
        self.said = [out.splitlines()[:-1] for out, _ in outputs]
        return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.fixture
def started():
    """A `Started`, whose processes are gone afterwards."""
    started = Started()
    yield started
    for process in started.running:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_all_join_and_what_differs_is_named_by_all(started):
    for number in range(3):
        started.start(3, number, what="agree")
    found = started.found()
    assert [one["joined"] for one in found] == [[0, 3], [1, 3], [2, 3]]
    said = [one["compared"] for one in found]
    assert max(one.pop("seconds") for one in said) < 0.1
    assert said[0] == said[1] == said[2]
    assert "alike, but epochs is 3 on processes 0-1 and 4 on process 2. Give" in said[0]["one"]
    assert "epochs is 3 on" in said[0]["two"] and "; code is ...xxx" in said[0]["two"]
    assert "name 0 is 1 on processes 0-1 and not there on process 2; name 1 is not there" in said[0]["a name"]


def test_they_train_with_the_same_arguments_or_not_at_all(started):
    for number in range(2):
        started.start(2, number, what="config")
    first, second = (one["trained"] for one in started.found())
    assert first == second
    assert "the seed of the data is 0 on process 0 and 1 on process 1" in first["seed"][0]
    assert "microbatches is 1 on process 0 and 2 on process 1" in first["microbatches"][0]
    assert [first[name][1] for name in first] == [0, 0]  # no step was compiled


@pytest.mark.parametrize("names", [("a", "b"), ("both", "both")])
def test_they_share_a_compile_cache_or_have_none(started, tmp_path, names):
    for number, name in enumerate(names):
        variables = {"KDIST_COMPILE_CACHE": str(tmp_path / name), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        started.start(2, number, what="cache", **variables)
    share = names[0] == names[1]
    assert [one["cache"] for one in started.found()] == [str(tmp_path / "both") if share else None] * 2
    told = [[line for line in said if line.startswith("Compile cache: 0 hits")] for said in started.said]
    assert [len(lines) for lines in told] == [int(share), 0]  # only process 0 tells
    assert bool(list(tmp_path.glob("both/*-cache"))) == share and not list(tmp_path.glob("*/shared-*"))


def test_who_has_not_joined_is_named_by_all_who_have(started):
    began = time.monotonic()
    started.start(6, 0, 50)
    started.start(6, 2, 4)  # the least patient decides
    found = started.found()
    for one in found:
        assert "Processes 1, 3-5 of 6 have not joined within 4 s. Here are processes 0, 2." in one["error"]
        assert "is the loopback address" in one["error"] and one["seconds"] < 15
    assert time.monotonic() - began < 40


def test_without_process_0_the_others_say_so(started):
    started.start(2, 1, 2)
    [found] = started.found()
    assert f"Process 1 of 2 could not join process 0 at {started.address} within 2 s: " in found["error"]
    assert "refused" in found["error"] and 2 <= found["seconds"] < 10


def test_a_port_in_use_is_named(started):
    with socket.create_server(("127.0.0.1", started.port)):
        started.start(2, 0)
        [found] = started.found()
    assert f"Port {started.port} of 127.0.0.1 is in use" in found["error"] and found["seconds"] < 5


def test_other_versions_are_refused_on_all(started):
    started.start(2, 0)
    started.start(2, 1, 30, "old")
    first, other = started.found()
    assert first["error"] == other["error"]
    assert "optax is " in first["error"] and "0.0.1 on process 1. Install the same versions" in first["error"]
    assert max(first["seconds"], other["seconds"]) < 20


@pytest.mark.parametrize("launcher", ["Slurm", "Open MPI"])
def test_processes_find_each_other_in_the_environment(started, launcher):
    for number in range(2):
        variables = {
            "Slurm": {
                "SLURM_JOB_ID": str(os.getpid()),
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_STEP_NUM_NODES": "1",
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": str(number),
                "SLURM_LOCALID": str(number),
                "JAX_COORDINATOR_PORT": str(started.port),
            },
            "Open MPI": {
                "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:9",
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_RANK": str(number),
                "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
                "JAX_COORDINATOR_PORT": str(started.port),
            },
        }
        started.start(0, 0, address="environment", **variables[launcher])
    assert [one["joined"] for one in started.found()] == [[0, 2], [1, 2]]

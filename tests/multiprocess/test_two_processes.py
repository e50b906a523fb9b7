"""Law 1 for processes: two of four simulated devices each give the numbers of one process with eight.

Dropout and batch statistics are those of the same eight shards, so they agree too. A process that hangs is killed.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from pair import printed_by_both
from worker import RUNS, SOURCES, STREAMS, numbers, source_numbers, stream_numbers

WORKER = Path(__file__).with_name("worker.py")
SECONDS = 240
"""After so long both processes are killed: jax.distributed makes SIGTERM a notice that nobody may read."""


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes printed."""
    return printed_by_both(tmp_path_factory.mktemp("processes"), WORKER, SECONDS)


def test_they_are_one_run(processes):
    assert [p["about"] for p in processes] == [
        {"process_count": 2, "devices": [8, 4], "main": True},
        {"process_count": 2, "devices": [8, 4], "main": False},
    ]


@pytest.mark.parametrize("name", RUNS)
def test_both_know_the_same(processes, name):
    first, second = (p["runs"][name] for p in processes)
    assert first == second


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one(processes, name):
    assert jax.device_count() == 8
    got, want = processes[0]["runs"][name], numbers(name)
    assert len(got["predict"]) == RUNS[name][4]
    read, read_alone = got.pop("rows_read"), want.pop("rows_read")
    assert 2 * read == read_alone
    assert (read > 0) == (name in ("streamed", "windows"))
    # Batch statistics of few rows magnify how the sums of processes are rounded: the same program compiled otherwise
    # is as far from itself.
    equal(got, want, **({"rtol": 1e-3, "atol": 1e-3} if name == "resident" else {}))


@pytest.mark.parametrize("name", STREAMS)
def test_a_generator_is_read_alike(processes, name):
    """Also where that of process 1 ends earlier: the epoch ends for both, with what both have."""
    first, second = (p["streams"][name] for p in processes)
    want = stream_numbers(name)
    assert first["said"] == second["said"] == want["said"]
    assert bool(want["said"]) == (name.startswith("one ends"))
    placed = first.pop("placed"), second.pop("placed")
    assert sorted(placed[0] + placed[1]) == want.pop("placed") and len(placed[0]) == len(placed[1])  # its own rows
    assert first == second
    for run in (first, want):
        run.pop("said")
    equal(first, want)


@pytest.mark.parametrize("name", SOURCES)
def test_sources_give_the_same_on_two_processes(processes, name):
    """Random transforms too; and data of which each process has a part, one of them more than the other."""
    first, second = (p["sources"][name] for p in processes)
    said = [run.pop("said") for run in (first, second)]
    want = source_numbers(name)
    assert want.pop("said") == []
    assert [len(s) for s in said] == ([1, 0] if name == "rows of each" else [0, 0])
    assert first == second
    equal(first, want)


def test_data_that_are_not_alike_are_refused_by_all(processes):
    first, second = (p["refusals"] for p in processes)
    assert first == second
    assert "a row of the data is {x: float32[" in first["dtype"] and "process 1" in first["dtype"]
    assert "batch_size of the data is 8 on process 0 and 6 on process 1" in first["batch size"]
    assert "the number of rows of the data is 43 on process 0 and 42 on process 1" in first["rows"]
    assert first["predict"].startswith("DataError: predict gives every process all rows")
    assert all(text.startswith("DistributionError") for name, text in first.items() if name != "predict")


def equal(got, want, *, rtol: float = 2e-5, atol: float = 2e-6) -> None:
    """The numbers of both are equal, but for how they were rounded."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))

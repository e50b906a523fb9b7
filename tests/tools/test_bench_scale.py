"""The benchmark of scale runs and prints its table; what takes time is no matter here, what is counted is."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
HOST = [f"{what}-{devices}" for what in ("host", "thread") for devices in (1, 8, 64)] + ["growth-8", "growth-64"]
DEEP, SCAN, BY_HAND = ([f"{what}-{stage}" for stage in (0, 1, 3)] for what in ("compile", "scan", "hand"))
COUNTED = [f"{what}-{stage}" for what in ("text", "instructions", "lowered", "collectives") for stage in (0, 1, 3)]
COUNTED += ["state-1", "state-3"]


@pytest.mark.slow
def test_quick_run_prints_and_stores_every_row(tmp_path):
    path = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, TOOLS / "bench_scale.py", "--quick", "--json", path],
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    _, _, header, _, *lines = done.stdout.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    names = [*HOST, *DEEP, *SCAN, *BY_HAND, *COUNTED]
    assert [len(row) for row in cells] == [header.count("|") - 1] * len(names)
    assert [row[6] for row in cells] == [
        *(["<= 1.1"] * 3 + ["<= 1.5"] * 3 + ["<= 1.1"] * 2),  # the host
        *(["<= 1.5"] * 6 + ["<= 1.1"] * 3),  # compiling
        *(["<= 1.5"] * 6 + ["<= 1"] * 8),
    ]

    stored = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(stored) == names
    assert all(stored[name]["ours"][0] > 0 and stored[name]["theirs"][0] > 0 for name in HOST)
    if importlib.util.find_spec("libtpu") is None:
        assert all("libtpu" in row[7] for row in cells[len(HOST) :])
        return
    assert all(seconds > 0 for name in (*DEEP, *SCAN) for (seconds,) in stored[name]["found"].values())
    assert all(stored[name]["ours"][0] > 0 and stored[name]["theirs"][0] > 0 for name in BY_HAND)
    assert [row[7] for row in cells[-len(COUNTED) :]] == ["yes"] * len(COUNTED)
    assert stored["lowered-0"]["base"][0].keys() == {"all-reduce"}
    assert stored["lowered-3"]["base"][0].keys() == {"all-gather", "all-reduce", "reduce-scatter"}
    few, many = (held for (held,) in stored["state-3"]["found"].values())
    assert few / 8.1 < many < few / 7.9


@pytest.fixture
def bench(monkeypatch):
    """The script, as a module."""
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("bench_scale")


def said(row, bench, few, many, base=None):
    """The cells of a row for what was found on 8 and on 64 chips, in one round or several."""
    found = {"v5p:2x2x2": few, "v5p:4x4x4": many}
    return [cell.strip() for cell in row.line(bench.Grown(row.name, found, base or few)).split("|")[1:-1]]


def test_the_median_of_the_rounds_is_held_against_the_limit(bench):
    row = next(row for row in bench.ROWS if row.name == "scan-1")
    what, against, ours, theirs, *ratio, limit, met = said(row, bench, [1.0, 2.0, 1.0], [1.4, 2.6, 9.0])
    assert (what, against) == ("stage 1: compile time, scan, 64 chips", "8 chips")
    assert (ours, theirs, ratio) == ("2.6 s", "1 s", ["**1.40**", "1.30 .. 9.00"])
    assert (limit, met) == ("<= 1.5", "yes")
    assert said(row, bench, [1.0], [1.6])[-1] == "NO"


def test_collectives_are_held_to_their_kinds_as_written_and_to_their_number_as_compiled(bench):
    written, left = (next(row for row in bench.ROWS if row.name == name) for name in ("lowered-1", "collectives-1"))
    few, many = [{"all-gather": 3, "all-reduce": 1}], [{"all-reduce": 4}]
    assert said(left, bench, few, many)[2:5] == ["4 all-reduce", "3 all-gather + 1 all-reduce", "**1.00**"]
    assert said(written, bench, few, many)[4:] == ["**4.00**", "4.00 .. 4.00", "<= 1", "NO"]
    assert said(written, bench, few, [{"all-to-all": 1}])[4] == "**inf**"


def test_a_state_that_stays_whole_is_told(bench):
    row = next(row for row in bench.ROWS if row.name == "state-3")
    assert said(row, bench, [800], [100], [100])[2:] == ["100", "100", "**1.00**", "1.00 .. 1.00", "<= 1", "yes"]
    assert said(row, bench, [800], [800], [100])[-1] == "NO"


def test_what_was_written_is_counted_once(bench):
    text = '%0 = "stablehlo.all_reduce"(%a) ({\n}) : ()\n%1 = "stablehlo.all_reduce"(%b)\n%2 = stablehlo.add %0, %1'
    assert bench.written(f'{text}\n%3 = "stablehlo.reduce_scatter"(%2)') == {"all-reduce": 2, "reduce-scatter": 1}


def test_a_row_of_devices_that_are_not_here_is_refused(bench):
    with pytest.raises(RuntimeError, match="of 64 devices, and here are 8"):
        bench.host_fit(bench.QUICK, devices=64)


def test_growth_on_the_host_is_that_of_each_side(bench, monkeypatch):
    """Four processes in two rounds; a step of ours grows threefold and then fourfold, one by hand twofold."""
    asked = []

    def measure_apart(row, rounds, quick):
        asked.append((row.name, rounds, quick))
        many = row.devices > 1
        return bench.Result(row.name, [(3.0 + len(asked) // 4) if many else 1.0], [4.0 if many else 2.0])

    monkeypatch.setattr(bench.measure, "measure_apart", measure_apart)
    row = next(row for row in bench.ROWS if row.name == "growth-64")
    result = row.measure(bench.QUICK, 2)
    assert asked == [("thread-1", 1, True), ("thread-64", 1, True)] * 2
    assert (result.ours, result.theirs) == ([3.0, 4.0], [2.0, 2.0])
    cells = [cell.strip() for cell in row.line(result).split("|")[1:-1]]
    assert cells[2:] == ["3.50 times / step", "2.00 times / step", "**1.75**", "1.50 .. 2.00", "<= 1.1", "NO"]

"""The benchmark of data runs and prints its table; how fast they are is no matter here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools" / "bench_data.py"


def run(*arguments):
    return subprocess.run([sys.executable, BENCH, *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_quick_run_prints_and_stores_times_memory_and_losses(tmp_path):
    path = tmp_path / "results.json"
    done = run("--quick", "--rows", "rows", "memory-memmap", "same-gen", "--json", path)
    assert done.returncode == 0, done.stderr
    _, _, header, _, *lines = done.stdout.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [len(row) for row in cells] == [header.count("|") - 1] * 3
    rows, memory, same = cells
    assert rows[2].endswith("/ row") and rows[-1] in ("yes", "NO")
    assert memory[2].endswith("MB / epoch") and memory[3] == "50 MB / epoch"
    assert same[2:] == [same[2], same[2], "**equal**", "each epoch of 2", "equal", "yes"]

    stored = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(stored) == ["rows", "memory-memmap", "same-generator"]
    assert 0 < stored["memory-memmap"]["ours"][0] < 1.2e9
    assert len(stored["same-generator"]["ours"]) == 2

"""The benchmark of checkpoints runs and prints its table; how fast they are is no matter here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools" / "bench_checkpoint.py"


@pytest.mark.slow
def test_quick_run_prints_and_stores_every_row(tmp_path):
    path = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, BENCH, "--quick", "--json", path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    _, _, header, _, *lines = done.stdout.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [len(row) for row in cells] == [header.count("|") - 1] * 5
    assert [row[6] for row in cells] == ["<= 1.05", "<= 1.3", "<= 0.2", "<= 1.3", "<= 1.01"]

    stored = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(stored) == ["save", "blocked", "fingerprints", "restore", "watch"]
    assert all(row["ours"][0] > 0 and row["theirs"][0] > 0 for row in stored.values())

"""The benchmark runs and prints its table; what it measures is no matter here."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "tools" / "bench.py"


def run(*arguments):
    return subprocess.run([sys.executable, BENCH, *arguments], capture_output=True, text=True, timeout=300)


def test_quick_run_prints_and_stores_the_chosen_rows(tmp_path):
    path = tmp_path / "results.json"
    done = run("--quick", "--rounds", "2", "--rows", "mnist-str", "--json", path)
    assert done.returncode == 0, done.stderr
    machine, _, header, _, *lines = done.stdout.splitlines()
    assert "cores" in machine and "jax " in machine
    columns = header.count("|")
    assert [line.split("|")[2].strip() for line in lines] == ["scan of 32 streamed steps"]
    assert lines[0].count("|") == columns
    assert lines[0].split("|")[-2].strip() in ("yes", "NO")
    (stored,) = json.loads(path.read_text())["rows"]
    assert stored["name"] == "mnist-streamed"
    assert len(stored["ours"]) == len(stored["theirs"]) == 2
    assert min(stored["ours"] + stored["theirs"]) > 0


def test_unknown_row_is_a_usage_error():
    done = run("--rows", "nonsense")
    assert done.returncode == 2
    assert "digits-fit" in done.stderr

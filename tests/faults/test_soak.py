"""Ten thousand executions and five hundred saves: what the process holds stays as it was after a warm-up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .soaking import SAVE_FREQ, STEPS

SCRIPT = Path(__file__).with_name("soaking.py")
SECONDS = 1200
"""After so long the run is killed."""
EPOCHS, WARM = 25, 5
"""Of the fit, and of its warm-up."""
SAVE_BYTES = 32 << 10
"""What a save may leave behind: tensorstore 0.1.86 loses what its `KvStore.Spec.to_json` returns, as Orbax asks for."""
MORE = {"memory": 500 * SAVE_BYTES, "descriptors": 2, "threads": 2, "shared": 0}
"""By how much each may be more at the end of some later epoch than it was at the end of some epoch of the warm-up."""


@pytest.mark.slow
def test_nothing_grows(tmp_path):
    executions = STEPS * (EPOCHS - WARM)
    assert (executions, executions // SAVE_FREQ) == (10_000, 500)
    command = [sys.executable, str(SCRIPT), str(tmp_path / "backup"), str(EPOCHS)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert run.returncode == 0, run.stderr[-8000:]
    held = [json.loads(line.removeprefix("held ")) for line in run.stdout.splitlines() if line.startswith("held ")]
    assert [one["step"] for one in held] == [STEPS * epoch for epoch in range(1, EPOCHS + 1)]
    for name, more in MORE.items():
        values = [one[name] for one in held]
        assert max(values[WARM:]) <= max(values[:WARM]) + more, (name, values)

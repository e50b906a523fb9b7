"""Two processes with unequal batches of their own: all train alike, nothing is lost, and what does not fit is named."""

from pathlib import Path

import jax
import numpy as np
import pytest
from pair import printed_by_both
from unequal import CASES, batches, trained

WORKER = Path(__file__).with_name("unequal.py")
SECONDS = 120
"""After so long both processes are killed."""


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes printed."""
    return printed_by_both(tmp_path_factory.mktemp("unequal"), WORKER, SECONDS)


@pytest.mark.parametrize("name", CASES)
def test_all_train_alike_on_every_batch(processes, name):
    first, second = (p["found"][name] for p in processes)
    assert first == second
    steps = len(CASES[name][0][0])
    assert first["steps"] == [steps, 2 * steps]
    assert [p["said"][name] for p in processes] == [[], []]
    assert np.isfinite(np.concatenate([np.ravel(w) for w in first["weights"]])).all()


def test_they_train_as_one_process_on_the_rows_of_both(processes):
    """Where rows that only fill a batch count nowhere."""
    assert jax.process_count() == 1
    name = "no batch statistics"
    parts = [list(batches(process, sizes)) for process, sizes in enumerate(CASES[name][0])]
    together = [tuple(map(np.concatenate, zip(*both, strict=True))) for both in zip(*parts, strict=True)]
    want, _ = trained(together)
    got = processes[0]["found"][name]
    assert got["steps"] == want["steps"]
    for part in ("weights", "loss"):
        for a, b in zip(got[part], want[part], strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_a_shorter_list_ends_the_epoch_for_all(processes):
    first, second = (p["found"]["one is shorter"] for p in processes)
    assert first == second and first["steps"] == [4, 8]
    said = [p["said"]["one is shorter"] for p in processes]
    assert said[1] == [] and len(said[0]) == 2  # in each epoch
    assert all("Another process has no more batches" in text and "and 1 or more" in text for text in said[0])


def test_a_type_that_changes_on_one_process_is_named_by_all(processes):
    first, second = (p["refusals"] for p in processes)
    assert first == second
    for text in first:
        assert text.startswith("DistributionError") and "that of step 3 is" in text
        assert "y: float32[1]} on process 0" in text and "y: int32[1]} on process 1" in text

"""Advice: each way of reading data is told the next better one."""

import numpy as np
import pytest

from kdist.data import advice, from_arrays, from_batches, from_source
from kdist.data.advice import next_to_try

ROWS = [(np.zeros(3, np.float32), np.float32(0))] * 8


class Batches:
    """Batches by number, as a PyDataset has them."""

    num_batches = 2

    def __len__(self):
        return self.num_batches

    def __getitem__(self, i):
        return np.zeros((4, 3), np.float32), np.zeros(4, np.float32)


class Own:
    """A loader of the user's own."""

    batch_size, num_rows, nbytes, cache, num_steps = 4, 8, 96, False, 2

    def order(self, epoch):
        return np.arange(8)

    def read(self, rows):
        raise NotImplementedError


def make():
    """Batches, one after the other."""
    yield np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
    "loader, start",
    [
        (from_arrays(np.zeros((1000, 1000), np.float32), cache=False), "cache=True, which keeps all 4 MB on"),
        (from_source(ROWS), "cache=True in from_source, which keeps all 1 MB on"),
        (from_batches(Batches()), "workers=2"),
        (from_batches(Batches(), workers=2), "use_multiprocessing=True"),
        (from_batches(Batches(), workers=2, use_multiprocessing=True), "workers=4, or doing once, before training"),
        (from_batches(Batches(), workers=6, use_multiprocessing=True), "workers=8, or doing once"),
        (from_batches(Batches(), workers=8, use_multiprocessing=True), "doing once, before training"),
        (from_batches(make, workers=0), "workers=1"),
        (from_batches(make), "in place of the function make, kdist.data.from_source(rows, workers=2)"),
        (from_batches(make()), "in place of the generator, kdist.data.from_source(rows, workers=2)"),
        (Own(), "a faster `read` of the Own, or kdist.data.from_source(..., workers=2)"),
    ],
)
def test_the_next_thing_to_try(loader, start, monkeypatch):
    monkeypatch.setattr(advice.os, "cpu_count", lambda: 8)
    assert next_to_try(loader).startswith(start)


@pytest.mark.parametrize(
    "how, start",
    [
        ({}, "workers=2"),
        ({"workers": 2}, "use_multiprocessing=True"),
        ({"workers": 8, "use_multiprocessing": True}, "doing once, before training"),
    ],
)
def test_rows_too_large_for_the_devices_want_workers(how, start, monkeypatch):
    monkeypatch.setattr(advice.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(advice, "RESIDENT_BYTES", 10)
    assert next_to_try(from_source(ROWS, **how)).startswith(start)

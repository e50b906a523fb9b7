"""Joining a run: what is refused, what is taken from the environment, and that one process needs none of it.

Processes that do join are in `tests/multiprocess/`.
"""

import jax
import pytest

import kdist
from kdist.distribution import agree, processes
from kdist.errors import DistributionError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", *processes._CLUSTER_VARIABLES)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """An environment that knows of no cluster, in a process that uses JAX already."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert jax.devices()


@pytest.mark.parametrize("arguments", [{}, {"num_processes": 1}, {"num_processes": 1, "process_id": 0}])
def test_one_process_has_nothing_to_join(arguments):
    kdist.initialize(**arguments)
    assert not jax.distributed.is_initialized()
    assert kdist.is_main_process()
    assert agree(2**32 - 1) == 2**32 - 1


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ({"num_processes": 2}, {}, "needs coordinator_address, process_id too, or none of the three"),
        ({"coordinator_address": "localhost:1"}, {}, "needs num_processes, process_id too"),
        ({"coordinator_address": "localhost:1", "process_id": 0}, {}, "needs num_processes too"),
        ({"coordinator_address": "localhost:1", "num_processes": 2, "process_id": 2}, {}, "process_id must lie in"),
        ({"coordinator_address": "localhost:1", "num_processes": 2, "process_id": -1}, {}, "process_id must lie in"),
        ({}, {"JAX_NUM_PROCESSES": "2"}, "needs coordinator_address, process_id too"),
        (
            {"process_id": 5},
            {"JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "localhost:1"},
            "process_id must lie",
        ),
        ({}, {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES must be an integer. Received: 'two'"),
        ({}, {"JAX_PROCESS_ID": "0x"}, "JAX_PROCESS_ID must be an integer"),
        (
            {"coordinator_address": "localhost:1", "num_processes": 2, "process_id": 0},
            {},
            "(?s)could not join the run .*Call kdist.initialize before any other use of JAX",
        ),
    ],
)
def test_what_is_refused(monkeypatch, arguments, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributionError, match=message):
        kdist.initialize(**arguments)
    assert not jax.distributed.is_initialized()

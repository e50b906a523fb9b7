"""Eight simulated devices, and what many tests need: a mesh of any size, small models and small data."""

import os
import socket

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["KERAS_BACKEND"] = "jax"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # A starved rendezvous becomes an error, not a hang.
        "--xla_cpu_collective_timeout_seconds=120",
        # The tests compile much and compute little.
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # The emitters by way of MLIR and the parts that one core cannot compile at once are half of all compiling.
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)

import jax
import numpy as np
import pytest

import kdist


@pytest.fixture
def devices():
    """``devices(n)``: a DataParallel over the first n of the simulated devices."""
    assert jax.device_count() == 8
    return lambda n: kdist.DataParallel(devices=jax.devices()[:n])


@pytest.fixture
def rng():
    """A NumPy generator with a seed."""
    return np.random.default_rng(0)


@pytest.fixture
def address():
    """Where nobody listens yet."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"

"""Whether a model trains alike on one device and on several, step by step and fused, and on rows kept and streamed.

Each side of a comparison is a short `fit` of the model's own step from the same start.  Where two part, the first layer
that does is looked for, and told with the likely reason.  What differs by design is held equal: dropout draws on each
device for itself, so that where devices are compared each draw gives the same value, under which nothing is dropped.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np

from kdist.data import AnyLoader, BatchLoader
from kdist.errors import ConfigError, DataError
from kdist.trainer import Trainer
from kdist.typing import Batch
from kdist.verify.bench import Bench, Comparison

STEPS, MOST_STEPS = 4, 16
"""K, where the trainer does not say, and at the most; and how many batches are compared."""

__all__ = ["Comparison", "verify"]


def verify(trainer: Trainer, loader: AnyLoader) -> list[Comparison]:
    """Trains a few steps in several ways, and compares losses and gradients.

    Args:
        trainer: Its distribution has the N devices; its parameters are as they were afterwards.
        loader: The data, the first rows of which are read twice.

    Returns:
        One device against N, one step at a time against K, and rows kept on the devices against rows read again and
        streamed.

    Raises:
        ConfigError: There is one device only, or several processes, or no optimizer.
        DataError: The data do not fit the model.

    Example:
        >>> import flax.linen as nn, kdist
        >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse")
        >>> loader = kdist.data.from_arrays(np.ones((64, 3)), np.zeros((64, 1)), batch_size=16)
        >>> if trainer.distribution.num_devices > 1:
        ...     assert all(found.agrees for found in verify(trainer, loader))
    """
    if jax.process_count() > 1:
        raise ConfigError("Verifying compares with one device: run it in one process.")
    if trainer.distribution.num_devices == 1:
        raise ConfigError(
            "There is one device only, which has nothing to be compared with. Simulate several: JAX_PLATFORMS=cpu "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8."
        )
    if trainer.optimizer is None:
        raise ConfigError("A model without an optimizer is not trained: there is nothing to verify.")
    k = trainer.steps_per_execution
    wanted = min(k, MOST_STEPS) if isinstance(k, int) and k > 1 else STEPS
    kept = _read(loader, wanted)
    once = isinstance(loader, BatchLoader) and not loader.source.restarts
    streamed = kept if once else _read(loader, wanted)
    getattr(loader, "close", lambda: None)()
    bench = Bench(trainer, streamed, loader.batch_size)
    try:
        devices, fusing, feeds = bench.devices(), bench.fusing(), bench.feeds(kept, once=once)
    finally:
        trainer.adapter.write_back(bench.variables)
    if not (devices.agrees or fusing.agrees):  # programs for the same devices part already: that comes first
        devices = dataclasses.replace(devices, reason=fusing.reason)
    return [devices, fusing, feeds]


def _read(loader: AnyLoader, steps: int) -> Batch:
    """The rows of the first steps of an epoch, in memory."""
    if not isinstance(loader, BatchLoader):
        return loader.read(loader.order(0)[: steps * loader.batch_size])
    batches = loader.batches(0, fresh=True)
    taken = list(itertools.islice(batches, steps))
    batches.close()
    if not taken:
        raise DataError(f"The data are empty: {loader.source} yielded no batch.")
    return jax.tree.map(lambda *parts: np.concatenate(parts), *taken)

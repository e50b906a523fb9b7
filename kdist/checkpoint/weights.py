"""Weights in a directory: a model's variables, without what training them further needs."""

from __future__ import annotations

import os

from kdist.checkpoint import reading, writing
from kdist.typing import PyTree

KIND = "weights"


def save_weights(directory: str | os.PathLike[str], variables: PyTree) -> None:
    """Writes variables to a directory.  All processes call it; weights that are there are replaced.

    Args:
        directory: Where to; its parents are made.
        variables: A tree of arrays, ``{"params": ..., "batch_stats": ...}``.

    Raises:
        CheckpointError: It cannot be written, or the directory holds something else.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_weights(f"{directory}/weights", {"params": jnp.arange(3)})
        ...     load_weights(f"{directory}/weights", {"params": jnp.zeros(3, int)})
        {'params': Array([0, 1, 2], dtype=int32)}
    """
    writing.write(directory, {"weights": variables}, kind=KIND)


def load_weights(directory: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Reads variables from a directory that `save_weights` or `save_state` wrote.

    Args:
        directory: Where from.
        like: Variables with the tree, shapes, dtypes and shardings that are expected.

    Returns:
        The variables, placed like `like`.

    Raises:
        CheckpointError: There are no weights.
        CheckpointCorruptError: They are damaged.
        CheckpointMismatchError: They are of another model.  Nothing is cast or left out.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_weights(f"{directory}/weights", {"params": {"bias": jnp.ones(2)}})
        ...     load_weights(f"{directory}/weights", like={"params": {"bias": jnp.zeros(2)}})["params"]["bias"].tolist()
        [1.0, 1.0]
    """
    trees, _ = reading.read(directory, {"weights": like}, kind=KIND)
    return trees["weights"]

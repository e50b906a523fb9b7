"""The circle loss of embeddings: rows of one class are to be near each other, rows of different classes apart.

Every row is an anchor, compared with all rows of the batch, of other shards too.

Shapes: b anchors (the rows of a shard), B rows that they are compared with, D dimensions of an embedding.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kdist.errors import DataError
from kdist.losses.base import ALONE, Formula, Shards
from kdist.losses.shapes import class_indices, mismatch


def circle(
    y_true: jax.Array,
    y_pred: jax.Array,
    ref_labels: jax.Array | None = None,
    ref_embeddings: jax.Array | None = None,
    remove_diagonal: bool = True,
    gamma: float = 80.0,
    margin: float = 0.4,
) -> jax.Array:
    """The circle loss of each row as an anchor (Sun et al., 2020).

    With d = 1 - cosine, at least 0: the softplus of the sum of two log-sums of exponentials, of
    ``gamma (d + margin) (d - margin)`` over rows of the anchor's class, and of
    ``gamma max(1 + margin - d, 0) (1 - margin - d)`` over the others.  An anchor that has none of one kind costs 0.

    Args:
        y_true: Integer labels ``[b]`` or ``[b, 1]``.
        y_pred: Embeddings ``[b, D]`` of length 1.
        ref_labels: Labels ``[B]`` or ``[B, 1]`` of what the rows are compared with; `y_true` by default.
        ref_embeddings: Embeddings ``[B, D]`` of it; `y_pred` by default.
        remove_diagonal: Whether row i is not compared with row i; True by default.
        gamma: How steep the loss is; 80.0 by default.
        margin: How near and how far is enough; 0.4 by default.

    Returns:
        Values ``[b]``.

    Raises:
        DataError: There is not one label an embedding.

    Example:
        >>> y_pred = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> print(circle(jnp.array([0, 0, 1]), y_pred, gamma=1.0).round(4))
        [0.5459 0.5459 0.    ]
    """
    labels = _labels(y_true, y_pred)
    ref_embeddings = y_pred if ref_embeddings is None else ref_embeddings
    ref_labels = labels if ref_labels is None else _labels(ref_labels, ref_embeddings)
    same = labels[:, None] == ref_labels
    diagonal = jnp.eye(same.shape[0], same.shape[1], dtype=bool) & remove_diagonal
    return _of_anchors(y_pred, ref_embeddings, same & ~diagonal, ~same, gamma, margin)


class Circle(Formula):
    """See `circle`: the mean over the anchors that have a loss, of all rows of the batch, on whatever shard.

    Args:
        gamma: How steep the loss is; 80.0 by default.
        margin: How near and how far is enough; 0.4 by default.
        remove_diagonal: Whether a row is not compared with itself; True by default.
        reduction, name, dtype: As in `Loss`.

    Example:
        >>> y_pred = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
        >>> round(float(Circle(gamma=1.0)([0, 0, 1], y_pred)), 4)
        0.5459
    """

    fn = staticmethod(circle)
    keeps_targets = True
    compares_shapes = False
    across_rows = True

    def __init__(
        self,
        gamma: float = 80.0,
        margin: float = 0.4,
        remove_diagonal: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype)
        self.arguments = {"gamma": gamma, "margin": margin, "remove_diagonal": remove_diagonal}

    def values(
        self, y_true: jax.Array, y_pred: jax.Array, valid: jax.Array | None = None, shards: Shards = ALONE
    ) -> jax.Array:
        """The values of this shard's rows as anchors, against the rows of all shards that count."""
        y_true, anchors = self.aligned(y_true, y_pred)
        labels = _labels(y_true, anchors)
        all_labels, all_rows = shards.gather(labels), shards.gather(anchors)
        same = labels[:, None] == all_labels
        counts = jnp.ones_like(same) if valid is None else shards.gather(valid) > 0
        itself = shards.places(labels.size)[:, None] == jnp.arange(all_labels.size)
        near, far = same & counts & ~(itself & self.arguments["remove_diagonal"]), ~same & counts
        return _of_anchors(anchors, all_rows, near, far, self.arguments["gamma"], self.arguments["margin"])

    def mask(self, y_true: jax.Array, values: jax.Array) -> jax.Array:
        """Anchors that have a loss."""
        return values > 0


def _of_anchors(
    anchors: jax.Array, rows: jax.Array, near: jax.Array, far: jax.Array, gamma: float, margin: float
) -> jax.Array:
    """The loss of each anchor; `near` and `far`, ``[b, B]``, are the rows that should be so."""
    # In full precision: gamma multiplies whatever is lost here.
    cosines = jnp.matmul(anchors, rows.T, precision=jax.lax.Precision.HIGHEST)
    d = jnp.maximum(1.0 - cosines, 0.0)
    too_far = _log_sum_exp(gamma * (d + margin) * (d - margin), near)
    too_near = _log_sum_exp(gamma * jnp.maximum(1.0 + margin - d, 0.0) * (1.0 - margin - d), far)
    return jnp.where(near.any(1) & far.any(1), jax.nn.softplus(too_far + too_near), 0.0)


def _log_sum_exp(a: jax.Array, where: jax.Array) -> jax.Array:
    """Over each line of `a` where told; over all of it where there is nothing, so that the gradient stays finite."""
    return jax.nn.logsumexp(jnp.where(where | ~where.any(1, keepdims=True), a, -jnp.inf), axis=1)


def _labels(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """Labels ``[b]``."""
    labels = class_indices(y_true, 2)
    if y_pred.ndim != 2 or labels.shape != y_pred.shape[:1]:
        raise DataError(mismatch(y_true, y_pred, "one integer label a row, and one embedding, rows x dimensions"))
    return labels

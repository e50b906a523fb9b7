"""Connectionist temporal classification: sequences of labels that are shorter than those of predictions, unaligned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from kdist.errors import DataError
from kdist.losses.base import Formula
from kdist.losses.shapes import mismatch


def ctc(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """The negative log-likelihood of the labels under all their alignments (Graves et al., 2006).

    Args:
        y_true: Labels ``[b, L]``, 1 to C - 1; 0 is the blank, and fills a row after its labels.
        y_pred: Logits ``[b, T, C]``.

    Returns:
        Values ``[b]``.

    Raises:
        DataError: The shapes are others.

    Example:
        >>> print(ctc(jnp.array([[1, 0]]), jnp.zeros((1, 2, 3))).round(4))
        [1.0986]
    """
    if y_true.ndim != 2 or y_pred.ndim != 3 or len(y_true) != len(y_pred):
        raise DataError(mismatch(y_true, y_pred, "labels, rows x length, and logits, rows x steps x classes"))
    nothing_padded = jnp.zeros(y_pred.shape[:2], y_pred.dtype)
    padding = (y_true == 0).astype(y_pred.dtype)
    return optax.losses.ctc_loss(y_pred, nothing_padded, y_true.astype(jnp.int32), padding)


class CTC(Formula):
    """See `ctc`.

    Args:
        reduction, name, dtype: As in `Loss`.

    Example:
        >>> round(float(CTC()([[1, 0]], [[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])), 4)
        1.0986
    """

    fn = staticmethod(ctc)
    keeps_targets = True
    compares_shapes = False

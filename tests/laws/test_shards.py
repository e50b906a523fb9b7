"""What differs from shard to shard by design: dropout draws on each for itself, and BatchNorm averages its statistics.

These are the exceptions to law 1. Neither depends on how many steps are fused.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import KINDS, crossentropy, data, make, same

import kdist

WIDTH = 32


class LinenMask(nn.Module):
    """Its output is its dropout mask, and its only parameter does nothing to it but take part."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        scale = self.param("scale", nn.initializers.zeros, ())
        return nn.Dropout(0.5)(jnp.ones_like(x), deterministic=not train) + 0 * scale


class NNXMask(nnx.Module):
    """The same as `LinenMask`."""

    def __init__(self):
        self.scale = nnx.Param(jnp.zeros(()))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.drop(jnp.ones_like(x)) + 0 * self.scale[...]


class MaskSeen(kdist.metrics.Metric):
    """The predictions of every row, added up by the row's number, which is its target."""

    def sums(self, y_true, y_pred, weight=None):
        kept = jnp.ones(y_true.shape[0]) if weight is None else weight
        return jnp.zeros((16, WIDTH)).at[y_true].add((y_pred > 0) * kept[:, None])

    def result(self, sums):
        return sums


class EveryStep(kdist.callbacks.Callback):
    """Keeps the running sums after every step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(logs["mask_seen"])


def masks(kind, callback, *, k=1, n=8, epochs=2, microbatches=1):
    """Trains two steps an epoch of eight rows each, one a device, on the rows 0 .. 15 in this order."""
    model = kdist.Model({"linen": LinenMask, "nnx": NNXMask}[kind](), seed=4)
    model.compile(
        "sgd",
        lambda y_true, y_pred: y_pred.mean(-1),
        metrics=[MaskSeen()],
        steps_per_execution=k,
        microbatches=microbatches,
        distribution=kdist.DataParallel(devices=jax.devices()[:n]),
    )
    x = np.zeros((16, WIDTH), np.float32)
    history = model.fit(x, np.arange(16, dtype=np.int32), 8, epochs, 0, callback, shuffle=False)
    return np.stack(history.history["mask_seen"])


def distinct(rows):
    return len({row.tobytes() for row in np.asarray(rows)})


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_differs_by_device_and_step_and_not_by_fusing(kind):
    watcher = EveryStep()
    single = masks(kind, watcher)
    assert single.shape == (2, 16, WIDTH)
    assert set(np.unique(single)) == {0, 1}
    assert distinct(single.reshape(-1, WIDTH)) == 32  # 2 epochs x 2 steps x 8 devices
    assert 0.4 < single.mean() < 0.6
    assert not watcher.seen[0][8:].any() and watcher.seen[0][:8].any()  # so steps were told apart
    same(masks(kind, None, k=2), single, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_differs_by_microbatch(kind):
    """Two devices with four rows a step each, in two parts; and the rows of one part."""
    seen = masks(kind, None, n=2, microbatches=2)
    assert distinct(seen.reshape(-1, WIDTH)) == 32


@pytest.mark.parametrize("kind", KINDS)
def test_batch_statistics_are_averaged_over_shards(kind):
    """After a step from (0, 1) with momentum 0.9: a tenth of the mean over shards of each shard's own statistics."""
    x, y, _ = data(32)
    model = make("mlp", kind, batch_norm=True)
    model.compile(kdist.optimizers.SGD(0.0), crossentropy(), distribution=kdist.DataParallel(devices=jax.devices()[:8]))
    model.build(x)
    hidden = jax.device_get(model.params["hidden"])
    shards = (x @ hidden["kernel"] + hidden["bias"]).reshape(8, 4, -1)
    model.train_on_batch(x, y)
    stats = jax.device_get(model.variables["batch_stats"]["norm"])
    same(stats["mean"], 0.1 * shards.mean(1).mean(0))
    same(stats["var"], 0.9 + 0.1 * shards.var(1).mean(0))
    assert not np.allclose(stats["var"], 0.9 + 0.1 * shards.reshape(32, -1).var(0), rtol=1e-3)


def test_state_is_the_same_on_every_device():
    """Replicated arrays hold equal numbers on all eight devices after training, BatchNorm's too."""
    x, y, _ = data(21)
    model = make("mlp", "linen", batch_norm=True, dropout=0.3)
    model.compile("adam", crossentropy(), distribution=kdist.DataParallel(devices=jax.devices()[:8]))
    model.fit(x, y, 8, 2, 0)
    leaves = jax.tree.leaves(model.variables)
    assert len(leaves) == 8
    for leaf in leaves:
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 8
        for copy in copies[1:]:
            same(copy, copies[0], rtol=0, atol=0)

"""Small models for the laws: each exists as a Linen and as an NNX module that are the same function of equal variables.

Also the data they are trained on, and `same`, which compares what two runs gave.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import kdist

FEATURES, CLASSES = 6, 3
KINDS = ("linen", "nnx")


def waves(key, shape, dtype=jnp.float32):
    """An initialiser that draws nothing: alike in Linen and NNX, and quick to compile."""
    return jnp.cos(jnp.arange(math.prod(shape), dtype=dtype) * 1.7 + len(shape)).reshape(shape) * 0.5


_Dense = functools.partial(nn.Dense, kernel_init=waves)
_Linear = functools.partial(nnx.Linear, kernel_init=waves)


class LinenMLP(nn.Module):
    """Dense, BatchNorm if asked for (synchronised over `axis_name`), relu, dropout, Dense."""

    batch_norm: bool = False
    axis_name: str | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = _Dense(8, name="hidden")(x)
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name, name="norm")(x)
        x = nn.Dropout(self.dropout)(nn.relu(x), deterministic=not train)
        return _Dense(CLASSES, name="out")(x)


class NNXMLP(nnx.Module):
    """The same as `LinenMLP`."""

    def __init__(self, batch_norm=False, axis_name=None, dropout=0.0):
        rngs = nnx.Rngs(0)
        self.hidden = _Linear(FEATURES, 8, rngs=rngs)
        if batch_norm:
            self.norm = nnx.BatchNorm(8, momentum=0.9, axis_name=axis_name, rngs=rngs)
        self.batch_norm = batch_norm
        self.drop = nnx.Dropout(dropout, rngs=rngs)
        self.out = _Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = self.hidden(x)
        if self.batch_norm:
            x = self.norm(x)
        return self.out(self.drop(nnx.relu(x)))


class LinenCNN(nn.Module):
    """A convolution, BatchNorm if asked for, relu, the mean over positions, Dense."""

    batch_norm: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(4, (3, 3), kernel_init=waves, name="conv")(x)
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return _Dense(CLASSES, name="out")(nn.relu(x).mean((1, 2)))


class NNXCNN(nnx.Module):
    """The same as `LinenCNN`."""

    def __init__(self, batch_norm=False):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(1, 4, (3, 3), kernel_init=waves, rngs=rngs)
        if batch_norm:
            self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.batch_norm = batch_norm
        self.out = _Linear(4, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = self.conv(x)
        if self.batch_norm:
            x = self.norm(x)
        return self.out(nnx.relu(x).mean((1, 2)))


class LinenHeads(nn.Module):
    """Three outputs of one hidden layer: two of values, one of classes."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(_Dense(8, name="hidden")(x))
        return {"a": _Dense(2, name="a")(x), "b": _Dense(CLASSES, name="b")(x), "c": _Dense(2, name="c")(x)}


class NNXHeads(nnx.Module):
    """The same as `LinenHeads`."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden = _Linear(FEATURES, 8, rngs=rngs)
        self.a, self.b, self.c = (_Linear(8, n, rngs=rngs) for n in (2, CLASSES, 2))

    def __call__(self, x):
        x = nnx.tanh(self.hidden(x))
        return {"a": self.a(x), "b": self.b(x), "c": self.c(x)}


MODULES = {
    ("mlp", "linen"): LinenMLP,
    ("mlp", "nnx"): NNXMLP,
    ("cnn", "linen"): LinenCNN,
    ("cnn", "nnx"): NNXCNN,
    ("heads", "linen"): LinenHeads,
    ("heads", "nnx"): NNXHeads,
}


def make(family: str, kind: str, **arguments) -> kdist.Model:
    """A model, not compiled: `family` is "mlp", "cnn" or "heads", `kind` is "linen" or "nnx"."""
    return kdist.Model(MODULES[family, kind](**arguments))


def crossentropy(**arguments) -> kdist.losses.Loss:
    """The loss that goes with `data`: classes from logits."""
    return kdist.losses.SparseCategoricalCrossentropy(from_logits=True, **arguments)


def data(rows: int, *, images: bool = False):
    """Inputs, class labels and sample weights (some of them 0) of so many rows."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(rows, 6, 6, 1) if images else (rows, FEATURES)).astype(np.float32)
    y = rng.integers(0, CLASSES, rows).astype(np.int32)
    weight = rng.uniform(0, 2, rows).astype(np.float32)
    weight[::7] = 0
    return x, y, weight


def same(got, want, *, rtol: float = 2e-5, atol: float = 2e-6) -> None:
    """Asserts that two trees of numbers are equal: exactly if both tolerances are 0."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol, err_msg=where)


def moved(before, after) -> bool:
    """Whether any number of a tree changed: what is compared after training must have been trained."""
    return any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(before, after, strict=True))

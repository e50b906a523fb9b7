"""The same small models in Flax and in Keras, and `Pair`, which makes one call on both and compares everything.

Layers have no biases, so that a model's weights are one kernel for each name in `layers`.  Keras runs on one device;
kdist on as many as a pair is made for, where batches are padded.
"""

import warnings

import flax.linen as nn
import jax
import numpy as np
import pytest

import kdist

keras = pytest.importorskip("keras", reason="numbers are compared with Keras 3 (extra: bench)")

N, T, D, C = 22, 4, 3, 3  # rows, time steps (no divisor of N), features, classes
BATCH = 8  # of 22 rows, the last batch is short
RATE = 0.5

_rng = np.random.default_rng(3)
X = _rng.normal(size=(N, D)).astype(np.float32)
Y = _rng.normal(size=(N, 1)).astype(np.float32)
LABELS = _rng.integers(0, C, N).astype(np.int32)
SEQUENCES = _rng.normal(size=(N, T, D)).astype(np.float32)
STEP_LABELS = _rng.integers(0, C, (N, T)).astype(np.int32)
STEP_VALUES = _rng.normal(size=(N, T, 1)).astype(np.float32)
W = _rng.uniform(0, 2, N).astype(np.float32)
W[::5] = 0
STEP_W = _rng.uniform(0, 2, (N, T)).astype(np.float32)


def _dense(features, name):
    return nn.Dense(features, use_bias=False, name=name)


def _keras_dense(features, name, **kwargs):
    return keras.layers.Dense(features, use_bias=False, name=name, **kwargs)


class Values(nn.Module):
    """One output: a number a row, or a row and time step."""

    @nn.compact
    def __call__(self, x):
        return _dense(1, "top")(nn.tanh(_dense(4, "bottom")(x)))


class Classes(nn.Module):
    """One output: probabilities of classes a row, or a row and time step."""

    @nn.compact
    def __call__(self, x):
        return nn.softmax(_dense(C, "top")(x))


class Heads(nn.Module):
    """Two outputs: probabilities `p` and a number `q`; a dict, list or tuple of them."""

    form: str = "dict"

    output_names = ("p", "q")

    @nn.compact
    def __call__(self, x):
        outputs = {"p": nn.softmax(_dense(C, "p")(x)), "q": _dense(1, "q")(x)}
        return {"dict": dict, "list": lambda o: list(o.values()), "tuple": lambda o: tuple(o.values())}[self.form](
            outputs
        )


class UnnamedHeads(Heads):
    """The same, without names of its own."""

    output_names = None


def keras_values(shape):
    """`Values` in Keras."""
    return keras.Sequential(
        [keras.Input(shape), _keras_dense(4, "bottom", activation="tanh"), _keras_dense(1, "top")],
    )


def keras_classes(shape):
    """`Classes` in Keras."""
    return keras.Sequential([keras.Input(shape), _keras_dense(C, "top", activation="softmax")])


def keras_heads(form="dict"):
    """`Heads` in Keras."""
    x = keras.Input((D,))
    p, q = _keras_dense(C, "p", activation="softmax")(x), _keras_dense(1, "q")(x)
    return keras.Model(x, {"dict": {"p": p, "q": q}, "list": [p, q], "tuple": (p, q)}[form])


def kernels(model, layers):
    """The kernels of a kdist model by its layers."""
    return [np.asarray(model.params[name]["kernel"]) for name in layers]


class Pair:
    """A kdist and a Keras model with one set of weights.

    Args:
        module: The Flax module.
        theirs: The Keras model.
        x: Inputs of one batch, to build with.
        layers: The names of the layers, in the order of Keras's weights.
        n: How many devices kdist uses.
    """

    def __init__(self, module, theirs, x, layers, n=8):
        self.ours, self.theirs, self.layers = kdist.Model(module), theirs, layers
        self._where = {"distribution": kdist.DataParallel(devices=jax.devices()[:n])}
        self.ours.build(jax.tree.map(lambda a: a[:1], x))
        self._start = self.ours.get_weights()
        self._kernels = kernels(self.ours, layers)

    def compile(self, loss, rate=RATE, eagerly=False, **settings):
        """Compiles both with plain gradient descent, and returns the pair.

        Args:
            loss: As for `compile`, or a function that makes it of a framework, `kdist` or `keras`.
            rate: The learning rate.
            eagerly: Spares Keras its compiling, which most cases do not need; kdist always compiles.
            settings: Other arguments of `compile`, alike.
        """
        for model, lib, where in ((self.ours, kdist, self._where), (self.theirs, keras, {"run_eagerly": eagerly})):
            # Compiled without metrics, Keras keeps those of before.
            made = {name: _made(value, lib) for name, value in {"loss": loss, "metrics": [], **settings}.items()}
            model.compile(lib.optimizers.SGD(rate), **made, **where)
        return self

    def ask_keras(self, call):
        """What ``call(theirs)`` returns; Keras's own warnings are not ours to test."""
        self.theirs.set_weights(self._kernels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _plain(call(self.theirs))

    def ask_kdist(self, call):
        """What ``call(ours)`` returns."""
        self.ours.set_weights(self._start)
        return _plain(call(self.ours))

    def agree(self, call):
        """Asserts that ``call(model)`` has the same result on both and leaves the same weights; returns the result."""
        expected, found = self.ask_keras(call), self.ask_kdist(call)
        same(found, expected)
        same(kernels(self.ours, self.layers), [np.asarray(v.value) for v in self.theirs.weights])
        return found


def _made(setting, lib):
    return setting(lib) if callable(setting) else setting


def _plain(result):
    """A History as what it recorded."""
    return {"history": result.history, "epoch": result.epoch} if hasattr(result, "history") else result


def same(found, expected, where="result"):
    """Asserts that two results are equal: types of containers, names and their order, and values to float32."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and list(found) == list(expected), f"{where}: {found}, expected {expected}"
        for name in expected:
            same(found[name], expected[name], f"{where}[{name!r}]")
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected) and len(found) == len(expected), f"{where}: {found}, expected {expected}"
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            same(a, b, f"{where}[{i}]")
    else:
        assert np.shape(found) == np.shape(expected), f"{where}: {found}, expected {expected}"
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=where)


def callback(mixin, model, *args):
    """An object of `mixin` that is a callback of the framework that the model is of."""
    base = kdist.callbacks.Callback if isinstance(model, kdist.Model) else keras.callbacks.Callback
    return type(mixin.__name__, (mixin, base), {})(*args)


class Batches:
    """A callback's mixin: the running loss after each batch, a list an epoch; and of each evaluation."""

    def __init__(self):
        super().__init__()
        self.trained, self.tested = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.trained.append([])

    def on_train_batch_end(self, batch, logs=None):
        self.trained[-1].append(float(logs["loss"]))

    def on_test_begin(self, logs=None):
        self.tested.append([])

    def on_test_batch_end(self, batch, logs=None):
        self.tested[-1].append(float(logs["loss"]))

"""What kdist is measured against: the same training written by hand in JAX, and in Keras 3 on JAX.

Each function here builds everything that can be built once and returns a `fit` or the like, to be
called again and again.  They are written as one would write them for speed: compiled with a donated
state, the loss and the accuracy summed up on the device, one read of the results an epoch, an order
of its own for every epoch.  Batches are of the whole data: the rows that do not fill a batch are a
step of their own.

Shapes: S full steps an epoch, B rows of a batch, K steps fused, N devices.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Fit = Callable[[int], list[np.ndarray]]
"""Trains for so many epochs; gives [sum of losses, hits] of each."""


class MLP(nn.Module):
    """Dense layers of these widths and ten logits."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class CNN(nn.Module):
    """Two convolutions with pooling, two dense layers; the first has `width` channels."""

    width: int = 16

    @nn.compact
    def __call__(self, x):
        for channels in (self.width, 2 * self.width):
            x = nn.relu(nn.Conv(channels, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


# One step ----------------------------------------------------------------------------------------


class State(NamedTuple):
    """What training carries."""

    params: Any
    opt_state: Any


TX = optax.adam(1e-3, eps=1e-7)


def init(module: nn.Module, x: jax.Array) -> State:
    """A fresh state, in one compiled program."""

    def make(x: jax.Array) -> State:
        params = module.init(jax.random.key(0), x)["params"]
        return State(params, TX.init(params))

    return jax.jit(make)(x)


def loss_and_sums(module: nn.Module, params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum of the losses of these rows, and [that sum, how many are right]."""
    logits = module.apply({"params": params}, x)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).sum()
    return loss, jnp.stack([loss, (logits.argmax(-1) == y).sum().astype(jnp.float32)])


def train_step(module: nn.Module, state: State, x: jax.Array, y: jax.Array) -> tuple[State, jax.Array]:
    """One update by the mean gradient of a batch, and the batch's sums."""

    def mean_loss(params: Any) -> tuple[jax.Array, jax.Array]:
        loss, sums = loss_and_sums(module, params, x, y)
        return loss / x.shape[0], sums

    grads, sums = jax.grad(mean_loss, has_aux=True)(state.params)
    return update(state, grads), sums


def update(state: State, grads: Any) -> State:
    """Adam."""
    updates, opt_state = TX.update(grads, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), opt_state)


def epoch_order(epoch: int, rows: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The shuffled rows of an epoch: ``[S, B]``, and what is left over."""
    order = np.random.default_rng(epoch).permutation(rows).astype(np.int32)
    full = rows // batch_size * batch_size
    return order[:full].reshape(-1, batch_size), order[full:]


# Fits --------------------------------------------------------------------------------------------


def resident_fit(module: nn.Module, x: np.ndarray, y: np.ndarray, batch_size: int, *, gather: str) -> Fit:
    """A whole epoch as one `lax.scan` over rows that lie on the device.

    Args:
        module: The model.
        x: Inputs.
        y: Labels.
        batch_size: B.
        gather: "once": all batches of the epoch before the scan; "each": a batch in its step.
    """
    state = init(module, x[:batch_size])

    @functools.partial(jax.jit, donate_argnums=0)
    def run_epoch(
        state: State, x: jax.Array, y: jax.Array, order: jax.Array, rest: jax.Array
    ) -> tuple[State, jax.Array]:
        if gather == "once":
            state, sums = jax.lax.scan(lambda state, b: train_step(module, state, *b), state, (x[order], y[order]))
        else:
            state, sums = jax.lax.scan(lambda state, rows: train_step(module, state, x[rows], y[rows]), state, order)
        total = sums.sum(0)
        if rest.size:
            state, sums = train_step(module, state, x[rest], y[rest])
            total += sums
        return state, total

    def fit(epochs: int) -> list[np.ndarray]:
        nonlocal state
        data = jax.device_put((x, y))
        history = []
        for epoch in range(epochs):
            state, total = run_epoch(state, *data, *epoch_order(epoch, len(x), batch_size))
            history.append(np.asarray(total))
        return history

    return fit


def streamed_fit(module: nn.Module, x: np.ndarray, y: np.ndarray, batch_size: int, *, fused: int = 32) -> Fit:
    """Rows stay on the host: K batches are gathered and sent while the K before them are computed."""
    state = init(module, x[:batch_size])

    @functools.partial(jax.jit, donate_argnums=0)
    def run_chunk(state: State, x: jax.Array, y: jax.Array) -> tuple[State, jax.Array]:
        state, sums = jax.lax.scan(lambda state, batch: train_step(module, state, *batch), state, (x, y))
        return state, sums.sum(0)

    def chunks(epoch: int) -> Iterator[tuple[jax.Array, jax.Array]]:
        order, rest = epoch_order(epoch, len(x), batch_size)
        parts = [order[i : i + fused] for i in range(0, len(order), fused)] + ([rest[None]] if rest.size else [])
        for rows in parts:
            yield jax.device_put((x[rows], y[rows]))

    def fit(epochs: int) -> list[np.ndarray]:
        nonlocal state
        history = []
        for epoch in range(epochs):
            sums: list[jax.Array] = []
            for chunk in chunks(epoch):
                state, total = run_chunk(state, *chunk)
                jax.block_until_ready(sums[-1:])  # the chunk before: one computes, one is prepared
                sums.append(total)
            history.append(np.sum(jax.device_get(sums), axis=0))
        return history

    return fit


def loop_fit(module: nn.Module, x: np.ndarray, y: np.ndarray, batch_size: int) -> Fit:
    """A Python loop of compiled steps, dispatched without waiting, over rows that lie on the device."""
    state = init(module, x[:batch_size])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(state: State, total: jax.Array, x: jax.Array, y: jax.Array, rows: jax.Array) -> tuple[State, jax.Array]:
        state, sums = train_step(module, state, x[rows], y[rows])
        return state, total + sums

    def fit(epochs: int) -> list[np.ndarray]:
        nonlocal state
        data = jax.device_put((x, y))
        history = []
        for epoch in range(epochs):
            order, rest = epoch_order(epoch, len(x), batch_size)
            total = jnp.zeros(2)
            for rows in [*order, rest] if rest.size else order:
                state, total = step(state, total, *data, rows)
            history.append(np.asarray(total))
        return history

    return fit


def sharded_fit(module: nn.Module, x: np.ndarray, y: np.ndarray, batch_size: int) -> Fit:
    """A whole epoch as one `lax.scan` inside `shard_map` over all devices: one psum a step.

    Every device holds all rows and gathers its share of a batch.  The rows left over must divide by
    the number of devices.
    """
    mesh = Mesh(np.array(jax.devices()), ("data",))
    whole, columns = PartitionSpec(), PartitionSpec(None, "data")
    state = jax.device_put(init(module, x[:batch_size]), NamedSharding(mesh, whole))

    def step(state: State, x: jax.Array, y: jax.Array, size: int) -> tuple[State, jax.Array]:
        grads, sums = jax.grad(lambda p: loss_and_sums(module, p, x, y), has_aux=True)(state.params)
        grads, sums = jax.lax.psum((grads, sums), "data")
        return update(state, jax.tree.map(lambda g: g / size, grads)), sums

    def shard_epoch(state: State, x: jax.Array, y: jax.Array, order: jax.Array, rest: jax.Array):
        state, sums = jax.lax.scan(lambda state, rows: step(state, x[rows], y[rows], batch_size), state, order)
        total = sums.sum(0)
        if rest.size:
            (rows,) = rest
            state, sums = step(state, x[rows], y[rows], rest.size * mesh.size)
            total += sums
        return state, total

    run_epoch = jax.jit(
        jax.shard_map(
            shard_epoch,
            mesh=mesh,
            in_specs=(whole, whole, whole, columns, columns),
            out_specs=(whole, whole),
            check_vma=False,
        ),
        donate_argnums=0,
    )

    def fit(epochs: int) -> list[np.ndarray]:
        nonlocal state
        data = jax.device_put((x, y), NamedSharding(mesh, whole))
        history = []
        for epoch in range(epochs):
            order, rest = epoch_order(epoch, len(x), batch_size)
            orders = jax.device_put((order, rest[None]), NamedSharding(mesh, columns))
            state, total = run_epoch(state, *data, *orders)
            history.append(np.asarray(total))
        return history

    return fit


def first_step(module: nn.Module, x: np.ndarray, y: np.ndarray, batch_size: int) -> np.ndarray:
    """From nothing to the sums of the first step."""
    rows = epoch_order(0, len(x), batch_size)[0][0]
    state = init(module, x[rows])
    step = jax.jit(functools.partial(train_step, module), donate_argnums=0)
    _, sums = step(state, x[rows], y[rows])
    return np.asarray(sums)


# Keras -------------------------------------------------------------------------------------------


def keras_mlp(inputs: int, hidden: tuple[int, ...], steps_per_execution: int) -> Any:
    """The MLP in Keras, compiled with the same optimizer, loss and metric.

    Raises:
        ImportError: Keras is not installed.
    """
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    layers = [keras.layers.Dense(width, activation="relu") for width in hidden]
    model = keras.Sequential([keras.Input((inputs,)), *layers, keras.layers.Dense(10)])
    model.compile(
        keras.optimizers.Adam(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
    )
    return model

"""Execution: K steps as one program give what single steps give, whatever K, in a loop and in a chain."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import kdist
from kdist.callbacks import Callback
from kdist.execution import loops_are_slow


class Net(nn.Module):
    """Dropout and batch statistics; with a convolution it runs as a chain on CPU, else as a loop."""

    convolution: bool

    @nn.compact
    def __call__(self, x, train: bool = False):
        if self.convolution:
            x = nn.Conv(3, (2,))(x[..., None]).reshape(x.shape[0], -1)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(8)(x))
        return nn.Dense(2)(nn.Dropout(0.3, deterministic=not train)(x))


def convolve(x):
    return jax.lax.conv_general_dilated(x, x[:2], (1,), "SAME", dimension_numbers=("NWC", "OWI", "NWC"))


@pytest.mark.parametrize(
    "fn, slow",
    [
        (lambda x: x.sum(axis=1) @ x[0].T, False),
        (convolve, True),
        (jax.jit(convolve), True),
        (lambda x: jax.lax.scan(lambda carry, _: (carry, convolve(x)), 0, None, length=2), True),
        (lambda x: jax.lax.cond(x[0, 0, 0] > 0, convolve, lambda x: 0 * convolve(x), x), True),
    ],
    ids=["dense", "convolution", "jitted", "scanned", "in a branch"],
)
def test_a_loop_is_slow_where_there_is_a_convolution_on_cpu(fn, slow):
    jaxpr = jax.make_jaxpr(fn)(np.zeros((4, 5, 3), np.float32))
    assert loops_are_slow(jaxpr, "cpu") is slow
    assert not loops_are_slow(jaxpr, "gpu") and not loops_are_slow(jaxpr, "tpu")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(27, 6)).astype(np.float32), rng.normal(size=(27, 2)).astype(np.float32)


def run(data, k, *, convolution=False, callbacks=()):
    """Seven steps an epoch, the last of them short: everything that a run leaves behind."""
    model = kdist.Model(Net(convolution))
    distribution = kdist.DataParallel(devices=jax.devices()[:1])
    model.compile("adam", "mse", steps_per_execution=k, distribution=distribution)
    history = model.fit(*data, batch_size=4, epochs=2, validation_data=data, callbacks=callbacks, verbose=0)
    return model, history.history, model.get_weights(), model.predict(data[0], batch_size=4, verbose=0)


@pytest.fixture(scope="module")
def single(data):
    return {convolution: run(data, 1, convolution=convolution) for convolution in (False, True)}


@pytest.mark.parametrize("k, convolution", [(3, False), ("auto", False), (3, True)])
def test_any_k_gives_the_numbers_of_single_steps(k, convolution, data, single):
    model, history, weights, predictions = run(data, k, convolution=convolution)
    _, expected, expected_weights, expected_predictions = single[convolution]
    assert list(history) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5)
    for mine, theirs in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(predictions, expected_predictions, rtol=1e-4, atol=1e-6)
    assert int(model.trainer.state.step) == 14
    # One program each, though an epoch's last execution is shorter; but batch statistics want the last batch of a
    # training epoch, three rows, at its own shape.
    assert model.trainer.traces == {"train": 2, "test": 1, "predict": 1}


def test_a_callback_that_watches_batches_changes_no_number(data, single):
    class Watches(Callback):
        def on_train_batch_end(self, batch, logs=None):
            pass

    _, history, weights, _ = run(data, "auto", callbacks=Watches())
    np.testing.assert_allclose(history["loss"], single[False][1]["loss"], rtol=1e-5)
    for mine, theirs in zip(weights, single[False][2], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k, calls", [(1, 7), (2, 4), (3, 3), (7, 1), (100, 1)])
def test_an_integer_is_honoured_exactly(k, calls, data):
    seen = []

    class Counts(Callback):
        async_safe = True

        def on_train_batch_begin(self, batch, logs=None):
            seen.append(batch)

    model = kdist.Model((lambda key, x: {"w": np.zeros((6, 2), np.float32)}, lambda p, x: x @ p["w"]))
    distribution = kdist.DataParallel(devices=jax.devices()[:1])
    model.compile("sgd", "mse", steps_per_execution=k, distribution=distribution)
    model.fit(*data, batch_size=4, callbacks=Counts(), verbose=0)
    assert seen == [k * i for i in range(calls)]


def test_the_state_that_was_handed_in_is_used_up_and_the_new_one_is_not(data):
    distribution = kdist.DataParallel(devices=jax.devices()[:2])
    trainer = kdist.Trainer(nn.Dense(2), optimizer="sgd", loss="mse", distribution=distribution)
    before = trainer.init(data)
    after, _ = trainer.fit(before, kdist.data.from_arrays(*data), epochs=1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))
    trainer.evaluate(after, kdist.data.from_arrays(*data))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))

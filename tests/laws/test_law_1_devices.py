"""Law 1: one device and eight give the same losses, weights, evaluations and predictions.

Batch sizes divide by the devices and do not, and epochs end in a tail. SGD with momentum, because Adam hides a
gradient of the wrong scale. What differs by design, dropout and unsynchronised BatchNorm, is in test_shards.py.
"""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from models import CLASSES, KINDS, crossentropy, data, make, moved, same

import kdist

SHAPES = {
    # name: rows, batch_size, whether there are sample weights
    "divides": (32, 16, False),
    "ten rows on eight": (10, 10, True),
    "tail of three": (27, 8, True),
    "nothing divides": (13, 5, True),
}


def first(n):
    return kdist.DataParallel(devices=jax.devices()[:n])


def train(model, n, x, y, *, weight=None, batch_size=8, epochs=3, optimizer=None, loss=None, look=True, **arguments):
    """What a user can see of a fit on n devices and, if they look, of an evaluation and a prediction after it."""
    optimizer = optimizer or kdist.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, loss or crossentropy(), distribution=first(n), **arguments)
    model.build(x)
    before = model.get_weights()
    seen = {"history": model.fit(x, y, batch_size, epochs, sample_weight=weight, verbose=0).history}
    seen["weights"] = model.get_weights()
    assert moved(before, seen["weights"])
    if look:
        seen["evaluate"] = model.evaluate(x, y, batch_size, sample_weight=weight, return_dict=True, verbose=0)
        seen["predict"] = model.predict(x, batch_size, verbose=0)
    return seen


def train_mlp(kind, n, shape, microbatches=1):
    rows, batch_size, weighted = SHAPES[shape]
    x, y, weight = data(rows)
    return train(
        make("mlp", kind),
        n,
        x,
        y,
        batch_size=batch_size,
        weight=weight if weighted else None,
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
        microbatches=microbatches,
    )


@functools.cache
def mlp_on_one_device(shape):
    return train_mlp("linen", 1, shape)


@pytest.mark.parametrize(
    ("kind", "shape", "microbatches"),
    [
        # Each shape in one kind of module: that the two kinds are alike is law 7.
        pytest.param("linen", "divides", 1, marks=pytest.mark.slow),
        ("nnx", "divides", 4),
        ("linen", "ten rows on eight", 1),
        pytest.param("nnx", "ten rows on eight", 1, marks=pytest.mark.slow),
        ("linen", "tail of three", 4),
        pytest.param("nnx", "tail of three", 1, marks=pytest.mark.slow),
        pytest.param("linen", "nothing divides", 2, marks=pytest.mark.slow),
        ("nnx", "nothing divides", 2),
    ],
)
def test_one_device_is_eight_devices(kind, shape, microbatches):
    one = mlp_on_one_device(shape)
    assert set(one["history"]) == {"loss", "accuracy", "weighted_accuracy"}
    assert one["predict"].shape == (SHAPES[shape][0], CLASSES)
    same(train_mlp(kind, 8, shape, microbatches), one)


def test_microbatches_on_one_device():
    same(train_mlp("linen", 1, "nothing divides", 4), mlp_on_one_device("nothing divides"))


@functools.cache
def cnn_on(n):
    x, y, weight = data(13, images=True)
    return train(make("cnn", "linen"), n, x, y, weight=weight, epochs=2, look=n != 3)


@pytest.mark.parametrize("n", [3, 8])
def test_convolutions_on_any_number_of_devices(n):
    got = cnn_on(n)
    same(got, {name: cnn_on(1)[name] for name in got})


def test_outputs_with_reductions_of_their_own():
    x, labels, weight = data(13)
    rng = np.random.default_rng(1)
    y = {"a": rng.normal(size=(13, 2)), "b": labels, "c": rng.normal(size=(13, 2))}
    losses = kdist.losses

    def run(kind, n, microbatches, look=False):
        return train(
            make("heads", kind),
            n,
            x,
            y,
            loss={
                "a": losses.MeanSquaredError(reduction="sum"),
                "b": crossentropy(),
                "c": losses.MeanAbsoluteError(reduction="mean_with_sample_weight"),
            },
            loss_weights={"a": 0.05, "b": 1.0, "c": 2.0},
            metrics={"b": ["accuracy"]},
            weighted_metrics={"a": ["mse"], "c": ["mae"]},
            weight=weight,
            batch_size=5,
            optimizer=kdist.optimizers.SGD(0.05),
            microbatches=microbatches,
            look=look,
        )

    one = run("linen", 1, 1, look=True)
    assert {"loss", "a_loss", "b_loss", "c_loss", "b_accuracy", "a_mse", "c_mae"} == set(one["history"])
    same(run("linen", 8, 1, look=True), one)
    same(run("nnx", 8, 2), {name: one[name] for name in ("history", "weights")})


def test_a_class_that_is_ignored_counts_over_all_devices():
    """The denominator is the number of kept labels, of which shards have different numbers, some of them none."""
    x, y, weight = data(13)
    common = {"loss": crossentropy(ignore_class=1), "weight": weight, "look": False}
    same(train(make("mlp", "linen"), 8, x, y, **common), train(make("mlp", "linen"), 1, x, y, **common))


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(lambda: kdist.optimizers.SGD(1.0, global_clipnorm=0.1), id="global_clipnorm"),
        pytest.param(lambda: kdist.optimizers.Lamb(0.01), id="lamb"),
    ],
)
def test_optimizers_see_the_global_gradient(optimizer):
    x, y, _ = data(27)
    one, eight = (train(make("mlp", "linen"), n, x, y, optimizer=optimizer(), look=False) for n in (1, 8))
    same(eight, one, rtol=1e-4, atol=1e-5)


def test_one_step_is_the_gradient_of_the_whole_batch():
    """The law's anchor outside kdist: SGD by the gradient that plain JAX takes of the weighted mean."""
    x, y, weight = data(10)
    model = make("mlp", "linen")
    model.compile(kdist.optimizers.SGD(0.5), crossentropy(), distribution=first(8), microbatches=2)
    model.build(x)
    module = model.adapter.module
    params = jax.device_get(model.params)

    def loss(params):
        log_p = jax.nn.log_softmax(module.apply({"params": params}, x))
        return -(weight * log_p[np.arange(10), y]).sum() / 10

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    same(model.train_on_batch(x, y, weight), float(value))
    same(jax.device_get(model.params), jax.tree.map(lambda p, g: p - 0.5 * g, params, grads))


def test_initial_weights_do_not_depend_on_the_devices():
    """The initialisers of Flax, which the other tests replace by one that draws nothing."""
    weights = []
    for n in (1, 8):
        model = kdist.Model(nn.Dense(5), seed=3)
        model.compile(None, "mse", distribution=first(n))
        model.build((None, 4))
        weights.append(model.get_weights())
    same(weights[1], weights[0], rtol=0, atol=0)


def test_synchronised_batch_norm_is_that_of_the_whole_batch():
    x, y, _ = data(32)
    arguments = {"batch_norm": True, "axis_name": "data"}
    one = train(make("mlp", "linen", **arguments), 1, x, y, batch_size=16, look=False)
    for kind in KINDS:
        same(train(make("mlp", kind, **arguments), 8, x, y, batch_size=16, look=False), one, rtol=1e-4, atol=1e-5)


def test_bfloat16_at_its_own_tolerance():
    x, y, weight = data(27)
    one, eight = (train(make("mlp", "linen"), n, x, y, weight=weight, precision="mixed_bfloat16") for n in (1, 8))
    same(eight, one, rtol=0.02, atol=0.02)
    assert all(w.dtype == np.float32 for w in eight["weights"])
    float32 = mlp_on_one_device("tail of three")
    same(eight["weights"], float32["weights"], rtol=0.05, atol=0.05)
    assert moved(eight["weights"], float32["weights"])  # so bfloat16 was at work

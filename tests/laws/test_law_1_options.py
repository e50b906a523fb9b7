"""Law 1 for what a training step can be asked for besides: losses that need all rows, penalties that a module sows,
averages of weights, accumulation, class weights, and float16 with a loss scale that skips a step.

Thirteen rows in batches of five, so that neither batches nor the tail divide by eight.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import CLASSES, FEATURES, KINDS, crossentropy, data, make, moved, same, waves

import kdist

ROWS, BATCH_SIZE, EPOCHS = 13, 5, 2
losses, optimizers = kdist.losses, kdist.optimizers


class LinenScores(nn.Module):
    """Probabilities, unit vectors, or logits of two steps, of one layer; with penalties of its kernel and outputs."""

    ending: str = "sigmoid"
    penalized: bool = False

    @nn.compact
    def __call__(self, x):
        width = 2 * CLASSES if self.ending == "steps" else CLASSES
        hidden = nn.Dense(width, kernel_init=waves, name="out")
        x = hidden(x)
        if self.penalized:
            kernel = hidden.variables["params"]["kernel"]
            self.sow("losses", "weights", 0.01 * jnp.square(kernel).sum())
            self.sow("losses", "activity", 0.02 * jnp.square(x).sum(-1).mean())
        return ENDINGS[self.ending](x)


class Losses(nnx.Variable):
    """What is added to the loss."""


class NNXScores(nnx.Module):
    """The same as `LinenScores`."""

    def __init__(self, ending="sigmoid", penalized=False):
        width = 2 * CLASSES if ending == "steps" else CLASSES
        self.out = nnx.Linear(FEATURES, width, kernel_init=waves, rngs=nnx.Rngs(0))
        self.ending, self.penalized = ending, penalized

    def __call__(self, x):
        x = self.out(x)
        if self.penalized:
            self.sow(Losses, "weights", 0.01 * jnp.square(self.out.kernel[...]).sum())
            self.sow(Losses, "activity", 0.02 * jnp.square(x).sum(-1).mean())
        return ENDINGS[self.ending](x)


ENDINGS = {
    "sigmoid": nn.sigmoid,
    "unit": lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
    "steps": lambda x: x.reshape(-1, 2, CLASSES),
    "none": lambda x: x,
}
SCORES = {"linen": LinenScores, "nnx": NNXScores}


def train(model, n, x, y, loss, *, optimizer=None, batch_size=BATCH_SIZE, weight=None, class_weight=None, **arguments):
    """What a user sees of a fit, an evaluation and a prediction on the first n devices."""
    optimizer = optimizer or optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, loss, distribution=kdist.DataParallel(devices=jax.devices()[:n]), **arguments)
    model.build(x)
    before = model.get_weights()
    fitted = model.fit(x, y, batch_size, EPOCHS, 0, sample_weight=weight, class_weight=class_weight)
    seen = {"history": fitted.history, "weights": model.get_weights()}
    assert moved(before, seen["weights"])
    seen["evaluate"] = model.evaluate(x, y, batch_size, 0, weight, return_dict=True)
    seen["predict"] = model.predict(x, batch_size, 0)
    return seen


BITS = np.random.default_rng(3).integers(0, 2, (ROWS, CLASSES)).astype(np.float32)
SEQUENCES = np.array([[1, 2], [2, 0], [2, 1], [1, 0]], np.int32)[np.arange(ROWS) % 4]
ALL_ROWS = {
    # name: how the module ends, targets, loss
    "dice": ("sigmoid", BITS, losses.Dice()),
    "tversky": ("sigmoid", BITS, losses.Tversky(alpha=0.3, beta=0.7)),
    "circle": ("unit", data(ROWS)[1], losses.Circle(gamma=1.0)),
    "ctc": ("steps", SEQUENCES, losses.CTC()),
}


@pytest.mark.parametrize(
    "weighted", [pytest.param(False, marks=pytest.mark.slow, id="plain"), pytest.param(True, id="weighted")]
)
@pytest.mark.parametrize("name", ALL_ROWS)
def test_losses_that_compare_rows_or_steps(name, weighted):
    ending, y, loss = ALL_ROWS[name]
    x, _, weight = data(ROWS)
    weight = weight if weighted else None
    kind = KINDS[weighted]
    one = train(kdist.Model(SCORES["linen"](ending)), 1, x, y, loss, weight=weight)
    same(train(kdist.Model(SCORES[kind](ending)), 8, x, y, loss, weight=weight), one, rtol=1e-4, atol=1e-5)


def scored(kind, n, *, penalized):
    """Batches of eight: a module cannot know that a row only fills its batch, and would count it among the active."""
    x, y, weight = data(16)
    model = kdist.Model(SCORES[kind]("none", penalized))
    return train(model, n, x, y, crossentropy(), batch_size=8, weight=weight)


@pytest.mark.parametrize("kind", KINDS)
def test_penalties_of_a_module(kind):
    """Of the weights, which are alike on all shards, and of what a shard's rows made, of which there are as many."""
    one = scored("linen", 1, penalized=True)
    same(scored(kind, 8, penalized=True), one)
    bare = scored(kind, 8, penalized=False)
    assert bare["history"]["loss"][0] < one["history"]["loss"][0]  # so there were penalties


OPTIONS = {
    "average": lambda: optimizers.SGD(0.1, use_ema=True, ema_momentum=0.6),
    "average that overwrites": lambda: optimizers.SGD(0.1, use_ema=True, ema_momentum=0.6, ema_overwrite_frequency=2),
    "accumulation": lambda: optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_optimizers(name):
    x, y, weight = data(ROWS)
    one, eight = (
        train(make("mlp", kind), n, x, y, crossentropy(), optimizer=OPTIONS[name](), weight=weight)
        for kind, n in zip(KINDS, (1, 8), strict=True)
    )
    same(eight, one)


def test_class_weights():
    x, y, _ = data(ROWS)
    given = {"class_weight": {0: 0.5, 1: 2.0, 2: 0.0}, "weighted_metrics": ["accuracy"]}
    one, eight, plain = (
        train(make("mlp", "linen"), n, x, y, crossentropy(), **arguments)
        for n, arguments in ((1, given), (8, given), (8, {}))
    )
    same(eight, one)
    assert moved(eight["weights"], plain["weights"])


def scaled(kind, n, rows=ROWS):
    """A fit in float16, of which one batch has a row whose gradient is too large for it."""
    x, y, _ = data(rows)
    x[6] = 6e4
    model = make("mlp", kind)
    optimizer = optimizers.LossScaleOptimizer(optimizers.SGD(0.1), initial_scale=1024.0, dynamic_growth_steps=2)
    distribution = kdist.DataParallel(devices=jax.devices()[:n])
    model.compile(optimizer, crossentropy(), precision="mixed_float16", distribution=distribution)
    model.build(x)
    scales, weights = [], [model.get_weights()]
    for start in range(0, rows, BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        model.train_on_batch(x[batch], y[batch])
        scales.append(float(optimizers.loss_scale(model.state.opt_state)))
        weights.append(model.get_weights())
    return {"scales": scales, "weights": weights}


def test_a_step_that_overflows_is_skipped_alike():
    one = scaled("linen", 1)
    assert one["scales"] == [1024.0, 512.0, 512.0]
    skipped = [not moved(*pair) for pair in zip(one["weights"], one["weights"][1:], strict=False)]
    assert skipped == [False, True, False]
    for kind in KINDS:
        eight = scaled(kind, 8)
        assert eight["scales"] == one["scales"]
        same(eight["weights"], one["weights"], rtol=5e-3, atol=5e-3)
        assert not moved(eight["weights"][1], eight["weights"][2])

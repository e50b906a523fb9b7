"""Keras's trainer tests, told again for kdist: fit, evaluate and predict, losses, precision, and the training flag.

`semantics.md` 7.1 lists them; those of execution, data and callbacks are in files of their own.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import ones
import pytest
from flax import nnx

import kdist


class TwoInputs(nn.Module):
    """Two inputs through a layer of ones each: two outputs, in a dict, or their sum."""

    summed: bool = False

    @nn.compact
    def __call__(self, x):
        first, second = x.values() if isinstance(x, dict) else x
        a, b = ones.Ones(2, name="a")(first), ones.Ones(2, name="b")(second)
        return a + b if self.summed else {"y_one": a, "y_two": b}


# fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "steps_per_epoch"),
    [({}, None), ({"jit_compile": True}, 7), ({"jit_compile": False}, 7), ({"run_eagerly": True}, None)],
    ids=str,
)
def test_fit_flow(how, steps_per_epoch):
    """100 rows in batches of 20: of seven steps an epoch there are five, in each of which the loss shrinks."""
    model = ones.model(metrics=["mean_squared_error"], **how)
    fit = lambda: model.fit(*ones.data(100), 20, 3, 0, steps_per_epoch=steps_per_epoch).history  # noqa: E731
    if steps_per_epoch is None:
        history = fit()
    else:
        with pytest.warns(UserWarning, match="5 of 7 steps"):
            history = fit()
    np.testing.assert_allclose(history["loss"], ones.losses(3, 5), rtol=1e-5)
    np.testing.assert_allclose(history["mean_squared_error"], history["loss"], rtol=1e-5)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray, lambda a: a.astype(np.float64)], ids=["np", "jax", "64"])
def test_fit_with_a_validation_split(array):
    """20 of 100 rows are held out: four steps an epoch, and their loss is that of the weights at its end."""
    x, y = ones.data(100)
    history = ones.model().fit(array(x), array(y), 20, 3, 0, validation_split=0.2).history
    np.testing.assert_allclose(history["loss"], ones.losses(3, 4), rtol=1e-5)
    np.testing.assert_allclose(history["val_loss"], 16 * ones.SHRINK ** (2 * np.array([4, 8, 12])), rtol=1e-5)


def test_a_step_of_ones_own():
    """Keras overrides `Model.train_step`; kdist `Trainer.train_step`, which can add to what is logged's sums."""

    class Doubled(kdist.Trainer):
        def train_step(self, step, state, batch):
            state, _ = step.train(state, batch)
            return step.train(state, batch)

    x, y = ones.data(100)
    trainer = Doubled(ones.Ones(), optimizer=kdist.optimizers.SGD(ones.RATE), loss="mse")
    loader = kdist.data.from_arrays(x, y, batch_size=50)
    _, history = trainer.fit(trainer.init((x, y)), loader, epochs=1)
    # Two updates a step; the loss is that before the second of each.
    np.testing.assert_allclose(history.history["loss"], [16 * (ones.SHRINK**2 + ones.SHRINK**6) / 2], rtol=1e-5)


def test_compiling_again_changes_the_metrics():
    x, y = np.ones((3, 4), np.float32), np.ones((3, 3), np.float32)
    model = ones.model(metrics=["mean_squared_error"])
    for metric in ("mean_squared_error", "mean_absolute_error"):
        model.compile("sgd", "mse", metrics=[metric])
        assert sorted(model.fit(x, y, verbose=0).history) == ["loss", metric]
        assert sorted(model.evaluate(x, y, verbose=0, return_dict=True)) == ["loss", metric]


def test_metric_objects_are_listed():
    """Those that were compiled, in their order; Keras has its own trackers among them."""
    model = ones.model(metrics=[kdist.metrics.MeanSquaredError(name="mine")], weighted_metrics=["mae"])
    model.fit(*ones.data(2), verbose=0, sample_weight=np.ones(2))
    assert [metric.name for metric in model.metrics] == ["mine", "mae"]
    assert model.metrics_names == ["loss", "mine", "mae"]


@pytest.mark.parametrize("how", ["fit", "evaluate"])
def test_the_batch_size_does_not_change_the_loss(how, rng):
    """Of a model that stands still; the last batch of 80 has 20 rows."""
    x, y = rng.uniform(size=(100, 4)).astype(np.float32), np.ones((100, 1), np.float32)
    model = ones.model(ones.Ones(1), optimizer=kdist.optimizers.SGD(0.0))
    run = (lambda n: model.fit(x, y, n, verbose=0).history["loss"]) if how == "fit" else model.evaluate
    values = [run(n) for n in (80, 100)] if how == "fit" else [run(x, y, n, verbose=0) for n in (80, 100)]
    np.testing.assert_allclose(*values, rtol=1e-6)


# evaluate and predict ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"run_eagerly": True}], ids=str)
def test_evaluate_flow(how):
    model = ones.model(metrics=["mean_squared_error"], **how)
    assert model.evaluate(*ones.data(100), 16, 0) == pytest.approx([16.0, 16.0])
    by_name = model.evaluate(*ones.data(100), 16, 0, return_dict=True)
    assert by_name == {"loss": pytest.approx(16.0), "mean_squared_error": pytest.approx(16.0)}


def test_the_list_of_evaluate_is_in_the_order_of_the_metrics():
    def zero(y_true, y_pred):
        return jnp.zeros(len(y_pred))

    def one(y_true, y_pred):
        return jnp.ones(len(y_pred))

    model = ones.model()
    for metrics, values in (([zero, one], [0.0, 1.0]), ([one, zero], [1.0, 0.0])):
        model.compile("sgd", "mse", metrics=metrics)
        assert model.evaluate(*ones.data(3), verbose=0)[1:] == values


@pytest.mark.parametrize("compiled", [None, {}, {"run_eagerly": True}], ids=str)
def test_predict_flow(compiled):
    """It needs no compiling."""
    model = kdist.Model(ones.Ones()) if compiled is None else ones.model(**compiled)
    np.testing.assert_allclose(model.predict(ones.data(100)[0], 16, 0), np.full((100, 3), 4.0))


def test_predict_keeps_structures():
    x = {"x_one": np.ones((100, 4), np.float32), "x_two": np.ones((100, 3), np.float32)}
    outputs = kdist.Model(TwoInputs()).predict(x, 16, 0)
    assert list(outputs) == ["y_one", "y_two"]
    np.testing.assert_allclose(outputs["y_one"], np.full((100, 2), 4.0))
    np.testing.assert_allclose(outputs["y_two"], np.full((100, 2), 3.0))


@pytest.mark.parametrize("x", [(0, 1), [0, 1], {"a": 0, "b": 1}], ids=str)
def test_predict_of_two_inputs(x, rng):
    parts = rng.uniform(size=(2, 3, 4)).astype(np.float32)
    x = jax.tree.map(lambda i: parts[i], x)
    model = kdist.Model((lambda key, x: {}, lambda params, x: sum(x.values() if isinstance(x, dict) else x)))
    np.testing.assert_allclose(model.predict(x, verbose=0), parts.sum(0), rtol=1e-6)


def test_two_inputs_in_every_method():
    """The numbers of Keras's test: outputs 2 + 3 against targets of 1, and each step leaves 0.95 of the error."""
    model, x, y = ones.model(TwoInputs(summed=True)), [np.ones((3, 2)), np.ones((3, 3))], np.ones((3, 2))
    assert model(x).shape == (3, 2)
    assert model.fit(x, y, verbose=0).history["loss"] == pytest.approx([16.0])
    assert model.train_on_batch(x, y) == pytest.approx(14.44)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(13.0321)
    assert model.test_on_batch(x, y) == pytest.approx(13.0321)
    assert model.predict(x, verbose=0).shape == model.predict_on_batch(x).shape == (3, 2)


# Single batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"run_eagerly": True}], ids=str)
def test_batch_methods(how):
    """Without, then with weights of rows, then of classes: the numbers of Keras's test."""
    x, y = ones.data(100)
    weight = np.arange(100, dtype=np.float32) / 50
    model = ones.model(metrics=["mean_squared_error"], **how)
    assert model.train_on_batch(x, y) == pytest.approx([16.0, 16.0])
    assert model.train_on_batch(x, y, return_dict=True)["loss"] == pytest.approx(15.158, abs=1e-3)
    assert model.test_on_batch(x, y)[0] == pytest.approx(14.360, abs=1e-3)
    assert model.test_on_batch(x, y, return_dict=True)["loss"] == pytest.approx(14.360, abs=1e-3)
    np.testing.assert_allclose(model.predict_on_batch(x), np.full((100, 3), 3.789511), rtol=1e-6)
    assert model.train_on_batch(x, y, weight)[0] == pytest.approx(14.217, abs=1e-3)
    assert model.test_on_batch(x, y, weight)[0] == pytest.approx(13.476, abs=1e-3)
    np.testing.assert_allclose(model.predict_on_batch(x), np.full((100, 3), 3.689468), rtol=1e-6)
    assert model.train_on_batch(x, y, class_weight={1: 0.3, 0: 0.2})[0] == pytest.approx(2.722, abs=1e-3)


def test_batch_methods_before_training():
    model = ones.model(metrics=["mean_squared_error"])
    np.testing.assert_allclose(model.predict_on_batch(ones.data(100)[0]), np.full((100, 3), 4.0))
    assert model.test_on_batch(*ones.data(100)) == pytest.approx([16.0, 16.0])


# Losses ------------------------------------------------------------------------------------------


def test_one_loss_of_three_outputs_and_targets_for_it_alone():
    x, y = np.ones((32, 2), np.float32), np.ones((32, 3), np.float32)
    init, apply = (lambda key, x: {"w": jnp.ones((2, 3))}), (lambda params, x: [x @ params["w"]] * 3)
    part = ones.model((init, apply), loss=["mse", None, None])
    whole = ones.model((init, apply), loss=["mse"] * 3)
    expected = whole.evaluate(x, [y] * 3, verbose=0, return_dict=True)["loss"]
    assert part.evaluate(x, y, verbose=0) * 3 == pytest.approx(expected)


class Penalised(nn.Module):
    """Adds the sum of its hidden values to the loss."""

    @nn.compact
    def __call__(self, x):
        x = ones.Ones(2, name="hidden")(x)
        self.sow("losses", "sum", x.mean(0).sum())
        return ones.Ones(1, name="out")(x)


class Losses(nnx.Variable):
    """What NNX modules sow into to add to the loss."""


class NNXPenalised(nnx.Module):
    """The same in NNX."""

    def __init__(self):
        make = {"use_bias": False, "kernel_init": nnx.initializers.ones, "rngs": nnx.Rngs(0)}
        self.hidden, self.out = nnx.Linear(4, 2, **make), nnx.Linear(2, 1, **make)

    def __call__(self, x):
        x = self.hidden(x)
        self.sow(Losses, "sum", x.mean(0).sum())
        return self.out(x)


@pytest.mark.parametrize("module", [Penalised, NNXPenalised])
def test_losses_that_the_module_adds(module):
    """They are the loss where there is no other, and are added to it, in evaluation too."""
    x = np.ones((16, 4), np.float32)
    alone = ones.model(module(), loss=None)
    # Sums of 4 twice; a step takes 0.01 from each of 8 weights.
    np.testing.assert_allclose(alone.fit(x, batch_size=8, verbose=0).history["loss"], [(8.0 + 7.92) / 2], rtol=1e-5)
    assert alone.evaluate(x, verbose=0) == pytest.approx(7.84)
    both = ones.model(module())
    assert both.evaluate(x, np.zeros((16, 1)), verbose=0) == pytest.approx(8.0**2 + 8.0)


# Training flag, precision ------------------------------------------------------------------------


class OnlyTraining(nn.Module):
    """What came in, in training; else nothing."""

    @nn.compact
    def __call__(self, x, training: bool = False):
        scale = self.param("scale", nn.initializers.ones, ())
        return x * scale if training else x * 0


def test_the_training_argument():
    x, y = np.ones((128, 1), np.float32), np.zeros((128, 1), np.float32)
    model = ones.model(OnlyTraining(), optimizer=kdist.optimizers.SGD(0.0))
    assert model.fit(x, y, 32, verbose=0).history["loss"] == pytest.approx([1.0])
    assert model.evaluate(x, y, 32, verbose=0) == 0.0
    assert not model.predict(x, verbose=0).any()


@pytest.mark.parametrize(
    ("precision", "auto", "scaled"),
    [("mixed_float16", True, True), ("mixed_float16", False, False), ("mixed_bfloat16", True, False)],
)
def test_a_loss_scale_is_added_for_float16_alone(precision, auto, scaled):
    model = ones.model(optimizer="rmsprop", precision=precision, auto_scale_loss=auto)
    model.fit(*ones.data(16), verbose=0)
    assert isinstance(model.optimizer, kdist.optimizers.LossScaleOptimizer) == scaled


def test_an_optimizer_with_a_loss_scale_is_not_given_another():
    inner = kdist.optimizers.LossScaleOptimizer(kdist.optimizers.SGD(0.01))
    model = ones.model(optimizer=inner, precision="mixed_float16")
    assert model.optimizer is inner


@pytest.mark.parametrize("auto", [False, True])
def test_a_loss_scale_keeps_small_gradients(auto):
    """Through fifteen sigmoids they are lost in float16, and with them the first layer's update, but for the scale."""

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(15):
                x = nn.sigmoid(ones.Ones(1, name=f"layer_{i}")(x))
            return x

    huge = kdist.optimizers.SGD(1e9)  # whatever is left of a gradient is seen
    model = ones.model(Deep(), optimizer=huge, precision="mixed_float16", auto_scale_loss=auto, n=1)
    model.fit(np.ones((1, 1)), np.ones((1, 1)), batch_size=1, verbose=0)
    assert (model.params["layer_0"]["dense"]["kernel"].item() != 1.0) == auto

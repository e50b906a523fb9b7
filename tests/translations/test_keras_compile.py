"""Keras's tests of what `compile` makes of losses and metrics, told again for kdist: the numbers, the names, the order.

The model is the identity, so that its inputs are the predictions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import ones
import pytest

import kdist

TRUE = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], np.float32)
PREDICTED = np.array([[0.4, 0.1], [0.2, 0.6], [0.6, 0.1]], np.float32)
PREDICTED_NEXT = np.array([[0.3, 0.2], [0.1, 0.4], [0.2, 0.3]], np.float32)
WIDE = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]], np.float32)
WIDE_PREDICTED = np.array([[0.4, 0.1, 0.3], [0.2, 0.6, 0.4], [0.6, 0.1, 0.8]], np.float32)
WIDE_PREDICTED_NEXT = np.array([[0.3, 0.2, 0.1], [0.5, 0.4, 0.6], [0.1, 0.8, 0.7]], np.float32)
WEIGHT = np.array([1.0, 0.0, 1.0], np.float32)


class Named(nn.Module):
    """Outputs "b" and "a", in a list, that are its inputs."""

    output_names = ("b", "a")

    @nn.compact
    def __call__(self, x):
        one = self.param("one", nn.initializers.ones, ())
        return [one * part for part in x]


def identity(module=None, **settings):
    """A model whose outputs are its inputs, in whatever structure."""
    unnamed = (lambda key, x: {"one": jnp.ones(())}, lambda params, x: jax.tree.map(lambda a: params["one"] * a, x))
    return ones.model(module or unnamed, **settings)


def value(model, predicted, true, weight=None):
    """The loss of one batch."""
    return model.test_on_batch(predicted, true, weight, return_dict=True)["loss"]


# Metrics -----------------------------------------------------------------------------------------


def mean_squared_error():
    return kdist.metrics.MeanSquaredError()


def test_one_output_over_two_batches():
    model = identity(metrics=[mean_squared_error()], weighted_metrics=[mean_squared_error()])
    batches = [(PREDICTED, TRUE, WEIGHT), (PREDICTED_NEXT, TRUE, WEIGHT)]
    found = model.evaluate(batches, return_dict=True, verbose=0)
    assert found["mean_squared_error"] == pytest.approx(0.055833336)
    assert found["weighted_mean_squared_error"] == pytest.approx(0.0725)
    assert len(found) == 3


def test_two_outputs_over_two_batches():
    """Each twice among the metrics and the weighted ones, by different names."""
    metrics = {f"output_{i}": [mean_squared_error(), "mse"] for i in (1, 2)}
    model = identity(metrics=metrics, weighted_metrics=metrics)
    true = {"output_1": TRUE, "output_2": WIDE}
    first, second = (
        {"output_1": PREDICTED, "output_2": WIDE_PREDICTED},
        {"output_1": PREDICTED_NEXT, "output_2": WIDE_PREDICTED_NEXT},
    )
    found = model.evaluate([(first, true, WEIGHT), (second, true, WEIGHT)], return_dict=True, verbose=0)
    expected = {"output_1_": 0.055833336, "output_2_": 0.066666667}
    expected |= {"output_1_weighted_": 0.0725, "output_2_weighted_": 0.090833336}
    by_name = {prefix + name: v for prefix, v in expected.items() for name in ("mse", "mean_squared_error")}
    assert {name: found[name] for name in by_name} == pytest.approx(by_name)
    assert len(found) == 3 + 8


def test_accuracy_by_either_name():
    found = identity(metrics=["acc", "accuracy", "mse"]).test_on_batch(PREDICTED, TRUE, return_dict=True)
    assert found["acc"] == found["accuracy"] == pytest.approx(1 / 3)
    assert sorted(found) == ["acc", "accuracy", "loss", "mse"]


def test_a_function_by_its_name():
    def my_custom_metric(y_true, y_pred):
        return jnp.square(y_true - y_pred).mean(-1)

    model = identity(metrics=[my_custom_metric])
    assert list(model.test_on_batch(PREDICTED, TRUE, return_dict=True)) == ["loss", "my_custom_metric"]


def test_labels_by_name_for_outputs_in_a_list():
    """A dict of targets and of metrics, in any order, for outputs "b" and "a"."""
    model = identity(Named(), metrics={"a": [mean_squared_error()], "b": [mean_squared_error()]})
    predicted, true = [np.zeros((3, 5)), np.ones((3, 2))], {"a": np.zeros((3, 2)), "b": np.zeros((3, 5))}
    assert model.test_on_batch(predicted, true) == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert model.metrics_names == ["loss", "b_loss", "a_loss", "b_mean_squared_error", "a_mean_squared_error"]


# Losses ------------------------------------------------------------------------------------------

A, B = TRUE, np.array([[0.7, 0.8], [0.9, 1.0], [1.1, 1.2]], np.float32)
A_PREDICTED = np.array([[1.2, 1.1], [1.0, 0.9], [0.8, 0.7]], np.float32)
B_PREDICTED = np.array([[0.6, 0.5], [0.4, 0.3], [0.2, 0.1]], np.float32)
W = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([3.0, 2.0, 1.0])}


@pytest.mark.parametrize(("loss", "expected"), [("mse", 0.068333), ("crossentropy", 0.706595)])
def test_one_loss(loss, expected):
    assert value(identity(loss=loss), PREDICTED, TRUE) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("loss", ["mse", ["mse", "mse"]], ids=str)
def test_losses_of_a_list(loss):
    assert value(identity(loss=loss), [A_PREDICTED, B_PREDICTED], [A, B]) == pytest.approx(0.953333, abs=1e-5)


@pytest.mark.parametrize("loss", ["mse", {"a": "mse", "b": "mse"}], ids=str)
def test_weighted_losses_of_a_dict(loss):
    predicted = {"a": A_PREDICTED, "b": B_PREDICTED}
    assert value(identity(loss=loss), predicted, {"a": A, "b": B}, W) == pytest.approx(1.266666, abs=1e-5)


def test_losses_in_a_list_and_data_by_name():
    model = identity(Named(), loss=["mse", "mae"])
    assert value(model, [B_PREDICTED, A_PREDICTED], {"a": A, "b": B}) == pytest.approx(1.07666, abs=1e-5)


@pytest.mark.parametrize(
    "losses",
    [["mse", None, None], [None, "mse", None], [None, None, "mse"], [None, "mse", "mse"], ["mse", None, "mse"]],
    ids=str,
)
def test_targets_for_those_outputs_that_have_a_loss(losses):
    """In a list as long as there are losses, or bare for one."""
    outputs = [np.full((8, 3), i, np.float32) for i in range(3)]
    true = [part for part, loss in zip(outputs, losses, strict=True) if loss is not None]
    assert value(identity(loss=losses), outputs, true[0] if len(true) == 1 else true) == 0.0


def test_targets_of_another_structure_are_refused():
    with pytest.raises(ValueError, match="y has 1 entries.*2 outputs"):
        value(identity(loss=["mse", "mse"]), [A_PREDICTED, B_PREDICTED], [A])

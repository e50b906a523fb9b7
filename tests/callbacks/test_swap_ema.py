"""SwapEMAWeights: who sees the averages, and who the parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdist
from kdist.callbacks import Callback, ModelCheckpoint, SwapEMAWeights
from kdist.errors import ConfigError

MOMENTUM = 0.9


def ema(**arguments):
    return kdist.optimizers.SGD(0.1, use_ema=True, ema_momentum=MOMENTUM, **arguments)


class See(Callback):
    """Notes at each hook whether the parameters in the model are the averages."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def note(self, hook):
        state = self.model.state
        average = jax.tree.leaves(kdist.optimizers.ema_params(state.opt_state))
        same = all((a == p).all() for a, p in zip(average, jax.tree.leaves(state.params), strict=True))
        self.seen.setdefault(hook, []).append(bool(same))

    def on_epoch_begin(self, epoch, logs=None):
        self.note("epoch_begin")

    def on_epoch_end(self, epoch, logs=None):
        self.note("epoch_end")

    def on_test_begin(self, logs=None):
        self.note("test_begin")

    def on_test_end(self, logs=None):
        self.note("test_end")

    def on_predict_begin(self, logs=None):
        self.note("predict_begin")

    def on_predict_end(self, logs=None):
        self.note("predict_end")

    def on_train_end(self, logs=None):
        self.note("train_end")


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(ema())


@pytest.mark.parametrize(("on_epoch", "epoch_end"), [(False, False), (True, True)])
def test_who_sees_what(model, data, on_epoch, epoch_end):
    see = See()
    swap = SwapEMAWeights(swap_on_epoch=on_epoch)
    model.fit(*data, batch_size=5, epochs=3, validation_data=data, verbose=0, callbacks=[swap, see])
    assert see.seen == {
        "epoch_begin": [True, False, False],  # before the first step both are the same
        "test_begin": [True] * 3,
        "test_end": [False] * 3,
        "epoch_end": [epoch_end] * 3,
        "train_end": [True],  # training ends with the averages, with or without the callback
    }
    averages = kdist.optimizers.ema_params(model.state.opt_state)
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(averages), strict=True):
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()  # both are donated to the next step


def test_training_itself_is_not_touched(make_model, data):
    weights = []
    for callbacks in ([], [SwapEMAWeights()], [SwapEMAWeights(swap_on_epoch=True)]):
        model = make_model(ema())
        model.fit(*data, batch_size=5, epochs=2, validation_data=data, verbose=0, callbacks=callbacks)
        model.fit(*data, batch_size=5, epochs=1, verbose=0, callbacks=callbacks)
        weights.append(model.get_weights())
    for others in weights[1:]:
        for a, b in zip(weights[0], others, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("wrap", [lambda o: o, kdist.optimizers.LossScaleOptimizer], ids=["plain", "loss scale"])
def test_validation_is_of_the_averages(make_model, data, wrap):
    losses = {}
    for name, callbacks in {"with": [SwapEMAWeights()], "without": []}.items():
        model = make_model(wrap(ema()))
        history = model.fit(*data, batch_size=2, epochs=2, validation_data=data, verbose=0, callbacks=callbacks).history
        losses[name] = history["val_loss"][-1], model.evaluate(*data, verbose=0)
    assert losses["with"] == pytest.approx([losses["without"][1]] * 2, rel=1e-6)
    assert losses["without"][0] != pytest.approx(losses["without"][1], rel=1e-2)


def parted(model):
    """Takes the parameters away from the averages."""
    params = jax.tree.map(lambda a: jnp.copy(a) + 1, model.state.params)
    model.state = dataclasses.replace(model.state, params=params)
    return [np.array(a) for a in jax.tree.leaves(params)]


@pytest.mark.parametrize("call", ["evaluate", "predict"])
def test_the_parameters_come_back_afterwards(model, data, call):
    """In Keras, the averages stay in the model after predict."""
    model.fit(*data, verbose=0)
    of_averages = getattr(model, call)(data[0], *([data[1]] if call == "evaluate" else []), verbose=0)
    before, see = parted(model), See()
    found = getattr(model, call)(
        data[0], *([data[1]] if call == "evaluate" else []), verbose=0, callbacks=[SwapEMAWeights(), see]
    )
    np.testing.assert_array_equal(found, of_averages)
    kind = "test" if call == "evaluate" else "predict"
    assert see.seen == {f"{kind}_begin": [True], f"{kind}_end": [False]}
    for a, b in zip(before, jax.tree.leaves(model.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_parameters_come_back_after_an_exception(model, data):
    class Dies(Callback):
        def on_test_begin(self, logs=None):
            raise RuntimeError("died")

    model.fit(*data, verbose=0)
    before = parted(model)
    with pytest.raises(RuntimeError, match="died"):
        model.evaluate(*data, verbose=0, callbacks=[SwapEMAWeights(), Dies()])
    for a, b in zip(before, jax.tree.leaves(model.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_behind_it_holds_the_averages(model, data, tmp_path):
    callbacks = [SwapEMAWeights(swap_on_epoch=True), ModelCheckpoint(tmp_path / "{epoch}", save_weights_only=True)]
    model.fit(*data, batch_size=5, epochs=2, verbose=0, callbacks=callbacks)
    weights = model.get_weights()
    model.load_weights(tmp_path / "2")
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_optimizer_without_averages(make_model, data):
    model = make_model("sgd")
    with pytest.raises(ConfigError, match="needs an optimizer that keeps averages: build it with use_ema=True"):
        model.fit(*data, verbose=0, callbacks=SwapEMAWeights())
    with pytest.raises(ConfigError, match="needs an optimizer that keeps averages"):
        model.evaluate(*data, verbose=0, callbacks=SwapEMAWeights())

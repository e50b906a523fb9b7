"""Keras's trainer tests of what callbacks see and may do in the loops, told again for kdist."""

import dataclasses

import jax
import numpy as np
import ones
import pytest

import kdist

HOOKS = [
    f"on_{kind}{part}_{end}"
    for kind in ("train", "test", "predict")
    for part in ("", "_batch")
    for end in ("begin", "end")
] + ["on_epoch_begin", "on_epoch_end"]


class Keys(kdist.callbacks.Callback):
    """Notes which keys the logs of each hook had."""

    def __init__(self):
        super().__init__()
        self.seen = {}
        for hook in HOOKS:
            setattr(self, hook, lambda *args, hook=hook, logs=None: self._note(hook, *args, logs))

    def _note(self, hook, *args):
        logs = next(arg for arg in args if isinstance(arg, dict))
        self.seen.setdefault(hook, set()).add(tuple(sorted(logs)))


def test_logs_of_every_hook():
    x, y = ones.data(16)
    model, keys = ones.model(optimizer="adam", metrics=["mean_absolute_error"]), Keys()
    model.fit(x, y, callbacks=[keys], batch_size=4, validation_data=(x, y), verbose=0)
    model.evaluate(x, y, callbacks=[keys], batch_size=4, verbose=0)
    model.predict(x, callbacks=[keys], batch_size=4, verbose=0)
    results = ("loss", "mean_absolute_error")
    of_epoch = (*results, "val_loss", "val_mean_absolute_error")
    begins = {hook: {()} for hook in HOOKS if hook.endswith("begin")}
    assert keys.seen == begins | {
        "on_train_end": {of_epoch},
        "on_epoch_end": {of_epoch},
        "on_test_end": {results},
        "on_predict_end": {()},
        "on_train_batch_end": {results},
        "on_test_batch_end": {results},
        "on_predict_batch_end": {("outputs",)},
    }


@pytest.mark.parametrize(
    ("method", "doing", "kind"),
    [("fit", "training", "train"), ("evaluate", "evaluating", "test"), ("predict", "predicting", "predict")],
)
def test_a_callback_stops_an_endless_loop(method, doing, kind):
    class Stopper(kdist.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.count = 0
            setattr(self, f"on_{kind}_batch_end", self.batch_end)

        def batch_end(self, batch, logs=None):
            self.count += 1
            setattr(self.model, f"stop_{doing}", self.count == 5)

    def endless():
        while True:
            x, y = np.ones((2, 2), np.float32), np.ones((2, 3), np.float32)
            yield (x,) if method == "predict" else (x, y)

    model, stopper = ones.model(), Stopper()
    result = getattr(model, method)(endless(), callbacks=[stopper], verbose=0)
    assert stopper.count == 5
    if method == "predict":
        assert result.shape == (10, 3)


def test_endless_training_and_validation_data():
    """Three steps of training, four of validation, an epoch."""

    class Count(kdist.callbacks.Callback):
        trained = tested = 0

        def on_train_batch_end(self, batch, logs=None):
            self.trained += 1

        def on_test_batch_end(self, batch, logs=None):
            self.tested += 1

    def endless():
        while True:
            yield np.ones((2, 2), np.float32), np.ones((2, 3), np.float32)

    count = Count()
    ones.model().fit(
        endless(),
        validation_data=endless(),
        steps_per_epoch=3,
        validation_steps=4,
        epochs=2,
        callbacks=[count],
        verbose=0,
    )
    assert (count.trained, count.tested) == (6, 8)


@pytest.mark.parametrize("how", [{}, {"run_eagerly": True}], ids=str)
def test_callbacks_change_the_state_between_batches(how):
    """At each of twelve batches a callback adds one to the weights of a model that does not learn."""

    class AddOne(kdist.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            state = self.model.state
            self.model.state = dataclasses.replace(state, params=jax.tree.map(lambda a: a + 1, state.params))

    x, y = ones.data(4)
    model = ones.model(optimizer=kdist.optimizers.SGD(0.0), **how)
    history = model.fit(x, y, 1, 3, 0, [AddOne()], validation_data=(x, y)).history
    np.testing.assert_array_equal(model.get_weights()[0], np.full((4, 3), 13.0))
    # In epoch e the weights are 1 + 4e, then 2 + 4e, ...; in its validation 5 + 4e.
    weights = 1 + np.arange(12).reshape(3, 4)
    np.testing.assert_allclose(history["loss"], ((4 * weights) ** 2).mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(history["val_loss"], (4.0 * np.array([5, 9, 13])) ** 2, rtol=1e-6)


def test_a_validation_that_fails_does_not_spoil_the_next():
    x, y = ones.data(16)
    model = ones.model(optimizer="adam", metrics=["mean_absolute_error"])
    model.fit(x, y, batch_size=4, validation_data=(x, y), verbose=0)
    with pytest.raises(ValueError, match="validation_data"):
        model.fit(x, y, batch_size=4, validation_data=(x.reshape(-1, 16, 4)[:, :, :3], y.reshape(-1, 16, 3)), verbose=0)
    history = model.fit(x, y, batch_size=4, validation_data=(x, y), verbose=0).history
    assert history["val_loss"] == pytest.approx([model.evaluate(x, y, verbose=0)[0]])


def test_the_state_is_current_at_the_end_of_an_epoch():
    """What a callback reads of the model then, by weights or by evaluating, is what training has come to."""

    class Read(kdist.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.kernels, self.steps = [], []

        def on_epoch_end(self, epoch, logs=None):
            self.kernels.append(self.model.get_weights()[0])
            self.steps.append(int(self.model.state.step))

    read = Read()
    model = ones.model()
    model.fit(*ones.data(40), 20, 3, 0, [read])
    assert read.steps == [2, 4, 6]
    for steps, kernel in zip(read.steps, read.kernels, strict=True):
        np.testing.assert_allclose(kernel, np.full((4, 3), ones.SHRINK**steps), rtol=1e-6)

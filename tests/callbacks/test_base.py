"""Which hooks are called, in which order, with which arguments: whole runs, compared hook by hook.

The data are such that every running mean is known: predictions are 0, targets 1, 2, 3, ...
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdist
from kdist.callbacks import Callback, CallbackList, History, ProgressBar
from kdist.errors import ConfigError

HOOKS = [f"on_{kind}_{when}" for kind in ("train", "test", "predict", "epoch") for when in ("begin", "end")] + [
    f"on_{kind}_batch_{when}" for kind in ("train", "test", "predict") for when in ("begin", "end")
]


class Recorder(Callback):
    """Records every hook: its name without "on_", then its arguments; logs as pairs, in their order."""

    def __init__(self):
        super().__init__()
        self.calls = []


class Looker(Recorder):
    """The same, and it says that it only looks."""

    async_safe = True


def _recording(hook):
    def record(self, *arguments):
        *position, logs = arguments
        values = [(name, round(float(np.mean(v)), 4)) for name, v in logs.items()]
        self.calls.append((hook.removeprefix("on_"), *position, values))

    return record


for _hook in HOOKS:
    setattr(Recorder, _hook, _recording(_hook))


@pytest.fixture(scope="module")
def models():
    """A compiled model for each steps_per_execution; predictions are 0 whatever is trained."""
    made = {}

    def get(k):
        if k not in made:
            model = kdist.Model((lambda key, x: {"w": jnp.zeros(())}, lambda p, x: x * p["w"]))
            distribution = kdist.DataParallel(devices=jax.devices()[:1])
            model.compile(
                kdist.optimizers.SGD(0.0), "mse", metrics=["mae"], steps_per_execution=k, distribution=distribution
            )
            made[k] = model
        return made[k]

    return get


X = np.ones((6, 1), np.float32)
Y = np.arange(1, 7, dtype=np.float32)[:, None]  # three batches of two
VX, VY = X[:3], np.array([[1.0], [3.0], [5.0]], np.float32)  # a batch of two and one of one

# Running means of the squares and of the numbers themselves, alphabetical.
TRAIN = [[("loss", 2.5), ("mae", 1.5)], [("loss", 7.5), ("mae", 2.5)], [("loss", 15.1667), ("mae", 3.5)]]
TEST = [[("loss", 5.0), ("mae", 2.0)], [("loss", 11.6667), ("mae", 3.0)]]
EPOCH = [*TRAIN[2], ("val_loss", 11.6667), ("val_mae", 3.0)]

ONE_BY_ONE = [
    ("train_batch_begin", 0, []),
    ("train_batch_end", 0, TRAIN[0]),
    ("train_batch_begin", 1, []),
    ("train_batch_end", 1, TRAIN[1]),
    ("train_batch_begin", 2, []),
    ("train_batch_end", 2, TRAIN[2]),
    ("test_begin", []),
    ("test_batch_begin", 0, []),
    ("test_batch_end", 0, TEST[0]),
    ("test_batch_begin", 1, []),
    ("test_batch_end", 1, TEST[1]),
    ("test_end", TEST[1]),
]
EPOCHS = {
    1: ONE_BY_ONE,
    "auto": ONE_BY_ONE,  # the callback watches batches
    # The end of a group that was cut short carries the index that it was planned to have, as in Keras.
    2: [
        ("train_batch_begin", 0, []),
        ("train_batch_end", 1, TRAIN[1]),
        ("train_batch_begin", 2, []),
        ("train_batch_end", 3, TRAIN[2]),
        ("test_begin", []),
        ("test_batch_begin", 0, []),
        ("test_batch_end", 1, TEST[1]),
        ("test_end", TEST[1]),
    ],
    7: [
        ("train_batch_begin", 0, []),
        ("train_batch_end", 6, TRAIN[2]),
        ("test_begin", []),
        ("test_batch_begin", 0, []),
        ("test_batch_end", 6, TEST[1]),
        ("test_end", TEST[1]),
    ],
}


@pytest.mark.parametrize("k", EPOCHS)
def test_fit_calls_every_hook_in_order_with_its_logs(k, models):
    recorder = Recorder()
    models(k).fit(
        X, Y, batch_size=2, epochs=2, shuffle=False, validation_data=(VX, VY), callbacks=[recorder], verbose=0
    )
    assert recorder.calls == [
        ("train_begin", []),
        ("epoch_begin", 0, []),
        *EPOCHS[k],
        ("epoch_end", 0, EPOCH),
        ("epoch_begin", 1, []),
        *EPOCHS[k],
        ("epoch_end", 1, EPOCH),
        ("train_end", EPOCH),
    ]


def test_epochs_without_validation_have_no_test_hooks(models):
    recorder = Recorder()
    models(2).fit(
        *(X, Y, 2, 3), shuffle=False, initial_epoch=1, validation_data=(VX, VY), validation_freq=3,
        callbacks=recorder, verbose=0,
    )  # fmt: skip
    assert recorder.calls == [
        ("train_begin", []),
        ("epoch_begin", 1, []),
        *EPOCHS[2][:4],
        ("epoch_end", 1, TRAIN[2]),
        ("epoch_begin", 2, []),
        *EPOCHS[2],
        ("epoch_end", 2, EPOCH),
        ("train_end", EPOCH),
    ]


@pytest.mark.parametrize("k", [1, 2])
def test_evaluate_calls_the_test_hooks_alone(k, models):
    recorder = Recorder()
    models(k).evaluate(VX, VY, batch_size=2, callbacks=[recorder], verbose=0)
    assert recorder.calls == EPOCHS[k][-(6 if k == 1 else 4) :]


@pytest.mark.parametrize(
    "k, batches", [(1, [(0, 0, [0, 1]), (1, 1, [2, 3]), (2, 2, [4])]), (2, [(0, 1, [0, 1, 2, 3]), (2, 3, [4])])]
)
def test_predict_calls_the_predict_hooks_with_the_outputs(k, batches, models):
    class Outputs(Recorder):
        outputs = []

        def on_predict_batch_end(self, batch, logs=None):
            self.calls.append(("predict_batch_end", batch))
            assert list(logs) == ["outputs"]
            self.outputs.append(logs["outputs"][:, 0].tolist())

    model, recorder = models(k), Outputs()
    model.build(X)
    model.set_weights([np.float32(1)])
    model.predict(np.arange(5, dtype=np.float32)[:, None], batch_size=2, callbacks=[recorder], verbose=0)
    model.set_weights([np.float32(0)])
    expected = [("predict_begin", [])]
    for first, last, _ in batches:
        expected += [("predict_batch_begin", first, []), ("predict_batch_end", last)]
    assert recorder.calls == [*expected, ("predict_end", [])]
    assert recorder.outputs == [rows for _, _, rows in batches]


def test_a_callback_that_only_looks_sees_every_step_once_and_does_not_slow_auto(models):
    looker = Looker()
    model = models("auto")
    model.fit(np.tile(X, (20, 1)), np.tile(Y, (20, 1)), batch_size=2, epochs=6, callbacks=[looker], verbose=0)
    ends = [call[1] for call in looker.calls if call[0] == "train_batch_end"]
    begins = [call[1] for call in looker.calls if call[0] == "train_batch_begin"]
    assert ends.count(59) == 6 and begins.count(0) == 6
    assert len(begins) == len(ends) < 6 * 60
    after = [0, *(0 if last == 59 else last + 1 for last in ends[:-1])]
    assert begins == after


def test_aliases_are_called_by_the_batch_hooks(models):
    calls = []

    class Old(Callback):
        def on_batch_begin(self, batch, logs=None):
            calls.append(("begin", batch))

        def on_batch_end(self, batch, logs=None):
            calls.append(("end", batch, sorted(logs)))

    models("auto").fit(X, Y, batch_size=3, callbacks=Old(), verbose=0)
    names = ["loss", "mae"]
    assert calls == [("begin", 0), ("end", 0, names), ("begin", 1), ("end", 1, names)]


def test_logs_are_shared_by_the_callbacks_of_a_hook_and_reach_the_history(models):
    class Adds(Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["extra"] = epoch

    recorder = Recorder()
    history = models(2).fit(X, Y, batch_size=2, epochs=2, callbacks=[Adds(), recorder], verbose=0)
    assert history.history["extra"] == [0, 1]
    ends = {call[0]: call[-1] for call in recorder.calls}
    assert ("extra", 1.0) in ends["epoch_end"] and ("extra", 1.0) not in ends["train_end"]


def test_the_model_and_the_parameters_are_there_before_the_first_hook(models):
    seen = []

    class Looks(Callback):
        def on_train_begin(self, logs=None):
            seen.append((self.model, dict(self.params)))

    model = models(2)
    model.fit(X, Y, batch_size=4, epochs=3, callbacks=Looks(), verbose=0)
    assert seen == [(model, {"verbose": 0, "epochs": 3, "steps": 2, "rows": 6})]


# Stopping ----------------------------------------------------------------------------------------


def stopper(flag, hook, at):
    class Stops(Recorder):
        pass

    record = getattr(Recorder, hook)

    def stop(self, *arguments):
        record(self, *arguments)
        if arguments[0] == at:
            setattr(self.model, flag, True)

    setattr(Stops, hook, stop)
    return Stops()


def test_stop_training_at_a_batch_still_validates_and_ends_the_epoch(models):
    stops = stopper("stop_training", "on_train_batch_end", 1)
    history = models(1).fit(
        X, Y, batch_size=2, epochs=5, shuffle=False, validation_data=(VX, VY), callbacks=stops, verbose=0
    )
    epoch = [*TRAIN[1], *EPOCH[2:]]
    assert stops.calls == [
        ("train_begin", []),
        ("epoch_begin", 0, []),
        *ONE_BY_ONE[:4],
        *ONE_BY_ONE[6:],
        ("epoch_end", 0, epoch),
        ("train_end", epoch),
    ]
    assert history.epoch == [0]


def test_stop_training_at_the_end_of_an_epoch(models):
    stops = stopper("stop_training", "on_epoch_end", 1)
    assert models(1).fit(X, Y, batch_size=2, epochs=5, callbacks=stops, verbose=0).epoch == [0, 1]
    # The wish does not outlive its fit.
    assert models(1).fit(X, Y, batch_size=2, epochs=2, verbose=0).epoch == [0, 1]


def test_stop_training_before_the_first_batch_stops_after_it(models):
    """As in Keras, which looks at the flag when an execution has ended."""
    stops = stopper("stop_training", "on_epoch_begin", 0)
    model = models(1)
    before = int(model.trainer.state.step)
    history = model.fit(X, Y, batch_size=2, epochs=5, callbacks=stops, verbose=0)
    assert int(model.trainer.state.step) == before + 1
    assert history.epoch == [0]


def test_stop_evaluating_returns_what_there_is(models):
    stops = stopper("stop_evaluating", "on_test_batch_end", 0)
    assert models(1).evaluate(VX, VY, batch_size=2, callbacks=stops, verbose=0) == [5.0, 2.0]
    assert stops.calls == [*ONE_BY_ONE[6:9], ("test_end", TEST[0])]
    assert models(1).evaluate(VX, VY, batch_size=2, verbose=0) == pytest.approx([35 / 3, 3.0])


def test_stop_predicting_returns_what_there_is(models):
    stops = stopper("stop_predicting", "on_predict_batch_end", 1)
    assert models(1).predict(X, batch_size=2, callbacks=stops, verbose=0).shape == (4, 1)
    assert stops.calls[-1] == ("predict_end", [])
    assert models(1).predict(X, batch_size=2, verbose=0).shape == (6, 1)


# The list ----------------------------------------------------------------------------------------


def test_the_list_flattens_and_adds_what_is_missing():
    a, b, c = Callback(), Callback(), Callback()
    assert CallbackList(a).callbacks == [a]
    assert CallbackList(None).callbacks == []
    assert CallbackList([a, (b, [c]), None]).callbacks == [a, b, c]
    made = CallbackList([a], add_history=True, add_progbar=True)
    assert [type(x) for x in made.callbacks] == [Callback, History, ProgressBar]
    assert made.history is made.callbacks[1]
    own = [History(), ProgressBar()]
    assert CallbackList(own, add_history=True, add_progbar=True).callbacks == own


def test_the_list_calls_in_order_with_one_logs_dict():
    calls = []

    class Numbered(Callback):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def on_epoch_end(self, epoch, logs=None):
            calls.append((self.number, epoch, id(logs)))

    logs = {}
    callbacks = CallbackList([Numbered(1), Numbered(2)])
    callbacks.append(Numbered(3))
    callbacks.on_epoch_end(4, logs)
    callbacks.on_epoch_end(5, logs=logs)
    assert calls == [(n, epoch, id(logs)) for epoch in (4, 5) for n in (1, 2, 3)]
    with pytest.raises(AttributeError, match="no_hook"):
        callbacks.no_hook()


def test_who_watches_and_who_listens():
    class Epochs(Callback):
        def on_epoch_end(self, epoch, logs=None):
            pass

    by_alias = type("ByAlias", (Callback,), {"on_batch_end": lambda self, batch, logs=None: None})()
    on_instance = Callback()
    on_instance.on_test_batch_end = lambda batch, logs=None: None
    table = [
        (Epochs(), {}),
        (Recorder(), {"train": (True, True), "test": (True, True), "predict": (True, True)}),
        (Looker(), {"train": (False, True), "test": (False, True), "predict": (False, True)}),
        (by_alias, {"train": (True, True)}),
        (on_instance, {"test": (True, True)}),
        (ProgressBar(), {"train": (False, True), "test": (False, True), "predict": (False, True)}),
        (History(), {}),
    ]
    for callback, expected in table:
        callbacks = CallbackList([callback])
        for kind in ("train", "test", "predict"):
            found = (callbacks.stride(kind) is not None, callbacks.listens(kind))
            assert found == expected.get(kind, (False, False)), callback


def test_a_list_of_the_users_own_is_used_as_it_is(models):
    recorder = Recorder()
    own = CallbackList([recorder])
    history = models(1).fit(X, Y, batch_size=2, callbacks=own, verbose=0)
    assert recorder.calls[0] == ("train_begin", []) and own.callbacks == [recorder]
    assert history.history == {}


def test_every_callback_is_closed_whatever_happens(models):
    closed = []

    class Closes(Callback):
        def __init__(self, name, error=None, hook=None):
            super().__init__()
            self.name, self.error, self.hook = name, error, hook

        def on_epoch_end(self, epoch, logs=None):
            if self.hook == "on_epoch_end":
                raise self.error

        def close(self):
            closed.append(self.name)
            if self.hook == "close":
                raise self.error

    models(1).fit(X, Y, batch_size=2, callbacks=[Closes("a"), Closes("b")], verbose=0)
    assert closed == ["a", "b"]
    closed.clear()
    with pytest.raises(KeyboardInterrupt):
        failing = Closes("b", KeyboardInterrupt(), "on_epoch_end")
        models(1).fit(X, Y, batch_size=2, callbacks=[Closes("a"), failing], verbose=0)
    assert closed == ["a", "b"]
    closed.clear()
    with pytest.raises(OSError, match="disk"):
        failing = Closes("a", OSError("disk"), "close")
        models(1).fit(X, Y, batch_size=2, callbacks=[failing, Closes("b")], verbose=0)
    assert closed == ["a", "b"]


@pytest.mark.parametrize("wrong", [Callback, "early", print, {"a": 1}, [Callback(), Callback], 3])
def test_what_is_no_callback_is_refused_before_the_first_step(wrong, models):
    model = models(1)
    model.build(X)
    before = int(model.trainer.state.step)
    with pytest.raises(ConfigError, match="kdist.callbacks.Callback.*Received"):
        model.fit(X, Y, batch_size=2, callbacks=wrong, verbose=0)
    assert int(model.trainer.state.step) == before

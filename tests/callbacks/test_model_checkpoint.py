"""ModelCheckpoint and OrbaxCheckpoint: what is saved when, under which name, and read back."""

import jax
import numpy as np
import pytest

import kdist
from kdist.callbacks import Callback, LambdaCallback, ModelCheckpoint, OrbaxCheckpoint
from kdist.checkpoint import load_state, series, writing
from kdist.errors import CheckpointError, CheckpointMismatchError, ConfigError


@pytest.fixture(scope="module")
def model(make_model, data):
    """A trained model; two batches of five make an epoch of its data."""
    model = make_model(metrics=["mae"])
    model.fit(*data, batch_size=5, verbose=0)
    return model


@pytest.fixture
def saved(model, tmp_path, monkeypatch):
    """``saved(filepath, name, values, **arguments)``: what a ModelCheckpoint saves for these logs, epoch by epoch."""

    def saved(filepath, name, values, **arguments):
        callback = ModelCheckpoint(tmp_path / filepath, **arguments)
        paths = []
        monkeypatch.setattr(callback, "_save", lambda path, position: paths.append(path.split("/")[-1]))
        callback.set_model(model)
        callback.on_train_begin()
        for epoch, value in enumerate(values):
            callback.on_epoch_begin(epoch)
            callback.on_epoch_end(epoch, {} if value is None else {name: value})
        return paths

    return saved


@pytest.mark.parametrize(
    ("arguments", "name", "values", "epochs"),
    [
        ({}, "val_loss", [1.0, 2.0], "12"),
        ({"monitor": "val_nothing"}, "val_loss", [1.0, 2.0], "12"),  # it is not asked for
        ({"save_best_only": True}, "val_loss", [2.0, 3.0, 1.0, 1.0], "13"),
        ({"save_best_only": True, "mode": "max", "monitor": "val_mae"}, "val_mae", [2.0, 3.0, 1.0, 4.0], "124"),
        ({"save_best_only": True, "monitor": "val_mae"}, "val_mae", [2.0, 3.0, 1.0], "13"),
        ({"save_best_only": True, "initial_value_threshold": 1.5}, "val_loss", [2.0, 1.0, 1.2], "2"),
        ({"save_best_only": True, "initial_value_threshold": 0}, "val_loss", [2.0, 1.0], ""),
        ({"save_best_only": True, "mode": "max", "initial_value_threshold": -0.01}, "val_loss", [0.0], "1"),
    ],
)
def test_which_epochs(saved, arguments, name, values, epochs):
    assert saved("{epoch}", name, values, **arguments) == list(epochs)


@pytest.mark.parametrize("value", [None, np.array([1.0, 2.0])])
def test_what_cannot_be_compared_is_saved_with_a_warning(saved, value):
    with pytest.warns(UserWarning, match="not available|can only monitor one number"):
        assert saved("{epoch}", "val_loss", [3.0, value, 4.0], save_best_only=True) == ["1", "2"]


def test_the_best_is_remembered_from_fit_to_fit(model, tmp_path, data):
    callback = ModelCheckpoint(tmp_path / "{epoch}", "loss", save_best_only=True)
    model.fit(*data, epochs=1, verbose=0, callbacks=callback)
    best, callback.best = callback.best, 0.0
    assert best > 0
    model.fit(*data, initial_epoch=1, epochs=2, verbose=0, callbacks=callback)
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("template", "logs", "batch", "path"),
    [
        ("runs/{epoch:02d}-{val_loss:.2f}", {"val_loss": 0.123}, None, "runs/03-0.12"),
        ("{epoch}-{batch:03d}", {}, 7, "3-008"),
        ("plain", {}, None, "plain"),
        ("{epoch}", {"epoch": 9.0}, None, "3"),
    ],
)
def test_templates(template, logs, batch, path):
    assert ModelCheckpoint(template).path(2, batch, logs) == path


@pytest.mark.parametrize(
    ("template", "logs"),
    [("{val_loss}", {}), ("{batch}", {}), ("{0}", {}), ("{loss:d}", {"loss": 0.5}), ("{f:.1f}", {"f": np.ones(2)})],
)
def test_a_template_that_cannot_be_filled_in(template, logs):
    for kind in (ConfigError, KeyError):
        with pytest.raises(kind) as error:
            ModelCheckpoint(template).path(0, None, logs)
        assert str(error.value).startswith(f"The path '{template}' cannot be filled in: ")
        assert "There are values for" in str(error.value)


@pytest.mark.parametrize(
    ("template", "arguments"), [("{batch}", {}), ("{0}", {}), ("{loss:d}", {"save_freq": 1}), ("{epoch", {})]
)
def test_a_template_that_cannot_be_filled_in_is_found_before_training(template, arguments, tmp_path, model, data):
    save, before = ModelCheckpoint(tmp_path / template, **arguments), int(model.state.step)
    with pytest.raises(ConfigError, match="cannot be filled in"):
        model.fit(*data, verbose=0, callbacks=save)
    assert int(model.state.step) == before


def test_a_field_that_only_another_callback_can_log_is_warned_of(tmp_path, model, data):
    log = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(mine=epoch))
    save = ModelCheckpoint(tmp_path / "{mine}-{val_loss:.0f}-{loss:.0f}")
    with pytest.warns(UserWarning, match="'mine'.*[Uu]nless a callback logs it"):
        model.fit(*data, verbose=0, callbacks=[log, save], validation_data=data)
    assert [p.name[0] for p in tmp_path.iterdir()] == ["0"]


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "m.weights.h5"])
def test_files_of_keras_are_refused(name):
    with pytest.raises(ConfigError, match="Checkpoints are Orbax directories, not files: give a path without a suffix"):
        ModelCheckpoint(name)


@pytest.mark.parametrize("value", ["batch", 0, False, 0.5])
@pytest.mark.parametrize("kind", [ModelCheckpoint, OrbaxCheckpoint])
def test_save_freq_is_checked(kind, value):
    with pytest.raises(ConfigError, match="Invalid value for save_freq"):
        kind("x", save_freq=value)


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("k", [1, "auto"])
def test_every_n_batches_over_epochs(make_model, data, tmp_path, weights_only, k):
    """15 batches are three epochs of five."""
    model = make_model(steps_per_execution=k)
    save = ModelCheckpoint(tmp_path / "epoch{epoch:02d}-{batch}", save_freq=15, save_weights_only=weights_only)
    model.fit(*data, batch_size=2, epochs=10, verbose=0, callbacks=save)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch03-5", "epoch06-5", "epoch09-5"]
    weights = model.get_weights()
    model.load_weights(tmp_path / "epoch09-5")
    assert any((a != b).any() for a, b in zip(weights, model.get_weights(), strict=True))


def test_every_batch_has_a_name_and_its_own_weights(make_model, data, tmp_path):
    model = make_model(kdist.optimizers.SGD(0.1, momentum=0.9))
    seen = {}
    keep = LambdaCallback(on_train_batch_end=lambda batch, logs: seen.update({len(seen) + 1: model.get_weights()}))
    save = ModelCheckpoint(tmp_path / "{epoch:02d}-{batch:02d}", save_freq=1)
    model.fit(*data, batch_size=5, epochs=2, verbose=0, callbacks=[save, keep])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["01-01", "01-02", "02-01", "02-02"]
    for number, (name, meta) in enumerate(
        {
            "01-01": {"epoch": 0, "step": 1},
            "01-02": {"epoch": 0, "step": 2},
            "02-01": {"epoch": 1, "step": 1},
            "02-02": {"epoch": 1, "step": 2},
        }.items()
    ):
        state, found = load_state(tmp_path / name, model.state)
        assert (found, int(state.step)) == (meta, number + 1)
        for a, b in zip(jax.tree.leaves(state.params), seen[number + 1], strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_best_of_batches(make_model, data, tmp_path):
    """In Keras the second comparison in the first epoch fails."""
    model = make_model("sgd")
    save = ModelCheckpoint(tmp_path / "{epoch}-{batch}", "loss", save_best_only=True, save_freq=1)
    losses = []
    watch = LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(logs["loss"]))
    model.fit(*data, batch_size=2, epochs=1, verbose=0, callbacks=[save, watch])
    expected = [i for i, loss in enumerate(losses) if loss < min(losses[:i], default=np.inf)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"1-{i + 1}" for i in expected]


def test_it_is_read_back(make_model, data, tmp_path):
    x, y = data
    model = make_model("adam")
    save = ModelCheckpoint(tmp_path / "deep" / "best", save_best_only=True)
    model.fit(x, y, validation_data=(x, y), epochs=2, verbose=0, callbacks=save)
    other = make_model("adam")
    other.build(x)
    other.load_weights(tmp_path / "deep" / "best")  # the weights of a whole state
    np.testing.assert_array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))
    state, meta = load_state(tmp_path / "deep" / "best", other.state)
    assert meta == {"epoch": 2, "step": 0} and int(state.step) == 2
    other.state = state
    for m in (model, other):
        m.fit(x, y, initial_epoch=2, epochs=4, verbose=0)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    wider = make_model("adam", units=2)
    wider.build(x)
    with pytest.raises(CheckpointMismatchError, match=r"expected float32\[3, 2\], found float32\[3, 1\]"):
        wider.load_weights(tmp_path / "deep" / "best")


def test_what_it_says(saved, capsys, tmp_path):
    saved("best", "val_loss", [2.0, 3.0, 1.0], save_best_only=True, verbose=1)
    path = tmp_path / "best"
    assert capsys.readouterr().out.splitlines() == [
        f"Epoch 1: val_loss improved from none to 2.00000, saving the model to {path}",
        "Epoch 2: val_loss did not improve from 2.00000",
        f"Epoch 3: val_loss improved from 2.00000 to 1.00000, saving the model to {path}",
    ]
    saved("all", "val_loss", [2.0], verbose=1)
    assert capsys.readouterr().out == f"Epoch 1: saving the model to {tmp_path / 'all'}\n"


def test_other_files_are_left_alone(model, data, tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(CheckpointError, match="holds files that are no checkpoint"):
        model.fit(*data, verbose=0, callbacks=ModelCheckpoint(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_without_a_batch_frequency_it_watches_no_batches():
    assert not {"on_train_batch_begin", "on_train_batch_end"} & set(vars(ModelCheckpoint("x")))
    assert ModelCheckpoint.on_train_batch_end is Callback.on_train_batch_end
    assert ModelCheckpoint("x", save_freq=7).batch_stride == 7


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ({}, ["3"]),
        ({"max_to_keep": 2}, ["2", "3"]),
        ({"max_to_keep": None}, ["0", "1", "2", "3"]),
        ({"save_freq": 3, "max_to_keep": None}, ["3", "6"]),
        ({"save_best_only": True, "monitor": "loss", "initial_value_threshold": 0.0}, []),
    ],
)
def test_orbax_checkpoint(model, data, tmp_path, arguments, numbers):
    for _ in range(2):  # into the same directory: in Keras "Step 0 already exists"
        model.fit(*data, batch_size=5, epochs=4, verbose=0, callbacks=OrbaxCheckpoint(tmp_path, **arguments))
        assert sorted(p.name for p in tmp_path.iterdir()) == numbers
    for number in numbers:
        load_state(tmp_path / number, model.state)


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [({}, ["0"]), ({"max_to_keep": 3}, ["0", "3", "4"]), ({"save_freq": 2}, ["2"])],
    ids=["epochs", "three", "batches"],
)
def test_a_shorter_run_into_the_same_directory_keeps_its_own(model, data, tmp_path, arguments, numbers):
    """What was written last is the newest, and not what a longer run left there under a greater number."""
    model.fit(*data, batch_size=5, epochs=5, verbose=0, callbacks=OrbaxCheckpoint(tmp_path, **arguments))
    model.fit(*data, batch_size=5, epochs=1, verbose=0, callbacks=OrbaxCheckpoint(tmp_path, **arguments))
    assert sorted(p.name for p in tmp_path.iterdir()) == numbers
    kept, _ = load_state(tmp_path / numbers[0], model.state)
    jax.tree.map(np.testing.assert_array_equal, kept.params, model.state.params)


def test_orbax_checkpoint_saves_nothing_where_the_log_is_missing(model, data, tmp_path):
    with pytest.warns(UserWarning, match="not available"):
        model.fit(*data, verbose=0, callbacks=OrbaxCheckpoint(tmp_path / "series", save_best_only=True))
    assert not (tmp_path / "series").exists()
    with pytest.raises(ConfigError, match="max_to_keep must be a positive number or None. Received: 0"):
        OrbaxCheckpoint(tmp_path, max_to_keep=0)


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ({"keep_best": True}, [1, 5]),
        ({"keep_best": True, "mode": "max", "max_to_keep": 2}, [3, 4, 5]),
        ({"keep_every": 2}, [0, 2, 4, 5]),
    ],
)
def test_what_orbax_checkpoint_keeps(model, data, tmp_path, arguments, numbers):
    values = iter([0.5, 0.1, 0.4, 0.9, 0.1, 0.2])
    log = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(mine=next(values)))
    save = OrbaxCheckpoint(tmp_path, "mine", **{"mode": "min", **arguments})
    model.fit(*data, batch_size=5, epochs=6, verbose=0, callbacks=[log, save])
    assert series.numbers(tmp_path) == numbers


def test_orbax_checkpoint_saves_what_was_there_in_the_background(make_model, data, tmp_path):
    """And fit does not end before it is complete."""
    model, seen = make_model("sgd"), []
    keep = LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(model.get_weights()))
    save = OrbaxCheckpoint(tmp_path, save_freq=1, max_to_keep=None, save_weights_only=True)
    model.fit(*data, batch_size=2, epochs=2, verbose=0, callbacks=[save, keep])
    assert series.numbers(tmp_path) == list(range(1, 11))
    for number, weights in enumerate(seen, 1):
        model.load_weights(tmp_path / str(number))
        for a, b in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("background", [True, False])
def test_a_save_of_orbax_checkpoint_that_fails_ends_the_fit(model, data, tmp_path, monkeypatch, background):
    def full(*arguments, **options):
        raise OSError("no space")

    monkeypatch.setattr(writing.Path, "write_text", full)
    save = OrbaxCheckpoint(tmp_path, save_on_background=background)
    with pytest.raises(
        CheckpointError, match="Cannot write training states to .*/0, on process 0 of host .*: no space"
    ):
        model.fit(*data, epochs=1, verbose=0, callbacks=save)

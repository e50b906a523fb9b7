"""BackupAndRestore: a run that died and is started again ends as if it had never died."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdist
from kdist import checkpoint
from kdist.callbacks import BackupAndRestore, Callback, TerminateOnNaN
from kdist.callbacks.variables import copied
from kdist.errors import CheckpointError, CheckpointMismatchError, ConfigError


class Dies(Callback):
    """Raises after so many epochs, or batches."""

    def __init__(self, epochs=None, batches=None):
        super().__init__()
        self.epochs, self.batches = epochs, batches
        self.seen = 0
        if batches is not None:
            self.on_train_batch_end = self.count

    def count(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.batches:
            raise RuntimeError("died")

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.epochs:
            raise RuntimeError("died")


@pytest.fixture(scope="module")
def models(make_model, data):
    """A compiled model and its first state, by `steps_per_execution`."""
    found = {}
    for k in (1, "auto"):
        model = make_model("adam", steps_per_execution=k)
        model.build(data[0])
        found[k] = model, copied(model.state.params), copied(model.state.opt_state)
    return found


@pytest.fixture
def run(models, data):
    """``run(callbacks)``: a fit of a fresh model, three batches an epoch, in another order each epoch."""

    def run(callbacks=(), epochs=5, k="auto"):
        model, params, opt_state = models[k]
        model.state = dataclasses.replace(
            model.state, step=jnp.int32(0), params=copied(params), opt_state=copied(opt_state)
        )
        return again(model, callbacks, epochs)

    def again(model, callbacks, epochs):
        history = model.fit(*data, batch_size=4, epochs=epochs, verbose=0, callbacks=callbacks)
        return copied((model.state.step, model.state.params, model.state.opt_state)), history

    run.again = lambda callbacks, epochs: again(models["auto"][0], callbacks, epochs)
    return run


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def straight(make_model, data):
    """A run that nothing happened to: its state, and its losses."""
    model = make_model("adam")
    losses = model.fit(*data, batch_size=4, epochs=5, verbose=0).history["loss"]
    return (model.state.step, model.state.params, model.state.opt_state), losses


DEATHS = [
    ("epoch", {"epochs": 2}),  # it died before the backup of the second epoch
    ("epoch", {"batches": 5}),
    ("epoch", {"batches": 2}),  # nothing was saved yet
    (1, {"batches": 2}),
    (2, {"batches": 5}),
    (3, {"batches": 4}),  # saved with the last batch of an epoch, before it was validated
    (4, {"epochs": 3}),
]


@pytest.mark.parametrize(
    ("save_freq", "dies", "k"),
    [
        pytest.param(*death, k, marks=[] if (i + j) % 2 else [pytest.mark.slow])
        for i, death in enumerate(DEATHS)
        for j, k in enumerate((1, "auto"))
    ],
)
def test_straight_is_killed_and_resumed(run, straight, tmp_path, save_freq, dies, k):
    with pytest.raises(RuntimeError, match="died"):
        run([Dies(**dies), BackupAndRestore(tmp_path / "backup", save_freq)], k=k)
    resumed, history = run([BackupAndRestore(tmp_path / "backup", save_freq)], k=k)
    assert_same(straight[0], resumed)
    assert resumed[0] == 15  # Keras trains the batches before the backup twice
    assert history.epoch == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(history.history["loss"], straight[1], rtol=1e-6)
    assert not (tmp_path / "backup").exists()


def test_a_fit_after_a_resumed_one_starts_where_it_says(run, tmp_path):
    """In Keras the restored epoch sticks to the model, and a later fit trains nothing."""
    with pytest.raises(RuntimeError, match="died"):
        run([Dies(epochs=2), BackupAndRestore(tmp_path / "backup")])
    _, history = run([BackupAndRestore(tmp_path / "backup")])
    assert history.epoch == [0, 1, 2, 3, 4]
    _, history = run.again([BackupAndRestore(tmp_path / "backup")], epochs=1)
    assert history.epoch == [0]


def test_the_same_object_again(run, straight, tmp_path):
    backup = BackupAndRestore(tmp_path / "backup", save_freq=2)
    with pytest.raises(RuntimeError, match="died"):
        run([backup, Dies(batches=8)])
    state, _ = run([backup])
    assert_same(state, straight[0])


@pytest.mark.parametrize(("double", "kept"), [(False, [9]), (True, [6, 9])])
def test_what_is_kept(run, tmp_path, double, kept):
    backup = BackupAndRestore(tmp_path / "backup", double_checkpoint=double, delete_checkpoint=False)
    run([backup], epochs=3)
    assert checkpoint.series.numbers(tmp_path / "backup") == kept
    _, history = run([backup], epochs=5)
    assert history.epoch == [0, 1, 2, 3, 4]


def damage(directory):
    for file in directory.rglob("*"):
        if file.is_file() and file.name != "_CHECKPOINT_METADATA":
            file.write_text("0")


def test_the_one_before_is_used_if_the_newest_is_damaged(run, straight, tmp_path):
    with pytest.raises(RuntimeError, match="died"):
        run([Dies(epochs=3), BackupAndRestore(tmp_path / "backup", double_checkpoint=True)])
    damage(tmp_path / "backup" / "6")
    with pytest.warns(UserWarning, match=r"cannot be read.* Step 3 is used, and \[6\] set aside"):
        state, history = run([BackupAndRestore(tmp_path / "backup", double_checkpoint=True)])
    assert history.epoch == [0, 1, 2, 3, 4]
    assert_same(state, straight[0])
    assert [p.name for p in (tmp_path / "backup").iterdir()] == ["6.corrupt"]


def test_a_damaged_one_alone_is_an_error(run, tmp_path):
    with pytest.raises(RuntimeError, match="died"):
        run([Dies(epochs=2), BackupAndRestore(tmp_path / "backup")])
    damage(tmp_path / "backup" / "3")
    for _ in range(2):  # it is not begun afresh without a word, the second time either
        with pytest.raises(CheckpointError, match="cannot be read"):
            run([BackupAndRestore(tmp_path / "backup")])
    assert (tmp_path / "backup" / "3").exists()


def test_the_backup_of_another_model_is_an_error(run, make_model, data, tmp_path):
    x, y = data
    with pytest.raises(RuntimeError, match="died"):
        run([Dies(epochs=3), BackupAndRestore(tmp_path / "backup", double_checkpoint=True)])
    with pytest.raises(CheckpointMismatchError, match=r"expected float32\[3, 2\], found float32\[3, 1\]"):
        make_model("adam", units=2).fit(
            x, np.hstack([y, y]), verbose=0, callbacks=BackupAndRestore(tmp_path / "backup")
        )


def test_only_the_backup_is_removed(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run([BackupAndRestore(tmp_path)], epochs=1)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_error_at_a_bad_loss_leaves_the_backup(make_model, tmp_path):
    x, y = np.ones((2, 1)), np.array([[1.0], [np.inf]])
    model = make_model()
    backup = BackupAndRestore(tmp_path / "backup", save_freq=1)
    with pytest.raises(RuntimeError, match="NaN or Inf loss encountered"):
        callbacks = [backup, TerminateOnNaN(True)]
        model.fit(x, y, epochs=2, batch_size=1, shuffle=False, verbose=0, callbacks=callbacks)
    assert checkpoint.series.numbers(tmp_path / "backup") == [1]


def test_parameters_that_are_nan_are_not_saved(make_model, tmp_path):
    x, y = np.ones((2, 1)), np.array([[1.0], [np.inf]])
    backup = BackupAndRestore(tmp_path / "backup", save_freq=1, delete_checkpoint=False)
    with pytest.warns(UserWarning, match="Epoch 1, step 2: parameters are NaN or infinite, so the backup before is"):
        make_model().fit(x, y, batch_size=1, shuffle=False, verbose=0, callbacks=backup)
    assert checkpoint.series.numbers(tmp_path / "backup") == [1]


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_directory_name(value):
    with pytest.raises(ConfigError, match="Empty backup_dir"):
        BackupAndRestore(value)


@pytest.mark.parametrize("value", ["batch", 0.15, False, 0])  # False: in Keras, at every batch
def test_save_freq_is_checked(value):
    with pytest.raises(ConfigError, match="Invalid value for save_freq"):
        BackupAndRestore("backup", save_freq=value)


def test_it_works_on_a_trainer_and_onto_other_devices(tmp_path, devices, data):
    loader = kdist.data.from_arrays(*data, batch_size=4)

    def run(count, callbacks):
        trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse", distribution=devices(count))
        return trainer.fit(trainer.init(data), loader, epochs=4, callbacks=callbacks)

    straight, _ = run(1, [])
    with pytest.raises(RuntimeError, match="died"):
        run(8, [BackupAndRestore(tmp_path / "backup"), Dies(epochs=2)])
    resumed, history = run(1, [BackupAndRestore(tmp_path / "backup")])
    assert history.epoch == [0, 1, 2, 3]
    for a, b in zip(jax.tree.leaves(straight.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_what_the_note_says_of_the_run(run, tmp_path):
    backup = BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    run([backup], epochs=1)
    note = checkpoint.RunCheckpoints(tmp_path / "backup").note()
    assert note["mesh"] == {"platform": "cpu", "processes": 1, "devices": 1, "replicas": 1, "zero_stage": 0}
    assert note["config"]["optimizer"]["class_name"] == "Adam" and note["config"]["loss"] == "mse"
    assert note["config"]["steps_per_execution"] == "auto"

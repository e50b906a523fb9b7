"""A training state in a directory: read back bit for bit onto any devices, and complete or not there at all."""

import dataclasses
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdist
from kdist.checkpoint import RunCheckpoints, load_state, load_weights, save_state, save_weights
from kdist.checkpoint import directory as directories
from kdist.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError

X, Y = np.ones((8, 3), np.float32), np.ones((8, 2), np.float32)


class Net(nn.Module):
    units: int = 2

    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(self.units)(x))


def trainer(distribution, units=2):
    return kdist.Trainer(Net(units), optimizer="adam", loss="mse", distribution=distribution)


@pytest.fixture
def state(devices):
    """A state with momentum, batch statistics and a typed key, none of them at zero."""
    state = trainer(devices(8)).init((X, Y))
    count = iter(range(100))
    fill = lambda a: jnp.full_like(a, next(count))  # noqa: E731
    return dataclasses.replace(state, step=jnp.int32(7), opt_state=jax.tree.map(fill, state.opt_state))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert not x.weak_type
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("count", [1, 8])
def test_round_trip_onto_any_devices(tmp_path, devices, state, count):
    save_state(tmp_path / "a" / "state", state, {"epoch": 3, "names": ["loss"], "none": None})
    like = trainer(devices(count)).init((X, Y))
    loaded, meta = load_state(tmp_path / "a" / "state", like)
    assert meta == {"epoch": 3, "names": ["loss"], "none": None}
    assert_same(loaded, state)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(like), strict=True):
        assert a.sharding == b.sharding
    assert isinstance(loaded, kdist.TrainState)


def test_it_is_trained_further(tmp_path, devices, state):
    save_state(tmp_path / "state", state, {})
    run = trainer(devices(8))
    loaded, _ = load_state(tmp_path / "state", run.init((X, Y)))
    loader = kdist.data.from_arrays(X, Y, batch_size=4)
    again, _ = run.fit(loaded, loader, epochs=1)
    straight, _ = trainer(devices(8)).fit(state, loader, epochs=1)
    assert int(again.step) == 9
    assert_same(again, straight)


def test_weights_are_read_from_a_state_but_no_state_from_weights(tmp_path, state):
    variables = {"params": state.params, **state.model_state}
    save_state(tmp_path / "state", state, {})
    assert_same(load_weights(tmp_path / "state", variables), variables)
    save_weights(tmp_path / "weights", variables)
    with pytest.raises(CheckpointError, match=r"There are no training states at .*: it holds weights only"):
        load_state(tmp_path / "weights", state)


def test_another_model_or_optimizer(tmp_path, devices, state):
    save_state(tmp_path / "state", state, {})
    wider = trainer(devices(8), units=5).init((X, Y))
    with pytest.raises(CheckpointMismatchError, match=r"kernel: expected float32\[3, 5\], found float32\[3, 2\]"):
        load_state(tmp_path / "state", wider)
    other = dataclasses.replace(state, opt_state=())
    with pytest.raises(CheckpointMismatchError, match=r"opt_state\S* expected nothing, found float32"):
        load_state(tmp_path / "state", other)


class Died(BaseException):
    """Stands for a kill: not an error that anybody handles."""


@pytest.mark.parametrize("call", ["save_checkpointables_async", "rename 0", "rename 1"])
def test_a_killed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch, state, call):
    from orbax.checkpoint import v1 as ocp

    path = tmp_path / "state"
    save_state(path, state, {"epoch": 1})
    with monkeypatch.context() as patch:
        if call == "save_checkpointables_async":

            def half(to, *args, **kwargs):
                half_done = to.with_name(f"{to.name}.orbax-checkpoint-tmp-0")
                half_done.mkdir()
                (half_done / "data").write_text("half")
                raise Died

            patch.setattr(ocp, call, half)
        else:
            renames, rename = iter(range(2)), os.rename

            def dies(self, target):
                if next(renames) == int(call[-1]):
                    raise Died
                rename(self, target)

            patch.setattr(directories.Path, "rename", dies)
        with pytest.raises(Died):
            save_state(path, state, {"epoch": 2})
    assert load_state(path, state)[1] == {"epoch": 1}
    # The next save finds its way, and cleans up.
    save_state(path, state, {"epoch": 3})
    assert load_state(path, state)[1] == {"epoch": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_directory_with_other_files_is_left_alone(tmp_path, state):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    for save in (lambda p: save_state(p, state, {}), lambda p: save_weights(p, {"params": state.params})):
        with pytest.raises(CheckpointError, match="holds files that are no checkpoint. Give one of its own"):
            save(tmp_path / "home")
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    save_state(tmp_path / "empty", state, {})
    assert load_state(tmp_path / "empty", state)[1] == {}


def test_what_is_damaged_says_so(tmp_path, state):
    save_state(tmp_path / "state", state, {})
    for file in (tmp_path / "state" / "training").rglob("*"):
        if file.is_file():
            file.write_text("0")
    with pytest.raises(CheckpointCorruptError, match="The training states at .* cannot be read"):
        load_state(tmp_path / "state", state)
    with pytest.raises(CheckpointError, match="it is not a directory"):
        load_state(tmp_path / "nowhere", state)


def test_a_state_that_a_killed_run_moved_away_is_read(tmp_path, state):
    """Read only: who restores may not write there."""
    with RunCheckpoints(tmp_path, keep=None) as run:
        run.save(state, {"epoch": 1})
    (tmp_path / "7").rename(tmp_path / ".7.old")
    found, meta = RunCheckpoints(tmp_path).restore(state)
    assert_same(found, state)
    assert meta == {"epoch": 1} and (tmp_path / ".7.old").is_dir() and not (tmp_path / "7").exists()

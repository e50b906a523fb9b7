"""Weights in a directory: written and read back exactly, and refused where they are of another model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kdist
from kdist.checkpoint import load_weights, save_weights
from kdist.errors import CheckpointError, CheckpointMismatchError

X = np.ones((8, 3), np.float32)


def linen(seed):
    return kdist.Sequential([nn.Dense(4), nn.BatchNorm(), nn.Dense(2)], seed=seed)


class Stack(nnx.Module):
    """A list of layers: its variables are keyed by numbers."""

    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(11)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


@pytest.mark.parametrize("make", [linen, lambda seed: kdist.Model(Stack(seed))], ids=["linen", "nnx"])
def test_round_trip(tmp_path, make):
    saved, loaded = make(1), make(2)
    for model in (saved, loaded):
        model.build(X)
    before = saved.get_weights()
    assert any((a != b).any() for a, b in zip(before, loaded.get_weights(), strict=True))
    saved.save_weights(tmp_path / "a" / "weights")  # parents are made
    loaded.load_weights(tmp_path / "a" / "weights")
    for a, b in zip(before, loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(saved.variables) == jax.tree.structure(loaded.variables)
    np.testing.assert_array_equal(saved.predict_on_batch(X), loaded.predict_on_batch(X))


TREE = {"params": {"w": jnp.arange(6.0).reshape(2, 3), "n": jnp.int32(3), "h": jnp.ones(2, jnp.bfloat16)}}


def test_dtypes_and_placement_are_kept(tmp_path, devices):
    save_weights(tmp_path / "w", TREE)
    place = devices(8).replicated
    like = jax.device_put(jax.tree.map(jnp.zeros_like, TREE), place)
    found = load_weights(tmp_path / "w", like)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(TREE), strict=True):
        assert a.dtype == b.dtype and a.sharding == place
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["int2", "int4", "float4_e2m1fn", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_small_numbers(tmp_path, dtype):
    tree = {"params": jnp.array([1, 0.5, 1, 2]).astype(dtype)}
    save_weights(tmp_path / "w", tree)
    found = load_weights(tmp_path / "w", jax.tree.map(jnp.zeros_like, tree))["params"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(tree["params"], np.float32))


@pytest.mark.parametrize("dtype", ["uint2", "uint4"])
def test_numbers_that_cannot_be_stored(tmp_path, dtype):
    message = f"Cannot write weights to {tmp_path}/w: weights.params is of {dtype}, which Orbax cannot store"
    with pytest.raises(CheckpointError, match=message):
        save_weights(tmp_path / "w", {"params": jnp.ones(3, dtype)})
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_replaced(tmp_path):
    save_weights(tmp_path / "w", TREE)
    save_weights(tmp_path / "w", {"params": {"v": jnp.zeros(1)}})
    assert load_weights(tmp_path / "w", {"params": {"v": jnp.ones(1)}})["params"]["v"] == 0


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": jnp.zeros((3, 2))}, r"params.w: expected float32\[3, 2\], found float32\[2, 3\]"),
        ({"w": jnp.zeros((2, 3), jnp.bfloat16)}, r"params.w: expected bfloat16\[2, 3\], found float32\[2, 3\]"),
        ({"v": jnp.zeros(1)}, r"params.v: expected float32\[1\], found nothing"),
        ({}, r"params.w: expected nothing, found float32\[2, 3\]"),
    ],
    ids=["shape", "dtype", "missing", "too many"],
)
def test_weights_of_another_model(tmp_path, like, message):
    save_weights(tmp_path / "w", TREE)
    rest = {} if not like else {k: v for k, v in TREE["params"].items() if "v" in like or k not in like}
    with pytest.raises(CheckpointMismatchError, match=message):
        load_weights(tmp_path / "w", {"params": {**rest, **like}})


def test_a_long_list_of_differences_is_cut(tmp_path):
    save_weights(tmp_path / "w", {f"layer_{i:02}": jnp.zeros(1) for i in range(15)})
    with pytest.raises(CheckpointMismatchError, match=r"15 of 15 arrays differ(.|\n)*layer_09(.|\n)*and 5 more"):
        load_weights(tmp_path / "w", {f"layer_{i:02}": jnp.zeros(2) for i in range(15)})


def test_no_weights(tmp_path):
    with pytest.raises(CheckpointError, match=f"There are no weights at {tmp_path}/nowhere: it is not a directory"):
        load_weights(tmp_path / "nowhere", TREE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="There are no weights at .* that Orbax can read"):
        load_weights(tmp_path / "empty", TREE)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "w").write_text("notes")
    with pytest.raises(CheckpointError, match="it is a file, not a directory"):
        save_weights(tmp_path / "w", TREE)
    with pytest.raises(CheckpointError, match="it is not a directory"):
        load_weights(tmp_path / "w", TREE)
    with pytest.raises(CheckpointError, match="Cannot write weights"):
        save_weights(tmp_path / "w" / "below", TREE)
    assert (tmp_path / "w").read_text() == "notes"

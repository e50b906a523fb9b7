"""A checkpoint from a stranger: nothing in it is executed, leads out of its directory or takes memory without limit."""

import json
import os
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdist.checkpoint import load_weights, reading, save_weights
from kdist.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError

TREE = {"params": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float32)}}
LIKE = jax.tree.map(jnp.zeros_like, TREE)


@pytest.fixture
def weights(tmp_path):
    save_weights(tmp_path / "w", jax.tree.map(jnp.asarray, TREE))
    return tmp_path / "w"


def rewrite(file, change):
    note = json.loads(file.read_text())
    change(note)
    file.write_text(json.dumps(note))


def is_intact(weights):
    """Whether all is read as it was written."""
    found = load_weights(weights, LIKE)
    return all(np.array_equal(found["params"][name], TREE["params"][name]) for name in TREE["params"])


def is_intact_or_refused(weights):
    """Whether nothing else is read than what was written."""
    try:
        return is_intact(weights)
    except CheckpointError:
        return True


def test_the_fixture(weights):
    assert is_intact(weights)


# What is executed --------------------------------------------------------------------------------


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A module that must not be imported."""
    (tmp_path / "planted.py").write_text("def handler(*args, **kwargs): pass\nclass Handler: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "planted"
    assert "planted" not in sys.modules


ORBAX = "orbax.checkpoint.experimental.v1._src.handlers"


@pytest.mark.parametrize(
    "handler",
    [
        "planted.Handler",
        "os.system",
        3,
        None,
        ["planted.Handler"],
        f"{ORBAX}.json_handler.JsonHandler",
        f"{ORBAX}.proto_handler.ProtoHandler",
        f"{ORBAX}.stateful_checkpointable_handler.StatefulCheckpointableHandler",
    ],
)
def test_handlers_by_name(weights, planted, handler):
    """Nothing is looked up by a name that a checkpoint gives."""
    rewrite(weights / "_CHECKPOINT_METADATA", lambda note: note["item_handlers"].update(weights=handler))
    assert is_intact_or_refused(weights)


@pytest.mark.parametrize("kind", ["planted.Handler", "string", "scalar", "int", "None", "Dict", "NamedTuple", 3])
def test_types_of_values_by_name(weights, planted, kind):
    def change(note):
        for value in note["tree_metadata"].values():
            value["value_metadata"]["value_type"] = kind

    rewrite(weights / "weights" / "_METADATA", change)
    assert is_intact_or_refused(weights)


def test_types_of_trees_by_name(weights, planted):
    rich = {"module_name": "planted", "class_name": "Handler", "module": "planted", "clz": "Handler"}
    rewrite(weights / "weights" / "_METADATA", lambda note: note.update(value_metadata_tree=rich, custom_metadata=rich))
    assert is_intact(weights)


PICKLE = b"cos\nsystem\n(S'exit 1'\ntR."


def test_a_pickle_is_no_note(weights):
    (weights / "_CHECKPOINT_METADATA").write_bytes(PICKLE)
    assert is_intact_or_refused(weights)
    (weights / "about" / "note.json").write_bytes(PICKLE)
    with pytest.raises(CheckpointCorruptError, match="their note is damaged"):
        load_weights(weights, LIKE)


# What leads out of the directory -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../secret", "/etc", "../w", "..", ""])
@pytest.mark.parametrize("in_files", [False, True], ids=["ocdbt", "files"])
def test_names_that_are_paths(weights, tmp_path, name, in_files):
    """Not even where the checkpoint says that arrays lie in files by their names."""
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "secret")}}
    tensorstore.open(spec, create=True, dtype="float32", shape=[3]).result().write(7).result()

    def change(note):
        leaf = note["tree_metadata"].pop("('params.b',)")
        leaf["key_metadata"][0]["key"] = name
        note["tree_metadata"][str((name,))] = leaf
        note["use_ocdbt"] = not in_files

    rewrite(weights / "weights" / "_METADATA", change)
    with pytest.raises(CheckpointCorruptError, match="in files of their own" if in_files else "weights is damaged"):
        load_weights(weights, LIKE)


@pytest.mark.parametrize("name", ["weights", "weights/d", "weights/_METADATA", "_CHECKPOINT_METADATA", "extra"])
@pytest.mark.parametrize("relative", [False, True])
def test_links_out_of_the_directory(weights, tmp_path, name, relative):
    outside, inside = tmp_path / "outside", weights / name
    if inside.exists():
        inside.rename(outside)
    else:
        outside.write_text("secret")
    inside.symlink_to(os.path.relpath(outside, inside.parent) if relative else outside)
    with pytest.raises(CheckpointCorruptError, match=f"{name} is a link out of the directory"):
        load_weights(weights, LIKE)


def test_links_within_and_to_the_directory_are_followed(weights, tmp_path):
    (weights / "weights" / "_METADATA").rename(weights / "weights" / "moved")
    (weights / "weights" / "_METADATA").symlink_to("moved")
    (tmp_path / "link").symlink_to(weights)
    assert is_intact(tmp_path / "link")


def test_a_link_to_itself(weights):
    (weights / "loop").symlink_to("loop")
    assert is_intact(weights)


# What takes memory -------------------------------------------------------------------------------

HUGE = [1_000_000, 1_000_000]


def change_array(weights, change):
    """Rewrites what the store itself says of an array, as only one who means it can."""
    import tensorstore

    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{weights}/weights/"}).result()
    note = json.loads(store.read(b"params.w/zarr.json").result().value)
    change(note)
    store.write(b"params.w/zarr.json", json.dumps(note).encode()).result()


def test_a_huge_shape(weights):
    change_array(weights, lambda note: note.update(shape=HUGE))
    with pytest.raises(CheckpointMismatchError, match=r"params.w: expected float32\[2, 3\], found float32\[1000000"):
        load_weights(weights, LIKE)
    with pytest.raises(CheckpointCorruptError, match="larger than the memory"):
        reading.read_array(reading.about(weights, kind="weights"), "weights", "params.w")


def test_a_huge_chunk_of_a_small_array(weights):
    """The store would take the memory for the chunk, and end the process where there is none."""

    def change(note):
        note["chunk_grid"]["configuration"]["chunk_shape"] = HUGE
        note["codecs"][0]["configuration"]["chunk_shape"] = HUGE

    change_array(weights, change)
    with pytest.raises(CheckpointCorruptError, match="weights is damaged"):
        load_weights(weights, LIKE)


@pytest.mark.parametrize(
    "name", ["_CHECKPOINT_METADATA", "weights/_METADATA", "weights/manifest.ocdbt", "about/note.json"]
)
def test_a_huge_note(weights, name):
    os.truncate(weights / name, 1 << 40)  # a hole: it takes no disk
    with pytest.raises(CheckpointCorruptError, match=f"{name} has 1,099,511,627,776 bytes"):
        load_weights(weights, LIKE)


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "weights/_METADATA", "about/note.json"])
def test_a_deep_note(weights, name):
    (weights / name).write_text("[" * 1_000_000)
    with pytest.raises(CheckpointCorruptError):
        load_weights(weights, LIKE)


# What is not what it should be -------------------------------------------------------------------


@pytest.mark.parametrize("value", [[1], "text", {"weights": [1]}, {"weights": {}}, {"weights": {"params.b": "x"}}, {}])
def test_fingerprints_that_are_none(weights, value):
    rewrite(weights / "about" / "note.json", lambda note: note.update(fingerprints=value))
    with pytest.raises(CheckpointCorruptError):
        load_weights(weights, LIKE)


def test_a_file_in_place_of_a_tree(weights):
    shutil.rmtree(weights / "weights")
    (weights / "weights").write_text("x")
    with pytest.raises(CheckpointError, match="There are no weights"):
        load_weights(weights, LIKE)

"""TensorBoard: what is in the event files, read back record by record."""

import builtins
import collections
import struct
import zlib

import numpy as np
import pytest

import kdist
from kdist.callbacks import CallbackList, TensorBoard
from kdist.callbacks.pictures import pictures
from kdist.errors import ConfigError


@pytest.fixture(autouse=True, scope="module")
def installed():
    """Imported here, not with the file, which every worker reads."""
    pytest.importorskip("tensorboardX")


def events(directory):
    """Every value in the event files of a run: ``{tag: {step: value}}``."""
    from tensorboardX.proto.event_pb2 import Event

    found = collections.defaultdict(dict)
    for file in sorted(directory.glob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:  # a record is its length, a checksum of it, the event, a checksum of that
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                found[value.tag][event.step] = getattr(value, kind)
            data = data[16 + length :]
    return dict(found)


def runs(directory):
    return {p.name: {tag: sorted(steps) for tag, steps in events(p).items()} for p in directory.iterdir()}


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(metrics=["mae"])


EPOCH = {"epoch_loss": [0, 1], "epoch_mae": [0, 1]}
RATE = {"epoch_learning_rate": [0, 1]}


def evaluation(steps):
    return {"evaluation_loss_vs_iterations": steps, "evaluation_mae_vs_iterations": steps}


def test_epochs(model, data, tmp_path):
    history = model.fit(*data, batch_size=5, epochs=2, validation_data=data, verbose=0, callbacks=TensorBoard(tmp_path))
    end = model.optimizer.iterations
    assert runs(tmp_path) == {"train": EPOCH | RATE, "validation": EPOCH | evaluation([end - 2, end])}
    for run, prefix in {"train": "", "validation": "val_"}.items():
        found = list(events(tmp_path / run)["epoch_loss"].values())
        np.testing.assert_allclose(found, history.history[f"{prefix}loss"], rtol=1e-6)
    np.testing.assert_allclose(list(events(tmp_path / "train")["epoch_learning_rate"].values()), 0.01)


def test_files_only_of_what_is_written(model, data, tmp_path):
    model.fit(*data, verbose=0, callbacks=TensorBoard(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["train"]
    model.evaluate(*data, verbose=0, callbacks=TensorBoard(tmp_path / "evaluate"))
    assert runs(tmp_path / "evaluate") == {"validation": evaluation([model.optimizer.iterations])}


def test_the_object_again(model, data, tmp_path):
    board = TensorBoard(tmp_path)
    for epochs in ((0, 1), (1, 2)):
        model.fit(*data, initial_epoch=epochs[0], epochs=epochs[1], verbose=0, callbacks=board)
    assert runs(tmp_path) == {"train": EPOCH | RATE}
    assert len(list((tmp_path / "train").iterdir())) == 2  # a file each, though they are of the same second


@pytest.mark.parametrize(
    ("k", "update_freq", "steps"),
    [
        ("auto", "batch", [1, 2, 3, 4, 5, 6]),
        ("auto", 2, [2, 4, 6]),
        ("auto", 4, [4]),
        ("auto", 9, []),
        (1, 2, [2, 4, 6]),
        (2, 4, [4, 8]),  # as in Keras, an execution that is cut short counts as a whole one
    ],
)
def test_batches(make_model, data, tmp_path, k, update_freq, steps):
    """Three batches an epoch, counted over two epochs."""
    model = make_model(steps_per_execution=k)
    board = TensorBoard(tmp_path, update_freq=update_freq, write_steps_per_second=True)
    model.fit(*data, batch_size=4, epochs=2, verbose=0, callbacks=board)
    found = runs(tmp_path)["train"]
    assert {tag: s for tag, s in found.items() if tag.startswith("batch_")} == (
        {"batch_loss": steps, "batch_steps_per_second": steps} if steps else {}
    )
    assert found["epoch_steps_per_second"] == [0, 1]
    speeds = events(tmp_path / "train")["epoch_steps_per_second"].values()
    assert all(speed > 0 for speed in speeds)


def test_batch_values_are_running_means(make_model, data, tmp_path):
    model = make_model(kdist.optimizers.SGD(0.0))
    model.build(data[0])
    errors = ((model.predict(data[0], verbose=0) - data[1]) ** 2).ravel()
    model.fit(*data, batch_size=5, shuffle=False, verbose=0, callbacks=TensorBoard(tmp_path, update_freq=1))
    found = events(tmp_path / "train")["batch_loss"]
    np.testing.assert_allclose([found[1], found[2]], [errors[:5].mean(), errors.mean()], rtol=1e-5)


def test_schedules_and_parts_have_their_rates(make_model, data, tmp_path):
    model = make_model(kdist.optimizers.SGD(lambda step: 0.1 / (step + 1)))
    model.fit(*data, epochs=2, verbose=0, callbacks=TensorBoard(tmp_path / "schedule"))
    rates = events(tmp_path / "schedule" / "train")["epoch_learning_rate"]
    np.testing.assert_allclose([rates[0], rates[1]], [0.05, 0.1 / 3], rtol=1e-6)
    parts = kdist.optimizers.OptimizerMap(kdist.optimizers.Adam(0.1), {".*bias": kdist.optimizers.SGD(1.0)})
    model = make_model(kdist.optimizers.MultiOptimizer(parts))
    model.fit(*data, verbose=0, callbacks=TensorBoard(tmp_path / "parts"))
    assert {"epoch_learning_rate_adam", "epoch_learning_rate_sgd"} <= set(runs(tmp_path / "parts")["train"])


def test_an_optax_transformation_has_no_rate_to_write(make_model, data, tmp_path):
    import optax

    model = make_model(optax.sgd(0.1))
    board = TensorBoard(tmp_path, write_steps_per_second=True)
    model.fit(*data, epochs=2, validation_data=data, verbose=0, callbacks=board)
    found = runs(tmp_path)
    assert found["train"] == {"epoch_loss": [0, 1], "epoch_steps_per_second": [0, 1]}
    assert found["validation"]["evaluation_loss_vs_iterations"] == [1, 2]


def test_vectors_have_a_curve_for_each_number(stand_in, tmp_path):
    class NoRate:
        iterations = 3

        def learning_rates(self):
            return {}

    stand_in.optimizer = NoRate()
    board = TensorBoard(tmp_path)
    board.set_model(stand_in)
    board.on_train_begin()
    board.on_epoch_end(7, {"f1": np.array([0.25, 0.5]), "val_f1": np.array([0.75])})
    board.close()
    assert {name: events(tmp_path / name) for name in ("train", "validation")} == {
        "train": {"epoch_f1/0": {7: 0.25}, "epoch_f1/1": {7: 0.5}},
        "validation": {"epoch_f1/0": {7: 0.75}},
    }


def test_histograms_and_images_of_weights(data, tmp_path):
    import flax.linen as nn

    model = kdist.Sequential([nn.Dense(4), nn.BatchNorm(), nn.Dense(1)])
    model.compile("sgd", "mse")
    board = TensorBoard(tmp_path, histogram_freq=2, write_images=True)
    model.fit(*data, epochs=3, verbose=0, callbacks=board)
    found = events(tmp_path / "train")
    weights = ["dense/kernel", "dense/bias", "batch_norm/scale", "dense_1/kernel", "batch_stats/batch_norm/mean"]
    for name in weights:
        for kind in ("histogram", "image"):
            assert sorted(found[f"{name}/{kind}"]) == [0, 2], name
    assert found["dense/kernel/histogram"][2].num == 12
    image = found["dense/kernel/image"][2]
    assert (image.height, image.width, image.colorspace) == (3, 4, 1)
    assert image.encoded_image_string.startswith(b"\x89PNG")


def decoded(picture):
    """The grey values of a PNG that was written without filters."""
    data, rows = picture.png[8:], b""
    while data:
        (length,) = struct.unpack(">I", data[:4])
        kind, body, checksum = data[4:8], data[8 : 8 + length], data[8 + length : 12 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", checksum)[0]
        if kind == b"IHDR":
            assert struct.unpack(">IIBBBBB", body) == (picture.width, picture.height, 8, 0, 0, 0, 0)
        rows += body if kind == b"IDAT" else b""
        data = data[12 + length :]
    values = np.frombuffer(zlib.decompress(rows), np.uint8).reshape(picture.height, picture.width + 1)
    assert (values[:, 0] == 0).all()
    return values[:, 1:].tolist()


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (np.array([[1.0, 2.0, 3.0]]), {"w": [[0, 127, 255]]}),
        (np.array([[0.0], [1.0]]), {"w": [[0, 255]]}),
        (np.array([[0, 1], [2, 3], [4, 5.0]]), {"w": [[0, 102, 204], [51, 153, 255]]}),
        (np.float32(3), {"w": [[0]]}),
        (np.array([7.0, 7.0]), {"w": [[0, 0]]}),
        (np.array([np.nan, 1.0, -np.inf, 2.0]), {"w": [[0, 0, 0, 255]]}),
        (np.arange(4.0).reshape(2, 1, 1, 2), {"w": [[0, 85], [170, 255]]}),
        (np.arange(8.0).reshape(2, 2, 1, 2), {"w/0": [[0, 72], [145, 218]], "w/1": [[36, 109], [182, 255]]}),
        (np.ones((2, 2, 2, 2)), {}),
    ],
)
def test_pictures(weight, expected):
    assert {name: decoded(picture) for name, picture in pictures("w", weight)} == expected


def test_the_trace_of_profile_batch(model, data, tmp_path):
    board = TensorBoard(tmp_path, profile_batch=(2, 2))
    model.fit(*data, batch_size=5, epochs=2, verbose=0, callbacks=board)
    assert len(list(tmp_path.glob("train/plugins/profile/*/*.xplane.pb"))) == 1


def test_what_it_watches():
    epochs, batches = CallbackList(TensorBoard("logs")), CallbackList(TensorBoard("logs", update_freq=10))
    assert not epochs.listens("train") and epochs.stride("train") is None
    assert batches.stride("train") == 10 and batches.reads_logs("train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"update_freq": "epochs"}, "Invalid value for update_freq"),
        ({"update_freq": 0}, "Invalid value for update_freq"),
        ({"profile_batch": (5, 2)}, "profile_batch must be a batch"),
        ({"embeddings_freq": 1}, "TensorBoard writes no embeddings"),
        ({"embeddings_metadata": "words.tsv"}, "TensorBoard writes no embeddings"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ConfigError, match=message):
        TensorBoard("logs", **arguments)


def test_without_tensorboardx(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs tensorboardX: pip install 'kdist\[tensorboard\]'"):
        TensorBoard("logs")


def test_other_processes_write_nothing(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr("kdist.callbacks.tensorboard.is_main_process", lambda: False)
    board = TensorBoard(tmp_path, histogram_freq=1)
    model.fit(*data, validation_data=data, verbose=0, callbacks=board)
    assert list(tmp_path.iterdir()) == []

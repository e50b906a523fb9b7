"""Keras's tests of its data adapters, told again for kdist's `fit`: every kind of data trains alike.

Twenty batches of five rows an epoch; the numbers are those of `ones`.  How batches are read, by which threads and how
far ahead, is tested in tests/data/.
"""

import jax.numpy as jnp
import numpy as np
import ones
import pytest

import kdist

X, Y = ones.data(100)
BATCHES = 20


class Sequence:
    """Batches in the manner of Keras's PyDataset, by duck type."""

    def __init__(self, *, endless=False, workers=1, fails_at=None, make=None):
        self.workers, self.use_multiprocessing, self.max_queue_size = workers, False, 10
        self.num_batches = None if endless else BATCHES
        self.fails_at, self.calls = fails_at, []
        self.make = make or (lambda index: (X[:5], Y[:5]))

    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        if index == self.fails_at:
            raise ValueError("what was to be expected")
        return self.make(index)

    def on_epoch_begin(self):
        self.calls.append("begin")

    def on_epoch_end(self):
        self.calls.append("end")


class Rows:
    """Rows by number."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index], Y[index]


def generate(count=None):
    """Batches, so many or without end."""
    while count is None or count > 0:
        yield X[:5], Y[:5]
        count = None if count is None else count - 1


def grain_map():
    """Rows through grain's MapDataset, batched."""
    grain = pytest.importorskip("grain", reason="grain's own data sets are taken as they are")
    return grain.MapDataset.source(Rows()).batch(5)


def grain_iterated():
    """The same without random access."""
    grain = pytest.importorskip("grain", reason="grain's own data sets are taken as they are")
    return grain.MapDataset.source(Rows()).to_iter_dataset().batch(5)


CLASS_WEIGHT = {0: 1.0, 1: 2.0}
KINDS = {
    "NumPy": (lambda: (X, Y), {"batch_size": 5}),
    "JAX": (lambda: (jnp.asarray(X), jnp.asarray(Y)), {"batch_size": 5}),
    "a sequence": (Sequence, {}),
    "a sequence in threads": (lambda: Sequence(workers=2), {}),
    "an endless sequence": (lambda: Sequence(endless=True), {"steps_per_epoch": BATCHES}),
    "an endless sequence in threads": (lambda: Sequence(endless=True, workers=2), {"steps_per_epoch": BATCHES}),
    "a generator": (lambda: generate(3 * BATCHES), {"steps_per_epoch": BATCHES}),
    "an endless generator": (generate, {"steps_per_epoch": BATCHES}),
    "a function": (lambda: lambda: generate(BATCHES), {}),
    "grain, by number": (grain_map, {}),
    "grain, iterated": (grain_iterated, {}),
}


@pytest.fixture(scope="module")
def model():
    return ones.model(metrics=["mean_squared_error"])


def restart(model):
    """The weights of the beginning."""
    model.build(X)
    model.set_weights([np.ones((ones.D, ones.C), np.float32)])


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_data(name, model):
    make, kwargs = KINDS[name]
    restart(model)
    data = make()
    data = data if isinstance(data, tuple) else (data,)
    history = model.fit(*data, epochs=3, verbose=0, **kwargs).history
    np.testing.assert_allclose(history["loss"], ones.losses(3, BATCHES), rtol=1e-4)
    np.testing.assert_allclose(history["mean_squared_error"], history["loss"], rtol=1e-5)


@pytest.mark.parametrize("name", ["a sequence", "a sequence in threads", "an endless sequence"])
def test_class_weights_of_data(name, model):
    """The second class has twice the weight: its rows count twice in the loss, and not in the metric."""
    make, kwargs = KINDS[name]
    restart(model)
    sequence = make()
    sequence.make = lambda index: (X[:5], np.eye(3, dtype=np.float32)[[1] * 5])
    history = model.fit(sequence, verbose=0, class_weight=CLASS_WEIGHT, **kwargs).history
    assert history["loss"][0] == pytest.approx(2 * history["mean_squared_error"][0], rel=1e-5)


@pytest.mark.parametrize("endless", [False, True])
def test_a_sequence_is_told_of_each_epoch_once(endless, model):
    """Keras tells it once more, when it builds the model."""
    sequence = Sequence(endless=endless)
    restart(model)
    model.fit(sequence, epochs=3, verbose=0, **({"steps_per_epoch": 10} if endless else {}))
    pairs = 1 if endless else 3  # without end there is one pass, which no epoch ends
    assert sequence.calls == (["begin", "end"] * pairs)[: 1 if endless else None]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_in_a_sequence_comes_out(workers, model):
    restart(model)
    with pytest.raises(ValueError, match="what was to be expected"):
        model.fit(Sequence(workers=workers, fails_at=2), verbose=0)


def test_batches_of_dicts():
    """A dict is inputs by name; targets are beside it."""

    def add(params, x):
        return params["scale"] * (x["x"] + x["y"])

    model = ones.model((lambda key, x: {"scale": jnp.ones(())}, add))
    sequence = Sequence(make=lambda index: ({"x": X[:5], "y": X[:5]}, 0 * X[:5]))
    assert model.evaluate(sequence, verbose=0) == pytest.approx(4.0)


@pytest.mark.parametrize("kind", ["sequence", "generator"])
def test_batches_of_other_shapes(kind):
    """Rows and columns may change, if the model takes them: here it averages over columns."""
    shapes = [(16, 4), (16, 5), (2, 6)]
    model = ones.model((lambda key, x: {"scale": jnp.ones(())}, lambda p, x: p["scale"] * x.mean(1, keepdims=True)))
    batches = [(np.full(shape, i + 1.0, np.float32), np.zeros((shape[0], 1))) for i, shape in enumerate(shapes)]
    sequence = Sequence(make=batches.__getitem__)
    sequence.num_batches = 3
    data = sequence if kind == "sequence" else (batch for batch in batches)
    assert model.evaluate(data, verbose=0) == pytest.approx((16 * 1 + 16 * 4 + 2 * 9) / 34)


def test_rows_keep_together_when_they_are_shuffled():
    """Inputs, targets and weights of several structures; all rows of a pass, in another order each."""
    seen = []

    def mismatch(y_true, y_pred):
        return abs(y_true - y_pred).mean(-1)

    still = kdist.optimizers.SGD(0.0)
    echo = (lambda key, x: {"one": jnp.ones(())}, lambda p, x: p["one"] * x["a"])
    model = ones.model(echo, optimizer=still, loss=mismatch)
    rows = np.arange(34, dtype=np.float32)[:, None]
    for shuffle in (True, "batch", False):
        seen.append(model.fit({"a": rows}, rows, 8, 2, 0, shuffle=shuffle, sample_weight=rows[:, 0]).history["loss"])
    assert seen == [[0.0, 0.0]] * 3

"""Arrays as a loader: conversions, errors, and an order that is a pure function of seed and epoch."""

import collections

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from kdist.data import Loader, arrays, from_arrays
from kdist.errors import ConfigError, DataError

X = np.arange(20, dtype=np.float32).reshape(10, 2)
Point = collections.namedtuple("Point", ["a", "b"])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.float64, np.float32),
        (np.float32, np.float32),
        (np.float16, np.float16),
        (ml_dtypes.bfloat16, ml_dtypes.bfloat16),
        (np.int64, np.int32),
        (np.uint64, np.uint32),
        (np.int8, np.int8),
        (np.uint8, np.uint8),
        (np.bool_, np.bool_),
        (np.complex128, np.complex64),
    ],
)
def test_dtypes(dtype, expected):
    assert from_arrays(np.ones((4, 2), dtype)).read(slice(None)).x.dtype == expected


def test_weights_are_float32():
    batch = from_arrays(X, X, np.arange(10)).read(slice(None))
    assert batch.weight.dtype == np.float32


@pytest.mark.parametrize(
    "x",
    [X, jnp.asarray(X), [X, X], (X, X), {"a": X, "b": [X, X]}, [X, None]],
    ids=["numpy", "jax", "list", "tuple", "dict", "with None"],
)
def test_structures_are_kept(x):
    batch = from_arrays(x, x).read(np.array([3, 0, 3]))
    assert type(batch.x) is (np.ndarray if hasattr(x, "dtype") else type(x))
    first = batch.x["a"] if isinstance(x, dict) else batch.x if hasattr(x, "dtype") else batch.x[0]
    np.testing.assert_array_equal(first, X[[3, 0, 3]])


def test_reading_rows_in_any_shape():
    loader = from_arrays(X, X[:, 0])
    rows = np.array([[1, 2, 3], [9, 9, 0]])
    batch = loader.read(rows)
    np.testing.assert_array_equal(batch.x, X[rows])
    np.testing.assert_array_equal(batch.y, X[rows, 0])
    assert batch.weight is None and batch.valid is None
    np.testing.assert_array_equal(loader.read(slice(2, 4)).x, X[2:4])


def test_sizes():
    loader = from_arrays(X, X[:, 0], np.ones(10), batch_size=4)
    assert isinstance(loader, Loader)
    assert (loader.num_rows, loader.num_steps, loader.batch_size) == (10, 3, 4)
    assert loader.nbytes == 10 * (2 + 1 + 1) * 4


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_the_order_is_a_permutation_and_a_pure_function_of_seed_and_epoch(epoch):
    order = from_arrays(X, seed=5).order(epoch)
    np.testing.assert_array_equal(np.sort(order), np.arange(10))
    other = from_arrays(X + 1, X, batch_size=3, seed=5)
    other.order(3)  # what was asked before makes no difference
    np.random.default_rng().permutation(10)
    np.testing.assert_array_equal(other.order(epoch), order)
    assert (order != from_arrays(X, seed=5).order(epoch + 1)).any()
    assert (order != from_arrays(X, seed=6).order(epoch)).any()


def test_without_shuffling_rows_keep_their_order():
    np.testing.assert_array_equal(from_arrays(X, shuffle=False).order(3), np.arange(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, X[:9]), "same number of rows. Received rows: x: 10; y: 9"),
        ((X, X, np.ones(3)), "x: 10; y: 10; sample_weight: 3"),
        (([X, X[:4]],), "x: 4, 10"),
        ((X[:0], X[:0]), "The data are empty: x has 0 rows"),
        ((None,), "x is required"),
        (({},), "x is required"),
        (([1.0, 2.0],), r"x is a list of numbers or strings, not of arrays. Pass np.asarray\(x\)"),
        (([],), "x is a list of nothing"),
        ((X, ["a", "b"]), "y is a list of numbers or strings"),
        (("text",), "x is a str, not an array"),
        ((iter([X]),), "not an array"),
        ((np.array(["a"] * 10),), "x has dtype <U1, which is not numeric"),
        ((np.array([None] * 10),), "x has dtype object"),
        ((np.array(["2020-01-01"] * 10, "datetime64[D]"),), r"dtype datetime64\[D\]"),
        (({"a": X, "b": np.array([b"x"] * 10)},), r"x\['b'\] has dtype \|S1"),
        (([X, np.float32(3)],), r"x\[1\] is a single number"),
        ((Point(X, X),), r"x is a namedtuple Point\('a', 'b'\)"),
        ((X, {"a": Point(X, X)}), r"y\['a'\] is a namedtuple"),
        ((np.full(10, 2**40),), f"x holds integers from {2**40} to {2**40}, which do not fit int32"),
        ((np.full(10, 2**40, np.uint64),), "do not fit uint32"),
    ],
    ids=lambda a: a if isinstance(a, str) else "",
)
def test_data_that_cannot_be_trained_on(arguments, message):
    with pytest.raises(DataError, match=message):
        from_arrays(*arguments)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8", None, True])
def test_batch_sizes(batch_size):
    with pytest.raises(ConfigError, match="batch_size must be a positive integer. Received: "):
        from_arrays(X, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [np.int64(4), 100])
def test_batch_sizes_that_are_taken(batch_size):
    assert from_arrays(X, batch_size=batch_size).batch_size == batch_size


@pytest.mark.parametrize("cache", ["always", None, 2])
def test_cache(cache):
    with pytest.raises(ConfigError, match="cache must be True, False or 'auto'"):
        from_arrays(X, cache=cache)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", "y", "sample_weight"])
def test_finite_values_are_checked_when_asked(where, bad):
    arrays = {"x": X.copy(), "y": X.copy(), "sample_weight": np.ones(10)}
    arrays[where][[4, 7]] = bad
    from_arrays(**arrays)
    with pytest.raises(DataError, match=f"{where} holds NaN or infinity in 2 of 10 rows; the first is row 4"):
        from_arrays(**arrays, check_finite=True)


def test_the_finite_check_names_the_leaf_and_passes_integers():
    with pytest.raises(DataError, match=r"x\['b'\]"):
        from_arrays({"a": np.arange(2), "b": np.array([0.0, np.nan])}, check_finite=True)
    assert from_arrays({"a": np.arange(2)}, check_finite=True).num_rows == 2


# Epochs of some steps, whole batches, and sparse matrices ----------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "steps", "windows"),
    [
        (2, 5, [(0, 10)]),
        (2, 2, [(0, 4), (4, 8), (8, 10)]),
        (3, 3, [(0, 9), (9, 10)]),
        (4, 1, [(0, 4), (4, 8), (8, 10)]),
        (4, 7, [(0, 10)]),  # more steps than there are
        (100, 1, [(0, 10)]),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_epochs_of_some_steps_share_a_pass(batch_size, steps, windows, shuffle):
    loader = from_arrays(X, batch_size=batch_size, steps=steps, shuffle=shuffle, seed=2)
    assert loader.num_steps == steps and loader.num_rows == 10
    for number in range(2):
        order = from_arrays(X, shuffle=shuffle, seed=2).order(number)
        for part, (start, stop) in enumerate(windows):
            np.testing.assert_array_equal(loader.order(number * len(windows) + part), order[start:stop])


def test_whole_batches_are_shuffled():
    loader = from_arrays(X, batch_size=3, shuffle="batch", seed=1)
    orders = [loader.order(epoch).tolist() for epoch in range(8)]
    for order in orders:
        whole = [order[i : i + 3] for i in (0, 3, 6)]
        assert sorted(whole) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]] and order[9:] == [9]  # the short one stays last
    assert len({tuple(order) for order in orders}) > 1
    assert loader.order(3).tolist() == orders[3]


@pytest.mark.parametrize(("arguments", "moves"), [({"steps": 2}, False), ({"batch_size": 20}, False), ({}, True)])
def test_whole_batches_that_stay_where_they_are(arguments, moves):
    """Keras does the same with steps; a single batch has nowhere to go."""
    loader = from_arrays(X, **{"batch_size": 2, "shuffle": "batch", **arguments})
    rows = np.concatenate([loader.order(epoch) for epoch in range(3)])
    assert (rows != np.resize(np.arange(10), len(rows))).any() == moves


@pytest.mark.parametrize("shuffle", ["rows", None, 2, "True"])
def test_what_is_no_way_to_shuffle(shuffle):
    with pytest.raises(ConfigError, match="shuffle must be True, False or 'batch'. Received: "):
        from_arrays(X, shuffle=shuffle)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "2"])
def test_what_is_no_number_of_steps(steps):
    with pytest.raises(ConfigError, match="steps must be a positive integer. Received: "):
        from_arrays(X, steps=steps)


class Sparse:
    """What of a scipy matrix is used; it has no `__array__`, and scipy is not needed."""

    def __init__(self, dense):
        self.dense, self.shape, self.dtype = dense, dense.shape, dense.dtype

    def toarray(self):
        return self.dense


@pytest.mark.parametrize("x", [Sparse(X), [Sparse(X), X], {"a": Sparse(X)}], ids=["alone", "in a list", "by name"])
def test_sparse_matrices_become_arrays(x):
    batch = from_arrays(x, Sparse(np.eye(10))).read(slice(None))
    for leaf in jax.tree.leaves(batch.x):
        assert type(leaf) is np.ndarray
        np.testing.assert_array_equal(leaf, X)
    assert batch.y.dtype == np.float32


def test_sparse_matrices_are_checked_as_arrays_are():
    with pytest.raises(DataError, match="x: 10; y: 9"):
        from_arrays(X, Sparse(X[:9]))
    with pytest.raises(DataError, match="x has dtype object"):
        from_arrays(Sparse(np.array([[None]] * 10)))


def test_a_large_file_of_64_bits_is_copied_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "LARGE_BYTES", 100)
    np.save(tmp_path / "x.npy", np.ones((16, 2)))
    np.save(tmp_path / "narrow.npy", np.ones((16, 2), np.float32))
    with pytest.warns(UserWarning, match=r"x is an array of 0 GB in a file, of float64, and is copied.*from_source"):
        found = from_arrays(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert found.arrays.x.dtype == np.float32
    mapped = np.load(tmp_path / "narrow.npy", mmap_mode="r")
    assert np.shares_memory(from_arrays(mapped).arrays.x, mapped)

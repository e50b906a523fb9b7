"""Rows in files: what is read is what was written, in any order, from any process; what is no data is refused."""

import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdist.data import NpyRows, ParquetRows, from_source
from kdist.data.files import decode_arrays, encode_arrays, forget, open_rows
from kdist.errors import DataError

TOOL = Path(__file__).parents[2] / "tools" / "write_array_record.py"
X = np.arange(24.0, dtype=np.float32).reshape(12, 2)


def save_shards(directory, array, at):
    directory.mkdir()
    for i, part in enumerate(np.split(array, at)):
        np.save(directory / f"{i:02}.npy", part)
    return directory


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 12), max_size=4), rows=st.lists(st.integers(0, 11), max_size=20))
def test_shards_are_one_array(tmp_path_factory, cuts, rows):
    """Wherever they are cut; shards of nothing too."""
    found = NpyRows(save_shards(tmp_path_factory.mktemp("rows") / "x", X, sorted(cuts)))
    assert len(found) == 12
    np.testing.assert_array_equal(found.gather(np.array(rows, int)), X[rows])
    assert all((found[row] == X[row]).all() for row in rows)


def test_columns_and_copies_of_rows(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", np.arange(12))
    rows = NpyRows(tmp_path / "x.npy", tmp_path / "y.npy")
    for made in (rows, pickle.loads(pickle.dumps(rows))):
        x, y = made[3]
        np.testing.assert_array_equal(x, X[3])
        assert y == 3
        x, y = made.gather(np.array([5, 0, 5]))
        np.testing.assert_array_equal(x, X[[5, 0, 5]])
        assert y.tolist() == [5, 0, 5]
    for row in (-1, 12):
        with pytest.raises(IndexError, match=f"row {row} of 12"):
            rows[row]


@pytest.mark.parametrize("mode", ["r", "r+", "c", None])
def test_forgetting_what_was_read_loses_nothing(tmp_path, mode):
    """What was written into an array that is mapped, or copied on write, stays there."""
    np.save(tmp_path / "x.npy", X)
    array = np.load(tmp_path / "x.npy", mmap_mode=mode)
    expected = X
    if mode != "r":
        array += 1
        expected = X + 1
    forget(array)
    forget(np.asarray(array)[3:, :1])
    np.testing.assert_array_equal(array, expected)


def columns_of_two_lengths(directory):
    np.save(directory / "x.npy", X)
    np.save(directory / "y.npy", X[:5])
    return NpyRows(directory / "x.npy", directory / "y.npy")


def two_kinds(directory):
    np.save(directory / "x.npy", X)
    (directory / "x.parquet").write_bytes(b"")
    return open_rows(directory)


def written(array, **arguments):
    def make(directory):
        np.save(directory / "x.npy", array, **arguments)
        return open_rows(directory / "x.npy")

    return make


def content(content):
    def make(directory):
        (directory / "x.npy").write_bytes(content)
        return open_rows(directory)

    return make


def of_shards(*arrays):
    def make(directory):
        for i, array in enumerate(arrays):
            np.save(directory / f"{i}.npy", array)
        return open_rows(directory)

    return make


BAD = {
    "no such path": (lambda d: open_rows(d / "absent"), "There are no data at .*absent: no such file or directory"),
    "no such column": (lambda d: NpyRows(d / "absent.npy"), "There are no .npy files at .*absent.npy"),
    "no column": (lambda d: NpyRows(), "Expected the path of a .npy file"),
    "an empty directory": (open_rows, "Expected .npy, .parquet or .array_record files.*Found: nothing"),
    "two kinds": (two_kinds, "of one kind, at .*Found: .npy, .parquet"),
    "another kind": (lambda d: open_rows(TOOL), "Expected .npy, .parquet or .array_record files.*Found: .py"),
    "objects": (written(np.array([{}, None]), allow_pickle=True), "x.npy cannot be read as a NumPy array.*objects"),
    "one number": (written(np.float32(3)), "x.npy holds no array with rows"),
    "no array": (content(b"nothing of NumPy's"), "x.npy cannot be read as a NumPy array"),
    "an empty file": (content(b""), "x.npy cannot be read as a NumPy array"),
    "shapes differ": (of_shards(X, X[:, :1]), r"shards must have rows alike.*0.npy are float32\[2\].*float32\[1\]"),
    "types differ": (of_shards(X, X.astype(int)), r"shards must have rows alike.*float32\[2\].*int64\[2\]"),
    "lengths differ": (columns_of_two_lengths, "the same number of rows. Received: 12 in .*x.npy, 5 in .*y.npy"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_data(tmp_path, name):
    make, message = BAD[name]
    with pytest.raises(DataError, match=message):
        make(tmp_path)


def test_a_file_that_was_cut_off(tmp_path):
    np.save(tmp_path / "x.npy", X)
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-8])
    with pytest.raises(DataError, match="x.npy cannot be read as a NumPy array"):
        open_rows(tmp_path)


def test_a_file_of_no_rows(tmp_path):
    np.save(tmp_path / "x.npy", X[:0])
    with pytest.raises(DataError, match="The data are empty: the NpyRows has no rows"):
        from_source(tmp_path)


@pytest.mark.parametrize("row", [(X[0],), (X[0], 3), (X, np.float32([0.5]), 1.5)], ids=len)
def test_rows_come_back_from_bytes(row):
    found = decode_arrays(encode_arrays(*row))
    assert len(found) == len(row)
    for a, b in zip(found, row, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.asarray(b).dtype


def test_objects_are_not_made_bytes_of():
    with pytest.raises(ValueError, match="[Oo]bject"):
        encode_arrays({"a": 1})
    with pytest.raises(ValueError, match="pickle"):
        decode_arrays(b"no array")


def test_the_writer_of_array_records(tmp_path, capsys):
    """Written by the tool, from shards; read by grain, in any order."""
    main = runpy.run_path(str(TOOL))["main"]
    save_shards(tmp_path / "x", X, [7])
    np.save(tmp_path / "y.npy", np.arange(12))
    output = tmp_path / "rows.array_record"
    main([str(output), str(tmp_path / "x"), str(tmp_path / "y.npy")])
    assert capsys.readouterr().out == f"wrote 12 rows to {output}\n"
    loader = from_source(output, transforms=[decode_arrays], batch_size=4, seed=1)
    batch = loader.read(loader.order(0))
    np.testing.assert_array_equal(batch.x, X[loader.order(0)])
    np.testing.assert_array_equal(batch.y, loader.order(0))
    with pytest.raises(SystemExit):
        main([str(tmp_path / "rows"), str(tmp_path / "x")])
    assert "must end in .array_record" in capsys.readouterr().err


def test_records_that_nobody_decodes(tmp_path):
    writer = pytest.importorskip("array_record.python.array_record_module", reason="needs array_record")
    made = writer.ArrayRecordWriter(str(tmp_path / "rows.array_record"), "group_size:1")
    for x in X:
        made.write(encode_arrays(x))
    made.close()
    with pytest.raises(DataError, match=r"x has dtype \|?S.*not numeric"):
        from_source(tmp_path).example()


def test_parquet(tmp_path):
    """Rows over files and groups of rows, from any thread, and from a copy."""
    pytest.importorskip("pyarrow", reason="pyarrow, which reads Parquet, is not installed")
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"x": X.tolist(), "y": list(range(12))})
    pyarrow.parquet.write_table(table.slice(0, 5), tmp_path / "0.parquet", row_group_size=2)
    pyarrow.parquet.write_table(table.slice(5), tmp_path / "1.parquet")
    rows = ParquetRows(tmp_path)
    for made in (rows, pickle.loads(pickle.dumps(rows)), open_rows(tmp_path)):
        assert len(made) == 12
        assert [made[row] for row in (11, 0, 4, 5)] == [{"x": X[n].tolist(), "y": n} for n in (11, 0, 4, 5)]
    with pytest.raises(IndexError, match="row 12 of 12"):
        rows[12]
    loader = from_source(rows, workers=2, batch_size=5, transforms=[lambda row: (np.float32(row["x"]), row["y"])])
    batch = loader.read(loader.order(0))
    np.testing.assert_array_equal(batch.x, X[batch.y])
    loader.close()


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="Parquet files need the package pyarrow: pip install pyarrow"):
        ParquetRows(tmp_path)

"""Writes the rows of ``.npy`` files to an ArrayRecord file, from which grain reads rows in any order.

python tools/write_array_record.py train.array_record images.npy labels.npy

The rows come back by ``kdist.data.from_source("train.array_record", transforms=[decode_arrays])``, with `decode_arrays`
of kdist.data.files.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter

from kdist.data.files import NpyRows, encode_arrays


def write(path: str | Path, rows: Iterable[Any]) -> int:
    """Writes rows, each an array or a tuple of arrays and numbers.

    Returns:
        How many there were.
    """
    writer = ArrayRecordWriter(str(path), "group_size:1")  # a row is read without its neighbours
    count = 0
    for row in rows:
        writer.write(encode_arrays(*row) if isinstance(row, tuple) else encode_arrays(row))
        count += 1
    writer.close()
    return count


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="the file to write; its name must end in .array_record")
    parser.add_argument(
        "columns", nargs="+", help="inputs, targets, weights: a .npy file or a directory of shards each"
    )
    given = parser.parse_args(arguments)
    if not given.output.endswith(".array_record"):
        parser.error(f"the name of the output must end in .array_record, or kdist does not know it: {given.output}")
    print(f"wrote {write(given.output, NpyRows(*given.columns))} rows to {given.output}")


if __name__ == "__main__":
    main()

"""A frame as a Parquet file, its pages made by compiled code: `write(frame, path)`, in place of Polars' writer.

`_pages.c` encodes the columns of a row group and says what the footer needs to know of them; this module compresses
the pages with zstd at level 1, cuts frames into row groups of a bounded size, and writes the schema. The same values
give the same bytes on every machine. What is written is read by any reader of Parquet: dictionaries, differences of
whole numbers, lengths of text and split decimals came into the format from 2013 to 2020; data pages are of version 2.

Where the code could not be compiled, or a frame has a type it does not know, `write` says so and nothing is written;
Polars' writer then does it. Both are held together by tests.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from tenon.ingest.parquet import BINARY, FALSE, I32, I64, LIST, MAGIC, STRUCT, Struct, packed

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

try:
    from tenon.ingest import _pages
except ImportError:  # no compiler at installation: Polars writes
    _pages = None  # type: ignore[assignment]

ZSTD, LEVEL = 6, 1
GROUP_ROWS = 1 << 17
GROUP_BYTES = 1 << 28
WRITER = b"tenon version 1"
# Physical type, converted type, and the number of the logical type with what it holds.
TYPES: dict[Any, tuple[int, int | None, tuple[int, Struct] | None]] = {
    pl.Boolean: (0, None, None),
    pl.Int64: (2, None, None),
    pl.Float64: (5, None, None),
    pl.Date: (1, 6, (6, {})),
    pl.Datetime("us"): (2, 10, (8, {1: (FALSE, False), 2: (STRUCT, {2: (STRUCT, {})})})),
    pl.String: (6, 0, (1, {})),
}


def known() -> bool:
    """Whether the compiled code is there."""
    return _pages is not None


def write(frame: pl.DataFrame, path: Path, *, size: int = 0) -> bool:
    """Write a frame as a Parquet file; False, with nothing written, where it cannot be done here.

    `size` is about how many bytes of text are in it; 0 has them counted.
    """
    if _pages is None or not frame.width or any(type_ not in TYPES for type_ in frame.dtypes):
        return False
    names = tuple(name.encode() for name in frame.columns)
    groups: list[bytes] = []
    place = len(MAGIC)
    with path.open("wb") as out:
        out.write(MAGIC)
        for part in _parts(frame, size or int(frame.estimated_size())):
            # A name with a zero byte in it cannot be told in C, and Polars ends the process then.
            columns = tuple(column.alias("").__arrow_c_stream__(None) for column in part.get_columns())
            body, group = _pages.encode(names, columns, _compressor(), ZSTD, place)
            out.write(body)
            groups.append(group)
            place += len(body)
        tail = packed(footer(frame.schema, frame.height, groups))
        out.write(tail + struct.pack("<I", len(tail)) + MAGIC)
    return True


def footer(schema: Any, rows: int, groups: list[bytes]) -> Struct:
    """Return the footer of a file of these columns as a tree; row groups are as they are written."""
    ordered = packed({1: (STRUCT, {})})
    return {
        1: (I32, 2),
        2: (LIST, (STRUCT, _elements(tuple(schema.items())))),
        3: (I64, rows),
        4: (LIST, (STRUCT, groups)),
        6: (BINARY, WRITER),
        7: (LIST, (STRUCT, [ordered] * len(schema))),
    }


@lru_cache(maxsize=4)
def _elements(schema: tuple[tuple[str, Any], ...]) -> list[bytes]:
    """Return the elements of a schema as they are written."""
    out = [packed({4: (BINARY, b"schema"), 5: (I32, len(schema))})]
    for name, type_ in schema:
        physical, converted, logical = TYPES[type_]
        element: Struct = {1: (I32, physical), 3: (I32, 1), 4: (BINARY, name.encode())}
        if converted is not None:
            element[6] = (I32, converted)
        if logical is not None:
            element[10] = (STRUCT, {logical[0]: (STRUCT, logical[1])})
        out.append(packed(element))
    return out


def _parts(frame: pl.DataFrame, size: int) -> list[pl.DataFrame]:
    """Cut a frame into row groups of a bounded number of rows and bytes."""
    step = max(1, min(GROUP_ROWS, frame.height * GROUP_BYTES // max(size, 1)))
    if frame.height <= step:
        return [frame.rechunk()] if frame.height else []
    return [frame.slice(begin, step).rechunk() for begin in range(0, frame.height, step)]


def _compressor() -> Callable[[memoryview], bytes]:
    inner = zstd.ZstdCompressor(LEVEL)
    return lambda data: bytes(inner.compress(data, zstd.ZstdCompressor.FLUSH_FRAME))

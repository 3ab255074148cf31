"""A dataset in pieces: row groups cut where the content says, each a Parquet file, so that equal ones are kept once.

Two versions of a dataset that share rows share the blobs of those rows, if both were cut at the same places. Cutting
every N rows does that for appended rows alone: one row more in the middle moves every cut after it. So a cut depends on
what stands before it: a row ends a piece when the hash of itself and the 31 rows before it is small (content-defined
chunking; Muthitacharoen, Chen, Mazieres, "A Low-bandwidth Network File System", SOSP 2001; the shortest piece, which
makes lengths even, is that of Xia et al., "FastCDC", USENIX ATC 2016). After a change the cuts find back to the old
ones within a piece or two, wherever it was, and both versions come to the same names without knowing of each other.

A piece holds 4,096 rows on average, and never less than half or more than four times that, so that a row added to a
million costs half a percent and Parquet still packs well (six percent more bytes than one file). That average doubles
after the first 8 million rows, again after 16 million more, and so on: rows that are appended never move a cut before
them, and a thousand million rows are fifteen thousand pieces rather than a quarter of a million.

The hash only chooses places, so it reads the first and last eight bytes of a text and not all of it; what a piece is
called is the SHA-256 of its bytes. It is our own (splitmix64) because Polars' hash changes between releases, and cuts
must not. Equal rows give equal bytes within one release of Polars; the next may pack them otherwise, and keeps them
once more.

Left out: pieces of columns as well as of rows, which would save what a new derived column costs and make as many times
more blobs as there are columns. Measured and left out: cuts every N rows (docs/data.md has the figures).
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.io.plugins import register_io_source

from tenon.errors import CorruptError, MissingError, UsageError, sentence
from tenon.ingest.parquet import join
from tenon.sketch.distinct import mixed
from tenon.store import Store
from tenon.store.blobs import flush_folder, leaving_nothing, words_of_disk

Codes = npt.NDArray[np.uint64]

ROWS = 4_096  # rows of a piece, on average, at the beginning of a dataset
GROW_ROWS = 8 * 1024 * 1024  # after so many rows pieces are twice as large, after twice as many more again
LARGEST_ROWS = 1024 * 1024
WIDTHS = (1, 2, 4, 8, 16)
WINDOW = 32  # rows whose content decides whether a piece ends after the last of them
BATCH_ROWS = 262_144  # rows that are hashed at once
WRITERS = 4  # pieces packed and flushed to the disk at once
READ_AT_ONCE = 16  # pieces read, checked and decoded at once
MARGIN = b"\x00" * 8
NULL = np.uint64(0x9E3779B97F4A7C15)
ODD = np.uint64(0xD1342543DE82EF95)  # a multiplier of good spectrum (Steele, Vigna 2021); overflow wraps, as it must


# ── cut ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def cut(batches: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yield the rows of the batches in order, in pieces; how they came in batches does not matter. Holds one batch."""
    held: pl.DataFrame | None = None
    codes = np.empty(0, dtype=np.uint64)
    before = np.zeros(WINDOW - 1, dtype=np.uint64)
    start = 0
    for batch in _gathered(batches):
        for some in batch.iter_slices(BATCH_ROWS):
            rows = np.concatenate([before, hashes(some)])
            before = rows[len(rows) - (WINDOW - 1) :]
            codes = np.concatenate([codes, _windows(rows)])
            held = some if held is None else pl.concat([held, some])
            while end := _end(codes, start):
                yield held[:end]
                held, codes, start = held[end:], codes[end:], start + end
        if held is None:
            held = batch  # without rows it still says which columns there are
    if held is not None and (held.height or not start):
        yield held


def _gathered(batches: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Put small batches together, so that thousands of them cost no more than a few large ones."""
    some: list[pl.DataFrame] = []
    gathered = 0
    for batch in batches:
        some.append(batch)
        gathered += batch.height
        if gathered >= BATCH_ROWS:
            yield pl.concat(some)
            some, gathered = [], 0
    if some:
        yield pl.concat(some)


def average(row: int) -> int:
    """Return how many rows a piece that begins at this row holds on average."""
    return min(LARGEST_ROWS, ROWS << ((1 + row // GROW_ROWS).bit_length() - 1))


def _end(codes: Codes, start: int) -> int:
    """Return how many rows the piece that begins at row `start` has; 0 when more rows must be seen to say."""
    rows = average(start)
    least, most = rows // 2, rows * 4
    # Half the average is certain; the other half is that of waiting for a hash below this bound.
    small = codes[least - 1 : most] < np.uint64(2**64 // (rows // 2))
    first = int(small.argmax()) if len(small) else 0
    if len(small) and small[first]:
        return least + first
    return most if len(codes) >= most else 0


def _windows(rows: Codes) -> Codes:
    """Return for each row after the first 31 the hash of it and the 31 before."""
    for width in WIDTHS:  # a polynomial of twice the length from two of this one
        rows = rows[width:] * np.uint64(pow(int(ODD), width, 2**64)) + rows[:-width]
    return mixed(rows)


def hashes(frame: pl.DataFrame) -> Codes:
    """Return a hash of each row that is the same in every release and on every machine."""
    whole = np.zeros(frame.height, dtype=np.uint64)
    for series in frame.get_columns():
        whole *= ODD
        whole += _bits(series)
    return mixed(whole)


def _bits(series: pl.Series) -> Codes:
    """Return 64 bits of each value: all of a number or time, both ends and the length of a text; nothing of a list."""
    kind = series.dtype
    if kind in (pl.String, pl.Categorical, pl.Enum, pl.Binary):
        found = _text_bits(series if kind == pl.Binary else series.cast(pl.String).cast(pl.Binary))
    elif kind.is_float() or kind.is_decimal() or kind in (pl.Int128, pl.UInt128):
        found = (series.cast(pl.Float64).fill_null(0.0).to_numpy() + 0.0).view(np.uint64)
    elif kind == pl.UInt64:
        found = series.fill_null(0).to_numpy()
    elif kind.is_integer() or kind.is_temporal() or kind == pl.Boolean:
        found = series.to_physical().cast(pl.Int64).fill_null(0).to_numpy().view(np.uint64)
    else:
        found = np.zeros(len(series), dtype=np.uint64)
    return np.where(series.is_null().to_numpy(), NULL, found) if series.null_count() else found


def _text_bits(texts: pl.Series) -> Codes:
    value = pl.col("text")

    def number(eight: pl.Expr) -> pl.Expr:
        return eight.bin.reinterpret(dtype=pl.UInt64, endianness="little")

    found = texts.alias("text").fill_null(b"").to_frame()
    first, last, size = found.select(
        number((value + pl.lit(MARGIN)).bin.head(8)).alias("first"),
        number((pl.lit(MARGIN) + value).bin.tail(8)).alias("last"),
        value.bin.size().cast(pl.UInt64).alias("size"),
    ).get_columns()
    bits: Codes = (first.to_numpy() * ODD + size.to_numpy()) * ODD + last.to_numpy()
    return bits


# ── keep ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def packed(rows: pl.DataFrame) -> bytes:
    """Return a frame as Parquet; made in memory, so that a full disk is met by the store, which says so."""
    buffer = io.BytesIO()
    rows.write_parquet(buffer, compression="zstd", compression_level=1)
    return buffer.getvalue()


def keep(store: Store, batches: Iterable[pl.DataFrame]) -> dict[str, Any]:
    """Put rows into the store in pieces; return `files`, their digests in order, and `pieces`, [rows, bytes] of each.

    Pieces that are there already are not written again. Killed in the middle it leaves whole pieces that no record
    names: the next attempt finds them, or a collection takes them.
    """
    files: list[str] = []
    pieces: list[list[int]] = []

    def put(rows: pl.DataFrame) -> tuple[str, list[int]]:
        data = packed(rows.rechunk())
        return store.blobs.put(data), [rows.height, len(data)]

    def settle(future: Future[tuple[str, list[int]]]) -> None:
        digest, size = future.result()
        files.append(digest)
        pieces.append(size)

    waiting: deque[Future[tuple[str, list[int]]]] = deque()
    with ThreadPoolExecutor(WRITERS) as threads:
        try:
            for rows in cut(batches):
                waiting.append(threads.submit(put, rows))
                if len(waiting) > 2 * WRITERS:
                    settle(waiting.popleft())
            while waiting:
                settle(waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()
    return {"files": files, "pieces": pieces}


# ── open ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def parquet(store: Store, digest: str) -> pl.DataFrame:
    """Return the frame kept under a digest; CorruptError when the bytes are not the ones that were put there."""
    return pl.read_parquet(store.blobs.read(digest))


def frame(store: Store, record: Mapping[str, Any]) -> pl.DataFrame:
    """Return all rows of a record's `files`, each checked against the digest that names it."""
    return pl.concat(list(_frames(store, record, None, None, None)), rechunk=True)


def scan(store: Store, record: Mapping[str, Any]) -> pl.LazyFrame:
    """Return the rows of a record's `files` as a lazy frame: what is not asked for is not read.

    Opening reads one piece, for its schema. Columns, filters and a limit reach the pieces; each piece that is read is
    checked first, and CorruptError or MissingError names one that is damaged or gone. Memory: 16 pieces at once.
    """

    def source(
        names: list[str] | None, predicate: pl.Expr | None, limit: int | None, _rows: int | None
    ) -> Iterator[pl.DataFrame]:
        yield from _frames(store, record, names, predicate, limit)

    schema = pl.read_parquet_schema(io.BytesIO(_read(store, record, 0)))
    return register_io_source(source, schema=schema, is_pure=True, explain_name=f"dataset {record.get('id', '')}")


def _frames(
    store: Store,
    record: Mapping[str, Any],
    names: list[str] | None,
    predicate: pl.Expr | None,
    limit: int | None,
) -> Iterator[pl.DataFrame]:
    """Yield rows of a few pieces at a time; `limit` counts rows before `predicate`, as Polars does."""
    at, count = 0, len(record["files"])
    with ThreadPoolExecutor(WRITERS) as threads:
        while at < count:
            # A look at the first rows reads one piece.
            step = range(at, min(count, at + (READ_AT_ONCE if limit is None else 1)))
            bodies = list(threads.map(lambda number: _read(store, record, number), step))
            lazy = pl.scan_parquet(bodies)
            if limit is not None:
                here = lazy.select(pl.len()).collect().item()
                lazy, limit = lazy.head(limit), max(0, limit - here)
            if predicate is not None:
                lazy = lazy.filter(predicate)
            yield (lazy if names is None else lazy.select(names)).collect()
            if limit == 0:
                return
            at = step.stop


def _read(store: Store, record: Mapping[str, Any], number: int) -> bytes:
    """Return the bytes of a piece, checked; the error for a damaged or lost one says whose rows it held."""
    digest = record["files"][number]
    try:
        return store.blobs.read(digest)
    except (CorruptError, MissingError) as error:
        raise type(error)(f"{error}; {_place(record, number)}") from error


def _place(record: Mapping[str, Any], number: int) -> str:
    sizes = record.get("pieces") or ()
    whose = f"{record.get('source', 'source')} {record.get('id', '')}".strip()
    place = f"it is piece {number + 1} of {len(record['files'])} of {whose}"
    if len(sizes) != len(record["files"]):
        return place
    first = sum(rows for rows, _ in sizes[:number])
    return f"{place}, rows {first + 1:,} to {first + sizes[number][0]:,}"


def write(store: Store, record: Mapping[str, Any], target: Path) -> int:
    """Write the rows of a record's `files` to .parquet, .csv or .jsonl, checked, whole or not at all; return the bytes.

    Parquet is the pieces joined byte for byte: no value is read. Memory: 16 pieces at once.
    """
    kinds = {".parquet": _join, ".csv": _csv, ".jsonl": _jsonl}
    if target.suffix.lower() not in kinds:
        raise UsageError(sentence("a file ending in .parquet, .csv or .jsonl", f"'{target.name}'", at=str(target)))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    with leaving_nothing(temporary), words_of_disk(target):
        kinds[target.suffix.lower()](store, record, temporary)
        size = temporary.stat().st_size
        temporary.replace(target)
        flush_folder(target.absolute().parent)
    return size


def _join(store: Store, record: Mapping[str, Any], target: Path) -> None:
    paths = []
    for number, digest in enumerate(record["files"]):
        _read(store, record, number)
        paths.append(store.blobs.path(digest))
    join(paths, target)


# Made as text first and written here: a full disk then says so by its number, which Polars' own writing loses.


def _csv(store: Store, record: Mapping[str, Any], target: Path) -> None:
    with target.open("wb") as file:
        for number, rows in enumerate(_frames(store, record, None, None, None)):
            file.write(rows.write_csv(include_header=not number).encode())
        file.flush()
        os.fsync(file.fileno())


def _jsonl(store: Store, record: Mapping[str, Any], target: Path) -> None:
    with target.open("wb") as file:
        for rows in _frames(store, record, None, None, None):
            file.write(rows.write_ndjson().encode())
        file.flush()
        os.fsync(file.fileno())

"""What one observation is, and how a batch of them is kept: Arrow IPC, zstd, one fixed set of types.

A service hands over plain Python columns whose types it does not watch (a feature may be all None in one batch, whole
numbers in the next, text in a third after a model change). Batches of one stream must read back as one frame, so the
types are settled here, on the way in and again on the way out:

    id, model, version, error     text            time     timestamp, UTC, microseconds: when the row happened
    score, latency_ms, usd, at    decimal         key_*    text, whole number or timestamp, as given: the row's identity
                                                  f_*      decimal, or text for a category

A value that does not fit its type becomes null rather than losing the batch. Rejected: Parquet (3 times slower to write
at a thousand rows, and a footer in every small batch); JSON (9 times larger).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from tenon.errors import CorruptError, InputError, sentence

STREAM = "observations"
TEXTS = ("id", "model", "version", "error")
DECIMALS = ("score", "latency_ms", "usd", "at")
NAMES = ("id", "time", "at", "model", "version", "score", "latency_ms", "error", "usd")
KEY, FEATURE = "key_", "f_"
Columns = Mapping[str, "Sequence[Any] | np.ndarray[Any, Any]"]
TIME = pl.Datetime("us")
# What reading foreign or damaged bytes, or columns of unequal length, may raise out of Polars; it has no common base.
POLARS_ERRORS = (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError, OSError)


def frame_of(columns: Columns) -> pl.DataFrame:
    """Build the frame of one batch, its types settled; raises InputError without `time` or when lengths differ."""
    if "time" not in columns:
        raise InputError(
            sentence("a column 'time' in a batch of observations", ", ".join(sorted(columns)) or "nothing")
        )
    try:
        return settled(pl.DataFrame([_series(name, values) for name, values in columns.items()]))
    except POLARS_ERRORS as error:
        raise InputError(
            sentence("columns of one length, of text, numbers or times", str(error), at="a batch of observations")
        ) from error


def settled(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with the types of the table above; a fixed column that is missing is added as null."""
    fixed = [_cast(frame, name) for name in NAMES]
    others = [_cast(frame, name) for name in frame.columns if name not in NAMES]
    return frame.select(fixed + others)


def encode(frame: pl.DataFrame) -> bytes:
    """Write the frame as Arrow IPC, zstd."""
    sink = io.BytesIO()
    frame.write_ipc(sink, compression="zstd")
    return sink.getvalue()


def decode(body: bytes, place: str) -> pl.DataFrame:
    """Read what `encode` wrote; raises CorruptError naming `place` when the bytes are something else."""
    try:
        return pl.read_ipc(io.BytesIO(body))
    except (*POLARS_ERRORS, pl.exceptions.PanicException) as error:  # Rust panics on some damage, and is no Exception
        raise CorruptError(
            sentence("an Arrow IPC batch", str(error), at=place, hint="tenon doctor checks the disk")
        ) from error


def stack(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Put frames of one stream under each other; a column that is decimal in one and text in another becomes text."""
    every = list(frames)
    if not every:
        return settled(pl.DataFrame({"time": pl.Series([], dtype=TIME)}))
    kinds: dict[str, pl.DataType] = {}
    mixed = set()
    for frame in every:
        for name, kind in frame.schema.items():
            if kinds.setdefault(name, kind) != kind:
                mixed.add(name)
    if mixed:
        every = [frame.with_columns(pl.col(mixed & set(frame.columns)).cast(pl.String)) for frame in every]
    return pl.concat(every, how="diagonal")


def seconds(when: datetime | float) -> float:
    """Return a moment as Unix seconds; a datetime without a zone is UTC, as everywhere in tenon."""
    if isinstance(when, datetime):
        return (when - (_EPOCH if when.tzinfo is None else _EPOCH_AWARE)).total_seconds()
    return float(when)


def moment(at_s: float) -> datetime:
    """Return Unix seconds as a UTC datetime without a zone."""
    return _EPOCH + timedelta(seconds=at_s)


# ── one column ───────────────────────────────────────────────────────────────────────────────────────────────────────

_EPOCH = datetime(1970, 1, 1)
_EPOCH_AWARE = datetime(1970, 1, 1, tzinfo=UTC)


def _series(name: str, values: Sequence[Any] | np.ndarray[Any, Any]) -> pl.Series:
    """Build one column: by the quick way when the values are of one type, and otherwise as text."""
    if isinstance(values, np.ndarray):
        return pl.Series(name, values)
    listed = values if isinstance(values, list) else list(values)
    try:
        return pl.Series(name, listed, strict=True)
    except (TypeError, pl.exceptions.PolarsError, OverflowError):
        pass
    if name in DECIMALS or all(value is None or isinstance(value, (bool, int, float)) for value in listed):
        return pl.Series(name, [_decimal(value) for value in listed], dtype=pl.Float64)
    return pl.Series(name, [None if value is None else str(value) for value in listed], dtype=pl.String)


def _decimal(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _cast(frame: pl.DataFrame, name: str) -> pl.Expr:
    """Settle the type of one column, by its name first and what it holds second."""
    if name not in frame.columns:
        kind: Any = TIME if name == "time" else pl.Float64 if name in DECIMALS else pl.String
        return pl.lit(None, dtype=kind).alias(name)
    held, column = frame.schema[name], pl.col(name)
    if name == "time":
        return as_time(column, held)
    if name in TEXTS:
        return column.cast(pl.String, strict=False)
    if name in DECIMALS:
        return column.cast(pl.Float64, strict=False)
    if name.startswith(FEATURE):
        return column.cast(
            pl.Float64 if held.is_numeric() or held in (pl.Boolean, pl.Null) else pl.String, strict=False
        )
    if held.is_integer():
        return column.cast(pl.Int64, strict=False)
    return as_time(column, held) if held.is_temporal() else column.cast(pl.String, strict=False)


def as_time(column: pl.Expr, held: pl.DataType) -> pl.Expr:
    """Read a time: a timestamp in any zone and unit, a date, ISO text, or Unix seconds; what is none becomes null."""
    if isinstance(held, pl.Datetime):
        unzoned = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if held.time_zone else column
        return unzoned.cast(TIME, strict=False)
    if held == pl.String:
        return column.str.strip_suffix("Z").str.to_datetime(time_unit="us", strict=False)
    if held.is_numeric():
        return (column * 1e6).cast(pl.Int64, strict=False).cast(TIME, strict=False)
    return column.cast(TIME, strict=False)

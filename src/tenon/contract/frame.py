"""Which Polars type stands for which column type, and a frame brought to exactly those types.

The six column types of a contract have one Polars type each (`DTYPES`), so that an expression means the same wherever a
frame came from. A Parquet file of another program may hold narrower integers, nanoseconds, a time zone or categories:
`normal` widens them without loss, or leaves the column as it is for the contract check to name.
"""

from __future__ import annotations

from typing import Any, TypeVar

import polars as pl

from tenon.contract.column import ColumnType

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)
DTYPES: dict[str, Any] = {
    "int": pl.Int64(),
    "float": pl.Float64(),
    "text": pl.String(),
    "bool": pl.Boolean(),
    "date": pl.Date(),
    "timestamp": pl.Datetime("us"),
}


def type_of(dtype: Any) -> ColumnType | None:
    """Return the column type that holds values of a Polars type without loss, or None when there is none."""
    if dtype.is_integer():
        return "int"
    if dtype.is_float() or dtype.is_decimal():
        return "float"
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return "text"
    if dtype == pl.Boolean:
        return "bool"
    return "date" if dtype == pl.Date else "timestamp" if dtype == pl.Datetime else None


def types_of(frame: pl.DataFrame | pl.LazyFrame) -> dict[str, str]:
    """Return column name -> column type for `sql.parse`; a column of another type (a list, say) is left out."""
    found = {name: type_of(dtype) for name, dtype in frame.collect_schema().items()}
    return {name: kind for name, kind in found.items() if kind is not None}


def normal(frame: Frame) -> Frame:
    """Return the frame with every column in its contract type; columns that already are cost nothing.

    A time zone is converted to UTC and dropped; nanoseconds are cut to microseconds; an unsigned integer too large for
    64 signed bits becomes null.
    """
    changes = []
    for name, dtype in frame.collect_schema().items():
        kind = type_of(dtype)
        if kind is None or dtype == DTYPES[kind]:
            continue
        column = pl.col(name)
        if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        changes.append(column.cast(DTYPES[kind], strict=False))
    return frame.with_columns(changes) if changes else frame

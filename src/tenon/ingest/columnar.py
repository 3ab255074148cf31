"""Parquet inputs through the same door: types are known, so columns are only brought to the plan's types.

Ranges are row ranges. Nested columns become JSON text, other numbers the widest of their kind, times UTC microseconds.
A value that does not fit a declared type is a misfit as in text: its row goes to quarantine as JSON, or the cell
becomes null. The account counts bytes of the file, shared out evenly over its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from tenon.contract.column import ColumnType
from tenon.errors import InputError, sentence
from tenon.ingest.plan import FilePlan, Plan, reading_for
from tenon.ingest.profile import Profile
from tenon.ingest.stream import Input
from tenon.ingest.values import DISTINCT, POLARS, Reading, cast, learn

ROWS = 1 << 18  # rows in a range


def plan_of(source: Input) -> FilePlan:
    """Read names and types from the footer."""
    with _sound(source.label):
        schema = pl.scan_parquet(source.path).collect_schema()
    profiles = tuple(Profile(reading=Reading(type=_type(kind)), cells=1) for kind in schema.dtypes())
    return FilePlan(label=source.label, format="parquet", header=tuple(schema.names()), profiles=profiles)


@contextmanager
def _sound(label: str) -> Iterator[None]:
    """Tell a Parquet file that is damaged in words; Polars panics over some."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, OverflowError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(sentence("a Parquet file", said, at=label, hint="fetch or write the file again")) from error


def _type(kind: Any) -> ColumnType:
    if kind.is_integer():
        return "int"
    if kind.is_float() or kind.is_decimal():
        return "float"
    if kind == pl.Boolean:
        return "bool"
    if kind == pl.Date:
        return "date"
    return "timestamp" if isinstance(kind, pl.Datetime) else "text"


def jobs(
    file: FilePlan, one: Callable[[int, int, Any], dict[str, Any]], source: Input, view: Any
) -> Iterator[dict[str, Any]]:
    """Yield ranges of rows."""
    with _sound(source.label):
        height = int(pl.scan_parquet(source.path).select(pl.len()).collect().item())
    for begin in range(0, max(height, 1), ROWS):
        yield {**one(begin, min(begin + ROWS, height), view), "height": height}


def read(job: dict[str, Any], plan: Plan, file: FilePlan) -> tuple[pl.DataFrame, pl.DataFrame, list[str], int]:
    """Return a range's rows as output columns, those that do not fit, the column each misses, and the range's bytes."""
    path = Path(job["view"]["path"])
    with _sound(file.label):
        frame = pl.scan_parquet(path).slice(job["begin"], job["end"] - job["begin"]).collect()
    size, height = job["view"]["size"], max(job["height"], 1)
    share = size * job["end"] // height - size * job["begin"] // height if job["height"] else size
    columns, bad, why = [], pl.repeat(False, frame.height, eager=True, dtype=pl.Boolean), [""] * frame.height
    targets = {target: number for number, target in enumerate(file.targets)}
    for number, output in enumerate(plan.outputs):
        type_: Any = pl.String if plan.text else POLARS[output.type]
        if number not in targets:
            columns.append(pl.Series(output.name, [None] * frame.height, dtype=type_))
            continue
        column = frame.to_series(targets[number])
        values = _values(column, file.readings[targets[number]], type_)
        misfit = column.is_not_null() & values.is_null()
        if misfit.any() and plan.policy == "row" and not plan.text:
            for row in misfit.arg_true().to_list():
                why[row] = why[row] or output.name
            bad = bad | misfit
        columns.append(values.alias(output.name))
    out = pl.DataFrame(columns)
    return out.filter(~bad), frame.filter(bad), [name for name in why if name], share


def _values(column: pl.Series, reading: Reading, type_: Any) -> pl.Series:
    if column.dtype.is_nested():
        column = pl.Series(column.name, [_json(value) for value in column.to_list()], dtype=pl.String)
    if column.dtype == pl.Categorical or column.dtype == pl.Enum:
        column = column.cast(pl.String)
    if isinstance(column.dtype, pl.Datetime):
        if column.dtype.time_zone:
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        column = column.cast(pl.Datetime("us"))
    if column.dtype == pl.String and type_ != pl.String:
        learnt = learn(column.drop_nulls().head(DISTINCT).to_list())
        return cast(column, replace(reading_for(learnt, reading.type, declared=True), null=reading.null)).values
    if column.dtype == pl.Float64 and type_ == pl.Int64:
        return pl.select(pl.when(column.floor() == column).then(column)).to_series().cast(pl.Int64, strict=False)
    if column.dtype == pl.Binary:
        return pl.Series(column.name, [v.hex() if v is not None else None for v in column.to_list()], dtype=pl.String)
    return column.cast(type_, strict=False)


def _json(value: Any) -> str | None:
    import json

    return None if value is None else json.dumps(value, default=str, ensure_ascii=False)

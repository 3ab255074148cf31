"""Rows of a source become facts: typed columns, instants, and the SQL values that features need of them.

The matrix and the online state both start from the table that `fact_table` makes, so a value is computed once, by the
same expression, wherever it is used. A fact is identified by its source's key and its time; of several versions of one
fact the last counts. A number that is not finite is missing, and a negative zero is a zero, so that equal values have
equal bits.

Columns of a fact table: ``k_<column>`` for what identifies and groups facts, ``_time`` in microseconds, ``_known`` as
an instant in half microseconds (null: it never became known), and one column for each argument.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from tenon.contract import sql
from tenon.contract.column import Source
from tenon.contract.frame import DTYPES, normal, type_of
from tenon.errors import InputError, nearest, sentence
from tenon.feature.plan import Argument, History, Table, types_of


def typed(frame: pl.DataFrame, source: Source, names: Iterable[str]) -> pl.DataFrame:
    """Return the named columns in their declared types; InputError names one that is missing or of another type."""
    types = types_of(source)
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in frame.columns:
            raise InputError(
                sentence(
                    f"the column '{name}'",
                    "rows without it",
                    at=f"source '{source.name}'",
                    hint=nearest(name, frame.columns),
                )
            )
    plain = normal(frame.select(wanted))
    changes = []
    for name in wanted:
        dtype = plain.schema[name]
        if dtype == DTYPES[types[name]]:
            continue
        found = type_of(dtype)
        if dtype != pl.Null and (found, types[name]) not in (("int", "float"), ("date", "timestamp")):
            raise InputError(
                sentence(
                    f"'{name}' to be {types[name]}, as declared",
                    f"{found or dtype}",
                    at=f"source '{source.name}'",
                    hint="ingest it again, or change its type in columns=",
                )
            )
        changes.append(pl.col(name).cast(DTYPES[types[name]]))
    return plain.with_columns(changes) if changes else plain


def micros_column(name: str) -> pl.Expr:
    """Return microseconds since 1970 of a date or timestamp column."""
    return pl.col(name).cast(pl.Datetime("us")).cast(pl.Int64)


def finite(value: pl.Expr) -> pl.Expr:
    """Return a number as a float with one zero and nothing that is not finite."""
    number = value.cast(pl.Float64)
    return pl.when(number.is_finite()).then(pl.when(number == 0.0).then(0.0).otherwise(number))


def argument_value(argument: Argument) -> pl.Expr:
    """Return the expression of what is kept of a fact for this argument."""
    value, kind = sql.to_polars(argument.expr), argument.expr.type
    if argument.use == "number" or (argument.use == "identity" and kind == "float"):
        kept = finite(value)
    elif argument.use == "present":
        kept = pl.when(value.cast(pl.Float64).is_finite() if kind == "float" else value.is_not_null()).then(1.0)
    elif argument.use == "text" or kind == "text":
        kept = value.cast(pl.String)
    else:
        kept = value.cast(pl.Int64)
    return kept.alias(argument.name)


def columns_needed(source: History | Table) -> tuple[str, ...]:
    """Name the columns of the source's rows that facts are made of."""
    of = source.source
    times = (of.time, of.known_at) if of.time else ()
    kept = source.columns if isinstance(source, History) else of.key
    read = (name for argument in source.arguments for name in sorted(sql.columns(argument.expr)))
    return tuple(dict.fromkeys((*kept, *times, *read)))


def fact_table(history: History, frame: pl.DataFrame) -> pl.DataFrame:
    """Make the facts of a source with a time: the last version for each key and time; never-known ones included."""
    source = history.source
    rows = typed(frame, source, columns_needed(history))
    missing = rows[source.time].null_count()
    if missing:
        raise InputError(
            sentence(
                "a time in every row",
                f"{missing:,} of {rows.height:,} rows without",
                at=f"source '{source.name}', column '{source.time}'",
                hint="leave the column not nullable, so that its contract sets such rows aside",
            )
        )
    time, known = micros_column(source.time), micros_column(source.known_at)
    if history.own:
        instant = pl.max_horizontal(time, known) * 2 + (known <= time).cast(pl.Int64)
        instant = pl.when(known.is_not_null()).then(instant)
    else:
        instant = known * 2
    facts = rows.select(
        *(pl.col(name).alias(f"k_{name}") for name in history.columns),
        time.alias("_time"),
        instant.alias("_known"),
        *(argument_value(argument) for argument in history.arguments),
    )
    return latest(facts, [*(f"k_{name}" for name in source.key), "_time"])


def lookup_table(table: Table, frame: pl.DataFrame) -> pl.DataFrame:
    """Make the rows of a source without a time: the last version for each key; a null key matches nothing."""
    keys = [f"k_{name}" for name in table.source.key]
    rows = typed(frame, table.source, columns_needed(table)).select(
        *(pl.col(name).alias(f"k_{name}") for name in table.source.key),
        *(argument_value(argument) for argument in table.arguments),
    )
    return latest(rows.drop_nulls(keys), keys)


def latest(facts: pl.DataFrame, identity: list[str]) -> pl.DataFrame:
    """Keep the last row of each identity; the usual case, no two alike, costs one look."""
    if facts.n_unique(identity) == facts.height:
        return facts
    return facts.unique(identity, keep="last", maintain_order=True)

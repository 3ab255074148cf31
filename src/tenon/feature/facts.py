"""Rows of a source become facts: typed columns, instants, and the SQL values that features need of them.

The matrix and the online state both start from the table that `fact_table` makes, so a value is computed once, by the
same expression, wherever it is used. A fact is identified by its source's key and its time. It may come in several
versions: each counts from when it is known until a later one is (`follow` has the rule). A number that is not finite is
missing, and a negative zero is a zero, so that equal values have equal bits.

Columns of a fact table: ``k_<column>`` for what identifies and groups facts, ``_time`` in microseconds, ``_known`` as
an instant in half microseconds (null: it never became known), and one column for each argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from tenon.contract import sql
from tenon.contract.column import Source
from tenon.contract.frame import DTYPES, normal, type_of
from tenon.errors import InputError, nearest, sentence
from tenon.feature.plan import Argument, History, Table, types_of

Fact = tuple[Any, ...]  # one row of a fact table


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
    changes, schema = [], plain.schema
    for name in wanted:
        dtype = schema[name]
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


def timed(rows: pl.DataFrame, source: Source) -> None:
    """Pass rows that all have their source's time; InputError counts those without."""
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
    """Make the facts of a source with a time, every version, in the order of the rows; without those never known."""
    return intake(history)(frame)


def intake(history: History) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Return `fact_table` for one source, its expressions built once: facts may come one at a time."""
    source = history.source
    needed = columns_needed(history)
    time, known = micros_column(source.time), micros_column(source.known_at)
    instant = known * 2
    if history.own:  # a null in `known` makes the whole sum null
        instant = pl.max_horizontal(time, known) * 2 + (known <= time).cast(pl.Int64)
    made = [
        *(pl.col(name).alias(f"k_{name}") for name in history.columns),
        time.alias("_time"),
        instant.alias("_known"),
        *(argument_value(argument) for argument in history.arguments),
    ]
    usable = pl.col("_known").is_not_null()

    def take(frame: pl.DataFrame) -> pl.DataFrame:
        rows = typed(frame, source, needed)
        timed(rows, source)
        return rows.lazy().select(made).filter(usable).collect()

    return take


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """The versions of facts that ever count, when one gives way to the next, and those that no longer count at all.

    `until` maps the position of a version in `facts` to the instant from which its successor counts in its place.
    """

    facts: pl.DataFrame
    until: dict[int, int]
    outdated: list[Fact]


def versions(history: History, facts: pl.DataFrame) -> Versions:
    """Sort out the versions of facts given in the order in which they came; costs one look when no fact has two."""
    identity = [*(f"k_{name}" for name in history.source.key), "_time"]
    if _all_different(facts.select(identity)):
        return Versions(facts=facts, until={}, outdated=[])
    several = facts.with_row_index("_row").filter(pl.struct(identity).is_duplicated())
    distinct = several.unique(facts.columns, keep="first", maintain_order=True)
    chains: dict[Fact, list[tuple[int, Fact]]] = {}
    outdated: list[Fact] = []
    known = facts.columns.index("_known")
    for row, name, fact in zip(
        distinct["_row"].to_list(), distinct.select(identity).rows(), distinct.drop("_row").rows(), strict=True
    ):
        chain = chains.setdefault(name, [])
        outdated += (other for _, other in follow(chain, fact[known], known))
        chain.append((row, fact))
    kept = np.ones(facts.height, dtype=np.bool_)
    kept[several["_row"].to_numpy()] = False
    kept[[row for chain in chains.values() for row, _ in chain]] = True
    place = np.cumsum(kept) - 1
    until = {int(place[row]): fact[known] for chain in chains.values() for (row, _), (_, fact) in pairwise(chain)}
    return Versions(facts=facts.filter(pl.Series(kept)), until=until, outdated=outdated)


def _all_different(rows: pl.DataFrame) -> bool:
    """Say whether no two rows are alike; sorting hashes takes a third of the time of grouping rows."""
    hashes = np.sort(rows.hash_rows().to_numpy())
    return not (hashes[1:] == hashes[:-1]).any() or rows.n_unique() == rows.height


def follow(chain: list[tuple[int, Fact]], instant: int, known: int) -> list[tuple[int, Fact]]:
    """Take out of a chain of versions, and return, those that one known from this instant makes outdated.

    A version that comes later makes outdated every one known no earlier than itself. It follows the last that is left:
    that one counts until the new one is known. So at any time the version counts that came last of those known by then.
    `known` is where a version says when it is known; a chain is in that order.
    """
    place = len(chain)
    while place and chain[place - 1][1][known] >= instant:
        place -= 1
    outdated = chain[place:]
    del chain[place:]
    return outdated


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

"""Derived columns: SQL over the other columns of a row, or over the row of another source that it points to.

`derivation` works out once what depends on what (a circle and an unknown name are errors in words), and then computes
the same columns for a frame (Polars, one `with_columns` for each layer of dependence) or for plain rows (closures),
with equal results. A lookup (`of=`, `on=`) evaluates its SQL once over the other source's rows; a frame then joins
the result, a row finds it in a dict. The other source must have one row for each key: two are an error, because
either choice would be a guess. A key that is null or not there gives null.

The value is converted to the column's declared type where nothing is lost (int to float, true to 1, a date to its
midnight); anything else asks for a cast in the SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

import polars as pl

from tenon.contract import sql
from tenon.contract.column import Column
from tenon.contract.frame import normal, types_of
from tenon.contract.sql_types import Meaning
from tenon.errors import ConfigError, InputError, MissingError, nearest, quoted, sentence

Keys = Mapping[str, str | Sequence[str]]
Row = Mapping[str, Any]
_WIDENS = {("int", "float"), ("bool", "int"), ("bool", "float"), ("date", "timestamp"), ("null", "")}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One derived column: its expression over this row, or the looked-up values by key."""

    column: Column
    expr: sql.Expr
    reads: frozenset[str]
    table: pl.DataFrame | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """Derived columns in the order they can be computed, ready for frames and for rows."""

    layers: tuple[tuple[_Step, ...], ...]
    _row_steps: tuple[tuple[str, Callable[[Row], Any]], ...]

    @property
    def inputs(self) -> set[str]:
        """Return the names of the columns a row must bring: all that are read and not derived here."""
        steps = [step for layer in self.layers for step in layer]
        return {name for step in steps for name in step.reads} - {step.column.name for step in steps}

    def frame(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame with the derived columns; the order of its rows is kept."""
        frame = normal(frame)
        for layer in self.layers:
            for step in layer:
                if step.table is not None:
                    frame = frame.drop(step.column.name, strict=False).join(
                        step.table, left_on=step.column.on, right_on="_key", how="left", maintain_order="left"
                    )
            own = {step.column.name: sql.to_polars(step.expr) for step in layer if step.table is None}
            frame = frame.with_columns(**own)
        return frame

    def rows(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return each row as a new dict with the derived columns added; what is equal to `frame`, row by row."""
        out = []
        for row in rows:
            whole = dict(row)
            for name, value in self._row_steps:
                whole[name] = value(whole)
            out.append(whole)
        return out


def derivation(
    columns: Sequence[Column], types: Mapping[str, str], lookups: Mapping[str, pl.DataFrame], keys: Keys
) -> Derivation:
    """Prepare the derived ones among `columns` for rows that have columns of `types`.

    `lookups` holds the rows of every source that a column names in `of`, `keys` that source's key. ConfigError for SQL
    that cannot be, InputError for a lookup that has two rows for one key.
    """
    derived = {column.name: column for column in columns if column.derive}
    known = {**types, **{column.name: column.type for column in derived.values()}}
    steps = {}
    for column in derived.values():
        place = f"column '{column.name}'"
        if column.of:
            steps[column.name] = _lookup(column, place, known, lookups, keys)
        else:
            expr = _typed(sql.parse(column.derive, place, known), column)
            steps[column.name] = _Step(column=column, expr=expr, reads=frozenset(sql.columns(expr)))
    layers = tuple(tuple(steps[name] for name in layer) for layer in _layers(steps))
    return Derivation(
        layers=layers, _row_steps=tuple((step.column.name, _for_row(step)) for layer in layers for step in layer)
    )


def derive(
    frame: pl.DataFrame, columns: Sequence[Column], lookups: Mapping[str, pl.DataFrame], keys: Keys
) -> pl.DataFrame:
    """Return the frame with every column that has `derive` computed; see `derivation`."""
    return derivation(columns, types_of(frame), lookups, keys).frame(frame)


def derive_rows(
    rows: Sequence[Row], columns: Sequence[Column], lookups: Mapping[str, pl.DataFrame], keys: Keys
) -> list[dict[str, Any]]:
    """Return the rows with every column that has `derive` computed; keep a `derivation` instead where this is hot.

    Declared columns have their declared type; a column that is not declared has the type of its first value.
    """
    types: dict[str, str] = {column.name: column.type for column in columns if not column.derive}
    for row in rows:
        for name, value in row.items():
            if name not in types and value is not None:
                types[name] = _type_of_value(value)
    for name in rows[0] if rows else ():
        types.setdefault(name, "")
    return derivation(columns, types, lookups, keys).rows(rows)


# ── preparing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _type_of_value(value: Any) -> str:
    kinds = {"int": "int", "float": "float", "str": "text", "bool": "bool", "date": "date", "datetime": "timestamp"}
    return kinds.get(type(value).__name__, "")


def _typed(expr: sql.Expr, column: Column) -> sql.Expr:
    """Bring an expression to the column's declared type, or say why it cannot be."""
    if expr.type in (column.type, ""):
        return expr
    if expr.type == "null" or (expr.type, column.type) in _WIDENS:
        tree = Meaning(text=expr.text, place=expr.place).convert(expr.tree, column.type)
        return sql.Expr(text=expr.text, place=expr.place, tree=tree)
    raise ConfigError(
        sentence(
            f"SQL of type {column.type}",
            f"{expr.type}",
            at=f"{expr.place}: {expr.text}",
            hint=f"declare the column as {expr.type}, or write cast(... AS {column.type})",
        )
    )


def _layers(steps: Mapping[str, _Step]) -> list[tuple[str, ...]]:
    """Sort derived columns into layers, each reading only what is before it."""
    sorter = TopologicalSorter({name: [read for read in step.reads if read in steps] for name, step in steps.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " <- ".join(f"'{name}'" for name in error.args[1])
        raise ConfigError(
            sentence(
                "derived columns that build on others",
                f"a circle: {circle}",
                at=f"column '{error.args[1][0]}'",
                hint="give the result a name of its own",
            )
        ) from None
    layers = []
    while sorter.is_active():
        ready = sorter.get_ready()
        layers.append(tuple(sorted(ready, key=list(steps).index)))
        sorter.done(*ready)
    return layers


def _lookup(
    column: Column, place: str, types: Mapping[str, str], lookups: Mapping[str, pl.DataFrame], keys: Keys
) -> _Step:
    """Prepare a looked-up column: its value for each key of the other source."""
    if column.of not in lookups:
        raise MissingError(
            sentence(f"the rows of source '{column.of}'", "none", at=place, hint=nearest(column.of, lookups))
        )
    if column.on not in types:
        raise ConfigError(sentence("a column after on=", f"'{column.on}'", at=place, hint=nearest(column.on, types)))
    given = keys.get(column.of, ())
    key = (given,) if isinstance(given, str) else tuple(given)
    if len(key) != 1:
        raise ConfigError(
            sentence(
                f"one key column in source '{column.of}' to look up by",
                quoted(key) if key else "none",
                at=place,
                hint="a lookup table has one row for each value of one column",
            )
        )
    other = normal(lookups[column.of])
    there = types_of(other)
    if key[0] not in there:
        raise ConfigError(
            sentence(
                f"the key column '{key[0]}' in source '{column.of}'", "none", at=place, hint=nearest(key[0], there)
            )
        )
    if types[column.on] not in (there[key[0]], ""):
        raise ConfigError(
            sentence(
                f"'{column.on}' of the same type as the key '{key[0]}' of '{column.of}', {there[key[0]]}",
                types[column.on],
                at=place,
                hint="declare them alike, or derive a column that is",
            )
        )
    expr = _typed(sql.parse(column.derive, f"{place} of source '{column.of}'", there), column)
    table = other.select(pl.col(key[0]).alias("_key"), sql.to_polars(expr).alias(column.name)).filter(
        pl.col("_key").is_not_null()
    )
    twice = table.filter(pl.col("_key").is_duplicated())
    if twice.height:
        raise InputError(
            sentence(
                f"one row for each '{key[0]}' in source '{column.of}'",
                f"{twice.filter(pl.col('_key') == twice['_key'][0]).height} for '{twice['_key'][0]}'",
                at=place,
                hint="keep one row for each key: a lookup must not choose",
            )
        )
    return _Step(column=column, expr=expr, reads=frozenset({column.on}), table=table)


def _for_row(step: _Step) -> Callable[[Row], Any]:
    if step.table is None:
        return sql.to_function(step.expr)
    values = dict(zip(step.table["_key"].to_list(), step.table[step.column.name].to_list(), strict=True))
    on, find = step.column.on, values.get
    return lambda row: find(row[on])

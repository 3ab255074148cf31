"""Words are checked and become a plan: what is wrong is named in words, before any data is read.

Every error says which feature, what was expected, and what to do. What may not be read at the moment of prediction (a
late column, the label's own columns, anything derived from them) is found here, so a leak of that kind cannot be
written; that no later fact is used is `plan`'s rule of instants.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, NoReturn

import polars as pl

from tenon.contract import sql
from tenon.contract.column import Column, Source
from tenon.contract.frame import DTYPES
from tenon.errors import ConfigError, nearest, quoted, sentence
from tenon.feature.plan import (
    AnyFeature,
    Argument,
    Grouping,
    History,
    HistoryFeature,
    Kind,
    Look,
    Plan,
    RowFeature,
    Table,
    TableFeature,
    Use,
    columns_read,
    duration_us,
    types_of,
)
from tenon.feature.words import Feature, Label

KEY_TYPES = ("int", "text", "bool", "date", "timestamp")


def _refuse(expected: str, got: str, place: str, hint: str) -> NoReturn:
    raise ConfigError(sentence(expected, got, at=place, hint=hint))


# ── sources ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def parents(source: Source, name: str) -> set[str]:
    """Name the columns of the same row that a column is derived from directly; empty for a column that is read."""
    column = source.column(name)
    if column is None or not column.derive:
        return set()
    if column.of:
        return {column.on}
    return sql.columns(sql.parse(column.derive, f"source '{source.name}', column '{name}'", types_of(source)))


def ancestry(source: Source, names: Iterable[str], given: Collection[str] = ()) -> list[str]:
    """Name the columns and everything they are derived from, each once, nearest first; what is given is not derived."""
    found: dict[str, None] = {}
    waiting = list(dict.fromkeys(names))
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found[name] = None
            if name not in given:
                waiting.extend(sorted(parents(source, name)))
    return list(found)


def source_of(column: Column, source: Source, sources: Mapping[str, Source]) -> Source:
    """Return the source that a column is looked up in; ConfigError when there is none of that name."""
    if column.of not in sources:
        _refuse(
            "a source of the project",
            f"'{column.of}'",
            f"source '{source.name}', column '{column.name}'",
            hint=nearest(column.of, sources),
        )
    return sources[column.of]


def late_columns(source: Source, label: Label) -> dict[str, str]:
    """Return the columns of a model's own source that no feature of the same row may read, each with the reason.

    Late are: columns declared so, the `known` time itself, and what is derived from a late column. When the label reads
    none of these, the columns it reads are late too: it would not need predicting otherwise.
    """
    when = (
        f"known only at '{source.known_at}'" if source.known_at != source.time else f"known only after '{source.time}'"
    )
    reasons = {column.name: f"'{column.name}' is late: {when}" for column in source.columns if column.late}
    if source.known_at != source.time:
        reasons.setdefault(source.known_at, f"'{source.known_at}' is when the late columns become known")
    asked = ancestry(source, sorted(sql.columns(_label(label, source))))
    if not any(name in reasons for name in asked):
        read = [name for name in asked if not parents(source, name)]
        reasons.update((name, f"'{name}' is what the label is made of") for name in read)
    for column in source.columns:
        if column.name not in reasons:
            above = ancestry(source, [column.name])[1:]
            first = next((name for name in above if name in reasons), None)
            if first is not None:
                reasons[column.name] = f"'{column.name}' is derived from '{first}', and {reasons[first]}"
    return reasons


def _declared(source: Source) -> None:
    """Refuse a source whose key is not among its columns, or whose times are none."""
    types = types_of(source)
    for name in (source.time, source.known_at):
        if name and types[name] not in ("timestamp", "date"):
            hint = "declare it a timestamp, or derive one: cast(x AS timestamp)"
            _refuse(
                "times that are timestamps or dates", f"'{name}' of type {types[name]}", f"source '{source.name}'", hint
            )
    for name in source.key:
        if name not in types:
            hint = nearest(name, types) if source.columns else "declare columns=, or take those that ingest found"
            _refuse("key columns that are declared", f"'{name}'", f"source '{source.name}', key", hint)


def _label(label: Label, spine: Source) -> sql.Expr:
    return sql.parse(label.sql, f"label '{label.name}'", types_of(spine))


# ── words → plan ─────────────────────────────────────────────────────────────────────────────────────────────────────


def plan(features: Sequence[Feature], label: Label, spine: Source, sources: Mapping[str, Source]) -> Plan:
    """Check every word and return the plan; ConfigError names the feature, what is wrong, and what to do."""
    everything = {**sources, spine.name: spine}
    for source in everything.values():
        _declared(source)
    if not spine.time:
        _refuse(
            "a model's source with time=",
            "one without",
            f"source '{spine.name}'",
            hint="name the column that says when a row happened",
        )
    names = [feature.name for feature in features]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        _refuse("each feature name once", f"'{twice[0]}' twice", f"feature '{twice[0]}'", hint="rename one")
    late = late_columns(spine, label)
    if spine.time in late:
        _refuse(
            "a time known before prediction",
            late[spine.time],
            f"source '{spine.name}', time",
            hint="name another column",
        )
    planner = _Planner(spine=spine, sources=everything, late=late, arguments={}, groupings={}, reaches={})
    compiled = tuple(planner.feature(feature) for feature in features)
    tree = _label(label, spine)
    sql.to_polars(tree)  # refuses an aggregate: a label is of its own row
    if tree.type not in ("bool", "int", "float"):
        _refuse(
            "a label that is true or false, or a number",
            tree.type or "something else",
            f"label '{label.name}'",
            hint="compare it: x > 30",
        )
    known = label.known or spine.known_at
    if known not in types_of(spine):
        _refuse(
            "a column that says when the label is known",
            f"'{known}'",
            f"label '{label.name}'",
            hint=nearest(known, types_of(spine)),
        )
    read = (name for feature in compiled for name in columns_read(feature))
    return Plan(
        features=compiled,
        histories=dict(planner.histories()),
        tables=dict(planner.tables()),
        label=tree,
        label_known=known,
        spine_columns=tuple(dict.fromkeys((spine.time, *read))),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planner:
    """Compiles one feature after the other and collects what they need of each source."""

    spine: Source
    sources: Mapping[str, Source]
    late: Mapping[str, str]
    arguments: dict[str, dict[tuple[sql.Expr, Use], Argument]]
    groupings: dict[str, dict[Grouping, None]]
    reaches: dict[str, set[int]]

    def histories(self) -> Iterator[tuple[str, History]]:
        for name, groupings in self.groupings.items():
            yield (
                name,
                History(
                    source=self.sources[name],
                    own=name == self.spine.name,
                    arguments=tuple(self.arguments.get(name, {}).values()),
                    groupings=tuple(groupings),
                    reach_us=max((reach for reach in self.reaches[name] if reach), default=0),
                    forever=0 in self.reaches[name],
                ),
            )

    def tables(self) -> Iterator[tuple[str, Table]]:
        for name, arguments in self.arguments.items():
            if name not in self.groupings:
                yield name, Table(source=self.sources[name], arguments=tuple(arguments.values()))

    def feature(self, feature: Feature) -> AnyFeature:
        place = f"feature '{feature.name}'"
        if not feature.name or feature.name.startswith("_"):
            _refuse("a name that does not begin with '_'", f"'{feature.name}'", place, hint="those are tenon's own")
        if feature.of and feature.of not in self.sources:
            _refuse("a source of the project", f"'{feature.of}'", place, hint=nearest(str(feature.of), self.sources))
        source = self.sources[str(feature.of) or self.spine.name]
        if feature.function is not None:
            self._only(feature, place, "a function of the row itself", of="", on=(), over=(), window="", within="")
            return self._function(feature, place)
        expr = sql.parse(feature.sql, place, types_of(source))
        outer, parts = sql.split(expr)
        if parts:
            return self._window(feature, source, outer, parts, place)
        if feature.window or feature.over:
            word = "window" if feature.window else "over"
            _refuse(
                f"an aggregate with {word}=",
                f"'{feature.sql}'",
                place,
                hint="write avg(...), count(*), max(...), or leave it out",
            )
        if not feature.of:
            self._only(feature, place, "a feature of the row itself", on=(), within="")
            return self._row(feature, expr, place)
        return self._asof(feature, source, expr, place) if source.time else self._table(feature, source, expr, place)

    # the four forms

    def _row(self, feature: Feature, expr: sql.Expr, place: str) -> RowFeature:
        columns = tuple(sorted(sql.columns(expr)))
        self._early(columns, place)
        return RowFeature(
            name=feature.name, kind=_kind(expr.type, feature.sql, place), expr=expr, function=None, columns=columns
        )

    def _function(self, feature: Feature, place: str) -> RowFeature:
        assert feature.function is not None
        types = types_of(self.spine)
        for name in feature.columns:
            if name not in types:
                _refuse("a column that exists", f"'{name}'", place, hint=nearest(name, types))
        if not feature.columns:
            _refuse("columns= that the function takes", "none", place, hint="name them in order")
        self._early(feature.columns, place)
        kind = _function_kind(feature.function, [types[name] for name in feature.columns], place)
        return RowFeature(name=feature.name, kind=kind, expr=None, function=feature.function, columns=feature.columns)

    def _window(
        self, feature: Feature, source: Source, outer: sql.Expr, parts: Mapping[str, Any], place: str
    ) -> HistoryFeature:
        if not feature.window:
            _refuse("window= with an aggregate", "none", place, hint="say how far back it looks: window='7d'")
        self._only(feature, place, "an aggregate, whose window says how far back it looks", within="")
        self._timed(source, place)
        outside = sql.columns(outer) - set(parts)
        if outside:
            _refuse(
                "columns inside aggregates only",
                f"{quoted(outside)} outside",
                place,
                hint="make the column a feature of its own",
            )
        window = duration_us(feature.window, f"{place}, window")
        columns = feature.over or (source.key if source.name != self.spine.name else ())
        grouping = self._grouping(source, columns, feature.on, place)
        looks = tuple(self._look(source, window, part, place) for part in parts.values())
        self.reaches.setdefault(source.name, set()).add(window)
        simple = outer.tree.op == "column"
        return HistoryFeature(
            name=feature.name,
            kind=_kind(outer.type, feature.sql, place),
            source=source.name,
            grouping=grouping,
            looks=looks,
            outer=None if simple else outer,
        )

    def _look(self, source: Source, window: int, part: tuple[str, sql.Expr | None, bool], place: str) -> Look:
        name, argument, distinct = part
        if argument is None:
            return Look(aggregate="count", argument="", window_us=window, type="int")
        if name == "count":
            use: Use = "identity" if distinct else "present"
            kept = self._argument(source, argument, use)
            return Look(aggregate="distinct" if distinct else "count", argument=kept, window_us=window, type="int")
        allowed = ("int", "float", "bool", "text") if name in ("first", "last") else ("int", "float", "bool")
        if argument.type not in allowed:
            wanted = "a number, true or false, or text" if "text" in allowed else "a number, or true or false"
            _refuse(
                f"{wanted} in {name}()",
                argument.type or "nothing",
                f"{place}: {argument.text}",
                _NUMBER_HINT,
            )
        kept = self._argument(source, argument, "text" if argument.type == "text" else "number")
        kind = "float" if name in ("avg", "stddev") else argument.type
        return Look(aggregate=name, argument=kept, window_us=window, type=kind)

    def _asof(self, feature: Feature, source: Source, expr: sql.Expr, place: str) -> HistoryFeature:
        kind = _kind(expr.type, feature.sql, place)
        within = duration_us(feature.within, f"{place}, within") if feature.within else 0
        grouping = self._grouping(source, source.key, feature.on, place)
        kept = self._argument(source, expr, "text" if kind == "category" else "number")
        look = Look(aggregate="asof", argument=kept, window_us=within, type=expr.type)
        self.reaches.setdefault(source.name, set()).add(within)
        return HistoryFeature(
            name=feature.name, kind=kind, source=source.name, grouping=grouping, looks=(look,), outer=None
        )

    def _table(self, feature: Feature, source: Source, expr: sql.Expr, place: str) -> TableFeature:
        self._only(feature, place, "a lookup in a source without a time", within="")
        kind = _kind(expr.type, feature.sql, place)
        if not source.key:
            _refuse("a key to look up by", f"source '{source.name}' without one", place, hint="declare key= there")
        keys = self._match(source, source.key, feature.on, place)
        kept = self._argument(source, expr, "text" if kind == "category" else "number")
        return TableFeature(name=feature.name, kind=kind, source=source.name, keys=keys, argument=kept)

    # what they share

    def _argument(self, source: Source, expr: sql.Expr, use: Use) -> str:
        kept = self.arguments.setdefault(source.name, {})
        bare = sql.Expr(text="", place="", tree=expr.tree)
        return kept.setdefault((bare, use), Argument(name=f"a{len(kept)}", expr=bare, use=use)).name

    def _grouping(self, source: Source, columns: Sequence[str], on: Sequence[str], place: str) -> Grouping:
        grouping = Grouping(tuple(columns), self._match(source, columns, on, place))
        self.groupings.setdefault(source.name, {})[grouping] = None
        return grouping

    def _match(self, source: Source, columns: Sequence[str], on: Sequence[str], place: str) -> tuple[str, ...]:
        """Return the columns of the predicted row that match the source's: early ones of the same type."""
        keys = tuple(on) or tuple(columns)
        if len(keys) != len(columns):
            _refuse(
                f"one column in on= for each of {quoted(columns)}",
                f"{len(keys)} of {len(columns)}",
                place,
                hint="name them in the same order",
            )
        there, here = types_of(source), types_of(self.spine)
        for column, key in zip(columns, keys, strict=True):
            if column not in there:
                _refuse(f"a column of source '{source.name}'", f"'{column}'", place, hint=nearest(column, there))
            if key not in here:
                hint = (
                    nearest(key, here)
                    if on or column in here
                    else f"{nearest(key, here)}, or name this row's column in on="
                )
                _refuse(f"a column of source '{self.spine.name}'", f"'{key}'", place, hint=hint)
            if there[column] != here[key]:
                _refuse(
                    f"'{key}' of the same type as '{source.name}.{column}' ({there[column]})",
                    here[key],
                    place,
                    hint="declare both alike, or derive a column that converts one",
                )
            if there[column] not in KEY_TYPES:
                _refuse(
                    "a key that can be compared exactly",
                    f"'{column}' of type {there[column]}",
                    place,
                    hint="declare it int or text",
                )
        self._early(keys, place)
        return keys

    def _early(self, columns: Iterable[str], place: str) -> None:
        for name in columns:
            if name in self.late:
                _refuse(
                    "columns known at the moment of prediction",
                    self.late[name],
                    place,
                    hint="use it over= and window=, where only past rows count",
                )

    def _timed(self, source: Source, place: str) -> None:
        if not source.time:
            _refuse(
                "a source with time= to aggregate over",
                f"'{source.name}', which has none",
                place,
                hint="look its values up without an aggregate",
            )

    def _only(self, feature: Feature, place: str, form: str, **empty: object) -> None:
        for word, nothing in empty.items():
            if getattr(feature, word) != nothing:
                _refuse(f"no {word}= for {form}", f"'{getattr(feature, word)}'", place, hint="leave it out")


_NUMBER_HINT = "take a part of it: hour(x), epoch(x), length(x)"


def _kind(type_: str, text: str, place: str) -> Kind:
    if type_ in ("int", "float", "bool"):
        return "number"
    if type_ == "text":
        return "category"
    said = {"null": "nothing but null", "": "something of unknown type"}.get(type_, f"a {type_}")
    _refuse("a number, true or false, or text", f"{said} ('{text}')", place, _NUMBER_HINT)


def _function_kind(function: Callable[..., Any], types: Sequence[str], place: str) -> Kind:
    """Call the function with empty columns to see what it returns."""
    empty = [pl.Series(dtype=DTYPES[name]) for name in types]
    try:
        dtype = pl.Series(values=function(*empty)).dtype
    except Exception as error:  # the edge to the user's code, which may raise anything
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(
            sentence("a function of columns, even empty ones", said, at=place, hint="it is given Polars Series")
        ) from error
    if dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
        return "number"
    if dtype == pl.String:
        return "category"
    _refuse("a function that returns numbers, true or false, or text", str(dtype), place, _NUMBER_HINT)


def function_source(function: Callable[..., Any]) -> str:
    """Return what identifies the code of a function: its source, or its compiled code where there is no source."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return _code(code) if code else f"{function.__module__}:{function.__qualname__}"


def _code(code: CodeType) -> str:
    """Spell compiled code without the addresses that its repr holds."""
    constants = [_code(const) if isinstance(const, CodeType) else repr(const) for const in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"

"""The feature matrix: what every feature was worth at the time of every row, from whole frames, leaking nothing.

Each source is turned into facts once, each grouping of it laid out once, and each window searched once, however many
features share them; `history` does the work in NumPy. A column of numbers carries NaN for "no value" inside this module
and nulls outside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from tenon.contract import sql
from tenon.contract.frame import DTYPES
from tenon.errors import ConfigError, sentence
from tenon.feature import history as engine
from tenon.feature.exact import Floats, Ints
from tenon.feature.facts import finite, versions
from tenon.feature.plan import History, HistoryFeature, Look, RowFeature, TableFeature

NEVER = np.iinfo(np.int64).max
PLACES = 4_000_000  # places of windows that are looked at one by one at a time, when facts have several versions
ORDERED = ("asof", "first", "last")


def row_feature(feature: RowFeature, rows: pl.DataFrame) -> pl.Series:
    """Return a feature of the rows themselves: SQL, or the user's function of their columns."""
    if feature.expr is not None:
        value = sql.to_polars(feature.expr)
        shaped = finite(value) if feature.kind == "number" else value.cast(pl.String)
        return rows.select(pl.repeat(0, pl.len()).alias("_"), shaped.alias(feature.name))[feature.name]
    return function_feature(feature, [rows[name] for name in feature.columns])


def function_feature(feature: RowFeature, columns: Sequence[pl.Series]) -> pl.Series:
    """Call the user's function with columns and check that a column of the same length and kind comes back."""
    assert feature.function is not None
    made = pl.Series(feature.name, feature.function(*columns))
    if len(made) != len(columns[0]):
        raise ConfigError(
            sentence(
                f"a column of {len(columns[0])} rows",
                f"{len(made)} rows",
                at=f"feature '{feature.name}'",
                hint="return one value for each row",
            )
        )
    if (made.dtype == pl.String) != (feature.kind == "category") and made.dtype != pl.Null:
        raise ConfigError(
            sentence(
                f"a {feature.kind}, as for no rows",
                str(made.dtype),
                at=f"feature '{feature.name}'",
                hint="return one type always",
            )
        )
    frame = made.to_frame()
    return frame.select(
        (finite(pl.col(feature.name)) if feature.kind == "number" else pl.col(feature.name).cast(pl.String)).alias(
            feature.name
        )
    ).to_series()


def table_feature(feature: TableFeature, table: pl.DataFrame, rows: pl.DataFrame) -> pl.Series:
    """Return a feature looked up by key; null where there is no such key."""
    keys = [name for name in table.columns if name.startswith("k_")]
    asked = rows.select(pl.col(key).alias(name) for key, name in zip(feature.keys, keys, strict=True))
    found = asked.join(table.select(*keys, feature.argument), on=keys, how="left", maintain_order="left")
    return found[feature.argument].alias(feature.name)


def history_features(
    history: History, features: Sequence[HistoryFeature], facts: pl.DataFrame, rows: pl.DataFrame, times: Ints
) -> Iterable[pl.Series]:
    """Return the features of one source's past, at the time (microseconds) of each row."""
    settled = versions(history, facts)
    facts = settled.facts
    known = facts["_known"].to_numpy()
    by_time = np.argsort(known)
    until = None
    if settled.until:
        until = np.full(facts.height, NEVER)
        until[list(settled.until)] = list(settled.until.values())
    past = _Past(
        history=history,
        facts=facts,
        known=known,
        by_time=by_time,
        ascending=known[by_time],
        until=until,
        times=times,
        rows_by_time=np.argsort(times),
        values=_Values(facts=facts, kept={}),
        axes={},
    )
    for grouping in dict.fromkeys(feature.grouping for feature in features):
        shared = [feature for feature in features if feature.grouping == grouping]
        names = [f"k_{name}" for name in grouping.columns]
        renamed = [pl.col(key).alias(name) for key, name in zip(grouping.keys, names, strict=True)]
        keys = rows.select(renamed) if renamed else rows
        ordered = any(look.aggregate in ORDERED for feature in shared for look in feature.looks)
        groups = engine.groups_of(facts, names) if names else facts
        runs = past.runs(engine.codes_of(facts, groups, names), ordered=ordered)
        asked = engine.ask(engine.codes_of(keys, groups, names), past.rows_by_time)
        looking = _Looking(
            past=past,
            runs=runs,
            asked=asked,
            end=engine.known_by(runs, asked, past.axis(0)),
            laid={},
            windows={},
            positions={},
            shared=engine.Shared(prefixes={}, counts={}),
        )
        for feature in shared:
            yield looking.feature(feature)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Values:
    """The argument columns of the facts as NumPy arrays, made when first asked for."""

    facts: pl.DataFrame
    kept: dict[str, Floats]

    def __getitem__(self, name: str) -> Floats:
        if name not in self.kept:
            column = self.facts[name]
            if column.dtype != pl.Float64:  # for count(distinct): any numbers that are equal where the values are
                column = column.rank("dense").cast(pl.Float64)
            self.kept[name] = column.fill_null(np.nan).to_numpy()
        return self.kept[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Past:
    """The facts of one source and when each became known, and the times that rows look back from."""

    history: History
    facts: pl.DataFrame
    known: Ints
    by_time: Ints
    ascending: Ints  # known, in the order of by_time
    until: Ints | None  # when a later version of the fact takes over; None when no fact has two versions
    times: Ints  # of the rows, in microseconds
    rows_by_time: Ints
    values: _Values
    axes: dict[int, Ints]  # window -> how many facts were known when it opened, for each row; 0: by the row's own time

    def axis(self, window_us: int) -> Ints:
        """Return for each row how many facts of any group were known when a window opened, or (0) by the row's time."""
        if window_us not in self.axes:
            instants = 2 * (self.times - window_us) + (1 if window_us else 0)
            self.axes[window_us] = engine.axis_of(self.ascending, instants, self.rows_by_time)
        return self.axes[window_us]

    def runs(self, codes: Ints, *, ordered: bool) -> engine.Runs:
        """Lay the facts out by group and instant; where order matters, ties go by time, then key."""
        return engine.lay_out(
            codes, self.known, self.by_time, partial(tie_order, self.history, self.facts, codes) if ordered else None
        )


def tie_order(history: History, facts: pl.DataFrame, codes: Ints, tied: Ints) -> Ints:
    """Order facts (given by position) that share group and instant: by group, instant, time, then key, nulls first."""
    by = ["_code", "_known", "_time", *(f"k_{name}" for name in history.source.key)]
    shown = facts[tied].with_columns(pl.Series("_code", codes[tied])).select(by).with_row_index("_row")
    places: Ints = shown.sort(by, nulls_last=False)["_row"].to_numpy()
    return np.take(tied, places)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looking:
    """One grouping of one source, looked into from every row: places and running sums are shared by its features."""

    past: _Past
    runs: engine.Runs
    asked: engine.Asked
    end: Ints  # the place after the last fact known by each asked instant
    laid: dict[str, Floats]
    windows: dict[int, tuple[Ints, Ints]]
    positions: dict[tuple[str, str, int], Ints]
    shared: engine.Shared

    def feature(self, feature: HistoryFeature) -> pl.Series:
        looks = [self.look(look) for look in feature.looks]
        if feature.outer is None:
            return looks[0].alias(feature.name)
        parts = pl.DataFrame(
            [
                as_type(found, look.type).alias(f"_agg{i}")
                for i, (found, look) in enumerate(zip(looks, feature.looks, strict=True))
            ]
        )
        outer = sql.to_polars(feature.outer)
        shaped = finite(outer) if feature.kind == "number" else outer.cast(pl.String)
        return parts.select(shaped.alias(feature.name)).to_series()

    def look(self, look: Look) -> pl.Series:
        """Return one aggregate, or one value as of, for each row."""
        text = bool(look.argument) and self.past.facts.schema[look.argument] == pl.String
        if look.aggregate in ORDERED:
            return self.gather(self.position(look, text=text), look.argument, text=text)
        return pl.Series(self.asked.scatter(self.windowed(look, text=False)), nan_to_null=True)

    def windowed(self, look: Look, *, text: bool) -> Floats:
        """Return an aggregate of each window (a place, -1 for none, when it is first or last), for each asked row."""
        lo, hi = self.window(look.window_us)
        found = self.aggregate(look, lo, hi, None, text=text)
        if self.past.until is not None:
            until = self.past.until[self.runs.order]
            now = 2 * self.past.times[self.asked.order]
            for rows in _revised(until, lo, hi):
                places, low, high = engine.current(lo[rows], hi[rows], until, now[rows])
                found[rows] = self.aggregate(look, low, high, places, text=text)
        return found

    def aggregate(self, look: Look, lo: Ints, hi: Ints, places: Ints | None, *, text: bool) -> Floats:
        """Return the aggregate of windows of the layout, or of windows among some of its places."""
        if not look.argument:
            return (hi - lo).astype(np.float64)
        if look.aggregate in ORDERED:
            if text:
                present = self.past.facts[look.argument].is_not_null().to_numpy()[self.runs.order]
            else:
                present = ~np.isnan(self.values(look.argument))
            last = look.aggregate == "last"
            if places is None:
                return engine.edge(present, lo, hi, last=last).astype(np.float64)
            edge = engine.edge(present[places], lo, hi, last=last)
            return np.where(edge >= 0, np.append(places, -1)[edge], -1).astype(np.float64)
        values = self.values(look.argument)
        if places is None:
            windows = engine.Windows(lo=lo, hi=hi, shared=self.shared)
            return engine.aggregate(windows, look.aggregate, look.argument, values)
        windows = engine.Windows(lo=lo, hi=hi, shared=engine.Shared(prefixes={}, counts={}))
        return engine.aggregate(windows, look.aggregate, look.argument, values[places])

    def values(self, name: str) -> Floats:
        if name not in self.laid:
            self.laid[name] = self.past.values[name][self.runs.order]
        return self.laid[name]

    def window(self, window_us: int) -> tuple[Ints, Ints]:
        """Return the places [lo, hi) of what became known in the window before each asked row; 0 is without limit."""
        if window_us not in self.windows:
            axis = self.past.axis(window_us) if window_us else np.zeros(len(self.past.times), dtype=np.int64)
            self.windows[window_us] = (engine.known_by(self.runs, self.asked, axis), self.end)
        return self.windows[window_us]

    def position(self, look: Look, *, text: bool) -> Ints:
        """Return for each row the position of the fact that as of, first or last takes its value from; -1 for none."""
        known_as = (look.aggregate, "" if look.aggregate == "asof" else look.argument, look.window_us)
        if known_as not in self.positions:
            order = self.runs.order
            if look.aggregate == "asof":
                place = self.newest(look.window_us)
            else:
                place = self.windowed(look, text=text).astype(np.int64)
            found = np.empty(len(place), dtype=np.int64)
            found[self.asked.order] = np.where(place >= 0, order[place], -1) if len(order) else -1
            self.positions[known_as] = found
        return self.positions[known_as]

    def newest(self, within_us: int) -> Ints:
        """Return the place of the last fact known, -1 when there is none or it is too old; 0 is without limit."""
        lo, hi = self.window(0)
        found = np.where(hi > lo, hi - 1, -1)
        if within_us and len(self.runs.order):
            known = self.past.known[self.runs.order[found]]
            oldest = 2 * (self.past.times[self.asked.order] - within_us)
            found = np.where(known >= oldest, found, -1)
        return found

    def gather(self, positions: Ints, argument: str, *, text: bool) -> pl.Series:
        """Return the argument of the facts at these positions; null at -1."""
        if text:
            chosen = pl.Series(positions)
            return self.past.facts[argument].gather(chosen.set(chosen < 0, None))
        if not len(self.runs.order):
            return pl.Series(values=[None] * len(positions), dtype=pl.Float64)
        return pl.Series(np.where(positions >= 0, self.past.values[argument][positions], np.nan), nan_to_null=True)


def _revised(until: Ints, lo: Ints, hi: Ints) -> Iterator[Ints]:
    """Yield the rows whose window holds a version that is ever replaced, a bounded number of places at a time."""
    running = np.zeros(len(until) + 1, dtype=np.int64)
    np.cumsum(until < NEVER, out=running[1:])
    rows = np.flatnonzero(running[hi] > running[lo])
    ends = np.cumsum(hi[rows] - lo[rows])
    begin = 0
    while begin < len(rows):
        spent = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, spent + PLACES, side="right")))
        yield rows[begin:end]
        begin = end


def as_type(found: pl.Series, kind: str) -> pl.Series:
    """Give an aggregate the type that the SQL around it was checked with."""
    if kind == "bool":
        return found != 0.0
    return found.cast(DTYPES[kind], strict=False)

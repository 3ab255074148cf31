"""What the online state remembers of one source with a time: its facts in columns, and the groups cut out of them.

A fact is identified by key and time. Loaded facts stay in columns; those put in later are rows of their own in `fresh`,
and a fact that was replaced is in `gone`. A group's `Series` is cut out of the columns when first asked for; from then
on puts and removals are made in it. Where a fact lies (`_where`) is found the same way, one key at a time. Many facts
at once are merged into the columns instead, and the lists are cut anew.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from tenon.feature import history as engine
from tenon.feature.exact import Ints
from tenon.feature.facts import latest
from tenon.feature.matrix import tie_order
from tenon.feature.plan import History, HistoryFeature
from tenon.feature.series import Series, Track

Fact = tuple[Any, ...]
BULK_ROWS = 1_000  # this many facts at once are merged into the columns, if they are a twentieth of what is there
BULK_SHARE = 20


class Slices:
    """Where each group lies in the facts: positions in the order in which they became known."""

    __slots__ = ("order", "single", "spans")

    def __init__(self, history: History, facts: pl.DataFrame, names: Sequence[str], *, nulls: bool = False) -> None:
        groups = engine.groups_of(facts, names, nulls=nulls) if names else facts
        codes = engine.codes_of(facts, groups, names, nulls=nulls)
        known = facts["_known"].to_numpy()

        def repair(tied: Ints) -> Ints:
            return tie_order(history, facts, codes, tied)

        runs = engine.lay_out(codes, known, np.argsort(known), repair)
        self.order, self.single = runs.order, len(names) == 1
        count = groups.height if names else 1
        borders = np.searchsorted(runs.places, np.arange(count + 1) * (len(known) + 1)).tolist()
        keys: Sequence[Any] = [()]
        if names:
            keys = groups[names[0]].to_list() if self.single else groups.select(names).rows()
        self.spans: dict[Any, tuple[int, int]] = dict(zip(keys, pairwise(borders), strict=True))

    def take(self, key: Any) -> Ints | None:
        """Return the positions of a group's facts and forget the group; None when there is none."""
        span = self.spans.pop(key, None)
        return None if span is None else self.order[span[0] : span[1]]


class Group:
    """The facts of a source by one set of columns."""

    __slots__ = ("_facts", "_series", "_slices", "arguments", "names", "needs", "single")

    def __init__(self, columns: Sequence[str], needs: Mapping[str, frozenset[str]]) -> None:
        self.names = [f"k_{name}" for name in columns]
        self.single = len(columns) == 1
        self.arguments, self.needs = list(needs), list(needs.values())

    def cut(self, history: History, facts: pl.DataFrame) -> None:
        """Start anew from these facts; no list is made yet."""
        self._facts, self._slices = facts, Slices(history, facts, self.names)
        self._series: dict[Any, Series] = {}

    def get(self, key: Any) -> Series | None:
        """Return a group's series, cut out of the columns when it is first asked for; None when it has no facts."""
        series = self._series.get(key)
        if series is not None:
            return series
        positions = self._slices.take(key)
        if positions is None:
            return None
        facts = self._facts[positions]
        tracks = [Track(facts[name].to_list(), needs) for name, needs in zip(self.arguments, self.needs, strict=True)]
        series = self._series[key] = Series(facts["_known"].to_list(), positions.tolist(), tracks)
        return series

    def make(self, key: Any) -> Series:
        """Return a group's series, an empty one when it has no facts."""
        found = self.get(key)
        if found is None:
            found = self._series[key] = Series([], [], [Track([], needs) for needs in self.needs])
        return found

    def warm(self) -> None:
        """Cut out and settle every series."""
        for key in [*self._slices.spans, *self._series]:
            self.make(key).settle()


class Memory:
    """The facts of one source, and its groups."""

    __slots__ = (
        "_argument_at",
        "_columns",
        "_key_at",
        "_key_slices",
        "_where",
        "base",
        "fresh",
        "gone",
        "groups",
        "history",
    )

    def __init__(self, history: History, features: Sequence[HistoryFeature], facts: pl.DataFrame) -> None:
        self.history = history
        self.groups: dict[tuple[str, ...], Group] = {}
        for grouping in history.groupings:
            needs: dict[str, set[str]] = {}
            for feature in features:
                if feature.source == history.source.name and feature.grouping.columns == grouping.columns:
                    for look in feature.looks:
                        if look.argument:
                            needs.setdefault(look.argument, set()).add(look.aggregate)
            self.groups[grouping.columns] = Group(grouping.columns, {name: frozenset(n) for name, n in needs.items()})
        self._columns = {name: place for place, name in enumerate(facts.columns)}
        self._key_at = [self._columns[f"k_{name}"] for name in history.source.key]
        self.reset(facts)

    def reset(self, facts: pl.DataFrame) -> None:
        """Start anew from these facts; those that never became known are left out."""
        self.base = facts.filter(pl.col("_known").is_not_null())
        self.fresh: list[Fact | None] = []
        self.gone: set[int] = set()
        self._where: dict[Fact, dict[int, int]] = {}
        self._key_slices: Slices | None = None
        for group in self.groups.values():
            group.cut(self.history, self.base)

    def facts(self) -> pl.DataFrame:
        """Return every fact, in no particular order."""
        base = self.base
        if self.gone:
            kept = np.ones(base.height, dtype=np.bool_)
            kept[[row for row in self.gone if row < base.height]] = False
            base = base.filter(pl.Series(kept))
        fresh = [fact for fact in self.fresh if fact is not None]
        return pl.concat([base, pl.DataFrame(fresh, schema=base.schema, orient="row")]) if fresh else base

    def put(self, facts: pl.DataFrame) -> int:
        """Take in facts (a fact table, never-known ones included) and return how many changed something."""
        if facts.height >= BULK_ROWS and facts.height * BULK_SHARE >= self.base.height + len(self.fresh):
            return self._merge(facts)
        return sum(self._put(fact) for fact in facts.iter_rows())

    def _merge(self, facts: pl.DataFrame) -> int:
        before = self.facts()
        identity = [*(f"k_{name}" for name in self.history.source.key), "_time"]
        unknown = facts.filter(pl.col("_known").is_null())
        changed = facts.filter(pl.col("_known").is_not_null()).join(
            before, on=before.columns, how="anti", nulls_equal=True
        )
        withdrawn = unknown.join(before, on=identity, how="semi", nulls_equal=True)
        self.reset(latest(pl.concat([before, facts]), identity))
        return changed.height + withdrawn.height

    def _put(self, fact: Fact) -> int:
        key, time = tuple(fact[at] for at in self._key_at), fact[self._columns["_time"]]
        known = fact[self._columns["_known"]]
        where = self._rows_of(key)
        row = where.get(time)
        if row is not None:
            old = self.fact(row)
            if old == fact:
                return 0
            del where[time]
            self._forget(row, old)
        elif known is None:
            return 0
        if known is not None:
            row = self.base.height + len(self.fresh)
            self.fresh.append(fact)
            where[time] = row
            for group in self.groups.values():
                self._place(group, row, fact)
        return 1

    def fact(self, row: int) -> Fact:
        """Return the fact of a row."""
        if row < self.base.height:
            return self.base.row(row)
        found = self.fresh[row - self.base.height]
        assert found is not None, row
        return found

    def _rows_of(self, key: Fact) -> dict[int, int]:
        """Return where the facts of one key lie: time -> row."""
        found = self._where.get(key)
        if found is None:
            found = {}
            if self._key_slices is None:
                names = [f"k_{name}" for name in self.history.source.key]
                self._key_slices = Slices(self.history, self.base, names, nulls=True)
            positions = self._key_slices.take(key[0] if len(key) == 1 else key)
            if positions is not None:
                found = dict(zip(self.base["_time"][positions].to_list(), positions.tolist(), strict=True))
            self._where[key] = found
        return found

    def _forget(self, row: int, fact: Fact) -> None:
        for group in self.groups.values():
            key = self._key(group, fact)
            series = None if key is None else group.get(key)
            if series is not None:
                series.remove(fact[self._columns["_known"]], row)
        if row < self.base.height:
            self.gone.add(row)
        else:
            self.fresh[row - self.base.height] = None

    def _place(self, group: Group, row: int, fact: Fact) -> None:
        key = self._key(group, fact)
        if key is None:
            return
        series = group.make(key)
        instant = fact[self._columns["_known"]]
        place, end = bisect_left(series.instants, instant), bisect_right(series.instants, instant)
        mine = self._tie(fact)
        while place < end and self._tie(self.fact(series.rows[place])) < mine:
            place += 1
        series.insert(place, instant, row, [fact[self._columns[name]] for name in group.arguments])

    def _key(self, group: Group, fact: Fact) -> Any:
        """Return the key of the fact's group; None when a null puts it in no group."""
        values = tuple(fact[self._columns[name]] for name in group.names)
        if any(value is None for value in values):
            return None
        return values[0] if group.single else values

    def _tie(self, fact: Fact) -> tuple[Any, ...]:
        """Return what orders facts of one instant: time, then key, nulls first."""
        return (fact[self._columns["_time"]], *((fact[at] is not None, fact[at]) for at in self._key_at))

    def prune(self, before_us: int) -> int:
        """Forget the facts that no prediction at or after this time can use, and return how many."""
        facts, history = self.facts(), self.history
        keep = pl.col("_known") >= 2 * (before_us - history.reach_us)
        if history.forever:
            keys = [f"k_{name}" for name in history.source.key]
            newest = facts.filter(pl.col("_known") <= 2 * before_us).sort("_known", "_time")
            newest = newest.unique(keys, keep="last") if keys else newest.tail(1)
            kept = pl.concat([facts.filter(keep), newest]).unique()
        else:
            kept = facts.filter(keep)
        if kept.height < facts.height:
            self.reset(kept)
        return facts.height - kept.height

"""What the online state remembers of one source with a time: its facts in columns, and the groups cut out of them.

A fact is identified by key and time, and may have several versions, one after the other (`facts.follow`): each counts
until the next is known (`until`). Loaded versions stay in columns; those put in later are rows of their own in `fresh`,
and one that was replaced for good is in `gone`. A group's `Series` is cut out of the columns when first asked for; from
then on puts and removals are made in it. The versions of a fact are found the same way, one key at a time. Many facts
at once are merged into the columns instead, and the lists are cut anew.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from tenon.feature import history as engine
from tenon.feature.exact import Ints
from tenon.feature.facts import Fact, follow, intake, versions
from tenon.feature.matrix import tie_order
from tenon.feature.plan import History, HistoryFeature
from tenon.feature.series import Series, Track

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

    __slots__ = ("_facts", "_series", "_slices", "arguments", "names", "needs", "single", "until")

    def __init__(self, columns: Sequence[str], needs: Mapping[str, frozenset[str]]) -> None:
        self.names = [f"k_{name}" for name in columns]
        self.single = len(columns) == 1
        self.arguments, self.needs = list(needs), list(needs.values())

    def cut(self, history: History, facts: pl.DataFrame, until: Mapping[int, int]) -> None:
        """Start anew from these facts; no list is made yet. `until` is kept up to date by the Memory."""
        self.until = until
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
        rows = positions.tolist()
        series = self._series[key] = Series(facts["_known"].to_list(), rows, tracks)
        if self.until:
            series.replaced = [series.instants[place] for place, row in enumerate(rows) if row in self.until]
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
        "_columns",
        "_key_at",
        "_key_slices",
        "_known_at",
        "_rows",
        "_time_at",
        "base",
        "fresh",
        "gone",
        "groups",
        "history",
        "intake",
        "outdated",
        "until",
    )

    def __init__(self, history: History, features: Sequence[HistoryFeature], facts: pl.DataFrame) -> None:
        self.history, self.intake = history, intake(history)
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
        self._known_at, self._time_at = self._columns["_known"], self._columns["_time"]
        self._key_at = [self._columns[f"k_{name}"] for name in history.source.key]
        self.reset(facts)

    def reset(self, facts: pl.DataFrame) -> None:
        """Start anew from these facts, versions of one fact in the order in which they came."""
        settled = versions(self.history, facts)
        self.base, self.until, self.outdated = settled.facts, settled.until, set(settled.outdated)
        self.fresh: list[Fact | None] = []
        self.gone: set[int] = set()
        self._rows: dict[Fact, dict[int, list[int]]] = {}  # key -> time -> where its versions are
        self._key_slices: Slices | None = None
        for group in self.groups.values():
            group.cut(self.history, self.base, self.until)

    def facts(self) -> pl.DataFrame:
        """Return every version of every fact, sorted so that `reset` comes to the same and equal states look equal."""
        base = self.base
        if self.gone:
            kept = np.ones(base.height, dtype=np.bool_)
            kept[list(self.gone)] = False
            base = base.filter(pl.Series(kept))
        fresh = [fact for fact in self.fresh if fact is not None]
        parts = [pl.DataFrame(list(self.outdated), schema=base.schema, orient="row"), base]
        parts.append(pl.DataFrame(fresh, schema=base.schema, orient="row"))
        counts = [pl.repeat(min(at, 1), part.height, eager=True) for at, part in enumerate(parts)]
        whole = pl.concat(parts).with_columns(pl.concat(counts).alias("_counts"))
        identity = [*(f"k_{name}" for name in self.history.source.key), "_time"]
        rest = sorted(set(base.columns) - {*identity, "_known"})
        return whole.sort([*identity, "_counts", "_known", *rest], nulls_last=False).drop("_counts")

    def put(self, facts: pl.DataFrame) -> int:
        """Take in versions of facts, in the order in which they came, and return how many were new."""
        if facts.height >= BULK_ROWS and facts.height * BULK_SHARE >= self.base.height + len(self.fresh):
            before = self.facts()
            new = facts.unique(maintain_order=True).join(before, on=before.columns, how="anti", nulls_equal=True)
            if new.height:
                self.reset(pl.concat([before, new]))
            return new.height
        return sum(self._put(fact) for fact in facts.iter_rows())

    def _put(self, fact: Fact) -> int:
        rows = self._rows_of(fact)
        chain = [(row, self.fact(row)) for row in rows]
        if fact in self.outdated or any(fact == other for _, other in chain):
            return 0
        for row, other in follow(chain, fact[self._known_at], self._known_at):
            rows.remove(row)
            self._remove(row, other)
        if chain:
            followed, before = chain[-1]
            if followed not in self.until:
                for group, key in self._homes(before):
                    insort(group.make(key).replaced, before[self._known_at])
            self.until[followed] = fact[self._known_at]
        row = self.base.height + len(self.fresh)
        rows.append(row)
        self.fresh.append(fact)
        for group, key in self._homes(fact):
            self._place(group.make(key), group.arguments, row, fact)
        return 1

    def fact(self, row: int) -> Fact:
        """Return the version that a row holds."""
        if row < self.base.height:
            return self.base.row(row)
        found = self.fresh[row - self.base.height]
        assert found is not None, row
        return found

    def _rows_of(self, fact: Fact) -> list[int]:
        """Return where the versions are that this fact has so far, in the order of becoming known."""
        key = tuple(fact[at] for at in self._key_at)
        times = self._rows.get(key)
        if times is None:
            times = self._rows[key] = {}
            if self._key_slices is None:
                names = [f"k_{name}" for name in self.history.source.key]
                self._key_slices = Slices(self.history, self.base, names, nulls=True)
            positions = self._key_slices.take(key[0] if len(key) == 1 else key)
            if positions is not None:
                for row, time in zip(positions.tolist(), self.base["_time"][positions].to_list(), strict=True):
                    times.setdefault(time, []).append(row)
        return times.setdefault(fact[self._time_at], [])

    def _remove(self, row: int, fact: Fact) -> None:
        """Take out a version that no longer counts at all, and remember it: should it come again, nothing changes."""
        for group, key in self._homes(fact):
            series = group.make(key)
            series.remove(fact[self._known_at], row)
            if row in self.until:
                series.replaced.remove(fact[self._known_at])
        self.until.pop(row, None)
        self.outdated.add(fact)
        if row < self.base.height:
            self.gone.add(row)
        else:
            self.fresh[row - self.base.height] = None

    def _homes(self, fact: Fact) -> Iterator[tuple[Group, Any]]:
        """Yield the groups that a fact belongs to, with the key of each; a null belongs to none."""
        for group in self.groups.values():
            values = tuple(fact[self._columns[name]] for name in group.names)
            if all(value is not None for value in values):
                yield group, values[0] if group.single else values

    def _place(self, series: Series, arguments: Sequence[str], row: int, fact: Fact) -> None:
        """Put a version into a series: after those known before, among those of the same instant by time and key."""
        instant = fact[self._known_at]
        place, end = bisect_left(series.instants, instant), bisect_right(series.instants, instant)
        mine = self._tie(fact)
        while place < end and self._tie(self.fact(series.rows[place])) < mine:
            place += 1
        series.insert(place, instant, row, [fact[self._columns[name]] for name in arguments])

    def _tie(self, fact: Fact) -> tuple[Any, ...]:
        """Return what orders facts of one instant: time, then key, nulls first."""
        return (fact[self._time_at], *((fact[at] is not None, fact[at]) for at in self._key_at))

    def prune(self, before_us: int) -> int:
        """Forget the facts that no prediction at or after this time can use, and return how many."""
        facts, history = self.facts().with_row_index("_row"), self.history
        keep = pl.col("_known") >= 2 * (before_us - history.reach_us)
        if history.forever:
            keys = [f"k_{name}" for name in history.source.key]
            newest = facts.filter(pl.col("_known") <= 2 * before_us).sort("_known", "_time", maintain_order=True)
            newest = newest.unique(keys, keep="last") if keys else newest.tail(1)
            keep = keep | pl.col("_row").is_in(newest["_row"].implode())
        kept = facts.filter(keep).drop("_row")
        if kept.height < facts.height:
            self.reset(kept)
        return facts.height - kept.height

"""Words become a plan: which columns of which source are read, how they are grouped, and what is looked up when.

`compile` makes a plan of the words. The plan is what the offline matrix and the online state both run, so there is one
definition of each part:

- An `Argument` is one SQL value of a fact ("arr_delay > 30"), kept in the state under a short name.
- A `Grouping` is how facts are found: columns of the source that must equal columns of the row predicted for.
- A `History` is one source with a time: its arguments and groupings.
- A `Look` is one aggregate over a window, or one value as of an instant; a feature of that form is one Look, or SQL
  over several ("sum(a) / count(*)").

A row may be used from the moment it is known, and a row of the model's own source only strictly after it happened, so
that it never sees itself or its equals of the same instant. Both rules are one comparison on instants counted in half
microseconds: a fact known at k has the instant 2k; one of the own source that claims to be known no later than it
happened (h) has 2h + 1; a prediction at t may use instants up to 2t, a window of length w those above 2(t - w) + 1.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tenon.contract import sql
from tenon.contract.column import Source
from tenon.errors import ConfigError, sentence

Kind = Literal["number", "category"]
Use = Literal["number", "text", "identity", "present"]

UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000, "w": 604_800_000_000}
FAR_US = 1 << 60  # no instant is further away than this: half of what 64 bits hold in half microseconds
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*")


# ── the plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One SQL value of a fact and how it is kept: a finite number, text, what equals what, or whether it is there."""

    name: str
    expr: sql.Expr
    use: Use


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which columns of a source must equal which columns of the row predicted for (none: every fact counts)."""

    columns: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A source with a time, as the features read it."""

    source: Source
    own: bool
    arguments: tuple[Argument, ...]
    groupings: tuple[Grouping, ...]
    reach_us: int  # how far back any feature with a limit looks
    forever: bool  # whether a feature takes the last value however old it is

    @property
    def columns(self) -> tuple[str, ...]:
        """Name the columns kept as they are: what identifies a fact and what groups it."""
        grouped = (name for grouping in self.groupings for name in grouping.columns)
        return tuple(dict.fromkeys((*self.source.key, *grouped)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A source without a time, as the features look things up in it: one row for each key."""

    source: Source
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One aggregate over a window, or (`asof`) the last known value no older than the window; 0 is without limit."""

    aggregate: str
    argument: str  # "" for count(*)
    window_us: int
    type: str  # of the aggregate in SQL, for the SQL around it


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFeature:
    """A feature of the row itself: SQL, or a function of the named columns."""

    name: str
    kind: Kind
    expr: sql.Expr | None
    function: Callable[..., Any] | None
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFeature:
    """A feature of what was known: looks into one grouping of one source, and SQL over them when there is any."""

    name: str
    kind: Kind
    source: str
    grouping: Grouping
    looks: tuple[Look, ...]
    outer: sql.Expr | None  # over _agg0, _agg1, ...; None when the one look is the feature


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFeature:
    """A feature looked up by key in a source without a time."""

    name: str
    kind: Kind
    source: str
    keys: tuple[str, ...]
    argument: str


AnyFeature = RowFeature | HistoryFeature | TableFeature


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything the matrix and the online state do, in the order of the features."""

    features: tuple[AnyFeature, ...]
    histories: Mapping[str, History]
    tables: Mapping[str, Table]
    label: sql.Expr
    label_known: str
    spine_columns: tuple[str, ...]  # non-late columns of the row predicted for that the features read


# ── durations and instants ───────────────────────────────────────────────────────────────────────────────────────────


def duration_us(text: str, place: str) -> int:
    """Read ``7d`` as microseconds; ConfigError when it is no number with a unit of s, m, h, d or w."""
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    span = round(float(found[1]) * UNITS_US[found[2]]) if found else 0
    if not 0 < span < FAR_US:
        raise ConfigError(
            sentence(
                "a duration such as '90s', '15m', '3h', '7d' or '2w'",
                f"'{text}'",
                at=place,
                hint="give a number and a unit",
            )
        )
    return span


_EPOCH = dt.datetime(1970, 1, 1)


def micros(moment: dt.date) -> int:
    """Return microseconds since 1970 of a datetime (UTC when it has no zone) or of a date's midnight."""
    if not isinstance(moment, dt.datetime):
        return (moment.toordinal() - 719_163) * 86_400_000_000
    if moment.tzinfo is not None:
        moment = moment.astimezone(dt.UTC).replace(tzinfo=None)
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def types_of(source: Source) -> dict[str, str]:
    """Return the type of each column of a source; its times are timestamps unless declared otherwise."""
    types: dict[str, str] = {name: "timestamp" for name in (source.time, source.known_at) if name}
    types.update((column.name, column.type) for column in source.columns)
    return types


def columns_read(feature: AnyFeature) -> tuple[str, ...]:
    """Name the columns of the row predicted for that a feature reads."""
    if isinstance(feature, RowFeature):
        return feature.columns
    return feature.grouping.keys if isinstance(feature, HistoryFeature) else feature.keys

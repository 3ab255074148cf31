"""Windows of event time: where they begin, what each one holds, and how a person says their names.

A window is a stretch of the rows' own time (when a flight was due, not when the request came), so a replay of last year
and live traffic are cut alike. Windows of whole weeks begin on Mondays and windows of whole days at midnight, UTC;
others count from Monday 5 January 1970, so that every examination cuts at the same places and a closed window is
summarised once. `Window` is what is told of one: counts, health, performance with intervals, drift column by column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tenon.errors import ConfigError, sentence
from tenon.metric import Estimate
from tenon.watch.observation import moment

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
DAY_S = 86_400.0
WEEK_S = 7 * DAY_S
_MONDAY_S = 4 * DAY_S  # Monday 5 January 1970
_MONTHS: tuple[str, ...] = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What one window of observations tells; times are Unix seconds, shares are between 0 and 1.

    `open` says its end lies ahead, `maturing` that labels of its rows are still expected: performance of such a window
    is shown and never judged, because the labels that come early are not like those that come late.
    """

    start: float
    end: float
    rows: int = 0
    distinct: int = 0  # rows that differ in key and time (a row asked about twice counts once)
    labelled: int = 0
    sampled: int = 0  # distinct rows that performance was computed on, when they were too many for all
    open: bool = False
    maturing: bool = False
    first: float = math.nan
    last: float = math.nan
    gap_s: float = 0.0  # the longest stretch without a row
    versions: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    by_version: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    rate: float = math.nan  # the mean label of labelled rows: for a yes-or-no label, the share of yes
    predicted: float = math.nan  # the mean score of the same rows
    calibration: tuple[Mapping[str, float], ...] = ()
    drift: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, float] = field(default_factory=dict)
    p50_ms: float = math.nan
    p99_ms: float = math.nan
    slow: int = 0  # answers slower than the limit of the configuration
    timed: int = 0
    errors: int = 0
    invalid: int = 0  # of those, requests that nobody could have answered
    refused: int = 0  # of those, requests that were told to come back
    good: int = 0  # answers within the limit of the configuration
    usd: float = 0.0

    @property
    def labelled_share(self) -> float:
        """Return which share of the rows performance looks at has its label."""
        return self.labelled / (self.sampled or self.distinct) if self.distinct else 0.0

    @property
    def partial(self) -> bool:
        """Whether rows cover so little of the window (a first week may begin on a Friday) that it is unlike others."""
        return self.rows > 0 and self.last - self.first < 0.6 * (self.end - self.start)

    @property
    def judged(self) -> bool:
        """Whether performance here may be judged: closed, mature, and some labels there."""
        return not self.open and not self.maturing and self.labelled > 0

    @property
    def goodput(self) -> float:
        """Return which share of the rows that could be answered was, within the limit."""
        offered = self.rows - self.invalid
        return self.good / offered if offered > 0 else math.nan

    @property
    def usd_per_1000(self) -> float:
        """Return the cost of a thousand rows."""
        return 1000 * self.usd / self.rows if self.rows else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the window as plain data for the `watch` record; what is unknown is None."""
        return {
            "start": iso(self.start),
            "end": iso(self.end),
            "rows": self.rows,
            "distinct": self.distinct,
            "labelled": self.labelled,
            "labelled_share": round(self.labelled_share, 6),
            "sampled": self.sampled,
            "open": self.open,
            "maturing": self.maturing,
            "partial": self.partial,
            "first": iso(self.first) if math.isfinite(self.first) else None,
            "last": iso(self.last) if math.isfinite(self.last) else None,
            "gap_s": _known(self.gap_s, 3),
            "versions": dict(self.versions),
            "metrics": {name: value.to_dict() for name, value in self.metrics.items()},
            "by_version": {
                version: {name: value.to_dict() for name, value in metrics.items()}
                for version, metrics in self.by_version.items()
            },
            "rate": _known(self.rate),
            "predicted": _known(self.predicted),
            "calibration": [dict(group) for group in self.calibration],
            "drift": {name: _known(psi) for name, psi in self.drift.items()},
            "missing": {name: _known(share) for name, share in self.missing.items()},
            "p50_ms": _known(self.p50_ms, 4),
            "p99_ms": _known(self.p99_ms, 4),
            "slow": self.slow,
            "errors": self.errors,
            "refused": self.refused,
            "goodput": _known(self.goodput),
            "usd": _known(self.usd, 9),
            "usd_per_1000": _known(self.usd_per_1000, 9),
        }


# ── where windows begin ──────────────────────────────────────────────────────────────────────────────────────────────


def width_of(text: str) -> float:
    """Return a duration such as ``7d`` in seconds; raises ConfigError when it is none."""
    number, unit = text[:-1], text[-1:]
    try:
        value = float(number) * _UNITS_S[unit]
    except (ValueError, KeyError):
        value = math.nan
    if not (math.isfinite(value) and value >= 1):
        raise ConfigError(
            sentence("a number and one of s, m, h, d, w", f"'{text}'", at="watch.window", hint="for example 7d")
        )
    return value


def start_of(at_s: float, width_s: float) -> float:
    """Return where the window that holds this moment begins."""
    return math.floor((at_s - _MONDAY_S) / width_s) * width_s + _MONDAY_S


def iso(at_s: float) -> str:
    """Write Unix seconds as ISO 8601, UTC without a zone: ``2013-11-01T05:15:00``."""
    return moment(at_s).isoformat(timespec="seconds")


# ── how windows are said ─────────────────────────────────────────────────────────────────────────────────────────────


def day(at_s: float) -> str:
    """Say a day: ``25 November 2013``."""
    when = moment(at_s)
    return f"{when.day} {_MONTHS[when.month - 1]} {when.year}"


def named(start: float, end: float) -> str:
    """Say a window as one names it: ``the week of 25 November 2013``, ``25 November 2013``, or from and to."""
    width = end - start
    if width == WEEK_S:
        return f"the week of {day(start)}"
    if width == DAY_S:
        return day(start)
    if width % DAY_S == 0:
        return f"the {width / DAY_S:.0f} days from {day(start)}"
    begins, ends = moment(start), moment(end)
    return f"{day(start)}, {begins:%H:%M} to {ends:%H:%M}"


def in_(window: Window) -> str:
    """Say when, to begin a sentence with: ``In the week of 25 November 2013,``."""
    said = named(window.start, window.end)
    return f"In {said}," if said.startswith("the") else f"On {said},"


def unit_of(width_s: float, count: int) -> str:
    """Say a number of windows: ``1 week``, ``3 weeks``, ``12 hours`` when each is an hour, else ``3 windows``."""
    return f"{count} {unit(width_s)}{'' if count == 1 else 's'}"


def unit(width_s: float) -> str:
    """Say what one window is: ``week``, ``day``, ``hour``, else ``window``."""
    return {WEEK_S: "week", DAY_S: "day", 3600.0: "hour"}.get(width_s, "window")


def _known(value: float, digits: int = 6) -> float | None:
    return round(value, digits) if math.isfinite(value) else None

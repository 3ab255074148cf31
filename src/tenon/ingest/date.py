"""How dates and timestamps are written, and which of several formats a column is written in.

A vote over the formats that read anything of a column: one wins when it reads most; others join that read what it
leaves and never disagree with it; when two read everything and mean other days, they are rivals and nobody wins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

DAY_FIRST = ("%d/%m/%Y", "%d/%m/%y", "%d-%m-%Y", "%d-%m-%y")
MONTH_FIRST = ("%m/%d/%Y", "%m/%d/%y", "%m-%d-%Y", "%m-%d-%y")
DATES = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%d.%m.%Y",
    "%d.%m.%y",
    *DAY_FIRST,
    *MONTH_FIRST,
    "%d %b %Y",
    "%d-%b-%Y",
    "%d-%b-%y",
    "%d %b %y",
    "%d %B %Y",
    "%B %d, %Y",
    "%b %d, %Y",
    "%B %d %Y",
    "%d. %B %Y",
    "%Y-%b-%d",
    "%d/%b/%Y",
    "%a, %d %b %Y",
    "%y-%m-%d",
    "%y/%m/%d",
)
TIMES = ("%H:%M:%S", "%H:%M", "%H:%M:%S%.f", "%I:%M %p", "%I:%M:%S %p", "%I:%M%p")
ZONES = ("", "Z", "%z", " %z", " UTC", " GMT")
COMPACT = (
    "%Y%m%dT%H%M%S",
    "%Y%m%dT%H%M%SZ",
    "%d/%b/%Y:%H:%M:%S %z",
    "%a, %d %b %Y %H:%M:%S %z",
    "%a %b %d %H:%M:%S %Y",
)
SPREAD = 8  # different dates from which years are told from days


def possible(patterns: Sequence[str], cells: Sequence[str]) -> list[str]:
    """Leave out the patterns with a sign that no cell has: they read nothing, and trying each takes time."""
    seen = set("".join(cells))
    words = any(sign.isalpha() for sign in seen)
    return [
        pattern
        for pattern in patterns
        if seen.issuperset(re.sub(r"%\.f|%[a-zA-Z]| ", "", pattern)) and (words or not re.search("%[abBp]", pattern))
    ]


def stamps(cells: Sequence[str]) -> list[str]:
    """List the timestamp formats that cells of this look could have."""
    joined = " ".join(cells[:20])
    joints = [joint for joint, sign in (("T", r"\dT\d"), (" ", r"\d \d"), (", ", r"\d, \d")) if re.search(sign, joined)]
    zones = [
        zone
        for zone in ZONES
        if not zone
        or (zone == "Z" and "Z" in joined)
        or (zone.strip() and re.search(r"[+-]\d{2}:?\d{2}|UTC|GMT", joined))
    ]
    clock = [time for time in TIMES if ("%p" in time) == bool(re.search(r"[ap]m\b", joined, re.IGNORECASE))]
    named = bool(re.search(r"[A-Za-z]{3}", joined.replace("UTC", "").replace("GMT", "")))
    days = [date for date in DATES if named or not re.search(r"%[abB]", date)]
    return [
        f"{date}{joint}{time}{zone}" for date in days for joint in joints for time in clock for zone in zones
    ] + list(COMPACT)


def _by_years(reads: Mapping[str, pl.Series]) -> dict[str, pl.Series]:
    """Decide where years of two digits stand, by their spread: the days of many dates are many, their years are few.

    With a hyphen, 24-01-05 may be either where that does not tell; with a slash the year comes last unless it tells.
    """
    out = dict(reads)
    for mark in "-/":
        first = [pattern for pattern in out if pattern.startswith(f"%y{mark}%m{mark}%d")]
        last = [p for p in out if p.startswith((f"%d{mark}%m{mark}%y", f"%m{mark}%d{mark}%y"))]
        if not first or not last:
            continue
        few, many = (min(out[p].dt.year().drop_nulls().n_unique() for p in some) for some in (first, last))
        dates = out[first[0]].drop_nulls().n_unique()
        if dates >= SPREAD and 3 * few <= many:
            drop = last
        elif mark == "/" or (dates >= SPREAD and 3 * many <= few):
            drop = first
        else:
            continue
        out = {pattern: values for pattern, values in out.items() if pattern not in drop}
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """The formats that read a column, in order of preference; with rivals, the formats of which none can be told."""

    formats: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()


def vote(reads: Mapping[str, pl.Series], weight: pl.Series, share: float) -> Vote | None:
    """Choose formats in order of how much they read; rivals read as much as the winner and mean other days.

    None when less than a share of all is read. `reads` has what each format makes of the values, `weight` how often
    each value stands.
    """
    if not reads:
        return None
    total = int(weight.sum())
    reads = _by_years(reads)
    amount = {pattern: int(weight.filter(values.is_not_null()).sum() or 0) for pattern, values in reads.items()}
    order = sorted(amount, key=lambda pattern: (-amount[pattern], list(reads).index(pattern)))
    best = order[0]
    rivals = [
        pattern
        for pattern in order[1:]
        if amount[pattern] == amount[best]
        and bool(((reads[pattern] != reads[best]) & reads[pattern].is_not_null()).any())
    ]
    chosen, merged = [best], reads[best]
    unsure: list[str] = []
    for pattern in order[1:]:
        extra = reads[pattern].is_not_null() & merged.is_null()
        both = reads[pattern].is_not_null() & merged.is_not_null()
        clash = bool((both & (reads[pattern] != merged)).any())
        gain = int(weight.filter(extra).sum() or 0)
        # Another format may join when it reads others' leftovers and never disagrees where both can read. When one more
        # reads as much of them as other days, none joins: nothing tells which of the two it is.
        if (
            gain
            and not clash
            and any(
                int(weight.filter(extra & reads[other].is_not_null()).sum() or 0) >= gain
                and bool((extra & (reads[other] != reads[pattern])).any())
                for other in order[1:]
                if other not in (pattern, *chosen)
            )
        ):
            unsure += [pattern]
        elif gain and not clash:
            chosen.append(pattern)
            merged = pl.select(pl.coalesce(merged, reads[pattern])).to_series()
        elif gain >= 0.02 * total and clash:
            rivals.append(pattern)
    if int(weight.filter(merged.is_not_null()).sum() or 0) < share * total:
        rivals = rivals or unsure
        if not rivals:
            return None
        either = merged
        for pattern in rivals:
            either = pl.select(pl.coalesce(either, reads[pattern])).to_series()
        if int(weight.filter(either.is_not_null()).sum() or 0) < share * total:
            return None
    if rivals:
        return Vote(rivals=(best, *rivals))
    return Vote(formats=tuple(chosen))

"""The online side of one group: what it had known, in order, in plain Python lists, and aggregates by position.

A request is one row, and NumPy costs more to call than these lists cost to read: a window is two `bisect`s and the
difference of two running sums. A Series keeps the instants of its facts, the row each came from, and a Track for each
argument. Running sums and block extremes are built when first read and only from the first place that changed, so a
fact that arrives in order costs its own work, and a late one the work of what came after it.

The values are the matrix's to the bit: sums are exact (`exact`), everything else picks a value that is there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tenon.feature import exact

BLOCK = 64
Pick = Callable[..., float]


class Sums:
    """Exact running sums of one argument: how many, their total, and the total of squares when asked for."""

    __slots__ = ("counts", "scale", "squared", "squares", "totals")

    def __init__(self, *, squared: bool) -> None:
        self.counts, self.totals, self.squares = [0], [0], [0]
        self.scale, self.squared = 0, squared

    def cut(self, place: int) -> None:
        """Forget the running sums beyond this place."""
        for sums in (self.counts, self.totals, self.squares):
            del sums[place + 1 :]

    def extend(self, values: Sequence[float | None]) -> None:
        """Go on from the last place with these values."""
        count, total, square = self.counts[-1], self.totals[-1], self.squares[-1]
        factor = 2.0**self.scale if self.scale <= 512 else 0.0
        for value in values:
            if value is not None:
                large = value * factor
                if factor and large.is_integer():
                    whole = int(large)
                else:
                    needed = exact.scale_for(value)
                    if needed > self.scale:
                        shift = needed - self.scale
                        self.rescale(needed)
                        total, square = total << shift, square << 2 * shift
                        factor = 2.0**needed if needed <= 512 else 0.0
                    whole = exact.scaled(value, self.scale)
                count += 1
                total += whole
                if self.squared:
                    square += whole * whole
            self.counts.append(count)
            self.totals.append(total)
            if self.squared:
                self.squares.append(square)

    def rescale(self, scale: int) -> None:
        """Move the running sums to a finer scale; they stay exact."""
        shift = scale - self.scale
        self.totals = [total << shift for total in self.totals]
        self.squares = [square << 2 * shift for square in self.squares]
        self.scale = scale


class Extremes:
    """The smallest (or largest) value of every block of 64, of every 64 blocks, and so on."""

    __slots__ = ("empty", "levels", "pick")

    def __init__(self, pick: Pick, empty: float) -> None:
        self.pick, self.empty = pick, empty
        self.levels: list[list[float]] = [[]]

    def cut(self, place: int) -> None:
        """Forget the values from this place on, and the blocks that hold them."""
        for level in self.levels:
            del level[place:]
            place //= BLOCK

    def extend(self, values: Sequence[float | None]) -> None:
        """Go on from the last place with these values; only whole blocks are kept above."""
        self.levels[0].extend(self.empty if value is None else value for value in values)
        at = 0
        while len(self.levels[at]) >= BLOCK:
            below = self.levels[at]
            if at + 1 == len(self.levels):
                self.levels.append([])
            above = self.levels[at + 1]
            above.extend(
                self.pick(below[start : start + BLOCK])
                for start in range(len(above) * BLOCK, len(below) - BLOCK + 1, BLOCK)
            )
            at += 1

    def of(self, lo: int, hi: int) -> float | None:
        """Return the extreme of the places [lo, hi); None where there is no value."""
        found, at = self.empty, 0
        while hi - lo > 2 * BLOCK and at + 1 < len(self.levels):
            level = self.levels[at]
            first, last = -(-lo // BLOCK), hi // BLOCK
            found = self.pick(
                found,
                self.pick(level[lo : first * BLOCK], default=found),
                self.pick(level[last * BLOCK : hi], default=found),
            )
            lo, hi, at = first, last, at + 1
        found = self.pick(found, self.pick(self.levels[at][lo:hi], default=found))
        return None if found == self.empty else found


class Track:
    """One argument of one group: its values in order, and what makes its aggregates quick."""

    __slots__ = ("high", "low", "needs", "ready", "sums", "values")

    def __init__(self, values: list[Any], needs: frozenset[str]) -> None:
        self.values, self.needs = values, needs
        self.sums = Sums(squared="stddev" in needs) if needs & {"count", "sum", "avg", "stddev"} else None
        self.low = Extremes(min, float("inf")) if "min" in needs else None
        self.high = Extremes(max, float("-inf")) if "max" in needs else None
        self.ready = 0

    def insert(self, place: int, value: Any) -> None:
        """Put a value before the one at this place."""
        self.values.insert(place, value)
        self.changed(place)

    def remove(self, place: int) -> None:
        """Take the value at this place away."""
        del self.values[place]
        self.changed(place)

    def changed(self, place: int) -> None:
        """Forget what was built beyond this place."""
        if place < self.ready:
            for built in (self.sums, self.low, self.high):
                if built is not None:
                    built.cut(place)
            self.ready = place

    def settle(self) -> None:
        """Build what is missing."""
        fresh = self.values[self.ready :]
        for built in (self.sums, self.low, self.high):
            if built is not None:
                built.extend(fresh)
        self.ready = len(self.values)


class Series:
    """One group: the instants at which its facts became known, ascending, and their values."""

    __slots__ = ("instants", "replaced", "rows", "tracks")

    def __init__(self, instants: list[int], rows: list[int], tracks: list[Track]) -> None:
        self.instants, self.rows, self.tracks = instants, rows, tracks
        self.replaced: list[int] = []  # instants of the facts here that a later version takes over from

    def insert(self, place: int, instant: int, row: int, values: Sequence[Any]) -> None:
        """Put a fact before the one at this place."""
        self.instants.insert(place, instant)
        self.rows.insert(place, row)
        for track, value in zip(self.tracks, values, strict=True):
            track.insert(place, value)

    def remove(self, instant: int, row: int) -> None:
        """Take away the fact that came from this row."""
        place = self.rows.index(row, bisect_left(self.instants, instant))
        del self.instants[place], self.rows[place]
        for track in self.tracks:
            track.remove(place)

    def current(self, lo: int, hi: int, now: int, until: Mapping[int, int]) -> tuple[int, list[Track]]:
        """Return how many of the places [lo, hi) are not replaced by `now`, and tracks of those alone."""
        rows = self.rows
        places = [place for place in range(lo, hi) if until.get(rows[place], now + 1) > now]
        tracks = [Track([track.values[place] for place in places], track.needs) for track in self.tracks]
        for track in tracks:
            track.settle()
        return len(places), tracks

    def settle(self) -> None:
        """Build everything, ahead of the first read."""
        for track in self.tracks:
            if track.ready < len(track.values):
                track.settle()


# ── aggregates of the places [lo, hi) of a track ─────────────────────────────────────────────────────────────────────


def _count(track: Track, lo: int, hi: int) -> float | None:
    assert track.sums is not None
    return float(track.sums.counts[hi] - track.sums.counts[lo])


def _sum(track: Track, lo: int, hi: int) -> float | None:
    sums = track.sums
    assert sums is not None
    if sums.counts[hi] == sums.counts[lo]:
        return None
    return exact.ratio(sums.totals[hi] - sums.totals[lo], sums.scale)


def _avg(track: Track, lo: int, hi: int) -> float | None:
    sums = track.sums
    assert sums is not None
    count = sums.counts[hi] - sums.counts[lo]
    total = exact.ratio(sums.totals[hi] - sums.totals[lo], sums.scale) if count else None
    return None if total is None else total / count


def _stddev(track: Track, lo: int, hi: int) -> float | None:
    sums = track.sums
    assert sums is not None
    count = sums.counts[hi] - sums.counts[lo]
    return exact.deviation(count, sums.totals[hi] - sums.totals[lo], sums.squares[hi] - sums.squares[lo], sums.scale)


def _min(track: Track, lo: int, hi: int) -> float | None:
    assert track.low is not None
    return track.low.of(lo, hi)


def _max(track: Track, lo: int, hi: int) -> float | None:
    assert track.high is not None
    return track.high.of(lo, hi)


def _distinct(track: Track, lo: int, hi: int) -> float | None:
    found = set(track.values[lo:hi])
    found.discard(None)
    return float(len(found))


def _first(track: Track, lo: int, hi: int) -> Any:
    values = track.values
    return next((values[place] for place in range(lo, hi) if values[place] is not None), None)


def _last(track: Track, lo: int, hi: int) -> Any:
    values = track.values
    return next((values[place] for place in range(hi - 1, lo - 1, -1) if values[place] is not None), None)


AGGREGATES: dict[str, Callable[[Track, int, int], Any]] = {
    "count": _count,
    "sum": _sum,
    "avg": _avg,
    "stddev": _stddev,
    "min": _min,
    "max": _max,
    "distinct": _distinct,
    "first": _first,
    "last": _last,
}

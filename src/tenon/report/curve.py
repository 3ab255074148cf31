"""Curves of metrics: thinned so that no extreme is lost, drawn with characters for a terminal and as SVG for a page.

A picture has a few hundred columns, a run may have a million points. Of all points that fall into one column, `thinned`
keeps the first, the lowest, the highest and the last, which draws the same picture as all of them would (M4: Jugel et
al., VLDB 2014). What is no number (NaN, infinity) cannot be drawn as a value and is what a person most needs to see: it
breaks the line and is marked where it happened.

The axis is logarithmic where all values are above zero and span at least two decades, unless the caller says otherwise.
One curve is drawn in braille, eight dots a character; several with a letter each, which needs no colour to be told
apart. Values up to the ends of float64 are drawn: nothing here subtracts before it has scaled down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tenon.report import chart

DECADES = 2.0  # values that span so many powers of ten are drawn on a logarithmic axis
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # braille: left and right column of dots, top to bottom
LETTERS = "ABCDEFGH"
SEVERAL = "*"  # stands where curves cross
BAD = "!"
WIDTH, HEIGHT = 80, 12

Wanted = Literal["auto", "log", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A thinned curve: vertices in order of steps (None breaks the line), and where there was no number.

    `points` and `not_finite` count what was logged; `bad` holds at most one step for each column.
    """

    steps: tuple[int, ...]
    values: tuple[float | None, ...]
    bad: tuple[int, ...] = ()
    points: int = 0
    not_finite: int = 0

    def finite(self) -> list[float]:
        """Return the values that are numbers."""
        return [value for value in self.values if value is not None]

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as plain data."""
        return {
            "steps": list(self.steps),
            "values": list(self.values),
            "bad": list(self.bad),
            "points": self.points,
            "not_finite": self.not_finite,
        }


# ── thinning ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def thinned(steps: Any, values: Any, *, columns: int) -> Curve:
    """Thin points to `columns` columns: first, lowest, highest and last of each; a million points take some 0.1 s."""
    at, y = np.asarray(steps), np.asarray(values, dtype=np.float64)
    if len(at) > 1 and bool((at[1:] < at[:-1]).any()):
        order = np.argsort(at, kind="stable")
        at, y = at[order], y[order]
    finite = np.isfinite(y)
    column = _columns(at, columns)
    bad = np.flatnonzero(~finite)
    first_bad = bad[np.unique(column[bad], return_index=True)[1]]
    if len(at) <= 4 * columns:
        kept = np.arange(len(at))
    else:
        good = np.flatnonzero(finite)
        # A column without any number breaks the line: one of its points is kept to say so.
        empty = first_bad[~np.isin(column[first_bad], column[good])]
        kept = np.unique(np.concatenate([_extremes(good, column[good], y[good]), empty]))
    return Curve(
        steps=tuple(at[kept].tolist()),
        values=tuple(value if math.isfinite(value) else None for value in y[kept].tolist()),
        bad=tuple(at[first_bad].tolist()),
        points=len(at),
        not_finite=len(bad),
    )


def _columns(at: Any, columns: int) -> Any:
    """Return the column of each step, by its place between the first and the last."""
    if not len(at):
        return np.zeros(0, np.int64)
    x = at.astype(np.float64)
    span = float(x[-1] - x[0]) or 1.0
    return np.minimum(((x - x[0]) / span * columns).astype(np.int64), columns - 1)


def _extremes(place: Any, column: Any, y: Any) -> Any:
    """Return the places of the first, lowest, highest and last number of each column; columns are in order."""
    if not len(place):
        return place
    start = np.flatnonzero(np.append(True, column[1:] != column[:-1]))
    end = np.append(start[1:], len(column)) - 1
    sizes = end - start + 1
    found = [start, end]
    for extreme in (np.minimum.reduceat(y, start), np.maximum.reduceat(y, start)):
        hits = np.flatnonzero(y == np.repeat(extreme, sizes))
        found.append(hits[np.unique(column[hits], return_index=True)[1]])
    return place[np.unique(np.concatenate(found))]


# ── the axis of values ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """From the lowest to the highest value, straight or logarithmic."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, values: Sequence[float], wanted: Wanted = "auto") -> Axis:
        """Choose the axis for values; a logarithm is not taken of what is not above zero, whatever is wanted."""
        low, high = min(values), max(values)
        wide = low > 0 and math.log10(high) - math.log10(low) >= DECADES
        return cls(low=low, high=high, log=low > 0 and (wide if wanted == "auto" else wanted == "log"))

    def place(self, value: float) -> float:
        """Return where a value lies, 0 at the lowest and 1 at the highest; in the middle where there is no span."""
        if self.log:
            low, high, at = (math.log10(one) for one in (self.low, self.high, value))
        else:
            size = max(abs(self.low), abs(self.high)) or 1.0  # scaled first: the span of float64 is no float64
            low, high, at = self.low / size, self.high / size, value / size
        return (at - low) / (high - low) if high > low else 0.5

    def marks(self, about: int = 5) -> list[float]:
        """Return round values between the ends; the ends themselves where there are no two."""
        found = self._powers(about) if self.log else self._round(about)
        return found if len(found) > 1 else sorted({self.low, self.high})

    def _powers(self, about: int) -> list[float]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        every = max(1, math.ceil((last - first + 1) / (about + 1)))
        return [float(f"1e{power}") for power in range(first, last + 1, every)]

    def _round(self, about: int) -> list[float]:
        span = self.high - self.low
        if not (math.isfinite(span) and span > 1e-290 and span > 1e-12 * max(abs(self.low), abs(self.high))):
            return []
        power = 10.0 ** math.floor(math.log10(span / about))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * about >= span * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def number(value: float) -> str:
    """Write a value of a curve in at most ten characters."""
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 1e-4):
        return f"{value:.3g}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


# ── with characters ──────────────────────────────────────────────────────────────────────────────────────────────────


def plain(
    curves: Sequence[tuple[int, Curve]],
    *,
    several: bool = False,
    wanted: Wanted = "auto",
    width: int = WIDTH,
    height: int = HEIGHT,
) -> list[str]:
    """Draw curves, each with the place of its run, as lines of text of at most `width`; `!` marks what is no number.

    With `several` a curve is drawn in the letter of its place, also where it is the only one.
    """
    values = [value for _, curve in curves for value in curve.finite()]
    every = [step for _, curve in curves for step in (*curve.steps[:1], *curve.steps[-1:])]
    if not values:
        return ["  no value is a number" if every else "  nothing was logged"]
    axis = Axis.of(values, wanted)
    ends = [number(axis.high), number(axis.low)]
    gutter = max(len(text) for text in ends)
    across = width - gutter - 2
    first, last = min(every), max(every)
    draw = _letters if several or len(curves) > 1 else _braille
    rows = draw(curves, axis, (first, last), (across, height))
    floor = ["─"] * across
    for _, curve in curves:
        for step in curve.bad:
            floor[min(int(_share(step, first, last) * across), across - 1)] = BAD
    lines = [f"{'':>{gutter}} │{row}".rstrip() for row in rows]
    marked = {0: ends[0], height - 1: ends[1]} if axis.high > axis.low else {height // 2: ends[0]}
    for place, text in marked.items():
        lines[place] = f"{text:>{gutter}} ┤{rows[place]}".rstrip()
    lines.append(f"{'':>{gutter}} └{''.join(floor)}")
    left, right = f"{first:,}", f"{last:,}"
    said = "log scale" if axis.log else ""
    foot = f"{left}{said.center(across - len(left) - len(right))}{right}" if last > first else f"step {left}  {said}"
    return [*lines, f"{'':>{gutter}}  {foot}".rstrip()]


def _share(step: int, first: int, last: int) -> float:
    return (step - first) / (last - first) if last > first else 0.5


def _dots(curve: Curve, axis: Axis, ends: tuple[int, int], size: tuple[int, int]) -> set[tuple[int, int]]:
    """Return the cells a curve passes through, (column, row from the top), each column filled without holes."""
    wide, tall = size
    found: set[tuple[int, int]] = set()
    before: tuple[int, int] | None = None
    for step, value in zip(curve.steps, curve.values, strict=True):
        if value is None:
            before = None
            continue
        x = min(int(_share(step, *ends) * wide), wide - 1)
        y = tall - 1 - min(int(axis.place(value) * tall), tall - 1)
        found.add((x, y))
        if before is not None:
            found.update(_between(before, (x, y)))
        before = (x, y)
    return found


def _between(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the cells on the line from one cell to another."""
    count = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    return [
        (
            start[0] + round((end[0] - start[0]) * part / count),
            start[1] + round((end[1] - start[1]) * part / count),
        )
        for part in range(1, count)
    ]


def _braille(
    curves: Sequence[tuple[int, Curve]], axis: Axis, ends: tuple[int, int], size: tuple[int, int]
) -> list[str]:
    across, height = size
    cells = [[0] * across for _ in range(height)]
    for x, y in _dots(curves[0][1], axis, ends, (2 * across, 4 * height)):
        cells[y // 4][x // 2] |= DOTS[x % 2][y % 4]
    return ["".join(chr(0x2800 + bits) if bits else " " for bits in row) for row in cells]


def _letters(
    curves: Sequence[tuple[int, Curve]], axis: Axis, ends: tuple[int, int], size: tuple[int, int]
) -> list[str]:
    across, height = size
    cells = [[" "] * across for _ in range(height)]
    for place, curve in curves:
        for x, y in _dots(curve, axis, ends, size):
            cells[y][x] = LETTERS[place] if cells[y][x] == " " else SEVERAL
    return ["".join(row) for row in cells]


# ── as SVG ───────────────────────────────────────────────────────────────────────────────────────────────────────────

COLOURS = ("#1f5fbf", "#b26a00", "#1c7c4a", "#8a3ab9", "#b3261e", "#0f7c86", "#6b5d1e", "#5b6675")
DASHES = ("", "7 4", "2 4", "9 3 2 3", "12 5", "4 2", "1 3", "14 3 3 3")


def colour(place: int) -> str:
    """Return the colour of the run at a place: the page's, with the light theme as fall-back."""
    return f"var(--line{place},{COLOURS[place]})"


def svg(curves: Sequence[tuple[int, Curve]], frame: chart.Frame, *, wanted: Wanted = "auto") -> str:
    """Draw curves, each with the place of its run (its colour, dashes and letter); ticks on top mark no numbers."""
    values = [value for _, curve in curves for value in curve.finite()]
    every = [step for _, curve in curves for step in (*curve.steps[:1], *curve.steps[-1:])]
    if not values:
        return chart.empty(frame)
    axis = Axis.of(values, wanted)
    marks = axis.marks()
    texts = [number(mark) for mark in marks]
    left = 14 + chart.CHAR_PX * max(len(text) for text in texts)
    area = chart.Area(left, 26 if frame.y_name else 14, frame.width - 24, frame.height - 46)
    first, last = min(every), max(every)

    def to_x(step: float) -> float:
        return area.left + _share(int(step), first, last) * (area.right - area.left)

    def to_y(value: float) -> float:
        return area.bottom - axis.place(value) * (area.bottom - area.top)

    steps = sorted({first, *(first + (last - first) * part // 4 for part in (1, 2, 3)), last})
    body = [chart.axis_y(area, zip(marks, texts, strict=True), to_y), chart.names(frame, area)]
    body.append(chart.axis_x(area, [(to_x(step), f"{step:,}") for step in steps]))
    ends: list[tuple[float, str, str]] = []
    for place, curve in curves:
        tone = colour(place)
        style = f"fill:none;stroke:{tone};stroke-width:1.7;stroke-linejoin:round"
        style += f";stroke-dasharray:{DASHES[place]}" if DASHES[place] else ""
        for run in _unbroken(curve):
            path = "L".join(f"{chart.px(to_x(step))} {chart.px(to_y(value))}" for step, value in run)
            body.append(f'<path d="M{path}" style="{style}"/>' if len(run) > 1 else _dot(run[0], to_x, to_y, tone))
            end = run[-1]
        body += [
            f'<path d="M{chart.px(to_x(step))} {chart.px(area.top - 7)}v9" '
            f'style="stroke:{chart.BAD};stroke-width:2"><title>no number at step {step:,}</title></path>'
            for step in curve.bad
        ]
        if len(curves) > 1 and curve.finite():
            ends.append((to_y(end[1]), LETTERS[place], tone))
    for y, letter, tone in chart.apart(ends, 14):
        body.append(chart.text_at(area.right + 6, y + 4, letter, colour=tone, weight=700))
    return chart.svg(frame, body)


def _dot(point: tuple[int, float], to_x: Any, to_y: Any, tone: str) -> str:
    return chart.dot(to_x(point[0]), to_y(point[1]), 3.2, tone)


def _unbroken(curve: Curve) -> list[list[tuple[int, float]]]:
    """Split a curve where there was no number."""
    runs: list[list[tuple[int, float]]] = [[]]
    for step, value in zip(curve.steps, curve.values, strict=True):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((step, value))
    return [run for run in runs if run]

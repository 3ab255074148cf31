"""Pictures as inline SVG, drawn by hand: axes with round numbers, labels with units, colours by class.

No script and no style attribute, so that the page's Content-Security-Policy can forbid both; a colour is a class that
the style sheet sets for light and dark. Every mark has a `<title>`, which is what a browser shows when one points at
it. All text is cleaned and escaped here (`_safe`), because the result is inserted as it is.

Round ticks are the usual 1, 2, 5 times a power of ten; times are ticked at midnights, Mondays or first days of months.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from markupsafe import Markup, escape

from tenon.ui import text

Point = tuple[float, float]
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 16, 14, 44
_NOTE = 7.2  # width of a letter of a mark's label, to leave room for it at the right


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a chart; `band` are (x, low, high), `dots` draws each point, `titles` are shown when pointed at."""

    name: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    tone: str = "one"
    dots: bool = False
    hollow: Sequence[bool] = ()  # points not to be judged yet
    titles: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """How a chart is labelled: what x and y are, whether x is time, and lines across at given heights."""

    x: str = ""
    y: str = ""
    time: bool = False
    marks: Sequence[tuple[float, str, str]] = ()  # (height, label, tone)
    zero: bool = False
    width: int = 720
    height: int = 260
    tick: Callable[[float], str] | None = None


def lines(series: Sequence[Series], axes: Axes) -> Markup:
    """Draw lines with bands over shared axes; empty when there is nothing to draw."""
    shown = [one for one in series if one.points]
    xs = [x for one in shown for x, _ in one.points]
    ys = [y for one in shown for _, y in one.points]
    ys += [end for one in shown for _, low, high in one.band for end in (low, high)] + [mark[0] for mark in axes.marks]
    ys = [y for y in ys if math.isfinite(y)]
    if not xs or not ys:
        return Markup("")
    low, high, step = _range(0.0 if axes.zero else min(ys), max(ys))
    left, right = min(xs), max(xs)
    if left == right:
        left, right = left - 1, right + 1
    margin = _RIGHT + round(max((_NOTE * len(label) for _, label, _ in axes.marks), default=0.0))
    frame = _Frame(axes.width, axes.height, left, right, low, high, margin)
    parts = [_grid(frame, axes, step)]
    end, below = axes.width - margin, -math.inf
    for height, label, tone in sorted(axes.marks, reverse=True):
        y = frame.y(height)
        parts.append(f'<line class="mark {tone}" x1="{_LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        below = max(y + 4, below + 15)  # labels of near lines stand under each other
        parts.append(f'<text class="mark-label" x="{end + 8}" y="{below:.1f}">{_safe(label)}</text>')
    parts.extend(_line(frame, one) for one in shown)
    return _svg("".join(parts), axes.width, axes.height, _described(shown, axes))


def bars(items: Sequence[tuple[str, float, str]], *, width: int = 720, tone: str = "one") -> Markup:
    """Draw horizontal bars, each with its name on the left and its figure at its end."""
    shown = [(name, value, said) for name, value, said in items if math.isfinite(value) and value >= 0]
    if not shown:
        return Markup("")
    most = max(value for _, value, _ in shown) or 1.0
    label = min(240, 14 + max(7 * len(name) for name, _, _ in shown))
    room = width - label - 90
    parts = []
    for row, (name, value, said) in enumerate(shown):
        y, long = row * 26 + 4, max(1.0, room * value / most)
        parts.append(f'<text class="name" x="{label - 10}" y="{y + 14}">{_safe(name[:34])}</text>')
        parts.append(
            f'<rect class="bar {tone}" x="{label}" y="{y + 2}" width="{long:.1f}" height="16" rx="3">'
            f"<title>{_safe(name)}: {_safe(said)}</title></rect>"
        )
        parts.append(f'<text class="figure" x="{label + long + 8:.1f}" y="{y + 14}">{_safe(said)}</text>')
    return _svg(
        "".join(parts), width, len(shown) * 26 + 8, ", ".join(f"{name}: {said}" for name, _, said in shown[:12])
    )


def heat(
    rows: Sequence[tuple[str, Sequence[float | None]]],
    columns: Sequence[tuple[str, str]],
    level: Callable[[str, int, float], str],
    *,
    unit: str,
) -> Markup:
    """Draw a table of coloured cells: `columns` are (short, full) names, `level` tells the tone of a cell."""
    if not rows or not columns:
        return Markup("")
    label = min(200, 20 + max(7 * len(name) for name, _ in rows))
    cell = max(16.0, min(92.0, (1060 - label) / len(columns)))
    width, top, tall = round(label + cell * len(columns) + 8), 26, 24
    every = max(1, math.ceil(52 / cell))
    parts = [
        f'<text class="tick" x="{label + cell * (i + 0.5):.1f}" y="16" text-anchor="middle">{_safe(short)}</text>'
        for i, (short, _) in enumerate(columns)
        if i % every == 0
    ]
    for r, (name, values) in enumerate(rows):
        y = top + r * tall
        parts.append(f'<text class="name" x="{label - 10}" y="{y + 15}">{_safe(name[:26])}</text>')
        for c, value in enumerate(values):
            known = value is not None and math.isfinite(value)
            tone = level(name, c, float(value or 0.0)) if known else "none"
            said = f"{unit} {text.decimal(value, 2)}" if known else "not known"
            parts.append(
                f'<rect class="cell {tone}" x="{label + c * cell:.1f}" y="{y}" width="{cell - 3:.1f}" '
                f'height="{tall - 3}" rx="3"><title>{_safe(name)}, {_safe(columns[c][1])}: {_safe(said)}'
                "</title></rect>"
            )
            if known and cell >= 44:
                x = label + c * cell + (cell - 3) / 2
                parts.append(f'<text class="in-cell {tone}" x="{x:.1f}" y="{y + 15}">{value:.2f}</text>')
    return _svg(
        "".join(parts), width, top + tall * len(rows) + 4, f"{unit} of {len(rows)} columns over {len(columns)} windows"
    )


def calibration(groups: Sequence[Mapping[str, Any]], *, width: int = 380) -> Markup:
    """Draw predicted against observed shares with their intervals, and the diagonal on which both agree."""
    shown = [group for group in groups if all(_known(group.get(name)) for name in ("predicted", "observed"))]
    if not shown:
        return Markup("")
    ends = [
        float(group[name]) for group in shown for name in ("predicted", "observed", "high") if _known(group.get(name))
    ]
    least = min([0.0, *[float(group[name]) for group in shown for name in ("predicted", "observed")]])
    low, high, step = _range(least, max(ends))
    frame = _Frame(width, width - 20, low, high, low, high)
    axes = Axes(x="predicted", y="observed", width=width, height=width - 20)
    parts = [_grid(frame, axes, step, x_step=step)]
    parts.append(
        f'<line class="mark calm" x1="{frame.x(low):.1f}" y1="{frame.y(low):.1f}" '
        f'x2="{frame.x(high):.1f}" y2="{frame.y(high):.1f}"/>'
    )
    for group in shown:
        x, y = frame.x(float(group["predicted"])), frame.y(float(group["observed"]))
        if _known(group.get("low")) and _known(group.get("high")):
            top, bottom = frame.y(float(group["high"])), frame.y(float(group["low"]))
            parts.append(f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        said = f"predicted {text.decimal(group['predicted'])}, observed {text.decimal(group['observed'])}"
        if _known(group.get("rows")):
            said += f", {text.count(group['rows'])} rows"
        parts.append(f'<circle class="dot one" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{_safe(said)}</title></circle>')
    return _svg("".join(parts), width, width - 20, "predicted against observed")


def spark(values: Sequence[float | None], *, width: int = 160, height: int = 36) -> Markup:
    """Draw a line as small as a word, without axes."""
    known = [(i, float(value)) for i, value in enumerate(values) if value is not None and math.isfinite(value)]
    if len(known) < 2:
        return Markup("")
    low, high = min(v for _, v in known), max(v for _, v in known)
    spread = (high - low) or 1.0
    points = [
        (4 + (width - 8) * i / max(len(values) - 1, 1), height - 5 - (height - 10) * (value - low) / spread)
        for i, value in known
    ]
    path = " ".join(f"{'L' if i else 'M'}{x:.1f},{y:.1f}" for i, (x, y) in enumerate(points))
    x, y = points[-1]
    said = f"from {text.decimal(known[0][1])} to {text.decimal(known[-1][1])}"
    return _svg(
        f'<path class="line one" d="{path}"/><circle class="dot one" cx="{x:.1f}" cy="{y:.1f}" r="3"/>',
        width,
        height,
        said,
    )


# ── pieces ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Frame:
    """From data to places on the picture."""

    width: int
    height: int
    left: float
    right: float
    low: float
    high: float
    margin: int = _RIGHT

    def x(self, value: float) -> float:
        return _LEFT + (self.width - _LEFT - self.margin) * (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return self.height - _BOTTOM - (self.height - _TOP - _BOTTOM) * (value - self.low) / (self.high - self.low)


def _safe(value: Any) -> Markup:
    """Clean and escape a text: nothing reaches a picture without this."""
    return escape(text.clean(value))


def _svg(inside: str, width: int, height: int, said: str) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{_safe(said)}">{inside}</svg>'
    )


def _range(low: float, high: float) -> tuple[float, float, float]:
    """Widen a range to round ends, and return them with the step between ticks."""
    if high - low < 1e-12 * max(abs(high), abs(low), 1e-300):
        spread = abs(high) * 0.1 or 1.0
        low, high = low - spread, high + spread
    step = _round((high - low) / 4)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step


def _round(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= value * 0.999)


def _grid(frame: _Frame, axes: Axes, step: float, *, x_step: float = 0.0) -> str:
    """Draw the grid, the ticks and the names of the axes."""
    parts = []
    foot, right = frame.height - _BOTTOM, frame.width - frame.margin
    for i in range(round((frame.high - frame.low) / step) + 1):
        value = frame.low + i * step
        y = frame.y(value)
        said = axes.tick(value) if axes.tick else _ticked(value, step)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_safe(said)}</text>')
    if axes.time:
        ticks = _times(frame.left, frame.right)
    else:
        across = x_step or _round((frame.right - frame.left) / 6 or 1.0)
        first = math.ceil(frame.left / across - 1e-9)
        last = math.floor(frame.right / across + 1e-9)
        ticks = [(i * across, _ticked(i * across, across)) for i in range(first, last + 1)]
    for value, said in ticks:
        x = frame.x(value)
        parts.append(f'<line class="grid short" x1="{x:.1f}" x2="{x:.1f}" y1="{foot}" y2="{foot + 4}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{foot + 18}" text-anchor="middle">{_safe(said)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{foot}" y2="{foot}"/>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text class="axis-name" x="{middle:.0f}" y="{frame.height - 6}" text-anchor="middle">{_safe(axes.x)}</text>'
    )
    half = (_TOP + foot) / 2
    parts.append(
        f'<text class="axis-name" x="14" y="{half:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {half:.0f})">{_safe(axes.y)}</text>'
    )
    return "".join(parts)


def _line(frame: _Frame, one: Series) -> str:
    """Draw one series: its band, its line, its points."""
    parts = []
    if len(one.band) > 1:
        upper = [f"{frame.x(x):.1f},{frame.y(high):.1f}" for x, _, high in one.band]
        lower = [f"{frame.x(x):.1f},{frame.y(low):.1f}" for x, low, _ in reversed(one.band)]
        parts.append(f'<polygon class="band {one.tone}" points="{" ".join(upper + lower)}"/>')
    drawn = [(x, y) for x, y in one.points if math.isfinite(y)]
    path = " ".join(f"{'L' if i else 'M'}{frame.x(x):.1f},{frame.y(y):.1f}" for i, (x, y) in enumerate(drawn))
    if len(drawn) > 1:
        parts.append(f'<path class="line {one.tone}" d="{path}"><title>{_safe(one.name)}</title></path>')
    if one.dots or len(drawn) == 1:
        for i, (x, y) in enumerate(one.points):
            if not math.isfinite(y):
                continue
            hollow = " hollow" if i < len(one.hollow) and one.hollow[i] else ""
            said = one.titles[i] if i < len(one.titles) else f"{one.name} {y:.4g}"
            parts.append(
                f'<circle class="dot {one.tone}{hollow}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="4">'
                f"<title>{_safe(said)}</title></circle>"
            )
    return "".join(parts)


def _ticked(value: float, step: float) -> str:
    """Write a tick with as many digits as the step needs."""
    if abs(value) < step / 1e6:
        return "0"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if digits > 6 or abs(value) >= 1e7:
        return f"{value:.2g}"
    return f"{value:,.{digits + (1 if round(step * 10**digits, 6) % 1 else 0)}f}"


def _times(left: float, right: float) -> list[tuple[float, str]]:
    """Choose moments to tick: hours, days, Mondays or first days of months, at most about eight."""
    begin, end = datetime.fromtimestamp(left, UTC), datetime.fromtimestamp(right, UTC)
    days = (right - left) / 86_400
    if days < 2:
        hours = max(1, math.ceil(days * 24 / 8))
        first = begin.replace(minute=0, second=0, microsecond=0)
        found = [first + timedelta(hours=hours * i) for i in range(math.ceil(days * 24 / hours) + 2)]
        return [(at.timestamp(), f"{at:%H:%M}") for at in found if begin <= at <= end]
    midnight = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    if days <= 80:
        every = 1 if days <= 9 else 7 * math.ceil(days / 70)
        first = midnight if every == 1 else midnight - timedelta(days=midnight.weekday())
        found = [first + timedelta(days=every * i) for i in range(math.ceil(days / every) + 2)]
        return [(at.timestamp(), text.short_day(at.timestamp())) for at in found if begin <= at <= end]
    months = max(1, math.ceil(days / 30.4 / 8))
    count = begin.year * 12 + begin.month - 1
    moments = [
        datetime((count + months * i) // 12, (count + months * i) % 12 + 1, 1, tzinfo=UTC)
        for i in range(math.ceil(days / 28 / months) + 2)
    ]
    return [(at.timestamp(), text.day(at.timestamp())[2:]) for at in moments if begin <= at <= end]


def _described(shown: Sequence[Series], axes: Axes) -> str:
    return f"{axes.y or 'value'} by {axes.x or 'step'}: {', '.join(text.clean(one.name) for one in shown)}"


def _known(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

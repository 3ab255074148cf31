"""Pictures as pure functions: numbers in, SVG text out; nothing is read, nothing is kept, no script runs in them.

Each picture carries a title and a description for those who do not see it, takes its colours from the page's CSS
variables (with fall-backs, so that it also stands alone) and so follows light, dark and print. Text is real text.
Coordinates are rounded to a tenth, so the same numbers give the same bytes.

A picture shows doubt where there is any: a band or whiskers around every estimate that has an interval. Axes of bars
begin where the caller says and the caption must say so; nothing is smoothed. Rejected: a plotting library (30 MB and a
script in every page for seven shapes), and images (they do not print sharp nor follow the theme).
"""

from __future__ import annotations

import hashlib
import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tenon.report import word

# The page's variables with the light theme as fall-back.
INK = "var(--ink,#1d2733)"
SOFT = "var(--soft,#5b6675)"
RULE = "var(--rule,#d9dce1)"
ACCENT = "var(--accent,#1f5fbf)"
SECOND = "var(--second,#b26a00)"
GOOD = "var(--good,#1c7c4a)"
WARN = "var(--warn,#b26a00)"
BAD = "var(--bad,#b3261e)"
PAPER = "var(--paper,#fffefb)"
TONES = {"": SOFT, "accent": ACCENT, "second": SECOND, "good": GOOD, "warn": WARN, "bad": BAD}
CHAR_PX = 7.0  # the width of an average character at 12 px, for leaving room


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What stands around a picture: its title and description (always), axis names, and its size in px."""

    title: str
    desc: str
    x_name: str = ""
    y_name: str = ""
    width: int = 560
    height: int = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of a line or of a calibration plot, with its interval; `rows` sets its size where size means rows."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None
    rows: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: its name, points and tone; `band` draws the interval as a band.

    Of several lines each is named at its end, or at `name_at` on the x axis where lines end together.
    """

    name: str
    points: tuple[Point, ...]
    tone: str = "accent"
    band: bool = True
    name_at: float | None = None
    dots: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: its label, value, interval, tone, and the text written at its end (default: the value)."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    tone: str = "accent"
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of time on a timeline (a mark when `end` equals `start`), in the lane its label names."""

    label: str
    start: float
    end: float
    tone: str = "accent"
    said: str = ""


def esc(text: str) -> str:
    """Return text as it may stand in SVG or HTML, control characters shown as dots."""
    return html.escape(word.clean(text))


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def line(
    series: Sequence[Series],
    frame: Frame,
    *,
    limit: tuple[float, str] | None = None,
    x_text: Callable[[float], str] = word.count,
    y_text: Callable[[float], str] = word.decimal,
    x_marks: Sequence[float] = (),
) -> str:
    """Draw lines with bands over x; a point without a value breaks its line; `limit` is a dashed level with a name.

    The x axis is marked at `x_marks`, or else at every point.
    """
    points = [point for one in series for point in one.points]
    ys = [value for p in points for value in (p.y, p.low, p.high) if value is not None]
    if not ys:
        return empty(frame)
    if limit:
        ys.append(limit[0])
    y_ticks = ticks(min(ys), max(ys), 4)
    y_texts = tick_texts(y_ticks, y_text)
    left = 14 + CHAR_PX * max(len(text) for text in y_texts)
    at_end = [one for one in series if len(series) > 1 and one.name_at is None]
    names_px = max((CHAR_PX * len(one.name) for one in at_end), default=0) + 14
    area = Area(left, 26 if frame.y_name else 12, frame.width - names_px, frame.height - (46 if frame.x_name else 30))
    xs = [point.x for point in points]
    to_x = scale(min(xs), max(xs), area.left + 8, area.right - 8)
    to_y = scale(y_ticks[0], y_ticks[-1], area.bottom, area.top)
    body = [axis_y(area, zip(y_ticks, y_texts, strict=True), to_y), names(frame, area)]
    body.append(axis_x(area, [(to_x(x), x_text(x)) for x in (x_marks or sorted(set(xs)))]))
    if limit:
        y = to_y(limit[0])
        body.append(f'<path d="M{px(area.left)} {px(y)}H{px(area.right)}" style="stroke:{WARN};stroke-dasharray:5 4"/>')
    ends: list[tuple[float, str, str]] = []
    for one in series:
        colour = TONES[one.tone]
        for run in unbroken(one.points):
            if one.band:
                body.append(band(run, to_x, to_y, colour))
            path = "L".join(f"{px(to_x(p.x))} {px(to_y(p.y or 0.0))}" for p in run)
            body.append(f'<path d="M{path}" style="fill:none;stroke:{colour};stroke-width:2;stroke-linejoin:round"/>')
            body += [dot(to_x(p.x), to_y(p.y or 0.0), 3.2, colour) for p in run if one.dots]
        seen = [p for p in one.points if p.y is not None]
        if one.name_at is not None and seen:
            near = min(seen, key=lambda p: abs(p.x - (one.name_at or 0.0)))
            spot = (to_x(near.x) - 8, to_y(near.y or 0.0) - 6)
            body.append(haloed(text_at(*spot, one.name, anchor="end", colour=colour, weight=600)))
        elif one in at_end and seen:
            ends.append((to_y(seen[-1].y or 0.0), one.name, colour))
    if limit:
        name = text_at(area.right, to_y(limit[0]) - 6, limit[1], anchor="end", colour=WARN, size=11)
        body.append(haloed(name))
    for y, name, colour in apart(ends, 14):
        body.append(text_at(area.right + 4, y + 4, name, colour=colour, weight=600))
    return svg(frame, body)


def bars(
    rows: Sequence[Bar],
    frame: Frame,
    *,
    start: float = 0.0,
    text: Callable[[float], str] = word.decimal,
) -> str:
    """Draw horizontal bars from `start`, each with its label, whiskers over its interval, and its value in words."""
    if not rows:
        return empty(frame)
    label_px = min(CHAR_PX * max(len(row.label) for row in rows) + 10, 0.42 * frame.width)
    said = [row.said or text(row.value) for row in rows]
    right = frame.width - CHAR_PX * max(len(one) for one in said) - 16
    reach = [value for row in rows for value in (row.value, row.high, row.low) if value is not None]
    to_x = scale(min([start, *reach]), max([start, *reach]), label_px, right)
    step, top = 27, 8
    body = [f'<path d="M{px(to_x(start))} 4V{top + step * len(rows)}" style="stroke:{RULE}"/>']
    for index, (row, words) in enumerate(zip(rows, said, strict=True)):
        y = top + index * step
        colour = TONES[row.tone]
        x0, x1 = sorted((to_x(start), to_x(row.value)))
        body.append(text_at(label_px - 8, y + 15, fitted(row.label, label_px - 8), anchor="end", colour=INK))
        body.append(
            f'<rect x="{px(x0)}" y="{y + 3}" width="{px(max(x1 - x0, 1))}" height="16" rx="2" '
            f'style="fill:{colour};fill-opacity:.82"/>'
        )
        end = x1
        if row.low is not None and row.high is not None:
            low, high = to_x(row.low), to_x(row.high)
            end = max(end, high)
            body.append(
                f'<path d="M{px(low)} {y + 11}H{px(high)}M{px(low)} {y + 6.5}v9M{px(high)} {y + 6.5}v9" '
                f'style="stroke:{INK};stroke-width:1.4"/>'
            )
        body.append(text_at(end + 7, y + 15, words, colour=INK, weight=600))
    return svg(frame, body, height=top + step * len(rows) + 4)


def calibration(points: Sequence[Point], frame: Frame) -> str:
    """Draw what was promised against what happened, with intervals; on the diagonal the promises hold.

    Dots grow with the rows they stand for; axes are percent and end at a round number above the last point.
    """
    seen = [p for p in points if p.y is not None]
    if not seen:
        return empty(frame)
    # A bin of a few rows has an interval to the ceiling; it is clipped there rather than allowed to shrink the rest.
    top = min(1.0, ticks(0.0, max(max(p.x, p.y or 0.0) for p in seen) * 1.06, 5)[-1])
    area = Area(52, 26, frame.width - 14, frame.height - 46)
    to_x = scale(0.0, top, area.left, area.right)
    to_y = scale(0.0, top, area.bottom, area.top)
    steps = [tick for tick in ticks(0.0, top, 5) if tick <= top + 1e-9]
    body = [axis_y(area, [(tick, word.percent(tick, 0)) for tick in steps], to_y), names(frame, area)]
    body.append(axis_x(area, [(to_x(tick), word.percent(tick, 0)) for tick in steps]))
    body.append(
        f'<path d="M{px(to_x(0))} {px(to_y(0))}L{px(to_x(top))} {px(to_y(top))}" '
        f'style="stroke:{SOFT};stroke-dasharray:5 4"/>'
    )
    most = max(p.rows for p in seen) or 1.0
    for p in seen:
        x = to_x(p.x)
        if p.low is not None and p.high is not None:
            low, high = to_y(max(p.low, 0.0)), to_y(min(p.high, top))
            body.append(f'<path d="M{px(x)} {px(low)}V{px(high)}" style="stroke:{ACCENT};stroke-width:1.8"/>')
        body.append(dot(x, to_y(min(p.y or 0.0, top)), 1.6 + 2.2 * math.sqrt(p.rows / most), ACCENT))
    return svg(frame, body)


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    frame: Frame,
    *,
    steps: Sequence[tuple[float, float]],
    marked: frozenset[str] = frozenset(),
) -> str:
    """Draw a table of values as coloured cells: plain up to the first step, amber beyond it, red beyond the second.

    Each row has its own two steps. Names of rows in `marked` are set bold.
    """
    if not rows or not columns:
        return empty(frame)
    label_px = min(CHAR_PX * max(len(row) for row in rows) + 12, 0.34 * frame.width)
    wide = (frame.width - label_px - 2) / len(columns)
    tall, head = 25, 24
    every = max(1, math.ceil(CHAR_PX * 0.95 * max(len(one) for one in columns) / wide))
    body = [
        text_at(label_px + (i + 0.5) * wide, 15, name, anchor="middle", size=11)
        for i, name in enumerate(columns)
        if i % every == 0
    ]
    for r, (name, line_, step) in enumerate(zip(rows, values, steps, strict=True)):
        y = head + r * tall
        body.append(
            text_at(
                label_px - 9,
                y + 16,
                fitted(name, label_px - 9),
                anchor="end",
                colour=INK,
                weight=700 if name in marked else 400,
            )
        )
        for c, value in enumerate(line_):
            x = label_px + c * wide
            body.append(heat_cell((x + 1, y + 1, wide - 2, tall - 2), value, step))
    return svg(frame, body, height=head + tall * len(rows) + 4)


def icons(groups: Sequence[tuple[str, float]], frame: Frame, *, across: int = 20, tone: str = "accent") -> str:
    """Draw for each named share a hundred dots, so many of them filled: what "48 in 100" looks like beside "18"."""
    step, head = 21, 24
    down = 100 // across
    body = []
    for g, (name, share) in enumerate(groups):
        top = g * (head + step * down + 10)
        filled = math.floor(100 * share + 0.5)
        body.append(text_at(2, top + 14, name, colour=INK, size=13, weight=600))
        for i in range(100):
            x, y = step * (i % across) + step / 2, top + head + step * (i // across) + step / 2
            body.append(dot(x, y, 7.6, TONES[tone]) if i < filled else ring(x, y, 6.9))
    sized = Frame(title=frame.title, desc=frame.desc, width=step * across)
    return svg(sized, body, height=len(groups) * (head + step * down + 10) - 8)


def spark(values: Sequence[float | None], frame: Frame, *, tone: str = "accent") -> str:
    """Draw a small line without axes, its last value dotted: the direction at a glance."""
    seen = [(float(i), value) for i, value in enumerate(values) if value is not None]
    if not seen:
        return empty(frame)
    low, high = min(v for _, v in seen), max(v for _, v in seen)
    to_x = scale(0.0, max(len(values) - 1, 1), 4, frame.width - 6)
    to_y = scale(low, high, frame.height - 5, 5)
    path = "L".join(f"{px(to_x(x))} {px(to_y(v))}" for x, v in seen)
    return svg(
        frame,
        [
            f'<path d="M{path}" style="fill:none;stroke:{TONES[tone]};stroke-width:1.6;stroke-linejoin:round"/>',
            dot(to_x(seen[-1][0]), to_y(seen[-1][1]), 2.8, TONES[tone]),
        ],
    )


def timeline(spans: Sequence[Span], frame: Frame) -> str:
    """Draw stretches of time one under another on a common axis of months or days; an instant is a dot."""
    if not spans:
        return empty(frame)
    first, last = min(s.start for s in spans), max(s.end for s in spans)
    label_px = min(CHAR_PX * max(len(s.label) for s in spans) + 12, 0.34 * frame.width)
    to_x = scale(first, last, label_px, frame.width - 10)
    tall, head = 27, 8
    bottom = head + tall * len(spans)
    marks = time_ticks(first, last)
    body = [f'<path d="M{px(to_x(at))} {head}V{bottom}" style="stroke:{RULE}"/>' for at, _ in marks]
    for row, span in enumerate(spans):
        y = head + row * tall
        colour = TONES[span.tone]
        x0, x1 = to_x(span.start), to_x(span.end)
        body.append(text_at(label_px - 9, y + 17, fitted(span.label, label_px - 9), anchor="end", colour=INK))
        if x1 - x0 < 2:
            body.append(dot(x0, y + 13, 5, colour))
        else:
            body.append(
                f'<rect x="{px(x0)}" y="{y + 4}" width="{px(x1 - x0)}" height="18" rx="3" '
                f'style="fill:{colour};fill-opacity:.3;stroke:{colour};stroke-opacity:.8"/>'
            )
        words = CHAR_PX * len(span.said)
        if span.said and words < x1 - x0 - 12:
            body.append(text_at((x0 + x1) / 2, y + 17, span.said, anchor="middle", colour=INK))
        elif span.said and words < x0 - label_px - 8:
            body.append(text_at(x0 - 7, y + 17, span.said, anchor="end", colour=INK))
        elif span.said and words < frame.width - x1 - 8:
            body.append(text_at(x1 + 8, y + 17, span.said, colour=INK))
    body.append(axis_x(Area(label_px, head, frame.width - 10, bottom), [(to_x(at), name) for at, name in marks]))
    return svg(frame, body, height=bottom + 24)


def empty(frame: Frame) -> str:
    """Draw a frame that says there is nothing to show yet: a missing picture is said, not left out."""
    return svg(frame, [text_at(frame.width / 2, 26, "nothing to show yet", anchor="middle")], height=44)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Area:
    """The plotting area inside a picture."""

    left: float
    top: float
    right: float
    bottom: float


def svg(frame: Frame, body: Sequence[str], *, height: float | None = None) -> str:
    """Wrap shapes in an SVG element with title and description, named by their content so that ids never clash."""
    tall = px(frame.height if height is None else height)
    inside = "".join(body)
    name = hashlib.sha256(f"{frame.title}\n{frame.desc}\n{inside}".encode()).hexdigest()[:10]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {frame.width} {tall}" role="img" '
        f'aria-labelledby="t{name} d{name}" style="width:100%;max-width:{frame.width * 1.1:.0f}px;height:auto;'
        f'font:12px ui-sans-serif,system-ui,sans-serif">'
        f'<title id="t{name}">{esc(frame.title)}</title><desc id="d{name}">{esc(frame.desc)}</desc>{inside}</svg>'
    )


def px(value: float) -> str:
    """Write a coordinate to a tenth of a pixel, without a trailing zero."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def text_at(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = SOFT, size: int = 12, weight: int = 400
) -> str:
    """Place text; its colour comes from the page."""
    return (
        f'<text x="{px(x)}" y="{px(y)}" text-anchor="{anchor}" style="fill:{colour};font-size:{size}px;'
        f'font-weight:{weight};font-variant-numeric:tabular-nums">{esc(text)}</text>'
    )


def haloed(text: str) -> str:
    """Give placed text a rim of paper, so that it can be read over lines."""
    rim = f"paint-order:stroke;stroke:{PAPER};stroke-width:4px;stroke-linejoin:round;"
    return text.replace('style="', f'style="{rim}', 1)


def dot(x: float, y: float, radius: float, colour: str) -> str:
    """Place a dot with a thin rim of paper, so that dots that touch stay apart."""
    return f'<circle cx="{px(x)}" cy="{px(y)}" r="{px(radius)}" style="fill:{colour};stroke:{PAPER};stroke-width:1"/>'


def ring(x: float, y: float, radius: float) -> str:
    """Place an empty dot."""
    style = f"fill:none;stroke:{SOFT};stroke-width:1.3;opacity:.55"
    return f'<circle cx="{px(x)}" cy="{px(y)}" r="{px(radius)}" style="{style}"/>'


def fitted(text: str, width_px: float) -> str:
    """Cut a label to the room it has, with an ellipsis."""
    room = max(int(width_px / CHAR_PX), 3)
    return text if len(text) <= room else text[: room - 1] + "…"


def names(frame: Frame, area: Area) -> str:
    """Write the axis names: y above its axis, x below its own."""
    said = text_at(2, 12, frame.y_name, size=11) if frame.y_name else ""
    if frame.x_name:
        said += text_at((area.left + area.right) / 2, area.bottom + 36, frame.x_name, anchor="middle", size=11)
    return said


def axis_y(area: Area, marks: Iterable[tuple[float, str]], to_y: Callable[[float], float]) -> str:
    """Draw horizontal rules with their values on the left."""
    body = ""
    for value, text in marks:
        y = to_y(value)
        body += f'<path d="M{px(area.left)} {px(y)}H{px(area.right)}" style="stroke:{RULE}"/>'
        body += text_at(area.left - 6, y + 4, text, anchor="end", size=11)
    return body


def axis_x(area: Area, marks: Sequence[tuple[float, str]]) -> str:
    """Write the values under the axis, leaving out those that would touch; the last is always kept."""
    kept: list[tuple[float, str]] = []
    for x, text in reversed(marks):
        half = CHAR_PX * len(text) / 2
        if not kept or x + half + 8 < kept[-1][0] - CHAR_PX * len(kept[-1][1]) / 2:
            kept.append((x, text))
    return "".join(
        text_at(min(x, area.right + 8 - CHAR_PX * len(text) / 2), area.bottom + 17, text, anchor="middle", size=11)
        for x, text in reversed(kept)
    )


def heat_cell(box: tuple[float, float, float, float], value: float | None, steps: tuple[float, float]) -> str:
    """Draw one cell with its value; a missing value is a dash on nothing."""
    x, y, wide, tall = box
    if value is None:
        return text_at(x + wide / 2, y + 15, "–", anchor="middle", size=11)
    warn, bad = steps
    if value > bad:
        colour, opacity = BAD, 0.55
    elif value > warn:
        colour, opacity = SECOND, 0.42
    else:
        colour, opacity = ACCENT, 0.04 + 0.22 * max(value, 0.0) / warn if warn > 0 else 0.04
    weight = 600 if value > warn else 400
    shape = (
        f'<rect x="{px(x)}" y="{px(y)}" width="{px(wide)}" height="{px(tall)}" rx="3" '
        f'style="fill:{colour};fill-opacity:{opacity:.2f}"/>'
    )
    text = f"{value:.2f}" if value < 99.5 else f"{value:.0f}"
    return shape + text_at(x + wide / 2, y + 15.5, text, anchor="middle", size=11, colour=INK, weight=weight)


def band(points: Sequence[Point], to_x: Callable[[float], float], to_y: Callable[[float], float], colour: str) -> str:
    """Draw the interval around a run of points: a band, or a whisker for a point that stands alone."""
    known = [p for p in points if p.low is not None and p.high is not None]
    if not known:
        return ""
    if len(known) == 1:
        p = known[0]
        return (
            f'<path d="M{px(to_x(p.x))} {px(to_y(p.low or 0.0))}V{px(to_y(p.high or 0.0))}" '
            f'style="stroke:{colour};stroke-width:1.6"/>'
        )
    upper = "L".join(f"{px(to_x(p.x))} {px(to_y(p.high or 0.0))}" for p in known)
    lower = "L".join(f"{px(to_x(p.x))} {px(to_y(p.low or 0.0))}" for p in reversed(known))
    return f'<path d="M{upper}L{lower}Z" style="fill:{colour};fill-opacity:.16"/>'


def unbroken(points: Sequence[Point]) -> list[list[Point]]:
    """Split points into runs that have values, so that a gap in the data is a gap in the line."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if point.y is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def apart(labels: list[tuple[float, str, str]], gap: float) -> list[tuple[float, str, str]]:
    """Move labels at line ends down until none covers another."""
    placed: list[tuple[float, str, str]] = []
    for y, name, colour in sorted(labels):
        placed.append((max(y, placed[-1][0] + gap) if placed else y, name, colour))
    return placed


# ── scales ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Map low..high to start..end in a straight line; when there is no spread everything lies in the middle."""
    spread = high - low
    if spread <= 0:
        return lambda _: (start + end) / 2
    return lambda value: start + (value - low) / spread * (end - start)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round values from at or below low to at or above high, about as many as asked."""
    if high - low < 1e-300:  # no logarithm is taken of what is no span at all
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread, high + spread
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_texts(values: Sequence[float], text: Callable[[float], str]) -> list[str]:
    """Write tick values with as few digits as keep them apart; a caller's own wording is used as it is."""
    if text is not word.decimal:
        return [text(value) for value in values]
    for digits in range(4):
        texts = [f"{value:,.{digits}f}" for value in values]
        if all(abs(float(said.replace(",", "")) - value) < 1e-9 for said, value in zip(texts, values, strict=True)):
            return texts
    return [f"{value:.3g}" for value in values]


def time_ticks(first: float, last: float) -> list[tuple[float, str]]:
    """Return instants that divide a stretch of time at months, or at even steps when it is short, with their names."""
    months: list[float] = []
    at = datetime.fromtimestamp(first, UTC)
    year, month = at.year, at.month
    while len(months) < 600:
        month, year = (1, year + 1) if month == 12 else (month + 1, year)
        start = datetime(year, month, 1, tzinfo=UTC).timestamp()
        if start > last:
            break
        months.append(start)
    if len(months) >= 3:
        every = math.ceil(len(months) / 8)
        kept = months[::every]
        return [(start, word.day(start, year=every >= 6).split(" ", 1)[1]) for start in kept]
    steps = [first + (last - first) * i / 4 for i in range(5)] if last > first else [first]
    return [(step, word.day(step, year=False)) for step in steps]

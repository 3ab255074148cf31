"""The page of runs: one run, or several beside each other, as one HTML file that asks for nothing else.

It holds its style and its pictures; no script, no font, no address, and a policy in its head that forbids a browser
to fetch any. Everything that came from data (names of metrics, parameters, models) is escaped. Colours follow light
and dark as the reports do; each run also has a letter and dashes of its own, so that no picture needs colour to be
read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tenon.report import chart, word
from tenon.report.curve import COLOURS, DASHES, LETTERS, Curve, Wanted, colour, number, svg

STYLE = Path(__file__).parent / "templates" / "style.css"
DARK = ("#7fb2ff", "#f0b35a", "#6fd19b", "#cf9bf0", "#ff8a80", "#5fd0da", "#d8c677", "#9aa5b1")
POLICY = "default-src 'none';style-src 'unsafe-inline';img-src data:"
PICTURES = 60  # metrics that are drawn; the others are in the table


def page(title: str, runs: Sequence[Mapping[str, Any]], found: Mapping[str, Any], wanted: Wanted = "auto") -> str:
    """Draw the page of runs. `found` gives curves and final values by run, and tables: {caption: (heads, rows)}."""
    curves: Sequence[Mapping[str, Curve]] = found["curves"]
    names = list(dict.fromkeys(name for one in curves for name in one))
    parts = [_head(title), "<main>", _legend(runs) if len(runs) > 1 else ""]
    drawn = [_figure(name, curves, wanted) for name in names[:PICTURES]]
    if drawn:
        more = len(names) - len(drawn)
        said = f"<p class='none'>{more} more metrics are not drawn.</p>" if more else ""
        parts.append(f"<section><h2>Curves</h2><div class='row'>{''.join(drawn)}</div>{said}</section>")
    for caption, (heads, rows) in found["tables"].items():
        parts.append(f"<section><h2>{chart.esc(caption)}</h2>{_table(heads, rows)}</section>")
    parts.append("</main></body></html>\n")
    return "\n".join(part for part in parts if part)


def _head(title: str) -> str:
    light = "".join(f"--line{place}:{tone};" for place, tone in enumerate(COLOURS))
    dark = "".join(f"--line{place}:{tone};" for place, tone in enumerate(DARK))
    style = (
        STYLE.read_text("utf-8")
        + f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        + ".legend{list-style:none;padding:0}.legend svg{width:3.2rem;height:.8rem;vertical-align:middle}"
        + "figure h3{margin:0 0 .2rem;font:600 .95rem/1.3 ui-sans-serif,system-ui,sans-serif;overflow-wrap:anywhere}"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{chart.esc(title)}</title><style>{style}</style></head>\n"
        f"<body><header><h1>{chart.esc(title)}</h1></header>"
    )


def _legend(runs: Sequence[Mapping[str, Any]]) -> str:
    items = []
    for place, run in enumerate(runs):
        dash = f";stroke-dasharray:{DASHES[place]}" if DASHES[place] else ""
        line = f'<svg viewBox="0 0 52 12" aria-hidden="true"><path d="M1 6H51" style="stroke:{colour(place)};'
        said = f"{run.get('id')} of {run.get('model')}, {run.get('status')}"
        items.append(f'<li>{line}stroke-width:2{dash}"/></svg> <b>{LETTERS[place]}</b> {chart.esc(said)}</li>')
    return f"<ul class='legend'>{''.join(items)}</ul>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{chart.esc(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{chart.esc(word.cell(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _figure(name: str, curves: Sequence[Mapping[str, Curve]], wanted: Wanted) -> str:
    chosen = [(place, one[name]) for place, one in enumerate(curves) if name in one]
    said = "; ".join(told(curve, LETTERS[place] if len(curves) > 1 else "") for place, curve in chosen)
    frame = chart.Frame(title=name, desc=said, x_name="step", width=560, height=260)
    return (
        f"<figure><h3>{chart.esc(name)}</h3>{svg(chosen, frame, wanted=wanted)}"
        f"<figcaption>{chart.esc(said)}</figcaption></figure>"
    )


def told(curve: Curve, letter: str = "") -> str:
    """Say in words how a curve went: first, last, lowest, highest, and what was no number."""
    values = curve.finite()
    said = word.plural(curve.points, "point")
    if values:
        said = f"{number(values[0])} → {number(values[-1])}, {number(min(values))} to {number(max(values))}, {said}"
    if curve.not_finite:
        said += f", {curve.not_finite:,} no number (from step {curve.bad[0]:,})"
    return f"{letter} {said}".strip()

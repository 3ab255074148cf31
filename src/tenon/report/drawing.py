"""A page becomes HTML, text or JSON; the same facts give the same bytes, for nothing here knows the time or the place.

HTML is one file with its style and pictures inside: no script, no font, no address of anything else, and a policy in
its head that forbids a browser to fetch any. jinja2 escapes every value; the two things put in unescaped are the style
sheet of this package and SVG made by `chart`, which escapes its own text. A figure is followed by a small number that
names its record; a table at the end has every figure with record, field and formula.

Text is plain, at most 100 columns, without colour or cursor codes, so that it can be mailed. JSON escapes everything
beyond ASCII and the three characters HTML cares about, so that no terminal and no page can be tricked by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tenon.errors import UsageError, nearest, quoted, sentence
from tenon.report import plaintext, word
from tenon.report.engineer import engineer
from tenon.report.executive import executive
from tenon.report.manager import manager
from tenon.report.page import Block, Line, Page, Picture, Quoted, Row, Shown, plain, quoted_facts, show

Facts = Mapping[str, Any]

PAGES: dict[str, Callable[[Facts], Page]] = {"engineer": engineer, "manager": manager, "executive": executive}
AUDIENCES = tuple(PAGES)
TEMPLATES = Path(__file__).parent / "templates"


def draw(facts: Facts, audience: str, format: str = "html") -> str:
    """Draw gathered facts for an audience (engineer, manager, executive) in a format (html, text, json)."""
    if audience not in PAGES:
        raise UsageError(
            sentence(
                f"an audience of {quoted(AUDIENCES)}", f"'{audience}'", at="report", hint=nearest(audience, AUDIENCES)
            )
        )
    if format not in DRAW:
        raise UsageError(
            sentence(f"a format of {quoted(FORMATS)}", f"'{format}'", at="report", hint=nearest(format, FORMATS))
        )
    page = PAGES[audience](facts)
    return DRAW[format](page, facts)


# ── sources ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The records a page quotes, numbered in the order they first appear, and every quoted figure with its source."""

    records: tuple[dict[str, str], ...]
    numbers: Mapping[tuple[str, str], int]
    rows: tuple[dict[str, Any], ...]

    def number(self, source: Mapping[str, Any]) -> int:
        """Return the number of a quoted source's record."""
        return self.numbers[(source["record"], source["id"])]


def sources_of(page: Page, facts: Facts) -> Sources:
    """Number the records that a page quotes, and say for each figure and table where it comes from."""
    figures, tables = quoted_facts(page)
    numbers: dict[tuple[str, str], int] = {}
    rows: list[dict[str, Any]] = []

    def add(source: Mapping[str, Any], label: str, value: str) -> None:
        at = numbers.setdefault((source["record"], source["id"]), len(numbers) + 1)
        how = "; ".join(part for part in (source["formula"], source["said"]) if part)
        if source["blob"]:
            how = "; ".join(part for part in (how, f"blob {source['blob'][:12]}") if part)
        rows.append({"label": label, "value": value, "number": at, "field": source["field"], "how": how})

    for key in figures:
        figure = facts["figures"][key]
        interval = f" ({show(facts, key, 'interval').text})" if figure.get("low") is not None else ""
        add(figure["source"], figure["label"], show(facts, key).text + interval)
    for name in tables:
        if name in facts["tables"]:
            table = facts["tables"][name]
            add(table["source"], f"table: {name}", word.plural(len(table["rows"]), "row"))
    records = tuple({"record": record, "id": id_} for record, id_ in numbers)
    return Sources(records=records, numbers=numbers, rows=tuple(rows))


# ── HTML ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _html(page: Page, facts: Facts) -> str:
    sources = sources_of(page, facts)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )

    def mark(table: str) -> Markup:
        if table not in facts["tables"]:
            return Markup("")
        return _marks([sources.number(facts["tables"][table]["source"])])

    def line(parts: Line) -> Markup:
        keys = [part.key for part in parts if isinstance(part, Shown)]
        seen = dict.fromkeys(sources.number(facts["figures"][key]["source"]) for key in keys)
        return _parts(parts, facts) + _marks(list(seen))

    def caption(picture: Picture) -> Markup:
        keys = [part.key for part in picture.caption if isinstance(part, Shown)]
        quoted_ = [facts["figures"][key]["source"] for key in keys]
        if picture.source in facts["tables"]:
            quoted_.append(facts["tables"][picture.source]["source"])
        return _parts(picture.caption, facts) + _marks(list(dict.fromkeys(sources.number(one) for one in quoted_)))

    environment.filters |= {
        "line": line,
        "caption": caption,
        "bare": lambda parts: _parts(parts, facts, in_cell=True),
        "mark": mark,
        "cell": word.cell,
        "kind": lambda block: type(block).__name__,
        "svg": lambda picture: Markup(picture.svg),  # made by `chart`, which escapes its own text
    }
    style = (TEMPLATES / "style.css").read_text("utf-8")
    return environment.get_template("page.html").render(
        page=page, sources=sources.records, provenance=sources.rows, style=Markup(style)
    )


def _marks(numbers: list[int]) -> Markup:
    """Draw the small numbers that name records."""
    if not numbers:
        return Markup("")
    inside = Markup(",").join(Markup('<a href="#r{0}" title="source {0}">{0}</a>').format(one) for one in numbers)
    return Markup('<sup class="src">{}</sup>').format(inside)


def _parts(line: Line, facts: Facts, *, in_cell: bool = False) -> Markup:
    """Draw a line's parts; a figure carries its source as a title, a cell's text is defused for spreadsheets."""
    drawn = Markup("")
    for i, part in enumerate(line):
        text = part if isinstance(part, str) else part.text
        if in_cell and i == 0:
            text = word.cell(text)
        match part:
            case str():
                drawn += escape(text)
            case Quoted():
                drawn += Markup("<code>{}</code>").format(text)
            case Shown(key=key):
                source = facts["figures"][key]["source"]
                said = ", ".join(
                    one for one in (f"{source['record']} {source['id']}", source["field"], source["said"]) if one
                )
                drawn += Markup('<span title="from {}">{}</span>').format(said, text)
    return drawn


# ── text and JSON ────────────────────────────────────────────────────────────────────────────────────────────────────


def _text(page: Page, facts: Facts) -> str:
    sources = sources_of(page, facts)
    rows = [f"{row['label']}: {row['value']} [{row['number']}] {row['field']}" for row in sources.rows]
    records = [f"[{i}] {one['record']} {one['id']}" for i, one in enumerate(sources.records, 1)]
    return plaintext.draw(page, rows, records)


def _json(page: Page, facts: Facts) -> str:
    figures, tables = quoted_facts(page)
    body = {
        "schema": facts["schema"],
        "audience": page.audience,
        "model": page.model,
        "at": facts["at"],
        "title": page.title,
        "subtitle": plain(page.subtitle),
        "verdict": facts["verdict"],
        "sections": [{"title": one.title, "blocks": [_block(block) for block in one.blocks]} for one in page.sections],
        "figures": {key: facts["figures"][key] for key in figures},
        "tables": {name: facts["tables"][name] for name in tables if name in facts["tables"]},
        "missing": facts["missing"],
    }
    text = json.dumps(body, indent=1, ensure_ascii=True, allow_nan=False)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text + "\n"


def _block(block: Block) -> dict[str, Any]:
    """Return a block as plain data: its kind and its texts; a picture is its caption and what a terminal shows."""
    if isinstance(block, Row):
        return {"kind": "row", "blocks": [_block(one) for one in block.blocks]}
    if isinstance(block, Picture):
        return {"kind": "picture", "caption": plain(block.caption), "text": block.text}
    return {"kind": type(block).__name__.lower(), "text": plaintext.block(block)}


DRAW: dict[str, Callable[[Page, Facts], str]] = {"html": _html, "text": _text, "json": _json}
FORMATS = tuple(DRAW)

"""A page before it is drawn: sections of blocks, in which every figure still knows the fact it shows.

`executive`, `manager` and `engineer` each turn facts into a `Page`; `draw` turns a Page into HTML, text or JSON. So the
three audiences cannot disagree (they quote the same figures by key), the three formats cannot disagree (they draw the
same page), and the list of sources at the end is what was quoted, collected while drawing, not a list kept by hand.

`say` is how figures enter prose: ``say(facts, "It ranks {test.roc_auc:of_hundred} of 100 pairs right.")``. What stands
between braces is a word of the model (`{plural}`) or the key of a figure and how to write it. Text that comes from data
is only ever put in as a value, so braces in it mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tenon.report import word

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """A figure as it is worded on the page, and the key of the fact it shows."""

    text: str
    key: str


@dataclass(frozen=True, slots=True)
class Quoted:
    """A name or code drawn in the fixed-width face."""

    text: str


Part = str | Shown | Quoted
Line = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Say:
    """A paragraph; tone is "" or "lead" or "small"."""

    line: Line
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Points:
    """A list of sentences."""

    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A question with a plain answer and its reasons; tone is good, warn, bad or unknown."""

    question: str
    answer: str
    tone: str
    because: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One large figure with what it is and a note under it."""

    label: str
    value: Line
    note: Line = ()
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Large figures side by side."""

    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under heads; `numeric` says which columns are numbers, `source` names the fact table they come from."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Line, ...], ...]
    numeric: frozenset[int] = frozenset()
    source: str = ""
    empty: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An SVG picture with a caption; `text` is what a terminal shows in its place."""

    svg: str
    caption: Line
    text: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """Commands or definitions, to be copied."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something a person should act on: what was found, what to do, who; tone is the severity."""

    head: Line
    said: Line
    todo: Line = ()
    tone: str = "warning"


@dataclass(frozen=True, slots=True)
class Row:
    """Blocks side by side where there is room."""

    blocks: tuple[Block, ...]


Block = Say | Points | Answer | Tiles | Table | Picture | Code | Note | Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A titled part of a page; an empty title draws none."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything one audience is told."""

    audience: str
    model: str
    title: str
    subtitle: Line
    sections: tuple[Section, ...]


# ── figures in words ─────────────────────────────────────────────────────────────────────────────────────────────────


def has(facts: Facts, *keys: str) -> bool:
    """Say whether every one of these figures is known."""
    return all(key in facts["figures"] for key in keys)


def value(facts: Facts, key: str) -> float:
    """Return a known figure's number."""
    number: float = facts["figures"][key]["value"]
    return number


def rows_of(facts: Facts, table: str) -> list[dict[str, Any]]:
    """Return the rows of a fact table; none when it is not known."""
    found: list[dict[str, Any]] = facts["tables"].get(table, {"rows": []})["rows"]
    return found


def show(facts: Facts, key: str, how: str = "") -> Shown:
    """Word a known figure, by default as its unit asks; "interval" writes its ends."""
    figure = facts["figures"][key]
    unit = how or figure["unit"]
    if unit == "interval":
        low, high = figure.get("low"), figure.get("high")
        if low is None or high is None:
            return Shown("no interval", key)
        return Shown(f"{_as(low, figure['unit'])} to {_as(high, figure['unit'])}", key)
    return Shown(_as(figure["value"], unit), key)


def estimate(facts: Facts, key: str) -> Line:
    """Word a figure with its interval after it, where it has one."""
    figure = facts["figures"][key]
    if figure.get("low") is None:
        return (show(facts, key),)
    return (show(facts, key), " (", show(facts, key, "interval"), ")")


HOLE = re.compile(r"\{([^{}:]+)(?::(\w+))?\}")


def say(facts: Facts, text: str, **values: Part) -> Line:
    """Turn a sentence with holes into a line: model words, named values, and figures as ``{key}`` or ``{key:how}``.

    The sentence is ours; a key that holds a name from data is shown first and put in as a value.
    """
    known = {**facts["words"], **values}
    parts: list[Part] = []
    at = 0
    for match in HOLE.finditer(text):
        if match.start() > at:
            parts.append(text[at : match.start()])
        name, how = match[1], match[2] or ""
        parts.append(known[name] if name in known else show(facts, name, how))
        at = match.end()
    if at < len(text):
        parts.append(text[at:])
    return tuple(parts)


def _as(number: Any, how: str) -> str:
    return str(number) if isinstance(number, str) else HOW[how](number)


HOW: dict[str, Callable[[Any], str]] = {
    "": word.decimal,
    "fine": lambda number: word.decimal(number, 4),
    "decimal2": lambda number: word.decimal(number, 2),
    "count": word.count,
    "rows": lambda number: word.plural(number, "row"),
    "share": word.percent,
    "percent0": lambda number: word.percent(number, 0),
    "of_hundred": word.of_hundred,
    "usd": word.money,
    "money_words": word.money_words,
    "bytes": word.size,
    "s": word.duration,
    "ms": lambda number: f"{word.decimal(number, 2)} ms",
    "time": word.moment,
    "day": word.day,
    "signed": lambda number: f"{number:+.3f}",
    "times": lambda number: f"{number:.1f} times",
}

# ── walking a page ───────────────────────────────────────────────────────────────────────────────────────────────────


def plain(line: Iterable[Part]) -> str:
    """Return a line as text alone."""
    return "".join(part if isinstance(part, str) else part.text for part in line)


def quoted_facts(page: Page) -> tuple[list[str], list[str]]:
    """Return the keys of the figures and the names of the tables the page quotes, each once, in order."""
    figures: dict[str, None] = {}
    tables: dict[str, None] = {}

    def lines(*every: Line) -> None:
        figures.update({part.key: None for line in every for part in line if isinstance(part, Shown)})

    def visit(block: Block) -> None:
        match block:
            case Say(line=line):
                lines(line)
            case Points(lines=every):
                lines(*every)
            case Answer(because=because):
                lines(*because)
            case Tiles(tiles=tiles):
                for tile in tiles:
                    lines(tile.value, tile.note)
            case Table(rows=rows, source=source):
                tables.update({source: None} if source else {})
                for row in rows:
                    lines(*row)
            case Picture(caption=caption, source=source):
                tables.update({source: None} if source else {})
                lines(caption)
            case Note(head=head, said=said, todo=todo):
                lines(head, said, todo)
            case Row(blocks=blocks):
                for one in blocks:
                    visit(one)
            case Code():
                pass

    lines(page.subtitle)
    for section in page.sections:
        for block in section.blocks:
            visit(block)
    return list(figures), list(tables)

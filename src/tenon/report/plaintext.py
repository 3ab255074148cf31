"""A page as plain text of at most 100 columns: for a terminal, a mail, a ticket.

Tables are set in columns, their long cells wrapped; a table too wide for that is set row by row as `head: value`.
Characters that a terminal would act on never get this far (`word.clean`), and are cleaned once more here, at the door.
Rejected: boxes and colour, which mail and tickets break.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tenon.report import word
from tenon.report.page import Answer, Block, Code, Line, Note, Page, Picture, Points, Row, Say, Table, Tiles, plain

COLUMNS = 100
_MARKS = {"good": "[+]", "warn": "[!]", "bad": "[x]", "unknown": "[?]"}


def draw(page: Page, figures: Sequence[str], records: Sequence[str]) -> str:
    """Draw a page with its sources at the end."""
    parts = [
        *_wrapped(page.title),
        "=" * min(len(word.clean(page.title)), COLUMNS),
        *_wrapped(plain(page.subtitle)),
        "",
    ]
    for section in page.sections:
        if section.title:
            parts += [section.title, "-" * len(section.title)]
        for one in section.blocks:
            drawn = block(one)
            parts += [*drawn.split("\n"), ""] if drawn else []
    parts += ["Where these numbers come from", "-" * 29]
    for line in (*records, "", *figures):
        parts += _wrapped(line, "    ") if line else [""]
    lines = (word.clean(line).rstrip() for line in parts)
    return "\n".join(lines).rstrip() + "\n"


def block(one: Block) -> str:
    """Draw one block."""
    match one:
        case Say(line=line):
            return "\n".join(_wrapped(plain(line)))
        case Points(lines=lines):
            return "\n".join("\n".join(_wrapped(f"- {plain(line)}", "  ")) for line in lines)
        case Answer(question=question, answer=answer, tone=tone, because=because):
            head = f"{_MARKS.get(tone, '[?]')} {question} {answer}."
            return "\n".join([head, *(text for line in because for text in _wrapped(f"    {plain(line)}", "    "))])
        case Tiles(tiles=tiles):
            wide = max((len(plain(tile.value)) for tile in tiles), default=0)
            rows = (
                f"{plain(tile.value):>{wide}}  {tile.label}" + (f" ({plain(tile.note)})" if tile.note else "")
                for tile in tiles
            )
            return "\n".join(text for row in rows for text in _wrapped(row, " " * (wide + 2)))
        case Picture(caption=caption, text=text):
            drawn = [f"  {line}"[:COLUMNS] for line in text.split("\n") if line]
            return "\n".join([*_wrapped(plain(caption)), *drawn])
        case Note(head=head, said=said, todo=todo, tone=tone):
            found = _wrapped(f"{tone.upper()} {plain(head)}: {plain(said)}", "    ")
            return "\n".join(found + (_wrapped(f"    What to do: {plain(todo)}", "    ") if todo else []))
        case Code(text=text):
            return "\n".join(f"    {line}" for line in text.split("\n"))
        case Row(blocks=blocks):
            return "\n\n".join(block(inner) for inner in blocks)
        case Table():
            return _table(one)


def _table(table: Table) -> str:
    if not table.rows:
        return f"{table.caption}: {table.empty}."
    cells = [[word.cell(_flat(line)) for line in row] for row in table.rows]
    widths = [max(len(text) for text in column) for column in zip(table.heads, *cells, strict=True)]
    room = COLUMNS - 2 * (len(widths) - 1)
    least = [
        min(width, 9 if i in table.numeric else max(10, len(head)))
        for i, (width, head) in enumerate(zip(widths, table.heads, strict=True))
    ]
    if sum(least) > room:
        return "\n".join([*_wrapped(table.caption), *_stacked(table.heads, cells)])
    while sum(widths) > room:
        widest = max(range(len(widths)), key=lambda i: (widths[i] - least[i], widths[i]))
        widths[widest] -= 1
    lines = [*_wrapped(table.caption)]
    lines += _cells(list(table.heads), widths, table.numeric)
    lines.append("  ".join("-" * width for width in widths))
    for row in cells:
        lines += _cells(row, widths, table.numeric)
    return "\n".join(lines)


def _cells(row: Sequence[str], widths: Sequence[int], numeric: frozenset[int]) -> list[str]:
    """Set one row of a table, over as many lines as its longest cell needs."""
    wrapped = [textwrap.wrap(text, width) or [""] for text, width in zip(row, widths, strict=True)]
    lines = []
    for i in range(max(len(one) for one in wrapped)):
        texts = [one[i] if i < len(one) else "" for one in wrapped]
        set_ = [
            f"{text:>{width}}" if c in numeric else f"{text:<{width}}"
            for c, (text, width) in enumerate(zip(texts, widths, strict=True))
        ]
        lines.append("  ".join(set_).rstrip())
    return lines


def _stacked(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Set a table that is too wide for columns: each row as its first cell and then `head: value`, run on."""
    lines = []
    for row in cells:
        rest = "; ".join(
            f"{head}: {text}" for head, text in zip(heads[1:], row[1:], strict=True) if text not in ("", "–")
        )
        lines += _wrapped(f"- {row[0]}: {rest}", "    ")
    return lines


def _flat(line: Line) -> str:
    return " ".join(plain(line).split())


def _wrapped(text: str, indent: str = "") -> list[str]:
    start = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(" ".join(text.split()), COLUMNS, initial_indent=start, subsequent_indent=indent) or [""]

"""The lines of a chunk that the kernel left alone, looked at a second time in compiled code: `look(...)`.

Good lines with a cell that is no plain value, and rows that were broken, become clean text in one call (`batch`), and
the kernel reads that once more: most rows that were repaired are plain ones then. What is left after that (a value in
another spelling, a row of bytes that are no UTF-8) is read as text, as if there were no kernel, and cast by Polars.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from tenon.ingest.batch import ASK, BLANK, LOOK, MENDED, READ, REFUSED, Batch, code_of, mend_rows
from tenon.ingest.charset import to_utf8
from tenon.ingest.chunk import Decided, Layout, Refused, Repaired, Text, by_hand, decide, frame_of, repeated, shown
from tenon.ingest.dialect import split
from tenon.ingest.plan import FilePlan, Plan
from tenon.ingest.quick import Quick, once_more
from tenon.ingest.scan import Lines, Places


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """Rows read at the second look: `quick` has their columns, with the first and last line of each; those still text.

    `repaired` tells of rows in `quick`, by their number there; those in `text` are told of there.
    """

    quick: Quick
    firsts: Places
    lasts: Places
    repaired: list[Repaired]
    text: Text


def look(data: bytes, layout: Layout, first: Quick, table: object, plan: Plan, file: FilePlan) -> Looked:
    """Read, repair or refuse the lines of a chunk that are not done: the same rows as `chunk.careful` gives."""
    lines = first.table
    assert lines is not None, "a chunk that is done needs no second look"
    good, skipped = lines.good & ~first.done, {}
    if layout.header_raw and layout.header_raw in data:
        again = repeated(data, lines, layout.header_raw)
        skipped["repeated-header"] = int((lines.ends - lines.starts)[again].sum())
        good &= ~again
    batch = mend_rows(data, table, lines, good, layout.width)
    told, state = batch.told, batch.told["state"]
    asked = _asked(data, layout, lines, batch)
    for name, size in asked.skipped.items():
        skipped[name] = skipped.get(name, 0) + size
    blank = told[state == BLANK]
    skipped["blank"] = skipped.get("blank", 0) + int((blank["end"] - blank["begin"]).sum())
    clean = np.flatnonzero((state == READ) | (state == MENDED))
    begins = np.ascontiguousarray(told["text"][clean])
    quick = once_more(batch.text, begins, first, layout, plan, file)
    repaired = _repaired(data, batch, clean)
    frame, numbers, lasts = _left(batch, clean[~quick.done], asked, layout)
    return Looked(
        quick=quick,
        firsts=told["first"][clean[quick.done]],
        lasts=told["last"][clean[quick.done]],
        repaired=_placed(repaired, told["first"][clean[quick.done]]),
        text=Text(
            frame,
            lines.starts[numbers],
            lines.ends[lasts],
            numbers,
            _placed({**repaired, **asked.repaired}, numbers),
            [*asked.refused, *_refused(batch, np.flatnonzero(state == REFUSED))],
            {name: size for name, size in skipped.items() if size},
            asked.encodings,
        ),
    )


def _asked(data: bytes, layout: Layout, lines: Lines, batch: Batch) -> Decided:
    """Ask Python about the rows that compiled code could not tell."""
    told = batch.told[batch.told["state"] == ASK]
    known = told["way"] != LOOK
    groups = np.stack([told["first"], told["last"]], axis=1)[~known]
    out = decide(data, Lines(lines.starts, lines.stops, lines.ends, lines.good, lines.odd, groups), layout)
    for number in told["first"][known].tolist():
        (line,), counts = to_utf8([data[lines.starts[number] : lines.stops[number]]], layout.charset)
        out.rows.append((number, number, split(line, layout.dialect).values))
        for name, count in counts.items():
            out.encodings[name] = out.encodings.get(name, 0) + count
    return out


def _repaired(data: bytes, batch: Batch, clean: Places) -> dict[int, tuple[int, str, str]]:
    """Tell of the repairs by the first line of the row: the column, the repair, and what the source said."""
    told = batch.told[clean]
    struck = np.flatnonzero((told["note"] > 0) | (told["codes"][:, :2] > 0).any(axis=1))
    out: dict[int, tuple[int, str, str]] = {}
    names: dict[bytes, str] = {}
    for one in told[struck].tolist():
        first, _, begin, end, _, _, column, _, state, note, codes, _, _ = one
        key = bytes((note, *codes[:2]))
        name = names.get(key)
        if name is None:
            name = names[key] = code_of(note, codes)
        raw = data[begin:end]
        # Of a row that was mended, the zero bytes are told by the repair's name alone.
        out[first] = (column, name, shown(raw.replace(b"\x00", b"") if state == MENDED else raw))
    return out


def _refused(batch: Batch, rows: Places) -> list[Refused]:
    told = batch.told[rows]
    columns = (told[name].tolist() for name in ("begin", "end", "first", "column"))
    places = zip(rows.tolist(), *columns, strict=True)
    return [Refused(begin, end, first, column, "fields", batch.said(row)) for row, begin, end, first, column in places]


def _left(batch: Batch, rows: Places, asked: Decided, layout: Layout) -> tuple[pl.DataFrame, Places, Places]:
    """Read as text what the kernel left once more, and the rows that Python read; with their first and last lines."""
    told = batch.told[rows]
    begins = told["text"].tolist()
    ends = (told["text"] + told["size"]).tolist()
    text = b"".join([batch.text[begin:end] for begin, end in zip(begins, ends, strict=True)])
    frame = frame_of(text, len(rows), layout)
    if frame is None:
        cells = [split(batch.text[b : e - 1], layout.dialect).values for b, e in zip(begins, ends, strict=True)]
        frame = by_hand(cells, layout.width)
    firsts, lasts = told["first"], told["last"]
    if asked.rows:
        more = by_hand([values for _, _, values in asked.rows], layout.width)
        firsts = np.concatenate([firsts, np.array([first for first, _, _ in asked.rows], dtype=np.int64)])
        lasts = np.concatenate([lasts, np.array([last for _, last, _ in asked.rows], dtype=np.int64)])
        order = np.argsort(firsts, kind="stable")
        frame, firsts, lasts = pl.concat([frame, more])[order], firsts[order], lasts[order]
    return frame, firsts, lasts


def _placed(repaired: dict[int, tuple[int, str, str]], firsts: Places) -> list[Repaired]:
    """Tell of the repairs of some rows, given by their first lines, by the number of the row among them."""
    struck = np.array(sorted(repaired), dtype=np.int64)
    rows = np.searchsorted(firsts, struck)
    here = rows < len(firsts)
    here[here] = firsts[rows[here]] == struck[here]
    return [
        Repaired(row, *repaired[line]) for row, line in zip(rows[here].tolist(), struck[here].tolist(), strict=True)
    ]

"""The lines of a chunk that the kernel left alone, looked at a second time in compiled code: `look(...)`.

Good lines with a cell that is no plain value, and rows that were broken, become clean text in one call (`batch`), and
the kernel reads that once more: most rows that were repaired are plain ones then. What is left after that (a value in
another spelling, a row of bytes that are no UTF-8) is read as text, as if there were no kernel, and cast by Polars.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from tenon.ingest.batch import ASK, BLANK, CODES, KINDER, LOOK, MENDED, READ, REFUSED, Batch, code_of, mend_rows
from tenon.ingest.charset import to_utf8
from tenon.ingest.chunk import (
    Decided,
    Layout,
    Refused,
    Repaired,
    Text,
    by_hand,
    decide,
    frame_of,
    mended_short,
    put_together,
    repeated,
    shown,
)
from tenon.ingest.dialect import split
from tenon.ingest.plan import FilePlan, Plan
from tenon.ingest.quick import Quick, once_more
from tenon.ingest.rejoin import TOO_FEW, rejoin
from tenon.ingest.scan import Lines, Places

WORD = len(KINDER) - 1
SHORT = [CODES.index(code) for code in TOO_FEW]


@dataclass(frozen=True, slots=True)
class Repairs:
    """Repairs in columns: the number of the row, the column, the repair, and what the source said."""

    rows: Places
    columns: list[int]
    codes: list[str]
    was: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """Rows read at the second look: `quick` has their columns, with the first and last line of each; those still text.

    `repairs` tells of rows in `quick`, by their number there; those in `text` are told of there. `soft` counts the
    cells read more kindly, and `words` those that mean missing, by the column of the file.
    """

    quick: Quick
    firsts: Places
    lasts: Places
    repairs: Repairs
    soft: dict[int, int]
    words: dict[int, Counter[str]]
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
    batch = mend_rows(data, table, lines, good, layout.width, _plain(first, plan, file))
    if layout.text:
        batch = batch.asking()
    told, state = batch.told, batch.told["state"]
    asked = _asked(data, layout, lines, batch)
    blank = told[state == BLANK]
    for name, size in (*asked.skipped.items(), ("blank", int((blank["end"] - blank["begin"]).sum()))):
        skipped[name] = skipped.get(name, 0) + size
    clean, batch = _rejoined(data, layout, lines, batch, asked)
    begins = told["text"][clean]
    places = np.stack([begins, begins + told["size"][clean] - 1], axis=1)
    quick = once_more(batch.text, places, first, layout, plan, file)
    frame, numbers, lasts = _left(batch, clean[~quick.done], asked, layout)
    repairs = _repaired(data, batch, clean)
    mine, left = (_placed(repairs, firsts) for firsts in (told["first"][clean[quick.done]], numbers))
    others = {int(np.searchsorted(numbers, line)): told for line, told in asked.repaired.items()}
    cells = batch.kinder
    text = Text(
        frame,
        lines.starts[numbers],
        lines.ends[lasts],
        numbers,
        [
            *(Repaired(*one) for one in zip(left.rows.tolist(), left.columns, left.codes, left.was, strict=True)),
            *(Repaired(row, *told) for row, told in others.items()),
        ],
        asked.refused,
        {name: size for name, size in skipped.items() if size},
        asked.encodings,
    )
    return Looked(
        quick=quick,
        firsts=told["first"][clean[quick.done]],
        lasts=told["last"][clean[quick.done]],
        repairs=mine,
        soft=dict(Counter(cells["column"][cells["kinder"] < WORD].tolist())),
        words=_words(batch),
        text=text,
    )


def _rejoined(data: bytes, layout: Layout, lines: Lines, batch: Batch, asked: Decided) -> tuple[Places, Batch]:
    """Add the rows that were refused to those that Python refused, and put halves of rows together.

    Returns the clean rows that are left, and the batch without the cells of others.
    """
    told, state = batch.told, batch.told["state"]
    asked.refused.extend(_refused(batch, np.flatnonzero(state == REFUSED)))
    clean = np.flatnonzero((state == READ) | (state == MENDED))
    rows = told[clean]
    alone = (rows["note"] == 0) & (rows["codes"][:, 0] == 0) & np.isin(rows["codes"][:, 1], SHORT)
    short = rows["first"][alone & (rows["first"] == rows["last"])].tolist()
    joined = rejoin(data, lines, layout, asked.refused, {*short, *mended_short(asked)})
    if not joined:
        return clean, batch
    put_together(asked, joined)
    gone = [line for one in joined.values() for line in (one.first, one.last)]
    kept = batch.kinder[~np.isin(batch.kinder["first"], gone)]
    return clean[~np.isin(rows["first"], gone)], replace(batch, kinder=kept)


def _plain(first: Quick, plan: Plan, file: FilePlan) -> bool:
    """Whether cells may be read more kindly in compiled code: the kernel knows every column, as the repairs do."""
    if plan.text:
        return False
    for spec, target, reading, profile in zip(first.specs, file.targets, file.readings, file.profiles, strict=True):
        if target < 0 or (spec[0] == "s") != (reading.type == "text"):
            return False
        judged = replace(profile.reading, null=reading.null, declared=reading.declared, why=reading.why)
        same = not profile.typed if reading.type == "text" else judged == reading
        if not same or not set(reading.null) <= set(profile.reading.null) | {""}:
            return False
    return True


def _words(batch: Batch) -> dict[int, Counter[str]]:
    """Count the words that were taken to mean missing, by column."""
    out: dict[int, Counter[str]] = {}
    for _, at, size, column, _ in batch.kinder[batch.kinder["kinder"] == WORD].tolist():
        out.setdefault(column, Counter())[batch.spelt[at : at + size].decode("utf-8")] += 1
    return out


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


def _repaired(data: bytes, batch: Batch, clean: Places) -> Repairs:
    """Tell of the repairs of clean rows, by the first line of each."""
    told = batch.told[clean]
    told = told[(told["note"] > 0) | (told["codes"][:, 0] > 0) | (told["codes"][:, 1] > 0)]
    keys = np.stack([told["note"], told["codes"][:, 0], told["codes"][:, 1]], axis=1)
    kinds, kind = np.unique(keys, axis=0, return_inverse=True)
    names = [code_of(note, codes) for note, *codes in kinds.tolist()]
    was = []
    # Zero bytes are shown where a row was read without them; of one that was mended the repair's name tells of them.
    drop = ((told["note"] > 0) & (told["state"] == MENDED)).tolist()
    for begin, end, bare in zip(told["begin"].tolist(), told["end"].tolist(), drop, strict=True):
        raw = data[begin:end]
        was.append(shown(raw.replace(b"\x00", b"") if bare else raw))
    cells = batch.kinder[batch.kinder["kinder"] < WORD]
    spelt = zip(cells["at"].tolist(), (cells["at"] + cells["size"]).tolist(), strict=True)
    return Repairs(
        np.concatenate([told["first"], cells["first"]]),
        told["column"].tolist() + cells["column"].tolist(),
        [names[n] for n in kind.reshape(-1).tolist()] + [KINDER[n] for n in cells["kinder"].tolist()],
        was + [batch.spelt[at:stop].decode("utf-8") for at, stop in spelt],
    )


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


def _placed(repairs: Repairs, firsts: Places) -> Repairs:
    """Return the repairs of some rows, given by their first lines, by the number of the row among them."""
    rows = np.searchsorted(firsts, repairs.rows)
    here = rows < len(firsts)
    here[here] = firsts[rows[here]] == repairs.rows[here]
    if here.all():
        return Repairs(rows, repairs.columns, repairs.codes, repairs.was)
    at = np.flatnonzero(here).tolist()
    columns, codes, was = repairs.columns, repairs.codes, repairs.was
    return Repairs(rows[here], [columns[n] for n in at], [codes[n] for n in at], [was[n] for n in at])

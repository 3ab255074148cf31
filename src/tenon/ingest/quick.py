"""The rows of a chunk that need no second look, read by the compiled kernel: `quick(data, layout, plan, file)`.

The kernel (`_kernel.c`) turns lines straight into typed columns, as long as nothing at all is strange about them:
quotes in order, as many fields as columns, UTF-8, every cell a plain value of its type or a known word for missing.
This module tells it what the columns are, and takes back what the rows around a line lay claim to: a line inside a
value that goes over several lines, the header once more, a cell that does not fit a reading the kernel does not know
(a decimal comma, a month in words), which Polars casts from the kernel's text. What is left is read as text, as if
there were no kernel.

The kernel is stricter than the Python rooms and never kinder, so with and without it the result is the same; a test
holds both together. It is built at installation where there is a C compiler; without one `quick` gives None.

Measured on 147 MB of twelve columns: the kernel reads 480 MB/s a core; Polars reads the same text at 490 MB/s and then
needs three times as long again to cast it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tenon.ingest import batch, values
from tenon.ingest.chunk import Layout, repeated
from tenon.ingest.plan import FilePlan, Plan
from tenon.ingest.scan import Lines, Mask, Places, claim, groups_of, stops_of
from tenon.ingest.values import Reading

try:
    from tenon.ingest import _kernel
except ImportError:  # no compiler at installation: everything is read as text
    _kernel = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from tenon.ingest._kernel import Spec

GOOD, BAD, ODD, QUOTED = 1, 2, 4, 8
PARTS = {"Y": "Y", "m": "m", "d": "d", "H": "H", "M": "M", "S": "S", ".f": "f"}
KEEP = 1 << 26  # bytes of freed memory held for the next chunk
MOSTLY = 0.8  # the share of lines that must be done for numbers with marks to be looked for among the others
KINDS = {"int": "i", "float": "f", "bool": "b", "date": "D", "timestamp": "T"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quick:
    """Rows read at once: columns by output, the line of each row, the words for missing that were seen, by output.

    `table` has all lines of the chunk, of which those not `done` are still to be read as text; None when none is left.
    `ends` counts the line endings.
    """

    columns: dict[int, pl.Series]
    lines: Places
    words: dict[int, Counter[str]]
    table: Lines | None
    done: Mask
    specs: tuple[Spec, ...]
    ends: int


@dataclass(frozen=True, slots=True)
class _Exported:
    """A column as the kernel gives it away, for Polars to take over."""

    pair: tuple[object, object]

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return self.pair


def keep_memory(amount: int = KEEP) -> None:
    """Let this process keep freed memory for the next chunk, up to an amount in bytes.

    It changes how the whole process takes memory, so only a command that does nothing but ingest asks for it.
    """
    if _kernel is not None:
        _kernel.keep(amount)


def quick(data: bytes, layout: Layout, plan: Plan, file: FilePlan) -> Quick | None:
    """Read the lines of a chunk that need no second look; None without the kernel, or for a layout it does not know."""
    dialect = layout.dialect
    known = len(dialect.delimiter) == 1 and dialect.delimiter < b"\x80" and len(dialect.quote) < 2
    if _kernel is None or not known or dialect.mixed or dialect.spaced or dialect.escape or dialect.doubled:
        return None
    quote = dialect.quote[0] if dialect.quote else -1
    for plainly in (True, False):
        specs = tuple(_spec(file.readings[number], target, plan, plainly) for number, target in enumerate(file.targets))
        raw = _kernel.read(data, dialect.delimiter[0], quote, dialect.newline[0], layout.reach, specs)
        # Marked numbers are mostly read as text; where few have a mark, those that are plain are read at once.
        if raw[1].count(0) > MOSTLY * len(raw[1]) or not any(map(_marked, file.readings)):
            break
    states = np.frombuffer(raw[1], dtype=np.uint8)
    done = states == 0
    lines = np.flatnonzero(done)
    # A header among the rows is one of them only where every column is text.
    again = layout.header_raw and all(spec[0] in "s-" for spec in specs) and layout.header_raw in data
    table = _table(data, raw[0], states, layout, done) if again or len(lines) < len(done) else None
    columns, words = _taken(raw, lines, done, specs, plan, file)
    if table is None and not done.all():
        table = _table(data, raw[0], states, layout, done)
    lines = lines if len(lines) == len(done) and table is None else np.flatnonzero(done)
    ends = len(states) - (len(data) > 0 and not data.endswith(dialect.newline))
    return Quick(columns=columns, lines=lines, words=words, table=table, done=done, specs=specs, ends=ends)


def once_more(text: bytes, places: Places, first: Quick, layout: Layout, plan: Plan, file: FilePlan) -> Quick:
    """Read rows that were mended, by their places in clean text; `lines` and `done` count them, not lines."""
    dialect = layout.dialect
    quote = dialect.quote[0] if dialect.quote else -1
    text = text if len(places) else b""
    raw = _kernel.read(text, dialect.delimiter[0], quote, dialect.newline[0], layout.reach, first.specs, places)
    done = np.frombuffer(raw[1], dtype=np.uint8) == 0
    columns, words = _taken(raw, np.flatnonzero(done), done, first.specs, plan, file)
    return Quick(
        columns=columns,
        lines=np.flatnonzero(done),
        words=words,
        table=None,
        done=done,
        specs=first.specs,
        ends=len(done),
    )


def _taken(
    raw: tuple[bytes, bytes, list[tuple[object, object] | None], bytes],
    lines: Places,
    done: Mask,
    specs: tuple[Spec, ...],
    plan: Plan,
    file: FilePlan,
) -> tuple[dict[int, pl.Series], dict[int, Counter[str]]]:
    """Take over what the kernel gives away, by output; rows with a cell that does not fit are taken out of `done`."""
    columns = {
        number: pl.Series(_Exported(pair))
        for number, pair in enumerate(raw[2])
        if pair is not None and file.targets[number] >= 0
    }
    columns, words = _cast(columns, lines, done, specs, plan, file)
    hits = np.frombuffer(raw[3], dtype=np.int32).reshape(-1, 3)
    hits = hits[done[lines[hits[:, 0]]]]
    for number in np.flatnonzero(np.bincount(hits[:, 1])).tolist():
        seen = np.bincount(hits[hits[:, 1] == number, 2])
        told = {specs[number][3][word].decode(): int(count) for word, count in enumerate(seen) if count}
        words.setdefault(file.targets[number], Counter()).update(told)
    if not done[lines].all():
        keep = pl.Series(done[lines])
        columns = {number: column.filter(keep) for number, column in columns.items()}
    return {file.targets[number]: column for number, column in columns.items()}, words


def _table(data: bytes, starts: bytes, states: NDArray[np.uint8], layout: Layout, done: Mask) -> Lines:
    """Return the lines of a chunk as `scan` tells them; those that belong to others are taken out of `done`."""
    a, begins = np.frombuffer(data, dtype=np.uint8), np.frombuffer(starts, dtype=np.int64)
    ends = np.append(begins[1:], len(data))
    good = states & BAD == 0
    quoted = (states & QUOTED).astype(np.int64)
    known = batch.prepared(layout.dialect, tuple(layout.profiles), layout.reach)
    if known is None:
        groups = groups_of(data, layout.dialect, good, quoted, begins, ends, layout.reach)
    else:
        groups = batch.groups(data, known, begins, ends, good, quoted > 0)
    claim(groups, good)
    table = Lines(begins, stops_of(a, begins, ends, layout.dialect), ends, good, states & ODD > 0, groups)
    if layout.header_raw and layout.header_raw in data:
        done &= ~repeated(data, table, layout.header_raw)
    done &= good
    return table


def _cast(
    columns: dict[int, pl.Series],
    lines: Places,
    done: Mask,
    specs: tuple[Spec, ...],
    plan: Plan,
    file: FilePlan,
) -> tuple[dict[int, pl.Series], dict[int, Counter[str]]]:
    """Cast the columns that the kernel gave as text; rows with cells that do not fit are taken out of `done`."""
    out: dict[int, pl.Series] = {}
    words: dict[int, Counter[str]] = {}
    foreign = {
        number: values.cast(column, file.readings[number])
        for number, column in columns.items()
        if specs[number][0] == "s" and file.readings[number].type != "text"
    }
    for read in foreign.values():
        if read.misfit is not None:
            done[lines[read.misfit.to_numpy()]] = False
    kept = pl.Series(done[lines]) if foreign else None
    for number, column in columns.items():
        reading = file.readings[number]
        if number not in foreign:
            out[number] = column.cast(pl.Boolean) if specs[number][0] == "b" and not plan.text else column
        elif plan.text:
            out[number] = column.set(column == "", None)
        elif kept is not None:
            out[number] = foreign[number].values
            seen = values.cast(column.filter(kept), reading).words if foreign[number].words else {}
            counts = Counter(dict(seen))
            if reading.null:
                counts.update(values.null_words(column.filter(kept), reading))
            words[file.targets[number]] = counts
    return out, words


def _marked(reading: Reading) -> bool:
    """Whether numbers of a column may have marks, and those without mean what they say."""
    number = reading.type in ("int", "float") and not reading.plain
    return number and reading.decimal == "." and reading.group != "."


def _kind(reading: Reading, plainly: bool) -> str:
    """Return the kernel's type for a column; text where it does not know how values are read."""
    if reading.type in ("int", "float"):
        return KINDS[reading.type] if reading.plain or (plainly and _marked(reading)) else "s"
    if reading.type == "bool":
        return "b" if all(word.isascii() for word in (*reading.true, *reading.false)) else "s"
    if reading.type in ("date", "timestamp"):
        return KINDS[reading.type] if reading.formats and program(reading.formats[0]) else "s"
    return "s"


def _spec(reading: Reading, target: int, plan: Plan, plainly: bool) -> Spec:
    """Say what a column is, in the kernel's words."""
    kind = _kind(reading, plainly)
    if target < 0:
        return "-", False, b"", (), (), ()
    null = tuple(word.encode() for word in reading.null)
    if reading.type == "text":
        missing = (b"",) if plan.text or not null else null
        return "s", False, b"", missing, (), ()
    if kind == "s":
        return "s", False, b"", (), (), ()
    layout = program(reading.formats[0]) if reading.formats else b""
    true, false = (tuple(word.encode() for word in words) for words in (reading.true, reading.false))
    return kind, plan.text, layout, (b"", *null), true, false


def program(pattern: str) -> bytes:
    """Return a format of dates as the kernel reads it (see `read_time` there); empty when it cannot."""
    out, parts = bytearray(), ""
    for sign, literal in re.findall(r"%(\.f|.)|(.)", pattern, re.DOTALL):
        if literal:
            if not literal.isascii():
                return b""
            out += b"\\" + literal.encode()
        elif sign in PARTS:
            out += PARTS[sign].encode()
            parts += PARTS[sign]
        else:
            return b""
    whole = len(set(parts)) == len(parts) and set("Ymd") <= set(parts)
    return bytes(out) if whole else b""

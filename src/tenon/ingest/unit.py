"""One range of one input, from bytes to a Parquet part with its quarantine, its repairs and its account: `read(job)`.

This is the unit that any worker can do: plain data in (paths, a range), plain data out (counts), files beside. It
begins at the first fresh line in its range and goes on to the first fresh line after it (see `rows`), so what it makes
depends only on the plan and the bytes. What is gathered is an `account`, which writes the files, itself last: a killed
worker leaves nothing that looks finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tenon.ingest import columnar, jsonl
from tenon.ingest.account import Account
from tenon.ingest.another import table_break
from tenon.ingest.batch import mended, prepared
from tenon.ingest.charset import to_utf8
from tenon.ingest.chunk import Layout, Repaired, Text, careful, express
from tenon.ingest.dialect import chomp
from tenon.ingest.look import Looked, Repairs, look
from tenon.ingest.plan import FilePlan, Plan
from tenon.ingest.quick import Quick, quick
from tenon.ingest.rejoin import ROW, STRETCH
from tenon.ingest.repair import Mended
from tenon.ingest.rows import Heard, first_fresh, line_end, plainly, row_end
from tenon.ingest.scan import Lines, Places, line_table
from tenon.ingest.stream import View
from tenon.ingest.typed import Aside, Facts, Typed, framed, typed

NEAR = 1 << 16  # how far is looked for a row border at first


def read(job: dict[str, Any]) -> dict[str, Any]:
    """Read one range into `<out>.parquet` and its companions, and return its account; does nothing when that exists."""
    done = Path(job["out"] + ".json")
    if done.exists():
        return dict(json.loads(done.read_text("utf-8")))
    plan = Plan.load(Path(job["plan"]))
    file = plan.files[job["file"]]
    if file.format == "parquet":
        return _columnar(job, plan, file)
    view = View.from_dict(job["view"])
    exact = job.get("exact", False)
    begin, end = (job["begin"], job["end"]) if exact else borders(view, file, job["begin"], job["end"], plan.row_bytes)
    account = Account([Facts() for _ in plan.outputs], compiled=job["compiled"])
    for offset, data, after in _pieces(view, file, begin, end, job["chunk_bytes"], plan.row_bytes):
        if account.stop >= 0:
            break
        if after is not None:
            _giant(offset, data, after, file, plan, account)
            account.spill(job["out"])
        else:
            _piece(offset, data, view, plan, file, account)
    told = account.told(begin, end if account.stop < 0 else account.stop)
    account.write(job["out"], told)
    return told


def borders(view: View, file: FilePlan, begin: int, end: int, reach: int) -> tuple[int, int]:
    """Return where the rows of a range begin and end: at fresh lines, the same for whoever asks."""
    last = _last(view, file)
    return (
        begin if begin <= file.begin else apart(view, file, _border(view, file, begin, last, reach), last),
        last if end >= last else apart(view, file, _border(view, file, max(end, file.begin), last, reach), last),
    )


def _last(view: View, file: FilePlan) -> int:
    return view.size if file.stop < 0 else min(file.stop, view.size)


def apart(view: View, file: FilePlan, place: int, last: int) -> int:
    """Return the first line that is plainly a row, from a border on, so that halves of rows stay together.

    It is the border itself when there is none within reach, and the end when that is.
    """
    data = view.read(place, min(place + 2 * STRETCH, last)) if file.dialect.row and place < last else b""
    start = 0
    while start < len(data):
        end = line_end(data, start, file.dialect)
        if end - start <= ROW and plainly(data, start, file.dialect):
            return place + start
        start = end
    return last if data and place + len(data) >= last else place


def border(view: View, file: FilePlan, place: int, reach: int) -> int:
    """Return where a range ends that is to end at a place or soon after: there begins a fresh line."""
    if place >= view.size:
        return view.size
    return apart(view, file, _border(view, file, max(place, file.begin), view.size, reach), view.size)


def _border(view: View, file: FilePlan, place: int, last: int, reach: int) -> int:
    """Return the first fresh line at or after a place, looking no further than needed, a bounded piece at a time."""
    near = NEAR
    while True:
        stop = min(place + near, last)
        data = view.read(place - 1, min(stop + reach, view.size) if near > NEAR else stop)
        found = place - 1 + first_fresh(data, 1, file.dialect, reach)
        # Near the end of what was read, the quote that decides may not have been seen. With all that a row may reach
        # after `stop` at hand, none is left that could decide: a file without quotes is not looked through to its end.
        at = found - place + 1
        quote = file.dialect.quote
        sure = near > NEAR or not quote or plainly(data, at, file.dialect) or data.find(quote, at) >= 0
        if (found < stop and (sure or stop >= last)) or stop >= last:
            return min(found, last)
        if near > NEAR and found >= stop:
            # No line that begins before `stop` is fresh, whatever follows; a line without an end is passed at once.
            place = max(stop, _line_after(view, stop - 1, last, file)) if found >= stop + reach else stop
            if place >= last:
                return last
        else:
            near *= 16


def _pieces(
    view: View, file: FilePlan, begin: int, end: int, chunk: int, reach: int
) -> Iterator[tuple[int, bytes, bytes | None]]:
    """Yield the range in pieces that end at row borders, usually one; of a giant row what `reach` allows at once.

    With a piece of a giant row comes the byte after it, with any other None.
    """
    step = 2 * max(chunk, reach)
    while begin < end:
        if end - begin <= step + reach:
            yield begin, view.read(begin, end), None
            return
        data = view.read(begin, begin + step + reach)
        cut = first_fresh(data, step, file.dialect, reach)
        if cut >= len(data):
            cut = _last_border(data, step, file, reach)
        if cut:
            cut = apart(view, file, begin + cut, end) - begin
            yield begin, data[:cut] if cut <= len(data) else view.read(begin, begin + cut), None
            begin += cut
            continue
        stop = begin + row_end(data, 0, file.dialect, reach)[0]
        stop = min(stop if stop < begin + len(data) else _line_after(view, stop - 1, end, file), end)
        while begin < stop:
            size = min(reach, stop - begin)
            yield begin, data[:size], data[size : size + 1]
            begin += size
            data = view.read(begin, begin + reach + 1)


def _last_border(data: bytes, most: int, file: FilePlan, reach: int) -> int:
    """Return where the last row that ends by `most` does, from row to row; 0 when the first is longer."""
    place, heard = 0, Heard()
    while True:
        end, _ = row_end(data, place, file.dialect, reach, heard)
        if end > most or end == place:
            return place
        place = end


def _line_after(view: View, place: int, end: int, file: FilePlan) -> int:
    """Return where the line that contains a place ends, however long it is."""
    while place < end:
        data = view.read(place, min(place + (1 << 20), end))
        found = line_end(data, 0, file.dialect)
        if found < len(data) or data.endswith((b"\n", b"\r")):
            return place + found
        place += len(data)
    return end


# ── one piece ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _piece(offset: int, data: bytes, view: View, plan: Plan, file: FilePlan, account: Account) -> None:
    """Read one piece and add it to the account."""
    if file.format == "csv" and not file.profiles:
        _blanks(offset, data, file, account)
        return
    fast: Quick | None = None
    looked: Looked | None = None
    known: object | None = None
    repairs: Repairs | None = None
    if file.format == "jsonl":
        text = jsonl.text(data, file.header, file.charset, account.unknown, reach=plan.row_bytes)
    else:
        layout = _seen(layout_of(file, plan), offset, data, view, file)
        fast = quick(data, layout, plan, file) if account.compiled else None
        if fast is not None and fast.table is None:
            _whole(offset, data, fast, plan, file, account)
            return
        known = prepared(layout.dialect, tuple(layout.profiles), layout.reach) if fast is not None else None
        if fast is not None and known is not None:
            looked = look(data, layout, fast, known, plan, file)
        text = (
            _text(data, layout)
            if fast is None
            else careful(data, layout, fast.table, fast.done)
            if looked is None
            else looked.text
        )
    places = _Places(data, text, file)
    blank = _blank(text.frame)
    if blank is not None:
        gone = np.flatnonzero(blank)
        begins, ends, _ = places()
        skipped = {**text.skipped, "blank": text.skipped.get("blank", 0) + int((ends[gone] - begins[gone]).sum())}
        text = replace(places.keep(~blank), skipped=skipped)
    facts = [Facts() for _ in plan.outputs]
    aside = _aside(fast, looked)
    done = typed(text.frame, plan, file, facts, lambda rows: places.again(rows, file, known), places, aside)
    stop = table_break(offset, data, text, done, places, view, file)
    if stop >= 0:
        account.stop = offset + stop
        if stop:
            _piece(offset, data[:stop], view, plan, file, account)
        return
    account.bailed = account.bailed or done.bailed
    for known, fact in zip(account.facts, facts, strict=True):
        known.add(fact)
    if fast is not None and fast.table is not None:
        text, done, repairs = _joined(places, text, done, fast, looked, plan, account)
    if looked is not None:
        account.soften(looked, file)
    counted = -1 if fast is None else fast.ends
    _add(_Piece(offset, data, text, done, places, counted, repairs), plan, file, account)


def _aside(fast: Quick | None, looked: Looked | None) -> Aside | None:
    """Count what was read at once of a piece; None when nothing was."""
    if fast is None:
        return None
    more, soft = (0, {}) if looked is None else (len(looked.firsts), looked.soft)
    return Aside(len(fast.lines) + more, soft)


def _joined(
    places: _Places, text: Text, done: Typed, fast: Quick, looked: Looked | None, plan: Plan, account: Account
) -> tuple[Text, Typed, Repairs | None]:
    """Put the rows that were read at once, at the first look or the second, among those that were read as text."""
    assert fast.table is not None, "a piece that is done has nothing to be joined with"
    read = [_Read(framed(fast.columns, plan, len(fast.lines)), fast.lines, fast.lines)]
    account.take(fast)
    if looked is not None:
        account.take(looked.quick)
        frame = framed(looked.quick.columns, plan, len(looked.firsts))
        read.insert(0, _Read(frame, looked.firsts, looked.lasts))
    text, done, place = places.join(text, done, read, fast.table)
    return text, done, None if looked is None else replace(looked.repairs, rows=place[looked.repairs.rows])


def _whole(offset: int, data: bytes, fast: Quick, plan: Plan, file: FilePlan, account: Account) -> None:
    """Add a piece that was read at once, down to its last line."""
    text = Text(pl.DataFrame())
    account.take(fast)
    done = Typed(framed(fast.columns, plan, len(fast.lines)), None, [], [])
    _add(_Piece(offset, data, text, done, _Places(data, text, file), fast.ends), plan, file, account)


def _seen(layout: Layout, offset: int, data: bytes, view: View, file: FilePlan) -> Layout:
    """Say whether a piece begins where the table does, and whether it ends there or before a line that is a row."""
    end, last = offset + len(data), _last(view, file)
    row = view.read(end, min(end + ROW, last)) if end < last else b""
    closes = end >= last or plainly(row, 0, file.dialect)
    return replace(layout, joins=True, opens=offset <= file.begin, closes=closes)


def layout_of(file: FilePlan, plan: Plan) -> Layout:
    """Return how the chunks of a file are read."""
    return Layout(
        dialect=file.dialect,
        charset=file.charset,
        profiles=file.profiles,
        header_rows=file.header_rows,
        header_raw=file.header_raw,
        reach=plan.row_bytes,
        text=plan.text,
    )


def again(data: bytes, begins: NDArray[np.int64], plan: Plan, file: FilePlan) -> tuple[pl.DataFrame, list[int], Typed]:
    """Read rows whose borders are known, each by itself; return them, where each lies, and what became of others."""
    ends = np.append(begins[1:], len(data))
    none = np.zeros(len(begins), dtype=bool)
    groups = np.repeat(np.arange(len(begins), dtype=np.int64), 2).reshape(-1, 2)
    text = (
        jsonl.text(data, file.header, file.charset, {}, reach=plan.row_bytes)
        if file.format == "jsonl"
        else careful(data, layout_of(file, plan), Lines(begins, ends, ends, none, none, groups))
    )
    places = _Places(data, text, file)
    facts = [Facts() for _ in plan.outputs]
    done = typed(text.frame, plan, file, facts, lambda rows: places.again(rows, file, None), places)
    starts = places()[0]
    rows = done.rows if done.rows is not None else np.arange(text.frame.height)
    return done.frame, starts[rows].tolist(), replace(done, refused=[*text.refused, *done.refused])


def _giant(offset: int, data: bytes, after: bytes, file: FilePlan, plan: Plan, account: Account) -> None:
    """Put a piece of a row that is longer than a row may be into quarantine."""
    fix = f"a row of at most {plan.row_bytes:,} bytes; this line is longer"
    account.quarantine.append((file.label, offset, account.lines, data, "", "too-long", fix))
    account.quarantine_bytes += len(data)
    account.lines += _line_count(data, file, after)


def _blanks(offset: int, data: bytes, file: FilePlan, account: Account) -> None:
    """Account for an input in whose beginning no table was found: blank lines are skipped, any other is refused."""
    starts, _, ends = line_table(np.frombuffer(data, dtype=np.uint8), file.dialect)
    for number, (begin, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        raw = data[begin:end]
        if raw.strip(b" \t\r\n\x00" + file.dialect.delimiter + file.dialect.quote):
            fix = "a table that begins in the first part of the file"
            account.quarantine.append((file.label, offset + begin, account.lines + number, raw, "", "no-table", fix))
            account.quarantine_bytes += len(raw)
        else:
            account.skip("blank", len(raw))
    account.lines += len(starts)


def _text(data: bytes, layout: Layout) -> Text:
    """Read a piece the quick way when it can be proven, else line by line."""
    text = express(data, layout)
    return careful(data, layout) if text is None else text


class _Places:
    """Where the rows of a text frame lie in their piece, worked out when first asked."""

    __slots__ = ("_data", "_file", "_found", "_keep", "_text")

    def __init__(self, data: bytes, text: Text, file: FilePlan) -> None:
        self._data, self._text, self._file = data, text, file
        self._found: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None = None

    def __call__(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        if self._found is None:
            text = self._text
            if text.begins is not None and text.ends is not None and text.lines is not None:
                self._found = (text.begins, text.ends, text.lines)
            else:
                starts, _, ends = line_table(np.frombuffer(self._data, dtype=np.uint8), self._file.dialect)
                self._found = (starts, ends, np.arange(len(starts)))
        return self._found

    def keep(self, mask: NDArray[np.bool_]) -> Text:
        """Leave out rows, and return the text without them."""
        begins, ends, lines = self()
        self._found = (begins[mask], ends[mask], lines[mask])
        number = np.cumsum(mask) - 1
        repaired = [
            Repaired(int(number[one.row]), one.column, one.code, one.was)
            for one in self._text.repaired
            if mask[one.row]
        ]
        text = self._text
        self._text = Text(
            text.frame.filter(pl.Series(mask)), *self._found, repaired, text.refused, text.skipped, text.encodings
        )
        return self._text

    def join(self, text: Text, done: Typed, read: Sequence[_Read], table: Lines) -> tuple[Text, Typed, Places]:
        """Put rows that were read at once among the others in the order of the input; also returns their new places."""
        mine = self()
        firsts, lasts = (np.concatenate([getattr(one, name) for one in read]) for name in ("firsts", "lasts"))
        here = (table.starts[firsts], table.ends[lasts], firsts)
        every = [np.concatenate(pair) for pair in zip(mine, here, strict=True)]
        order = np.argsort(every[0], kind="stable")
        self._found = (every[0][order], every[1][order], every[2][order])
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        others = text.frame.height
        kept = done.rows if done.rows is not None else np.arange(others)
        rows = np.concatenate([place[kept], place[others:]])
        new = np.argsort(rows, kind="stable")
        frames = [frame for frame in (done.frame, *(one.frame for one in read)) if frame.height]
        joined = Typed(
            frame=pl.concat(frames)[new] if frames else done.frame,
            rows=rows[new],
            repaired=moved(done.repaired, place),
            refused=done.refused,
            bailed=done.bailed,
        )
        return replace(text, repaired=moved(text.repaired, place)), joined, place[others:]

    @property
    def known(self) -> bool:
        """Whether the places have been worked out, or came with the text."""
        return self._found is not None or self._text.begins is not None

    def again(self, rows: Sequence[int], file: FilePlan, table: object) -> tuple[list[bytes], list[Mended | None]]:
        """Read rows as broken ones; return them as UTF-8 without zero bytes and line ending, and what came of each."""
        begins, ends, _ = self()
        lines = (chomp(self._data[begins[row] : ends[row]]).replace(b"\x00", b"") for row in rows)
        raw, _ = to_utf8(lines, file.charset)
        answers = mended(raw, file.dialect, file.profiles, table) if file.format == "csv" else [None] * len(raw)
        return raw, list(answers)


@dataclass(frozen=True, slots=True)
class _Read:
    """Rows of a piece that were read at once: their values, and the first and last line of each."""

    frame: pl.DataFrame
    firsts: Places
    lasts: Places


def moved(repaired: Sequence[Repaired], place: Places) -> list[Repaired]:
    """Return repairs by the new places of their rows."""
    rows = place[[one.row for one in repaired]].tolist() if repaired else []
    return [Repaired(row, one.column, one.code, one.was) for row, one in zip(rows, repaired, strict=True)]


def _blank(frame: pl.DataFrame) -> NDArray[np.bool_] | None:
    """Mark the rows that are empty in every column; None when there are none."""
    mask: NDArray[np.bool_] | None = None
    for column in frame.get_columns():
        empty = (column == "").to_numpy()
        mask = empty if mask is None else mask & empty
        if not mask.any():
            return None
    return mask


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece that has been read: where it lies, its bytes, its rows as text and as values, and their places in it.

    `ends` is how many line endings it has; below zero when they were not counted.
    """

    offset: int
    data: bytes
    text: Text
    done: Typed
    places: _Places
    ends: int
    repairs: Repairs | None = None


def _add(piece: _Piece, plan: Plan, file: FilePlan, account: Account) -> None:
    """Add what came of a piece to the account."""
    offset, data, text, done, places = piece.offset, piece.data, piece.text, piece.done, piece.places
    columns = [plan.outputs[target].name if target >= 0 else "" for target in file.targets]
    quarantine = sorted([*text.refused, *done.refused], key=lambda one: one.begin)
    for one in quarantine:
        name = columns[one.column] if 0 <= one.column < len(columns) else ""
        raw, line = data[one.begin : one.end], account.lines + one.line
        account.quarantine.append((file.label, offset + one.begin, line, raw, name, one.code, one.fix))
        account.quarantine_bytes += one.end - one.begin
        if one.code == "type" and 0 <= one.column < len(columns) and file.targets[one.column] >= 0:
            account.facts[file.targets[one.column]].quarantined += 1
    for name, size in text.skipped.items():
        account.skip(name, size)
    for name, count in text.encodings.items():
        account.encodings[name] = account.encodings.get(name, 0) + count
    if places.known or quarantine or done.repaired:
        begins, ends, _ = places()
        rows = done.rows if done.rows is not None else np.arange(text.frame.height)
        account.row_bytes += int((ends[rows] - begins[rows]).sum())
        if len(rows):
            account.last_row_end = max(account.last_row_end, offset + int(ends[rows].max()))
        _repairs(piece, rows, columns, file, account)
    else:
        account.row_bytes += len(data)
        account.last_row_end = offset + len(data)
    account.rows += done.frame.height
    account.lines += piece.ends if piece.ends >= 0 else _line_count(data, file)
    for number, fact in enumerate(account.facts):
        column = done.frame.to_series(number)
        fact.rows += len(column)
        fact.null += column.null_count()
    account.frames.append(done.frame)


def _line_count(data: bytes, file: FilePlan, after: bytes = b"") -> int:
    """Count the line endings in a piece; `after` is the byte that follows, where that may be half of one."""
    ends = data.count(file.dialect.newline)
    if file.dialect.mixed:
        ends += data.count(b"\r") - data.count(b"\r\n") - (data.endswith(b"\r") and after == b"\n")
    return ends


def _repairs(piece: _Piece, rows: NDArray[np.int64], columns: list[str], file: FilePlan, account: Account) -> None:
    """Record the repairs of rows that made it into the result, by the number the row has there."""
    single = [*piece.text.repaired, *piece.done.repaired]
    many = piece.repairs or Repairs(np.zeros(0, dtype=np.int64), [], [], [])
    struck = np.concatenate([many.rows, np.array([one.row for one in single], dtype=np.int64)])
    if not len(struck) or not len(rows):
        return
    column = many.columns + [one.column for one in single]
    code, was = many.codes + [one.code for one in single], many.was + [one.was for one in single]
    number = np.full(max(int(rows.max()), int(struck.max())) + 1, -1, dtype=np.int64)
    number[rows] = np.arange(len(rows))
    order = np.lexsort((np.array(column, dtype=np.int64), struck))
    order = order[number[struck[order]] >= 0]
    begins, _, lines = piece.places()
    at, struck = order.tolist(), struck[order]
    names = [*columns, ""]  # a repair of the whole row, at -1, lies in none
    told = account.repairs
    told["row"] += (account.rows + number[struck]).tolist()
    told["file"] += [file.label] * len(at)
    told["offset"] += (piece.offset + begins[struck]).tolist()
    told["line"] += (account.lines + lines[struck]).tolist()
    told["column"] += [names[min(column[n], len(columns))] for n in at]
    told["repair"] += [code[n] for n in at]
    told["was"] += [was[n] for n in at]


def _columnar(job: dict[str, Any], plan: Plan, file: FilePlan) -> dict[str, Any]:
    """Read a range of a Parquet input."""
    frame, bad, why, share = columnar.read(job, plan, file)
    account = Account([Facts() for _ in plan.outputs], frames=[frame], rows=frame.height)
    whole = frame.height + bad.height
    account.quarantine_bytes = share * bad.height // whole if whole else 0
    account.row_bytes = share - account.quarantine_bytes
    for number, row in enumerate(bad.to_dicts()):
        raw = json.dumps(row, default=str, ensure_ascii=False).encode()
        account.quarantine.append(
            (file.label, -1, job["begin"] + number, raw, why[number], "type", "a value of the declared type")
        )
    for number, fact in enumerate(account.facts):
        column = frame.to_series(number)
        fact.rows, fact.null = len(column), column.null_count()
        fact.cells = fact.rows - fact.null
    told = account.told(0, share)
    account.write(job["out"], told)
    return told

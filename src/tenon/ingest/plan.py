"""What is decided before the work begins, and voted on after it: the Plan, which every range of the input is read by.

A plan is plain data on disk (workers load it by path). It holds the columns of the result with their types, and for
each input how it is read: characters, dialect, table, profile and reading of every column. It is learnt from the
beginning of each input and from a few places spread over it; nothing in it depends on how the input will be cut into
ranges.

A sample can be wrong about the rest. So every range counts what did not fit, and `vote` decides with the counts of the
whole input: a column of whole numbers that turns out to hold decimals becomes decimal, one whose values mostly do not
fit becomes text. When the vote changes the plan, the ranges are read again under the new one; the vote only ever
widens, so that ends.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from tenon.contract.column import Column, ColumnType
from tenon.errors import InputError, nearest, sentence
from tenon.ingest import detect, profile, table, values
from tenon.ingest.charset import Charset, to_utf8
from tenon.ingest.dialect import Dialect
from tenon.ingest.foot import TAIL, foot
from tenon.ingest.job import Job
from tenon.ingest.jsonl import records
from tenon.ingest.missing import STRONG, known
from tenon.ingest.preface import Preface, page, preface
from tenon.ingest.profile import Profile
from tenon.ingest.rows import first_fresh
from tenon.ingest.stream import View
from tenon.ingest.values import Reading

FEW = 3  # fewer rows than this tell nothing about how rare missing values are
SPOTS = 8
SPOT_BYTES = 48 * 1024
SPOT_ROWS = 120
TEXT_SHARE = 0.10  # above this share of values that do not fit, the column is text
WIDEN_SHARE = 0.005  # above this share of decimals, whole numbers become decimals


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One column of the result: its name, how the header spelt it, its type, and whether the source declares it."""

    name: str
    spelt: str
    type: ColumnType
    declared: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the column as plain data."""
        return {"name": self.name, "spelt": self.spelt, "type": self.type, "declared": self.declared}


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """How one input is read. `targets` says which output each of its columns fills (-1: dropped by a strict source).

    `begin` is where rows begin, `stop` where the notes below them do (-1: nowhere). `header_raw` is the header line as
    bytes. `readings` are how columns become values, `profiles` what they look like. `close` is said when the dialect
    had a rival.
    """

    label: str
    format: str
    charset: Charset = Charset()
    dialect: Dialect = Dialect()
    begin: int = 0
    preamble: int = 0
    stop: int = -1
    header: tuple[str, ...] = ()
    header_rows: tuple[bytes, ...] = ()
    header_raw: bytes = b""
    targets: tuple[int, ...] = ()
    profiles: tuple[Profile, ...] = ()
    readings: tuple[Reading, ...] = ()
    rival: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the file's plan as plain data."""
        return {
            "label": self.label,
            "format": self.format,
            "charset": {name: getattr(self.charset, name) for name in Charset.__slots__},
            "dialect": self.dialect.to_dict(),
            "begin": self.begin,
            "preamble": self.preamble,
            "stop": self.stop,
            "header": list(self.header),
            "header_rows": [row.decode("latin-1") for row in self.header_rows],
            "header_raw": self.header_raw.decode("latin-1"),
            "targets": list(self.targets),
            "profiles": [one.to_dict() for one in self.profiles],
            "readings": [one.to_dict() for one in self.readings],
            "rival": self.rival,
        }

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> FilePlan:
        """Rebuild the file's plan from plain data."""
        return FilePlan(
            label=body["label"],
            format=body["format"],
            charset=Charset(**body["charset"]),
            dialect=Dialect.from_dict(body["dialect"]),
            begin=body["begin"],
            preamble=body["preamble"],
            stop=body["stop"],
            header=tuple(body["header"]),
            header_rows=tuple(row.encode("latin-1") for row in body["header_rows"]),
            header_raw=body["header_raw"].encode("latin-1"),
            targets=tuple(body["targets"]),
            profiles=tuple(Profile.from_dict(one) for one in body["profiles"]),
            readings=tuple(Reading.from_dict(one) for one in body["readings"]),
            rival=body["rival"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How everything is read. `patient` says that many misfits in one range are no reason to ask for a vote first."""

    outputs: tuple[Output, ...]
    files: tuple[FilePlan, ...]
    policy: str = "row"
    text: bool = False
    row_bytes: int = 4 << 20
    patient: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "outputs": [one.to_dict() for one in self.outputs],
            "files": [one.to_dict() for one in self.files],
            "policy": self.policy,
            "text": self.text,
            "row_bytes": self.row_bytes,
            "patient": self.patient,
        }

    @staticmethod
    def load(path: Path) -> Plan:
        """Read a plan from the file it was saved to."""
        return _loaded(path.read_text("utf-8"))


@lru_cache(maxsize=4)
def _loaded(text: str) -> Plan:
    """Return a plan from its text; every range asks for the same one."""
    body = json.loads(text)
    return Plan(
        outputs=tuple(Output(**one) for one in body["outputs"]),
        files=tuple(FilePlan.from_dict(one) for one in body["files"]),
        policy=body["policy"],
        text=body["text"],
        row_bytes=body["row_bytes"],
        patient=body["patient"],
    )


# ── learning from a sample ───────────────────────────────────────────────────────────────────────────────────────────


def learn(label: str, head: bytes, whole: bool, view: View | None, charset: Charset, job: Job) -> FilePlan:
    """Learn how one input of text is read, from its decoded first bytes and, given a view, a few places further on."""
    limits = job.limits
    mark = 0 if charset.wide else charset.mark
    head = head[mark:]
    bare = head.replace(b"\x00", b"") if b"\x00" in head else head
    if _records(bare):
        return _jsonl(label, head, whole, charset, mark)
    before, clear = preface(head), preface(bare).end
    if not before.end and (end := page(head, whole=whole)):
        before, clear = Preface(end=end, last=end), page(bare, whole=whole)
    guess = detect.detect(bare[clear:], whole=whole, told=before.delimiter)
    rows = _rows(head, before, guess.dialect, limits.row_bytes)
    if not whole and len(rows) > 1 and rows[-1].end == len(head):
        rows.pop()
    found = table.find(rows, guess.dialect)
    if found.width > limits.columns:
        said = sentence(f"at most {limits.columns:,} columns", f"{found.width:,}", at=label, hint="check the delimiter")
        raise InputError(said)
    if not found.width:
        return FilePlan(label=label, format="csv", charset=charset, dialect=guess.dialect, begin=mark, preamble=mark)
    own = {row.split(b"\x1f")[0] for row in found.header_rows}
    good = [
        row.values
        for row in found.body
        if _clean(row, found.width, guess.dialect)
        and not (row.values[0] in own and b"\x1f".join(row.values) in found.header_rows)
    ]
    while len(good) > 1 and found.width > 1 and good[-1][0].strip() and not any(map(bytes.strip, good[-1][1:])):
        good.pop()  # what may be a note says nothing about the columns
    good += _ragged(found, guess.dialect)
    if not whole and view is not None:
        good += _spots(view, guess.dialect, found.width, mark, job)
    cells = _cells(good, found.width, charset)
    profiles = _profiles(cells)
    if whole and sum(not row.blank for row in found.body) < FEW:
        # That none is missing in the one row or two that there are says nothing.
        profiles = tuple(replace(one, missing=max(one.missing, 0.3)) for one in profiles)
    last = next((row for row in reversed(rows) if row.end == found.begin), None) if found.header else None
    header_raw = head[last.begin : last.end].rstrip(b"\r\n") if last else b""
    names, _ = to_utf8([name.replace(b"\x00", b"") for name in found.header], charset)
    file = FilePlan(
        label=label,
        format="csv",
        charset=charset,
        dialect=replace(guess.dialect, row=_row_pattern(guess.dialect, profiles)),
        begin=mark + found.begin,
        preamble=mark + found.preamble,
        header=tuple(name.decode("utf-8", "replace") for name in names),
        header_rows=tuple(b"\x1f".join(to_utf8(row.split(b"\x1f"), charset)[0]) for row in found.header_rows),
        header_raw=header_raw,
        profiles=profiles,
        rival=guess.rival.said if guess.close and guess.rival else "",
    )
    return replace(file, stop=_stop(file, head, whole, view, limits.row_bytes))


def _rows(head: bytes, before: Preface, dialect: Dialect, reach: int) -> list[table.Row]:
    """Read the rows after the comments; the last comment is the header when it has as many fields as the row after."""
    rows = table.rows_of(head, before.end, dialect, reach=reach)
    if before.last < before.end and rows:
        last = table.rows_of(head, before.last, dialect, reach=reach, limit=1)
        return last + rows if len(last[0].values) == len(rows[0].values) > 1 else rows
    return rows


def _stop(file: FilePlan, head: bytes, whole: bool, view: View | None, reach: int) -> int:
    """Return where notes below the table begin (-1: none, or the end of the input is not known yet)."""
    mark = 0 if file.charset.wide else file.charset.mark
    size = mark + len(head) if whole else view.size if view is not None else 0
    begin = max(file.begin, size - TAIL)
    if begin >= size:
        return -1
    data = head[begin - mark :] if whole else view.read(begin, size) if view is not None else b""
    skip = 0 if begin == file.begin else first_fresh(data, 1, file.dialect, reach)
    found = foot(data, skip, file.dialect, file.profiles, file.charset, reach=reach)
    return begin + found if found >= 0 else -1


def _row_pattern(dialect: Dialect, profiles: Sequence[Profile]) -> bytes:
    """Return the pattern of a line without quotes that is surely a row; empty when the columns tell too little."""
    stop = re.escape(dialect.delimiter[:1] + dialect.quote) + rb"\r\n"
    telling = sum(one.typed and one.missing < 0.5 for one in profiles)
    if not dialect.delimiter or telling < (1 if len(profiles) > 5 else 2):
        return b""
    number = rb"[ ]?[-+(]?[^\w\s" + stop + rb"]?\d[^a-zA-Z" + stop + rb"]*"
    parts = []
    for one in profiles:
        if not one.typed:
            parts.append(rb"[^" + stop + rb"]*+")
            continue
        cell = number if one.reading.type in ("int", "float") else rb"[^" + stop + rb"]*\d[^" + stop + rb"]*"
        if one.reading.type == "bool":
            cell = rb"|".join(word.encode() for word in (*one.reading.true, *one.reading.false))
        empty = [re.escape(word.encode()) for word in ("", *one.reading.null)] if one.missing else []
        parts.append(rb"(?>(?i:" + rb"|".join([cell, *sorted(empty, reverse=True)]) + rb"))")
    mark = re.escape(dialect.delimiter) + (rb"[ ]?+" if dialect.spaced else b"")
    return mark.join(parts) + rb"(?=[\r\n])"


def _jsonl(label: str, head: bytes, whole: bool, charset: Charset, mark: int) -> FilePlan:
    """Learn the names and values of JSON Lines from the first of them."""
    cells: dict[str, list[str]] = {}
    for number, (_, end, record, _) in enumerate(records(head, charset)):
        if record is None or (not whole and end == len(head)) or number > 5 * table.ROWS:
            continue
        for name, value in record.items():
            cells.setdefault(name, []).append(value)
    return FilePlan(
        label=label,
        format="jsonl",
        charset=charset,
        dialect=Dialect(delimiter=b"", quote=b""),
        begin=mark,
        preamble=mark,
        header=tuple(cells),
        profiles=_profiles(list(cells.values())),
    )


def _records(head: bytes) -> bool:
    """Whether the first lines are JSON objects."""
    lines = [line for line in head[: 1 << 16].split(b"\n") if line.strip()][:3]
    if not lines or not lines[0].lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(lines[0]), dict)
    except (ValueError, RecursionError):
        return len(lines) > 1 and _records(b"\n".join(lines[1:]))


def _clean(row: table.Row, width: int, dialect: Dialect) -> bool:
    """Whether a row reads without a doubt; a lone quote in unquoted text may be a lost delimiter."""
    if len(row.values) != width or row.faults or row.blank or b"\x00" in row.raw:
        return False
    quote = dialect.quote
    return not quote or not any(v.count(quote) % 2 and not q for v, q in zip(row.values, row.quoted, strict=True))


def _ragged(found: table.Table, dialect: Dialect) -> list[list[bytes]]:
    """Return rows that leave out cells at their end, filled up, where a good part of the rows among full ones does."""
    last = max((n for n, row in enumerate(found.body) if len(row.values) == found.width), default=0)
    short = [
        row.values + [b""] * (found.width - len(row.values))
        for row in found.body[:last]
        if found.width / 2 <= len(row.values) < found.width and _clean(row, len(row.values), dialect)
    ]
    return short if len(short) > 0.1 * last else []


def _spots(view: View, dialect: Dialect, width: int, mark: int, job: Job) -> list[list[bytes]]:
    """Read clean rows from places spread over the input; only a plain file can be read there already."""
    out: list[list[bytes]] = []
    if view.step:
        return out
    for number in range(1, SPOTS + 1):
        place = mark + (view.size - mark) * number // (SPOTS + 1)
        data = view.read(place, place + SPOT_BYTES)
        begin = first_fresh(data, 1, dialect, job.limits.row_bytes)
        rows = table.rows_of(data, begin, dialect, reach=job.limits.row_bytes, limit=SPOT_ROWS)
        out += [row.values for row in rows[:-1] if _clean(row, width, dialect)]
    return out


def _cells(rows: Sequence[Sequence[bytes]], width: int, charset: Charset) -> list[list[str]]:
    out: list[list[str]] = [[] for _ in range(width)]
    for row in rows:
        fields = row if b"".join(row).isascii() else to_utf8(row, charset)[0]
        for column, field in enumerate(fields):
            out[column].append(field.decode("utf-8", "replace"))
    return out


def _profiles(cells: Sequence[Sequence[str]]) -> tuple[Profile, ...]:
    """Learn every column; columns whose comma may mean two things follow those where it can mean only one."""
    readings = [values.learn(column) for column in cells]
    decimal = sum(one.decimal == "," for one in readings)
    group = sum(one.group == "," or (one.type == "float" and one.plain) for one in readings)
    comma = "decimal" if decimal and not group else "group" if group and not decimal else ""
    if comma:
        readings = [
            values.learn(column, comma=comma) if one.rivals == ("decimal", "group") or comma == "decimal" else one
            for one, column in zip(readings, cells, strict=True)
        ]
    # Words that mean missing where there are numbers mean it in the text columns of the same file as well.
    words = Counter(word for one in readings for word in one.null if one.type != "text")
    out = []
    for one, column in zip(readings, cells, strict=True):
        if one.type == "text":
            one = replace(one, null=tuple(sorted({word for word in words if known(word)} | STRONG)))
        out.append(profile.learn(column, one))
    return tuple(out)


# ── outputs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def settle(files: Sequence[FilePlan], job: Job) -> Plan:
    """Bring the inputs together: one list of columns with one type each; a missing declared column is an error."""
    declared = {c.name: c for c in job.source.columns if not c.derive} if job.source else {}
    extra = tuple(job.source.null) if job.source else ()
    names: list[str] = []
    spelt: dict[str, str] = {}
    per_file: list[tuple[str, ...]] = []
    for file in files:
        mine = _names(file, declared, names)
        for name, text in zip(mine, file.header or [""] * len(mine), strict=True):
            if name not in spelt:
                names.append(name)
                spelt[name] = text
        per_file.append(mine)
    missing = [name for name in declared if name not in spelt]
    if missing:
        got = f"columns {', '.join(names)}" if names else "an empty file"
        near = nearest(missing[0], names)
        hint = (
            f"{near}{'' if near.endswith('?') else ','} or declare what the file has" if names else "ask what wrote it"
        )
        raise InputError(sentence(f"column '{missing[0]}'", got, at=files[0].label, hint=hint))
    if job.source and job.source.strict and declared:
        names = [name for name in names if name in declared]
    types: dict[str, ColumnType] = dict.fromkeys(names, "text")
    for name in names:
        found = [
            file.profiles[mine.index(name)].reading.type
            for file, mine in zip(files, per_file, strict=True)
            if name in mine and file.profiles and file.profiles[mine.index(name)].missing < 1
        ]
        types[name] = declared[name].type if name in declared else _union(found)
    outputs = tuple(Output(name=n, spelt=spelt[n], type=types[n], declared=n in declared) for n in names)
    settled = tuple(
        _settled(file, mine, names, outputs, declared, extra) for file, mine in zip(files, per_file, strict=True)
    )
    return Plan(outputs=outputs, files=settled, policy=job.policy, text=job.text, row_bytes=job.limits.row_bytes)


def _names(file: FilePlan, declared: Mapping[str, Column], known_names: Sequence[str]) -> tuple[str, ...]:
    """Name the columns of one input: its header, made unique; without one, those declared or known when as many."""
    width = len(file.profiles)
    if not file.header:
        for others in (list(declared), list(known_names)):
            if width and len(others) == width:
                return tuple(others)
        return tuple(f"column_{n + 1}" for n in range(width))
    return file.header if file.format != "csv" else unique([" ".join(name.split()) for name in file.header])


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """Make names unique: an empty one is numbered by its place, a repeated one gets the next free number."""
    out: list[str] = []
    taken = set(names)
    for number, name in enumerate(names):
        wanted = name or f"column_{number + 1}"
        if wanted in out:
            count = 2
            while f"{wanted}_{count}" in taken or f"{wanted}_{count}" in out:
                count += 1
            wanted = f"{wanted}_{count}"
        out.append(wanted)
    return tuple(out)


def _union(types: Sequence[ColumnType]) -> ColumnType:
    """Return the narrowest type that holds all."""
    kinds = set(types)
    if len(kinds) == 1:
        return types[0]
    if kinds == {"int", "float"}:
        return "float"
    if kinds == {"date", "timestamp"}:
        return "timestamp"
    return "text"


def _settled(
    file: FilePlan,
    mine: Sequence[str],
    names: Sequence[str],
    outputs: Sequence[Output],
    declared: Mapping[str, Column],
    extra: tuple[str, ...],
) -> FilePlan:
    place = {name: n for n, name in enumerate(names)}
    targets = tuple(place.get(name, -1) for name in mine)
    readings = tuple(
        reading_for(one.reading, outputs[target].type, declared=outputs[target].declared, extra=extra)
        if target >= 0
        else one.reading
        for one, target in zip(file.profiles, targets, strict=True)
    )
    profiles = tuple(
        replace(one, reading=_judge(one.reading, reading)) for one, reading in zip(file.profiles, readings, strict=True)
    )
    return replace(file, targets=targets, readings=readings, profiles=profiles)


def _judge(natural: Reading, wanted: Reading) -> Reading:
    """Return what repairs are judged by: what the column is by nature, unless a type was declared for it."""
    return (
        wanted
        if wanted.declared and wanted.type != "text"
        else replace(natural, null=tuple(sorted({*natural.null, *wanted.null})))
    )


def reading_for(natural: Reading, type_: ColumnType, *, declared: bool = False, extra: tuple[str, ...] = ()) -> Reading:
    """Return a reading of the wanted type that keeps what was learnt about how values are written."""
    null = tuple(sorted({*natural.null, *extra}))
    if natural.type == type_:
        return replace(natural, null=null, declared=declared)
    if type_ == "text":
        return Reading(
            null=tuple(sorted({*extra, *(natural.null if natural.type == "text" else STRONG)})),
            declared=declared,
            why=natural.why,
        )
    if type_ in ("int", "float") and natural.type in ("int", "float"):
        return replace(natural, type=type_, null=null, declared=declared)
    if type_ == "timestamp" and natural.type == "date":
        return replace(natural, type=type_, null=null, declared=declared)
    if type_ == "bool":
        words = (
            natural
            if natural.true
            else Reading(true=("true", "1", "yes", "t", "y"), false=("false", "0", "no", "f", "n"))
        )
        return replace(words, type=type_, plain=False, null=null, declared=declared)
    if type_ == "date":
        formats = natural.formats if natural.type == "timestamp" else ("%Y-%m-%d",)
        return Reading(type=type_, formats=formats, plain=False, null=null, declared=declared)
    if type_ == "timestamp":
        formats = ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d")
        return Reading(type=type_, formats=formats, plain=False, null=null, declared=declared)
    return Reading(type=type_, null=null, declared=declared)


# ── the vote ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Count(Protocol):
    """What is counted of one output over the whole input: cells that fit, that do not; decimals and codes of those."""

    cells: int
    misfits: int
    decimals: int
    padded: int


def words_for_missing(plan: Plan) -> list[frozenset[str]]:
    """Return for each output the words that may be told as read for missing."""
    out = [set(STRONG) for _ in plan.outputs]
    for file in plan.files:
        for target, reading in zip(file.targets, file.readings, strict=True):
            if target >= 0:
                out[target].update(reading.null)
    return [frozenset(words) for words in out]


def vote(plan: Plan, told: Sequence[Mapping[str, Any]], counts: Sequence[Count]) -> Plan:
    """Return the plan as the counts of the whole input want it: the same one when nothing needs to change."""
    plan = _met(plan, told)
    outputs = list(plan.outputs)
    for number, count in enumerate(counts):
        output = outputs[number]
        if output.declared or output.type == "text":
            continue
        total, misfits, decimals = count.cells + count.misfits, count.misfits, count.decimals
        if output.type == "int" and decimals > max(1, WIDEN_SHARE * total) and misfits - decimals <= TEXT_SHARE * total:
            outputs[number] = replace(output, type="float")
        elif output.type == "int" and count.padded > max(1, WIDEN_SHARE * total):
            outputs[number] = replace(output, type="text")  # 007 is a code
        elif misfits > TEXT_SHARE * total:
            outputs[number] = replace(output, type="text")
    if outputs == list(plan.outputs):
        return plan if plan.patient or not any(one["bailed"] for one in told) else replace(plan, patient=True)
    files = []
    for file in plan.files:
        readings = tuple(
            reading_for(reading, outputs[target].type, declared=reading.declared) if target >= 0 else reading
            for reading, target in zip(file.readings, file.targets, strict=True)
        )
        profiles = tuple(
            replace(one, reading=reading) if one.reading.type != reading.type and not reading.declared else one
            for one, reading in zip(file.profiles, readings, strict=True)
        )
        files.append(replace(file, readings=readings, profiles=profiles))
    return replace(plan, outputs=tuple(outputs), files=tuple(files))


def _met(plan: Plan, told: Sequence[Mapping[str, Any]]) -> Plan:
    """Add the names that only later records have, as read from the examples of them."""
    outputs, files = list(plan.outputs), list(plan.files)
    for number, file in enumerate(plan.files):
        seen: dict[str, list[str]] = {}
        for one in told:
            if one["file"] == number:
                for name, cells in one["unknown"].items():
                    seen.setdefault(name, []).extend(cells)
        for name in sorted(seen):
            found = _profiles([seen[name]])[0]
            place = next((n for n, output in enumerate(outputs) if output.name == name), -1)
            if place < 0:
                place = len(outputs)
                outputs.append(Output(name=name, spelt=name, type=found.reading.type))
            reading = reading_for(found.reading, outputs[place].type, declared=outputs[place].declared)
            file = replace(
                file,
                header=(*file.header, name),
                targets=(*file.targets, place),
                profiles=(*file.profiles, found),
                readings=(*file.readings, reading),
            )
        files[number] = file
    return replace(plan, outputs=tuple(outputs), files=tuple(files))

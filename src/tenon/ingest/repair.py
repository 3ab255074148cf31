"""Rows that do not read cleanly: every reading of them that one fault explains, and the one that fits, if only one does.

A fault is a stray quote, a delimiter too many or too few, another delimiter for the whole row, a delimiter inside
unquoted text, empty cells left out at the end. For each row the readings that one such fault explains are listed, every
field is held against the profile of the column it would fall into, and costs are added: what the fault costs and what
speaks against the fields. A row is repaired when the best reading costs at most ACCEPT and every other reading that gives
other values costs at least MARGIN more; otherwise it goes to quarantine with the best reading as what would have fixed it.

Rows are taken together by their number of fields, so that profiles are asked column by column (one body for one row and
for ten thousand). With k fields for n columns and one fault at place p, fields before p keep their column and fields after
it move by k - n, so the cost of every place is a sum of a prefix and a suffix: two tables, no search.

Rejected: a general alignment with any number of faults (a second fault makes most rows ambiguous, and costs a search for
each row), and guessing by position alone, which is what loaders do that pad or cut ragged rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from tenon.ingest.dialect import Dialect, Split, split
from tenon.ingest.profile import MISFIT, Costs, Profile

ACCEPT = 3.0
MARGIN = 0.6
FAULT = 0.25  # a stray quote inside a quoted field that closes all the same
LOOSE = 0.5  # a lone quote inside unquoted text
LITERAL = 1.0  # a quote taken as text
INSERT = 1.2  # a delimiter put in beside a quote
FOREIGN = 1.0  # a row with a delimiter of its own
DROP = 1.0  # an empty field too many
TAIL = 0.4  # empty fields too many, or too few, at the end
JOIN = 1.4  # a delimiter inside unquoted text
SPLIT = 1.4  # two fields run together
NOWHERE = 99.0
OTHERS = (b",", b";", b"\t", b"|", b" ", b":", b"^", b"~", b"#", b"&")
QUOTES = 24  # a row with more quotes than this is not tried quote by quote
HOLD = b"\x1a"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to cut a row into fields, what it costs, and the repair it stands for."""

    fields: list[bytes]
    quoted: list[bool]
    cost: float
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """What came of one row: its values in columns when it was repaired, else why not and what would have fixed it.

    `column` is where the repair was made (or is missing), `code` names it, `sure` says that it was accepted.
    """

    values: list[bytes]
    code: str
    column: int
    sure: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Option:
    """A reading of a row under one attempt: its cost, where the fault is, and how to build the values."""

    cost: float
    place: int
    kind: str
    cut: int = -1


def mend(rows: Sequence[bytes], dialect: Dialect, profiles: Sequence[Profile]) -> list[Mended]:
    """Repair rows (UTF-8, without line endings) or say why not; each answer depends on its row alone."""
    width = len(profiles)
    tried = [attempts(row, dialect, width) for row in rows]
    buckets: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, ways in enumerate(tried):
        for way, attempt in enumerate(ways):
            if abs(len(attempt.fields) - width) <= max(3, width):
                buckets[len(attempt.fields)].append((number, way))
    found: list[list[tuple[float, int, _Option]]] = [[] for _ in rows]
    for members in buckets.values():
        chosen = [tried[number][way] for number, way in members]
        for (number, way), options in zip(members, _options(chosen, dialect, profiles), strict=True):
            found[number].extend((tried[number][way].cost + option.cost, way, option) for option in options)
    return [_best(tried[number], found[number], dialect, width) for number in range(len(rows))]


def _best(ways: Sequence[Attempt], found: list[tuple[float, int, _Option]], dialect: Dialect, width: int) -> Mended:
    """Choose the cheapest reading, if all that give other values are dearer by the margin."""
    if not found:
        return Mended(values=[], code="fields", column=-1, sure=False, why=f"{len(ways[0].fields)} fields for {width} columns")
    found.sort(key=lambda one: one[0])
    cost, way, option = found[0]
    values = _build(ways[way], option, dialect, width)
    code = _code(ways[way], option)
    # Readings that differ only by a quote at the edge of a field say the same.
    bare = [value.strip(dialect.quote) for value in values]
    rival = next(
        (
            (c, w, o)
            for c, w, o in found[1:12]
            if c < cost + MARGIN and [v.strip(dialect.quote) for v in _build(ways[w], o, dialect, width)] != bare
        ),
        None,
    )
    if cost > ACCEPT:
        return Mended(values=values, code=code, column=option.place, sure=False, why="no reading fits the columns")
    if rival is not None:
        other = _code(ways[rival[1]], rival[2])
        return Mended(values=values, code=code, column=option.place, sure=False, why=f"'{code}' and '{other}' fit alike")
    return Mended(values=values, code=code, column=option.place, sure=True)


def _code(attempt: Attempt, option: _Option) -> str:
    return "+".join(name for name in (attempt.code, option.kind) if name) or "none"


# ── ways to cut a row ────────────────────────────────────────────────────────────────────────────────────────────────


def attempts(row: bytes, dialect: Dialect, width: int) -> list[Attempt]:
    """List the ways to cut a row into fields: as it stands, with one quote or delimiter mended, with other delimiters."""
    plain = split(row, dialect)
    cost = FAULT * plain.faults + (0.5 if not plain.closed else 0.0)
    if dialect.quote:
        odd = (v.count(dialect.quote) % 2 and not q for v, q in zip(plain.values, plain.quoted, strict=True))
        cost += LOOSE * sum(map(bool, odd))
    out = [Attempt(plain.values, plain.quoted, cost, "quote" if plain.faults else "")]
    if dialect.quote and dialect.quote in row:
        out.extend(_quote_attempts(row, dialect, width))
    for other in OTHERS:
        if other != dialect.delimiter and row.count(other) >= width - 1 > 0 and other not in dialect.delimiter:
            read = split(row, replace(dialect, delimiter=other, spaced=False))
            if width <= len(read.values) <= 2 * width and not read.faults:
                out.append(Attempt(read.values, read.quoted, FOREIGN, "delimiter"))
    seen: set[tuple[bytes, ...]] = set()
    return [one for one in out if (key := tuple(one.fields)) not in seen and not seen.add(key)]  # type: ignore[func-returns-value]


def _quote_attempts(row: bytes, dialect: Dialect, width: int) -> Iterable[Attempt]:
    """Yield the row with one quote taken as text, or with a delimiter put in before or after one quote."""
    quote, delimiter = dialect.quote, dialect.delimiter
    places = [place for place in range(len(row)) if row[place : place + 1] == quote] if row.count(quote) <= QUOTES else []
    for place in places:
        before, after = row[:place], row[place + 1 :]
        if before[-1:] != HOLD:
            read = split(before + HOLD + after, dialect)
            if read.closed and read.faults == 0 and len(read.values) == width:
                yield Attempt([value.replace(HOLD, quote) for value in read.values], read.quoted, LITERAL, "quote")
        if not delimiter:
            continue
        glue = delimiter + b" " if dialect.spaced else delimiter
        if before and not before.rstrip(b" ").endswith(delimiter):
            read = split(before + glue + quote + after, dialect)
            if _whole(read, width, dialect):
                yield Attempt(read.values, read.quoted, INSERT, "missing-delimiter")
        if not after.lstrip(b" ").startswith(delimiter):
            read = split(before + quote + glue + after, dialect)
            if _whole(read, width, dialect):
                yield Attempt(read.values, read.quoted, INSERT, "missing-delimiter")


def _whole(read: Split, width: int, dialect: Dialect) -> bool:
    """Whether a delimiter put in made everything clean: no quote is left over, and no delimiter at the edge of a value."""
    if not read.closed or read.faults or len(read.values) != width:
        return False
    quote, delimiter = dialect.quote, dialect.delimiter
    for value, quoted in zip(read.values, read.quoted, strict=True):
        if quoted and (value.startswith(delimiter) or value.endswith(delimiter)):
            return False
        if not quoted and (value.startswith(quote) or value.endswith(quote)):
            return False
    return True


# ── fields against columns ───────────────────────────────────────────────────────────────────────────────────────────


def _options(attempts_: Sequence[Attempt], dialect: Dialect, profiles: Sequence[Profile]) -> list[list[_Option]]:
    """For attempts of one number of fields: the readings with at most one more fault, cheapest few of each."""
    count, width = len(attempts_[0].fields), len(profiles)
    shift = count - width
    columns = [_series([one.fields[n] for one in attempts_], dialect) for n in range(count)]
    stay = np.stack([profiles[n].costs(columns[n]) for n in range(min(count, width))], axis=1)
    if shift == 0:
        total = stay.sum(axis=1)
        return [[_Option(float(cost), _worst(stay[row]), "")] for row, cost in enumerate(total)]
    move = np.stack([profiles[n].costs(columns[n + shift]) if 0 <= n + shift < count else np.zeros(len(attempts_)) for n in range(width)], axis=1)
    before = np.concatenate([np.zeros((len(attempts_), 1)), np.cumsum(stay, axis=1)], axis=1)
    after = np.concatenate([np.cumsum(move[:, ::-1], axis=1)[:, ::-1], np.zeros((len(attempts_), 1))], axis=1)
    if shift > 0:
        return _too_many(attempts_, dialect, profiles, before, after)
    return _too_few(attempts_, dialect, profiles, before, after)


def _worst(costs: Costs) -> int:
    """Return the column that fits worst, -1 when all fit."""
    worst = int(costs.argmax())
    return worst if costs[worst] >= 1 else -1


def _series(fields: Sequence[bytes], dialect: Dialect) -> pl.Series:
    """Return fields as text to be judged: a stray quote at either end is not held against them."""
    text = pl.Series("", [field.decode("utf-8", "replace") for field in fields], dtype=pl.String)
    return text.str.strip_chars(dialect.quote.decode("latin-1")) if dialect.quote else text


def _too_many(
    attempts_: Sequence[Attempt], dialect: Dialect, profiles: Sequence[Profile], before: Costs, after: Costs
) -> list[list[_Option]]:
    """Readings of rows with more fields than columns: empty fields dropped at one place, or text that was cut joined."""
    width, shift = len(profiles), len(attempts_[0].fields) - len(profiles)
    out: list[list[_Option]] = []
    for row, attempt in enumerate(attempts_):
        fields, options = attempt.fields, []
        empty = [not field for field in fields]
        for place in range(width + 1):
            base = before[row, place] + after[row, place]
            if base > ACCEPT:
                continue
            # Of a run of empty fields, the last ones are dropped: dropping others gives the same values.
            run_ends = place == width or not empty[place + shift]
            if run_ends and all(empty[place : place + shift]):
                options.append(_Option(base + (TAIL if place == width else DROP + 0.3 * (shift - 1)), place, "extra-delimiter"))
        glue = (dialect.delimiter + (b" " if dialect.spaced else b"")) if attempt.code != "delimiter" else b" "
        for place, profile in enumerate(profiles):
            if not profile.open:
                continue
            base = before[row, place] + after[row, place + 1]
            if base + JOIN > ACCEPT:
                continue
            parts = fields[place : place + shift + 1]
            text = pl.Series("", [glue.join(parts).decode("utf-8", "replace")], dtype=pl.String)
            cost = base + JOIN + float(profile.costs(text)[0])
            # People write a space after a comma; and what was quoted was whole.
            cost += 0.0 if glue.endswith(b" ") or all(part[:1] == b" " for part in parts[1:]) else 0.8
            cost += 2.0 * any(attempt.quoted[place : place + shift + 1])
            cost += 1.0 * (glue != b" " and any(not part for part in parts))
            options.append(_Option(cost, place, "unquoted-delimiter"))
        out.append(options)
    return out


def _too_few(
    attempts_: Sequence[Attempt], dialect: Dialect, profiles: Sequence[Profile], before: Costs, after: Costs
) -> list[list[_Option]]:
    """Readings of rows with fewer fields than columns: cells left out at the end, or two fields run together."""
    width = len(profiles)
    lacking = width - len(attempts_[0].fields)
    tail = sum(min(profile.empty_cost, 3.0) for profile in profiles[width - lacking :])
    out: list[list[_Option]] = []
    for row, attempt in enumerate(attempts_):
        options = []
        base = float(before[row, width - lacking])
        if base + tail + TAIL <= ACCEPT + MARGIN:
            options.append(_Option(base + tail + TAIL, width - lacking, "missing-end"))
        if lacking == 1:
            for place in range(width - 1):
                base = float(before[row, place] + after[row, place + 2])
                if base + SPLIT <= ACCEPT + MARGIN and len(attempt.fields[place]) > 1:
                    pair = profiles[place], profiles[place + 1]
                    options.extend(_cuts(attempt.fields[place], base, place, pair, dialect.quote))
        out.append(options)
    return out


def _cuts(field: bytes, base: float, place: int, pair: tuple[Profile, Profile], quote: bytes) -> list[_Option]:
    """Return the two best ways to cut one field into two columns; two that are as good make neither sure.

    A quote in the middle is where the delimiter went missing: `quote` attempts cut there, and other places cost more.
    """
    text = field.decode("utf-8", "replace")
    if len(text) > 2_000:
        return []
    places = range(1, len(text))
    left, right = pl.Series("", [text[:n] for n in places]), pl.Series("", [text[n:] for n in places])
    costs = pair[0].costs(left) + pair[1].costs(right)
    mark = quote.decode("latin-1")
    if mark and mark in text:
        costs = costs + np.array([0.0 if text[n - 1] == mark or text[n] == mark else 1.0 for n in places])
    order = np.argsort(costs, kind="stable")[:2]
    bytes_at = [len(text[: n + 1].encode()) for n in order.tolist()]
    return [
        _Option(base + SPLIT + float(costs[n]), place, "missing-delimiter", cut)
        for n, cut in zip(order.tolist(), bytes_at, strict=True)
        if costs[n] < MISFIT
    ]


def _build(attempt: Attempt, option: _Option, dialect: Dialect, width: int) -> list[bytes]:
    """Return the values of a reading, one for each column."""
    fields, place = attempt.fields, option.place
    shift = len(fields) - width
    if shift == 0:
        return fields
    if option.kind == "extra-delimiter":
        return fields[:place] + fields[place + shift :]
    if option.kind == "unquoted-delimiter":
        glue = (dialect.delimiter + (b" " if dialect.spaced else b"")) if attempt.code != "delimiter" else b" "
        return [*fields[:place], glue.join(fields[place : place + shift + 1]), *fields[place + shift + 1 :]]
    if option.kind == "missing-end":
        return fields + [b""] * -shift
    return [*fields[:place], fields[place][: option.cut], fields[place][option.cut :], *fields[place + 1 :]]

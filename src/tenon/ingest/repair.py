"""Rows that do not read cleanly: every reading that one fault explains, and the one that fits, if only one does.

A fault is a stray quote, a delimiter too many or too few, another delimiter for the whole row, a delimiter inside
unquoted text, empty cells left out at the end. For each row the readings that one such fault explains are listed,
every field is held against the profile of the column it would fall into, and costs are added: what the fault costs and
what speaks against the fields. A row is repaired when the best reading costs at most ACCEPT and every other reading
that gives other values costs at least MARGIN more; otherwise it goes to quarantine with the best reading as what would
have fixed it.

All rows are taken together, so that profiles are asked once for each column (one body for one row and for ten
thousand). With k fields for n columns and one fault at place p, fields before p keep their column and fields after it
move by k - n, so the cost of every place is a sum of a prefix and a suffix: two tables, no search. A row whose plain
reading costs so little that no other could come near is not cut in other ways at all.

Rejected: a general alignment with any number of faults (a second fault makes most rows ambiguous, and costs a search
for each row), and guessing by position alone, which is what loaders do that pad or cut ragged rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from tenon.ingest.dialect import Dialect, Split, split, tidy
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
EASY = 0.4  # a plain reading this cheap leaves no room for another, which costs at least LITERAL
NOWHERE = 99.0
LONG = 400  # a field longer than this is not cut in two
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


@dataclass(frozen=True, slots=True)
class _Found:
    """A reading with the attempt it belongs to."""

    cost: float
    attempt: Attempt
    option: _Option


def mend(rows: Sequence[bytes], dialect: Dialect, profiles: Sequence[Profile]) -> list[Mended]:
    """Repair rows (UTF-8, without line endings) or say why not; each answer depends on its row alone."""
    width = len(profiles)
    plain = [_plain(row, dialect) for row in rows]
    found: list[list[_Found]] = [[] for _ in rows]
    _judge(list(enumerate(plain)), found, dialect, profiles)
    more: list[tuple[int, Attempt]] = []
    for number, row in enumerate(rows):
        best = min((one.cost for one in found[number]), default=NOWHERE)
        if best > EASY:
            more.extend((number, attempt) for attempt in others(row, plain[number], dialect, width))
    _judge(more, found, dialect, profiles)
    return [_best(plain[number], found[number], dialect, width) for number in range(len(rows))]


def _best(plain: Attempt, found: list[_Found], dialect: Dialect, width: int) -> Mended:
    """Choose the cheapest reading, if all that give other values are dearer by the margin."""
    if not found:
        why = f"{len(plain.fields)} fields for {width} columns"
        return Mended(values=[], code="fields", column=-1, sure=False, why=why)
    found.sort(key=lambda one: one.cost)
    best = found[0]
    values = _build(best, dialect, width)
    code, place = _code(best), best.option.place
    if best.cost > ACCEPT:
        return Mended(values=values, code=code, column=place, sure=False, why="no reading fits the columns")
    # Readings that differ only by a quote at the edge of a field say the same.
    bare = [value.strip(dialect.quote) for value in values]
    for one in found[1:12]:
        if one.cost >= best.cost + MARGIN:
            break
        if [value.strip(dialect.quote) for value in _build(one, dialect, width)] != bare:
            why = f"'{code}' and '{_code(one)}' fit alike"
            return Mended(values=values, code=code, column=place, sure=False, why=why)
    return Mended(values=values, code=code, column=place, sure=True)


def _code(found: _Found) -> str:
    return "+".join(name for name in (found.attempt.code, found.option.kind) if name) or "none"


# ── ways to cut a row ────────────────────────────────────────────────────────────────────────────────────────────────


def attempts(row: bytes, dialect: Dialect, width: int) -> list[Attempt]:
    """List the ways to cut a row into fields: as it stands first, then with one quote or delimiter mended."""
    plain = _plain(row, dialect)
    return [plain, *others(row, plain, dialect, width)]


def _plain(row: bytes, dialect: Dialect) -> Attempt:
    """Cut a row as it stands."""
    read = split(row, dialect)
    cost = FAULT * read.faults + (0.5 if not read.closed else 0.0)
    if dialect.quote and dialect.quote in row:
        odd = (v.count(dialect.quote) % 2 and not q for v, q in zip(read.values, read.quoted, strict=True))
        cost += LOOSE * sum(map(bool, odd))
    return Attempt(read.values, read.quoted, cost, "quote" if read.faults else "")


def others(row: bytes, plain: Attempt, dialect: Dialect, width: int) -> Iterator[Attempt]:
    """Yield every other way to cut a row."""
    seen = {tuple(plain.fields)}
    tried: list[Iterable[Attempt]] = []
    quote = dialect.quote
    # Quotes that are all in order leave no doubt, unless two fields may have met at a doubled one.
    if (
        quote
        and quote in row
        and (plain.cost > 0 or _loose(plain, quote) or (len(plain.fields) < width and quote * 2 in row))
    ):
        tried.append(_quote_attempts(row, dialect, width))
    tried.append(_foreign_attempts(row, dialect, width))
    for ways in tried:
        for one in ways:
            key = tuple(one.fields)
            if key not in seen:
                seen.add(key)
                yield one


def _loose(plain: Attempt, quote: bytes) -> bool:
    return any(quote in value and not quoted for value, quoted in zip(plain.fields, plain.quoted, strict=True))


def _foreign_attempts(row: bytes, dialect: Dialect, width: int) -> Iterator[Attempt]:
    for other in OTHERS:
        if other != dialect.delimiter and row.count(other) >= width - 1 > 0 and other not in dialect.delimiter:
            read = split(row, replace(dialect, delimiter=other, spaced=False))
            if width <= len(read.values) <= 2 * width and not read.faults:
                yield Attempt(read.values, read.quoted, FOREIGN, "delimiter")


def _quote_attempts(row: bytes, dialect: Dialect, width: int) -> Iterator[Attempt]:
    """Yield the row with one quote taken as text, or with a delimiter put in before or after one quote."""
    quote, delimiter = dialect.quote, dialect.delimiter
    places = (
        [place for place in range(len(row)) if row[place : place + 1] == quote] if row.count(quote) <= QUOTES else []
    )
    clean = tidy(dialect, width)
    glue = delimiter + b" " if dialect.spaced else delimiter
    for place in places:
        before, after = row[:place], row[place + 1 :]
        literal = before + HOLD + after
        if clean.fullmatch(literal):
            read = split(literal, dialect)
            yield Attempt([value.replace(HOLD, quote) for value in read.values], read.quoted, LITERAL, "quote")
        if not delimiter:
            continue
        opened = before + glue + quote + after
        if before and not before.rstrip(b" ").endswith(delimiter) and clean.fullmatch(opened):
            read = split(opened, dialect)
            if _whole(read, dialect):
                yield Attempt(read.values, read.quoted, INSERT, "missing-delimiter")
        closed = before + quote + glue + after
        if not after.lstrip(b" ").startswith(delimiter) and clean.fullmatch(closed):
            read = split(closed, dialect)
            if _whole(read, dialect):
                yield Attempt(read.values, read.quoted, INSERT, "missing-delimiter")


def _whole(read: Split, dialect: Dialect) -> bool:
    """Whether a delimiter put in leaves none at the edge of a quoted value, where people write none."""
    delimiter = dialect.delimiter
    return not any(
        quoted and (value.startswith(delimiter) or value.endswith(delimiter))
        for value, quoted in zip(read.values, read.quoted, strict=True)
    )


# ── fields against columns ───────────────────────────────────────────────────────────────────────────────────────────


def _judge(
    tried: Sequence[tuple[int, Attempt]], found: list[list[_Found]], dialect: Dialect, profiles: Sequence[Profile]
) -> None:
    """Add to `found` the readings of attempts with at most one more fault, with what they cost."""
    width = len(profiles)
    near = [(number, one) for number, one in tried if abs(len(one.fields) - width) <= max(3, width)]
    if not near:
        return
    stay, move = _tables([one for _, one in near], dialect, profiles)
    buckets: dict[int, list[int]] = defaultdict(list)
    for place, (_, one) in enumerate(near):
        buckets[len(one.fields) - width].append(place)
    for shift, members in buckets.items():
        chosen = [near[place][1] for place in members]
        for place, options in zip(
            members, _options(chosen, shift, stay[members], move[members], dialect, profiles), strict=True
        ):
            number, attempt = near[place]
            found[number].extend(_Found(attempt.cost + option.cost, attempt, option) for option in options)


def _tables(tried: Sequence[Attempt], dialect: Dialect, profiles: Sequence[Profile]) -> tuple[Costs, Costs]:
    """Return what each field costs in its own column, and each column with the fields counted from the end."""
    width = len(profiles)
    texts = [[field.decode("utf-8", "replace") for field in one.fields] for one in tried]
    stay, move = np.zeros((len(tried), width)), np.zeros((len(tried), width))
    for column, profile in enumerate(profiles):
        cells, rows, shifted = [], [], []
        for row, fields in enumerate(texts):
            if column < len(fields):
                cells.append(fields[column])
                rows.append(row)
        split_at = len(rows)
        for row, fields in enumerate(texts):
            shift = len(fields) - width
            if shift and 0 <= column + shift < len(fields):
                cells.append(fields[column + shift])
                shifted.append(row)
        costs = profile.costs(_series(cells, dialect))
        stay[rows, column] = costs[:split_at]
        move[shifted, column] = costs[split_at:]
    return stay, move


def _series(cells: Sequence[str], dialect: Dialect) -> pl.Series:
    """Return cells to be judged: a stray quote at either end is not held against them."""
    text = pl.Series("", cells, dtype=pl.String)
    return text.str.strip_chars(dialect.quote.decode("latin-1")) if dialect.quote else text


def _options(
    tried: Sequence[Attempt], shift: int, stay: Costs, move: Costs, dialect: Dialect, profiles: Sequence[Profile]
) -> list[list[_Option]]:
    """For attempts of one number of fields: their readings with at most one more fault."""
    if shift == 0:
        worst = stay.argmax(axis=1)
        peak = stay.max(axis=1)
        total = stay.sum(axis=1)
        return [[_Option(float(total[n]), int(worst[n]) if peak[n] >= 1 else -1, "")] for n in range(len(tried))]
    none = np.zeros((len(tried), 1))
    before = np.concatenate([none, np.cumsum(stay, axis=1)], axis=1)
    after = np.concatenate([np.cumsum(move[:, ::-1], axis=1)[:, ::-1], none], axis=1)
    if shift > 0:
        return _too_many(tried, shift, before, after, dialect, profiles)
    return _too_few(tried, -shift, before, after, dialect, profiles)


def _too_many(
    tried: Sequence[Attempt], shift: int, before: Costs, after: Costs, dialect: Dialect, profiles: Sequence[Profile]
) -> list[list[_Option]]:
    """Readings of rows with too many fields: empty fields dropped at one place, or text that was cut joined."""
    width = len(profiles)
    out: list[list[_Option]] = [[] for _ in tried]
    base = before + after
    for row, place in np.argwhere(base <= ACCEPT).tolist():
        fields = tried[row].fields
        # Of a run of empty fields, the last ones are dropped: dropping others gives the same values.
        if any(fields[place : place + shift]) or (place < width and not fields[place + shift]):
            continue
        cost = base[row, place] + (TAIL if place == width else DROP + 0.3 * (shift - 1))
        out[row].append(_Option(float(cost), int(place), "extra-delimiter"))
    for place, profile in enumerate(profiles):
        if profile.typed:
            continue
        left = before[:, place] + after[:, place + 1] + JOIN
        rows: list[int] = np.flatnonzero(left <= ACCEPT).tolist()
        if not rows:
            continue
        glues = [_glue(tried[row], dialect) for row in rows]
        parts = [tried[row].fields[place : place + shift + 1] for row in rows]
        joined = [glue.join(part).decode("utf-8", "replace") for glue, part in zip(glues, parts, strict=True)]
        costs = left[rows] + profile.costs(_series(joined, dialect))
        for n, row in enumerate(rows):
            cost = float(costs[n])
            if glues[n] != b" ":
                # People write a space after a comma, and something on both sides of it.
                cost += 0.8 * (not glues[n].endswith(b" ") and any(part[:1] != b" " for part in parts[n][1:]))
                cost += 1.0 * any(not part for part in parts[n])
            cost += 2.0 * any(tried[row].quoted[place : place + shift + 1])
            out[row].append(_Option(cost, place, "unquoted-delimiter"))
    return out


def _glue(attempt: Attempt, dialect: Dialect) -> bytes:
    """Return what stood between fields that are joined again."""
    if attempt.code == "delimiter":
        return b" "
    return dialect.delimiter + (b" " if dialect.spaced else b"")


def _too_few(
    tried: Sequence[Attempt], lacking: int, before: Costs, after: Costs, dialect: Dialect, profiles: Sequence[Profile]
) -> list[list[_Option]]:
    """Readings of rows with fewer fields than columns: cells left out at the end, or two fields run together."""
    width = len(profiles)
    out: list[list[_Option]] = [[] for _ in tried]
    tail = sum(profile.empty_cost for profile in profiles[width - lacking :]) + TAIL
    ends = before[:, width - lacking] + tail
    for row in np.flatnonzero(ends <= ACCEPT + MARGIN).tolist():
        out[row].append(_Option(float(ends[row]), width - lacking, "missing-end"))
    if lacking > 1:
        return out
    for place in range(width - 1):
        base = before[:, place] + after[:, place + 2] + SPLIT
        rows = [n for n in np.flatnonzero(base <= ACCEPT + MARGIN).tolist() if 1 < len(tried[n].fields[place]) <= LONG]
        if not rows:
            continue
        left, right = profiles[place], profiles[place + 1]
        if left.open and right.open and not dialect.quote:
            # Text run together with text: any place would do, so none is known.
            for row in rows:
                out[row] += [
                    _Option(float(base[row]), place, "missing-delimiter", cut)
                    for cut in (1, len(tried[row].fields[place]) - 1)
                ]
            continue
        texts = [tried[row].fields[place].decode("utf-8", "replace") for row in rows]
        for row, text, cuts in zip(rows, texts, _cuts(texts, left, right, dialect), strict=True):
            for cost, cut in cuts:
                option = _Option(float(base[row]) + cost, place, "missing-delimiter", len(text[:cut].encode()))
                out[row].append(option)
    return out


def _cuts(texts: Sequence[str], left: Profile, right: Profile, dialect: Dialect) -> list[list[tuple[float, int]]]:
    """Return for each text the two best places to cut it for two columns; two that are as good make neither sure.

    A quote in the middle is where the delimiter went missing: quote attempts cut there, and other places cost more.
    """
    mark = dialect.quote.decode("latin-1")
    sizes = [len(text) - 1 for text in texts]
    costs = left.costs(pl.Series("", [text[:n] for text in texts for n in range(1, len(text))], dtype=pl.String))
    costs = costs + right.costs(
        pl.Series("", [text[n:] for text in texts for n in range(1, len(text))], dtype=pl.String)
    )
    out, begin = [], 0
    for text, size in zip(texts, sizes, strict=True):
        mine = costs[begin : begin + size]
        begin += size
        if mark and mark in text:
            mine = mine + np.array(
                [0.0 if text[n - 1] == mark or text[n] == mark else 1.0 for n in range(1, len(text))]
            )
        order = np.argsort(mine, kind="stable")[:2].tolist()
        out.append([(float(mine[n]), n + 1) for n in order if mine[n] < MISFIT])
    return out


def _build(found: _Found, dialect: Dialect, width: int) -> list[bytes]:
    """Return the values of a reading, one for each column."""
    attempt, option = found.attempt, found.option
    fields, place = attempt.fields, option.place
    shift = len(fields) - width
    if shift == 0:
        return fields
    if option.kind == "extra-delimiter":
        return fields[:place] + fields[place + shift :]
    if option.kind == "unquoted-delimiter":
        joined = _glue(attempt, dialect).join(fields[place : place + shift + 1])
        return [*fields[:place], joined, *fields[place + shift + 1 :]]
    if option.kind == "missing-end":
        return fields + [b""] * -shift
    return [*fields[:place], fields[place][: option.cut], fields[place][option.cut :], *fields[place + 1 :]]

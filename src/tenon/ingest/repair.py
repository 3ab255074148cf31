"""Rows that do not read cleanly: every reading that one fault explains, and the one that fits, if only one does.

A fault is a stray quote, a delimiter too many or too few, another delimiter for the whole row, a delimiter inside
unquoted text, empty cells left out at the end. For each row the readings that one such fault explains are listed,
every field is held against the profile of the column it would fall into, and costs are added: what the fault costs and
what speaks against the fields. A row is repaired when the best reading costs at most ACCEPT and every other reading
that gives other values costs at least MARGIN more; otherwise it goes to quarantine with the best reading as what would
have fixed it.

With k fields for n columns and one fault at place p, fields before p keep their column and fields after it move by
k - n, so the cost of every place is a sum of a prefix and a suffix: no search. Costs only grow while they are added up,
so a reading is given up at the first cell that puts it out of reach of the best one found; most end after two or three
cells. What is left out that way could not have changed the answer. A row whose plain reading costs so little that no
other could come near is not cut in other ways at all.

Rejected: a general alignment with any number of faults (a second fault makes most rows ambiguous, and costs a search
for each row), guessing by position alone, which is what loaders do that pad or cut ragged rows, and judging all rows of
a chunk together with Polars (nothing can be given up early, and the calls cost more than the cells).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from operator import itemgetter

from tenon.ingest.dialect import Dialect, Split, loose, split, tidy
from tenon.ingest.gauge import Gauge, gauge
from tenon.ingest.profile import MISFIT, Profile

ACCEPT = 3.0
MARGIN = 0.6
FAULT = 0.25  # a stray quote inside a quoted field that closes all the same
UNCLOSED = 0.5  # a quote that nothing closes
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
UNFIT = "no reading fits the columns"
LONG = 400  # a field longer than this is not cut in two
OTHERS = (b",", b";", b"\t", b"|", b" ", b":", b"^", b"~", b"#", b"&")
QUOTES = 24  # a row with more quotes than this is not tried quote by quote
HOLD = b"\x1a"
SLACK = 1e-9  # sums that differ by less may be the same


@dataclass(slots=True)
class Attempt:
    """One way to cut a row into fields, what it costs, and the repair it stands for.

    It and `Mended` are made for every broken row, several times a row: freezing them would triple what that costs.
    """

    fields: list[bytes]
    quoted: list[bool]
    cost: float
    code: str


@dataclass(slots=True, kw_only=True)
class Mended:
    """What came of one row: its values in columns when it was repaired, else why not and what would have fixed it.

    `column` is where the repair was made (or is missing), `code` names it, `sure` says that it was accepted.
    """

    values: list[bytes]
    code: str
    column: int
    sure: bool
    why: str = ""

    @property
    def alone(self) -> bool:
        """Whether no other reading came near the one given."""
        return self.why == UNFIT


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table, ready to judge.

    `texts` are the columns without a type, `open` says which hold free text, `tails` what empty cells at the end cost,
    by how many they are, `foreign` are the other delimiters a row may have.
    """

    dialect: Dialect
    gauges: tuple[Gauge, ...]
    texts: tuple[int, ...]
    open: tuple[bool, ...]
    tails: tuple[float, ...]
    foreign: tuple[tuple[bytes, Dialect], ...]

    @property
    def width(self) -> int:
        """Return the number of columns."""
        return len(self.gauges)


# A reading of a row: its cost, the attempt it belongs to, where the fault is, the repair, and where a field is cut.
_Found = tuple[float, Attempt, int, str, int]
_cost = itemgetter(0)


def mend(
    rows: Sequence[bytes], dialect: Dialect, profiles: Sequence[Profile], reads: Sequence[Split] = ()
) -> list[Mended]:
    """Repair rows (UTF-8, without line endings) or say why not; each answer depends on its row alone.

    `reads` are the rows as `split` reads them, where that is known already.
    """
    if not rows:
        return []
    columns = columns_of(dialect, tuple(profiles))
    reads = reads or [split(row, dialect) for row in rows]
    return [_mended(row, _weighed(row, read, dialect), columns) for row, read in zip(rows, reads, strict=True)]


@lru_cache(maxsize=4)
def columns_of(dialect: Dialect, profiles: tuple[Profile, ...]) -> Columns:
    """Return the columns of a table, ready to judge."""
    return Columns(
        dialect=dialect,
        gauges=tuple(gauge(one) for one in profiles),
        texts=tuple(place for place, one in enumerate(profiles) if not one.typed),
        open=tuple(one.open for one in profiles),
        tails=tuple(total + TAIL for total in accumulate((p.empty_cost for p in reversed(profiles)), initial=0.0)),
        foreign=tuple(
            (other, replace(dialect, delimiter=other, spaced=False))
            for other in OTHERS
            if other not in dialect.delimiter + dialect.quote + dialect.escape
        ),
    )


def _mended(row: bytes, plain: Attempt, columns: Columns) -> Mended:
    """Repair one row: by its plain reading, or, unless that leaves no doubt, by all others as well."""
    found = list(_readings(plain, columns, NOWHERE))
    best = min(map(_cost, found), default=NOWHERE)
    if best > EASY:
        for attempt in _others(row, plain, columns):
            for one in _readings(attempt, columns, best + MARGIN):
                found.append(one)
                best = min(best, one[0])
    return _best(plain, found, columns)


def _best(plain: Attempt, found: list[_Found], columns: Columns) -> Mended:
    """Choose the cheapest reading, if all that give other values are dearer by the margin."""
    if not found:
        why = f"{len(plain.fields)} fields for {columns.width} columns"
        return Mended(values=[], code="fields", column=-1, sure=False, why=why)
    found.sort(key=_cost)
    best = found[0]
    values = _build(best, columns)
    code, place = _code(best), best[2]
    if best[0] > ACCEPT:
        return Mended(values=values, code=code, column=place, sure=False, why=UNFIT)
    bare: list[bytes] = []
    for one in found[1:12]:
        if one[0] >= best[0] + MARGIN:
            break
        # Readings that differ only by a quote at the edge of a field say the same.
        bare = bare or [value.strip(columns.dialect.quote) for value in values]
        if [value.strip(columns.dialect.quote) for value in _build(one, columns)] != bare:
            why = f"'{code}' and '{_code(one)}' fit alike"
            return Mended(values=values, code=code, column=place, sure=False, why=why)
    return Mended(values=values, code=code, column=place, sure=True)


def _code(found: _Found) -> str:
    first, second = found[1].code, found[3]
    return f"{first}+{second}" if first and second else first or second or "none"


# ── ways to cut a row ────────────────────────────────────────────────────────────────────────────────────────────────


def attempts(row: bytes, dialect: Dialect, width: int) -> list[Attempt]:
    """List the ways to cut a row into fields: as it stands first, then with one quote or delimiter mended."""
    plain = _weighed(row, split(row, dialect), dialect)
    return [plain, *_others(row, plain, columns_of(dialect, (Profile(),) * width))]


def _weighed(row: bytes, read: Split, dialect: Dialect) -> Attempt:
    """Weigh a row as it stands."""
    cost = FAULT * read.faults + (UNCLOSED if not read.closed else 0.0)
    quote = dialect.quote
    if quote and quote in row and quote in b"".join(read.values):
        pairs = zip(read.values, read.quoted, strict=True)
        cost += LOOSE * sum(not quoted and value.count(quote) % 2 for value, quoted in pairs)
    return Attempt(read.values, read.quoted, cost, "quote" if read.faults else "")


def _others(row: bytes, plain: Attempt, columns: Columns) -> Iterator[Attempt]:
    """Yield every other way to cut a row."""
    seen = [plain.fields]
    quote = columns.dialect.quote
    # Quotes that are all in order leave no doubt, unless two fields may have met at a doubled one.
    if (
        quote
        and quote in row
        and (
            plain.cost > 0
            or loose(plain.fields, plain.quoted, quote)
            or (len(plain.fields) < columns.width and quote * 2 in row)
        )
    ):
        for one in _quote_attempts(row, columns.dialect, columns.width):
            if one.fields not in seen:
                seen.append(one.fields)
                yield one
    least = columns.width - 1
    for other, dialect in columns.foreign:
        if row.count(other) >= least > 0:
            read = split(row, dialect)
            if least < len(read.values) <= 2 * columns.width and not read.faults and read.values not in seen:
                seen.append(read.values)
                yield Attempt(read.values, read.quoted, FOREIGN, "delimiter")


def _quote_attempts(row: bytes, dialect: Dialect, width: int) -> Iterator[Attempt]:
    """Yield the row with one quote taken as text, or with a delimiter put in before or after one quote."""
    quote, delimiter = dialect.quote, dialect.delimiter
    count = row.count(quote)
    if count > QUOTES:
        return
    clean = tidy(dialect, width)
    glue = delimiter + b" " if dialect.spaced else delimiter
    place = -1
    for _ in range(count):
        place = row.find(quote, place + 1)
        before, after = row[:place], row[place + 1 :]
        # Quotes are in order only where their number is even.
        if count % 2:
            literal = before + HOLD + after
            if clean.fullmatch(literal):
                read = split(literal, dialect)
                yield Attempt([value.replace(HOLD, quote) for value in read.values], read.quoted, LITERAL, "quote")
            continue
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


def _readings(attempt: Attempt, columns: Columns, bound: float) -> Iterable[_Found]:
    """Return the readings of an attempt with at most one more fault, but for those that cost the bound or more."""
    fields, width, quote = attempt.fields, columns.width, columns.dialect.quote
    shift = len(fields) - width
    room = bound - attempt.cost + SLACK
    if abs(shift) > max(3, width) or room <= 0:
        return ()
    # A stray quote at either end of a cell is not held against it.
    cells = [field.strip(quote) for field in fields] if quote and quote in b"".join(fields) else fields
    if shift > 0:
        return _too_many(attempt, cells, columns, room)
    if shift < 0:
        return _too_few(attempt, cells, columns, room)
    total = peak = 0.0
    worst = -1
    gauges = columns.gauges
    for place, cell in enumerate(cells):
        cost = gauges[place](cell)
        if cost:
            total += cost
            if total >= room:
                return ()
            if cost > peak:
                peak, worst = cost, place
    return ((attempt.cost + total, attempt, worst if peak >= 1 else -1, "", -1),)


def _prefix(cells: Sequence[bytes], columns: Columns, most: float, stop: int) -> list[float]:
    """Add up what the cells of the first 0, 1, … `stop` columns cost there, as long as it is not above `most`."""
    out, total = [0.0], 0.0
    for judge, cell in zip(columns.gauges[:stop], cells[:stop], strict=True):
        total += judge(cell)
        if total > most:
            break
        out.append(total)
    return out


def _suffix(cells: Sequence[bytes], columns: Columns, most: float, count: int) -> list[float]:
    """Add up what the last 0, 1, … `count` cells cost in the last columns, as long as it is not above `most`."""
    out, total = [0.0], 0.0
    for back in range(1, count + 1):
        total += columns.gauges[-back](cells[-back])
        if total > most:
            break
        out.append(total)
    return out


def _too_many(attempt: Attempt, cells: Sequence[bytes], columns: Columns, room: float) -> Iterator[_Found]:
    """Readings of rows with too many fields: empty fields dropped at one place, or text that was cut joined."""
    fields, width = attempt.fields, columns.width
    shift = len(fields) - width
    most = min(ACCEPT, room)
    # Of a run of empty fields, the last ones are dropped: dropping others gives the same values.
    drops = [
        place
        for place in (range(width + 1) if b"" in fields else ())
        if not fields[place + shift - 1]
        and (place == width or fields[place + shift])
        and not any(fields[place : place + shift])
    ]
    joins = columns.texts if most >= JOIN else ()
    before = _prefix(cells, columns, most, max((*drops[-1:], *joins[-1:]), default=0))
    if len(before) == 1 and not (drops and drops[0] == 0) and not (joins and joins[0] == 0):
        return
    drops = [place for place in drops if place < len(before)]
    joins = tuple(place for place in joins if place < len(before))
    deep = max([*(width - place for place in drops[:1]), *(width - place - 1 for place in joins[:1])], default=0)
    after = _suffix(cells, columns, most, deep)
    for place in drops:
        if width - place < len(after):
            cost = before[place] + after[width - place]
            if cost <= ACCEPT:
                cost += TAIL if place == width else DROP + 0.3 * (shift - 1)
                yield attempt.cost + cost, attempt, place, "extra-delimiter", -1
    for place in joins:
        if width - place - 1 < len(after):
            cost = before[place] + after[width - place - 1] + JOIN
            if cost <= most:
                yield attempt.cost + _joined(attempt, place, columns, cost), attempt, place, "unquoted-delimiter", -1


def _joined(attempt: Attempt, place: int, columns: Columns, cost: float) -> float:
    """Add to a cost what speaks against the fields from a place on being one text."""
    end = place + len(attempt.fields) - columns.width + 1
    parts, glue = attempt.fields[place:end], _glue(attempt, columns.dialect)
    cost += columns.gauges[place](glue.join(parts).strip(columns.dialect.quote))
    if glue != b" ":
        # People write a space after a comma, and something on both sides of it.
        cost += 0.8 * (not glue.endswith(b" ") and any(part[:1] != b" " for part in parts[1:]))
        cost += 1.0 * (b"" in parts)
    return cost + 2.0 * any(attempt.quoted[place:end])


def _glue(attempt: Attempt, dialect: Dialect) -> bytes:
    """Return what stood between fields that are joined again."""
    if attempt.code == "delimiter":
        return b" "
    return dialect.delimiter + (b" " if dialect.spaced else b"")


def _too_few(attempt: Attempt, cells: Sequence[bytes], columns: Columns, room: float) -> Iterator[_Found]:
    """Readings of rows with fewer fields than columns: cells left out at the end, or two fields run together."""
    fields, width = attempt.fields, columns.width
    lacking = width - len(fields)
    tail, most = columns.tails[lacking], min(ACCEPT + MARGIN, room)
    if lacking > 1 and tail > most:
        return
    before = _prefix(cells, columns, most, len(fields))
    if len(before) > len(fields) and before[-1] + tail <= ACCEPT + MARGIN:
        yield attempt.cost + (before[-1] + tail), attempt, len(fields), "missing-end", -1
    if lacking > 1:
        return
    after = _suffix(cells, columns, most, width - 2)
    for place in range(max(0, width - 1 - len(after)), min(width - 1, len(before))):
        base = before[place] + after[width - place - 2] + SPLIT
        field = fields[place]
        if base > most or not 1 < len(field) <= LONG:
            continue
        if columns.open[place] and columns.open[place + 1] and not columns.dialect.quote:
            # Text run together with text: any place would do, so none is known.
            cuts = [(0.0, 1), (0.0, len(field) - 1)]
        else:
            cuts = _cuts(field, place, columns, room - base)
        for cost, cut in cuts:
            yield attempt.cost + (base + cost), attempt, place, "missing-delimiter", cut


def _cuts(field: bytes, place: int, columns: Columns, room: float) -> list[tuple[float, int]]:
    """Return the two best places to cut a field for two columns; two that are as good make neither sure.

    A quote in the middle is where the delimiter went missing: quote attempts cut there, and other places cost more.
    """
    left, right, mark = columns.gauges[place], columns.gauges[place + 1], columns.dialect.quote
    marked = bool(mark) and mark in field
    whole = field.isascii()
    best: list[tuple[float, int]] = []
    most = min(MISFIT, room)
    for cut in range(1, len(field)):
        if not whole and field[cut] & 0xC0 == 0x80:
            continue
        cost = left(field[:cut])
        if cost >= most:
            continue
        cost += right(field[cut:])
        if marked and field[cut - 1 : cut] != mark and field[cut : cut + 1] != mark:
            cost += 1.0
        if cost < most:
            best = sorted([*best, (cost, cut)])[:2]
            most = best[1][0] if len(best) == 2 else most
    return best


def _build(found: _Found, columns: Columns) -> list[bytes]:
    """Return the values of a reading, one for each column."""
    _, attempt, place, kind, cut = found
    fields = attempt.fields
    shift = len(fields) - columns.width
    if shift == 0:
        return fields
    if kind == "extra-delimiter":
        return fields[:place] + fields[place + shift :]
    if kind == "unquoted-delimiter":
        joined = _glue(attempt, columns.dialect).join(fields[place : place + shift + 1])
        return [*fields[:place], joined, *fields[place + shift + 1 :]]
    if kind == "missing-end":
        return fields + [b""] * -shift
    return [*fields[:place], fields[place][:cut], fields[place][cut:], *fields[place + 1 :]]

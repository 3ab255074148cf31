"""Every pollution of a CSV file that loaders trip over, at every row and column of tables of our own, with the truth.

    python bench/pollution.py [--tables people,orders] [--every 3] [--misses] [--record]

`variants` takes a clean table and makes one file for each fault: a dialect of its own (delimiter, quote, escape, line
ending), a framing (no header, several header rows, a preamble, footnotes, other tables after it, one row, none), and
for each row and column a delimiter too many or too few, a stray quote at the beginning, the middle or the end of a
cell, or a row with a delimiter of its own. The truth is what a careful person reads: the table, but for a stray quote,
which stays where it stood.

`score` holds what a loader made against the truth by the ten measures of the Pollock benchmark (VLDB 2023): success,
then precision, recall and F1 of header, records and cells, as multisets, cells as spelt. The table says for each family
how many files came back exactly, and how many with a wrong cell that nothing tells about: rows in quarantine are lost
to the score, but they are not wrong.
"""

from __future__ import annotations

import csv
import io
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import measure

Grid = list[list[str]]
MEASURES = 10
WORDS = tuple(
    _word
    for _line in (
        "river stone amber quiet lantern orchard copper meadow timber harbor velvet thunder maple signal garden pepper",
        "winter bridge candle feather saddle market silver rocket kettle morning window ribbon forest island",
    )
    for _word in _line.split()
)
TOWNS = ("Leeds", "Łódź", "Málaga", "Zürich", "Porto", "Malmö", "Brno", "Ghent", "Cork", "Oslo", "Nîmes", "Újfehértó")
FIRST = ("Ada", "Björn", "Chloé", "Dmitri", "Eve", "Farid", "Grace", "Hüsniye", "Ivo", "José", "Kim", "Lena")
LAST = ("Moore", "O'Neil", "Müller", "Nowak", "Silva", "Dubois", "Rossi", "Kaya", "Novák", "Berg", "García", "Lind")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A clean table: its names and rows; `quoted` are the columns written in quotes although they need none."""

    name: str
    names: list[str]
    rows: Grid
    quoted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a table is written."""

    delimiter: str = ","
    quote: str = '"'
    escape: str = ""  # what stands before a quote in a quoted cell; empty: it is doubled
    newline: str = "\n"
    bare: bool = False  # quotes inside quoted cells are written as they are

    def cell(self, value: str, *, always: bool = False) -> str:
        """Write one cell, in quotes when it needs them."""
        special = (self.delimiter.strip() or self.delimiter, self.quote, "\n", "\r")
        if not always and not any(mark and mark in value for mark in special):
            return value
        if not self.quote:
            return value
        inner = value if self.bare else value.replace(self.quote, (self.escape or self.quote) + self.quote)
        return f"{self.quote}{inner}{self.quote}"

    def line(self, row: Sequence[str], quoted: Sequence[int] = ()) -> str:
        """Write one row, without a line ending."""
        return self.delimiter.join(self.cell(value, always=n in quoted) for n, value in enumerate(row))


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A polluted file: its family and name, its bytes, and the truth, whose first row is the header when it has one."""

    family: str
    name: str
    data: bytes
    truth: Grid
    encoding: str = "utf-8"


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def tables(seed: int = 1, height: int = 30) -> list[Table]:
    """Make the clean tables: mixed, numeric, all text, free text with commas and quotes, dates, narrow, wide."""
    rng = Random(seed)
    return [make(rng, height) for make in (_orders, _sensors, _people, _notes, _permits, _pairs, _wide, _budget)]


def _phrase(rng: Random, least: int, most: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))


def _orders(rng: Random, height: int) -> Table:
    rows = []
    for n in range(height):
        code = f"{rng.choice('ABKT')}{rng.choice('XYZ')}-{rng.randint(1000, 9999)}"
        about = _phrase(rng, 6, 14).capitalize() + rng.choice((".", ", and more.", ', 10" wide.'))
        kind = rng.choice((_phrase(rng, 1, 3).title(), f"{_phrase(rng, 1, 1).title()}, {rng.randint(2, 9)} pack"))
        day, hour = f"{n % 28 + 1:02d}/0{n % 6 + 1}/2021", f"{n % 24:02d}:{rng.choice((0, 15, 30, 45)):02d}"
        price = f"${rng.randint(1, 99)}.{rng.randint(0, 99):02d}"
        rows.append([day, hour, str(rng.randint(0, 9)), code, price, kind, about, f"http://shop.example/{code}", ""])
    names = ["day", "hour", "pieces", "sku", "price", "kind", "about", "link", "remark"]
    return Table(name="orders", names=names, rows=rows, quoted=(6, 7))


def _sensors(rng: Random, height: int) -> Table:
    rows = []
    for n in range(height):
        stamp = f"2023-0{n % 9 + 1}-{n % 28 + 1:02d}T{n % 24:02d}:{n % 60:02d}:00"
        rows.append(
            [f"S{n % 7 + 1}", stamp, f"{rng.uniform(-20, 40):.1f}", str(rng.randint(10, 99)), rng.choice(("0", "1"))]
        )
    return Table(name="sensors", names=["station", "taken_at", "temp_c", "humidity", "ok"], rows=rows)


def _people(rng: Random, height: int) -> Table:
    rows = []
    for _ in range(height):
        street = f"{rng.choice(WORDS).title()} {rng.choice(('Road', 'Lane', 'Street'))}"
        role = rng.choice(("clerk", "nurse", "pilot", "baker"))
        rows.append([rng.choice(FIRST), rng.choice(LAST), street, rng.choice(TOWNS), role])
    return Table(name="people", names=["first", "last", "street", "town", "role"], rows=rows)


def _notes(rng: Random, height: int) -> Table:
    rows = []
    for n in range(height):
        text = rng.choice(
            (
                f'{_phrase(rng, 2, 5)}, so "{_phrase(rng, 1, 2)}" was said',
                f"{_phrase(rng, 3, 6)}\n{_phrase(rng, 2, 4)}",
                _phrase(rng, 4, 9),
                f"{_phrase(rng, 1, 3)}, {_phrase(rng, 1, 3)}; {_phrase(rng, 1, 2)}",
            )
        )
        rows.append(
            [str(100 + n), text, rng.choice(("open", "shut", "held")), f"2022-{n % 12 + 1:02d}-{n % 28 + 1:02d}"]
        )
    return Table(name="notes", names=["number", "note", "state", "since"], rows=rows)


def _permits(rng: Random, height: int) -> Table:
    rows = []
    for n in range(height):
        begin = f"{n % 28 + 1:02d}.{n % 12 + 1:02d}.2020"
        end = "" if rng.random() < 0.3 else f"{(n + 3) % 28 + 1:02d}.{(n + 5) % 12 + 1:02d}.2022"
        place = "" if rng.random() < 0.2 else rng.choice(TOWNS)
        rows.append([f"P-{2000 + n}", begin, end, place, str(rng.randint(1, 5000)), rng.choice(("yes", "no"))])
    return Table(name="permits", names=["permit", "from", "until", "place", "area m2", "paid"], rows=rows)


def _pairs(rng: Random, height: int) -> Table:
    rows = [[f"{n:04d}", _phrase(rng, 1, 2)] for n in range(height)]
    return Table(name="pairs", names=["code", "label"], rows=rows)


def _wide(rng: Random, height: int) -> Table:
    rows = [[TOWNS[n % 12], *(f"{rng.uniform(0, 1000):.2f}" for _ in range(17))] for n in range(height)]
    return Table(name="wide", names=["region", *(f"m{n:02d}" for n in range(1, 18))], rows=rows)


def _budget(rng: Random, height: int) -> Table:
    rows = []
    for n in range(height):
        money = f"{rng.randint(1, 999)},{rng.randint(0, 999):03d}.{rng.randint(0, 99):02d}"
        share = f"{rng.uniform(0, 30):.1f}%"
        rows.append([_phrase(rng, 1, 3).capitalize(), str(2000 + n % 20), money, share, rng.choice(LAST)])
    return Table(name="budget", names=["Office", "Year", "Amount", "Share", "Head"], rows=rows)


# ── pollutions ───────────────────────────────────────────────────────────────────────────────────────────────────────

DELIMITERS = (";", "\t", "|", " ", "; ", ", ", "^", "~", ":", "||", "::", "#", "&", "\x1f", " | ", "|~|")
QUOTES = ("'", "`", "|", "~", "$")
FOREIGN = (" ", ";", "\t", "|", ":", "^", "~")
PREAMBLES = (
    ["Report of the office"],
    ["Report of the office", ""],
    ["{pad}", "{blank}"],
    ["Report, by office, of March", "Made on 2024-03-01"],
    ["Title: a, b, c", "Source: office, www.example.org", "", "Units: mm, kg", ""],
    [f"# line {n} of the licence, see text" for n in range(10)],
)
NOTES = (
    ["", "Source: the office"],
    ["Total of all rows, rounded"],
    ["", "* provisional", "** revised, see note 3", "(c) the office, 2024"],
)


def _file(table: Table, style: Style, *, header: bool = True) -> list[str]:
    lines = [style.line(table.names, table.quoted)] if header else []
    return lines + [style.line(row, table.quoted) for row in table.rows]


def _text(lines: Sequence[str], style: Style) -> bytes:
    return "".join(line + style.newline for line in lines).encode()


def variants(table: Table, every: int = 1) -> Iterator[Variant]:
    """Make every pollution of a table; `every` n-th only of those that strike single rows."""
    yield from dialects(table)
    yield from framings(table)
    for number, one in enumerate(strikes(table)):
        if number % every == 0:
            yield one


def dialects(table: Table) -> Iterator[Variant]:
    """Make files in other dialects."""
    truth = [table.names, *table.rows]

    def one(family: str, name: str, style: Style) -> Variant:
        return Variant(family=family, name=f"{table.name}-{name}", data=_text(_file(table, style), style), truth=truth)

    for mark in DELIMITERS:
        yield one("delimiter", f"delimiter {mark!r}", Style(delimiter=mark))
    for mark in QUOTES:
        yield one("quote", f"quote {mark}", Style(quote=mark))
    for mark in (";", "\t"):
        yield one("quote", f"quote ' delimiter {mark!r}", Style(quote="'", delimiter=mark))
    yield one("escape", "escape backslash", Style(escape="\\"))
    yield one("escape", "escape none", Style(bare=True))
    for name, mark in (("crlf", "\r\n"), ("cr", "\r"), ("lf", "\n")):
        yield one("newline", f"newline {name}", Style(newline=mark))
    whole = _text(_file(table, Style()), Style())
    yield Variant(family="newline", name=f"{table.name}-no end", data=whole[:-1], truth=truth)
    yield Variant(family="newline", name=f"{table.name}-two ends", data=whole + b"\n", truth=truth)
    for code in ("utf-8-sig", "utf-16"):
        data = whole.decode().encode(code)
        yield Variant(family="encoding", name=f"{table.name}-{code}", data=data, truth=truth, encoding=code)


def framings(table: Table) -> Iterator[Variant]:
    """Make files with something around the table, or little in it."""
    style = Style()
    lines, truth = _file(table, style), [table.names, *table.rows]

    def one(family: str, name: str, made: Sequence[str], truth: Grid) -> Variant:
        return Variant(family=family, name=f"{table.name}-{name}", data=_text(made, style), truth=truth)

    yield one("no header", "no header", lines[1:], table.rows)
    for count in (2, 3):
        joined = [" ".join([name] * count) for name in table.names]
        yield one("header rows", f"{count} header rows", [lines[0]] * count + lines[1:], [joined, *table.rows])
    width = len(table.names)
    for number, made in enumerate(PREAMBLES):
        pad = "," * (width - 1)
        yield one("preamble", f"preamble {number}", [
            line.replace("{pad}", "PREAMBLE" + pad).replace("{blank}", pad) for line in made
        ] + lines, truth)  # fmt: skip
    for number, made in enumerate(NOTES):
        yield one("footnote", f"footnote {number}", lines + made, truth)
    yield one("few rows", "header only", lines[:1], truth[:1])
    for count in (1, 2, 3):
        yield one("few rows", f"rows {count}", lines[: count + 1], truth[: count + 1])
    yield one("few rows", "rows 1, no header", lines[1:2], truth[1:2])
    yield one("few rows", "rows 3, no header", lines[1:4], truth[1:4])
    if width > 2:
        less = [style.line(row[:-1], table.quoted) for row in truth]
        yield one("tables", "then one less", lines + less, truth)
        yield one("tables", "blank, then one less", [*lines, "", *less], truth)
    more = [style.line([*row, "x" if n else "col"], table.quoted) for n, row in enumerate(truth)]
    yield one("tables", "then one more", lines + more, truth)
    other = [style.line([f"{name} b", *names]) for name, *names in [table.names]]
    yield one("tables", "then same width", [*lines, *other, *lines[1:]], truth)


def strikes(table: Table) -> Iterator[Variant]:
    """Make files with a fault in one row, at every row and column, the header included."""
    style = Style()
    lines, truth = _file(table, style), [table.names, *table.rows]
    for row, values in enumerate(truth):
        cells = [style.cell(value, always=n in table.quoted) for n, value in enumerate(values)]

        def one(family: str, name: str, line: str, mended: list[str], row: int = row) -> Variant:
            data = _text([*lines[:row], line, *lines[row + 1 :]], style)
            name = f"{table.name}-{family} row {row} {name}"
            return Variant(family=family, name=name, data=data, truth=[*truth[:row], mended, *truth[row + 1 :]])

        for column in range(len(cells)):
            yield one("extra delimiter", f"{column}", ",".join([*cells[:column], "", *cells[column:]]), values)
            if column:
                line = ",".join(cells[:column]) + ",".join(cells[column:])
                yield one("lost delimiter", f"{column}", line, values)
            struck = [("extra quote", '"' + cells[column], '"' + values[column])]
            if cells[column][:1] != '"' and len(cells[column]) > 1:
                for where, place in (("middle", len(values[column]) // 2), ("end", len(values[column]))):
                    cell = values[column][:place] + '"' + values[column][place:]
                    struck.append((f"quote at {where}", cell, cell))
            for family, cell, value in struck:
                line = ",".join([*cells[:column], cell, *cells[column + 1 :]])
                yield one(family, f"{column}", line, [*values[:column], value, *values[column + 1 :]])
        yield one("extra delimiter", f"{len(cells)}", ",".join([*cells, ""]), values)
        for mark in FOREIGN:
            own = replace(style, delimiter=mark)
            yield one(f"own delimiter {mark!r}", "", own.line(values, table.quoted), values)


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _prf(true: Counter[str], got: Counter[str]) -> list[float]:
    both, wanted, made = (true & got).total(), true.total(), got.total()
    precision = both / made if made else float(not wanted)
    recall = both / wanted if wanted else float(not made)
    return [precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0]


def score(truth: Grid, got: Grid) -> list[float]:
    """Return the ten measures of one file."""
    head = _prf(Counter(truth[0] if truth else []), Counter(got[0] if got else []))
    rows = _prf(Counter("".join(row) for row in truth[1:]), Counter("".join(row) for row in got[1:]))
    cells = _prf(Counter(cell for row in truth for cell in row), Counter(cell for row in got for cell in row))
    return [1.0, *head, *rows, *cells]


@dataclass(slots=True)
class Tally:
    """What came of the files of one family."""

    files: int = 0
    exact: int = 0
    quiet: int = 0  # files with a row that is not in the truth
    points: float = 0.0
    misses: list[str] = field(default_factory=list)

    def add(self, variant: Variant, got: Grid | None) -> None:
        """Count one file; None is a failure."""
        self.files += 1
        if got is None:
            self.misses.append(f"{variant.name}: failed")
            return
        self.points += sum(score(variant.truth, got))
        if got == variant.truth:
            self.exact += 1
            return
        known = Counter(map(tuple, variant.truth))
        strange = list((Counter(map(tuple, got)) - known).elements())
        lost = list((known - Counter(map(tuple, got))).elements())
        self.quiet += bool(strange)
        self.misses.append(f"{variant.name}: got {strange[:2]} for {lost[:2]}"[:400])


def parsed(text: str) -> Grid:
    """Read clean CSV."""
    return [row or [""] for row in csv.reader(io.StringIO(text, newline=""))]


Loader = Callable[[Variant, Path], Grid]


def ours(variant: Variant, folder: Path) -> Grid:
    """Load with `tenon ingest --text --csv`, in this process."""
    from tenon.ingest import Job
    from tenon.ingest.clean import clean

    source, target = folder / "in.csv", folder / "out.csv"
    source.write_bytes(variant.data)
    try:
        clean(Job(paths=(source,), out=folder / "out"), target)
        return parsed(target.read_bytes().decode())
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)


def sniffed(variant: Variant, _: Path) -> Grid:
    """Load with Python's csv and its Sniffer, as a careful script does, told the encoding."""
    text = variant.data.decode(variant.encoding).removeprefix("\ufeff")
    if not text:
        return []
    try:
        dialect: type[csv.Dialect] | csv.Dialect = csv.Sniffer().sniff(text[:65536])
    except csv.Error:
        dialect = csv.excel
    return [row for row in csv.reader(io.StringIO(text, newline=""), dialect) if row]


def clever(variant: Variant, _: Path) -> Grid:
    """Load with CleverCSV, told the encoding."""
    import clevercsv

    text = variant.data.decode(variant.encoding).removeprefix("\ufeff")
    if not text:
        return []
    dialect = clevercsv.Sniffer().sniff(text[:65536])
    return [row for row in clevercsv.reader(io.StringIO(text, newline=""), dialect or "excel") if row]


def judge(variants: Iterator[Variant], loader: Loader) -> dict[str, Tally]:
    """Load every variant and tally by family; what a loader raises is a failure of that file."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    with tempfile.TemporaryDirectory() as folder:
        for variant in variants:
            try:
                got: Grid | None = loader(variant, Path(folder))
            except Exception as error:
                print(f"{variant.name}: {type(error).__name__}: {error}", file=sys.stderr)
                got = None
            tallies[variant.family].add(variant, got)
    return dict(tallies)


def main() -> None:
    """Score our reading of every variant, and print the families with what was missed."""
    parser = measure.options(__doc__)
    parser.add_argument("--tables", default="")
    parser.add_argument("--every", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--height", type=int, default=30)
    parser.add_argument("--match", default="")
    parser.add_argument("--misses", type=int, default=0)
    args = parser.parse_args()
    wanted = set(filter(None, args.tables.split(",")))
    chosen = [one for one in tables(args.seed, args.height) if not wanted or one.name in wanted]
    made = (v for one in chosen for v in variants(one, args.every) if args.match in v.name)
    tallies = judge(made, ours)
    rows = [[family, t.files, t.exact, t.quiet, f"{t.points / t.files:.3f}"] for family, t in sorted(tallies.items())]
    files, exact = sum(t.files for t in tallies.values()), sum(t.exact for t in tallies.values())
    points = sum(t.points for t in tallies.values()) / max(files, 1)
    rows.append(["all", files, exact, sum(t.quiet for t in tallies.values()), f"{points:.3f}"])
    for family, tally in sorted(tallies.items()):
        for miss in tally.misses[: args.misses]:
            print(f"{family}: {miss}")
    header = ["family", "files", "read exactly", "with a wrong row", "score of 10"]
    measure.show(measure.rows("Pollutions of eight tables", header, rows), measure.machine("polars"))


if __name__ == "__main__":
    main()

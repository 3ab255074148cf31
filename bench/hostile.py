"""Hostile inputs for ingest, seeded: input `n` of a seed is the same bytes on every machine and in every run.

`make(seed, n)` gives a Case: bytes, the suffix of the file they go to, and how the file is read: row or cell policy,
into how many ranges (0: one only), how long a row may be. Structured ones are a random table written in a random
dialect, encoding and packing, with faults between and inside its rows. Others are such a file flipped, cut, doubled and
spliced, or pieces that mean something to a reader of CSV, in any order. What is packed (gzip, zstd, bz2, xz, zip,
Parquet) is also damaged after packing.

Nothing here knows what ingest makes of it; `fuzz.py` holds the promises against it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import polars as pl

DELIMITERS = (
    ",",
    ",",
    ",",
    ";",
    ";",
    "\t",
    "|",
    " ",
    ":",
    "; ",
    ", ",
    "||",
    "~",
    "^",
    "\x1f",
    "\x01",
    "::",
    " | ",
    "§",
    "-",
)
QUOTES = ('"', '"', '"', '"', "'", "", "`")
NEWLINES = ("\n", "\n", "\n", "\r\n", "\r\n", "\r")
ENCODINGS = (
    "utf-8",
    "utf-8",
    "utf-8",
    "utf-8-sig",
    "cp1252",
    "cp1251",
    "koi8-r",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
)
WORDS = (
    "alpha",
    "beta",
    "São Paulo",
    "Zürich",
    "Москва",
    "a, b",
    "x;y",
    'said "so"',
    "O'Neil",
    "",
    " ",
    "日本語",
    "l1\nl2",
)
WORDS += (
    "=1+1",
    "@SUM(A1)",
    "+49 30 1234",
    "-",
    "NULL",
    "\x1b[31mred\x1b[0m",
    "<b>x</b>",
    "<script>",
    "\u202e",
    "\ufeff",
    "😀",
)
WORDS += (
    "http://a.b/c?d=1,2",
    "a@b.de",
    "007",
    "1e5",
    "1.234,5",
    "N/A",
    "нет",
    "{}",
    "[]",
    "\\",
    '\\"',
    "a\\,b",
    "'",
    '"',
    '""',
)
PIECES = (
    b'"',
    b'"',
    b",",
    b",",
    b"\n",
    b"\n",
    b"\r\n",
    b"\r",
    b";",
    b"\t",
    b"|",
    b"'",
    b"\\",
    b'""',
    b'","',
    b'"\n"',
    b"\x00",
)
PIECES += (
    b"\xff",
    b"\xfe",
    b"\xc3",
    b"\xe2\x82",
    b"\xef\xbb\xbf",
    b" ",
    b"  ",
    b"1",
    b"-1",
    b"1.5",
    b"2024-01-02",
    b"a",
    b"word",
)
PIECES += (
    b"NULL",
    b"a,b,c\n",
    b"1,2,3\n",
    b"4;5;6\n",
    b'{"a":1}\n',
    b'{"a":',
    b"{",
    b"}",
    b"sep=;\n",
    b"#",
    b"# note\n",
    b"\x1f",
)
PIECES += (
    b"x^",
    b"\x1a",
    b"\x0c",
    b"\x85",
    b"\xa0",
    b"\xc2\xa0",
    b"\xe2\x80\xa8",
    b"id,name,when\n",
    b"7,x,2024-02-03\n",
)


@dataclass(frozen=True, slots=True)
class Case:
    """One input and how it is read."""

    data: bytes
    suffix: str = ".csv"
    ranges: int = 3
    row_bytes: int = 4096
    policy: str = "row"
    born: str = ""


def make(seed: int, number: int) -> Case:
    """Return input `number` of a seed."""
    rng = Random(f"{seed}:{number}")
    family = rng.choices(("table", "bytes", "soup", "jsonl", "packed", "parquet"), (34, 30, 18, 9, 7, 2))[0]
    data, suffix = FAMILIES[family](rng)
    row_bytes = rng.choice((64, 256, 4096, 4096, 1 << 20))
    policy = "cell" if rng.random() < 0.2 else "row"
    return Case(
        data,
        suffix,
        rng.choice((0, 0, 2, 2, 3, 3, 5, 9) if rng.random() < 0.98 else (23, 97)),
        row_bytes,
        policy,
        f"{family}, seed {seed}, number {number}",
    )


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _int(rng: Random) -> str:
    return str(rng.randrange(-50, 10 ** rng.randrange(1, 7)))


def _money(rng: Random) -> str:
    return rng.choice(("{:,.2f} €", "${:,.2f}", "({:.2f})", "{:.1f}%", "{:.0f} kr")).format(rng.random() * 10_000)


def _day(rng: Random) -> str:
    y, m, d = rng.randrange(1999, 2030), rng.randrange(1, 13), rng.randrange(1, 29)
    return rng.choice((f"{y}-{m:02d}-{d:02d}", f"{d:02d}.{m:02d}.{y}", f"{m}/{d}/{y}", f"{d} Jan {y}"))


def _stamp(rng: Random) -> str:
    return (
        f"2024-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}T{rng.randrange(24):02d}:00:{rng.randrange(60):02d}"
        + rng.choice(("", "Z", "+02:00"))
    )


def _float(rng: Random) -> str:
    return f"{rng.uniform(-1e3, 1e3):.{rng.randrange(1, 5)}f}"


def _comma(rng: Random) -> str:
    return _float(rng).replace(".", ",")


def _word(rng: Random) -> str:
    return rng.choice(WORDS)


def _text(rng: Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 7)))


def _code(rng: Random) -> str:
    return f"{rng.choice('ABC')}{rng.randrange(1000):03d}"


def _flag(rng: Random) -> str:
    return rng.choice(("true", "false"))


KINDS: tuple[Callable[[Random], str], ...] = (_int, _float, _day, _stamp, _money, _comma, _word, _text, _code, _flag)


def _cell(rng: Random, kind: Callable[[Random], str], mess: float) -> str:
    if rng.random() < mess:
        return rng.choice((_word, _int, _day))(rng)
    return kind(rng)


def _spelt(value: str, delimiter: str, quote: str, rng: Random) -> str:
    """Write a value: quoted where it must be, and sometimes where it need not; sometimes not where it must."""
    must = delimiter in value or "\n" in value or "\r" in value or bool(quote and quote in value)
    if not quote or (not must and rng.random() < 0.9) or (must and rng.random() < 0.03):
        return value
    return quote + value.replace(quote, quote * 2 if rng.random() < 0.9 else "\\" + quote) + quote


def _lines(rng: Random) -> tuple[list[str], str]:
    """Return the lines of a table, with faults, and its delimiter."""
    delimiter, quote = rng.choice(DELIMITERS), rng.choice(QUOTES)
    width = rng.choice((1, 2, 2, 3, 3, 3, 4, 5, 6)) if rng.random() < 0.97 else rng.choice((13, 40))
    height = rng.choice((0, 1, 2, 5, 12, 30, 60)) if width < 20 else rng.randrange(8)
    kinds = [rng.choice(KINDS) for _ in range(width)]
    mess = rng.choice((0.0, 0.0, 0.02, 0.3))
    names = [rng.choice((f"col{n}", f"Name {n}", "", "id", "Größe", f"{n}")) for n in range(width)]
    head = delimiter.join(_spelt(name, delimiter, quote, rng) for name in names)
    body = [
        delimiter.join(_spelt(_cell(rng, kind, mess), delimiter, quote, rng) for kind in kinds) for _ in range(height)
    ]
    if rng.random() < 0.15:
        body = [line + delimiter for line in body]
    rate = rng.choice((0.0, 0.0, 0.05, 0.4))
    out = [head] if rng.random() < 0.85 else []
    for line in body:
        out.extend(_fault(line, head, delimiter, quote, rng) if rng.random() < rate else (line,))
    if rng.random() < 0.2:
        out = [
            rng.choice(("Report of March", "# comment", "", "sep=" + delimiter, "a;b", "Ümlaut"))
            for _ in range(rng.randrange(1, 4))
        ] + out
    if rng.random() < 0.2:
        out += [
            rng.choice(("Source: office", "", "* estimated", "Total" + delimiter * (width - 1), head))
            for _ in range(rng.randrange(1, 4))
        ]
    if rng.random() < 0.06:
        out += ["", *_lines(rng)[0]]
    return out, delimiter


def _fault(line: str, head: str, delimiter: str, quote: str, rng: Random) -> list[str]:
    """Return what a broken writer makes of a line."""
    place = rng.randrange(len(line) + 1)
    quote = quote or '"'
    ways: tuple[Callable[[], list[str]], ...] = (
        lambda: [line[:place] + delimiter + line[place:]],
        lambda: [line.replace(delimiter, "", 1)],
        lambda: [line.replace(delimiter, rng.choice(";|,\t"))],
        lambda: [line[:place] + quote + line[place:]],
        lambda: [quote + line],
        lambda: [line[:place], line[place:]],
        lambda: [line[:place]],
        lambda: [line, head],
        lambda: [line, ""],
        lambda: [line + delimiter * rng.randrange(1, 4)],
        lambda: [line, line],
        lambda: [line[:place] + "\x00" + line[place:]],
        lambda: [line[:place] + "\r" + line[place:]],
        lambda: ["Second table", delimiter.join(("x", "y")), delimiter.join(("1", "2"))],
        lambda: [line[:place] + "\\" + line[place:]],
        lambda: [line[:place] + "z" * rng.choice((70, 300, 5000)) + line[place:]],
    )
    return rng.choice(ways)()


def _table(rng: Random) -> tuple[bytes, str]:
    lines, _ = _lines(rng)
    newline = rng.choice(NEWLINES)
    ends = [newline if rng.random() < 0.98 else rng.choice(NEWLINES) for _ in lines]
    if rng.random() < 0.05:
        ends = [rng.choice(NEWLINES) for _ in lines]
    text = "".join(line + end for line, end in zip(lines, ends, strict=True))
    if rng.random() < 0.25:
        text = text[: -len(newline)]
    encoding = rng.choice(ENCODINGS)
    data = text.encode(encoding, "replace")
    if rng.random() < 0.05:  # files that mix encodings
        data += text.encode(rng.choice(ENCODINGS), "replace")
    return data, ".csv"


def _jsonl(rng: Random) -> tuple[bytes, str]:
    names = [rng.choice(("id", "a", "b.c", "", "ключ", "x" * 50, "a")) for _ in range(rng.randrange(1, 6))]
    out = []
    for number in range(rng.choice((1, 3, 10, 40))):
        if number == 20:
            names.append("later")
        record: dict[str, Any] = {name: _value(rng, 0) for name in names if rng.random() < 0.9}
        line = json.dumps(record, ensure_ascii=rng.random() < 0.5)
        if rng.random() < 0.04:
            line = rng.choice(
                (
                    line[: len(line) // 2],
                    "",
                    "[1]",
                    "null",
                    "{}",
                    line + line,
                    "{" * 300,
                    '{"a":' * 40,
                    "NaN",
                    '{"a":1e999}',
                )
            )
        out.append(line)
    return "\n".join(out).encode("utf-8", "replace") + rng.choice((b"\n", b"")), ".jsonl"


def _value(rng: Random, depth: int) -> Any:
    kinds = 8 if depth < 4 else 6
    pick = rng.randrange(kinds)
    if pick == 6:
        return {rng.choice(("p", "q", "", "p.q")): _value(rng, depth + 1) for _ in range(rng.randrange(3))}
    if pick == 7:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return (rng.randrange(-5, 10**6), rng.random() * 100, rng.choice(WORDS), None, rng.random() < 0.5, 10**30)[pick]


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def mutate(data: bytes, rng: Random) -> bytes:
    """Return bytes with a few accidents in them."""
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        size = len(data)
        at = rng.randrange(size + 1)
        to = min(size, at + rng.choice((1, 1, 2, 8, 64)))
        way = rng.randrange(9)
        if way == 0 and size:
            at = min(at, size - 1)
            data = data[:at] + bytes((data[at] ^ (1 << rng.randrange(8)),)) + data[at + 1 :]
        elif way == 1:
            data = data[:at]
        elif way == 2:
            data = data[:at] + data[at:to] * rng.randrange(2, 6) + data[to:]
        elif way == 3:
            other = rng.randrange(size + 1)
            data = data[:at] + data[other : other + 40] + data[at:]
        elif way == 4:
            data = data[:at] + b"\x00" * rng.choice((1, 2, 64)) + data[at:]
        elif way == 5:
            data = data[:at] + rng.randbytes(rng.choice((1, 3, 40))) + data[to:]
        elif way == 6:
            data = data[:at] + data[to:]
        elif way == 7:
            data = data[:at] + rng.choice(PIECES) + data[at:]
        else:
            data = data[at:] + data[:at]
    return data


def _mutated(rng: Random) -> tuple[bytes, str]:
    data, suffix = (_jsonl if rng.random() < 0.15 else _table)(rng)
    return mutate(data, rng), suffix


def _soup(rng: Random) -> tuple[bytes, str]:
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(200)), ".csv"
    few = rng.sample(PIECES, rng.randrange(2, 9))
    return b"".join(rng.choice(few) for _ in range(rng.randrange(120))), ".csv"


def _packed(rng: Random) -> tuple[bytes, str]:
    data = (_table if rng.random() < 0.8 else _jsonl)(rng)[0]
    kind = rng.choice(("gzip", "bz2", "xz", "zstd", "zip"))
    if kind == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(
            buffer, "w", rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2))
        ) as pack:
            for number in range(rng.choice((1, 1, 2, 0))):
                pack.writestr(zipfile.ZipInfo(f"{number}.csv"), data)
        packed = buffer.getvalue()
    elif kind == "zstd":
        packed = _zstd(data)
    else:
        packed = {"gzip": lambda d: gzip.compress(d, mtime=0), "bz2": bz2.compress, "xz": lzma.compress}[kind](data)
    if rng.random() < 0.15:
        packed += packed
    return (mutate(packed, rng) if rng.random() < 0.6 else packed), f".csv.{kind}"


def _zstd(data: bytes) -> bytes:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        from backports import zstd
    return bytes(zstd.compress(data))


def _parquet(rng: Random) -> tuple[bytes, str]:
    height = rng.choice((0, 1, 20))
    frame = pl.DataFrame(
        {
            "n": pl.Series(
                [rng.randrange(10**6) if rng.random() < 0.9 else None for _ in range(height)], dtype=pl.Int32
            ),
            "f": pl.Series([rng.random() for _ in range(height)], dtype=pl.Float32),
            "t": pl.Series([_word(rng) for _ in range(height)], dtype=pl.String),
            "l": pl.Series([[rng.randrange(5)] for _ in range(height)], dtype=pl.List(pl.Int64)),
            "b": pl.Series([rng.randbytes(3) for _ in range(height)], dtype=pl.Binary),
            "s": pl.Series(
                [{"x": 1, "y": _word(rng)} for _ in range(height)], dtype=pl.Struct({"x": pl.Int8, "y": pl.String})
            ),
            "d": pl.Series([rng.randrange(10**6) for _ in range(height)], dtype=pl.Int64).cast(pl.Datetime("ns")),
        }
    )
    buffer = io.BytesIO()
    frame.select(rng.sample(frame.columns, rng.randrange(1, 8))).write_parquet(buffer)
    data = buffer.getvalue()
    return (mutate(data, rng) if rng.random() < 0.7 else data), ".parquet"


FAMILIES: dict[str, Callable[[Random], tuple[bytes, str]]] = {
    "table": _table,
    "bytes": _mutated,
    "soup": _soup,
    "jsonl": _jsonl,
    "packed": _packed,
    "parquet": _parquet,
}

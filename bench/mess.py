"""A messy file of any size from a clean table, seeded, with the truth beside it; and a judge of what a loader made.

    python bench/mess.py FOLDER --rows 1000000 --broken 5 --seed 1

`make` writes `mess.csv` (12 columns: integers, floats, timestamps, a date, short and free text), `truth.parquet` (what
a careful person would have read, with the fault of every broken row, empty for clean ones) and `faults.json`. Faults
strike single rows, so that each can be judged by itself; `framing` faults (preamble, footnote, blank lines, a repeated
header) lie between rows. `judge` holds a loader's rows against the truth by the number in the first column: which
broken rows came back exactly, which are missing (in quarantine, or lost), and how many cells are wrong without a word.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl

TEXT = (
    "the quick brown fox jumps over a lazy dog while seven wizards quietly box with grumpy kittens near old rivers and "
    "nobody knows why this keeps happening every single tuesday morning before breakfast unless it rains"
)
WORDS = TEXT.split()
STATES = ("new", "paid", "packed", "shipped", "returned", "lost", "cancelled")
CITIES = (
    "Berlin",
    "Łódź",
    "Zürich",
    "Málaga",
    "Москва",
    "Malmö",
    "Porto",
    "Reykjavík",
    "Brno",
    "Ghent",
    "Cork",
    "Oslo",
)
NAMES = (
    "order",
    "customer",
    "quantity",
    "price",
    "weight",
    "lat",
    "created",
    "shipped",
    "state",
    "city",
    "sku",
    "note",
)
BLOCK = 200_000  # rows made at once


@dataclass(frozen=True, slots=True)
class Mess:
    """What was made: the file, the truth, and how many rows each fault struck."""

    path: Path
    truth: Path
    rows: int
    faults: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """What a loader made of a mess. `wrong_cells` are those of rows it delivered, clean and broken."""

    rows: int
    broken: int
    recovered: int
    withheld: int
    wrong_rows: int
    wrong_cells: int
    clean_lost: int
    by_fault: dict[str, dict[str, int]]

    @property
    def recovered_pct(self) -> float:
        """Return the share of broken rows that came back exactly, in percent."""
        return 100.0 * self.recovered / max(self.broken, 1)

    @property
    def wrong_per_million(self) -> float:
        """Return the wrong cells in a million cells of the whole table."""
        return 1e6 * self.wrong_cells / max(self.rows * len(NAMES), 1)


def clean(rows: int, seed: int, first: int = 0) -> pl.DataFrame:
    """Return a clean table; rows `first` and after are the same however many are asked for in one call."""
    rng = np.random.default_rng([seed, first])
    start = np.datetime64("2021-01-01T00:00:00", "s").astype(np.int64) + first * 7
    created = start + np.cumsum(rng.integers(0, 14, rows))
    notes = np.array([" ".join(rng.choice(WORDS, size=int(n))) for n in rng.integers(3, 14, 4_000)])
    commas = np.array([", ".join((note, "and more")) if n % 3 == 0 else note for n, note in enumerate(notes)])
    quoted = np.array([f'{note}, or "so"' if n % 17 == 0 else note for n, note in enumerate(commas)])
    days = (created + rng.integers(1, 20, rows) * 86_400) // 86_400
    return pl.DataFrame(
        {
            "order": np.arange(first, first + rows) + 1_000_000,
            "customer": rng.integers(10_000, 9_999_999, rows),
            "quantity": rng.integers(1, 200, rows),
            "price": np.round(rng.lognormal(3, 1, rows), 2),
            "weight": np.round(rng.uniform(0.1, 80, rows), 3),
            "lat": np.round(rng.uniform(-90, 90, rows), 6),
            "created": pl.Series(created * 1_000_000).cast(pl.Datetime("us")),
            "shipped": pl.Series(days.astype(np.int32)).cast(pl.Date),
            "state": np.array(STATES)[rng.integers(0, len(STATES), rows)],
            "city": np.array(CITIES)[rng.integers(0, len(CITIES), rows)],
            "sku": [f"{a}{b}-{n:05d}" for a, b, n in zip(*_sku(rng, rows), strict=True)],
            "note": quoted[rng.integers(0, len(quoted), rows)],
        }
    ).with_columns(
        weight=pl.when(pl.Series(rng.random(rows) < 0.05)).then(None).otherwise("weight"),
        note=pl.when(pl.Series(rng.random(rows) < 0.03)).then(None).otherwise("note"),
    )


def _sku(rng: np.random.Generator, rows: int) -> tuple[Any, Any, Any]:
    letters = np.array(list("ABCDEFGHKLMNPQRSTUVWXYZ"))
    return letters[rng.integers(0, 23, rows)], letters[rng.integers(0, 23, rows)], rng.integers(0, 99_999, rows)


def fields(line: str) -> list[str]:
    """Cut a clean line into its fields as they are spelt, quotes included."""
    out, begin, inside = [], 0, False
    for place, sign in enumerate(line):
        if sign == '"':
            inside = not inside
        elif sign == "," and not inside:
            out.append(line[begin:place])
            begin = place + 1
    return [*out, line[begin:]]


# ── faults: each takes the fields of a clean line and gives the bytes of a broken one ────────────────────────────────


def _extra(cells: list[str], rng: Random) -> bytes:
    place = rng.randrange(1, len(cells))
    return ",".join([*cells[:place], "", *cells[place:]]).encode()


def _missing(cells: list[str], rng: Random) -> bytes:
    place = rng.randrange(1, len(cells))
    return (",".join(cells[:place]) + ",".join(cells[place:])).encode()


def _other(sign: str) -> Callable[[list[str], Random], bytes]:
    return lambda cells, rng: sign.join(cells).encode()


def _stray(cells: list[str], rng: Random) -> bytes:
    place = rng.randrange(len(cells))
    return ",".join([*cells[:place], '"' + cells[place], *cells[place + 1 :]]).encode()


def _unquoted(cells: list[str], rng: Random) -> bytes:
    return ",".join([*cells[:-1], cells[-1].strip('"').replace('""', "'")]).encode()


def _unclosed(cells: list[str], rng: Random) -> bytes:
    return ",".join([*cells[:8], '"' + cells[8], *cells[9:11], cells[11].replace('"', "")]).encode()


def _nul(cells: list[str], rng: Random) -> bytes:
    line = ",".join(cells).encode()
    place = rng.randrange(len(line))
    return line[:place] + b"\x00" * rng.randrange(1, 4) + line[place:]


def _single_byte(table: str) -> Callable[[list[str], Random], bytes]:
    return lambda cells, rng: ",".join(cells).encode(table)


def _thousands(cells: list[str], rng: Random) -> bytes:
    return ",".join([cells[0], f'"{int(cells[1]):,}"', *cells[2:]]).encode()


def _blanks(cells: list[str], rng: Random) -> bytes:
    return ",".join([cells[0], f" {cells[1]} ", cells[2], f"{cells[3]}\u00a0", *cells[4:]]).encode()


def _format(cells: list[str], rng: Random) -> bytes:
    day = cells[7]
    months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    return ",".join([*cells[:7], f"{day[8:]} {months[int(day[5:7]) - 1]} {day[:4]}", *cells[8:]]).encode()


def _word(cells: list[str], rng: Random) -> bytes:
    return ",".join([*cells[:2], rng.choice(("several", "twelve", "see note")), *cells[3:]]).encode()


def _null(cells: list[str], rng: Random) -> bytes:
    word = rng.choice(("NA", "NULL", "n/a", "-", "ΝULL", "нет", "None"))
    return ",".join([*cells[:4], word, *cells[5:]]).encode()


def _lines(cells: list[str], rng: Random) -> bytes:
    note = cells[11].strip('"')
    cut = note.find(" ")
    return ",".join([*cells[:11], f'"{note[:cut]}\n{note[cut + 1 :]}"']).encode()


def _break(cells: list[str], rng: Random) -> bytes:
    # Beside a delimiter, so that neither half is a whole row but for its first or last value: nobody could know then.
    place = rng.randrange(1, len(cells) - 1)
    before, after = rng.choice((("\n", ","), (",", "\n"))) if place > 1 else (",", "\n")
    return (",".join(cells[:place]) + before + after + ",".join(cells[place:])).encode()


def _short(cells: list[str], rng: Random) -> bytes:
    return ",".join(cells[: rng.randrange(4, 10)]).encode()


def _tail(cells: list[str], rng: Random) -> bytes:
    return (",".join(cells) + "," * rng.randrange(1, 4)).encode()


def _crlf(cells: list[str], rng: Random) -> bytes:
    return ",".join(cells).encode() + b"\r"


# name -> (the fault, what the truth is then: None the clean row, else a change of it; "lost" it cannot be known)
FAULTS: dict[str, tuple[Callable[[list[str], Random], bytes], str]] = {
    "extra-delimiter": (_extra, ""),
    "missing-delimiter": (_missing, ""),
    "semicolons": (_other(";"), ""),
    "pipes": (_other("|"), ""),
    "tabs": (_other("\t"), ""),
    "stray-quote": (_stray, "stray"),
    "unquoted-commas": (_unquoted, "unquoted"),
    "unclosed-quote": (_unclosed, "unclosed"),
    "nul": (_nul, ""),
    "cp1252": (_single_byte("cp1252"), ""),
    "cp1251": (_single_byte("cp1251"), ""),
    "thousands": (_thousands, ""),
    "blanks": (_blanks, ""),
    "date-format": (_format, ""),
    "word-for-number": (_word, "lost"),
    "null-word": (_null, "null"),
    "newline": (_lines, "newline"),
    "line-break": (_break, ""),
    "cut-short": (_short, "lost"),
    "extra-tail": (_tail, ""),
    "crlf": (_crlf, ""),
}


def _fits(name: str, cells: list[str]) -> bool:
    """Whether a fault can strike a row at all."""
    note, city = cells[11], cells[9]
    if name == "cp1252":
        return city in ("Zürich", "Málaga", "Malmö")
    if name == "cp1251":
        return city == "Москва"
    if name == "unquoted-commas":
        return "," in note and '""' not in note
    if name == "newline":
        return " " in note and '""' not in note
    if name in ("semicolons", "pipes", "tabs"):
        return True
    return name != "unclosed-quote" or '""' not in note


def _truth(name: str, what: str, row: dict[str, Any], line: bytes, cells: list[str]) -> dict[str, Any]:
    """Return what a careful person reads in the broken row."""
    if what == "unclosed":
        row["state"] = '"' + row["state"]
        row["note"] = row["note"] and row["note"].replace('"', "")
    elif what == "null":
        row["weight"] = None
    elif what == "newline":
        note = cells[11].strip('"')
        cut = note.find(" ")
        row["note"] = f"{note[:cut]}\n{note[cut + 1 :]}"
    elif what == "stray":
        place = next(n for n, (a, b) in enumerate(zip(_loose(line), cells, strict=False)) if a != b)
        if place >= NAMES.index("state"):
            row[NAMES[place]] = '"' + (row[NAMES[place]] or "")
    return row


def _loose(line: bytes) -> list[str]:
    """Cut a line with one stray quote at the beginning of a field."""
    text = line.decode()
    out: list[str] = []
    while text:
        if text.startswith('""') and not text.startswith('"",') and text != '""':
            end = text.find('",', 2)
            out.append(text if end < 0 else text[: end + 1])
        elif text.startswith('"') and "," in text and not _opens(text):
            out.append(text[: text.find(",")])
        else:
            out.append(fields(text)[0])
        text = text[len(out[-1]) + 1 :]
    return out


def _opens(text: str) -> bool:
    """Whether the quote at the beginning closes before a comma with nothing but text between."""
    end = text.find('"', 1)
    while end > 0 and text[end : end + 2] == '""':
        end = text.find('"', end + 2)
    return end > 0 and (end + 1 == len(text) or text[end + 1] == ",")


def make(
    folder: Path,
    rows: int,
    *,
    broken: float = 0.05,
    seed: int = 1,
    faults: tuple[str, ...] = tuple(FAULTS),
    framing: bool = True,
) -> Mess:
    """Write a messy file and its truth into a folder; the same seed makes the same bytes."""
    rng = Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    truths: list[Path] = []
    with (folder / "mess.csv").open("wb") as out:
        if framing:
            out.write(b"Orders of the northern warehouse\nexported by hand\n\n")
        out.write(",".join(NAMES).encode() + b"\n")
        for first in range(0, rows, BLOCK):
            frame = clean(min(BLOCK, rows - first), seed, first)
            lines = frame.write_csv(include_header=False, datetime_format="%Y-%m-%d %H:%M:%S").split("\n")[:-1]
            told = [""] * frame.height
            changed: dict[int, dict[str, Any]] = {}
            struck = sorted(rng.sample(range(frame.height), int(broken * frame.height))) if broken else []
            written = [line.encode() for line in lines]
            for row in struck:
                cells = fields(lines[row])
                name = rng.choice(faults)
                if not _fits(name, cells):
                    continue
                breaker, what = FAULTS[name]
                written[row] = breaker(cells, rng)
                told[row] = name
                counts[name] += 1
                if what not in ("", "lost", "unquoted"):
                    changed[row] = _truth(name, what, frame.row(row, named=True), written[row], cells)
            if framing and first:
                written[frame.height // 2] += b"\n\n" + ",".join(NAMES).encode()
            out.write(b"\n".join(written) + b"\n")
            truths.append(folder / f"truth-{first}.parquet")
            _changed(frame, changed).with_columns(fault=pl.Series(told)).write_parquet(truths[-1])
        if framing:
            out.write(b"\nSource: the warehouse itself\n")
    pl.scan_parquet(truths).sink_parquet(folder / "truth.parquet")
    for path in truths:
        path.unlink()
    mess = Mess(folder / "mess.csv", folder / "truth.parquet", rows, dict(counts))
    (folder / "faults.json").write_text(
        json.dumps({**asdict(mess), "path": "mess.csv", "truth": "truth.parquet"}), "utf-8"
    )
    return mess


def _changed(frame: pl.DataFrame, changed: dict[int, dict[str, Any]]) -> pl.DataFrame:
    if not changed:
        return frame
    numbers = frame.with_row_index("row_")
    rows = pl.DataFrame(list(changed.values()), schema=frame.schema).with_columns(
        row_=pl.Series(list(changed), dtype=pl.UInt32)
    )
    return numbers.update(rows, on="row_", how="left", include_nulls=True).drop("row_")


# ── judging ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _as(column: pl.Series, kind: pl.DataType) -> pl.Series:
    """Return a loader's column in the type of the truth; a loader may have left times as text."""
    if column.dtype == pl.String and kind.is_temporal():
        return column.str.to_datetime(strict=False).cast(kind)
    return column.cast(kind, strict=False)


def judge(truth: Path, loaded: pl.DataFrame) -> Score:
    """Hold loaded rows against the truth by the number in `order`; rows with an unknown number count as wrong."""
    want = pl.read_parquet(truth)
    types = {name: want.schema[name] for name in NAMES}
    got = loaded.select(_as(loaded[name], types[name]) for name in NAMES).with_columns(got_=pl.lit(True))
    both = want.join(got, on="order", how="left", suffix="_2")
    wrong = [
        (pl.col(name).ne_missing(pl.col(f"{name}_2")) & pl.col("got_").is_not_null()).alias(f"{name}_3")
        for name in NAMES[1:]
    ]
    both = both.with_columns(wrong).with_columns(cells_=pl.sum_horizontal([f"{name}_3" for name in NAMES[1:]]))
    # A row whose truth cannot be known counts as recovered by nobody, and as wrong when delivered with a guess.
    lost = {name for name, (_, what) in FAULTS.items() if what == "lost"}
    broken = both.filter(pl.col("fault") != "")
    strangers = got.join(want, on="order", how="anti").height
    by_fault = {}
    for (name,), part in broken.group_by("fault"):
        delivered = part.filter(pl.col("got_").is_not_null())
        exact = delivered.filter(pl.col("cells_") == 0).height if name not in lost else 0
        by_fault[str(name)] = {
            "rows": part.height,
            "recovered": exact,
            "withheld": part.height - delivered.height,
            "wrong": delivered.filter(pl.col("cells_") > 0).height,
        }
    clean_rows = both.filter(pl.col("fault") == "")
    return Score(
        rows=want.height,
        broken=sum(one["rows"] for name, one in by_fault.items() if name not in lost),
        recovered=sum(one["recovered"] for one in by_fault.values()),
        withheld=sum(one["withheld"] for one in by_fault.values()),
        wrong_rows=both.filter(pl.col("cells_") > 0).height + strangers,
        wrong_cells=int(both["cells_"].sum() or 0) + strangers * len(NAMES),
        clean_lost=clean_rows.filter(pl.col("got_").is_null()).height,
        by_fault=dict(sorted(by_fault.items())),
    )


def main() -> None:
    """Make a mess from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--broken", type=float, default=5.0, help="percent of rows")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(make(args.folder, args.rows, broken=args.broken / 100, seed=args.seed))


if __name__ == "__main__":
    main()

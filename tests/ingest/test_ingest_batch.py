"""Compiled code says of broken rows what Python says: where they end, what speaks against a cell, which repair fits."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenon.ingest import Ingested, Job, batch, ingest
from tenon.ingest.dialect import Dialect
from tenon.ingest.gauge import gauge
from tenon.ingest.plan import _row_pattern
from tenon.ingest.profile import Profile, learn
from tenon.ingest.repair import mend
from tenon.ingest.scan import groups_of, line_table
from tenon.ingest.values import Reading

from .test_ingest_gauge import CELLS, READINGS

_repair = pytest.importorskip("tenon.ingest._repair", reason="the kernels were not compiled at installation")

REACH = 1 << 20
TEXTS = (
    learn(["new", "paid", "lost", "", "paid"] * 30, Reading(null=("NA", "нет"))),
    learn([f"AB-{n:04d}" for n in range(90)], Reading()),
    learn([f"{'a' * (n % 7 + 1)}-{n}" if n % 9 else f"Łódź-{n}" for n in range(90)], Reading(null=("-",))),
    learn([f"order of {n} things, {'more ' * (n % 5)}" for n in range(90)], Reading()),
    learn(
        [f"{('Some', 'words', 'Москва', '7', '')[n % 5]} {n}" * (n % 5 < 4) for n in range(400)], Reading(null=("-",))
    ),
    learn(["", "", ""], Reading(null=("",))),
)
PROFILES = (
    learn([str(n) for n in range(1000, 1060)], Reading(type="int")),
    learn([f"2024-01-{n % 28 + 1:02d}" for n in range(60)], Reading(type="date", formats=("%Y-%m-%d",), plain=False)),
    learn([f"{n * 1.25:.2f}" for n in range(60)] + ["NA"] * 6, Reading(type="float", null=("NA",))),
    TEXTS[1],
    TEXTS[0],
    TEXTS[4],
)
COMMAS = Dialect(row=_row_pattern(Dialect(), PROFILES))
DIALECTS = (COMMAS, Dialect(delimiter=b";", quote=b"'"), Dialect(delimiter=b"\t", quote=b""), Dialect(delimiter=b" "))
SIGNS = (b'"', b'""', b",", b";", b"|", b"\t", b" ", b"'", b"\xc5\x81", b"x", b"7", b"\x1a", b'",', b',"')


def table_of(profiles: tuple[Profile, ...], dialect: Dialect = Dialect()) -> object:
    """Return a table ready to judge."""
    table = batch.prepared(dialect, profiles, REACH)
    assert table is not None
    return table


def same(rows: list[bytes], dialect: Dialect, profiles: tuple[Profile, ...]) -> None:
    """Assert that rows are mended alike with compiled code and without."""
    quick = batch.mended(rows, dialect, profiles, table_of(profiles, dialect))
    for row, one, other in zip(rows, mend(rows, dialect, profiles), quick, strict=True):
        told = [(m.code, m.column, m.sure, m.why) for m in (one, other)]
        assert told[0] == told[1], row
        shown = [m.values if m.sure else b" | ".join(m.values) for m in (one, other)]
        assert shown[0] == shown[1], row


@st.composite
def rows(draw: st.DrawFn) -> list[bytes]:
    """Draw rows of the table that PROFILES describe, with a few bytes put in or taken out."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    out = []
    for _ in range(20):
        note = chance.choice(("words, and more", "plain", 'say ""so""', "7 times", "Łódź", ""))
        cells = [str(chance.randrange(1000, 9999)), f"2024-01-{chance.randrange(1, 29):02d}"]
        cells += [chance.choice(("12.25", "NA", "7", "")), f"AB-{chance.randrange(10000):04d}"]
        cells += [chance.choice(("new", "paid", "other", "")), f'"{note}"' if "," in note or '"' in note else note]
        row = bytearray(chance.choice((",", ",", ",", ";", "|", " ")).join(cells).encode())
        for _ in range(chance.randrange(3)):
            place = chance.randrange(len(row) + 1)
            row[place : place + chance.randrange(2)] = chance.choice(SIGNS)
        out.append(bytes(row).decode("utf-8", "replace").encode())
    return out


@settings(max_examples=120, deadline=None)
@given(broken=rows())
def test_a_row_is_mended_alike(broken: list[bytes]) -> None:
    same(broken, COMMAS, PROFILES)
    same(broken, DIALECTS[2], PROFILES[:3])
    same([row.replace(b",", b";") for row in broken], DIALECTS[1], PROFILES)
    same(broken, DIALECTS[3], PROFILES)


@settings(max_examples=150, deadline=None)
@given(broken=st.lists(st.text(alphabet="ab1\", ;'\t", max_size=24), min_size=1, max_size=8), width=st.integers(1, 5))
def test_any_row_is_mended_alike(broken: list[str], width: int) -> None:
    profiles = (*TEXTS[:2], PROFILES[0], *TEXTS[2:])[:width]
    for dialect in (Dialect(), *DIALECTS[1:]):
        same([row.encode() for row in broken], dialect, profiles)


@pytest.mark.parametrize("reading", READINGS, ids=lambda one: f"{one.type} {' '.join(one.formats)}")
@settings(max_examples=60, deadline=None)
@given(cells=st.lists(CELLS, min_size=1, max_size=12), digits=st.booleans())
def test_a_cell_of_a_type_costs_the_same(reading: Reading, cells: list[str], digits: bool) -> None:
    profile = Profile(reading=reading, missing=0.1, shortest=1, longest=3, decimals=2 if digits else -1)
    table, judge = table_of((profile, profile)), gauge(profile)
    for cell in (cell.encode("utf-8", "replace") for cell in cells):
        cost = _repair.judge(table, 0, cell)
        assert cost is None or cost == judge(cell), cell


@pytest.mark.parametrize("profile", TEXTS, ids=range(len(TEXTS)))
@settings(max_examples=60, deadline=None)
@given(cells=st.lists(st.one_of(CELLS, st.from_regex(r"\A[A-Za-z]{1,3}-\d{1,5}\Z")), min_size=1, max_size=12))
def test_a_cell_of_text_costs_the_same(profile: Profile, cells: list[str]) -> None:
    table, judge = table_of((profile, profile)), gauge(profile)
    for cell in (cell.encode("utf-8", "replace") for cell in ("", " NA", "\u3000-", "paid", "A" * 900, *cells)):
        cost = _repair.judge(table, 0, cell)
        assert cost is None or cost == judge(cell), cell


def test_plain_cells_are_judged_without_asking_python() -> None:
    told = {
        ("int",): ["12", "x", "1.5", "-7", "99999999999999999999", "", "2024-01-01", "Łódź"],
        ("date", "%Y-%m-%d"): ["2024-02-29", "2023-02-29 00:00:00", "12.5", "words", "Łódź", "x7", ""],
        ("timestamp", "%Y-%m-%d %H:%M:%S"): ["2024-02-29 10:00:00", "2024-02-29", "12", "-1.5", "paid", ""],
    }
    for (type_, *formats), cells in told.items():
        profile = Profile(reading=Reading(type=type_, formats=tuple(formats), plain=type_ == "int"))  # type: ignore[arg-type]
        table = table_of((profile, profile))
        assert None not in [_repair.judge(table, 0, cell.encode()) for cell in cells]
    marked = Profile(reading=Reading(type="int", plain=False, group=","))
    assert None not in [_repair.judge(table_of((marked, marked)), 0, c) for c in (b"1,234", b"12345", b"paid", b"1.5")]


@settings(max_examples=300, deadline=None)
@given(
    data=st.lists(
        st.sampled_from([*SIGNS[:5], b"\n", b"\n", b'\n"', b"\r\n", b"1001,2024-01-01,1.5,AB-0001,new,x\n", b"1001,"])
    ).map(b"".join),
    dialect=st.sampled_from(DIALECTS[:3]),
    reach=st.sampled_from([8, 64, REACH]),
)
def test_rows_end_at_the_same_lines(data: bytes, dialect: Dialect, reach: int) -> None:
    starts, _, ends = line_table(np.frombuffer(data, dtype=np.uint8), dialect)
    good = np.array([b'"' not in data[b:e] and b"'" not in data[b:e] for b, e in zip(starts, ends, strict=True)], bool)
    table = batch.prepared(dialect, PROFILES, reach)
    want = groups_of(data, dialect, good, (~good).astype(np.int64), starts, ends, reach)
    assert batch.groups(data, table, starts, ends, good, ~good).tolist() == want.tolist()


def told(done: Ingested) -> dict[str, Any]:
    """Return all that an ingest tells but where and how long."""
    body = done.to_dict()
    tables = [pl.read_parquet(path).to_dicts() for path in (*done.files, done.quarantine, done.repairs) if path]
    gone = ("files", "quarantine", "repairs", "seconds", "findings")
    return {**{name: value for name, value in body.items() if name not in gone}, "tables": tables}


@pytest.mark.parametrize("policy", ["row", "cell"])
def test_a_messy_file_gives_the_same_with_compiled_code_and_without(
    mess: ModuleType,
    tmp_path: Path,
    policy: Any,
) -> None:
    made = mess.make(tmp_path, 8_000, broken=0.3, seed=7)
    jobs = (Job(paths=(made.path,), out=tmp_path / str(on), policy=policy, compiled=on) for on in (True, False))
    fast, slow = map(ingest, jobs)
    assert told(fast) == told(slow) and fast.repaired > 1000 and fast.quarantined > 100


CELLS_OF: dict[str, tuple[str, ...]] = {
    "int": (
        "7",
        " 7 ",
        "1,234",
        "1 234",
        "12'345",
        "1,23",
        "12.0",
        "12.",
        "-1,234,567",
        "\u00a07",
        "+7",
        "several",
        "-0.0",
    ),
    "size": ("1.5", "1,234.5", '"2.5"', "1e5", "1.", "nan", "$3", "NA", "None", "-", "\u20071.5", "1.50\u200b", "0x1"),
    "day": (
        "2024-02-03",
        "3 Feb 2024",
        "03-feb-2024",
        "31 Feb 2024",
        "2024/02/03",
        "2024-2-3",
        "Feb 3, 2024",
        "NULL",
        "?",
    ),
    "at": (
        "2024-02-03 10:11:12",
        "2024-02-03",
        "3 Feb 2024",
        " 2024-02-03 10:11:12",
        "2024-02-03T10:11:12Z",
        "n/a",
        "x",
    ),
    "word": ("red", "green", " red", "NA", "None", "", '"'),
    "sum": ("1,000", "2,500", "999", " 1,200", "1,20", "12.5", "\u00a05,000", "-3,000", "+4", "many", "NA"),
}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), odd=st.sampled_from([0.01, 0.04, 0.15]), policy=st.sampled_from(["row", "cell"]))
def test_cells_in_another_spelling_are_read_alike(tmp_path: Path, seed: int, odd: float, policy: Any) -> None:
    chance = random.Random(seed)
    lines = [",".join(CELLS_OF)]
    for row in range(400):
        cells = [chance.choice(c) if row > 20 and chance.random() < odd else c[0] for c in CELLS_OF.values()]
        lines.append(",".join(f'"{cell}"' if "," in cell and '"' not in cell else cell for cell in cells))
    path = tmp_path / "data.csv"
    path.write_text("\n".join(lines) + "\n")
    jobs = (Job(paths=(path,), out=tmp_path / str(on), policy=policy, compiled=on) for on in (True, False))
    fast, slow = map(ingest, jobs)
    assert told(fast) == told(slow)


def test_what_is_no_table_is_refused() -> None:
    table = table_of(PROFILES, COMMAS)
    nothing = np.zeros(1, dtype=np.int64)
    with pytest.raises(TypeError):
        _repair.prepare("table")
    with pytest.raises(TypeError):
        _repair.prepare((44, 34, 10, 100, (), (), b"", b"", b"", ()))
    with pytest.raises(ValueError, match="lines in the data"):
        _repair.mend(table, b"a,b\n", nothing, nothing + 9, nothing, nothing, b"\0", False)
    with pytest.raises(ValueError, match="lines in the data"):
        _repair.mend(table, b"a,b\n", nothing, nothing + 4, nothing, nothing + 1, b"\0", False)
    with pytest.raises(ValueError, match="lines in the data"):
        _repair.groups(table, b"a,b\n", nothing + 2, nothing + 1, b"\0", b"\0")


def test_the_pattern_of_a_row_is_taken_apart_or_left_to_python() -> None:
    assert batch._cells(COMMAS) == (("n", ()), ("d", ()), ("n", (b"NA", b"")), *[("t", ())] * 3)
    assert batch._cells(Dialect()) == ()
    assert batch._cells(Dialect(row=rb"a+")) is None
    assert batch.prepared(Dialect(delimiter=b"::"), PROFILES, REACH) is None
    assert batch.prepared(Dialect(escape=b"\\"), PROFILES, REACH) is None

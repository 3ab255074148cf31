"""The compiled kernel reads what Polars and NumPy read: with it and without, all that an ingest tells is the same."""

from __future__ import annotations

import random
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenon.contract import Column, Source
from tenon.contract.column import ColumnType
from tenon.ingest import Ingested, Job, ingest, quick
from tenon.ingest.values import parse

_kernel = pytest.importorskip("tenon.ingest._kernel", reason="the kernel was not compiled at installation")

CELLS: dict[ColumnType, list[str]] = {
    "int": ["0", "-0", "7", "007", "-12", "+3", " 4", "999999999999999999", "9223372036854775808", "1e3", "1.0", "1_0"],
    "float": (
        "0|-0.0|1.5|.5|5.|1e5|-2.5E-3|1e999|inf|nan|0.30000000000000004|1.7976931348623157e308|4.9e-324|1,5|- 1|"
        "2.2250738585072011e-308|9007199254740993|123456789012345678.5|0.1000000000000000055511151231257827|"
        f"00000000000000000000001.25|1.{'0' * 70}"
    ).split("|"),
    "date": [
        "2024-02-29",
        "2023-02-29",
        "1999-12-31",
        "0999-01-01",
        "2024-1-5",
        "2024-13-01",
        "20240101",
        "2024-01-01 ",
    ],
    "timestamp": [
        "2024-02-29 23:59:59",
        "2024-02-29 24:00:00",
        "2024-02-29 23:59:60",
        "2024-02-29T01:02:03",
        "2024-02-29 1:02:03",
    ],
    "bool": ["true", "FALSE", "True", "tRuE", "yes", "1", "ｔrue"],
    "text": ["a", "a longer text than fits", "Łódź", "żółć " * 5, '"', "x\u00a0", "\x7f", "\t", "'"],
}
PLAIN: dict[ColumnType, str] = {
    "int": "5",
    "float": "2.5",
    "date": "2024-05-06",
    "timestamp": "2024-05-06 07:08:09",
    "bool": "true",
    "text": "word",
}
WORDS = ("", "NA", "-", "n/a", "NULL")
SPOILT = (b"\x00", b"\xff", b'"', b",", b"\r", b"\n", b"\xc3", b'""', b" ")


def both(path: Path, **options: Any) -> tuple[Ingested, Ingested]:
    """Ingest a file with the kernel and without it."""
    jobs = [
        Job(paths=(path,), out=path.parent / name, compiled=name == "with", **options) for name in ("with", "without")
    ]
    return ingest(jobs[0]), ingest(jobs[1])


def told(result: Ingested) -> dict[str, Any]:
    """Return all that an ingest tells but where and how long."""
    body = result.to_dict()
    tables = [pl.read_parquet(path).to_dicts() for path in (result.quarantine, result.repairs) if path]
    rows = [frame.rows() for frame in map(pl.read_parquet, result.files)]
    rows = [[tuple(map(repr, row)) for row in frame] for frame in rows]  # -0.0 is not 0.0 here, and nan is nan
    gone = ("files", "quarantine", "repairs", "seconds")
    return {**{name: value for name, value in body.items() if name not in gone}, "tables": tables, "rows": rows}


def quoted(cell: str, always: bool) -> str:
    """Spell a cell as a careful writer would."""
    return '"' + cell.replace('"', '""') + '"' if always or any(sign in cell for sign in ',"\n\r') else cell


@st.composite
def messy(draw: st.DrawFn) -> tuple[bytes, list[ColumnType]]:
    """Draw a table whose cells are at the edges of their types, with a few bytes spoilt."""
    kinds = draw(st.lists(st.sampled_from(list(CELLS)), min_size=2, max_size=5))
    chance = random.Random(draw(st.integers(0, 2**32)))
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    lines = [",".join(f"{kind}_{number}" for number, kind in enumerate(kinds))]
    for row in range(draw(st.integers(30, 80))):
        # The first rows are plain: an odd one might be taken for a second row of the header.
        odd = chance.randrange(3 * len(kinds)) if row > 4 else -1
        cells = [chance.choice((*CELLS[kind], *WORDS)) if n == odd else PLAIN[kind] for n, kind in enumerate(kinds)]
        lines.append(",".join(quoted(cell, chance.random() < 0.1) for cell in cells))
    data = bytearray(newline.join(lines).encode() + newline.encode() * draw(st.integers(0, 1)))
    for spoilt in draw(st.lists(st.sampled_from(SPOILT), max_size=4)):
        place = chance.randrange(sum(map(len, lines[:6])), len(data))
        data[place : place + chance.randrange(2)] = spoilt
    return bytes(data), kinds


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=messy(), text=st.booleans(), cell=st.booleans(), declared=st.booleans())
def test_with_the_kernel_and_without_the_result_is_the_same(
    tmp_path: Path, table: tuple[bytes, list[ColumnType]], text: bool, cell: bool, declared: bool
) -> None:
    data, kinds = table
    path = tmp_path / "data.csv"
    path.write_bytes(data)
    source = Source(
        "data",
        columns=[Column(f"{kind}_{n}", kind, nullable=True) for n, kind in enumerate(kinds)],
        null=list(WORDS[1:3]),
    )
    fast, slow = both(path, text=text, policy="cell" if cell else "row", source=source if declared else None)
    assert told(fast) == told(slow)


def test_rows_are_the_same_around_values_over_several_lines_and_headers_that_come_again(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    body = "".join(
        f'{n},"line one\n{n},looks like a row,2024-01-01\nline three",2024-01-0{n % 9 + 1}\n' for n in range(50)
    )
    path.write_text("id,note,day\n" + body + "id,note,day\n" + body.replace("2024-01-03", "NA"))
    fast, slow = both(path)
    assert told(fast) == told(slow)
    assert fast.rows == 100 and fast.balance.skipped["repeated-header"] == 12


@pytest.mark.parametrize("value", ["1.234,5", "12%", "3 May 2024", "да"])
def test_a_reading_that_the_kernel_does_not_know_is_cast_from_its_text(tmp_path: Path, value: str) -> None:
    path = tmp_path / "data.csv"
    other = {"да": "нет"}.get(value, value)
    rows = [f'{n};"{value if n % 2 else other}";{n}.5' for n in range(60)]
    rows[50] = "50;NA;1.5"
    rows[51] = "51;what;1.5"
    path.write_text("id;odd;size\n" + "\n".join(rows) + "\n")
    fast, slow = both(path)
    assert told(fast) == told(slow)
    assert fast.rows + fast.quarantined == 60


@pytest.mark.parametrize("share", [2, 40])
def test_numbers_with_marks_are_the_same_whether_few_or_many_have_one(tmp_path: Path, share: int) -> None:
    path = tmp_path / "data.csv"
    rows = [f'{n},"{n},{n % 1000:03d}.5",$ 7' if n % share == 0 else f"{n},{n % 1000}.5,{n}" for n in range(1, 400)]
    path.write_text("id,price,due\n" + "\n".join([*rows, "400,NA,-5", "401,what,5"]) + "\n")
    fast, slow = both(path)
    assert told(fast) == told(slow)
    assert {column.type for column in fast.columns} <= {"int", "float"}


# Values near the end of the data are read another way than those with more behind them.
BEHIND = st.sampled_from([b"", b"\nxx", b"\r\n" + b"x" * 40])


def first(cell: str, kind: str, behind: bytes, layout: bytes = b"") -> Any:
    """Read a cell and what stands behind its line; returns its value, or None where it is none of its kind."""
    specs = ((kind, False, layout, (), (), ()), ("s", False, b"", (), (), ()))
    out = _kernel.read(cell.encode() + b"\t" + behind.replace(b"x", b"1"), 9, -1, 10, 1 << 20, specs)
    return pl.Series(quick._Exported(out[2][0]))[0] if out[1][0] == 0 else None


@given(
    number=st.one_of(
        st.floats(allow_nan=False, allow_infinity=False), st.decimals(-(10**9), 10**9, places=4).map(float)
    ),
    form=st.sampled_from(["r", ".17g", ".2f", ".6f", ".7f", ".8f", ".3e", "f"]),
    behind=BEHIND,
)
@settings(max_examples=400, deadline=None)
def test_a_decimal_is_read_as_python_reads_it(number: float, form: str, behind: bytes) -> None:
    cell = repr(number) if form == "r" else format(number, form)
    read = first(cell, "f", behind)
    assert read is None or repr(read) == repr(float(cell))
    assert read is not None or len(cell) > 60 or "inf" in repr(float(cell))


@given(cell=st.from_regex(r"-?[0-9]{1,19}[,.:/e -]?", fullmatch=True), behind=BEHIND)
@settings(max_examples=400, deadline=None)
def test_a_whole_number_is_read_as_python_reads_it(cell: str, behind: bytes) -> None:
    digits = cell.removeprefix("-")
    plain = digits.isdigit() and len(digits) < 19 and (digits == "0" or not digits.startswith("0"))
    assert first(cell, "i", behind) == (int(cell) if plain else None)


@given(
    cell=st.one_of(
        st.datetimes(datetime(1000, 1, 1)).map(lambda moment: moment.isoformat(" ", "seconds")),
        st.from_regex(r"[0-9]{4}[-/0][0-9]{2}[-:][0-9]{2}[ T][0-9]{2}:[0-9]{2}[:;][0-9]{2}", fullmatch=True),
        st.from_regex(r"(19|20)[0-9]{2}-0[0-3]-[0-3][0-9] [0-3][0-9]:[0-6][0-9]:[0-6][0-9]", fullmatch=True),
    ),
    behind=BEHIND,
)
@settings(max_examples=400, deadline=None)
def test_the_most_common_time_is_read_as_python_reads_it(cell: str, behind: bytes) -> None:
    for kind, size, pattern in (("T", 19, "%Y-%m-%d %H:%M:%S"), ("D", 10, "%Y-%m-%d")):
        try:
            meant: datetime | None = datetime.strptime(cell[:size], pattern)
        except ValueError:
            meant = None
        if meant is not None and meant.year < 1000:
            meant = None
        read = first(cell[:size], kind, behind, quick.program(pattern))
        assert read == (meant.date() if meant is not None and kind == "D" else meant)


@given(
    cell=st.text(st.characters(exclude_characters="\t\0\r\n", exclude_categories=["Cs"]), min_size=1, max_size=20),
    behind=BEHIND,
)
@settings(max_examples=300, deadline=None)
def test_a_text_is_read_as_it_stands(cell: str, behind: bytes) -> None:
    assert first(cell, "s", behind) == cell


@given(
    st.datetimes(), st.sampled_from(["%Y-%m-%d %H:%M:%S", "%d.%m.%Y %H:%M", "%Y%m%dT%H%M%SZ", "%Y-%m-%d %H:%M:%S%.f"])
)
@settings(max_examples=300, deadline=None)
def test_a_time_is_read_as_polars_reads_it(moment: Any, pattern: str) -> None:
    cell = moment.strftime(pattern.replace("%.f", ".%f")).zfill(4)
    spec = ("T", False, quick.program(pattern), (), (), ())
    out = _kernel.read(cell.encode(), 9, -1, 10, 1 << 20, (spec,))
    if out[1] == b"\0":
        assert (
            pl.Series(quick._Exported(out[2][0])).to_list() == parse(pl.Series([cell]), pattern, "timestamp").to_list()
        )


@given(data=st.binary(max_size=300), width=st.integers(1, 4), quote=st.sampled_from([-1, 34]))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_lines_with_a_state_and_rows_are_utf8(data: bytes, width: int, quote: int) -> None:
    specs = tuple(("s", False, b"", (b"",), (), ()) for _ in range(width))
    starts, states, columns, hits = _kernel.read(data, 44, quote, 10, 1 << 20, specs)
    assert len(starts) == 8 * len(states) and not hits
    assert len(states) == data.count(b"\n") + (bool(data) and not data.endswith(b"\n"))
    frame = pl.DataFrame([pl.Series(str(n), quick._Exported(pair)) for n, pair in enumerate(columns)])
    assert frame.height == states.count(0)
    for row, line in zip(frame.rows(), (n for n, state in enumerate(states) if state == 0), strict=True):
        cells = data.split(b"\n")[line].removesuffix(b"\r").decode().split(",")
        if quote < 0:
            assert [cell or "" for cell in row] == cells


def test_columns_that_are_no_columns_are_refused() -> None:
    with pytest.raises(TypeError):
        _kernel.read(b"a", 44, 34, 10, 10, (1,))
    with pytest.raises(TypeError):
        _kernel.read(b"a", 44, 34, 10, 10, (("s", False, b"", ("no bytes",), (), ()),))
    with pytest.raises(TypeError):
        _kernel.read("text", 44, 34, 10, 10, ())


def test_the_plan_of_a_format_has_year_month_and_day_and_nothing_unknown() -> None:
    assert quick.program("%d.%m.%Y") == rb"d\.m\.Y"
    assert [quick.program(one) for one in ("%Y-%m", "%d %b %Y", "%Y-%m-%d %z", "%Y-%m-%d %Y", "%y%m%d")] == [b""] * 5


def test_options_of_a_job_are_told_apart_by_name(tmp_path: Path) -> None:
    assert asdict(Job(paths=(), out=tmp_path))["compiled"] is True

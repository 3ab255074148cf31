"""Pages written by compiled code are read by others as the frame they came from, and their statistics are true."""

from __future__ import annotations

import math
import struct
from datetime import date, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenon.ingest import pages, parquet

_pages = pytest.importorskip("tenon.ingest._pages", reason="the pages' code was not compiled at installation")

TYPES: dict[str, Any] = {
    "int": pl.Int64,
    "float": pl.Float64,
    "text": pl.String,
    "bool": pl.Boolean,
    "date": pl.Date,
    "timestamp": pl.Datetime("us"),
}
EDGES: dict[str, list[Any]] = {
    "int": [0, -1, 1, 2**63 - 1, -(2**63), 1_000_000, 127, 128],
    "float": [0.0, -0.0, 1.5, math.nan, math.inf, -math.inf, 5e-324, 1e308, 0.1],
    "text": [
        "",
        "a",
        "twelve bytes",
        "thirteen byte",
        "Łódź",
        "Москва, ул. Ленина 5",
        "x" * 63,
        "y" * 64,
        "z" * 65,
        "\0",
        "a\0",
    ],
    "bool": [True, False],
    "date": [date(1, 1, 1), date(1970, 1, 1), date(2024, 2, 29), date(9999, 12, 31)],
    "timestamp": [datetime(1, 1, 1), datetime(2024, 2, 29, 1, 2, 3, 4), datetime(9999, 12, 31, 23, 59, 59, 999_999)],
}
ANY: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(),
    "text": st.text(max_size=90),
    "bool": st.booleans(),
    "date": st.dates(),
    "timestamp": st.datetimes(),
}


def same(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    """Whether two frames are the same to the sign of zero."""
    turned = pl.selectors.float().pow(-1)  # infinity on the side of the zero
    return one.schema == other.schema and one.equals(other) and one.select(turned).equals(other.select(turned))


def by_duckdb(path: Path) -> pl.DataFrame:
    """Read a file with DuckDB."""
    with duckdb.connect() as connection:
        found = connection.sql(f"select * from '{path}'")
        assert found is not None
        frame: pl.DataFrame = found.pl()
        return frame


def bounds(path: Path) -> list[tuple[int, int, Any, Any]]:
    """Return (rows, nulls, least, most) of every column of every row group, as bytes; None where it is not told."""
    out = []
    for group in parquet.footer(path)[0][parquet.ROW_GROUPS][1][1]:
        for chunk in group[parquet.GROUP_COLUMNS][1][1]:
            known = chunk[parquet.CHUNK_META][1][12][1]
            least, most = (known[n][1] if n in known else None for n in (6, 5))
            out.append((group[3][1], known[3][1], least, most))
    return out


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    """Draw a frame whose columns come again often, seldom or never, with nulls or without."""
    rows = draw(st.one_of(st.integers(0, 40), st.integers(120, 140), st.just(5_000)))
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    columns = []
    for number, kind in enumerate(draw(st.lists(st.sampled_from(list(TYPES)), min_size=1, max_size=4))):
        pool = draw(st.lists(st.one_of(st.sampled_from(EDGES[kind]), ANY[kind]), min_size=1, max_size=30))
        picked = chance.integers(0, len(pool), rows)
        if draw(st.booleans()):
            picked = np.sort(picked)
        nulls = chance.random(rows) < draw(st.sampled_from([0.0, 0.0, 0.02, 0.5, 1.0]))
        cells = pl.Series(f"{kind}_{number}", [*pool, None], dtype=TYPES[kind])
        columns.append(cells.gather(np.where(nulls, len(pool), picked)))
    return pl.DataFrame(columns)


@given(frame=frames(), cut=st.integers(0, 20))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_polars_and_duckdb_read_what_was_written(tmp_path: Path, frame: pl.DataFrame, cut: int) -> None:
    path = tmp_path / "x.parquet"
    frame = frame.slice(cut)  # arrays that do not begin at their beginning
    assert pages.write(frame, path)
    assert same(pl.read_parquet(path), frame)
    assert same(by_duckdb(path), frame)
    again = path.read_bytes()
    assert pages.write(pl.concat([frame[:7], frame[7:]], rechunk=False), path) and path.read_bytes() == again


@given(frame=frames())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_statistics_are_those_of_polars_writer(tmp_path: Path, frame: pl.DataFrame) -> None:
    path, peer = tmp_path / "x.parquet", tmp_path / "y.parquet"
    pages.write(frame, path)
    frame.write_parquet(peer)
    if not frame.height:
        return
    for column, ours, theirs in zip(frame.get_columns(), bounds(path), bounds(peer), strict=True):
        assert ours[:2] == (frame.height, column.null_count()) == theirs[:2]
        words = [one for one in column.drop_nulls().to_list() if one == one]
        if not words or (column.dtype == pl.String and any(len(f(map(str.encode, words))) > 64 for f in (min, max))):
            assert ours[2:] == (None, None)
        elif column.dtype == pl.String:
            assert ours[2:] == (min(map(str.encode, words)), max(map(str.encode, words)))
        elif column.dtype == pl.Float64:
            least, most = min(words), max(words)
            assert ours[2:] == (struct.pack("<d", least or -0.0), struct.pack("<d", most or 0.0))
        else:
            assert ours[2:] == theirs[2:]


SHAPES: dict[str, pl.Series] = {
    "constant": pl.Series([7] * 3_000),
    "steps": pl.Series(range(3_000)),
    "few": pl.Series([n * 10**12 for n in np.random.default_rng(1).integers(0, 300, 9_000).tolist()]),
    "wild": pl.Series(np.random.default_rng(2).integers(-(2**63), 2**63 - 1, 9_000)),
    "decimals": pl.Series(np.round(np.random.default_rng(3).lognormal(3, 1, 30_000), 2)),
    "reals": pl.Series(np.random.default_rng(4).normal(size=9_000)),
    "runs": pl.Series([f"word {n // 700}" for n in range(9_000)]),
    "codes": pl.Series([f"{n:09d} and more" for n in range(9_000)]),
    "long": pl.Series(["x" * 100_000 + str(n) for n in range(30)]),
    "all null": pl.Series([None] * 100, dtype=pl.String),
    "days": pl.Series(np.random.default_rng(5).integers(0, 40_000, 9_000).astype(np.int32)).cast(pl.Date),
    "gaps": pl.Series([n if n % 100 else None for n in range(9_000)]),
    "truths": pl.Series([[True, False, None][n] for n in np.random.default_rng(6).integers(0, 3, 9_000).tolist()]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_way_to_write_is_read_by_others_and_is_no_larger(tmp_path: Path, shape: str) -> None:
    path, peer = tmp_path / "x.parquet", tmp_path / "y.parquet"
    frame = SHAPES[shape].alias("it").to_frame()
    assert pages.write(frame, path)
    assert same(pl.read_parquet(path), frame) and same(by_duckdb(path), frame)
    frame.write_parquet(peer, compression="zstd", compression_level=1)
    assert path.stat().st_size < 1.1 * peer.stat().st_size + 200


def test_row_groups_are_bounded_and_rows_can_be_found_by_their_statistics(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    frame = pl.DataFrame({"n": range(300_000), "t": ["word"] * 300_000})
    assert pages.write(frame, path)
    assert [row[0] for row in bounds(path)[::2]] == [131_072, 131_072, 37_856]
    found = pl.scan_parquet(path).filter(pl.col("n").is_between(250_000, 250_002)).collect()
    assert found["n"].to_list() == [250_000, 250_001, 250_002]
    with duckdb.connect() as connection:
        told = connection.execute(f"select count(*), min(t) from '{path}' where n >= 299_990").fetchall()
    assert told == [(10, "word")]


def test_files_of_both_writers_are_joined_when_their_schema_is_the_same(tmp_path: Path) -> None:
    frame = pl.DataFrame({"n": range(3_000), "t": [f"w{n % 7}" for n in range(3_000)]})
    for number in range(3):
        assert pages.write(frame[number * 1_000 : (number + 1) * 1_000], tmp_path / f"{number}")
    parquet.join([tmp_path / str(number) for number in range(3)], tmp_path / "all.parquet")
    assert pl.read_parquet(tmp_path / "all.parquet").equals(frame)
    assert by_duckdb(tmp_path / "all.parquet").equals(frame)


def test_what_the_code_does_not_know_is_left_to_polars(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for frame in (pl.DataFrame({"raw": [b"x"]}), pl.DataFrame({"n": [[1]]}), pl.DataFrame()):
        assert not pages.write(frame, path) and not path.exists()


def test_any_name_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    frame = pl.DataFrame({name: [1] for name in ("", "a\0b", "\0", "имя", "n" * 5_000)})
    assert pages.write(frame, path) and pl.read_parquet(path).equals(frame)


def test_columns_that_are_no_columns_are_refused() -> None:
    number = pl.Series([1, 2])
    with pytest.raises(ValueError, match="one array"):
        _pages.encode((b"a",), (pl.concat([number, number]).__arrow_c_stream__(None),), bytes, 6, 4)
    with pytest.raises(ValueError, match="one length"):
        both = (number.__arrow_c_stream__(None), pl.Series([1]).__arrow_c_stream__(None))
        _pages.encode((b"a", b"b"), both, bytes, 6, 4)
    with pytest.raises(TypeError, match="no column of format"):
        _pages.encode((b"a",), (pl.Series([b"x"]).__arrow_c_stream__(None),), bytes, 6, 4)
    with pytest.raises(ValueError, match="each column has a name"):
        _pages.encode((), (number.__arrow_c_stream__(None),), bytes, 6, 4)
    with pytest.raises(TypeError, match="is bytes"):
        _pages.encode((b"a",), (pl.Series([f"word {n}" for n in range(99)]).__arrow_c_stream__(None),), str, 6, 4)
    with pytest.raises(ValueError):
        _pages.encode((b"a",), (1,), bytes, 6, 4)

"""However an input is cut into ranges, and wherever they are read, the result is the same."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import cast

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tenon import engine
from tenon.config import EngineConfig
from tenon.errors import TenonError
from tenon.ingest import Job, ingest
from tenon.ingest.dialect import Dialect
from tenon.ingest.plan import Plan
from tenon.ingest.rows import first_fresh, row_end
from tenon.ingest.stream import View
from tenon.ingest.unit import border
from tenon.limits import IngestLimits

from .conftest import Done, read_back


def messy(rows: int, seed: int = 5) -> bytes:
    """Make a table with quoted newlines, stray and unclosed quotes, ragged rows and other delimiters."""
    rng = Random(seed)
    lines = ["id,day,size,note"]
    for n in range(rows):
        cells = [str(n), f"2024-01-{n % 28 + 1:02d}", f"{n * 0.25:.2f}", f'"note {n}, with a comma"']
        fault = rng.random()
        if fault < 0.05:
            cells[3] = f'"two\nlines of {n}"'
        elif fault < 0.08:
            cells[2] = '"' + cells[2]
        elif fault < 0.10:
            cells[3] = f'"never closed {n}'
        elif fault < 0.12:
            cells.insert(2, "")
        elif fault < 0.14:
            lines.append(";".join(cells))
            continue
        elif fault < 0.15:
            cells = cells[:2]
        lines.append(",".join(cells))
    return "\n".join(lines).encode()


def alike(one: Done, other: Done) -> None:
    assert one.result.balance == other.result.balance
    for name in ("frame", "quarantine", "repairs"):
        assert_frame_equal(getattr(one, name), getattr(other, name))
    assert one.result.columns == other.result.columns


@pytest.mark.parametrize("ranges", [2, 7, 97])
def test_one_range_and_many_give_the_same(tmp_path: Path, ranges: int) -> None:
    (tmp_path / "x.csv").write_bytes(messy(1_500))

    def act(count: int) -> Done:
        job = Job(paths=(tmp_path / "x.csv",), out=tmp_path / str(count), ranges=count)
        return read_back(ingest(job))

    whole = act(1)
    assert (
        whole.repairs.height > 20 and whole.quarantine.height > 5 and whole.frame["note"].str.contains("\n").sum() > 20
    )
    alike(whole, act(ranges))


def test_workers_of_the_engine_give_the_same_as_this_process(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(messy(800))
    here = read_back(ingest(Job(paths=(tmp_path / "x.csv",), out=tmp_path / "here")))
    with engine.open(EngineConfig(workers=2)) as workers:
        job = Job(paths=(tmp_path / "x.csv",), out=tmp_path / "there", ranges=5, engine=workers)
        alike(here, read_back(ingest(job)))


def test_what_has_no_middle_is_spooled_in_segments_and_gives_the_same(tmp_path: Path) -> None:
    import gzip

    data = messy(3_000)
    (tmp_path / "x.csv").write_bytes(data)
    (tmp_path / "y.csv").write_bytes(gzip.compress(data))
    limits = IngestLimits(row_bytes=4_096, chunk_bytes=10_000)
    plain = read_back(ingest(Job(paths=(tmp_path / "x.csv",), out=tmp_path / "a", name="t", limits=limits)))
    packed = read_back(ingest(Job(paths=(tmp_path / "y.csv",), out=tmp_path / "b", name="t", limits=limits)))
    assert_frame_equal(plain.frame, packed.frame)
    assert_frame_equal(plain.quarantine.drop("file"), packed.quarantine.drop("file"))
    assert plain.result.balance == packed.result.balance


PIECES = st.sampled_from(
    [
        b"a",
        b"12",
        b",",
        b",",
        b'"',
        b'"',
        b"\n",
        b"\n",
        b"\r\n",
        b" ",
        b'""',
        b";",
        b'","',
        b"2024-01-02",
        b"\x00",
        b"\xff",
        b"\\",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=60).map(b"".join), st.integers(0, 80))
def test_a_reader_from_the_middle_begins_at_a_row_of_the_reader_from_the_beginning(data: bytes, begin: int) -> None:
    dialect = Dialect()
    starts, place = {0}, 0
    while place < len(data):
        place, _ = row_end(data, place, dialect, 1 << 20)
        starts.add(place)
    assert first_fresh(data, min(begin, len(data)), dialect, 1 << 20) in starts | {len(data)}


@settings(max_examples=40, deadline=None)
@given(st.lists(PIECES, max_size=80).map(b"".join), st.integers(2, 30))
def test_generated_bytes_give_the_same_in_any_number_of_ranges(data: bytes, ranges: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        path.write_bytes(data)

        def act(count: int) -> Done | str:
            try:
                return read_back(ingest(Job(paths=(path,), out=Path(folder) / str(count), ranges=count)))
            except TenonError as error:
                return str(error)

        one, many = act(1), act(ranges)
        if isinstance(one, str) or isinstance(many, str):
            assert one == many
        else:
            alike(one, many)


# ── conservation ─────────────────────────────────────────────────────────────────────────────────────────────────────

TABLES = st.builds(
    lambda width, rows, delimiter, faults: _broken(width, rows, delimiter, faults),
    st.integers(1, 6),
    st.integers(0, 25),
    st.sampled_from([",", ";", "\t", "|"]),
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=4)), max_size=4),
)


def _broken(width: int, rows: int, delimiter: str, faults: list[tuple[int, bytes]]) -> bytes:
    lines = [delimiter.join(f"c{n}" for n in range(width))]
    lines += [
        delimiter.join(str(row * (n + 1)) if n % 2 else f"w{row % 3}" for n in range(width)) for row in range(rows)
    ]
    data = "\n".join(lines).encode()
    for place, piece in faults:
        place = min(place, len(data))
        data = data[:place] + piece + data[place + len(piece) // 2 :]
    return data


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(TABLES, st.lists(PIECES, max_size=80).map(b"".join), st.binary(max_size=60)),
    st.sampled_from(["row", "cell"]),
)
def test_every_byte_is_a_row_s_or_in_quarantine_or_skipped_by_name(data: bytes, policy: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        path.write_bytes(data)
        try:
            done = read_back(ingest(Job(paths=(path,), out=Path(folder) / "out", policy=policy)))  # type: ignore[arg-type]
        except TenonError as error:
            assert "account" not in str(error)
            return
        balance = done.result.balance
        assert balance.closes and done.frame.height == done.result.rows
        raws = done.quarantine["raw"].to_list() if done.quarantine.height else []
        assert sum(map(len, raws)) == balance.quarantine_bytes and len(raws) == done.result.quarantined
        if balance.bytes == len(data) and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
            for place, raw in zip(done.quarantine["offset"].to_list() if raws else [], raws, strict=True):
                assert data[place : place + len(raw)] == raw


def test_the_bytes_of_utf_16_are_counted_as_the_utf_8_they_become(tmp_path: Path) -> None:
    text = "id,name\n1,Ann\n2,Zoë\n"
    (tmp_path / "x.csv").write_bytes(text.encode("utf-16"))
    done = ingest(Job(paths=(tmp_path / "x.csv",), out=tmp_path / "out"))
    assert done.balance.bytes == len(text.encode()) and done.balance.closes
    assert pl.read_parquet(done.files[0]).rows() == [(1, "Ann"), (2, "Zoë")]


def test_a_border_is_found_in_what_a_row_may_reach_though_no_quote_ever_comes(tmp_path: Path) -> None:
    # Two columns of text have no look of a plain row, and no quote decides; whole files were read for each border.
    path = tmp_path / "x.csv"
    path.write_bytes(b"id,text\n" + b"".join(b"%d,%s\n" % (n, b"ab cd " * 20) for n in range(60_000)))
    limits = IngestLimits(row_bytes=1 << 16)
    job = Job(paths=(path,), out=tmp_path / "out", limits=limits)
    read: list[int] = []

    @dataclass(frozen=True)
    class Counted:
        view: View

        @property
        def size(self) -> int:
            return self.view.size

        def read(self, begin: int, end: int) -> bytes:
            read.append(end - begin)
            return self.view.read(begin, end)

    assert ingest(job).rows == 60_000
    plan = Plan.load(tmp_path / "out" / "x.plan.json")
    view = View(path=path, size=path.stat().st_size)
    place = border(cast(View, Counted(view)), plan.files[0], 100_000, limits.row_bytes)
    assert not plan.files[0].dialect.row and view.read(place - 1, place) == b"\n" and place - 100_000 < 200
    assert sum(read) < view.size // 4

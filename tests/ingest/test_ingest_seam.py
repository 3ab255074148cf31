"""Anything that holds a table comes in through one door, typed, and what holds none is told in words."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tenon.contract.column import Column, Source
from tenon.errors import InputError, MissingError, TenonError
from tenon.ingest import Job, ingest
from tenon.limits import IngestLimits

from .conftest import Read, read_back

CSV = b"id,name,when,price\n1,Ann,2024-01-05,1.50\n2,Bob,2024-02-06,NA\n3,Cyd,2024-12-31,20\n"
ROWS = [
    (1, "Ann", date(2024, 1, 5), 1.5),
    (2, "Bob", date(2024, 2, 6), None),
    (3, "Cyd", date(2024, 12, 31), 20.0),
]


def test_a_plain_file_becomes_typed_columns_and_every_byte_is_accounted_for(read: Read) -> None:
    done = read(CSV)
    assert done.rows == ROWS
    assert done.types == {"id": "int", "name": "text", "when": "date", "price": "float"}
    balance = done.result.balance
    assert balance.closes and balance.bytes == len(CSV) and balance.skipped == {"header": 19}
    assert balance.row_bytes == len(CSV) - 19 and done.result.quarantine is None


def test_timestamps_are_utc_without_a_zone_in_microseconds(read: Read) -> None:
    done = read("a,b,c\n2013-01-01T10:00:00Z,2013-01-01 10:00:00,2013-01-01T12:00:00+02:00\n" * 3)
    assert done.rows[0] == (datetime(2013, 1, 1, 10),) * 3
    assert set(done.frame.dtypes) == {pl.Datetime("us")}


def _packed(kind: str) -> bytes:
    if kind == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as pack:
            pack.writestr("data.csv", CSV)
        return buffer.getvalue()
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "zstd": lambda data: bytes(zstd().compress(data)),
    }
    return packers[kind](CSV)


def zstd() -> Any:
    """Return the zstd package; reading needs it, so its absence fails."""
    if sys.version_info >= (3, 14):
        from compression import zstd as found
    else:
        from backports import zstd as found
    return found


@pytest.mark.parametrize("kind", ["gzip", "bz2", "xz", "zip", "zstd"])
def test_compression_is_recognised_by_its_first_bytes(read: Read, kind: str) -> None:
    done = read(_packed(kind), name="no-ending")
    assert done.rows == ROWS and done.result.balance.bytes == len(CSV)


def test_compressed_parts_one_after_the_other_are_one_input(read: Read) -> None:
    assert read(gzip.compress(CSV[:30]) + gzip.compress(CSV[30:])).rows == ROWS


def test_compression_that_ends_early_gives_what_it_has_and_says_so(read: Read) -> None:
    lines = b"".join(b"%d,%d\n" % (n, n * 7919 % 10_007) for n in range(20_000))
    done = read(gzip.compress(b"a,b\n" + lines)[:-5_000])
    assert "ingest/truncated" in done.codes
    assert 10_000 < done.frame.height < 20_000 and done.frame["a"].to_list() == list(range(done.frame.height))


def test_a_zip_of_several_files_is_several_inputs(read: Read) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as pack:
        pack.writestr("a.csv", "id,x\n1,2\n")
        pack.writestr("b.csv", "id;y\n5;6\n")
    done = read(buffer.getvalue(), name="two.zip")
    assert done.rows == [(1, 2, None), (5, None, 6)] and "ingest/schema-change" in done.codes


def test_a_bomb_is_refused(read: Read) -> None:
    with pytest.raises(InputError, match=r"at most 10 times its size when decompressed, got more"):
        read(gzip.compress(b"a,b\n1,2\n" * 2_000_000), limits=IngestLimits(decompressed_ratio=10))


def test_json_lines_are_flattened_and_a_schema_that_changes_midway_costs_no_data(read: Read) -> None:
    lines = [json.dumps({"a": n, "b": {"c": "x", "d": [1, n]}}) for n in range(3_000)]
    lines += [json.dumps({"a": n + 0.5, "e": n % 2 == 0}) for n in range(40_000)]
    done = read("\n".join(lines) + "\nno json\n", name="x.jsonl", limits=IngestLimits(sample_bytes=4_096))
    assert done.types == {"a": "float", "b.c": "text", "b.d": "text", "e": "bool"}
    assert done.frame.height == 43_000 and done.frame["e"].sum() == 20_000
    assert done.quarantine["raw"].to_list() == [b"no json\n"] and done.quarantine["line"].to_list() == [43_001]


def test_parquet_comes_in_through_the_same_door(tmp_path: Path) -> None:
    frame = pl.DataFrame({"n": [1, 2, None], "t": ["5", "x", "7"], "l": [[1], [], None]})
    frame.write_parquet(tmp_path / "in.parquet")
    source = Source("s", columns=[Column("t", "int")])
    done = read_back(ingest(Job(paths=(tmp_path / "in.parquet",), out=tmp_path / "out", name="x", source=source)))
    assert done.rows == [(1, 5, "[1]"), (None, 7, None)]
    assert json.loads(done.quarantine["raw"][0]) == {"n": 2, "t": "x", "l": []}
    assert done.result.balance.closes


def test_standard_input_is_read(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tenon.ingest import Job, ingest\n"
        f"print(ingest(Job(paths=(Path('-'),), out=Path({str(tmp_path)!r}))).rows)"
    )
    run = subprocess.run([sys.executable, "-c", code], input=CSV, capture_output=True, check=True)
    assert run.stdout == b"3\n" and pl.read_parquet(tmp_path / "stdin.parquet").rows() == ROWS


def test_files_folders_and_patterns_are_found_in_order(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for number, place in enumerate(["in/b.csv", "in/a.csv", "in/deep/c.csv"]):
        (tmp_path / place).write_text(f"id\n{number}\n")
    (tmp_path / "in" / ".hidden").write_text("id\n9\n")

    def ids(path: str) -> list[int]:
        done = read_back(ingest(Job(paths=(tmp_path / path,), out=tmp_path / "out", name="x")))
        return [row[0] for row in done.rows]

    assert ids("in") == [1, 0, 2] and ids("in/*.csv") == [1, 0] and ids("in/b.csv") == [0]


def test_files_of_one_source_are_brought_together_by_column_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,day\n1,31/12/2023\n")
    (tmp_path / "b.csv").write_text("day;id;more\n2024-01-31;2.5;x\n")
    done = read_back(ingest(Job(paths=(tmp_path,), out=tmp_path / "out", name="x")))
    assert done.rows == [(1.0, date(2023, 12, 31), None), (2.5, date(2024, 1, 31), "x")]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "expected rows of text, got a PNG picture"),
        (bytes(range(256)) * 8, "expected rows of text, got binary data"),
        (b"%PDF-1.7 and more", "expected rows of text, got a PDF document"),
        (b"PK\x03\x04 broken", "expected a zip file, got File is not a zip file"),
        (b"PAR1 broken", "expected a Parquet file, got"),
    ],
)
def test_what_is_no_table_is_told_by_name_and_nothing_is_left_behind(
    read: Read, tmp_path: Path, data: bytes, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        read(data)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_an_empty_file_is_a_finding_and_gives_no_file(read: Read) -> None:
    done = read(b"")
    assert done.result.files == () and done.codes == {"ingest/empty"} and done.result.balance.closes


def test_a_file_with_only_a_header_gives_its_columns_and_a_finding(read: Read) -> None:
    done = read(b"id,name,when\n")
    assert done.frame.columns == ["id", "name", "when"] and done.frame.height == 0 and "ingest/empty" in done.codes


def test_an_empty_file_that_should_have_columns_is_an_error(read: Read) -> None:
    with pytest.raises(InputError, match="expected column 'id', got an empty file"):
        read(b"", source=Source("s", columns=[Column("id", "int")]))


def test_a_folder_without_files_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="expected files to read, got none"):
        ingest(Job(paths=(tmp_path,), out=tmp_path / "out"))
    with pytest.raises(MissingError, match=r"got nothing there - at .*nope\.csv"):
        ingest(Job(paths=(tmp_path / "nope.csv",), out=tmp_path / "out"))


def test_a_missing_declared_column_names_the_nearest(read: Read) -> None:
    with pytest.raises(InputError, match=r"expected column 'naem', got columns id, name.*did you mean 'name'\?"):
        read(CSV, source=Source("s", columns=[Column("naem")]))


def test_declared_types_and_null_words_win_over_what_was_found(read: Read) -> None:
    source = Source("s", columns=[Column("id", "text"), Column("when", "timestamp")], null=["Bob"], strict=True)
    assert read(CSV, source=source).rows == [
        ("1", datetime(2024, 1, 5)),
        ("2", datetime(2024, 2, 6)),
        ("3", datetime(2024, 12, 31)),
    ]


def test_a_declared_number_can_mean_missing(read: Read) -> None:
    source = Source("s", columns=[Column("v", "int")], null=["-999"])
    assert read("k,v\na,1\nb,-999\nc,3\n", source=source).rows == [("a", 1), ("b", None), ("c", 3)]


def test_columns_derived_by_the_contract_are_no_business_of_ingest(read: Read) -> None:
    source = Source("s", columns=[Column("id", "int"), Column("twice", "int", derive="id * 2")])
    assert "twice" not in read(CSV, source=source).frame.columns


def test_text_keeps_every_value_as_it_is_spelt(read: Read) -> None:
    done = read("a,b,c\n007,1.50,NA\n1,2.0,\n", text=True)
    assert done.rows == [("007", "1.50", "NA"), ("1", "2.0", None)]


def test_the_summary_is_written_beside_the_result_and_says_how_it_was_read(read: Read) -> None:
    done = read("x;y\n1;2\n3;4\n")
    body = json.loads(done.result.summary.read_text())
    assert body["rows"] == 2 and body["balance"]["closes"] and "seconds" not in body
    (dialect,) = body["dialects"].values()
    assert dialect["delimiter"] == ";" and body["columns"][0]["examples"] == ["1", "3"]


@pytest.mark.parametrize("name", ["flights", "weather"])
def test_progress_is_reported_up_to_the_end(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.csv").write_bytes(b"a,b\n" + b"1,2\n" * 100_000)
    told: list[tuple[float, float, str]] = []
    job = Job(paths=(tmp_path / f"{name}.csv",), out=tmp_path / "out", limits=IngestLimits(chunk_bytes=50_000))
    ingest(job, progress=lambda done, total, said: told.append((done, total, said)))
    assert len(told) == 8 and told[-1][0] == told[-1][1] and told[0][2] == f"reading {name}.csv"
    assert [one[0] for one in told] == sorted(one[0] for one in told)


def test_an_unreadable_place_to_write_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(CSV)
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(TenonError, match="expected to write the result, got"):
        ingest(Job(paths=(tmp_path / "data.csv",), out=tmp_path / "out"))

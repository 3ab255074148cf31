"""Hostile inputs of bench/hostile.py keep every promise that bench/fuzz.py holds; so do some that once did not."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.errors import InputError
from tenon.ingest import Job, ingest
from tenon.limits import IngestLimits

from ..script import loaded
from .conftest import Read


@pytest.fixture(scope="module")
def hostile() -> ModuleType:
    """The generator of inputs."""
    return loaded("bench/hostile.py")


@pytest.fixture(scope="module")
def fuzz(hostile: ModuleType) -> ModuleType:
    """The promises held against them."""
    return loaded("bench/fuzz.py")


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_generated_inputs_keep_every_promise(fuzz: ModuleType, tmp_path: Path, first: int) -> None:
    told = fuzz.block(20261121, first, 50, tmp_path / "x", tmp_path / "mark")
    assert [(fault, case.born) for fault, case in told.faults] == [] and told.count == 50


def test_the_same_seed_gives_the_same_inputs(hostile: ModuleType) -> None:
    assert [hostile.make(7, n) for n in range(50)] == [hostile.make(7, n) for n in range(50)]


# Inputs that broke a promise once, as small as they still did: bytes, suffix, ranges, longest row.
KEPT: dict[str, tuple[bytes, str, int, int]] = {
    "an empty record": (b"{}", ".jsonl", 5, 64),
    "an open quote among broken rows, read again": (b',"\n:,:4,:7\n,,5\n3,\n4,', ".csv", 3, 4096),
    "a row longer than a row may be, in order": (b"a,b\n" + b"1,2\n" * 9 + b"x" * 300 + b",2\n3,4\n", ".csv", 9, 64),
    "a line without an end": (b"a,b\n1,2\n" + b"z" * 2_000, ".csv", 23, 256),
    "a long row over two lines": (
        b'</b> "false\nl2 -" 2024-05-13T12:00:14 2024-03-09T22:00:45 4/4/202"a',
        ".csv",
        5,
        64,
    ),
    "spaces after forty delimiters, and no row": (
        (b"a" + b", 1" * 40 + b"\n") * 4 + b"x" + b", " * 40 + b"y\n" + b", ".join([b"1"] * 41) + b"z",
        ".csv",
        5,
        4096,
    ),
    "a delimiter that is there once a line is UTF-8": (b'\xa7\n"0"\xc2\xa7"\xaf"', ".csv", 2, 256),
    "half a character, and the compression ends": (
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xfb\xff\x8f\x81",
        ".csv.gzip",
        2,
        4096,
    ),
    "a quote that delimits other rows": (b"\n,\n\n,|\na,,|,a,,|,|\n,\na,|\n||\naa\n|a,\n", ".csv", 2, 64),
    "a cell of sixty commas": (b"a;b\n" + b'1;"x' + b", " * 60 + b'|"\n' + b"2;y\n" * 5, ".csv", 2, 4096),
    "a giant line with lone carriage returns": (
        b"\r" + b"a|b|c\n1|2|3\r4|5|6\n\r" * 3 + b"z\r" + b"y" * 900 + b"\n1|2|3\n",
        ".csv",
        9,
        64,
    ),
    # With more than fifty misfits in one piece ingest asks for a vote, which must come out as it does without.
    "many misfits that a kinder look reads": (
        b"k | d | n\n"
        + b"".join(b"w%d | 2024-01-02 | %d.%d\n" % (n % 7, n, n % 10) for n in range(60))
        + b"x | y | \\7\n",
        ".csv",
        3,
        256,
    ),
    "a piece of a long row that looks like names": (
        b'""   ,2024-01-02 ,\x85"",\x85""2024-01-022024-01-02\x85""\x85"" ""2024-01-02,2024-'
        b'01-022024-01-02 "",\x85  ,\x85 ,"",2024-01-02""2024-01-02"""",\x85"" "" "", 202'
        b'4-0-01-02,"022024-01-02\x85\x85\x85,\x85\x85"" 2024-01-02,20241-02 , ,,,20',
        ".csv",
        3,
        64,
    ),
    "a damaged footer of Parquet": (
        b"PAR1\x15\x02\x19\xbcH\x04root\x15\x0c\x00PAR1" * 3 + b"\x10\x00\x00\x00PAR1",
        ".parquet",
        2,
        64,
    ),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("policy", ["row", "cell"])
def test_an_input_that_broke_a_promise_once_keeps_it(
    fuzz: ModuleType, hostile: ModuleType, tmp_path: Path, name: str, policy: str
) -> None:
    data, suffix, ranges, row_bytes = KEPT[name]
    for count in (ranges, ranges + 1):
        fault, _ = fuzz.judge(hostile.Case(data, suffix, count, row_bytes, policy), tmp_path / "x")
        assert fault == ""


CELLS = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=3, max_size=12), st.sampled_from([",", ";", "\t"]))
def test_a_table_of_any_text_keeps_every_promise(fuzz_: Any, rows: list[list[str]], delimiter: str) -> None:
    lines = ["id" + delimiter + "text" + delimiter + "more"]
    lines += [delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    fuzz, hostile = fuzz_
    with tempfile.TemporaryDirectory() as folder:
        fault, _ = fuzz.judge(hostile.Case("\n".join(lines).encode(), ".csv", 3, 4096), Path(folder) / "x")
    assert fault == ""


@pytest.fixture(scope="module")
def fuzz_(fuzz: ModuleType, hostile: ModuleType) -> tuple[ModuleType, ModuleType]:
    """Both modules."""
    return fuzz, hostile


def test_a_line_without_an_end_in_compressed_input_waits_in_pieces(tmp_path: Path) -> None:
    size = 40 << 20
    with gzip.open(tmp_path / "x.csv.gz", "wb", 1) as out:
        out.write(b"a,b\n1,2\n")
        for _ in range(size >> 20):
            out.write(b"z" * (1 << 20))
        out.write(b"\n3,4\n")
    limits = IngestLimits(chunk_bytes=1 << 20, row_bytes=1 << 18)
    done = ingest(Job(paths=(tmp_path / "x.csv.gz",), out=tmp_path / "out", limits=limits))
    assert done.balance.closes and done.balance.quarantine_bytes == size + 1 and done.rows == 2
    assert done.quarantine and pl.scan_parquet(done.quarantine).select(pl.len()).collect().item() == done.quarantined


def test_the_memory_allowed_decides_how_much_is_in_work_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"a,b\n" + b"1,2\n" * 100_000)
    seen: list[float] = []
    limits = IngestLimits(memory_bytes=60 << 16)
    done = ingest(Job(paths=(path,), out=tmp_path / "out", limits=limits), lambda at, total, said: seen.append(at))
    assert len(seen) == -(-path.stat().st_size // (1 << 16)) and done.rows == 100_000


@pytest.mark.parametrize(
    "again", [b',"a', b'"a,', b'1;"x ', b'"\n', b'a,"\r', b", ", b'""', b'\\",', b"x", b"1", b"jan"]
)
@pytest.mark.parametrize("head", [b"a,b\n1,2\n1,3\n", b""])
def test_fifty_thousand_bytes_of_one_sign_take_no_longer_than_others(
    fuzz: ModuleType, read: Read, again: bytes, head: bytes
) -> None:
    try:
        with fuzz.bounded(fuzz.BOUND_S):
            done = read(head + again * (50_000 // len(again)))
    except InputError as error:  # more columns than a table may have
        assert "columns" in str(error)
    else:
        assert done.result.balance.closes

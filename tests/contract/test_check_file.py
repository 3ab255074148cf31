"""Checking files in batches: the same verdict as for a frame, flat memory, whole results or none, errors in words."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tenon.contract import Column, Contract, Rule, check, check_file, repeats
from tenon.errors import InputError, MissingError

CONTRACT = Contract(
    name="big",
    columns=(
        Column("id", "int"),
        Column("x", "float", between=(-3, 3), nullable=True),
        Column("s", "text", one_of=("a", "b"), unique=False),
        Column("u", "text", unique=True),
        Column("t", "timestamp"),
    ),
    key=("id",),
    time="t",
    rules=(Rule(sql="x IS NULL OR x < 2.9"),),
)


def table(rows: int = 5_000) -> pl.DataFrame:
    rng = np.random.default_rng(7)
    return pl.DataFrame(
        {
            "id": rng.integers(0, rows * 20, rows),
            "x": rng.normal(size=rows),
            "s": rng.choice(["a", "b", "c"], rows, p=[0.5, 0.49, 0.01]),
            "u": [f"u{i}" for i in rng.integers(0, rows * 50, rows)],
            "t": [dt.datetime(2013, 1, 1, hour) for hour in rng.integers(0, 24, rows)],
        }
    ).with_columns(x=pl.when(pl.col("x") > -2).then("x"))


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv"])
@pytest.mark.parametrize("batch_rows", [700, 100_000])
def test_a_file_is_judged_as_its_frame_is(tmp_path: Path, kind: str, batch_rows: int) -> None:
    frame, file = table(), tmp_path / f"big.{kind}"
    if kind == "parquet":
        frame.write_parquet(file)
    else:
        frame.write_csv(file, separator="\t" if kind == "tsv" else ",", datetime_format="%Y-%m-%dT%H:%M:%S")
    verdict, found = check(frame, CONTRACT), check_file(file, CONTRACT, tmp_path / "out", batch_rows=batch_rows)
    assert verdict.bad.height > 100
    assert found.good is not None
    assert pl.read_parquet(found.good).equals(verdict.good)
    assert found.bad is not None
    bad = pl.read_parquet(found.bad)
    assert bad["_rules"].to_list() == verdict.bad["_rules"].to_list()
    assert bad["id"].cast(pl.Int64).to_list() == verdict.bad["id"].to_list()
    assert (found.rows, found.bad_rows) == (frame.height, verdict.bad.height)
    for rule, count in verdict.counts.items():
        assert (found.counts[rule].broken, found.counts[rule].unknown) == (count.broken, count.unknown), rule
    assert found.passed == verdict.passed
    assert found.to_junit().count("<testcase") == len(found.counts)
    assert found.to_dict()["bad"] == verdict.bad.height
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["big.bad.parquet", "big.good.parquet"]


def test_a_clean_or_empty_file_leaves_no_bad_file(tmp_path: Path) -> None:
    clean = Contract(name="big", columns=(Column("id", "int"),))
    table(10).write_parquet(tmp_path / "big.parquet")
    found = check_file(tmp_path / "big.parquet", clean, tmp_path / "out")
    assert found.bad is None
    assert not (tmp_path / "out" / "big.bad.parquet").exists()
    table(10).clear().write_parquet(tmp_path / "big.parquet")
    empty = check_file(tmp_path / "big.parquet", CONTRACT, tmp_path / "out")
    assert (empty.rows, empty.bad, empty.passed) == (0, None, True)
    assert empty.good is not None
    assert pl.read_parquet(empty.good).schema == table(10).schema


def test_several_files_are_checked_as_one_and_nothing_is_written_that_nobody_asked_for(tmp_path: Path) -> None:
    frame = table()
    frame.head(2_000).write_parquet(tmp_path / "a.parquet")
    frame.tail(3_000).write_parquet(tmp_path / "b.parquet")
    found = check_file([tmp_path / "a.parquet", tmp_path / "b.parquet"], CONTRACT, batch_rows=700)
    verdict = check(frame, CONTRACT)
    assert (found.rows, found.bad_rows, found.good, found.bad) == (5_000, verdict.bad.height, None, None)
    assert {rule: count.broken for rule, count in found.counts.items()} == {
        rule: count.broken for rule, count in verdict.counts.items()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize("unit", [1, 1_000_003])
def test_what_repeats_is_found_across_any_distance(tmp_path: Path, unit: int) -> None:
    rows, size = 2_500_000, 300_000
    keys = np.random.default_rng(3).permutation(rows) * unit
    keys[2_400_000], keys[1_100_000] = keys[7], keys[1_099_999]
    frame = pl.DataFrame({"k": keys, "constant": "x"})

    def batches() -> Iterator[pl.DataFrame]:
        yield from frame.iter_slices(size)

    folder = repeats.in_file(batches, ("constant", "k"), tmp_path)
    assert folder is not None
    told = pl.concat([repeats.rows_at(folder, at, min(size, rows - at)) for at in range(0, rows, size)])
    assert told.arg_true().to_list() == [7, 1_099_999, 1_100_000, 2_400_000]
    whole = repeats.in_frame(frame, ("constant", "k"))
    assert whole is not None and whole.equals(told)
    assert repeats.in_file(lambda: iter([frame.sort("k").unique("k", maintain_order=True)]), ("k",), tmp_path) is None
    assert repeats.in_frame(frame.unique("k", maintain_order=True), ("k", "constant")) is None


def test_progress_is_told_in_rows(tmp_path: Path) -> None:
    table().write_parquet(tmp_path / "big.parquet")
    told: list[tuple[float, float]] = []
    check_file(
        tmp_path / "big.parquet",
        CONTRACT,
        tmp_path / "out",
        batch_rows=1000,
        progress=lambda done, total, said: told.append((done, total)),
    )
    assert max(told) == (5000.0, 5000.0)
    assert told == sorted(told)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "expected clean CSV"),
        ("a.csv", b"id,x\n1\n2,3,4\n", "tenon ingest a.csv reads what is messy"),
        ("a.parquet", b"PAR1 nonsense", "expected Parquet"),
        ("a.xlsx", b"", "a .parquet, .csv or .tsv file"),
    ],
)
def test_a_file_that_cannot_be_read_is_said_so(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError) as refused:
        check_file(file, CONTRACT, tmp_path / "out")
    assert said in str(refused.value)
    assert str(file) in str(refused.value)
    assert not list(tmp_path.glob("out/*"))


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="expected a file, got nothing"):
        check_file(tmp_path / "no.parquet", CONTRACT, tmp_path)


def test_a_failed_check_leaves_the_earlier_result(tmp_path: Path) -> None:
    table().write_parquet(tmp_path / "big.parquet")
    found = check_file(tmp_path / "big.parquet", CONTRACT, tmp_path / "out")
    assert found.good is not None
    before = found.good.read_bytes()
    data = (tmp_path / "big.parquet").read_bytes()
    (tmp_path / "big.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError):
        check_file(tmp_path / "big.parquet", CONTRACT, tmp_path / "out")
    assert found.good.read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["big.bad.parquet", "big.good.parquet"]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tenon.contract import Column, Contract, check_file
contract = Contract(name="m", columns=(Column("id", "int"), Column("x", "float", between=(-3, 3))), key=("id",))
check_file(Path(sys.argv[2]), contract, Path(sys.argv[3]), batch_rows=50_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    used = []
    for rows in (100_000, 2_000_000):
        file = tmp_path / f"m{rows}.parquet"
        pl.DataFrame({"id": range(rows), "x": np.random.default_rng(0).normal(size=rows)}).write_parquet(
            file, row_group_size=50_000
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(Path(__file__).parents[2] / "src"), str(file), str(tmp_path / "out")],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "POLARS_MAX_THREADS": "2"},
        )
        used.append(int(done.stdout))
    assert used[1] - used[0] < 150, used


def test_a_killed_check_leaves_before_or_after_and_the_next_goes_on(tmp_path: Path) -> None:
    table(10_000).write_parquet(tmp_path / "big.parquet")
    script = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_check_file import CONTRACT
from tenon.contract import check_file
check_file(Path(sys.argv[3]), CONTRACT, Path(sys.argv[4]), batch_rows=500, progress=lambda *_: print(flush=True))
"""
    places = [str(Path(__file__).parents[2] / "src"), str(Path(__file__).parent)]
    arguments = [sys.executable, "-c", script, *places, str(tmp_path / "big.parquet"), str(tmp_path / "out")]
    for lines in (1, 4, 22):
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as running:
            assert running.stdout is not None
            for _ in range(lines):
                running.stdout.readline()
            running.kill()
        shown = sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith("."))
        assert shown in ([], ["big.bad.parquet"], ["big.bad.parquet", "big.good.parquet"])
    check_file(tmp_path / "big.parquet", CONTRACT, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["big.bad.parquet", "big.good.parquet"]


def test_a_full_disk_is_said_and_leaves_nothing_half(tmp_path: Path) -> None:
    table(60_000).write_parquet(tmp_path / "big.parquet")
    script = """
import resource, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_check_file import CONTRACT
from tenon.contract import check_file
from tenon.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    check_file(Path(sys.argv[3]), CONTRACT, Path(sys.argv[4]), batch_rows=20_000)
except StoreError as error:
    print(error)
"""
    places = [str(Path(__file__).parents[2] / "src"), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", script, *places, str(tmp_path / "big.parquet"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "expected room and leave to write in" in done.stdout, done.stderr[-500:]
    assert "free some space" in done.stdout
    assert list((tmp_path / "out").iterdir()) == []

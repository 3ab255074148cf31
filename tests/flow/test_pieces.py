"""Rows in pieces: the same cuts however they come, what did not change kept once, lazy, checked, whole or not."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenon.errors import CorruptError, MissingError, StoreError, UsageError
from tenon.flow import piece
from tenon.store import Store


def rows_of(count: int, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "id": np.arange(count),
            "amount": np.round(rng.normal(size=count) * 100, 2),
            "city": rng.choice(["Paris", "London", "Łódź", ""], count),
            "at": np.datetime64("2025-01-01", "us") + rng.integers(0, 10**13, count).astype("timedelta64[us]"),
        }
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "project") as opened:
        yield opened


def size(store: Store) -> int:
    return sum(kept.size for kept in store.blobs.kept())


def heights(pieces: Iterator[pl.DataFrame]) -> list[int]:
    return [one.height for one in pieces]


def damaged(store: Store, digest: str) -> None:
    file = store.blobs.path(digest)
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(body)


# ── where it is cut ──────────────────────────────────────────────────────────────────────────────────────────────────

VALUES = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=60).map(
        lambda v: pl.Series("x", v, pl.Int64)
    ),
    st.lists(st.one_of(st.none(), st.floats()), max_size=60).map(lambda v: pl.Series("x", v, pl.Float64)),
    st.lists(st.one_of(st.none(), st.text()), max_size=60).map(lambda v: pl.Series("x", v, pl.String)),
    st.lists(st.one_of(st.none(), st.booleans()), max_size=60).map(lambda v: pl.Series("x", v, pl.Boolean)),
    st.lists(st.one_of(st.none(), st.dates()), max_size=60).map(lambda v: pl.Series("x", v, pl.Date)),
    st.lists(st.one_of(st.none(), st.lists(st.integers(0, 9))), max_size=60).map(
        lambda v: pl.Series("x", v, pl.List(pl.Int64))
    ),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(series=VALUES)
def test_any_column_comes_back_as_it_was(store: Store, series: pl.Series) -> None:
    rows = series.to_frame()
    record = piece.keep(store, [rows])
    assert piece.frame(store, record).equals(rows)
    assert piece.scan(store, record).collect().equals(rows)
    assert sum(count for count, _ in record["pieces"]) == rows.height


@settings(max_examples=12, deadline=None)
@given(steps=st.lists(st.integers(1, 9_000), min_size=1, max_size=6), seed=st.integers(0, 3))
def test_how_rows_come_in_batches_does_not_move_a_cut(steps: list[int], seed: int) -> None:
    rows = rows_of(30_000, seed)
    batches: list[pl.DataFrame] = []
    at = 0
    while at < rows.height:
        step = steps[len(batches) % len(steps)]
        batches.append(rows[at : at + step])
        at += step
    whole = list(piece.cut([rows]))
    assert pl.concat(whole).equals(rows)
    assert heights(piece.cut(batches)) == [one.height for one in whole]


def test_pieces_are_neither_tiny_nor_huge_and_about_as_large_as_said() -> None:
    found = heights(piece.cut([rows_of(300_000)]))
    assert min(found[:-1]) >= piece.ROWS // 2 and max(found) <= piece.ROWS * 4
    assert piece.ROWS * 0.8 < np.mean(found) < piece.ROWS * 1.25
    assert [piece.average(row) // piece.ROWS for row in (0, 8 << 20, (24 << 20) - 1, 24 << 20, 1 << 60)] == [
        1, 2, 2, 4, 256,
    ]  # fmt: skip


def test_rows_that_say_nothing_are_still_cut() -> None:
    same = pl.DataFrame({"x": [1] * 100_000})
    assert len(heights(piece.cut([same]))) > 5
    flags = pl.DataFrame({"x": np.random.default_rng(1).random(100_000) < 0.1})
    assert len(heights(piece.cut([flags]))) > 15
    assert heights(piece.cut([pl.DataFrame({"x": []})])) == [0]
    assert heights(piece.cut([])) == []


def test_cuts_are_the_same_in_every_release() -> None:
    rows = pl.DataFrame(
        {
            "i": [1, None, -7],
            "f": [0.5, -0.0, None],
            "t": ["", "a long text of some length", None],
            "b": [True, None, False],
            "d": [date(2025, 1, 1), None, date(1969, 7, 20)],
            "u": [datetime(2025, 1, 1, 12), None, datetime(1, 1, 1)],
            "w": [timedelta(seconds=1), None, timedelta(0)],
        }
    )
    expected = ["6824230c7857bc19", "c44fa2ebaaea18d7", "b6c7be49ce0f5f64"]
    assert [f"{one:016x}" for one in piece.hashes(rows).tolist()] == expected


# ── what is kept once ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_percent_appended_to_a_million_rows_costs_about_a_percent(store: Store) -> None:
    rows = rows_of(1_000_000)
    piece.keep(store, [rows])
    before = size(store)
    record = piece.keep(store, [pl.concat([rows, rows_of(10_000, seed=9)])])
    assert size(store) - before < 0.025 * before
    assert sum(count for count, _ in record["pieces"]) == 1_010_000


@pytest.mark.parametrize("at", [0, 1, 77_777, 149_999])
def test_a_row_inserted_anywhere_moves_no_cut_but_its_neighbours(store: Store, at: int) -> None:
    rows = rows_of(150_000)
    before = set(piece.keep(store, [rows])["files"])
    after = piece.keep(store, [pl.concat([rows[:at], rows_of(1, seed=5), rows[at:]])])["files"]
    assert len(set(after) - before) <= 4 and len(before) > 25


def test_a_stretch_deleted_or_changed_leaves_the_rest_alone(store: Store) -> None:
    rows = rows_of(150_000)
    before = set(piece.keep(store, [rows])["files"])
    gone = piece.keep(store, [pl.concat([rows[:50_000], rows[52_000:]])])["files"]
    assert len(set(gone) - before) <= 4
    other = rows.with_columns(amount=pl.when(pl.col("id") == 60_000).then(pl.lit(-1.0)).otherwise("amount"))
    assert len(set(piece.keep(store, [other])["files"]) - before) <= 2


def test_the_same_rows_have_the_same_names_and_nothing_is_written_again(store: Store) -> None:
    rows = rows_of(40_000)
    first = piece.keep(store, [rows])
    times = {kept.digest: store.blobs.path(kept.digest).stat().st_ino for kept in store.blobs.kept()}
    assert piece.keep(store, (rows[at : at + 999] for at in range(0, rows.height, 999))) == first
    assert {digest: store.blobs.path(digest).stat().st_ino for digest in times} == times


# ── opened ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lazy_look_gives_what_a_whole_one_gives(store: Store) -> None:
    rows = rows_of(100_000)
    record = piece.keep(store, [rows])
    lazy = piece.scan(store, record)
    wanted = pl.col("city") == "Paris"
    assert lazy.filter(wanted).select("amount").collect().equals(rows.filter(wanted).select("amount"))
    assert lazy.head(20_000).collect().equals(rows.head(20_000))
    assert lazy.filter(wanted).head(7).collect().equals(rows.filter(wanted).head(7))
    assert lazy.head(7).filter(wanted).collect().equals(rows.head(7).filter(wanted))
    assert lazy.tail(5).collect().equals(rows.tail(5))
    assert lazy.select(pl.len()).collect().item() == rows.height
    assert lazy.head(0).collect().equals(rows.head(0))


def test_the_first_rows_are_read_without_the_others(store: Store) -> None:
    record = piece.keep(store, [rows_of(60_000)])
    for digest in record["files"][1:]:
        store.blobs.delete(digest)
    assert piece.scan(store, record).head(5).collect().height == 5


def test_a_damaged_or_lost_piece_is_named_with_its_rows_and_mended_by_keeping_it_again(store: Store) -> None:
    rows = rows_of(60_000)
    record = {**piece.keep(store, [rows]), "source": "shops", "id": "0123456789ab"}
    start = sum(count for count, _ in record["pieces"][:3])
    damaged(store, record["files"][3])
    said = f"it is piece 4 of {len(record['files'])} of shops 0123456789ab, rows {start + 1:,} to "
    with pytest.raises(CorruptError, match=said):
        piece.frame(store, record)
    with pytest.raises(CorruptError, match=said):
        piece.scan(store, record).select("id").collect()
    piece.keep(store, [rows])
    assert piece.frame(store, record).equals(rows)
    store.blobs.delete(record["files"][3])
    with pytest.raises(MissingError, match=said):
        piece.frame(store, record)


def test_a_dataset_of_one_file_as_earlier_releases_kept_it_is_read(store: Store) -> None:
    rows = rows_of(1_000)
    record = {"files": [store.blobs.put(piece.packed(rows))]}
    assert piece.frame(store, record).equals(rows) and piece.scan(store, record).collect().equals(rows)


# ── written out ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.jsonl"])
def test_all_rows_are_written_to_a_file_that_others_read(store: Store, tmp_path: Path, name: str) -> None:
    rows = rows_of(150_000)
    target = tmp_path / name
    assert piece.write(store, piece.keep(store, [rows]), target) == target.stat().st_size
    if name == "out.parquet":
        assert pl.read_parquet(target).equals(rows)
    elif name == "out.csv":
        found = pl.read_csv(target, try_parse_dates=True).with_columns(pl.col("city").fill_null(""))
        assert found.equals(rows)
    else:
        assert pl.read_ndjson(target).select("id", "amount", "city").equals(rows.select("id", "amount", "city"))


def test_what_cannot_be_written_whole_is_not_written(store: Store, tmp_path: Path) -> None:
    record = piece.keep(store, [rows_of(60_000)])
    damaged(store, record["files"][2])
    for name in ("out.parquet", "out.csv"):
        with pytest.raises(CorruptError, match="piece 3 of"):
            piece.write(store, record, tmp_path / name)
    with pytest.raises(UsageError, match=r"ending in .parquet, .csv or .jsonl, got 'out.xlsx'"):
        piece.write(store, record, tmp_path / "out.xlsx")
    with pytest.raises(StoreError, match="absent"):
        piece.write(store, record, tmp_path / "absent" / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.jsonl"])
def test_a_disk_that_is_full_is_told_and_leaves_no_half_file(store: Store, tmp_path: Path, name: str) -> None:
    record = piece.keep(store, [rows_of(60_000)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(StoreError, match="got a full disk"):
            piece.write(store, record, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


# ── killed, and two at once ──────────────────────────────────────────────────────────────────────────────────────────

KEEPER = """
import os, signal, sys
from pathlib import Path
import polars as pl
from tenon.flow import piece
from tenon.store import Store

rows = pl.read_parquet(sys.argv[2])
left = int(sys.argv[3])

def see(event, args):
    global left
    if event == "os.rename" and ".tenon" in str(args[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

with Store.open(Path(sys.argv[1])) as store:
    sys.addaudithook(see)
    made = piece.keep(store, [rows])
    store.put("dataset", "0123456789ab", {"source": "shops", **made})
"""


def keeper(folder: Path, rows: Path, die_at: int) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", KEEPER, str(folder), str(rows), str(die_at)], env=env)


def test_killed_while_pieces_are_kept_the_next_attempt_uses_what_is_there(tmp_path: Path) -> None:
    rows = rows_of(60_000)
    rows.write_parquet(tmp_path / "rows.parquet")
    folder = tmp_path / "project"
    for die_at in (1, 4, 6):
        assert keeper(folder, tmp_path / "rows.parquet", die_at).wait(60) == -signal.SIGKILL
        with Store.open(folder) as store:
            assert store.find("dataset") == []
            assert not [finding for finding in store.check() if finding.severity == "error"]
    assert keeper(folder, tmp_path / "rows.parquet", 0).wait(60) == 0
    with Store.open(folder) as store:
        (record,) = store.find("dataset")
        assert piece.frame(store, record).equals(rows)
        store.gc(grace_s=-1.0)
        assert set(store.blobs.digests()) == set(record["files"])


def test_two_that_keep_the_same_rows_at_once_keep_them_once(tmp_path: Path) -> None:
    rows = rows_of(60_000)
    rows.write_parquet(tmp_path / "rows.parquet")
    both = [keeper(tmp_path / "project", tmp_path / "rows.parquet", 0) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    with Store.open(tmp_path / "project") as store:
        (record,) = store.find("dataset")
        assert set(store.blobs.digests()) == set(record["files"])
        assert piece.frame(store, record).equals(rows)

"""`tenon data`, as a person or a script calls it: versions listed, compared, opened and tidied away."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import polars as pl
import pytest

from ..command import tenon

PROJECT = """
from tenon import Column, Feature, Gate, Label, Model, Project, Source

shops = Source("shops", "raw/shops.csv", key=["id"], time="day", known="day",
               columns=[Column("id", "int"), Column("day", "timestamp"), Column("amount", "float", between=(0, 1000)),
                        Column("name", "text", nullable=True)])
model = Model("big", of=shops, label=Label("amount > 50"), features=[Feature("id", "id")],
              split=("2025-01-10", "2025-01-20"), train="logistic", gate=Gate())
project = Project("shops", models=[model])
"""


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two versions of one source, and names that would repaint a terminal or run in a spreadsheet."""
    folder = tmp_path_factory.mktemp("data") / "shops"
    (folder / "raw").mkdir(parents=True)
    (folder / "project.py").write_text(PROJECT, "utf-8")
    lines = [f"{i},2025-01-{1 + i % 28:02}T00:00:00,{i % 97},{'=1+1' if i % 5 else '[red]'}" for i in range(3000)]
    lines[3] = lines[3].replace("=1+1", "\x9b31mred")
    more = [f"{i},2025-02-01T00:00:00,{i % 97 + 40},new" for i in range(3000, 3300)]
    for rows in (lines, lines + more):
        (folder / "raw" / "shops.csv").write_text("\n".join(["id,day,amount,name", *rows]) + "\n", "utf-8")
        done = tenon("run", folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_versions_are_listed_with_what_made_them(shops: Path) -> None:
    done = tenon("data", "list", "-p", shops)
    assert done.returncode == 0, done.stderr
    assert "shops@1" in done.stdout and "shops@2" in done.stdout
    assert "first version" in done.stdout and "changed: shops.csv" in done.stdout and "big/2" in done.stdout
    listed = json.loads(tenon("data", "list", "shops", "-p", shops, "--json").stdout)
    assert [one["rows"] for one in listed] == [3000, 3300]
    wrong = tenon("data", "list", "shps", "-p", shops)
    assert wrong.returncode == 1 and "did you mean 'shops'" in wrong.stderr


def test_a_difference_is_told_for_people_and_as_json(shops: Path) -> None:
    done = tenon("data", "diff", "shops@1", "shops", "-p", shops)
    assert done.returncode == 0, done.stderr
    assert "3,000 -> 3,300, +300 (+10.00%)" in done.stdout
    assert "new: 'new'" in done.stdout and "row groups that both have" in done.stdout
    assert "\x9b" not in done.stdout and "\x1b" not in done.stdout
    found = json.loads(tenon("data", "diff", "shops@previous", "shops@latest", "-p", shops, "--json").stdout)
    assert found["rows"] == [3000, 3300] and found["columns"][0]["change"] > 0.05
    same = tenon("data", "diff", "shops@1", "shops@1", "-p", shops)
    assert same.returncode == 0 and "the rows are the same" in same.stdout


def test_a_version_is_shown_harmlessly_and_written_as_it_is(shops: Path, tmp_path: Path) -> None:
    shown = tenon("data", "open", "shops@1", "-p", shops, "--head", "6")
    assert shown.returncode == 0, shown.stderr
    assert r"\x9b31mred" in shown.stdout and "\x9b" not in shown.stdout
    assert "3,000 rows" in shown.stdout and str(shops / ".tenon" / "blobs") in shown.stdout
    told = json.loads(tenon("data", "open", "shops@1", "-p", shops, "--json").stdout)
    assert len(told["head"]) == 10 and told["columns"] == ["id", "day", "amount", "name"]
    for name in ("out.parquet", "out.csv"):
        done = tenon("data", "open", "shops@1", "-p", shops, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    rows = pl.read_parquet(tmp_path / "out.parquet")
    assert rows.height == 3000 and rows["name"][3] == "\x9b31mred"
    assert pl.read_csv(tmp_path / "out.csv")["name"].to_list() == rows["name"].to_list()
    again = tenon("data", "open", "shops@1", "-p", shops, "--out", tmp_path / "out.csv")
    assert again.returncode == 2 and "expected a new file, got one that exists" in again.stderr
    assert tenon("data", "open", "shops@2", "-p", shops, "--out", tmp_path / "out.csv", "--force").returncode == 0
    assert pl.read_csv(tmp_path / "out.csv").height == 3300


def test_gc_says_first_and_deletes_only_when_told(shops: Path) -> None:
    stray = shops / ".tenon" / "blobs" / "00" / ("00" * 32)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"x" * 5_000)
    old = time.time() - 2 * 86_400
    os.utime(stray, (old, old))
    said = tenon("data", "gc", "-p", shops)
    assert said.returncode == 0, said.stderr
    assert "would delete 1 blobs (5.0 kB)" in said.stdout and "add --yes" in said.stdout and stray.exists()
    done = json.loads(tenon("data", "gc", "-p", shops, "--yes", "--json").stdout)
    assert (done["done"], done["blobs"], done["bytes"], done["records"]) == (True, 1, 5_000, [])
    assert not stray.exists() and tenon("store", "check", shops).returncode == 0


def test_a_folder_without_a_store_is_told_in_words(tmp_path: Path) -> None:
    for args in (["list"], ["diff", "a", "b"], ["open", "a"], ["gc"], ["gc", "--yes"]):
        done = tenon("data", *args, "-p", tmp_path)
        assert done.returncode == 1 and "tenon run` first" in done.stderr, (args, done.stdout, done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_runs_name_the_versions_of_data_they_were_made_of(shops: Path) -> None:
    done = tenon("runs", "diff", "big@previous", "big@latest", shops)
    assert done.returncode == 0, done.stderr
    assert "shops: shops@1 -> shops@2  [+300 rows; see `tenon data diff shops@1 shops@2`]" in done.stdout
    assert "nothing that they were made of differs" not in done.stdout and "same rows" in done.stdout
    asked = tenon("runs", "sql", "SELECT version FROM data ORDER BY version", shops, "--json")
    assert json.loads(asked.stdout) == [{"version": "shops@1"}, {"version": "shops@2"}], asked.stderr

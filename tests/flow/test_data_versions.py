"""Versions of data: named, listed with their lineage, compared from sketches, tidied away when nothing needs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tenon import contract, sketch
from tenon.errors import CorruptError, MissingError, UsageError
from tenon.flow import Work, begin, data, history, piece, run
from tenon.flow.tidy import tidy
from tenon.store import Store


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with four versions: as made, the same rows from another file, rows appended, a stricter contract."""
    folder = tmp_path_factory.mktemp("versions") / "shop"
    begin.init(folder)
    raw, declared = folder / "raw" / "invoices.csv", folder / "project.py"
    kept(folder)
    text = raw.read_text("utf-8")
    raw.write_text(text.replace("\n", "\r\n"), "utf-8", newline="")
    kept(folder)
    lines = text.splitlines()
    more = [f"{9000 + i},C001,{50 + i},2025-12-01T00:00:00,," for i in range(600)]
    raw.write_text("\n".join([*lines, *more]) + "\n", "utf-8")
    kept(folder)
    declared.write_text(declared.read_text("utf-8").replace("between=(0, 100_000)", "between=(0, 2_000)"), "utf-8")
    kept(folder)
    return folder


def kept(folder: Path) -> None:
    work = Work.open(folder, {})
    try:
        data.datasets(work)
    finally:
        work.store.close()


@pytest.fixture
def store(origin: Path) -> Iterator[Store]:
    with Store.open(origin, read_only=True) as opened:
        yield opened


# ── which there are ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_rows_are_one_version_whatever_they_were_made_of(store: Store) -> None:
    found = history.versions(store, "invoices")
    assert [(one.name, one.rows, len(one.records)) for one in found] == [
        ("invoices@1", 6000, 2),
        ("invoices@2", 6600, 1),
        ("invoices@3", found[2].rows, 1),
    ]
    assert len({one.id for one in found}) == 3
    assert {record["number"] for record in found[0].records} == {1}
    assert {record["content"] for record in found[0].records} == {found[0].id}


def test_a_version_says_what_it_shares_and_what_made_it(store: Store) -> None:
    first, second, third = (one.to_dict() for one in history.versions(store, "invoices"))
    assert first["why"] == ["first version"] and first["shared_bytes"] == 0
    assert 0 < second["shared_bytes"] < second["bytes"] and 2_000 < second["shared_rows"] < 6000
    assert second["why"] == ["changed: invoices.csv"] and not second["contract_changed"]
    assert third["why"] == ["contract"] and third["contract_changed"] and third["quarantined"] > 0
    made = third["datasets"][0]["made"]
    assert made["tenon"] and made["config"] and made["declared"] and made["polars"] == pl.__version__
    (raw,) = second["datasets"][0]["raw"]
    assert raw["path"].endswith("invoices.csv") and raw["bytes"] > 0 and len(raw["content"]) == 40


def test_unchanged_rows_are_stored_once_between_ingest_and_dataset(store: Store) -> None:
    record = history.find(store, "invoices@1").record
    read = store.get("ingest", record["ingest"])
    assert read is not None and read["files"] == record["files"]


def test_a_version_is_found_by_every_name_it_has(store: Store) -> None:
    first, second, third = history.versions(store)
    names = {
        "invoices": third,
        "invoices@latest": third,
        "invoices@previous": second,
        "invoices@1": first,
        f"invoices@{second.id[:6]}": second,
        second.id: second,
        second.id[:5]: second,
        first.records[0]["id"]: first,
        first.records[1]["id"][:6]: first,
    }
    for name, version in names.items():
        assert history.find(store, name).id == version.id, name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("invoces", "did you mean 'invoices'"),
        ("invoices@9", r"expected a version of this source, got 'invoices@9'.* 1 to 3, latest, previous or an id"),
        ("abc", "expected a version of a source, got 'abc'"),
        ("", "expected a version of a source, got ''"),
        ("../../etc/passwd", "expected a version of a source"),
    ],
)
def test_a_name_of_nothing_is_told_with_what_there_is(store: Store, name: str, said: str) -> None:
    with pytest.raises(MissingError, match=said):
        history.find(store, name)


def test_the_beginning_of_two_ids_is_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        for number, id in ((1, "aaaa11111111"), (2, "aaaa22222222")):
            record = {"id": id, "at": float(number), "source": "s", "files": [f"{number:064x}"], "rows": 1}
            more = {"pieces": [[1, 1]], "contract": "", "columns": [], "quarantined": 0, "findings": []}
            store.put("dataset", id, {**record, **more})
        with pytest.raises(UsageError, match=r"expected one version, got 'aaaa', .*s@1.*s@2"):
            history.find(store, "aaaa")
        assert history.find(store, "aaaa2").number == 2


# ── how two differ ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_difference_says_what_changed_in_which_column_most_first(store: Store) -> None:
    found = history.difference(store, history.find(store, "invoices@1"), history.find(store, "invoices@2"))
    assert found["rows"] == [6000, 6600] and found["contract"] == [] and not found["same"]
    assert found["schema"] == {"added": [], "removed": [], "changed": []}
    changes = [column["change"] for column in found["columns"]]
    assert changes == sorted(changes, reverse=True)
    by_name = {column["column"]: column for column in found["columns"]}
    paid = by_name["paid"]
    assert paid["after"]["missing_pct"] - paid["before"]["missing_pct"] == pytest.approx(
        100 * (paid["change"]), rel=0.3
    )
    assert by_name["sent"]["before"]["max"].startswith("2025-") and by_name["sent"]["psi"] > 0
    customer = by_name["customer"]
    assert dict(customer["after"]["top"])["C001"] > 9
    assert customer["before"]["distinct"] == customer["after"]["distinct"]


def test_a_changed_contract_is_told_word_by_word(store: Store) -> None:
    found = history.difference(store, history.find(store, "invoices@2"), history.find(store, "invoices@3"))
    assert found["contract"] == ["column amount: between (0, 100000) -> (0, 2000)"]
    assert found["quarantined"][1] > found["quarantined"][0] == 0
    assert any(one["code"] == "contract/between" and not one["before"] for one in found["findings"])


def test_a_version_does_not_differ_from_itself(store: Store) -> None:
    one = history.find(store, "invoices")
    found = history.difference(store, one, one)
    assert found["same"] and found["columns"] == [] and found["shared_rows"] == one.rows


def dataset(store: Store, number: int, rows: pl.DataFrame) -> None:
    """Keep a frame as a dataset, with as few columns declared as it has."""
    agreed = contract.Contract(name="wide", columns=tuple(contract.Column(name) for name in rows.columns))
    body = {
        "id": f"{number:012x}",
        "at": float(number),
        "source": "wide",
        "rows": rows.height,
        "quarantined": 0,
        "contract": store.blobs.put(agreed.to_odcs().encode()),
        "profile": store.blobs.put(sketch.profile(rows).to_bytes()),
        "columns": [{"name": name, "type": str(kind)} for name, kind in rows.schema.items()],
        "findings": [],
        **piece.keep(store, [rows]),
    }
    store.put("dataset", body["id"], history.numbered(store, body))


def test_two_wide_versions_are_compared_without_reading_a_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = {f"c{i}": rng.normal(size=20_000) for i in range(100)}
    with Store.open(tmp_path) as store:
        dataset(store, 1, pl.DataFrame({**wide, "gone": rng.random(20_000), "kind": rng.integers(0, 9, 20_000)}))
        words = [f"w{i % 9}" for i in range(20_000)]
        dataset(store, 2, pl.DataFrame({**wide, "c7": wide["c7"] + 2, "new": words, "kind": words}))
        for one in history.versions(store):
            for digest in one.record["files"]:
                store.blobs.delete(digest)
        found = history.difference(store, history.find(store, "wide@1"), history.find(store, "wide@2"))
    assert [column["column"] for column in found["columns"]] == ["kind", "c7"]
    assert [column["name"] for column in found["schema"]["added"]] == ["new"]
    assert [column["name"] for column in found["schema"]["removed"]] == ["gone"]
    assert [one["name"] for one in found["schema"]["changed"]] == ["kind"]
    assert len(found["unchanged"]) == 99 and found["columns"][1]["psi"] > 1


# ── tidied ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def used(shop: Path) -> Path:
    """A finished project with a model in production on version 1 of its data, and two versions after it."""
    raw = shop / "raw" / "invoices.csv"
    for i in range(2):
        raw.write_text(raw.read_text("utf-8") + f"{9000 + i},C001,50,2025-12-01T00:00:00,,\n", "utf-8")
        kept(shop)
    return shop


def names(store: Store) -> list[str]:
    return [one.name for one in history.versions(store)]


def test_nothing_a_model_was_made_of_goes_and_the_rest_only_when_asked(used: Path) -> None:
    with Store.open(used) as store:
        assert tidy(store, grace_s=-5.0).records == (), "every version is kept unless fewer are asked for"
        said = tidy(store, keep=1, grace_s=-5.0)
        assert [(one["kind"], one["of"]) for one in said.records] == [
            ("ingest", "invoices"),
            ("dataset", "invoices@2"),
        ]
        assert not said.done and names(store) == ["invoices@1", "invoices@2", "invoices@3"]
        before = store.size_bytes()
        done = tidy(store, keep=1, yes=True, grace_s=-5.0)
        assert (done.records, done.blobs, done.bytes) == (said.records, said.blobs, said.bytes) and said.bytes > 0
        assert names(store) == ["invoices@1", "invoices@3"] and before > store.size_bytes()
        assert store.check() == []
        for one in history.versions(store):
            assert piece.frame(store, one.record).height == one.rows
            assert history.find(store, one.name).id == one.id
    work = Work.open(used, {})
    try:
        assert [stage.done for stage in run(work).stages][:2] == [False, False], "what is left is found again"
    finally:
        work.store.close()


def test_a_version_that_was_tidied_away_can_be_made_again_and_has_its_content(used: Path) -> None:
    raw = used / "raw" / "invoices.csv"
    with Store.open(used) as store:
        content = history.find(store, "invoices@2").id
        tidy(store, keep=1, yes=True, grace_s=-5.0)
    raw.write_text("\n".join(raw.read_text("utf-8").splitlines()[:-1]) + "\n", "utf-8")
    kept(used)
    with Store.open(used) as store:
        assert history.find(store, content).number == 4, "a number is not given twice"


def test_what_was_made_or_used_within_a_day_stays(used: Path) -> None:
    with Store.open(used) as store:
        assert tidy(store, keep=1, yes=True).records == ()
        # Two days ago, but found again by a run that is at work now.
        for kind in ("ingest", "dataset", "stage"):
            for record in store.find(kind):
                store.put(kind, record["id"], {**record, "at": record["at"] - 2 * 86_400})
        assert len(tidy(store, keep=1).records) == 2
    kept_before = (used / "raw" / "invoices.csv").read_text("utf-8")
    (used / "raw" / "invoices.csv").write_text("\n".join(kept_before.splitlines()[:-1]) + "\n", "utf-8")
    kept(used)
    with Store.open(used) as store:
        assert tidy(store, keep=1, yes=True).records == ()
        assert names(store) == ["invoices@1", "invoices@2", "invoices@3"]


def test_a_damaged_piece_is_named_and_mended_by_doing_the_work_again(used: Path) -> None:
    with Store.open(used) as store:
        version = history.find(store, "invoices")
        file = store.blobs.path(version.record["files"][0])
        body = bytearray(file.read_bytes())
        body[100] ^= 1
        file.chmod(0o644)
        file.write_bytes(body)
        with pytest.raises(CorruptError, match=rf"it is piece 1 of \d+ of invoices {version.record['id']}, rows 1 to"):
            piece.scan(store, version.record).collect()
        (finding,) = [one for one in store.check() if one.severity == "error"]
        assert finding.code == "store/blob-corrupt"
    work = Work.open(used, {}, again=True)
    try:
        assert data.frame(work, data.datasets(work)["invoices"][1].body).height == version.rows
        assert not [one for one in work.store.check() if one.severity == "error"]
        assert history.find(work.store, "invoices").id == version.id
    finally:
        work.store.close()


def test_fewer_than_one_version_cannot_be_kept(used: Path) -> None:
    with Store.open(used) as store, pytest.raises(UsageError, match="at least 1 version"):
        tidy(store, keep=0)


TIDIER = """
import sys, time
from pathlib import Path
from tenon.flow.tidy import tidy
from tenon.store import Store

with Store.open(Path(sys.argv[1])) as store:
    went = 0
    print("ready", flush=True)
    while not (Path(sys.argv[1]) / "stop").exists():
        went += len(tidy(store, keep=1, yes=True).records)
    print(went, flush=True)
"""


def aged(folder: Path) -> None:
    """Make all that is kept look as if it had lain there for two days."""
    then = time.time() - 2 * 86_400
    with Store.open(folder) as store:
        for kept_blob in store.blobs.kept():
            os.utime(store.blobs.path(kept_blob.digest), (then, then))
        for kind in ("ingest", "dataset", "features", "stage"):
            for record in store.find(kind):
                body = {name: value for name, value in record.items() if name != "used"}
                store.put(kind, record["id"], {**body, "at": record["at"] - 2 * 86_400})


def test_tidying_takes_nothing_from_under_a_tenon_at_work(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    begin.init(folder)
    raw = folder / "raw" / "invoices.csv"
    texts = [raw.read_text("utf-8") + f"{9000 + i},C001,50,2025-12-01T00:00:00,,\n" for i in range(3)]
    for text in texts:
        raw.write_text(text, "utf-8")
        kept(folder)
    aged(folder)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", TIDIER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as tidier:
        assert tidier.stdout is not None and tidier.stdout.readline() == "ready\n"
        try:
            for turn in range(9):
                raw.write_text(texts[turn % 3], "utf-8")
                work = Work.open(folder, {})
                try:
                    stage = data.datasets(work)["invoices"][1]
                    assert data.frame(work, stage.body).height == 6001
                finally:
                    work.store.close()
                if turn == 4:
                    aged(folder)
        finally:
            (folder / "stop").touch()
        went = int(tidier.stdout.readline())
    assert went > 0, "there was something to tidy away"
    with Store.open(folder) as store:
        assert not [finding for finding in store.check() if finding.severity == "error"]
        for one in history.versions(store):
            assert piece.frame(store, one.record).height == one.rows

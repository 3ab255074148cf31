"""What goes wrong is one sentence with the right exit code; nothing is lost, and no traceback reaches a person."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from ..command import ENV, TENON
from ..waiting import eventually


def start(*args: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TENON, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    )


def tenon(*args: str | Path) -> tuple[int, str, str]:
    child = start(*args)
    out, said = child.communicate(timeout=120)
    assert "Traceback" not in out + said, said
    return child.returncode, out, said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "shop"
    assert tenon("init", folder)[0] == 0
    assert tenon("run", folder)[0] == 0
    return folder


@pytest.fixture
def shop(made: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "a shop's ü"
    shutil.copytree(made, folder)
    return folder


def edit(folder: Path, old: str, new: str) -> None:
    file = folder / "project.py"
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")


# ── declarations ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"""Will', 'x = (\n"""Will', "project.py:"),
        ("project = ", "raise SystemExit(3)\nproject = ", "SystemExit"),
        ('train="logistic"', "train=__import__('functools').partial(print)", "a function of your own, got partial"),
        ('Model(\n    "slow"', 'Model(\n    "../slow"', "a model name without slashes"),
        ('Model(\n    "slow"', 'Model(\n    ""', "a model name without slashes"),
        ('"2025-08-01", ', '"2025-13-01", ', "a date such as"),
    ],
)
def test_a_wrong_declaration_is_refused_with_its_line(shop: Path, old: str, new: str, words: str) -> None:
    edit(shop, old, new)
    code, _, said = tenon("run", shop)
    assert code == 2 and words in said and str(shop / "project.py:") in said, said


def test_a_project_may_use_a_module_that_lies_beside_it(shop: Path) -> None:
    (shop / "own_trainers.py").write_text(
        "def forest(data, run):\n"
        "    from sklearn.ensemble import RandomForestClassifier\n"
        "    matrix = data.matrix()\n"
        "    run.log(0, rows=float(len(data.train)))\n"
        "    return RandomForestClassifier(5, max_depth=4, random_state=0).fit(matrix.train, data.train.y)\n",
        "utf-8",
    )
    edit(shop, "from tenon import Column", "from own_trainers import forest\nfrom tenon import Column")
    edit(shop, 'train="logistic"', "train=forest")
    code, out, said = tenon("run", shop, "--json")
    assert code == 0, said
    assert json.loads(out)["models"][0]["scores"][0]["who"] == "forest"


def test_with_several_models_each_is_named_in_commands_and_reports(shop: Path) -> None:
    edit(
        shop,
        "project = Project",
        "import dataclasses\nother = dataclasses.replace(slow, name='other one')\nproject = Project",
    )
    edit(shop, "models=[slow]", "models=[slow, other]")
    code, out, said = tenon("run", shop)
    assert code == 0, said
    assert "--model slow" in out and "manager (other one)" in out
    assert len(json.loads(tenon("report", shop, "--json")[1])) == 6
    code, _, said = tenon("watch", shop)
    assert code == 1 and "there is slow, other one" in said
    assert tenon("models", "show", "1", shop, "--model", "other one")[0] == 0
    code, _, said = tenon("models", "list", shop, "--model", "othr one")
    assert code == 1 and "did you mean 'other one'?" in said


# ── files and stores ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("harm", ["flipped", "truncated", "not a database"])
def test_a_corrupted_catalog_is_said_and_left_alone(shop: Path, harm: str) -> None:
    file = shop / ".tenon" / "tenon.db"
    body = bytearray(file.read_bytes())
    if harm == "flipped":
        body[4096::97] = bytes(byte ^ 255 for byte in body[4096::97])
    harmed = {"flipped": bytes(body), "truncated": bytes(body[:5000]), "not a database": b"no database " * 99}[harm]
    file.write_bytes(harmed)
    for other in (shop / ".tenon").glob("tenon.db-*"):
        other.unlink()
    for command in ("run", "serve", "cost"):
        code, out, said = tenon(command, shop)
        assert (code, out) == (1, "") and "expected a sound SQLite file" in said, said
    assert file.read_bytes() == harmed


def test_lost_blobs_are_said_and_the_next_run_brings_them_back(shop: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("invoice,customer,amount,sent\n1,C001,5,2025-12-01\n", "utf-8")
    shutil.rmtree(shop / ".tenon" / "blobs")
    code, _, said = tenon("predict", rows, tmp_path / "out.csv", "--project", shop)
    assert code == 1 and "expected the blob" in said and not (tmp_path / "out.csv").exists()
    assert tenon("run", shop)[0] == 0
    assert tenon("predict", rows, tmp_path / "out.csv", "--project", shop)[0] == 0


def test_a_run_that_is_interrupted_says_so_and_the_next_one_goes_on(shop: Path) -> None:
    shutil.rmtree(shop / ".tenon")
    child = start("run", shop)
    eventually((shop / ".tenon" / "tenon.db").exists, 30)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130 and "interrupted" in said and "Traceback" not in said, said
    assert tenon("run", shop)[0] == 0 and tenon("store", "check", shop)[0] == 0


def test_two_runs_at_once_make_one_run_and_one_version(shop: Path) -> None:
    shutil.rmtree(shop / ".tenon")
    both = [start("run", shop), start("run", shop)]
    ends = [(child.communicate(timeout=120)[1], child.returncode) for child in both]
    assert 0 in {code for _, code in ends}
    assert all(code == 0 or (code == 1 and "still at work on it" in said) for said, code in ends), ends
    assert len(json.loads(tenon("models", "list", shop, "--json")[1])) == 1
    assert tenon("store", "check", shop)[0] == 0


def test_a_cluster_that_is_configured_and_not_there_is_said(shop: Path) -> None:
    (shop / "tenon.toml").write_text('[engine]\nkind = "slurm"\n', "utf-8")
    shutil.rmtree(shop / ".tenon")
    code, _, said = tenon("run", shop)
    assert code == 2 and "expected 'local' or 'ray'" in said


# ── rows and labels ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_with_only_a_header_is_scored_into_a_file_with_no_rows_that_can_be_read(
    made: Path, tmp_path: Path
) -> None:
    import polars as pl

    rows, out = tmp_path / "rows.csv", tmp_path / "out.parquet"
    rows.write_text("invoice,customer,amount,sent\n", "utf-8")
    assert tenon("predict", rows, out, "--project", made)[0] == 0
    found = pl.read_parquet(out)
    assert found.height == 0 and {"customer", "score", "decision", "fault"} <= set(found.columns)


def test_labels_that_cannot_be_used_are_counted_and_none_at_all_is_an_error(shop: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("id,label\na,1\nb,maybe\nc,\nd,7\ne,true\nf,0\n", "utf-8")
    code, out, said = tenon("labels", file, shop, "--json")
    assert code == 0, said
    assert {name: json.loads(out)[name] for name in ("labels", "refused")} == {"labels": 3, "refused": 3}
    file.write_text("id,label\nb,maybe\n", "utf-8")
    code, _, said = tenon("labels", file, shop)
    assert code == 1 and "label is 0 or 1" in said


def test_rows_that_all_break_their_type_are_said_with_the_cause(shop: Path) -> None:
    file = shop / "raw" / "invoices.csv"
    lines = file.read_text("utf-8").splitlines()
    bad = [",".join([*line.split(",")[:3], "yesterday", *line.split(",")[4:]]) for line in lines[1:]]
    file.write_text("\n".join([lines[0], *bad]) + "\n", "utf-8")
    code, _, said = tenon("run", shop)
    assert code == 1 and "none of 6,000" in said and "timestamp" in said, said

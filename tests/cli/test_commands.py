"""The real command, as a person or a script calls it: data on stdout, talk on stderr, exit codes, and clear words."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ..command import TENON, tenon


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "shop"
    assert tenon("init", folder).returncode == 0
    done = tenon("run", folder)
    assert done.returncode == 0, done.stderr
    return folder


# ── the way through ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_run_ends_by_saying_what_was_found_what_it_cost_and_how_to_serve_it(shop: Path) -> None:
    done = tenon("run", shop)
    assert done.returncode == 0, done.stderr
    for words in ("unchanged", "is in production", "Reports:", "executive.html", f"tenon serve {shop}", "cost $"):
        assert words in done.stdout, words


def test_json_is_the_only_thing_on_stdout(shop: Path) -> None:
    calls: list[list[str | Path]] = [
        ["run", shop],
        ["runs", "list", shop],
        ["models", "list", shop],
        ["models", "audit", shop],
        ["cost", shop],
        ["report", shop],
        ["store", "check", shop],
    ]
    for args in calls:
        done = tenon(*args, "--json")
        assert done.returncode == 0, (args, done.stderr)
        json.loads(done.stdout)


def test_runs_are_listed_and_shown(shop: Path) -> None:
    run = json.loads(tenon("runs", "list", shop, "--json").stdout)[0]["id"]
    shown = tenon("runs", "show", run, shop)
    assert "on test" in shown.stdout and "constant" in shown.stdout
    same = tenon("runs", "diff", run, run[:6], shop)
    assert "nothing that they were made of differs" in same.stdout
    assert tenon("runs", "show", "zzzz", shop).returncode == 1


def test_a_file_goes_in_and_a_scored_file_comes_out(shop: Path, tmp_path: Path) -> None:
    rows = tmp_path / "new.csv"
    rows.write_text(
        "invoice,customer,amount,sent\n9001,C001,1200.50,2025-12-01T10:00:00\n9002,C002,-5,2025-12-01T11:00:00\n",
        "utf-8",
    )
    for name in ("out.csv", "out.parquet", "out.jsonl"):
        done = tenon("predict", rows, tmp_path / name, "--project", shop)
        assert done.returncode == 0, done.stderr
        assert "scored 2 rows" in done.stdout and "1 refused" in done.stdout
    first, second = (tmp_path / "out.csv").read_text("utf-8").splitlines()[1:]
    assert first.split(",")[-3] != "" and "amount: expected" in second


def test_cost_adds_up_and_names_its_prices(shop: Path) -> None:
    spent = json.loads(tenon("cost", shop, "--by", "kind", "--json").stdout)
    assert spent["usd"] == pytest.approx(sum(row["usd"] for row in spent["rows"]))
    assert "0.04 USD a core hour" in tenon("cost", shop).stdout


def test_ingest_and_check_stand_alone(tmp_path: Path) -> None:
    file = tmp_path / "dump.csv"
    file.write_text("id;name;price\n1;Ann;3,50\n2;Bob;4,75\n3;Eve;1,25\n", "utf-8")
    done = tenon("ingest", file, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dump.parquet").is_file() and "accounted for" in done.stdout
    contract = tmp_path / "dump.contract.yaml"
    assert tenon("check", tmp_path / "dump.parquet", "--contract", contract).returncode == 0
    worse = tmp_path / "worse.csv"
    worse.write_text("id,name,price\n1,Ann,3.5\nx,Bob,4.75\n", "utf-8")
    junit = tmp_path / "junit.xml"
    broken = tenon("check", worse, "--contract", contract, "--junit", junit, "--bad", tmp_path / "bad.parquet")
    assert broken.returncode == 1, broken.stdout
    assert "breaks its contract" in broken.stdout and "<testsuite" in junit.read_text("utf-8")
    assert (tmp_path / "bad.parquet").is_file()


def test_what_is_quarantined_is_shown_summed_up_and_read_again(tmp_path: Path) -> None:
    rows = [f"{i},n{i},{i * 1.5}" for i in range(200)]
    rows[50], rows[80] = "x7,bob,3.5", "80,al,\x1b[31mabc"
    (tmp_path / "d.csv").write_text("\n".join(["id,name,price", *rows]) + "\n", "utf-8")
    assert tenon("ingest", tmp_path / "d.csv", "--out", tmp_path).returncode == 0
    file = tmp_path / "d.quarantine.parquet"
    shown = json.loads(tenon("quarantine", "show", file, "--json").stdout)
    assert [(row["line"], row["column"]) for row in shown] == [(52, "id"), (82, "price")]
    assert "\x1b" not in tenon("quarantine", "show", file).stdout
    assert sum(row["rows"] for row in json.loads(tenon("quarantine", "summary", file, "--json").stdout)) == 2
    again = json.loads(tenon("quarantine", "replay", file, "--json").stdout)
    assert (again["rows"], again["waiting"]) == (2, 0) and Path(again["file"]).is_file()
    wrong = tenon("quarantine", "show", tmp_path / "d.csv")
    assert wrong.returncode == 1 and "expected a quarantine file" in wrong.stderr


def test_clean_csv_keeps_every_value_as_it_was_spelt(tmp_path: Path) -> None:
    file = tmp_path / "dump.csv"
    file.write_text("a|b\n007|1.50\n08|x y\n", "utf-8")
    clean = tmp_path / "clean.csv"
    assert tenon("ingest", file, "--text", "--csv", clean).returncode == 0
    assert clean.read_text("utf-8") == "a,b\n007,1.50\n08,x y\n"


def test_a_project_begins_from_somebodys_own_file(tmp_path: Path) -> None:
    file = tmp_path / "orders.csv"
    lines = [
        f"{i},2025-{1 + i // 30:02}-{1 + i % 28:02},{(i * 37) % 100},{int((i * 37) % 100 > 60)}" for i in range(300)
    ]
    file.write_text("\n".join(["order,day,amount,returned", *lines]) + "\n", "utf-8")
    done = tenon("init", tmp_path / "mine", "--from", file, "--label", "returned = 1", "--time", "day")
    assert done.returncode == 0, done.stderr
    assert "Column('amount', 'int'" in (tmp_path / "mine" / "project.py").read_text("utf-8")
    ran = tenon("run", tmp_path / "mine", "--upto", "features")
    assert ran.returncode == 0, ran.stderr


# ── what is wrong is said ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["rnu"], 2, "did you mean 'run'?"),
        (["run", "nowhere"], 1, "expected a project.py, got none"),
        (["runs", "show"], 2, "Missing argument"),
        (["report", "--for", "nobody"], 2, "'nobody' is not one of"),
        (["ingest", "missing.csv"], 1, "missing.csv"),
        (["completion", "tcsh"], 2, "'tcsh' is not one of"),
        (["check", "missing.csv", "--contract", "none.yaml"], 1, "expected a contract in YAML"),
    ],
)
def test_a_wrong_call_is_refused_in_one_sentence(tmp_path: Path, args: list[str], code: int, words: str) -> None:
    done = tenon(*args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr


def test_a_project_that_does_not_run_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text("from tenon import Project\n\nproject = Projekt('x')\n", "utf-8")
    done = tenon("run", tmp_path)
    assert done.returncode == 2 and "project.py:3" in done.stderr and "NameError" in done.stderr


def test_a_wrong_setting_is_named_with_the_nearest_one(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text((shop / "project.py").read_text("utf-8"), "utf-8")
    (tmp_path / "tenon.toml").write_text("[prices]\nusd_per_core_hours = 1\n", "utf-8")
    done = tenon("run", tmp_path)
    assert done.returncode == 2 and "did you mean 'usd_per_core_hour'?" in done.stderr


def test_nothing_yet_says_what_to_do_first(tmp_path: Path) -> None:
    assert tenon("init", tmp_path / "new").returncode == 0
    for args in (["runs", "list"], ["models", "show", "production"], ["watch"], ["serve"], ["report"]):
        done = tenon(*args, tmp_path / "new")
        assert done.returncode == 1 and "tenon run" in done.stderr, (args, done.stderr)


def test_init_never_writes_over_a_project(shop: Path) -> None:
    done = tenon("init", shop)
    assert done.returncode == 2 and "expected a folder without a project" in done.stderr


# ── how it shows ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_escapes_in_data_never_reach_the_terminal(tmp_path: Path) -> None:
    file = tmp_path / "evil.csv"
    file.write_text("name,note\nAnn,\x1b[2Jgone\nBob,\x1b]0;title\x07\n", "utf-8")
    done = tenon("ingest", file, "--out", tmp_path)
    assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stdout + done.stderr


def test_completion_scripts_are_printed_for_each_shell() -> None:
    for shell, mark in (("zsh", "compdef"), ("fish", "complete"), ("bash", "complete")):
        assert mark in tenon("completion", shell).stdout


def test_a_reader_that_goes_away_is_no_failure(shop: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m tenon run {shop} | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_on_a_terminal_quick_work_stays_quiet(shop: Path) -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*TENON, "cost", str(shop)],
        stderr=theirs,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    out, _ = child.communicate(timeout=60)
    os.close(theirs)
    try:
        said = os.read(ours, 10_000)
    except OSError:
        said = b""  # nothing was ever written
    os.close(ours)
    assert child.returncode == 0 and b"total" in out and said == b""

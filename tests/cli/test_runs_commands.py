"""`tenon runs`, as a person or a script calls it: a user's own loop, looked at without a project.py."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from tenon.config import Prices
from tenon.store import Store
from tenon.training.track import Run

from ..command import tenon

HOSTILE = "acc<script>\x1b[2J"


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three runs of somebody's own loop, whose file changed between them."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    folder.mkdir()
    with Store.open(folder) as store:
        for place, (id, rate) in enumerate([("aaaa11", 0.1), ("aabb22", 0.2), ("cccc33", 0.4)]):
            (folder / "loop.py").write_text(f"rate = {rate}\n", "utf-8")
            at = 1_700_000_000.0 + place
            with Run.start(store, id, "mine", seed=1, prices=Prices(), clock=lambda at=at: at) as run:  # type: ignore[misc]
                run.param(rate=rate, note="\x1b[31mred")
                for step in range(2_000):
                    loss = float("nan") if step == 500 else 3.0 * float(np.exp(-step * rate / 60.0)) + 1e-3
                    run.log(step, loss=loss, **{HOSTILE: step / 2_000})
                run.artifact("notes", b"what I saw")
                run.update(metrics={"test": {"accuracy": {"value": rate, "low": rate - 0.01, "high": rate + 0.01}}})
    return folder


def test_a_loop_of_ones_own_is_listed_and_filtered(loops: Path) -> None:
    listed = tenon("runs", "list", loops)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.index("cccc33") < listed.stdout.index("aaaa11") and "accuracy 0.4" in listed.stdout
    found = json.loads(tenon("runs", "list", loops, "--where", "param_rate > 0.15 AND last_loss < 1", "--json").stdout)
    assert [run["id"] for run in found] == ["cccc33", "aabb22"]
    assert "no such runs" in tenon("runs", "list", loops, "--where", "param_rate > 7").stdout
    assert listed.stderr == "", "nothing was left out"
    two = tenon("runs", "list", loops, "--limit", "2")
    assert "aaaa11" not in two.stdout and two.stderr == "· there are older ones: --limit shows more\n"
    wrong = tenon("runs", "list", loops, "--where", "param_rat > 1")
    assert wrong.returncode == 2 and "did you mean 'param_rate'?" in wrong.stderr
    other = tenon("runs", "list", loops, "-m", "mien")
    assert other.returncode == 1 and "did you mean 'mine'?" in other.stderr


def test_sql_is_answered_and_can_change_nothing(loops: Path) -> None:
    done = tenon("runs", "sql", "SELECT id, last_loss FROM runs ORDER BY last_loss LIMIT 1", loops, "--json")
    assert [row["id"] for row in json.loads(done.stdout)] == ["cccc33"], done.stderr
    assert "param_rate" in tenon("runs", "sql", loops).stdout
    before = (loops / ".tenon" / "tenon.db").read_bytes()
    for sql in ("DROP TABLE runs", "SELECT '" + "x" * 5000, "DELETE FROM record", "1) UNION SELECT 1"):
        assert tenon("runs", "sql", sql, loops).returncode == 2
    assert (loops / ".tenon" / "tenon.db").read_bytes() == before


def test_a_narrow_terminal_gets_narrow_pictures_and_tables_in_parts(loops: Path) -> None:
    lines = tenon("runs", "compare", "aaaa11", "cccc33", loops, COLUMNS="46").stdout.splitlines()
    drawn = [line for line in lines if "│" in line or "└" in line or "─" in line]
    assert drawn and max(map(len, drawn)) <= 46
    heads = [line.split() for line in lines]
    assert ["run", "model", "trainer", "status", "seconds"] in heads and ["cost"] in heads, "the runs come in two parts"
    whole = tenon("runs", "compare", "aaaa11", "cccc33", loops).stdout
    assert max(map(len, whole.splitlines())) > 46 and "trainer  status" in whole


def test_curves_are_drawn_within_80_columns_and_harmlessly(loops: Path) -> None:
    done = tenon("runs", "show", "mine@latest", loops)
    assert done.returncode == 0, done.stderr
    curves = done.stdout[done.stdout.index("\nloss") :]
    assert all(len(line) <= 80 for line in curves.splitlines())
    assert "log scale" in curves and "!" in curves and "1 no number (from step 500)" in curves
    assert re.search("[\u2801-\u28ff]", curves) and "\x1b" not in done.stdout
    assert "estimate: core seconds x 10 W" in done.stdout or "RAPL" in done.stdout
    compared = tenon("runs", "compare", "aaaa", "aabb", "cccc", loops)
    assert compared.returncode == 0, compared.stderr
    assert "A" in compared.stdout and "rate" in compared.stdout and "\x1b" not in compared.stdout
    assert tenon("runs", "compare", "aaaa", "aabb", cwd=loops).returncode == 0, "the folder one is in"
    assert tenon("runs", "compare", "aaaa", "aaaa11", loops).returncode == 2


def test_a_run_is_followed_from_another_process_until_it_ends(tmp_path: Path) -> None:
    from tenon.training import Guard, Plan

    at = 0.0

    def clock() -> float:
        nonlocal at
        at += 0.5
        return at

    with Store.open(tmp_path) as store:
        with Run.start(store, "ddddd44", HOSTILE) as run:
            guard = Guard(run=run, plan=Plan(steps=40, constant=1.0), clock=clock)
            for step in range(30):
                guard.step(step, loss=1 / (step + 1))
                run.log(step, train_loss=1 / (step + 1))
            run.flush()
            once = tenon("runs", "watch", "dddd", tmp_path, "--once")
            assert once.returncode == 0, once.stderr
        assert "running · step 2" in once.stdout and "train_loss 0.0333" in once.stdout and "left" in once.stdout
        assert "\x1b" not in once.stdout and "\\x1b[2J" in once.stdout
        told = json.loads(tenon("runs", "watch", "dddd", tmp_path, "--json").stdout)
        assert told["status"] == "done" and told["latest"] == pytest.approx(1 / 30) and told["stands"]["of"] == 40
        ended = tenon("runs", "watch", "dddd", tmp_path)
        assert "ddddd44 done" in ended.stdout
        killed = {**(store.get("run", "ddddd44") or {}), "status": "running", "id": "eeee55"}
        store.put("run", "eeee55", {**killed, "process": {**killed["process"], "began": 0.0}})
        assert "its process has ended" in tenon("runs", "watch", "eeee55", tmp_path).stdout


def test_a_page_is_written_whole_and_asks_for_nothing(loops: Path, tmp_path: Path) -> None:
    file = tmp_path / "runs.html"
    done = tenon("runs", "compare", "aaaa", "cccc", loops, "--html", file)
    assert done.returncode == 0, done.stderr
    page = file.read_text("utf-8")
    assert page.endswith("</html>\n") and page.count("<svg") == 4 and "<script" not in page and "\x1b" not in page
    assert not re.search(
        r"(src|href)\s*=|url\(|@import|http", page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    )
    assert list(tmp_path.iterdir()) == [file], "nothing is left beside it"
    one = tenon("runs", "show", "aaaa", loops, "--html", tmp_path / "one.html", "--json")
    assert json.loads(one.stdout)["file"].endswith("one.html")
    nowhere = tenon("runs", "show", "aaaa", loops, "--html", tmp_path / "no" / "one.html")
    assert nowhere.returncode == 1 and "Traceback" not in nowhere.stderr


def test_what_changed_is_told_most_telling_first(loops: Path) -> None:
    done = tenon("runs", "diff", "mine@previous", "mine@latest", loops)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert said.index("rate: 0.2 -> 0.4") < said.index("loop.py (changed)") < said.index("test accuracy")
    assert "-rate = 0.2" in said and "+rate = 0.4" in said and "beyond noise" in said
    found = json.loads(tenon("runs", "diff", "aabb", "cccc", loops, "--json").stdout)
    assert (found["before"]["id"], found["after"]["id"]) == ("aabb22", "cccc33")
    assert {one["name"] for one in found["cost"]} >= {"usd", "seconds", "kwh"}
    assert "nothing that they were made of differs" in tenon("runs", "diff", "aaaa", "aaaa", loops).stdout
    missing = tenon("runs", "diff", "aaaa", "zzzz", loops)
    assert missing.returncode == 1 and "expected a run, got 'zzzz'" in missing.stderr


def test_artifacts_are_listed_and_fetched_by_their_content(loops: Path, tmp_path: Path) -> None:
    listed = json.loads(tenon("runs", "artifact", "aaaa", loops, "--json").stdout)
    assert {one["name"] for one in listed} == {"notes", "code/loop.py"}
    assert listed[0]["digest"] == hashlib.sha256(b"what I saw").hexdigest()
    out = tmp_path / "notes.txt"
    done = tenon("runs", "artifact", "aaaa", "notes", loops, "--out", out)
    assert done.returncode == 0 and out.read_bytes() == b"what I saw", done.stderr
    again = tenon("runs", "artifact", "aaaa", "notes", loops, "--out", out)
    assert again.returncode == 2 and "--force" in again.stderr
    assert tenon("runs", "artifact", "aaaa", "code/loop.py", loops, "--out", out, "--force").returncode == 0
    assert out.read_text("utf-8") == "rate = 0.1\n"
    wrong = tenon("runs", "artifact", "aaaa", "note", loops, "--out", out)
    assert wrong.returncode == 1 and "did you mean 'notes'?" in wrong.stderr
    assert list(tmp_path.iterdir()) == [out]


def test_a_million_points_are_drawn_in_about_a_second(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store, Run.start(store, "long", "mine") as run:
        values = np.random.default_rng(1).normal(size=1_000_000)
        values[123_456] = 99.0
        run.log_many("noise", np.arange(len(values)), values)
    start = time.process_time()
    from tenon.flow import look
    from tenon.report import curve

    with Store.open(tmp_path, read_only=True) as store:
        shown = look.run(store, "long")
    lines = curve.plain([(0, shown["curves"]["noise"])])
    assert time.process_time() - start < 1.0
    assert lines[0].startswith("    99 ┤")

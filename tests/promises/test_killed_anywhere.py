"""Killed at any write, the store is before or after, never between; the next run goes on and comes to the same names.

A child process takes a small project the whole way and kills itself (SIGKILL, no clean-up) at its first, then at its
second, its fourth ... change of a file under `.tenon`, seen through Python's audit events. After each death the store
is whole; then the run is finished in the same folder and must come to the same stages.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tenon.flow import Work, begin

CHILD = """
import os, signal, sys
from pathlib import Path
from tenon.flow import Work, run

left = int(sys.argv[2])
CHANGES = {"os.rename", "os.remove", "os.mkdir"}

def see(event, args):
    global left
    writes = event in CHANGES or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"))
    if writes and ".tenon" in str(args[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

work = Work.open(Path(sys.argv[1]), {})
sys.addaudithook(see)
outcome = run(work)
work.store.close()
print([stage.id for stage in outcome.stages])
"""


def project(folder: Path) -> Path:
    """Make the example smaller, so that dying often stays quick."""
    begin.init(folder)
    file = folder / "raw" / "invoices.csv"
    lines = file.read_text("utf-8").splitlines()
    file.write_text("\n".join([lines[0], *lines[1::4]]) + "\n", "utf-8")
    return folder


def run_child(folder: Path, die_at: int, code: str = CHILD) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), str(die_at)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        timeout=120,
    )


def test_a_run_killed_at_any_write_is_finished_by_the_next(tmp_path: Path) -> None:
    origin = project(tmp_path / "origin")
    whole = tmp_path / "whole"
    shutil.copytree(origin, whole)
    reference = run_child(whole, 0)
    assert reference.returncode == 0, reference.stderr
    expected = json.loads(reference.stdout.replace("'", '"'))
    folder = tmp_path / "shop"
    shutil.copytree(origin, folder)
    deaths, at = 0, 1
    while True:
        done = run_child(folder, at)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        deaths += 1
        work = Work.open(folder, {})
        try:
            wrong = [finding for finding in work.store.check() if finding.severity == "error"]
            assert not wrong, wrong
            for stage in work.store.find("stage"):
                assert all(work.store.blobs.has(blob) for blob in stage["blobs"]), stage
                assert work.store.get(stage["name"], stage["id"][:12]), stage
        finally:
            work.store.close()
        # Each life gets past what the one before has kept; three more writes each time keep the loop short.
        at += 3
        assert deaths < 200
    assert deaths >= 5
    assert json.loads(done.stdout.replace("'", '"')) == expected


def test_two_runs_of_one_project_at_once_both_come_to_the_same_end(tmp_path: Path) -> None:
    folder = project(tmp_path / "shop")
    command = [sys.executable, "-c", CHILD, str(folder), "0"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pair = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) for _ in range(2)
    ]
    ends = [child.communicate(timeout=120) for child in pair]
    codes = [child.returncode for child in pair]
    assert not any("locked" in err for _, err in ends), ends
    # Only one process may train a run at a time: the other may say so in words, and nothing else.
    for code, (_, err) in zip(codes, ends, strict=True):
        assert code == 0 or "still at work on it" in err, err
    assert 0 in codes
    final = run_child(folder, 0)
    assert final.returncode == 0, final.stderr


def test_a_killed_run_is_not_called_running_for_ever(tmp_path: Path) -> None:
    folder = project(tmp_path / "shop")
    code = CHILD.replace(
        "outcome = run(work)",
        """
from tenon.training import Run
Run.start(work.store, "feedfeedfeed", "slow")
os.kill(os.getpid(), signal.SIGKILL)
outcome = run(work)""",
    )
    done = run_child(folder, 0, code)
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = run_child(folder, 0)
    assert again.returncode == 0, again.stderr
    work = Work.open(folder, {}, read_only=True)
    try:
        record = work.store.get("run", "feedfeedfeed")
        assert record is not None and record["status"] != "running"
        assert record["findings"][0]["code"] == "track/interrupted"
    finally:
        work.store.close()


def test_a_full_disk_is_said_before_anything_is_half_written(tmp_path: Path) -> None:
    folder = project(tmp_path / "shop")
    # A disk is full when less is free than must stay free: no disk has this much.
    (folder / "tenon.toml").write_text(f"[limits.store]\nfree_bytes = {10**17}\n", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tenon", "run", str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "free" in done.stderr and done.stderr.startswith("tenon: expected"), done.stderr

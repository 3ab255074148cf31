"""A team's store, PostgreSQL and an object store, carries a project the whole way, from two machines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tenon.flow import begin

NEW = "invoice,customer,amount,sent\n9001,C001,1200.50,2025-12-01T10:00:00\n"


@pytest.fixture
def team(tmp_path: Path, postgres: str, s3: str) -> Path:
    folder = tmp_path / "first" / "shop"
    begin.init(folder)
    lines = ["[store]", f'catalog = "{postgres}?schema=team{os.getpid()}"', 'blobs = "s3://bucket/team"']
    lines += [f's3_endpoint = "{s3}"', 's3_region = "us-east-1"', "[serve]", "port = 0"]
    (folder / "tenon.toml").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def start(*args: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tenon", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def tenon(*args: str | Path) -> Any:
    child = start(*args, "--json")
    out, said = child.communicate(timeout=120)
    assert child.returncode == 0, said
    return json.loads(out)


def test_a_team_goes_the_whole_way_with_postgresql_and_an_object_store(team: Path, tmp_path: Path) -> None:
    first = tenon("run", team)
    assert all(stage["done"] for stage in first["stages"])
    assert not list((team / ".tenon").glob("tenon.db*")) and not (team / ".tenon" / "blobs").exists()
    # A colleague's machine: the same project in another place, nothing of .tenon.
    other = tmp_path / "second" / "shop"
    shutil.copytree(team, other, ignore=shutil.ignore_patterns(".tenon", "reports"))
    second = tenon("run", other)
    assert not any(stage["done"] for stage in second["stages"])
    assert [stage["id"] for stage in second["stages"]] == [stage["id"] for stage in first["stages"]]

    (tmp_path / "new.csv").write_text(NEW, "utf-8")
    scores = []
    for folder in (team, other):
        assert tenon("predict", tmp_path / "new.csv", tmp_path / "out.csv", "--project", folder)["rows"] == 1
        scores.append((tmp_path / "out.csv").read_text("utf-8"))
    assert scores[0] == scores[1]

    service = start("serve", team, "--as-of", "2025-10-01", "--port", free_port())
    assert service.stderr is not None
    url = service.stderr.readline().rsplit(" ", 1)[1].strip()
    try:
        played = tenon("replay", other, "--url", url, "--tick", "12h", "--to", "2025-10-10")
    finally:
        service.send_signal(signal.SIGTERM)
        service.communicate(timeout=60)
    assert service.returncode == 0 and played["errors"] == 0 and played["predictions"] > 50

    watched = tenon("watch", other, "--as-of", "2025-12-31")
    assert sum(window["rows"] for window in watched["windows"]) == played["predictions"]
    assert {row["audience"] for row in tenon("report", other)} == {"engineer", "manager", "executive"}
    assert tenon("cost", team)["predictions"] == played["predictions"] + 2  # and the row of each file
    assert [row["what"] for row in tenon("models", "audit", other)] == [
        "production moved from nothing",
        "start",
        "stop",
    ]
    assert tenon("store", "check", other)["ok"]

    text = (other / "project.py").read_text("utf-8")
    (other / "project.py").write_text(text.replace('train="logistic"', 'seed=7, train="logistic"'), "utf-8")
    again = tenon("run", other)["models"][0]
    assert again["serving"] and again["version"] != first["models"][0]["version"]
    assert tenon("models", "rollback", team)["version"] == first["models"][0]["version"]


def free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])

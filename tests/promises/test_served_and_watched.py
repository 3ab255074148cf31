"""From a finished project to live traffic and back: serve, ask, replay, label, watch, audit, with real processes."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tenon.flow import Work, begin
from tenon.flow import run as run_project

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NO_COLOR": "1"}


def tenon(*args: str | Path) -> Any:
    """Run a command with --json and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tenon", *map(str, args), "--json"],
        capture_output=True,
        text=True,
        env=ENV,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text[:1] in (b"{", b"[") else text.decode()
    finally:
        connection.close()


@contextmanager
def served(folder: Path, port: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A running service; ended by SIGTERM, which must be a clean end."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tenon", "serve", str(folder), "--port", str(port), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
    )
    try:
        for _ in range(300):
            try:
                if ask(port, "GET", "/readyz")[0] == 200:
                    break
            except OSError:
                assert child.poll() is None, child.communicate()[1]
                time.sleep(0.1)
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=60)
        assert child.returncode == 0, said


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "shop"
    begin.init(folder)
    work = Work.open(folder, {})
    try:
        run_project(work)
    finally:
        work.store.close()
    return folder


ROW = {"invoice": 9001, "customer": "C001", "amount": 1200.5, "sent": "2025-10-02T10:00:00"}


def test_the_whole_live_path(shop: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with served(shop, port, "--as-of", "2025-10-01"):
        status, answer = ask(port, "POST", "/predict/slow", ROW)
        assert status == 200 and 0 <= answer["predictions"][0]["score"] <= 1
        kinds = {"invoice": "INT64", "customer": "BYTES", "amount": "FP64", "sent": "BYTES"}
        tensors = [
            {"name": name, "shape": [1], "datatype": kinds[name], "data": [value]} for name, value in ROW.items()
        ]
        status, second = ask(port, "POST", "/v2/models/slow/infer", {"inputs": tensors})
        assert status == 200, second
        scores = {output["name"]: output["data"] for output in second["outputs"]}
        assert scores["score"][0] == answer["predictions"][0]["score"]
        status, fault = ask(port, "POST", "/predict/slow", {**ROW, "amount": "much"})
        assert status == 422 and fault["faults"][0]["path"] == "$.amount", fault
        assert ask(port, "POST", "/predict/nobody", ROW)[0] == 404
        played = tenon("replay", shop, "--url", url, "--tick", "6h")
        assert played["errors"] == 0 and played["predictions"] > 1000 and played["facts"] > 500
        busy = subprocess.run(
            [sys.executable, "-m", "tenon", "serve", str(shop), "--port", str(port)],
            capture_output=True,
            text=True,
            env=ENV,
            check=False,
            timeout=60,
        )
        assert busy.returncode != 0 and str(port) in busy.stderr and "Traceback" not in busy.stderr, busy.stderr
        status, metrics = ask(port, "GET", "/metrics")
        assert status == 200 and "tenon_" in metrics
    _check_what_was_kept(shop, played)


def _check_what_was_kept(shop: Path, played: dict[str, Any]) -> None:
    watched = tenon("watch", shop)
    rows = sum(window["rows"] for window in watched["windows"])
    assert rows >= played["predictions"], "every answer is an observation"
    assert sum(window["labelled"] for window in watched["windows"]) > 0.5 * rows
    assert any(window["metrics"].get("roc_auc") for window in watched["windows"])
    assert not any(finding["code"] == "watch/train-serve-skew" for finding in watched["findings"]), watched["findings"]
    states = [event["what"] for event in tenon("models", "audit", shop) if event["kind"] == "serving"]
    assert states == ["start", "stop"]
    spent = tenon("cost", shop)
    assert spent["predictions"] >= played["predictions"] and spent["usd_per_1000"] > 0
    assert all(Path(row["path"]).stat().st_size > 10_000 for row in tenon("report", shop))


def test_outcomes_from_a_file_meet_their_predictions(shop: Path, tmp_path: Path) -> None:
    port = free_port()
    with served(shop, port):
        _, answer = ask(port, "POST", "/predict/slow", {**ROW, "invoice": 9100, "sent": "2025-12-30T10:00:00"})
    by_id = tmp_path / "labels.csv"
    by_id.write_text(f"id,label\n{answer['predictions'][0]['id']},1\nnobody,0\n", "utf-8")
    done = tenon("labels", by_id, shop)
    assert (done["labels"], done["matched"], done["without"]) == (2, 1, 1)
    facts = tmp_path / "invoices.csv"
    facts.write_text(
        "invoice,customer,amount,sent,paid,days_late\n9100,C001,1200.5,2025-12-30T10:00:00,2026-02-20T10:00:00,22.0\n",
        "utf-8",
    )
    done = tenon("labels", facts, shop)
    assert (done["labels"], done["matched"]) == (1, 1)


def test_a_service_that_was_killed_knows_its_facts_when_it_comes_back(shop: Path) -> None:
    port = free_port()
    row = {**ROW, "customer": "C777", "sent": "2026-03-01T10:00:00"}
    fact = {
        "invoice": 9500, "customer": "C777", "amount": 50.0, "sent": "2026-01-01T10:00:00",
        "paid": "2026-02-25T10:00:00", "days_late": 40.0,
    }  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-m", "tenon", "serve", str(shop), "--port", str(port)], stderr=subprocess.DEVNULL, env=ENV
    )
    for _ in range(300):
        try:
            if ask(port, "GET", "/readyz")[0] == 200:
                break
        except OSError:
            time.sleep(0.1)
    before = ask(port, "POST", "/predict/slow", row)[1]["predictions"][0]["score"]
    assert ask(port, "POST", "/facts/invoices", {"rows": [fact]})[0] == 200
    after = ask(port, "POST", "/predict/slow", row)[1]["predictions"][0]["score"]
    assert after != before, "the fact must change the customer's history"
    child.kill()
    child.wait()
    with served(shop, port):
        assert ask(port, "POST", "/predict/slow", row)[1]["predictions"][0]["score"] == after
    with served(shop, port, "--as-of", "2026-02-01"):
        earlier = ask(port, "POST", "/predict/slow", row)[1]["predictions"][0]["score"]
        assert earlier == before, "as of a moment before it was posted, the fact is not known"

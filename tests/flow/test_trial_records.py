"""Trials are kept: what was tried when, by whom, how it ended; a running service follows, and writes what it saw."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tenon.errors import MissingError, UsageError
from tenon.flow import Work, promote, trial

from .conftest import again, edit

ROW = {"invoice": 9001, "customer": "C001", "amount": 1200.5, "sent": "2025-10-02T10:00:00"}


def two_versions(shop: Path) -> tuple[str, str]:
    """Make a second version and leave the first in production; return both."""
    edit(shop, 'train="logistic"', 'seed=3, train="logistic"')
    second = again(shop).models[0].version
    work = Work.open(shop, {})
    try:
        promote.rollback(work, promote.Move(reason="try it first"))
        first = promote.current(work, "slow")
        assert first is not None and first["id"] != second
        return str(first["id"]), second
    finally:
        work.store.close()


def test_what_was_tried_when_is_in_the_audit(shop: Path) -> None:
    first, second = two_versions(shop)
    work = Work.open(shop, {})
    try:
        canary = trial.begin(work, trial.Try(move=promote.Move(version=second), share=0.05))
        wider = trial.begin(work, trial.Try(move=promote.Move(version=second), share=0.5))
        assert wider["id"] == canary["id"], "a larger share is the same trial"
        found = trial.current(work, "slow")
        assert found is not None and (found.version, found.share) == (second, 0.5)
        body = {"trial": wider["id"], "evidence": {"compared": 3}, "verdict": {"why": "it differs"}, "ended": True}
        trial.judged(work, "slow", body)
        trial.judged(work, "slow", body)
        assert trial.current(work, "slow") is None
        assert trial.latest(work, "")["state"] == "rolled back"
        trial.begin(work, trial.Try(move=promote.Move(version=second)))
        promote.promote(work, promote.Move(version=second))
        assert trial.latest(work, "")["state"] == "promoted"
        whats = [(row["what"], row["version"]) for row in promote.audit(work) if row["kind"] == "trial"]
        states = ["canary of 5 % begun", "canary of 50 % changed", "canary of 50 % rolled back"]
        assert whats == [(what, second) for what in [*states, "shadow begun", "shadow promoted"]]
        with pytest.raises(MissingError, match="a trial under way"):
            trial.stop(work, "", "")
        with pytest.raises(UsageError, match="in production already"):
            trial.begin(work, trial.Try(move=promote.Move(version=second), share=0.1))
        promote.promote(work, promote.Move(version=first))
    finally:
        work.store.close()


@pytest.mark.parametrize("text", ["", "5", "0", "-1%", "101%", "nan", "half"])
def test_a_share_that_is_none_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match="a share such as 5%"):
        trial.share_of(text)


def test_a_running_service_takes_up_a_canary_and_keeps_what_it_saw(shop: Path) -> None:
    first, second = two_versions(shop)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    service = subprocess.Popen(
        [sys.executable, "-m", "tenon", "serve", str(shop), "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ,
    )  # fmt: skip
    try:
        assert service.stderr is not None and "serving slow" in service.stderr.readline()
        tenon = [sys.executable, "-m", "tenon", "models"]
        subprocess.run([*tenon, "canary", second, str(shop), "--share", "50%"], env=environ, check=True)
        versions: dict[str, set[str]] = {}
        until = time.monotonic() + 30
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            while time.monotonic() < until and {second} not in versions.values():
                for number in range(40):
                    connection.request("POST", "/predict/slow", json.dumps(ROW), {"x-route-key": str(number)})
                    answer = connection.getresponse()
                    body = json.loads(answer.read())
                    assert answer.status == 200
                    versions.setdefault(str(number), set()).add(body["version"])
                    if second in versions[str(number)]:
                        versions[str(number)].discard(first)  # what it said before the canary began
                time.sleep(0.1)
    finally:
        service.send_signal(signal.SIGTERM)
        service.communicate(timeout=60)
    assert {second} in versions.values() and {first} in versions.values()
    shown = subprocess.run([*tenon, "trial", str(shop), "--json"], env=environ, check=True, capture_output=True)
    held = json.loads(shown.stdout)
    assert held["state"] == "running"
    assert held["evidence"]["candidate"]["requests"] > 0 and held["verdict"]["answer"] in ("open", "good")
    told = subprocess.run([*tenon, "trial", str(shop)], env=environ, check=True, capture_output=True, text=True)
    assert "canary of" in told.stdout and "agreement" in told.stdout and "verdict" in told.stdout

"""Which version answers: never a worse one, never one that a person took out, and no request is lost on the way."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

from tenon.flow import Work, promote

from ..waiting import eventually
from .conftest import again, edit

ROW = {"invoice": 9001, "customer": "C001", "amount": 1200.5, "sent": "2025-10-02T10:00:00"}


def in_production(folder: Path) -> str:
    work = Work.open(folder, {}, read_only=True)
    try:
        held = promote.current(work, "slow")
        return str(held["id"]) if held else ""
    finally:
        work.store.close()


def test_a_version_that_is_worse_than_production_does_not_replace_it_and_says_so(shop: Path) -> None:
    before = in_production(shop)
    edit(shop, "beat_baseline=0.05", "beat_baseline=0.01")
    edit(shop, '        Feature("customer_slow_120d", "avg(days_late > 14)", over="customer", window="120d"),\n', "")
    (verdict,) = again(shop).models
    assert verdict.allowed and not verdict.serving
    assert "is worse beyond noise than the" in verdict.verdict and "stays in production" in verdict.verdict
    assert in_production(shop) == before


def test_what_a_person_rolled_back_the_next_run_does_not_put_back(shop: Path) -> None:
    first = in_production(shop)
    edit(shop, 'train="logistic"', 'seed=3, train="logistic"')
    second = again(shop).models[0].version
    assert in_production(shop) == second != first
    work = Work.open(shop, {})
    try:
        promote.rollback(work, promote.Move(reason="complaints"))
    finally:
        work.store.close()
    (verdict,) = again(shop).models
    assert not verdict.serving and "took it out of production for version 1" in verdict.verdict
    assert in_production(shop) == first


def test_a_project_put_back_as_it_was_gets_its_old_version_back(shop: Path) -> None:
    first = in_production(shop)
    edit(shop, 'train="logistic"', 'seed=3, train="logistic"')
    assert again(shop).models[0].serving
    edit(shop, 'seed=3, train="logistic"', 'train="logistic"')
    assert again(shop).models[0].serving and in_production(shop) == first


def test_a_running_service_takes_up_a_promotion_and_no_request_is_dropped(shop: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    service = subprocess.Popen(
        [sys.executable, "-m", "tenon", "serve", str(shop), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert service.stderr is not None and "serving slow" in service.stderr.readline()
    first, answers, stop = in_production(shop), list[tuple[int, str]](), threading.Event()

    def ask() -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            while not stop.is_set():
                connection.request("POST", "/predict/slow", json.dumps(ROW))
                answer = connection.getresponse()
                answers.append((answer.status, json.loads(answer.read()).get("version", "")))

    asking = [threading.Thread(target=ask) for _ in range(3)]
    try:
        for thread in asking:
            thread.start()
        edit(shop, 'train="logistic"', 'seed=5, train="logistic"')
        second = again(shop).models[0].version
        eventually(lambda: answers[-1][1] == second, 30, every=0.05)
    finally:
        stop.set()
        for thread in asking:
            thread.join()
        service.send_signal(signal.SIGTERM)
        service.communicate(timeout=60)
    assert {status for status, _ in answers} == {200}
    assert {version for _, version in answers} == {first, second} and answers[-1][1] == second
    assert service.returncode == 0

"""The process: a taken port is said in words, SIGTERM drains, SIGHUP looks for a new version, little is imported."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tenon.errors import UsageError
from tenon.serving import build_app, listen, run

SERVER = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("flights_service", sys.argv[1])
given = sys.modules["flights_service"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(given)
from tenon.serving import Seams, Settings, build_app, run

class Slow:
    def __init__(self, predictor, wait_s):
        self.predictor, self.wait_s = predictor, wait_s
    def score(self, columns):
        time.sleep(self.wait_s)
        return self.predictor.score(columns)

current = Path(sys.argv[2])
kept = []
def record(kind, subject, body):
    print(body["state"], body["version"], flush=True)
def tap(batch):
    print("observed", len(batch["id"]), flush=True)
    return True
seams = Seams(record=record, tap=tap, current=lambda _: current.read_text(), load=lambda _, v: given.make_service(v))
service = given.make_service(predictor=Slow(given.predictor(), float(sys.argv[3])))
app = build_app([service], seams=seams, settings=Settings(inline_ms=0.0, poll_s=60.0, tap_s=60.0))
run(app, port=0, started=lambda url: print(url, flush=True))
print("returned", flush=True)
"""


@contextmanager
def process(flights: Any, current: Path, wait_s: float = 0.0) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """Run a service in a process of its own; yields it and a client."""
    current.write_text("v1")
    conftest = str(Path(__file__).with_name("conftest.py"))
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, conftest, str(current), str(wait_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "start v1\n"
            ask = flights.asker(server.stdout.readline().strip())
            yield server, ask
            ask.connection.close()
        finally:
            server.kill()


def test_sigterm_lets_requests_in_flight_finish_then_offers_what_waits_and_returns(
    flights: Any, tmp_path: Path
) -> None:
    with process(flights, tmp_path / "current", wait_s=0.7) as (server, ask):
        ask.predict(flights.ASK)
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(ask.predict(flights.ASK).status))
        thread.start()
        time.sleep(0.3)
        server.send_signal(signal.SIGTERM)
        thread.join()
        out, err = server.communicate(timeout=15)
    assert answers == [200]
    assert out.splitlines() == ["observed 2", "stop v1", "returned"]
    assert server.returncode == 0
    assert err == ""


def test_sighup_looks_for_another_version_at_once(flights: Any, tmp_path: Path) -> None:
    current = tmp_path / "current"
    with process(flights, current) as (server, ask):
        assert ask.predict(flights.ASK).json["version"] == "v1"
        current.write_text("v2")
        server.send_signal(signal.SIGHUP)
        assert server.stdout is not None
        assert server.stdout.readline() == "swap v2\n"
        assert ask.predict(flights.ASK).json["version"] == "v2"


# ── the port ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_port_in_use_says_who_holds_it_and_which_is_free(flights: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError) as caught:
            run(build_app([flights.make_service()]), "127.0.0.1", port)
    said = str(caught.value)
    assert f"expected port {port} of 127.0.0.1 to be free, got it taken by process {os.getpid()} (" in said
    free = re.search(r"port (\d+) is free", said)
    assert free is not None
    listen("127.0.0.1", int(free[1])).close()


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("no.such.host.invalid", 0, "a host to listen on"),
        ("192.0.2.1", 0, "to listen on 192.0.2.1:0"),
        ("127.0.0.1", 70_000, "a port from 0 to 65535"),
        ("127.0.0.1", -1, "a port from 0 to 65535"),
    ],
)
def test_an_address_that_cannot_be_had_is_said_in_words(host: str, port: int, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        listen(host, port)


# ── what it costs to start ───────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_of_training_is_imported_to_serve(flights: Any) -> None:
    code = (
        "import sys; import tenon.serving as serving; [getattr(serving, name) for name in serving.__all__]; "
        "from tenon.model import Predictor; from tenon.feature import FeatureSet; print(' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    modules = set(done.stdout.split())
    barred = ("torch", "sklearn", "lightgbm", "onnx", "duckdb", "ray", "tenon.ingest", "tenon.training", "tenon.watch")
    assert not {name for name in modules if name in barred or name.startswith(tuple(f"{each}." for each in barred))}

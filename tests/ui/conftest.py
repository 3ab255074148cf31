"""A store filled as a project would fill it, once plainly and once by somebody who means harm; a page over it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
from starlette.types import ASGIApp, Message

from tenon import ui
from tenon.ledger import Entry
from tenon.store import Store
from tenon.training.track import Run

Fill = Callable[[Store, str], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: status, headers by lower-case name, text."""

    status: int
    headers: dict[str, str]
    text: str


class Browser:
    """Ask an ASGI app as a browser on this machine would."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def get(self, path: str, *, method: str = "GET", host: str = "127.0.0.1") -> Answer:
        """Ask for a path, query included."""
        return asyncio.run(self._ask(path, method, host))

    async def _ask(self, path: str, method: str, host: str) -> Answer:
        parts = urlsplit(path)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(parts.path),
            "raw_path": parts.path.encode(),
            "query_string": quote(parts.query, safe="=&?+%").encode(),
            "root_path": "",
            "headers": [(b"host", host.encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return Answer(sent[0]["status"], headers, body.decode())


def fill(store: Store, odd: str = "") -> None:
    """Write a record of every kind; `odd` is put wherever text can come from outside."""
    store.put(
        "project",
        "p",
        {"name": "p", "models": [{"name": "late", "title": "Late flights" + odd, "question": "Late?" + odd}]},
    )
    finding = {
        "code": "watch/drift",
        "severity": "warning",
        "place": "late/drift" + odd,
        "said": "In the week of 25 November 2013 temp looked unlike the training data." + odd,
        "hint": "Look." + odd,
        "numbers": {},
    }
    store.put("dataset", "d1", dataset(odd, finding))
    estimate = {"value": 0.76, "low": 0.75, "high": 0.77}
    for number in (1, 2):
        with Run.start(
            store, f"run{number}", "late", trainer="lightgbm", seed=number, git={"commit": "abc" + odd}
        ) as run:
            for step in range(50):
                run.log(step, train_loss=1 / (step + 1), valid_loss=1.1 / (step + 1))
            run.finish(
                "done",
                metrics={"valid": {"roc_auc": estimate}, "test": {"roc_auc": estimate, "brier": estimate}},
                baselines={"logistic" + odd: {"roc_auc": {"value": 0.72, "low": 0.71, "high": 0.73}}},
                calibration=[{"predicted": 0.1, "observed": 0.12, "rows": 100, "low": 0.08, "high": 0.16}],
                importance=[{"name": "hour" + odd, "gain": 3.0}, {"name": "temp", "gain": 1.0}],
                split={"train": {"from": "2013-01-01", "to": "2013-08-31", "rows": 9, "rate": 0.2}},
                findings=[finding],
                params={"leaves": 31 + number, "note": odd},
                usd=0.001,
            )
    store.put("version", "v1", version(odd))
    store.put(
        "alias",
        "late/production",
        {"id": "late/production", "model": "late", "alias": "production", "version": "v1", "at": 5.0},
    )
    store.event(
        "alias", "late", {"alias": "production", "version": "v1", "previous": "", "reason": "gate" + odd, "by": odd}
    )
    store.event("serving", "late", {"state": "start", "version": "v1", "host": odd or "127.0.0.1", "port": 1})
    store.put(
        "features", "f1", {"id": "f1", "model": "late", "definition": [{"name": "hour" + odd, "sql": "hour(t)" + odd}]}
    )
    store.put("watch", "w1", watch(odd, finding, estimate))
    store.charge(Entry(kind="compute", subject="run1", quantity=1.0, unit="core s", usd=0.01, at=1e9, note=odd))
    store.charge(Entry(kind="compute", subject="late" + odd, quantity=1.0, unit="core s", usd=0.02, at=1.1e9))


def dataset(odd: str, finding: dict[str, Any]) -> dict[str, Any]:
    """Build a dataset record."""
    return {
        "id": "d1",
        "source": "flights" + odd,
        "at": 1.0,
        "paths": ["raw/flights.csv" + odd],
        "rows": 336_776,
        "bytes": 30_000_000,
        "quarantined": 12,
        "repaired": 3,
        "balance": {"bytes": 30, "row_bytes": 28, "quarantine_bytes": 1, "skipped_bytes": 1, "closes": True},
        "columns": [{"name": "dep" + odd, "type": "int", "unit": "min" + odd, "null_pct": 2.5}],
        "findings": [finding],
        "seconds": 2.0,
        "usd": 0.0001,
    }


def version(odd: str) -> dict[str, Any]:
    """Build a version record."""
    return {
        "id": "v1",
        "model": "late",
        "number": 1,
        "at": 4.0,
        "run": "run1",
        "parity": {"max_abs": 1e-7},
        "gate": {
            "allowed": True,
            "checks": [
                {"name": "baseline", "passed": True, "said": "0.04 better than logistic" + odd},
                {"name": "p99_ms", "passed": False, "said": "too slow" + odd},
            ],
        },
        "latency": {"p50_ms": 0.1, "p99_ms": 0.2},
        "size_bytes": 900_000,
    }


def watch(odd: str, finding: dict[str, Any], estimate: dict[str, float]) -> dict[str, Any]:
    """Build a watch record of three windows, the last of them open."""
    windows = [
        {
            "start": f"2013-11-{day:02}T00:00:00",
            "end": f"2013-11-{day + 7:02}T00:00:00",
            "rows": 1000,
            "labelled": 990,
            "labelled_share": 0.99,
            "open": day == 18,
            "metrics": {"roc_auc": estimate},
            "rate": 0.2,
            "predicted": 0.19,
            "drift": {"hour" + odd: 0.02, "temp": 0.4},
            "p50_ms": 1.0,
            "p99_ms": 3.0,
            "errors": 0,
            "usd": 0.01,
            "usd_per_1000": 0.01,
        }
        for day in (4, 11, 18)
    ]
    columns = [
        {"name": "temp", "psi": 0.4, "worst": 0.4, "limit": 0.1},
        {"name": "hour" + odd, "psi": 0.02, "worst": 0.02},
    ]
    return {
        "id": "w1",
        "model": "late",
        "version": "v1",
        "at": 6.0,
        "as_of": "2013-11-24T00:00:00",
        "windows": windows,
        "columns": columns,
        "findings": [finding],
        "labels": {"delay_p99_s": 3600.0},
        "expected": {"metric": "roc_auc", "metrics": {"roc_auc": estimate}, "baseline": odd, "baseline_value": 0.7},
        "seconds": 0.1,
    }


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Open an empty store."""
    with Store.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def filled() -> Fill:
    """Return what fills a store."""
    return fill


@pytest.fixture
def page(store: Store) -> Browser:
    """Open the page over the store."""
    return Browser(ui.build_app(store))

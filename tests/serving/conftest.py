"""A small real service for every test here: three features of flights, one of them from history, and a linear model.

Everything is the thing itself: the feature set, its online state, an ONNX graph run by the predictor, a store on disk,
a server on a free port. `Asker` is one kept connection of the standard library's client.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from tenon.contract import Column, Source
from tenon.encoding import Encoding
from tenon.feature import Feature, FeatureSet, Label
from tenon.model import Predictor, compile
from tenon.serving import Seams, Service, Settings, build_app, running
from tenon.store import Store

FLIGHTS = Source(
    "flights",
    key=["carrier", "flight"],
    time="sched_dep",
    known="arr",
    columns=[
        Column("carrier", one_of=("AA", "DL", "UA")),
        Column("flight", "int", between=(1, 9999)),
        Column("sched_dep", "timestamp"),
        Column("distance", "float", unit="mi", nullable=True, between=(0, 6000)),
        Column("arr_delay", "float", unit="min", nullable=True, late=True),
        Column("arr", "timestamp", nullable=True, late=True),
    ],
)
FEATURES = FeatureSet.compile(
    [
        Feature("hour", "hour(sched_dep)"),
        Feature("flight", "flight"),
        Feature("distance", "distance"),
        Feature("carrier", "carrier"),
        Feature("carrier_late_7d", "avg(arr_delay > 30)", over="carrier", window="7d"),
    ],
    Label("arr_delay > 30", known="arr"),
    FLIGHTS,
    {"flights": FLIGHTS},
)
ROW = {"carrier": "UA", "flight": 1545, "sched_dep": "2013-11-01T05:15:00", "distance": 1400.0}
PAST = pl.DataFrame(
    {
        "carrier": ["UA", "UA", "DL"],
        "flight": [1, 2, 3],
        "sched_dep": [datetime(2013, 10, 30, 6), datetime(2013, 10, 30, 8), datetime(2013, 10, 30, 9)],
        "distance": [100.0, 200.0, 300.0],
        "arr_delay": [45.0, -3.0, 0.0],
        "arr": [datetime(2013, 10, 30, 9), datetime(2013, 10, 30, 10), datetime(2013, 10, 30, 12)],
    }
)
FACT = {
    "carrier": "UA",
    "flight": 9,
    "sched_dep": "2013-10-31T06:00:00",
    "distance": 500.0,
    "arr_delay": 90.0,
    "arr": "2013-10-31T10:00:00",
}


def fact(number: int) -> dict[str, Any]:
    """Return the flight of that number: each departs and lands at a time of its own."""
    leaves = datetime(2013, 10, 28) + timedelta(seconds=31 * number)
    return {
        **FACT,
        "flight": number,
        "sched_dep": leaves.isoformat(),
        "arr": (leaves + timedelta(hours=3, seconds=7 * number)).isoformat(),
    }


def predictor(bias: float = -1.0) -> Predictor:
    """Compile a logistic model of the features above to ONNX and load it."""
    columns = {
        "hour": [0.0, 12.0, 23.0, 6.0],
        "flight": [1.0, 20.0, 300.0, 4000.0],
        "distance": [100.0, 1000.0, 2000.0, None],
        "carrier": ["AA", "DL", "UA", "UA"],
        "carrier_late_7d": [0.0, 0.5, 1.0, None],
    }
    encoding = Encoding.learn(columns, np.array([0.0, 1.0, 1.0, 0.0]), FEATURES.kinds, "onehot")
    weights = np.linspace(-0.5, 0.7, encoding.width)
    fitted = SimpleNamespace(
        model=SimpleNamespace(weights=weights, bias=bias, logit=True),
        encoding=encoding,
        task="binary",
        trainer="logistic",
        threshold=0.5,
        rounds=0,
    )
    compiled = compile(fitted, SimpleNamespace(names=FEATURES.names, kind_of=FEATURES.kinds))
    return Predictor.load(compiled.onnx, compiled.manifest)


def make_service(version: str = "v1", *, bias: float = -1.0, **more: Any) -> Service:
    """Return a service of the flights model."""
    given: dict[str, Any] = {
        "name": "late",
        "version": version,
        "predictor": predictor(bias),
        "online": FEATURES.online({"flights": PAST}),
        "inputs": FEATURES.inputs,
        "columns": FLIGHTS.columns,
        "label": "arr_delay > 30",
        "threshold": 0.5,
        "usd_per_row": 1e-6,
        "key": [name for name in FLIGHTS.key if name in FEATURES.inputs],
        "time": "sched_dep",
        "example": {name: ROW[name] for name in FEATURES.inputs},
    }
    return Service(**{**given, **more})


INPUTS = tuple(FEATURES.inputs)
ASK = {name: ROW[name] for name in INPUTS}


@dataclass
class Reply:
    """An answer: status, headers, and the body as JSON (or bytes where it is none)."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


@dataclass
class Asker:
    """One connection to a service."""

    url: str
    connection: http.client.HTTPConnection = field(init=False)

    def __post_init__(self) -> None:
        self.connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=20)

    def __call__(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        self.connection.request(method, path, data, dict(headers or {}))
        answer = self.connection.getresponse()
        raw = answer.read()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, raw)

    def predict(self, body: Any, headers: Mapping[str, str] | None = None) -> Reply:
        return self("POST", "/predict/late", body, headers)


Start = Callable[..., Asker]


@pytest.fixture(scope="session")
def flights() -> SimpleNamespace:
    """Return what tests say of the flights model: its rows, its features, and how services of it are made."""
    return SimpleNamespace(
        ASK=ASK,
        FACT=FACT,
        fact=fact,
        FEATURES=FEATURES,
        PAST=PAST,
        SOURCE=FLIGHTS,
        make_service=make_service,
        predictor=predictor,
        asker=Asker,
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "project") as opened:
        yield opened


@pytest.fixture
def start() -> Iterator[Start]:
    """Start services on free ports, and stop them when the test ends; returns a client of each."""
    with ExitStack() as stack:

        def begin(*services: Service, seams: Seams | None = None, settings: Settings | None = None) -> Asker:
            app = build_app(services or (make_service(),), seams=seams, settings=settings)
            asker = Asker(stack.enter_context(running(app)))
            stack.callback(asker.connection.close)
            return asker

        yield begin


@pytest.fixture(scope="session")
def plain() -> Iterator[str]:
    """Run one service with everything at its default for the whole session; yields its URL."""
    with running(build_app([make_service()])) as url:
        yield url


@pytest.fixture
def ask(plain: str) -> Iterator[Asker]:
    """Return a client of the service with everything at its default."""
    asker = Asker(plain)
    yield asker
    asker.connection.close()

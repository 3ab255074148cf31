"""Single-row predictions over HTTP: tenon, all of it, beside bare ASGI apps and other servers of models.

    python bench/serving.py [--record] [--quick] [--peers PYTHON] [--peer NAME=PYTHON ...]

Every candidate serves the same LightGBM model of 100 trees and 20 features, one worker each; wrk asks for one row on 32
connections, in turns. `bare, ONNX` decodes JSON, fills a matrix and runs the ONNX graph under the same uvicorn with
httptools as tenon: what a person writes in an afternoon. `bare, LightGBM` calls the library. tenon checks every column,
reads features, batches, keeps observations in a store, counts cost and latency. The peers (granian with the bare app,
LitServe, BentoML, Ray Serve) run in a Python of their own, `--peers` for all or `--peer litserve=...` for one; one that
is not there is said and left out. Each peer is up only while it is measured, in turns with the bare app and with tenon.

On a machine that others use too, read processor time (that of the server's processes for each request) and the column
of quiet rounds (the least quarter of what the rounds had at the 99th percentile). The last table is the replay client.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parent))

import measure
import serving_peers
from serving_peers import NAMES

CONNECTIONS = 32


def make_model(folder: Path) -> None:
    """Train the model once and keep it as text, ONNX and manifest."""
    import lightgbm

    from tenon.encoding import Encoding
    from tenon.model import compile
    from tenon.training.fitted import Fitted

    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, len(NAMES)))
    y = (x[:, 0] + x[:, 1] * x[:, 2] + rng.normal(size=len(x)) > 0).astype(float)
    kinds = dict.fromkeys(NAMES, "number")
    encoding = Encoding.learn({name: x[:, number] for number, name in enumerate(NAMES)}, y, kinds)
    data = lightgbm.Dataset(x, y)
    booster = lightgbm.train({"objective": "binary", "num_leaves": 31, "verbose": -1, "seed": 1}, data, 100)
    fitted = Fitted(model=booster, encoding=encoding, task="binary", trainer="lightgbm", threshold=0.5, rounds=100)

    class Data:
        names = NAMES
        kind_of = kinds

    compiled = compile(fitted, Data)
    booster.save_model(str(folder / "model.txt"))
    (folder / "model.onnx").write_bytes(compiled.onnx)
    (folder / "manifest.json").write_text(json.dumps(compiled.manifest))


# ── the candidates, each run in a process of its own ─────────────────────────────────────────────────────────────────


def serve_tenon(folder: Path) -> None:
    """Serve with everything on: contract, features, batching, observations kept in a store, cost."""
    from tenon.contract import Column, Source
    from tenon.feature import Feature, FeatureSet, Label
    from tenon.model import Predictor
    from tenon.serving import Seams, Service, build_app, run
    from tenon.store import Store
    from tenon.watch import Collector

    columns = [Column("key"), Column("at", "timestamp"), *(Column(name, "float", between=(-50, 50)) for name in NAMES)]
    columns.append(Column("y", "float", nullable=True, late=True))
    source = Source("rows", key=["key"], time="at", columns=columns)
    features = FeatureSet.compile([Feature(name, name) for name in NAMES], Label("y > 0", known="at"), source, {})
    predictor = Predictor.load((folder / "model.onnx").read_bytes(), json.loads((folder / "manifest.json").read_text()))
    import polars as pl

    empty = pl.DataFrame(schema={"key": pl.String, "at": pl.Datetime("us"), **dict.fromkeys([*NAMES, "y"], pl.Float64)})
    with Store.open(folder / "project") as store, Collector(store, "m") as collector:
        service = Service(
            name="m",
            version="v1",
            predictor=predictor,
            online=features.online({"rows": empty}),
            inputs=features.inputs,
            columns=columns,
            time="at",
            threshold=0.5,
            usd_per_row=1e-7,
        )
        app = build_app([service], seams=Seams(store=store, tap=collector.offer))
        run(app, port=0, started=lambda url: print(url + "/predict/m", flush=True))


def serve_bare(folder: Path, kind: str) -> None:
    """Serve the same model with nothing around it."""
    import socket

    import uvicorn

    if kind == "onnx":
        score = serving_peers.scorer(folder)
    else:
        import lightgbm

        booster = lightgbm.Booster(model_file=str(folder / "model.txt"))

        def score(row: dict[str, float]) -> float:
            return float(booster.predict(np.array([[row[name] for name in NAMES]]), num_threads=1)[0])

    # The protocol is named so that asyncio turns Nagle's algorithm off, as it does for uvicorn's own sockets.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    sock.listen(2048)
    print(f"http://127.0.0.1:{sock.getsockname()[1]}/", flush=True)
    config = uvicorn.Config(
        serving_peers.asgi(score),
        loop="asyncio",
        http="httptools",
        lifespan="off",
        log_level="error",
        access_log=False,
        proxy_headers=False,
    )
    uvicorn.Server(config).run(sockets=[sock])


CANDIDATES = ("bare, ONNX", "tenon", "bare, LightGBM")
PEERS = {"granian": "bare, ONNX, granian", "litserve": "LitServe", "bentoml": "BentoML", "ray": "Ray Serve"}
BARE, OURS = CANDIDATES[:2]
Figures = dict[str, float]


def main_of(name: str, folder: Path) -> None:
    """Be the server of a candidate."""
    if name == "tenon":
        serve_tenon(folder)
    else:
        serve_bare(folder, "onnx" if "ONNX" in name else "lightgbm")


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def ask(url: str, script: Path, seconds: float, connections: int, process: psutil.Process) -> dict[str, float]:
    """Ask for predictions with wrk and return requests a second, latencies and the server's processor time."""
    before = spent(process)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", str(script), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text:
        raise SystemExit(f"{url} refused requests:\n{text}")
    count = int(re.search(r"(\d+) requests in", text)[1])  # type: ignore[index]
    cpu = spent(process) - before
    return {
        "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),  # type: ignore[index]
        "p50": milliseconds(re.search(r"\n\s+50%\s+(\S+)", text)[1]),  # type: ignore[index]
        "p99": milliseconds(re.search(r"\n\s+99%\s+(\S+)", text)[1]),  # type: ignore[index]
        "cpu": cpu / count * 1e6,
    }


def spent(process: psutil.Process) -> float:
    """Return the processor seconds of a server and the processes it started."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            total += sum(one.cpu_times()[:2])
        except psutil.Error:
            continue
    return total


def milliseconds(text: str) -> float:
    """Read what wrk writes for a time."""
    for unit, factor in (("us", 1e-3), ("ms", 1.0), ("s", 1e3)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise ValueError(text)


def replayed(url: str, row: dict[str, Any], rows: int) -> list[Any]:
    """Measure the replay client against the running service: single-row requests, tick by tick."""
    from tenon.serving import Tick, replay

    ticks = [Tick(end=float(n), rows=[row] * 500) for n in range(rows // 500)]
    done = replay(ticks, url.rsplit("/predict", 1)[0], "m")
    return [f"{done.predictions:,}", f"{done.rate_per_s:,.0f}", f"{done.p50_ms:.2f}", f"{done.p99_ms:.2f}", done.errors]


class Server:
    """A candidate in a process of its own, and the script by which wrk asks it."""

    def __init__(self, command: list[str], script: Path, row: dict[str, Any]) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        body = json.dumps(row)
        script.write_text(f"wrk.method='POST'\nwrk.headers['content-type']='application/json'\nwrk.body='{body}'\n")
        self.script = script
        assert self.process.stdout is not None
        self.url = ""
        while not self.url.startswith("http://") and self.process.poll() is None:
            self.url = self.process.stdout.readline().strip()

    def ask(self, seconds: float, connections: int = CONNECTIONS) -> Figures:
        """Ask for so many seconds."""
        return ask(self.url, self.script, seconds, connections, psutil.Process(self.process.pid))

    def end(self) -> None:
        """Stop it and everything that it started."""
        family = [psutil.Process(self.process.pid)] if self.process.poll() is None else []
        family += [child for one in family for child in one.children(recursive=True)]
        self.process.terminate()
        _, left = psutil.wait_procs(family, timeout=8)
        for one in left:
            one.kill()
        self.process.wait()


def turns(servers: dict[str, Server], rounds: int, seconds: float, connections: int) -> dict[str, list[Figures]]:
    """Ask all of them in turns."""
    found: dict[str, list[Figures]] = {name: [] for name in servers}
    for server in servers.values():
        server.ask(1, connections)
    for _ in range(rounds):
        for name, server in servers.items():
            found[name].append(server.ask(seconds, connections))
    return found


def lines(found: dict[str, list[Figures]]) -> list[list[str]]:
    """Write what was found, each beside the first."""

    def middle(name: str, key: str) -> float:
        return statistics.median(one[key] for one in found[name])

    def quiet(name: str) -> float:
        return float(np.quantile([one["p99"] for one in found[name]], 0.25))

    first = next(iter(found))
    return [
        [
            name,
            f"{middle(name, 'rate'):,.0f}",
            f"{statistics.median(a['rate'] / b['rate'] for a, b in zip(found[name], found[first], strict=True)):.2f}",
            f"{middle(name, 'p50'):.2f}",
            f"{middle(name, 'p99'):.2f}",
            f"{quiet(name):.2f}",
            f"{quiet(name) / quiet(first):.2f}",
            f"{middle(name, 'cpu'):.1f}",
        ]
        for name in found
    ]


def pythons(asked: argparse.Namespace) -> dict[str, str]:
    """Return the Python of each peer that was named."""
    return (dict.fromkeys(PEERS, asked.peers) if asked.peers else {}) | dict(one.split("=", 1) for one in asked.peer)


def beside_peers(
    servers: dict[str, Server], folder: Path, rounds: int, row: dict[str, Any], given: dict[str, str]
) -> list[list[str]]:
    """Measure each peer in turns with the bare app and tenon; a peer is up only meanwhile."""
    found = []
    for name, title in PEERS.items():
        if name not in given:
            print(f"left out: {title}; give --peer {name}=PYTHON", file=sys.stderr)
            continue
        script = str(Path(__file__).with_name("serving_peers.py"))
        server = Server([given[name], script, name, str(folder)], folder / f"{name}.lua", row)
        try:
            if server.url:
                three = {BARE: servers[BARE], OURS: servers[OURS], title: server}
                found += [[title, *line] for line in lines(turns(three, rounds, 2, CONNECTIONS))]
            else:
                print(f"left out: {title} did not start with {given[name]}", file=sys.stderr)
        finally:
            server.end()
    return found


def main(quick: bool, peers: dict[str, str]) -> None:
    """Start every candidate, ask in turns, and show the tables."""
    measure.needs("lightgbm", "onnx", program="wrk")  # the extra `train`, and the Debian package wrk
    rounds = 4 if quick else 16
    rng = np.random.default_rng(3)
    values = {name: round(float(value), 4) for name, value in zip(NAMES, rng.normal(size=len(NAMES)), strict=True)}
    row = {"at": "2013-11-01T05:15:00", **values}  # tenon is also told when the row happens
    header = ["candidate", "requests/s", "times the first", "p50 ms", "p99 ms", "p99 ms, quiet rounds"]
    header += ["times the first", "server processor µs a request"]
    tables = []
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        make_model(folder)
        servers: dict[str, Server] = {}
        try:
            for n, name in enumerate(CANDIDATES):
                command = [sys.executable, __file__, "--serve", name, temp]
                servers[name] = Server(command, folder / f"{n}.lua", row if name == OURS else values)
            for connections, times in ((CONNECTIONS, rounds), (1, rounds // 4)):
                title = f"Single-row predict over HTTP, {connections} connections, {os.cpu_count()} cores"
                found = turns(servers, times, 2, connections)
                tables.append(measure.rows(title, header, lines(found)))
            servers.pop("bare, LightGBM").end()
            compared = beside_peers(servers, folder, 2 if quick else 4, values, peers)
            if compared:
                title = f"The same beside other servers, {CONNECTIONS} connections: each with those it took turns with"
                tables.append(measure.rows(title, ["with", *header], compared))
            played = replayed(servers[OURS].url, row, 5_000 if quick else 30_000)
        finally:
            for server in servers.values():
                server.end()
    replay_header = ["predictions", "a second", "p50 ms", "p99 ms", "errors"]
    tables.append(measure.rows("Replay against the tenon service above, single-row requests", replay_header, [played]))
    measure.show("## Serving", *tables, measure.machine("uvicorn", "httptools", "onnxruntime", "lightgbm", "msgspec"))


if __name__ == "__main__":
    parser = measure.options(__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the rounds")
    parser.add_argument("--peers", metavar="PYTHON", help="a Python that has all the peers")
    parser.add_argument("--peer", metavar="NAME=PYTHON", action="append", default=[], help=", ".join(PEERS))
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)  # be a candidate, in a process of its own
    asked = parser.parse_args()
    if asked.serve:
        main_of(asked.serve[0], Path(asked.serve[1]))
    else:
        started = time.perf_counter()
        main(asked.quick, pythons(asked))
        print(f"\n{time.perf_counter() - started:.0f} s", file=sys.stderr)

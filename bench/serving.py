"""Single-row predictions over HTTP: tenon, all of it, beside a bare ASGI app that does nothing but score.

    python bench/serving.py [--record] [--quick]

Every candidate serves the same LightGBM model of 100 trees and 20 features under the same uvicorn with httptools, one
process each; wrk asks for one row on 32 connections, in turns. `bare, ONNX` decodes JSON, fills a matrix and runs the
ONNX graph: what a person writes in an afternoon. `bare, LightGBM` calls the library. tenon checks every column, reads
features, batches, keeps observations in a store, counts cost and latency. Processor time is that of the server process
for each request: the figure to read on a machine that others use too. The last table is the replay client.
"""

from __future__ import annotations

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

NAMES = [f"x{number}" for number in range(20)]
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

    import msgspec
    import uvicorn

    if kind == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        manifest = json.loads((folder / "manifest.json").read_text())
        name, column, given = manifest["output"]["name"], manifest["output"]["column"], session.get_inputs()[0].name

        def score(row: dict[str, float]) -> float:
            found = session.run([name], {given: np.array([[row[name] for name in NAMES]], np.float32)})[0]
            return float(found.reshape(1, -1)[0, column])
    else:
        import lightgbm

        booster = lightgbm.Booster(model_file=str(folder / "model.txt"))

        def score(row: dict[str, float]) -> float:
            return float(booster.predict(np.array([[row[name] for name in NAMES]]), num_threads=1)[0])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        answer = msgspec.json.encode({"score": score(msgspec.json.decode(body))})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    # The protocol is named so that asyncio turns Nagle's algorithm off, as it does for uvicorn's own sockets.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    sock.listen(2048)
    print(f"http://127.0.0.1:{sock.getsockname()[1]}/", flush=True)
    config = uvicorn.Config(
        app, loop="asyncio", http="httptools", lifespan="off", log_level="error", access_log=False, proxy_headers=False
    )
    uvicorn.Server(config).run(sockets=[sock])


CANDIDATES = ("bare, ONNX", "tenon", "bare, LightGBM")


def main_of(name: str, folder: Path) -> None:
    """Be the server of a candidate."""
    if name == "tenon":
        serve_tenon(folder)
    else:
        serve_bare(folder, "onnx" if "ONNX" in name else "lightgbm")


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def ask(url: str, script: Path, seconds: int, connections: int, process: psutil.Process) -> dict[str, float]:
    """Ask for predictions with wrk and return requests a second, latencies and the server's processor time."""
    before = sum(process.cpu_times()[:2])
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", str(script), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text:
        raise SystemExit(f"{url} refused requests:\n{text}")
    count = int(re.search(r"(\d+) requests in", text)[1])  # type: ignore[index]
    cpu = sum(process.cpu_times()[:2]) - before
    return {
        "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),  # type: ignore[index]
        "p50": milliseconds(re.search(r"\n\s+50%\s+(\S+)", text)[1]),  # type: ignore[index]
        "p99": milliseconds(re.search(r"\n\s+99%\s+(\S+)", text)[1]),  # type: ignore[index]
        "cpu": cpu / count * 1e6,
    }


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


def main() -> None:
    """Start every candidate, ask in turns, and show the tables."""
    import measure

    measure.needs("lightgbm", "onnx", program="wrk")  # the extra `train`, and the Debian package wrk
    quick = "--quick" in sys.argv
    rounds, seconds = (2, 2) if quick else (5, 4)
    rng = np.random.default_rng(3)
    values = {name: round(float(value), 4) for name, value in zip(NAMES, rng.normal(size=len(NAMES)), strict=True)}
    row = {"at": "2013-11-01T05:15:00", **values}  # tenon is also told when the row happens
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        make_model(folder)
        found: dict[tuple[str, int], list[dict[str, float]]] = {}
        servers = {
            name: subprocess.Popen([sys.executable, __file__, "--serve", name, temp], stdout=subprocess.PIPE, text=True)
            for name in CANDIDATES
        }
        try:
            urls = {name: server.stdout.readline().strip() for name, server in servers.items()}  # type: ignore[union-attr]
            scripts = {}
            for name in CANDIDATES:
                scripts[name] = folder / f"{servers[name].pid}.lua"
                body = json.dumps(row if name == "tenon" else values)
                scripts[name].write_text(
                    f"wrk.method='POST'\nwrk.headers['content-type']='application/json'\nwrk.body='{body}'\n"
                )
            for name in CANDIDATES:
                ask(urls[name], scripts[name], 1, CONNECTIONS, psutil.Process(servers[name].pid))
            for connections in (CONNECTIONS, 1):
                for _ in range(rounds if connections > 1 else 2):
                    for name in CANDIDATES:
                        process = psutil.Process(servers[name].pid)
                        one = ask(urls[name], scripts[name], seconds, connections, process)
                        found.setdefault((name, connections), []).append(one)
            played = replayed(urls["tenon"], row, 5_000 if quick else 30_000)
        finally:
            for server in servers.values():
                server.terminate()
                server.wait()
    header = ["candidate", "requests/s", "times bare ONNX", "p50 ms", "p99 ms", "server processor µs a request"]
    tables = []
    for connections in (CONNECTIONS, 1):
        first = statistics.median(one["rate"] for one in found["bare, ONNX", connections])
        lines = []
        for name in CANDIDATES:
            middle = {
                k: statistics.median(one[k] for one in found[name, connections]) for k in ("rate", "p50", "p99", "cpu")
            }
            lines.append(
                [
                    name,
                    f"{middle['rate']:,.0f}",
                    f"{middle['rate'] / first:.2f}",
                    f"{middle['p50']:.2f}",
                    f"{middle['p99']:.2f}",
                    f"{middle['cpu']:.1f}",
                ]
            )
        tables.append(
            measure.rows(
                f"Single-row predict over HTTP, {connections} connections, {os.cpu_count()} cores", header, lines
            )
        )
    replay_header = ["predictions", "a second", "p50 ms", "p99 ms", "errors"]
    tables.append(measure.rows("Replay against the tenon service above, single-row requests", replay_header, [played]))
    measure.show(*tables, measure.machine("uvicorn", "httptools", "onnxruntime", "lightgbm", "msgspec"))


if __name__ == "__main__":
    if "--serve" in sys.argv:
        place = sys.argv.index("--serve")
        main_of(sys.argv[place + 1], Path(sys.argv[place + 2]))
    else:
        started = time.perf_counter()
        main()
        print(f"\n{time.perf_counter() - started:.0f} s", file=sys.stderr)

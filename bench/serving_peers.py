"""The servers that tenon is compared with in `bench/serving.py`; run in a Python that has them, and nothing of tenon.

    python bench/serving_peers.py NAME FOLDER     # prints its URL when it listens

Each loads the same ONNX graph with one thread and answers the same JSON with a score, the way its own documentation
shows first, with the batching and the logging that it comes with turned to what is quickest for single rows: no access
log, no telemetry, one worker.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import free_port

FOLDER = Path(os.environ.get("TENON_BENCH_FOLDER", "."))
NAMES = [f"x{number}" for number in range(20)]


def scorer(folder: Path) -> Any:
    """Return a function from a row to its score."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    manifest = json.loads((folder / "manifest.json").read_text())
    name, column, given = manifest["output"]["name"], manifest["output"]["column"], session.get_inputs()[0].name

    def score(row: dict[str, float]) -> float:
        found = session.run([name], {given: np.array([[row[name] for name in NAMES]], np.float32)})[0]
        return float(found.reshape(1, -1)[0, column])

    return score


def tell(url: str) -> threading.Thread:
    """Print the URL once the server answers a prediction, from a thread that then ends."""

    def work() -> None:
        body = json.dumps(dict.fromkeys(NAMES, 0.0)).encode()
        for _ in range(600):
            try:
                asked = urllib.request.Request(url, body, {"content-type": "application/json"})
                with urllib.request.urlopen(asked, timeout=5) as answer:
                    if answer.status == 200:
                        print(url, flush=True)
                        return
            except OSError:
                time.sleep(0.2)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def asgi(score: Callable[[dict[str, float]], float]) -> Any:
    """Return the bare ASGI app around a function from a row to its score."""
    import msgspec

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"].rpartition(".")[2]
                await send({"type": f"lifespan.{kind}.complete"})
                if kind == "shutdown":
                    return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        answer = msgspec.json.encode({"score": score(msgspec.json.decode(body))})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def granian(folder: Path) -> None:
    """Serve the bare app with granian, embedded in this process' event loop."""
    from granian.constants import Interfaces
    from granian.server.embed import Server

    port = free_port()
    tell(f"http://127.0.0.1:{port}/")
    server = Server(asgi(scorer(folder)), address="127.0.0.1", port=port, interface=Interfaces.ASGI, log_enabled=False)
    import asyncio

    asyncio.run(server.serve())


def litserve(folder: Path) -> None:
    """Serve with LitServe, one worker."""
    import litserve as ls
    import serving_lit

    port = free_port()
    tell(f"http://127.0.0.1:{port}/predict")
    os.environ["TENON_BENCH_FOLDER"] = str(folder)  # for the worker process
    server = ls.LitServer(serving_lit.Scorer(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False, access_log=False)


def ray(folder: Path) -> None:
    """Serve with Ray Serve, one replica."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    @serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=64)
    class Scorer:
        def __init__(self) -> None:
            self.score = scorer(folder)

        async def __call__(self, request: Any) -> dict[str, float]:
            return {"score": self.score(await request.json())}

    port = free_port()
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
    serve.run(Scorer.bind())
    tell(f"http://127.0.0.1:{port}/")
    while True:
        time.sleep(60)


def bentoml(folder: Path) -> None:
    """Serve with BentoML, one worker, in this process's place."""
    port = free_port()
    os.environ |= {"TENON_BENCH_FOLDER": str(folder), "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "b")}
    code = f"import serving_peers; serving_peers.tell('http://127.0.0.1:{port}/predict').join()"
    here = Path(__file__).parent
    subprocess.Popen([sys.executable, "-c", code], cwd=here)  # this process becomes the server
    os.chdir(here)
    command = [sys.executable, "-m", "bentoml", "serve", "serving_bento:Scorer", "--host", "127.0.0.1"]
    os.execv(sys.executable, [*command, "--port", str(port), "--api-workers", "1", "-q"])


PEERS = {"granian": granian, "litserve": litserve, "bentoml": bentoml, "ray": ray}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    PEERS[asked.name](asked.folder)

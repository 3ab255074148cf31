"""A storm of malformed, oversized, slow and truncated requests against the real server process, on raw sockets.

    python bench/storm.py [--requests 100000] [--seed 1] [--clients 64] [--json] [--record]

One service with a tabular model, facts, labels, a store and, where PyTorch is, a small language model of random
weights; `--clients` connections at a time, each with one hostile request after the other: broken HTTP and chunking,
heads that are too large or never end, half bodies, wrong lengths, smuggling, broken JSON and UTF-8, nesting, numbers
nobody can hold, wrong types, binary tensors that lie about their size, names that climb out of folders, headers in
headers, streams whose reader vanishes, pipelines, other protocols. One in twenty is right, and must be answered.
Everything is drawn from one seed. At the end it says how many answers had which status, what the server's memory did,
and whether it is well: a 5xx, a wrong answer, a traceback, a crash, or memory beyond the bound make exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import measure
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

ROW = {"at": "2013-11-01T05:15:00", "key": "k1", "x": 1.5, "n": 3, "word": "aa"}
REQUEST_S = 2.0
BOUND_MB = 700  # the server's memory may reach this: 64 bodies of 4 MiB at once, decoded
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
LANGUAGE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}


# ── the server ───────────────────────────────────────────────────────────────────────────────────────────────────────


def serve(folder: Path) -> None:
    """Serve everything that can be asked, until SIGTERM."""
    import numpy as np
    import polars as pl

    from tenon.contract import Column, Source
    from tenon.feature import Feature, FeatureSet, Label
    from tenon.limits import ServingLimits
    from tenon.serving import Seams, Service, Settings, build_app, run
    from tenon.store import Store
    from tenon.watch import Collector

    columns = [
        Column("key"),
        Column("at", "timestamp"),
        Column("x", "float", between=(-50, 50)),
        Column("n", "int", nullable=True, between=(0, 100)),
        Column("word", "text", one_of=("aa", "bb"), nullable=True),
        Column("y", "float", nullable=True, late=True),
    ]
    source = Source("rows", key=["key"], time="at", columns=columns)
    wanted = [Feature("x2", "x * 2"), Feature("n", "n"), Feature("word", "word")]
    features = FeatureSet.compile(wanted, Label("y > 0", known="at"), source, {})

    class Doubles:
        def score(self, columns: Any) -> Any:
            return np.asarray(columns["x2"], np.float64)

    kinds = {"key": pl.String, "at": pl.Datetime("us"), "x": pl.Float64, "n": pl.Int64, "word": pl.String}
    with Store.open(folder) as store, Collector(store, "m") as collector:
        service = Service(
            name="m",
            version="v1",
            predictor=Doubles(),
            time="at",
            threshold=1.0,
            usd_per_row=1e-7,
            online=features.online({"rows": pl.DataFrame(schema={**kinds, "y": pl.Float64})}),
            inputs={**features.inputs, "key": "text"},
            columns=columns,
            key=("key",),
        )
        limits = ServingLimits(request_s=REQUEST_S, idle_s=5.0)
        seams = Seams(store=store, sources={"rows": source}, tap=collector.offer)
        app = build_app([service], seams=seams, settings=Settings(limits=limits), languages=languages(folder / "lm"))
        run(app, port=0, started=lambda url: print(url, flush=True))


def languages(folder: Path) -> list[Any]:
    """Write and open a language model of random weights; none without PyTorch."""
    if find_spec("torch") is None or find_spec("safetensors") is None:
        return []
    import torch
    from safetensors.torch import save_file

    from tenon.serving.lm import Tokenizer, open_language
    from tenon.serving.lm.bundle import Bundle
    from tenon.serving.lm.network import expected

    torch.manual_seed(0)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LANGUAGE))
    (folder / "tokenizer.json").write_bytes(Tokenizer.of([]).to_json())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[-1].content }}"}))
    (folder / "tenon.json").write_text(json.dumps({"name": "tiny", "embeddings": "mean"}))
    (folder / "model.safetensors").write_bytes(b"")
    shape = expected(Bundle.open(folder).shape)
    weights = {name: torch.ones(size) if len(size) == 1 else torch.randn(size) * 0.2 for name, size in shape.items()}
    save_file(weights, folder / "model.safetensors")
    return [open_language(folder)]


# ── hostile requests: the bytes of each, in parts, with pauses between ───────────────────────────────────────────────


@dataclass(slots=True)
class Shot:
    """What is sent, how, and what to do then."""

    name: str
    parts: list[bytes]
    pause_s: float = 0.0  # between two parts
    leave: str = "read"  # read the answer; "now": close at once; "reset": close with a reset; "soon": after a moment
    right: bool = False  # it must be answered with 200
    heads: int = 1  # how many requests it holds


Dice = random.Random
JUNK = [
    "..",
    "%2e%2e%2f",
    "..%c0%af",
    "\x00",
    "%00",
    "m/../../etc/passwd",
    "m%0d%0aset-cookie:%20a=1",
    "é",
    "𝕞",
    "m" * 9000,
    "",
]
PATHS = [
    "/predict/m",
    "/labels/m",
    "/facts/rows",
    "/v2/models/m/infer",
    "/v2/models/m/versions/v1/infer",
    "/v2/repository/index",
    "/v2/repository/models/m/unload",
    "/v2/repository/models/m/load",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/models",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/",
    "/healthz",
    "/readyz",
    "/v2",
    "/v2/models/m",
]
POSTED = PATHS[:11]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**400,
    -(10**30),
    2**63,
    1e308,
    "",
    "a" * 5000,
    "\ud800",
    "\u0000",
    [],
    {},
    [[]],
    [None],
    {"rows": []},
    "2013-99-99",
    "NaN",
    "9999999-01-01T00:00:00",
    {"a": {"b": {}}},
    [1] * 500,
    "<script>",
    "\r\n",
]
RAW = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-1e999",
    b"0" * 400,
    b"1" * 4000,
    b"0.1e+",
    b"\xff\xfe",
    b'"\\ud800"',
    b'"\\u0000"',
    b"'a'",
    b"+1",
]


def head(path: str, *more: bytes, method: bytes = b"POST") -> bytes:
    """Write a head that ends the connection after its answer."""
    lines = [method + b" " + path.encode("utf-8", "surrogateescape") + b" HTTP/1.1", b"host: x", b"connection: close"]
    return b"\r\n".join((*lines, *more)) + b"\r\n\r\n"


def posted(path: str, body: bytes, *more: bytes) -> bytes:
    """Write a whole request."""
    return head(path, b"content-type: application/json", b"content-length: %d" % len(body), *more) + body


def proper(dice: Dice, path: str) -> Any:
    """Return a body that is right, or nearly, for a path."""
    if path.startswith("/v2"):
        values = {
            "at": ("BYTES", ROW["at"]),
            "x": ("FP64", 1.5),
            "n": ("INT64", 3),
            "word": ("BYTES", "aa"),
            "key": ("BYTES", "k"),
        }
        inputs = [{"name": n, "datatype": kind, "shape": [1], "data": [v]} for n, (kind, v) in values.items()]
        return {"inputs": inputs}
    if path.startswith("/v1"):
        text = "".join(dice.choice("ab c\n") for _ in range(dice.randint(0, 60)))
        asks = {"prompt": text, "messages": [{"role": "user", "content": text}], "input": text}
        name = {"completions": "prompt", "embeddings": "input"}.get(path.rpartition("/")[2], "messages")
        name = "messages" if "chat" in path else name
        return {"model": "tiny", name: asks[name], "max_tokens": dice.randint(1, 6), "stream": dice.random() < 0.3}
    if path.startswith("/labels"):
        return {"rows": [{"id": "a", "label": 1, "known": ROW["at"]}]}
    return {"rows": [{**ROW, "id": dice.choice(["a", 7, None])}]}


def mutated(dice: Dice, value: Any) -> Any:
    """Change one thing somewhere in a JSON value."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        name = dice.choice(list(value))
        changed = dict(value)
        roll = dice.random()
        if roll < 0.1:
            del changed[name]
        elif roll < 0.2:
            changed[dice.choice(["rows", "id", "inputs", "x" * 300, "\ud800", ""])] = dice.choice(VALUES)
        else:
            changed[name] = mutated(dice, value[name])
        return changed
    if isinstance(value, list) and value and dice.random() < 0.8:
        at = dice.randrange(len(value))
        times = dice.choice([1, 1, 1, 2, 50]) if len(value) < 20 else 1  # or the storm itself would run out of memory
        return [*value[:at], mutated(dice, value[at]), *value[at + 1 :]] * times
    return dice.choice(VALUES)


def wrong_json(dice: Dice) -> Shot:
    """A body that is JSON of the wrong shape, types or values."""
    path = dice.choice(POSTED)
    value = proper(dice, path)
    for _ in range(dice.randint(1, 3)):
        value = mutated(dice, value)
    return Shot("wrong JSON", [posted(path, json.dumps(value).encode())])


def broken_json(dice: Dice) -> Shot:
    """A body that is not quite JSON, or not quite UTF-8."""
    path = dice.choice(POSTED)
    body = bytearray(json.dumps(proper(dice, path)).encode())
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(body) + 1)
        body[at : at + dice.randint(0, 3)] = (
            dice.choice(RAW) if dice.random() < 0.5 else dice.randbytes(dice.randint(0, 4))
        )
    if dice.random() < 0.2:
        del body[dice.randrange(len(body) + 1) :]
    return Shot("broken JSON", [posted(path, bytes(body))])


def nested(dice: Dice) -> Shot:
    """Nesting, or width, that a parser may choke on."""
    depth = dice.choice([30, 40, 1000, 100_000])
    opening, closing = dice.choice([(b"[", b"]"), (b'{"rows":', b"}"), (b'{"a":[', b"]}")])
    body = opening * depth + b"1" + (closing * depth if dice.random() < 0.7 else b"")
    if dice.random() < 0.1:
        body = b'{"rows":[' + b",".join([b"1"] * dice.choice([1000, 300_000])) + b"]}"
    return Shot("nesting", [posted(dice.choice(POSTED), body)])


def tensors(dice: Dice) -> Shot:
    """Binary tensors that lie about their size, shape or kind."""
    kinds = ["FP64", "INT64", "BYTES", "FP32", "BOOL", "FP16", "UINT8", "COMPLEX", "", None]
    blob = dice.choice(
        [b"", struct.pack("<d", dice.choice([1.0, math.nan, math.inf])), dice.randbytes(dice.randint(0, 40))]
    )
    texts = struct.pack("<I", dice.choice([0, 2, 5, 2**31, 2**32 - 1])) + b"aa"
    shapes = [[1], [1, 1], [0], [-1], [2**62], [1, 2], [], [1.5], "1", None, [[1]], [10_001], [True]]
    inputs, parts = [], []
    for name in ("at", "x", "n", "word", "key")[: dice.randint(1, 5)]:
        part = dice.choice([blob, texts])
        parts.append(part)
        size = dice.choice([len(part), len(part), len(part) + 1, -1, 2**63, None, "8", 0, True])
        kind = dice.choice(kinds)
        inputs.append(
            {
                "name": dice.choice([name, name, "", 7]),
                "datatype": kind,
                "shape": dice.choice(shapes),
                "parameters": {"binary_data_size": size},
            }
        )
    body = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    length = dice.choice([len(body), len(body), len(body) - 1, len(body) + 1, 0, -1, 10**30])
    more = b"inference-header-content-length: %d" % length
    return Shot("binary tensors", [posted("/v2/models/m/infer", body + b"".join(parts), more)])


def paths(dice: Dice) -> Shot:
    """Names that climb, are encoded twice, or carry a header."""
    start = dice.choice(
        ["/predict/", "/v2/models/", "/facts/", "/labels/", "/v2/repository/models/", "/v1/models/", "/", "//"]
    )
    path = start + dice.choice(JUNK) + dice.choice(["", "/infer", "/load", "?a=b", "?" + "a" * 500, "#x"])
    body = json.dumps({"rows": [ROW]}).encode()
    return Shot("paths", [posted(path, body)] if dice.random() < 0.7 else [head(path, method=b"GET")])


def headers(dice: Dice) -> Shot:
    """Heads that are too large, too many, folded, or carry another head."""
    body = json.dumps({"rows": [ROW]}).encode()
    odd = [
        b"x: " + b"a" * dice.choice([10, 8000, 40_000, 200_000]),
        b"x: a\r\n folded",
        b"x : spaced",
        b"\x00: a",
        b"x\xff: \xff",
        b"traceparent: 00-" + b"g" * 32,
        b"traceparent: " + b"0" * 5000,
        b"x-session-id: a\r\nx-session-id: b",
        b"x-session-id: ../../etc",
        b"x-route-key: " + bytes(range(128, 256)),
        b"authorization: Bearer " + b"a" * 3000,
        b"origin: https://elsewhere",
        b"origin: null",
        b"expect: 100-continue",
        b"upgrade: websocket\r\nconnection: upgrade",
        b"content-length: 5",
        b"content-length: -5",
        b"content-length: 99999999999999999999",
        b"content-encoding: gzip",
        b"content-type: \xff",
        b"transfer-encoding: chunked",
        b"cookie: " + b"a=b; " * 1000,
        b"inference-header-content-length: 9e9",
    ]
    chosen = [dice.choice(odd) for _ in range(dice.choice([1, 1, 2, 3]))]
    if dice.random() < 0.05:
        chosen = [b"x%d: a" % n for n in range(3000)]
    return Shot("headers", [posted(dice.choice(POSTED), body, *chosen)])


def chunks(dice: Dice) -> Shot:
    """Chunked bodies that are broken, endless, or come with a length too."""
    body = json.dumps({"rows": [ROW]}).encode()
    sizes = [
        b"%x" % len(body),
        b"-1",
        b"ffffffffffffffffff",
        b"zz",
        b"",
        b"0",
        b"%x;a=b" % len(body),
        b"%x" % (len(body) + 5),
        b" %x" % len(body),
    ]
    more = [b"transfer-encoding: chunked"]
    if dice.random() < 0.3:
        more.append(
            dice.choice([b"content-length: 3", b"transfer-encoding: identity", b"transfer-encoding: gzip, chunked"])
        )
    coded = (
        dice.choice(sizes)
        + b"\r\n"
        + body
        + dice.choice([b"\r\n0\r\n\r\n", b"\r\n", b"", b"0\r\n\r\n", b"\r\n0\r\nx: y\r\n\r\n"])
    )
    return Shot("chunks", [head(dice.choice(POSTED), *more) + coded], leave=dice.choice(["read", "soon"]))


def lengths(dice: Dice) -> Shot:
    """Lengths that are wrong, and bodies that stop half way or are larger than allowed."""
    body = json.dumps({"rows": [ROW]}).encode()
    wrong = dice.choice([len(body) + 50, max(0, len(body) - 20), 0, 5 * 2**20, 10**15])
    sent = dice.choice([body, body[: len(body) // 2], b""])
    if dice.random() < 0.02:
        sent = b'{"rows": ["' + b"a" * (5 * 2**20)
        wrong = len(sent)
    leave = dice.choice(["soon", "soon", "reset", "now", "read"]) if wrong > len(sent) else "read"
    return Shot("lengths", [head(dice.choice(POSTED), b"content-length: %d" % wrong) + sent], leave=leave)


def slow(dice: Dice) -> Shot:
    """A head or a body that drips, and often never ends."""
    whole = posted(dice.choice(POSTED), json.dumps({"rows": [ROW]}).encode())
    step = dice.randint(1, 40)
    parts = [whole[at : at + step] for at in range(0, len(whole), step)][: dice.randint(1, 30)]
    return Shot("slow", parts, pause_s=dice.choice([0.005, 0.02, 0.3]), leave=dice.choice(["read", "now", "reset"]))


def strangers(dice: Dice) -> Shot:
    """What is no HTTP/1.1 request at all."""
    odd = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + dice.randbytes(60),
        b"\r\n\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  /  HTTP/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"get / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http://a/b HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET * HTTP/1.1\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        dice.randbytes(dice.randint(1, 400)),
        b"A" * 70_000,
        b"POST /predict/m HTTP/1.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"\x00" * 100,
    ]
    return Shot("strangers", [dice.choice(odd)], leave=dice.choice(["soon", "soon", "read", "reset"]))


def methods(dice: Dice) -> Shot:
    """Methods that a path does not have."""
    method = dice.choice([b"GET", b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"PROPFIND", b"M-SEARCH"])
    return Shot("methods", [head(dice.choice(PATHS), method=method)])


def pipelines(dice: Dice) -> Shot:
    """Many requests at once on one connection, with a broken one among them."""
    body = json.dumps({"rows": [ROW]}).encode()
    good = b"POST /predict/m HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    count = dice.randint(2, 12)
    many = [good] * count
    if dice.random() < 0.5:
        many[dice.randrange(count)] = dice.choice(
            [posted("/predict/nobody", b"{}"), b"GARBAGE\r\n\r\n", head("/metrics", method=b"GET")]
        )
    return Shot("pipelines", [b"".join(many)], leave=dice.choice(["soon", "now", "reset"]), heads=count)


def streams(dice: Dice) -> Shot:
    """Streams of a language model whose reader goes away, and too much asked of one."""
    asked = {
        "model": "tiny",
        "prompt": "a" * dice.choice([1, 100, 255, 5000]),
        "max_tokens": dice.choice([1, 20, 200, 10**9, -1]),
        "stream": True,
    }
    asked |= dice.choice(
        [
            {},
            {"n": dice.choice([2, 9, 10**6])},
            {"stop": ["a"] * dice.choice([1, 9])},
            {"temperature": dice.choice([-1, 1e300, 0])},
            {"seed": 2**70},
        ]
    )
    return Shot(
        "streams",
        [posted("/v1/completions", json.dumps(asked).encode())],
        leave=dice.choice(["read", "soon", "now", "reset"]),
    )


def right(dice: Dice) -> Shot:
    """A request that is right, and must be answered so."""
    path = dice.choice(["/predict/m", "/v2/models/m/infer", "/facts/rows", "/labels/m"])
    rows = {"rows": [{**ROW, "key": f"k{dice.randrange(50)}"}]}
    body = rows if path in ("/predict/m", "/facts/rows") else proper(dice, path)
    return Shot("right", [posted(path, json.dumps(body).encode())], right=True)


KINDS: list[tuple[Callable[[Dice], Shot], float]] = [
    (wrong_json, 20),
    (broken_json, 14),
    (nested, 3),
    (tensors, 12),
    (paths, 8),
    (headers, 10),
    (chunks, 7),
    (lengths, 5),
    (slow, 1),
    (strangers, 5),
    (methods, 4),
    (pipelines, 4),
    (streams, 2),
    (right, 5),
]


def drawn(dice: Dice) -> Shot:
    """Draw one hostile request."""
    (make,) = dice.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])
    return make(dice)


# ── the storm ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Seen:
    """What came back."""

    statuses: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    sent: int = 0


async def fire(shot: Shot, address: tuple[str, int], seen: Seen) -> None:
    """Send one shot on a connection of its own and note the answer."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(*address)
    answer = b""
    try:
        for part in shot.parts:
            writer.write(part)
            await writer.drain()
            if shot.pause_s:
                await asyncio.sleep(shot.pause_s)
        if shot.leave in ("read", "soon"):
            patience_s = 0.03 if shot.leave == "soon" else 30.0 if shot.right else REQUEST_S + 4
            answer = await read(reader, patience_s)
    except (ConnectionError, OSError):
        pass  # the server may refuse to listen any further
    finally:
        if shot.leave == "reset":
            with suppress(OSError):  # closed by the server already
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()
    codes = [int(code) for code in STATUS.findall(answer)]
    seen.statuses.update(codes)
    if any(code >= 500 for code in codes):
        seen.faults.append(f"{shot.name}: {answer[:300]!r} to {b''.join(shot.parts)[:600]!r}")
    if shot.right and codes != [200]:
        took = time.monotonic() - began
        seen.faults.append(f"a right request got {answer[:300]!r} after {took:.1f} s: {shot.parts[0][:60]!r}")


async def read(reader: asyncio.StreamReader, patience_s: float) -> bytes:
    """Read until the server closes, or patience ends."""
    found = b""
    try:
        async with asyncio.timeout(patience_s):
            while data := await reader.read(65_536):
                found += data
                if len(found) > 2_000_000:
                    break
    except (TimeoutError, ConnectionError):
        pass
    return found


async def storm(address: tuple[str, int], asked: argparse.Namespace, seen: Seen, watch: Callable[[], None]) -> None:
    """Keep so many clients busy until all requests were sent."""
    dice = Dice(asked.seed)

    def shots() -> Iterator[Shot]:
        while seen.sent < asked.requests:
            shot = drawn(dice)
            seen.sent += shot.heads
            seen.kinds[shot.name] += shot.heads
            yield shot

    source = shots()

    async def client() -> None:
        for shot in source:
            await fire(shot, address, seen)

    async def watching() -> None:
        while True:
            watch()
            await asyncio.sleep(0.5)

    watcher = asyncio.create_task(watching())
    try:
        await asyncio.gather(*(client() for _ in range(asked.clients)))
    finally:
        watcher.cancel()


def well(url: str, seen: Seen) -> dict[str, float]:
    """Say what is left in the server once all have gone; a prediction must still be right."""
    body = json.dumps({"rows": [{**ROW, "id": "last"}]}).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/predict/m", body), timeout=10) as answer:
            (last,) = json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        last = error.read()
    if last != {"id": "last", "score": 3.0, "decision": True}:
        seen.faults.append(f"the last prediction was {last}")
    until = time.monotonic() + 15
    while True:
        text = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
        found = {
            name: float(value)
            for name, value in re.findall(r"^(tenon_requests_in_flight|tenon_queue_rows) (\S+)", text, re.M)
        }
        if found == {
            "tenon_requests_in_flight": 1.0,
            "tenon_queue_rows": 0.0,
        }:  # the scrape itself is the one in flight
            return found
        if time.monotonic() > until:
            seen.faults.append(f"something is still going on: {found}")
            return found
        time.sleep(0.3)


def main() -> None:
    """Start the server, send the storm, and tell."""
    parser = measure.options(__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    seen, memory = Seen(), []
    with tempfile.TemporaryDirectory() as temp, (Path(temp) / "log").open("w+b") as log:
        command = [sys.executable, __file__, "--serve", str(Path(temp) / "project")]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        host, port = url.removeprefix("http://").split(":")
        process = psutil.Process(server.pid)
        started = time.perf_counter()
        seconds = left = math.nan
        begun = process.memory_info().rss / 1e6
        try:
            asyncio.run(storm((host, int(port)), asked, seen, lambda: memory.append(process.memory_info().rss / 1e6)))
            seconds = time.perf_counter() - started
            well(url, seen)
            left = process.memory_info().rss / 1e6
        except OSError as error:
            seen.faults.append(f"the server is not there any more: {error}, exit code {server.poll()}")
        finally:
            server.terminate()
            code = server.wait()
        if code not in (0, -15):
            seen.faults.append(f"the server ended with exit code {code}")
        log.seek(0)
        lines = log.read().decode("utf-8", "replace")
        if "Traceback" in lines:
            seen.faults.append(f"the server's log has a traceback:\n{lines[lines.index('Traceback') :][:3000]}")
    peak, half = max(memory, default=math.nan), len(memory) // 2
    middle = max(memory[half // 2 : half] or [math.nan])
    if not peak < BOUND_MB:
        seen.faults.append(f"memory reached {peak:.0f} MB, {BOUND_MB} allowed")
    figures = {
        "requests": seen.sent,
        "seconds": round(seconds, 1),
        "begun_mb": begun,
        "middle_mb": middle,
        "peak_mb": peak,
        "left_mb": left,
    }
    told = {
        **figures,
        "statuses": dict(sorted(seen.statuses.items())),
        "kinds": dict(seen.kinds),
        "faults": seen.faults,
    }
    if asked.json:
        print(json.dumps(told))
    else:
        show(told)
    raise SystemExit(1 if seen.faults else 0)


def show(told: dict[str, Any]) -> None:
    """Print, and with --record keep, the tables."""
    memory = " / ".join(f"{told[name]:.0f}" for name in ("begun_mb", "middle_mb", "peak_mb", "left_mb"))
    five = sum(count for status, count in told["statuses"].items() if status >= 500)
    rows = [
        ["requests, 64 clients", f"{told['requests']:,} in {told['seconds']:.0f} s"],
        ["answers with 5xx", five],
        ["faults of any kind", len(told["faults"])],
        ["server's memory, MB: before / highest in the second quarter / highest / after", memory],
        ["answers read, by status", ", ".join(f"{status}: {count:,}" for status, count in told["statuses"].items())],
        ["requests, by kind", ", ".join(f"{name}: {count:,}" for name, count in told["kinds"].items())],
    ]
    measure.show(
        "## Storm",
        measure.rows("Hostile requests on raw sockets", ["what", "measured"], rows),
        measure.machine("uvicorn", "httptools"),
    )
    for fault in told["faults"][:20]:
        print(fault, file=sys.stderr)


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve(Path(sys.argv[sys.argv.index("--serve") + 1]))
    else:
        main()

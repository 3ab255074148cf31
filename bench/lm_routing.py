"""Two language-model replicas behind the gateway: time to first token of multi-turn sessions, by policy.

    python bench/lm_routing.py [--record] [--quick] [FOLDER]

Real processes: two `tenon serve` of a model of TinyGPT's shape (an export, or random weights: how quick it is does
not depend on what it says), one `tenon route serve`, one caller. Sessions take turns, each turn repeats what was
said before and adds to it, as clients of OpenAI's API do; nobody names sessions but in the last row. Policies take
turns on fresh replicas, and everything said is compared: temperature 0, so it must be the same to the letter.

Once with room in a replica's cache for all sessions, once for about half of them. With room for all, round robin
computes the last two turns again where `cache` computes the last one; with less, it computes everything again.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import measure
from measure import free_port

measure.needs("torch", "safetensors")

from lm import random_export  # noqa: E402 - after what it cannot do without

from tenon.serving.lm import Tokenizer  # noqa: E402
from tenon.serving.lm.bundle import Bundle  # noqa: E402

SESSIONS, TURNS, NEW = 15, 4, 3
PAGE_BYTES = 2 * 5 * 256 * 4 * 32  # keys and values of 32 tokens: 5 layers of 256 floats
FIRST_TOKENS, MORE_TOKENS = 280, 16
WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst "]


@dataclass(slots=True)
class Talked:
    """What sessions were told, and how soon."""

    first_s: list[float] = field(default_factory=list)
    said: dict[int, str] = field(default_factory=dict)
    cached: int = 0
    prompt: int = 0


@contextmanager
def served(commands: Mapping[int, Sequence[str]], cwd: Path, env: dict[str, str]) -> Iterator[None]:
    """Run tenon commands, each on its port, until the block ends; begins when all say that they are ready."""
    with ExitStack() as stack:
        for port, words in commands.items():
            process = subprocess.Popen(
                [sys.executable, "-m", "tenon", *words, "--port", str(port)], cwd=cwd, env={**os.environ, **env},
                stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.terminate)
        until = time.monotonic() + 90
        for port in commands:
            while True:
                try:
                    if ask(port, "GET", "/readyz", None, "")[0] == 200:
                        break
                except OSError:
                    pass
                assert time.monotonic() < until, f"port {port} was not ready"
                time.sleep(0.1)
        yield


def ask(port: int, method: str, path: str, body: bytes | None, session: str) -> tuple[int, bytes, float]:
    """Ask once; returns status, the whole body and the seconds to its first part."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        began = time.perf_counter()
        connection.request(method, path, body, {"x-session-id": session} if session else {})
        answer = connection.getresponse()
        first = answer.read1()
        took_s = time.perf_counter() - began
        return answer.status, first + answer.read(), took_s
    finally:
        connection.close()


def talk(port: int, bundle: Bundle, *, named: bool) -> Talked:
    """Let every session have its turns, one after the other."""
    talked = Talked()
    begin, more = characters_of(bundle, FIRST_TOKENS), characters_of(bundle, MORE_TOKENS)

    dice = {number: random.Random(number) for number in range(SESSIONS)}
    texts = {number: prose(dice[number], begin) for number in range(SESSIONS)}
    for turn in range(TURNS):
        for number in range(SESSIONS):
            body = {"model": bundle.name, "prompt": texts[number], "max_tokens": NEW, "temperature": 0.0,
                    "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
            status, answer, first_s = ask(
                port, "POST", "/v1/completions", json.dumps(body).encode(), str(number) if named else ""
            )
            assert status == 200, answer[:300]
            events = [json.loads(line[6:]) for line in answer.split(b"\n\n") if line.startswith(b"data: {")]
            said = "".join(event["choices"][0]["text"] for event in events if event["choices"])
            usage = next(event["usage"] for event in reversed(events) if event.get("usage"))
            talked.prompt += usage["prompt_tokens"]
            talked.cached += usage["prompt_tokens_details"]["cached_tokens"]
            talked.said[number] = talked.said.get(number, "") + said
            if turn:  # the first is nowhere cached, by whatever policy
                talked.first_s.append(first_s)
            texts[number] += said + " " + prose(dice[number], more)
    return talked


def prose(dice: random.Random, characters: int) -> str:
    """Return words of about so many characters."""
    words = ""
    while len(words) < characters:
        words += dice.choice(WORDS) + " "
    return words


def worded(folder: Path) -> Path:
    """Give an export a tokenizer that knows the words of `prose`: two bytes a token, between a trained one and none."""
    pairs = sorted({word[:2] for word in WORDS})
    merges = [(1 + ord(pair[0]), 1 + ord(pair[1])) for pair in pairs]
    merges += [(257 + pairs.index(word[:2]), 1 + ord(word[2])) for word in WORDS]
    (folder / "tokenizer.json").write_bytes(Tokenizer.of(merges).to_json())
    return folder


def characters_of(bundle: Bundle, tokens: int) -> int:
    """Return how many characters of prose are about so many tokens of this model."""
    sample = prose(random.Random(0), 400)
    return tokens * len(sample) // len(bundle.tokenizer.encode(sample))


def once(folder: Path, bundle: Bundle, policy: str, pages: int, *, named: bool) -> Talked:
    """Run two fresh replicas and a gateway, and let all sessions talk."""
    env = {"OMP_NUM_THREADS": "1", "TENON_LIMITS__LANGUAGE__CACHE_BYTES": str(pages * PAGE_BYTES)}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        first, second, front = free_port(), free_port(), free_port()
        replicas = {port: ["serve", str(folder)] for port in (first, second)}
        stack.enter_context(served(replicas, Path(scratch), env))
        words = ["route", "serve", "--policy", policy]
        for port in replicas:
            words += ["--replica", f"http://127.0.0.1:{port}"]
        stack.enter_context(served({front: words}, Path(scratch), {}))
        return talk(front, bundle, named=named)


CANDIDATES = {
    "round robin": ("round-robin", False),
    "tenon": ("cache", False),
    "tenon, sessions named": ("cache", True),
}


def table(folder: Path, bundle: Bundle, pages: int, repeats: int) -> str:
    """Let policies take turns; the table gives the time to first token of turns after the first."""
    found: dict[str, list[Talked]] = {name: [] for name in CANDIDATES}
    for _ in range(repeats):
        for name, (policy, named) in CANDIDATES.items():
            found[name].append(once(folder, bundle, policy, pages, named=named))
    said = found["round robin"][0].said
    assert all(each.said == said for every in found.values() for each in every), "every policy says the same"
    base = statistics.median(s for each in found["round robin"] for s in each.first_s)
    values = []
    for name, every in found.items():
        times = sorted(s for each in every for s in each.first_s)
        middle = statistics.median(times)
        hit = sum(each.cached for each in every) / sum(each.prompt for each in every)
        each_p50 = ", ".join(f"{statistics.median(one.first_s) * 1e3:.1f}" for one in every)
        values.append((name, f"{middle * 1e3:.1f}", f"{middle / base:.2f}", each_p50,
                       f"{times[int(len(times) * 0.99)] * 1e3:.1f}", f"{hit:.2f}"))  # fmt: skip
    header = ("policy", "TTFT p50 ms", "times round robin's", "p50 of each run", "p99 ms", "tokens cached")
    return measure.rows(
        f"Two replicas of a small language model, {SESSIONS} sessions of {TURNS} turns, "
        f"{pages} pages of 32 tokens in each cache; all said the same", header, values,
    )  # fmt: skip


if __name__ == "__main__":
    parser = measure.options(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="an exported model")
    parser.add_argument("--quick", action="store_true", help="each policy once")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        where = asked.folder.resolve() if asked.folder else worded(random_export(Path(scratch)))
        opened = Bundle.open(where)
        count = 1 if asked.quick else 2
        parts = [table(where, opened, pages, count) for pages in (100, 260)]
        measure.show(*parts, measure.machine("torch"))

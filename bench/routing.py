"""Routing: what policies make of a trace, and how long one decision takes.

    python bench/routing.py [--record] [--quick] [TRACE]

First every policy of tenon replays the trace (JSON lines in Mooncake's format; without one, synthetic chats and
agents), for two sizes of cache, over five seeds of ties: round robin, least loaded and the hash of a prefix are the
baselines, `thrift 0` is the expected time of each request alone. Then one router with 64 replicas and a million cached
blocks takes requests of a conversation's length; the table gives the whole of `route` (match, score, remember) and of
the feedback. The 99th percentile of the time shows who else uses the machine, that of processor time what is ours.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections import deque
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parent))

from measure import machine, options, rows, show

from tenon.serving.route import Need, Router, Routing
from tenon.serving.shape import shaped
from tenon.serving.simulation import Fleet, Request, read_trace, simulate

POLICIES = {
    "round robin": Routing(policy="round-robin"),
    "least loaded": Routing(policy="least-loaded"),
    "prefix hash": Routing(policy="hash"),
    "thrift 0": Routing(thrift=0.0),
    "tenon": Routing(),
}
HEADER = ("policy", "hit", "ttft p50 s", "ttft p99 s", "ttft mean s", "imbalance", "refused", "within 3 s")


def policies(name: str, trace: list[Request], blocks: int, seeds: int) -> str:
    """Replay a trace by every policy; the table gives means, and the range of p99."""
    found = []
    for policy, routing in POLICIES.items():
        done = [simulate(trace, Fleet(replicas=8, blocks=blocks), routing, seed=seed) for seed in range(seeds)]
        p99 = [each.ttft_p99_s for each in done]
        found.append(
            (
                policy,
                f"{statistics.fmean(each.hit for each in done):.4f}",
                f"{statistics.fmean(each.ttft_p50_s for each in done):.3f}",
                f"{statistics.fmean(p99):.3f} ({min(p99):.3f}-{max(p99):.3f})",
                f"{statistics.fmean(each.ttft_mean_s for each in done):.3f}",
                f"{max(each.imbalance for each in done):.3f}",
                max(each.refused for each in done),
                f"{statistics.fmean(each.goodput for each in done):.2%}",
            )
        )
    return rows(f"Routing: {name}, {len(trace):,} requests, 8 replicas of {blocks:,} blocks", HEADER, found)


def decisions(count: int) -> str:
    """Time decisions of one router that remembers a million blocks of 64 replicas."""
    rng = random.Random(0)
    before = psutil.Process().memory_info().rss
    router = Router(rng=rng)
    for number in range(64):
        router.add(str(number), capacity=1_000_000 // 64)
    now, block = 0.0, 1
    sessions: deque[list[int]] = deque(maxlen=3_000)
    flying: deque[tuple[float, object]] = deque()
    routed, heard = [], []
    full = 0
    while full < count:
        now += 0.01
        blocks = [*rng.choice(sessions)] if sessions and rng.random() < 0.6 else [0]
        more = 2 if len(blocks) > 1 else int(rng.expovariate(1 / 20)) + 1
        blocks += range(block, block + more)
        block += more
        sessions.append(blocks)
        need = Need(units=512.0 * len(blocks), blocks=blocks, block_units=512.0)
        start, spent = time.perf_counter(), time.thread_time()
        ticket = router.route(need, now)
        took = time.perf_counter() - start, time.thread_time() - spent
        assert ticket is not None
        flying.append((now, ticket))
        if len(flying) > 100:
            _, oldest = flying.popleft()
            start, spent = time.perf_counter(), time.thread_time()
            router.began(oldest, now)
            router.done(oldest, now)
            if len(router.map) > 990_000:
                full += 1
                heard.append((time.perf_counter() - start, time.thread_time() - spent))
                routed.append(took)
    held_mb = (psutil.Process().memory_info().rss - before) / 1e6
    table = [
        (
            name,
            f"{statistics.median(each[0] for each in values) * 1e6:.1f}",
            *(f"{statistics.quantiles([each[n] for each in values], n=100)[98] * 1e6:.1f}" for n in (0, 1)),
        )
        for name, values in (("a decision, remembered", routed), ("its feedback", heard))
    ]
    title = f"Routing: 64 replicas, {len(router.map):,} cached blocks, {held_mb:.0f} MB"
    return rows(title, ("what", "median µs", "p99 µs", "p99 µs of processor time"), table)


def main() -> None:
    """Print the tables."""
    parser = options(__doc__)
    parser.add_argument("trace", nargs="*", type=Path)
    parser.add_argument("--quick", action="store_true", help="one seed, and a tenth of the decisions")
    asked = parser.parse_args()
    traces = {path.name: read_trace(path) for path in asked.trace} or {
        "synthetic chats": list(shaped("chats", seconds=600, per_s=25)),
        "synthetic agents": list(shaped("agents", seconds=600, per_s=60)),
    }
    parts = [
        policies(name, trace, blocks, 1 if asked.quick else 5)
        for name, trace in traces.items()
        for blocks in (6_000, 1_500)
    ]
    show(*parts, decisions(2_000 if asked.quick else 20_000), machine())


if __name__ == "__main__":
    main()

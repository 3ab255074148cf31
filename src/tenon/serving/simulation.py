"""Replaying a recorded trace through the router, against replicas that are arithmetic instead of machines.

    done = simulate(read_trace(Path("conversation.jsonl")), Fleet(replicas=8, blocks=6000))
    done.hit, done.ttft_p99_s, done.imbalance, done.refused

The router is the one that serves; only the replicas are simulated, so that a team can choose a policy and a number of
replicas for its own traffic. The replica is the reference model of published studies: prefill of so many tokens a
second, one request at a time in order of arrival; decode at so many tokens a second for each running request; a cache
of B blocks that drops the least recently used; a cached prefix saves its prefill. The router is told none of this:
it hears when a first answer comes, when an answer is complete and, as from vLLM or SGLang, how much was cached.

A trace is Mooncake's format, one JSON object a line: `timestamp` in milliseconds, `input_length`, `output_length`,
`hash_ids` of 512-token blocks, equal when the block and all before it are equal. Results: `hit` is tokens saved over
tokens asked, TTFT runs from arrival to the end of prefill, `imbalance` is the most prefill work of a replica over the
mean.
"""

from __future__ import annotations

import math
import random
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import msgspec

from tenon.errors import InputError, UsageError, sentence
from tenon.limits import RouteLimits
from tenon.serving.route import Need, Router, Routing, Ticket

BLOCK_TOKENS = 512
SIZES = tuple(2**n for n in range(3, 14))  # of a block, that a trace may have instead
SEEN = 10_000  # requests looked at to find out
MOST = 10**9  # tokens of one request, and milliseconds times a thousand: beyond this a line is a fault


class Request(msgspec.Struct, frozen=True):
    """One line of a trace."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: Sequence[int]


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The replicas of a simulation, all alike."""

    replicas: int = 8
    blocks: int = 6_000  # blocks of each cache
    prefill_per_s: float = 20_000.0  # tokens of input a second, one request at a time
    decode_per_s: float = 60.0  # tokens of output a second, for each running request
    block_tokens: int = BLOCK_TOKENS  # tokens of one block of the trace

    def __post_init__(self) -> None:
        for name in ("replicas", "blocks", "prefill_per_s", "decode_per_s", "block_tokens"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(sentence("a number above 0", str(value), at=name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What a replay came to."""

    policy: str
    replicas: int
    blocks: int
    requests: int
    hit: float
    ttft_p50_s: float
    ttft_p99_s: float
    ttft_mean_s: float
    imbalance: float
    refused: int
    goodput: float  # answered within the target / offered
    target_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data, to a tenth of a millisecond."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_trace(path: Path, limits: RouteLimits | None = None) -> list[Request]:
    """Read a trace in order of time; InputError names the line that is not a request."""
    limits = limits or RouteLimits()
    decoder = msgspec.json.Decoder(_Line)
    found: list[Request] = []
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(limits.trace_line_bytes + 1):
                number += 1
                if len(line) > limits.trace_line_bytes:
                    got = f"more than {limits.trace_line_bytes:,} bytes"
                    raise InputError(sentence("a request in one line", got, at=f"{path}:{number}"))
                if line.isspace():
                    continue
                if len(found) >= limits.trace_requests:
                    hint = "replay a part of it, or raise limits.route.trace_requests"
                    got = f"more than {limits.trace_requests:,}"
                    raise InputError(sentence("a trace that fits", got, at=f"{path}:{number}", hint=hint))
                found.append(_request(decoder, line, f"{path}:{number}"))
    except OSError as error:
        raise InputError(sentence("a trace to read", str(error.strerror or error), at=str(path))) from error
    if not found:
        raise InputError(sentence("requests, one JSON object a line", "none", at=str(path)))
    found.sort(key=lambda request: request.timestamp)
    return found


def block_tokens(trace: Sequence[Request]) -> int:
    """Return the tokens of a block that a trace's own lengths speak for: 512, unless nearly all say another size."""
    told = [request for request in trace[:SEEN] if len(request.hash_ids) > 1]

    def fits(size: int) -> float:
        return sum(-(-request.input_length // size) == len(request.hash_ids) for request in told) / len(told)

    if not told or fits(BLOCK_TOKENS) > 0.5:
        return BLOCK_TOKENS
    return max((size for size in SIZES if fits(size) > 0.9), default=BLOCK_TOKENS)


def _request(decoder: msgspec.json.Decoder[_Line], line: bytes, place: str) -> Request:
    try:
        read = decoder.decode(line)
        blocks = array("q", read.hash_ids)
    except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError, RecursionError) as error:
        form = "{timestamp, input_length, output_length, hash_ids}"
        raise InputError(sentence(form, str(error), at=place, hint="see docs/routing.md")) from error
    for name, value in (("input_length", read.input_length), ("output_length", read.output_length)):
        if not 0 <= value <= MOST:
            raise InputError(sentence(f"{name} from 0 to {MOST:,}", str(value), at=place))
    if not 0 <= read.timestamp <= MOST * 1e3:
        raise InputError(sentence("a timestamp in milliseconds, not negative", str(read.timestamp), at=place))
    return Request(read.timestamp, read.input_length, read.output_length, blocks)


# ── replaying ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Replica:
    """The reference replica: prefill one at a time, decode side by side, an LRU cache of blocks."""

    __slots__ = ("block_tokens", "blocks", "busy", "cache", "per_s", "queue", "work_s")

    def __init__(self, blocks: int, per_s: float, block_tokens: int) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.per_s = per_s
        self.cache: OrderedDict[int, None] = OrderedDict()
        self.queue: deque[tuple[Ticket, Request]] = deque()
        self.busy = False
        self.work_s = 0.0

    def start(self, request: Request) -> tuple[int, float]:
        """Return the tokens that are cached and the seconds that the others take; the cache then holds them all."""
        depth = 0
        for block in request.hash_ids:
            if block not in self.cache:
                break
            depth += 1
        cached = min(depth * self.block_tokens, request.input_length)
        for block in request.hash_ids:
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > self.blocks:
            self.cache.popitem(last=False)
        took_s = (request.input_length - cached) / self.per_s
        self.work_s += took_s
        return cached, took_s


def simulate(
    trace: Iterable[Request],
    fleet: Fleet | None = None,
    routing: Routing | None = None,
    *,
    limits: RouteLimits | None = None,
    seed: int = 0,
) -> Simulated:
    """Replay a trace in order of time through a router of its own; the same seed gives the same figures."""
    fleet = fleet or Fleet()
    router = Router(routing, limits=limits, rng=random.Random(seed))
    for number in range(fleet.replicas):
        router.add(f"replica-{number}", capacity=fleet.blocks)
    size = fleet.block_tokens
    replicas = [_Replica(fleet.blocks, fleet.prefill_per_s, size) for _ in range(fleet.replicas)]
    return _replay(trace, fleet, router, replicas)


def _replay(trace: Iterable[Request], fleet: Fleet, router: Router, replicas: Sequence[_Replica]) -> Simulated:
    events: list[tuple[float, int, Ticket, int, bool]] = []  # when, order, request, cached tokens, begins or ends
    waits = array("d")
    asked = saved = offered = refused = order = 0

    def start(replica: _Replica, now: float) -> None:
        nonlocal order, saved
        ticket, request = replica.queue[0]
        cached, took_s = replica.start(request)
        saved += cached
        order += 1
        heappush(events, (now + took_s, order, ticket, cached, True))

    def happen(until: float) -> None:
        nonlocal order
        while events and events[0][0] <= until:
            now, _, ticket, cached, begins = heappop(events)
            if not begins:
                router.done(ticket, now)
                continue
            replica = replicas[ticket.replica]
            _, request = replica.queue.popleft()
            router.began(ticket, now, cached)
            waits.append(now - ticket.at)
            order += 1
            heappush(events, (now + request.output_length / fleet.decode_per_s, order, ticket, 0, False))
            if replica.queue:
                start(replica, now)
            else:
                replica.busy = False

    for request in trace:
        now = request.timestamp / 1e3
        happen(now)
        offered += 1
        need = Need(units=float(request.input_length), blocks=request.hash_ids, block_units=float(fleet.block_tokens))
        ticket = router.route(need, now)
        if ticket is None:
            refused += 1
            continue
        asked += request.input_length
        replica = replicas[ticket.replica]
        replica.queue.append((ticket, request))
        if not replica.busy:
            replica.busy = True
            start(replica, now)
    happen(math.inf)
    mean = sum(replica.work_s for replica in replicas) / len(replicas)
    every = sorted(waits)
    target_s = router.routing.target_s
    return Simulated(
        policy=router.routing.policy,
        replicas=fleet.replicas,
        blocks=fleet.blocks,
        requests=offered,
        hit=saved / asked if asked else 0.0,
        ttft_p50_s=_quantile(every, 0.5),
        ttft_p99_s=_quantile(every, 0.99),
        ttft_mean_s=sum(every) / len(every) if every else 0.0,
        imbalance=max(replica.work_s for replica in replicas) / mean if mean else 1.0,
        refused=refused,
        goodput=sum(wait <= target_s for wait in every) / offered if offered else 0.0,
        target_s=target_s,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value that this share of the others does not exceed; 0 of nothing."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

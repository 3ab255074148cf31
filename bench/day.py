"""A day of a gateway's life in a minute: real gateway, router, autoscaler and journal, simulated time and replicas.

    python bench/day.py [--record] [--hours 24] [--peak 3.0] [--seed 0]

Traffic follows the sun: almost nobody at night, a peak in the afternoon, a burst before it. Chats grow turn by turn
and stream; beside them run sessions with state, whose every answer depends on all before. Replicas read a prompt at
so many bytes a second, one at a time, remember what they read, take half a minute to start, and some die in the
middle of it. All of it goes through the ASGI callable that `tenon route serve` runs; only the clock and the machines
are made up.

What is told: whether anything failed, whether a session ended wrong or hangs, how long queues were, whether memory
and counted objects stay flat from the first quarter of the day to the end, whether replicas follow the load, and what
that costs against a fixed fleet of the most that were needed. Not a timed benchmark, but for its last line.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import math
import random
import statistics
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))

from measure import machine, options, rows, show

from tenon.config import ServeConfig
from tenon.limits import Limits, RouteLimits
from tenon.serving import virtual
from tenon.serving.autoscale import Autoscaler
from tenon.serving.fleet import Machine
from tenon.serving.gateway import BrokenError, Gateway
from tenon.serving.need import need_of, session_of
from tenon.serving.replica import Forward, Unanswered
from tenon.serving.scale import Scaling, Starts

HOUR = 3_600.0
USD_PER_REPLICA_HOUR = 2.5
TOKEN = "day"
COUNTED = ("Talk", "Ticket", "_Passing", "Task", "Forward", "Event", "Sample")


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """What is played."""

    hours: float = 24.0
    peak_per_s: float = 3.0
    seed: int = 0
    deaths: int = 6  # replicas that die without a word
    read_per_s: float = 3_000.0  # bytes of a prompt a replica reads
    start_s: float = 30.0
    most: int = 8
    cool_s: float = 300.0
    idle_s: float = 900.0
    sessions: int = 2_000  # remembered by the gateway


@dataclass(slots=True, kw_only=True)
class Played:
    """What came of it."""

    statuses: Counter[int] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)  # seconds to the first of an answer
    broken: int = 0
    wrong: int = 0  # answers of sessions with state that an undisturbed run would not give
    sessions: int = 0
    moved: dict[str, int] = field(default_factory=dict)
    waiting: int = 0  # most requests that waited at one replica
    held: int = 0  # most that waited for a replica to be there
    replicas: list[tuple[float, float, int]] = field(default_factory=list)  # hour, load, replicas
    objects: list[dict[str, int]] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    stuck: int = 0
    replica_s: float = 0.0
    peak: int = 0
    events: Counter[str] = field(default_factory=Counter)
    within: float = 0.0


# ── replicas ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Said:
    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes = b""
    after_s: float = 0.0
    replica: SimReplica | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        if self.after_s:
            await asyncio.sleep(self.after_s)
            if self.replica is not None and self.replica.dead:
                raise Unanswered("it died", begun=True)
        if self.body:
            yield self.body

    def drop(self) -> None:
        return


def _whole(status: int, body: bytes, *more: tuple[bytes, bytes]) -> _Said:
    return _Said(status, [(b"content-length", b"%d" % len(body)), *more], body)


class SimReplica:
    """A replica that is arithmetic: reads one prompt at a time, remembers blocks and sessions, may die."""

    def __init__(self, read_per_s: float, blocks: int = 4_000) -> None:
        self.read_per_s, self.blocks = read_per_s, blocks
        self.dead = False
        self.cache: OrderedDict[int, None] = OrderedDict()
        self.states: dict[str, tuple[int, str, str]] = {}
        self.turn = asyncio.Lock()

    async def ask(self, asked: Forward) -> _Said:
        if self.dead:
            raise Unanswered("nobody listens", begun=False)
        path = asked.target
        if path.startswith("/v1/"):
            return await self._prompt(asked)
        if path == "/predict/sum":
            await asyncio.sleep(0.004)
            if self.dead:
                raise Unanswered("it died", begun=True)
            return self._step(dict(asked.headers), asked.body)
        if path == "/sessions":
            return _whole(
                200, json.dumps({"sessions": {"sum": {k: s for k, (s, _, _) in self.states.items()}}}).encode()
            )
        if path == "/sessions/sum":
            return self._carry(dict(asked.headers), asked)
        return _whole(200, b"{}")

    async def close(self) -> None:
        return

    async def _prompt(self, asked: Forward) -> _Said:
        need = need_of("/v1/chat/completions", dict(asked.headers), asked.body, 4_096)
        async with self.turn:
            depth = next((n for n, block in enumerate(need.blocks) if block not in self.cache), len(need.blocks))
            await asyncio.sleep(0.05 + max(need.units - depth * need.block_units, 0.0) / self.read_per_s)
            for block in need.blocks:
                self.cache[block] = None
                self.cache.move_to_end(block)
            while len(self.cache) > self.blocks:
                self.cache.popitem(last=False)
        if self.dead:
            raise Unanswered("it died", begun=True)
        return _Said(200, [(b"content-type", b"text/event-stream")], b"data: said\n\n", 2.0, self)

    def _step(self, headers: dict[bytes, bytes], body: bytes) -> _Said:
        session, number = session_of(headers), int(headers[b"x-session-step"])
        request = headers[b"x-session-request"].decode()
        step, value, last = self.states.get(session, (0, "", ""))
        if number == step and request == last:
            return _whole(200, value.encode(), (b"x-session-step", b"%d" % step))
        if number != step + 1:
            return _whole(409, b"{}", (b"x-session-have", b"%d" % step))
        value = chained(value, body)
        self.states[session] = (number, value, request)
        return _whole(200, value.encode(), (b"x-session-step", b"%d" % number))

    def _carry(self, headers: dict[bytes, bytes], asked: Forward) -> _Said:
        session = session_of(headers)
        if asked.method == "GET":
            if session not in self.states:
                return _whole(404, b"{}")
            return _whole(200, json.dumps(self.states[session]).encode(),
                          (b"x-session-step", b"%d" % self.states[session][0]))  # fmt: skip
        step, value, request = json.loads(asked.body) if asked.body else (0, "", "")
        self.states[session] = (step, value, request)
        return _whole(200, b"{}")


def chained(value: str, body: bytes) -> str:
    """Return the next state of a session: it depends on everything before."""
    return hashlib.blake2b(value.encode() + body, digest_size=8).hexdigest()


class SimFleet:
    """Machines that take their time to start, and die when told to."""

    def __init__(self, day: Day, rng: random.Random) -> None:
        self.day, self.rng = day, rng
        self.replicas: dict[str, SimReplica] = {}
        self.count = 0

    async def start(self) -> Machine:
        took_s = self.day.start_s * self.rng.uniform(0.7, 1.3)
        await asyncio.sleep(took_s)
        self.count += 1
        name = f"machine-{self.count}"
        self.replicas[name] = SimReplica(self.day.read_per_s)
        return Machine(name=name, url="", start_s=took_s)

    async def stop(self, name: str) -> None:
        replica = self.replicas.pop(name, None)
        if replica is not None:
            await asyncio.sleep(1.0)
            replica.dead = True

    def list(self) -> list[Machine]:
        return [Machine(name=name, url="", start_s=0.0) for name in self.replicas]

    def kill(self) -> None:
        if self.replicas:
            name = self.rng.choice(sorted(self.replicas))
            self.replicas.pop(name).dead = True


# ── callers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def load_at(day: Day, at: float) -> float:
    """Return the share of the peak that asks at a moment: nothing to speak of at night, a burst before the peak."""
    place = at / (day.hours * HOUR)
    sun = max(math.sin((place - 0.3) / 0.6 * math.pi), 0.0) ** 1.5 if 0.3 < place < 0.9 else 0.0
    burst = 0.8 if 0.5 < place < 0.5 + 0.25 / 24 else 0.0
    return max(min(sun + burst, 1.2), 0.0005)


class Callers:
    """Everybody who asks, and what they were told."""

    def __init__(self, day: Day, gateway: Gateway, played: Played) -> None:
        self.day, self.gateway, self.played = day, gateway, played
        self.rng = random.Random(day.seed)
        self.tasks: set[asyncio.Task[None]] = set()

    async def ask(self, path: str, body: bytes, session: str) -> tuple[int, bytes]:
        """Ask the gateway as a server would; returns the status and the body."""
        clock = asyncio.get_running_loop().time
        began, status, parts = clock(), 0, list[bytes]()
        sent = False

        async def receive() -> dict[str, object]:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()
            sent = True
            return {"type": "http.request", "body": body}

        async def send(message: dict[str, object]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(str(message["status"]))
                self.played.first_s.append(clock() - began)
            else:
                assert isinstance(message["body"], bytes)
                parts.append(message["body"])

        headers = [(b"content-length", b"%d" % len(body)), (b"x-session-id", session.encode())]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        try:
            await self.gateway(scope, receive, send)  # type: ignore[arg-type]
        except BrokenError:
            self.played.broken += 1
        self.played.statuses[status] += 1
        return status, b"".join(parts)

    async def chat(self, name: str) -> None:
        rng = random.Random(f"{self.day.seed} {name}")
        said = [{"role": "user", "content": f"{name} " + "long ago " * rng.randint(150, 700)}]
        for turn in range(1 + int(rng.expovariate(1 / 4))):
            await self.ask("/v1/chat/completions", json.dumps({"model": "m", "messages": said}).encode(), name)
            said += [{"role": "assistant", "content": "yes " * 60}, {"role": "user", "content": f"{turn}? " * 60}]
            await asyncio.sleep(rng.expovariate(1 / 30))

    async def count(self, name: str) -> None:
        rng = random.Random(f"{self.day.seed} {name}")
        value = ""
        for turn in range(5 + int(rng.expovariate(1 / 30))):
            body = f"{name} {turn}".encode()
            value = chained(value, body)
            status, answer = await self.ask("/predict/sum", body, name)
            while status == 503:  # crowded: it comes back, as it is told
                await asyncio.sleep(2.0)
                status, answer = await self.ask("/predict/sum", body, name)
            if status != 200 or answer.decode() != value:
                self.played.wrong += 1
                return
            await asyncio.sleep(rng.expovariate(1 / 20))

    async def all(self) -> None:
        """Begin sessions through the day; returns when the last has ended."""
        clock, number = asyncio.get_running_loop().time, 0
        end = self.day.hours * HOUR
        while True:
            # About nine requests a session; the night is passed in steps, so that the morning is not missed.
            rate = self.day.peak_per_s * load_at(self.day, clock()) / 9.0
            gap = self.rng.expovariate(rate)
            if gap > 60.0:
                await asyncio.sleep(60.0)
                if clock() < end:
                    continue
            else:
                await asyncio.sleep(gap)
            if clock() >= end:
                break
            number += 1
            kind = self.count if number % 4 == 0 else self.chat
            task = asyncio.create_task(kind(f"{kind.__name__}-{number}"))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        self.played.sessions = number
        while self.tasks:
            await asyncio.wait(set(self.tasks))


# ── the day ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def play(day: Day) -> Played:
    """Play a day and return what came of it."""
    return virtual.run(_play(day))


async def _play(day: Day) -> Played:
    played, loop = Played(), asyncio.get_running_loop()
    fleet = SimFleet(day, random.Random(day.seed + 1))
    scaling = Scaling(least=0, most=day.most, cool_s=day.cool_s, idle_s=day.idle_s)
    scaler = Autoscaler(fleet=fleet, scaling=scaling, sample_s=10.0, starts=Starts(default_s=day.start_s),
                        connect=lambda machine: fleet.replicas[machine.name])  # fmt: skip
    limits = Limits(route=RouteLimits(sessions=day.sessions, probe_s=5.0, session_bytes=2_000_000))
    gateway = Gateway(
        {}, serve=ServeConfig(fleet_token=TOKEN), limits=limits, scaler=scaler, clock=loop.time
    )  # fmt: skip
    life: asyncio.Queue[str] = asyncio.Queue()
    told: asyncio.Queue[str] = asyncio.Queue()

    async def receive() -> dict[str, str]:
        return {"type": await life.get()}

    async def send(message: dict[str, str]) -> None:
        await told.put(message["type"])

    serving = asyncio.create_task(gateway({"type": "lifespan"}, receive, send))  # type: ignore[arg-type]
    life.put_nowait("lifespan.startup")
    await told.get()
    watching = [asyncio.create_task(_watch(day, gateway, scaler, played)), asyncio.create_task(_kill(day, fleet))]
    await Callers(day, gateway, played).all()
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    played.stuck = sum(talk.lock.locked() or talk.waiting > 0 for talk in gateway.journal._talks.values())
    played.stuck += sum(gateway.router.running) + gateway.held
    played.moved = {name: getattr(gateway.journal, name) for name in ("handed", "rebuilt", "lost")}
    played.replica_s = scaler.replica_s
    played.events = Counter(scaler._counts)
    played.within = gateway.tally.within / max(gateway.tally.offered, 1)
    life.put_nowait("lifespan.shutdown")
    await told.get()
    await serving
    assert not fleet.replicas, "the gateway's end stops its fleet"
    return played


async def _watch(day: Day, gateway: Gateway, scaler: Autoscaler, played: Played) -> None:
    """Look at queues every ten seconds, at replicas every quarter of an hour, at memory eight times a day."""
    clock, looked = asyncio.get_running_loop().time, 0
    process = psutil.Process()
    while True:
        await asyncio.sleep(10.0)
        router = gateway.router
        waiting = max((len(router._queues[n]) for n in range(len(router.names))), default=0)
        played.waiting, played.held = max(played.waiting, waiting), max(played.held, gateway.held)
        ready = scaler.report()["ready"]
        played.peak = max(played.peak, ready)
        looked += 1
        if looked % max(int(day.hours * HOUR / 96 / 10), 1) == 0:
            played.replicas.append((clock() / HOUR, load_at(day, clock()), ready))
        if looked % max(int(day.hours * HOUR / 8 / 10), 1) == 0:
            gc.collect()
            counted = Counter(type(one).__name__ for one in gc.get_objects())
            played.objects.append({name: counted[name] for name in COUNTED})
            played.rss_mb.append(process.memory_info().rss / 1e6)


async def _kill(day: Day, fleet: SimFleet) -> None:
    rng = random.Random(day.seed + 2)
    for at in sorted(rng.uniform(0.4, 0.85) * day.hours * HOUR for _ in range(day.deaths)):
        await asyncio.sleep(max(at - asyncio.get_running_loop().time(), 0.0))
        fleet.kill()


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def told(day: Day, played: Played, took_s: float) -> Iterator[str]:
    """Yield the tables of a day."""
    total = sum(played.statuses.values())
    fixed_s = played.peak * day.hours * HOUR
    p50, p99 = quantile(played.first_s, 0.5), quantile(played.first_s, 0.99)
    counts = played.peak, played.events["ready"], played.events["died"]
    spent, fixed = (seconds / HOUR * USD_PER_REPLICA_HOUR for seconds in (played.replica_s, fixed_s))
    yield rows(
        f"A day in simulated time: {day.hours:g} h, {total:,} requests of {played.sessions:,} sessions",
        ("what", "measured"),
        [
            ("answers by status", ", ".join(f"{s}: {n:,}" for s, n in sorted(played.statuses.items()))),
            ("streams that broke off when a replica died", f"{played.broken:,}"),
            ("answers of sessions with state unlike an undisturbed run's", played.wrong),
            ("sessions handed over, rebuilt, lost", ", ".join(str(n) for n in played.moved.values())),
            ("sessions or requests left hanging at the end", played.stuck),
            ("most requests waiting at one replica; held for want of one", f"{played.waiting}; {played.held}"),
            ("first of an answer, p50 / p99", f"{p50:.2f} s / {p99:.2f} s"),
            ("goodput (within 3 s of all offered)", f"{played.within:.1%}"),
            ("replicas: most at once, started, died", ", ".join(map(str, counts))),
            ("money against a fixed fleet of the most", f"${spent:.2f} against ${fixed:.2f} ({spent / fixed:.0%})"),
            ("resident MB, at 1/8 to 8/8 of the day", ", ".join(f"{mb:.0f}" for mb in played.rss_mb)),
            ("real seconds it took", f"{took_s:.0f}"),
        ],
    )  # fmt: skip
    kept = [each for each in played.replicas if each[0] % (day.hours / 24) < day.hours / 96]
    yield rows(
        "Replicas follow the load", ("hour", "load of the peak", "replicas"),
        [(f"{hour:.1f}", f"{load:.0%}", ready) for hour, load, ready in kept],
    )  # fmt: skip
    header = ("counted objects", *(f"{n}/8" for n in range(1, len(played.objects) + 1)))
    yield rows("Nothing grows", header, [(name, *(each[name] for each in played.objects)) for name in COUNTED])


def main() -> None:
    """Play the day that the command line asks for."""
    parser = options(__doc__)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--peak", type=float, default=3.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    logging.getLogger("tenon.serving").setLevel(logging.ERROR)
    day = Day(hours=asked.hours, peak_per_s=asked.peak, seed=asked.seed)
    began = time.perf_counter()
    played = play(day)
    show(*told(day, played, time.perf_counter() - began), machine())
    loads = [load for _, load, _ in played.replicas]
    counts = [float(ready) for _, _, ready in played.replicas]
    print(f"load and replicas agree: correlation {statistics.correlation(loads, counts):.2f}", file=sys.stderr)


if __name__ == "__main__":
    main()

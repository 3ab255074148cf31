"""The autoscaler joins what decides (`scale`) with who runs machines (`fleet`) in a gateway that serves.

    gateway = Gateway({}, scaler=Autoscaler(LocalFleet("tenon serve . --port {port}"), Scaling(least=0, most=4)))

Every `sample_s` it looks at the work that arrived, what waits and the memory in use, asks `decide` how many replicas
there should be, and moves towards that. A start that is ordered now is ready a horizon later: the horizon is what
nine of ten starts of this fleet took, kept in a file over restarts. A replica that leaves is sent nothing more, its
sessions are handed over, what it has begun it finishes. One that dies is replaced; one that dies young, or never gets
ready, is tried again after a time that doubles up to five minutes, and the fifth in a row is told as a crash loop.

When there is none and somebody asks, the request waits in the gateway while the first starts (`hold_s`). Each
decision is an event with its reason: in the log, under `/replicas`, in `/metrics`, and recorded where a `record` is
given. Whoever records is never waited for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tenon.errors import TenonError
from tenon.serving.engines import metrics, share_in_use
from tenon.serving.fleet import Machine, Machines
from tenon.serving.replica import Remote, Replica
from tenon.serving.scale import Sample, Scaling, Starts, decide

if TYPE_CHECKING:
    from tenon.serving.gateway import Gateway

log = logging.getLogger("tenon.serving")

SAMPLES = 400
EVENTS = 100  # shown under /replicas
TELLING = 1_000  # events that wait to be recorded; more are dropped
BACK_S, BACK_MOST_S = 1.0, 300.0  # until a start is tried again
LOOP = 5  # failures in a row that are told as a crash loop
YOUNG_S = 60.0  # one that dies before was never well
HUNG_S = 30.0  # one that lives and is down for so long is replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What was done to the fleet, and why."""

    at: float  # Unix seconds
    what: str  # start, ready, failed, crash loop, died, hung, leave, left
    replica: str
    why: str
    wanted: int
    ready: int


@dataclass(slots=True, kw_only=True)
class _Member:
    """One replica of the fleet in the gateway."""

    number: int
    since: float
    down_since: float | None = None
    leaving: bool = False


def _unheard(kind: str, subject: str, body: Mapping[str, Any]) -> None:
    """Record nothing."""


@dataclass(slots=True, kw_only=True)
class Autoscaler:
    """Keeps a gateway's fleet as large as it should be; `Gateway(scaler=...)` starts and ends it."""

    fleet: Machines
    scaling: Scaling = Scaling()
    sample_s: float = 5.0
    drain_s: float = 15.0
    label: str = "fleet"  # what is run, on which machine: starts are remembered by it
    state: Path | None = None
    record: Callable[[str, str, Mapping[str, Any]], None] = _unheard
    connect: Callable[[Machine], Replica] = lambda machine: Remote(machine.url)
    starts: Starts = field(default_factory=Starts)
    wanted: int = 0
    replica_s: float = 0.0  # seconds of all replicas so far, which is what they cost
    failures: int = 0  # in a row
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS))
    _gateway: Gateway | None = None
    _members: dict[str, _Member] = field(default_factory=dict)
    _starting: dict[asyncio.Task[None], float] = field(default_factory=dict)
    _leaving: set[asyncio.Task[None]] = field(default_factory=set)
    _samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    _retired: deque[str] = field(default_factory=deque)
    _counts: dict[str, int] = field(default_factory=dict)
    _telling: deque[Event] = field(default_factory=lambda: deque(maxlen=TELLING))
    _teller: asyncio.Task[None] | None = None
    _asked_s: float = 0.0
    _looked_at: float = 0.0
    _retry_at: float = 0.0
    _why: str = ""

    # ── what the gateway calls ───────────────────────────────────────────────────────────────────────────────────────

    def join(self, gateway: Gateway) -> None:
        """Take a gateway, and give it the replicas that run already; before it serves."""
        self._gateway = gateway
        self._recall()
        now = self._looked_at = gateway.clock()
        for machine in self.fleet.list():
            self._take(machine, now)
        self.wanted = min(max(self.scaling.least, len(self._members)), max(self.scaling.most, self.scaling.least))

    async def run(self) -> None:
        """Look, decide and act until cancelled: every `sample_s`, and at once when a request finds no replica."""
        gateway = self._at()
        self._teller = asyncio.create_task(self._tell())
        while True:
            try:
                await self.step()
            except Exception:  # the edge of a background loop: the replicas there are go on
                log.exception("the fleet could not be looked after")
            gateway.wanted.clear()
            try:
                async with asyncio.timeout(self.sample_s):
                    await gateway.wanted.wait()
            except TimeoutError:
                pass

    async def close(self) -> None:
        """End what is being started, and stop every replica."""
        for task in (*self._starting, *self._leaving):
            task.cancel()
        await asyncio.gather(*self._starting, *self._leaving, return_exceptions=True)
        await asyncio.gather(*(self.fleet.stop(machine.name) for machine in self.fleet.list()))
        if self._teller is not None:
            self._teller.cancel()
            await asyncio.gather(self._teller, return_exceptions=True)
            await asyncio.to_thread(self._tell_all)

    def retire(self, name: str) -> None:
        """Let one replica go at the next look, and have another in its place; for maintenance, from any thread."""
        self._retired.append(name)

    @property
    def hold_s(self) -> float:
        """How long it is worth holding a request for the first replica: two starts, as far as starts are known."""
        return 2 * self.starts.horizon_s

    @property
    def ready_in_s(self) -> float:
        """When there should be a replica, for those who are told to come back."""
        now = self._at().clock()
        began = min(self._starting.values(), default=max(now, self._retry_at))
        return max(began + self.starts.horizon_s - now, 1.0)

    # ── one look ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def step(self) -> None:
        """Look once: who has died, what the load needs; order starts and departures."""
        gateway = self._at()
        now = gateway.clock()
        while self._retired:
            name = self._retired.popleft()
            if name in self._members and not self._members[name].leaving:
                self._let_go(name, "it was asked to")
                self._why = f"in place of {name}, which was asked to go"
        self._bury(now)
        await self._sample(now)
        idle_s = 0.0 if gateway.held else now - gateway.asked_at
        found = decide(
            list(self._samples), self.scaling, replicas=self.wanted, horizon_s=self.starts.horizon_s, idle_for_s=idle_s
        )
        if gateway.held and not found.replicas:  # nothing was seen yet, and somebody waits
            found = type(found)(replicas=min(1, self.scaling.most), why="a request waits and no replica is there")
        if found.replicas != self.wanted:
            self._why = found.why
        self.wanted = found.replicas
        staying = [name for name, member in self._members.items() if not member.leaving]
        have = len(staying) + len(self._starting)
        if have < self.wanted and now >= self._retry_at:
            for _ in range(self.wanted - have if not self.failures else 1):
                self._say("start", "", self._why or "as many as are always there")
                self._starting[asyncio.create_task(self._start())] = now
        elif len(staying) > self.wanted and not self._starting:
            for name in sorted(staying, key=self._worth)[: len(staying) - self.wanted]:
                self._let_go(name, self._why)

    def _worth(self, name: str) -> tuple[int, int, int]:
        """Say how much a replica has that would be lost: sessions, running requests, cached blocks."""
        gateway, number = self._at(), self._members[name].number
        return gateway.journal.count(name), gateway.router.running[number], gateway.router.map.count(number)

    def _bury(self, now: float) -> None:
        """Take out replicas that have ended by themselves, and stop those that hang."""
        gateway = self._at()
        alive = {machine.name for machine in self.fleet.list()}
        for name, member in list(self._members.items()):
            if member.leaving:
                continue
            if name not in alive:
                del self._members[name]
                gateway.remove(member.number)
                lived_s = now - member.since
                self._say("died", name, f"it ended by itself after {lived_s:.0f} s")
                self._why = f"in place of {name}, which died"
                self._failed(now, young=lived_s < YOUNG_S)
            elif gateway.is_up(member.number):
                member.down_since = None
                if now - member.since >= YOUNG_S:
                    self.failures = 0
            elif member.down_since is None:
                member.down_since = now
            elif now - member.down_since > HUNG_S:
                self._say("hung", name, f"it has not been ready for {now - member.down_since:.0f} s")
                self._why = f"in place of {name}, which hangs"
                self._failed(now, young=True)
                self._let_go(name, "it hangs")

    def _failed(self, now: float, *, young: bool) -> None:
        """Note a failure: one that has lived well is replaced at once, others after a while."""
        self.failures = self.failures + 1 if young else 0
        self._retry_at = now + min(BACK_S * 2.0 ** (self.failures - 1), BACK_MOST_S) if young else now
        if self.failures == LOOP:
            self._say("crash loop", "", f"{LOOP} replicas in a row did not live; tried again every "
                      f"{BACK_MOST_S:.0f} s at most")  # fmt: skip

    async def _sample(self, now: float) -> None:
        gateway = self._at()
        past_s = now - self._looked_at
        if past_s < self.sample_s / 2 and self._samples:
            return
        router = gateway.router
        staying = [member for member in self._members.values() if not member.leaving]
        self.replica_s += past_s * (len(self._members) + len(self._starting))
        asked_s, self._asked_s, self._looked_at = router.asked_s - self._asked_s, router.asked_s, now
        texts = await asyncio.gather(*(metrics(gateway.replica(member.number)) for member in staying))
        self._samples.append(
            Sample(
                at=now,
                work=asked_s / past_s if past_s > 0 else 0.0,
                waiting_s=sum(router.wait_s(member.number, now) for member in staying) + gateway.held_s,
                memory=sum(map(share_in_use, texts)),
            )
        )

    # ── starts and departures ────────────────────────────────────────────────────────────────────────────────────────

    async def _start(self) -> None:
        gateway = self._at()
        task = asyncio.current_task()
        assert task is not None
        try:
            machine = await self.fleet.start()
            self.starts.saw(machine.start_s)
            self._take(machine, gateway.clock())
            self._say("ready", machine.name, f"after {machine.start_s:.1f} s")
            if self.state is not None:
                await asyncio.to_thread(self._remember)
        except TenonError as error:
            self._say("failed", "", str(error))
            self._failed(gateway.clock(), young=True)
        except Exception as error:  # the edge of a fleet, which may be anybody's: a start that failed
            log.exception("a replica could not be started")
            self._say("failed", "", f"{type(error).__name__}: {error}")
            self._failed(gateway.clock(), young=True)
        finally:
            self._starting.pop(task, None)

    def _let_go(self, name: str, why: str) -> None:
        self._members[name].leaving = True
        self._say("leave", name, why)
        task = asyncio.create_task(self._leave(name))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, name: str) -> None:
        """Let a replica go: nothing more is sent there, sessions move, what has begun ends, then it is stopped."""
        gateway, number = self._at(), self._members[name].number
        try:
            if gateway.is_up(number):
                gateway.drain(number)
                await gateway.hand_over(number)
                until = gateway.clock() + self.drain_s
                while gateway.router.running[number] and gateway.clock() < until:
                    await asyncio.sleep(0.05)
            await self.fleet.stop(name)
        finally:
            del self._members[name]
            gateway.remove(number)
            self._say("left", name, "")

    def _take(self, machine: Machine, now: float) -> None:
        number = self._at().add(machine.name, self.connect(machine))
        self._members[machine.name] = _Member(number=number, since=now)

    def _at(self) -> Gateway:
        assert self._gateway is not None, "a gateway joins first"
        return self._gateway

    # ── what is told and kept ────────────────────────────────────────────────────────────────────────────────────────

    def _say(self, what: str, replica: str, why: str) -> None:
        ready = sum(not member.leaving for member in self._members.values())
        event = Event(at=time(), what=what, replica=replica, why=why, wanted=self.wanted, ready=ready)
        self.events.append(event)
        self._telling.append(event)
        self._counts[what] = self._counts.get(what, 0) + 1
        log.warning("fleet: %s %s (%s); %d wanted, %d ready", what, replica, why, self.wanted, ready)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(self.sample_s)
            if self._telling:
                await asyncio.to_thread(self._tell_all)

    def _tell_all(self) -> None:
        while self._telling:
            event = self._telling.popleft()
            try:
                self.record("scaling", self.label, asdict(event))
            except TenonError:
                log.exception("the event '%s' of the fleet could not be recorded", event.what)

    def _recall(self) -> None:
        """Read how long starts took before; a file that cannot be read is none."""
        if self.state is None:
            return
        try:
            kept = json.loads(self.state.read_bytes()).get(self.label, [])
            for seconds in kept:
                self.starts.saw(float(seconds))
        except (OSError, ValueError, TypeError, AttributeError):
            return

    def _remember(self) -> None:
        assert self.state is not None
        try:
            kept = json.loads(self.state.read_bytes()) if self.state.exists() else {}
            every = kept if isinstance(kept, dict) else {}
        except (OSError, ValueError):
            every = {}
        every[self.label] = [round(seconds, 3) for seconds in self.starts.seconds]
        part = self.state.with_name(f".{self.state.name}.{os.getpid()}")
        try:
            self.state.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(every))
            part.replace(self.state)
        except OSError as error:
            log.warning("how long starts took cannot be written: %s", error)

    def report(self) -> dict[str, Any]:
        """Return the fleet as plain data."""
        return {
            "wanted": self.wanted,
            "ready": sum(not member.leaving for member in self._members.values()),
            "starting": len(self._starting),
            "leaving": len(self._leaving),
            "horizon_s": self.starts.horizon_s,
            "failures": self.failures,
            "replica_s": self.replica_s,
            "events": [asdict(event) for event in self.events],
        }

    def collect(self) -> Iterable[Metric]:
        """Yield the metric families of the fleet."""
        fleet = GaugeMetricFamily("tenon_fleet_replicas", "Replicas of the fleet by state.", labels=("state",))
        for state in ("wanted", "ready", "starting", "leaving"):
            fleet.add_metric((state,), self.report()[state])
        yield fleet
        yield GaugeMetricFamily("tenon_fleet_horizon_seconds", "Nine of ten starts took at most.",
                                value=self.starts.horizon_s)  # fmt: skip
        yield CounterMetricFamily("tenon_fleet_replica_seconds", "Seconds that replicas ran.", value=self.replica_s)
        events = CounterMetricFamily("tenon_fleet_events", "What was done to the fleet.", labels=("what",))
        for what, count in self._counts.items():
            events.add_metric((what,), count)
        yield events

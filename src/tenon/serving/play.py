"""Replay plays a recorded stretch of time against a running service: facts, labels and predictions as they would
come.

The glue gives ticks in time order. Of each, the facts that became known are posted first, then the labels, and only
when those are acknowledged the predictions of the tick, over several connections at once: so a prediction sees what
was known at its time and nothing later. `speed` is simulated seconds for each real one; 0 is as fast as the service
answers.

The client is an `asyncio.Protocol` of its own with httptools' parser: a connection that gets its answer sends its
next request from the same callback, with no task or future in between. Measured against one service, single rows on 2
cores, it reaches several times the rate of `http.client` in threads, which fight for one interpreter lock. Latencies
go into logarithmic buckets 1 % wide, so that memory does not grow with the length of the replay.

A service that says 429 or 503 is asked again after the time it names, a few times; any other refusal is counted and
the first of them are kept in words. A service that cannot be reached, or goes away, is an error in words.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any
from urllib.parse import quote

import httptools
import msgspec

from tenon.errors import InputError, UsageError, sentence
from tenon.serving.client import Address, refused_words, unreachable

Progress = Callable[[float, float, str], None]
Row = Mapping[str, Any]
TRIES = 5
SHOWN_ERRORS = 5
REPORT_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What happens up to one moment (Unix seconds): facts by source, labels, and the rows to predict then."""

    end: float
    facts: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    labels: Sequence[Row] = ()
    rows: Sequence[Row] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How to replay: simulated seconds a second (0: as fast as it goes), connections, rows in a request."""

    speed: float = 0.0
    connections: int = 16
    rows_per_request: int = 1
    facts_per_request: int = 2_000
    timeout_s: float = 30.0
    token: str = ""
    total_rows: int = 0  # how many predictions will come, for the progress; 0 is unknown

    def __post_init__(self) -> None:
        for name in ("connections", "rows_per_request", "facts_per_request"):
            if getattr(self, name) < 1:
                raise UsageError(sentence(f"{name} of at least 1", str(getattr(self, name)), at="replay"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a replay did: rows predicted, facts and labels taken, requests refused (the first of them in words)."""

    predictions: int
    facts: int
    duplicates: int
    labels: int
    errors: int
    retries: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    behind_s: float
    ticks: int
    said: tuple[str, ...] = ()

    @property
    def rate_per_s(self) -> float:
        """Return predictions a second."""
        return self.predictions / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return what was done as plain data."""
        return {**asdict(self), "said": list(self.said), "rate_per_s": self.rate_per_s}


def replay(
    ticks: Iterable[Tick], url: str, model: str, *, pace: Pace | None = None, progress: Progress | None = None
) -> Replayed:
    """Play ticks against the service at `url`; raises MissingError in words when none answers there."""
    return asyncio.run(_Player(url, model, pace or Pace(), progress).play(ticks))


# ── latencies ────────────────────────────────────────────────────────────────────────────────────────────────────────

STEP = math.log(1.01)


class Latencies:
    """Counts of latencies in buckets 1 % wide; a quantile is right within 1 %."""

    __slots__ = ("_counts", "count", "max_s")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.max_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        bucket = math.floor(math.log(max(seconds, 1e-6)) / STEP)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.count += 1
        self.max_s = max(self.max_s, seconds)

    def quantile(self, share: float) -> float:
        """Return the latency in seconds below which that share of them is; 0 when there are none."""
        wanted = share * self.count
        for bucket in sorted(self._counts):
            wanted -= self._counts[bucket]
            if wanted <= 0:
                return min(math.exp((bucket + 0.5) * STEP), self.max_s)
        return 0.0


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Request:
    """One request to send: its path, JSON body and how many rows it holds."""

    path: bytes
    body: bytes
    rows: int
    tries: int = 0
    sent: float = 0.0


class _Wire(asyncio.Protocol):
    """One kept connection: sends the next request of its player as soon as an answer is complete."""

    def __init__(self, player: _Player) -> None:
        self.player = player
        self.transport: asyncio.Transport | None = None
        self.request: Request | None = None
        self._fresh()

    def _fresh(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.retry_after = 0.0
        self.body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, request: Request) -> None:
        """Send a request; the connection must be idle."""
        assert self.transport is not None and self.request is None
        self.request = request
        request.sent = perf_counter()
        self.transport.write(
            b"POST %b HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n%b"
            % (request.path, self.player.head, len(request.body), request.body)
        )

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.player.fail(InputError(sentence("an answer in HTTP", str(error), at=self.player.url)))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after" and value.isdigit():
            self.retry_after = min(30.0, float(value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        request, self.request = self.request, None
        if request is None:
            return
        status, body, retry_after = self.parser.get_status_code(), self.body, self.retry_after
        kept = self.parser.should_keep_alive()
        self._fresh()
        if not kept and self.transport is not None:
            self.transport.close()
            self.transport = None
        self.player.answered(self, request, status, body, retry_after)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        request, self.request = self.request, None
        if request is not None:
            self._fresh()
            self.player.lost(self, request, exc)


class _Player:
    """One replay under way: the connections, what is left of the tick, and the counts."""

    def __init__(self, url: str, model: str, pace: Pace, progress: Progress | None) -> None:
        self.url = url
        self.address = Address.of(url)
        self.pace = pace
        self.progress = progress
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        head = f"host: {host}:{self.address.port}\r\ncontent-type: application/json\r\n"
        self.head = (head + (f"authorization: Bearer {pace.token}\r\n" if pace.token else "")).encode()
        base = self.address.path
        self.predict_path = f"{base}/predict/{quote(model, safe='')}".encode()
        self.labels_path = f"{base}/labels/{quote(model, safe='')}".encode()
        self.facts_path = f"{base}/facts/"
        self.latencies = Latencies()
        self.waiting: deque[Request] = deque()
        self.idle: list[_Wire] = []
        self.in_flight = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.done: asyncio.Future[None] | None = None
        self.predictions = self.facts = self.duplicates = self.labels = self.errors = self.retries = 0
        self.said: list[str] = []
        self.behind_s = 0.0

    async def play(self, ticks: Iterable[Tick]) -> Replayed:
        """Play every tick, and say what was done."""
        began = reported = perf_counter()
        first: float | None = None
        count = 0
        try:
            await self._connect()
            for tick in ticks:
                first = tick.end if first is None else first
                if self.pace.speed > 0:
                    await self._keep_pace((tick.end - first) / self.pace.speed - (perf_counter() - began))
                await self._one(tick)
                count += 1
                if self.progress is not None and perf_counter() - reported >= REPORT_S:
                    reported = perf_counter()
                    self._report(reported - began)
        finally:
            for wire in self.idle:
                if wire.transport is not None:
                    wire.transport.close()
        seconds = perf_counter() - began
        if self.progress is not None:
            self._report(seconds)
        return Replayed(
            predictions=self.predictions,
            facts=self.facts,
            duplicates=self.duplicates,
            labels=self.labels,
            errors=self.errors,
            retries=self.retries,
            seconds=seconds,
            p50_ms=self.latencies.quantile(0.5) * 1e3,
            p99_ms=self.latencies.quantile(0.99) * 1e3,
            max_ms=self.latencies.max_s * 1e3,
            behind_s=self.behind_s,
            ticks=count,
            said=tuple(self.said),
        )

    async def _keep_pace(self, ahead_s: float) -> None:
        self.behind_s = max(self.behind_s, -ahead_s)
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)

    def _report(self, seconds: float) -> None:
        assert self.progress is not None
        rate = self.predictions / seconds if seconds else 0.0
        said = f"{self.predictions:,} predictions, {rate:,.0f} a second"
        self.progress(float(self.predictions), float(self.pace.total_rows), said)

    async def _one(self, tick: Tick) -> None:
        """Post the facts of a tick, then its labels, then its predictions, each when the one before is acknowledged."""
        facts = [
            Request((self.facts_path + quote(name, safe="")).encode(), body, rows)
            for name, every in tick.facts.items()
            for body, rows in _bodies(every, self.pace.facts_per_request)
        ]
        await self._send(facts)
        await self._send(
            [Request(self.labels_path, *part) for part in _bodies(tick.labels, self.pace.facts_per_request)]
        )
        if self.pace.rows_per_request == 1:
            encode = msgspec.json.encode
            await self._send([Request(self.predict_path, encode(row), 1) for row in tick.rows])
        else:
            parts = _bodies(tick.rows, self.pace.rows_per_request)
            await self._send([Request(self.predict_path, *part) for part in parts])

    async def _send(self, requests: Sequence[Request]) -> None:
        """Send requests over the idle connections and wait until every one has its answer."""
        if not requests:
            return
        loop = asyncio.get_running_loop()
        self.done = loop.create_future()
        self.waiting.extend(requests)
        self.in_flight = len(requests)
        for wire in self.idle[: len(requests)]:
            self.feed(wire)
        seen = -1
        while not self.done.done():
            if self.in_flight == seen:
                raise unreachable(self.url, TimeoutError())
            seen = self.in_flight
            await asyncio.wait([self.done], timeout=self.pace.timeout_s)
        self.done.result()

    async def _connect(self) -> None:
        self.idle = [await self._open() for _ in range(self.pace.connections)]

    async def _open(self, wire: _Wire | None = None) -> _Wire:
        wire = wire or _Wire(self)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.pace.timeout_s):
                await loop.create_connection(
                    lambda: wire, self.address.host, self.address.port, ssl=True if self.address.secure else None
                )
        except (OSError, TimeoutError) as error:
            raise unreachable(self.url, error) from error
        return wire

    # ── what connections call ────────────────────────────────────────────────────────────────────────────────────────

    def feed(self, wire: _Wire) -> None:
        """Give an idle connection its next request, opening it again when it was closed."""
        if not self.waiting:
            return
        if wire.transport is None or wire.transport.is_closing():
            self._later(self._again(wire))
        else:
            wire.send(self.waiting.popleft())

    async def _again(self, wire: _Wire) -> None:
        try:
            await self._open(wire)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for the tick
            self.fail(error)
            return
        self.feed(wire)

    def answered(self, wire: _Wire, request: Request, status: int, body: bytes, retry_after_s: float) -> None:
        """Count an answer and send the next request; one that was asked to come back waits and goes again."""
        if status in (429, 503) and request.tries < TRIES and retry_after_s:
            request.tries += 1
            self.retries += 1
            self._later(self._come_back(wire, request, retry_after_s))
            return
        if status == 200:
            self._count(request, body)
        else:
            self.errors += 1
            if len(self.said) < SHOWN_ERRORS:
                self.said.append(str(refused_words(request.path.decode(), status, _json(body), body)))
        self._finished()
        self.feed(wire)

    def lost(self, wire: _Wire, request: Request, error: Exception | None) -> None:
        """Send a request once more whose connection was closed before its answer came."""
        request.tries += 1
        if request.tries > TRIES:
            self.fail(unreachable(self.url, error or ConnectionResetError("it closes every connection")))
            return
        self.retries += 1
        self.waiting.appendleft(request)
        self.feed(wire)

    def fail(self, error: Exception) -> None:
        """End the replay with an error."""
        if self.done is not None and not self.done.done():
            self.done.set_exception(error)

    async def _come_back(self, wire: _Wire, request: Request, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        self.waiting.appendleft(request)
        self.feed(wire)

    def _count(self, request: Request, body: bytes) -> None:
        if request.path == self.predict_path:
            self.latencies.add(perf_counter() - request.sent)
            self.predictions += request.rows
        elif request.path == self.labels_path:
            self.labels += request.rows
        else:
            answer = _json(body)
            duplicates = answer.get("duplicates", 0) if isinstance(answer, dict) else 0
            self.duplicates += duplicates
            self.facts += request.rows - duplicates

    def _finished(self) -> None:
        self.in_flight -= 1
        if not self.in_flight and self.done is not None and not self.done.done():
            self.done.set_result(None)

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def _bodies(rows: Sequence[Row], size: int) -> list[tuple[bytes, int]]:
    """Return request bodies of at most `size` rows each, with how many rows each holds."""
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [(msgspec.json.encode({"rows": part}), len(part)) for part in parts]


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None

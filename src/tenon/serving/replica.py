"""A replica is anything that answers HTTP: a URL of another server, or an ASGI app in this process.

    class Replica(Protocol):
        async def ask(self, asked: Forward) -> Answer      # raises Unanswered when nothing came back
        async def close(self) -> None

`Remote` speaks HTTP/1.1 to a URL (another tenon, a vLLM, SGLang, llama.cpp or Triton server, a local process) over
connections that stay open; `Within` calls an app that lives here. An Answer's head comes first and its body as it
arrives, so that streams pass through; reading stops while nobody takes what has come.

httptools parses, as it does for our own server. Rejected: httpx and aiohttp (a dependency each, and 0.3 to 1 ms a
request where the whole gateway may add one).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

import httptools

from tenon.errors import UsageError, sentence
from tenon.limits import KIB, Limits, RouteLimits
from tenon.serving.client import Address

log = logging.getLogger("tenon.serving")

Headers = Sequence[tuple[bytes, bytes]]
AHEAD_BYTES = 256 * KIB  # of a body, read before it is taken
READY = ("/readyz", "/health", "/v2/health/ready", "/v1/models", "/")  # tenon; vLLM, SGLang, llama.cpp; Triton; OpenAI
PROBE_ANSWER_S = 2.0
STALE_S = 30.0  # a connection idle for longer is not trusted with another request


class Unanswered(Exception):
    """Nothing came back: the replica is gone, or broke the connection. `begun`: it may have worked on the request."""

    def __init__(self, why: str, *, begun: bool) -> None:
        super().__init__(why)
        self.begun = begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """One request to pass on; `headers` without those that belong to one connection."""

    method: str
    target: str  # path and query
    headers: Headers
    body: bytes = b""


class Answer(Protocol):
    """The head of an answer, and its body as it comes."""

    status: int
    headers: Headers

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body's parts as they come; Unanswered when it breaks off."""

    def drop(self) -> None:
        """Take no more of it; safe after the end."""


class Replica(Protocol):
    """What the gateway asks of a replica."""

    async def ask(self, asked: Forward) -> Answer:
        """Pass a request on and return when the head of its answer is there."""

    async def close(self) -> None:
        """Let go of connections."""


# ── readiness ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def is_ready(replica: Replica) -> bool:
    """Say whether a replica answers and is ready."""
    try:
        await ready_path(replica, "")
    except Unanswered:
        return False
    return True


async def ready_path(replica: Replica, known: str) -> str:
    """Return the path on which a replica says that it is ready, of the usual ones; Unanswered if it is not."""
    status = 0
    try:
        async with asyncio.timeout(PROBE_ANSWER_S):
            for path in (known,) if known else READY:
                answer = await replica.ask(Forward(method="GET", target=path, headers=()))
                async for _ in answer.chunks():
                    pass
                status = answer.status
                if status < 400 or status in (401, 403):
                    return path
                if status != 404:
                    break
    except TimeoutError:
        raise Unanswered(f"no answer within {PROBE_ANSWER_S:g} s", begun=True) from None
    raise Unanswered(f"it says {status}", begun=True)


# ── over the network ─────────────────────────────────────────────────────────────────────────────────────────────────


class _Wire(asyncio.Protocol):
    """One connection to a replica; one request at a time."""

    def __init__(self, gone: Callable[[_Wire], None]) -> None:
        self.gone = gone
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self.idle_since = 0.0
        self.status = 0
        self._lines: list[tuple[bytes, bytes]] = []
        self.headers: Headers = self._lines
        self._parser: Any = None
        self._head: asyncio.Future[None] | None = None
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._more: asyncio.Future[None] | None = None
        self._ended = True
        self._reusable = False
        self._fault = ""
        self._bodiless = False

    def begin(self, method: str) -> asyncio.Future[None]:
        """Get ready for one request; the future is done when the head of the answer is there."""
        self._parser = httptools.HttpResponseParser(self)
        self.status, self._parts, self._size = 0, deque(), 0
        self.headers = self._lines = []
        self._ended = self._reusable = False
        self._bodiless = method == "HEAD"
        self._head = asyncio.get_running_loop().create_future()
        return self._head

    # ── what the event loop calls ────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._ended:  # nobody asked
            self._shut("it sent what was not asked for")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._shut(f"what is no HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        names = {name.lower() for name, _ in self.headers}
        whole = self.status and not names & {b"content-length", b"transfer-encoding"}  # ends with the connection
        if not self._ended and not whole:
            self._fault = self._fault or (str(error) if error else "the connection was closed")
        self._end()
        self.gone(self)

    # ── what the parser calls ────────────────────────────────────────────────────────────────────────────────────────

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.status = 0
            self._lines.clear()
            return
        if self._head is not None and not self._head.done():
            self._head.set_result(None)
        if self._bodiless:
            self._end()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._size += len(body)
        if self._size > AHEAD_BYTES and self.transport is not None:
            self.transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self.status and not self._ended:
            self._reusable = self._parser.should_keep_alive()
            self._end()

    # ── what the gateway calls ───────────────────────────────────────────────────────────────────────────────────────

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the body's parts as they come; Unanswered when it breaks off."""
        while True:
            while self._parts:
                part = self._parts.popleft()
                self._size -= len(part)
                if self._size <= AHEAD_BYTES and self.transport is not None and not self.closed:
                    self.transport.resume_reading()
                yield part
            if self._ended:
                break
            self._more = asyncio.get_running_loop().create_future()
            await self._more
        if self._fault:
            raise Unanswered(self._fault, begun=True)

    def leave(self) -> None:
        """Be free for the next request when the answer was taken whole, else close."""
        if self._ended and self._reusable and not self.closed and not self._fault and not self._parts:
            self.idle_since = monotonic()
            self.gone(self)
        elif self.transport is not None:
            self.transport.abort()

    @property
    def fault(self) -> str:
        """Why the connection broke, in words."""
        return self._fault

    def _shut(self, why: str) -> None:
        self._fault = why
        self._end()
        if self.transport is not None:
            self.transport.abort()

    def _end(self) -> None:
        self._ended = True
        if self._head is not None and not self._head.done():
            self._head.set_result(None)
        self._wake()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)


class _Reply:
    """The answer to one request; its connection may serve the next one as soon as this has been taken whole."""

    __slots__ = ("_wire", "headers", "status")

    def __init__(self, wire: _Wire) -> None:
        self.status = wire.status
        self.headers = wire.headers
        self._wire: _Wire | None = wire

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body's parts as they come; Unanswered when it breaks off."""
        wire = self._wire
        if wire is None:
            return
        try:
            async for part in wire.parts():
                yield part
        finally:
            self.drop()

    def drop(self) -> None:
        """Give the connection back when the answer was taken whole, else close it; safe to call again."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.leave()


class Remote:
    """A replica at a URL; connections are kept open and used again, at most so many at once."""

    def __init__(self, url: str, limits: RouteLimits | None = None) -> None:
        self.address = Address.of(url)
        self.limits = limits or RouteLimits()
        self._idle: list[_Wire] = []
        self._open: set[_Wire] = set()
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        usual = 443 if self.address.secure else 80
        self._host = (host if self.address.port == usual else f"{host}:{self.address.port}").encode()
        self._tls = ssl.create_default_context() if self.address.secure else None

    async def ask(self, asked: Forward) -> Answer:
        """Pass a request on; returns when the head of its answer is there."""
        wire = await self._wire()
        wire.idle_since = 0.0
        head = wire.begin(asked.method)
        lines = [f"{asked.method} {self.address.path}{asked.target} HTTP/1.1\r\nhost: ".encode("latin-1"), self._host]
        for name, value in asked.headers:
            lines += (b"\r\n", name, b": ", value)
        if asked.body or asked.method not in ("GET", "HEAD", "DELETE", "OPTIONS"):
            lines.append(b"\r\ncontent-length: %d" % len(asked.body))
        lines += (b"\r\n\r\n", asked.body)
        assert wire.transport is not None
        wire.transport.write(b"".join(lines))
        try:
            await head
        except asyncio.CancelledError:
            wire.transport.abort()
            raise
        if not wire.status:
            wire.transport.abort()
            raise Unanswered(wire.fault or "no answer", begun=True)
        return _Reply(wire)

    async def close(self) -> None:
        """Close every connection."""
        for wire in tuple(self._open):
            if wire.transport is not None:
                wire.transport.abort()
        self._idle.clear()

    async def _wire(self) -> _Wire:
        while self._idle:
            wire = self._idle.pop()
            if not wire.closed and monotonic() - wire.idle_since < STALE_S:
                return wire
            if wire.transport is not None:
                wire.transport.abort()
        if len(self._open) >= self.limits.connections:
            raise Unanswered(f"{self.limits.connections} connections are open to it already", begun=False)
        loop = asyncio.get_running_loop()
        wire = _Wire(self._gone)
        self._open.add(wire)
        try:
            async with asyncio.timeout(self.limits.connect_s):
                await loop.create_connection(
                    lambda: wire,
                    self.address.host,
                    self.address.port,
                    ssl=self._tls,
                    server_hostname=self.address.host if self._tls else None,
                )
        except (OSError, TimeoutError) as error:
            self._open.discard(wire)
            why = str(error) or f"no connection within {self.limits.connect_s:g} s"
            raise Unanswered(why, begun=False) from error
        except asyncio.CancelledError:
            self._open.discard(wire)
            raise
        return wire

    def _gone(self, wire: _Wire) -> None:
        """Be told that a connection is closed, or free for the next request."""
        if wire.closed:
            self._open.discard(wire)
            if wire in self._idle:
                self._idle.remove(wire)
        elif len(self._idle) < self.limits.idle_connections:
            self._idle.append(wire)
        elif wire.transport is not None:
            wire.transport.abort()


# ── in this process ──────────────────────────────────────────────────────────────────────────────────────────────────

App = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[MutableMapping[str, Any]], Awaitable[None]]],
    Awaitable[None],
]


class _Told:
    """The answer of an app in this process, taken part by part."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = ()
        self.head: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.parts: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=16)
        self.task: asyncio.Task[None] | None = None

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], tuple(message.get("headers", ()))
            self.head.set_result(None)
        else:
            if message.get("body"):
                await self.parts.put(message["body"])
            if not message.get("more_body"):
                await self.parts.put(None)

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            while (part := await self.parts.get()) is not None:
                yield part
        finally:
            self.drop()

    def drop(self) -> None:
        if self.task is not None and not self.task.done() and self.parts.qsize():
            self.task.cancel()


class Within:
    """A replica in this process: an ASGI app, for models so small that a process of their own costs more.

    Its lifespan begins with the first request and ends with `close`.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self._life: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()
        self._ending = asyncio.Event()

    async def ask(self, asked: Forward) -> Answer:
        """Call the app; returns when the head of its answer is there."""
        if self._life is None:
            self._life = asyncio.create_task(self._live())
        await self._begun.wait()
        told = _Told()
        path, _, query = asked.target.partition("?")
        scope: MutableMapping[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": asked.method,
            "path": path,
            "query_string": query.encode(),
            "headers": [*asked.headers, (b"content-length", b"%d" % len(asked.body))],
        }
        sent = [False]

        async def receive() -> MutableMapping[str, Any]:
            if sent[0]:
                await asyncio.Event().wait()  # the caller leaves by cancelling
            sent[0] = True
            return {"type": "http.request", "body": asked.body, "more_body": False}

        async def work() -> None:
            try:
                await self.app(scope, receive, told.send)
            except Exception as error:  # noqa: BLE001 - the edge of the app: its caller is told that nothing came
                if not told.head.done():
                    told.head.set_exception(Unanswered(f"{type(error).__name__}: {error}", begun=True))
            finally:
                if not told.head.done():
                    told.head.set_exception(Unanswered("the app returned without an answer", begun=True))
                elif not told.parts.full():
                    told.parts.put_nowait(None)

        told.task = asyncio.create_task(work())
        try:
            await told.head
        except asyncio.CancelledError:
            told.task.cancel()
            raise
        return told

    async def close(self) -> None:
        """Let the app end what it began."""
        self._ending.set()
        if self._life is not None:
            await self._life

    async def _live(self) -> None:
        """Play a server's part of the lifespan; an app that knows none is ready as it is."""
        told = False

        async def receive() -> MutableMapping[str, Any]:
            nonlocal told
            if not told:
                told = True
                return {"type": "lifespan.startup"}
            await self._ending.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message: MutableMapping[str, Any]) -> None:
            self._begun.set()

        try:
            await self.app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
        except Exception as error:  # noqa: BLE001 - the edge of the app: many know no lifespan and say so by failing
            log.debug("the app in this process has no lifespan: %s", error)
        finally:
            self._begun.set()


def connect(urls: Sequence[str], limits: Limits | None = None) -> dict[str, Replica]:
    """Return replicas at these URLs, by their URLs; UsageError for one that is none or is given twice."""
    found: dict[str, Replica] = {}
    for url in urls:
        address = Address.of(url)
        name = f"{address.host}:{address.port}{address.path}"
        if name in found:
            raise UsageError(sentence("each replica once", f"'{name}' twice", at="--replica", hint="remove one"))
        found[name] = Remote(url, (limits or Limits()).route)
    return found

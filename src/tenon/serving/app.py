"""App is the service as one ASGI callable: it finds the door of a request, holds its limits, and hands out answers.

Every request takes one way: path, token, method, body within its limit, the door's own work, answer, count. Doors are
found by one dictionary look-up on the whole path: a framework's routing and request objects cost more than scoring
does. Model and source names are keys of that dictionary and nothing else; no path, header or name reaches the file
system.

What changes while serving is here: which version each model serves. `swap` exchanges it between two batches and drops
no request: what waits is answered by the version that checked it, and facts that arrive meanwhile reach the new one.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
import secrets
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import aclosing
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tenon.errors import ConfigError, MissingError, TenonError, nearest, quoted, sentence
from tenon.serving import oip, pages
from tenon.serving.beside import Beside
from tenon.serving.door import JSON, Asked, Door, Page, Result, Stream
from tenon.serving.keeping import Keeper, restore
from tenon.serving.keys import OWNER, Keys
from tenon.serving.live import Live
from tenon.serving.meter import Meter
from tenon.serving.posting import Posting
from tenon.serving.refusal import Refused
from tenon.serving.relay import lifespan
from tenon.serving.service import Seams, Service, Settings

if TYPE_CHECKING:
    from tenon.serving.lm.language import Language
    from tenon.serving.rpc import Rpc
    from tenon.serving.stateful import Stateful

log = logging.getLogger("tenon.serving")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

WANTED = frozenset(
    (
        b"content-length",
        b"traceparent",
        b"authorization",
        b"x-api-key",
        b"x-route-key",
        b"x-session-id",
        b"x-session-step",
        b"x-session-request",
        b"x-fleet-token",
        b"cookie",
        b"origin",
        b"host",
        b"inference-header-content-length",
    )
)
METERED = frozenset(("predict", "infer", "facts", "labels", "completions", "chat", "embeddings"))
OWNERS = frozenset(("repository",))
TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{1,200})?")
RETRY_LOAD_S = 30.0
NOTHING: Mapping[str, Any] = {}
NO_HEADERS: Sequence[tuple[bytes, bytes]] = ()


def build_app(
    services: Iterable[Service],
    *,
    seams: Seams | None = None,
    settings: Settings | None = None,
    languages: Iterable[Language] = (),
    stateful: Iterable[Stateful] = (),
) -> App:
    """Build the ASGI app that serves these models: tabular, stateful, language; nothing runs until a server does."""
    return App(tuple(services), seams or Seams(), settings or Settings(), tuple(languages), tuple(stateful))


class App:
    """The ASGI callable, the doors it has, and the versions it serves."""

    def __init__(
        self, services: tuple[Service, ...], seams: Seams, settings: Settings, languages: tuple[Language, ...] = (),
        stateful: tuple[Stateful, ...] = (),
    ) -> None:  # fmt: skip
        names = [*(s.name for s in services), *(s.name for s in languages), *(s.name for s in stateful)]
        if len(set(names)) != len(names):
            raise ConfigError(sentence("each model once", quoted(names), at="build_app", hint="remove one"))
        self.seams = seams
        self.settings = settings
        self.address: tuple[str, int] = ("", 0)
        self.ready = False
        self._restored = False
        self.in_flight = 0
        self.meter = Meter(self._gauges, seams.registry)
        self.keeper = Keeper(seams.store, settings.limits.queue_rows) if seams.store is not None else None
        self.ids = secrets.token_hex(4)
        self.lives = {s.name: Live(s, seams, settings, self.meter, f"{self.ids}{n:x}") for n, s in enumerate(services)}
        self.keys = Keys(settings.serve) if settings.serve.keys else None
        if self.keys is not None:
            self.meter.keys = self.keys.used
            for live in self.lives.values():
                live.keys = self.keys
        self._beside = Beside(self)
        self.languages = {one.name: one for one in languages}
        self.stateful = {one.name: one for one in stateful}
        if languages:
            from tenon.serving.lm.gauge import Scrape

            numbers = {name: one.engine.numbers for name, one in self.languages.items()}
            self.meter.registry.register(Scrape({name: one.gauge for name, one in self.languages.items()}, numbers))
        self._token = settings.serve.token.encode()
        self._refused_loads: dict[tuple[str, str], float] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._rpc: Rpc | None = None
        self._look = asyncio.Event()
        self._doors: dict[str, Door] = {}
        self._build_doors()

    # ── one request ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the ASGI entry point."""
        if scope["type"] != "http":
            await lifespan(scope, receive, send, self.start, self.stop)
            return
        arrived = perf_counter()
        headers = {name: value for name, value in scope["headers"] if name in WANTED}
        door = self._doors.get(scope["path"])
        self.in_flight += 1
        try:
            result = await self._result(door, scope, headers, receive, arrived)
        finally:
            self.in_flight -= 1
        if result is None:
            return  # the caller has left
        if isinstance(result, Stream):
            await self._stream(result, headers, send)
            self.meter.request(door.name if door is not None else "none", 200)
            return
        if isinstance(result, bytes):
            status, kind, body, more = 200, JSON, result, NO_HEADERS
        else:
            page = result if isinstance(result, Page) else _written(result, door)
            status, kind, body, more = page.status, page.kind, page.body, page.headers
        answer = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *more]
        trace = headers.get(b"traceparent")
        if trace is not None and TRACEPARENT.fullmatch(trace):
            answer.append((b"traceparent", trace))
        write = scope.get("extensions", NOTHING).get("tenon.answer")
        if write is not None:
            write(status, answer, body)
        else:
            await send({"type": "http.response.start", "status": status, "headers": answer})
            await send({"type": "http.response.body", "body": body})
        self.meter.request(door.name if door is not None else "none", status)

    async def _stream(self, stream: Stream, headers: Mapping[bytes, bytes], send: Send) -> None:
        """Send an answer part by part; a slow reader holds up this coroutine and nothing else."""
        answer = [(b"content-type", stream.kind), *stream.headers]
        trace = headers.get(b"traceparent")
        if trace is not None and TRACEPARENT.fullmatch(trace):
            answer.append((b"traceparent", trace))
        self.in_flight += 1
        try:
            async with aclosing(stream.parts) as parts:
                await send({"type": "http.response.start", "status": 200, "headers": answer})
                async for part in parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.in_flight -= 1

    async def _result(
        self, door: Door | None, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, arrived: float
    ) -> Result | None:
        """Return what the door answers, or why it stays shut; None when the caller left before the body came."""
        caller = ""
        if not (door is not None and door.free):
            known = self._caller(door.name if door is not None else "", headers)
            if isinstance(known, Refused):
                return known
            caller = known
        if door is None:
            return self._missing(scope["path"])
        method = scope["method"]
        act = door.acts.get(method) or (door.acts.get("GET") if method == "HEAD" else None)
        if act is None:
            allowed = ", ".join(sorted(door.acts))
            body = Refused(status=405, said=f"expected {allowed}, got {method}").body()
            return Page(body=body, status=405, headers=((b"allow", allowed.encode()), (b"connection", b"close")))
        if method == "POST" and b"origin" in headers and not _same_site(headers):
            return Refused(
                status=403, said="expected a request of this site's own pages, got one of another site", close=True
            )
        if self.keys is not None and method == "POST" and door.name in METERED:
            shut = self.keys.ask(caller, arrived)
            if shut is not None:
                return shut
        content = await self._body(headers, receive) if method == "POST" else b""
        if not isinstance(content, bytes):
            return content
        asked = Asked(headers, content, arrived, self.seams.clock(), receive)
        asked.caller = caller
        try:
            return await act(asked)
        except Exception:  # the edge of a request: answered as 500, logged with its traceback
            log.exception("%s %s failed", method, door.name)
            return Refused(status=500, said="this request failed inside the service; its log says why")

    def admitted(self, door: str, headers: Mapping[bytes, bytes], arrived: float) -> str | Refused:
        """Return the name of who asks at a door that is not HTTP's, counted against its rate; or refuse."""
        caller = self._caller(door, headers)
        if isinstance(caller, Refused) or self.keys is None or door not in METERED:
            return caller
        return self.keys.ask(caller, arrived) or caller

    def traced(self, headers: Mapping[bytes, bytes]) -> bytes:
        """Return the trace context of a request, when it is one."""
        trace = headers.get(b"traceparent", b"")
        return trace if TRACEPARENT.fullmatch(trace) else b""

    @property
    def loader(self) -> oip.Load | None:
        """Return what loads a model anew, where clients may ask for it."""
        return self._load if self.settings.serve.repository else None

    def _caller(self, door: str, headers: Mapping[bytes, bytes]) -> str | Refused:
        """Return the name of who asks ("" where nobody has to say), or refuse who has neither token nor key."""
        if self.keys is None:
            if self._token and not hmac.compare_digest(headers.get(b"authorization", b""), b"Bearer " + self._token):
                return Refused(
                    status=401, said="expected 'Authorization: Bearer TOKEN' with this service's token", close=True
                )
            return ""
        caller = self.keys.caller(headers)
        if not caller:
            said = "expected a key of this service, as 'X-API-Key: KEY' or 'Authorization: Bearer KEY'"
            return Refused(status=401, said=said, close=True)
        if door in OWNERS and caller != OWNER:
            return Refused(status=403, said="expected the service's own token, got a caller's key", close=True)
        return caller

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes | Refused | None:
        """Read the body within its limit; a length that is announced too large is refused before it is sent."""
        limit = self.settings.limits.body_bytes
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            return _too_large(limit)
        message = await receive()
        if message["type"] != "http.request":
            return None
        body: bytes = message.get("body", b"")
        if not message.get("more_body"):
            return body if len(body) <= limit else _too_large(limit)
        parts, size = [body], len(body)
        while message.get("more_body"):
            if size > limit:
                return _too_large(limit)
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
        return b"".join(parts) if size <= limit else _too_large(limit)

    def _missing(self, path: str) -> Refused:
        doors = sorted(
            name
            for name, door in self._doors.items()
            if door.name in ("predict", "facts", "labels", "infer", "completions", "chat", "embeddings")
        )
        return Refused(status=404, said=f"nothing is at {path[:200]!r}; {nearest(path[:200], doors)}")

    # ── what is served ───────────────────────────────────────────────────────────────────────────────────────────────

    def _build_doors(self) -> None:
        """Build the table of paths from what is served now."""
        posting = Posting(self.keeper, self.seams, self.settings.limits, self.meter, self.lives)
        doors = {
            **pages.doors(self.lives, self.seams.sources, self.meter, self._is_ready, self.languages),
            **oip.doors(self.lives, self._is_ready, self.loader),
        }
        for name, live in self.lives.items():
            doors[f"/predict/{name}"] = Door(name="predict", acts={"POST": live.predict})
            doors[f"/labels/{name}"] = Door(name="labels", acts={"POST": posting.labels(name)})
            self.meter.versions[name] = live.service.version
        for name, source in self.seams.sources.items():
            doors[f"/facts/{name}"] = Door(name="facts", acts={"POST": posting.facts(source)})
        if self.languages:
            from tenon.serving.lm import openai

            doors.update(openai.doors(self.languages))
        if self.stateful:
            from tenon.serving import stateful

            doors.update(stateful.doors(self.stateful))
        self._doors = doors

    async def swap(self, service: Service) -> None:
        """Serve this version of its model from now on; no request is dropped and no fact is missed."""
        live = self.lives.get(service.name)
        if live is None:
            raise MissingError(
                sentence("a model served here", f"'{service.name}'", at="swap", hint=nearest(service.name, self.lives))
            )
        previous = live.service.version
        await self._beside.end(live)  # what was tried was tried beside another version
        if self.keeper is not None:
            try:
                await self.keeper.catch_up(service.online, self.seams.sources, service.facts_seq)
                self._take(live, service)
            finally:
                self.keeper.resume()
        else:
            self._take(live, service)
        await asyncio.to_thread(self.record, "swap", service, previous=previous)

    def resume(self) -> None:
        """Let facts in again, after a version has taken in those it had not seen."""
        if self.keeper is not None:
            self.keeper.resume()

    async def _load(self, name: str) -> None:
        """Serve the version that the alias names now, when it is another."""
        self._refused_loads = {}
        await self._follow_one(name, self.lives[name])

    def _take(self, live: Live, service: Service) -> None:
        live.take(service)
        self._build_doors()

    def look(self) -> None:
        """Look now whether another version should be serving (what SIGHUP does)."""
        self._look.set()

    async def _follow(self) -> None:
        """Every `poll_s`, or when told to look, ask which version each model should serve, and swap when it changed."""
        while True:
            try:
                async with asyncio.timeout(self.settings.poll_s):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            for name, live in self.lives.items():
                try:
                    await self._follow_one(name, live)
                    await self._beside.follow(name, live)
                except Exception:  # the edge of a background loop: the version that serves goes on
                    log.exception("'%s' keeps serving version %s", name, live.service.version)

    async def _follow_one(self, name: str, live: Live) -> None:
        current, load = self.seams.current, self.seams.load
        if current is None or load is None:
            return
        version = await asyncio.to_thread(current, name)
        if not version or version == live.service.version:
            return
        if self.may_load(name, version):
            service = await asyncio.to_thread(load, name, version)
            await self.swap(service)
            self.loaded()

    def may_load(self, name: str, version: str) -> bool:
        """Say whether to try to load a version: one that failed is left alone for half a minute."""
        if perf_counter() < self._refused_loads.get((name, version), 0.0):
            return False
        self._refused_loads[name, version] = perf_counter() + RETRY_LOAD_S  # until one has succeeded
        return True

    def loaded(self) -> None:
        """Forget what could not be loaded: something could."""
        self._refused_loads = {}

    # ── beginning and end ────────────────────────────────────────────────────────────────────────────────────────────

    def restore(self) -> None:
        """Apply the facts kept since the snapshots; raises StoreError when they cannot be read. Before serving only."""
        self._restored = True
        if self.seams.store is not None:
            for live in self.lives.values():
                restore(live.service.online, self.seams.store, self.seams.sources, live.service.facts_seq)

    async def start(self) -> None:
        """Begin to follow the alias and be ready; under a server that is not ours, restore first."""
        if not self._restored:
            await asyncio.to_thread(self.restore)
        if self.seams.current is not None and self.seams.load is not None:
            self._tasks.append(asyncio.create_task(self._follow()))
            if threading.current_thread() is threading.main_thread():
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.look)
        for language in self.languages.values():
            await asyncio.to_thread(language.start)
        if self.settings.serve.grpc_port:
            from tenon.serving import rpc

            rpc.needed()
            self._rpc = rpc.Rpc(self)
            await self._rpc.start(self.address[0] or self.settings.serve.host, self.settings.serve.grpc_port)
        self.ready = True
        for live in self.lives.values():
            await asyncio.to_thread(self.record, "start", live.service)
        for language in self.languages.values():
            await asyncio.to_thread(self.record, "start", language)
        for stateful in self.stateful.values():
            await asyncio.to_thread(self.record, "start", stateful)

    async def stop(self) -> None:
        """Offer what monitoring has not seen, finish what is being written, and let the threads go."""
        self.ready = False
        if self._rpc is not None:
            await self._rpc.stop(self.settings.limits.drain_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for live in self.lives.values():
            await self._beside.end(live)
            if live.cheaper is not None:
                live.cheaper.close()
            live.close()
            await asyncio.to_thread(self.record, "stop", live.service)
        for language in self.languages.values():
            await asyncio.to_thread(language.close)
            await asyncio.to_thread(self.record, "stop", language)
        for stateful in self.stateful.values():
            await asyncio.to_thread(stateful.close)
            await asyncio.to_thread(self.record, "stop", stateful)
        if self.keeper is not None:
            await asyncio.to_thread(self.keeper.close)

    def _is_ready(self) -> bool:
        return self.ready

    def record(self, state: str, service: Service | Language | Stateful, **more: Any) -> None:
        """Record what became of a model's service, for the audit."""
        host, port = self.address
        body = {"state": state, "version": service.version, "pid": os.getpid(), "host": host, "port": port, **more}
        try:
            self.seams.record("serving", service.name, body)
        except TenonError:
            log.exception("the event '%s' of '%s' could not be recorded", state, service.name)

    def _gauges(self) -> dict[str, tuple[str, float]]:
        waiting = sum(live.lane.waiting_rows for live in self.lives.values())
        return {
            "tenon_requests_in_flight": ("Requests being answered.", self.in_flight),
            "tenon_queue_rows": ("Rows waiting for their batch.", waiting),
            "tenon_ready": ("1 when requests are welcome.", float(self.ready)),
            "tenon_session_memory_ratio": (
                "Share of the memory for sessions that is in use, of the fullest stateful model.",
                max((one.share for one in self.stateful.values()), default=0.0),
            ),
        }


def _written(refusal: Any, door: Door | None) -> Page:
    assert isinstance(refusal, Refused), refusal
    if door is not None and door.wrong is not None:
        return door.wrong(refusal)
    return Page(body=refusal.body(), status=refusal.status, headers=refusal.headers())


def _too_large(limit: int) -> Refused:
    return Refused(
        status=413, said=f"expected a body of at most {limit:,} bytes, got more; send it in parts", close=True
    )


def _same_site(headers: Mapping[bytes, bytes]) -> bool:
    """Say whether the page that asks is one of this service: browsers tell in `Origin`, other clients send none."""
    return headers[b"origin"].partition(b"://")[2] == headers.get(b"host", b"")

"""The gateway: one address in front of several replicas, each request where its answer will begin soonest.

    run(Gateway({"a": Remote("http://10.0.0.7:8000"), "b": Remote("http://10.0.0.8:8000")}))

A request takes one way: the token, admission, what it needs (`need`), the router's choice, the replica, the answer
back. A replica that does not answer, breaks off or says 502 or 503 is passed over, and a request that may be
asked twice goes to another within its deadline: nobody notices a replica that is killed. Short answers are
passed on when they are whole, so that this also holds in the middle of a body; streams and long answers pass through as
they come, no faster than they are taken.

Every `probe_s` a replica is asked whether it is ready; one that is not gets nothing, and what it had not begun to
answer goes elsewhere. What the router has learnt is written to a file every ten seconds, atomically, and read on start.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from tenon.config import ServeConfig
from tenon.limits import Limits
from tenon.serving.admission import Gate
from tenon.serving.engines import cache_tokens, metrics
from tenon.serving.journal import Journal, LostError, Talk
from tenon.serving.need import cached_in_stream, cached_units, capacity_blocks, need_of, repeatable
from tenon.serving.refusal import Refused
from tenon.serving.relay import HOP, JSON, Receive, Scope, Send, lifespan, replace_file, say, trace
from tenon.serving.replica import PROBE_ANSWER_S, Answer, Forward, Replica, Unanswered, ready_path
from tenon.serving.route import Need, Router, Routing, Ticket
from tenon.serving.service import Settings
from tenon.serving.tally import Tally

if TYPE_CHECKING:
    from tenon.serving.autoscale import Autoscaler

log = logging.getLogger("tenon.serving")


ELSEWHERE = frozenset((502, 503))  # said by a replica that drains or is full: another may answer
SAVE_S = 10.0
MISSED = 2  # probes without an answer until a replica is down


@dataclass(slots=True, kw_only=True)
class _State:
    """What the gateway knows of a replica beside what the router does."""

    replica: Replica
    up: bool = True
    missed: int = 0
    ready: str = ""
    learned: bool = False  # which sessions it has was asked
    trying: set[asyncio.Task[Any]] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class _Passing:
    """One request on its way through."""

    forward: Forward
    need: Need
    again: bool  # may be asked twice
    deadline: float
    trace: bytes
    arrived: float
    request: bytes  # its name among those of its session
    talk: Talk | None = None  # its session, where the model keeps a state
    tried: int = 0  # replicas, as bits
    held: bool = False  # it has waited for a replica to be there


class Gateway:
    """The ASGI callable in front of named replicas."""

    def __init__(
        self,
        replicas: Mapping[str, Replica],
        *,
        routing: Routing | None = None,
        serve: ServeConfig | None = None,
        limits: Limits | None = None,
        gate: Gate | None = None,
        state: Path | None = None,
        scaler: Autoscaler | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        bounds = limits or Limits()
        self.limits = bounds.route
        self.settings = Settings(serve=serve or ServeConfig(), limits=bounds.serving)
        self.address: tuple[str, int] = ("", 0)
        self.router = Router(routing, limits=self.limits)
        self.gate = gate or Gate(most=self.limits.keys)
        self.clock = clock
        self.asked_at = clock()  # when the last request came
        self.held = self.held_bytes = 0  # requests that wait for a replica
        self.wanted = asyncio.Event()  # set when one begins to wait, or a replica is lost
        self.scaler = scaler
        self.journal = Journal(self.limits, self._alive, self.settings.serve.fleet_token)
        self.tally = Tally(self.router, self.journal, scaler)
        self.ready = False
        self._path = state
        self._token = self.settings.serve.token.encode()
        self._states: list[_State] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: set[asyncio.Future[None]] = set()
        self._changed = asyncio.Event()
        for name, replica in replicas.items():
            self.add(name, replica)
        if scaler is not None:
            scaler.join(self)

    # ── replicas ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, name: str, replica: Replica, *, capacity: int = 0) -> int:
        """Take in a replica while running or before; returns its number."""
        number = self.router.add(name, capacity=capacity)
        if number == len(self._states):
            self._states.append(_State(replica=replica))
        else:
            self._states[number] = _State(replica=replica)
        self._changed_now()
        return number

    def remove(self, number: int) -> None:
        """Forget a replica that is gone; what it had not answered goes elsewhere, and its number may be used again."""
        state = self._states[number]
        self._down(number, "it was taken out")
        state.missed = -1
        self.router.remove(number)
        closing = asyncio.ensure_future(state.replica.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def drain(self, number: int) -> None:
        """Send a replica nothing more; what it has begun it finishes, and its sessions move as they come."""
        self.router.close(number, lost=False)
        self._states[number].up = False
        self._states[number].missed = -1

    async def hand_over(self, number: int) -> None:
        """Bring the sessions of a replica that drains to the others."""

        def others() -> list[tuple[str, Replica]]:
            names, states = self.router.names, self._states
            return [(names[n], states[n].replica) for n in range(len(states)) if states[n].up and names[n]]

        for session, home in await self.journal.hand_over(self.router.names[number], others):
            if home in self.router.names:
                self.router.settle(session, self.router.names.index(home))

    def is_up(self, number: int) -> bool:
        """Say whether a replica is sent requests."""
        return self._states[number].up

    def replica(self, number: int) -> Replica:
        """Return a replica by its number."""
        return self._states[number].replica

    @property
    def held_s(self) -> float:
        """Return about how many seconds of work wait for a replica to be there."""
        return self.held * self.router.typical_s

    def _alive(self, name: str) -> Replica | None:
        """Return a replica that may still answer: up, or draining."""
        for number, known in enumerate(self.router.names):
            if known == name and (self._states[number].up or self._states[number].missed < 0):
                return self._states[number].replica
        return None

    def _changed_now(self) -> None:
        """Wake those who wait for a replica."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _down(self, number: int, why: str) -> None:
        """Take a replica for lost: nothing goes there, and what it has not begun to answer goes elsewhere."""
        state = self._states[number]
        if state.up:
            log.warning("replica '%s' is down: %s", self.router.names[number], why)
        state.up = False
        self.router.close(number, lost=True)
        self.wanted.set()
        for task in tuple(state.trying):
            task.cancel()

    def _up(self, number: int) -> None:
        state = self._states[number]
        if not state.up:
            log.warning("replica '%s' is up", self.router.names[number])
            state.up = True
            self.router.reopen(number)
        state.missed = 0
        self._changed_now()

    # ── one request ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the ASGI entry point."""
        if scope["type"] != "http":
            await lifespan(scope, receive, send, self._begin, self._end)
            return
        arrived = self.clock()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        path: str = scope["path"]
        page = self._page(path)
        if path == "/sessions" or path.startswith("/sessions/"):
            page = 404, JSON, b'{"error":"nothing is here"}'  # states travel between gateway and replicas only
            scope = {**scope, "method": "GET"}
        if page is not None and scope["method"] in ("GET", "HEAD"):
            await say(scope, send, *page)
            return
        refusal = self._refuse(headers, arrived)
        if refusal is None:
            body = await self._body(headers, receive)
            if body is None:
                return  # the caller has left
            if isinstance(body, Refused):
                refusal = body
            else:
                self.asked_at = arrived
                passing = self._passing(scope, headers, body, arrived)
                refusal = await self._in_turn(passing, self._key(headers), scope, receive, send)
        if refusal is not None:
            self.tally.refused(refusal.status)
            await say(scope, send, refusal.status, [(b"content-type", b"application/json"), *refusal.headers()],
                       refusal.body())  # fmt: skip

    def _refuse(self, headers: Mapping[bytes, bytes], now: float) -> Refused | None:
        """Say why a request may not come in: no token, or its key has asked too often or spent too much."""
        if self._token and not hmac.compare_digest(headers.get(b"authorization", b""), b"Bearer " + self._token):
            return Refused(
                status=401, said="expected 'Authorization: Bearer TOKEN' with this service's token", close=True
            )
        admission = self.gate.ask(self._key(headers), now)
        if admission:
            return None
        return Refused(status=429, said=admission.reason, retry_after_s=max(admission.retry_after_s, 1e-3))

    def _key(self, headers: Mapping[bytes, bytes]) -> str:
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return given.decode("latin-1")

    def _passing(self, scope: Scope, headers: Mapping[bytes, bytes], body: bytes, arrived: float) -> _Passing:
        path: str = scope["path"]
        query: bytes = scope.get("query_string", b"")
        target = (scope.get("raw_path") or path.encode()).decode("latin-1") + ("?" + query.decode() if query else "")
        spoken = trace(headers.get(b"traceparent", b""))
        dropped = {name.strip().lower() for name in headers.get(b"connection", b"").split(b",")} | HOP
        kept = [(name, value) for name, value in scope["headers"] if name not in dropped]
        kept.append((b"traceparent", spoken))
        return _Passing(
            forward=Forward(method=scope["method"], target=target, headers=kept, body=body),
            need=need_of(path, headers, body, self.limits.prompt_blocks),
            again=repeatable(scope["method"], path, headers),
            deadline=arrived + self.limits.first_s,
            trace=spoken,
            arrived=arrived,
            request=spoken[36:52],
        )

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes | Refused | None:
        limit = self.settings.limits.body_bytes
        said = f"expected a body of at most {limit:,} bytes, got more"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            return Refused(status=413, said=said, close=True)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                return Refused(status=413, said=said, close=True)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    # ── passing on ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _in_turn(self, passing: _Passing, key: str, scope: Scope, receive: Receive, send: Send) -> Refused | None:
        """Pass a request on; of a session with state, after those of its session that came before."""
        session = passing.need.session
        talk = self.journal.open(scope["path"], session) if session and scope["method"] == "POST" else None
        if talk is None:
            return await self._pass(passing, key, scope, receive, send)
        if talk.waiting >= self.limits.session_waiting:
            said = f"expected at most {self.limits.session_waiting} requests of a session at once, got more; come back"
            return Refused(status=429, said=said, retry_after_s=1.0)
        talk.waiting += 1
        try:
            async with talk.lock:
                passing.talk = talk
                return await self._pass(passing, key, scope, receive, send)
        except LostError:
            self.journal.forget(talk)
            said = "the state of this session was lost with its replica; the next request begins a new one"
            return Refused(status=410, said=said)
        finally:
            talk.waiting -= 1

    async def _pass(self, passing: _Passing, key: str, scope: Scope, receive: Receive, send: Send) -> Refused | None:
        """Pass a request to replica after replica until one answers; returns the refusal when none did."""
        why = "no replica is up"
        while True:
            ticket = self.router.route(passing.need, self.clock(), avoid=passing.tried)
            if ticket is None:
                if not await self._wait(passing):
                    return Refused(status=503, said=f"expected a replica that answers, got none: {why}; come back",
                                   retry_after_s=self.scaler.ready_in_s if self.scaler else 1.0)  # fmt: skip
                continue
            admission = self.gate.crowded(key, ticket.wait_s, self.router.routing.target_s)
            if not (admission or passing.tried or passing.held):  # who has waited is not sent away
                self.router.done(ticket, self.clock())
                return Refused(status=503, said=admission.reason, retry_after_s=max(1.0, admission.retry_after_s))
            try:
                return await self._try(ticket, passing, scope, receive, send)
            except Unanswered as error:
                why = str(error)
                passing.tried |= 1 << ticket.replica
                self.tally.retried += 1
                if error.begun and not passing.again:
                    said = f"the replica broke off ({why}) and this request may not be asked twice"
                    return Refused(status=502, said=said)
                if not error.begun:
                    self._down(ticket.replica, why)
            finally:
                self.router.done(ticket, self.clock())

    async def _wait(self, passing: _Passing) -> bool:
        """Wait until a replica may take the request; False when it has waited long enough."""
        limits, now = self.limits, self.clock()
        hold_s = limits.hold_s if self.scaler is None else min(max(limits.hold_s, self.scaler.hold_s), limits.cold_s)
        left_s = min(passing.deadline - now, hold_s)
        full = any(state.up for state in self._states)
        if left_s <= 0 or (full and not passing.tried):
            return False
        size = len(passing.forward.body)
        if self.held >= limits.held or self.held_bytes + size > limits.held_bytes:
            return False
        passing.tried, passing.held = 0, True
        self.held, self.held_bytes = self.held + 1, self.held_bytes + size
        self.wanted.set()
        try:
            async with asyncio.timeout(left_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        finally:
            self.held, self.held_bytes = self.held - 1, self.held_bytes - size
            passing.deadline += self.clock() - now if self.scaler is not None else 0.0
        return True

    async def _try(
        self, ticket: Ticket, passing: _Passing, scope: Scope, receive: Receive, send: Send
    ) -> Refused | None:
        """Pass a request to one replica and its answer back; Unanswered as long as nothing has been passed back."""
        state = self._states[ticket.replica]
        asking = asyncio.ensure_future(self._ask(state.replica, ticket, passing))
        state.trying.add(asking)
        try:
            async with asyncio.timeout(passing.deadline - self.clock()):
                answer, whole = await asking
        except TimeoutError:
            said = f"expected an answer within {self.limits.first_s:g} s, got none"
            return Refused(status=504, said=said)
        except asyncio.CancelledError:
            if asking.cancelled() and not state.up:
                raise Unanswered("it is down", begun=True) from None
            asking.cancel()
            raise
        finally:
            state.trying.discard(asking)
        headers = [(name, value) for name, value in answer.headers if name.lower() not in HOP]
        headers.append((b"traceparent", passing.trace))
        if whole is not None:
            self._count(ticket, passing, answer.status, self.clock() - passing.arrived)
            if passing.forward.method == "HEAD":
                headers += [(name, value) for name, value in answer.headers if name.lower() == b"content-length"]
            await say(scope, send, answer.status, headers, whole)
            return None
        whole_s = self.clock() - passing.arrived
        try:
            await self._stream(answer, headers, receive, send, partial(self._heard, ticket, passing))
        except BrokenError:
            self.tally.broken += 1
            abort = scope.get("extensions", {}).get("tenon.abort")
            if abort is None:
                raise
            abort()
            await receive()  # until the server knows that the connection is gone
            return None
        self._count(ticket, passing, answer.status, whole_s)
        return None

    async def _ask(self, replica: Replica, ticket: Ticket, passing: _Passing) -> tuple[Answer, bytes | None]:
        """Ask, and read the answer whole when it is short and no stream; the router learns when it began."""
        talk, home = passing.talk, self.router.names[ticket.replica]
        if talk is None:
            answer = await replica.ask(passing.forward)
        else:
            answer = await self.journal.ask(talk, home, replica, passing.forward, passing.request)
        if answer.status in ELSEWHERE and passing.again and self._others(passing.tried | 1 << ticket.replica):
            answer.drop()
            raise Unanswered(f"it said {answer.status}", begun=True)
        length = next((value for name, value in answer.headers if name.lower() == b"content-length"), b"")
        whole: bytes | None
        if passing.forward.method == "HEAD" or answer.status in (204, 304):
            whole = b""
        elif length.isdigit() and int(length) <= self.limits.whole_bytes:
            whole = b"".join([part async for part in answer.chunks()])
        else:
            whole = None
        if talk is not None:
            self.journal.heard(talk, home, passing.forward, answer, passing.request)
        cached = cached_units(passing.need, whole) if whole is not None else None
        self.router.began(ticket, self.clock(), cached)
        return answer, whole

    def _others(self, tried: int) -> bool:
        return any(self.router.is_open(n) and not tried >> n & 1 for n in range(len(self._states)))

    def _heard(self, ticket: Ticket, passing: _Passing, part: bytes) -> None:
        """Look at a part of a stream for what the replica says it had cached."""
        cached = cached_in_stream(passing.need, part) if passing.need.blocks else None
        if cached is not None:
            self.router.heard(ticket, cached)

    async def _stream(
        self, answer: Answer, headers: list[tuple[bytes, bytes]], receive: Receive, send: Send,
        heard: Callable[[bytes], None],
    ) -> None:  # fmt: skip
        """Pass an answer on as it comes; a caller who leaves ends it, and so does a silence or a break."""
        headers += [(name, value) for name, value in answer.headers if name.lower() == b"content-length"]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        left = asyncio.ensure_future(receive())
        parts = answer.chunks()
        try:
            while True:
                coming = asyncio.ensure_future(anext(parts, None))
                done, _ = await asyncio.wait(
                    (coming, left), timeout=self.limits.silent_s, return_when=asyncio.FIRST_COMPLETED
                )
                if coming not in done:
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
                    raise BrokenError
                part = coming.result()
                if part is None:
                    break
                heard(part)
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except Unanswered as error:
            # What was sent cannot be taken back: the connection ends without its end, which every client notices.
            raise BrokenError from error
        finally:
            left.cancel()
            await parts.aclose()  # type: ignore[attr-defined]
            answer.drop()

    def _count(self, ticket: Ticket, passing: _Passing, status: int, first_s: float) -> None:
        self.tally.answered(ticket, status, first_s, self.router.routing.target_s)

    # ── its own pages ────────────────────────────────────────────────────────────────────────────────────────────────

    def _page(self, path: str) -> tuple[int, Sequence[tuple[bytes, bytes]], bytes] | None:
        if path == "/healthz":
            return 200, JSON, b'{"live":true}'
        if path == "/readyz":
            up = self.ready and any(state.up for state in self._states)
            return (200, JSON, b'{"ready":true}') if up else (503, JSON, b'{"ready":false}')
        if path == "/metrics":
            return 200, ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),), self.tally.text()
        if path == "/replicas":
            return 200, JSON, msgspec.json.encode(self.tally.replicas([state.up for state in self._states]))
        return None

    # ── beginning, health and end ────────────────────────────────────────────────────────────────────────────────────

    async def _begin(self) -> None:
        await asyncio.gather(*(self._probe(number) for number in range(len(self._states))))
        self._tasks = [asyncio.create_task(self._probe_all()), asyncio.create_task(self._save_often())]
        if self.scaler is not None:
            self._tasks.append(asyncio.create_task(self.scaler.run()))
        self.ready = True

    async def _end(self) -> None:
        self.ready = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._save()
        await self.journal.close()
        if self.scaler is not None:
            await self.scaler.close()
        for state in self._states:
            await state.replica.close()

    def restore(self) -> None:
        """Read what was learnt before; a file that cannot be read is nothing learnt."""
        if self._path is None or not self._path.exists():
            return
        try:
            known = self.router.restore(self._path.read_bytes(), self.clock())
        except OSError as error:
            log.warning("what was learnt cannot be read: %s", error)
            return
        if not known:
            log.warning("%s is no state of a router; beginning anew", self._path)

    async def _save_often(self) -> None:
        while True:
            await asyncio.sleep(SAVE_S)
            await self._save()

    async def _save(self) -> None:
        """Write what was learnt, whole or not at all; a full disk costs the memory and no request."""
        if self._path is None:
            return
        replicas = {}
        for number, name in enumerate(self.router.names):
            if name:  # one after the other: a million blocks at once would stop every answer for 30 ms
                replicas[name] = self.router.kept(number)
                await asyncio.sleep(0)
        try:
            await asyncio.to_thread(replace_file, self._path, self.router.packed(replicas))
        except OSError as error:
            log.warning("what was learnt cannot be written: %s", error)

    async def _probe_all(self) -> None:
        while True:
            await asyncio.sleep(self.limits.probe_s)
            numbers = [n for n, state in enumerate(self._states) if state.missed >= 0]
            await asyncio.gather(*(self._probe(number) for number in numbers))

    async def _probe(self, number: int) -> None:
        """Ask a replica whether it is ready; after two times that it is not, or says nothing, it is down."""
        state = self._states[number]
        try:
            state.ready = await ready_path(state.replica, state.ready)
            if not state.learned:
                await self._learn(number)
        except Unanswered as error:
            if state.missed >= 0:
                state.missed += 1
                if state.missed >= MISSED or not state.learned:
                    self._down(number, str(error))
            return
        if state.missed >= 0 and self._states[number] is state:
            self._up(number)

    async def _learn(self, number: int) -> None:
        """Ask a replica that is seen first which sessions it has, and what fits in its cache."""
        state, name = self._states[number], self.router.names[number]
        try:
            async with asyncio.timeout(PROBE_ANSWER_S):
                sessions = await self.journal.learn(name, state.replica)
        except TimeoutError:
            raise Unanswered("it does not say which sessions it has", begun=True) from None
        state.learned = True
        tokens = cache_tokens(await metrics(state.replica))
        if tokens:
            self.router.map.guess(number, capacity_blocks(tokens))
        for session in sessions:
            self.router.settle(session, number)


class BrokenError(Exception):
    """An answer that has begun cannot be finished: the server closes the connection without its end."""

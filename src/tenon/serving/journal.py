"""The journal is what a gateway keeps of sessions with state, so that no replica's end is the end of a session.

A replica's answers say which request of the session they were (`x-session-step`); from then on the gateway numbers
them, passes them on one at a time, and keeps each request until a copy of the state that includes it has been
fetched. When the session's next request goes to another replica, its state is brought there first: asked of the
replica it was on if that one lives (it drains, or is too busy), else the last copy with the requests since replayed
on top. A model whose next state depends on its state and its rows alone says the same as if nothing had happened.

Bounded by `session_bytes` over all sessions: the least recently used lose their copy, not their state, and are copied
again with their next request. A session that is gone everywhere is told so with 410; it never silently begins anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from tenon.limits import RouteLimits
from tenon.serving.replica import Answer, Forward, Replica, Unanswered
from tenon.serving.stateful import HAVE, REQUEST, STEP, TOKEN

log = logging.getLogger("tenon.serving")

COPY_AFTER = 16  # requests since the last copy of a state
COPY_BYTES = 64 * 1024  # or so much of them
COPIES = 4  # fetched at once
ANSWER_S = 10.0  # the longest that one step of bringing a state may take
PREFIX = "/predict/"
PLAIN = 1_000  # paths known to keep no state
PATH_CHARACTERS = 200
UNCOVERED = -1


class LostError(Exception):
    """A session's state is nowhere any more: its replica died, and what was kept does not reach back."""


class _Listed(msgspec.Struct):
    sessions: dict[str, dict[str, int]]  # by model


@dataclass(slots=True, kw_only=True, eq=False)
class Talk:
    """One session of one model, as the gateway knows it."""

    model: str
    session: str
    step: int = 0  # requests that were answered
    home: str = ""  # the replica that has its state
    stateful: bool = False
    base: int = 0  # the step of the copy; 0 without one is the beginning, UNCOVERED nothing
    copy: bytes = b""
    kept: list[tuple[int, Forward]] = field(default_factory=list)  # requests since
    size: int = 0
    waiting: int = 0
    copying: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Journal:
    """What is kept of every session; one event loop owns it."""

    def __init__(self, limits: RouteLimits, find: Callable[[str], Replica | None], token: str) -> None:
        self.limits = limits
        self.size = 0
        self.rebuilt = self.handed = self.lost = 0
        self._find = find  # a replica by its name, when it may still answer
        self._token = token.encode()
        self._talks: OrderedDict[tuple[str, str], Talk] = OrderedDict()
        self._plain: dict[str, None] = {}
        self._copies = asyncio.Semaphore(COPIES)
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return how many sessions are known."""
        return len(self._talks)

    def count(self, home: str) -> int:
        """Return how many sessions with state a replica has."""
        return sum(talk.home == home for talk in self._talks.values() if talk.stateful)

    def open(self, path: str, session: str) -> Talk | None:
        """Return the session a request belongs to; None where the model is known to keep no state."""
        if not session or not path.startswith(PREFIX) or len(path) > PATH_CHARACTERS or path in self._plain:
            return None
        return self._open(path.removeprefix(PREFIX), session)

    def _open(self, model: str, session: str) -> Talk:
        key = (model, session)
        talk = self._talks.get(key)
        if talk is None:
            talk = self._talks[key] = Talk(model=model, session=session)
            if len(self._talks) > self.limits.sessions:
                oldest = next((k for k, t in self._talks.items() if not t.waiting and t is not talk), None)
                if oldest is not None:
                    self._strip(self._talks.pop(oldest))
        self._talks.move_to_end(key)
        return talk

    # ── one request ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, talk: Talk, home: str, replica: Replica, forward: Forward, request: bytes) -> Answer:
        """Pass a session's next request to a replica, after bringing its state there when it is elsewhere."""
        if talk.stateful and talk.step and talk.home != home:
            await self._bring(talk, home, replica)
        for last in (False, True):
            answer = await replica.ask(self._numbered(forward, talk.step + 1, request))
            have = _number(answer, HAVE)
            if answer.status != 409 or have is None or last:
                break
            await _whole(answer)
            talk.stateful = True
            if have > talk.step:  # it went on without us: somebody asked the replica itself
                self._strip(talk)
                talk.step, talk.home = have, home
            else:
                await self._bring(talk, home, replica)
        if answer.status == 409 and have is not None:
            answer.drop()
            raise Unanswered("it does not take the session's state", begun=True)
        return answer

    def heard(self, talk: Talk, home: str, forward: Forward, answer: Answer, request: bytes) -> None:
        """Learn from an answer that has come whole: the session is one step further, or the model keeps no state."""
        step = _number(answer, STEP)
        if step is None:
            if not talk.stateful:
                if answer.status == 200 and len(self._plain) < PLAIN:
                    self._plain[PREFIX + talk.model] = None
                if talk.waiting <= 1:
                    self._talks.pop((talk.model, talk.session), None)
            return
        talk.stateful = True
        if step != talk.step + 1 and not (step == 1 and not talk.step):
            self._strip(talk)  # not what we numbered: what is kept would not lead there
        talk.step, talk.home = step, home
        if talk.base != UNCOVERED:
            talk.kept.append((step, self._numbered(forward, step, request)))
            self._grow(talk, _size(forward))
        since = talk.size - len(talk.copy)
        if talk.base == UNCOVERED or len(talk.kept) >= COPY_AFTER or since > COPY_BYTES:
            self._copy_soon(talk)

    def forget(self, talk: Talk) -> None:
        """Let a session go whose state is lost; the next request under its name begins a new one."""
        self.lost += 1
        self._strip(talk)
        self._talks.pop((talk.model, talk.session), None)

    def _numbered(self, forward: Forward, step: int, request: bytes) -> Forward:
        more = [(STEP, b"%d" % step), (REQUEST, request)]
        return replace(forward, headers=[*(pair for pair in forward.headers if pair[0] not in (STEP, REQUEST)), *more])

    # ── bringing a state to a replica ────────────────────────────────────────────────────────────────────────────────

    async def _bring(self, talk: Talk, home: str, replica: Replica) -> None:
        """Make a replica have the session's state after its last answered request."""
        old = self._find(talk.home) if talk.home and talk.home != home else None
        if old is not None and await self._fetch(talk, old) and await self._put(talk, replica):
            self.handed += 1
        else:
            await self._rebuild(talk, replica)
            self.rebuilt += 1
        talk.home = home

    async def _fetch(self, talk: Talk, replica: Replica) -> bool:
        """Copy a session's state from a replica that has it; False when it does not answer or has another."""
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await replica.ask(self._door(talk, "GET"))
                body = await _whole(answer)
        except (TimeoutError, Unanswered):
            return False
        step = _number(answer, STEP)
        # One step more: the answer to the last request did not come back, and it will be asked again under its name.
        if answer.status != 200 or step is None or not talk.step <= step <= talk.step + 1:
            return False
        self._take(talk, step, body)
        return talk.base == step

    def _take(self, talk: Talk, step: int, body: bytes) -> None:
        """Keep a copy in place of the one before and of the requests it includes."""
        kept = [one for one in talk.kept if one[0] > step]
        self._strip(talk)
        talk.base, talk.copy, talk.kept = step, body, kept
        self._grow(talk, len(body) + sum(_size(forward) for _, forward in kept))

    async def _put(self, talk: Talk, replica: Replica) -> bool:
        """Give a replica the copy of a session's state."""
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await replica.ask(self._door(talk, "POST", talk.copy))
                await _whole(answer)
        except TimeoutError:
            raise Unanswered("it did not take a session's state in time", begun=True) from None
        return answer.status == 200

    async def _rebuild(self, talk: Talk, replica: Replica) -> None:
        """Bring back a state from the copy and the requests since; LostError when they do not reach back."""
        if talk.base == UNCOVERED:
            raise LostError
        put = await self._put(talk, replica)  # an empty copy: it begins anew, whatever an old session left there
        if talk.copy and not put:
            raise LostError
        for step, forward in talk.kept:
            if not talk.base < step <= talk.step:
                continue
            try:
                async with asyncio.timeout(ANSWER_S):
                    answer = await replica.ask(forward)
                    await _whole(answer)
            except TimeoutError:
                raise Unanswered("it did not replay a session in time", begun=True) from None
            if _number(answer, STEP) != step:
                raise LostError

    def _door(self, talk: Talk, method: str, body: bytes = b"") -> Forward:
        headers = [(b"x-session-id", talk.session.encode("latin-1")), (TOKEN, self._token)]
        return Forward(method=method, target=f"/sessions/{talk.model}", headers=headers, body=body)

    # ── copies, departures and arrivals ──────────────────────────────────────────────────────────────────────────────

    def _copy_soon(self, talk: Talk) -> None:
        if talk.copying or not self._token:
            return
        talk.copying = True
        task = asyncio.create_task(self._copy(talk))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _copy(self, talk: Talk) -> None:
        """Fetch a copy of a session's state while it goes on; the requests after it stay."""
        try:
            async with self._copies:
                replica = self._find(talk.home)
                if replica is None:
                    return
                async with asyncio.timeout(ANSWER_S):
                    answer = await replica.ask(self._door(talk, "GET"))
                    body = await _whole(answer)
            step = _number(answer, STEP)
            # Without a copy from before, the requests between this one and now were not kept.
            least = talk.step if talk.base == UNCOVERED else talk.base + 1
            if answer.status == 200 and step is not None and least <= step <= talk.step + 1:
                self._take(talk, step, body)
        except (TimeoutError, Unanswered):
            return  # the requests since stay; it is tried again with the next
        finally:
            talk.copying = False

    async def hand_over(self, home: str, others: Callable[[], Sequence[tuple[str, Replica]]]) -> list[tuple[str, str]]:
        """Bring every session of a replica that leaves to the others; returns (session, new home).

        Where there is no other, copies are kept here, within the bound, until the next replica is there.
        """
        old = self._find(home)
        moved: list[tuple[str, str]] = []
        if old is None:
            return moved
        for talk in [talk for talk in self._talks.values() if talk.stateful and talk.home == home]:
            async with talk.lock:
                if talk.home != home or not await self._fetch(talk, old):
                    continue
                talk.home = ""
                targets = others()
                if targets:
                    name, replica = targets[len(moved) % len(targets)]
                    try:
                        if await self._put(talk, replica):
                            talk.home = name
                            moved.append((talk.session, name))
                            self.handed += 1
                    except Unanswered:
                        continue  # the copy is here; its next request brings it somewhere
        return moved

    async def learn(self, home: str, replica: Replica) -> list[str]:
        """Ask a replica which sessions it has, when it is first seen; returns those it has the latest of."""
        if not self._token:
            return []
        answer = await replica.ask(Forward(method="GET", target="/sessions", headers=[(TOKEN, self._token)]))
        body = await _whole(answer)
        if answer.status != 200:
            return []
        try:
            listed = msgspec.json.decode(body, type=_Listed).sessions
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return []
        found: list[str] = []
        for model, sessions in listed.items():
            for session, step in sessions.items():
                talk = self._open(model, session)
                if step > talk.step:
                    self._strip(talk)
                    talk.step, talk.home, talk.stateful = step, home, True
                    found.append(session)
                    self._copy_soon(talk)
        return found

    async def close(self) -> None:
        """End what is being copied."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _grow(self, talk: Talk, size: int) -> None:
        talk.size += size
        self.size += size
        if self.size <= self.limits.session_bytes:
            return
        for other in self._talks.values():  # least recently used first
            if self.size <= self.limits.session_bytes * 0.9:
                break
            if other.size and (other is talk or not other.waiting):
                self._strip(other)

    def _strip(self, talk: Talk) -> None:
        """Drop what is kept of a session; its state lives on its replica alone until it is copied again."""
        self.size -= talk.size
        talk.size, talk.copy, talk.kept, talk.base = 0, b"", [], UNCOVERED


def _number(answer: Answer, name: bytes) -> int | None:
    value = next((value for key, value in answer.headers if key.lower() == name), b"")
    return int(value) if value.isdigit() and len(value) < 16 else None


def _size(forward: Forward) -> int:
    """Return about how many bytes a kept request takes."""
    return 512 + len(forward.body) + sum(len(name) + len(value) + 120 for name, value in forward.headers)


async def _whole(answer: Answer) -> bytes:
    return b"".join([part async for part in answer.chunks()])

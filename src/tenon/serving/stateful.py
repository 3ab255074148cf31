"""A Stateful is one served model that remembers: each request of a session goes on where the one before it stopped.

    class Steps(Protocol):                                        # three lines of a user's own, or model.OnnxSteps
        def first(self) -> State                                  # the state before anything: arrays by name
        def step(self, state, rows) -> tuple[predictions, State]  # must depend on nothing else

`POST /predict/NAME` with `x-session-id` (or the cookie `tenon-session`) reads the session's state, scores the rows in
order and keeps the new state, the least recently used sessions leaving when `state_bytes` is exceeded. Without a
session the rows start from nothing and nothing is kept. One thread does the steps, so that a session's are in order.

In front of replicas the gateway numbers a session's requests (`x-session-step`). A replica answers 409 with the step
it has when that is not the one before, and the gateway brings the state (`journal`); a request that comes twice with
the same `x-session-request` is answered from memory and not applied twice. States travel by `GET` and `POST
/sessions/NAME`, which open for `x-fleet-token` alone, and are never pickled.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from tenon.contract.column import Column
from tenon.errors import InputError, sentence
from tenon.limits import ServingLimits
from tenon.serving.door import Asked, Door, Page, Result
from tenon.serving.need import session_of
from tenon.serving.refusal import Refused
from tenon.serving.rows import RowReader, row_reader

State = Mapping[str, NDArray[Any]]
STEP, HAVE, REQUEST, TOKEN = b"x-session-step", b"x-session-have", b"x-session-request", b"x-fleet-token"
OVERHEAD = 512  # bytes a session takes besides its arrays and its last answer
LISTED = 100_000  # sessions told to a gateway that asks for all
DTYPES = frozenset(("float32", "float64", "int32", "int64", "bool"))


class Steps(Protocol):
    """What a stateful model does."""

    def first(self) -> State:
        """Return the state before the first row."""
        ...

    def step(self, state: State, rows: Sequence[Mapping[str, Any]], /) -> tuple[Sequence[float], State]:
        """Return a prediction for each row, in order, and the state after them; changes nothing it is given."""
        ...


class _Array(msgspec.Struct):
    dtype: str
    shape: list[int]
    data: bytes


class Carried(msgspec.Struct):
    """A session as it travels from one replica to another."""

    step: int
    request: str
    answer: bytes
    state: dict[str, _Array]


@dataclass(slots=True, kw_only=True)
class _Kept:
    """A session here: its state after so many requests, and what was answered to the last."""

    step: int = 0
    state: State = field(default_factory=dict)
    request: str = ""
    answer: bytes = b""

    @property
    def size(self) -> int:
        return OVERHEAD + len(self.answer) + sum(array.nbytes for array in self.state.values())


@dataclass(slots=True, kw_only=True)
class Stateful:
    """One stateful model, ready to be served: `build_app([], stateful=[Stateful(...)])`."""

    name: str
    version: str
    model: Steps
    columns: Sequence[Column]
    limits: ServingLimits = ServingLimits()
    token: str = ""  # what session doors open for; without one they stay shut
    size: int = 0
    evicted: int = 0
    _sessions: OrderedDict[str, _Kept] = field(default_factory=OrderedDict)
    _reader: RowReader = field(init=False)
    _thread: ThreadPoolExecutor = field(init=False)
    _waiting: int = 0
    _shapes: dict[str, tuple[str, tuple[int, ...]]] = field(init=False)

    def __post_init__(self) -> None:
        self._reader = row_reader(self.columns, self.limits.json_depth)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"tenon-{self.name}")
        self._shapes = {name: (str(array.dtype), array.shape) for name, array in self.model.first().items()}

    def start(self) -> None:
        """Nothing to load: it is ready as it is."""

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=True)

    @property
    def share(self) -> float:
        """Return how much of the memory for sessions is in use."""
        return self.size / self.limits.state_bytes

    def steps(self) -> dict[str, int]:
        """Return where every session stands."""
        return {name: kept.step for name, kept in list(self._sessions.items())[-LISTED:]}

    # ── one request ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def predict(self, asked: Asked) -> Result:
        """Score rows from where the session stands."""
        if self._waiting >= self.limits.queue_rows:
            said = f"expected at most {self.limits.queue_rows:,} requests that wait, got another; come back"
            return Refused(status=503, said=said, retry_after_s=1.0)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._predict, asked)
        finally:
            self._waiting -= 1

    def _predict(self, asked: Asked) -> Result:
        session = session_of(asked.headers)
        kept = self._sessions.get(session) if session else None
        at = kept.step if kept is not None else 0
        numbered = asked.headers.get(STEP, b"")
        request = asked.headers.get(REQUEST, b"").decode("latin-1")[:64]
        if session and numbered.isdigit() and len(numbered) < 16 and int(numbered) != at + 1:
            if kept is not None and int(numbered) == at and request and request == kept.request:
                return self._answer(kept)
            said = f"expected request {at + 1} of this session, got {int(numbered)}"
            return Page(body=Refused(status=409, said=said).body(), status=409, headers=((HAVE, b"%d" % at),))
        read = self._reader.read(asked.body)
        if isinstance(read, Refused):
            return read
        if len(read.rows) > self.limits.rows_per_request:
            return Refused(status=413, said=f"expected at most {self.limits.rows_per_request:,} rows, got more")
        before = kept.state if kept is not None else self.model.first()
        predictions, state = self.model.step(before, read.rows)
        after = _Kept(step=at + 1, state=dict(state), request=request)
        after.answer = msgspec.json.encode(
            {
                "model": self.name,
                "version": self.version,
                "session": session or None,
                "step": after.step,
                "predictions": [
                    {"id": own, "score": float(score)} if own is not None else {"score": float(score)}
                    for own, score in zip(read.ids, predictions, strict=True)
                ],
            }
        )
        if session:
            self._keep(session, after)
        return self._answer(after)

    def _answer(self, kept: _Kept) -> Page:
        return Page(body=kept.answer, headers=((STEP, b"%d" % kept.step),))

    def _keep(self, session: str, kept: _Kept) -> None:
        """Keep a session as the most recently used; the least recently used leave when there is no room."""
        before = self._sessions.pop(session, None)
        self.size += kept.size - (before.size if before is not None else 0)
        self._sessions[session] = kept
        while self.size > self.limits.state_bytes and len(self._sessions) > 1:
            _, gone = self._sessions.popitem(last=False)
            self.size -= gone.size
            self.evicted += 1

    # ── handing over ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def give(self, asked: Asked) -> Result:
        """Answer a session's state."""
        refusal = shut(self.token, asked)
        if refusal is not None:
            return refusal
        session = session_of(asked.headers)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._exported, session)

    def _exported(self, session: str) -> Result:
        kept = self._sessions.get(session)
        if kept is None:
            return Refused(status=404, said="expected a session that is here, got one that is not")
        arrays = {
            name: _Array(str(array.dtype), list(array.shape), np.ascontiguousarray(array).tobytes())
            for name, array in kept.state.items()
        }
        body = msgspec.msgpack.encode(Carried(kept.step, kept.request, kept.answer, arrays))
        return Page(body=body, kind=b"application/msgpack", headers=((STEP, b"%d" % kept.step),))

    async def take(self, asked: Asked) -> Result:
        """Take in a session that was elsewhere; an empty body makes it begin anew."""
        refusal = shut(self.token, asked)
        if refusal is not None:
            return refusal
        session = session_of(asked.headers)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._imported, session, asked.body)

    def _imported(self, session: str, body: bytes) -> Result:
        if not session:
            return Refused(status=400, said="expected 'X-Session-Id', got none")
        try:
            kept = self._unpacked(body) if body else _Kept(state=self.model.first())
        except InputError as error:
            return Refused(status=422, said=str(error))
        self._keep(session, kept)
        return msgspec.json.encode({"step": kept.step})

    def _unpacked(self, body: bytes) -> _Kept:
        """Read a session that travelled; InputError for one that is not of this model."""
        try:
            carried = msgspec.msgpack.decode(body, type=Carried)
            state = {
                name: np.frombuffer(one.data, one.dtype).reshape(one.shape)
                for name, one in carried.state.items()
                if one.dtype in DTYPES
            }
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, TypeError) as error:
            raise InputError(sentence("a session as it was exported", str(error), at="the body")) from error
        shapes = {name: (str(array.dtype), array.shape) for name, array in state.items()}
        if shapes != self._shapes:
            got = ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in sorted(shapes.items())) or "none"
            raise InputError(sentence(f"the state of model '{self.name}'", got, at="the body"))
        return _Kept(step=carried.step, state=state, request=carried.request, answer=carried.answer)


def doors(models: Mapping[str, Stateful]) -> dict[str, Door]:
    """Return what stands at which path where stateful models are served."""

    async def every(asked: Asked) -> Result:
        refusal = next((no for one in models.values() if (no := shut(one.token, asked))), None)
        return refusal or msgspec.json.encode({"sessions": {name: one.steps() for name, one in models.items()}})

    found = {"/sessions": Door(name="sessions", acts={"GET": every}, free=True)}
    for name, one in models.items():
        found[f"/predict/{name}"] = Door(name="predict", acts={"POST": one.predict})
        found[f"/sessions/{name}"] = Door(name="sessions", acts={"GET": one.give, "POST": one.take}, free=True)
    return found


def shut(token: str, asked: Asked) -> Refused | None:
    """Refuse who does not carry the fleet's token; without a token nobody does."""
    if token and hmac.compare_digest(asked.headers.get(TOKEN, b""), token.encode()):
        return None
    return Refused(status=403, said="expected 'X-Fleet-Token' with the token of this fleet", close=True)

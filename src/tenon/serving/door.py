"""A Door is what stands at a path: for each method, the coroutine that turns what was asked into an answer.

A coroutine returns bytes (JSON, status 200), a Page (anything else that went well), a Stream (an answer sent while it
is made) or a Refused. Doors are found by the
whole path in one dictionary, built from the names of what is served; there are no patterns to match.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tenon.limits import KIB
from tenon.serving.refusal import Refused

HTML = b"text/html; charset=utf-8"
JSON = b"application/json"
LARGE_BYTES = 64 * KIB
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """An answer that is not plain JSON with status 200."""

    body: bytes
    kind: bytes = JSON
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """An answer that is sent part by part; `parts` is closed when it ends, and when the caller has gone."""

    parts: AsyncGenerator[bytes, None]
    kind: bytes = b"text/event-stream; charset=utf-8"
    headers: Sequence[tuple[bytes, bytes]] = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Asked:
    """One request: the headers that doors may look at, the body, and when it came (perf_counter and Unix seconds)."""

    __slots__ = ("_receive", "arrived", "at", "body", "caller", "headers")

    def __init__(
        self, headers: Mapping[bytes, bytes], body: bytes, arrived: float, at: float, receive: Receive | None = None
    ) -> None:
        self.headers = headers
        self.body = body
        self.arrived = arrived
        self.at = at
        self.caller = ""  # the name of whose key it carries
        self._receive = receive

    async def gone(self) -> None:
        """Return when the caller has gone; never when nobody could tell."""
        if self._receive is None:
            await asyncio.Event().wait()
            return
        while (await self._receive())["type"] != "http.disconnect":
            pass


Result = bytes | Page | Stream | Refused
Act = Callable[[Asked], Awaitable[Result]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """What stands at a path: its name in the counts, what each method does, and whether it opens without a token."""

    name: str
    acts: Mapping[str, Act]
    free: bool = False
    wrong: Callable[[Refused], Page] | None = field(default=None)  # how refusals are written here, if not as ours


async def aside(size_bytes: int, work: Callable[[], Made]) -> Made:
    """Do work on a body: at once when it is small, else in a thread, so that reading it stops nobody else's answer."""
    return work() if size_bytes <= LARGE_BYTES else await asyncio.to_thread(work)

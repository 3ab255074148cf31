"""The small parts of passing a request on, each of which needs nothing of the gateway's state.

How an app begins and ends, headers that belong to one connection and stay behind, an answer written whole, the trace
context with a span of ours, a file replaced whole or not at all.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from tenon.errors import TenonError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Headers of one connection (RFC 9110, 7.6.1), and those that are written anew for the next or are ours alone.
HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade host "
    b"content-length expect proxy-connection traceparent x-session-step x-session-request x-fleet-token".split()
)
TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
JSON = ((b"content-type", b"application/json"),)


async def lifespan(
    scope: Scope, receive: Receive, send: Send, begin: Callable[[], Awaitable[None]], end: Callable[[], Awaitable[None]]
) -> None:
    """Begin and end an app as its server says; a TenonError of `begin` is told to the server, which then stops.

    A websocket, which nobody here speaks, is closed.
    """
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    if scope["type"] != "lifespan":
        return
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            try:
                await begin()
            except TenonError as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            await send({"type": "lifespan.startup.complete"})
        else:
            await end()
            await send({"type": "lifespan.shutdown.complete"})
            return


async def say(scope: Scope, send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
    """Send a whole answer, in one write where the server offers it."""
    every = list(headers)
    if not any(name.lower() == b"content-length" for name, _ in every) and status not in (204, 304):
        every.append((b"content-length", b"%d" % len(body)))
    write = scope.get("extensions", {}).get("tenon.answer")
    if write is not None:
        write(status, every, body)
        return
    await send({"type": "http.response.start", "status": status, "headers": every})
    await send({"type": "http.response.body", "body": body})


def trace(given: bytes) -> bytes:
    """Return the trace context to pass on: the caller's trace with a span of ours, or a trace of our own."""
    found = TRACEPARENT.fullmatch(given)
    trace, flags = (found[1], found[3]) if found else (secrets.token_hex(16).encode(), b"00")
    return b"00-" + trace + b"-" + secrets.token_hex(8).encode() + b"-" + flags


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)

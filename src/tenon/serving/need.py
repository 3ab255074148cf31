"""What a request needs done, read from its path, headers and body: the units, and the blocks a cache may hold.

A prompt is cut into pieces of 256 bytes (some 64 tokens) and each piece is named by a hash of itself and all before
it, so that two prompts have equal blocks exactly as far as they begin alike. Chat messages are joined with their
roles, so that a conversation's next turn extends the one before. Units are bytes: a replica's speed is learnt per
unit, so that it does not matter that a token is about four of them. `x-route-key` names anything else worth keeping
together (a feature key, loaded weights); the session is `x-session-id`, or the cookie `tenon-session`.

A body that is not what it should be is no fault here: it has no blocks, and the replica refuses it in its own words.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import msgspec

from tenon.serving.route import Need

PIECE_BYTES = 256
TOKEN_BYTES = 3  # of a prompt, about: answers correct what follows from it
PROMPTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/completion", "/generate")
SAFE = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
REPEATABLE = ("/predict/", "/v2/", "/facts/", "/labels/", "/v1/", "/completion", "/generate", "/tokenize", "/embedding")
SESSION_CHARACTERS = 200


class _Message(msgspec.Struct):
    role: str = ""
    content: msgspec.Raw = msgspec.Raw(b"")


class _Prompt(msgspec.Struct):
    model: str = ""
    prompt: msgspec.Raw = msgspec.Raw(b"")
    messages: list[_Message] = []


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Answered(msgspec.Struct):
    usage: _Usage | None = None


_PROMPT = msgspec.json.Decoder(_Prompt)
_ANSWERED = msgspec.json.Decoder(_Answered)


def need_of(path: str, headers: Mapping[bytes, bytes], body: bytes, most_blocks: int) -> Need:
    """Read what a request needs; costs about 3 µs, and 4 µs for each KiB of a prompt."""
    session = session_of(headers)
    key = headers.get(b"x-route-key")
    if path.endswith(PROMPTS):
        try:
            read = _PROMPT.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            read = _Prompt()
        parts = [bytes(read.prompt)] if read.prompt else []
        for message in read.messages:
            parts += (b"\x00", message.role.encode("utf-8", "replace"), b"\x00", bytes(message.content))
        text = b"".join(parts)
        if text:
            blocks = _pieces(read.model.encode("utf-8", "replace"), text, most_blocks)
            return Need(units=float(len(text)), blocks=blocks, block_units=float(PIECE_BYTES), session=session)
    units = float(max(len(body), 1))
    if key is not None:
        return Need(units=units, blocks=(_hash(b"key", key),), block_units=units, session=session)
    return Need(units=units, session=session)


def session_of(headers: Mapping[bytes, bytes]) -> str:
    """Return the session a request belongs to, or nothing."""
    named = headers.get(b"x-session-id")
    if named is None and b"tenon-session=" in headers.get(b"cookie", b""):
        for pair in headers[b"cookie"].split(b";"):
            name, _, value = pair.strip().partition(b"=")
            if name == b"tenon-session":
                named = value
    return named[:SESSION_CHARACTERS].decode("latin-1") if named else ""


def repeatable(method: str, path: str, headers: Mapping[bytes, bytes]) -> bool:
    """Say whether a request may be sent again elsewhere when its replica dies: asking twice changes nothing."""
    return method in SAFE or path.startswith(REPEATABLE) or b"idempotency-key" in headers


def capacity_blocks(tokens: int) -> int:
    """Return about how many pieces of prompts are so many tokens."""
    return tokens * TOKEN_BYTES // PIECE_BYTES


def cached_in_stream(need: Need, part: bytes) -> float | None:
    """Return the same from a part of a stream of events, where one of them reports usage."""
    if b"cached_tokens" not in part:
        return None
    lines = (line for line in part.split(b"\n") if line.startswith(b"data: ") and b"cached_tokens" in line)
    return next((found for line in lines if (found := cached_units(need, line[6:])) is not None), None)


def cached_units(need: Need, answer: bytes) -> float | None:
    """Return how many of a request's units the replica says it had cached, from the usage it reports."""
    if not need.blocks or b"cached_tokens" not in answer:
        return None
    try:
        usage = _ANSWERED.decode(answer).usage
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if usage is None or usage.prompt_tokens_details is None or usage.prompt_tokens <= 0:
        return None
    cached = usage.prompt_tokens_details.cached_tokens
    return None if cached is None else need.units * min(max(cached, 0) / usage.prompt_tokens, 1.0)


def _pieces(model: bytes, text: bytes, most: int) -> list[int]:
    """Name the whole pieces of a prompt, each by all before it."""
    running = blake2b(model, digest_size=8)
    found = []
    for start in range(0, min(len(text) // PIECE_BYTES, most) * PIECE_BYTES, PIECE_BYTES):
        running.update(text[start : start + PIECE_BYTES])
        found.append(int.from_bytes(running.copy().digest(), "little", signed=True))
    return found


def _hash(kind: bytes, value: bytes) -> int:
    return int.from_bytes(blake2b(value, digest_size=8, person=kind).digest(), "little", signed=True)

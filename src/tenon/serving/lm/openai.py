"""The doors that OpenAI's clients know: `/v1/models`, `/v1/completions`, `/v1/chat/completions`, `/v1/embeddings`.

A request is read and checked (`request`), admitted, handed to the engine as one or several texts, and written as one
JSON answer or as server-sent events while it is made. Nothing of a stream is sent before its first piece is there, so
that what fails early has an honest status. When the client goes, its texts are taken out of the batch: a request of
plain JSON is watched as well as a stream. Refusals have OpenAI's shape, with the path, what was expected and what came
beside it.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec
import numpy as np

from tenon.errors import nearest
from tenon.limits import Answer as Said
from tenon.serving.door import Act, Asked, Door, Page, Result, Stream, aside
from tenon.serving.lm.engine import Answer, Ask, Piece
from tenon.serving.lm.language import Language
from tenon.serving.lm.request import Kind, Wanted, WrongError, read, table
from tenon.serving.refusal import Refused, reply

DONE = b"data: [DONE]\n\n"
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
WORDS: Mapping[Kind, tuple[str, str, str]] = {  # id, object, object of one event of a stream
    "completions": ("cmpl", "text_completion", "text_completion"),
    "chat": ("chatcmpl", "chat.completion", "chat.completion.chunk"),
}


def doors(languages: Mapping[str, Language]) -> dict[str, Door]:
    """Return the doors of these language models."""

    async def models(_: Asked) -> Result:
        return reply({"object": "list", "data": [described(one) for one in languages.values()]})

    def door(name: str, method: str, act: Act) -> Door:
        return Door(name=name, acts={method: act}, wrong=wrong)

    found = {"/v1/models": door("models", "GET", models)}
    for name, one in languages.items():
        found[f"/v1/models/{name}"] = door("models", "GET", partial(_one, one))
    paths: Mapping[Kind, str] = {
        "completions": "/v1/completions",
        "chat": "/v1/chat/completions",
        "embeddings": "/v1/embeddings",
    }
    for kind, path in paths.items():
        found[path] = door(kind, "POST", partial(_answer, kind, languages))
    return found


async def _one(language: Language, _: Asked) -> Result:
    return reply(described(language))


def described(language: Language) -> dict[str, Any]:
    """Return how a model is listed: OpenAI's four fields and what is worth knowing here."""
    return {
        "id": language.name,
        "object": "model",
        "created": int(language.at),
        "owned_by": "tenon",
        "version": language.version,
        "context": language.bundle.shape.context,
        "embeddings": bool(language.bundle.embeddings),
        "exact": language.engine.exact,
    }


def wrong(refusal: Refused) -> Page:
    """Write a refusal in OpenAI's shape."""
    fault = refusal.faults[0] if refusal.faults else {}
    kind = "server_error" if refusal.status >= 500 else TYPES.get(refusal.status, "invalid_request_error")
    path = fault.get("path", "")
    error: dict[str, Any] = {
        "message": refusal.said,
        "type": kind,
        "param": path.removeprefix("$.") or None if path != "$" else None,
        "code": fault.get("code") or CODES.get(refusal.status),
    }
    error.update({name: fault[name] for name in ("path", "expected", "got") if name in fault})
    body = msgspec.json.encode({"error": error})
    return Page(body=body, status=refusal.status, headers=tuple(refusal.headers()))


# ── one request ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def _answer(kind: Kind, languages: Mapping[str, Language], asked: Asked) -> Result:
    """Answer a request of this kind."""
    try:
        body = table(asked.body)
        language = _chosen(body.get("model"), languages)
        wanted = await aside(len(asked.body), partial(read, kind, body, language.bundle, language.limits))
    except WrongError as error:
        return error.refused()
    admission = language.admit(len(wanted.prompts) * wanted.choices)
    if not admission:
        never = admission.answer is Said.NEVER
        return Refused(status=413 if never else 429, said=admission.reason, retry_after_s=admission.retry_after_s)
    answers = [
        language.engine.submit(
            Ask(
                prompt=prompt,
                new_tokens=wanted.new_tokens,
                choice=wanted.choice(number),
                stops=wanted.stops,
                embed=kind == "embeddings",
            )
        )
        for number, prompt in enumerate(p for p in wanted.prompts for _ in range(wanted.choices))
    ]
    gone = asyncio.ensure_future(asked.gone())
    gone.add_done_callback(lambda _: _cancel(answers))
    made = Made(kind, language, wanted, answers, asked.at)
    if wanted.stream:
        events = made.events()
        begun = False
        try:
            first = await anext(events)
            begun = not isinstance(first, Refused)
        finally:
            if not begun:
                gone.cancel()
                _cancel(answers)
        if isinstance(first, Refused):
            return first
        return Stream(parts=_joined(first, events, gone, answers))
    try:
        return await made.whole()
    finally:
        gone.cancel()
        _cancel(answers)


def _chosen(name: Any, languages: Mapping[str, Language]) -> Language:
    if not isinstance(name, str):
        raise WrongError("$.model", "the name of a model served here", name)
    if name not in languages:
        hint = nearest(name[:200], languages)
        raise WrongError(
            "$.model", "a language model served here", name[:200], code="model_not_found", status=404, hint=hint
        )
    return languages[name]


def _cancel(answers: Sequence[Answer]) -> None:
    for answer in answers:
        answer.cancel()


async def _joined(
    first: bytes, events: AsyncGenerator[bytes | Refused, None], gone: asyncio.Future[None], answers: Sequence[Answer]
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a stream; a failure after the first is an event of its own, for the status has gone out."""
    try:
        yield first
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Refused):
                    yield b"data: " + wrong(event).body + b"\n\n"
                    return
                yield event
    finally:
        gone.cancel()
        _cancel(answers)


class Made:
    """The answer to one request while it is made: its texts, and how they are written."""

    __slots__ = ("_answers", "_created", "_id", "_kind", "_language", "_last", "_wanted")

    def __init__(self, kind: Kind, language: Language, wanted: Wanted, answers: Sequence[Answer], at: float) -> None:
        self._kind = kind
        self._language = language
        self._wanted = wanted
        self._answers = answers
        self._last: dict[int, Piece] = {}
        self._created = int(at)
        self._id = secrets.token_hex(12)

    # ── as one answer ────────────────────────────────────────────────────────────────────────────────────────────────

    async def whole(self) -> Result:
        """Wait for all texts and return them as one JSON answer."""
        texts = ["" for _ in self._answers]
        for number, answer in enumerate(self._answers):
            piece = await answer.next()
            texts[number] += piece.text
            while not piece.end:
                piece = await answer.next()
                texts[number] += piece.text
            self._last[number] = piece
            refusal = self._failed(piece)
            if refusal is not None:
                return refusal
        if self._kind == "embeddings":
            return self._embeddings()
        choices = [self._choice(number, text) for number, text in enumerate(texts)]
        return reply({**self._head(WORDS[self._kind][1]), "choices": choices, "usage": self._usage()})

    def _choice(self, number: int, text: str) -> dict[str, Any]:
        end = self._last[number].end
        said: dict[str, Any] = {"text": text}
        if self._kind == "chat":
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        return {"index": number, **said, "logprobs": None, "finish_reason": end}

    def _embeddings(self) -> Result:
        data = []
        for number, answer in enumerate(self._answers):
            assert answer.vector is not None
            vector: Any = answer.vector.tolist()
            if self._wanted.base64:
                vector = base64.b64encode(answer.vector.astype(np.dtype("<f4")).tobytes()).decode()
            data.append({"object": "embedding", "index": number, "embedding": vector})
        count = sum(map(len, self._wanted.prompts))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return reply({"object": "list", "data": data, "model": self._language.name, "usage": usage})

    # ── as events ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def events(self) -> AsyncGenerator[bytes | Refused, None]:
        """Yield server-sent events as the texts grow; a Refused, when something fails, is the last."""
        waiting = {
            asyncio.ensure_future(answer.next()): (number, answer) for number, answer in enumerate(self._answers)
        }
        begun: set[int] = set()
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                events = []
                for future in done:
                    number, answer = waiting.pop(future)
                    piece = future.result()
                    self._last[number] = piece
                    refusal = self._failed(piece)
                    if refusal is not None:
                        yield refusal
                        return
                    events += self._grown(number, piece, number not in begun)
                    begun.add(number)
                    if not piece.end:
                        waiting[asyncio.ensure_future(answer.next())] = (number, answer)
                if events:
                    yield b"".join(events)
            if self._wanted.usage:
                yield self._event([], self._usage())
            yield DONE
        finally:
            for future in waiting:
                future.cancel()

    def _grown(self, number: int, piece: Piece, first: bool) -> list[bytes]:
        """Return the events that one piece makes."""
        common = {"index": number, "logprobs": None}
        if self._kind == "completions":
            if not (piece.text or piece.end):
                return []
            return [self._event([{**common, "text": piece.text, "finish_reason": piece.end or None}])]
        found = []
        if first:
            role = {"role": "assistant", "content": "", "refusal": None}
            found.append(self._event([{**common, "delta": role, "finish_reason": None}]))
        if piece.text:
            found.append(self._event([{**common, "delta": {"content": piece.text}, "finish_reason": None}]))
        if piece.end:
            found.append(self._event([{**common, "delta": {}, "finish_reason": piece.end}]))
        return found

    def _event(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, Any] | None = None) -> bytes:
        body = {**self._head(WORDS[self._kind][2]), "choices": choices}
        if self._wanted.usage:
            body["usage"] = usage
        return b"data: " + msgspec.json.encode(body) + b"\n\n"

    # ── in both ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{WORDS[self._kind][0]}-{self._id}",
            "object": kind,
            "created": self._created,
            "model": self._language.name,
            "system_fingerprint": self._language.version,
        }

    def _usage(self) -> dict[str, Any]:
        """Count tokens: a prompt once however many choices it has, cached by what its first choice found."""
        prompt = sum(map(len, self._wanted.prompts))
        made = sum(piece.tokens for piece in self._last.values())
        cached = sum(self._last[number].cached for number in range(0, len(self._answers), self._wanted.choices))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _failed(self, piece: Piece) -> Refused | None:
        """Return why a text has no answer, if it has none."""
        if piece.end == "late":
            limit = self._language.limits.wait_s
            said = f"expected to begin within {limit:g} s, got a longer queue; come back"
            return Refused(status=503, said=said, retry_after_s=2.0)
        if piece.end == "cancelled":
            return Refused(status=503, said="expected a client that waits, got one that went", retry_after_s=1.0)
        if piece.end == "failed":
            return Refused(status=500, said=f"'{self._language.name}' could not answer this; its log says why")
        return None

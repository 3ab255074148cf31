"""Wanted is a request to a language model, checked: what to continue or embed, and how.

Bodies are JSON in OpenAI's words. Every field is looked at: one that this engine honours is checked, one that changes
the answer in a way it cannot give (tools, logit bias, penalties) is refused unless it says "none of that", one that is
only a note (user, metadata) is passed over, and a name nobody knows is refused with the nearest one, because a misspelt
`temperature` would be ignored for ever. A fault has the path, what was expected and what came.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from tenon.errors import InputError, nearest, sentence
from tenon.limits import LanguageLimits
from tenon.serving.lm.bundle import Bundle
from tenon.serving.lm.sample import Choice
from tenon.serving.refusal import Fault, Refused, shown

Kind = Literal["completions", "chat", "embeddings"]
NOTES = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
)
ROLES = ("assistant", "developer", "system", "user")
SEEDS = 2**63
# Fields whose only accepted values say that nothing of the kind is asked for.
NOTHING: Mapping[Kind, Mapping[str, Sequence[Any]]] = {
    "completions": {
        "echo": (False, None),
        "logprobs": (None, False),
        "suffix": (None, ""),
        "best_of": (1, None),
        "presence_penalty": (0, None),
        "frequency_penalty": (0, None),
        "logit_bias": ({}, None),
    },
    "chat": {
        "logprobs": (False, None),
        "top_logprobs": (0, None),
        "tools": ([], None),
        "tool_choice": ("none", "auto", None),
        "parallel_tool_calls": (True, False, None),
        "functions": ([], None),
        "function_call": ("none", "auto", None),
        "response_format": ({"type": "text"}, None),
        "modalities": (["text"], None),
        "presence_penalty": (0, None),
        "frequency_penalty": (0, None),
        "logit_bias": ({}, None),
    },
    "embeddings": {"dimensions": (None,)},
}
HOW = ("temperature", "top_p", "n", "stream", "stream_options", "stop", "seed")
OWN: Mapping[Kind, Sequence[str]] = {
    "completions": ("model", "prompt", "max_tokens", *HOW),
    "chat": ("model", "messages", "max_tokens", "max_completion_tokens", *HOW),
    "embeddings": ("model", "input", "encoding_format"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A checked request; `prompts` are tokens, `seed` is of the first choice of the first prompt."""

    prompts: Sequence[Sequence[int]]
    new_tokens: int = 1
    choices: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stops: Sequence[str] = ()
    stream: bool = False
    usage: bool = False
    base64: bool = False

    def choice(self, number: int) -> Choice:
        """Return how the answer of that number is chosen: each has a seed of its own."""
        return Choice(temperature=self.temperature, top_p=self.top_p, seed=(self.seed + number) % SEEDS)


class WrongError(Exception):
    """A request that is refused, on its way from where it was noticed to the door; never leaves this room."""

    def __init__(
        self, path: str, expected: str, got: Any, *, code: str = "", status: int = 400, hint: str = ""
    ) -> None:
        super().__init__(path)
        self.hint = hint
        self.fault: Fault = {"path": path, "expected": expected, "got": got if isinstance(got, str) else shown(got)}
        self.code = code
        self.status = status

    def refused(self) -> Refused:
        """Return it as a refusal."""
        fault = {**self.fault, "code": self.code} if self.code else self.fault
        said = sentence(fault["expected"], fault["got"], at=fault["path"], hint=self.hint)
        return Refused(status=self.status, said=said, faults=(fault,))


def table(body: bytes) -> dict[str, Any]:
    """Decode a body; WrongError when it is not a JSON object."""
    try:
        found = msgspec.json.decode(body)
    except RecursionError:
        raise WrongError("$", "a JSON object", "one nested beyond reading") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WrongError("$", "a JSON object", str(error)[:200]) from None
    if not isinstance(found, dict):
        raise WrongError("$", "a JSON object", found)
    return found


def read(kind: Kind, body: Mapping[str, Any], bundle: Bundle, limits: LanguageLimits) -> Wanted:
    """Check a decoded body for this model; WrongError names the first fault."""
    nothing = NOTHING[kind]
    for name, value in body.items():
        if name in nothing:
            if not any(value == only and type(value) is type(only) for only in nothing[name]) and not _zero(value):
                hint = "this model does nothing else there"
                raise WrongError(f"$.{name}", shown(nothing[name][0]), value, hint=hint)
        elif name not in OWN[kind] and name not in NOTES:
            hint = nearest(name[:100], (*OWN[kind], *nothing))
            raise WrongError(f"$.{name[:100]}", "a known field", shown(value), hint=hint)
    if kind == "embeddings":
        form = body.get("encoding_format") or "float"
        if form not in ("float", "base64"):
            raise WrongError("$.encoding_format", "'float' or 'base64'", form)
        if not bundle.embeddings:
            raise WrongError("$.model", "a model with embeddings", bundle.name)
        return Wanted(prompts=_prompts(body, "input", bundle, limits, 0), base64=form == "base64")
    if kind == "chat":
        prompts: Sequence[Sequence[int]] = [_conversation(body, bundle)]
        asked = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
        usual = limits.new_tokens
    else:
        prompts, asked, usual = _prompts(body, "prompt", bundle, limits, 1), "max_tokens", 16
    seed = _whole(body, "seed", None, -SEEDS, SEEDS - 1)
    stream = _flag(body, "stream")
    options = body.get("stream_options")
    if options is not None and not (isinstance(options, dict) and stream):
        raise WrongError("$.stream_options", "an object, and only with stream true", options)
    return Wanted(
        prompts=prompts,
        new_tokens=_new_tokens(body, asked, usual, max(map(len, prompts)), bundle, limits),
        choices=_whole(body, "n", 1, 1, limits.choices) or 1,
        temperature=_real(body, "temperature", 1.0, 0.0, 2.0),
        top_p=_real(body, "top_p", 1.0, 1e-6, 1.0),
        seed=secrets.randbits(62) if seed is None else seed % SEEDS,
        stops=_stops(body.get("stop"), limits),
        stream=stream,
        usage=_flag(options or {}, "include_usage", "stream_options."),
    )


# ── fields ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _zero(value: Any) -> bool:
    """Say whether a value is the number 0, however it is written: clients send 0.0 for a penalty of none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


def _flag(body: Mapping[str, Any], name: str, at: str = "") -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise WrongError(f"$.{at}{name}", "true or false", value)
    return bool(value)


def _whole(body: Mapping[str, Any], name: str, usual: int | None, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return usual
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise WrongError(f"$.{name}", f"a whole number from {low:,} to {high:,}", value)
    return value


def _real(body: Mapping[str, Any], name: str, usual: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return usual
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise WrongError(f"$.{name}", f"a number from {low:g} to {high:g}", value)
    if not low <= value <= high:
        raise WrongError(f"$.{name}", f"a number from {low:g} to {high:g}", value)
    return float(value)


def _stops(value: Any, limits: LanguageLimits) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value if value is not None else []
    if not isinstance(given, list) or len(given) > limits.stops:
        raise WrongError("$.stop", f"a text, or at most {limits.stops} of them", value)
    for number, stop in enumerate(given):
        if not isinstance(stop, str) or not 0 < len(stop) <= limits.stop_characters:
            raise WrongError(f"$.stop[{number}]", f"a text of 1 to {limits.stop_characters} characters", stop)
    return tuple(given)


def _new_tokens(
    body: Mapping[str, Any], name: str, usual: int, longest: int, bundle: Bundle, limits: LanguageLimits
) -> int:
    """Return how many tokens may be generated: what was asked for, if the context has room, else what it has."""
    room = min(bundle.shape.context - longest, limits.new_tokens)
    asked = _whole(body, name, None, 1, 2**53)
    if asked is None:
        return min(usual, room)
    if asked > room:
        fits = f"at most {room:,}: the context is {bundle.shape.context:,} tokens and the prompt {longest:,}"
        raise WrongError(f"$.{name}", fits, asked, code="context_length_exceeded")
    return asked


def _prompts(
    body: Mapping[str, Any], name: str, bundle: Bundle, limits: LanguageLimits, spare: int
) -> list[Sequence[int]]:
    """Return the prompts as tokens: a text, tokens, or a list of either; each leaves `spare` tokens of the context."""
    value = body.get(name)
    if value is None and name == "prompt":
        value = ""
    whole = isinstance(value, str) or (isinstance(value, list) and bool(value) and _is_whole(value[0]))
    given = [value] if whole else value
    if not isinstance(given, list) or not 0 < len(given) <= limits.inputs:
        raise WrongError(f"$.{name}", f"a text, or a list of 1 to {limits.inputs} texts", value)
    most = bundle.shape.context - spare
    found = []
    for number, one in enumerate(given):
        place = f"$.{name}" if whole else f"$.{name}[{number}]"
        found.append(_tokens(one, place, most, bundle))
    return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tokens(value: Any, place: str, most: int, bundle: Bundle) -> Sequence[int]:
    """Return the tokens of one prompt; an empty one begins where texts begin: after the end of another."""
    if isinstance(value, str):
        return _encoded(value, place, most, bundle)
    if not isinstance(value, list):
        raise WrongError(place, "a text or a list of tokens", value)
    count = len(bundle.tokenizer.tokens)
    if len(value) > most:
        raise _too_long(place, most, len(value))
    for number, token in enumerate(value):
        if not _is_whole(token) or not 0 <= token < count:
            raise WrongError(f"{place}[{number}]", f"a token from 0 to {count - 1:,}", token)
    return value or [next(iter(bundle.tokenizer.specials.values()), 0)]


def _encoded(text: str, place: str, most: int, bundle: Bundle, *, specials: bool = False) -> Sequence[int]:
    """Encode a text, unless it is so long that no encoding of it fits: that one is never looked at."""
    if len(text) > most * bundle.tokenizer.longest_bytes:
        raise _too_long(place, most, f"{len(text):,} characters")
    tokens = bundle.tokenizer.encode(text, specials=specials)
    if len(tokens) > most:
        raise _too_long(place, most, len(tokens))
    return tokens or [next(iter(bundle.tokenizer.specials.values()), 0)]


def _too_long(place: str, most: int, got: int | str) -> WrongError:
    came = got if isinstance(got, str) else f"{got:,}"
    return WrongError(place, f"at most {most:,} tokens", came, code="context_length_exceeded")


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────


def _conversation(body: Mapping[str, Any], bundle: Bundle) -> Sequence[int]:
    """Return the tokens of the conversation as the model's template writes it."""
    if not bundle.chat:
        raise WrongError("$.model", "a model with a chat template", bundle.name, hint="ask /v1/completions")
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise WrongError("$.messages", "a list of at least one message", given)
    most = bundle.shape.context - 1
    if len(given) > most:
        raise _too_long("$.messages", most, f"{len(given):,} messages")
    messages = [_message(one, f"$.messages[{number}]", bundle) for number, one in enumerate(given)]
    if sum(len(message["content"]) for message in messages) > most * bundle.tokenizer.longest_bytes:
        raise _too_long("$.messages", most, "more characters than fit")
    try:
        text = bundle.render(messages)
    except InputError as error:
        raise WrongError("$.messages", "what the model's chat template takes", str(error)[:300]) from None
    return _encoded(text, "$.messages", most, bundle, specials=True)


def _message(value: Any, place: str, bundle: Bundle) -> dict[str, str]:
    if not isinstance(value, dict):
        raise WrongError(place, "an object with role and content", value)
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise WrongError(f"{place}.role", "one of " + ", ".join(f"'{known}'" for known in ROLES), role)
    for name in value:
        if name not in ("role", "content", "name") and value[name] not in (None, []):
            raise WrongError(f"{place}.{name[:100]}", "role, content or name", shown(value[name]))
    if isinstance(content, list):
        texts = []
        for number, part in enumerate(content):
            text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            if not isinstance(text, str):
                raise WrongError(f"{place}.content[{number}]", "a part of type 'text' with a text", part)
            texts.append(text)
        content = "".join(texts)
    if not isinstance(content, str):
        raise WrongError(f"{place}.content", "a text", content)
    # The template's own marks may be special tokens; a person's words must not be able to look like them.
    for special in bundle.tokenizer.specials:
        if special in content:
            raise WrongError(f"{place}.content", f"a text without the special token {special}", "one with it")
    return {"role": "system" if role == "developer" else str(role), "content": content}

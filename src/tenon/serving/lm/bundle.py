"""A Bundle is an exported language model in one folder, read and checked before anything is loaded.

The layout is the common one of Llama-shaped models, so that others open what tenon exports:

    config.json             the shape of the network
    tokenizer.json          a byte-level BPE (`tokenizer`)
    model.safetensors       the weights, under Llama's names
    tokenizer_config.json   the chat template, if the model has one
    tenon.json              name, what it was trained on, which embedding it has; may be missing

Only what the network computes is accepted: RMS norms, plain rotary positions, a gated SiLU MLP, no biases. A
configuration that says anything else is refused by the key that says it, never served wrong. The version is the digest
of the files. The chat template runs in Jinja's sandbox.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tenon.errors import ConfigError, InputError, MissingError, sentence
from tenon.serving.lm.tokenizer import Tokenizer

FILES = ("config.json", "tokenizer.json", "model.safetensors")
OPTIONAL = ("tokenizer_config.json", "tenon.json")
# Keys whose only value here is the one given; whatever else a configuration says has no part in the arithmetic.
FIXED: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
}
EMBEDDINGS = ("", "mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of a network, and the tokens that end a text."""

    vocab: int
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    context: int
    eps: float
    theta: float
    tied: bool
    ends: tuple[int, ...]

    def page_bytes(self, tokens: int, number_bytes: int = 4) -> int:
        """Return what the keys and values of a page of that many tokens take."""
        return 2 * self.layers * self.kv_heads * self.head * tokens * number_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One exported model: its name and version, shape, tokenizer, where the weights are, and what it can do."""

    name: str
    version: str
    shape: Shape
    tokenizer: Tokenizer
    weights: Path
    chat: str = ""
    embeddings: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def open(where: Path | str | Mapping[str, Path], *, name: str = "") -> Bundle:
        """Read an exported folder, or files by name; `name` is what clients call it (default: its own)."""
        if not isinstance(where, Mapping):
            folder = Path(where)
            where = {file: folder / file for file in (*FILES, *OPTIONAL) if (folder / file).is_file()}
            place = str(folder)
        else:
            place = name or "model"
        missing = [file for file in FILES if file not in where]
        if missing:
            got = f"one without {', '.join(missing)}"
            raise MissingError(sentence("an exported language model", got, at=place, hint="export it again"))
        shape = _shape(_table(where["config.json"]), str(where["config.json"]))
        tokenizer = Tokenizer.read(_bytes(where["tokenizer.json"]), str(where["tokenizer.json"]))
        if len(tokenizer.tokens) > shape.vocab:
            got = f"{len(tokenizer.tokens):,} tokens"
            raise InputError(sentence(f"a tokenizer of at most {shape.vocab:,} tokens", got, at=place))
        own = _table(where["tenon.json"]) if "tenon.json" in where else {}
        settings = _table(where["tokenizer_config.json"]) if "tokenizer_config.json" in where else {}
        embeddings = own.get("embeddings") or ""
        if embeddings not in EMBEDDINGS:
            raise ConfigError(sentence("embeddings 'mean' or none", repr(embeddings), at=f"{place}/tenon.json"))
        template = settings.get("chat_template")
        return Bundle(
            name=name or str(own.get("name") or Path(place).name),
            version=_version(where),
            shape=shape,
            tokenizer=tokenizer,
            weights=where["model.safetensors"],
            chat=template if isinstance(template, str) else "",
            embeddings=embeddings,
            about=own,
        )

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the prompt of a conversation; InputError when the template does not take it."""
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(said: str) -> None:
            raise jinja2.TemplateError(said)

        scene = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
        try:
            template = scene.from_string(self.chat, globals={"raise_exception": refuse})
            return template.render(messages=messages, add_generation_prompt=True, bos_token="", eos_token="")
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
            raise InputError(sentence("messages that the model's chat template takes", str(error))) from error


def _version(where: Mapping[str, Path]) -> str:
    """Name the model by the bytes of all its files."""
    whole = hashlib.sha256()
    for name in sorted(where):
        with where[name].open("rb") as file:
            whole.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:12]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingError(sentence("a file that can be read", str(error), at=str(path))) from error


def _table(path: Path) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(_bytes(path))
    except msgspec.DecodeError as error:
        raise InputError(sentence("JSON", str(error), at=str(path))) from error
    if not isinstance(found, dict):
        raise InputError(sentence("a JSON object", type(found).__name__, at=str(path)))
    return found


def _shape(config: Mapping[str, Any], place: str) -> Shape:
    for key, only in FIXED.items():
        if config.get(key, only) != only:
            got = f"{config[key]!r}"
            raise ConfigError(sentence(f"{key} {only!r}, the one that is served here", got, at=f"{place}: {key}"))

    def number(key: str, default: int | None = None) -> int:
        value = config.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 24:
            raise ConfigError(sentence("a number of at least 1", repr(value), at=f"{place}: {key}"))
        return value

    width, heads = number("hidden_size"), number("num_attention_heads")
    kv_heads = number("num_key_value_heads", heads)
    head = number("head_dim", max(1, width // heads))
    if heads % kv_heads or head % 2:
        got = f"{heads} heads of {head} over {kv_heads}"
        raise ConfigError(sentence("whole groups of heads, of an even size", got, at=place))
    eps, theta = config.get("rms_norm_eps", 1e-6), config.get("rope_theta", 10_000.0)
    if not all(isinstance(value, (int, float)) and math.isfinite(value) and value > 0 for value in (eps, theta)):
        raise ConfigError(sentence("rms_norm_eps and rope_theta above 0", f"{eps!r} and {theta!r}", at=place))
    ends = config.get("eos_token_id")
    return Shape(
        vocab=number("vocab_size"),
        width=width,
        hidden=number("intermediate_size"),
        layers=number("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head=head,
        context=number("max_position_embeddings"),
        eps=float(eps),
        theta=float(theta),
        tied=bool(config.get("tie_word_embeddings", False)),
        ends=tuple(int(end) for end in (ends if isinstance(ends, list) else [] if ends is None else [ends])),
    )

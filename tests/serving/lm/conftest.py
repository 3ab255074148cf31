"""A real language model of a few thousand parameters: random weights, two key heads for four heads, an own tokenizer.

What it says is nonsense, and that is what these tests want: every next token is another one, so that any difference in
any sum along the way shows in what is said.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tenon.limits import LanguageLimits
from tenon.serving import Settings, build_app, running
from tenon.serving.lm import Language, Tokenizer, open_language
from tenon.serving.lm.bundle import Bundle
from tenon.serving.lm.engine import Ask, Piece
from tenon.serving.lm.sample import Choice

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
MERGES = [(1 + ord(a), 1 + ord(b)) for a, b in ("in", "re", "th", "an", "er", "de", "se", "st", " s", " a", "or", "al")]


@dataclass(frozen=True)
class Said:
    """What an engine answered: the tokens, the text and the last piece."""

    tokens: list[int]
    text: str
    last: Piece


def tokenizer() -> Tokenizer:
    return Tokenizer.of([*MERGES, (258, 258), (257, 1 + ord("g")), (260, 1 + ord("d"))])


def export(folder: Path, seed: int = 1, **changed: Any) -> Path:
    """Write a model with random weights."""
    import torch
    from safetensors.torch import save_file

    from tenon.serving.lm.network import expected

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changed}))
    (folder / "tokenizer.json").write_bytes(tokenizer().to_json())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT}))
    (folder / "tenon.json").write_text(json.dumps({"name": "tiny", "embeddings": "mean"}))
    (folder / "model.safetensors").write_bytes(b"")
    shape = Bundle.open(folder).shape
    dice = torch.Generator().manual_seed(seed)
    weights = {}
    for name, size in expected(shape).items():
        scale = 1.0 if "embed" in name else 2.0 * size[-1] ** -0.5
        weights[name] = torch.ones(size) if len(size) == 1 else torch.randn(size, generator=dice) * scale
    weights["model.embed_tokens.weight"] *= 1.0
    save_file(weights, folder / "model.safetensors")
    return folder


async def all_of(language: Language, ask: Ask, after_s: float = 0.0) -> Said:
    """Ask and wait for the whole answer."""
    await asyncio.sleep(after_s)
    answer = language.engine.submit(ask)
    text = ""
    while True:
        piece = await answer.next()
        text += piece.text
        if piece.end:
            return Said(list(answer.tokens), text, piece)


def ask(prompt: Sequence[int], new_tokens: int = 20, **more: Any) -> Ask:
    how = Choice(**{"temperature": 0.0, **more.pop("how", {})})
    return Ask(prompt=prompt, new_tokens=new_tokens, choice=how, **more)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the exported model."""
    if find_spec("torch") is None or find_spec("safetensors") is None:
        pytest.skip("extra 'torch' is not installed")
    return export(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def lm() -> SimpleNamespace:
    """Return what tests make language models with."""
    return SimpleNamespace(export=export, tokenizer=tokenizer, all_of=all_of, ask=ask, CONFIG=CONFIG)


@pytest.fixture
def begun(tiny: Path) -> Iterator[Callable[..., Language]]:
    """Start language models with the limits given, and close them when the test ends."""
    with ExitStack() as stack:

        def begin(**limits: Any) -> Language:
            language = open_language(tiny, limits=LanguageLimits(**limits))
            language.start()
            stack.callback(language.close)
            return language

        yield begin


@pytest.fixture
def serve_tiny(tiny: Path) -> Iterator[Callable[..., str]]:
    """Serve the model on a free port with the limits given; returns the URL."""
    with ExitStack() as stack:

        def begin(settings: Settings | None = None, **limits: Any) -> str:
            language = open_language(tiny, limits=LanguageLimits(**limits))
            app = build_app([], languages=[language], settings=settings)
            return stack.enter_context(running(app))

        yield begin


@pytest.fixture(scope="session")
def url(tiny: Path) -> Iterator[str]:
    """Serve the model with everything at its default for the whole session."""
    with running(build_app([], languages=[open_language(tiny)])) as address:
        yield address

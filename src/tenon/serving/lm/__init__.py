"""Language models: an engine for small causal models of one's own, and the doors the OpenAI clients know.

    language = open_language("export/", limits=LanguageLimits())
    run(build_app([], languages=[language]))

`bundle` reads an exported folder (configuration, tokenizer, weights) and refuses what it does not know; `tokenizer`
turns text into tokens and back; `network` is the arithmetic, made so that a row's bits do not depend on its company;
`cache` keeps keys and values in pages that prompts share; `engine` runs many requests in one batch; `openai` are the
doors, `answer` what they write, `gauge` what they count. torch is imported when an engine starts and at no other time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenon.serving.lm.bundle import Bundle
    from tenon.serving.lm.language import Language, open_language
    from tenon.serving.lm.tokenizer import Tokenizer

_HOMES = {"Bundle": "bundle", "Language": "language", "Tokenizer": "tokenizer", "open_language": "language"}
__all__ = ["Bundle", "Language", "Tokenizer", "open_language"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name in _HOMES:
        return getattr(import_module(f"tenon.serving.lm.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tenon.serving.lm' has no attribute '{name}'")

"""Language models: an engine for small causal models of one's own, and the doors the OpenAI clients know.

    language = open_language("export/", limits=LanguageLimits())
    run(build_app([], languages=[language]))

`bundle` reads an exported folder (configuration, tokenizer, weights) and refuses what it does not know; `tokenizer`
turns text into tokens and back; `network` is the arithmetic, made so that a row's bits do not depend on its company;
`cache` keeps keys and values in pages that prompts share; `engine` runs many requests in one batch; `openai` are the
doors, `answer` what they write, `gauge` what they count. torch is imported when an engine starts and at no other time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenon.lazy import lazy

if TYPE_CHECKING:
    from tenon.serving.lm.bundle import Bundle
    from tenon.serving.lm.language import Language, open_language
    from tenon.serving.lm.tokenizer import Tokenizer

_HOMES = {"bundle": ("Bundle",), "language": ("Language", "open_language"), "tokenizer": ("Tokenizer",)}
__all__ = ["Bundle", "Language", "Tokenizer", "open_language"]

__getattr__, __dir__ = lazy(__name__, _HOMES)

"""A language model's engine: tokens a second together against one by one, and how soon the first token comes.

The network has TinyGPT's shape and, without an export (`python bench/lm.py FOLDER`), random weights: how quick it is
does not depend on what it says. One by one is the same engine asked by one client that waits for each answer.
Candidates take turns; answers are compared, because a quicker engine that says something else is no engine.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import measure
import numpy as np

measure.needs("torch", "safetensors")

from tenon.limits import LanguageLimits  # noqa: E402 - after what it cannot do without
from tenon.serving.lm import Language, Tokenizer, open_language  # noqa: E402
from tenon.serving.lm.bundle import Bundle  # noqa: E402
from tenon.serving.lm.engine import Ask  # noqa: E402
from tenon.serving.lm.sample import Choice  # noqa: E402

TEXTS, NEW, REPEATS = 32, 48, 3
FILE = "model.safetensors"
CONFIG = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def random_export(folder: Path) -> Path:
    """Write a model of TinyGPT's shape with random weights, and a tokenizer that is good for nothing."""
    import torch
    from safetensors.torch import save_file

    from tenon.serving.lm.network import expected

    merges = [(1 + left, 1 + right) for left in range(256) for right in range(15)][: 4096 - 257]
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_bytes(Tokenizer.of(merges).to_json())
    (folder / FILE).write_bytes(b"")
    dice = torch.Generator().manual_seed(1)
    sizes = expected(Bundle.open(folder).shape)
    save_file({name: torch.randn(size, generator=dice) * 0.05 for name, size in sizes.items()}, folder / FILE)
    return folder


async def answered(language: Language, prompt: list[int], new: int) -> tuple[list[int], float]:
    """Return the tokens of an answer and the seconds to its first piece."""
    began = time.perf_counter()
    answer = language.engine.submit(Ask(prompt=prompt, new_tokens=new, choice=Choice(temperature=0.0)))
    piece = await answer.next()
    first = time.perf_counter() - began
    while not piece.end:
        piece = await answer.next()
    return list(answer.tokens), first


def together(language: Language, prompts: list[list[int]]) -> list[list[int]]:
    """Ask for all answers at once."""

    async def all() -> list[list[int]]:
        return [tokens for tokens, _ in await asyncio.gather(*(answered(language, p, NEW) for p in prompts))]

    return asyncio.run(all())


def one_by_one(language: Language, prompts: list[list[int]]) -> list[list[int]]:
    """Ask for each answer when the one before has come."""

    async def all() -> list[list[int]]:
        return [(await answered(language, prompt, NEW))[0] for prompt in prompts]

    return asyncio.run(all())


def speed(folder: Path) -> str:
    """Measure tokens a second for one, eight and thirty-two texts at a time."""
    dice = np.random.default_rng(1)
    languages = {
        name: open_language(folder, limits=LanguageLimits(batch=batch))
        for name, batch in (("one by one", 1), ("8 together", 8), ("32 together", 32))
    }
    prompts = [dice.integers(1, 4000, int(dice.integers(20, 60))).tolist() for _ in range(TEXTS)]
    for language in languages.values():
        language.start()
    said: dict[str, list[list[int]]] = {}

    def run(name: str) -> None:
        ask = one_by_one if name == "one by one" else together
        said[name] = ask(languages[name], prompts)

    seconds = measure.turns({name: lambda name=name: run(name) for name in languages}, repeats=REPEATS)
    for language in languages.values():
        language.close()
    assert all(tokens == said["one by one"] for tokens in said.values()), "every candidate says the same"
    count = sum(map(len, said["one by one"]))
    return measure.table(f"{TEXTS} texts of {NEW} tokens, prompts of 20 to 60", seconds, work=count, unit="tokens")


def first_token(folder: Path) -> str:
    """Measure the time to a first token of prompts of 400 tokens whose first 384 are the same, or new each time."""
    dice = np.random.default_rng(2)
    language = open_language(folder)
    language.start()
    shared = dice.integers(1, 4000, 384).tolist()

    def prompt(cached: bool) -> list[int]:
        begin = shared if cached else dice.integers(1, 4000, 384).tolist()
        return [*begin, *dice.integers(1, 4000, 16).tolist()]

    seconds: dict[str, list[float]] = {"nothing cached": [], "384 of 400 tokens cached": []}
    asyncio.run(answered(language, prompt(True), 1))
    for _ in range(15):
        for name, times in seconds.items():
            times.append(asyncio.run(answered(language, prompt("384" in name), 1))[1])
    language.close()
    base = statistics.median(seconds["nothing cached"])
    values = []
    for name, times in seconds.items():
        middle = statistics.median(times)
        values.append((name, f"{middle * 1e3:.1f}", f"{max(times) * 1e3:.1f}", f"{middle / base:.2f}"))
    return measure.rows("Time to the first token", ("prompt", "median ms", "worst ms", "times the first"), values)


if __name__ == "__main__":
    parser = measure.options(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="an exported model")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        where = asked.folder or random_export(Path(scratch))
        measure.show("## Language model engine", measure.machine("torch", "numpy"), speed(where), first_token(where))

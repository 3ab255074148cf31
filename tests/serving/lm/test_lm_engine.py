"""An engine says what plain decoding says, whoever else is asking, whatever is cached, evicted, or gives way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.errors import ConfigError, InputError, MissingError
from tenon.limits import LanguageLimits
from tenon.serving.lm import Bundle, Language, open_language
from tenon.serving.lm.cache import PAGE

Begun = Callable[..., Language]


@pytest.fixture(scope="module")
def network(tiny: Path) -> Any:
    from tenon.serving.lm.network import Network

    return Network(Bundle.open(tiny), 24, 64)


def plain(network: Any, prompt: Sequence[int], count: int, *, rows: int = 64) -> list[int]:
    """Decode one token at a time, nothing shared and nobody beside: the meaning that the engine must keep.

    All but the last token of the prompt are read so many at once; that it may be one is a test of its own.
    """
    from tenon.serving.lm.network import Part

    tokens, pages = list(prompt), list(range(8))
    for at in range(0, len(prompt) - 1, rows):
        read = tokens[at : min(at + rows, len(prompt) - 1)]
        network.step([Part(tokens=read, start=at, pages=pages[: (at + len(read) - 1) // PAGE + 1])], [])
    for at in range(len(prompt) - 1, len(prompt) + count - 1):
        logits, _ = network.step([Part(tokens=tokens[at : at + 1], start=at, pages=pages[: at // PAGE + 1])], [0])
        tokens.append(int(logits[0][: 257 + 15].argmax()))
        if tokens[-1] == 0:
            break
    return tokens[len(prompt) :]


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Return prompts of which many begin alike, as conversations do."""
    dice = np.random.default_rng(seed)
    base = dice.integers(1, 272, 150).tolist()
    return [
        [*base[: int(dice.integers(0, 150))], *dice.integers(1, 272, int(dice.integers(1, 50))).tolist()]
        for _ in range(count)
    ]


# ── the same as plain decoding ───────────────────────────────────────────────────────────────────────────────────────


def test_a_prompt_says_the_same_read_at_once_in_pieces_or_token_by_token(network: Any) -> None:
    for prompt in prompts(4, seed=2):
        said = [plain(network, prompt, 12, rows=rows) for rows in (64, 17, 1)]
        assert said[0] == said[1] == said[2]


def test_texts_that_come_and_go_get_the_tokens_of_plain_decoding(
    begun: Begun, lm: SimpleNamespace, network: Any
) -> None:
    every = prompts(24)
    wanted = [plain(network, prompt, 5 + number) for number, prompt in enumerate(every)]
    language = begun(batch=7)

    async def all() -> list[Any]:
        asked = [lm.ask(prompt, 5 + number) for number, prompt in enumerate(every)]
        return await asyncio.gather(*(lm.all_of(language, one, n * 0.004) for n, one in enumerate(asked)))

    for _ in range(2):  # the second time the prompts are in the cache
        assert [one.tokens for one in asyncio.run(all())] == wanted
    assert language.gauge.cached_tokens > 0.5 * language.gauge.prompt_tokens
    assert language.engine.exact


def test_evictions_and_texts_that_give_way_change_nothing(begun: Begun, lm: SimpleNamespace, network: Any) -> None:
    every = prompts(16, seed=5)
    wanted = [plain(network, prompt, 40) for prompt in every]
    pages = 256 // PAGE + 2  # barely more than one context
    language = begun(batch=6, step_rows=20, cache_bytes=pages * 2 * 2 * 2 * 8 * PAGE * 4)
    assert language.engine.pages.count == pages

    async def all() -> list[Any]:
        return await asyncio.gather(*(lm.all_of(language, lm.ask(one, 40), n * 0.002) for n, one in enumerate(every)))

    assert [one.tokens for one in asyncio.run(all())] == wanted
    assert language.gauge.gave_way > 0 and language.engine.pages.evicted > 0
    assert language.engine.pages.available == pages, "every page is given back"


@pytest.fixture(scope="module", params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest, network: Any) -> Iterator[int]:
    """Compute with so many threads."""
    before = network.torch.get_num_threads()
    network.torch.set_num_threads(request.param)
    yield request.param
    network.torch.set_num_threads(before)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 90)), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_bits_of_a_row_do_not_depend_on_its_company(
    threads: int, network: Any, company: list[tuple[int, int]], seed: int
) -> None:
    from tenon.serving.lm.network import Part

    dice = np.random.default_rng(seed)
    text = dice.integers(1, 272, 64).tolist()
    alone, _ = network.step([Part(tokens=text, start=0, pages=[0, 1])], list(range(64)))
    at = int(dice.integers(0, 63))
    parts, row, page = [], 0, 2
    for count, start in company:
        count = min(count, 63 - row, 7 * PAGE - start)
        if count > 0 and page + 7 <= 24:
            parts.append(
                Part(tokens=dice.integers(1, 272, count).tolist(), start=start, pages=list(range(page, page + 7)))
            )
            row += count
            page += 7
    mine = Part(tokens=text[at : at + 1], start=at, pages=[0, 1])
    together, _ = network.step([*parts, mine], [row])
    assert together.tobytes() == alone[at : at + 1].tobytes()


def test_the_arithmetic_is_that_of_a_plain_llama(lm: SimpleNamespace, tiny: Path, network: Any) -> None:
    """Written out once more, in the shortest way, over the whole text at once."""
    import torch
    from safetensors.torch import load_file

    from tenon.serving.lm.network import Part

    w = load_file(tiny / "model.safetensors")
    tokens = torch.randint(1, 272, (40,), generator=torch.Generator().manual_seed(4))
    x = w["model.embed_tokens.weight"][tokens]
    angle = torch.outer(torch.arange(40), 10_000.0 ** (-torch.arange(0, 8, 2) / 8)).repeat(1, 2)[None]

    def normed(x: Any, name: str) -> Any:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * w[f"{name}.weight"]

    def turned(x: Any) -> Any:
        return x * angle.cos() + torch.cat((-x[..., 4:], x[..., :4]), -1) * angle.sin()

    for number in range(2):
        stem = f"model.layers.{number}"
        h = normed(x, f"{stem}.input_layernorm")
        q, k, v = ((h @ w[f"{stem}.self_attn.{name}_proj.weight"].T).view(40, -1, 8).transpose(0, 1) for name in "qkv")
        k, v = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)
        scores = turned(q) @ turned(k).transpose(1, 2) / 8**0.5 + torch.full((40, 40), -1e9).triu(1)
        seen = (scores.softmax(-1) @ v).transpose(0, 1).reshape(40, 32)
        x = x + seen @ w[f"{stem}.self_attn.o_proj.weight"].T
        h = normed(x, f"{stem}.post_attention_layernorm")
        gate = torch.nn.functional.silu(h @ w[f"{stem}.mlp.gate_proj.weight"].T)
        x = x + (gate * (h @ w[f"{stem}.mlp.up_proj.weight"].T)) @ w[f"{stem}.mlp.down_proj.weight"].T
    wanted = (normed(x, "model.norm") @ w["lm_head.weight"].T).numpy()
    got, _ = network.step([Part(tokens=tokens.tolist(), start=0, pages=[0, 1])], list(range(40)))
    np.testing.assert_allclose(got, wanted, atol=2e-4, rtol=1e-3)


def test_what_chance_brings_depends_on_the_seed_and_not_on_the_load(begun: Begun, lm: SimpleNamespace) -> None:
    language = begun()
    mine = lm.ask([5, 6, 7], 30, how={"temperature": 1.0, "top_p": 0.9, "seed": 11})

    async def alone() -> list[int]:
        return list((await lm.all_of(language, mine)).tokens)

    async def among() -> list[int]:
        others = [lm.all_of(language, lm.ask(one, 30)) for one in prompts(10)]
        return list((await asyncio.gather(*others, lm.all_of(language, mine, 0.01)))[-1].tokens)

    assert asyncio.run(alone()) == asyncio.run(among())


def test_an_embedding_does_not_depend_on_how_the_text_was_cut(begun: Begun, lm: SimpleNamespace) -> None:
    async def embedded(language: Language) -> Any:
        answer = language.engine.submit(lm.ask(list(range(1, 200)), embed=True))
        while not (await answer.next()).end:
            pass
        return answer.vector

    whole, parts = (asyncio.run(embedded(begun(step_rows=rows))) for rows in (256, 24))
    assert whole.tobytes() == parts.tobytes()
    assert abs(float(np.linalg.norm(whole)) - 1) < 1e-9


# ── beginnings, ends ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_texts_that_begin_alike_and_come_together_compute_the_beginning_once(begun: Begun, lm: SimpleNamespace) -> None:
    language = begun()

    async def all() -> list[Any]:
        prompt = prompts(1, seed=3)[0] * 2
        return await asyncio.gather(*(lm.all_of(language, lm.ask(prompt[:140], 4)) for _ in range(5)))

    said = asyncio.run(all())
    assert len({tuple(one.tokens) for one in said}) == 1
    assert sorted(one.last.cached for one in said)[1:] == [140 // PAGE * PAGE] * 4


def test_a_text_that_is_cancelled_leaves_at_once_and_the_others_go_on(begun: Begun, lm: SimpleNamespace) -> None:
    language = begun(batch=2)

    async def both() -> tuple[Any, Any, int]:
        going = language.engine.submit(lm.ask([9] * 10, 200, how={"temperature": 1.0, "seed": 1}))
        waiting = language.engine.submit(lm.ask([8] * 10, 200))
        kept = asyncio.ensure_future(lm.all_of(language, lm.ask([3, 4, 5], 30)))
        await going.next()
        going.cancel()
        waiting.cancel()
        ends = []
        for one in (going, waiting):
            piece = await one.next()
            while not piece.end:
                piece = await one.next()
            ends.append(piece.end)
        return ends, await kept, language.engine.pages.available

    ends, kept, free = asyncio.run(both())
    assert ends == ["cancelled", "cancelled"] and len(kept.tokens) == 30
    assert free == language.engine.pages.count


def test_a_text_that_waits_too_long_is_told_so(begun: Begun, lm: SimpleNamespace) -> None:
    language = begun(batch=1, wait_s=0.05)

    async def both() -> list[Any]:
        slow = lm.ask([9] * 10, 200, how={"temperature": 1.0, "seed": 5})
        return await asyncio.gather(*(lm.all_of(language, slow) for _ in range(6)))

    ends = [one.last.end for one in asyncio.run(both())]
    assert ends[0] in ("length", "stop") and "late" in ends


def test_closing_ends_what_is_left(begun: Begun, lm: SimpleNamespace) -> None:
    language = begun()

    async def cut() -> Any:
        answer = language.engine.submit(lm.ask([1, 2, 3], 250, how={"temperature": 1.0, "seed": 2}))
        await answer.next()
        await asyncio.to_thread(language.close)
        piece = await answer.next()
        while not piece.end:
            piece = await answer.next()
        late = await language.engine.submit(lm.ask([1], 1)).next()
        return piece.end, late.end

    assert asyncio.run(cut())[1] == "failed"


def test_a_router_can_ask_how_much_of_a_beginning_is_cached(begun: Begun, lm: SimpleNamespace) -> None:
    language, prompt = begun(), list(range(1, 101))
    assert language.engine.cached(prompt) == 0
    asyncio.run(lm.all_of(language, lm.ask(prompt, 2)))
    assert language.engine.cached(prompt) == 96
    assert language.engine.cached([*prompt[:70], 5, 5, 5]) == 64


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"hidden_act": "gelu"}, ConfigError, "hidden_act"),
        ({"rope_scaling": {"type": "linear"}}, ConfigError, "rope_scaling"),
        ({"attention_bias": True}, ConfigError, "attention_bias"),
        ({"hidden_size": "32"}, ConfigError, "hidden_size"),
        ({"num_key_value_heads": 3}, ConfigError, "groups of heads"),
        ({"vocab_size": 100}, InputError, "272"),
    ],
)
def test_an_export_that_would_be_served_wrong_is_refused(
    tiny: Path, tmp_path: Path, lm: SimpleNamespace, changed: dict[str, Any], error: type[Exception], words: str
) -> None:
    import json
    import shutil

    folder = Path(shutil.copytree(tiny, tmp_path / "changed"))
    (folder / "config.json").write_text(json.dumps({**lm.CONFIG, **changed}))
    with pytest.raises(error, match=words):
        Bundle.open(folder)


def test_weights_that_are_missing_or_broken_are_refused_by_name(
    tiny: Path, tmp_path: Path, lm: SimpleNamespace
) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny, tmp_path / "broken"))
    whole = load_file(folder / "model.safetensors")
    for change, words in (
        ({"model.norm.weight": None}, "model.norm.weight"),
        ({"model.norm.weight": torch.ones(5)}, "model.norm.weight"),
        ({"lm_head.weight": whole["lm_head.weight"] * float("nan")}, "NaN"),
    ):
        weights = {name: weight for name, weight in {**whole, **change}.items() if weight is not None}
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(InputError, match=words):
            open_language(folder).start()
    (folder / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(InputError, match="safetensors"):
        open_language(folder).start()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(MissingError, match=r"tokenizer\.json"):
        open_language(folder)


def test_a_cache_too_small_for_one_text_is_refused_with_the_size_it_needs(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="cache_bytes"):
        open_language(tiny, limits=LanguageLimits(cache_bytes=10_000))
    with pytest.raises(ConfigError, match="step_rows"):
        open_language(tiny, limits=LanguageLimits(step_rows=1))


def test_the_smallest_limits_and_the_shortest_context_still_answer(
    tiny: Path, tmp_path: Path, lm: SimpleNamespace, network: Any
) -> None:
    folder = lm.export(tmp_path / "short", max_position_embeddings=20)
    language = open_language(folder, limits=LanguageLimits(requests=1, batch=1, step_rows=8, cache_bytes=16_384))
    language.start()
    said = asyncio.run(lm.all_of(language, lm.ask([5] * 12, 20)))
    language.close()
    assert said.tokens == plain(network, [5] * 12, 8) and said.last.end == "length"
    assert language.engine.exact

"""Text becomes tokens and comes back whole; pages are shared and never lost; stop strings hold; a seed decides."""

from __future__ import annotations

import time
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.errors import InputError
from tenon.serving.lm.cache import PAGE, Pages, names
from tenon.serving.lm.sample import Choice, Until, choose
from tenon.serving.lm.tokenizer import Tokenizer

TEXT = st.text(st.characters(codec="utf-8"), max_size=80) | st.sampled_from(
    ["", "  in\n\n  there", "né 日本\t\x00\x7f"]
)

# ── text and tokens ──────────────────────────────────────────────────────────────────────────────────────────────────


@given(TEXT)
@settings(max_examples=150, deadline=None)
def test_every_text_comes_back_from_its_tokens(lm: SimpleNamespace, text: str) -> None:
    tokenizer = lm.tokenizer()
    assert "".join(tokenizer.words(text)) == text
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text) == tokenizer.encode(text), "a word that is remembered has the same tokens"


@given(TEXT)
@settings(max_examples=100, deadline=None)
def test_text_read_token_by_token_is_the_same_text(lm: SimpleNamespace, text: str) -> None:
    tokenizer = lm.tokenizer()
    reader = tokenizer.reader()
    assert "".join(reader.read(token) for token in tokenizer.encode(text)) + reader.end() == text


def test_pairs_are_joined_in_the_order_they_were_learned(lm: SimpleNamespace) -> None:
    tokenizer = lm.tokenizer()
    assert [tokenizer.tokens[id] for id in tokenizer.encode("string and")] == [b"st", b"r", b"ing", b" ", b"and"]


def test_a_tokenizer_is_the_same_after_it_was_written_and_read(lm: SimpleNamespace) -> None:
    tokenizer = lm.tokenizer()
    again = Tokenizer.read(tokenizer.to_json(), "tokenizer.json")
    assert (again.tokens, again.merges, again.specials) == (tokenizer.tokens, tokenizer.merges, tokenizer.specials)
    assert again.encode("def there(in): return 12345") == tokenizer.encode("def there(in): return 12345")


def test_a_special_token_in_a_text_is_plain_text_unless_asked_for(lm: SimpleNamespace) -> None:
    tokenizer = lm.tokenizer()
    assert 0 not in tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.encode("a<|endoftext|>b", specials=True) == [*tokenizer.encode("a"), 0, *tokenizer.encode("b")]


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "WordPiece"}},
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model": {"type": "BPE", "vocab": {"a": 5}, "merges": []}},
    ],
)
def test_a_tokenizer_of_another_family_is_refused(lm: SimpleNamespace, change: dict[str, object]) -> None:
    body = {**msgspec.json.decode(lm.tokenizer().to_json()), **change}
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Tokenizer.read(msgspec.json.encode(body), "tokenizer.json")


def test_a_long_word_takes_time_by_its_length_and_not_by_its_square(lm: SimpleNamespace) -> None:
    tokenizer = lm.tokenizer()
    began = time.process_time()
    tokenizer.encode("".join(chr(97 + n * n % 26) for n in range(100_000)))
    assert time.process_time() - began < 5


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_equal_names_mean_equal_beginnings() -> None:
    one = list(names(b"root", list(range(3 * PAGE))))
    assert list(names(b"root", [*range(2 * PAGE), *range(PAGE)]))[:2] == one[:2]
    assert list(names(b"root", [7, *range(1, 3 * PAGE)]))[1:] != one[1:], "the second page knows what was before it"
    assert not set(names(b"other", list(range(3 * PAGE)))) & set(one)


def test_the_page_unused_for_the_longest_goes_first_and_ends_go_before_beginnings() -> None:
    pages = Pages(4)
    first = [pages.take(), pages.take()]
    second = [pages.take(), pages.take()]
    for page, name in zip([*first, *second], (b"a", b"ab", b"c", b"cd"), strict=True):
        assert page is not None
        pages.keep(page, name)
    pages.release(page for page in reversed(first) if page is not None)
    pages.release(page for page in reversed(second) if page is not None)
    gone = []
    while pages.take() is not None:
        gone.append([name for name in (b"a", b"ab", b"c", b"cd") if not pages.holds(name)])
    assert [len(names) for names in gone] == [1, 2, 3, 4]
    assert gone[0] == [b"ab"] and gone[1] == [b"a", b"ab"] and gone[2] == [b"a", b"ab", b"cd"]


@given(st.lists(st.tuples(st.sampled_from(["take", "share", "keep", "release"]), st.integers(0, 7)), max_size=80))
@settings(max_examples=150, deadline=None)
def test_no_page_is_lost_or_handed_out_twice(moves: list[tuple[str, int]]) -> None:
    pages, named = Pages(5), set[int]()
    held: list[int] = []
    for move, number in moves:
        name = bytes([number])
        if move == "take":
            page = pages.take()
            assert (page is None) == (len(set(held)) == 5), "refused exactly when every page is in use"
            if page is not None:
                assert page not in held
                held.append(page)
                named.discard(page)
        elif move == "share":
            page = pages.share(name)
            assert (page is not None) == pages.holds(name)
            if page is not None:
                held.append(page)
        elif held:
            page = held[number % len(held)]
            if move == "keep":
                pages.keep(page, name)
            else:
                held.remove(page)
                pages.release([page])
        assert pages.available == 5 - len(set(held))


# ── stop strings and chance ──────────────────────────────────────────────────────────────────────────────────────────


@given(st.text("ab\n", max_size=30), st.text("ab\n", min_size=1, max_size=4), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_nothing_of_a_stop_string_is_passed_on_however_text_is_cut(text: str, stop: str, size: int) -> None:
    until = Until([stop])
    passed = "".join(until.read(text[at : at + size]) for at in range(0, len(text), size))
    assert until.found == (stop in text)
    assert passed + until.end() == text.split(stop)[0]


def test_a_seed_decides_what_chance_brings_and_cold_is_the_likeliest() -> None:
    logits = np.random.default_rng(3).normal(size=50).astype(np.float32)

    def drawn(seed: int, **how: float) -> list[int]:
        chance = np.random.default_rng(seed)
        return [choose(logits, Choice(**how), chance) for _ in range(200)]  # type: ignore[arg-type]

    assert drawn(1) == drawn(1) != drawn(2)
    assert set(drawn(1, temperature=0.0)) == {int(logits.argmax())} == set(drawn(1, temperature=0.01))
    assert set(drawn(1, top_p=1e-6)) == {int(logits.argmax())}
    likely = set(np.argsort(-logits)[: len(set(drawn(5, top_p=0.5)))].tolist())
    assert set(drawn(5, top_p=0.5)) <= likely, "the nucleus holds the likeliest"
    share = np.bincount(drawn(7), minlength=50)[logits.argmax()] / 200
    assert abs(share - float(np.exp(logits.max()) / np.exp(logits.astype(np.float64)).sum())) < 0.08

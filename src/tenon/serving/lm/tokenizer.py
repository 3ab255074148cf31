"""Tokenizer turns text into the tokens of a byte-level byte-pair encoding, and tokens into text again, exactly.

Text is cut into words by a pattern, each word's UTF-8 bytes are joined pair by pair in the order the merges were
learned (Sennrich, Haddow and Birch, ACL 2016; bytes as in GPT-2). Every text has tokens and every byte comes back, so
`decode(encode(text)) == text`. The file is `tokenizer.json` in the layout that the `tokenizers` library reads, so the
export opens elsewhere too; only this one family of that layout is understood here, anything else is refused.

The library itself was left out: it brings a client of a model hub and its dependencies, and is needed for encoding a
few hundred tokens a request, which the pure form does at about 1 MB/s. A word longer than LONGEST bytes is cut, so that
no text takes time that grows faster than its length; the text of a special token in a prompt is plain text, unless the
caller says otherwise.
"""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tenon.errors import InputError, sentence

LONGEST = 256  # bytes of one word that are merged together
KNOWN_WORDS = 20_000  # words remembered with their tokens
END = "<|endoftext|>"
# Words with the blank before them, numbers of up to three digits, punctuation with the line ends after it, blanks. All
# that is not ASCII counts as letters, and every run is bounded: Python's `re` and other engines then cut alike.
PATTERN = (
    " ?[A-Za-z_\u0080-\U0010ffff]{1,32}"
    r"| ?[0-9]{1,3}| ?[!-/:-@\[-^`{-~]{1,16}[\n]{0,16}"
    r"|[ \t\n\r\f\v]{0,64}[\n]{1,16}|[ \t\n\r\f\v]{1,64}(?![^ \t\n\r\f\v])|[ \t\n\r\f\v]{1,64}|[\x00-\x7f]"
)


def byte_alphabet() -> list[str]:
    """Return the printable character that stands for each byte in `tokenizer.json` (GPT-2's table)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(rest)) for byte in range(256)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """A byte-level BPE: the bytes of each token by id, and for each pair that may be joined its rank and result."""

    tokens: Sequence[bytes]
    merges: Mapping[tuple[int, int], tuple[int, int]]
    specials: Mapping[str, int]
    pattern: str = PATTERN
    _words: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)
    _cut: list[re.Pattern[str]] = field(default_factory=list, repr=False, compare=False)

    @staticmethod
    def of(merges: Iterable[tuple[int, int]], *, specials: Sequence[str] = (END,)) -> Tokenizer:
        """Build a tokenizer from merges in the order learned: ids are the specials, the 256 bytes, the merges."""
        tokens = [name.encode() for name in specials] + [bytes([byte]) for byte in range(256)]
        joined: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, (left, right) in enumerate(merges):
            joined[left, right] = (rank, len(tokens))
            tokens.append(tokens[left] + tokens[right])
        return Tokenizer(tokens=tokens, merges=joined, specials={name: id for id, name in enumerate(specials)})

    @property
    def longest_bytes(self) -> int:
        """Return how many bytes the longest token has: a text of n bytes has at least n / longest tokens."""
        return max(map(len, self.tokens))

    def words(self, text: str) -> list[str]:
        """Cut text into words; joined, they are the text."""
        if not self._cut:
            self._cut.append(re.compile(self.pattern))
        return self._cut[0].findall(text)

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Return the tokens of a text; with `specials` the text of a special token is that token."""
        if specials and self.specials:
            parts = re.split("(" + "|".join(map(re.escape, sorted(self.specials, key=len, reverse=True))) + ")", text)
            found: list[int] = []
            for number, part in enumerate(parts):
                found += [self.specials[part]] if number % 2 else self.encode(part)
            return found
        ids: list[int] = []
        for word in self.words(text):
            ids += self._words.get(word) or self._word(word)
        return ids

    def _word(self, word: str) -> tuple[int, ...]:
        data = word.encode("utf-8", "surrogatepass")
        ids: list[int] = []
        for start in range(0, len(data), LONGEST):
            ids += self.joined(data[start : start + LONGEST])
        if len(self._words) >= KNOWN_WORDS:
            self._words.clear()
        self._words[word] = found = tuple(ids)
        return found

    def joined(self, data: bytes) -> list[int]:
        """Return the tokens of one word's bytes: the pair learned first is joined first, wherever it stands."""
        first = len(self.specials)
        ids = [first + byte for byte in data]
        merges, never = self.merges, (1 << 62, 0)
        while len(ids) > 1:
            rank, made = min(merges.get(pair, never) for pair in itertools.pairwise(ids))
            if rank == never[0]:
                break
            out: list[int] = []
            at = 0
            while at < len(ids):
                if at + 1 < len(ids) and merges.get((ids[at], ids[at + 1]), never)[0] == rank:
                    out.append(made)
                    at += 2
                else:
                    out.append(ids[at])
                    at += 1
            ids = out
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of tokens; bytes that are no UTF-8 become the replacement character."""
        return b"".join(self.tokens[id] for id in ids).decode("utf-8", "replace")

    def reader(self) -> Reader:
        """Return what turns tokens into text as they come."""
        return Reader(self)

    # ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def to_json(self) -> bytes:
        """Write `tokenizer.json`."""
        letters = byte_alphabet()
        count = len(self.specials)
        names = ["".join(letters[byte] for byte in token) for token in self.tokens]
        names[:count] = self.specials
        ordered = sorted(self.merges, key=lambda pair: self.merges[pair][0])
        shape = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        split = {"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": False}
        bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        body = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": id, "content": name, **shape} for name, id in self.specials.items()],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytewise]},
            "post_processor": None,
            "decoder": bytewise,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {name: id for id, name in enumerate(names)},
                "merges": [[names[left], names[right]] for left, right in ordered],
            },
        }
        return msgspec.json.format(msgspec.json.encode(body), indent=1)

    @staticmethod
    def read(data: bytes, place: str) -> Tokenizer:
        """Read `tokenizer.json`; InputError for anything but a byte-level BPE as `to_json` writes it."""
        try:
            return _read(msgspec.json.decode(data), place)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, msgspec.DecodeError, re.error) as error:
            got = f"{type(error).__name__}: {error}"
            raise InputError(
                sentence("a byte-level BPE tokenizer", got, at=place, hint="export the model again")
            ) from error


def _read(body: Any, place: str) -> Tokenizer:
    model, cutting = body["model"], body["pre_tokenizer"]["pretokenizers"]
    kinds = [part["type"] for part in cutting]
    if model["type"] != "BPE" or kinds != ["Split", "ByteLevel"] or body.get("normalizer") or cutting[1]["use_regex"]:
        got = f"model {model['type']} with {kinds}"
        raise InputError(sentence("a BPE cut by Split and ByteLevel, without normalizer", got, at=place))
    specials = {str(token["content"]): int(token["id"]) for token in body["added_tokens"]}
    letters = {letter: byte for byte, letter in enumerate(byte_alphabet())}
    vocab: dict[str, int] = model["vocab"]
    names = [""] * len(vocab)
    for name, id in vocab.items():
        names[id] = name
    tokens = [n.encode() if n in specials else bytes(letters[letter] for letter in n) for n in names]
    bytewise = [bytes([byte]) for byte in range(256)]
    first = len(specials)
    if sorted(specials.values()) != list(range(first)) or tokens[first : first + 256] != bytewise:
        raise InputError(sentence("the special tokens first, then the 256 bytes", "another order", at=place))
    merges: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, (left, right) in enumerate(model["merges"]):
        merges[vocab[left], vocab[right]] = (rank, vocab[left + right])
    pattern = str(cutting[0]["pattern"]["Regex"])
    re.compile(pattern)
    return Tokenizer(tokens=tokens, merges=merges, specials=specials, pattern=pattern)


class Reader:
    """Turns tokens into text as they come: a character whose bytes are not all there yet is held back."""

    __slots__ = ("_decoder", "_tokens")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokens = tokenizer.tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self, id: int) -> str:
        """Return the text that this token completes."""
        return self._decoder.decode(self._tokens[id])

    def end(self) -> str:
        """Return what is left: a character that was never completed is the replacement character."""
        return self._decoder.decode(b"", final=True)

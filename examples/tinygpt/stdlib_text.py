"""The text that TinyGPT learns from: the source files of Python's standard library, as tokens.

The list of files is sorted; the SHA-256 of a file's path decides whether it trains the model or judges it. A byte-pair
encoding is learned on the training files alone, and everything is kept, under the digest of all that it was made of,
so that a second run reads it in a moment.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import os
import platform
import shutil
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tenon.errors import InputError, sentence
from tenon.serving.lm.tokenizer import Tokenizer

Tokens = NDArray[np.uint16]

# Tests, tables of encodings and the manual as one string are no library code, and not there everywhere.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}


def sources() -> list[tuple[str, str]]:
    """Return (path, text) of the standard library's files that are UTF-8, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if LEFT_OUT.isdisjoint(name.parts) and not name.parts[0].startswith(("config-", "_sysconfigdata")):
            try:
                found.append((name.as_posix(), path.read_bytes().decode("utf-8")))
            except (UnicodeDecodeError, OSError):
                continue
    if len(found) < 100:
        got = f"{len(found)} files in {root}"
        raise InputError(sentence("the source files of Python's standard library", got, hint="use another Python"))
    return found


def held_out(name: str) -> bool:
    """Say whether a file judges the model and never trains it: one in sixteen, by the digest of its path."""
    return hashlib.sha256(name.encode()).digest()[0] < 256 // 16


def learn_merges(words: Counter[str], count: int) -> list[tuple[int, int]]:
    """Learn the merges of a byte-pair encoding: again and again, join the commonest pair (ties: the smallest ids).

    Only words that hold the pair are touched, and a heap with outdated entries says which pair comes next: seconds for
    70,000 different words, where counting all pairs for each merge would take an hour.
    """
    spelled = [([1 + byte for byte in word.encode()], n) for word, n in sorted(words.items()) if n > 1]
    pairs: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for number, (ids, n) in enumerate(spelled):
        for pair in itertools.pairwise(ids):
            pairs[pair] += n
            where[pair].add(number)
    heap = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(heap)
    merges: list[tuple[int, int]] = []
    while heap and len(merges) < count:
        n, best = heapq.heappop(heap)
        if pairs[best] != -n:
            continue  # outdated: the pair was pushed again with the count it has now
        made = 257 + len(merges)
        merges.append(best)
        touched = set()
        for number in where.pop(best):
            ids, n = spelled[number]
            joined = _join(ids, best, made)
            spelled[number] = (joined, n)
            for pair in itertools.pairwise(ids):
                pairs[pair] -= n
                touched.add(pair)
            for pair in itertools.pairwise(joined):
                pairs[pair] += n
                where[pair].add(number)
                touched.add(pair)
        for pair in touched:
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
    return merges


def _join(ids: list[int], pair: tuple[int, int], made: int) -> list[int]:
    out: list[int] = []
    for id in ids:
        if out and out[-1] == pair[0] and id == pair[1]:
            out[-1] = made
        else:
            out.append(id)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The text as tokens: what trains, what judges, how many bytes the latter stands for, and the tokenizer."""

    train: Tokens
    valid: Tokens
    valid_bytes: int
    files: int
    tokenizer: Tokenizer


def corpus(home: Path, vocab: int, every: int = 1) -> Corpus:
    """Return the corpus (of every so-manieth file), from its cache when this Python's files have not changed."""
    texts = sources()[::every]
    made_of = hashlib.sha256(f"1 {vocab} {platform.python_version()}".encode())
    for name, text in texts:
        made_of.update(f"{name}\0{len(text)}\0".encode() + hashlib.sha256(text.encode()).digest())
    folder = home / "corpus" / made_of.hexdigest()[:12]
    if not folder.exists():
        _prepare(texts, folder, vocab)
    about = json.loads((folder / "about.json").read_text("utf-8"))
    return Corpus(
        train=np.load(folder / "train.npy"),
        valid=np.load(folder / "valid.npy"),
        valid_bytes=about["valid_bytes"],
        files=about["files"],
        tokenizer=Tokenizer.read((folder / "tokenizer.json").read_bytes(), str(folder / "tokenizer.json")),
    )


def _prepare(texts: Sequence[tuple[str, str]], folder: Path, vocab: int) -> None:
    """Learn the encoding on the training files and write all files as tokens, beside, then renamed."""
    cut = Tokenizer.of([])
    words: Counter[str] = Counter()
    for name, text in texts:
        if not held_out(name):
            words.update(cut.words(text))
    tokenizer = Tokenizer.of(learn_merges(words, vocab - len(cut.tokens)))
    end = list(tokenizer.specials.values())
    parts: dict[bool, list[int]] = {True: [*end], False: [*end]}  # each file stands between two ends
    for name, text in texts:
        parts[held_out(name)] += [*tokenizer.encode(text), *end]
    beside = folder.with_name(f"{folder.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    np.save(beside / "train.npy", np.array(parts[False], np.uint16))
    np.save(beside / "valid.npy", np.array(parts[True], np.uint16))
    (beside / "tokenizer.json").write_bytes(tokenizer.to_json())
    size = sum(len(text.encode()) for name, text in texts if held_out(name))
    (beside / "about.json").write_text(json.dumps({"valid_bytes": size, "files": len(texts)}), "utf-8")
    try:
        beside.rename(folder)
    except OSError:  # another process was quicker, with the same bytes
        shutil.rmtree(beside)

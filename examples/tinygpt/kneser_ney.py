"""The model to beat: an interpolated Kneser-Ney n-gram, counted with NumPy.

One discount for each order, from how many n-grams were seen once and twice (Chen and Goodman, Computer Speech &
Language 13, 1999). An n-gram is one number with a digit for each token, so that counting is sorting: a 5-gram of three
million tokens takes seconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.uint16]


def ngram_loss(train: Tokens, valid: Tokens, vocab: int, order: int = 5) -> float:
    """Return the mean loss (nats a token) of an interpolated Kneser-Ney n-gram on `valid`, without its first token.

    The highest order counts how often, lower ones after how many different words an n-gram was seen. An n-gram is one
    number of `order` digits to the base `vocab`, so that counting is sorting.
    """
    assert vocab**order < 2**63, (vocab, order)
    distinct = _codes(train, order, vocab)
    codes, counts = np.unique(distinct, return_counts=True)
    tables = [(codes, counts)]
    for size in range(order - 1, 0, -1):
        distinct = tables[0][0] % vocab**size  # the words before are dropped, each different n-gram stays once
        codes, counts = np.unique(distinct, return_counts=True)
        tables.insert(0, (codes, counts))
    found = np.full(len(valid) - 1, 1.0 / vocab)
    for size, (codes, counts) in enumerate(tables, 1):
        # Near the beginning, where `size` tokens do not exist yet, the lower order's probability stands.
        asked = _codes(valid, size, vocab)[1 if size == 1 else 0 :]
        lower = found[max(size - 2, 0) :]
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once else 0.5
        contexts, starts = np.unique(codes // vocab, return_index=True)
        total = np.add.reduceat(counts, starts)
        kinds = np.diff([*starts, len(codes)])
        seen = _look_up(codes, counts, asked)
        context_total, context_kinds = (_look_up(contexts, values, asked // vocab) for values in (total, kinds))
        known = context_total > 0
        above = np.maximum(seen - discount, 0.0) + discount * context_kinds * lower
        found[max(size - 2, 0) :] = np.where(known, above / np.maximum(context_total, 1), lower)
    return float(-np.log(found).mean())


def _codes(tokens: Tokens, size: int, vocab: int) -> NDArray[np.int64]:
    code = np.zeros(len(tokens) - size + 1, np.int64)
    for at in range(size):
        code = code * vocab + tokens[at : len(tokens) - size + 1 + at]
    return code


def _look_up(keys: NDArray[np.int64], values: NDArray[Any], asked: NDArray[np.int64]) -> NDArray[np.int64]:
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)

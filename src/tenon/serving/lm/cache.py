"""Pages is who holds which page of the key-value cache, and which pages hold which beginning of which text.

A page holds the keys and values of PAGE tokens. Full pages are named by a chain of hashes: the name of a page is made
of the name of the page before and of its own tokens, so that equal names mean equal beginnings (the scheme of vLLM's
automatic prefix caching). A page that nobody uses keeps its content until its room is needed; the one unused for the
longest goes first, and of one text the end goes before the beginning, because releasing goes from the end.

Plain Python, no tensors: the engine's thread is the only one that changes it, anybody may read its counts.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

PAGE = 32  # tokens of a page: also how finely prompts can share, and the step of the attention's sums
NAME_BYTES = 16


def named(before: bytes, tokens: Sequence[int]) -> bytes:
    """Name a full page by the page before it and its tokens."""
    return hashlib.blake2b(array("i", tokens).tobytes(), key=before, digest_size=NAME_BYTES).digest()


def names(root: bytes, tokens: Sequence[int]) -> Iterable[bytes]:
    """Yield the names of the full pages of a text."""
    before = root
    for end in range(PAGE, len(tokens) + 1, PAGE):
        before = named(before, tokens[end - PAGE : end])
        yield before


class Pages:
    """A fixed number of pages: free, in use (by one or more texts), or idle with something worth keeping."""

    __slots__ = ("_free", "_idle", "_name", "_page", "_uses", "count", "evicted")

    def __init__(self, count: int) -> None:
        self.count = count
        self.evicted = 0
        self._free = list(range(count - 1, -1, -1))
        self._uses = [0] * count
        self._idle: OrderedDict[int, None] = OrderedDict()  # longest unused first
        self._page: dict[bytes, int] = {}
        self._name: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        """Return how many pages can be taken now."""
        return len(self._free) + len(self._idle)

    @property
    def kept(self) -> int:
        """Return how many pages hold a beginning that can be shared."""
        return len(self._page)

    def holds(self, name: bytes) -> bool:
        """Say whether a page of that name is here."""
        return name in self._page

    def take(self) -> int | None:
        """Return a page to write into, forgetting the longest unused if it must; None when all are in use."""
        if self._free:
            page = self._free.pop()
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            del self._page[self._name.pop(page)]
            self.evicted += 1
        else:
            return None
        self._uses[page] = 1
        return page

    def share(self, name: bytes) -> int | None:
        """Return the page of that name, in use once more; None when it is not here."""
        page = self._page.get(name)
        if page is not None:
            self._idle.pop(page, None)
            self._uses[page] += 1
        return page

    def keep(self, page: int, name: bytes) -> None:
        """Name a page that is full now, so that others can share it; the first of a name is the one that is shared."""
        if name not in self._page and page not in self._name:
            self._page[name] = page
            self._name[page] = name

    def release(self, pages: Iterable[int]) -> None:
        """Stop using pages; give them from the end of the text to its beginning."""
        for page in pages:
            self._uses[page] -= 1
            assert self._uses[page] >= 0, page
            if self._uses[page] == 0:
                if page in self._name:
                    self._idle[page] = None
                else:
                    self._free.append(page)

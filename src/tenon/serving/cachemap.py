"""CacheMap is what the router believes: which replica holds which blocks of work, in bounded memory.

A block is a 64-bit key that stands for work a replica need not do again: so many tokens of a prompt together with all
before them, the state of a session, a feature key, loaded weights. `match` walks the blocks of a request once and
says how deep each replica holds them; replicas are bits of one integer for each block, so that the walk costs one
look-up a block, however many replicas there are.

Each replica's blocks are kept in the order of their last use and leave in that order when they exceed its capacity:
the belief imitates a cache that nobody lets us look into. It can be wrong (evictions by other traffic, a restart), so
what a replica says it had cached corrects it, and corrects the capacity where nobody declared one: a block that was
gone means a smaller cache than believed, a block that was there though forgotten means a larger one.

Rejected: a tree of prefixes (a node is an object; a million of them take four times the memory) and OrderedDict for the
order of use (twice a dict's memory; the first keys of a dict are cheap to find when they are removed in batches).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import islice

LEARN = 0.05  # how much one contradiction moves a capacity that is not declared
FIRST_CAPACITY = 32_768  # blocks, until a replica's answers say otherwise
LEAST_CAPACITY = 16
BATCHES = 1_024  # a full replica forgets so small a part of its blocks at once: finding the first keys costs a walk
NEVER = float("inf")


class CacheMap:
    """Which replica holds which blocks; replicas are small numbers, counted from 0."""

    __slots__ = ("_capacity", "_declared", "_every", "_held", "_recent", "limit", "oldest")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.oldest: list[float] = []  # when the block that would leave next was last used; NEVER while there is room
        self._held: dict[int, int] = {}  # block -> the replicas that hold it, as bits
        self._recent: list[dict[int, float]] = []  # block -> when it was last used, longest unused first
        self._capacity: list[float] = []
        self._declared: list[bool] = []
        self._every = 0

    def __len__(self) -> int:
        """Return how many blocks are remembered; one held by two replicas counts twice."""
        return sum(map(len, self._recent))

    def add(self, capacity: int = 0) -> int:
        """Take in one more replica, with the blocks its cache holds if that is known; returns its number."""
        self._recent.append({})
        self._capacity.append(float(capacity or FIRST_CAPACITY))
        self._declared.append(capacity > 0)
        self.oldest.append(NEVER)
        self._every |= 1 << (len(self._recent) - 1)
        return len(self._recent) - 1

    def renew(self, replica: int, capacity: int = 0) -> None:
        """Give the number of a replica that is gone to another, whose cache is empty."""
        self.clear(replica)
        self._capacity[replica] = float(capacity or FIRST_CAPACITY)
        self._declared[replica] = capacity > 0

    def guess(self, replica: int, capacity: int) -> None:
        """Begin with this capacity, which answers may correct, unless one was declared."""
        if not self._declared[replica]:
            self._capacity[replica] = min(max(float(capacity), float(LEAST_CAPACITY)), float(self.limit))

    def capacity(self, replica: int) -> int:
        """Return the blocks the replica is believed to hold at most, declared or learnt, within its share of ours."""
        return max(1, min(int(self._capacity[replica]), self.limit // len(self._recent)))

    def full(self, replica: int) -> bool:
        """Say whether the replica has begun to drop what it held."""
        return self.oldest[replica] < NEVER

    def count(self, replica: int) -> int:
        """Return how many blocks the replica is believed to hold now."""
        return len(self._recent[replica])

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def match(self, blocks: Sequence[int]) -> list[tuple[int, int]]:
        """Return ``(depth, replicas as bits)``, shallowest first: how many leading blocks each replica holds."""
        held = self._held
        alive = self._every
        found: list[tuple[int, int]] = []
        depth = 0
        for block in blocks:
            here = alive & held.get(block, 0)
            if here != alive:
                found.append((depth, alive & ~here))
                if not here:
                    return found
                alive = here
            depth += 1
        found.append((depth, alive))
        return found

    def depth(self, replica: int, blocks: Sequence[int]) -> int:
        """Return how many leading blocks one replica holds."""
        recent = self._recent[replica]
        return next((depth for depth, block in enumerate(blocks) if block not in recent), len(blocks))

    # ── learning ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def touch(self, replica: int, blocks: Iterable[int], now: float) -> None:
        """Believe that the replica holds these blocks and used them last; what no longer fits is forgotten."""
        recent, held, bit = self._recent[replica], self._held, 1 << replica
        for block in blocks:
            if block in recent:
                del recent[block]
            else:
                held[block] = held.get(block, 0) | bit
            recent[block] = now
        over = len(recent) - self.capacity(replica)
        if over > len(recent) // BATCHES:
            self._forget(replica, list(islice(recent, over)))
            self.oldest[replica] = next(iter(recent.values()), NEVER)

    def correct(self, replica: int, blocks: Sequence[int], believed: int, found: int) -> None:
        """Hear how many leading blocks the replica really had, and move a learnt capacity towards what that means.

        The blocks themselves are there now: whoever asked has just had them computed.
        """
        # One block more or less says nothing: what is cached ends at a page, and tokens are not bytes.
        if abs(found - believed) > 1 and not self._declared[replica] and max(found, believed) <= len(blocks):
            moved = self._capacity[replica] * (1 + LEARN if found > believed else 1 - LEARN)
            self._capacity[replica] = min(max(moved, float(LEAST_CAPACITY)), float(self.limit))

    def clear(self, replica: int) -> None:
        """Believe that the replica holds nothing: it died, or began anew."""
        self._forget(replica, list(self._recent[replica]))
        self._recent[replica] = {}  # a dict keeps the room of what was deleted
        self.oldest[replica] = NEVER

    def _forget(self, replica: int, blocks: Iterable[int]) -> None:
        recent, held, bit = self._recent[replica], self._held, 1 << replica
        for block in blocks:
            del recent[block]
            left = held[block] & ~bit
            if left:
                held[block] = left
            else:
                del held[block]

    # ── what survives a restart ──────────────────────────────────────────────────────────────────────────────────────

    def keep(self, replica: int) -> tuple[int, bytes]:
        """Return the learnt capacity (0 where it was declared) and the blocks, longest unused first, as int64."""
        capacity = 0 if self._declared[replica] else int(self._capacity[replica])
        return capacity, array("q", self._recent[replica]).tobytes()

    def restore(self, replica: int, capacity: int, blocks: bytes, now: float) -> None:
        """Take back what `keep` returned."""
        if capacity and not self._declared[replica]:
            self._capacity[replica] = min(max(float(capacity), float(LEAST_CAPACITY)), float(self.limit))
        found = array("q")
        found.frombytes(blocks[: len(blocks) // 8 * 8])
        self.touch(replica, found, now)

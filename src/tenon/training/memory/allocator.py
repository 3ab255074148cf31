"""PyTorch's CUDA caching allocator, as arithmetic: what is reserved when a sequence of allocations is replayed.

Constants and rules are those of PyTorch 2.13: c10/core/AllocatorConfig.h (kMinBlockSize 512, kSmallSize 1 MiB,
kSmallBuffer 2 MiB, kMinLargeAlloc 10 MiB, kRoundLarge 2 MiB, large segments of 20 MiB) and the functions `round_size`,
`get_pool`, `get_allocation_size`, `get_free_block`, `should_split`, `alloc_found_block`, `try_merge_blocks`,
`release_cached_blocks` and `try_allocate_expandable_block` of c10/cuda/CUDACachingAllocator.cpp, written anew:

- a request is rounded up to 512 bytes (or by `roundup_power2_divisions`); up to 1 MiB it is small;
- a pool (small, large; one of each for every stream) gives its smallest free block that is large enough, the lowest
  address among equals;
- without one a segment is taken from the device: 2 MiB for small, 20 MiB below 10 MiB, else the size rounded to 2 MiB;
- what remains of a block is split off from 512 bytes on when small, and when more than 1 MiB when large;
- a freed block merges with free neighbours of its segment;
- when the device has no more, free segments that are not split are given back and the request is tried once more;
- expandable segments grow in pages of 2 or 20 MiB at their end instead, and give back whole free pages.

Streams do not wait for each other here: a block is free at once for its own stream. CUDA graphs, private pools and
garbage collection by age are not modelled. A list of free blocks sorted by size costs a bisection for each request;
with the few hundred free blocks of a training step that is quicker than a tree in Python.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

MIN_BLOCK = 512
SMALL_SIZE = 1024**2
SMALL_BUFFER = 2 * 1024**2
LARGE_BUFFER = 20 * 1024**2
MIN_LARGE = 10 * 1024**2
ROUND_LARGE = 2 * 1024**2
UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of PYTORCH_CUDA_ALLOC_CONF that change what is reserved."""

    expandable: bool = False
    max_split_bytes: int = UNLIMITED
    non_split_rounding_bytes: int = LARGE_BUFFER
    roundup_divisions: int = 0  # 0 or 1: to 512 bytes; 4: to a quarter of the power of two below
    capacity_bytes: int = UNLIMITED


@dataclass(slots=True, eq=False)
class _Block:
    """A piece of a segment; neighbours are linked so that free ones can merge."""

    at: int
    size: int
    pool: _Pool
    used: bool = False
    before: _Block | None = None
    after: _Block | None = None

    @property
    def key(self) -> tuple[int, int]:
        return (self.size, self.at)

    @property
    def split(self) -> bool:
        return self.before is not None or self.after is not None


@dataclass(slots=True, eq=False)
class _Pool:
    """The free blocks of one stream and size class, by size and address, and where its expandable segment ends."""

    small: bool
    keys: list[tuple[int, int]] = field(default_factory=list)
    blocks: dict[int, _Block] = field(default_factory=dict)
    last: _Block | None = None  # of the expandable segment; None where segments do not expand

    def put(self, block: _Block) -> None:
        insort(self.keys, block.key)
        self.blocks[block.at] = block

    def take(self, block: _Block) -> _Block:
        del self.keys[bisect_left(self.keys, block.key)]
        return self.blocks.pop(block.at)

    def best(self, size: int) -> _Block | None:
        """Return the smallest free block of at least `size`, the lowest address among equals.

        The end of an expandable segment counts as larger than any other: it can grow.
        """
        at = bisect_left(self.keys, (size, -1))
        if at < len(self.keys) - 1 and self.blocks[self.keys[at][1]] is self.last:
            at += 1
        return self.blocks[self.keys[at][1]] if at < len(self.keys) else None


class Allocator:
    """One device's allocator: `malloc` and `free` by the caller's own names; peaks are kept as they are reached."""

    __slots__ = ("_address", "_live", "_pools", "allocated", "peak_allocated", "peak_reserved", "reserved", "settings")

    def __init__(self, settings: Settings = Settings()) -> None:
        self.settings = settings
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self._address = 0
        self._live: dict[int, _Block] = {}
        self._pools: dict[tuple[int, bool], _Pool] = {}

    def malloc(self, name: int, size: int, stream: int = 0) -> None:
        """Allocate `size` bytes under `name`; MemoryError when the device has no room, cached segments given back."""
        if size <= 0:
            return  # PyTorch gives no block to an empty tensor
        rounded = self.rounded(size)
        small = rounded <= SMALL_SIZE
        pool = self._pools.setdefault((stream, small), _Pool(small))
        block = self._cached(pool, rounded) or self._fresh(pool, rounded)
        rest = block.size - rounded
        if self._splits(pool, rounded, rest):
            remaining = _Block(block.at + rounded, rest, pool, before=block, after=block.after)
            if block.after is not None:
                block.after.before = remaining
            elif pool.last is block:
                pool.last = remaining
            block.after, block.size = remaining, rounded
            pool.put(remaining)
        block.used = True
        self._live[name] = block
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)

    def free(self, name: int) -> None:
        """Free what was allocated under `name`; a name without a block is an empty tensor's."""
        block = self._live.pop(name, None)
        if block is None:
            return
        self.allocated -= block.size
        block.used = False
        pool = block.pool
        before, after = block.before, block.after
        if before is not None and not before.used:
            pool.take(before)
            block.at, block.size, block.before = before.at, block.size + before.size, before.before
            if block.before is not None:
                block.before.after = block
        if after is not None and not after.used:
            pool.take(after)
            block.size, block.after = block.size + after.size, after.after
            if block.after is not None:
                block.after.before = block
            elif pool.last is after:
                pool.last = block
        pool.put(block)

    def empty_cache(self) -> int:
        """Give back every free segment that is not split (and free pages at the end of expandable ones)."""
        given = 0
        for pool in self._pools.values():
            for block in list(pool.blocks.values()):
                if self.settings.expandable:
                    given += self._unmap(pool, block)
                elif not block.split:
                    pool.take(block)
                    given += block.size
        self.reserved -= given
        return given

    def rounded(self, size: int) -> int:
        """Return the size of the block that a request of `size` bytes gets."""
        divisions = self.settings.roundup_divisions
        if size < MIN_BLOCK:
            return MIN_BLOCK
        if divisions > 1 and size > MIN_BLOCK * divisions:
            floor = 1 << (size.bit_length() - 1)
            if floor == size:
                return size
            step = floor // divisions
            return -(-size // step) * step
        return -(-size // MIN_BLOCK) * MIN_BLOCK

    # ── where a block comes from ─────────────────────────────────────────────────────────────────────────────────────

    def _cached(self, pool: _Pool, size: int) -> _Block | None:
        block = pool.best(size)
        if block is None:
            return None
        most = self.settings.max_split_bytes
        if size < most <= block.size:
            return None  # an oversize block serves oversize requests only
        if size >= most and block.size >= size + self.settings.non_split_rounding_bytes:
            return None
        return pool.take(block)

    def _fresh(self, pool: _Pool, size: int) -> _Block:
        """Take a segment from the device, after giving back what is cached if there is no room."""
        for again in (False, True):
            needed = self._growth(pool, size)
            if self.reserved + needed <= self.settings.capacity_bytes:
                break
            if again or not self.empty_cache():
                raise MemoryError(f"{size} asked, {self.allocated} allocated, {self.reserved} reserved")
        self.reserved += needed
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        if self.settings.expandable:
            return self._grow(pool, needed)
        block = _Block(self._address, needed, pool)
        self._address += needed
        return block

    def _growth(self, pool: _Pool, size: int) -> int:
        """Return how many bytes must be taken from the device for a request of `size`."""
        if not self.settings.expandable:
            return segment_bytes(size)
        last = pool.last
        missing = size - (last.size if last is not None and not last.used else 0)
        page = SMALL_BUFFER if pool.small else LARGE_BUFFER
        return -(-missing // page) * page

    def _grow(self, pool: _Pool, needed: int) -> _Block:
        """Extend the pool's one segment at its end; a free block there becomes larger."""
        last = pool.last
        if last is not None and not last.used:
            pool.take(last)
            last.size += needed
            return last
        block = _Block(0 if last is None else last.at + last.size, needed, pool, before=last)
        if last is not None:
            last.after = block
        pool.last = block
        return block

    def _unmap(self, pool: _Pool, block: _Block) -> int:
        """Give back the whole pages of a free block at the end of an expandable segment.

        PyTorch gives back whole free pages in the middle too; keeping them errs on the side of too much.
        """
        page = SMALL_BUFFER if pool.small else LARGE_BUFFER
        given = block.size // page * page
        if block is not pool.last or not given:
            return 0
        pool.take(block)
        block.size -= given
        if block.size:
            pool.put(block)
        else:
            pool.last = block.before
            if block.before is not None:
                block.before.after = None
        return given

    def _splits(self, pool: _Pool, size: int, rest: int) -> bool:
        if pool.small or self.settings.expandable:
            return rest >= MIN_BLOCK
        return size < self.settings.max_split_bytes and rest > SMALL_SIZE


def segment_bytes(size: int) -> int:
    """Return the size of the segment that PyTorch asks of the device for a rounded request."""
    if size <= SMALL_SIZE:
        return SMALL_BUFFER
    if size < MIN_LARGE:
        return LARGE_BUFFER
    return -(-size // ROUND_LARGE) * ROUND_LARGE


def replay(events: Iterable[tuple[int, int]], settings: Settings = Settings()) -> Allocator:
    """Replay (name, bytes) pairs, where negative bytes free the name, and return the allocator as it stands after."""
    allocator = Allocator(settings)
    for name, size in events:
        if size < 0:
            allocator.free(name)
        else:
            allocator.malloc(name, size)
    return allocator

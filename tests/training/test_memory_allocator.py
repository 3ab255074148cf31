"""The allocator's model reserves what PyTorch's source says: sequences by hand, its own tests, invariants."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.training.memory.allocator import Allocator, Settings, replay, segment_bytes

KIB, MIB = 1024, 1024**2


def after(*events: tuple[int, int], **options: int | bool) -> Allocator:
    return replay(events, Settings(**options))  # type: ignore[arg-type]


# ── sequences by hand, from the rules in c10/cuda/CUDACachingAllocator.cpp ───────────────────────────────────────────


@pytest.mark.parametrize(
    ("asked", "allocated", "reserved"),
    [
        (0, 0, 0),
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (1 * MIB, 1 * MIB, 2 * MIB),  # the largest small one
        (1 * MIB + 1, 1 * MIB + 512, 20 * MIB),  # the smallest large one
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # from here on its own segment
        (10 * MIB + 1, 12 * MIB, 12 * MIB),  # 2 MiB less 512 bytes remain: more than 1 MiB is split off, see below
        (25 * MIB, 26 * MIB, 26 * MIB),  # 1 MiB remains, which is not more than 1 MiB: not split, all allocated
    ],
)
def test_one_request_reserves_a_segment_of_the_size_the_source_says(asked: int, allocated: int, reserved: int) -> None:
    found = after((0, asked))
    if asked == 10 * MIB + 1:
        allocated = 10 * MIB + 512  # what remains, 2 MiB - 512, was split off
    assert (found.allocated, found.reserved) == (allocated, reserved)


def test_small_requests_share_a_segment_of_two_megabytes() -> None:
    found = after(*((name, 512 * KIB) for name in range(4)))
    assert found.reserved == 2 * MIB
    found.malloc(4, 1)
    assert found.reserved == 4 * MIB


def test_requests_of_one_to_ten_megabytes_share_twenty() -> None:
    assert after((0, 9 * MIB), (1, 9 * MIB)).reserved == 20 * MIB
    assert after((0, 9 * MIB), (1, 9 * MIB), (2, 3 * MIB)).reserved == 40 * MIB


def test_a_freed_block_is_used_again_and_the_smallest_that_is_large_enough_is_taken() -> None:
    found = after((0, 40 * MIB), (1, 20 * MIB), (2, 30 * MIB), (0, -1), (2, -1), (3, 29 * MIB + 512 * KIB))
    assert found.reserved == 90 * MIB
    assert found.allocated == 20 * MIB + 30 * MIB  # in the block of 30, not split: 512 KiB remain
    found.malloc(4, 40 * MIB)
    assert found.reserved == 90 * MIB


def test_small_and_large_pools_and_streams_do_not_share() -> None:
    found = after((0, 30 * MIB), (0, -1), (1, 100))
    assert found.reserved == 32 * MIB
    found.malloc(2, 30 * MIB, stream=7)
    assert found.reserved == 62 * MIB


def test_neighbours_merge_when_freed_so_that_a_whole_segment_serves_again() -> None:
    parts = [(name, 10 * MIB - 512) for name in range(2)]
    found = after(*parts, (0, -1), (1, -1), (2, 20 * MIB))
    assert (found.reserved, found.allocated) == (20 * MIB, 20 * MIB)


def test_a_hole_too_small_for_the_next_request_is_fragmentation() -> None:
    # 9 + 9 of 20 MiB; the first 9 go, 10 do not fit into the hole although 11 are free in two pieces.
    found = after((0, 9 * MIB), (1, 9 * MIB), (0, -1), (2, 10 * MIB))
    assert (found.reserved, found.allocated) == (30 * MIB, 19 * MIB)


def test_peaks_stay_when_memory_goes() -> None:
    found = after((0, 64 * MIB), (0, -1), (1, 10))
    assert (found.peak_allocated, found.allocated) == (64 * MIB, 512)
    assert found.empty_cache() == 64 * MIB
    assert (found.reserved, found.peak_reserved) == (2 * MIB, 66 * MIB)


# ── PyTorch's own tests (test/test_cuda.py) ──────────────────────────────────────────────────────────────────────────


def test_out_of_memory_retry_as_pytorch_tests_it() -> None:
    total = 1_000 * MIB
    half = total // 2
    found = Allocator(Settings(capacity_bytes=total - 1))
    found.malloc(0, half)
    with pytest.raises(MemoryError):
        found.malloc(1, half)
    found.free(0)
    found.malloc(1, half)
    assert found.reserved == half


def test_cached_segments_are_given_back_before_memory_runs_out_and_split_ones_are_not() -> None:
    found = Allocator(Settings(capacity_bytes=100 * MIB))
    found.malloc(0, 60 * MIB)
    found.free(0)
    found.malloc(1, 80 * MIB)  # the segment of 60 is given back first
    assert found.reserved == 80 * MIB
    found.free(1)
    found.malloc(2, 30 * MIB)  # splits the segment of 80
    with pytest.raises(MemoryError):
        found.malloc(3, 60 * MIB)


def test_roundup_power2_divisions_as_pytorch_tests_them() -> None:
    assert after((0, 84 * MIB), roundup_divisions=4).allocated == 96 * MIB
    assert after((0, 84 * MIB), roundup_divisions=8).allocated == 88 * MIB
    assert Allocator(Settings(roundup_divisions=4)).rounded(1200 * KIB) == 1280 * KIB  # the documentation's example
    assert Allocator(Settings(roundup_divisions=4)).rounded(64 * MIB) == 64 * MIB


def test_oversize_blocks_are_neither_split_nor_given_to_smaller_requests() -> None:
    options = {"max_split_bytes": 40 * MIB}
    assert after((0, 100 * MIB), (0, -1), (1, 30 * MIB), **options).reserved == 130 * MIB
    assert after((0, 100 * MIB), (0, -1), (1, 90 * MIB), **options).reserved == 100 * MIB
    assert after((0, 100 * MIB), (0, -1), (1, 60 * MIB), **options).reserved == 160 * MIB


# ── expandable segments ──────────────────────────────────────────────────────────────────────────────────────────────


def test_expandable_segments_grow_in_pages_at_their_end() -> None:
    found = after((0, 25 * MIB), expandable=True)
    assert (found.reserved, found.allocated) == (40 * MIB, 25 * MIB)
    found.malloc(1, 10 * MIB)
    assert found.reserved == 40 * MIB
    found.malloc(2, 10 * MIB)  # 5 are left at the end: one page more
    assert found.reserved == 60 * MIB


def test_expandable_segments_fragment_less() -> None:
    sizes = [(11 + 2 * step) * MIB for step in range(20)]
    events = [event for step, size in enumerate(sizes) for event in ((step, size), (step, -1))]
    assert after(*events, expandable=True).peak_reserved < after(*events).peak_reserved / 5


# ── whatever the sequence ────────────────────────────────────────────────────────────────────────────────────────────

SIZES = st.one_of(st.integers(0, 4 * KIB), st.integers(0, 3 * MIB), st.integers(0, 64 * MIB))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=60), st.booleans())
def test_nothing_is_lost_and_no_two_blocks_overlap(moves: list[tuple[int, bool]], expandable: bool) -> None:
    found = Allocator(Settings(expandable=expandable))
    live: dict[int, int] = {}
    for name, (size, free) in enumerate(moves):
        if free and live:
            gone = min(live, key=lambda one: (live[one] * 7919 + one) % 101)
            found.free(gone)
            del live[gone]
        found.malloc(name, size)
        live[name] = size
        held = sum(found.rounded(size) for size in live.values() if size)
        assert held <= found.allocated <= found.reserved <= found.peak_reserved
        if not expandable:
            spans = sorted((block.at, block.at + block.size) for block in found._live.values())
            assert all(before[1] <= after[0] for before, after in pairwise(spans))
    for name in live:
        found.free(name)
    assert found.allocated == 0
    kept = 0 if not expandable else 2 * 20 * MIB
    found.empty_cache()
    assert found.reserved <= kept


@given(st.integers(1, 1 << 34))
def test_a_segment_holds_what_was_asked(size: int) -> None:
    rounded = Allocator().rounded(size)
    assert size <= rounded <= segment_bytes(rounded)
    assert rounded % 512 == 0

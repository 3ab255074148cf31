"""The most frequent values of a column of categories, with their counts: the Misra-Gries summary, mergeable.

Counts are exact while there are at most `KEEP` different values. Beyond, the largest are kept and `bound` says how much
any count may be too small, and how often a value that is not kept may have occurred at most. Two summaries merge by
adding counts and bounds and letting the smallest go (Agarwal, Cormode, Huang, Phillips, Wei, Yi, "Mergeable Summaries",
2012, without the subtraction: a lower bound of each count is what people can read).

Long texts are cut, with a checksum at the end that keeps different ones apart; the whole stays under 12 KB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

KEEP = 200
KEEP_BYTES = 10_000
LONGEST = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Values and how often each occurred, most frequent first; `bound` is what a count may lack, 0 if all are kept."""

    counts: Mapping[str, int]
    bound: int = 0

    @classmethod
    def of(cls, counts: Mapping[str, int], bound: int = 0) -> Levels:
        """Summarise exact counts; `bound` is the count of the most frequent value left out of them."""
        return _kept({_short(value): count for value, count in counts.items()}, bound)

    def merge(self, other: Levels) -> Levels:
        """Return the summary of both streams together."""
        counts = dict(self.counts)
        for value, count in other.counts.items():
            counts[value] = counts.get(value, 0) + count
        return _kept(counts, self.bound + other.bound)


def _short(value: str) -> str:
    if len(value) <= LONGEST:
        return value
    checksum = crc32(value.encode("utf-8", "surrogatepass"))
    return f"{value[: LONGEST - 10]}… {checksum:08x}"


def _kept(counts: Mapping[str, int], bound: int) -> Levels:
    """Keep the most frequent (ties by value) as long as there is room for them."""
    kept: dict[str, int] = {}
    size, lost = 0, 0
    for value, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        size += len(value.encode("utf-8", "surrogatepass")) + 6
        if len(kept) >= KEEP or size > KEEP_BYTES:
            lost = count
            break
        kept[value] = count
    return Levels(counts=kept, bound=bound + lost)

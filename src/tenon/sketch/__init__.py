"""Mergeable summaries of columns: the profile of a dataset, of a window of live traffic, of a training set.

    summary.py      a column's and a frame's profile: built in one pass, merged, written to bytes and read back
    quantiles.py    ranks of a stream of numbers in some kilobytes
    distinct.py     how many different values there were, in four
    levels.py       the most frequent categories with their counts
    difference.py   two profiles side by side: PSI, distances, what is missing and unseen; versions of a dataset

Profiles are values: merging gives a new one, and equal rows give equal bytes. What a difference means is not decided
here. Names are resolved when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenon.lazy import lazy

if TYPE_CHECKING:
    from tenon.sketch.difference import Comparison, Difference, compare, diff
    from tenon.sketch.summary import ColumnProfile, Profile, profile

_HOMES = {
    "difference": ("Comparison", "Difference", "compare", "diff"),
    "summary": ("ColumnProfile", "Profile", "profile"),
}
__all__ = ["ColumnProfile", "Comparison", "Difference", "Profile", "compare", "diff", "profile"]

__getattr__, __dir__ = lazy(__name__, _HOMES)

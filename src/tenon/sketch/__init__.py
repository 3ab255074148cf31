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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenon.sketch.difference import Comparison, Difference, compare, diff
    from tenon.sketch.summary import ColumnProfile, Profile, profile

_HOMES = {
    "ColumnProfile": "summary",
    "Comparison": "difference",
    "Difference": "difference",
    "Profile": "summary",
    "compare": "difference",
    "diff": "difference",
    "profile": "summary",
}
__all__ = ["ColumnProfile", "Comparison", "Difference", "Profile", "compare", "diff", "profile"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"tenon.sketch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tenon.sketch' has no attribute '{name}'")

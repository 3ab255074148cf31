"""Mergeable summaries of columns: the profile of a dataset or of live traffic, in kilobytes.

    summary.py   one column's summary: counts, moments, quantiles, distinct values, frequent values
    build.py     a frame's summary, built in one pass, merged, written to bytes and read back
    contrast.py  two summaries side by side: PSI, Kolmogorov-Smirnov, total variation, what is missing and unseen

Names are resolved when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenon.sketch.build import Profile, profile
    from tenon.sketch.contrast import Comparison, Difference, compare, diff
    from tenon.sketch.summary import ColumnProfile

_HOMES = {
    "ColumnProfile": "summary",
    "Comparison": "contrast",
    "Difference": "contrast",
    "Profile": "build",
    "compare": "contrast",
    "diff": "contrast",
    "profile": "build",
}

__all__ = ["ColumnProfile", "Comparison", "Difference", "Profile", "compare", "diff", "profile"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"tenon.sketch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tenon.sketch' has no attribute '{name}'")

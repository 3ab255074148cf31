"""What a run's metrics came to: the last value, the lowest and highest, and how many points were no numbers.

The journal counts while it writes, so that lists and searches over thousands of runs need not read millions of points.
Calls that gave the same metrics are counted together, in arrays: ten thousand names cost a flush no more than ten. The
last value is that of the highest step, and among equals the one logged last. It is None where it is no finite number,
which `not_finite` tells; lowest and highest are of finite values.

Also here: `curves_tally`, the same counts made from curves, for runs that are still at work or older than the counting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TABLES, POINTS = 64, 4_096  # put aside at most
NAMES = 500  # metrics that a record holds the final values of; the others have only their curves


class Tally:
    """Counts of everything logged so far; `add` takes a table of values, `to_dict` gives the counts by metric."""

    __slots__ = ("_groups", "_points", "_tables", "_waiting")

    def __init__(self) -> None:
        self._groups: dict[tuple[str, ...], dict[str, NDArray[Any]]] = {}
        self._waiting: dict[tuple[str, ...], list[tuple[NDArray[Any], NDArray[np.float64]]]] = {}
        self._tables = self._points = 0  # that wait

    def add(self, names: Sequence[str], steps: NDArray[Any], values: NDArray[np.float64]) -> None:
        """Count values_NK at steps_N of K metrics; few are put aside, because counting few takes as long as many."""
        if not len(steps):
            return
        self._waiting.setdefault(tuple(names), []).append((steps, values))
        self._tables += 1
        self._points += values.size
        if self._tables >= TABLES or self._points >= POINTS:
            self._settle()

    def _settle(self) -> None:
        """Count all that was put aside."""
        waiting, self._waiting = self._waiting, {}
        self._tables = self._points = 0
        for names, parts in waiting.items():
            self._count(names, parts)

    def _count(self, names: tuple[str, ...], parts: list[tuple[NDArray[Any], NDArray[np.float64]]]) -> None:
        steps, values = (np.concatenate(some) for some in zip(*parts, strict=True))
        newest = len(steps) - 1 - int(np.argmax(steps[::-1]))
        finite = np.isfinite(values)
        found = {
            "step": np.full(len(names), steps[newest]),
            "last": values[newest].copy(),
            "min": np.where(finite, values, np.inf).min(axis=0),
            "max": np.where(finite, values, -np.inf).max(axis=0),
            "points": np.full(len(names), len(steps), np.int64),
            "not_finite": (~finite).sum(axis=0),
        }
        before = self._groups.get(names)
        self._groups[names] = _joined(before, found) if before else found

    def take(self, other: Tally) -> None:
        """Count what another has counted, too."""
        other._settle()
        for names, found in other._groups.items():
            before = self._groups.get(names)
            self._groups[names] = _joined(found, before) if before else found

    def to_dict(self, limit: int = NAMES) -> dict[str, dict[str, Any]]:
        """Return {metric: {last, step, min, max, points, not_finite}} of the first `limit` metrics, as plain data."""
        self._settle()
        merged: dict[str, dict[str, NDArray[Any]]] = {}
        for names, counts in self._groups.items():
            for place, name in enumerate(names):
                one = {field: column[place : place + 1] for field, column in counts.items()}
                if name in merged:
                    merged[name] = _joined(merged[name], one)
                elif len(merged) < limit:
                    merged[name] = one
        return {name: _plain(counts) for name, counts in merged.items()}


def curves_tally(curves: Mapping[str, tuple[Any, Any]]) -> dict[str, dict[str, Any]]:
    """Count curves that were read: {metric: (steps, values)}."""
    tally = Tally()
    for name, (steps, values) in curves.items():
        tally.add([name], steps, np.asarray(values).reshape(-1, 1))
    return tally.to_dict(limit=len(curves))


def _joined(before: Mapping[str, NDArray[Any]], after: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    later = after["step"] >= before["step"]
    return {
        "step": np.where(later, after["step"], before["step"]),
        "last": np.where(later, after["last"], before["last"]),
        "min": np.minimum(before["min"], after["min"]),
        "max": np.maximum(before["max"], after["max"]),
        "points": before["points"] + after["points"],
        "not_finite": before["not_finite"] + after["not_finite"],
    }


def _plain(counts: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {field: column[0].item() for field, column in counts.items()}
    for field in ("last", "min", "max"):
        found[field] = found[field] if math.isfinite(found[field]) else None
    return found

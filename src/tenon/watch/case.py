"""What judgment looks at, and the words it shares: the case, one hit of a look, and how figures are said.

A `Case` is the windows with what was expected of them, as values, so that judgment is a pure function from figures to
findings and can be tried on made-up ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenon.config import WatchConfig
from tenon.metric import Estimate
from tenon.watch.expect import Expected, Usual
from tenon.watch.window import Window, named, unit_of

RECENT = 5  # windows that findings speak of; older ones are history


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Everything judgment looks at: the windows, oldest first, and what was expected of them."""

    model: str
    task: str
    windows: Sequence[Window]
    config: WatchConfig
    expected: Expected
    usual: Usual | None = None
    width_s: float = 604_800.0
    limits_psi: Mapping[tuple[float, str], float] = field(default_factory=dict)  # (start, column) -> PSI to exceed
    reference_missing: Mapping[str, float] = field(default_factory=dict)
    reference_rows: int = 0
    unseen: Mapping[tuple[float, str], tuple[float, Sequence[str]]] = field(default_factory=dict)
    usual_labelled: float = math.nan
    without: tuple[str, ...] = ()  # columns that name rows in the labels and are missing in the observations
    quiet_s: float = 0.0  # time since the last observation
    words: Mapping[str, str] = field(default_factory=dict)

    def word(self, name: str) -> str:
        """Return the owner's word for the thing predicted, or a plain one."""
        plain = {"unit_plural": "rows", "unit_singular": "row", "positive_word": "positive"}
        return self.words.get(name) or plain[name]

    @property
    def recent(self) -> list[Window]:
        """Return the newest windows, those that findings speak of."""
        return list(self.windows[-RECENT:])

    @property
    def enough(self) -> list[Window]:
        """Return the newest windows that are closed, covered, and have rows enough to judge."""
        return [w for w in self.recent if w.rows >= self.config.min_rows and not w.open and not w.partial]


@dataclass(frozen=True, slots=True)
class Hit:
    """One window in which something was beyond noise: by how much, and the figures."""

    window: Window
    size: float
    numbers: Mapping[str, float]


# ── wording ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def shown(value: Any) -> str:
    """Make a value from outside harmless to show: no control or direction characters, at most 40 characters."""
    text = "".join(char if char.isprintable() else "·" for char in str(value))
    return text if len(text) <= 40 else text[:39] + "…"


def others(case: Case, hits: Sequence[Hit], worst: Hit) -> str:
    """Say in which other windows the same was seen."""
    others = [hit for hit in hits if hit.window.start != worst.window.start]
    if not others:
        return ""
    return f" The same, less strongly, in {unit_of(case.width_s, len(others))} more of the last {len(case.recent)}."


def span(value: Estimate) -> str:
    return f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"


def percent(share: float) -> str:
    percent = 100 * share
    return (
        f"{percent:.0f} %"
        if percent >= 10 or percent == 0
        else f"{percent:.1f} %"
        if percent >= 0.1
        else "less than 0.1 %"
    )


def duration(seconds: float) -> str:
    for size, word in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} seconds"


def first_day(case: Case) -> str:
    first = min((w.first for w in case.windows if math.isfinite(w.first)), default=case.windows[0].start)
    return named(first, first + 86_400)

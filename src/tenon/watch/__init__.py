"""Windows over live traffic: drift, performance as labels arrive, health. Values in, findings out.

    collect.py      observations from a service to the store, never making an answer wait
    observation.py  what one observation is and how a batch of them is kept; stream.py where they lie
    label.py        labels that arrive late, by two roads
    tally.py        one window read once and summarised; summaries of closed windows are kept
    expect.py       what the model promised, and how much windows of its training data vary
    drift.py        columns of a window against the reference, from sketches
    judge.py        from windows to findings: outcome.py, inputs.py, health.py look; noise.py says what chance would do
    skew.py         features served against the same ones computed offline
    examination.py  all of it in order; retain.py lets go of what is old

Names are resolved when first used, so that a service that only collects never loads what examines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenon.lazy import lazy

if TYPE_CHECKING:
    from tenon.watch.collect import Collector, Counts
    from tenon.watch.examination import Alerts, Context, Watched, alerts, examine
    from tenon.watch.expect import Expected, Usual, usual
    from tenon.watch.label import LabelSource
    from tenon.watch.retain import Pruned, prune
    from tenon.watch.stream import compact
    from tenon.watch.window import Window

_HOMES = {
    "collect": ("Collector", "Counts"),
    "examination": ("Alerts", "Context", "Watched", "alerts", "examine"),
    "expect": ("Expected", "Usual", "usual"),
    "label": ("LabelSource",),
    "retain": ("Pruned", "prune"),
    "stream": ("compact",),
    "window": ("Window",),
}

__all__ = [
    "Alerts",
    "Collector",
    "Context",
    "Counts",
    "Expected",
    "LabelSource",
    "Pruned",
    "Usual",
    "Watched",
    "Window",
    "alerts",
    "compact",
    "examine",
    "prune",
    "usual",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)

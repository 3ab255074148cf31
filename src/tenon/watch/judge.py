"""From windows to findings: what a person should know, one finding for one cause, gravest first.

A finding is raised only when three things hold together: the difference is beyond what chance does at that many rows
and that many looks (`noise`), it is large enough to matter, and, where training tells, it is outside what windows of
the training data did (`expect.Usual`). Findings look at the newest windows (`RECENT`); older ones are history, shown
but not warned of again.

One cause is told once. More late flights than in training, probabilities that are too low and a worse ranking are three
views of one thing when they fall in the same windows: the gravest is told, and carries the figures of the others. The
same holds for features that drift together, and for the score that follows them.

Judged on closed windows with enough rows; health (latency, errors, missing values) also on the open one, for which
nobody should wait a week.
"""

from __future__ import annotations

from collections.abc import Callable

from tenon.finding import Finding
from tenon.watch.case import Case
from tenon.watch.health import cost, errors, few_rows, latency, silence
from tenon.watch.inputs import drift, missing, unseen
from tenon.watch.outcome import labels_late, outcomes

LOOKS: tuple[Callable[[Case], list[Finding]], ...] = (
    outcomes,
    drift,
    missing,
    unseen,
    latency,
    errors,
    cost,
    silence,
    labels_late,
    few_rows,
)


def judge(case: Case) -> list[Finding]:
    """Return the findings of an examination, gravest first."""
    found: list[Finding] = []
    for look in LOOKS:
        found.extend(look(case))
    return gravest_first(found)


def gravest_first(findings: list[Finding]) -> list[Finding]:
    """Sort findings by severity, keeping the order of looks within one."""
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])

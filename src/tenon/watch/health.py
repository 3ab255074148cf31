"""What the service itself says: latency, errors, cost, silence, and too few rows to say anything.

Each check judges the recent windows of a case by what its owner allowed or by the windows before them, which are the
service's own habit. Pure functions of a case: whether a finding is new, still there or gone is decided elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

from tenon.finding import Finding, Severity
from tenon.metric import wilson
from tenon.watch.case import Case, Hit, duration, others, percent
from tenon.watch.window import in_, unit, unit_of

COST_RATIO = 1.5
QUIET_RATIO = 0.3  # rows of a window against the median of those before
GAP_RATIO = 2.0
GAP_LEAST_S = 3600.0


def latency(case: Case) -> list[Finding]:
    """Judge whether more than 1 answer in 100 took longer than the limit, beyond noise."""
    hits = [
        Hit(window, window.p99_ms, {})
        for window in case.recent
        if window.timed >= 100 and wilson(window.slow, window.timed)[0] > 0.01
    ]
    if not hits:
        return []
    worst = max(hits, key=lambda hit: hit.size)
    limit = case.config.latency_p99_ms
    return [
        Finding(
            code="watch/latency",
            severity="error" if worst.size > 4 * limit else "warning",
            place=f"{case.model}/latency",
            said=f"{in_(worst.window)} 1 answer in 100 took longer than {worst.size:.0f} ms, against "
            f"a limit of {limit:g} ms; half took less than {worst.window.p50_ms:.1f} ms.{others(case, hits, worst)}",
            hint="`tenon doctor` looks at the machine; /metrics tells waiting in the queue from scoring.",
            numbers={
                "start_s": worst.window.start,
                "windows": len(hits),
                "p99_ms": worst.size,
                "p50_ms": worst.window.p50_ms,
                "limit_ms": limit,
                "slow": worst.window.slow,
            },
        )
    ]


def errors(case: Case) -> list[Finding]:
    """Judge whether more requests failed than the configuration allows, beyond noise."""
    allowed = case.config.error_pct / 100
    hits = [
        Hit(window, window.errors / window.rows, {})
        for window in case.recent
        if window.errors and wilson(window.errors, window.rows)[0] > allowed
    ]
    if not hits:
        return []
    worst = max(hits, key=lambda hit: hit.size)
    return [
        Finding(
            code="watch/errors",
            severity="error",
            place=f"{case.model}/errors",
            said=f"{in_(worst.window)} {worst.window.errors:,} of {worst.window.rows:,} requests "
            f"failed ({percent(worst.size)}), against {case.config.error_pct:g} % allowed.{others(case, hits, worst)}",
            hint="The observations keep the message of each failure in the column `error`.",
            numbers={
                "start_s": worst.window.start,
                "windows": len(hits),
                "errors": worst.window.errors,
                "rows": worst.window.rows,
            },
        )
    ]


def cost(case: Case) -> list[Finding]:
    """Judge whether a thousand answers cost half as much again as they used to."""
    closed = [w for w in case.windows if not w.open and w.rows >= case.config.min_rows and w.usd > 0]
    if len(closed) < 3:
        return []
    newest, before = closed[-1], sorted(window.usd_per_1000 for window in closed[:-1])
    usual = before[len(before) // 2]
    if not newest.usd_per_1000 > COST_RATIO * usual:
        return []
    return [
        Finding(
            code="watch/cost",
            severity="warning",
            place=f"{case.model}/cost",
            said=f"{in_(newest)} 1,000 answers cost ${newest.usd_per_1000:.2g}, against ${usual:.2g} "
            f"in the {unit_of(case.width_s, len(before))} before.",
            hint="A new version or a slower machine costs more for each answer: see `tenon cost` and "
            "`tenon models audit`.",
            numbers={"start_s": newest.start, "usd_per_1000": newest.usd_per_1000, "usual_usd_per_1000": usual},
        )
    ]


def silence(case: Case) -> list[Finding]:
    """Judge whether traffic stopped, or fell far below what it was."""
    seen = [window for window in case.windows if window.rows]
    between = [other.first - one.last for one, other in pairwise(seen)]
    longest = max([0.0, *(window.gap_s for window in seen), *between])
    if seen and case.quiet_s > max(GAP_RATIO * longest, GAP_LEAST_S):
        last = max(window.last for window in case.windows if math.isfinite(window.last))
        return [
            _silent(
                case,
                "error",
                f"Nothing has been asked of the model for {duration(case.quiet_s)}; until then the longest pause "
                f"was {duration(longest)}.",
                {"quiet_s": case.quiet_s, "longest_s": longest, "last_s": last},
            )
        ]
    closed = [window for window in case.windows if not window.open]
    if len(closed) < 4:
        return []
    before = sorted(window.rows for window in closed[1:-1])  # the first may have begun in its middle
    usual, newest = before[len(before) // 2], closed[-1]
    if usual < case.config.min_rows or newest.rows >= QUIET_RATIO * usual:
        return []
    said = (
        f"{in_(newest)} the model was asked about {newest.rows:,} {case.word('unit_plural')}, against "
        f"{usual:,} in the usual {unit(case.width_s)}."
    )
    return [_silent(case, "warning", said, {"start_s": newest.start, "rows": newest.rows, "usual_rows": usual})]


def _silent(case: Case, severity: Severity, said: str, numbers: Mapping[str, float]) -> Finding:
    return Finding(
        code="watch/silence",
        severity=severity,
        place=f"{case.model}/traffic",
        said=said,
        hint="Is the caller still running, and does it reach this service? `tenon models audit` shows when it was up.",
        numbers=numbers,
    )


def few_rows(case: Case) -> list[Finding]:
    """Say so when no window has rows enough to judge, rather than call silence health."""
    if any(window.rows >= case.config.min_rows for window in case.windows):
        return []
    most = max((window.rows for window in case.windows), default=0)
    return [
        Finding(
            code="watch/few-rows",
            severity="info",
            place=f"{case.model}/observations",
            said=f"No {unit(case.width_s)} has the {case.config.min_rows:,} rows it takes to judge drift or "
            f"performance; the fullest has {most:,}.",
            hint="Wait, choose a longer `watch.window`, or lower `watch.min_rows` in tenon.toml and accept more noise.",
            numbers={"rows": most, "min_rows": case.config.min_rows},
        )
    ]

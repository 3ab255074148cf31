"""A Trial tries another version on live traffic: a canary answers a share of it, a shadow only scores along.

What is seen of both versions is counted per request, because the rows of one request are alike and are no independent
evidence. Every judgement is made from confidence sequences: intervals that hold at every moment at once, so that
looking each second does not turn noise into a rollback. For values x in [0, 1] with mean m and any q, the product of
(q/m)^x ((1-q)/(1-m))^(1-x) is a non-negative supermartingale (u^x v^(1-x) <= xu + (1-x)v); mixed over q with the
Beta(½, ½) law it exceeds 1/alpha with probability at most alpha (Ville); the interval holds the means of which it does
not.
Howard, Ramdas, McAuliffe and Sekhon, *Time-uniform, nonparametric, nonasymptotic confidence sequences*, 2021.

A check is `bad` when its whole interval lies beyond the bound, `good` when the whole of it lies within, and `open`
until then. The difference of scores is told with an ordinary 95 % interval; nothing is decided by it. Nothing here
knows of time, threads or the store.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from tenon.errors import ConfigError, sentence

ALPHA = 0.01  # the chance that a check errs, ever, however often it is looked at
STEP = math.log(1.1)  # latencies are counted in steps of a tenth
Kind = Literal["canary", "shadow"]
Said = Literal["good", "bad", "open"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far a candidate may be from the version it would replace."""

    agreement: float = 0.95  # the least share of rows with the same decision
    tolerance: float = 0.05  # where there are no decisions: scores agree within this share of the larger one
    errors_pct: float = 1.0  # requests that fail, in points above the other version
    slow_ms: float = 50.0  # a request that takes longer is slow
    slow_pct: float = 1.0  # slow requests, in points above the other version

    def __post_init__(self) -> None:
        if not 0 < self.agreement < 1:
            raise ConfigError(sentence("an agreement between 0 and 1", f"{self.agreement:g}", at="agreement"))
        for name in ("tolerance", "errors_pct", "slow_ms", "slow_pct"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(sentence("a number that is not negative", f"{value}", at=name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Which version is tried, how, and what an earlier process has seen of it."""

    id: str
    model: str
    version: str
    kind: Kind
    share: float = 0.0
    bounds: Bounds = Bounds()
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def takes(self, key: str) -> bool:
        """Say whether requests of this key are the canary's: always the same answer, also with a larger share."""
        if self.kind != "canary":
            return False
        drawn = int.from_bytes(blake2b(f"{self.id}/{key}".encode("utf-8", "replace"), digest_size=8).digest(), "big")
        return drawn < self.share * 2.0**64


@dataclass(slots=True)
class Side:
    """What one version did: requests, failures, slow ones, and how long they took."""

    requests: int = 0
    errors: int = 0
    slow: int = 0
    rows: int = 0
    usd: float = 0.0
    ms: dict[int, int] = field(default_factory=dict)

    def note(self, ms: float, rows: int, usd: float, slow_ms: float) -> None:
        """Count an answered request."""
        self.requests += 1
        self.slow += ms > slow_ms
        self.rows += rows
        self.usd += usd
        step = math.floor(math.log(max(ms, 1e-4)) / STEP)
        self.ms[step] = self.ms.get(step, 0) + 1

    def fail(self) -> None:
        """Count a request that failed."""
        self.requests += 1
        self.errors += 1

    def quantile(self, share: float) -> float:
        """Return a quantile of the milliseconds, within a twentieth; NaN when there are none."""
        left = share * sum(self.ms.values())
        for step in sorted(self.ms):
            left -= self.ms[step]
            if left <= 0:
                return math.exp((step + 0.5) * STEP)
        return math.nan


@dataclass(slots=True)
class Evidence:
    """What was seen of both versions; plain data can be made of it and it of plain data."""

    base: Side = field(default_factory=Side)
    candidate: Side = field(default_factory=Side)
    compared: int = 0  # requests scored by both
    compared_rows: int = 0
    agreed: float = 0.0  # sum of the shares of rows that agree
    mean: float = 0.0  # of the differences candidate - base, per request
    squares: float = 0.0
    largest: float = 0.0
    dropped: int = 0  # comparisons that there was no time for

    def compare(self, base: Sequence[float], candidate: Sequence[float], agree: Sequence[bool]) -> None:
        """Count one request that both versions scored."""
        rows = len(base)
        self.compared += 1
        self.compared_rows += rows
        self.agreed += sum(agree) / rows
        differences = [after - before for before, after in zip(base, candidate, strict=True)]
        finite = [value for value in differences if math.isfinite(value)]
        if finite:
            difference = sum(finite) / len(finite)
            past = difference - self.mean
            self.mean += past / self.compared
            self.squares += past * (difference - self.mean)
            self.largest = max(self.largest, max(map(abs, finite)))

    def to_dict(self) -> dict[str, Any]:
        """Return what was seen as plain data."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in COUNTS}
        for name in ("base", "candidate"):
            side = getattr(self, name)
            plain[name] = {one: getattr(side, one) for one in ("requests", "errors", "slow", "rows", "usd")}
            plain[name]["ms"] = {str(step): count for step, count in side.ms.items()}
        return plain

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> Evidence:
        """Take up what an earlier process has seen."""
        found = Evidence(**{name: plain[name] for name in COUNTS if name in plain})
        for name in ("base", "candidate"):
            given = dict(plain.get(name, {}))
            ms = {int(step): count for step, count in given.pop("ms", {}).items()}
            setattr(found, name, Side(**given, ms=ms))
        return found


COUNTS = ("compared", "compared_rows", "agreed", "mean", "squares", "largest", "dropped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One judgement: good, bad, or still open, in words and numbers."""

    name: str
    answer: Said
    said: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judgement of a trial: bad when one check is, good when all are."""

    answer: Said
    checks: Sequence[Check]
    told: Mapping[str, float]

    @property
    def why(self) -> str:
        """Say what is bad, or what is still open."""
        return "; ".join(check.said for check in self.checks if check.answer == self.answer)

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain data; what is unknown is None."""
        return {
            "answer": self.answer,
            "why": self.why,
            "checks": [
                {"name": c.name, "answer": c.answer, "said": c.said, "numbers": dict(c.numbers)} for c in self.checks
            ],
            "told": {name: value if math.isfinite(value) else None for name, value in self.told.items()},
        }


def interval(total: float, count: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Return where the mean of `count` values in [0, 1] with this sum lies, valid at every count at once."""
    if not count:
        return 0.0, 1.0
    total = min(max(total, 0.0), float(count))
    rest = count - total
    half = math.lgamma(0.5)
    mixed = math.lgamma(total + 0.5) + math.lgamma(rest + 0.5) - math.lgamma(count + 1.0) - 2 * half
    bound = mixed + math.log(alpha)  # the interval holds the means whose log-likelihood is at least this

    def inside(mean: float) -> bool:
        if not 0 < mean < 1:
            return False
        return (total * math.log(mean) if total else 0.0) + (rest * math.log1p(-mean) if rest else 0.0) >= bound

    def edge(good: float, bad: float) -> float:
        for _ in range(60):
            middle = (good + bad) / 2
            good, bad = (middle, bad) if inside(middle) else (good, middle)
        return bad

    best = min(max(total / count, 1e-12), 1 - 1e-12)
    low = 0.0 if not total else edge(best, 0.0)
    high = 1.0 if not rest else edge(best, 1.0)
    return low, high


def judge(trial: Trial, seen: Evidence) -> Verdict:
    """Judge a trial by what was seen so far."""
    base, candidate, bounds = seen.base, seen.candidate, trial.bounds
    checks = [_agreement(seen, bounds)]
    more = f"{bounds.errors_pct:g} % above the other's share"
    checks.append(_beside("errors", "failed", more, (base.errors, candidate.errors), (seen, bounds.errors_pct / 100)))
    more = f"{bounds.slow_pct:g} % above the other's share"
    what = f"took longer than {bounds.slow_ms:g} ms"
    checks.append(_beside("latency", what, more, (base.slow, candidate.slow), (seen, bounds.slow_pct / 100)))
    answers = {check.answer for check in checks}
    answer: Said = "bad" if "bad" in answers else "open" if "open" in answers else "good"
    return Verdict(answer=answer, checks=checks, told=_told(seen))


def _agreement(seen: Evidence, bounds: Bounds) -> Check:
    low, high = interval(seen.agreed, seen.compared)
    least = bounds.agreement
    answer: Said = "bad" if high < least else "good" if low >= least else "open"
    share = seen.agreed / seen.compared if seen.compared else math.nan
    said = (
        f"{100 * share:.2f} % agree ({100 * low:.2f} to {100 * high:.2f}, of {seen.compared:,} requests scored by both)"
        f"; the bound is {100 * least:g} %"
        if seen.compared
        else "no request has been scored by both yet"
    )
    numbers = {"low": low, "high": high, "requests": float(seen.compared), "bound": least}
    return Check(name="agreement", answer=answer, said=said, numbers=numbers)


def _beside(name: str, what: str, more: str, hits: tuple[int, int], given: tuple[Evidence, float]) -> Check:
    """Judge whether the candidate's share of such requests is more than `margin` above the other's."""
    seen, margin = given
    base = interval(hits[0], seen.base.requests, ALPHA / 2)
    own = interval(hits[1], seen.candidate.requests, ALPHA / 2)
    low, high = own[0] - base[1], own[1] - base[0]
    answer: Said = "bad" if low > margin else "good" if high <= margin else "open"
    said = (
        f"{hits[1]:,} of the candidate's {seen.candidate.requests:,} requests {what}, "
        f"{hits[0]:,} of the other's {seen.base.requests:,}; the bound is {more}"
    )
    return Check(name=name, answer=answer, said=said, numbers={"low": low, "high": high, "bound": margin})


def _told(seen: Evidence) -> dict[str, float]:
    """Return the figures that are told beside the checks."""
    count = seen.compared
    error = math.sqrt(seen.squares / (count - 1) / count) if count > 1 else math.nan
    found = {
        "difference": seen.mean if count else math.nan,
        "difference_low": seen.mean - 1.96 * error,
        "difference_high": seen.mean + 1.96 * error,
        "largest_difference": seen.largest if count else math.nan,
        "dropped": float(seen.dropped),
    }
    for name, side in (("base", seen.base), ("candidate", seen.candidate)):
        found[f"{name}_p50_ms"], found[f"{name}_p99_ms"] = side.quantile(0.5), side.quantile(0.99)
        found[f"{name}_usd_per_1000"] = 1000 * side.usd / side.rows if side.rows else math.nan
    return found


def agree(base: Sequence[float], candidate: Sequence[float], cuts: tuple[float | None, float | None],
          tolerance: float) -> list[bool]:  # fmt: skip
    """Say of each row whether both versions say the same: the same decision, each by its own threshold."""
    before, after = cuts
    if before is not None and after is not None:
        return [(one >= before) == (other >= after) for one, other in zip(base, candidate, strict=True)]
    return [
        abs(one - other) <= tolerance * max(abs(one), abs(other)) or one == other
        for one, other in zip(base, candidate, strict=True)
    ]

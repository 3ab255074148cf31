"""The gate: what a version must reach before it may become `production`, and the decision with its reasons.

A user writes ``Gate(metric="roc_auc", beat_baseline=0.02, p99_ms=10)``. `decide` holds the run, the parity proof and
the measured latency against it and gives a Decision: every check is a sentence with the value and the limit, also those
that passed. Refused is a value, not an error; who promotes all the same must say so (`flow`, `cli`).

What is always checked: the lift over the best baseline is at least `beat_baseline` *and* the lower end of its paired
95 % interval is above zero, so that a lucky test set is not enough; the compiled model answers as the trained one does;
no finding of the run is an error. What is checked when asked for: latency, size, and a value the metric must reach.
Rejected: asking the lower end itself to clear `beat_baseline`. It mixes how much is worth having, which the owner
knows, with how much can be told, which follows from the number of test rows, and refuses good models on few rows.

This module needs the standard library only: declaring a project imports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tenon.errors import ConfigError, nearest, sentence
from tenon.finding import Finding

# metric -> whether more is better; the names of `tenon.metric`, which is not imported here because it needs NumPy
HIGHER_IS_BETTER = {
    "roc_auc": True,
    "average_precision": True,
    "brier": False,
    "log_loss": False,
    "rmse": False,
    "mae": False,
    "r2": True,
}


@dataclass(frozen=True, slots=True)
class Gate:
    """What a version must reach to be promoted. `metric` is measured on the test part.

    `beat_baseline` is by how much it must be better than the best baseline (0: at all), `at_least` how good the metric
    must be (for a metric where less is better, at most that), `p99_ms` how long one row may take and `max_size_mb` how
    large the compiled model may be (a megabyte is 1,000,000 bytes). `usd_per_point` is what training may cost beyond
    the baseline's for each hundredth of the metric that it is better. Without a `metric`, the task's first one is used.
    `flips` is the share of decisions that a smaller or quicker form of the model may change.
    """

    metric: str = ""
    beat_baseline: float = 0.0
    p99_ms: float | None = None
    max_size_mb: float | None = None
    at_least: float | None = None
    flips: float = 0.001
    usd_per_point: float | None = None

    def __post_init__(self) -> None:
        if self.metric and self.metric not in HIGHER_IS_BETTER:
            hint = nearest(self.metric, HIGHER_IS_BETTER)
            raise ConfigError(sentence("a metric", f"'{self.metric}'", at="Gate(metric=...)", hint=hint))
        for name in ("beat_baseline", "p99_ms", "max_size_mb", "usd_per_point", "flips"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(sentence("a number of 0 or more", repr(value), at=f"Gate({name}=...)"))

    def to_dict(self) -> dict[str, Any]:
        """Return the gate as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question of the gate: whether it passed, the sentence that says so, the value and the limit."""

    name: str
    passed: bool
    said: str
    value: float | None = None
    limit: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the check as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a version may be promoted, every check that led there, and a finding when it may not."""

    allowed: bool
    checks: Sequence[Check]
    findings: Sequence[Finding] = ()

    @property
    def said(self) -> str:
        """Return the decision in one sentence: what failed, or that everything passed."""
        failed = [check.said for check in self.checks if not check.passed]
        if failed:
            return f"Refused: {'; '.join(failed)}."
        return f"Allowed: all {len(self.checks)} checks passed."

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as plain data, as kept in a `version` record."""
        return {"allowed": self.allowed, "checks": [check.to_dict() for check in self.checks]}


def decide(
    gate: Gate, run: Mapping[str, Any], parity: Any, latency: Any, size_bytes: int, variant: Any = None
) -> Decision:
    """Hold a run record, a Parity and a Latency against the gate; decides only, writes nothing.

    With the Variant that is to answer, what it gains or loses of the metric counts too. Raises ConfigError when the
    gate names a metric that the run's task does not have.
    """
    test = run["metrics"]["test"]
    name = gate.metric or next(iter(test))
    if name not in test:
        raise ConfigError(
            sentence("a metric of this run", f"'{name}'", at="Gate(metric=...)", hint=nearest(name, test))
        )
    checks = _score_checks(gate, name, run, variant.gain["value"] if variant is not None and variant.gain else 0.0)
    checks.append(
        Check(
            name="parity",
            passed=bool(parity.holds),
            said=parity.said,
            value=parity.max_abs,
            limit=parity.tolerance,
        )
    )
    checks.append(_findings_check(run.get("findings") or ()))
    if variant is not None and variant.gain:
        said = f"its form {variant.name} changes {variant.flips} of the full graph's decisions and is proven"
        checks.append(Check(name="variant", passed=variant.proven, said=said, value=float(variant.flips)))
    if gate.p99_ms is not None:
        said = f"one row takes {latency.p99_ms:.3g} ms at the 99th percentile, {gate.p99_ms:g} ms allowed"
        passed = latency.p99_ms <= gate.p99_ms
        checks.append(Check(name="p99_ms", passed=passed, said=said, value=latency.p99_ms, limit=gate.p99_ms))
    if gate.max_size_mb is not None:
        size = size_bytes / 1e6
        said = f"the compiled model takes {size:.2f} MB, {gate.max_size_mb:g} MB allowed"
        passed = size <= gate.max_size_mb
        checks.append(Check(name="size_mb", passed=passed, said=said, value=size, limit=gate.max_size_mb))
    allowed = all(check.passed for check in checks)
    return Decision(allowed=allowed, checks=tuple(checks), findings=() if allowed else (_refusal(run, checks),))


def _score_checks(gate: Gate, name: str, run: Mapping[str, Any], gain: float) -> list[Check]:
    """Check the metric against the best baseline, beyond noise, and against the value asked for.

    `gain` is by how much the form that answers is better than what was trained; mostly below 0, and tiny.
    """
    found, checks = run["metrics"]["test"][name]["value"], []
    found += gain if HIGHER_IS_BETTER[name] else -gain
    lift = (run.get("lift") or {}).get(name)
    if lift is None:
        said = f"there is no baseline that {name} could be better than"
        checks.append(Check(name="baseline", passed=False, said=said, limit=gate.beat_baseline))
    else:
        which = f"the {run['baseline']} baseline" if run.get("baseline") else "the best baseline"
        value, low, high = (lift[end] + gain for end in ("value", "low", "high"))
        said = f"{name} is {value:+.4f} better than {which}, {gate.beat_baseline:+.4f} asked"
        passed = value >= gate.beat_baseline
        checks.append(Check(name="baseline", passed=passed, said=said, value=value, limit=gate.beat_baseline))
        said = f"that lift is between {low:+.4f} and {high:+.4f} (95 %), which must lie above 0"
        checks.append(Check(name="beyond_noise", passed=low > 0, said=said, value=low, limit=0.0))
        if gate.usd_per_point is not None:
            checks.append(_price_check(gate.usd_per_point, name, run, value))
    if gate.at_least is not None:
        more = HIGHER_IS_BETTER[name]
        passed = found >= gate.at_least if more else found <= gate.at_least
        said = f"{name} is {found:.4f}, at {'least' if more else 'most'} {gate.at_least:g} asked"
        checks.append(Check(name="at_least", passed=passed, said=said, value=found, limit=gate.at_least))
    return checks


def _price_check(limit: float, name: str, run: Mapping[str, Any], lift: float) -> Check:
    """Check that what the model is better by is worth what its training cost beyond the baseline's."""
    costs = run.get("costs") or {}
    cost, base = costs.get(str(run.get("trainer"))), costs.get(str(run.get("baseline")))
    if cost is None or base is None:
        said = "the run does not say what the model and its baseline cost, so its price is not known"
        return Check(name="price", passed=False, said=said, limit=limit)
    more = max(float(cost["usd"]) - float(base["usd"]), 0.0)
    asked = more / (lift * 100) if lift > 0 else math.inf
    said = (
        f"its training cost {more:.3g} USD more than {run['baseline']}'s for {lift:+.4f} of {name}: {asked:.3g} USD for"
        f" each 0.01, {limit:g} allowed"
    )
    return Check(name="price", passed=asked <= limit, said=said, value=asked if lift > 0 else None, limit=limit)


def _findings_check(findings: Sequence[Mapping[str, Any]]) -> Check:
    """Check that nothing the run found is an error."""
    errors = [finding for finding in findings if finding["severity"] == "error"]
    said = "the run has no finding that is an error"
    if errors:
        said = f"the run has {len(errors)} findings that are errors, first {errors[0]['code']}: {errors[0]['said']}"
    return Check(name="findings", passed=not errors, said=said, value=float(len(errors)), limit=0.0)


def _refusal(run: Mapping[str, Any], checks: Sequence[Check]) -> Finding:
    failed = [check for check in checks if not check.passed]
    return Finding(
        code="model/refused",
        severity="error",
        place=f"{run.get('id') or 'run'}/gate",
        said=f"{len(failed)} of {len(checks)} checks of the gate failed: {'; '.join(check.said for check in failed)}.",
        hint="Keep the version that is in production, improve the model, or change the gate and say why.",
        numbers={check.name: check.value for check in failed if check.value is not None},
    )

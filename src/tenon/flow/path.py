"""The whole path in order: every source to a dataset, every model to a version before its gate, the reports.

A version that its gate allows takes the alias `production` when nothing has it, or when it came from a run that is not
worse, on the same test rows, than the run in production beyond noise. Otherwise the alias stays, and a finding says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenon.flow import data, learn, promote
from tenon.flow.work import Stage, Work
from tenon.project import Model
from tenon.training import track

ORDER = ("ingest", "dataset", "features", "run", "version", "report")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How one model came out: the gate's words and checks, and its test scores beside the baselines'."""

    name: str
    title: str
    version: str
    allowed: bool
    serving: bool
    verdict: str
    checks: Sequence[Mapping[str, Any]]
    metrics: Sequence[str]
    scores: Sequence[Sequence[Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain data."""
        return {
            "name": self.name,
            "version": self.version,
            "allowed": self.allowed,
            "serving": self.serving,
            "verdict": self.verdict,
            "checks": [dict(check) for check in self.checks],
            "scores": [dict(zip(["who", *self.metrics], row, strict=True)) for row in self.scores],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run of the path came to: the stages done or found, the verdicts, the findings, the reports."""

    stages: Sequence[Stage]
    seconds: float
    models: Sequence[Verdict] = ()
    findings: Sequence[Mapping[str, Any]] = ()
    reports: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return {
            "stages": [stage.to_dict() for stage in self.stages],
            "seconds": self.seconds,
            "usd": sum(stage.usd for stage in self.stages if stage.done),
            "models": [verdict.to_dict() for verdict in self.models],
            "findings": list(self.findings),
            "reports": dict(self.reports),
        }


def run(work: Work, *, model: str = "", upto: str = "report") -> Outcome:
    """Take the project as far as `upto`, redoing only what changed; `model` limits it to one model."""
    started = time.perf_counter()
    last = ORDER.index(upto)
    findings: list[Mapping[str, Any]] = [finding.to_dict() for finding in track.reap(work.store)]
    work.store.put(
        "project", work.project.name, {"id": work.project.name, **work.project.to_dict(), "at": work.clock()}
    )
    stages: list[Stage] = []
    if last == 0:
        stages = [data.ingested(work, source) for source in work.project.all_sources]
        return Outcome(stages=stages, seconds=time.perf_counter() - started, findings=_said(stages))
    datasets = data.datasets(work)
    stages += [stage for pair in datasets.values() for stage in pair]
    sets = {name: pair[1] for name, pair in datasets.items()}
    findings += _said(list(sets.values()))
    verdicts: list[Verdict] = []
    chosen = [work.model(model)] if model else list(work.project.models)
    for declared in chosen if last >= ORDER.index("features") else []:
        done, verdict = _learn(work, declared, sets, last)
        stages += done
        findings += _said(done)
        if verdict is not None:
            verdicts.append(verdict)
    reports: dict[str, str] = {}
    if last >= ORDER.index("report"):
        from tenon.flow import tell

        for declared in chosen:
            told = tell.reports(work, tell.Telling(model=declared.name))
            many = len(chosen) > 1
            reports.update(
                {f"{row['audience']} ({declared.name})" if many else row["audience"]: row["path"] for row in told}
            )
    return Outcome(
        stages=stages, seconds=time.perf_counter() - started, models=verdicts, findings=findings, reports=reports
    )


def _learn(work: Work, declared: Model, sets: Mapping[str, Stage], last: int) -> tuple[list[Stage], Verdict | None]:
    """Take one model from datasets to its verdict, as far as asked."""
    matrix = learn.features(work, declared, sets)
    if last == ORDER.index("features"):
        return [matrix], None
    trained, _ = learn.run(work, declared, matrix)
    if last == ORDER.index("run"):
        return [matrix, trained], None
    version = learn.version(work, declared, matrix, trained)
    serving, why = settle(work, declared, version)
    return [matrix, trained, version], _verdict(declared, trained, version, serving, why)


def settle(work: Work, declared: Model, version: Stage) -> tuple[bool, str]:
    """Decide whether the version takes `production`; return whether it answers now, and why in words."""
    now = promote.current(work, declared.name)
    if not version.body["gate"]["allowed"]:
        return False, version.body["said"]
    if now is not None and now["id"] == version.id:
        return True, "it passes its gate and is in production"
    if now is not None:
        ours, theirs = _primary(work, version.body["run"]), _primary(work, now["run"])
        if ours and theirs and ours[0] == theirs[0]:
            name, mine, other = ours[0], ours[1], theirs[1]
            worse = mine["high"] < other["low"] if ours[2] else mine["low"] > other["high"]
            if worse:
                return False, (
                    f"it passes its gate, but its {name} of {mine['value']:.4f} is worse beyond noise than the "
                    f"{other['value']:.4f} of version {now['number']}, which stays in production"
                )
    move = promote.Move(model=declared.name, version=version.id, reason="its gate allowed it")
    promote.promote(work, move)
    return True, "it passes its gate and is now in production"


def _primary(work: Work, run_id: str) -> tuple[str, Mapping[str, float], bool] | None:
    """Return the run's first test metric with its interval, and whether more of it is better."""
    from tenon.model.gate import HIGHER_IS_BETTER

    record = work.store.get("run", run_id)
    test = (record or {}).get("metrics", {}).get("test", {})
    name = next(iter(test), "")
    return (name, test[name], HIGHER_IS_BETTER.get(name, True)) if name else None


def _verdict(declared: Model, trained: Stage, version: Stage, serving: bool, why: str) -> Verdict:
    body = trained.body
    tests = {body["trainer"]: body["metrics"]["test"], **dict(reversed(body["baselines"].items()))}
    names = list(next(iter(tests.values())))
    scores = [[name, *(_interval(found[metric]) for metric in names)] for name, found in tests.items()]
    allowed = bool(version.body["gate"]["allowed"])
    return Verdict(
        name=declared.name,
        title=f"{declared.words.title or declared.name}, version {version.body['number']} ({version.id})",
        version=version.id,
        allowed=allowed,
        serving=serving,
        verdict=why if allowed else "its gate refuses it",
        checks=version.body["gate"]["checks"],
        metrics=names,
        scores=scores,
    )


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.4f} ({estimate['low']:.4f} to {estimate['high']:.4f})"


def _said(stages: Sequence[Stage]) -> list[Mapping[str, Any]]:
    """Return the findings kept in the stages' records."""
    return [finding for stage in stages for finding in stage.body.get("findings", [])]

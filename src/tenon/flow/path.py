"""The whole path in order: every source to a dataset, every model to a version before its gate, the reports.

A version that its gate allows takes the alias `production` when nothing has it, or when it came from a run that is not
worse by the gate's metric, beyond noise, than the run in production. Otherwise the alias stays, and the verdict
says why. What a person has taken out of production, `tenon run` does not put back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenon import metric
from tenon.flow import data, learn, promote, spread, variant
from tenon.flow.work import Stage, Work
from tenon.model.gate import HIGHER_IS_BETTER
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
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # model or baseline -> seconds, usd

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
            "costs": {who: dict(cost) for who, cost in self.costs.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run of the path came to: the stages done or found, the verdicts, the findings, the reports."""

    stages: Sequence[Stage]
    seconds: float
    models: Sequence[Verdict] = ()
    findings: Sequence[Mapping[str, Any]] = ()
    reports: Mapping[str, str] = field(default_factory=dict)
    several: bool = False  # the project has more than one model, so commands must name theirs

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
    reports: Mapping[str, str] = {}
    if last >= ORDER.index("report"):
        from tenon.flow import tell

        told = tell.reports(work, tell.Telling(model=model))
        reports = {
            f"{row['audience']} ({row['model']})" if len(chosen) > 1 else row["audience"]: row["path"] for row in told
        }
    return Outcome(
        stages=stages,
        seconds=time.perf_counter() - started,
        models=verdicts,
        findings=findings,
        reports=reports,
        several=len(work.project.models) > 1,
    )


def _learn(work: Work, declared: Model, sets: Mapping[str, Stage], last: int) -> tuple[list[Stage], Verdict | None]:
    """Take one model from datasets to its verdict, as far as asked."""
    matrix = learn.features(work, declared, sets)
    if last == ORDER.index("features"):
        return [matrix], None
    apart = work.launch is not None and not isinstance(declared.train, str)
    trained = learn.run(work, declared, matrix, spread.train if apart else learn.here)
    if last == ORDER.index("run"):
        return [matrix, trained], None
    forms = variant.tried(work, trained.body, declared.gate)
    version = learn.version(work, declared, matrix, trained, forms)
    serving, why = settle(work, declared, version)
    return [matrix, trained, forms, version], _verdict(declared, trained, version, serving, why)


def settle(work: Work, declared: Model, version: Stage) -> tuple[bool, str]:
    """Decide whether the version takes `production`; return whether it answers now, and why in words."""
    now = promote.current(work, declared.name)
    if not version.body["gate"]["allowed"]:
        return False, version.body["said"]
    if now is not None and now["id"] == version.id:
        return True, "it passes its gate and is in production"
    if now is not None:
        worse = _worse(work, declared, version.body["run"], now["run"])
        if worse:
            return False, f"it passes its gate, but {worse} of version {now['number']}, which stays in production"
        by = promote.put_aside(work, declared.name, version.id)
        if by:
            return False, f"it passes its gate, but {by} took it out of production for version {now['number']}"
    move = promote.Move(model=declared.name, version=version.id, reason=promote.BY_GATE)
    promote.promote(work, move)
    return True, "it passes its gate and is now in production"


def _worse(work: Work, declared: Model, ours: str, theirs: str) -> str:
    """Say in words that the run `ours` is worse than `theirs` beyond noise; "" when it is not, or cannot be told.

    Where both were tested on the same rows they are compared on the same resamples of them, which tells small
    differences; otherwise their intervals must lie apart.
    """
    mine, other = (work.store.get("run", id) or {} for id in (ours, theirs))
    tests = [run.get("metrics", {}).get("test", {}) for run in (mine, other)]
    name = declared.gate.metric or next(iter(tests[0]), "")
    if not all(name in test for test in tests) or mine["task"] != other["task"]:
        return ""
    left, right = (learn.scores_of(work, run, "test") for run in (mine, other))
    if left.select("time", "label").equals(right.select("time", "label")):
        scores = [rows["score"].to_numpy() for rows in (left, right)]
        lift = metric.compare(mine["task"], left["label"].to_numpy(), *scores, seed=declared.seed)[name]
        worse = lift.high < 0
    else:
        less, more = (tests[0][name], tests[1][name]) if HIGHER_IS_BETTER[name] else (tests[1][name], tests[0][name])
        worse = less["high"] < more["low"]
    values = [test[name]["value"] for test in tests]
    return f"its {name} of {values[0]:.4f} is worse beyond noise than the {values[1]:.4f}" if worse else ""


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
        costs=body.get("costs") or {},  # runs of an earlier release have none
    )


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.4f} ({estimate['low']:.4f} to {estimate['high']:.4f})"


def _said(stages: Sequence[Stage]) -> list[Mapping[str, Any]]:
    """Return the findings kept in the stages' records."""
    return [finding for stage in stages for finding in stage.body.get("findings", [])]

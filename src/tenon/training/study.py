"""Simplest first: an experiment trains the baselines, then the model, and says whether the model is worth its price.

Order of work: check the data in words, predict memory and time, train a constant, then a linear model on the same
features, then what was asked for. All are measured on the validation and the test part with the same resampled rows.
The best baseline is chosen on validation, never on test; the lift of the model over it is measured on test, paired
(see `tenon.metric`). A lift whose interval reaches down to zero is `training/not-better`. A score or a single feature
that is too good to be true is `training/suspicious`: it is nearly always a leak, something only known afterwards.

The decision threshold is chosen on validation, so that as many rows are flagged as are truly positive there.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenon import ledger, metric
from tenon.encoding import Encoding
from tenon.errors import BudgetError, ConfigError, TenonError, TrainingError, nearest, sentence
from tenon.finding import Finding
from tenon.ledger import Budget
from tenon.limits import Answer
from tenon.metric import Estimate
from tenon.training.admit import fit
from tenon.training.boost import lightgbm
from tenon.training.data import Data
from tenon.training.fitted import Fitted, settle
from tenon.training.guard import Guard
from tenon.training.linear import constant, linear, logistic
from tenon.training.option import Options
from tenon.training.ranks import Ranks

Floats = NDArray[np.float64]
Trainer = Callable[..., Any]
Join = Callable[[], AbstractContextManager[Ranks]]
Estimates = Mapping[str, Estimate]

TRAINERS: dict[str, Callable[[Data, Any, Options], Fitted]] = {
    "constant": constant,
    "lightgbm": lightgbm,
    "linear": linear,
    "logistic": logistic,
}
TASKS = {"linear": "regression", "logistic": "binary"}  # trainers for one task only
BASELINES = {"binary": ("constant", "logistic"), "regression": ("constant", "linear")}
SUSPICIOUS = {"roc_auc": 0.99, "r2": 0.995}  # scores that real problems do not give
LEAK_ROWS = 50_000  # rows on which single features are ranked
LEAK = 0.98  # from this ROC AUC or rank correlation on, one feature alone knows too much
PERMUTED_ROWS = 5_000
UNGUARDED_S = 60.0  # a training without its guard, from which it is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an experiment found: the fitted model, its scores beside the baselines', and what a person should know."""

    fitted: Fitted
    trainer: str
    seed: int
    split: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Estimates]  # side -> metric -> estimate
    baselines: Mapping[str, Estimates]  # name -> metric -> estimate, on test
    baseline: str  # the best one, chosen on validation; "" when there is none
    lift: Estimates  # metric -> by how much better than that baseline, paired, on test
    calibration: Sequence[Mapping[str, float]]
    importance: Sequence[Mapping[str, Any]]
    findings: Sequence[Finding]
    seconds: float
    scores: Mapping[str, Floats]  # side -> what the model answers for each of its rows
    stopped: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # model or baseline -> seconds, usd

    def to_dict(self) -> dict[str, Any]:
        """Return all but the model as plain data, in the fields of a `run` record."""
        return {
            "status": "stopped" if self.stopped else "done",
            "trainer": self.trainer,
            "seed": self.seed,
            "params": dict(self.params),
            "split": {side: dict(body) for side, body in self.split.items()},
            "metrics": {side: _plain(found) for side, found in self.metrics.items()},
            "baselines": {name: _plain(found) for name, found in self.baselines.items()},
            "baseline": self.baseline,
            "lift": _plain(self.lift),
            "costs": {name: dict(cost) for name, cost in self.costs.items()},
            "calibration": [dict(group) for group in self.calibration],
            "importance": [dict(one) for one in self.importance],
            "findings": [finding.to_dict() for finding in self.findings],
            "seconds": self.seconds,
        }


def experiment(
    data: Data,
    trainer: str | Trainer,
    run: Any,
    *,
    baselines: Sequence[str] | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    guard: Guard | None = None,
    join: Join = Ranks,
) -> Outcome:
    """Train the baselines and then the model, simplest first, and measure them side by side.

    `trainer` names a built-in of TRAINERS or is a function ``train(data, run) -> fitted``, which finds its guard as
    ``run.guard``. A `guard` given here brings its own budget. With `join` a function trains as one of several ranks, of
    which the others run `accompany`. Raises TrainingError for data that cannot be trained on, for a model that cannot
    fit into memory and for a run that fails; a run that its guard stops keeps what it has.
    """
    start = time.perf_counter()
    guard = guard or Guard(budget=budget, run=run)
    run.guard = guard  # where a user's own loop finds it
    study = _Study(data=data, run=run, guard=guard, seed=seed, join=join)
    name, against = _name(trainer), _against(data.task, trainer, baselines)
    study.check([*against, trainer])
    found = {one: study.train(one) for one in against}
    model = study.train(trainer)
    primary = metric.METRICS[data.task][0]
    best = max(found, key=lambda one: _signed(primary, found[one].metrics["valid"]), default="")
    lift = study.lift(model.scores, found[best].scores) if best else {}
    study.judge(name, model, best, lift, {**found, name: model})
    return Outcome(
        fitted=replace(model.fitted, threshold=_threshold(data, model.scores["valid"])),
        trainer=name,
        seed=seed,
        split={side: part.to_dict() for side, part in data.parts().items()},
        metrics=model.metrics,
        baselines={one: each.metrics["test"] for one, each in found.items()},
        baseline=best,
        lift=lift,
        calibration=metric.calibration(data.test.y, model.scores["test"], task=data.task),
        importance=[
            {"name": one, "gain": gain} for one, gain in sorted(model.fitted.gain.items(), key=lambda pair: -pair[1])
        ],
        findings=(*guard.findings, *study.findings),
        seconds=time.perf_counter() - start,
        scores=model.scores,
        stopped=guard.stopped is not None and guard.stopped.code == "training/budget-spent",
        params=model.fitted.notes,
        costs={one: each.cost for one, each in {**found, name: model}.items()},
    )


def accompany(data: Data, trainer: Trainer, run: Any, join: Join) -> Any:
    """Train with a user's own function as one of the ranks that `join` joins, and return what it returns.

    The guard is the run's. A function that has a parameter of that name is given the `ranks`.
    """
    with join() as ranks:
        several = ranks.size > 1 or ranks.beat is not None
        if several:
            run.guard.join(ranks)
        try:
            return _call(trainer, data, run, ranks)
        finally:
            run.guard.close()  # hooks of a model that it watched would be exported with the model
            if several:
                run.guard.join(None)


def takes_ranks(trainer: Trainer) -> bool:
    """Tell whether a function can train as one of several ranks: it has a parameter for them."""
    return "ranks" in signature(trainer).parameters


def resolve(trainer: str, task: str) -> Callable[[Data, Any, Options], Fitted]:
    """Return the built-in trainer of that name, or say which there are for this task."""
    allowed = [name for name in TRAINERS if TASKS.get(name, task) == task]
    if trainer not in allowed:
        raise ConfigError(sentence(f"a trainer for a {task} task", f"'{trainer}'", hint=nearest(trainer, allowed)))
    return TRAINERS[trainer]


# ── one experiment ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """One model of the experiment with its scores and what they are worth."""

    fitted: Fitted
    scores: Mapping[str, Floats]
    metrics: Mapping[str, Estimates]
    cost: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Study:
    """The data, the run and the guard of one experiment, and the findings so far."""

    data: Data
    run: Any
    guard: Guard
    seed: int
    join: Join
    findings: list[Finding] = field(default_factory=list)

    def check(self, trainers: Sequence[str | Trainer]) -> None:
        """Refuse what cannot be trained: a label that never varies and rows that do not fit are findings of the run."""
        try:
            self.data.check()
        except TrainingError as error:
            if not all(part.varies for part in self.data.parts().values()):
                hint = "Check the label's SQL and the dates of the split."
                self.say("training/label-constant", "error", "label", str(error), hint, {})
            raise
        for trainer in trainers:
            needed = fit(self.data, trainer, budget=self.guard.budget, prices=self.guard.prices)
            if not needed:
                numbers = {"peak_bytes": float(needed.peak_bytes), "seconds": needed.seconds}
                severity = "error" if needed.answer is Answer.NEVER else "warning"
                hint = "Follow the plan in the sentence."
                self.say("training/does-not-fit", severity, _name(trainer), needed.reason, hint, numbers)
                needed.require()

    def train(self, trainer: str | Trainer) -> _Trained:
        """Train one model and measure it on validation and test; none is begun once the budget is spent."""
        if self.guard.stopped is not None:
            raise BudgetError(f"{self.guard.stopped.said} {_name(trainer)} was not begun.")
        self.guard.forget()
        began, busy = time.perf_counter(), ledger.cpu_seconds()
        if isinstance(trainer, str):
            body = resolve(trainer, self.data.task)
            fitted = body(self.data, self.run, Options(guard=self.guard, seed=self.seed))
        else:
            made = accompany(self.data, trainer, self.run, self.join)
            fitted = settle(made, self.data, _name(trainer))
            if not self.guard.trend.recent() and self.guard.stopped is None:
                self._unguarded(_name(trainer), time.perf_counter() - began)
            if not fitted.gain:
                fitted = replace(fitted, gain=permuted(fitted, self.data, seed=self.seed))
        took, core_s = time.perf_counter() - began, max(ledger.cpu_seconds() - busy, 0.0)
        used = ledger.Usage(wall_s=took, cpu_s=core_s, peak_bytes=ledger.resident_bytes())
        if not isinstance(trainer, str):
            used = used.plus(self.guard.elsewhere)
        scores = {side: fitted.predict(getattr(self.data, side).x) for side in ("valid", "test")}
        metrics = {
            side: metric.evaluate(self.data.task, getattr(self.data, side).y, scores[side], seed=self.seed)
            for side in scores
        }
        cost = {"seconds": used.wall_s, "usd": used.spent(self.guard.prices).usd}
        return _Trained(fitted=fitted, scores=scores, metrics=metrics, cost=cost)

    def _unguarded(self, name: str, took: float) -> None:
        """Say that a long training never asked its guard, and hold its cost against the budget at least afterwards."""
        self.guard.step(0)
        if took < UNGUARDED_S:
            return
        said = (
            f"{name} trained for {took:,.0f} s and never asked its guard: no NaN and no budget could have stopped it."
        )
        hint = "Call run.guard.step(step, loss=loss) in its loop, before the optimiser steps, and stop at False."
        self.say("training/unguarded", "warning", name, said, hint, {"seconds": took})

    def lift(self, scores: Mapping[str, Floats], base: Mapping[str, Floats]) -> dict[str, Estimate]:
        """Measure by how much the model is better than the baseline on the same test rows."""
        return metric.compare(self.data.task, self.data.test.y, scores["test"], base["test"], seed=self.seed)

    # ── judgement ────────────────────────────────────────────────────────────────────────────────────────────────────

    def judge(self, name: str, model: _Trained, best: str, lift: Estimates, every: Mapping[str, _Trained]) -> None:
        """Say when the model is not better than the baseline beyond noise, and when it is too good to be true."""
        primary = metric.METRICS[self.data.task][0]
        if best and lift[primary].low <= 0:
            self._not_better(name, best, primary, lift[primary], every)
        for measure, limit in SUSPICIOUS.items():
            found = model.metrics["test"].get(measure)
            if found is not None and found.value >= limit:
                said = f"{name} reaches {measure} {found.value:.4f} on test; real problems seldom allow {limit}."
                self._suspicious("score", said, {measure: found.value})
        self._leaks()

    def _not_better(self, name: str, best: str, primary: str, lift: Estimate, every: Mapping[str, _Trained]) -> None:
        said = (
            f"{name} is not better than the {best} baseline beyond noise: its lift in {primary} on test is"
            f" {lift.value:+.4f}, 95 % between {lift.low:+.4f} and {lift.high:+.4f}."
        )
        rows = []
        for one, each in every.items():
            score, cost = each.metrics["test"][primary], each.cost
            rows.append(f"{one} {score} in {cost['seconds']:.2g} s for {cost['usd']:.2g} USD")
        said += f" On test: {'; '.join(rows)}."
        hint = f"Keep {best}, which is cheaper, or give the model features or rows that the baseline cannot use."
        self.say("training/not-better", "warning", primary, said, hint, lift.to_dict())

    def _leaks(self) -> None:
        """Rank the labels by each feature alone: one that orders them nearly perfectly is known too late."""
        part = self.data.train.every(LEAK_ROWS)
        if not part.varies:
            return
        matrix = Encoding.learn(part.x.to_dict(), part.y, self.data.kind_of).matrix(part.x.to_dict())
        for i, name in enumerate(self.data.names):
            strength, what = _alone(self.data.task, part.y, matrix[:, i])
            if strength >= LEAK:
                said = f"The feature '{name}' alone gives {what} {strength:.4f}: it may be known only afterwards."
                self._suspicious(name, said, {what.replace(" ", "_").lower(): strength})

    def _suspicious(self, place: str, said: str, numbers: Mapping[str, float]) -> None:
        hint = "Look for what is known only after the moment of prediction; mark such columns late=True."
        self.say("training/suspicious", "warning", place, said, hint, numbers)

    def say(self, code: str, severity: Any, place: str, said: str, hint: str, numbers: Mapping[str, float]) -> None:
        """Keep a finding here and in the run."""
        where = f"{getattr(self.run, 'id', None) or 'run'}/{place}"
        finding = Finding(code=code, severity=severity, place=where, said=said, hint=hint, numbers=numbers)
        self.findings.append(finding)
        self.run.finding(finding)


def permuted(fitted: Fitted, data: Data, *, seed: int, rows: int = PERMUTED_ROWS) -> dict[str, float]:
    """Return each feature's share of what the first metric loses on validation when its values are shuffled.

    For models that do not say themselves what they use (Breiman, Machine Learning 45, 2001). Features that carry the
    same information share their loss and may both look unimportant.
    """
    part = data.valid.every(rows)
    if not part.varies:
        return {}
    y, matrix = part.y, fitted.encoding.matrix(part.x.to_dict())
    rng = np.random.default_rng(seed)
    whole = _worth(data.task, y, fitted.score(matrix))
    lost: dict[str, float] = {}
    for name, at in fitted.encoding.places().items():
        shuffled = matrix.copy()
        shuffled[:, at] = matrix[rng.permutation(len(matrix))][:, at]
        lost[name] = max(0.0, whole - _worth(data.task, y, fitted.score(shuffled)))
    total = sum(lost.values()) or 1.0
    return {name: value / total for name, value in lost.items()}


def _worth(task: str, y: Floats, p: Floats) -> float:
    return metric.rank_auc(y, p) if task == "binary" else -float(np.mean((y - p) ** 2))


def _call(trainer: Trainer, data: Data, run: Any, ranks: Ranks) -> Any:
    """Call a user's trainer; what it raises is told with the line of theirs that raised it."""
    try:
        return trainer(data, run, ranks=ranks) if takes_ranks(trainer) else trainer(data, run)
    except TenonError:
        raise
    except Exception as error:  # the edge to the user's own code: say where it broke
        frame = traceback.extract_tb(error.__traceback__)[-1]
        mine = [one for one in traceback.extract_tb(error.__traceback__) if one.filename == _file(trainer)]
        place = mine[-1] if mine else frame
        got = f"{type(error).__name__}: {error}"
        raise TrainingError(sentence("a trainer that runs", got, at=f"{place.filename}:{place.lineno}")) from error


def _file(trainer: Trainer) -> str:
    code = getattr(trainer, "__code__", None)
    return code.co_filename if code is not None else ""


def _name(trainer: str | Trainer) -> str:
    return trainer if isinstance(trainer, str) else str(getattr(trainer, "__name__", "trainer"))


def _against(task: str, trainer: str | Trainer, baselines: Sequence[str] | None) -> list[str]:
    """Return the baselines to train, simplest first: those asked for, without the model itself.

    A trainer of the user's own, which may be a network, must also beat gradient boosting where that is installed.
    """
    names = list(BASELINES[task] if baselines is None else baselines)
    if baselines is None and not isinstance(trainer, str) and find_spec("lightgbm") is not None:
        names.append("lightgbm")  # what a network must beat, too: on tables it usually does not
    for name in [*names, *([trainer] if isinstance(trainer, str) else [])]:
        resolve(name, task)
    kept = [name for name in dict.fromkeys(names) if name != trainer]
    return [] if trainer == "constant" else kept


def _threshold(data: Data, scores: Floats) -> float | None:
    """Return the probability above which as many validation rows lie as are positive.

    It lies halfway between two rows' scores, so that rounding in the compiled model changes no decision.
    """
    if data.task != "binary":
        return None
    ranked = np.unique(scores)
    last = float(np.sort(scores)[len(scores) - max(1, round(float(data.valid.y.sum())))])
    below = ranked[ranked < last]
    return (last + float(below[-1])) / 2 if len(below) else 0.5  # a constant flags nothing, or everything


def _alone(task: str, y: Floats, values: NDArray[np.float32]) -> tuple[float, str]:
    """Return how well one encoded feature orders the labels, and the name of that measure; missing ranks lowest."""
    low = float(np.nanmin(values)) if np.isfinite(values).any() else 0.0
    filled = np.clip(np.nan_to_num(values.astype(np.float64), nan=low - 1), -1e300, 1e300)
    if filled.min() == filled.max():
        return 0.0, "ROC AUC"
    if task == "binary":
        auc = metric.rank_auc(y, filled)
        return max(auc, 1 - auc), "ROC AUC"
    ranks_x, ranks_y = np.argsort(np.argsort(filled)), np.argsort(np.argsort(y))
    return abs(float(np.corrcoef(ranks_x, ranks_y)[0, 1])), "rank correlation"


def _signed(name: str, found: Estimates) -> float:
    return found[name].value if metric.HIGHER_IS_BETTER[name] else -found[name].value


def _plain(found: Estimates) -> dict[str, dict[str, float]]:
    return {name: estimate.to_dict() for name, estimate in found.items()}

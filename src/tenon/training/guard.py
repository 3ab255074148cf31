"""A Guard is an object a training loop calls once a step, so that no run burns money in silence.

    guard = Guard(budget=Budget(usd=2), run=run)
    for step in range(10_000):
        loss = ...
        if not guard.step(step, loss=loss):      # before the optimiser step
            break                                # stop, and keep what you have

`step` answers True (go on) or False (stop: the budget is spent, or nothing was ever gained); it raises
TrainingError when what was trained is not to be kept: a loss that is no number, or one that runs away. A loop that does
not listen to False is stopped by a BudgetError or TrainingError at its next step. Every stop is a Finding with its
numbers, in `guard.findings` and in the run.

A `Plan` and `evaluated` stop what learns nothing, too:

    guard = Guard(plan=Plan(steps=10_000, constant=0.693))
    ...
        if step % 500 == 499 and not guard.evaluated(step, held_out_loss, mixed=mixed_loss):
            break

What a stop takes as evidence stands in `trend`; what `watch` looks at in a PyTorch model in `watch_torch` and
`health_torch`. A loop that keeps checkpoints (`resume`) is let finish its step and saves it before it is stopped. A
step costs 0.5 to 5 microseconds, the most in a young run, and what has been spent is read once a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from tenon import ledger
from tenon.config import Prices
from tenon.errors import BudgetError, TrainingError, sentence
from tenon.finding import Finding
from tenon.ledger import Budget, Spent
from tenon.training.clock import Clock
from tenon.training.gpu import Reading, Throttle, readings
from tenon.training.pages import Pages
from tenon.training.ranks import HELD_OUT, TOLD
from tenon.training.trend import Evidence, Plan, Rules, Trend, number, rolled

SPENT_S = 1.0  # between readings of what has been spent, at first
SPENT_SHARE = 0.01  # of the time so far, later
SPENT_MOST_S = 10.0
FIT_STEPS = 20  # after which what a run reserves at most is known


class Guard:
    """Watches one run; see the module's docstring. Not shared between runs or threads."""

    __slots__ = (
        "_clock",
        "_cpu",
        "_fast",
        "_fit",
        "_follow",
        "_gpu",
        "_mark",
        "_models",
        "_pages",
        "_peak",
        "_read",
        "_since",
        "_start",
        "_stopped",
        "_taken",
        "_time",
        "_together",
        "_watch",
        "beat",
        "budget",
        "elsewhere",
        "ending",
        "findings",
        "keeper",
        "plan",
        "prices",
        "ranks",
        "readings",
        "rules",
        "run",
        "show",
        "spent",
        "trend",
    )

    def __init__(
        self,
        *,
        budget: Budget | None = None,
        rules: Rules = Rules(),
        prices: Prices = Prices(),
        run: Any = None,
        clock: Callable[[], float] = time.monotonic,
        follow: Callable[[int, int], None] | None = None,  # told how many models were begun, and this one's step
        plan: Plan | None = None,
        ranks: Any = None,  # the Ranks this process trains with: a step is then taken by all of them as one
    ) -> None:
        self._follow = follow
        self._models = 0
        self._taken = self._since = 0  # steps that were taken, and of them those of models before this one
        self.budget = budget or Budget()
        self.rules = rules
        self.prices = prices
        self.run = run
        self.findings: list[Finding] = []
        self.spent = Spent()
        self._clock = clock
        self._start = clock()
        self._cpu = ledger.cpu_seconds()
        self._peak = 0
        # When it is next read what has been spent; a budget of nothing is spent before the first step.
        self._read = self._start + (SPENT_S if 0 not in (self.budget.usd, self.budget.hours, self.budget.kwh) else 0)
        self.plan = plan
        self.trend = Trend(rules, plan)
        self._stopped: Finding | None = None
        self._watch: Any = None
        self._fast: Any = None  # takes most steps of a model that is watched, where it can
        self._time: Clock | None = None
        self.ending = False  # it is about to stop with what it has: a keeper saves this step, and there is no other
        self.beat: Callable[[int], None] | None = None  # tells a watchdog outside that the run lives
        self.readings: Callable[[], list[Reading]] | None = None  # of the GPUs; `watch` sets it where there are some
        self.show: Callable[[Mapping[str, Any]], None] | None = None  # told how the run stands, now and then
        self._gpu = Throttle()
        self._pages = Pages()
        self._fit: tuple[Any, Any, Callable[[], int | None]] | None = None  # prediction, store, what was reserved
        self._mark = (self._start, 0)  # when it was last told how the run stands, and its step
        self.keeper: Any = None  # a Resume puts itself here, and is then asked to save before a run ends
        self.elsewhere = ledger.NOTHING  # used by an earlier attempt, and by ranks with which it no longer trains
        self._together: Any = None
        self.join(ranks)

    def join(self, ranks: Any) -> None:
        """Take steps as one of these ranks from now on; alone with None, and what the others have used still counts."""
        if self._together is not None:
            self.elsewhere = self._together.others
        self.ranks = ranks
        self._together = None
        if ranks is not None:
            from tenon.training.together import Together

            self._together = Together(ranks)
        self.beat = ranks.beat if ranks is not None else None

    def resumed(self, step: int, used: ledger.Usage | None, began: float) -> None:
        """Go on at `step` of a run that has used so much before: budget, costs and curves are those of all attempts.

        `Resume` calls it; `began` is when the first of them did, in Unix seconds. Of ranks, the first counts it unless
        their launcher has told of more.
        """
        if used is not None and self._together is not None:
            self._together.resumed(used)
        elif used is not None:
            self.elsewhere = used
            if hasattr(self.run, "also"):
                self.run.also(used, since=began)
            self._mark = self._clock(), step
            self.ending = not self._affordable(step, self._clock())  # then its first step is refused
        if hasattr(self.run, "resumed"):
            self.run.resumed(step)

    def watch(self, model: Any, optimizer: Any = None, *, scaler: Any = None) -> Self:
        """Watch a PyTorch model too: its gradients at every step, its health now and then, and who spoiled a step.

        With it, `step` takes the gradient norm itself and names the module that first produced what is not finite.
        Call `step` after `backward` and before the optimiser. `scaler` is the loss scaler of fp16, whose skipped steps
        are no fault. MissingError when PyTorch is not installed.
        """
        from tenon.training.watch_torch import Watch

        if self._watch is not None:
            self._watch.close()
        self._watch = Watch(model, optimizer, scaler=scaler, share=self.rules.health)
        if self._watch.gpus and self.readings is None:
            self.readings = readings()
        # It knows no other clock, and nothing of other ranks.
        quick = self._watch.quick and self._together is None and self._clock is time.monotonic
        self._fast = self._watch.fast if quick else None
        self._watch.fast.follow(self.trend.fresh)
        return self

    def fits(
        self,
        path: Path | str,
        batch: int,
        *,
        store: Any = None,
        device: Any = None,
        reserved: Callable[[], int | None] | None = None,
    ) -> Self:
        """Refuse, before anything is put on the GPU, a run whose step is not sure to fit; the plan is in the refusal.

        `path` is the file with the four functions of `tenon fit`. `device` names a GPU that is not here; without it and
        without a GPU nothing is asked. With a `store`, what the run then really reserves (`reserved`, by default what
        PyTorch says of the GPU here) teaches it how far to trust the next prediction on that device. TrainingError when
        it is refused.
        """
        from tenon.training import memory

        found = memory.asked(Path(path), batch, store=store, device=device)
        if found is None:
            return self
        for finding in found.findings:
            self._say(replace(finding, place=self._place("fit")))
        found.require()
        self._fit = found, store, reserved or memory.reserved
        return self

    def batches(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Hand out a loop's batches, and measure how long the loop waits for each; the culprit becomes a finding."""
        self._time = Clock()
        return self._time.over(batches)

    def close(self) -> None:
        """Take off the hooks of `watch`, and learn from what was reserved; a guard without them needs no closing."""
        self._learn()
        if self._watch is not None:
            self._watch.close()
            self._watch = self._fast = None

    @property
    def stopped(self) -> Finding | None:
        """Return why the run was told to stop, or None while it may go on."""
        return self._stopped

    @property
    def saving(self) -> bool:
        """Tell whether the first of several ranks said, at this step, that a checkpoint is due by time."""
        return self._together is not None and bool(self._together.saving)

    @property
    def suspect(self) -> bool:
        """Tell whether the state may be spoiled: the run was refused, or its last losses jump out of their noise."""
        if self._stopped is not None and self._stopped.severity == "error":
            return True
        return self.trend.suspect

    def forget(self) -> None:
        """Forget the losses seen so far, because another model begins; what has been spent still counts."""
        self._models += 1
        self._since = self._taken = self._watch.fast.steps if self._watch is not None else self._taken
        if self._follow is not None:
            self._follow(self._models, 0)
        self.trend = Trend(self.rules, self.plan)
        if self._watch is not None:
            self._watch.fast.follow(self.trend.fresh)

    def step(self, step: int, *, loss: Any = None, grad_norm: Any = None) -> bool:
        """Say whether to go on; call it with this step's loss (and gradient norm) before the optimiser's step.

        Both are numbers, or tensors of one number, which are read here.

        Raises TrainingError for a loss or gradient that is no number and for one that runs away.
        """
        if self.ending or self._stopped is not None:
            return self._over(step)
        fast, taken = self._fast, 0
        if fast is not None and (taken := fast.step(step, loss, grad_norm)) == 1:
            if self._follow is not None or self.beat is not None:
                self._passed(step)
            return True
        if not taken:
            watch, given = self._watch, grad_norm is not None
            if given and type(grad_norm) is not float:
                grad_norm = number(grad_norm)
            if watch is not None:
                loss, grad_norm = watch.read(step, loss, grad_norm)  # together: an accelerator is waited for once
            elif loss is not None and type(loss) is not float:
                loss = number(loss)
            if self._together is not None:
                return bool(self._together.step(self, step, loss, grad_norm, given=given))
            self._look(step, loss, grad_norm)
            if loss is not None:
                self.trend.fresh.append(loss)
        self._passed(step)
        now = self._clock()
        go_on = now < self._read or self._affordable(step, now)
        if go_on and (evidence := self.trend.judge(self.reached(step))) is not None:
            go_on = self._heed(step, evidence)
        if fast is not None:
            fast.next, fast.read = self.trend.next, self._read
        if go_on or self.keeper is None:
            return go_on
        self.ending = True  # checkpoint, then stop: this step is let finish, the keeper saves it, the next is refused
        return True

    def reached(self, step: int) -> int:
        """Return the step, or how many were taken before it when a loop counts from the start again at every epoch."""
        self._taken = self._watch.fast.steps if self._watch is not None else self._taken + 1
        return max(step, self._taken - self._since - 1)

    def _look(self, step: int, loss: float | None, norm: float | None) -> None:
        """Refuse a step whose loss or gradients are not finite; else look at the model's health."""
        if loss is not None and not math.isfinite(loss):
            self._not_finite(step, "loss", loss)
        if norm is not None and not math.isfinite(norm) and not self._skipped(step):
            self._not_finite(step, "gradient norm", float(norm))
        if self._watch is not None and (found := self._watch.passed(step, norm)):
            for finding in found:
                self.tell(finding)

    def _passed(self, step: int) -> None:
        """Tell whoever follows the run that this step was taken."""
        if self._follow is not None:
            self._follow(self._models, step)
        if self.beat is not None:
            self.beat(step)

    def _over(self, step: int) -> bool:
        """Refuse a step after the last one: False once, and an error for a loop that goes on all the same."""
        if self.ending or self._stopped is None:
            self.ending = False
            return False
        kind = BudgetError if self._stopped.code == "training/budget-spent" else TrainingError
        raise kind(f"{self._stopped.said.rstrip('.')}. The loop was told to stop and went on, at step {step}")

    def told(self, step: int, loss: Any) -> bool:
        """Say whether to go on, for loops that tell a loss apart from the gradients: a loss after its step."""
        loss = number(loss)
        if self._together is not None:
            return self._stopped is None and bool(self._together.asked(self, TOLD, step, loss))
        if not math.isfinite(loss):
            self._not_finite(step, "loss", loss)
        return self._stopped is None and self._heed(step, self.trend.take(step, loss))

    def evaluated(self, step: int, loss: Any, *, mixed: Any = None) -> bool:
        """Say whether to go on after a loss on held-out rows; with a plan, a run that learns nothing is told to stop.

        `mixed` is the loss of the same answers held against the targets of other rows, ``loss_of(answers, y.roll(1,
        0))``: it needs no forward pass, and shows that a run learns before the loss does. Give a list of several, for
        rolls of 1, 2, 3 and so on, in the same order at every evaluation (16 are enough): how each has changed tells
        what was learnt from what is chance. A held-out loss that is no number is refused like any other.
        Of several ranks each must tell its own losses, which may be of its own part of the rows, and as many as the
        others: they are averaged.
        """
        loss = number(loss)
        rolls = rolled(mixed)
        if self._together is not None:
            go_on = self._stopped is None and bool(self._together.asked(self, HELD_OUT, step, loss, rolls))
        else:
            if not math.isfinite(loss):
                self._not_finite(step, "held-out loss", loss)
            go_on = self._stopped is None and self._heed(step, self.trend.evaluated(step, loss, rolls))
        if self._watch is not None:
            self._watch.let_go()  # a forward of held-out rows, with gradients or without, is none of the next step's
        return go_on

    # ── what has been spent ──────────────────────────────────────────────────────────────────────────────────────────

    def invoice(self, subject: str = "") -> list[ledger.Entry]:
        """Return what the run has cost so far, an entry for each kind of thing used; at the prices of the guard."""
        name = subject or str(getattr(self.run, "id", None) or "run")
        return self.usage().entries(name, self.prices, at=time.time(), note="training")

    def usage(self, now: float | None = None) -> ledger.Usage:
        """Return what the run has used so far: this process, other ranks, attempts before a resume."""
        now = self._clock() if now is None else now
        return self.own_usage(now).plus(self._together.others if self._together is not None else self.elsewhere)

    def own_usage(self, now: float) -> ledger.Usage:
        """Return what this process has used since the guard was made, without other ranks."""
        core_s = ledger.cpu_seconds() - self._cpu
        self._peak = max(self._peak, ledger.resident_bytes())
        gpus = self._watch.gpus if self._watch is not None else 0
        return ledger.Usage(wall_s=now - self._start, cpu_s=max(core_s, 0.0), peak_bytes=self._peak, gpus=gpus)

    def _affordable(self, step: int, now: float) -> bool:
        """Read what has been spent and compare it with the budget."""
        # An hour's run is read every ten seconds: a budget is overrun by a hundredth of it at most.
        self._read = now + min(max(SPENT_S, SPENT_SHARE * (now - self._start)), SPENT_MOST_S)
        self.spent = self.usage(now).spent(self.prices)
        self._stands(step, now)
        admission = self.budget.admit(self.spent, what="the run")
        if admission:
            return True
        numbers = {"usd": self.spent.usd, "hours": self.spent.hours, "kwh": self.spent.kwh, "step": float(step)}
        entries = sorted(self.invoice(), key=lambda entry: -entry.usd)
        lines = ", ".join(f"{entry.kind} {entry.usd:.4g}" for entry in entries if entry.usd > 0)
        said = (
            f"The budget is spent at step {step}: {admission.reason}. Invoice in USD: {lines or 'nothing priced'};"
            f" in all {self.spent.usd:.4g} in {self.spent.hours:.4g} hours with {self.spent.kwh:.4g} kWh."
        )
        kept = "The last step is kept as a checkpoint" if self.keeper is not None else "What was trained so far is kept"
        self._stop("training/budget-spent", "warning", step, said, f"{kept}; a larger budget goes on from it.", numbers)
        return False

    # ── how it stands ────────────────────────────────────────────────────────────────────────────────────────────────

    def _stands(self, step: int, now: float) -> None:
        """Look where the time goes and what holds the run back, and tell whoever follows it."""
        usd_per_s = self.spent.usd / max(now - self._start, 1e-9)
        per_s = (step - self._mark[1]) / max(now - self._mark[0], 1e-9)
        self._mark = now, step
        if self._time is not None:
            self.tell(self._time.look(step, usd_per_s))
        self.tell(self._pages.look(step, usd_per_s))
        waiting = self._time.waiting if self._time is not None else None
        if self.readings is not None:
            read = self.readings()
            for finding in self._gpu.look(read, step, steps_per_s=per_s, usd_per_s=usd_per_s, waiting=waiting or 0.0):
                self.tell(finding)
        shares = self._together.stands(self, step, usd_per_s) if self._together is not None else {}
        if step > FIT_STEPS:
            self._learn()
        if self.run is None and self.show is None:
            return
        stands = {
            "step": step,
            "of": self.plan.steps if self.plan is not None else None,
            "at": time.time(),
            "per_s": per_s,
            **{name: getattr(self.spent, name) for name in ("usd", "hours", "kwh")},
            **{f"{name}_of": getattr(self.budget, name) for name in ("usd", "hours", "kwh")},
            "waiting": waiting,
            "lost": self._gpu.lost if self.readings is not None else None,
            **shares,
        }
        if self._watch is not None:
            stands["device"] = self._watch.waited_s / max(now - self._start, 1e-9) if self._watch.gpus else None
            if self._watch.work is not None and self._watch.work.flops:
                stands |= self._watch.work.at(per_s)
        if self.run is not None and hasattr(self.run, "update"):
            self.run.update(stands=stands)
        if self.show is not None:
            told = {"run": str(getattr(self.run, "id", "")), "loss": self.trend.recent()}
            self.show({**stands, **told, "findings": [one.to_dict() for one in self.findings]})

    def _learn(self) -> None:
        """Remember, once, what the run has reserved beside what was predicted."""
        if self._fit is None:
            return
        from tenon.training import memory

        (found, store, reserved), self._fit = self._fit, None
        measured = reserved()
        if store is not None and measured:
            memory.remember(found, store, measured)

    # ── what the loss says ───────────────────────────────────────────────────────────────────────────────────────────

    def _skipped(self, step: int) -> bool:
        """Tell whether the loss scaler skips this step, which is no fault unless it skips only."""
        if self._watch is None or not self._watch.skipped:
            return False
        self.tell(self._watch.health.skipped(step))
        return not self._watch.health.stuck

    def _not_finite(self, step: int, name: str, value: float) -> None:
        said = sentence(f"a finite {name}", f"{value}", at=self._place(step))
        hint = "lower the learning rate, clip gradients, or look for a missing value in this step's rows"
        blame = self._watch.blame(in_loss=name == "loss") if self._watch is not None else None
        if blame is not None:
            said, hint = f"{said}: {blame.said}", blame.hint or hint
        self._stop("training/loss-not-finite", "error", step, said, hint, {"step": float(step)})
        raise TrainingError(f"{said}; {hint}")

    def _heed(self, step: int, evidence: Evidence | None) -> bool:
        """Stop the run for a reason: False when what it has may be kept, TrainingError when not."""
        if evidence is None:
            return True
        numbers = {"step": float(step), **evidence.numbers}
        if not evidence.stop:
            place, said, hint = self._place(step), evidence.said, evidence.hint
            self._say(Finding(code=evidence.code, severity="info", place=place, said=said, hint=hint, numbers=numbers))
            return True
        if evidence.keep:
            grave = "info" if evidence.code == "training/flat" else "warning"
            self._stop(evidence.code, grave, step, evidence.said, evidence.hint, numbers)
            return False
        said = f"{evidence.said} - at {self._place(step)}"
        self._stop(evidence.code, "error", step, said, evidence.hint, numbers)
        raise TrainingError(f"{said}; {evidence.hint}")

    # ── saying it ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _place(self, step: int | str) -> str:
        return f"{getattr(self.run, 'id', None) or 'run'}/{step}"

    def tell(self, finding: Finding | None) -> None:
        """Keep a finding that stops nothing, under this run's name."""
        if finding is not None:
            name, _, step = finding.place.rpartition("/")
            self._say(replace(finding, place=self._place(step)) if name == "run" else finding)

    def _say(self, finding: Finding) -> None:
        self.findings.append(finding)
        if self._together is not None and not self.ranks.first and finding is not self._stopped:
            self._together.news.append(finding)
        if self.run is not None:
            self.run.finding(finding)

    def _stop(self, code: str, severity: Any, step: int, said: str, hint: str, numbers: dict[str, float]) -> None:
        finding = Finding(code=code, severity=severity, place=self._place(step), said=said, hint=hint, numbers=numbers)
        self._stopped = finding
        self._say(finding)

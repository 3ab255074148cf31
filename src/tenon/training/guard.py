"""A Guard is an object a training loop calls once a step, so that no run burns money in silence.

    guard = Guard(budget=Budget(usd=2), run=run)
    for step in range(10_000):
        loss = ...
        if not guard.step(step, loss=loss):      # before the optimiser step
            break                                # stop, and keep what you have

`step` answers True (go on) or False (stop: the budget is spent, or nothing more is to be gained); it raises
TrainingError when what was trained is not to be kept: a loss that is no number, or one that runs away. A loop that does
not listen to False is stopped by a BudgetError or TrainingError at its next step. Every stop is a Finding with its
numbers, in `guard.findings` and in the run.

A stop needs evidence against the noise of the loss. Noise is measured from successive differences (von Neumann, Annals
of Mathematical Statistics 12, 1941), which a trend hardly touches, and taken as a median, which a spike hardly touches.
*Running away*: the last NEAR losses all lie `sigmas` of noise above the best stretch so far, and above where the run
began. *Flat*: a straight line through the second half of the run promises, at the upper end of its 95 % interval, less
than `least_gain` of what the run has gained in all; or the loss rises, and its best lies in the first half. History is
bounded: when it is full, neighbours are averaged, and a point then stands for twice as many steps.

A step costs 0.5 to 5 microseconds, the most in a young run, and what has been spent is read twice a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tenon import ledger
from tenon.config import Prices
from tenon.errors import BudgetError, TrainingError, sentence
from tenon.finding import Finding
from tenon.ledger import Budget, Spent

Floats = NDArray[np.float64]
POINTS = 256  # kept of the history
NEAR = 5  # losses that must agree
CHECK_STEPS = 10
SPENT_S = 0.5  # between readings of what has been spent


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What stops a run; each rule can be turned off.

    `least_gain` is the share of all gain so far that another half of the run must promise.
    """

    diverged: bool = True
    flat: bool = True
    sigmas: float = 6.0
    least_steps: int = 60
    least_gain: float = 0.005
    health: float = 0.003  # share of the running time that looking at a model's health may take


class Guard:
    """Watches one run; see the module's docstring. Not shared between runs or threads."""

    __slots__ = (
        "_clock",
        "_cpu",
        "_every",
        "_follow",
        "_last",
        "_losses",
        "_models",
        "_next",
        "_part",
        "_read",
        "_start",
        "_stopped",
        "_watch",
        "budget",
        "findings",
        "keeper",
        "prices",
        "rules",
        "run",
        "spent",
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
    ) -> None:
        self._follow = follow
        self._models = 0
        self.budget = budget or Budget()
        self.rules = rules
        self.prices = prices
        self.run = run
        self.findings: list[Finding] = []
        self.spent = Spent()
        self._clock = clock
        self._start = clock()
        self._cpu = ledger.cpu_seconds()
        self._read = self._start
        self._losses: list[float] = []
        self._part: list[float] = []  # losses waiting to become one point
        self._every = 1  # steps that one point stands for
        self._next = rules.least_steps
        self._stopped: Finding | None = None
        self._watch: Any = None
        self._last = False  # the step that is let finish, so that its checkpoint is of a whole step
        self.keeper: Any = None  # a Resume puts itself here, and is then asked to save before a run ends

    def watch(self, model: Any, optimizer: Any = None, *, scaler: Any = None) -> Self:
        """Watch a PyTorch model too: its gradients at every step, its health now and then, and who spoiled a step.

        With it, `step` takes the gradient norm itself and names the module that first produced what is not finite.
        Call `step` after `backward` and before the optimiser. `scaler` is the loss scaler of fp16, whose skipped steps
        are no fault. MissingError when PyTorch is not installed.
        """
        from tenon.training.watch_torch import Watch

        if self._watch is not None:
            self._watch.close()
        self._watch = Watch(model, optimizer, scaler=scaler)
        self._watch.health.share = self.rules.health
        return self

    def close(self) -> None:
        """Take off the hooks of `watch`; a guard without them needs no closing."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    @property
    def stopped(self) -> Finding | None:
        """Return why the run was told to stop, or None while it may go on."""
        return self._stopped

    @property
    def ending(self) -> bool:
        """Tell whether the run is about to stop with what it has: a keeper saves this step, and there is no other."""
        return self._last

    @property
    def suspect(self) -> bool:
        """Tell whether the state may be spoiled: the run was refused, or its last losses jump out of their noise."""
        if self._stopped is not None and self._stopped.severity == "error":
            return True
        if len(self._losses) < 4 * NEAR:
            return False
        losses = np.asarray(self._losses)
        before, last = losses[:-NEAR], [*losses[-NEAR:], *self._part]
        usual = float(np.median(before[-4 * NEAR :]))
        return bool(min(last[-2:]) > usual + self.rules.sigmas * _noise(before) + 0.01 * abs(usual))

    def forget(self) -> None:
        """Forget the losses seen so far, because another model begins; what has been spent still counts."""
        self._models += 1
        if self._follow is not None:
            self._follow(self._models, 0)
        self._losses.clear()
        self._part.clear()
        self._every = 1
        self._next = self.rules.least_steps

    def step(self, step: int, *, loss: Any = None, grad_norm: float | None = None) -> bool:
        """Say whether to go on; call it with this step's loss (and gradient norm) before the optimiser's step.

        `loss` is a number, or a tensor of one number, which is read here.

        Raises TrainingError for a loss or gradient that is no number and for one that runs away.
        """
        if self._last:
            self._last = False
            return False
        if self._stopped is not None:
            kind = BudgetError if self._stopped.code == "training/budget-spent" else TrainingError
            raise kind(f"{self._stopped.said} The loop was told to stop and went on, at step {step}")
        if loss is not None and type(loss) is not float:
            loss = float(loss.item()) if hasattr(loss, "item") else float(loss)
        if loss is not None and not math.isfinite(loss):
            self._not_finite(step, "loss", loss)
        if self._watch is not None:
            self._look(step, grad_norm)
        elif grad_norm is not None and not math.isfinite(grad_norm):
            self._not_finite(step, "gradient norm", float(grad_norm))
        if self._follow is not None:
            self._follow(self._models, step)
        now = self._clock()
        go_on = now - self._read < SPENT_S or self._affordable(step, now)
        if go_on and loss is not None:
            self._part.append(loss)
            if len(self._part) == self._every:
                self._keep()
                go_on = self._examine(step)
        if go_on or self.keeper is None:
            return bool(go_on)
        self._last = True  # checkpoint, then stop: this step is let finish, the keeper saves it, the next is refused
        return True

    # ── what has been spent ──────────────────────────────────────────────────────────────────────────────────────────

    def _affordable(self, step: int, now: float) -> bool:
        """Read what has been spent and compare it with the budget."""
        self._read = now
        core_s = ledger.cpu_seconds() - self._cpu
        usage = ledger.Usage(wall_s=now - self._start, cpu_s=max(core_s, 0.0), peak_bytes=ledger.resident_bytes())
        self.spent = usage.spent(self.prices)
        admission = self.budget.admit(self.spent, what="the run")
        if admission:
            return True
        numbers = {"usd": self.spent.usd, "hours": self.spent.hours, "kwh": self.spent.kwh, "step": float(step)}
        said = f"The budget is spent at step {step}: {admission.reason}."
        self._stop("training/budget-spent", "warning", step, said, "What was trained so far is kept.", numbers)
        return False

    # ── what the loss says ───────────────────────────────────────────────────────────────────────────────────────────

    def _look(self, step: int, grad_norm: float | None) -> None:
        """Take the gradients from the watched model; refuse what is not finite, and tell what is not healthy."""
        if grad_norm is None:
            seen = self._watch.gradients()
            grad_norm = seen.norm
            if seen.skipped:
                self.tell(self._watch.health.skipped(step))
                if not self._watch.health.stuck:
                    return
        if grad_norm is not None and not math.isfinite(grad_norm):
            self._not_finite(step, "gradient norm", float(grad_norm))
        for finding in self._watch.passed(step, grad_norm):
            self.tell(finding)

    def _not_finite(self, step: int, name: str, value: float) -> None:
        said = sentence(f"a finite {name}", f"{value}", at=self._place(step))
        hint = "lower the learning rate, clip gradients, or look for a missing value in this step's rows"
        blame = self._watch.blame(in_loss=name == "loss") if self._watch is not None else None
        if blame is not None:
            said, hint = f"{said}: {blame.said}", blame.hint or hint
        self._stop("training/loss-not-finite", "error", step, said, hint, {"step": float(step)})
        raise TrainingError(f"{said}; {hint}")

    def _keep(self) -> None:
        """Turn waiting losses into a point; when the history is full, average neighbours."""
        self._losses.append(sum(self._part) / len(self._part))
        self._part.clear()
        if len(self._losses) > POINTS:
            pairs = np.asarray(self._losses[:POINTS]).reshape(-1, 2).mean(axis=1)
            self._losses = [*pairs.tolist(), *self._losses[POINTS:]]
            self._every *= 2

    def _examine(self, step: int) -> bool:
        """Look for a loss that runs away or lies flat, every CHECK_STEPS steps."""
        if step < self._next or len(self._losses) < 4 * NEAR:
            return True
        self._next = step + CHECK_STEPS * self._every
        losses = np.asarray(self._losses)
        medians = np.median(np.lib.stride_tricks.sliding_window_view(losses, NEAR), axis=1)
        if self.rules.diverged:
            self._diverging(step, losses, medians)
        return not (self.rules.flat and self._lies_flat(step, losses, medians))

    def _diverging(self, step: int, losses: Floats, medians: Floats) -> None:
        """Raise TrainingError when the latest losses lie beyond noise above the best stretch and above the start."""
        best, first, latest = float(medians.min()), float(medians[0]), float(medians[-1])
        around = max(0, int(medians.argmin()) - 2 * NEAR)
        noise = _noise(losses[around : around + 4 * NEAR])  # where it was best: a loss that explodes is all noise
        margin = self.rules.sigmas * noise + 0.01 * abs(best)
        if losses[-NEAR:].min() <= best + margin or latest <= first + margin:
            return
        hint = "lower the learning rate, warm it up, or clip gradients; the last good checkpoint is the one to keep"
        said = sentence(
            f"a loss near its best, {best:.4g}, or at least below its start, {first:.4g}",
            f"{latest:.4g}, {_times((latest - best) / max(noise, 1e-12))} the noise above the best",
            at=self._place(step),
        )
        numbers = {"step": float(step), "loss": latest, "best": best, "first": first, "noise": noise}
        self._stop("training/diverged", "error", step, said, hint, numbers)
        raise TrainingError(f"{said}; {hint}")

    def _lies_flat(self, step: int, losses: Floats, medians: Floats) -> bool:
        """Say whether the second half of the run promises too little for another stretch as long.

        A loss that rises is left to the other rule, unless its best stretch lies in the first half: then it has had
        as long again to come back.
        """
        half = losses[len(losses) // 2 :]
        x = np.arange(len(half)) - (len(half) - 1) / 2
        slope = float(x @ half / (x @ x))
        left = half - half.mean() - slope * x
        error = math.sqrt(float(left @ left) / max(len(half) - 2, 1) / float(x @ x))
        promised = (2 * error - slope) * len(half)
        gained = float(losses[:NEAR].mean() - losses.min())
        least = self.rules.least_gain * max(gained, 1e-3 * abs(float(losses[0])))
        if promised >= least or (slope > 2 * error and medians.argmin() >= len(medians) / 2):
            return False
        said = (
            f"The loss {'rises' if slope > 2 * error else 'lies flat'} at {half.mean():.5g}: the last"
            f" {len(half) * self._every} steps promise at most {max(promised, 0.0):.2g} more in as many again, of"
            f" {gained:.3g} gained in all."
        )
        numbers = {"step": float(step), "loss": float(half.mean()), "promised": promised, "gained": gained}
        hint = "Keep this model, or change the learning rate or the model to gain more."
        self._stop("training/flat", "info", step, said, hint, numbers)
        return True

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
        if self.run is not None:
            self.run.finding(finding)

    def _stop(self, code: str, severity: Any, step: int, said: str, hint: str, numbers: dict[str, float]) -> None:
        finding = Finding(code=code, severity=severity, place=self._place(step), said=said, hint=hint, numbers=numbers)
        self._stopped = finding
        self._say(finding)


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio < 1_000 else "over 1,000 times"


def _noise(losses: Floats) -> float:
    """Estimate the standard deviation of a loss around its trend from successive differences."""
    return float(np.median(np.abs(np.diff(losses)))) / 0.6745 / math.sqrt(2)

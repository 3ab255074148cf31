"""What a curve of losses says: running away, lying flat, or learning nothing; each needs evidence against the noise.

Noise is measured from successive differences (von Neumann, Annals of Mathematical Statistics 12, 1941), which a trend
hardly touches, and taken as a median, which a spike hardly touches. History is bounded: when it is full, neighbours are
averaged, and a point then stands for twice as many steps.

*Running away*: the last NEAR losses all lie `sigmas` of noise above the best stretch so far, and above where the run
began. *Flat*: a straight line through the second half of the run promises, at the upper end of its 95 % interval, less
than `least_gain` of what the run has gained in all; or the loss rises, and its best lies in the first half.

*Learning nothing* needs a `Plan`, how many steps the run is to have and the held-out loss of an answer that knows
nothing, and held-out losses, at least EVALUATIONS of them. From `show_by` of the plan on they must show that the run
learns: one that is `worth` below that answer's, or a fall beyond noise that, going on as it does, would come so far.
What shows neither at two of three evaluations, the last among them, is stopped. Losses of training rows are no such
evidence: their noise hides a slow fall, and rows learnt by heart show one that means nothing; a rule on them harmed 14
good runs of 95. A plateau that ends later than `show_by` cannot be told from one that never ends; `bench/curves.py`
counts how often that is wrong, and is where the thresholds come from. Rejected: extrapolating a power law (its exponent
is not known before the curve has bent, and its interval covers everything), and stopping by rank among earlier runs
(needs earlier runs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tenon.errors import UsageError, sentence

Floats = NDArray[np.float64]
POINTS = 256  # kept of the history
NEAR = 5  # losses that must agree
CHECK_STEPS = 10
FLAT_STEPS = 300  # before which a loss that has noise is not called flat
FROM, UNTIL = 0.65, 2.0  # times `show_by`: evaluations before and after are not judged
EVALUATIONS = 4  # that it takes
FALLS = 3.0  # standard errors of its slope from which a loss falls
HASTE, HASTE_DECAYING = 1.1, 0.6  # times as fast as measured that a run may go on, also when its learning rate decays
STEADY = 0.75  # ratio of the falls in two halves of a curve from which it does not slow down
SUDDEN = 1.0  # times the usual change from which a new best is a fall of its own
BLOWN = 100.0  # times the constant: a loss that will not calm down
PROMISE = 0.5  # of what is worth having: a run that had so much once, and moves, is left to show more
LEAST = 1e-3  # of the constant: a smaller change is none
BOUNCE = 0.25  # of the constant: a curve that rises so much may calm down when the learning rate decays


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What stops a run; each rule can be turned off.

    `least_gain` is the share of all gain so far that another half of the run must promise.
    """

    diverged: bool = True
    flat: bool = True
    hopeless: bool = True  # needs a Plan
    sigmas: float = 6.0
    least_steps: int = 60
    least_gain: float = 0.005
    health: float = 0.002  # share of the running time that looking at a model's health may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is meant to be: how many steps, and the held-out loss of an answer that knows nothing (`constant`).

    For classes that is the entropy of their shares, for squared errors the variance of the target: what the baseline
    `constant` reaches. A run is worth its price when it comes `worth` (a share) below it.
    """

    steps: int
    constant: float
    worth: float = 0.02
    show_by: float = 0.3  # the share of its steps by which a run must show that it learns
    decays: bool = False  # the learning rate falls to near zero at the end, so that a loss that bounces may calm down

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.constant < math.inf or not 0 <= self.worth < 1 or not 0 < self.show_by <= 1:
            got = f"steps={self.steps}, constant={self.constant}, worth={self.worth}, show_by={self.show_by}"
            raise UsageError(sentence("steps of 1 or more, a loss above 0, and shares of at most 1", got, at="Plan"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Why a run should stop: what a Finding says of it, and whether what was trained is worth keeping."""

    code: str
    said: str
    hint: str
    numbers: dict[str, float]
    keep: bool = True


class Trend:
    """The losses of one model so far, and what they are evidence of; `add` is told each, `judge` answers."""

    __slots__ = (
        "_every",
        "_judged",
        "_learnt",
        "_next",
        "_part",
        "_valid",
        "_worse",
        "losses",
        "plan",
        "rules",
    )

    def __init__(self, rules: Rules, plan: Plan | None = None) -> None:
        self.rules = rules
        self.plan = plan
        self.losses: list[float] = []
        self._part: list[float] = []  # losses waiting to become one point
        self._every = 1  # steps that one point stands for
        self._next = rules.least_steps
        self._valid: list[float] = []
        self._learnt = False
        self._worse: list[bool] = []  # the last three evaluations: did they show nothing

    def add(self, loss: float) -> bool:
        """Take a loss; True when it completed a point, and there is something new to judge."""
        self._part.append(loss)
        if len(self._part) < self._every:
            return False
        self.losses.append(sum(self._part) / len(self._part))
        self._part.clear()
        if len(self.losses) > POINTS:
            pairs = np.asarray(self.losses[:POINTS]).reshape(-1, 2).mean(axis=1)
            self.losses = [*pairs.tolist(), *self.losses[POINTS:]]
            self._every *= 2
        return True

    @property
    def suspect(self) -> bool:
        """Tell whether the last losses jump out of their noise, so that the state may be spoiled."""
        if len(self.losses) < 4 * NEAR:
            return False
        losses = np.asarray(self.losses)
        before, last = losses[:-NEAR], [*losses[-NEAR:], *self._part]
        usual = float(np.median(before[-4 * NEAR :]))
        return bool(min(last[-2:]) > usual + self.rules.sigmas * noise(before) + 0.01 * abs(usual))

    def judge(self, step: int) -> Evidence | None:
        """Return why the run should stop, or None; most calls only compare two numbers."""
        found = None
        if step >= self._next and len(self.losses) >= 4 * NEAR:
            self._next = step + CHECK_STEPS * self._every
            losses = np.asarray(self.losses)
            medians = np.median(np.lib.stride_tricks.sliding_window_view(losses, NEAR), axis=1)
            if self.rules.diverged:
                found = self._diverging(losses, medians)
            if found is None and self.rules.flat and step >= self._flat_from(losses):
                found = self._lies_flat(losses, medians)
        return found

    # ── running away, lying flat ─────────────────────────────────────────────────────────────────────────────────────

    def _diverging(self, losses: Floats, medians: Floats) -> Evidence | None:
        """Look whether the latest losses lie beyond noise above the best stretch and above the start."""
        best, first, latest = float(medians.min()), float(medians[0]), float(medians[-1])
        around = max(0, int(medians.argmin()) - 2 * NEAR)
        spread = noise(losses[around : around + 4 * NEAR])  # where it was best: a loss that explodes is all noise
        margin = self.rules.sigmas * spread + 0.01 * abs(best)
        if losses[-NEAR:].min() <= best + margin or latest <= first + margin:
            return None
        return Evidence(
            code="training/diverged",
            said=sentence(
                f"a loss near its best, {best:.4g}, or at least below its start, {first:.4g}",
                f"{latest:.4g}, {_times((latest - best) / max(spread, 1e-12))} the noise above the best",
            ),
            hint="lower the learning rate, warm it up, or clip gradients; the last good checkpoint is the one to keep",
            numbers={"loss": latest, "best": best, "first": first, "noise": spread},
            keep=False,
        )

    def _flat_from(self, losses: Floats) -> float:
        """Return the step before which nothing is called flat: plateaus end, and a decaying learning rate ends them."""
        if self.plan is not None:
            return max(FLAT_STEPS, (0.9 if self.plan.decays else 0.5) * self.plan.steps)
        return FLAT_STEPS if noise(losses) > 1e-6 * abs(float(losses[-1])) else 0

    def _lies_flat(self, losses: Floats, medians: Floats) -> Evidence | None:
        """Look whether the second half of the run promises too little for another stretch as long.

        A loss that rises is left to the other rule, unless its best stretch lies in the first half: then it has had
        as long again to come back.
        """
        half = losses[len(losses) // 2 :]
        slope, error = line(half)
        promised = (2 * error - slope) * len(half)
        gained = float(losses[:NEAR].mean() - losses.min())
        least = self.rules.least_gain * max(gained, 1e-3 * abs(float(losses[0])))
        if promised >= least or (slope > 2 * error and medians.argmin() >= len(medians) / 2):
            return None
        said = (
            f"The loss {'rises' if slope > 2 * error else 'lies flat'} at {half.mean():.5g}: the last"
            f" {len(half) * self._every} steps promise at most {max(promised, 0.0):.2g} more in as many again, of"
            f" {gained:.3g} gained in all."
        )
        numbers = {"loss": float(half.mean()), "promised": promised, "gained": gained}
        hint = "Keep this model, or change the learning rate or the model to gain more."
        return Evidence(code="training/flat", said=said, hint=hint, numbers=numbers)

    # ── learning nothing ─────────────────────────────────────────────────────────────────────────────────────────────

    def evaluated(self, step: int, loss: float) -> Evidence | None:
        """Take a held-out loss; returns why to stop when this one and another of the last three show nothing."""
        self._valid.append(loss)
        if self.plan is None or not self.rules.hopeless:
            return None
        plan, share = self.plan, (step + 1) / self.plan.steps
        self._learnt = self._learnt or loss <= (1 - plan.worth) * plan.constant
        if self._learnt or not FROM * plan.show_by <= share <= UNTIL * plan.show_by or len(self._valid) < EVALUATIONS:
            return None
        valid = np.asarray(self._valid[len(self._valid) // 5 :]) / plan.constant
        left = (1 - share) / share * len(self._valid) / len(valid)
        hope = _hopeful(valid, left, plan)
        hope = hope or (plan.decays and float(np.diff(valid).max()) > BOUNCE and float(valid[-1]) < BLOWN)
        below = (1 - float(min(self._valid)) / plan.constant) / plan.worth
        hope = hope or (below > PROMISE and float(np.ptp(self._valid)) > LEAST * plan.constant)
        self._worse = [*self._worse[-2:], not hope]
        stop = not hope and sum(self._worse) > 1 and share >= plan.show_by
        return self._nothing(step, plan) if stop else None

    def _nothing(self, step: int, plan: Plan) -> Evidence:
        best, latest = min(self._valid), self._valid[-1]
        said = (
            f"After {(step + 1) / plan.steps:.0%} of {plan.steps:,} steps the run has learnt nothing beyond noise: its"
            f" held-out loss is {latest:.4g} and was {best:.4g} at best, that of an answer that knows nothing is"
            f" {plan.constant:.4g}, and it does not fall fast enough to change that."
        )
        hint = "Look at the labels first, then change the learning rate tenfold either way, or the initialisation."
        numbers = {"loss": latest, "best": best, "constant": plan.constant, "left": 1 - (step + 1) / plan.steps}
        return Evidence(code="training/hopeless", said=said, hint=hint, numbers=numbers)


def line(values: Floats) -> tuple[float, float]:
    """Return the slope of the straight line through equally spaced values, and its standard error."""
    x = np.arange(len(values)) - (len(values) - 1) / 2
    slope = float(x @ values / (x @ x))
    left = values - values.mean() - slope * x
    return slope, math.sqrt(float(left @ left) / max(len(values) - 2, 1) / float(x @ x))


def noise(losses: Floats) -> float:
    """Estimate the standard deviation of a loss around its trend from successive differences."""
    return float(np.median(np.abs(np.diff(losses)))) / 0.6745 / math.sqrt(2)


def _hopeful(values: Floats, left: float, plan: Plan) -> bool:
    """Tell whether held-out losses (in units of the constant's) fall beyond noise and could come to the plan's goal.

    `left` is what is to come, in lengths of the curve. A fall that slows down goes on slowing down, by the ratio of its
    two halves or, where the learning rate stays, of its last two steps; one that so comes below the constant itself is
    left to show more.
    """
    goal, haste = 1 - plan.worth, HASTE_DECAYING if plan.decays else HASTE
    slope, error = line(values)
    steps = np.diff(values)
    newest = values[-1] < values[:-1].min()
    sudden = newest and values[:-1].min() - values[-1] > max(SUDDEN * np.abs(steps[:-1]).mean(), LEAST)
    if sudden and values[-1] < 1:
        return True
    if slope > -FALLS * error and not bool((steps < 0).all()):
        return False
    middle = len(values) // 2
    first, second = line(values[: middle + 1])[0], line(values[middle:])[0]
    ratio = min(max(second / first, 0.0), 1.0) if first < 0 else 1.0
    now = float(values[-1] if newest else values[-3:].mean())
    if ratio > STEADY:
        return bool(now + haste * min(slope, second) * len(values) * left <= goal)
    fall = -second * len(values) / 2 * ratio / (1 - ratio) * (1 - ratio ** (2 * left))
    if not plan.decays and steps[-2] < 0 and steps[-1] < -LEAST:
        ratio = min(steps[-1] / steps[-2], STEADY)
        fall = max(fall, -steps[-1] * ratio / (1 - ratio))
    return bool(now - haste * fall < 1 - plan.worth / 4)


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio < 1_000 else "over 1,000 times"

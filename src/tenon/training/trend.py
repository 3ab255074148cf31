"""What a curve of losses says: running away, lying flat, or learning nothing; each needs evidence against the noise.

Noise is measured from successive differences (von Neumann, Annals of Mathematical Statistics 12, 1941), which a trend
hardly touches, and taken as a median, which a spike hardly touches. History is bounded: when it is full, neighbours are
averaged, and a point then stands for twice as many steps.

*Running away*: the last NEAR losses all lie `sigmas` of noise above the best stretch so far, and above where the run
began, at AWAY looks in a row. *Flat*: a straight line through the second half of the run promises, at the upper end of
its 95 % interval, less than `least_gain` of what the run has gained in all; or the loss rises, and its best lies in the
first half. A run that has gained is told so and goes on; a stop is for one that never gained anything.

*Learning nothing* needs a `Plan`, how many steps the run is to have and the held-out loss of an answer that knows
nothing, and held-out losses, at least EVALUATIONS of them. From `show_by` of the plan on, a run that has not been
`worth` below that answer's is weighed at each evaluation. It is stopped when its chance to come so far (see `hope`) is
below `least_chance`, and later below AGAIN of that. Losses of training rows are no such evidence: their noise hides a
slow fall, and rows learnt by heart show one that means nothing; a rule on them harmed 14 good runs of 95. Rejected:
stopping by rank among earlier runs (needs earlier runs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenon.errors import UsageError, sentence
from tenon.training import hope

Floats = NDArray[np.float64]
SLICES = 1_000  # of a plan, for which its learning rate is asked
POINTS = 256  # kept of the history
NEAR = 5  # losses that must agree
AWAY = 3  # looks in a row at which a loss has run away: some come back
CHECK_STEPS = 10
CHECK_AGAIN = 0.03  # of the steps so far, after which a curve is looked at again
FRESH = 512  # losses put aside at most
MARGIN = 0.01  # of the best loss, that a loss which runs away must lie above it whatever the noise
NOTHING = 3.0  # standard errors of the first losses by which a run must have gained, to have gained anything
FLAT_AGAIN = 0.05  # of the steps so far, after which it is asked again
FLAT_LEAST = 50  # steps, and the least
FLAT_STEPS = 300  # before which a loss that has noise is not called flat
EARLIEST = 0.2  # of the plan: no curve was learnt from before
UNTIL = 2.0  # times `show_by`, after which none is judged
EVALUATIONS = 4  # that it takes
ROLLS = 16  # mixed losses that are kept of an evaluation: more tell hardly more
AGAIN = 0.25  # of `least_chance`, at every evaluation after the first: each is another occasion to be wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What stops a run; each rule can be turned off.

    `least_gain` is the share of all gain so far that another half of the run must promise. A run that has gained and
    lies flat is told once and goes on, unless `stop_flat` asks for a stop; one that never gained anything is stopped.
    `least_chance` is the probability to come to be worth its price that a run needs to go on at `show_by` of its plan,
    and a quarter of it later.
    """

    diverged: bool = True
    flat: bool = True
    stop_flat: bool = False
    hopeless: bool = True  # needs a Plan
    least_chance: float = 0.1
    sigmas: float = 6.0
    least_steps: int = 60
    least_gain: float = 0.005
    health: float = 0.0005  # share of the running time that looking at a model's health may take

    def __post_init__(self) -> None:
        if not 0 <= self.least_chance < 1:
            raise UsageError(sentence("a probability as least_chance", f"{self.least_chance}", at="Rules"))


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
    rate: Callable[[int], float] | None = (
        None  # the learning rate planned for a step, in any unit: what is still to come
    )

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.constant < math.inf or not 0 <= self.worth < 1 or not 0 < self.show_by <= 1:
            got = f"steps={self.steps}, constant={self.constant}, worth={self.worth}, show_by={self.show_by}"
            raise UsageError(sentence("steps of 1 or more, a loss above 0, and shares of at most 1", got, at="Plan"))

    def spent(self) -> Floats:
        """Return the share of all planned learning rate that is spent after k / SLICES of the steps, k from 0 on."""
        if self.rate is None:
            return np.linspace(0, 1, SLICES + 1)
        middles = [int((k + 0.5) * self.steps / SLICES) for k in range(SLICES)]
        spent = np.concatenate([[0.0], np.cumsum([max(float(self.rate(step)), 0.0) for step in middles])])
        return spent / spent[-1] if spent[-1] > 0 else np.linspace(0, 1, SLICES + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Why a run should stop: what a Finding says of it, and whether what was trained is worth keeping."""

    code: str
    said: str
    hint: str
    numbers: dict[str, float]
    keep: bool = True
    stop: bool = True


class Trend:
    """The losses of one model so far, and what they are evidence of: `take` is told each and answers."""

    __slots__ = (
        "_at",
        "_away",
        "_every",
        "_flat_at",
        "_forest",
        "_judged",
        "_learnt",
        "_medians",
        "_mixed",
        "_part",
        "_spent",
        "_valid",
        "fresh",
        "losses",
        "next",
        "plan",
        "rules",
    )

    def __init__(self, rules: Rules, plan: Plan | None = None, forest: hope.Forest | None = None) -> None:
        self.rules = rules
        self.plan = plan
        self.losses: list[float] = []
        self._medians: list[float] = []  # of each NEAR neighbours among them
        self._part: list[float] = []  # losses waiting to become one point
        self._every = 1  # steps that one point stands for
        self.fresh: list[float] = []  # losses not looked at yet
        self.next = rules.least_steps  # the step from which there is something to judge
        self._away = 0
        self._flat_at = 0.0  # the step before which it is not asked again whether the loss lies flat
        self._valid: list[float] = []
        self._mixed: list[list[float]] = []  # losses of the same answers, held against the targets of other rows
        self._at: list[int] = []  # steps that were done at each
        self._spent: Floats | None = None
        self._learnt = False
        self._judged = False
        self._forest = forest  # read when it is first asked

    def take(self, step: int, loss: float) -> Evidence | None:
        """Take the loss of a step; returns why the run should stop, or None. Most calls only put the loss aside."""
        self.fresh.append(loss)
        return self.judge(step)

    def _settle(self) -> None:
        for loss in self.fresh:
            self.add(loss)
        self.fresh.clear()

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
            self._medians = [_middle(self.losses[i : i + NEAR]) for i in range(len(self.losses) - NEAR + 1)]
        elif len(self.losses) >= NEAR:
            self._medians.append(_middle(self.losses[-NEAR:]))
        return True

    def recent(self) -> list[float]:
        """Return the losses that are remembered, oldest first; in a long run each is the mean of several steps."""
        self._settle()
        return [*self.losses, *([sum(self._part) / len(self._part)] if self._part else [])]

    @property
    def suspect(self) -> bool:
        """Tell whether the last losses jump out of their noise, so that the state may be spoiled."""
        self._settle()
        if len(self.losses) < 4 * NEAR:
            return False
        losses = np.asarray(self.losses)
        before, last = losses[:-NEAR], [*losses[-NEAR:], *self._part]
        usual = float(np.median(before[-4 * NEAR :]))
        return bool(min(last[-2:]) > usual + self.rules.sigmas * noise(before) + 0.01 * abs(usual))

    def judge(self, step: int) -> Evidence | None:
        """Return why the run should stop, or None; most calls only compare two numbers."""
        if step < self.next and len(self.fresh) < FRESH:
            return None
        self._settle()
        if step < self.next or len(self.losses) < 4 * NEAR:
            return None
        self.next = step + max(CHECK_STEPS * self._every, int(CHECK_AGAIN * step))
        found = self._diverging() if self.rules.diverged else None
        if found is not None:
            self._away += 1
            return found if self._away >= AWAY else None
        self._away = 0
        if self.rules.flat and step >= self._flat_at and self._may_be_flat(step):
            self._flat_at = step + max(FLAT_LEAST, FLAT_AGAIN * step)
            found = self._lies_flat(np.asarray(self.losses), np.asarray(self._medians))
            if found is not None and not found.stop:
                self._flat_at = math.inf  # told once
        return found

    # ── running away, lying flat ─────────────────────────────────────────────────────────────────────────────────────

    def _diverging(self) -> Evidence | None:
        """Look whether the latest losses lie beyond noise above the best stretch and above the start."""
        medians = self._medians
        first, latest, best = medians[0], medians[-1], min(medians)
        lowest, least = min(self.losses[-NEAR:]), MARGIN * abs(best)
        if latest <= first or lowest <= best + least:  # most calls end here
            return None
        around = max(0, medians.index(best) - 2 * NEAR)
        spread = noise(np.asarray(self.losses[around : around + 4 * NEAR]))  # at its best: one that explodes is noise
        margin = self.rules.sigmas * spread + least
        if lowest <= best + margin or latest <= first + margin:
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

    def _may_be_flat(self, step: int) -> bool:
        """Tell whether it is late enough to call a run flat: plateaus end, and a decaying learning rate ends them."""
        if self.plan is not None:
            return step >= max(FLAT_STEPS, (0.9 if self.plan.decays else 0.5) * self.plan.steps)
        few = self.losses[-4 * NEAR :]  # enough to tell whether there is noise at all
        return step >= FLAT_STEPS or noise(np.asarray(few)) <= 1e-6 * abs(few[-1])

    def _lies_flat(self, losses: Floats, medians: Floats) -> Evidence | None:
        """Look whether the second half of the run promises too little for another stretch as long.

        A loss that rises is left to the other rule, unless its best stretch lies in the first half: then it has had
        as long again to come back.
        """
        half = losses[len(losses) // 2 :]
        slope, error = hope.line(np.arange(len(half), dtype=np.float64), half)
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
        level = float(losses[:NEAR].mean() - half.mean())
        nothing = not self._learnt and level < NOTHING * max(noise(losses), 1e-9) / math.sqrt(NEAR)
        hint = "Keep this model, or change the learning rate or the model to gain more."
        stop = self.rules.stop_flat or nothing
        return Evidence(code="training/flat", said=said, hint=hint, numbers=numbers, stop=stop)

    # ── learning nothing ─────────────────────────────────────────────────────────────────────────────────────────────

    def evaluated(self, step: int, loss: float, mixed: list[float] | None = None) -> Evidence | None:
        """Take a held-out loss; returns why to stop, when it is time and there is too little hope."""
        self._valid.append(loss)
        self._mixed.append(mixed or [])
        self._at.append(step + 1)
        if self.plan is None:
            return None
        plan, share = self.plan, (step + 1) / self.plan.steps
        self._learnt = self._learnt or loss <= (1 - plan.worth) * plan.constant
        if not self.rules.hopeless or self._learnt or len(self._valid) < EVALUATIONS:
            return None
        if not max(plan.show_by, EARLIEST) <= share <= UNTIL * plan.show_by:
            return None
        self._forest = self._forest or hope.Forest.load()
        chance = self._forest.chance(self.read(plan))
        least = self.rules.least_chance * (AGAIN if self._judged else 1.0)
        self._judged = True
        return self._nothing(step, plan, chance) if chance < least else None

    def read(self, plan: Plan) -> Floats:
        """Return what the evaluations so far say of what is to come, as `hope.READ` has it."""
        self._spent = plan.spent() if self._spent is None else self._spent
        at = np.interp(np.asarray(self._at) / plan.steps, np.linspace(0, 1, SLICES + 1), self._spent)
        valid, rolls = np.asarray(self._valid) / plan.constant, _in_common(self._mixed) / plan.constant
        return hope.read(valid, rolls, at, worth=plan.worth, decays=plan.decays)

    def _nothing(self, step: int, plan: Plan, chance: float) -> Evidence:
        best, latest = min(self._valid), self._valid[-1]
        of = 100 if chance >= 0.01 else 1_000
        came = f"about {chance * of:.0f}" if chance * of >= 1 else "less than one"
        said = (
            f"After {(step + 1) / plan.steps:.0%} of {plan.steps:,} steps the held-out loss is {latest:.4g} and was"
            f" {best:.4g} at best, that of an answer that knows nothing is {plan.constant:.4g}: of {of:,} runs whose"
            f" losses looked like these, {came} came to be worth their price."
        )
        hint = "Look at the labels first, then change the learning rate tenfold either way, or the initialisation."
        left = 1 - (step + 1) / plan.steps
        numbers = {"loss": latest, "best": best, "constant": plan.constant, "left": left, "chance": chance}
        return Evidence(code="training/hopeless", said=said, hint=hint, numbers=numbers)


def noise(losses: Floats) -> float:
    """Estimate the standard deviation of a loss around its trend from successive differences."""
    return float(np.median(np.abs(np.diff(losses)))) / 0.6745 / math.sqrt(2)


def _middle(losses: list[float]) -> float:
    return sorted(losses)[len(losses) // 2]


def number(value: Any) -> float:
    """Return a number, or what a tensor of one holds; by `item`, for `float` warns of one that has a gradient.

    UsageError for anything else.
    """
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = getattr(value, "shape", None)
        if isinstance(error, RuntimeError) and (shape is None or math.prod(shape) == 1):
            raise  # the device's own
        got = f"a {type(value).__name__} of shape {tuple(shape)}" if shape is not None else repr(value)[:80]
        hint = "a loss of several rows has a mean: loss.mean()"
        raise UsageError(sentence("a loss or norm that is one number", got, at="the guard", hint=hint)) from error


def rolled(mixed: Any) -> list[float]:
    """Return mixed losses as they were told: of no roll, of one, or of the first ROLLS."""
    if mixed is None:
        return []
    told = mixed.tolist() if hasattr(mixed, "tolist") else mixed
    return [float(one) for one in (told if isinstance(told, list | tuple) else [told])][:ROLLS]


def _in_common(mixed: list[list[float]]) -> Floats:
    """Return the mixed losses of those rolls that were told, and were numbers, at every evaluation; a column each."""
    count = min(len(rolls) for rolls in mixed)
    told = np.asarray([rolls[:count] for rolls in mixed], dtype=np.float64).reshape(len(mixed), count)
    return told[:, np.isfinite(told).all(axis=0)]


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio < 1_000 else "over 1,000 times"

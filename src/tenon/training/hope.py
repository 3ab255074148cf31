"""The chance that a run which has shown nothing so far still comes to something, from held-out losses, for `trend`.

Two losses are looked at. The *held-out loss* says how good the answers are, but a run that learns may be hidden in it:
answers that are too bold, or far off on the whole, make it worse while they begin to tell rows apart. The *mixed loss*
is the loss of the same answers held against the targets of other held-out rows, rolled by one, two, and so on. Mixed
less held-out loss, the *gain*, is what the answers know about their own row and not about rows in general: zero in the
mean for a model that knows nothing, and above it while the held-out loss still stands on its plateau. It is a
permutation test's statistic (Pitman, Supplement to the Journal of the Royal Statistical Society 4, 1937), and costs no
forward pass. Read from them, in units of what is worth having and none of the loss's own:

- *Learning.* What answers know by chance when a run begins stays in the gain, and hides a small one that comes. So its
  growth since an earlier evaluation is looked at, for each roll by itself: that chance is the same at both and falls
  out, and how far the growths of several rolls lie apart is what chance does to one of them.
- *Knowledge.* The gain is linear in the scale of the answers, for squared errors and for entropies; the loss over the
  constant is then, to second order, the cost of their boldness less the gain. At the best scale they are worth gain
  squared over four times that cost: what bold answers know, and what a falling learning rate or weight decay bring out.
- *Where it leads.* Both curves are continued to the end of the plan, by the slopes of their two halves, of which the
  second is the first times some factor. Time is counted in learning rate that has been spent, so that a decay or a
  warm-up that is planned is known.

What these are evidence of is not written down by hand: boosted trees (`hope.json`) were fitted to thousands of real
learning curves of small models by `bench/curves.py --learn`, which says how often such a run came to something. A run
is seen as PLACES evaluations however many there were, so that nothing depends on how often a loop evaluates. More gain,
and a lower loss, never lower the chance. With fewer than ROLLS mixed losses the growth is not told from chance, and
without any the gain is not known: the trees have learnt what a run is worth then, too.

Rejected: rules by hand with seventeen thresholds (tuned on 3,520 runs, they stopped 0.7 % of the good ones there and
1.2 % of 7,131 others); logistic regression on splines of the same numbers (twice as many); the curve itself instead of,
or beside, what is read from it (no better on tasks that were not learnt from); gradient norms (the norm does not tell
a saddle that is being left from noise); a power law (its exponent is not known before the curve has bent).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PLACES = 5  # evaluations as which a run is seen
ROLLS = 4  # mixed losses from which their spread is known
WORTH = 0.02  # what was worth having when the trees were fitted
LEAST_WORTH = 1e-3
ROUNDING = 1e-5  # of the constant: the mean of some hundred losses in single precision tells no less
FINE = 1e-4  # of the constant, below which a number is read on a straight scale and not by its logarithm
FAR = 1e4  # of the constant, or of a ratio: what is beyond tells no more
SURE = 50.0  # standard errors
MOST = 6.0  # e-foldings that growth goes on for
UNKNOWN = -100.0  # below all that is read

# Of each number that is read: does the chance grow (1) or fall (-1) with it.
READ = {
    "loss": -1,  # the newest held-out loss above the constant
    "fall": 0,  # its slope, in standard errors
    "late fall": 0,  # the same of the second half
    "late slope": 0,
    "forecast": 0,  # by how much the loss will change
    "gain": 1,
    "gain by chance": 1,  # the gain, in spreads of the mixed losses
    "growth": 1,  # of the gain, since the evaluation from which most, in units of what chance gives
    "growth since the first": 1,
    "rise": 0,  # the slope of the gain, in standard errors
    "rise slope": 0,
    "gain forecast": 0,  # by how much the gain will change
    "best scale": 1,  # how far below the constant answers would lie at their best scale
    "boldness": 0,
    "spent": 0,  # share of the planned learning rate that is spent
    "decays": 0,
}


@dataclass(frozen=True, slots=True)
class Forest:
    """Boosted trees: nested lists of which number is asked, a threshold, what holds up to it and what above.

    The end of a way through a tree is what it adds to the logarithm of the odds.
    """

    trees: list[Any]

    @classmethod
    def load(cls) -> Forest:
        """Read the trees that come with tenon."""
        kept = resources.files("tenon.training").joinpath("hope.json").read_text(encoding="utf-8")
        return cls(json.loads(kept)["trees"])

    def chance(self, read: Floats) -> float:
        """Return the probability that a run from which these numbers were read comes to be worth its price."""
        values, odds = read.tolist(), 0.0
        for tree in self.trees:
            while isinstance(tree, list):
                asked, threshold, below, above = tree
                tree = below if values[asked] <= threshold else above
            odds += tree
        return 1 / (1 + math.exp(-odds))


def read(valid: Floats, rolls: Floats, at: Floats, *, worth: float, decays: bool) -> Floats:
    """Read from losses in units of the constant's what the trees are asked with, in the order of READ.

    `valid` (evaluations,) are held-out losses, of which two at least; `rolls` (evaluations, rolls) the mixed ones, a
    column for each roll, maybe none; `at` (evaluations,) the share of rate spent by then.
    """
    places = np.unique(np.linspace(len(valid) // 5, len(valid) - 1, PLACES).round().astype(int))
    unit = WORTH / max(worth, LEAST_WORTH)
    above, at = np.clip((valid[places] - 1) * unit, -FAR, FAR), at[places]
    half = len(above) // 2
    slope, error = line(at, above)
    late, late_error = line(at[half:], above[half:]) if len(above) - half > 2 else (slope, error)
    told = {
        "loss": _fine(above[-1]),
        "fall": _ratio(slope, error),
        "late fall": _ratio(late, late_error),
        "late slope": _fine(late),
        "forecast": _fine(ahead(at, above)),
        "spent": at[-1],
        "decays": decays,
    }
    if rolls.shape[1]:
        apart = np.clip((rolls[places] - valid[places, None]) * unit, -FAR, FAR)
        told |= _gained(above, apart, at, rolls=np.clip(rolls[-1] * unit, -FAR, FAR))
    return np.asarray([told.get(name, UNKNOWN) for name in READ], dtype=np.float64)


def _gained(above: Floats, apart: Floats, at: Floats, *, rolls: Floats) -> dict[str, float]:
    """Read what the gain tells; `apart` is it for each roll, and `rolls` the newest mixed losses."""
    gain = apart.mean(axis=1)
    rise, error = line(at, gain)
    told = {
        "gain": _fine(gain[-1]),
        "rise": _ratio(rise, error),
        "rise slope": _fine(rise),
        "gain forecast": _fine(ahead(at, gain)),
        "best scale": _fine(calibrated(above[-1], gain[-1])),
        "boldness": _fine(above[-1] + gain[-1]),
    }
    if len(rolls) >= ROLLS:
        since = np.log1p(growth(apart))
        told |= {
            "gain by chance": _ratio(gain[-1], rolls.std(ddof=1)),
            "growth": since.max(),
            "growth since the first": since[0],
        }
    return told


def growth(apart: Floats) -> Floats:
    """Return by how much the gain has changed since each earlier evaluation, in units of what chance gives.

    In either direction: answers may be turned around.
    """
    grown = apart[-1] - apart[:-1]
    mean = np.abs(grown.mean(axis=1))
    chance = grown.std(axis=1, ddof=1) * math.sqrt(1 + 1 / apart.shape[1])  # of one roll against the mean of others
    return np.where(mean > ROUNDING, mean / np.maximum(chance, ROUNDING / 10), 0.0)


def calibrated(above: float, gain: float) -> float:
    """Return how far answers that lie so far above the constant would lie below it at their best scale."""
    boldness = above + gain
    return gain * gain / (4 * boldness) if gain > 0 and boldness > 0 else 0.0


def ahead(at: Floats, values: Floats) -> float:
    """Return by how much a curve is forecast to change until all learning rate is spent, at 1."""
    middle, left = len(values) // 2, 1 - float(at[-1])
    first, second = line(at[: middle + 1], values[: middle + 1])[0], line(at[middle:], values[middle:])[0]
    if second == 0 or left <= 0:
        return 0.0
    factor = second / first if first != 0 else 1.0
    apart = float(at[middle:].mean() - at[: middle + 1].mean())
    rate = math.log(factor) / apart if factor > 0 else 0.0  # a curve that has turned goes on as it does now
    slope = second * math.exp(min(rate * (float(at[-1]) - float(at[middle:].mean())), MOST))
    rate = min(rate, MOST / left)
    return slope * left if abs(rate * left) < 1e-3 else slope * math.expm1(rate * left) / rate


def line(at: Floats, values: Floats) -> tuple[float, float]:
    """Return the slope of the straight line through values at some places, and its standard error."""
    x = at - at.mean()
    spread = float(x @ x)
    if spread == 0:  # a planned rate of nothing: no time goes by
        return 0.0, 0.0
    slope = float(x @ values) / spread
    left = values - values.mean() - slope * x
    return slope, math.sqrt(float(left @ left) / max(len(values) - 2, 1) / spread)


def _fine(value: float) -> float:
    """Return a number by its logarithm, and by itself where it is small."""
    return math.copysign(math.log1p(min(abs(value), FAR) / FINE), value)


def _ratio(value: float, error: float) -> float:
    return min(max(value / max(error, 1e-12), -SURE), SURE)

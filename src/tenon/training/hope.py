"""Could a run that has shown nothing so far still come to something? Forecasts of held-out losses, for `trend`.

Two losses are looked at. The *held-out loss* says how good the answers are, but a run that learns may be hidden in it:
answers that are too bold, or far off on the whole, make it worse while they begin to tell rows apart. The *mixed loss*
is the loss of the same answers held against the targets of other held-out rows, rolled by one, two, and so on. Mixed
less held-out loss, the *gain*, is what the answers know about their own row and not about rows in general: zero in the
mean for a model that knows nothing, and above it while the held-out loss still stands on its plateau. It is a
permutation test's statistic (Pitman, Supplement to the Journal of the Royal Statistical Society 4, 1937), and costs no
forward pass. Two things are read from it:

- *Learning.* What answers know by chance when a run begins stays in the gain, and hides a small one that comes. So its
  growth since an earlier evaluation is looked at, for each roll by itself: that chance is the same at both and falls
  out, and how far the growths of several rolls lie apart is what chance does to one of them. A run whose gain grew
  beyond that since no earlier evaluation has learnt nothing, whatever its loss does.
- *Knowledge.* The gain is linear in the scale of the answers, for squared errors and for entropies; the loss over the
  constant is then, to second order, the cost of their boldness less the gain. At the best scale they are worth gain
  squared over four times that cost: what bold answers know, and what a falling learning rate or weight decay bring out.

The curves are continued to the end of the plan. Time is counted in learning rate that has been spent, so that a decay
or a warm-up that is planned is known. A curve is continued by the slopes of its two halves, of which the second is the
first times some factor: it goes on slowing down, or growing, by that factor. A fall that is steady can be continued
with trust: one too slow has no hope, whatever is known.

With fewer than ROLLS mixed losses chance is not known: what grows is then told by a line, and none is sure. Without any
only the held-out loss is known (`alone`), and a plateau that will end cannot be told from one that never does.
Rejected: gradient norms (the norm does not tell a saddle that is being left from noise; a classifier that was given
norms and training losses did no better than one without), and a power law (its exponent is not known before the curve
has bent). `bench/curves.py` has the curves from which the thresholds come.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ROLLS = 4  # mixed losses from which their spread is known
LEARNS = 2.0  # times what chance gives, that a gain must have grown by since some evaluation
SURE = 3.0  # times what chance gives: hardly ever chance, though several such numbers are looked at
GROWS = 1.0  # standard errors of its slope from which a gain grows, where chance is not known
ROUNDING = 1e-5  # of the constant: the mean of some hundred losses in single precision tells no less
FALLS = 2.5  # standard errors of its slope from which a held-out loss falls
STEADY = 8.0  # standard errors from which its fall is so even that the forecast is to be trusted
HASTE = 1.3  # times as fast as forecast that a loss may fall, and a gain grow
NEAR = 0.05  # above the constant, up to which a plateau lies near it
GROWN = 0.35  # of what is worth having, that a gain near the constant must come to: a saddle is left faster and faster
ENOUGH = 0.3  # of what is worth having, that answers must know at their best scale: more of it is to come
FAR, BLOWN = 10.0, 100.0  # times the constant: losses that no longer calm down, and not even when the rate decays
LEAST = 1e-3  # of the constant: a smaller change is none
FALLS_ALONE = 3.0
HASTE_ALONE, HASTE_DECAYING = 1.1, 0.6  # also when the learning rate decays, which `alone` is not told more of
EVEN = 0.75  # ratio of the falls in two halves of a curve from which it does not slow down
BOUNCE_ALONE = 0.25
MOST = 6.0  # e-foldings that growth goes on for


def paired(valid: Floats, rolls: Floats, at: Floats, *, worth: float, decays: bool) -> bool:
    """Tell whether there is hope, from losses in units of the constant's, each with the share of rate spent by then.

    `rolls` are the mixed losses, a column for each roll.
    """
    gain = rolls.mean(axis=1) - valid
    now, known = float(valid[-1]), float(gain[-1])
    slope, error = line(at, valid)
    chance = float(rolls[-1].std(ddof=1)) if rolls.shape[1] >= ROLLS else 0.0
    may_calm = now < (BLOWN if decays else FAR) and slope > -STEADY * error
    if may_calm and known > SURE * chance and calibrated(now, known) >= ENOUGH * worth:
        return True
    since = growth(valid, rolls, at)
    if since.max() < LEARNS:
        return False
    falls = slope < -FALLS * error
    if not falls and now < FAR and since.max() >= SURE:
        return True  # it comes to know more while its loss goes nowhere: what leaves a saddle, or bounces
    to_come = ahead(at, gain)
    # What a loss loses by coming down to the constant ends there; only what is known of single rows goes below.
    if falls and now + HASTE * ahead(at, valid) <= 1 - worth and known + HASTE * to_come >= worth:
        return True
    return now < 1 + NEAR and known - float(gain[0]) + max(to_come, 0.0) >= GROWN * worth


def growth(valid: Floats, rolls: Floats, at: Floats) -> Floats:
    """Return by how much the gain has changed since each earlier evaluation, in units of what chance gives.

    In either direction: answers may be turned around.
    """
    apart = rolls - valid[:, None]
    if rolls.shape[1] < ROLLS:
        slope, error = line(at, apart.mean(axis=1))
        return np.full(len(valid) - 1, LEARNS if slope > GROWS * error else 0.0)
    grown = apart[-1] - apart[:-1]
    mean = np.abs(grown.mean(axis=1))
    chance = grown.std(axis=1, ddof=1) * math.sqrt(1 + 1 / rolls.shape[1])  # of one roll against the mean of others
    return np.where(mean > ROUNDING, mean / np.maximum(chance, ROUNDING / 10), 0.0)


def calibrated(now: float, known: float) -> float:
    """Return how far answers would lie below the constant at their best scale."""
    boldness = now - 1 + known
    return known * known / (4 * boldness) if known > 0 and boldness > 0 else 0.0


def alone(values: Floats, left: float, *, worth: float, decays: bool) -> bool:
    """Tell whether there is hope, from held-out losses only: they must fall beyond noise, fast enough for the goal.

    `left` is what is to come, in lengths of the curve. A fall that slows down goes on slowing down, by the ratio of its
    two halves or, where the learning rate stays, of its last two steps; one that so comes below the constant itself is
    left to show more.
    """
    goal, haste = 1 - worth, HASTE_DECAYING if decays else HASTE_ALONE
    places = np.arange(len(values), dtype=np.float64)
    slope, error = line(places, values)
    steps = np.diff(values)
    newest = values[-1] < values[:-1].min()
    if sudden(values) or (decays and float(steps.max()) > BOUNCE_ALONE and float(values[-1]) < BLOWN):
        return True
    if slope > -FALLS_ALONE * error and not bool((steps < 0).all()):
        return False
    middle = len(values) // 2
    first = line(places[: middle + 1], values[: middle + 1])[0]
    second = line(places[middle:], values[middle:])[0]
    ratio = min(max(second / first, 0.0), 1.0) if first < 0 else 1.0
    now = float(values[-1] if newest else values[-3:].mean())
    if ratio > EVEN:
        return bool(now + haste * min(slope, second) * len(values) * left <= goal)
    fall = -second * len(values) / 2 * ratio / (1 - ratio) * (1 - ratio ** (2 * left))
    if not decays and steps[-2] < 0 and steps[-1] < -LEAST:
        ratio = min(steps[-1] / steps[-2], EVEN)
        fall = max(fall, -steps[-1] * ratio / (1 - ratio))
    return bool(now - haste * fall < 1 - worth / 4)


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


def sudden(valid: Floats) -> bool:
    """Tell whether the newest loss is a best below the constant by more than the usual change: a fall of its own."""
    best, now = float(valid[:-1].min()), float(valid[-1])
    usual = float(np.abs(np.diff(valid[:-1])).mean())
    return now < 1 and best - now > max(usual, LEAST)


def line(at: Floats, values: Floats) -> tuple[float, float]:
    """Return the slope of the straight line through values at some places, and its standard error."""
    x = at - at.mean()
    slope = float(x @ values / (x @ x))
    left = values - values.mean() - slope * x
    return slope, math.sqrt(float(left @ left) / max(len(values) - 2, 1) / float(x @ x))

"""Could a run that has shown nothing so far still come to something? Forecasts of held-out losses, for `trend`.

Two losses are looked at. The *held-out loss* says how good the answers are, but a run that learns may be hidden in it:
answers that are too bold, or far off on the whole, make it worse while they begin to tell rows apart. The *mixed loss*
is the loss of the same answers held against the targets of other held-out rows. Mixed less held-out loss, the *gain*,
is what the answers know about their own row and not about rows in general: zero in the mean for a model that knows
nothing, however its answers lie, and already above it while the held-out loss still stands on its plateau. It is a
permutation test's statistic (Pitman, Supplement to the Journal of the Royal Statistical Society 4, 1937), and costs no
forward pass.

Both curves are continued to the end of the plan. Time is counted in learning rate that has been spent, so that a decay
or a warm-up that is planned is known: a curve is continued as far as the rate that is left reaches. It is
continued by the slopes of its two halves, of which the second is the first times some factor: it goes on slowing down,
or growing, by that factor. There is hope when the held-out loss so comes to the goal, when the gain so
becomes worth it while the held-out loss stands near the constant, when the gain already is, and, where the rate decays,
for a curve that bounces.

With several mixed losses, for several rolls, their spread is what *chance* does to one of them: the noise of the gain
is known at every evaluation, and need not be guessed from few points. A gain beyond it that came during the run is
knowledge, however small it still is and whatever the loss does meanwhile: what leaves a saddle grows without bound in
units of chance before it shows in any loss. A run that has it, and moves, is left alone.

Without mixed losses only the first is known (`alone`), and a plateau that will end cannot be told from one that never
does. Rejected: gradient norms (the norm does not tell a saddle that is being left from noise; a classifier that was
given norms and training losses did no better than one without), and a power law (its exponent is not known before the
curve has bent). `bench/curves.py` has the curves from which the thresholds come.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FALLS = 2.5  # standard errors of its slope from which a held-out loss falls
GROWS = 1.0  # and from which a gain grows
HASTE = 1.3  # times as fast as forecast that a loss may fall
WORTH_OF_GAIN = 0.5  # of the gain that is to come, by which the held-out loss falls meanwhile
NEAR_CONSTANT = 0.05  # above the constant, up to which a held-out loss stands near it
NEARLY = 0.75  # of what is worth having, that a growing gain is forecast to be worth
KNOWS = 0.7  # of what is worth having: a gain so large already knows something
GROWN = 0.25  # of what is worth having, that it must have grown by, or will; and that a curve moves by
SURELY = 8.0  # standard errors from which a gain that does not slow down is believed to go on, however small it is
STEADILY = 0.9  # times the slope of the first half
MUCH = 5.0  # times what is worth having: a gain so large, above a loss that falls, has only to be calibrated
KNOWN = 5.0  # times what chance gives, in either direction: such a gain is none of chance
CAME = 4.0  # times what it was at first, that such a gain must have been: it came by training
BEYOND = 2.0  # times what chance gives, that a gain must be for a sudden fall to count
BOUNCE = 0.5  # of the constant: a curve that rises so much may calm down when the learning rate decays
BLOWN = 100.0  # times the constant: a loss that will not calm down
LEAST = 1e-3  # of the constant: a smaller change is none
FALLS_ALONE = 3.0
HASTE_ALONE, HASTE_DECAYING = 1.1, 0.6  # also when the learning rate decays, which `alone` is not told more of
STEADY = 0.75  # ratio of the falls in two halves of a curve from which it does not slow down
BOUNCE_ALONE = 0.25
MOST = 6.0  # e-foldings that growth goes on for


def paired(
    valid: Floats, mixed: Floats, at: Floats, *, worth: float, decays: bool, chance: Floats | None = None
) -> bool:
    """Tell whether there is hope, from losses in units of the constant's, each with the share of rate spent by then.

    `chance` is the spread of mixed losses of other rolls, where it is known.
    """
    gain = mixed - valid
    moves = max(float(np.abs(np.diff(valid)).mean()), abs(float(gain[-1] - gain[-2])))
    if moves > GROWN * worth and chance is not None and came(gain, chance):
        return True
    now, known, goal = float(valid[-1]), float(gain[-1]), 1 - worth
    to_come = ahead(at, gain)
    slope, error = line(at, valid)
    # What a loss loses by coming down to the constant ends there; only what is known of single rows goes below.
    if slope < -FALLS * error and now + HASTE * ahead(at, valid) <= goal and known + to_come >= worth:
        return True
    if slope < -FALLS * error and now < 1 + MUCH * worth < 1 + known:
        return True
    slope, error = line(at, gain)
    if slope > GROWS * error:
        if slope > SURELY * error and now < 1 + NEAR_CONSTANT and to_come > GROWN * worth and not slows(at, gain):
            return True
        if now < 1 + NEAR_CONSTANT and now - WORTH_OF_GAIN * to_come <= 1 - NEARLY * worth:
            return True
        if now < 1 + NEAR_CONSTANT and known > KNOWS * worth and known - float(gain[0]) > GROWN * worth:
            return True
    bounces = decays and float(np.diff(valid).max()) > BOUNCE and now < BLOWN
    falls = sudden(valid) and (chance is None or known >= BEYOND * float(chance[-1]))
    return falls or (bounces and float(gain.max()) >= worth)


def came(gain: Floats, chance: Floats) -> bool:
    """Tell whether a gain beyond chance came by training: in either direction, for answers may be turned around."""
    beyond = bool((np.abs(gain[-3:]) >= KNOWN * chance[-3:]).any())
    return beyond and float(np.abs(gain).max()) > CAME * abs(float(gain[0]))


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
    if ratio > STEADY:
        return bool(now + haste * min(slope, second) * len(values) * left <= goal)
    fall = -second * len(values) / 2 * ratio / (1 - ratio) * (1 - ratio ** (2 * left))
    if not decays and steps[-2] < 0 and steps[-1] < -LEAST:
        ratio = min(steps[-1] / steps[-2], STEADY)
        fall = max(fall, -steps[-1] * ratio / (1 - ratio))
    return bool(now - haste * fall < 1 - worth / 4)


def slows(at: Floats, values: Floats) -> bool:
    """Tell whether a curve's second half is less steep than its first."""
    middle = len(values) // 2
    first, second = line(at[: middle + 1], values[: middle + 1])[0], line(at[middle:], values[middle:])[0]
    return abs(second) < STEADILY * abs(first)


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

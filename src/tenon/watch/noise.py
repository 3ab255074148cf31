"""What chance alone would do: the sampling noise that a difference must exceed before watching speaks of it.

PSI between two samples of n and m rows over B bins is not 0 when nothing changed. Under no change it follows, closely,
(1/n + 1/m) times a chi-square with B - 1 degrees of freedom (Yurdakul and Naranjo, "Statistical properties of the
population stability index", Journal of Risk Model Validation 14(4), 2020; first in Yurdakul's thesis, Western Michigan
University, 2018). So the usual thresholds 0.1 and 0.25 mean nothing at 60 rows, where 0.2 is ordinary, and `psi_noise`
is the value that chance exceeds once in 1/alpha.

Two values with intervals are compared by their standard errors, read off the intervals; many looks at once are
corrected by Holm's step-down method, which needs no independence between the looks. The chi-square quantile is Wilson
and Hilferty's cube: within 3 % of the exact one down to 1 in 1,000, and some percent high beyond, which errs on the
quiet side; it spares a dependency on SciPy.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from statistics import NormalDist

_NORMAL = NormalDist()
ALPHA = 0.01  # how often, over one whole examination, chance alone may raise a finding of one kind


def chi2_quantile(p: float, degrees: int) -> float:
    """Return the value a chi-square of `degrees` stays below with probability `p`."""
    if degrees <= 0:
        return 0.0
    part = 2 / (9 * degrees)
    return max(0.0, degrees * (1 - part + _NORMAL.inv_cdf(p) * math.sqrt(part)) ** 3)


def psi_noise(reference_rows: float, rows: float, bins: int, alpha: float = ALPHA) -> float:
    """Return the PSI that two samples of one distribution exceed with probability `alpha`; infinite without rows."""
    if reference_rows <= 0 or rows <= 0:
        return math.inf
    return (1 / reference_rows + 1 / rows) * chi2_quantile(1 - alpha, bins - 1)


def standard_error(low: float, high: float) -> float:
    """Return the standard error that a 95 % interval stands for; not a number when the interval is none."""
    return (high - low) / (2 * _NORMAL.inv_cdf(0.975))


def two_sided(difference: float, *errors: float, degrees: float = math.inf) -> float:
    """Return how probable a difference this large is by chance, given independent standard errors; 1 when unknown.

    `degrees` are those of Student's t when the errors were themselves estimated from few values.
    """
    spread = math.sqrt(sum(error * error for error in errors if math.isfinite(error)))
    if spread == 0 or not math.isfinite(difference):
        return 1.0 if difference == 0 or not math.isfinite(difference) else 0.0
    t = abs(difference) / spread
    if math.isfinite(
        degrees
    ):  # Wallace's normal approximation of Student's t (Annals of Mathematical Statistics, 1959)
        t = (8 * degrees + 1) / (8 * degrees + 3) * math.sqrt(degrees * math.log1p(t * t / degrees))
    return 2 * (1 - _NORMAL.cdf(t))


def shares_differ(count: float, rows: float, reference: float, reference_rows: float) -> float:
    """Return the probability that a share of `count` in `rows` differs this much from the reference share by chance."""
    if rows <= 0:
        return 1.0
    pooled = (count + reference * reference_rows) / (rows + reference_rows)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / rows + (1 / reference_rows if reference_rows else 0.0)))
    return two_sided(count / rows - reference, spread)


def between(values: Sequence[float], errors: Sequence[float]) -> float:
    """Return how much values vary among themselves beyond their own sampling errors; 0 with fewer than five.

    From the median absolute deviation, so that a few odd ones (which are what is looked for) do not widen it.
    """
    if len(values) < 5:
        return 0.0
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - middle) for value in values)
    known = [error * error for error in errors if math.isfinite(error)]
    return math.sqrt(max(0.0, spread * spread - (statistics.fmean(known) if known else 0.0)))


def holm(chances: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """Tell which of many looks hold together: Holm's step-down at family-wise error `alpha`."""
    held = [False] * len(chances)
    for rank, index in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        if not chances[index] <= alpha / (len(chances) - rank):
            break
        held[index] = True
    return held

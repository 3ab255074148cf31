"""Window sums that round once: the same bits whatever order the facts came in, offline and online.

A window's sum is the difference of two running sums. With ordinary floating point that difference carries the rounding
of everything that ever happened before the window: it changes with the order of arrival, with pruning, and with values
that are not in the window at all. Here running sums are exact, and only the difference is rounded, to the nearest
number, so offline and online agree to the bit because both are right.

Offline (`prefix`, `window_sums`) a column is split into at most three parts, each a multiple of a unit so coarse that
no running sum of it can round (the error-free extraction of Rump, Ogita and Oishi, "Accurate floating-point summation",
2008); the differences of the parts are exact and are added with one rounding (Shewchuk 1997, and the last step of
CPython's `math.fsum`). Online, and for the rare column that needs more parts, numbers are scaled to Python integers.

The variance is (n·Σx² - (Σx)²) / (n·(n - 1)) on those exact sums: the formula that is famous for cancellation, without
any. Rejected: Kahan sums (better, not exact, order still matters); a segmented float `cumsum` per group (bit-equal only
while nothing is pruned or late). All numbers are finite here; callers turn NaN and infinity into nulls before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Integers = NDArray[np.object_]  # Python integers, of any size

EXACT = float(2**53)  # whole numbers below this are floats without rounding
PARTS = 3
SCALES = (0, 64, 128, 256, 512, 1074)  # powers of two by which Python integers are scaled; 1074 holds any float


# ── Python integers: online, and the general case ────────────────────────────────────────────────────────────────────


def scale_for(value: float) -> int:
    """Return the smallest scale of SCALES at which this finite number is a whole number."""
    denominator = value.as_integer_ratio()[1]
    bits = denominator.bit_length() - 1
    return next(scale for scale in SCALES if scale >= bits)


def scaled(value: float, scale: int) -> int:
    """Return value · 2**scale as an exact integer; the scale must suffice for it."""
    numerator, denominator = value.as_integer_ratio()
    return (numerator << scale) // denominator


def ratio(total: int, scale: int) -> float | None:
    """Return total / 2**scale rounded once; None when it is beyond the largest float."""
    try:
        return total / (1 << scale)
    except OverflowError:
        return None


def deviation(count: int, total: int, squares: int, scale: int) -> float | None:
    """Return the sample standard deviation of exact sums at that scale; None for fewer than two numbers."""
    if count < 2:
        return None
    try:
        return math.sqrt((count * squares - total * total) / ((count * (count - 1)) << (2 * scale)))
    except OverflowError:
        return None


# ── NumPy: offline ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Exact running sums of one column, with a leading zero: float parts, or Python integers at a scale."""

    parts: tuple[Floats, ...] = ()
    integers: Integers | None = None
    scale: int = 0


def prefix(values: Floats) -> Prefix:
    """Build the exact running sums of finite numbers (nulls given as 0); one pass for each part."""
    parts = _parts(values)
    if parts is not None:
        return Prefix(parts=tuple(_running(part) for part in parts))
    whole, scale = _whole(values)
    return Prefix(integers=_running_integers(whole), scale=scale)


def window_sums(sums: Prefix, lo: Ints, hi: Ints) -> Floats:
    """Return Σ values[lo:hi] for each window, rounded once; NaN where it is beyond the largest float."""
    if sums.integers is not None:
        return _quotients(sums.integers[hi] - sums.integers[lo], 1 << sums.scale)
    differences = [part[hi] - part[lo] for part in sums.parts]
    if len(differences) == 1:
        total = differences[0]
    elif len(differences) == 2:
        total = differences[0] + differences[1]
    else:
        total = _three(differences[0], differences[1], differences[2])
    total[~np.isfinite(total)] = np.nan
    return total


def window_deviations(values: Floats, counts: Ints, lo: Ints, hi: Ints) -> Floats:
    """Return the sample standard deviation of each window (nulls given as 0, left out of `counts`); NaN below two."""
    found = np.full(len(counts), np.nan)
    several = np.flatnonzero(counts > 1)
    n, lo, hi = counts[several], lo[several], hi[several]
    small = float(np.max(np.abs(values), initial=0.0)) < 2.0**26 and bool(np.all(values == np.rint(values)))
    if small and float(np.sum(values * values)) * float(n.max(initial=0)) < EXACT:
        total, squares = _running(values), _running(values * values)
        s, q = total[hi] - total[lo], squares[hi] - squares[lo]
        found[several] = np.sqrt((n * q - s * s) / (n * (n - 1)))
        return found
    whole, scale = _whole(values)
    sums, powers = _running_integers(whole), _running_integers(whole * whole)
    sum_of, power_of, count = sums[hi] - sums[lo], powers[hi] - powers[lo], n.astype(object)
    above = count * power_of - sum_of * sum_of
    found[several] = np.sqrt(_quotients(above, count * (count - 1) * (1 << 2 * scale)))
    return found


def _whole(values: Floats) -> tuple[Integers, int]:
    """Return numbers as Python integers, all at one scale."""
    mantissa, exponent = np.frexp(values)
    low = exponent.astype(np.int64) - 53
    scale = max(0, -int(np.min(low, where=values != 0.0, initial=0)))
    digits = np.ldexp(mantissa, 53).astype(np.int64).astype(object)
    shifts = np.where(values != 0.0, low + scale, 0).astype(object)
    return digits << shifts, scale


def _running_integers(whole: Integers) -> Integers:
    total = np.zeros(len(whole) + 1, dtype=object)
    np.add.accumulate(whole, out=total[1:])
    return total


def _quotients(above: Integers, below: Integers | int) -> Floats:
    """Divide integers, each quotient rounded once; NaN where it is beyond the largest float."""
    try:
        quotients: Floats = (above / below).astype(np.float64)
        return quotients
    except OverflowError:
        pairs = zip(above.tolist(), np.broadcast_to(np.asarray(below, dtype=object), above.shape).tolist(), strict=True)
        return np.array([_quotient(a, b) for a, b in pairs])


def _quotient(above: int, below: int) -> float:
    try:
        return above / below
    except OverflowError:
        return math.nan


def _parts(values: Floats) -> list[Floats] | None:
    """Split numbers into parts whose running sums cannot round; None when three are not enough."""
    parts: list[Floats] = []
    rest = values
    spare = (len(values) + 2).bit_length()
    for _ in range(PARTS):
        largest = float(np.max(np.abs(rest), initial=0.0))
        if largest == 0.0:
            break
        power = math.frexp(largest)[1] + spare
        if power > 1023:
            return None
        unit = math.ldexp(1.0, power)
        part = (rest + unit) - unit
        parts.append(part)
        rest = rest - part
    if np.any(rest):
        return None
    return parts or [values]


def _running(part: Floats) -> Floats:
    total = np.zeros(len(part) + 1)
    np.cumsum(part, out=total[1:])
    return total


def _two(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Return a + b rounded and the error of that rounding, exactly (Knuth's TwoSum)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _three(high: Floats, middle: Floats, low: Floats) -> Floats:
    """Return high + middle + low rounded once, ties to even."""
    first, error = _two(middle, low)
    carried, smallest = _two(high, error)
    top, second = _two(carried, first)
    # top, second and smallest do not overlap; add from the top until something is left over, as fsum does
    total, left = _two(top, second)
    spent = left == 0.0
    total_2, left_2 = _two(total, smallest)
    beyond = np.where(spent, 0.0, smallest)
    total, left = np.where(spent, total_2, total), np.where(spent, left_2, left)
    # a tie was broken by the leftover alone: what lies beyond it decides
    doubled = left * 2.0
    moved = total + doubled
    tie = (np.sign(left) * np.sign(beyond) > 0) & (moved - total == doubled)
    return np.where(tie, moved, total)

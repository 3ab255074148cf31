"""How many different values a stream holds: HyperLogLog in 4 KB, built with NumPy.

Each value is hashed to 64 bits; the first 12 pick a register, and the register keeps the longest run of leading zeros
seen in the other 52. Two sketches merge by the larger of each register, so merging is exact: in any order, with any
overlap. The estimate is Ertl's ("New cardinality estimation algorithms for HyperLogLog sketches", 2017, algorithm 6),
which needs no tables of empirical corrections and is right from 1 to 10^18 within 1.6 % (one standard deviation).

The hash must be the same next year and on another machine, because sketches are kept and merged: splitmix64 of the bits
of a number, and of the CRC-32 and length of a text (32 bits tell about a hundred million texts apart within a percent).
Polars' own hash is quicker for text and changes between releases. Text is hashed once for each different value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import numpy.typing as npt

BITS = 12
REGISTERS = 1 << BITS
_Q = 64 - BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Distinct:
    """The registers of a HyperLogLog sketch."""

    registers: npt.NDArray[np.uint8]

    @classmethod
    def of_numbers(cls, values: npt.NDArray[np.float64]) -> Distinct:
        """Summarise finite numbers; 0 and -0 are one value."""
        return cls(registers=_registers(mixed((values + 0.0).view(np.uint64))))

    @classmethod
    def of_texts(cls, values: Iterable[bytes]) -> Distinct:
        """Summarise texts in UTF-8; give each different text once to save time, more often does no harm."""
        keys = [crc32(data) | len(data) << 32 for data in values]
        return cls(registers=_registers(mixed(np.array(keys, dtype=np.uint64))))

    def merge(self, other: Distinct) -> Distinct:
        """Return the sketch of both streams together."""
        return Distinct(registers=np.maximum(self.registers, other.registers))

    def estimate(self) -> float:
        """Estimate how many different values there were (Ertl 2017)."""
        counts = np.bincount(self.registers, minlength=_Q + 2)
        m = float(REGISTERS)
        z = m * _tau(1.0 - counts[_Q + 1] / m)
        for k in range(_Q, 0, -1):
            z = 0.5 * (z + float(counts[k]))
        z += m * _sigma(counts[0] / m)
        return m * m / (2.0 * math.log(2.0)) / z if math.isfinite(z) else 0.0


def mixed(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Hash 64 bits to 64 bits: splitmix64 (Steele, Lea, Flood 2014); overflow wraps, as it must."""
    z = bits + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _registers(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    registers = np.zeros(REGISTERS, dtype=np.uint8)
    rest = (hashes & np.uint64((1 << _Q) - 1)).astype(np.float64)  # 52 bits are exact in a float
    ranks = (_Q + 1 - np.frexp(rest)[1]).astype(np.uint8)
    np.maximum.at(registers, (hashes >> np.uint64(_Q)).astype(np.intp), ranks)
    return registers


def _sigma(x: float) -> float:
    if x == 1.0:
        return math.inf
    y, z = 1.0, x
    while True:
        x *= x
        before, z = z, z + x * y
        y += y
        if z == before:
            return z


def _tau(x: float) -> float:
    if x in (0.0, 1.0):
        return 0.0
    y, z = 1.0, 1.0 - x
    while True:
        x = math.sqrt(x)
        before, y = z, y * 0.5
        z -= (1.0 - x) ** 2 * y
        if z == before:
            return z / 3.0

"""Numbers that all ranks of one machine add up at every step, through shared memory.

    together = Agreement(folder / "agree", rank=rank, size=2, width=15)
    total = together.add_up(values)          # every rank must call it; the same sum on all

An all-reduce of a dozen numbers over gloo passes through sockets and two threads a rank. Ranks begun by `launch` share
a machine, so each writes its numbers into a mapped file, then how often it has agreed, and waits until the others have
written as often: first by looking again, then by giving up its core, then by sleeping, ever longer. There are two rows
of slots, used in turns: nobody comes to use a row again before all have read it. Numbers are written before the count,
and read after it; processors of the x86 family keep to that order, others need not, which is why others use gloo
(`possible`).

What gloo tells by a broken connection is looked for while waiting: that a rank has ended, or has left.
"""

from __future__ import annotations

import mmap
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tenon.errors import TrainingError, sentence

LOOKS = 100  # at the others' counts, before the core is given up
YIELD_S = 1e-3  # of giving up the core, before sleeping
SLEEP_S = (2e-4, 2e-3)  # at first, and after
LONG_S = 0.05  # of waiting, after which sleeps are longer and it is asked whether the others live
LEFT = 2  # the row of counts that says which ranks have left


class Agreement:
    """Sums over the ranks of one machine; see the module's docstring. `close` tells the others that it has left."""

    __slots__ = ("_counts", "_done", "_living", "_map", "_numbers", "_rank", "_size", "_timeout_s")

    def __init__(
        self, file: Path, *, rank: int, size: int, width: int, living: Callable[[int], bool], timeout_s: float
    ) -> None:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        counts = 3 * size * 64  # each has a line of the cache of its own
        bytes_ = counts + 2 * size * width * 8
        os.ftruncate(handle, bytes_)
        self._map = mmap.mmap(handle, bytes_)
        os.close(handle)
        self._counts = memoryview(self._map)[:counts].cast("q")
        self._numbers = np.frombuffer(self._map, np.float64, 2 * size * width, counts).reshape(2, size, width)
        self._rank, self._size, self._living, self._timeout_s = rank, size, living, timeout_s
        self._done = 0

    @staticmethod
    def possible() -> bool:
        """Tell whether this machine's processor shows writes in the order in which they were made."""
        return platform.machine() in ("x86_64", "AMD64", "i686")

    def add_up(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all ranks; TrainingError when one of them has ended, or does not come."""
        self._done += 1
        row = self._done % 2
        self._numbers[row, self._rank] = values
        self._counts[self._at(row, self._rank)] = self._done
        for rank in range(self._size):
            if self._counts[self._at(row, rank)] != self._done:
                self._wait(row, rank)
        total: list[float] = self._numbers[row].sum(0).tolist()
        return total

    def close(self) -> None:
        """Tell the others, who may wait for this rank, that it has left."""
        self._counts[self._at(LEFT, self._rank)] = 1

    def _at(self, row: int, rank: int) -> int:
        return (row * self._size + rank) * 8

    def _wait(self, row: int, rank: int) -> None:
        """Wait for one rank, at the cost of a core for a moment and of next to nothing for long."""
        counts, at, wanted = self._counts, self._at(row, rank), self._done
        for _ in range(LOOKS):
            if counts[at] == wanted:
                return
        start = time.monotonic()
        while counts[at] != wanted:
            waited = time.monotonic() - start
            if waited < YIELD_S:
                time.sleep(0)
            elif waited < LONG_S:
                time.sleep(SLEEP_S[0])
            else:
                time.sleep(SLEEP_S[1])
                # One that has written before it left or ended is still heard: its count is looked at again.
                gone = counts[self._at(LEFT, rank)] or not self._living(rank) or waited > self._timeout_s
                if gone and counts[at] != wanted:
                    got = f"{self._size - 1} and no word from rank {rank}" + f" for {waited:.0f} s" * (waited > 1)
                    hint = "it has ended or hangs; its own last words say why"
                    raise TrainingError(sentence(f"all {self._size} ranks", got, at="an agreement", hint=hint))

"""Where the time of a step goes: waiting for data or working, and when it is waiting, who is to blame.

`Clock.over` hands out a loop's batches and notes how long the loop waited for each; what is left of the time between
two batches is the loop's own work. Two clock readings a step are all it costs. Once the waiting is more than `TOLD` of
a window of at least `WINDOW_S` seconds and `WINDOW_STEPS` steps, the culprit is named from what the system counted
meanwhile:

- the loop's own thread was busy while it waited: rows are read and decoded in the training process, by one core;
- the loop's own thread was ready and got no core: other processes take this machine's;
- worker processes were busy: they are too few, or decoding is too dear;
- workers slept and bytes were read: the disk (or what is mounted there) is what all wait for;
- nobody was busy and nothing was read from a disk: the rows come from elsewhere, over a network or a queue.

A window's figures are kept as they are (`Shares`), so that a run tells them at its end. Processor time of workers and
bytes read come from /proc; on systems without it the culprit is said to be unknown. Rejected: a profiler that samples
stacks (a second per minute, and an answer that only a person can read).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenon import engine, ledger
from tenon.finding import Finding

LITTLE = 0.02  # share of waiting from which it is asked who was busy
TOLD = 0.2  # share of waiting from which it is told
WINDOW_S = 2.0
WINDOW_STEPS = 20
BUSY = 0.6  # of the time, from which a thread or a worker counts as busy
READ_BYTES = 1e6  # a second, from which a disk is read


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Where the time of some steps went, in seconds; `work` is what the loop did itself."""

    steps: int = 0
    wall_s: float = 0.0
    wait_s: float = 0.0
    busy_wait_s: float = 0.0  # of the waiting, processor time of the loop's own thread
    crowded_s: float = 0.0  # that the loop's own thread was ready to run and got no core
    worker_cpu_s: float = 0.0
    workers: int = 0
    read_bytes: int = 0

    @property
    def waiting(self) -> float:
        """Return the share of the time that was spent waiting for data."""
        return self.wait_s / self.wall_s if self.wall_s > 0 else 0.0

    def culprit(self, cores: int) -> tuple[str, str]:
        """Name whom the loop waited for, and what to do about it."""
        rate = self.read_bytes / max(self.wall_s, 1e-9)
        if self.busy_wait_s + self.crowded_s > BUSY * self.wait_s and self.crowded_s > self.busy_wait_s:
            return "other processes that take this machine's cores", "Stop them, or move the run to an idle machine."
        if self.busy_wait_s + self.crowded_s > BUSY * self.wait_s:
            return "decoding in the training process", f"Give the loader workers (num_workers={max(1, cores - 1)})."
        if self.workers and self.worker_cpu_s > BUSY * self.workers * self.wall_s:
            spare = cores - self.workers
            if spare > 0:
                said = f"{self.workers} workers, all busy"
                return f"too few workers ({said})", f"Give the loader {cores - 1} workers: {spare} cores are idle."
            return "decoding", "Decode once and keep the result (Parquet, arrays), or decode less: all cores are busy."
        if rate > READ_BYTES:
            return (
                f"the disk ({rate / 1e6:.0f} MB/s)",
                "Put the data on a faster disk, in larger files, or into memory.",
            )
        if Path("/proc/self/io").exists():
            return "a source that is slow itself", "Look at the network or the queue the rows come from; prefetch more."
        return "an unknown source", "This system does not say who was busy; profile the loader."


class Clock:
    """Measures one loop; `over` is what the loop iterates, `look` what the guard asks now and then."""

    __slots__ = ("_asked", "_began", "_busy", "_clock", "_cores", "_marks", "_steps", "_told", "_wait", "all")

    def __init__(self, clock: Callable[[], float] = time.perf_counter, *, cores: int | None = None) -> None:
        self._clock = clock
        self._cores = cores
        self._began: float | None = None
        self._wait = self._busy = self._asked = 0.0
        self._steps = 0
        self._marks = (0.0, 0, 0.0)
        self._told = False
        self.all = Shares()

    def over(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Hand out the batches as they come, and note how long each was waited for."""
        clock, source = self._clock, iter(batches)
        while True:
            before = clock()
            if (began := self._began) is None:
                began = before
                self._begin(before)
            # Who was busy matters only where there is something to wait for, and asking it costs more than the clock.
            worked = time.thread_time() if self._wait > LITTLE * (before - began) else None
            try:
                batch = next(source)
            except StopIteration:
                return
            waited = clock() - before
            self._wait += waited
            if worked is not None:
                self._busy += time.thread_time() - worked
                self._asked += waited
            self._steps += 1
            yield batch

    @property
    def waiting(self) -> float:
        """Return the share of all time so far that was spent waiting for batches; reads no counters."""
        if self._began is None:
            return 0.0
        wall = self.all.wall_s + self._clock() - self._began
        return (self.all.wait_s + self._wait) / wall if wall > 0 else 0.0

    def look(self, step: int, usd_per_s: float = 0.0) -> Finding | None:
        """Close a window when it is long enough; a finding, once, when too much of it was spent waiting."""
        now = self._clock()
        if self._began is None or now - self._began < WINDOW_S or self._steps < WINDOW_STEPS:
            return None
        window = self._window(now)
        self.all = _sum(self.all, window)
        self._begin(now)
        if window.waiting < TOLD or self._told:
            return None
        self._told = True
        whom, hint = window.culprit(self._cores or engine.cores())
        cost = ledger.hourly(window.waiting, usd_per_s)
        said = f"{window.waiting:.0%} of the time of a step is spent waiting for data{cost}: the culprit is {whom}."
        numbers = {
            "waiting": window.waiting,
            "wait_ms": window.wait_s / window.steps * 1e3,
            "step_ms": window.wall_s / window.steps * 1e3,
        }
        return Finding(
            code="training/data-starved", severity="warning", place=f"run/{step}", said=said, hint=hint, numbers=numbers
        )

    def _begin(self, now: float) -> None:
        self._began, self._wait, self._busy, self._asked, self._steps = now, 0.0, 0.0, 0.0, 0
        self._marks = _marks()

    def _window(self, now: float) -> Shares:
        cpu_s, read, crowded = _marks()
        busy = self._busy / self._asked * self._wait if self._asked else 0.0
        return Shares(
            steps=self._steps,
            wall_s=now - (self._began or now),
            wait_s=self._wait,
            busy_wait_s=busy,
            crowded_s=min(max(crowded - self._marks[2], 0.0), self._wait - busy),
            worker_cpu_s=max(cpu_s - self._marks[0], 0.0),
            workers=len(ledger.descendants()),
            read_bytes=max(read - self._marks[1], 0),
        )


def _sum(a: Shares, b: Shares) -> Shares:
    return Shares(
        steps=a.steps + b.steps,
        wall_s=a.wall_s + b.wall_s,
        wait_s=a.wait_s + b.wait_s,
        busy_wait_s=a.busy_wait_s + b.busy_wait_s,
        crowded_s=a.crowded_s + b.crowded_s,
        worker_cpu_s=a.worker_cpu_s + b.worker_cpu_s,
        workers=max(a.workers, b.workers),
        read_bytes=a.read_bytes + b.read_bytes,
    )


def _marks() -> tuple[float, int, float]:
    """Return processor seconds of all living descendants, bytes read from disks, seconds this thread got no core."""
    pids = ledger.descendants()
    read = sum(_read_bytes(pid) for pid in ("self", *map(str, pids)))
    return sum(ledger.cpu_of(pid) for pid in pids), read, _crowded_s()


def _crowded_s() -> float:
    """Return how long this thread has been ready and not run, as Linux counts it; 0 where nothing does."""
    try:
        return int(ledger.said("/proc/thread-self/schedstat").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _read_bytes(pid: str) -> int:
    try:
        text = ledger.said(f"/proc/{pid}/io")
        return int(next(line for line in text.splitlines() if line.startswith("read_bytes:")).split()[1])
    except (OSError, ValueError, StopIteration):
        return 0

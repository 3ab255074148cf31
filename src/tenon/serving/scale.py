"""How many replicas there should be, as a pure function of what was seen; whoever runs machines carries it out.

    wanted = decide(Seen(...), Scaling(), replicas=3)       # Decision(replicas, why)

A replica that is ordered now answers after its start: the weights must travel and load. So the decision looks ahead as
far as nine of ten measured starts took (`horizon_s`), carries the trend of the load that far, and orders what will be
needed then. Load is utilisation: seconds of work that arrived, for each second, divided among replicas that should be
busy only to `busy`; work that waits already is to be done within the target; memory that sessions hold counts alike.
Going down is slow on purpose: by one, and only when the load has asked for less through a whole `cool_s`, for a replica
that leaves takes its cache with it. To nothing only after `idle_s` without a request; what comes then is held
by the gateway, for a bounded time (`limits.route.hold_s`), while the first replica starts.

The trend is the median slope between pairs of samples (Theil and Sen), no steeper than what doubles the load within the
horizon: a spike of one sample must not order a fleet.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median

PAIRED = 30  # samples whose slopes are compared
STARTS = 50  # starts remembered
P90 = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """The dials of scaling; `busy` is the main one."""

    least: int = 1  # replicas there always are; 0 allows none
    most: int = 8  # replicas there are at most
    busy: float = 0.6  # utilisation a replica should have
    memory: float = 0.85  # share of its memory a replica may use
    target_s: float = 3.0  # waiting work is to be done within this
    cool_s: float = 300.0  # the load must ask for less for so long
    idle_s: float = 900.0  # without a request for so long, all may go


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one moment showed, over all replicas."""

    at: float
    work: float  # seconds of work that arrived, for each second
    waiting_s: float = 0.0  # seconds of work that wait
    memory: float = 0.0  # memory in use, in replicas' worth (1.7: as much as 1.7 of them have)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How many replicas there should be, and why in words."""

    replicas: int
    why: str


@dataclass(slots=True)
class Starts:
    """How long replicas took from the order to their first readiness; bounded."""

    default_s: float = 30.0  # until one was seen
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=STARTS))

    def saw(self, seconds: float) -> None:
        """Remember one start, from order to ready, the transfer of weights included."""
        if math.isfinite(seconds) and seconds >= 0:
            self.seconds.append(seconds)

    @property
    def horizon_s(self) -> float:
        """What nine of ten starts took at most."""
        if not self.seconds:
            return self.default_s
        ordered = sorted(self.seconds)
        return ordered[math.ceil(P90 * len(ordered)) - 1]


def decide(
    samples: Sequence[Sample], scaling: Scaling, *, replicas: int, horizon_s: float, idle_for_s: float = 0.0
) -> Decision:
    """Say how many replicas there should be one horizon from now; reads its arguments only."""
    least, most = scaling.least, max(scaling.most, scaling.least)
    if not samples:
        return Decision(replicas=min(max(replicas, least), most), why="nothing was seen yet")
    now = samples[-1].at
    if least == 0 and idle_for_s >= scaling.idle_s:
        return Decision(replicas=0, why=f"no request for {idle_for_s:.0f} s")
    needed = _needed(samples, scaling, horizon_s)
    if idle_for_s < scaling.idle_s or least:
        needed = max(needed, 1)
    wanted = min(max(needed, least), most)
    if wanted > replicas:
        short = f" (held at most {most})" if needed > most else ""
        return Decision(replicas=wanted, why=f"{needed} will be needed in {horizon_s:.0f} s{short}")
    if wanted < replicas:
        past = [n for n, sample in enumerate(samples, 1) if sample.at >= now - scaling.cool_s]
        calm = now - samples[0].at >= scaling.cool_s and all(
            min(max(_needed(samples[:n], scaling, horizon_s), least), most) < replicas for n in past
        )
        if calm:
            return Decision(replicas=max(replicas - 1, wanted), why=f"{wanted} were enough for {scaling.cool_s:.0f} s")
        return Decision(replicas=replicas, why=f"{wanted} would do now, not yet for {scaling.cool_s:.0f} s")
    return Decision(replicas=replicas, why="as many as are needed")


def _needed(samples: Sequence[Sample], scaling: Scaling, horizon_s: float) -> int:
    """Return the replicas that the load will need one horizon after the last sample."""
    last = samples[-1]
    recent = [sample for sample in samples if sample.at >= last.at - max(horizon_s, 60.0)]
    recent = recent[-PAIRED:]
    slopes = [(b.work - a.work) / (b.at - a.at) for a, b in combinations(recent, 2) if b.at > a.at]
    slope = median(slopes) if len(recent) > 2 and slopes else 0.0
    level = max(median(sample.work + slope * (last.at - sample.at) for sample in recent), 0.0)
    ahead = min(max(level + slope * horizon_s, 0.0), 2 * level)
    busy = (ahead + last.waiting_s / max(scaling.target_s, horizon_s)) / scaling.busy
    return math.ceil(max(busy, last.memory / scaling.memory) - 1e-9)

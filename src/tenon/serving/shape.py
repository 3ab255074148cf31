"""Synthetic traffic: traces of known shapes, for trying a router where no recording of one's own is at hand.

A shape answers one question. `chats`: sessions that grow turn by turn, people thinking in between. `agents`: a few long
system prompts shared by many sessions, whose steps follow each other within seconds. `strangers`: nothing is ever
shared. `bursts`: strangers and chats arriving in waves. `tiny`: prompts shorter than a block. `crowd`: one document
that suddenly everybody asks about. All are drawn from one seed, in order of time, lazily, and every prompt of a session
begins with the one before it, as the hashes of blocks in a recorded trace do.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from tenon.errors import UsageError, nearest, sentence
from tenon.serving.simulation import BLOCK_TOKENS, Request

Draw = Callable[[random.Random], float]


def shaped(shape: str, *, seconds: float, per_s: float, seed: int = 0) -> Iterator[Request]:
    """Yield the requests of a shape: about `per_s` a second (sessions bring their own turns) for so many seconds."""
    if shape not in SHAPES:
        raise UsageError(sentence("a shape", f"'{shape}'", at="shape", hint=nearest(shape, SHAPES)))
    rng = random.Random(seed)
    return SHAPES[shape](rng, seconds, per_s)


def _one(_: random.Random) -> float:
    return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Habit:
    """How sessions go on: what a turn adds in tokens, how many turns there are, seconds to think between two."""

    more: Draw = _one
    turns: Draw = _one
    think: Draw = _one


def _sessions(
    rng: random.Random, arrivals: Iterator[float], first: Callable[[], tuple[list[int], int]], habit: _Habit,
    seconds: float, ids: Iterator[int],
) -> Iterator[Request]:  # fmt: skip
    """Play sessions: each arrival begins one; each turn repeats the prompt so far and adds to it."""
    waiting: list[tuple[float, int, list[int], int, int]] = []
    order = count()
    at = next(arrivals, seconds)
    while at < seconds or waiting:
        if waiting and waiting[0][0] <= at:
            now, _, blocks, length, left = heappop(waiting)
            length += max(1, int(habit.more(rng)))
        elif at < seconds:
            now, at = at, next(arrivals, seconds)
            blocks, length = first()
            left = max(1, int(habit.turns(rng)))
        else:
            return
        whole = length // BLOCK_TOKENS
        blocks = blocks + [next(ids) for _ in range(whole - len(blocks))]
        answer = max(1, int(rng.expovariate(1 / 200)))
        yield Request(now * 1e3, length, answer, array("q", [*blocks, next(ids)] if length % BLOCK_TOKENS else blocks))
        if left > 1:
            then = now + habit.think(rng) + answer / 60
            if then < seconds:
                heappush(waiting, (then, next(order), blocks, length + answer, left - 1))


def _poisson(rng: random.Random, seconds: float, per_s: float) -> Iterator[float]:
    now = rng.expovariate(per_s)
    while now < seconds:
        yield now
        now += rng.expovariate(per_s)


def _waves(rng: random.Random, seconds: float, per_s: float) -> Iterator[float]:
    """Yield arrivals that come ten times as quickly for 6 s of each minute."""
    for now in _poisson(rng, seconds, per_s * 10 / 1.9):
        if now % 60 < 6 or rng.random() < 0.1:
            yield now


def _none() -> tuple[list[int], int]:
    return [], 0


def _chats(rng: random.Random, seconds: float, per_s: float) -> Iterator[Request]:
    habit = _Habit(
        more=lambda r: r.lognormvariate(6.5, 1),
        turns=lambda r: r.expovariate(1 / 5),
        think=lambda r: r.expovariate(1 / 40),
    )
    return _sessions(
        rng, _poisson(rng, seconds, per_s / 5), lambda: ([0], BLOCK_TOKENS + int(rng.lognormvariate(7.5, 1.2))),
        habit, seconds, count(1),
    )  # fmt: skip


def _agents(rng: random.Random, seconds: float, per_s: float) -> Iterator[Request]:
    ids = count(1)
    systems = [[next(ids) for _ in range(rng.randint(10, 60))] for _ in range(6)]

    def first() -> tuple[list[int], int]:
        system = systems[min(int(rng.expovariate(0.7)), len(systems) - 1)]
        return list(system), len(system) * BLOCK_TOKENS + int(rng.expovariate(1 / 800))

    habit = _Habit(
        more=lambda r: r.lognormvariate(6.5, 1.2),
        turns=lambda r: r.expovariate(1 / 12),
        think=lambda r: r.expovariate(1 / 3),
    )
    return _sessions(rng, _poisson(rng, seconds, per_s / 12), first, habit, seconds, ids)


def _strangers(rng: random.Random, seconds: float, per_s: float) -> Iterator[Request]:
    def length() -> tuple[list[int], int]:
        return [], 1 + int(rng.lognormvariate(8.5, 1))

    return _sessions(rng, _poisson(rng, seconds, per_s), length, _Habit(), seconds, count(1))


def _bursts(rng: random.Random, seconds: float, per_s: float) -> Iterator[Request]:
    habit = _Habit(
        more=lambda r: r.lognormvariate(6.5, 1),
        turns=lambda r: r.expovariate(1 / 4),
        think=lambda r: r.expovariate(1 / 30),
    )
    return _sessions(
        rng, _waves(rng, seconds, per_s / 4), lambda: ([0], BLOCK_TOKENS + int(rng.lognormvariate(8, 1.2))),
        habit, seconds, count(1),
    )  # fmt: skip


def _tiny(rng: random.Random, seconds: float, per_s: float) -> Iterator[Request]:
    return _sessions(
        rng, _poisson(rng, seconds, per_s), lambda: ([], rng.randint(1, BLOCK_TOKENS - 1)), _Habit(), seconds, count(1)
    )


def _crowd(rng: random.Random, seconds: float, per_s: float) -> Iterator[Request]:
    ids = count(1)
    documents = [[next(ids) for _ in range(100)] for _ in range(3)]
    asked = iter(_poisson(rng, seconds, per_s))
    now = [0.0]

    def arrivals() -> Iterator[float]:
        for at in asked:
            now[0] = at
            yield at

    def first() -> tuple[list[int], int]:
        document = documents[int(now[0] / seconds * len(documents)) % len(documents)]
        if rng.random() < 0.5:
            return [], 1 + int(rng.lognormvariate(7.5, 1))
        return list(document), len(document) * BLOCK_TOKENS + int(rng.expovariate(1 / 200))

    return _sessions(rng, arrivals(), first, _Habit(), seconds, ids)


SHAPES: dict[str, Callable[[random.Random, float, float], Iterator[Request]]] = {
    "agents": _agents,
    "bursts": _bursts,
    "chats": _chats,
    "crowd": _crowd,
    "strangers": _strangers,
    "tiny": _tiny,
}

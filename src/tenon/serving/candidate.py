"""A Candidate is a trial under way in this process: the other version beside the one that answers, and what both did.

A canary's answer comes from the candidate; when the candidate fails, the version in production answers the same request
and only the count remembers. Whatever production answers, and there is time for, the candidate scores as well, off the
answer's path: comparisons wait in a short queue, one at a time is scored, only while nobody waits for an answer, and
at most a fifth of the time. What finds the queue full is dropped and counted. So a slow candidate costs comparisons,
never an answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

from tenon.serving.door import LARGE_BYTES, Asked
from tenon.serving.refusal import Refused
from tenon.serving.rows import RowReader, Rows
from tenon.serving.service import Service
from tenon.serving.trial import Evidence, Trial, Verdict, agree, judge

if TYPE_CHECKING:
    from tenon.serving.live import Live

log = logging.getLogger("tenon.serving")
WAITING = 256  # comparisons that may wait
ROWS = 16  # rows of one request that are compared
BUSY_SHARE = 0.2  # the most of the time that comparing may take
FAILED_S = 0.05  # how long to wait after a comparison failed: each one is logged
GIVES_WAY_S = 0.002  # how long to wait when somebody wants an answer

Again = Callable[[RowReader], Rows | Refused]  # reads the same request by another version's columns
Compared = tuple[Service, Sequence[Mapping[str, Any]], Again | None, list[float]]


class Candidate:
    """The version that is tried on one model's traffic, and what has been seen of it."""

    def __init__(self, trial: Trial, base: Live, live: Live) -> None:
        self.trial = trial
        self.live = live
        self.evidence = Evidence.from_dict(trial.evidence)
        self._base = base
        self._same = live.reader.columns == base.reader.columns
        self._waiting: deque[Compared] = deque()
        self._came = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._number = 0

    def close(self) -> None:
        """Stop comparing; what the candidate is still answering it answers."""
        self._task.cancel()
        self._waiting.clear()
        self.live.seen.flush()
        asyncio.get_running_loop().call_later(self.live.limits.request_s, self.live.close)

    def verdict(self) -> Verdict:
        """Judge what was seen so far."""
        return judge(self.trial, self.evidence)

    # ── answering a share ────────────────────────────────────────────────────────────────────────────────────────────

    def takes(self, asked: Asked, row: Mapping[str, Any]) -> bool:
        """Say whether this request is the canary's, by its key: a header, else the key columns of its first row."""
        if self.trial.kind != "canary":
            return False
        headers = asked.headers
        given = headers.get(b"x-route-key") or headers.get(b"x-session-id")
        if given is not None:
            return self.trial.takes(given.decode("latin-1"))
        if self.live.service.key:
            return self.trial.takes("|".join([str(row.get(name)) for name in self.live.service.key]))
        self._number += 1
        return self.trial.takes(str(self._number))

    async def answer(self, checked: Rows, asked: Asked, again: Again) -> tuple[Rows, list[float]] | None:
        """Return the candidate's scores of a request; None when it has none, and production is to answer."""
        read = checked if self._same else again(self.live.reader)
        if isinstance(read, Refused):
            return None
        service = self.live.service
        scores = await self.live.scored(service, read, asked)
        if isinstance(scores, Refused):
            return None
        rows = len(scores)
        ms = (perf_counter() - asked.arrived) * 1e3
        self.evidence.candidate.note(ms, rows, rows * service.usd_per_row, self.trial.bounds.slow_ms)
        return read, scores

    def failed(self) -> None:
        """Count a request that the candidate could not answer though the version in production could."""
        self.evidence.candidate.fail()

    # ── scoring along ────────────────────────────────────────────────────────────────────────────────────────────────

    def see(self, service: Service, checked: Rows, scores: list[float] | Refused, asked: Asked, again: Again) -> None:
        """Note what the version in production answered, and keep the request for comparison if there is room."""
        base = self.evidence.base
        if isinstance(scores, Refused):
            if scores.status >= 500:
                base.fail()
            return
        rows = len(scores)
        ms = (perf_counter() - asked.arrived) * 1e3
        base.note(ms, rows, rows * service.usd_per_row, self.trial.bounds.slow_ms)
        if len(self._waiting) >= WAITING or not (self._same or len(asked.body) <= LARGE_BYTES):
            self.evidence.dropped += 1
            return
        self._waiting.append((service, checked.rows[:ROWS], None if self._same else again, scores[:ROWS]))
        self._came.set()

    async def _run(self) -> None:
        while True:
            await self._came.wait()
            while self._waiting:
                if self._base.lane.busy or self.live.lane.busy:
                    await asyncio.sleep(GIVES_WAY_S)
                    continue
                began = perf_counter()
                try:
                    await self._compare(*self._waiting.popleft())
                except Exception:  # noqa: BLE001 - the edge of a background loop; the lane has logged it
                    if self.trial.kind == "shadow":
                        self.evidence.candidate.fail()
                    await asyncio.sleep(FAILED_S)
                await asyncio.sleep((perf_counter() - began) * (1 / BUSY_SHARE - 1))
            self._came.clear()

    async def _compare(
        self, service: Service, rows: Sequence[Mapping[str, Any]], again: Again | None, scores: list[float]
    ) -> None:
        own = self.live.service
        read = Rows(rows=[dict(row) for row in rows], ids=[None] * len(rows))
        if again is not None:
            found = again(self.live.reader)
            if isinstance(found, Refused):
                if self.trial.kind == "shadow":
                    self.evidence.candidate.fail()
                return
            read = Rows(rows=found.rows[:ROWS], ids=found.ids[:ROWS])
        began = perf_counter()
        other = await self.live.lane.submit(own, read, began, time(), quiet=True)
        if self.trial.kind == "shadow":
            ms, count = (perf_counter() - began) * 1e3, len(other)
            self.evidence.candidate.note(ms, count, count * own.usd_per_row, self.trial.bounds.slow_ms)
        cuts = (service.threshold, own.threshold)
        self.evidence.compare(scores, other, agree(scores, other, cuts, self.trial.bounds.tolerance))

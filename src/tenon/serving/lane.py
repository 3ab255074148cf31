"""A Lane scores the rows of one model, one batch at a time; requests that arrive together are scored together.

Nobody is ever made to wait for company. A request that finds the lane idle, and nothing else due on this pass of the
event loop, is scored at once, before it even gives way. Otherwise it asks for a turn on the next pass, and whatever
else arrived in this one joins it; what arrives while a batch runs makes up the next one. Under 32 connections that
alone fills batches. A timer that waits for company, as other servers have, only adds latency here.

A batch that the learned cost curve says will be quick is scored on the event loop itself: handing it to a thread and
back costs more than scoring it, and the two would fight for one interpreter lock. A slow one goes to the lane's one
worker thread, so that health checks and other models still answer. Facts are applied in between batches, so the
online features are never read and written at once.

A request is scored by the version that checked it, also when another one takes over while it waits.

A large request is cut into slices that take turns with the small ones. If a batch fails, its requests are tried one
by one: a row that cannot be scored fails its own request and nobody else's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any

from tenon.errors import InputError
from tenon.limits import Admission, Answer, ServingLimits
from tenon.serving.meter import ModelMeter
from tenon.serving.rows import Rows
from tenon.serving.service import Service
from tenon.serving.tap import Observations

log = logging.getLogger("tenon.serving")
FAILED_ROWS_PER_S = 1_000


class Late(Exception):
    """The request waited past its deadline."""


class Unreadable(Exception):
    """The features of this row cannot be computed from the values it has."""


class CostCurve:
    """Seconds a batch takes as base + each row, learned from what batches took; recent ones count more."""

    __slots__ = ("_c", "_n", "_nc", "_nn", "_w")
    DECAY = 0.98

    def __init__(self) -> None:
        self._w = self._n = self._nn = self._c = self._nc = 0.0

    def learn(self, rows: int, seconds: float) -> None:
        """Add what a batch took."""
        keep = self.DECAY
        self._w = self._w * keep + 1.0
        self._n = self._n * keep + rows
        self._nn = self._nn * keep + rows * rows
        self._c = self._c * keep + seconds
        self._nc = self._nc * keep + rows * seconds

    def seconds(self, rows: int) -> float:
        """Predict what a batch of that many rows takes; 0 when nothing is known yet."""
        if not self._w:
            return 0.0
        spread = self._w * self._nn - self._n * self._n
        mean_rows, mean_seconds = self._n / self._w, self._c / self._w
        if spread <= 1e-9 * self._nn * self._w:
            return mean_seconds * max(1.0, rows / mean_rows)
        each = max(0.0, (self._w * self._nc - self._n * self._c) / spread)
        return max(0.0, mean_seconds + each * (rows - mean_rows))


class Job:
    """One request in the lane: its rows, and the scores it has so far."""

    __slots__ = ("answer", "arrived", "at", "deadline", "ids", "quiet", "rows", "scores", "service", "taken")

    def __init__(
        self, service: Service, checked: Rows, when: tuple[float, float, float], answer: asyncio.Future[list[float]]
    ) -> None:
        self.quiet = False  # nobody waits for it: not counted, not observed
        self.service = service
        self.rows = checked.rows
        self.ids = checked.ids
        self.arrived, self.at, self.deadline = when
        self.answer = answer
        self.taken = 0
        self.scores: list[float] = []


Part = tuple[Job, list[dict[str, Any]], int]  # the job, the rows of it in this batch, where they begin
Outcome = tuple[list[Part], Mapping[str, Sequence[Any]], "list[float] | Exception"]


class Lane:
    """The queue, the batching and the scoring of one served model."""

    def __init__(
        self, service: Service, limits: ServingLimits, meter: ModelMeter, seen: Observations, inline_s: float
    ) -> None:
        self.service = service
        self.limits = limits
        self.meter = meter
        self.seen = seen
        self.waiting_rows = 0
        self.curve = CostCurve()
        self._inline_s = inline_s
        self._jobs: deque[Job] = deque()
        self._work: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._asked = False
        self._busy = False
        self._failed_second = self._failed_rows = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: ThreadPoolExecutor | None = None

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def admit(self, rows: int) -> Admission:
        """Say whether so many rows may join the queue now, later, or never."""
        limits = self.limits
        if rows > limits.rows_per_request:
            reason = f"expected at most {limits.rows_per_request:,} rows in a request, got {rows:,}; send them in parts"
            return Admission(answer=Answer.NEVER, reason=reason)
        waiting = self.waiting_rows
        if waiting <= limits.batch_rows:
            return OK
        wait_s = self.wait_s()
        if waiting + rows > limits.queue_rows or wait_s > limits.request_s:
            reason = f"{waiting:,} rows are waiting for '{self.service.name}', about {wait_s:.1f} s of work; come back"
            return Admission(answer=Answer.LATER, reason=reason, retry_after_s=max(1.0, wait_s))
        return OK

    def wait_s(self) -> float:
        """Predict how long a row that joins the queue now waits for its batch."""
        full, rest = divmod(self.waiting_rows, self.limits.batch_rows)
        return full * self.curve.seconds(self.limits.batch_rows) + (self.curve.seconds(rest) if rest else 0.0)

    @property
    def busy(self) -> bool:
        """Whether anybody waits for an answer, or is being answered."""
        return self._busy or bool(self._jobs)

    def submit(
        self, service: Service, checked: Rows, arrived: float, at: float, *, quiet: bool = False
    ) -> asyncio.Future[list[float]]:
        """Queue rows that `service` has checked; the future gets their scores, or what prevented them.

        Quiet rows are scored for comparison only: they are neither counted nor observed.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[float]] = loop.create_future()
        when = (arrived, at, arrived + self.limits.request_s)
        job = Job(service, checked, when, answer)
        job.quiet = quiet
        self._jobs.append(job)
        self.waiting_rows += len(checked.rows)
        if not self._asked and not self._busy:
            if self._nobody_else(loop):
                self._turn()
            else:
                self._asked = True
                loop.call_soon(self._turn)
        return answer

    def _nobody_else(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Say whether nothing else is due on this pass of the event loop, so that no company can be coming."""
        due = getattr(loop, "_ready", None)  # asyncio's own; under another loop a request takes the next pass
        return due is not None and not due

    async def alone(self, work: Callable[[], Any]) -> Any:
        """Run `work` in between two batches, on the event loop, and return what it returns."""
        self._loop = loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._work.append((work, answer))
        if not self._asked and not self._busy:
            self._asked = True
            loop.call_soon(self._turn)
        return await answer

    def close(self) -> None:
        """Let the worker thread go."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    # ── working ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _turn(self) -> None:
        """Do one piece of work and score one batch; ask for another turn while anything waits."""
        self._asked = False
        assert self._loop is not None
        if self._work:
            self._do(*self._work.popleft())
        parts, count = self._take()
        if parts:
            service = parts[0][0].service
            if self.curve.seconds(count) <= self._inline_s:
                self._finish(service, count, perf_counter(), _score(service, parts))
            else:
                self._send_away(service, parts, count)
                return
        if self._jobs or self._work:
            self._asked = True
            self._loop.call_soon(self._turn)

    def _do(self, work: Callable[[], Any], answer: asyncio.Future[Any]) -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - the asker gets it
            if not answer.done():
                answer.set_exception(error)
            return
        if not answer.done():
            answer.set_result(result)

    def _take(self) -> tuple[list[Part], int]:
        """Take the rows of the next batch from the queue; drop requests whose caller has left or waited too long."""
        parts: list[Part] = []
        room = self.limits.batch_rows
        jobs = self._jobs
        now = perf_counter()
        for _ in range(len(jobs)):
            if not room:
                break
            job = jobs[0]
            if parts and (job.service is not parts[0][0].service or job.quiet is not parts[0][0].quiet):
                break  # the version changed here: each request is scored by the one that checked it
            jobs.popleft()
            left = len(job.rows) - job.taken
            if job.answer.done():
                self.waiting_rows -= left
            elif now > job.deadline:
                self.waiting_rows -= left
                self._fail(job, Late())
            elif left <= room and not job.taken:
                parts.append((job, job.rows, 0))
                job.taken = left
                room -= left
                self.waiting_rows -= left
            else:
                count = min(left, room)
                parts.append((job, job.rows[job.taken : job.taken + count], job.taken))
                job.taken += count
                room -= count
                self.waiting_rows -= count
                if job.taken < len(job.rows):
                    jobs.append(job)  # to the end: a large request takes turns with small ones
        return parts, self.limits.batch_rows - room

    def _send_away(self, service: Service, parts: list[Part], count: int) -> None:
        """Score a slow batch on the worker thread."""
        assert self._loop is not None
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"tenon-{service.name}")
        self._busy = True
        running = self._loop.run_in_executor(self._pool, _score, service, parts)
        running.add_done_callback(partial(self._back, service, count, perf_counter()))
        self._loop.call_later(min(1.0, self.limits.request_s), self._sweep)

    def _back(self, service: Service, count: int, began: float, running: asyncio.Future[Timed]) -> None:
        self._busy = False
        if running.cancelled():
            return
        self._finish(service, count, began, running.result())
        if (self._jobs or self._work) and not self._asked:
            self._asked = True
            assert self._loop is not None
            self._loop.call_soon(self._turn)

    def _sweep(self) -> None:
        """While a slow batch runs, refuse those in the queue whose deadline has passed."""
        if not self._busy:
            return
        now = perf_counter()
        for job in self._jobs:
            if now > job.deadline and not job.answer.done():
                self._fail(job, Late())
        assert self._loop is not None
        self._loop.call_later(min(1.0, self.limits.request_s), self._sweep)

    # ── answering ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, service: Service, count: int, began: float, timed: Timed) -> None:
        """Give every request of the batch its scores, then count and observe, after the answers have been written."""
        outcomes, features_s, infer_s = timed
        now = perf_counter()
        for parts, _, scores in outcomes:
            if isinstance(scores, Exception):
                for job, _, _ in parts:
                    self._fail(job, scores)
                continue
            start = 0
            for job, rows, _ in parts:
                job.scores += scores[start : start + len(rows)] if len(parts) > 1 else scores
                start += len(rows)
                if len(job.scores) == len(job.rows) and not job.answer.done():
                    job.answer.set_result(job.scores)
        self.curve.learn(count, features_s + infer_s)
        assert self._loop is not None
        self._loop.call_soon(self._observe, service, timed, began, now)

    def _observe(self, service: Service, timed: Timed, began: float, now: float) -> None:
        outcomes, features_s, infer_s = timed
        if outcomes[0][0][0][0].quiet:
            return
        meter = self.meter
        meter.stages["features"].observe(features_s)
        meter.stages["infer"].observe(infer_s)
        queue, total = meter.stages["queue"], meter.stages["total"]
        for parts, features, scores in outcomes:
            if isinstance(scores, Exception):
                continue
            ids: list[Any] = []
            ats: list[float] = []
            latencies: list[float] = []
            every: list[Mapping[str, Any]] = []
            for job, rows, first in parts:
                count = len(rows)
                queue.observe(began - job.arrived)
                total.observe(now - job.arrived)
                ids += job.ids if count == len(job.ids) else job.ids[first : first + count]
                ats += [job.at] * count
                latencies += [(now - job.arrived) * 1e3] * count
                every += rows
            count = len(every)
            meter.rows += count
            meter.usd += count * service.usd_per_row
            meter.batch_rows.observe(count)
            answered = {"id": ids, "at": ats, "score": scores, "latency_ms": latencies, "error": [""] * count}
            self.seen.add(service, every, features, answered)

    def _fail(self, job: Job, error: Exception) -> None:
        """Fail one request, count it, and let monitoring know."""
        if job.answer.done():
            return
        job.answer.set_exception(error)
        if job.quiet:
            return
        kind = {Late: "late", Unreadable: "invalid"}.get(type(error), "failed")
        self.meter.error(kind, len(job.rows))
        assert self._loop is not None
        self._loop.call_soon(self.observe_failed, job.rows, job.ids, job.at, perf_counter() - job.arrived, kind)

    def observe_failed(
        self, rows: Sequence[Mapping[str, Any]], ids: Sequence[Any], at: float, took_s: float, kind: str
    ) -> None:
        """Let monitoring know of rows that got no score, and why; of so many a second, the rest is only counted."""
        count = len(rows)
        second = int(at)
        if second != self._failed_second:
            self._failed_second, self._failed_rows = second, 0
        self._failed_rows += count
        if self._failed_rows > FAILED_ROWS_PER_S:  # a flood of bad requests must not fill the disk
            self.meter.tap_dropped += count
            return
        answered = {
            "id": ids,
            "at": [at] * count,
            "score": [None] * count,
            "latency_ms": [took_s * 1e3] * count,
            "error": [kind] * count,
        }
        self.seen.add(self.service, rows, {}, answered)


OK = Admission(answer=Answer.OK)
Timed = tuple[list[Outcome], float, float]


def _score(service: Service, parts: list[Part]) -> Timed:
    """Score the parts together; when that fails, one by one, so that each fails or succeeds on its own."""
    rows = parts[0][1] if len(parts) == 1 else [row for _, some, _ in parts for row in some]
    start = read = perf_counter()
    features = None
    try:
        features = service.online.read(rows)
        read = perf_counter()
        scores = service.predictor.score(features).tolist()
        if len(scores) != len(rows):
            raise ValueError(f"expected {len(rows)} scores, got {len(scores)}")
        return [(parts, features, scores)], read - start, perf_counter() - read
    except Exception as error:  # the edge of a batch: what failed is answered, counted and logged
        if len(parts) == 1 and features is None and isinstance(error, ValueError | OverflowError | InputError):
            return [(parts, {}, Unreadable(str(error)))], perf_counter() - start, 0.0
        if len(parts) == 1:
            log.exception("'%s' version %s could not score a request", service.name, service.version)
            return [(parts, {}, error)], read - start, perf_counter() - read
    apart = [_score(service, [part]) for part in parts]
    outcomes = [outcome for found, _, _ in apart for outcome in found]
    return outcomes, sum(f for _, f, _ in apart), sum(i for _, _, i in apart)

"""Live is one model as it stands now: the version it serves, the reader of its rows, its lane and its counts.

The doors of a model (`/predict`, Open Inference, `/labels`) hold its Live, and `take` gives it another version in one
step between two requests. `answer` is the one way from checked rows to scores; every protocol goes through it.

Beside the version that serves there may be two more, each a Live of its own over the same counts: the `candidate` of a
trial, and the `cheaper` version that answers when the budget is spent. Who is asked is decided here, once for each
request: money first, then the canary's share, else the version that serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any

import msgspec

from tenon.serving.candidate import Again, Candidate
from tenon.serving.door import Asked, Page, Result, aside
from tenon.serving.keys import Keys
from tenon.serving.lane import Lane, Late, Unreadable
from tenon.serving.meter import Meter
from tenon.serving.refusal import Refused, refused
from tenon.serving.rows import RowReader, Rows, row_reader
from tenon.serving.service import Seams, Service, Settings
from tenon.serving.spend import Spending
from tenon.serving.tap import Observations

DEGRADED = ((b"x-tenon-degraded", b"budget"),)
PEOPLE = 1  # the priority of who has no key


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The scores of a request, the version that gave them, and what the answer's head must say."""

    service: Service
    ids: Sequence[str | None]
    scores: list[float]
    headers: Sequence[tuple[bytes, bytes]] = ()


class Live:
    """One served model, its version exchangeable."""

    __slots__ = (
        "_ids", "candidate", "cheaper", "keys", "lane", "limits", "loaded", "meter", "reader", "seen", "service",
        "spending", "target_s",
    )  # fmt: skip

    def __init__(self, service: Service, seams: Seams, settings: Settings, meter: Meter, ids: str) -> None:
        self.limits = settings.limits
        self.meter = meter.model(service.name)
        self.seen = Observations(seams.tap, self.meter, wait_s=settings.tap_s, batch_rows=settings.tap_batch_rows)
        self.lane = Lane(service, settings.limits, self.meter, self.seen, settings.inline_ms / 1e3)
        self.loaded = True
        self.candidate: Candidate | None = None
        self.cheaper: Live | None = None
        self.keys: Keys | None = None
        serve = settings.serve
        budgeted = serve.usd_per_hour > 0 or serve.usd_per_1000 > 0
        self.spending = Spending(serve.usd_per_hour, serve.usd_per_1000) if budgeted else None
        self.target_s = serve.target_ms / 1e3
        self._ids = (f"{ids}-{number:x}" for number in count(1))
        self.take(service)

    def take(self, service: Service) -> None:
        """Serve this version from now on; requests already checked are scored by the one that checked them."""
        self.service = service
        self.reader: RowReader = row_reader(service.request_columns, self.limits.json_depth)
        self.lane.service = service

    def lives(self) -> list[Live]:
        """Return this and what stands beside it: all whose features take in facts."""
        beside = [self.candidate.live if self.candidate is not None else None, self.cheaper]
        return [self, *(live for live in beside if live is not None)]

    async def predict(self, asked: Asked) -> Result:
        """Answer ``{"rows": [...]}`` or one bare row with a score for each, and a decision if it has a threshold."""
        service, reader = self.service, self.reader
        checked = await aside(len(asked.body), partial(reader.read, asked.body))
        answered = await self.answer(service, checked, asked, lambda other: other.read(asked.body))
        if isinstance(answered, Refused):
            return answered
        service, threshold = answered.service, answered.service.threshold
        pairs = zip(answered.ids, answered.scores, strict=True)
        if threshold is None:
            every = [{"id": own, "score": score} for own, score in pairs]
        else:
            every = [{"id": own, "score": score, "decision": score >= threshold} for own, score in pairs]
        body = msgspec.json.encode({"model": service.name, "version": service.version, "predictions": every})
        return Page(body=body, headers=answered.headers) if answered.headers else body

    async def answer(self, service: Service, checked: Rows | Refused, asked: Asked, again: Again) -> Answered | Refused:
        """Return the scores of rows that `service` has checked, or why there are none; `again` reads them for another.

        Whichever version answers, each row without an id gets one.
        """
        self.meter.offered += 1
        if isinstance(checked, Refused):
            self.meter.offered -= 1  # nobody could answer this one in time
            return self.refuse(checked, asked)
        found = await self._answer(service, checked, asked, again)
        if isinstance(found, Refused):
            self.meter.refuse(found.status)
            return found
        if perf_counter() - asked.arrived <= self.target_s:
            self.meter.in_time += 1
        if self.keys is not None or self.spending is not None:
            self._charge(found, asked)
        return found

    async def _answer(self, service: Service, checked: Rows, asked: Asked, again: Again) -> Answered | Refused:
        """Choose the version that answers, and let it."""
        if not self.loaded:
            said = f"expected a model that is loaded, got '{service.name}', which was unloaded"
            return self.refuse(Refused(status=503, said=said, retry_after_s=5.0), asked)
        if self.keys is not None and self.lane.waiting_rows:
            shut = self.keys.crowded(asked.caller, self.lane.wait_s(), self.target_s)
            if shut is not None:
                return self.refuse(shut, asked)
        if self.spending is not None and self.spending.degraded(service.usd_per_row, asked.arrived):
            return await self._cheaply(self.spending, service, checked, asked, again)
        trial = self.candidate
        if trial is None:
            return _answered(service, checked, await self.scored(service, checked, asked))
        taken = trial.takes(asked, checked.rows[0])
        if taken:
            other = trial.live.service
            tried = await trial.answer(checked, asked, again)
            if tried is not None:
                return Answered(service=other, ids=tried[0].ids, scores=tried[1])
        scores = await self.scored(service, checked, asked)
        if not taken:
            trial.see(service, checked, scores, asked, again)
        elif not isinstance(scores, Refused):
            trial.failed()
        return _answered(service, checked, scores)

    async def _cheaply(
        self, spending: Spending, service: Service, checked: Rows, asked: Asked, again: Again
    ) -> Answered | Refused:
        """Answer though the budget is spent: by the cheaper version, or not at all, by priority."""
        priority = self.keys.priority(asked.caller) if self.keys is not None else PEOPLE
        other = self.cheaper
        wait_s = spending.wait_s(priority, cheaper=other is not None, now=asked.arrived)
        if wait_s > 0:
            self.meter.shed += 1
            said = f"expected to stay within ${spending.usd_per_hour:g} an hour, got more to do; come back"
            return self.refuse(Refused(status=503, said=said, retry_after_s=max(1.0, wait_s), full=True), asked)
        if other is not None:
            read = checked if other.reader.columns == self.reader.columns else again(other.reader)
            if not isinstance(read, Refused):
                scores = await other.scored(other.service, read, asked)
                if not isinstance(scores, Refused):
                    self.meter.degraded += 1
                    return Answered(service=other.service, ids=read.ids, scores=scores, headers=DEGRADED)
        return _answered(service, checked, await self.scored(service, checked, asked))

    def _charge(self, found: Answered, asked: Asked) -> None:
        usd = len(found.scores) * found.service.usd_per_row
        if self.keys is not None:
            self.keys.charge(asked.caller, usd, asked.arrived)
        if self.spending is not None:
            self.spending.spend(usd, asked.arrived)

    async def scored(self, service: Service, checked: Rows, asked: Asked) -> list[float] | Refused:
        """Return the scores of rows that `service` has checked, with an id for each row that has none; or why not."""
        admission = self.lane.admit(len(checked.rows))
        if not admission:
            return self.refuse(refused(admission), asked)
        ids = checked.ids
        for number, own in enumerate(ids):
            if own is None:
                ids[number] = next(self._ids)
        try:
            answer = self.lane.submit(service, checked, asked.arrived, asked.at)
            return answer.result() if answer.done() else await answer
        except Late:
            wait_s = max(1.0, self.lane.wait_s())
            said = f"expected an answer within {self.limits.request_s:g} s, got a longer queue; come back"
            return Refused(status=503, said=said, retry_after_s=wait_s)
        except Unreadable as error:
            return Refused(status=422, said=f"expected rows whose features can be computed, got {error}")
        except Exception:  # noqa: BLE001 - the edge of a request; the lane has logged and counted it
            return Refused(status=500, said=f"'{service.name}' could not score this request; its log says why")

    def refuse(self, refusal: Refused, asked: Asked) -> Refused:
        """Count a refusal and let monitoring know, then pass it on."""
        kind = "refused" if refusal.status >= 429 else "invalid"
        self.meter.error(kind)
        self.lane.observe_failed([{}], [next(self._ids)], asked.at, perf_counter() - asked.arrived, kind)
        return refusal

    def warm(self, example: Mapping[str, Any]) -> None:
        """Score an example before anybody waits, so that the first batch is known to be quick or slow."""
        checked = self.reader.convert([msgspec.to_builtins(example)]) if example else None
        if isinstance(checked, Rows):
            began = perf_counter()
            self.service.predictor.score(self.service.online.read(checked.rows))
            self.lane.curve.learn(1, perf_counter() - began)

    def close(self) -> None:
        """Offer what monitoring has not seen, and let the worker go."""
        self.seen.flush()
        self.lane.close()


def _answered(service: Service, checked: Rows, scores: list[float] | Refused) -> Answered | Refused:
    return scores if isinstance(scores, Refused) else Answered(service=service, ids=checked.ids, scores=scores)

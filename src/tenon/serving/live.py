"""Live is one model as it stands now: the version it serves, the reader of its rows, its lane and its counts.

The doors of a model (`/predict`, Open Inference, `/labels`) hold its Live, and `take` gives it another version in one
step between two requests. `answer` is the one way from checked rows to scores; every protocol goes through it.
"""

from __future__ import annotations

from functools import partial
from itertools import count
from time import perf_counter

import msgspec

from tenon.serving.door import Asked, Result, aside
from tenon.serving.lane import Lane, Late, Unreadable
from tenon.serving.meter import Meter
from tenon.serving.refusal import Refused, refused
from tenon.serving.rows import RowReader, Rows, row_reader
from tenon.serving.service import Seams, Service, Settings
from tenon.serving.tap import Observations


class Live:
    """One served model, its version exchangeable."""

    __slots__ = ("_head", "_ids", "lane", "limits", "meter", "reader", "seen", "service")

    def __init__(self, service: Service, seams: Seams, settings: Settings, meter: Meter, ids: str) -> None:
        self.limits = settings.limits
        self.meter = meter.model(service.name)
        self.seen = Observations(seams.tap, self.meter, wait_s=settings.tap_s, batch_rows=settings.tap_batch_rows)
        self.lane = Lane(service, settings.limits, self.meter, self.seen, settings.inline_ms / 1e3)
        self._ids = (f"{ids}-{number:x}" for number in count(1))
        self.take(service)

    def take(self, service: Service) -> None:
        """Serve this version from now on; requests already checked are scored by the one that checked them."""
        self.service = service
        self.reader: RowReader = row_reader(service.request_columns, self.limits.json_depth)
        self.lane.service = service
        named = msgspec.json.encode({"model": service.name, "version": service.version})
        self._head = named[:-1] + b',"predictions":'

    async def predict(self, asked: Asked) -> Result:
        """Answer ``{"rows": [...]}`` or one bare row with a score for each, and a decision if it has a threshold."""
        service, head, threshold = self.service, self._head, self.service.threshold
        checked = await aside(len(asked.body), partial(self.reader.read, asked.body))
        scores = await self.answer(service, checked, asked)
        if isinstance(scores, Refused):
            return scores
        assert isinstance(checked, Rows)
        if threshold is None:
            every = [{"id": own, "score": score} for own, score in zip(checked.ids, scores, strict=True)]
        else:
            every = [
                {"id": own, "score": score, "decision": score >= threshold}
                for own, score in zip(checked.ids, scores, strict=True)
            ]
        return head + msgspec.json.encode(every) + b"}"

    async def answer(self, service: Service, checked: Rows | Refused, asked: Asked) -> list[float] | Refused:
        """Return the scores of rows that `service` has checked, with an id for each row that has none; or why not."""
        if isinstance(checked, Refused):
            return self.refuse(checked, asked)
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

    def close(self) -> None:
        """Offer what monitoring has not seen, and let the worker go."""
        self.seen.flush()
        self.lane.close()

"""Facts and labels as they become known: checked, kept durably, and only then put to use.

`POST /facts/SOURCE` takes rows of a source and answers how many were new: they are on disk before the online features
see them, and a row that is posted twice counts once. `POST /labels/MODEL` takes ``{"id", "label", "known"}`` rows, the
truth about predictions made earlier; monitoring reads them from the store.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import polars as pl

from tenon.contract.column import Column, Source
from tenon.errors import MissingError, StoreError, TenonError
from tenon.limits import ServingLimits
from tenon.serving.door import Act, Asked, Result, aside
from tenon.serving.keeping import Batch, Keeper, span, to_frame
from tenon.serving.live import Live
from tenon.serving.meter import Meter
from tenon.serving.refusal import Refused, faulty, refused, reply
from tenon.serving.rows import Rows, fault, row_reader
from tenon.serving.service import Seams

SLICE_ROWS = 256  # facts are applied in slices, so that no answer waits long for them
LABEL_COLUMNS = (Column("label", "float", nullable=True), Column("known", "timestamp", nullable=True))


class Posting:
    """What stands behind the doors for facts and labels."""

    def __init__(
        self, keeper: Keeper | None, seams: Seams, limits: ServingLimits, meter: Meter, lives: Mapping[str, Live]
    ) -> None:
        self._keeper = keeper
        self._seams = seams
        self._limits = limits
        self._meter = meter
        self._lives = lives

    def facts(self, source: Source) -> Act:
        """Return what `POST /facts/SOURCE` does."""
        columns = [column for column in source.columns if not column.derive]
        reader = row_reader(columns, self._limits.json_depth)

        def read(asked: Asked) -> Batch | Refused:
            checked = reader.read(asked.body)
            if isinstance(checked, Refused):
                return checked
            first, last = span(checked.rows, source.known_at, asked.at)
            frame = to_frame(checked.rows, columns)
            return Batch(stream="facts", subject=source.name, frame=frame, first=first, last=last)

        async def post(asked: Asked) -> Result:
            done = await self._kept(asked, read)
            if isinstance(done, Refused):
                return done
            frame, kept = done
            accepted = await self._apply(source.name, frame)
            if isinstance(accepted, Refused):
                return accepted
            counts = self._meter.facts
            for outcome, rows in (("accepted", accepted), ("duplicate", frame.height - accepted)):
                counts[source.name, outcome] = counts.get((source.name, outcome), 0) + rows
            return reply(
                {"source": source.name, "accepted": accepted, "duplicates": frame.height - accepted, "seq": kept}
            )

        return post

    def labels(self, model: str) -> Act:
        """Return what `POST /labels/MODEL` does."""
        reader = row_reader(LABEL_COLUMNS, self._limits.json_depth)

        def read(asked: Asked) -> Batch | Refused:
            checked = reader.read(asked.body, _plain_label)
            if isinstance(checked, Refused):
                return checked
            faults = [
                fault(f"$.rows[{number}].id", "the id that the prediction had", "nothing")
                for number, own in enumerate(checked.ids)
                if own is None
            ]
            if faults:
                return faulty(faults)
            frame = _label_frame(checked, asked.at)
            first, last = span(frame.select("known").to_dicts(), "known", asked.at)
            return Batch(stream="labels", subject=model, frame=frame, first=first, last=last)

        async def post(asked: Asked) -> Result:
            done = await self._kept(asked, read)
            if isinstance(done, Refused):
                return done
            frame, kept = done
            return reply({"model": model, "accepted": frame.height, "seq": kept})

        return post

    async def _kept(self, asked: Asked, read: Callable[[Asked], Batch | Refused]) -> tuple[pl.DataFrame, int] | Refused:
        """Read what was posted and write it durably; returns the rows, and the number they are kept under."""
        batch = await aside(len(asked.body), partial(read, asked))
        if isinstance(batch, Refused):
            return batch
        kept = await self._keep(batch)
        return kept if isinstance(kept, Refused) else (batch.frame, kept)

    async def _keep(self, batch: Batch) -> int | Refused:
        """Write a batch durably, or say why not."""
        if self._keeper is None:
            return Refused(status=503, said=f"expected a store to keep {batch.stream} in, got a service without one")
        rows, limit = batch.frame.height, self._limits.rows_per_request
        if rows > limit:
            return Refused(
                status=413, said=f"expected at most {limit:,} rows in a request, got {rows:,}; send them in parts"
            )
        admission = self._keeper.admit(rows)
        if not admission:
            return refused(admission)
        try:
            return await self._keeper.keep(batch)
        except StoreError as error:
            return Refused(status=503, said=f"nothing was kept: {error}", retry_after_s=5.0)

    async def _apply(self, source: str, frame: pl.DataFrame) -> int | Refused:
        """Apply facts that are kept to every model's features, in slices between batches; return how many were new."""
        accepted = 0
        try:
            for start in range(0, frame.height, SLICE_ROWS):
                part = frame.slice(start, SLICE_ROWS)
                new = 0
                for live in [each for model in self._lives.values() for each in model.lives()]:
                    new = max(new, await live.lane.alone(partial(_taken, live, source, part)))
                accepted += new
        except (TenonError, pl.exceptions.PolarsError, ValueError, TypeError) as error:
            return Refused(status=422, said=f"the facts are kept but cannot be applied: {error}")
        return accepted


def _taken(live: Live, source: str, part: pl.DataFrame) -> int:
    """Apply facts to the version that serves when its turn comes; a model that does not read the source takes none."""
    try:
        return live.service.online.apply(source, part)
    except MissingError:
        return 0


def _plain_label(row: Any) -> Any:
    """Write true and false as 1 and 0, which is how labels are kept."""
    if isinstance(row, dict) and isinstance(row.get("label"), bool):
        return {**row, "label": float(row["label"])}
    return row


def _label_frame(checked: Rows, at: float) -> pl.DataFrame:
    now = dt.datetime.fromtimestamp(at, dt.UTC).replace(tzinfo=None)
    rows = [
        {**row, "id": own, "known": row["known"] or now} for row, own in zip(checked.rows, checked.ids, strict=True)
    ]
    return to_frame(rows, (Column("id"), *LABEL_COLUMNS))

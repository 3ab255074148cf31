"""Observations collects what was answered into columns and offers it to monitoring, after the answers have gone.

Monitoring is a guest here: rows are added on a later turn of the event loop than their answers, gathered for a quarter
of a second or a thousand rows, and offered once. A tap that says no, or raises, loses that batch; the loss is counted
and shown in `/metrics`. What waits is bounded by the batch size, so that a dead consumer costs no memory.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from tenon.errors import TenonError
from tenon.serving.meter import ModelMeter
from tenon.serving.service import Service, Tap

log = logging.getLogger("tenon.serving")


class Observations:
    """The observations of one model that have not been offered yet."""

    __slots__ = ("_batch_rows", "_columns", "_count", "_meter", "_names", "_tap", "_timer", "_version", "_wait_s")

    def __init__(self, tap: Tap | None, meter: ModelMeter, *, wait_s: float, batch_rows: int) -> None:
        self._tap = tap
        self._meter = meter
        self._wait_s = wait_s
        self._batch_rows = batch_rows
        self._columns: dict[str, list[Any]] = {}
        self._count = 0
        self._version = ""
        self._names: dict[str, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(
        self,
        service: Service,
        rows: Sequence[Mapping[str, Any]],
        features: Mapping[str, Sequence[Any]],
        answered: Mapping[str, Sequence[Any]],
    ) -> None:
        """Add answered rows: their features, and the columns id, at, score, latency_ms and error."""
        if self._tap is None:
            return
        count = len(rows)
        if service.version != self._version or (features and features.keys() != self._names.keys()):
            self.flush()  # other features make other columns
            self._version = service.version
            self._names = dict.fromkeys(features)
        columns = self._columns
        for name in ("id", "at", "score", "latency_ms", "error"):
            columns.setdefault(name, []).extend(answered[name])
        columns.setdefault("time", []).extend(_moments(service, rows, answered["at"]))
        columns.setdefault("model", []).extend([service.name] * count)
        columns.setdefault("version", []).extend([service.version] * count)
        columns.setdefault("usd", []).extend([service.usd_per_row] * count)
        for name in service.key:
            columns.setdefault(f"key_{name}", []).extend([row.get(name) for row in rows])
        for name in self._names:
            columns.setdefault(f"f_{name}", []).extend(features[name] if features else [None] * count)
        self._count += count
        if self._count >= self._batch_rows:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self.flush)

    def flush(self) -> None:
        """Offer what waits, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._count or self._tap is None:
            return
        columns, count = self._columns, self._count
        self._columns, self._count = {}, 0
        try:
            taken = self._tap(columns)
        except Exception:  # the edge to monitoring, which must never fail an answer
            log.exception("the tap failed; %d observations are lost", count)
            taken = False
        if not taken:
            self._meter.tap_dropped += count


def _moments(service: Service, rows: Sequence[Mapping[str, Any]], ats: Sequence[float]) -> list[dt.datetime]:
    """Return when each row happened; its arrival where it does not say, or could not be read at all."""
    if service.moments is not None and all(rows):
        try:
            found = service.moments(rows)
        except (TenonError, ValueError, TypeError, KeyError, OverflowError):
            found = [None] * len(rows)
    else:
        found = [row.get(service.time) for row in rows]
    return [moment or _instant(at) for moment, at in zip(found, ats, strict=True)]


def _instant(at: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC).replace(tzinfo=None)

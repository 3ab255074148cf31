"""Observations collects what was answered and offers it to monitoring as columns, after the answers have gone.

Monitoring is a guest here: rows are noted on a later turn of the event loop than their answers, gathered for a quarter
of a second or a few hundred rows, and only then laid out in columns and offered once. A tap that says no, or raises,
loses that batch; the loss is counted and shown in `/metrics`. What waits is bounded by the batch size, so that a dead
consumer costs no memory.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from tenon.errors import TenonError
from tenon.serving.meter import ModelMeter
from tenon.serving.service import Service, Tap

log = logging.getLogger("tenon.serving")
ANSWERED = ("id", "at", "score", "latency_ms", "error")
Columns = Mapping[str, Sequence[Any]]
Part = tuple[Sequence[Mapping[str, Any]], Columns, Columns]  # the rows, their features, and what was answered


class Observations:
    """The observations of one model that have not been offered yet."""

    __slots__ = ("_batch_rows", "_count", "_meter", "_names", "_parts", "_service", "_tap", "_timer", "_wait_s")

    def __init__(self, tap: Tap | None, meter: ModelMeter, *, wait_s: float, batch_rows: int) -> None:
        self._tap = tap
        self._meter = meter
        self._wait_s = wait_s
        self._batch_rows = batch_rows
        self._parts: list[Part] = []
        self._count = 0
        self._service: Service | None = None
        self._names: tuple[str, ...] = ()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, service: Service, rows: Sequence[Mapping[str, Any]], features: Columns, answered: Columns) -> None:
        """Note rows, their features (none where they failed), and the columns id, at, score, latency_ms and error."""
        if self._tap is None:
            return
        if service is not self._service:
            self.flush()  # another version has other columns
            self._service, self._names = service, ()
        if features and not self._names:
            self._names = tuple(features)
        self._parts.append((rows, features, answered))
        self._count += len(rows)
        if self._count >= self._batch_rows:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self.flush)

    def flush(self) -> None:
        """Offer what waits, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._count or self._tap is None or self._service is None:
            return
        parts, count = self._parts, self._count
        self._parts, self._count = [], 0
        try:
            taken = self._tap(_columns(self._service, self._names, parts))
        except Exception:  # the edge to monitoring, which must never fail an answer
            log.exception("the tap failed; %d observations are lost", count)
            taken = False
        if not taken:
            self._meter.tap_dropped += count


def _columns(service: Service, names: Sequence[str], parts: Sequence[Part]) -> dict[str, list[Any]]:
    """Lay noted rows out in columns."""
    rows = [row for some, _, _ in parts for row in some]
    count = len(rows)
    found: dict[str, list[Any]] = {
        name: list(chain.from_iterable([answered[name] for _, _, answered in parts])) for name in ANSWERED
    }
    found["time"] = _moments(service, rows, found["at"])
    found["model"] = [service.name] * count
    found["version"] = [service.version] * count
    found["usd"] = [service.usd_per_row] * count
    for name in service.key:
        found[f"key_{name}"] = [row.get(name) for row in rows]
    given = [features or dict.fromkeys(names, [None] * len(some)) for some, features, _ in parts]
    for name in names:
        found[f"f_{name}"] = list(chain.from_iterable([features[name] for features in given]))
    return found


def _moments(service: Service, rows: Sequence[Mapping[str, Any]], ats: Sequence[float]) -> list[dt.datetime]:
    """Return when each row happened; its arrival where it does not say, or could not be read at all."""
    moments = iter(_told(service, [row for row in rows if row]))
    return [(next(moments) if row else None) or _instant(at) for row, at in zip(rows, ats, strict=True)]


def _told(service: Service, rows: Sequence[Mapping[str, Any]]) -> Sequence[dt.datetime | None]:
    """Return the times that rows tell of themselves; one that cannot be told is None and costs no other its own."""
    if service.moments is None:
        return [row.get(service.time) for row in rows]
    try:
        return service.moments(rows)
    except (TenonError, ValueError, TypeError, KeyError, OverflowError):
        return [None] if len(rows) == 1 else [moment for row in rows for moment in _told(service, [row])]


def _instant(at: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC).replace(tzinfo=None)

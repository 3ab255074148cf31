"""The Keeper writes facts and labels to the store before anything else happens to them, and plays them back on start.

A fact that was acknowledged is on disk: a process killed in the next instant loses nothing, because `restore` applies
what the online snapshot has not seen. One thread writes; posts that arrive while it writes share the next
transaction, so that a hundred clients cost one flush to disk and not a hundred. Batches are kept as Arrow IPC of the
rows as they came.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import heapq
import io
import logging
import operator
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import polars as pl

from tenon.contract.column import Column, Source
from tenon.contract.frame import DTYPES
from tenon.errors import MissingError, TenonError
from tenon.limits import Admission, Answer
from tenon.serving.service import Features, Keeps

log = logging.getLogger("tenon.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows to keep: the stream and subject they belong to, and the span of their own time in Unix seconds."""

    stream: str
    subject: str
    frame: pl.DataFrame
    first: float
    last: float


class Keeper:
    """The one writer of a serving process."""

    def __init__(self, store: Keeps, queue_rows: int) -> None:
        self._store = store
        self._queue_rows = queue_rows
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tenon-keeper")
        self._waiting: list[tuple[Batch, asyncio.Future[int]]] = []
        self._writing = False
        self._paused = 0
        self.waiting_rows = 0

    def admit(self, rows: int) -> Admission:
        """Say whether so many rows may wait to be written now, or later."""
        if self.waiting_rows and self.waiting_rows + rows > self._queue_rows:
            reason = f"{self.waiting_rows:,} rows are waiting to be written; come back"
            return Admission(answer=Answer.LATER, reason=reason, retry_after_s=1.0)
        return Admission(answer=Answer.OK)

    async def keep(self, batch: Batch) -> int:
        """Write a batch durably and return its sequence number; raises StoreError when it cannot be kept."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[int] = loop.create_future()
        self._waiting.append((batch, answer))
        self.waiting_rows += batch.frame.height
        self._next()
        return await answer

    async def catch_up(self, online: Features, sources: Mapping[str, Source], after: int) -> int:
        """Apply the facts that `online` has not seen; nothing is written until `resume` is called."""
        self._paused += 1
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, restore, online, self._store, sources, after
        )

    def resume(self) -> None:
        """Write again after `catch_up`."""
        self._paused -= 1
        self._next()

    def close(self) -> None:
        """Wait for what is being written, then let the thread go."""
        self._pool.shutdown(wait=True)

    def _next(self) -> None:
        if self._writing or self._paused or not self._waiting:
            return
        self._writing = True
        group, self._waiting = self._waiting, []
        running = asyncio.get_running_loop().run_in_executor(self._pool, self._write, [batch for batch, _ in group])
        running.add_done_callback(lambda done: self._written(group, done))

    def _write(self, batches: Sequence[Batch]) -> list[int]:
        bodies = [to_ipc(batch.frame) for batch in batches]
        with self._store.atomic():
            return [
                self._store.append(b.stream, b.subject, body, rows=b.frame.height, first=b.first, last=b.last)
                for b, body in zip(batches, bodies, strict=True)
            ]

    def _written(self, group: Sequence[tuple[Batch, asyncio.Future[int]]], done: asyncio.Future[list[int]]) -> None:
        self._writing = False
        error = done.exception()
        for number, (batch, answer) in enumerate(group):
            self.waiting_rows -= batch.frame.height
            if answer.done():
                continue
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(done.result()[number])
        self._next()


def restore(online: Features, store: Keeps, sources: Mapping[str, Source], after_seq: int = 0) -> int:
    """Apply to `online` the facts kept after `after_seq`, in the order they came; return the last number seen.

    Reads the store batch by batch; applying is idempotent, so that doing it twice is safe. A batch that cannot be
    applied is logged and left in the store: one bad batch must not keep a service from starting.
    """
    last = after_seq

    def batches(name: str) -> Iterator[tuple[int, str, bytes]]:
        return ((batch.seq, name, batch.body) for batch in store.read("facts", name, after=after_seq))

    for seq, name, body in heapq.merge(*map(batches, sorted(sources)), key=operator.itemgetter(0)):
        last = max(last, seq)
        try:
            online.apply(name, pl.read_ipc(io.BytesIO(body)))
        except MissingError:
            continue  # a source that this model does not read
        except (TenonError, pl.exceptions.PolarsError, ValueError, TypeError):
            log.exception("batch %d of facts of '%s' cannot be applied; it is kept in the store", seq, name)
    return last


def to_frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> pl.DataFrame:
    """Return checked rows as a frame with the columns' types."""
    return pl.DataFrame(
        {column.name: [row.get(column.name) for row in rows] for column in columns},
        schema={column.name: DTYPES[column.type] for column in columns},
    )


def to_ipc(frame: pl.DataFrame) -> bytes:
    """Return the frame as Arrow IPC."""
    buffer = io.BytesIO()
    frame.write_ipc(buffer, compression="zstd" if frame.height > 100 else "uncompressed")
    return buffer.getvalue()


def span(rows: Sequence[Mapping[str, Any]], column: str, at: float) -> tuple[float, float]:
    """Return the first and last of the rows' own time in Unix seconds; `at` when they have none."""
    found = [row.get(column) for row in rows] if column else []
    times = [_seconds(value) for value in found if isinstance(value, dt.date)]
    return (min(times), max(times)) if times else (at, at)


def _seconds(value: dt.date) -> float:
    moment = value if isinstance(value, dt.datetime) else dt.datetime.combine(value, dt.time())
    return moment.replace(tzinfo=dt.UTC).timestamp()

"""Observations on their way from a live service to the store, without ever making an answer wait.

`offer` takes a batch in about a microsecond a row: numbers go from lists of objects into arrays, the rest is put on a
list under a lock held for a few instructions. (Lists of numbers kept for a second and packed in one go cost a busy
service a third more at its 99th percentile: half a million objects that have gone cold, and a thread that holds the
interpreter while it reads them.) A thread of the collector's own takes what has gathered about once a second, turns it
into one frame, and appends it to the stream `observations`, durable when `append` returns. So at most the last second
is lost when the process is killed.

Memory is bounded in rows, counting those waiting for a store that fails. When the bound is reached a batch is dropped
whole, and counted; the counts are kept as `collector` events in the store, from which `examine` makes the finding
`watch/dropped`. While the store fails the encoded batches are kept, oldest first, and tried again after 1, 2, 4 ...
seconds. Each batch is appended in a transaction of its own, so it is kept once or not at all. Every 64 batches the
small ones are folded into large (`stream.compact`).

Rejected: a queue.Queue (its put takes three locks and its size is in batches, not rows); writing from the event loop in
small pieces (a full disk would then be felt by callers); a file beside the store, read later (a second thing to keep).
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import polars as pl

from tenon.errors import InputError, StoreError, sentence
from tenon.finding import Finding
from tenon.limits import WatchLimits
from tenon.store import Store
from tenon.watch import observation
from tenon.watch.observation import Columns
from tenon.watch.stream import PIECE_ROWS, compact

EVENT = "collector"
_FIRST_RETRY_S = 1.0
_FOLD_EVERY = 64  # batches written between two foldings of small ones into large


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of every row offered: `offered` is always the sum of the other four."""

    offered: int = 0
    written: int = 0
    waiting: int = 0
    dropped: int = 0  # the buffer was full, or the collector closed
    refused: int = 0  # no observations: columns of unequal length, or no time
    failures: int = 0  # tries of the store that failed (tries, not rows)

    @property
    def balances(self) -> bool:
        """Whether every row is accounted for."""
        return self.offered == self.written + self.waiting + self.dropped + self.refused


@dataclass(frozen=True, slots=True)
class _Ready:
    """An encoded batch that waits for the store."""

    body: bytes
    rows: int
    first: float
    last: float


class Collector:
    """Take observations of one model from a live service and keep them durably, in the background.

    One per process and model. `offer` may be called from any thread. The caller hands the lists over: it may not change
    them afterwards. Starts one daemon thread; `close` flushes and ends it.
    """

    def __init__(
        self,
        store: Store,
        model: str,
        limits: WatchLimits = WatchLimits(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._model, self._limits, self._clock = store, model, limits, clock
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._offered: list[Columns] = []
        self._ready: list[_Ready] = []
        self._closing = False
        self._total = self._written = self._waiting = self._dropped = self._refused = self._failures = 0
        self._told = (0, 0)
        self._folded = self._since_folded = 0
        self._why = ""  # the last refusal, in words
        self._thread = threading.Thread(target=self._run, name=f"tenon-watch-{model}", daemon=True)
        self._thread.start()

    def offer(self, batch: Columns) -> bool:
        """Take a batch of columns, or drop it and count it when there is no room; never blocks, never raises."""
        rows = max((len(values) for values in batch.values()), default=0)
        with self._lock:
            self._total += rows
            if self._closing or self._waiting + rows > self._limits.buffer_rows:
                self._dropped += rows
                return False
            self._waiting += rows
        compact_batch = {name: _plain(name, values) for name, values in batch.items()}
        with self._lock:
            self._offered.append(compact_batch)
        return True

    def counts(self) -> Counts:
        """Return what became of every row so far."""
        with self._lock:
            return Counts(
                offered=self._total,
                written=self._written,
                waiting=self._waiting,
                dropped=self._dropped,
                refused=self._refused,
                failures=self._failures,
            )

    def findings(self) -> list[Finding]:
        """Return `watch/dropped` when this collector has lost rows, else nothing."""
        counts = self.counts()
        return dropped_finding(self._model, counts.dropped, counts.refused, counts.written)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Ask for what is waiting to be written now; return whether all of it was within the time given."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            self._wake.set()
            if self.counts().waiting == 0:
                return True
            time.sleep(0.005)
        return self.counts().waiting == 0

    def close(self) -> Counts:
        """Refuse further batches, write what is waiting (bounded by `close_s`), end the thread, return the counts."""
        with self._lock:
            self._closing = True
        self._wake.set()
        self._thread.join(self._limits.close_s + _FIRST_RETRY_S)
        return self.counts()

    def __enter__(self) -> Collector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        """Write what has gathered about every `flush_s`; after a failure wait longer each time, up to `retry_s`."""
        wait_s, give_up = self._limits.flush_s, float("inf")
        while True:
            self._wake.wait(wait_s)
            self._wake.clear()
            if self._closing:
                give_up = min(give_up, time.monotonic() + self._limits.close_s)
            self._pack()
            if self._write():
                wait_s = self._limits.flush_s
                if self._closing and self.counts().waiting == 0:
                    return
            else:
                wait_s = min(max(_FIRST_RETRY_S, 2 * wait_s), self._limits.retry_s)
            if time.monotonic() >= give_up:
                self._abandon()
                return
            if self._closing:
                wait_s = min(wait_s, 0.2)

    def _pack(self) -> None:
        """Turn the batches offered since the last time into encoded ones, in pieces of bounded size."""
        with self._lock:
            offered, self._offered = self._offered, []
        for group in _alike(offered):
            try:
                self._ready.append(_packed(group))
            except Exception:  # noqa: BLE001 - the edge to callers: one strange batch may not take others along
                for batch in group:
                    self._pack_one(batch)

    def _pack_one(self, batch: Columns) -> None:
        try:
            self._ready.append(_packed([batch]))
        except Exception as error:  # noqa: BLE001 - the same edge; the batch is counted and the words are kept
            self._refuse(_rows(batch), f"{type(error).__name__}: {error}")

    def _refuse(self, rows: int, why: str) -> None:
        with self._lock:
            self._refused += rows
            self._waiting -= rows
        self._why = why[:500]

    def _write(self) -> bool:
        """Append every encoded batch and then the drop count; return whether the store took all of it."""
        try:
            while self._ready:
                batch = self._ready[0]
                try:
                    self._store.append(
                        observation.STREAM,
                        self._model,
                        batch.body,
                        rows=batch.rows,
                        first=batch.first,
                        last=batch.last,
                    )
                except InputError as error:  # larger than the store takes: trying again would not help
                    self._refuse(batch.rows, str(error))
                else:
                    with self._lock:
                        self._written += batch.rows
                        self._waiting -= batch.rows
                    self._since_folded += 1
                del self._ready[0]
            self._tell()
        except StoreError:
            with self._lock:
                self._failures += 1
            return False
        if self._since_folded >= _FOLD_EVERY:
            self._since_folded = 0
            try:
                self._folded = compact(self._store, self._model, after=self._folded)
            except Exception:  # noqa: BLE001 - tidying may fail (a damaged old batch); writing goes on, and doctor tells
                pass
        return True

    def _tell(self) -> None:
        """Keep in the store how many rows were lost since this was last told, if any were."""
        counts = self.counts()
        lost = (counts.dropped, counts.refused)
        if lost != self._told:
            dropped, refused = lost[0] - self._told[0], lost[1] - self._told[1]
            body = {"dropped": dropped, "refused": refused, "failures": counts.failures, "why": self._why}
            self._store.event(EVENT, self._model, body, at=self._clock())
            self._told = lost

    def _abandon(self) -> None:
        """Count what could not be written before the end as dropped, and try once to say so in the store."""
        with self._lock:
            self._dropped += self._waiting
            self._waiting = 0
        try:
            self._tell()
        except StoreError:
            pass  # the store is what failed; the counts are still with the caller


# ── pieces ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def dropped_finding(model: str, dropped: int, refused: int, written: int) -> list[Finding]:
    """Say how many observations were lost, as an error beyond 1 % of them; nothing when none were."""
    lost = dropped + refused
    if not lost:
        return []
    share = 100 * lost / max(lost + written, 1)
    why = " and ".join(
        part
        for part in (
            f"{dropped:,} because the buffer was full" if dropped else "",
            f"{refused:,} because they were no observations" if refused else "",
        )
        if part
    )
    return [
        Finding(
            code="watch/dropped",
            severity="error" if share > 1 else "warning",
            place=f"{model}/observations",
            said=f"{lost:,} of {lost + written:,} answers were given but not recorded ({why}), "
            "so the figures below miss them.",
            hint="Answers were not slowed or lost. Check that the store's disk keeps up, or raise "
            "limits.watch.buffer_rows in tenon.toml."
            if dropped
            else "Every batch needs a column 'time' and columns of one length.",
            numbers={"dropped": dropped, "refused": refused, "written": written, "lost_pct": round(share, 3)},
        )
    ]


def _rows(batch: Columns) -> int:
    return max((len(values) for values in batch.values()), default=0)


def _alike(batches: list[Columns]) -> list[list[Columns]]:
    """Group batches of the same columns, each group of bounded size, so that each becomes one frame."""
    groups: list[list[Columns]] = []
    open_groups: dict[tuple[str, ...], tuple[list[Columns], int]] = {}
    for batch in batches:
        names, rows = tuple(batch), _rows(batch)
        group, held = open_groups.get(names, ([], 0))
        if not group or held + rows > PIECE_ROWS:
            group, held = [], 0
            groups.append(group)
        group.append(batch)
        open_groups[names] = (group, held + rows)
    return groups


def _plain(name: str, values: Any) -> Any:
    """Return a column of numbers as an array of doubles; any other, and one with gaps, as it came."""
    if name.startswith(observation.FEATURE) or name in observation.DECIMALS:
        try:
            return np.frombuffer(array("d", values))
        except (TypeError, ValueError, OverflowError):  # a gap, a text, an integer beyond doubles
            pass
    return values


def _joined(parts: list[Any]) -> Any:
    """Put the parts of one column behind each other."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return [value for part in parts for value in (part.tolist() if isinstance(part, np.ndarray) else part)]


def _packed(group: list[Columns]) -> _Ready:
    """Join batches of the same columns into one encoded batch; raises InputError when they are no observations."""
    if len(group) == 1:
        columns: Columns = group[0]
    else:
        for batch in group:
            if len({len(values) for values in batch.values()}) > 1:
                raise InputError(sentence("columns of one length", str({n: len(v) for n, v in batch.items()})))
        columns = {name: _joined([batch[name] for batch in group]) for name in group[0]}
    frame = observation.frame_of(columns)
    span = frame.select(first=pl.col("time").min(), last=pl.col("time").max()).row(0)
    if span[0] is None:
        raise InputError(sentence("at least one row with a time", f"{frame.height} without"))
    return _Ready(
        body=observation.encode(frame),
        rows=frame.height,
        first=observation.seconds(span[0]),
        last=observation.seconds(span[1]),
    )

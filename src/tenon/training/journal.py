"""The journal of a run: a bounded buffer that never makes its caller wait, and the one thread that writes it.

A call of few metrics is put aside in `recent`, which takes no lock; `add` counts those and its own under one that is
only ever held for an instant. The thread takes the buffer every `flush_s`, packs it (see `packing`) and appends it to
the store in one durable transaction, with the run's record when that has changed. When the disk cannot follow and the
buffer is full, points are dropped, counted, and told as the finding `track/dropped`: never silently, and still without
waiting. What the store refuses (a full disk, another writer) is kept and tried again; `flush` and `close` tell it.

Only this thread writes, so that Ctrl-C, which Python raises in the main thread, never cuts a batch in half. It works
in small slices and sleeps an instant between them: a thread that holds the interpreter for long makes others wait as
surely as a lock does, and merely releasing it lets the same thread take it back. Small batches are folded into large
ones every `FOLD` flushes and at the end, so that a run that logged for days reads as quickly as a short one.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from tenon.errors import StoreError, UsageError, sentence
from tenon.finding import Finding
from tenon.limits import TrackLimits
from tenon.store import Batch, Store
from tenon.store.store import as_json
from tenon.training.packing import Call, Floats, Ints, Packed, Table, join, pack, packed, tables, unpacked
from tenon.training.setting import code, setting
from tenon.training.tally import Tally

STREAM = "metrics"
ROOM, FEW = 1_024, 16  # calls that are put aside uncounted at most, and the metrics of such a call
FOLD = 2_000  # batches after which they are folded into few
FOLD_BYTES = 4 * 1024 * 1024
NO_MORE = sys.maxsize  # points held by a buffer that takes no more

Columns = tuple[str, float, Ints, Floats]


class Journal:
    """What a run has been told and not yet written, and the thread that writes it."""

    __slots__ = (
        "__weakref__",
        "_asked",
        "_below",
        "_calls",
        "_closed",
        "_columns",
        "_dirty",
        "_dropped",
        "_ending",
        "_error",
        "_folded",
        "_held",
        "_lock",
        "_looking",
        "_names",
        "_packed",
        "_pid",
        "_served",
        "_since_fold",
        "_tally",
        "_thread",
        "_total",
        "_turn",
        "_wake",
        "body",
        "clock",
        "id",
        "limits",
        "recent",
        "room",
        "store",
    )

    def __init__(self, store: Store, body: dict[str, Any], limits: TrackLimits, clock: Callable[[], float]) -> None:
        self.store = store
        self.id = str(body["id"])
        self.body = body
        self.limits = limits
        self.clock = clock
        self._lock = threading.Lock()  # held for an instant: the buffer and the record
        self.recent: deque[Call] = deque()  # calls not counted yet, and how many may be while all surely fit
        self.room = ROOM if limits.buffered_points >= ROOM * FEW else 0
        self._calls: list[Call] = []
        self._columns: list[Columns] = []
        # Of what earlier attempts logged, batches up to `since` of the record, steps below this one are kept.
        self._below = -math.inf
        self._held = 0  # points not yet durable; NO_MORE sends every call to `usable`, at no cost to the others
        self._total = 0
        self._dropped: dict[str, tuple[int, int, int]] = {}  # why -> points, first step, last step
        self._dirty = False
        self._ending = False
        self._closed = False
        self._pid = os.getpid()
        # Between callers of `flush` and the thread:
        self._turn = threading.Condition()
        self._wake = threading.Event()
        self._asked = 0
        self._served = 0
        self._error: Exception | None = None
        # The thread's own:
        self._packed: list[Packed] = []
        self._names: set[str] = set()
        self._folded = 0
        self._since_fold = 0
        self._tally = Tally()
        self._thread = threading.Thread(target=_work, args=(self,), name=f"tenon-track-{self.id}", daemon=True)
        self._looking = threading.Thread(target=_look, args=(self,), name=f"tenon-setting-{self.id}", daemon=True)

    def begin(self) -> None:
        """Start the thread, and another that looks at the setting: what is logged meanwhile does not wait for it."""
        self._thread.start()
        self._looking.start()
        journal = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forked(journal()))

    # ── told by the run ──────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Take one call's metrics, or count them as dropped. Does not wait."""
        now = self.clock()
        points = len(metrics)
        with self._lock:
            if self._fits(points, step, step):
                self._calls.append((step, now, metrics))

    def _fits(self, points: int, first: int, last: int) -> bool:
        """Count points of some steps, as held or else as dropped, and tell which; the lock is held."""
        self._count()
        self._total += points
        if self._held + points <= self.limits.buffered_points:
            self._held += points
            return True
        self.usable()
        self._drop(f"the buffer was full ({self.limits.buffered_points:,} points)", points, first, last)
        return False

    def _count(self) -> None:
        """Count the calls that were put aside; the lock is held."""
        for _ in range(len(self.recent)):
            call = self.recent.popleft()
            points = len(call[2])
            self._total += points
            self._held += points
            self._calls.append(call)
        self.room = ROOM if self._held + ROOM * FEW <= self.limits.buffered_points else 0

    def add_columns(self, name: str, steps: Ints, values: Floats) -> None:
        """Take a column of one metric, or count it as dropped. Does not wait."""
        points = len(steps)
        if not points:
            return
        now = self.clock()
        with self._lock:
            if self._fits(points, int(steps[0]), int(steps[-1])):
                self._columns.append((name, now, steps, values))

    def resumed(self, step: int) -> None:
        """Keep what earlier attempts logged of steps below this one, but of metrics that this one has logged itself."""
        with suppress(StoreError):  # what cannot be written now is tried again, in its order
            self.flush()
        self._below = step
        with suppress(StoreError):
            self.flush()

    def merge(self, field: str, values: Mapping[str, Any]) -> None:
        """Add to a field of the record that is a mapping; UsageError for what cannot be kept."""
        as_json(values, f"run/{self.id}: {field}")
        with self._lock:
            self.body[field] = {**self.body.get(field, {}), **values}
            self._dirty = True

    def say(self, finding: Finding) -> None:
        """Add a finding to the record."""
        with self._lock:
            self.body["findings"] = [*self.body["findings"], finding.to_dict()]
            self._dirty = True

    def update(self, fields: Mapping[str, Any]) -> None:
        """Set fields of the record; UsageError for what cannot be kept, now and not when all else is to be written."""
        as_json(fields, f"run/{self.id}")
        with self._lock:
            self.body.update(fields)
            self._dirty = True

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of the record as it stands."""
        with self._lock:
            return {
                name: value.copy() if isinstance(value, (dict, list)) else value for name, value in self.body.items()
            }

    def flush(self) -> None:
        """Wait until everything told so far is on the disk; raise what the store said when it cannot be."""
        if not self._closed:
            self.usable()
            self._ask()

    def close(self) -> None:
        """Take no more, write everything and end. Raises StoreError when it cannot, and may then be called again."""
        if self._closed:
            return
        with self._lock:
            self._ending = True
            self._held, self.room = NO_MORE, 0
        self._ask()
        self._closed = True
        self._thread.join()

    def _ask(self) -> None:
        """Have the thread write now, and wait for it."""
        with self._turn:
            self._asked += 1
            mine = self._asked
            self._wake.set()
            while self._served < mine and self._thread.is_alive():
                self._turn.wait(1.0)
            error = self._error
        if error is not None:
            raise error
        assert self._served >= mine, "the thread that writes has ended"

    def of_this_process(self) -> bool:
        """Tell whether this is the process that began the run, and not one forked from it."""
        return os.getpid() == self._pid

    def shut_in_child(self) -> None:
        """Take no more, in a process that was forked: the thread that writes does not exist there."""
        self._lock = threading.Lock()  # the old one may have been held at the moment of the fork
        self._held, self.room = NO_MORE, 0

    def usable(self) -> None:
        """Refuse what would be lost: logging to a run that has ended, or in a process forked from the run's own."""
        if not self.of_this_process():
            got = f"process {os.getpid()}, forked from {self._pid}"
            hint = "log from there"
            raise UsageError(sentence("the process that began the run", got, at=f"run/{self.id}", hint=hint))
        if self._ending:
            raise UsageError(sentence("a run that goes on", "one that has ended", at=f"run/{self.id}"))

    def _drop(self, why: str, points: int, first: int, last: int) -> None:
        """Count what is dropped; the lock is held."""
        before, low, _ = self._dropped.get(why, (0, first, last))
        self._dropped[why] = (before + points, low, last)

    # ── done by the thread ───────────────────────────────────────────────────────────────────────────────────────────

    def turn(self) -> bool:
        """Wait for the time or for a caller, write what there is, tell who asked; False when that was the last."""
        self._wake.wait(self.limits.flush_s)
        self._wake.clear()
        with self._turn:
            asked = self._asked
            # The last turn answers the caller who ends the run: one taken by the clock would leave them unanswered.
            ending = self._ending and asked > self._served
        error: Exception | None = None
        if ending:
            self._looking.join()
        try:
            self._drain()
            if ending or self._since_fold >= FOLD:
                self._fold()
        except Exception as caught:  # noqa: BLE001 - the edge of a thread: whoever flushes must hear of it
            error = caught
        with self._turn:
            self._served = asked
            self._error = error
            self._turn.notify_all()
        return not ending or error is not None

    def _drain(self) -> None:
        """Write what is buffered. What cannot be written stays, and is tried again by the next turn."""
        if self.body["since"] and (self._below > -math.inf or self._ending):
            self._look_back(self.body["since"])
        with self._lock:
            self._count()
            calls, self._calls = self._calls, []
            columns, self._columns = self._columns, []
        self._packed.extend(pack(self._counted(self._known(calls, columns))))
        while len(self._packed) > 1:
            self._write()
        self._tell_dropped()
        if self._ending:  # nothing more will come
            self.update({"final": self._tally.to_dict()})
        if self._packed or self._dirty:
            self._write(record=self._dirty)

    def _look_back(self, since: int) -> None:
        """Keep of earlier attempts' points those that this one goes on from, and count them; drop the others."""
        tally, names = Tally(), set()
        for batch in self.store.read(STREAM, self.id):
            if batch.seq > since:
                break
            whole = unpacked(batch.body, f"{STREAM}/{self.id}/{batch.seq}")
            parts = [table.below(self._below, without=self._names) for table in whole]
            kept = [table for table in parts if table.values.size]
            points = sum(table.values.size for table in kept)
            if points < batch.rows:
                self.store.fold(STREAM, self.id, packed(kept), over=[batch], rows=points)
            for table in kept:
                tally.add(table.names, table.steps, table.values)
                names.update(table.names)
        self._tally.take(tally)
        self._names |= names
        self._folded = 0
        self.update({"since": 0})

    def _write(self, *, record: bool = False) -> None:
        """Make the oldest batch durable, and the record with it: once instead of twice, for that is what takes time."""
        oldest = self._packed[:1]
        if record:
            self._dirty = False
        try:
            with self.store.atomic():
                if record:
                    self.store.put("run", self.id, self.snapshot())
                for one in oldest:
                    self.store.append(STREAM, self.id, one.body, rows=one.points, first=one.first, last=one.last)
        except StoreError:
            self._dirty = self._dirty or record
            raise
        del self._packed[:1]
        self._since_fold += len(oldest)
        with self._lock:
            self._held -= sum(one.points for one in oldest)

    def _counted(self, tables: Iterator[Table]) -> Iterator[Table]:
        """Pass tables on, counting what their metrics came to."""
        for table in tables:
            self._tally.add(table.names, table.steps, table.values)
            yield table

    def _known(self, calls: list[Call], columns: list[Columns]) -> Iterator[Table]:
        """Turn what was logged into tables, without metrics beyond the bound on names or whose names are no text."""
        for table in tables(calls):
            refused = [self._refused(name) for name in table.names]
            keep = [i for i, why in enumerate(refused) if not why]
            if len(keep) == len(table.names):
                yield table
                continue
            self._not_admitted(max(refused), (len(table.names) - len(keep)) * len(table.steps), table.steps)
            if keep:
                names = [table.names[i] for i in keep]
                yield Table(names, table.steps, table.times, table.values[:, keep])
        for name, at, steps, values in columns:
            if not (why := self._refused(name)):
                yield Table([name], steps, np.full(len(steps), at), values.reshape(-1, 1))
            else:
                self._not_admitted(why, len(steps), steps)

    def _refused(self, name: str) -> str:
        """Say why a metric cannot be kept, "" when it can."""
        if name in self._names:
            return ""
        if len(self._names) >= self.limits.metric_names:
            return f"there were too many names ({self.limits.metric_names:,} names)"
        if not _is_text(name):
            return "their names are no text that can be written (UTF-8)"
        self._names.add(name)
        return ""

    def _not_admitted(self, why: str, points: int, steps: Ints) -> None:
        with self._lock:
            self._held -= points
            self._drop(why, points, int(steps[0]), int(steps[-1]))

    def _tell_dropped(self) -> None:
        """Keep one finding for each reason in the record, with the counts so far."""
        with self._lock:
            told = [_dropped(self.id, why, counts, self._total) for why, counts in self._dropped.items()]
            others = [body for body in self.body["findings"] if body["code"] != "track/dropped"]
            if told and others + told != self.body["findings"]:
                self.body["findings"] = others + told
                self._dirty = True

    def _fold(self) -> None:
        """Replace many small batches by few large ones."""
        group: list[Batch] = []
        for batch in self.store.read(STREAM, self.id, after=max(self._folded, self.body["since"])):
            if group and sum(len(one.body) for one in group) + len(batch.body) > FOLD_BYTES:
                self._fold_group(group)
                group = []
            group.append(batch)
        self._fold_group(group)
        self._since_fold = 0

    def _fold_group(self, group: list[Batch]) -> None:
        if len(group) > 1:
            self.store.fold(STREAM, self.id, join([batch.body for batch in group]), over=group)
        if group:
            self._folded = group[-1].seq


def _is_text(name: str) -> bool:
    """Tell whether a name can be written: what Python makes of file names that are no UTF-8 cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _work(journal: Journal) -> None:
    """Be the thread of a journal."""
    while journal.turn():
        pass


def _look(journal: Journal) -> None:
    """Keep the code and the setting of a run in its record."""
    journal.update(code(journal.store, journal.limits.code_bytes))  # first: a person may go on editing
    journal.update(setting(journal.store.root))


def _forked(journal: Journal | None) -> None:
    if journal is not None:
        journal.shut_in_child()


def _dropped(id: str, why: str, counts: tuple[int, int, int], total: int) -> dict[str, Any]:
    points, first, last = counts
    return Finding(
        code="track/dropped",
        severity="warning",
        place=f"run/{id}",
        said=f"{points:,} of {total:,} points were dropped between steps {first} and {last}: {why}.",
        hint="Log less often, log whole columns with run.log_many, or raise the bound in [limits.track].",
        numbers={
            "dropped": float(points),
            "logged": float(total),
            "first_step": float(first),
            "last_step": float(last),
        },
    ).to_dict()

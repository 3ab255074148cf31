"""Tracking: a Run remembers what a training did, and never makes it wait.

`run.log` appends to a buffer in memory and returns, in about a microsecond. One background thread takes the buffer
every `TrackLimits.flush_s`, packs it and appends it to the stream `metrics` in one durable transaction; so a process
that is killed loses at most the last fraction of a second. When the disk cannot follow and the buffer is full, points
are dropped, counted, and told as the finding `track/dropped`: never silently, and still without waiting. The thread
works in small slices and offers the interpreter to others between them, because a long slice would be a wait by other
means.

Small batches are folded into large ones every `FOLD` flushes and when the run ends, so that a long run reads as quickly
as a short one (the format is in `packing`).

Values are turned into floats when logged and not later: a tensor that a loop goes on adding to would otherwise be read
after it has changed. Rejected: a queue (slower than a list under a lock), a process (costs a copy, and gains nothing).
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tenon.config import Prices
from tenon.errors import (
    BudgetError,
    MissingError,
    StoreError,
    TrainingError,
    UsageError,
    nearest,
    sentence,
)
from tenon.finding import Finding
from tenon.ledger import Meter
from tenon.limits import TrackLimits
from tenon.store import Batch, Store
from tenon.training.packing import Call, Floats, Ints, Packed, Table, join, pack, tables, unpack
from tenon.training.setting import setting

STREAM = "metrics"
FOLD = 2_000  # batches after which they are folded into few
FOLD_BYTES = 16 * 1024 * 1024
TRACEBACK_CHARS = 20_000
NO_MORE = sys.maxsize  # points held by a buffer that takes no more
STEP_MAX = 2**63 - 1

Curves = dict[str, tuple[Ints, Floats]]
Status = Literal["running", "done", "failed", "stopped"]


class Run:
    """One tracked run. `log` never waits; what is logged is durable within `limits.flush_s`, or after `flush`.

    >>> with Run.start(store, "3f2a91c07d5e", "late", trainer="lightgbm", seed=1) as run:
    ...     run.log(step, loss=0.3)
    """

    __slots__ = ("__weakref__", "_finalizer", "_log", "_meter", "_prices", "guard", "id", "model")

    def __init__(self, log: _Log, prices: Prices | None) -> None:
        self.id: str = log.id
        self.model: str = log.body["model"]
        self.guard: Any = None  # whoever trains puts the guard here, for the user's own loop to call
        self._log = log
        self._prices = prices
        self._meter = Meter()
        self._meter.__enter__()
        # A run that is dropped without `finish` still writes what it holds, also when the interpreter ends.
        self._finalizer = weakref.finalize(self, _abandon, log, self._meter)

    @classmethod
    def start(
        cls,
        store: Store,
        id: str,
        model: str,
        *,
        limits: TrackLimits | None = None,
        clock: Callable[[], float] = time.time,
        prices: Prices | None = None,
        **fields: Any,
    ) -> Self:
        """Begin a run: write its record, and drop what an earlier attempt of the same id has logged.

        `fields` are fields of the record (trainer, seed, params, split ...). With `prices`, finishing charges what the
        run has used to its id in the ledger. Raises TrainingError when a living process is at work on this id.
        """
        at = clock()
        body: dict[str, Any] = {
            "id": id,
            "model": model,
            "at": at,
            "status": "running",
            "params": {},
            "findings": [],
            "artifacts": {},
            "process": _process(),
            **fields,
        }
        with store.atomic():
            before = store.get("run", id)
            if before is not None and before.get("status") == "running" and _alive(before):
                got = f"process {before['process']['pid']} still at work on it"
                raise TrainingError(
                    sentence("a run that nobody else works on", got, at=f"run/{id}", hint="wait or stop it")
                )
            store.trim(STREAM, id, before=float("inf"))
            store.put("run", id, body)
        log = _Log(store, body, limits or TrackLimits(), clock)
        log.begin()
        return cls(log, prices)

    # ── while it runs ────────────────────────────────────────────────────────────────────────────────────────────────

    def log(self, step: int, /, **metrics: float) -> None:
        """Remember the metrics of a step. Never waits: not for the disk, and not when the buffer is full."""
        for name, value in metrics.items():
            if type(value) is not float:
                metrics[name] = _value(value, name, self.id)
        if type(step) is not int or not -STEP_MAX <= step <= STEP_MAX:
            step = _step(step, self.id)
        self._log.add(step, metrics)

    def log_many(self, name: str, steps: Any, values: Any) -> None:
        """Remember a whole column of one metric, from anything NumPy reads. Copies it; never waits."""
        place = f"run/{self.id}: {name}"
        steps_n, values_n = _column(steps, "<i8", place), _column(values, "<f8", place)
        if len(steps_n) != len(values_n):
            got = f"{len(steps_n):,} steps and {len(values_n):,} values"
            raise UsageError(sentence("as many steps as values", got, at=place))
        self._log.add_columns(name, steps_n, values_n)

    def param(self, **params: Any) -> None:
        """Remember settings of the run; written with the next flush."""
        self._log.merge("params", params)

    def artifact(self, name: str, data: bytes | Path) -> str:
        """Keep bytes, or a copy of a file, under a name; returns the digest. This one waits for the disk."""
        digest = self._log.store.blobs.put(data)
        self._log.merge("artifacts", {name: digest})
        return digest

    def finding(self, finding: Finding) -> None:
        """Remember what a person should know about the run."""
        self._log.say(finding)

    def update(self, **fields: Any) -> None:
        """Set fields of the run's record (metrics, baselines, calibration ...); written with the next flush."""
        self._log.update(fields)

    def flush(self) -> None:
        """Wait until everything logged so far is on the disk; raises StoreError when it cannot be written."""
        self._log.drain()

    def metrics(self) -> Curves:
        """Flush, and return every metric as (steps, values)."""
        self.flush()
        return curves(self._log.store, self.id)

    @property
    def body(self) -> dict[str, Any]:
        """The run's record as it stands, a copy."""
        return self._log.snapshot()

    # ── how it ends ──────────────────────────────────────────────────────────────────────────────────────────────────

    def finish(self, status: Status = "done", **fields: Any) -> dict[str, Any]:
        """Write all that is left and the final record, and return it. A second time it changes nothing."""
        if not self._finalizer.alive:
            return self.body
        self._meter.__exit__(None, None, None)
        usage = self._meter.usage()
        used: dict[str, Any] = {"seconds": usage.wall_s, "cpu_s": usage.cpu_s, "peak_bytes": usage.peak_bytes}
        store = self._log.store
        entries = usage.entries(self.id, self._prices, at=self._log.clock()) if self._prices else []
        if entries:
            used["usd"] = sum(entry.usd for entry in entries)
        self._log.update({**used, **fields, "status": status})
        self._log.close()
        self._finalizer.detach()
        if entries:
            store.charge(*entries)
        return self.body

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        said = "".join(traceback.format_exception(error))[-TRACEBACK_CHARS:]
        told = {"type": type(error).__name__, "message": str(error), "traceback": said}
        deliberate = isinstance(error, (BudgetError, KeyboardInterrupt, SystemExit))
        try:
            self.finish("stopped" if deliberate else "failed", error=told)
        except StoreError as second:
            error.add_note(f"and the run could not be written: {second}")


# ── the buffer and its thread ────────────────────────────────────────────────────────────────────────────────────────


class _Log:
    """What a run has been told and not yet written, and the thread that writes it."""

    __slots__ = (
        "__weakref__",
        "_calls",
        "_closed",
        "_columns",
        "_dirty",
        "_draining",
        "_dropped",
        "_folded",
        "_held",
        "_lock",
        "_names",
        "_packed",
        "_pid",
        "_since_fold",
        "_stop",
        "_taken",
        "_thread",
        "_total",
        "body",
        "clock",
        "id",
        "limits",
        "store",
    )

    def __init__(self, store: Store, body: dict[str, Any], limits: TrackLimits, clock: Callable[[], float]) -> None:
        self.store = store
        self.id = str(body["id"])
        self.body = body
        self.limits = limits
        self.clock = clock
        self._lock = threading.Lock()  # held for an instant: the buffer and the record
        self._draining = threading.Lock()  # held while writing: one batch after the other
        self._calls: list[Call] = []
        self._columns: list[tuple[str, float, Ints, Floats]] = []
        self._taken: list[tuple[list[Call], list[tuple[str, float, Ints, Floats]]]] = []
        self._packed: list[Packed] = []
        self._names: set[str] = set()
        self._held = 0  # points not yet durable; NO_MORE sends every call to `_usable`, at no cost to the others
        self._closed = False
        self._total = 0
        self._dropped: dict[str, tuple[int, int, int]] = {}  # why -> points, first step, last step
        self._dirty = False
        self._folded = 0
        self._since_fold = 0
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tenon-track-{self.id}", daemon=True)

    def begin(self) -> None:
        self._thread.start()
        log = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forked(log()))

    def add(self, step: int, metrics: dict[str, float]) -> None:
        now = self.clock()
        points = len(metrics)
        with self._lock:
            self._total += points
            if self._held + points <= self.limits.buffered_points:
                self._held += points
                self._calls.append((step, now, metrics))
                return
            self._usable()
            self._drop("the buffer was full", points, step, step)

    def add_columns(self, name: str, steps: Ints, values: Floats) -> None:
        points = len(steps)
        if not points:
            return
        now = self.clock()
        with self._lock:
            self._total += points
            if self._held + points <= self.limits.buffered_points:
                self._held += points
                self._columns.append((name, now, steps, values))
                return
            self._usable()
            self._drop("the buffer was full", points, int(steps[0]), int(steps[-1]))

    def merge(self, field: str, values: Mapping[str, Any]) -> None:
        with self._lock:
            self.body[field] = {**self.body.get(field, {}), **values}
            self._dirty = True

    def say(self, finding: Finding) -> None:
        with self._lock:
            self.body["findings"] = [*self.body["findings"], finding.to_dict()]
            self._dirty = True

    def update(self, fields: Mapping[str, Any]) -> None:
        with self._lock:
            self.body.update(fields)
            self._dirty = True

    def snapshot(self) -> dict[str, Any]:
        with self._lock:
            return {
                name: value.copy() if isinstance(value, (dict, list)) else value for name, value in self.body.items()
            }

    def close(self) -> None:
        """Stop the thread and write everything; raises StoreError when that cannot be done."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self.drain()
        with self._draining:
            self._fold()
        with self._lock:
            self._closed = True
            self._held = NO_MORE

    def shut_in_child(self) -> None:
        self._lock = threading.Lock()  # the old one may have been held at the moment of the fork
        self._held = NO_MORE

    def drain(self) -> None:
        """Write what is buffered. What cannot be written stays, and is tried again by the next drain."""
        self._usable()
        with self._draining:
            with self._lock:
                self._taken.append((self._calls, self._columns))
                self._calls, self._columns = [], []
            while self._taken:  # kept until packed, should Ctrl-C come in between
                self._packed.extend(pack(self._known(*self._taken[0])))
                del self._taken[0]
            while self._packed:
                packed = self._packed[0]
                self.store.append(
                    STREAM, self.id, packed.body, rows=packed.points, first=packed.first, last=packed.last
                )
                del self._packed[0]
                self._since_fold += 1
                with self._lock:
                    self._held -= packed.points
            self._tell_dropped()
            if self._dirty:
                with self._lock:
                    self._dirty = False
                try:
                    self.store.put("run", self.id, self.snapshot())
                except BaseException:
                    self._dirty = True
                    raise
            if self._since_fold >= FOLD:
                self._fold()

    def _usable(self) -> None:
        """Refuse what would be lost: logging to a run that has ended, or in a process forked from the run's own."""
        if os.getpid() != self._pid:
            got = f"process {os.getpid()}, forked from {self._pid}"
            hint = "log from there"
            raise UsageError(sentence("the process that began the run", got, at=f"run/{self.id}", hint=hint))
        if self._closed:
            raise UsageError(sentence("a run that goes on", "one that has ended", at=f"run/{self.id}"))

    def _work(self) -> None:
        """Drain until told to stop; the disk's refusals are tried again, and told by `flush` and `finish`."""
        self.update(setting(self.store.root))
        while not self._stop.wait(self.limits.flush_s):
            try:
                self.drain()
            except StoreError:
                continue

    def _known(self, calls: list[Call], columns: list[tuple[str, float, Ints, Floats]]) -> Iterator[Table]:
        """Turn what was logged into tables, without metrics beyond the bound on names."""
        for table in tables(calls):
            names = [name for name in table.names if self._admitted(name)]
            if len(names) == len(table.names):
                yield table
                continue
            with self._lock:
                lost = (len(table.names) - len(names)) * len(table.steps)
                self._held -= lost
                self._drop("there were too many names", lost, int(table.steps[0]), int(table.steps[-1]))
            if names:
                keep = [i for i, name in enumerate(table.names) if name in self._names]
                yield Table(names, table.steps, table.times, table.values[:, keep])
        for name, at, steps, values in columns:
            if self._admitted(name):
                yield Table([name], steps, np.full(len(steps), at), values.reshape(-1, 1))
            else:
                with self._lock:
                    self._held -= len(steps)
                    self._drop("there were too many names", len(steps), int(steps[0]), int(steps[-1]))

    def _admitted(self, name: str) -> bool:
        if name not in self._names:
            if len(self._names) >= self.limits.metric_names:
                return False
            self._names.add(name)
        return True

    def _drop(self, why: str, points: int, first: int, last: int) -> None:
        """Count what is dropped; the lock is held."""
        before, low, _ = self._dropped.get(why, (0, first, last))
        self._dropped[why] = (before + points, low, last)

    def _tell_dropped(self) -> None:
        """Keep one finding for each reason in the record, with the counts so far."""
        with self._lock:
            told = [_dropped(self.id, why, counts, self._total, self.limits) for why, counts in self._dropped.items()]
            others = [body for body in self.body["findings"] if body["code"] != "track/dropped"]
            if told and others + told != self.body["findings"]:
                self.body["findings"] = others + told
                self._dirty = True

    def _fold(self) -> None:
        """Replace many small batches by few large ones, so that a long run reads as quickly as a short one."""
        group: list[Batch] = []
        for batch in self.store.read(STREAM, self.id, after=self._folded):
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


def _abandon(log: _Log, meter: Meter) -> None:
    """Write what a run holds that nobody finished; its record goes on saying `running`, which `reap` mends."""
    meter.__exit__(None, None, None)
    log.close()


def _forked(log: _Log | None) -> None:
    """Shut a run in a process forked from its own: the thread that writes does not exist there."""
    if log is not None:
        log.shut_in_child()


def _dropped(id: str, why: str, counts: tuple[int, int, int], total: int, limits: TrackLimits) -> dict[str, Any]:
    points, first, last = counts
    bound = f"{limits.buffered_points:,} points" if "buffer" in why else f"{limits.metric_names:,} names"
    return Finding(
        code="track/dropped",
        severity="warning",
        place=f"run/{id}",
        said=f"{points:,} of {total:,} points were dropped between steps {first} and {last}: {why} ({bound}).",
        hint="Log less often, log whole columns with run.log_many, or raise the bound in [limits.track].",
        numbers={
            "dropped": float(points),
            "logged": float(total),
            "first_step": float(first),
            "last_step": float(last),
        },
    ).to_dict()


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _value(value: Any, name: str, id: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        got = f"{type(value).__name__} ('{error}')"
        raise UsageError(
            sentence("a number", got, at=f"run/{id}: {name}", hint="run.param keeps other values")
        ) from error


def _column(values: Any, kind: str, place: str) -> NDArray[Any]:
    """Copy a column of numbers into one type, refusing what would change on the way."""
    try:
        given = np.asarray(values).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(sentence("a column of numbers", f"'{error}'", at=place)) from error
    if given.dtype.kind not in "biuf" and given.size:
        raise UsageError(sentence("a column of numbers", f"a column of {given.dtype}", at=place))
    if kind == "<i8" and given.dtype.kind == "f" and not np.array_equal(given, np.trunc(given)):
        raise UsageError(sentence("steps that are whole numbers", f"a column of {given.dtype}", at=place))
    return given.astype(kind)


def _step(step: Any, id: str) -> int:
    try:
        whole = int(step)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(sentence("a step that is a whole number", repr(step), at=f"run/{id}")) from error
    if whole != step or not -STEP_MAX <= whole <= STEP_MAX:
        raise UsageError(sentence("a step that is a whole number of 64 bits", repr(step), at=f"run/{id}"))
    return whole


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def runs(store: Store, *, model: str | None = None, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the records of runs, newest first."""
    if model is None:
        return store.find("run", limit=limit)
    return store.find("run", limit=limit, model=model)


def load(store: Store, id: str) -> dict[str, Any]:
    """Return the record of a run, by its id or by the beginning of it when only one run begins so."""
    found = store.get("run", id)
    if found is not None:
        return found
    every = [str(row["id"]) for row in store.query("SELECT id FROM record WHERE kind = 'run' ORDER BY at DESC")]
    begun = [name for name in every if id and name.startswith(id)]
    if len(begun) > 1:
        hint = "give more of it: " + ", ".join(begun[:10])
        raise UsageError(sentence("the beginning of one run's id", f"'{id}', which {len(begun)} runs share", hint=hint))
    record = store.get("run", begun[0]) if begun else None
    if record is None:
        raise MissingError(sentence("a run", f"'{id}'", at=str(store.root), hint=nearest(id, every[:50])))
    return record


def curves(store: Store, id: str, *, by: Literal["step", "time"] = "step") -> dict[str, tuple[Any, Floats]]:
    """Return every metric of a run as (steps, values) in the order logged, or as (times, values) with ``by="time"``."""
    parts: dict[str, tuple[list[NDArray[Any]], list[Floats]]] = {}
    field, kind = ("steps", "<i8") if by == "step" else ("times", "<f8")
    for batch in store.read(STREAM, id):
        for table in unpack(batch.body, f"{STREAM}/{id}/{batch.seq}"):
            names = table["names"]
            axis = np.frombuffer(table[field], dtype=kind)
            values = np.frombuffer(table["values"], dtype="<f8").reshape(-1, len(names))
            for column, name in enumerate(names):
                axes, columns = parts.setdefault(name, ([], []))
                axes.append(axis)
                columns.append(values[:, column])
    return {name: (np.concatenate(axes), np.concatenate(columns)) for name, (axes, columns) in parts.items()}


def reap(store: Store) -> list[Finding]:
    """Mark as stopped the runs whose process has ended on this machine without finishing them; return the findings."""
    told = []
    for record in store.find("run", status="running"):
        if record.get("process", {}).get("host") != socket.gethostname() or _alive(record):
            continue
        finding = Finding(
            code="track/interrupted",
            severity="warning",
            place=f"run/{record['id']}",
            said=f"the process {record['process']['pid']} ended without finishing the run",
            hint="look at what it logged, and start it again",
        )
        record["status"] = "stopped"
        record["findings"] = [*record.get("findings", []), finding.to_dict()]
        store.put("run", record["id"], record)
        told.append(finding)
    return told


def _process() -> dict[str, Any]:
    """Name this process so that another can tell whether it still lives."""
    import psutil

    return {"pid": os.getpid(), "host": socket.gethostname(), "began": psutil.Process().create_time()}


def _alive(record: Mapping[str, Any]) -> bool:
    """Tell whether the process that began a run still lives; a process of another machine is taken to live."""
    import psutil

    process = record.get("process", {})
    if process.get("host") != socket.gethostname():
        return True
    try:
        began = psutil.Process(int(process["pid"])).create_time()
        return bool(abs(began - float(process["began"])) < 2.0)
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False

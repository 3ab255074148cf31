"""Tracking: a Run remembers what a training did, and never makes it wait.

`run.log` hands its metrics to the run's `journal` and returns, in about a microsecond; a background thread makes them
durable every `TrackLimits.flush_s`, so that a process that is killed loses at most the last fraction of a second. Kept
with the run are its record (kind `run`), its metrics (stream `metrics`, packed as `packing` says), files as blobs, and
the setting it was made in (`setting`).

Values are turned into floats when logged and not later: a tensor that a loop goes on adding to would otherwise be read
after it has changed. Rejected: a queue (slower than a list under a lock), a process (costs a copy and gains nothing),
one row per point in a table (a hundred times slower, and a thousand times more rows than anybody asks for).
"""

from __future__ import annotations

import math
import os
import socket
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
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
from tenon.ledger import Meter, Usage, owed
from tenon.limits import TrackLimits
from tenon.store import Store
from tenon.training.journal import FEW, STREAM, Journal
from tenon.training.packing import Floats, Ints, unpacked

TRACEBACK_CHARS = 20_000
STEP_MAX = 2**63 - 1
TAIL = 4096  # values of a metric that is followed

Curves = dict[str, tuple[Ints, Floats]]
Status = Literal["running", "done", "failed", "stopped"]


class Run:
    """One tracked run. `log` never waits; what is logged is durable within `limits.flush_s`, or after `flush`.

    >>> with Run.start(store, "3f2a91c07d5e", "late", trainer="lightgbm", seed=1) as run:
    ...     run.log(step, loss=0.3)
    """

    __slots__ = (
        "__weakref__",
        "_also",
        "_charge",
        "_charged_since",
        "_finalizer",
        "_journal",
        "_meter",
        "_prices",
        "guard",
        "id",
        "model",
    )

    def __init__(self, journal: Journal, prices: Prices | None, *, charge: bool = True) -> None:
        self.id: str = journal.id
        self.model: str = journal.body["model"]
        self.guard: Any = None  # whoever trains puts the guard here, for the user's own loop to call
        self._journal = journal
        self._prices = prices or Prices()
        self._charge = charge and prices is not None
        self._also: Usage | None = None
        self._charged_since: float | None = None  # when the first of earlier attempts began
        self._meter = Meter()
        self._meter.__enter__()
        # A run that is dropped without `finish` still writes what it holds, also when the interpreter ends.
        self._finalizer = weakref.finalize(self, _abandon, journal, self._meter)

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
        charge: bool = True,
        **fields: Any,
    ) -> Self:
        """Begin a run: write its record. What earlier attempts of the same id have logged is no longer read.

        Unless this one says that it goes on from there (`resumed`); else it is dropped in the end. `fields` are fields
        of the record (trainer, seed, params, split ...). With `prices`, finishing charges what the run has used to its
        id in the ledger, unless somebody else does (`charge`). Raises TrainingError when a living process is at work on
        this id.
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
            if before is not None and before.get("status") == "running" and alive(before):
                got = f"process {before['process']['pid']} still at work on it"
                raise TrainingError(
                    sentence("a run that nobody else works on", got, at=f"run/{id}", hint="wait or stop it")
                )
            body["since"] = store.newest(STREAM, id)
            store.put("run", id, body)
        journal = Journal(store, body, limits or TrackLimits(), clock)
        journal.begin()
        return cls(journal, prices, charge=charge)

    # ── while it runs ────────────────────────────────────────────────────────────────────────────────────────────────

    def log(self, step: int, /, **metrics: float) -> None:
        """Remember the metrics of a step. Never waits: not for the disk, and not when the buffer is full."""
        for name, value in metrics.items():
            if type(value) is not float:
                metrics[name] = _value(value, name, self.id)
        if type(step) is not int or not -STEP_MAX <= step <= STEP_MAX:
            step = _step(step, self.id)
        journal = self._journal
        if len(journal.recent) >= journal.room or len(metrics) > FEW:
            return journal.add(step, metrics)
        journal.recent.append((step, journal.clock(), metrics))
        return None if journal.room else journal.usable()

    def log_many(self, name: str, steps: Any, values: Any) -> None:
        """Remember a whole column of one metric, from anything NumPy reads. Copies it; never waits."""
        place = f"run/{self.id}: {name}"
        steps_n, values_n = _column(steps, "<i8", place), _column(values, "<f8", place)
        if len(steps_n) != len(values_n):
            got = f"{len(steps_n):,} steps and {len(values_n):,} values"
            raise UsageError(sentence("as many steps as values", got, at=place))
        self._journal.add_columns(name, steps_n, values_n)

    def resumed(self, step: int) -> None:
        """Say that this attempt goes on at `step`: what earlier ones logged of steps below it is read again.

        But of metrics that this one has logged already; call it before the loop.
        """
        self._journal.resumed(_step(step, self.id))

    def param(self, **params: Any) -> None:
        """Remember settings of the run; written with the next flush."""
        self._journal.merge("params", params)

    def artifact(self, name: str, data: bytes | Path) -> str:
        """Keep bytes, or a copy of a file, under a name; returns the digest. This one waits for the disk."""
        given: Any = data
        if isinstance(given, str):
            place, hint = f"run/{self.id}: {name}", "Path(...) keeps a file, .encode() a text"
            raise UsageError(sentence("bytes, or the Path of a file", f"'{given[:40]}'", at=place, hint=hint))
        digest = self._journal.store.blobs.put(data)
        self._journal.merge("artifacts", {name: digest})
        return digest

    def finding(self, finding: Finding) -> None:
        """Remember what a person should know about the run."""
        self._journal.say(finding)

    def update(self, **fields: Any) -> None:
        """Set fields of the run's record (metrics, baselines, calibration ...); written with the next flush."""
        self._journal.update(fields)

    def also(self, usage: Usage, *, since: float | None = None) -> None:
        """Say what others have used for this run so far (its other ranks, earlier attempts); charged at the end.

        With `since` (Unix seconds), when the first of those attempts began: what one of them has charged itself, as one
        that ended by itself does and one that was killed does not, is not charged again.
        """
        self._also, self._charged_since = usage, since

    def flush(self) -> None:
        """Wait until everything logged so far is on the disk; raises StoreError when it cannot be written."""
        self._journal.flush()

    def metrics(self) -> Curves:
        """Flush, and return every metric as (steps, values)."""
        self.flush()
        return curves(self._journal.store, self.id)

    @property
    def body(self) -> dict[str, Any]:
        """The run's record as it stands, a copy."""
        return self._journal.snapshot()

    # ── how it ends ──────────────────────────────────────────────────────────────────────────────────────────────────

    def finish(self, status: Status = "done", **fields: Any) -> dict[str, Any]:
        """Write all that is left and the final record, and return it. A second time it changes nothing."""
        if not self._finalizer.alive:
            return self.body
        self._meter.__exit__(None, None, None)
        own = self._meter.usage()
        usage = own.plus(self._also) if self._also is not None else own
        used: dict[str, Any] = {
            "seconds": usage.wall_s,
            "cpu_s": usage.cpu_s,
            "peak_bytes": usage.peak_bytes,
            "energy": usage.energy(self._prices),
        }
        store, at = self._journal.store, self._journal.clock()
        entries = usage.entries(self.id, self._prices, at=at) if self._charge else []
        if entries:
            used["usd"] = sum(entry.usd for entry in entries)
        self._journal.update({**used, **fields, "status": status})
        self._journal.close()
        self._finalizer.detach()
        if entries and self._also is not None and self._charged_since is not None:
            # An attempt that was killed has charged nothing, one that ended by itself has.
            before = replace(self._also, peak_bytes=own.peak_bytes, gpus=own.gpus)
            earlier = before.entries(self.id, self._prices, at=at, note="earlier attempts")
            left = owed(earlier, store.entries(self.id, since=self._charged_since))
            entries = own.entries(self.id, self._prices, at=at) + left
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
        # A name of a file that is no text may stand in them.
        told = {name: text.encode("utf-8", "backslashreplace").decode() for name, text in told.items()}
        deliberate = isinstance(error, (BudgetError, KeyboardInterrupt, SystemExit))
        try:
            self.finish("stopped" if deliberate else "failed", error=told)
        except StoreError as second:
            error.add_note(f"and the run could not be written: {second}")


def _abandon(journal: Journal, meter: Meter) -> None:
    """Write what a run holds that nobody finished; its record goes on saying `running`, which `reap` mends."""
    if journal.of_this_process():
        meter.__exit__(None, None, None)
        journal.close()


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
    whole = given.dtype.kind != "f" or bool((np.isfinite(given) & (given == np.trunc(given))).all())
    if kind == "<i8" and not whole:
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
        hint = nearest(id, every[:50]) if every else "none is kept here yet"
        raise MissingError(sentence("a run", f"'{id}'", at=str(store.root), hint=hint))
    return record


def curves(store: Store, id: str, *, by: Literal["step", "time"] = "step") -> dict[str, tuple[Any, Floats]]:
    """Return every metric of a run as (steps, values) in the order logged, or as (times, values) with ``by="time"``."""
    parts: dict[str, tuple[list[NDArray[Any]], list[Floats]]] = {}
    for batch in store.read(STREAM, id, after=_since(store, id)):
        for table in unpacked(batch.body, f"{STREAM}/{id}/{batch.seq}"):
            for column, name in enumerate(table.names):
                axes, columns = parts.setdefault(name, ([], []))
                axes.append(table.steps if by == "step" else table.times)
                columns.append(table.values[:, column])
    return {name: (np.concatenate(axes), np.concatenate(columns)) for name, (axes, columns) in parts.items()}


def _since(store: Store, id: str) -> int:
    """Return the number of the batch up to which earlier attempts logged, from which this one does not go on."""
    return int((store.get("run", id) or {}).get("since", 0))


class Tail:
    """One metric of a run at work, read on from where the last look ended; remembers at most TAIL values."""

    __slots__ = ("_after", "_every", "_id", "_part", "_seen", "_store", "_values", "_wanted", "name")

    def __init__(self, store: Store, id: str, metric: str = "") -> None:
        self._store, self._id, self._wanted = store, id, metric
        self._after = 0
        self._seen = -math.inf  # when the newest point that was read was logged
        self._values: list[float] = []
        self._part: list[float] = []  # points waiting to become one value
        self._every = 1
        self.name = metric or "loss"

    def read(self) -> None:
        """Read what has been logged since the last look."""
        for batch in self._store.read(STREAM, self._id, after=max(self._after, _since(self._store, self._id))):
            self._after = batch.seq
            for table in unpacked(batch.body, f"{STREAM}/{self._id}/{batch.seq}"):
                wanted = self._wanted or next((name for name in table.names if "loss" in name), "")
                if wanted in table.names:
                    self._wanted = self.name = wanted
                    # Batches may have been folded into one meanwhile, of which the beginning is known already.
                    fresh = table.times > self._seen
                    for value in table.values[fresh, table.names.index(wanted)].tolist():
                        self._add(value)
            self._seen = max(self._seen, batch.last)

    def _add(self, value: float) -> None:
        self._part.append(value)
        if len(self._part) < self._every:
            return
        self._values.append(sum(self._part) / len(self._part))
        self._part.clear()
        if len(self._values) >= TAIL:
            self._values = np.asarray(self._values).reshape(-1, 2).mean(axis=1).tolist()
            self._every *= 2

    def values(self) -> Floats:
        """Return what is remembered, oldest first; the last value is that of the newest points."""
        return np.asarray([*self._values, *([sum(self._part) / len(self._part)] if self._part else [])])


def reap(store: Store) -> list[Finding]:
    """Mark as stopped the runs whose process has ended on this machine without finishing them; return the findings."""
    told = []
    for record in store.find("run", status="running"):
        if record.get("process", {}).get("host") != socket.gethostname() or alive(record):
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


def alive(record: Mapping[str, Any]) -> bool:
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

"""What everything cost: entries, the prices that make them, a meter that measures work, and budgets that stop it.

Every piece of work leaves entries: so much of something (`quantity` of `unit`), what it cost (`usd`), for whom
(`subject`: a run, a model, a stage) and when. Prices come from `config.Prices`; the functions here only multiply, so a
figure can always be checked by hand. `Meter` measures a block of work: wall time, processor time of this process and
of its children, and the highest memory in use meanwhile.

Electricity: a cloud's price for a core already pays for its power. Energy is therefore always counted in kWh, but
priced only when cores are free (`usd_per_core_hour = 0`, your own machines); otherwise its entry costs 0 and says so.

Energy is measured where hardware counters can be read (see `energy`) and otherwise an estimate, core seconds times
`watts_per_core`; `Usage.energy` says which, and entries say it in their note. Memory is charged at its peak for the
whole time, as a cloud would charge for the machine that had to hold it. Peak memory is exact when the process grew
past all it had held before; otherwise it is the highest of samples every 20 ms, and one sampled figure more when the
block ends.
"""

from __future__ import annotations

import math
import os
import resource
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from tenon.config import Prices
from tenon.energy import JOULES_PER_KWH, Counters, Measured
from tenon.errors import BudgetError, UsageError, nearest, sentence
from tenon.limits import Admission, Answer

Kind = Literal["compute", "memory", "storage", "request", "gpu", "energy"]

GB = 1e9  # prices of memory and storage are for decimal gigabytes
HOUR = 3600.0
SAMPLE_S = 0.02  # between samples of memory, at first
SAMPLE_SHARE = 0.1  # of the time so far, later: the system itself remembers this process's own highest
SAMPLE_MOST_S = 2.0  # and the most, at which counters of energy are read before they begin anew
CHILDREN_S = 0.2  # between two looks for children
PROC_BYTES = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """So much of something, for somebody, at a price, at a time (Unix seconds)."""

    kind: Kind
    subject: str
    quantity: float
    unit: str
    usd: float
    at: float
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(
                sentence("a kind of entry", f"'{self.kind}'", at=self.subject, hint=nearest(self.kind, get_args(Kind)))
            )
        if not (math.isfinite(self.usd) and math.isfinite(self.quantity) and self.quantity >= 0):
            got = f"{self.quantity} {self.unit} for {self.usd} USD"
            raise UsageError(sentence("a quantity and a price that are numbers", got, at=self.subject))

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain data."""
        return {
            "kind": self.kind,
            "subject": self.subject,
            "quantity": self.quantity,
            "unit": self.unit,
            "usd": self.usd,
            "at": self.at,
            "note": self.note,
        }

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """Build an entry from what `to_dict` gave; fields of later releases are skipped."""
        known = {name: body[name] for name in cls.__dataclass_fields__ if name in body}
        return cls(**known)


# ── prices ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def compute(subject: str, core_s: float, prices: Prices, *, at: float, note: str = "") -> Entry:
    """Price processor time: `core_s` seconds of one core."""
    usd = core_s / HOUR * prices.usd_per_core_hour
    return Entry(kind="compute", subject=subject, quantity=core_s, unit="core s", usd=usd, at=at, note=note)


def memory(subject: str, gb_s: float, prices: Prices, *, at: float, note: str = "") -> Entry:
    """Price memory held: gigabytes times seconds."""
    usd = gb_s / HOUR * prices.usd_per_gb_memory_hour
    return Entry(kind="memory", subject=subject, quantity=gb_s, unit="GB s", usd=usd, at=at, note=note)


def gpu(subject: str, gpu_s: float, prices: Prices, *, at: float, note: str = "") -> Entry:
    """Price accelerator time: seconds of one GPU, busy or not, as it was held."""
    usd = gpu_s / HOUR * prices.usd_per_gpu_hour
    return Entry(kind="gpu", subject=subject, quantity=gpu_s, unit="gpu s", usd=usd, at=at, note=note)


def energy(
    subject: str, kwh: float, prices: Prices, *, at: float, note: str = "", of: Literal["core", "gpu"] = "core"
) -> Entry:
    """Count electricity, and price it when the hour's price of what drew it does not already include it."""
    included = (prices.usd_per_core_hour if of == "core" else prices.usd_per_gpu_hour) > 0
    said = "; ".join(part for part in (note, f"power is in the {of}-hour price" if included else "") if part)
    usd = 0.0 if included else kwh * prices.usd_per_kwh
    return Entry(kind="energy", subject=subject, quantity=kwh, unit="kWh", usd=usd, at=at, note=said)


def storage(subject: str, size_bytes: int, prices: Prices, *, at: float, months: float = 1.0, note: str = "") -> Entry:
    """Price bytes kept for a number of months."""
    gb_months = size_bytes / GB * months
    usd = gb_months * prices.usd_per_gb_month
    return Entry(kind="storage", subject=subject, quantity=gb_months, unit="GB month", usd=usd, at=at, note=note)


def requests(subject: str, count: int, core_s: float, prices: Prices, *, at: float, note: str = "") -> Entry:
    """Price `count` answered requests by the processor time that they took together."""
    usd = core_s / HOUR * prices.usd_per_core_hour
    return Entry(kind="request", subject=subject, quantity=count, unit="requests", usd=usd, at=at, note=note)


# ── sums ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a summary: what was grouped, what it cost together, and the quantity when all share one unit."""

    key: str
    usd: float
    entries: int
    quantity: float | None
    unit: str

    def to_dict(self) -> dict[str, Any]:
        """Return the line as plain data."""
        return {
            "key": self.key,
            "usd": self.usd,
            "entries": self.entries,
            "quantity": self.quantity,
            "unit": self.unit,
        }


By = Literal["kind", "subject", "unit", "note", "day", "month"]


def total(entries: Iterable[Entry]) -> float:
    """Return the dollars of all entries together."""
    return math.fsum(entry.usd for entry in entries)


def summary(entries: Iterable[Entry], *, by: By = "kind") -> list[Line]:
    """Sum entries by a field, or by UTC day or month; the dearest line first, days and months in order of time."""
    if by not in get_args(By):
        raise UsageError(sentence("what to sum by", f"'{by}'", at="ledger.summary", hint=nearest(by, get_args(By))))
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(_key(entry, by), []).append(entry)
    lines = []
    for key, group in groups.items():
        units = {entry.unit for entry in group}
        same = len(units) == 1
        lines.append(
            Line(
                key=key,
                usd=total(group),
                entries=len(group),
                quantity=math.fsum(entry.quantity for entry in group) if same else None,
                unit=units.pop() if same else "",
            )
        )
    if by in ("day", "month"):
        return sorted(lines, key=lambda line: line.key)
    return sorted(lines, key=lambda line: (-line.usd, line.key))


def owed(entries: Iterable[Entry], charged: Iterable[Entry]) -> list[Entry]:
    """Return what is left of entries once so much of each kind has been charged already."""
    paid = {line.key: line.quantity or 0.0 for line in summary(charged)}
    left = []
    for entry in entries:
        part = min(paid.get(entry.kind, 0.0), entry.quantity)
        if part:
            paid[entry.kind] -= part
        if part < entry.quantity:
            rest = entry.quantity - part
            left.append(replace(entry, quantity=rest, usd=entry.usd * rest / entry.quantity))
    return left


def hourly(share: float, usd_per_s: float) -> str:
    """Say, inside a sentence, what a share of the time costs an hour; "" where time costs nothing."""
    return f", {share * usd_per_s * HOUR:.2f} USD an hour" if usd_per_s > 0 else ""


def per_thousand(usd: float, predictions: int) -> float | None:
    """Return what 1,000 predictions cost, or None when there were none."""
    return usd / predictions * 1000.0 if predictions else None


def per_month(amount: float, seconds: float) -> float | None:
    """Return what `amount` (dollars, requests) in `seconds` comes to in 30 days, or None when no time passed."""
    return amount / seconds * 30 * 24 * HOUR if seconds > 0 else None


def _key(entry: Entry, by: By) -> str:
    if by == "day":
        return time.strftime("%Y-%m-%d", time.gmtime(entry.at))
    if by == "month":
        return time.strftime("%Y-%m", time.gmtime(entry.at))
    return str(getattr(entry, by))


# ── budgets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What has been, or would be, spent: dollars, hours of wall time, kilowatt hours."""

    usd: float = 0.0
    hours: float = 0.0
    kwh: float = 0.0


@dataclass(frozen=True, slots=True)
class Budget:
    """What a model, a run or a service may cost at most; None is no limit.

    `admit` answers before or during the work; `check` raises BudgetError with the same words.
    """

    usd: float | None = None
    hours: float | None = None
    kwh: float | None = None

    def __post_init__(self) -> None:
        for name in ("usd", "hours", "kwh"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0):
                raise UsageError(sentence("a number of 0 or more, or None", repr(value), at=f"Budget({name}=...)"))

    def admit(self, spent: Spent, *, what: str = "this") -> Admission:
        """Answer OK while `spent` is within every limit, else NEVER with the limit that it breaks in words."""
        limits = ((self.usd, spent.usd, "USD"), (self.hours, spent.hours, "hours"), (self.kwh, spent.kwh, "kWh"))
        for limit, value, unit in limits:
            if limit is not None and not value <= limit:
                hint = f"raise Budget({_field(unit)}=...) or make it smaller"
                reason = sentence(f"{what} to cost at most {limit:g} {unit}", f"{value:.4g} {unit}", hint=hint)
                return Admission(answer=Answer.NEVER, reason=reason)
        return Admission(answer=Answer.OK)

    def check(self, spent: Spent, *, what: str = "this") -> None:
        """Raise BudgetError when `spent` is over any limit."""
        admission = self.admit(spent, what=what)
        if not admission:
            raise BudgetError(admission.reason)

    def to_dict(self) -> dict[str, float | None]:
        """Return the budget as plain data."""
        return {"usd": self.usd, "hours": self.hours, "kwh": self.kwh}


def _field(unit: str) -> str:
    return {"USD": "usd", "hours": "hours", "kWh": "kwh"}[unit]


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a piece of work used: seconds on the clock, core seconds, the highest memory, GPUs held, and what counters
    said of its energy, where there are any.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    gpus: int = 0
    measured: Measured = Measured()

    def entries(self, subject: str, prices: Prices, *, at: float, note: str = "") -> list[Entry]:
        """Price the usage: compute, memory and energy, and GPU time where one was held."""
        used = self.energy(prices)

        def said(source: str) -> str:
            return "; ".join(part for part in (note, source) if part)

        found = [
            compute(subject, self.cpu_s, prices, at=at, note=note),
            memory(subject, self.peak_bytes / GB * self.wall_s, prices, at=at, note=note),
            energy(subject, used["cpu_kwh"], prices, at=at, note=said(used["cpu_source"])),
        ]
        if self.gpus:
            found.append(gpu(subject, self.gpus * self.wall_s, prices, at=at, note=note))
            found.append(energy(subject, used["gpu_kwh"], prices, at=at, note=said(used["gpu_source"]), of="gpu"))
        return found

    def energy(self, prices: Prices) -> dict[str, Any]:
        """Return {kwh, source, cpu_kwh, cpu_source, gpu_kwh, gpu_source}: measured where it was, and else called so."""
        seen = self.measured
        if seen.cpu_j is not None:
            cpu, cpu_source = (
                seen.cpu_j / JOULES_PER_KWH,
                f"RAPL ({', '.join(seen.zones)}), {seen.share:.0%} of it ours",
            )
        else:
            watts = prices.watts_per_core
            cpu, cpu_source = self.cpu_s * watts / JOULES_PER_KWH, f"estimate: core seconds x {watts:g} W"
        gpu_kwh, gpu_source = 0.0, ""
        if self.gpus and seen.gpu_j is not None:
            gpu_kwh, gpu_source = seen.gpu_j / JOULES_PER_KWH, f"NVML ({self.gpus} GPU)"
        elif self.gpus:
            watts = prices.watts_per_gpu
            gpu_kwh = self.gpus * self.wall_s * watts / JOULES_PER_KWH
            gpu_source = f"estimate: {self.gpus} GPU x {watts:g} W"
        return {
            "kwh": cpu + gpu_kwh,
            "source": "; ".join(part for part in (cpu_source, gpu_source) if part),
            "cpu_kwh": cpu,
            "cpu_source": cpu_source,
            "gpu_kwh": gpu_kwh,
            "gpu_source": gpu_source,
        }

    def plus(self, other: Usage) -> Usage:
        """Return what both used: other processes at the same time, or an earlier attempt; wall time adds up.

        What counters said of this one's processor stands for the other's core seconds too; its GPUs were not counted.
        """
        seen, scale = self.measured, (self.cpu_s + other.cpu_s) / self.cpu_s if self.cpu_s else 1.0
        counted = replace(
            seen,
            cpu_j=seen.cpu_j * scale if seen.cpu_j is not None else None,
            gpu_j=seen.gpu_j if not other.gpus else None,
        )
        return Usage(
            wall_s=self.wall_s + other.wall_s,
            cpu_s=self.cpu_s + other.cpu_s,
            peak_bytes=self.peak_bytes + other.peak_bytes,
            gpus=self.gpus + other.gpus,
            measured=counted,
        )

    def kwh(self, prices: Prices) -> float:
        """Return the electricity, measured or estimated."""
        return float(self.energy(prices)["kwh"])

    def spent(self, prices: Prices) -> Spent:
        """Return the usage as a budget sees it."""
        usd = total(self.entries("", prices, at=0.0))
        return Spent(usd=usd, hours=self.wall_s / HOUR, kwh=self.kwh(prices))


NOTHING = Usage(wall_s=0.0, cpu_s=0.0, peak_bytes=0)


class Meter:
    """Measures the block it surrounds; `usage()` may be read inside (so far) and after (in all).

    >>> with Meter() as meter:
    ...     work()
    >>> meter.usage().entries("run-1", prices, at=time.time())
    """

    __slots__ = ("_counters", "_gpus", "_highest", "_own_peak", "_sampler", "_start", "_stop", "_stopped")

    def __init__(self, *, gpus: int = 0, counters: Counters | None = None) -> None:
        self._gpus = gpus
        self._counters = counters or Counters()
        self._start = (0.0, 0.0)
        self._own_peak = 0
        self._highest = 0
        self._stopped: Usage | None = None
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None

    def __enter__(self) -> Self:
        assert self._sampler is None, "a Meter measures one block"
        self._own_peak = _peak_ever_bytes()
        self._highest = resident_bytes()
        self._counters.begin()
        self._start = (time.perf_counter(), cpu_seconds())
        self._sampler = threading.Thread(target=self._sample, name="tenon-meter", daemon=True)
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._sampler is not None:
            self._sampler.join()
        self._stopped = self._measure()

    def usage(self) -> Usage:
        """Return what was used so far, or in all once the block has ended."""
        assert self._start[0], "the Meter has not begun"
        return self._stopped or self._measure()

    def _measure(self) -> Usage:
        self._highest = max(self._highest, resident_bytes())
        ever = _peak_ever_bytes()
        cpu_s = max(cpu_seconds() - self._start[1], 0.0)
        measured = self._counters.read(cpu_s, [os.getpid(), *descendants()])
        return Usage(
            wall_s=time.perf_counter() - self._start[0],
            cpu_s=cpu_s,
            peak_bytes=ever if ever > self._own_peak and ever > self._highest else self._highest,
            gpus=max(self._gpus, measured.gpus),
            measured=measured,
        )

    def _sample(self) -> None:
        """Take the memory of this process often, and of its children seldom, because finding them costs more."""
        children, looked = 0, -math.inf
        read = began = time.perf_counter()
        self._counters.watch_gpus()
        while not self._stop.wait(min(max(SAMPLE_S, SAMPLE_SHARE * (time.perf_counter() - began)), SAMPLE_MOST_S)):
            now = time.perf_counter()
            if now - looked >= CHILDREN_S:
                looked = now
                children = sum(resident_bytes(pid) for pid in descendants())
            self._highest = max(self._highest, resident_bytes() + children)
            if now - read >= SAMPLE_MOST_S:
                read = now
                self._counters.sample([os.getpid(), *descendants()])


def cpu_seconds() -> float:
    """Return the processor time of this process, of its ended children, and of its living descendants."""
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return own + sum(cpu_of(pid) for pid in descendants())


def resident_bytes(pid: int | None = None) -> int:
    """Return the memory a process holds now; 0 when it has ended or the system does not say."""
    try:
        return int(said(f"/proc/{pid or 'self'}/statm").split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0 if pid else _peak_ever_bytes()


def descendants(pid: int | None = None) -> list[int]:
    """Return the process ids of the children of a process, and of theirs."""
    own = pid or os.getpid()
    if own == os.getpid() and _childless():
        return []
    if not Path(f"/proc/{own}/task/{own}/children").exists():
        return _descendants_slowly(own)
    found: list[int] = []
    waiting: Sequence[int] = [own]
    while waiting:
        below: list[int] = []
        for parent in waiting:
            below.extend(_children(parent))
        found.extend(below)
        waiting = below
    return found


def _childless() -> bool:
    """Tell whether this process has no children, in one call of the system; False where that cannot be asked."""
    if not hasattr(os, "waitid"):
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def _descendants_slowly(pid: int) -> list[int]:
    """Look through all processes, on systems that keep no list of children."""
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []  # it has ended


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - a Path per thread is five times slower
            found.extend(int(word) for word in said(f"/proc/{pid}/task/{task}/children").split())
    except (OSError, ValueError):
        pass  # the process ended while we looked: it is counted as an ended child
    return found


def said(path: str) -> str:
    """Return what the system says in a file of /proc; in four calls of it, where a Path takes three times as long."""
    file = os.open(path, os.O_RDONLY)
    try:
        parts = [os.read(file, PROC_BYTES)]
        while parts[-1]:  # a long answer comes in pages
            parts.append(os.read(file, PROC_BYTES))
    finally:
        os.close(file)
    return b"".join(parts).decode("ascii", "replace")


def cpu_of(pid: int) -> float:
    """Return the processor time of a process and of its ended children; 0 when it has ended."""
    try:
        text = said(f"/proc/{pid}/stat")
        words = text[text.rindex(")") + 2 :].split()
        return sum(int(word) for word in words[11:15]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def _peak_ever_bytes() -> int:
    """Return the most memory this process ever held; kilobytes on Linux, bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

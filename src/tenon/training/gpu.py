"""GPUs that are held back: heat, power and a narrow PCIe link, turned into lost steps and lost money.

A driver lowers a GPU's clock when it is too hot or draws too much, and says so (NVML's clock event reasons). Nothing
fails; every step just takes longer. Between two `Reading`s a GPU that is busy and held back loses the share by which
its clock lies below the highest: a step of it is taken to be as slow as the clock, which holds for what computes and is
an upper bound for what waits for memory. A link with fewer lanes than card and slot allow (a card not pushed home, a
shared slot, a broken riser) makes whatever is copied take that many times as long; what that loses is at most the share
of time spent waiting for data, by the missing part of the lanes.

`readings` opens NVML (the extra `gpu`) and returns a callable; anything else that gives Readings will do, which is how
the arithmetic is tested: on readings written down. A lower link generation is no finding: idle cards save power so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tenon.finding import Finding

TOLD = 0.05  # share of the steps lost from which it is told
LEAST_S = 30.0  # of readings, before anything is told
BUSY = 0.5  # utilisation from which a GPU is at work
# NVML's clock event reasons (nvml.h): what lowers the clock of a GPU that has work to do.
REASONS = {"heat": 0x20 | 0x40, "power": 0x04 | 0x80, "its hardware (heat or power)": 0x08}
HINTS = {
    "heat": "Look at fans, filters and the air around it, or lower the power limit to keep a steady clock.",
    "power": "Raise its power limit where the supply allows (nvidia-smi -pl), or take a card with more.",
    "its hardware (heat or power)": "Look at its power cables and its cooling.",
    "PCIe": "Push the card home, move it to a slot with all lanes, or copy less: larger batches, pinned memory.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the driver said of one GPU at an instant; 0 where it does not say."""

    at: float  # seconds of any clock that only goes forward
    gpu: int
    name: str = ""
    busy: float = 0.0  # share of the last moments in which it computed
    mhz: float = 0.0
    most_mhz: float = 0.0
    reasons: int = 0  # NVML's bits
    heat_c: float = 0.0
    watts: float = 0.0
    limit_watts: float = 0.0
    lanes: int = 0
    most_lanes: int = 0

    @property
    def held_by(self) -> str:
        """Return what holds the clock down, or "" when nothing does or there is no work to hold up."""
        if self.busy < BUSY or not 0 < self.mhz < self.most_mhz:
            return ""
        return next((name for name, bits in REASONS.items() if self.reasons & bits), "")

    @property
    def lost(self) -> float:
        """Return the share of its speed that is lost to what holds it."""
        return 1 - self.mhz / self.most_mhz if self.held_by else 0.0

    @property
    def narrow(self) -> float:
        """Return the share of its PCIe lanes that are missing while it works."""
        return 1 - self.lanes / self.most_lanes if self.busy >= BUSY and 0 < self.lanes < self.most_lanes else 0.0


class Throttle:
    """Adds up what GPUs lose; `look` is given readings now and then and returns new findings, each told once."""

    __slots__ = ("_before", "_held", "_narrow_s", "_seen_s", "_told", "_worst")

    def __init__(self) -> None:
        self._before: dict[int, Reading] = {}
        self._seen_s: dict[int, float] = {}
        self._held: dict[tuple[int, str], list[float]] = {}  # seconds held, seconds lost
        self._narrow_s: dict[int, float] = {}
        self._worst: dict[tuple[int, str], Reading] = {}
        self._told: set[tuple[int, str]] = set()

    def look(
        self, readings: Sequence[Reading], step: int, *, steps_per_s: float, usd_per_s: float, waiting: float = 0.0
    ) -> list[Finding]:
        """Take one reading of each GPU; `waiting` is the share of time that steps wait for data."""
        found = []
        for one in readings:
            before = self._before.get(one.gpu)
            self._before[one.gpu] = one
            if before is None or one.at <= before.at:
                continue
            took = one.at - before.at
            self._seen_s[one.gpu] = self._seen_s.get(one.gpu, 0.0) + took
            for reading in (before, one):  # each stands for the half of the time that lies next to it
                if reading.held_by:
                    key = one.gpu, reading.held_by
                    held = self._held.setdefault(key, [0.0, 0.0])
                    held[0] += took / 2
                    held[1] += took / 2 * reading.lost
                    worst = self._worst.get(key)
                    self._worst[key] = reading if worst is None or reading.lost > worst.lost else worst
                self._narrow_s[one.gpu] = self._narrow_s.get(one.gpu, 0.0) + took / 2 * reading.narrow * waiting
            found += self._findings(one, step, steps_per_s, usd_per_s)
        return found

    @property
    def lost(self) -> float:
        """Return the share of the steps that is lost: of the GPU that loses most, since steps wait for the slowest."""
        shares = [0.0]
        for gpu, seen in self._seen_s.items():
            held = sum(lost for (which, _), (_, lost) in self._held.items() if which == gpu)
            shares.append((held + self._narrow_s.get(gpu, 0.0)) / seen)
        return max(shares)

    def _findings(self, one: Reading, step: int, steps_per_s: float, usd_per_s: float) -> list[Finding]:
        seen, found = self._seen_s[one.gpu], []
        if seen < LEAST_S:
            return []
        lost = {name: by for (gpu, name), by in self._held.items() if gpu == one.gpu}
        lost["PCIe"] = [seen, self._narrow_s.get(one.gpu, 0.0)]
        for name, (held_s, lost_s) in lost.items():
            if lost_s < TOLD * seen or (one.gpu, name) in self._told:
                continue
            self._told.add((one.gpu, name))
            numbers = {
                "lost_share": lost_s / seen,
                "lost_steps": lost_s * steps_per_s / max(1 - lost_s / seen, 1e-9),
                "lost_usd": lost_s * usd_per_s,
                "usd_per_hour": lost_s / seen * usd_per_s * 3600,
            }
            if name == "PCIe":
                what = f"has {one.lanes} of {one.most_lanes} PCIe lanes: at most"
            else:
                worst = self._worst[one.gpu, name]
                heat = f", {worst.heat_c:.0f} C" if worst.heat_c else ""
                watts = f", {worst.watts:.0f} of {worst.limit_watts:.0f} W" if worst.limit_watts else ""
                at = f"{worst.mhz:,.0f} of {worst.most_mhz:,.0f} MHz{heat}{watts}"
                what = f"is held back by {name} for {held_s / seen:.0%} of the time (down to {at}):"
            name_of = f" ({one.name})" if one.name else ""
            said = (
                f"GPU {one.gpu}{name_of} {what} {numbers['lost_share']:.0%} of its speed is"
                f" lost, {numbers['lost_steps']:,.0f} steps and {numbers['lost_usd']:.2f} USD so far,"
                f" {numbers['usd_per_hour']:.2f} USD an hour."
            )
            place = f"run/{step}"
            found.append(
                Finding(
                    code="training/throttled",
                    severity="warning",
                    place=place,
                    said=said,
                    hint=HINTS[name],
                    numbers=numbers,
                )
            )
        return found


# ── the driver ───────────────────────────────────────────────────────────────────────────────────────────────────────


def readings(clock: Callable[[], float] = time.monotonic) -> Callable[[], list[Reading]] | None:
    """Return a callable that reads the GPUs this process may use; None without NVML (extra `gpu`) or a driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return None
    return (
        (lambda: [_read(pynvml, index, handle, clock()) for index, handle in enumerate(handles)]) if handles else None
    )


def _read(nvml: Any, index: int, handle: Any, at: float) -> Reading:
    def ask(name: str, *words: Any) -> Any:
        try:
            return getattr(nvml, name)(handle, *words)
        except (nvml.NVMLError, AttributeError):
            return None  # an older driver or card does not say

    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons")
    use, name = ask("nvmlDeviceGetUtilizationRates"), ask("nvmlDeviceGetName") or ""
    return Reading(
        at=at,
        gpu=index,
        name=name if isinstance(name, str) else name.decode(errors="replace"),
        busy=use.gpu / 100 if use is not None else 0.0,
        mhz=float(ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM) or 0),
        most_mhz=float(ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM) or 0),
        reasons=int((ask("nvmlDeviceGetCurrentClocksThrottleReasons") if reasons is None else reasons) or 0),
        heat_c=float(ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU) or 0),
        watts=float(ask("nvmlDeviceGetPowerUsage") or 0) / 1e3,
        limit_watts=float(ask("nvmlDeviceGetEnforcedPowerLimit") or 0) / 1e3,
        lanes=int(ask("nvmlDeviceGetCurrPcieLinkWidth") or 0),
        most_lanes=int(ask("nvmlDeviceGetMaxPcieLinkWidth") or 0),
    )

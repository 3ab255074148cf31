"""Electricity as hardware counts it: RAPL for processors, NVML for GPUs. What cannot be read is left to an estimate.

RAPL (`/sys/class/powercap`, Intel and AMD) counts microjoules of each package and its memory, for the whole machine; a
meter takes the part of them that its share of the machine's busy time is. The counters wrap, within minutes on a large
machine, so they are looked at every few seconds. Since 2020 Linux lets only root read them, unless the machine's owner
decides otherwise (`chmod a+r` on `energy_uj`).

NVML (the extra `gpu`) counts the millijoules of each GPU. A GPU is taken whole, for as long as this process or one
below it holds it; in a container, whose process numbers the driver does not know, every GPU that CUDA may use is
taken once CUDA has been loaded. Without NVML such GPUs are known, and their energy is an estimate.

The whole machine also has fans, disks and power supplies: a socket's meter shows more than any of this.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
PROC = Path("/proc")
NVIDIA = Path("/dev/nvidiactl")
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What counters said of a stretch of work: joules, or None where they cannot be read, and how they were had.

    `zones` are the parts of the machine that were counted, `share` what part of them is ours, `gpus` the GPUs held.
    """

    cpu_j: float | None = None
    gpu_j: float | None = None
    gpus: int = 0
    zones: tuple[str, ...] = ()
    share: float = 1.0


class Counters:
    """Counters from `begin` on; `sample` every few seconds keeps up with them, `read` may be called at any time."""

    __slots__ = (
        "_busy",
        "_devices",
        "_env",
        "_held",
        "_last",
        "_lock",
        "_nvml",
        "_proc",
        "_root",
        "_total_uj",
        "_watched",
    )

    def __init__(
        self, *, powercap: Path = POWERCAP, proc: Path = PROC, environ: Mapping[str, str] | None = None
    ) -> None:
        self._root = powercap
        self._proc = proc
        self._env = os.environ if environ is None else environ
        self._last: dict[Path, int] = {}
        self._total_uj: dict[Path, int] = {}
        self._busy: float | None = None
        self._nvml: Any = None
        self._devices: list[tuple[Any, str, int]] = []  # handle, uuid, millijoules at the beginning
        self._held: set[int] = set()
        self._watched = False
        self._lock = threading.Lock()  # a meter's thread samples while its owner may read

    def begin(self) -> None:
        """Note where the counters of the processor stand."""
        for zone in _zones(self._root):
            at = _number(zone / "energy_uj")
            if at is not None:
                self._last[zone] = at
                self._total_uj[zone] = 0
        self._busy = _busy_s(self._proc)

    def watch_gpus(self) -> None:
        """Note where the counters of the GPUs stand. Asks the driver, which takes a while: not for where work waits."""
        if self._watched or not NVIDIA.exists():
            return
        self._watched = True
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = pynvml.nvmlDeviceGetUUID(handle)
                at = int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
                self._devices.append((handle, uuid if isinstance(uuid, str) else uuid.decode(), at))
        except ImportError:
            return
        except pynvml.NVMLError:
            self._devices.clear()  # an old GPU, or a driver that does not answer: an estimate is left

    def sample(self, pids: Iterable[int]) -> None:
        """Add what the counters have moved since last time, and see which GPUs the processes hold."""
        with self._lock:
            for zone, before in self._last.items():
                now = _number(zone / "energy_uj")
                if now is None:
                    continue
                moved = now - before
                if moved < 0:
                    moved += _number(zone / "max_energy_range_uj") or 0
                self._total_uj[zone] += max(moved, 0)
                self._last[zone] = now
            if self._watched:
                self._held |= self._holding(set(pids))

    def read(self, cpu_s: float, pids: Iterable[int]) -> Measured:
        """Return what was counted since the beginning, when `cpu_s` seconds of processor time were ours."""
        self.sample(pids)
        busy = _busy_s(self._proc)
        machine = busy - self._busy if busy is not None and self._busy is not None else 0.0
        share = min(cpu_s / machine, 1.0) if machine > 0 else 1.0
        joules = sum(self._total_uj.values()) / 1e6
        return Measured(
            cpu_j=joules * share if self._last else None,
            gpu_j=self._gpu_joules() if self._devices else None,
            gpus=len(self._held),
            zones=tuple(dict.fromkeys(_text(zone / "name").split("-")[0] for zone in self._last)),
            share=share,
        )

    # ── GPUs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _gpu_joules(self) -> float:
        moved = 0
        for index in self._held:
            handle, _, before = self._devices[index]
            try:
                moved += max(int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) - before, 0)
            except self._nvml.NVMLError:
                continue
        return moved / 1e3

    def _holding(self, pids: set[int]) -> set[int]:
        """Return the GPUs that processes hold, by number."""
        held = set()
        for index, (handle, _, _) in enumerate(self._devices):
            try:
                running = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            except self._nvml.NVMLError:
                continue
            if any(process.pid in pids for process in running):
                held.add(index)
        if held or not any(self._has_cuda(pid) for pid in pids):
            return held
        return visible([uuid for _, uuid, _ in self._devices] or self._known_to_driver(), self._env)

    def _has_cuda(self, pid: int) -> bool:
        try:
            return "libcuda.so" in (self._proc / str(pid) / "maps").read_text("utf-8", errors="replace")
        except OSError:
            return False  # it has ended, or is not ours

    def _known_to_driver(self) -> list[str]:
        try:
            return [folder.name for folder in sorted((self._proc / "driver/nvidia/gpus").iterdir())]
        except OSError:
            return []


def visible(uuids: list[str], environ: Mapping[str, str]) -> set[int]:
    """Return the numbers of the GPUs that CUDA may use, as CUDA_VISIBLE_DEVICES says: numbers or UUIDs, all by default.

    As CUDA does, it stops at the first that is not there.
    """
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return set(range(len(uuids)))
    found: set[int] = set()
    for word in (part.strip() for part in chosen.split(",")):
        places = [index for index, uuid in enumerate(uuids) if word == str(index) or (word and uuid.startswith(word))]
        if not places:
            break
        found.add(places[0])
    return found


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _zones(root: Path) -> list[Path]:
    """Return the zones that do not overlap: each package, and memory that no package counts.

    The same packages appear again as `intel-rapl-mmio`, parts of a package as `core` and `uncore`, all of it as `psys`.
    """
    try:
        zones = sorted(zone for zone in root.iterdir() if zone.name.startswith("intel-rapl:"))
    except OSError:
        return []
    return [zone for zone in zones if _text(zone / "name").startswith(("package", "dram"))]


def _text(file: Path) -> str:
    try:
        return file.read_text("ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdecimal() else None


def _busy_s(proc: Path) -> float | None:
    """Return the seconds that all cores of the machine together were busy since it started."""
    words = _text(proc / "stat").partition("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu":
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(word) for word in words[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")

"""Energy: what counters say is added up as they wrap, our share of it is taken, and the rest is called an estimate."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tenon.config import Prices
from tenon.energy import NVIDIA, Counters, Measured, visible
from tenon.ledger import Meter, Usage

TICK = os.sysconf("SC_CLK_TCK")
PRICES = Prices(watts_per_core=10.0, watts_per_gpu=300.0)


class Machine:
    """A folder laid out as the kernel lays out its counters, so that they can be made to say anything."""

    def __init__(self, folder: Path) -> None:
        self.powercap, self.proc = folder / "powercap", folder / "proc"
        self.proc.mkdir(parents=True)
        self.busy(0.0)

    def zone(self, name: str, *, called: str, uj: int, top: int = 1_000_000_000) -> Path:
        zone = self.powercap / name
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "name").write_text(f"{called}\n")
        (zone / "energy_uj").write_text(f"{uj}\n")
        (zone / "max_energy_range_uj").write_text(f"{top}\n")
        return zone

    def busy(self, seconds: float) -> None:
        ticks = int(seconds * TICK)
        (self.proc / "stat").write_text(f"cpu  {ticks} 0 0 999999 5 0 0 0 0 0\ncpu0 {ticks} 0 0 0 0 0 0 0 0 0\n")

    def counters(self) -> Counters:
        found = Counters(powercap=self.powercap, proc=self.proc, environ={})
        found.begin()
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# ── processors ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_packages_and_memory_are_added_and_nothing_is_counted_twice(machine: Machine) -> None:
    names = {
        "intel-rapl:0": "package-0",
        "intel-rapl:1": "package-1",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    for name, called in names.items():
        machine.zone(name, called=called, uj=0)
    counters = machine.counters()
    for name, called in names.items():
        machine.zone(name, called=called, uj=2_000_000)
    machine.busy(4.0)
    read = counters.read(4.0, [])
    assert read.cpu_j == pytest.approx(6.0), "two packages and their memory, 2 J each"
    assert read.zones == ("package", "dram") and read.share == 1.0


def test_a_counter_that_wraps_goes_on(machine: Machine) -> None:
    machine.zone("intel-rapl:0", called="package-0", uj=900, top=1_000)
    counters = machine.counters()
    for at in (100, 700, 300):
        machine.zone("intel-rapl:0", called="package-0", uj=at, top=1_000)
        counters.sample([])
    assert counters.read(1.0, []).cpu_j == pytest.approx((200 + 600 + 600) / 1e6)


def test_of_a_machine_that_others_use_too_only_our_share_is_taken(machine: Machine) -> None:
    machine.zone("intel-rapl:0", called="package-0", uj=0)
    counters = machine.counters()
    machine.zone("intel-rapl:0", called="package-0", uj=100_000_000)
    machine.busy(40.0)
    read = counters.read(10.0, [])
    assert read.share == pytest.approx(0.25) and read.cpu_j == pytest.approx(25.0)
    assert counters.read(99.0, []).share == 1.0, "rounding of clocks never makes it more than all"


def test_where_nothing_can_be_read_nothing_is_said(machine: Machine) -> None:
    assert machine.counters().read(1.0, []) == Measured()
    machine.zone("intel-rapl:0", called="package-0", uj=0)
    (machine.powercap / "intel-rapl:0" / "energy_uj").write_text("no number")
    (machine.proc / "stat").write_text("")
    assert machine.counters().read(1.0, []).cpu_j is None


def test_a_zone_that_goes_away_keeps_what_it_had(machine: Machine) -> None:
    zone = machine.zone("intel-rapl:0", called="package-0", uj=0)
    counters = machine.counters()
    machine.zone("intel-rapl:0", called="package-0", uj=5_000_000)
    counters.sample([])
    (zone / "energy_uj").unlink()
    machine.busy(1.0)
    assert counters.read(1.0, []).cpu_j == pytest.approx(5.0)


# ── GPUs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("chosen", "found"),
    [(None, {0, 1, 2}), ("", set()), ("1", {1}), ("2,0", {0, 2}), ("GPU-b", {1}), ("0,7,1", {0}), ("-1", set())],
)
def test_gpus_are_those_that_cuda_may_use(chosen: str | None, found: set[int]) -> None:
    environ = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    assert visible(["GPU-aa", "GPU-bb", "GPU-cc"], environ) == found


@pytest.mark.skipif(not NVIDIA.exists(), reason="needs a GPU")
def test_a_gpu_that_is_used_is_counted() -> None:
    torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
    with Meter() as meter:
        a = torch.ones(4096, 4096, device="cuda")
        for _ in range(200):
            a = a @ a / 4096.0
        torch.cuda.synchronize()
    usage = meter.usage()
    assert usage.gpus >= 1 and usage.measured.gpu_j is not None and usage.measured.gpu_j > 1.0


# ── in words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_energy_says_whether_it_was_measured() -> None:
    estimated = Usage(wall_s=3600, cpu_s=7200, peak_bytes=0).energy(PRICES)
    assert (estimated["kwh"], estimated["source"]) == (pytest.approx(0.02), "estimate: core seconds x 10 W")
    measured = Measured(cpu_j=3.6e6, gpu_j=7.2e6, gpus=2, zones=("package",), share=0.5)
    found = Usage(wall_s=60, cpu_s=1, peak_bytes=0, gpus=2, measured=measured).energy(PRICES)
    assert found["kwh"] == pytest.approx(3.0)
    assert found["source"] == "RAPL (package), 50% of it ours; NVML (2 GPU)"
    held = Usage(wall_s=3600, cpu_s=0, peak_bytes=0, gpus=1).energy(PRICES)
    assert (held["gpu_kwh"], held["gpu_source"]) == (pytest.approx(0.3), "estimate: 1 GPU x 300 W")


def test_the_price_of_power_follows_what_was_measured() -> None:
    own = Prices(usd_per_core_hour=0.0, usd_per_gpu_hour=0.0, usd_per_kwh=0.5)
    usage = Usage(
        wall_s=1, cpu_s=1, peak_bytes=0, gpus=1, measured=Measured(cpu_j=3.6e6, gpu_j=7.2e6, gpus=1, zones=("package",))
    )
    energies = [entry for entry in usage.entries("r", own, at=0.0, note="train") if entry.kind == "energy"]
    assert [entry.usd for entry in energies] == [pytest.approx(0.5), pytest.approx(1.0)]
    assert energies[1].note == "train; NVML (1 GPU)"
    rented = [entry for entry in usage.entries("r", Prices(), at=0.0) if entry.kind == "energy"]
    assert [entry.usd for entry in rented] == [0.0, 0.0]
    assert rented[1].note.endswith("power is in the gpu-hour price")


def test_a_meter_takes_what_its_counters_say(machine: Machine) -> None:
    machine.zone("intel-rapl:0", called="package-0", uj=0)
    with Meter(counters=Counters(powercap=machine.powercap, proc=machine.proc, environ={})) as meter:
        machine.zone("intel-rapl:0", called="package-0", uj=7_200_000)
    assert meter.usage().kwh(PRICES) == pytest.approx(7.2 / 3.6e6), "the machine was busy with nothing else"

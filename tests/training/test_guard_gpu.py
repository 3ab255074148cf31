"""A GPU that is held back is told in lost steps and lost money; the arithmetic is that of readings written down."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tenon.config import Prices
from tenon.ledger import Budget
from tenon.training import Guard
from tenon.training.gpu import Reading, Throttle, readings

# As nvidia-smi shows an H100 at work, held by heat, by its power limit, and with four of sixteen lanes.
FINE = Reading(
    at=0.0, gpu=0, name="NVIDIA H100", busy=0.97, mhz=1980, most_mhz=1980, heat_c=64, watts=610, limit_watts=700
)
HOT = replace(FINE, mhz=1485, reasons=0x40, heat_c=87, watts=480)
CAPPED = replace(FINE, mhz=1782, reasons=0x04, watts=700)
NARROW = replace(FINE, lanes=4, most_lanes=16)


def told(*seen: tuple[float, Reading], waiting: float = 0.0) -> tuple[Throttle, list[str]]:
    throttle, codes = Throttle(), []
    for at, reading in seen:
        new = throttle.look(
            [replace(reading, at=at)], int(at) * 10, steps_per_s=10.0, usd_per_s=3.0 / 3600, waiting=waiting
        )
        codes += [one.said for one in new]
    return throttle, codes


def test_heat_becomes_lost_steps_and_lost_money() -> None:
    throttle, said = told((0, HOT), (600, HOT))
    assert throttle.lost == pytest.approx(0.25)
    # A quarter of ten minutes; at full speed 13.3 steps a second would have been taken and not 10.
    assert said == [
        "GPU 0 (NVIDIA H100) is held back by heat for 100% of the time (down to 1,485 of 1,980 MHz, 87 C, 480 of 700"
        " W): 25% of its speed is lost, 2,000 steps and 0.12 USD so far, 0.75 USD an hour."
    ]


def test_a_reading_stands_for_the_half_of_the_time_beside_it_and_each_cause_is_told_once() -> None:
    throttle, said = told((0, FINE), (100, HOT), (200, FINE), (300, CAPPED), (400, CAPPED), (900, CAPPED))
    assert throttle.lost == pytest.approx((100 * 0.25 + 650 * 0.1) / 900)
    assert [one.split("held back by ")[1].split(" for ")[0] for one in said] == ["heat", "power"]


def test_missing_lanes_lose_at_most_their_part_of_the_waiting() -> None:
    throttle, said = told((0, NARROW), (100, NARROW), waiting=0.4)
    assert throttle.lost == pytest.approx(0.4 * 0.75)
    assert "has 4 of 16 PCIe lanes: at most 30% of its speed is lost" in said[0]
    assert told((0, NARROW), (100, NARROW), waiting=0.0)[1] == []


@pytest.mark.parametrize(
    "fine",
    [
        FINE,
        replace(HOT, busy=0.1),  # nothing to hold up
        replace(HOT, reasons=0x01),  # idle
        replace(HOT, most_mhz=0),  # the driver does not say
        replace(HOT, mhz=1960),  # a hundredth
    ],
)
def test_what_holds_nothing_up_is_not_told(fine: Reading) -> None:
    assert told((0, fine), (600, fine))[1] == []


def test_nothing_is_told_of_a_few_seconds_and_of_a_clock_that_stands() -> None:
    assert told((0, HOT), (20, HOT))[1] == []
    assert told((0, HOT), (0, HOT))[0].lost == 0.0


def test_the_slowest_of_several_gpus_is_what_a_step_waits_for() -> None:
    throttle = Throttle()
    for at in (0.0, 100.0):
        pair = [replace(HOT, at=at), replace(CAPPED, gpu=1, at=at)]
        throttle.look(pair, 0, steps_per_s=1.0, usd_per_s=0.0)
    assert throttle.lost == pytest.approx(0.25)


def test_a_guard_reads_them_with_what_has_been_spent() -> None:
    at = 0.0

    def clock() -> float:
        nonlocal at
        at += 5.0
        return at

    stood: list[float] = []
    guard = Guard(budget=Budget(hours=9), prices=Prices(usd_per_core_hour=0.1), clock=clock)
    guard.readings = lambda: [replace(HOT, at=at)]
    guard.show = lambda told: stood.append(told["lost"])
    for step in range(40):
        guard.step(step, loss=1 / (step + 1))
    assert [one.code for one in guard.findings] == ["training/throttled"]
    assert stood[-1] == pytest.approx(0.25)


def test_without_a_driver_there_is_nothing_to_read() -> None:
    read = readings()
    if read is not None:
        pytest.skip("needs a machine without a GPU; needs a GPU is the other test")
    assert read is None


def test_the_gpu_here_is_read() -> None:
    read = readings()
    if read is None:
        pytest.skip("needs a GPU and the extra 'gpu'")
    for one in read():
        assert one.name and 0 <= one.busy <= 1
        assert 0 < one.mhz <= one.most_mhz and 0 < one.heat_c < 120
        assert 0 < one.lanes <= one.most_lanes

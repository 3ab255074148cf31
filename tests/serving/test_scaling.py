"""Scaling: a decision that can be read, ahead by the time a start takes, calm on the way down; processes that end."""

from __future__ import annotations

import asyncio
import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.errors import UsageError
from tenon.serving.fleet import LocalFleet
from tenon.serving.scale import Decision, Sample, Scaling, Starts, decide


def steady(work: float, *, seconds: int = 600, slope: float = 0.0) -> list[Sample]:
    return [Sample(at=float(at), work=max(work + slope * (at - seconds), 0.0)) for at in range(0, seconds + 1, 10)]


def wanted(samples: list[Sample], replicas: int, horizon_s: float = 30.0, **more: float) -> int:
    return decide(samples, Scaling(**more), replicas=replicas, horizon_s=horizon_s).replicas  # type: ignore[arg-type]


def test_a_load_gets_the_replicas_that_it_keeps_as_busy_as_they_should_be() -> None:
    assert wanted(steady(1.8), 1) == 3
    assert wanted(steady(1.8), 3) == 3


def test_a_rising_load_is_met_where_it_will_be_when_a_replica_ordered_now_is_ready() -> None:
    rising = steady(1.2, slope=0.01)
    assert wanted(rising, 2, horizon_s=10) == math.ceil(1.3 / 0.6)
    assert wanted(rising, 2, horizon_s=100) == math.ceil(2.2 / 0.6)


def test_what_waits_and_what_memory_holds_count_too() -> None:
    calm = steady(0.6)
    assert wanted([*calm, Sample(at=610, work=0.6, waiting_s=90)], 1) > wanted(calm, 1)
    assert wanted([*calm, Sample(at=610, work=0.6, memory=2.5)], 1) == 3


def test_one_spike_orders_no_fleet() -> None:
    assert wanted([*steady(0.5), Sample(at=610, work=9.0)], 1) <= 4


def test_it_goes_down_by_one_and_only_after_a_calm_time() -> None:
    assert wanted(steady(0.3), 5) == 4
    assert wanted([*steady(2.9, seconds=300), *[Sample(at=300.0 + n, work=0.3) for n in range(10, 200, 10)]], 5) == 5


def test_all_go_only_when_nobody_asked_for_long() -> None:
    none = Scaling(least=0)
    assert decide(steady(0.0), none, replicas=1, horizon_s=5, idle_for_s=899).replicas == 1
    assert decide(steady(0.0), none, replicas=1, horizon_s=5, idle_for_s=900) == Decision(
        replicas=0, why="no request for 900 s"
    )
    assert decide(steady(0.0), none, replicas=0, horizon_s=5, idle_for_s=0).replicas == 1


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.builds(Sample, at=st.floats(0, 1e6), work=st.floats(0, 1e3), waiting_s=st.floats(0, 1e5)), max_size=30),
    st.integers(0, 4), st.integers(0, 9), st.integers(0, 12), st.floats(0, 1e4),
)  # fmt: skip
def test_the_answer_lies_within_the_bounds_whatever_was_seen(
    samples: list[Sample], least: int, most: int, replicas: int, horizon_s: float
) -> None:
    samples.sort(key=lambda sample: sample.at)
    found = decide(samples, Scaling(least=least, most=most), replicas=replicas, horizon_s=horizon_s)
    assert least <= found.replicas <= max(most, least, replicas)
    assert found.why


def test_the_horizon_is_what_nine_of_ten_starts_took() -> None:
    starts = Starts(default_s=7.0)
    assert starts.horizon_s == 7.0
    for seconds in range(1, 101):
        starts.saw(float(seconds))
    assert starts.horizon_s == 95.0  # of the last fifty
    starts.saw(math.nan)
    assert starts.horizon_s == 95.0


# ── a fleet of local processes ───────────────────────────────────────────────────────────────────────────────────────


def test_local_processes_are_started_listed_and_stopped() -> None:
    async def play() -> None:
        fleet = LocalFleet(f"{sys.executable} -m http.server {{port}} --bind 127.0.0.1")
        try:
            first, second = await asyncio.gather(fleet.start(), fleet.start())
            assert {machine.name for machine in fleet.list()} == {first.name, second.name}
            assert 0 < first.start_s < 20
            await fleet.stop(first.name)
            await fleet.stop(first.name)
            assert list(fleet.list()) == [second]
        finally:
            await fleet.close()
        assert list(fleet.list()) == []

    asyncio.run(play())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sleep 5", "a command with {port}"),
        ("no-such-program {port}", "a command that starts"),
        (f"{sys.executable} -c 1 {{port}}", "an end with 0"),
        ("sleep 60 --help-{port}", "an end with 1"),
    ],
)
def test_a_command_that_gives_no_replica_is_refused_in_words(command: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        asyncio.run(LocalFleet(command, start_s=3).start())
    assert said in str(caught.value)

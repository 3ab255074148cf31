"""Admission: each key its rate and money, priorities when crowded, an honest time to come back, bounded memory."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.errors import ConfigError
from tenon.limits import Answer
from tenon.serving.admission import Gate, Quota


@settings(max_examples=60, deadline=None)
@given(st.floats(0.1, 50), st.integers(1, 20), st.lists(st.floats(0, 3), min_size=1, max_size=60))
def test_a_key_never_gets_more_than_its_burst_and_its_rate(rate: float, burst: int, gaps: list[float]) -> None:
    gate = Gate({"k": Quota(rate_per_s=rate, burst=burst)})
    now, admitted = 0.0, 0
    for gap in gaps:
        now += gap
        admission = gate.ask("k", now)
        admitted += bool(admission)
        if not admission:
            assert admission.answer is Answer.LATER
            assert gate.ask("k", now + admission.retry_after_s + 1e-6)
            now += admission.retry_after_s + 1e-6
            admitted += 1
        assert admitted <= burst + rate * now + 1e-6


def test_money_is_a_bucket_that_may_be_overdrawn_once_and_must_fill_again() -> None:
    gate = Gate({"k": Quota(usd_per_hour=1.0)})
    assert gate.ask("k", 0.0, usd=0.5)
    gate.charge("k", 0.0, 0.9)
    later = gate.ask("k", 0.0)
    assert later.answer is Answer.LATER
    assert later.retry_after_s == pytest.approx(0.4 * 3600)
    assert "$1 an hour" in later.reason
    assert gate.ask("k", 0.41 * 3600)
    assert gate.ask("k", 9_999.0, usd=2.0).answer is Answer.NEVER


def test_those_who_can_wait_are_shed_first() -> None:
    gate = Gate({"batch": Quota(priority=0), "urgent": Quota(priority=2)})
    answers = {
        wait: [bool(gate.crowded(key, wait, 3.0)) for key in ("batch", "anybody", "urgent")] for wait in (1, 2, 4, 13)
    }
    assert answers == {1: [True] * 3, 2: [False, True, True], 4: [False, False, True], 13: [False] * 3}
    assert gate.crowded("batch", 2.0, 3.0).retry_after_s == pytest.approx(0.5)


def test_keys_that_nobody_knows_cannot_fill_the_memory() -> None:
    gate = Gate(default=Quota(rate_per_s=1), most=100)
    for number in range(1_000):
        gate.ask(f"key {number}", float(number))
    assert len(gate._buckets) == 100


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    gate = Gate({"k": Quota(rate_per_s=1, burst=1)})
    assert gate.ask("k", 100.0)
    assert not gate.ask("k", 0.0)
    assert not gate.ask("k", 100.5)


@pytest.mark.parametrize("more", [{"rate_per_s": -1}, {"usd_per_hour": math.nan}, {"priority": 3}])
def test_a_quota_that_cannot_be_is_refused(more: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Quota(**more)  # type: ignore[arg-type]

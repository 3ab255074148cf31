"""A loop that waits for its data is told so, with how much, whom it waits for, and what that costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tenon.finding import Finding
from tenon.training import Guard, Rules, clock
from tenon.training.clock import Clock, Shares


def busy(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class Told:
    """Collects what a clock tells."""

    def __init__(self, source: Iterator[Any], work_s: float) -> None:
        self.clock = Clock(cores=4)
        self.findings: list[Finding] = []
        for step, _ in enumerate(self.clock.over(source)):
            time.sleep(work_s)
            found = self.clock.look(step, usd_per_s=1 / 3600)
            if found is not None:
                self.findings.append(found)
            if self.clock.all.steps:
                break


def slow(wait_s: float, kind: str) -> Iterator[int]:
    for i in range(10_000):
        (busy if kind == "busy" else time.sleep)(wait_s)
        yield i


def test_decoding_in_the_training_process_is_named() -> None:
    told = Told(slow(0.02, "busy"), 0.005)
    assert [one.code for one in told.findings] == ["training/data-starved"]
    said = told.findings[0].said
    assert (
        "the culprit is decoding in the training process." in said or "take this machine's cores" in said
    )  # a busy one
    assert told.findings[0].numbers["waiting"] > 0.5
    assert "USD an hour" in told.findings[0].said


def test_a_source_that_is_slow_itself_is_named() -> None:
    told = Told(slow(0.02, "asleep"), 0.005)
    assert "the culprit is a source that is slow itself" in told.findings[0].said


def test_a_loop_that_works_is_told_nothing() -> None:
    told = Told(iter(range(10_000)), 0.01)
    assert told.findings == []
    assert told.clock.all.waiting < 0.15
    assert told.clock.all.steps >= clock.WINDOW_STEPS


@pytest.mark.parametrize(
    ("shares", "culprit"),
    [
        ({"busy_wait_s": 1.0, "crowded_s": 3.9}, "other processes that take this machine's cores"),
        ({"busy_wait_s": 4.5}, "decoding in the training process"),
        ({"workers": 1, "worker_cpu_s": 9.5}, "too few workers (1 workers, all busy)"),
        ({"workers": 4, "worker_cpu_s": 38.0}, "decoding"),
        ({"workers": 2, "worker_cpu_s": 1.0, "read_bytes": 500_000_000}, "the disk (50 MB/s)"),
        ({"workers": 2, "worker_cpu_s": 1.0}, "a source that is slow itself"),
    ],
)
def test_each_culprit_is_known_by_who_was_busy(shares: dict[str, Any], culprit: str) -> None:
    found = Shares(steps=100, wall_s=10.0, wait_s=5.0, **shares)
    assert found.culprit(4)[0] == culprit


def test_bytes_read_by_this_process_are_counted(tmp_path: Path) -> None:
    assert clock._read_bytes("self") >= 0
    assert clock._read_bytes("no such process") == 0


def test_a_guard_measures_the_batches_it_hands_out() -> None:
    guard = Guard(rules=Rules(flat=False, diverged=False))
    for step, batch in enumerate(guard.batches(slow(0.02, "busy"))):
        assert batch == step
        if guard.findings or step > 600:
            break
        guard.step(step, loss=1.0)
    assert [one.code for one in guard.findings] == ["training/data-starved"]

"""A loop that gives memory back at every step is told so, with what that costs; memory that is kept is told nothing."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from tenon.training import keep_memory
from tenon.training.pages import MANY

# In a process of its own: what is kept is kept for good. A step fills blocks of 40 MB and lets them go, as a training
# step does with activations: above 32 MB the C library gives each back at once, so that all steps take the same. Each
# guard ends after a window.
LOOPS = """
import json, time
from tenon.training import Guard, Rules, guard, keep_memory, pages

guard.SPENT_S, pages.WINDOW_S = 0.25, 0.4

def run(work, first=0):
    watching = Guard(rules=Rules(flat=False, diverged=False))
    data = [b"x" * (24 << 20) for _ in range(first)]  # read once a guard is there, before the first step
    before, end, step = pages._counted()[2], time.monotonic() + 1.2, 0
    while time.monotonic() < end:
        work()
        watching.step(step, loss=1.0)
        step += 1
    return {"told": [one.to_dict() for one in watching.findings], "pages": (pages._counted()[2] - before) / step}

def blocks():
    return [b"x" * (40 << 20) for _ in range(2)]

def reads():
    with open("/dev/zero", "rb", buffering=0) as file:
        for _ in range(64):
            file.readinto(room)

room = bytearray(1 << 20)
found = {"given back": run(blocks), "small": run(lambda: b"x" * 50_000), "reads": run(reads)}
found["begins"] = run(lambda: time.sleep(0.05), first=10)
found["kept"] = keep_memory()
blocks()
found["after"] = run(blocks)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def loops() -> Mapping[str, Any]:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs the allocator of the GNU C library")
    done = subprocess.run([sys.executable, "-c", LOOPS], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_loop_that_gives_memory_back_is_told_how_much_and_what_to_do(loops: Mapping[str, Any]) -> None:
    assert loops["given back"]["pages"] > 10_000
    (told,) = loops["given back"]["told"]
    assert told["code"] == "training/page-faults"
    assert told["severity"] == "warning"
    assert "keep_memory()" in told["hint"]
    numbers = told["numbers"]
    assert numbers["pages"] == pytest.approx(loops["given back"]["pages"], rel=0.2)
    assert numbers["mb"] == pytest.approx(numbers["pages"] * resource.getpagesize() / 1e6)
    assert 0.05 < numbers["share"] <= 1
    assert f"{numbers['share']:.0%} of the processor time" in told["said"]


def test_memory_that_is_kept_is_taken_once(loops: Mapping[str, Any]) -> None:
    assert loops["kept"] is True
    assert loops["after"]["pages"] < MANY
    assert loops["after"]["told"] == []


@pytest.mark.parametrize("name", ["small", "reads", "begins"])
def test_a_loop_that_is_busy_otherwise_is_told_nothing(loops: Mapping[str, Any], name: str) -> None:
    assert loops[name]["told"] == []


def test_where_the_library_cannot_keep_memory_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_memory() is False

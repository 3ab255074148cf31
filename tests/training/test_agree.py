"""Ranks of one machine add numbers up through shared memory: the same sums on all, and no wait for one that is gone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tenon.errors import TrainingError
from tenon.training.agree import Agreement
from tenon.training.watchdog import Beat, Rank, living

pytestmark = pytest.mark.skipif(not Agreement.possible(), reason="this processor may show writes in another order")

RANK = """
import json, os, random, sys, time
from pathlib import Path
from tenon.training.agree import Agreement
from tenon.training.watchdog import Beat, living

folder, rank, size, rounds, end = Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]
beat, dice = Beat(folder, rank), random.Random(rank)
every = dict(rank=rank, size=size, width=4, timeout_s=60.0)
one = Agreement(folder / "agree", living=lambda other: living(folder, other), **every)
said = []
for i in range(rounds):
    if dice.random() < 0.01:
        time.sleep(dice.random() * 0.08)  # late, by turns
    said.append(one.add_up([i, rank, i * rank + 0.5, 1.0]))
if end == "left":
    one.close()
    time.sleep(30)
if end == "killed":
    os.kill(os.getpid(), 9)
print(json.dumps(said))
"""


def rank(folder: Path, number: int, size: int, rounds: int, end: str = "") -> subprocess.Popen[str]:
    words = [str(folder), str(number), str(size), str(rounds), end]
    return subprocess.Popen([sys.executable, "-c", RANK, *words], stdout=subprocess.PIPE, text=True)


def alone(folder: Path, size: int) -> Agreement:
    """Be rank 0 of several, in this process."""
    folder.mkdir(exist_ok=True)
    (folder / "rank-1.beat").touch()
    one = {"rank": 0, "size": size, "width": 4, "timeout_s": 60.0}
    return Agreement(folder / "agree", living=lambda other: living(folder, other), **one)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_hear_the_same_sums_however_late_each_is(tmp_path: Path, size: int) -> None:
    others = [rank(tmp_path, one, size, 1_000) for one in range(size)]
    told = [json.loads(one.communicate(timeout=120)[0]) for one in others]
    ranks = np.arange(size)
    wanted = [[i * size, ranks.sum(), i * ranks.sum() + size / 2, size] for i in range(1_000)]
    assert all(one == wanted for one in told)


@pytest.mark.parametrize("end", ["killed", "left"])
def test_a_rank_that_is_gone_is_not_waited_for_and_what_it_said_last_is_heard(tmp_path: Path, end: str) -> None:
    mine, other = alone(tmp_path, 2), rank(tmp_path, 1, 2, 5, end)
    try:
        for i in range(5):
            assert mine.add_up([i, 0.0, 0.5, 1.0])[0] == 2 * i
        if end == "killed":
            other.wait(60)
        start = time.monotonic()
        with pytest.raises(TrainingError, match="expected all 2 ranks, got 1 and no word from rank 1"):
            mine.add_up([5.0, 0.0, 0.5, 1.0])
        assert time.monotonic() - start < 20
    finally:
        other.kill()
        other.communicate()


def test_waiting_for_long_costs_next_to_no_processor_time(tmp_path: Path) -> None:
    mine = Agreement(tmp_path / "agree", rank=0, size=2, width=4, living=lambda other: True, timeout_s=1.0)
    start, worked = time.monotonic(), time.thread_time()
    with pytest.raises(TrainingError, match="no word from rank 1"):
        mine.add_up([0.0] * 4)
    assert (time.thread_time() - worked) / (time.monotonic() - start) < 0.2


def test_a_rank_that_waits_for_the_agreement_is_said_to_wait_there(tmp_path: Path) -> None:
    stack = (
        "Thread 0x01 (most recent call first):\n"
        '  File "/x/tenon/training/agree.py", line 90 in _wait\n'
        '  File "/x/tenon/training/agree.py", line 70 in add_up\n'
        '  File "/x/tenon/training/guard.py", line 236 in step\n'
        '  File "/home/me/train.py", line 10 in <module>\n'
    )
    assert Rank(rank=0, pid=1, at=0.0, step=5, stack=stack).collective == "the guard's agreement"
    beat = Beat(tmp_path, 0)
    assert living(tmp_path, 0) and living(tmp_path, 7)  # of one that says nothing nothing is known
    beat.close()

"""A run that hangs is seen from outside, says where each rank stands, and is begun again a bounded number of times."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tenon.errors import UsageError
from tenon.training import Guard
from tenon.training.watchdog import Beat, Rank, hang, read, watch

ALONE = """
import os, sys, time
from pathlib import Path
from tenon.training import Guard
from tenon.training.watchdog import Beat

guard = Guard()
guard.beat = Beat.of(os.environ)
kept = Path(sys.argv[1])

def stuck():
    time.sleep(1_000)

for step in range(int(kept.read_text()) if kept.exists() else 0, 20):
    guard.step(step, loss=1 / (1 + step))
    kept.write_text(str(step + 1))
    if step == 7 and os.environ["TENON_WATCH_ATTEMPT"] == "0":
        stuck()
    if step == 12 and os.environ["TENON_WATCH_ATTEMPT"] == "1":
        sys.exit(3)
"""

PAIR = """
import os, sys, time
from tenon.training.watchdog import Beat

rank = int(os.environ["RANK"])
import torch.distributed as dist, torch
from tenon.training import Guard
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
guard = Guard()
guard.beat = Beat.of(os.environ)

def load_rows():
    time.sleep(1_000)

for step in range(100):
    guard.step(step, loss=1.0 / (1 + step))
    if rank == 1 and step == 3:
        load_rows()
    dist.all_reduce(torch.ones(2))
"""

LAUNCH = """
import os, subprocess, sys
children = [subprocess.Popen([sys.executable, *sys.argv[1:]], env={**os.environ, "RANK": str(r)}) for r in range(2)]
sys.exit(max(child.wait() for child in children))
"""


def test_a_run_that_hangs_and_then_fails_goes_on_and_ends_well(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(ALONE)
    told: list[str] = []
    ended = watch(
        [sys.executable, str(script), str(tmp_path / "kept")],
        folder=tmp_path / "watch",
        silence_s=3.0,
        restarts=3,
        tell=lambda finding: told.append(finding.code),
    )
    assert ended and ended.attempts == 3
    assert (tmp_path / "kept").read_text() == "20"
    assert told == ["training/hang", "training/restarted", "training/restarted"]
    hung, _, failed = ended.findings
    assert "Rank 0 stands after step 7 in stuck (train.py:12)." in hung.said
    assert "code 3 and is begun again" in failed.said
    assert "stuck" in (tmp_path / "watch" / "attempt-0" / "rank-0.stacks").read_text()


def test_restarts_are_bounded(tmp_path: Path) -> None:
    ended = watch([sys.executable, "-c", "raise SystemExit(5)"], folder=tmp_path, restarts=2)
    assert (ended.code, ended.attempts, bool(ended)) == (5, 3, False)
    assert [one.code for one in ended.findings] == ["training/restarted"] * 2


def test_the_rank_that_never_reached_the_collective_is_named(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    script = tmp_path / "pair.py"
    script.write_text(PAIR)
    command = [sys.executable, "-c", LAUNCH, str(script), str(tmp_path / "meet")]
    ended = watch(command, folder=tmp_path / "watch", silence_s=5.0, restarts=0)
    assert not ended
    assert [one.code for one in ended.findings] == ["training/hang"]
    said = ended.findings[0].said
    assert "Rank 1 never reached all_reduce, in which rank 0 waits." in said
    assert "Rank 1 stands after step 3 in load_rows (pair.py:13)." in said
    assert "Rank 0 stands after step 3 in all_reduce at <module> (pair.py:19)." in said
    assert ended.findings[0].numbers["rank"] == 1


def test_nothing_is_left_running_when_a_hang_is_ended(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; from pathlib import Path; p = subprocess.Popen(['sleep', '1000']);"
        "Path(sys.argv[1]).write_text(str(p.pid)); time.sleep(1000)"
    )
    ended = watch([sys.executable, "-c", code, str(tmp_path / "pid")], folder=tmp_path / "w", start_s=2.0, restarts=0)
    assert ended.findings[0].said == "No rank has said anything since the start."
    time.sleep(0.2)
    pid = int((tmp_path / "pid").read_text())
    status = Path(f"/proc/{pid}/status")
    assert not status.exists() or "Z (zombie)" in status.read_text()


def test_a_beat_is_read_back_and_costs_next_to_nothing(tmp_path: Path) -> None:
    beat, guard = Beat(tmp_path, 3), Guard()
    guard.beat = beat
    start = time.thread_time()
    for step in range(2_000):
        beat(step)
    assert (time.thread_time() - start) / 2_000 < 50e-6
    guard.step(77, loss=1.0)
    (found,) = read(tmp_path)
    assert (found.rank, found.pid, found.step) == (3, os.getpid(), 77)
    assert abs(found.at - time.time()) < 60
    beat.close()
    assert Beat.of({}) is None


BEATS = """
import sys
from pathlib import Path
from tenon.training.watchdog import Beat

beat, step = Beat(Path(sys.argv[1]), 0), 0
while True:
    beat(step := step + 1)
"""


def test_a_beat_that_is_read_while_it_is_written_is_the_last_one_or_this_one(tmp_path: Path) -> None:
    """Half of one would be a silence since 1970, for which a healthy run is ended."""
    with subprocess.Popen([sys.executable, "-c", BEATS, str(tmp_path)]) as process:
        try:
            began, seen, last = time.time(), 0, -1
            while seen < 30_000 and time.time() < began + 60:
                for one in read(tmp_path):
                    assert one.pid == process.pid
                    assert one.at > began - 60
                    assert one.step >= last
                    last, seen = one.step, seen + 1
        finally:
            process.kill()
    assert seen == 30_000


def test_ranks_in_different_collectives_are_told_apart() -> None:
    def stack(name: str, line: int) -> str:
        return (
            "Thread 0x01 (most recent call first):\n"
            f'  File "/x/site-packages/torch/distributed/distributed_c10d.py", line 9 in {name}\n'
            '  File "/x/site-packages/torch/distributed/c10d_logger.py", line 81 in wrapper\n'
            f'  File "/home/me/train.py", line {line} in step\n'
            '  File "/home/me/train.py", line 90 in <module>\n'
        )

    ranks = [
        Rank(rank=0, pid=1, at=0.0, step=5, stack=stack("all_reduce", 10)),
        Rank(rank=1, pid=2, at=1.0, step=5, stack=stack("broadcast", 20)),
        Rank(rank=2, pid=3, at=1.0, step=5, stack=""),
    ]
    assert ranks[1].collective == "broadcast" and ranks[1].place == "step (train.py:20)"
    assert "different collectives" in hang(ranks[:2], 60.0).said
    assert "Rank 2 never reached all_reduce or broadcast, in which ranks 0, 1 wait." in hang(ranks, 60.0).said


def test_a_watch_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"at watchdog\.watch"):
        watch([], folder=tmp_path)

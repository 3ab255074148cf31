"""SIGKILL at random moments, at 10,000 points a second: at most the last second is lost, and there is no hole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np

from tenon.config import Prices
from tenon.limits import TrackLimits
from tenon.store import Store
from tenon.training import track
from tenon.training.tally import Tally, curves_tally
from tenon.training.track import Run

RATE = 10_000  # points a second
LOST_S = 1.0

# Logs one point at a time, says every 100 points how far it is and when, and keeps to the rate.
LOOP = """
    import sys, time
    from pathlib import Path
    from tenon.store import Store
    from tenon.training.track import Run

    run = Run.start(Store.open(Path(sys.argv[1])), "r", "m")
    began = time.perf_counter()
    step = 0
    while True:
        for _ in range(100):
            run.log(step, loss=float(step))
            step += 1
        sys.stdout.write(f"{step} {time.time()}\\n")
        sys.stdout.flush()
        ahead = began + step / RATE - time.perf_counter()
        if ahead > 0:
            time.sleep(ahead)
"""


def test_killed_at_any_moment_at_most_the_last_second_is_lost(quick_disk: Path) -> None:
    chance = random.Random(20261121)
    code = textwrap.dedent(LOOP).replace("RATE", str(RATE))
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for trial in range(4):
        folder = quick_disk / str(trial)
        folder.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, env=environ
        )
        assert process.stdout is not None
        said = [process.stdout.readline()]
        until = time.monotonic() + chance.uniform(1.1, 2.3)
        while time.monotonic() < until:
            said.append(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        killed = time.time()
        rest, _ = process.communicate()
        lines = [line.split() for line in [*said, *rest.splitlines()] if len(line.split()) == 2]
        surely = max((int(step) for step, at in lines if float(at) < killed - LOST_S), default=0)
        logged = max(int(step) for step, _ in lines)
        with Store.open(folder) as store:
            steps, values = track.curves(store, "r")["loss"]
        assert logged >= RATE // 4, "the machine was too slow for this test to mean anything"
        assert len(steps) >= surely, (trial, len(steps), surely, logged)
        assert steps.tolist() == list(range(len(steps))), "without a hole"
        assert np.array_equal(steps.astype(float), values)


# ── what metrics came to ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_finished_run_says_what_each_metric_came_to(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store, Run.start(store, "r", "m", limits=TrackLimits(flush_s=0.01)) as run:
        for step in range(50):
            run.log(step, loss=1.0 / (step + 1), acc=float("nan") if step == 49 else 0.5)
            if step == 20:
                run.flush()
        run.log_many("loss", [60], [7.0])
        assert "final" not in run.body, "nothing is final while it runs"
        read = curves_tally(run.metrics())
    with Store.open(tmp_path) as store:
        final = track.load(store, "r")["final"]
        assert final == read == curves_tally(track.curves(store, "r"))
    assert final["loss"] == {"step": 60, "last": 7.0, "min": 0.02, "max": 7.0, "points": 51, "not_finite": 0}
    assert final["acc"] == {"step": 49, "last": None, "min": 0.5, "max": 0.5, "points": 50, "not_finite": 1}


def test_counts_do_not_depend_on_how_calls_were_grouped() -> None:
    rng = np.random.default_rng(2)
    steps, values = np.arange(1000), rng.normal(size=(1000, 3))
    values[rng.random(values.shape) < 0.1] = np.inf
    whole, parts = Tally(), Tally()
    whole.add(["a", "b", "c"], steps, values)
    for start in range(0, 1000, 7):
        one = slice(start, start + 7)
        parts.add(["c", "a"], steps[one], values[one][:, [2, 0]])
        parts.add(["b"], steps[one], values[one][:, [1]])
    assert whole.to_dict() == parts.to_dict()
    assert list(whole.to_dict(limit=2)) == ["a", "b"]
    empty = Tally()
    empty.add(["a"], steps[:0], values[:0, :1])
    assert empty.to_dict() == {}


# ── code ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_code_of_the_project_is_kept_and_no_more(tmp_path: Path) -> None:
    for name in ("project.py", "src/net.py", ".hidden/a.py", "venv/lib.py", "a/b/c/d/e/deep.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n", "utf-8")
    (tmp_path / "venv" / "pyvenv.cfg").write_text("", "utf-8")
    (tmp_path / "large.py").write_text("#" * 5_000, "utf-8")
    with Store.open(tmp_path) as store:
        Run.start(store, "r", "m", limits=TrackLimits(code_bytes=4_000)).finish()
        Run.start(store, "none", "m", limits=TrackLimits(code_bytes=0)).finish()
        record = track.load(store, "r")
        assert set(record["code"]) == {"project.py", "src/net.py"} and record["code_left_out"] == 1
        assert store.blobs.read(record["code"]["src/net.py"]) == b"# src/net.py\n"
        assert track.load(store, "none")["code"] == {}


# ── energy ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_energy_is_kept_with_how_it_is_known_and_charged_once(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        Run.start(store, "r", "m", prices=Prices(watts_per_core=25.0), charge=False).finish()
        Run.start(store, "paid", "m", prices=Prices(usd_per_core_hour=0.0)).finish()
        energy = track.load(store, "r")["energy"]
        assert energy["source"].startswith("RAPL (") or energy["source"] == "estimate: core seconds x 25 W"
        assert energy["kwh"] >= 0.0 and store.entries("r") == []
        (charged,) = store.entries("paid", kind="energy")
        assert charged.quantity == track.load(store, "paid")["energy"]["kwh"]
        assert charged.usd == charged.quantity * Prices().usd_per_kwh

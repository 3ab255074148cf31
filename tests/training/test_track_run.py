"""Tracking: a step never waits, nothing logged is lost, what is dropped is told, and a run can always be read."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenon.config import Prices
from tenon.errors import BudgetError, CorruptError, MissingError, StoreError, TenonError, TrainingError, UsageError
from tenon.finding import Finding
from tenon.limits import StoreLimits, TrackLimits
from tenon.store import Store
from tenon.training import track
from tenon.training.packing import unpack
from tenon.training.track import Run

from ..waiting import eventually

OFTEN = TrackLimits(flush_s=0.01)
SELDOM = TrackLimits(flush_s=3600.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path) as opened:
        yield opened


def lists(found: track.Curves) -> dict[str, tuple[list[int], list[float]]]:
    return {name: (steps.tolist(), values.tolist()) for name, (steps, values) in found.items()}


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


# ── what goes in comes out ───────────────────────────────────────────────────────────────────────────────────────────

names = st.sampled_from(["loss", "accuracy", "lr", "ненужный"])
points = st.tuples(st.integers(-(2**40), 2**40), st.dictionaries(names, st.floats() | st.integers(-5, 5), max_size=3))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(st.tuples(points, st.booleans()), max_size=30))
def test_every_point_comes_back_in_its_order(
    store: Store, calls: list[tuple[tuple[int, dict[str, float]], bool]]
) -> None:
    expected: dict[str, tuple[list[int], list[float]]] = {}
    run = Run.start(store, "r", "m", limits=SELDOM)
    for (step, metrics), flush in calls:
        run.log(step, **metrics)
        for name, value in metrics.items():
            steps, values = expected.setdefault(name, ([], []))
            steps.append(step)
            values.append(float(value))
        if flush:
            run.flush()
    run.finish()
    found = lists(track.curves(store, "r"))
    assert set(found) == set(expected)
    for name, (steps, values) in expected.items():
        # Calls with different sets of metrics are kept apart within one flush; each metric's points are all there.
        assert sorted(zip(found[name][0], map(repr, found[name][1]), strict=True)) == sorted(
            zip(steps, map(repr, values), strict=True)
        )


def test_a_loop_that_logs_the_same_metrics_reads_back_in_order(store: Store) -> None:
    with Run.start(store, "r", "m", limits=OFTEN) as run:
        for step in range(5000):
            run.log(step, loss=1 / (step + 1), lr=0.1)
        steps, values = run.metrics()["loss"]
        assert steps.tolist() == list(range(5000))
        assert values.tolist() == [1 / (step + 1) for step in range(5000)]
    assert track.curves(store, "r")["lr"][1].sum() == pytest.approx(500.0)


def test_whole_columns_are_logged_at_once_and_copied(store: Store) -> None:
    steps, values = np.arange(300_000), np.random.default_rng(1).normal(size=300_000)
    with Run.start(store, "r", "m") as run:
        run.log_many("grad", steps, values)
        kept = values.copy()
        values[:] = 0.0
        run.log_many("grad", [300_000], [7.0])
        run.log_many("grad", [], [])
    found_steps, found = track.curves(store, "r")["grad"]
    assert np.array_equal(found[:-1], kept) and found[-1] == 7.0
    assert np.array_equal(found_steps, np.arange(300_001))


def test_what_is_no_finite_number_is_kept_as_it_is(store: Store) -> None:
    with Run.start(store, "r", "m") as run:
        run.log(1, loss=math.nan)
        run.log(2, loss=math.inf)
    values = track.curves(store, "r")["loss"][1]
    assert math.isnan(values[0]) and values[1] == math.inf


def test_numbers_of_other_libraries_are_taken_and_read_at_once(store: Store) -> None:
    total = np.zeros(())
    with Run.start(store, "r", "m", limits=SELDOM) as run:
        for step in range(3):
            total += 1.0
            run.log(np.int64(step), total=total, f32=np.float32(0.5), whole=3)  # type: ignore[arg-type]
    found = lists(track.curves(store, "r"))
    assert found["total"] == ([0, 1, 2], [1.0, 2.0, 3.0]), "not three times what it became"
    assert found["f32"][1] == [0.5] * 3
    assert found["whole"][1] == [3.0] * 3


def test_several_threads_may_log(store: Store) -> None:
    with Run.start(store, "r", "m", limits=OFTEN) as run:

        def work(name: str) -> None:
            for step in range(2000):
                run.log(step, **{name: float(step)})

        threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = track.curves(store, "r")
    assert all(found[f"t{i}"][0].tolist() == list(range(2000)) for i in range(4))


def test_curves_can_be_drawn_against_time(store: Store) -> None:
    now = [100.0]
    run = Run.start(store, "r", "m", clock=lambda: now[0], limits=SELDOM)
    for step in range(3):
        now[0] += 10.0
        run.log(step, loss=float(step))
    run.finish()
    times, values = track.curves(store, "r", by="time")["loss"]
    assert (times.tolist(), values.tolist()) == ([110.0, 120.0, 130.0], [0.0, 1.0, 2.0])


@pytest.mark.parametrize("value", ["high", None, [1.0, 2.0], 1j, 10**400])
def test_what_is_no_number_is_refused_with_the_metric_s_name(store: Store, value: Any) -> None:
    with Run.start(store, "r", "m") as run:
        with pytest.raises(
            UsageError, match=r"expected a number, got .* - at run/r: loss; run.param keeps other values"
        ):
            run.log(1, loss=value)
        with pytest.raises(UsageError, match=r"run/r: loss"):
            run.log_many("loss", [1], [value] if value != [1.0, 2.0] else value)
        with pytest.raises(UsageError, match=r"run/r: loss"):
            run.log_many("loss", [math.nan if value is None else 0.5], [1.0])


@pytest.mark.parametrize("step", [1.5, "one", None, 2**63, math.nan])
def test_a_step_is_a_whole_number(store: Store, step: Any) -> None:
    with Run.start(store, "r", "m") as run, pytest.raises(UsageError, match="expected a step that is a whole number"):
        run.log(step, loss=1.0)


# ── the record ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_record_says_what_the_run_was_made_with(store: Store, tmp_path: Path) -> None:
    with Run.start(store, "3f2a91c07d5e", "late", trainer="lightgbm", seed=7, params={"leaves": 31}) as run:
        assert track.load(store, "3f2a91c07d5e")["status"] == "running"
        run.param(rate=0.1)
        run.update(metrics={"test": {"roc_auc": {"value": 0.7, "low": 0.6, "high": 0.8}}})
        digest = run.artifact("notes", b"what I saw")
        file = tmp_path / "plot.txt"
        file.write_text("a picture")
        run.artifact("plot", file)
        with pytest.raises(UsageError, match=r"got 'plot\.png' - at run/.*: plot; Path\(\.\.\.\) keeps a file"):
            run.artifact("plot", "plot.png")  # type: ignore[arg-type]
    record = track.load(store, "3f2a91c07d5e")
    assert record == run.body
    assert (record["status"], record["model"], record["trainer"], record["seed"]) == ("done", "late", "lightgbm", 7)
    assert record["params"] == {"leaves": 31, "rate": 0.1}
    assert record["metrics"]["test"]["roc_auc"]["value"] == 0.7
    assert store.blobs.read(record["artifacts"]["notes"]) == b"what I saw"
    assert set(record["artifacts"]) == {"notes", "plot"} and digest == record["artifacts"]["notes"]
    assert record["packages"]["numpy"] == np.__version__
    assert record["python"].count(".") == 2
    assert record["hardware"]["cores"] >= 1 and record["hardware"]["memory_bytes"] > 0
    assert record["git"] == {}, "no repository is no error"
    assert record["seconds"] > 0 and record["cpu_s"] >= 0 and record["peak_bytes"] > 0
    assert "usd" not in record, "nothing is charged unless prices are given"


def test_with_prices_finishing_charges_what_was_used(store: Store) -> None:
    with Run.start(store, "r", "m", prices=Prices()) as run:
        run.log(1, loss=1.0)
    charged = store.entries("r")
    assert {entry.kind for entry in charged} == {"compute", "memory", "energy"}
    assert track.load(store, "r")["usd"] == pytest.approx(sum(entry.usd for entry in charged))


def test_the_state_of_the_repository_is_kept(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q", "-b", "trunk")
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-q", "-m", "first")
    with Store.open(tmp_path) as store:
        Run.start(store, "clean", "m").finish()
        (tmp_path / "a.py").write_text("2")
        Run.start(store, "dirty", "m").finish()
        clean, dirty = track.load(store, "clean")["git"], track.load(store, "dirty")["git"]
    assert clean == {"commit": git("rev-parse", "HEAD"), "branch": "trunk", "dirty": False, "changed": []}
    assert (dirty["dirty"], dirty["changed"]) == (True, ["a.py"])


def test_params_and_findings_reach_the_store_while_the_run_goes_on(store: Store) -> None:
    run = Run.start(store, "r", "m", limits=OFTEN)
    run.param(rate=0.1)
    run.finding(Finding(code="training/flat", severity="info", place="run/r", said="nothing more to gain"))
    assert eventually(lambda: track.load(store, "r")["params"] == {"rate": 0.1})
    assert track.load(store, "r")["findings"][0]["said"] == "nothing more to gain"
    assert track.load(store, "r")["status"] == "running"
    for poison in (object(), lambda x: x, "\udcff"):  # refused where it is given, or nothing else could be written
        with pytest.raises(UsageError, match=r"expected plain JSON data, got .* - at run/r: params"):
            run.param(rate=0.2, model=poison)
    with pytest.raises(UsageError, match="got 'object is not JSON' - at run/r; give dict, list, text, numbers"):
        run.update(model=object())
    run.finish("stopped", reason="enough")
    run.finish("done")
    assert track.load(store, "r")["params"] == {"rate": 0.1}
    assert (track.load(store, "r")["status"], track.load(store, "r")["reason"]) == ("stopped", "enough")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("bad"), "failed"),
        (FileNotFoundError("no file \udcff"), "failed"),
        (TrainingError("bad"), "failed"),
        (BudgetError("bad"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_an_error_ends_the_run_with_its_traceback(store: Store, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), Run.start(store, "r", "m") as run:
        run.log(1, loss=1.0)
        raise error
    record = track.load(store, "r")
    assert (record["status"], record["error"]["type"]) == (status, type(error).__name__)
    assert "test_an_error_ends_the_run" in record["error"]["traceback"]
    assert lists(track.curves(store, "r")) == {"loss": ([1], [1.0])}


def test_starting_a_run_again_begins_with_a_clean_slate(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), Run.start(store, "r", "m") as run:
        run.log(1, loss=1.0)
        _ = 1 / 0
    with Run.start(store, "r", "m") as run:
        run.log(1, loss=2.0)
    assert lists(track.curves(store, "r")) == {"loss": ([1], [2.0])}
    assert "error" not in track.load(store, "r")


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 31), st.booleans(), st.booleans())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_that_goes_on_keeps_what_it_had_logged_and_counts_it(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], at: int, flushed: bool, again: bool
) -> None:
    with Store.open(tmp_path_factory.mktemp("store")) as store:
        with Run.start(store, "r", "m", limits=OFTEN) as run:
            for place, step in enumerate(steps):
                run.log(step, loss=float(place), **({"rate": 0.1} if place % 3 else {}))
                if flushed and place % 7 == 0:
                    run.flush()
        with Run.start(store, "r", "m") as run:
            assert track.curves(store, "r") == {}
            if again:
                run.log(0, rate=0.5)
            run.resumed(at)
            assert len(track.curves(store, "r").get("loss", ([],))[0]) == sum(step < at for step in steps)
            run.log(at, loss=-1.0)
        first = [(step, float(place)) for place, step in enumerate(steps) if step < at]
        found = lists(track.curves(store, "r"))
        assert sorted(zip(*found["loss"], strict=True)) == sorted([*first, (at, -1.0)])
        rates = 1 if again else sum(1 for place, step in enumerate(steps) if place % 3 and step < at)
        final = track.load(store, "r")["final"]
        assert (final["loss"]["points"], final.get("rate", {}).get("points", 0)) == (len(first) + 1, rates)
        assert (final["loss"]["last"], final["loss"]["min"]) == (-1.0, -1.0)


def test_two_may_not_work_on_one_run(store: Store) -> None:
    run = Run.start(store, "r", "m")
    with pytest.raises(
        TrainingError, match=rf"a run that nobody else works on, got process {os.getpid()} still at work"
    ):
        Run.start(store, "r", "m")
    run.finish()
    Run.start(store, "r", "m").finish()


# ── never waiting, never silent ──────────────────────────────────────────────────────────────────────────────────────


def test_a_step_does_not_wait_while_the_store_is_busy(store: Store) -> None:
    run = Run.start(store, "r", "m", limits=OFTEN)
    with Store.open(store.root) as other, other.atomic():
        other.put("k", "a", {})
        time.sleep(0.05)  # the thread that writes is waiting for its turn now
        start = time.perf_counter()
        for step in range(1000):
            run.log(step, loss=0.5)
            run.param(step=step)
        assert time.perf_counter() - start < 1.0
        assert track.curves(store, "r") == {}
    run.finish()
    assert len(track.curves(store, "r")["loss"][0]) == 1000


def test_what_does_not_fit_is_dropped_counted_and_told(store: Store) -> None:
    run = Run.start(store, "r", "m", limits=TrackLimits(flush_s=3600.0, buffered_points=100))
    for step in range(80):
        run.log(step, a=1.0, b=2.0)
    run.log_many("c", range(1000), range(1000))
    run.finish()
    assert len(track.curves(store, "r")["a"][0]) == 50
    (finding,) = track.load(store, "r")["findings"]
    assert (finding["code"], finding["severity"]) == ("track/dropped", "warning")
    assert finding["said"] == (
        "1,060 of 1,160 points were dropped between steps 50 and 999: the buffer was full (100 points)."
    )
    assert finding["numbers"]["dropped"] == 1060.0


def test_after_a_flush_there_is_room_again(store: Store) -> None:
    run = Run.start(store, "r", "m", limits=TrackLimits(flush_s=3600.0, buffered_points=100))
    for step in range(1000):
        run.log(step, a=1.0)
        if step % 100 == 99:
            run.flush()
    run.finish()
    assert len(track.curves(store, "r")["a"][0]) == 1000
    assert track.load(store, "r")["findings"] == []


def test_a_metric_for_every_step_runs_into_a_bound_that_is_told(store: Store) -> None:
    run = Run.start(store, "r", "m", limits=TrackLimits(flush_s=3600.0, metric_names=10))
    for step in range(30):
        run.log(step, **{"loss": 1.0, f"loss_{step}": 1.0})
    run.log_many("column", [1, 2], [1.0, 2.0])
    run.finish()
    found = track.curves(store, "r")
    assert len(found) == 10 and len(found["loss"][0]) == 30
    (finding,) = track.load(store, "r")["findings"]
    assert finding["said"].startswith("23 of 62 points were dropped between steps 9 and 2: there were too many names")
    assert run._journal._held > 2**60, "nothing is held any more: the run takes no more points"


def test_a_metric_whose_name_is_no_text_costs_the_others_nothing(store: Store) -> None:
    broken = b"class-\xff".decode("utf-8", "surrogateescape")  # as a file's name may be
    with Run.start(store, "r", "m") as run:
        run.log(0, **{"loss": 1.0, broken: 2.0})
        run.log_many(broken, [1], [1.0])
    assert lists(track.curves(store, "r")) == {"loss": ([0], [1.0])}
    (finding,) = track.load(store, "r")["findings"]
    assert finding["said"].startswith("2 of 3 points were dropped between steps 0 and 1: their names are no text")


def test_a_run_that_has_ended_takes_no_more(store: Store) -> None:
    run = Run.start(store, "r", "m")
    run.finish()
    with pytest.raises(UsageError, match="expected a run that goes on, got one that has ended - at run/r"):
        run.log(1, loss=1.0)
    with pytest.raises(UsageError, match="expected a run that goes on"):
        run.log_many("loss", [1], [1.0])


def test_a_forked_process_is_told_that_it_may_not_log(tmp_path: Path) -> None:
    code = """
        import os, sys
        from pathlib import Path
        from tenon.errors import UsageError
        from tenon.store import Store
        from tenon.training.track import Run

        store = Store.open(Path(sys.argv[1]))
        run = Run.start(store, "r", "m")
        run.log(1, loss=1.0)
        child = os.fork()
        if child == 0:
            try:
                run.log(2, loss=2.0)
            except UsageError as error:
                os._exit(7 if "the process that began the run" in str(error) else 1)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        run.log(3, loss=3.0)
        run.finish()
    """
    process = python(code, str(tmp_path))
    assert process.communicate(timeout=60)[1] == ""
    with Store.open(tmp_path) as store:
        assert lists(track.curves(store, "r")) == {"loss": ([1, 3], [1.0, 3.0])}


# ── what it survives ─────────────────────────────────────────────────────────────────────────────────────────────────

LOOP = """
    import sys, time
    from pathlib import Path
    from tenon.store import Store
    from tenon.training.track import Run

    run = Run.start(Store.open(Path(sys.argv[1])), "r", "m")
    step = 0
    while True:
        run.log(step, loss=float(step))
        step += 1
        if step % 20 == 0:
            sys.stdout.write(f"{step} {time.time()}\\n")
            sys.stdout.flush()
            time.sleep(0.001)
"""


def test_after_sigkill_everything_until_a_second_before_is_there(quick_disk: Path) -> None:
    process = python(LOOP, str(quick_disk))
    assert process.stdout is not None
    said = [process.stdout.readline()]
    deadline = time.monotonic() + 1.6
    while time.monotonic() < deadline:
        said.append(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    killed = time.time()
    rest, _ = process.communicate()
    lines = [line.split() for line in [*said, *rest.splitlines()] if len(line.split()) == 2]
    surely = max(int(step) for step, at in lines if float(at) < killed - 1.0)
    with Store.open(quick_disk) as store:
        steps, values = track.curves(store, "r")["loss"]
        assert len(steps) >= surely > 0
        assert steps.tolist() == list(range(len(steps))), "without a hole"
        assert np.array_equal(steps.astype(float), values)
        assert track.load(store, "r")["status"] == "running"
        (finding,) = track.reap(store)
        assert (finding.code, finding.place) == ("track/interrupted", "run/r")
        assert str(process.pid) in finding.said
        record = track.load(store, "r")
        assert (record["status"], record["findings"][-1]["code"]) == ("stopped", "track/interrupted")
        assert track.reap(store) == []
        Run.start(store, "r", "m").finish()


def test_a_process_that_forgets_to_finish_loses_nothing(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from tenon.limits import TrackLimits
        from tenon.store import Store
        from tenon.training.track import Run

        run = Run.start(Store.open(Path(sys.argv[1])), "r", "m", limits=TrackLimits(flush_s=3600.0))
        for step in range(100):
            run.log(step, loss=1.0)
    """
    process = python(code, str(tmp_path))
    assert process.communicate(timeout=60)[1] == ""
    with Store.open(tmp_path) as store:
        assert len(track.curves(store, "r")["loss"][0]) == 100
        assert [finding.code for finding in track.reap(store)] == ["track/interrupted"]


def test_a_run_that_nobody_holds_any_more_writes_what_it_has(store: Store) -> None:
    run = Run.start(store, "r", "m", limits=SELDOM)
    run.log(1, loss=1.0)
    del run
    assert lists(track.curves(store, "r")) == {"loss": ([1], [1.0])}


def test_a_run_of_this_process_or_of_another_machine_is_not_reaped(store: Store) -> None:
    run = Run.start(store, "alive", "m")
    Run.start(store, "done", "m").finish()
    elsewhere = {**run.body, "id": "elsewhere", "process": {"pid": 1, "host": "another", "began": 0.0}}
    store.put("run", "elsewhere", elsewhere)
    assert track.reap(store) == []
    run.finish()


def test_a_disk_that_refuses_for_a_while_costs_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path, limits=StoreLimits(busy_s=0.05)) as store:
        run = Run.start(store, "r", "m", limits=OFTEN)
        with Store.open(tmp_path) as other, other.atomic():
            other.put("k", "a", {})
            for step in range(200):
                run.log(step, loss=1.0)
                time.sleep(0.001)
            with pytest.raises(StoreError, match="a turn to write"):
                run.flush()
            with pytest.raises(StoreError, match="a turn to write"):
                run.finish()
        run.finish()
        assert track.curves(store, "r")["loss"][0].tolist() == list(range(200))
        assert track.load(store, "r")["status"] == "done"


# ── folding, reading ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_finished_run_is_one_batch_however_often_it_was_flushed(store: Store) -> None:
    run = Run.start(store, "r", "m", limits=SELDOM)
    for step in range(200):
        run.log(step, loss=float(step))
        if step % 3 == 0:
            run.log(step, other=1.0)
        run.flush()
    assert len(list(store.read("metrics", "r"))) == 200
    before = lists(track.curves(store, "r"))
    run.finish()
    (batch,) = store.read("metrics", "r")
    assert batch.rows == 267
    assert lists(track.curves(store, "r")) == before
    assert [table["names"] for table in unpack(batch.body, "r")] == [["loss"], ["other"]]


def test_runs_are_listed_newest_first_and_found_by_the_beginning_of_their_id(store: Store, tmp_path: Path) -> None:
    for at, (id, model) in enumerate([("aaa111", "late"), ("aab222", "late"), ("ccc333", "other")]):
        Run.start(store, id, model, clock=lambda at=at: 1000.0 + at).finish()  # type: ignore[misc]
    assert [record["id"] for record in track.runs(store)] == ["ccc333", "aab222", "aaa111"]
    assert [record["id"] for record in track.runs(store, model="late", limit=1)] == ["aab222"]
    assert track.load(store, "aaa")["id"] == "aaa111"
    assert track.load(store, "aaa111")["id"] == "aaa111"
    with pytest.raises(UsageError, match=r"'aa', which 2 runs share; give more of it: aab222, aaa111"):
        track.load(store, "aa")
    with pytest.raises(MissingError, match=r"expected a run, got 'aaa112' - at .*; did you mean 'aaa111'\?"):
        track.load(store, "aaa112")
    with Store.open(tmp_path / "empty") as empty, pytest.raises(MissingError, match="none is kept here yet"):
        track.load(empty, "aaa")
    for nothing in ("", "zzz"):
        with pytest.raises(TenonError):
            track.load(store, nothing)
    assert track.curves(store, "zzz") == {}


def test_a_batch_that_is_not_one_is_told_with_its_place(store: Store) -> None:
    store.append("metrics", "r", b"not a batch", rows=1, first=0.0, last=0.0)
    with pytest.raises(CorruptError, match=r"expected a batch of metrics, got .* - at metrics/r/1"):
        track.curves(store, "r")


def test_a_batch_of_a_later_format_is_refused() -> None:
    with pytest.raises(StoreError, match="metrics in format 1, got format 2"):
        unpack(b"\x82\xa1v\x02\xa6tables\x90", "m")

"""The engine: results in order, errors with their words, workers that die, and what the process may really use."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon import engine
from tenon.config import EngineConfig
from tenon.errors import ConfigError, InputError, TenonError, UsageError
from tenon.limits import EngineLimits

from .jobs import PLACE
from .waiting import eventually


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that workers can import."""
    monkeypatch.syspath_prepend(str(PLACE))
    return "jobs"


@pytest.fixture(params=[1, 2], ids=["here", "spread"])
def workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


# ── the same call, wherever it runs ──────────────────────────────────────────────────────────────────────────────────


def test_results_come_in_the_order_of_the_jobs(jobs: str, workers: int) -> None:
    with engine.Local(workers) as local:
        found = list(local.map(f"{jobs}:slow_first", [{"n": n} for n in range(20)]))
        assert [result["n"] for result in found] == list(range(20))
        again = list(local.map(f"{jobs}:double", [{"n": n} for n in range(20)]))
        assert [result["n"] for result in again] == [n * 2 for n in range(20)]
        pids = {result["pid"] for result in again}
        assert (os.getpid() in pids) == (workers == 1)
        assert len(pids) <= workers
        assert list(local.map(f"{jobs}:double", [])) == []


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def local() -> Iterator[engine.Local]:
    with engine.Local(2) as opened:
        yield opened


@settings(max_examples=25, deadline=None)
@given(bodies=st.lists(st.dictionaries(texts, plain, max_size=3), min_size=2, max_size=4))
def test_plain_data_crosses_unchanged(local: engine.Local, bodies: list[dict[str, Any]]) -> None:
    assert list(local.map("copy:deepcopy", bodies)) == bodies


def test_progress_is_told_job_by_job(jobs: str, workers: int) -> None:
    told: list[tuple[float, float, str]] = []
    with engine.Local(workers) as local:
        list(local.map(f"{jobs}:double", [{"n": n} for n in range(3)], progress=lambda *what: told.append(what)))
    assert told == [(n + 1, 3, f"{jobs}:double") for n in range(3)]


def test_what_a_job_prints_does_not_disturb_the_answers(jobs: str, capfd: pytest.CaptureFixture[str]) -> None:
    with engine.Local(2) as local:
        found = list(local.map(f"{jobs}:chatter", [{}, {}, {}]))
    assert found == [{"read": ""}] * 3
    said = capfd.readouterr()
    assert (said.out, said.err.count("and so does this"), said.err.count("this goes to")) == ("", 3, 3)


def test_jobs_run_ahead_of_the_taker_by_a_bounded_number(jobs: str, tmp_path: Path) -> None:
    folder = tmp_path / "begun"
    folder.mkdir()
    with engine.Local(2, limits=EngineLimits(ahead=2)) as local:
        taking = local.map(f"{jobs}:begun", [{"n": n, "folder": str(folder)} for n in range(50)])
        next(taking)
        time.sleep(0.3)
        assert len(list(folder.iterdir())) <= 1 + 2 * 2
        assert len(list(taking)) == 49


def test_a_taker_who_stops_early_ends_the_work(jobs: str, tmp_path: Path) -> None:
    folder = tmp_path / "begun"
    folder.mkdir()
    with engine.Local(2) as local:
        taking = local.map(f"{jobs}:begun", [{"n": n, "folder": str(folder), "seconds": n * 30} for n in range(9)])
        assert next(taking)["n"] == 0
        start = time.monotonic()
        del taking
        assert time.monotonic() - start < 5.0
        assert [r["n"] for r in local.map(f"{jobs}:double", [{"n": 1}, {"n": 2}])] == [2, 4], "and the engine goes on"


def test_each_worker_takes_its_share_of_the_cores(jobs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with engine.Local(2) as local:
        shares = {r["threads"] for r in local.map(f"{jobs}:threads", [{}, {}])}
    assert shares == {str(max(engine.cores() // 2, 1))}


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_error_of_tenon_keeps_its_class_and_words(jobs: str, workers: int) -> None:
    with engine.Local(workers) as local:
        taking = local.map(f"{jobs}:refuse", [{"n": n} for n in range(5)])
        assert [next(taking)["n"], next(taking)["n"]] == [0, 1], "what came before it is had"
        with pytest.raises(InputError) as caught:
            next(taking)
        assert str(caught.value) == "expected a small number, got 2 - at here"
        assert "in refuse" in caught.value.__notes__[0], "with the traceback of the worker"


def test_any_other_error_is_named_with_its_job(jobs: str, workers: int) -> None:
    with engine.Local(workers) as local:
        said = rf"expected the job to end well, got ZeroDivisionError: division by zero - at {jobs}:break_down job 1"
        with pytest.raises(TenonError, match=said) as caught:
            list(local.map(f"{jobs}:break_down", [{"n": 1}, {"n": 0}]))
        assert "in break_down" in caught.value.__notes__[0]


def test_a_function_that_is_not_there_is_told(workers: int) -> None:
    with engine.Local(workers) as local:
        with pytest.raises(TenonError, match="ModuleNotFoundError: No module named 'nowhere'"):
            list(local.map("nowhere:f", [{}, {}]))
        with pytest.raises(TenonError, match=r"AttributeError: module 'tenon.errors' has no attribute 'f'"):
            list(local.map("tenon.errors:f", [{}, {}]))
        for name in ("no colon", ":f", "m:", "m:a.b"):
            with pytest.raises(UsageError, match="expected module:function"):
                local.map(name, [])


def test_only_plain_data_goes_in_and_comes_out(jobs: str, workers: int) -> None:
    with engine.Local(workers) as local:
        with pytest.raises(UsageError, match="expected a job of plain data"):
            list(local.map(f"{jobs}:double", [{"n": object()}, {}]))
        with pytest.raises(UsageError, match="expected a dict from the function, got list"):
            list(local.map(f"{jobs}:no_dict", [{}, {}]))


def test_jobs_and_results_have_a_bound(jobs: str, workers: int) -> None:
    with engine.Local(workers, limits=EngineLimits(message_bytes=10_000)) as local:
        with pytest.raises(UsageError, match=r"expected a job of at most 10,000 bytes, got .* give a path"):
            list(local.map(f"{jobs}:double", [{"n": "x" * 20_000}, {}]))
        with pytest.raises(UsageError, match=r"expected a result of at most 10,000 bytes, got .* write it to a file"):
            list(local.map(f"{jobs}:large", [{"n": 20_000}, {"n": 1}]))


def test_the_number_of_workers_is_checked() -> None:
    with pytest.raises(UsageError, match=r"0 workers \(as many as cores\) or more, got -1"):
        engine.Local(-1)
    assert engine.Local().workers == engine.cores()


# ── workers that die ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_whose_worker_died_is_tried_again(jobs: str, tmp_path: Path) -> None:
    with engine.Local(2) as local:
        every = [{"n": n, "mark": str(tmp_path / "mark")} for n in range(4)]
        assert [result["n"] for result in local.map(f"{jobs}:die_once", every)] == [0, 1, 2, 3]
    assert (tmp_path / "mark").exists()


def test_a_job_that_kills_every_worker_is_given_up_in_words(jobs: str) -> None:
    with engine.Local(2, limits=EngineLimits(retries=1)) as local:
        said = (
            rf"got 2 workers that died \(SIGKILL, as the kernel does .*\) - at {jobs}:die job 1; make the jobs smaller"
        )
        with pytest.raises(TenonError, match=said):
            list(local.map(f"{jobs}:die", [{"n": 0}, {"n": 1}]))
        assert len(list(local.map(f"{jobs}:double", [{"n": 1}, {"n": 2}]))) == 2, "and the engine goes on"


def test_a_worker_does_not_outlive_its_parent(jobs: str, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = f"""
        from tenon import engine
        list(engine.Local(2).map("{jobs}:pid_then_wait", [{{"file": {str(file)!r}}}, {{"file": {str(file)!r}}}]))
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=environment)
    assert eventually(lambda: file.exists() and bool(file.read_text()))
    parent.kill()
    parent.wait()
    worker = int(file.read_text())
    assert eventually(lambda: not alive(worker))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_configuration_chooses() -> None:
    with engine.open(EngineConfig(workers=3)) as local:
        assert isinstance(local, engine.Local) and local.workers == 3
    with pytest.raises(ConfigError, match=r"expected 'local' or 'ray', got 'slurm' - at engine.kind"):
        engine.open(EngineConfig(kind="slurm"))


def test_ray_that_is_not_installed_is_told_with_the_command() -> None:
    code = """
        import sys
        sys.modules["ray"] = None  # as if it were not installed
        from tenon import engine
        from tenon.config import EngineConfig
        from tenon.errors import MissingError
        try:
            engine.open(EngineConfig(kind="ray"))
        except MissingError as error:
            assert "pip install 'tenon[ray]'" in str(error), error
        else:
            raise SystemExit("no error")
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=False)
    assert done.returncode == 0


# ── what the process may use ─────────────────────────────────────────────────────────────────────────────────────────


def group(root: Path, lines: str, files: dict[str, str]) -> Path:
    """Lay out control group files as a kernel shows them."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(lines)
    for name, text in files.items():
        file = root / "sys" / "fs" / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


def test_a_container_s_quota_bounds_the_cores(tmp_path: Path) -> None:
    own = len(os.sched_getaffinity(0))
    assert engine.cores(tmp_path) == own, "no control groups"
    quota = group(tmp_path / "a", "0::/app/web\n", {"app/cpu.max": "100000 100000", "app/web/cpu.max": "max 100000"})
    assert engine.cores(quota) == 1, "a group above counts as well"
    half = group(tmp_path / "b", "0::/\n", {"cpu.max": "50000 100000"})
    assert engine.cores(half) == 1, "never less than one"
    wide = group(tmp_path / "c", "0::/\n", {"cpu.max": "99900000 100000"})
    assert engine.cores(wide) == own
    one = group(
        tmp_path / "d",
        "4:cpu,cpuacct:/box\n0::/\n",
        {"cpu,cpuacct/box/cpu.cfs_quota_us": "90000", "cpu,cpuacct/box/cpu.cfs_period_us": "100000"},
    )
    assert engine.cores(one) == 1, "the first version of control groups"
    free = group(tmp_path / "e", "1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"})
    assert engine.cores(free) == own


def test_a_container_s_limit_bounds_the_memory(tmp_path: Path) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert engine.memory_bytes(tmp_path) == machine
    two = group(tmp_path / "a", "0::/app\n", {"app/memory.max": "1000000", "memory.max": "max"})
    assert engine.memory_bytes(two) == 1_000_000
    one = group(
        tmp_path / "b",
        "4:memory:/box\n",
        {"memory/box/memory.limit_in_bytes": "2000000", "memory/memory.limit_in_bytes": "9223372036854771712"},
    )
    assert engine.memory_bytes(one) == 2_000_000


def test_the_address_space_bounds_the_memory() -> None:
    code = """
        import resource
        from tenon import engine
        resource.setrlimit(resource.RLIMIT_AS, (500_000_000, resource.RLIM_INFINITY))
        assert engine.memory_bytes() == 500_000_000
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=False).returncode == 0

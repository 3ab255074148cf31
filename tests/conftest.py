"""What tests of several rooms share: a quick disk; what takes long goes first; where skipping is a failure, it is one.

On a person's machine a test whose server or package is missing skips and says why. Where `TENON_NO_SKIPS` is set (CI
installs the servers) a skip fails the run, but for what no such machine has: a GPU, or a user who is not root.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenon import engine

# Threads of PyTorch and LightGBM that wait for each other would keep the cores busy that other tests need: each process
# of tests takes its share of the cores. Read when those are imported, here and in every process that a test begins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
SHARE = max(engine.cores() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), 1)
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, str(SHARE))


@pytest.fixture
def quick_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: what a kill leaves does not depend on the disk, only the waiting does."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="tenon-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# ── order ────────────────────────────────────────────────────────────────────────────────────────────────────────────

HERE = Path(__file__).parent
# The files that take longest, longest first: one that is begun last would be waited for by processes that have ended.
LONG = (
    "training/test_ray_train.py",
    "training/test_distributed.py",
    "examples/test_tinygpt_example.py",
    "training/test_memory_step.py",
    "ingest/test_ingest_fuzz.py",
    "training/test_fit_gate.py",
    "serving/lm/test_lm_engine.py",
    "store/test_store_survives.py",
    "serving/test_storm.py",
    "promises/test_docs.py",
    "training/test_track_run.py",
    "training/test_guard_watchdog.py",
    "training/test_guard_resume.py",
    "ingest/test_ingest_reading.py",
    "training/test_ranks_together.py",
    "flow/test_team_store.py",
    "promises/test_served_and_watched.py",
    "promises/test_killed_anywhere.py",
    "serving/test_fleet_of_processes.py",
    "test_engine.py",
    "ingest/test_ingest_kernel.py",
    "ingest/test_ingest_batch.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = {HERE / file: place for place, file in enumerate(LONG)}
    assert all(file.is_file() for file in first), first
    items.sort(key=lambda item: first.get(item.path, len(first)))


# ── skips ────────────────────────────────────────────────────────────────────────────────────────────────────────────

EXCUSED = ("needs a GPU", "root may look into every folder")
_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(words in reason for words in EXCUSED):
            _skipped.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _skipped and os.environ.get("TENON_NO_SKIPS"):
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped and os.environ.get("TENON_NO_SKIPS"):
        terminalreporter.section("skipped where nothing may skip")
        for line in _skipped:
            terminalreporter.line(line)

"""What tests of several rooms share: a quick disk; and where skipping is a failure, it is one.

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

"""What every test shares: where skipping is a failure, it is one.

On a person's machine a test whose server or package is missing skips and says why. Where `TENON_NO_SKIPS` is set (CI
installs the servers) a skip fails the run, but for what no such machine has: a GPU, or the optional PyTorch.
"""

from __future__ import annotations

import os

import pytest

EXCUSED = ("needs a GPU", "needs torch")
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

"""A short storm of hostile requests on raw sockets against the real server process: no 5xx, no traceback, no growth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

STORM = Path(__file__).parents[2] / "bench" / "storm.py"


def test_two_thousand_hostile_requests_are_answered_or_cut_and_never_5xx() -> None:
    command = [sys.executable, str(STORM), "--requests", "2000", "--clients", "48", "--seed", "20", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    told = json.loads(done.stdout)
    assert told["faults"] == []
    assert done.returncode == 0, done.stderr
    assert told["requests"] >= 2000 and len(told["kinds"]) == 14
    codes = {int(code) for code in told["statuses"]}
    assert {200, 400, 404, 405, 413, 422} <= codes and max(codes) < 500

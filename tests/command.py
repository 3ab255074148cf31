"""The real command, as a person or a script calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TENON = [sys.executable, "-m", "tenon"]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NO_COLOR": "1"}


def tenon(*args: str | Path, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, without colours, to its end; `more` are variables of its environment."""
    env = {**ENV, **more}
    return subprocess.run(
        [*TENON, *map(str, args)], capture_output=True, text=True, cwd=cwd, env=env, check=False, timeout=120
    )

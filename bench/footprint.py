"""Measure what installing tenon costs: distributions, megabytes, import and help time, in a fresh environment.

Runs `pip install` of this checkout into a new virtual environment (so it needs whatever pip needs), counts what came
with it, and times `import tenon` and `tenon --help` against an empty Python started the same way.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

ROOT = Path(__file__).parents[1]
REPEATS = 15


def installed(site: Path, names: set[str]) -> tuple[int, int]:
    """Return the bytes of the distributions' files, without and with Python's compiled caches."""
    plain = cached = 0
    for record in site.glob("*.dist-info/RECORD"):
        name = record.parent.name.split("-")[0].lower().replace("_", "-")
        if name not in names:
            continue
        for line in record.read_text("utf-8").splitlines():
            file = site / line.rsplit(",", 2)[0]
            if file.is_file():
                size = file.stat().st_size
                cached += size
                plain += 0 if file.suffix == ".pyc" else size
    return plain, cached


def milliseconds(command: list[str]) -> float:
    """Return the median time of a command, warmed once."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def main() -> None:
    """Install into a fresh environment and print the table."""
    measure.options(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="tenon-footprint-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = f"{folder}/bin/python"
        start = time.perf_counter()
        subprocess.run([python, "-m", "pip", "install", "--quiet", str(ROOT)], check=True)
        seconds = time.perf_counter() - start
        listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True)
        names = {row["name"].lower().replace("_", "-") for row in json.loads(listed.stdout)} - {"pip", "setuptools"}
        site = next(Path(folder).glob("lib/python*/site-packages"))
        plain, cached = installed(site, names)
        empty = milliseconds([python, "-c", ""])
        rows = [
            ["distributions", len(names), "30"],
            ["MB installed", f"{plain / 1e6:.0f}", "350"],
            ["MB installed, with compiled caches", f"{cached / 1e6:.0f} ({cached / 2**20:.0f} MiB)", ""],
            ["s to install", f"{seconds:.0f}", ""],
            ["ms `python -c ''`", f"{empty:.0f}", ""],
            ["ms `import tenon`, beyond that", f"{milliseconds([python, '-c', 'import tenon']) - empty:.0f}", "50"],
            ["ms `tenon --help`", f"{milliseconds([f'{folder}/bin/tenon', '--help']):.0f}", "150"],
        ]
    measure.show(
        measure.rows("Footprint of the core", ["what", "measured", "at most"], rows),
        measure.machine("polars", "onnxruntime"),
    )


if __name__ == "__main__":
    main()

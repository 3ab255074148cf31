"""Ingest beside DuckDB's COPY and Polars' sink_parquet, in turns: a clean file, and one with 5 % of its rows broken.

    python bench/ingest.py [--rows 1000000] [--clean] [--record]

The clean file is read by each in a process of its own, as its user would do it: `tenon ingest FILE`, which also
accounts for every byte, drafts a contract and prints a summary, DuckDB's COPY with zstd level 1 and as it comes
(snappy), Polars with zstd level 1. Beside the time stand processor time, memory at its height and the size written.

On the broken file all write Parquet with zstd level 1, and DuckDB is given the dialect, the types and where rows begin,
because without them it refuses the file; it stores its rejects. What each recovered, withheld and got wrong is held
against the truth that mess.py keeps. `--clean` leaves the broken file out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import measure
import mess
import polars as pl

from tenon.ingest import Job, ingest
from tenon.ingest.quick import keep_memory

TYPES = (*["BIGINT"] * 3, *["DOUBLE"] * 3, "TIMESTAMP", "DATE", *["VARCHAR"] * 4)
COPY = "(format parquet, compression zstd, compression_level 1)"


DUCKDB = (
    "import sys, duckdb; path, target, how = sys.argv[1:]\n"
    "with duckdb.connect() as connection:\n"
    "    connection.execute('set enable_progress_bar = false')\n"
    "    connection.execute(f\"copy (select * from read_csv('{path}')) to '{target}' {how}\")"
)
POLARS = (
    "import sys, polars; path, target = sys.argv[1:]\n"
    "polars.scan_csv(path, try_parse_dates=True).sink_parquet(target, compression='zstd', compression_level=1)"
)
TENON = "import sys; from tenon.cli import main; sys.exit(main())"


STARTER = (
    "import json, os, subprocess, sys\n"
    "for line in sys.stdin:\n"
    "    process = subprocess.Popen(json.loads(line), stdout=subprocess.DEVNULL)\n"
    "    _, status, used = os.wait4(process.pid, 0)\n"
    "    print(json.dumps([status, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]), flush=True)"
)


class Starter:
    """A small process that starts the candidates: a process begins with the peak of the one that started it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, command: list[str]) -> tuple[int, float, float]:
        """Run a command to its end; returns its status, its processor seconds and its peak in MB."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        status, cpu, peak = json.loads(self._process.stdout.readline())
        return status, cpu, peak


@dataclass(slots=True)
class Alone:
    """A candidate in a process of its own, and what it took: processor seconds and MB of memory, of each run."""

    code: str
    target: Path
    starter: Starter
    options: tuple[str, ...] = ()
    cpu: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        shutil.rmtree(self.target.parent, ignore_errors=True)
        self.target.parent.mkdir()
        command = [sys.executable, "-c", self.code, *self.options]
        status, cpu, peak = self.starter(command)
        assert status == 0, command
        self.cpu.append(cpu)
        self.peak.append(peak)

    def row(self, name: str) -> list[Any]:
        """Return a row of the table of what was taken and written."""
        cpu = sorted(self.cpu[1:])[len(self.cpu[1:]) // 2]
        return [name, f"{cpu:.2f}", f"{max(self.peak):.0f}", f"{self.target.stat().st_size / 1e6:.1f}"]


def alone(path: Path, folder: Path) -> dict[str, Alone]:
    """Return every candidate for the clean file."""
    targets = [folder / name / "mess.parquet" for name in ("default", "duckdb", "polars", "tenon")]
    given = (str(path), str(targets[0]))
    starter = Starter()
    return {
        "DuckDB COPY as it comes (snappy)": Alone(DUCKDB, targets[0], starter, (*given, "(format parquet)")),
        "DuckDB COPY, zstd level 1": Alone(DUCKDB, targets[1], starter, (given[0], str(targets[1]), COPY)),
        "Polars sink_parquet, zstd level 1": Alone(POLARS, targets[2], starter, (given[0], str(targets[2]))),
        "tenon ingest": Alone(TENON, targets[3], starter, ("ingest", given[0], "-o", str(targets[3].parent))),
    }


def with_duckdb(path: Path, target: Path, options: str = "") -> None:
    """Copy a CSV file to Parquet with DuckDB."""
    with duckdb.connect() as connection:
        connection.execute(f"copy (select * from read_csv('{path}'{options})) to '{target}' {COPY}")


def with_tenon(path: Path, folder: Path) -> Path:
    """Ingest a CSV file as the command does."""
    keep_memory()
    return ingest(Job(paths=(path,), out=folder, name="bench")).files[0]


def scored(name: str, truth: Path, loaded: Path) -> list[Any]:
    """Return a row of the table of what a loader made of the broken file."""
    score = mess.judge(truth, pl.read_parquet(loaded))
    return [name, f"{score.recovered_pct:.1f}", score.withheld, score.clean_lost, score.wrong_cells]


def main() -> None:
    """Measure and print."""
    parser = measure.options(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clean", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenon-bench-") as name:
        folder = Path(name)
        clean = mess.make(folder / "clean", args.rows, broken=0.0, framing=False)
        size = clean.path.stat().st_size / 1e6
        candidates = alone(clean.path, folder)
        quick = measure.turns(candidates, repeats=args.repeats)
        took = ["candidate", "processor s", "peak MB", "written MB"]
        parts = [
            measure.table(f"Clean CSV to Parquet, {size:.0f} MB, each in its own process", quick, work=size, unit="MB"),
            measure.rows("What it took", took, [one.row(name) for name, one in candidates.items()]),
        ]
        if not args.clean:
            parts += rough(folder, args.rows, args.repeats)
        measure.show(measure.machine("duckdb", "polars"), *parts)


def rough(folder: Path, rows: int, repeats: int) -> list[str]:
    """Measure the file with broken rows; returns its tables."""
    broken = mess.make(folder / "broken", rows, broken=0.05)
    columns = ", ".join(f"'{column}': '{type_}'" for column, type_ in zip(mess.NAMES, TYPES, strict=True))
    given = "store_rejects=true, strict_mode=false, auto_detect=false, skip=4, delim=',', quote='\"', escape='\"'"
    options = f", {given}, columns={{{columns}}}"
    duck, ours = folder / "duckdb.parquet", folder / "ours"
    size = broken.path.stat().st_size / 1e6
    seconds = measure.turns(
        {
            "DuckDB COPY, told the dialect": lambda: with_duckdb(broken.path, duck, options),
            "tenon ingest, told nothing": lambda: with_tenon(broken.path, ours),
        },
        repeats=repeats,
    )
    found = [scored("DuckDB", broken.truth, duck), scored("tenon", broken.truth, with_tenon(broken.path, ours))]
    header = ["loader", "recovered exactly %", "broken rows withheld", "clean rows lost", "wrong cells"]
    return [
        measure.table(f"The same with 5 % broken rows, {size:.0f} MB", seconds, work=size, unit="MB"),
        measure.rows("Broken rows against the truth", header, found),
    ]


if __name__ == "__main__":
    main()

"""Time candidates in turns and write down what was measured, with the commit and the versions that it was measured on.

Machines are noisy: candidates take turns (A B C A B C), the table gives medians and ratios to the first candidate, and
a spread above 25 % is said. `show` appends the tables to bench/RESULTS.md only when asked (`--record`). Peers are no
dependencies of ours: one that is not installed is left out with a line that says so (`has`), and a benchmark that
cannot be run without something ends with such a line (`needs`).
"""

from __future__ import annotations

import argparse
import gc
import platform
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "RESULTS.md"


def options(said: str | None) -> argparse.ArgumentParser:
    """Return a script's parser: `--help` shows its docstring, and `--record` is known."""
    parser = argparse.ArgumentParser(description=said, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="append what was measured to bench/RESULTS.md")
    return parser


def has(peer: str) -> bool:
    """Say whether a peer's module is installed; a line on stderr says when it is not."""
    if find_spec(peer) is not None:
        return True
    print(f"left out: {peer} is not installed", file=sys.stderr)
    return False


def needs(*modules: str, program: str = "") -> None:
    """End the benchmark, with a line that says why, when what it cannot do without is not installed."""
    absent = [module for module in modules if find_spec(module) is None]
    absent += [program] if program and shutil.which(program) is None else []
    if absent:
        print(f"left out: {Path(sys.argv[0]).name} needs {', '.join(absent)}", file=sys.stderr)
        raise SystemExit(0)


def turns(candidates: Mapping[str, Callable[[], Any]], *, repeats: int = 5, warm: int = 1) -> dict[str, list[float]]:
    """Run every candidate `warm` times unmeasured, then `repeats` times in turns; return seconds by name."""
    for _ in range(warm):
        for run in candidates.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            gc.collect()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def table(title: str, seconds: Mapping[str, Sequence[float]], *, work: float = 0, unit: str = "") -> str:
    """Write medians, ratios to the first candidate and, with `work`, the rate in `unit` a second, as Markdown."""
    first = statistics.median(next(iter(seconds.values())))
    rate = f" {unit}/s |" if work else ""
    lines = [f"### {title}", "", f"| candidate | median s | times the first |{rate} spread |"]
    lines.append("|---|---|---|" + ("---|" if work else "") + "---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = (max(values) - min(values)) / median if median else 0.0
        row = f"| {name} | {median:.4g} | {median / first:.2f} |"
        if work:
            row += f" {work / median:,.0f} |"
        lines.append(row + f" {spread:.0%}{' (noisy)' if spread > 0.25 else ''} |")
    return "\n".join(lines)


def rows(title: str, header: Sequence[str], values: Sequence[Sequence[Any]]) -> str:
    """Write any measured figures as a Markdown table."""
    lines = [f"### {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(value) for value in row) + " |" for row in values]
    return "\n".join(lines)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def machine(*packages: str) -> str:
    """Name commit, Python, processor count, peak memory of this process and the versions of the packages measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    when = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        f"{when}, commit {commit.stdout.strip() or 'none'}, Python {platform.python_version()}, "
        f"peak {peak:.0f} MB, {', '.join(found) or 'no packages'}"
    )


def show(*parts: str) -> None:
    """Print the parts and, with `--record` on the command line, append them to bench/RESULTS.md."""
    text = "\n\n".join(parts)
    print(text)
    if "--record" in sys.argv:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write("\n" + text + "\n")

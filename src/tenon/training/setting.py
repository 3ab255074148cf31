"""The setting of a run: what code, which packages, which machine. Gathered once, in the background, never failing.

It answers, months later, what a result was made with. Nothing here may stop a run: no git, no repository, a machine
that does not say what it is, all give less and not an error. `tenon.training.track` calls it from the thread that also
writes metrics, so it gives way to other threads between packages, of which there may be hundreds.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from tenon import engine

GIT_S = 5.0


def setting(root: Path) -> dict[str, Any]:
    """Return the fields `git`, `python`, `packages` and `hardware` of a run's record."""
    return {"git": git(root), "python": platform.python_version(), "packages": packages(), "hardware": hardware()}


def git(root: Path) -> dict[str, Any]:
    """Return commit, branch and whether files differ from the commit; empty where there is no git or no commit."""
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    branch = _git(root, "rev-parse", "--abbrev-ref", "HEAD")
    return {"commit": commit, "branch": branch or "", "dirty": bool(changed), "changed": _files(changed or "")}


def packages() -> dict[str, str]:
    """Return the versions of all installed packages by name."""
    found = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found[str(name).lower()] = distribution.version
        time.sleep(0)
    return dict(sorted(found.items()))


def hardware() -> dict[str, Any]:
    """Return what the process may use: cores, memory, processor, accelerators, system."""
    return {
        "cores": engine.cores(),
        "memory_bytes": engine.memory_bytes(),
        "processor": _processor(),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True,
            text=True,
            timeout=GIT_S,
            check=False,
            # Reading the state must not take git's lock from a person who is committing.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    return done.stdout.rstrip() if done.returncode == 0 else None


def _files(porcelain: str) -> list[str]:
    return [line[3:] for line in porcelain.splitlines()[:100]]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            if line.lower().startswith(("model name", "cpu model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _gpus() -> list[str]:
    """Return the accelerators that NVIDIA's driver lists; asking the driver itself would load a library."""
    found = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = file.read_text("utf-8", errors="replace").splitlines()
            found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
        except OSError:
            continue
    return found

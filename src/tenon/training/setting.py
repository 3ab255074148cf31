"""The setting of a run: what code, which packages, which machine. Gathered once, in the background, never failing.

`code` keeps the Python files of the project's folder, and the script that runs, as blobs: a commit does not say what
was changed since, and not every folder is a repository. Files that did not change are the same blobs. It is bounded,
and says how many files were left out.

It answers, months later, what a result was made with. Nothing here may stop a run: no git, no repository, a machine
that does not say what it is, all give less and not an error. A run's journal calls it in a thread of
its own, which gives way to others between packages, of which there may be hundreds.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from tenon import engine
from tenon.errors import StoreError
from tenon.store import Store

GIT_S = 5.0
DEPTH = 4  # folders below the project's that are looked through for code
ENTRIES = 20_000  # files and folders that are looked at


def setting(root: Path) -> dict[str, Any]:
    """Return the fields `git`, `python`, `packages` and `hardware` of a run's record."""
    return {"git": git(root), "python": platform.python_version(), "packages": packages(), "hardware": hardware()}


def code(store: Store, bound_bytes: int) -> dict[str, Any]:
    """Keep the project's Python files; return `code` {path: digest}, and `code_left_out` when there were too many."""
    kept: dict[str, str] = {}
    left_out = 0
    room = bound_bytes
    for name, path in _code_files(store.root) if bound_bytes else ():
        try:
            size = path.stat().st_size
            if size > room:
                left_out += 1
                continue
            kept[name] = store.blobs.put(path.read_bytes())
        except (OSError, StoreError):
            left_out += 1  # unreadable, or a full disk: the run goes on, and says so
            continue
        room -= size
        time.sleep(0)
    return {"code": kept, **({"code_left_out": left_out} if left_out else {})}


def _code_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name, path): the script that runs, then files nearest to the root first; no environments, none hidden."""
    base = root.resolve()
    script = _script()
    if script is not None and not script.is_relative_to(base):
        yield script.name, script
    found: list[Path] = []
    seen = 0
    for folder, folders, files in os.walk(base):
        here = Path(folder)
        seen += len(folders) + len(files)
        if seen > ENTRIES or len(here.relative_to(base).parts) >= DEPTH:
            folders.clear()
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "__")) and name not in ("node_modules", "site-packages")
            if not (here / name / "pyvenv.cfg").exists()
        ]
        found += [here / name for name in files if name.endswith(".py")]
    order = sorted(found, key=lambda path: (path != script, len(path.parts), str(path)))
    yield from ((path.relative_to(base).as_posix(), path) for path in order)


def _script() -> Path | None:
    """Return the user's file that Python was started with; None for a command, a module of a package or a prompt."""
    name = getattr(sys.modules.get("__main__"), "__file__", None)
    if not name or not str(name).endswith(".py"):
        return None
    path = Path(name).resolve()
    installed = path.is_relative_to(Path(sys.prefix).resolve()) or "site-packages" in path.parts
    return None if installed or path.is_relative_to(Path(__file__).parents[1]) or not path.is_file() else path


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

"""`tenon train SCRIPT --nproc 2`: a user's own training script or function on several processes, seen through.

What the processes print on stdout goes to stdout, to stderr with `--json`; findings are said as they are made. The
exit code is 1 when the run did not end well. Beats, stacks and last words lie in a folder of their own under the
system's temporary one, which is deleted when all went well at once.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenon.cli.output import Output

if TYPE_CHECKING:
    from tenon.finding import Finding
    from tenon.training.watchdog import Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Several:
    """What the flags said: how many processes, how patient, where."""

    nproc: int = 1
    restarts: int = 3
    silence_s: float = 600.0
    engine: str = ""


def is_target(text: str) -> bool:
    """Tell a script or function from a project's folder."""
    return not Path(text).is_dir() and (text.endswith(".py") or ":" in text)


def seen_through(text: str, given: tuple[str, ...], several: Several, output: Output) -> Ended:
    """Run a script or function on several processes, and tell how it ended."""
    from tenon import config
    from tenon.training.target import Target

    target = Target.of(text, given)
    settings = config.load(Path.cwd(), os.environ)
    folder = Path(tempfile.mkdtemp(prefix="tenon-launch-"))

    def tell(finding: Finding) -> None:
        output.findings([finding.to_dict()])

    ended = None
    with _stdout(to_stderr=output.json):
        try:
            ended = _run(target, settings, several, folder, tell)
        finally:
            if ended is not None and ended and ended.attempts == 1:
                shutil.rmtree(folder, ignore_errors=True)
    times = "once" if ended.attempts == 1 else f"{ended.attempts} times"
    how = "ended well" if ended else f"failed with code {ended.code}; see {folder}"
    processes = f"{several.nproc} process{'es' if several.nproc > 1 else ''}"
    output.emit(ended.to_dict(), f"{processes}, begun {times}, {how}")
    return ended


def _run(target: Any, settings: Any, several: Several, folder: Path, tell: Any) -> Ended:
    if (several.engine or settings.engine.kind) == "ray":
        from tenon.training import cluster

        return cluster.run(
            target,
            nproc=several.nproc,
            folder=folder,
            restarts=several.restarts,
            address=settings.engine.ray_address,
            tell=tell,
        )
    from tenon.training.launch import launch

    return launch(
        target.command,
        nproc=several.nproc,
        folder=folder,
        silence_s=several.silence_s,
        restarts=several.restarts,
        tell=tell,
    )


@contextmanager
def _stdout(*, to_stderr: bool) -> Iterator[None]:
    """Lend the processes our stderr for their stdout, so that with --json nothing but JSON is on ours."""
    if not to_stderr:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)

"""What tests of several processes share: functions of `several_ranks` under our launcher, and that losses go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tenon.training.launch import launch
from tenon.training.target import Target
from tenon.training.watchdog import Ended

SCRIPT = Path(__file__).with_name("several_ranks.py")
STEPS = 40


def started(function: str, nproc: int, folder: Path, *given: str, **patience: Any) -> Ended:
    """Run a function of `several_ranks` in so many processes of this machine."""
    target = Target.of(f"{SCRIPT}:{function}", given)
    return launch(target.command, nproc=nproc, folder=folder / f"watch-{function}-{nproc}", **patience)


def lines(file: Path) -> list[tuple[int, str]]:
    """Read the steps and losses that a rank wrote."""
    return [(int(step), loss) for step, loss in (line.split() for line in file.read_text().splitlines())]


def went_on_exactly(whole: Path, broken: Path, *, ranks: int = 2, steps: int = STEPS, begun: int = 2) -> None:
    """Check the losses of each rank, begun so many times, against those of a run that nothing befell."""
    for rank in range(ranks):
        expected, found = dict(lines(whole / f"losses-{rank}")), lines(broken / f"losses-{rank}")
        assert all(expected[step] == loss for step, loss in found)
        assert {step for step, _ in found} == set(range(steps))
        assert len(found) - steps < 7 * (begun - 1)  # from the last checkpoint: one is kept each seven steps

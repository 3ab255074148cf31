"""Ray gives what one machine gives: a job's result, a run's bits; deaths and hangs are told, and it begins again."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tenon import engine
from tenon.config import EngineConfig
from tenon.errors import InputError, TenonError
from tenon.training import cluster
from tenon.training.target import Target
from tenon.training.watchdog import Ended

from ..jobs import PLACE
from .launched import SCRIPT, STEPS, started, went_on_exactly

for package, extra in (("torch", "torch"), ("ray", "ray"), ("pyarrow", "ray")):
    pytest.importorskip(package, reason=f"the extra '{extra}' is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # Ray's own
Told = tuple[Ended, list[str]]


@pytest.fixture(scope="module", autouse=True)
def workers() -> Iterator[engine.Ray]:
    """A real cluster of this machine, which every run of this file joins; its workers can import `jobs`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PLACE))
        with engine.open(EngineConfig(kind="ray")) as opened:
            assert isinstance(opened, engine.Ray)
            yield opened


def on_ray(function: str, folder: Path, *given: str, **patience: Any) -> Told:
    """Run a function on two workers of the cluster; return how it ended and what was told meanwhile."""
    told: list[str] = []
    target = Target.of(f"{SCRIPT}:{function}", given)
    ended = cluster.run(target, nproc=2, folder=folder, tell=lambda finding: told.append(finding.code), **patience)
    return ended, told


@pytest.fixture(scope="module")
def beset(workers: engine.Ray, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Told]:
    """A run of which one worker is killed and, begun again, hangs."""
    folder = tmp_path_factory.mktemp("beset")
    given = (f"folder={folder}", f"steps={STEPS}", "kill=17", "hang=27")
    return folder, on_ray("beset", folder / "ray", *given, restarts=3, silence_s=12.0)


def test_ray_train_runs_the_same_function_to_the_same_bits_and_begins_again_when_a_worker_is_killed(
    beset: tuple[Path, Told], tmp_path: Path
) -> None:
    folder, (ended, told) = beset
    assert ended and ended.attempts == 3, [one.said for one in ended.findings]
    assert told[:2] == ["training/rank-died", "training/restarted"]
    assert re.match(r"Rank 1 of 2 ended: its process \d+ on \S+ died or was killed\.", ended.findings[0].said)
    assert started("beset", 2, tmp_path, f"folder={tmp_path}", f"steps={STEPS}", restarts=0)
    went_on_exactly(tmp_path, folder, begun=ended.attempts)


def test_a_hang_under_ray_is_seen_told_and_begun_again(beset: tuple[Path, Told]) -> None:
    _, (ended, told) = beset
    assert told[2:] == ["training/hang", "training/restarted"]
    hung = ended.findings[2]
    assert "Rank 1 never reached gloo broadcast of" in hung.said and "in which rank 0 waits." in hung.said
    assert "Rank 1 stands after step 26 in load_rows (several_ranks.py:" in hung.said


def test_what_the_guard_refused_under_ray_is_not_begun_again(tmp_path: Path) -> None:
    ended, told = on_ray("spoiled", tmp_path / "ray", restarts=2)
    assert not ended and ended.attempts == 1
    assert told == ["training/gave-up"]
    assert "its guard refused it, and would refuse the same step again (" in ended.findings[0].said
    assert "expected a finite loss, got one that is not on rank 1 of 2" in ended.findings[0].said


def test_a_ray_cluster_gives_the_same(workers: engine.Ray, tmp_path: Path) -> None:
    told: list[float] = []
    twenty = [{"n": n} for n in range(20)]
    found = list(workers.map("jobs:double", twenty, progress=lambda done, total, said: told.append(done)))
    assert [result["n"] for result in found] == [n * 2 for n in range(20)]
    assert os.getpid() not in {result["pid"] for result in found}
    assert told == list(range(1, 21))
    with pytest.raises(InputError, match=r"^expected a small number, got 2 - at here"):
        list(workers.map("jobs:refuse", [{"n": n} for n in range(5)]))
    every = [{"n": n, "mark": str(tmp_path / "mark")} for n in range(3)]
    assert [result["n"] for result in workers.map("jobs:die_once", every)] == [0, 1, 2]
    with pytest.raises(TenonError, match=r"expected the job to end, got 3 workers that died"):
        list(workers.map("jobs:die", [{"n": 0}, {"n": 1}]))

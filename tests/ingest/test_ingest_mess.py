"""Against known truth: files with every fault, made by bench/mess.py, come back or wait, never wrong in silence."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tenon.ingest import Job, ingest

from .conftest import read_back


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_of_broken_rows_nearly_all_come_back_exactly_and_none_is_wrong(
    mess: ModuleType, tmp_path: Path, seed: int
) -> None:
    made = mess.make(tmp_path / "in", 12_000, broken=0.05, seed=seed)
    done = read_back(ingest(Job(paths=(made.path,), out=tmp_path / "out")))
    score = mess.judge(made.truth, done.frame)
    assert score.wrong_cells == 0 and score.clean_lost == 0, score.by_fault
    assert score.recovered_pct >= 95.0, score.by_fault
    lost = {name for name, (_, what) in mess.FAULTS.items() if what == "lost"}
    assert all(score.by_fault[name]["withheld"] == score.by_fault[name]["rows"] for name in lost)
    assert score.withheld == done.result.quarantined and done.result.balance.closes


def test_a_clean_file_is_read_exactly(mess: ModuleType, tmp_path: Path) -> None:
    made = mess.make(tmp_path / "in", 5_000, broken=0.0, framing=False)
    done = read_back(ingest(Job(paths=(made.path,), out=tmp_path / "out")))
    score = mess.judge(made.truth, done.frame)
    assert (score.wrong_cells, score.clean_lost, done.frame.height) == (0, 0, 5_000)
    assert done.quarantine.height == 0 and done.repairs.height == 0


def test_the_same_seed_makes_the_same_bytes(mess: ModuleType, tmp_path: Path) -> None:
    one, two = (mess.make(tmp_path / name, 500, seed=9).path.read_bytes() for name in ("a", "b"))
    assert one == two and one != mess.make(tmp_path / "c", 500, seed=10).path.read_bytes()

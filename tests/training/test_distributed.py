"""Several processes train one model: killed or hanging, it goes on bit for bit, on another number of ranks too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tenon.training.watchdog import Ended

from .launched import STEPS, lines, started, went_on_exactly

pytest.importorskip("torch", reason="the extra 'torch' is not installed")
# At which step what befalls which rank of which run, once; DDP is killed on three ranks below.
FAULTS = {
    "ddp 1": {"27": "hang"},
    "fsdp 0": {"11": "kill"},
    "fsdp 1": {"23": "hang"},
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """Four attempts at two runs: DDP hangs; FSDP is killed, then hangs; both come to their end."""
    folder = tmp_path_factory.mktemp("broken")
    given = (f"folder={folder}", f"steps={STEPS}", f"faults={json.dumps(FAULTS)}")
    return folder, started("exact", 2, folder, *given, silence_s=6.0, restarts=9)


def test_every_death_and_every_hang_is_told_and_the_run_comes_to_its_end(broken: tuple[Path, Ended]) -> None:
    _, ended = broken
    # On a crowded machine a step may take longer than the silence: that is a hang more, and nothing else changes.
    assert ended and ended.attempts >= 4
    (died,) = (one for one in ended.findings if one.code == "training/rank-died")
    assert "Rank 0 of 2 was killed by SIGKILL, as the kernel does when memory runs out, after step 10." in died.said
    restarted = [one.said for one in ended.findings if one.code == "training/restarted"]
    assert len(restarted) == ended.attempts - 1
    assert restarted[0].endswith("begun again from its last checkpoint, 1 of at most 9.")
    hung = [one for one in ended.findings if "in load_rows (several_ranks.py:" in one.said]
    assert [one.code for one in hung] == ["training/hang"] * 2
    assert [one.numbers["rank"] for one in hung] == [1, 1]
    # Of DDP the stacks show only `backward` or a forward; the flight recorder knows the collective.
    assert "Rank 1 never reached gloo broadcast of" in hung[0].said
    assert "Rank 1 never reached gloo all_gather of" in hung[1].said


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_losses_go_on_bit_for_bit_and_no_more_than_since_the_checkpoint_is_done_again(
    broken: tuple[Path, Ended], mode: str
) -> None:
    folder, ended = broken
    for rank in range(2):
        expected = dict(lines(folder / f"{mode}-whole" / f"losses-{rank}"))
        found = lines(folder / f"{mode}-broken" / f"losses-{rank}")
        assert sorted(expected) == list(range(STEPS))
        assert all(expected[step] == loss for step, loss in found)
        assert {step for step, _ in found} == set(range(STEPS))
        # Each time it was begun again, at most the steps since the checkpoint were done again.
        assert 0 < len(found) - STEPS < (ended.attempts - 1) * 7
    losses = [(folder / f"{mode}-whole" / f"losses-{rank}").read_text() for rank in range(2)]
    assert losses[0] != losses[1]  # each rank has rows and random numbers of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What three ranks made of the checkpoints of two, and of some of their own."""

    folder: Path
    told: dict[str, Any]
    ended: Ended


@pytest.fixture(scope="module")
def moved(broken: tuple[Path, Ended]) -> Moved:
    """Three ranks that go on where two were, and are then begun again once, when one was killed."""
    folder, _ = broken
    ended = started("moved", 3, folder, f"folder={folder}", restarts=1, start_s=120.0)
    assert ended, ended.findings
    return Moved(folder=folder, told=json.loads((folder / "moved-3.json").read_text()), ended=ended)


def test_a_checkpoint_holds_shards_and_reads_on_another_number_of_ranks_and_in_another_layout(
    moved: Moved,
) -> None:
    folder, told = moved.folder, moved.told
    kept = sorted((folder / "fsdp-broken" / "checkpoints").glob("step-*"))[-1]
    files = {"state.json", "tensors.safetensors", "tensors-00001.safetensors"}
    assert {one.name for one in kept.iterdir()} == files
    for kept_as in ("ddp", "fsdp"):
        one, other = told[f"{kept_as} as ddp"], told[f"{kept_as} as fsdp"]
        assert one["step"] == other["step"] == 35
        assert one["weights"] == other["weights"] and one["moments"] == other["moments"]
        assert one["position"] == 35 % 8
        assert "ranks 2 then, 3 now" in one["said"][0]
    # The same, read by one process that knows nothing of ranks.
    assert alone(folder / "fsdp-broken") == told["fsdp as ddp"]["weights"]
    assert any(abs(value) > 0.01 for value in told["fsdp as ddp"]["moments"])


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_three_ranks_go_on_bit_for_bit_too_and_what_would_not_is_said(moved: Moved, mode: str) -> None:
    folder, told = moved.folder, moved.told
    for rank in range(3):
        whole = dict(lines(folder / f"{mode}-3-whole" / f"losses-{rank}"))
        found = lines(folder / f"{mode}-3-broken" / f"losses-{rank}")
        assert len(found) == 30 + 3 and all(whole[step] == loss for step, loss in found)
    assert "DDP lays 'model' out anew after its first step, and 3 ranks then add gradients" in told["plain"][0]


def test_three_ranks_of_which_one_is_killed_are_begun_again_and_go_on_bit_for_bit(moved: Moved) -> None:
    assert [one.code for one in moved.ended.findings] == ["training/rank-died", "training/restarted"]
    assert "Rank 2 of 3 was killed by SIGKILL" in moved.ended.findings[0].said
    went_on_exactly(moved.folder / "ddp-3-whole", moved.folder / "killed", ranks=3, steps=30)


def test_what_one_rank_cannot_write_or_read_is_refused_or_passed_over_by_all(
    moved: Moved,
) -> None:
    told = moved.told["refused"]
    assert len(set(told["said"])) == 1
    assert "expected room for a checkpoint" in told["said"][0] and told["said"][0].endswith("(rank 2)")
    assert told["steps"] == [1, 2]  # and step 2 has a file that is damaged
    assert told["gone on"] == [2, 2, 2]  # from the one of step 1
    assert told["left"] == [".lock", "damaged-0000000002", "step-0000000001"]


def alone(folder: Path) -> dict[str, list[float]]:
    """Return the weights that one process which knows nothing of ranks reads from a run's checkpoint."""
    import torch

    from tenon.training import Resume
    from tenon.training.ranks import Ranks

    from . import several_ranks

    threads = torch.get_num_threads()
    try:
        model, kept = several_ranks.parts(Ranks(), "alone")
    finally:
        torch.set_num_threads(threads)
    resume = Resume(folder / "checkpoints", **kept)
    resume.restore()
    resume.checkpoints.close()
    return several_ranks.weights(model)

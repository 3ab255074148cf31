"""A guard's step of several ranks is one: refused, stopped and measured together; the slow rank is named."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest

from .launched import started

pytest.importorskip("torch", reason="the extra 'torch' is not installed")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks saw: of each fault, and of how its time went."""
    folder = tmp_path_factory.mktemp("together")
    ended = started("together", 2, folder, f"folder={folder}", restarts=0, start_s=120.0)
    assert ended, ended.findings
    return [json.loads((folder / f"together-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def guarded(seen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each rank saw of each fault."""
    return [one["guarded"] for one in seen]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_nan_on_one_rank_refuses_the_step_on_all_and_is_blamed_where_it_was(
    guarded: list[dict[str, Any]], mode: str
) -> None:
    for fault, who in (("input", "the model's input 0 already holds 1 values"), ("loss", "the loss function itself")):
        seen = [one[f"{mode} {fault}"] for one in guarded]
        assert seen[0]["error"] == seen[1]["error"]
        assert seen[0]["error"].startswith(
            "TrainingError: expected a finite loss, got one that is not on rank 1 of 2 - at"
        )
        assert who in seen[0]["error"]
        assert [one["steps"] for one in seen] == [5, 5]
        assert all(value == value for weights in seen[0]["weights"].values() for value in weights)


def test_findings_come_once_and_only_the_first_rank_logs(guarded: list[dict[str, Any]]) -> None:
    first, second = (one["ddp news"] for one in guarded)
    assert [one["code"] for one in first["run"]] == ["training/data-starved"]
    assert first["run"][0]["said"] == "Rank 1: Slow rows."
    assert "run" not in second
    assert [one["code"] for one in guarded[0]["ddp loss"]["run"]] == ["training/loss-not-finite"]


def test_a_budget_counts_all_ranks_and_stops_them_at_the_same_step(guarded: list[dict[str, Any]]) -> None:
    first, second = (one["ddp budget"] for one in guarded)
    assert first["steps"] == second["steps"] < 40
    assert first["error"] == second["error"] == ""
    assert first["findings"][-1] == second["findings"][-1]
    assert first["findings"][-1][0] == "training/budget-spent"
    both, own = first["core_s"]
    assert both > own * 1.2


def test_a_checkpoint_due_by_time_is_due_by_the_first_ranks_clock(guarded: list[dict[str, Any]]) -> None:
    for one in guarded:
        assert one["ddp timed"]["error"] == ""
        assert set(one["ddp timed"]["saved"]) >= {38, 39}


def test_mixed_losses_of_ranks_are_those_of_all_rows_together(guarded: list[dict[str, Any]]) -> None:
    first, other = (one["ddp evaluated"]["mixed"] for one in guarded)
    assert first == [[2.0, 3.5, 5.0, 6.5]]  # of rolls of which one rank told 2, 3, 4, 5, the other 2, 4, 6, 8
    assert other == []  # the first rank judges


def test_a_held_out_loss_and_ranks_that_lost_step_are_refused_on_all(guarded: list[dict[str, Any]]) -> None:
    for one in guarded:
        assert "expected a finite held-out loss, got one that is not on rank 1" in one["ddp evaluated"]["error"]
        lost = one["ddp lost"]
        assert "expected all ranks at the same step, got rank 0 at step 5, rank 1 at step 6" in lost["error"]
        assert one["ddp none"]["steps"] == 40 and one["ddp none"]["findings"] == []


# ── where the time goes ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def paced(seen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each rank saw of a late rank, and of many gradients."""
    return [one["paced"] for one in seen]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_the_rank_that_the_others_wait_for_is_named(paced: list[dict[str, Any]], mode: str) -> None:
    told = [one for one in paced[0][mode]["findings"] if one["code"] == "training/straggler"]
    assert len(told) == 1
    assert told[0]["said"].startswith("Rank 1 of 2 is late: a step takes it ")
    assert told[0]["numbers"]["rank"] == 1
    assert told[0]["numbers"]["own_ms"] - told[0]["numbers"]["others_ms"] > 50  # of the 80 ms that it slept
    assert statistics.median(one["late"] for one in paced[0][mode]["shown"]) > 0.1
    assert not paced[1][mode]["shown"]


def test_a_step_that_mostly_exchanges_gradients_is_told(paced: list[dict[str, Any]]) -> None:
    told = [one for one in paced[0]["far"]["findings"] if one["code"] == "training/communication-bound"]
    assert len(told) == 1 and "of a step is spent exchanging between 2 ranks, beside computing." in told[0]["said"]
    assert statistics.median(one["communicating"] for one in paced[0]["far"]["shown"]) > 0.3


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_the_operations_of_all_ranks_are_counted_and_the_losses_stay_what_they_were(
    paced: list[dict[str, Any]], mode: str
) -> None:
    both = 2 * 12 * (2 * (8 * 15 + 15 * 5))  # the products of 12 rows on each rank
    assert [one[mode]["flops"] for one in paced] == [3 * both] * 2
    assert paced[0][mode]["shown"][-1]["flops_per_s"] > 0
    for one in paced:
        assert one[mode]["losses"] == one[f"{mode} bare"]["losses"]

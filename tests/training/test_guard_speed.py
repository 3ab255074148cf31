"""What a step computes and moves is counted once, from a forward that is done again, and leaves the run as it was."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tenon.store import Store
from tenon.training import Guard, Plan, Run

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
nn = torch.nn


def train(model: Any, guard: Guard, steps: int = 40, *, clips: bool = False) -> list[float]:
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    guard.watch(model, optimizer)
    guard._watch.work_after_s = 0.0
    losses = []
    for step in range(steps):
        x = torch.randn(32, 16)
        optimizer.zero_grad()
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        losses.append(loss.item())
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9) if clips else None
        guard.step(step, loss=loss, grad_norm=norm)
        optimizer.step()
    return losses


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 1))


@pytest.mark.parametrize("clips", [False, True])
def test_operations_are_those_of_the_products_and_bytes_at_least_the_weights(clips: bool) -> None:
    guard = Guard()
    train(net(), guard, clips=clips)
    work = guard._watch.work
    assert work.flops == 3 * 2 * 32 * (16 * 64 + 64)  # forward, and a backward of twice as much
    weights = 4 * (16 * 64 + 64 + 64 + 64 + 64 + 1)
    assert work.bytes > 3 * (2 * weights) + 3 * weights
    assert work.most_flops > 1e8 and work.most_bytes > 1e7
    rates = work.at(100.0)
    assert rates["flops_per_s"] == 100 * work.flops
    assert rates["of_flops"] == pytest.approx(100 * work.flops / work.most_flops)


def test_counting_changes_no_loss() -> None:
    counted = train(net(), Guard())
    plain = Guard()
    model = net()
    plain.watch(model)
    plain._watch.work_after_s = 1e9
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for step in range(40):
        x = torch.randn(32, 16)
        optimizer.zero_grad()
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        losses.append(loss.item())
        plain.step(step, loss=loss)
        optimizer.step()
    assert plain._watch.work is None
    assert counted == losses


def test_a_model_whose_forward_cannot_be_done_twice_is_told_nothing_of() -> None:
    class Once(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 1)
            self.calls = 0

        def forward(self, x: Any) -> Any:
            self.calls += torch.is_grad_enabled()
            if not torch.is_grad_enabled():
                raise RuntimeError("not again")
            return self.inner(x)

    guard = Guard()
    train(Once(), guard)
    assert guard._watch.work.flops == 0
    assert guard.findings == []


def test_how_a_run_stands_is_kept_with_it(store: Store) -> None:
    at = 0.0

    def clock() -> float:
        nonlocal at
        at += 0.1
        return at

    with Run.start(store, "r", "m") as run:
        train(net(), Guard(run=run, plan=Plan(steps=40, constant=1.0), clock=clock))
    stands = store.get("run", "r")["stands"]  # type: ignore[index]
    assert stands["of"] == 40 and 0 < stands["step"] < 40
    assert stands["per_s"] == pytest.approx(10.0, rel=0.2)
    assert stands["flops_per_s"] > 0 and stands["usd"] >= 0


# ── the gate ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# Wide inside and narrow outside, so that a step that takes gigabytes on a GPU reads a batch of a few megabytes here.
SCRIPT = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(8, 4096), nn.ReLU(), nn.Linear(4096, 8)).to("cuda")

def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)

def batch(size):
    return torch.randn(size, 8), torch.randn(size, 8)

def loss(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])
"""


@pytest.fixture
def script(tmp_path: Any) -> Any:
    assert importlib.util.find_spec("torch") is not None
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def test_a_run_that_cannot_fit_is_refused_with_a_plan_before_it_begins(script: Any) -> None:
    from tenon.errors import TrainingError

    guard = Guard()
    with pytest.raises(TrainingError, match="micro-batches"):
        guard.fits(script, 400_000, device="t4-16gb")
    assert [one.code for one in guard.findings] == ["training/does-not-fit"]
    assert guard.findings[0].place == "run/fit"


def test_what_a_run_reserved_teaches_the_next_prediction(script: Any, store: Store) -> None:
    from tenon.training.memory import margin

    guard = Guard().fits(script, 64, store=store, device="t4-16gb", reserved=lambda: 123_000_000)
    assert margin(store, "t4-16gb").runs == 0
    guard.close()
    guard.close()
    assert margin(store, "t4-16gb").runs == 1
    assert store.find("fit-peak")[0]["measured_bytes"] == 123_000_000


def test_without_a_gpu_and_without_a_name_nothing_is_asked(tmp_path: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU: with one, needs a GPU file")
    assert Guard().fits(tmp_path / "not-there.py", 8).findings == []

"""A precision is taken when a short run proves it; a compiled model is kept when quicker, and left when it fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tenon.errors import TrainingError, UsageError
from tenon.training import Guard
from tenon.training.compile_trial import WARM, Trial
from tenon.training.precision import auto

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
nn = torch.nn


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def net() -> Any:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))


def batches(count: int) -> list[Any]:
    return [torch.randn(32, 8) for _ in range(count)]


def squared(model: Any, x: Any) -> Any:
    return ((model(x).float() - x[:, :1]) ** 2).mean()


def sgd(weights: Any) -> Any:
    return torch.optim.SGD(weights, lr=0.05)


# ── precision ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_bf16_is_proven_against_fp32_and_the_model_is_left_as_it_was() -> None:
    model, rows = net(), batches(12)
    before, state = [one.detach().clone() for one in model.parameters()], torch.get_rng_state()
    chosen = auto(model, squared, rows, optimizer=sgd)
    assert [one.name for one in chosen.tried] == ["fp32", "bf16"]
    assert all(one.agrees for one in chosen.tried)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert chosen.finding.code == "training/precision" and "bf16: its loss is 0." in chosen.finding.said
    with chosen.cast():
        assert model(batches(1)[0]).dtype == (torch.bfloat16 if chosen.name == "bf16" else torch.float32)
    assert not chosen.scaler().is_enabled()


def test_a_precision_in_which_the_loss_is_another_is_refused() -> None:
    def delicate(model: Any, x: Any) -> Any:
        # A difference of large numbers: bf16 keeps 8 bits of it.
        return ((model(x) * 0 + 1000.0 + x[:, :1].to(model(x).dtype)) - 1000.0 - x[:, :1]).float().pow(2).mean() + (
            squared(model, x)
        )

    chosen = auto(net(), delicate, batches(12), optimizer=sgd)
    assert chosen.name == "fp32"
    assert [one.agrees for one in chosen.tried] == [True, False]
    assert chosen.finding.severity == "warning"


def test_a_precision_that_overflows_is_refused_with_its_step() -> None:
    def large(model: Any, x: Any) -> Any:
        out = model(x)
        return squared(model, x) + (out * 0 + 300.0).to(out.dtype).square().mean().float() * 1e-9

    chosen = auto(net(), large, batches(8), optimizer=sgd, names=["fp16"])
    assert chosen.name == "fp32" and chosen.finding.severity == "warning"
    assert "fp16: its loss is inf at step 0" in chosen.finding.said
    with pytest.raises(UsageError, match="at least 4 batches"):
        auto(net(), squared, batches(2), optimizer=sgd)


def test_a_precision_in_which_the_model_does_not_run_is_no_candidate() -> None:
    def picky(model: Any, x: Any) -> Any:
        answer = model(x)
        if answer.dtype != torch.float32:
            raise RuntimeError("not implemented for 'BFloat16'")
        return answer.square().mean()

    chosen = auto(net(), picky, batches(8), optimizer=sgd)
    assert chosen.name == "fp32" and chosen.finding.severity == "warning"
    assert "bf16: it fails with RuntimeError: not implemented for 'BFloat16'" in chosen.finding.said


def test_what_proves_nothing_is_refused_in_words() -> None:
    frozen = net().requires_grad_(False)
    with pytest.raises(UsageError, match="expected a model with weights to train, got none"):
        auto(frozen, squared, batches(8), optimizer=sgd)
    with pytest.raises(
        UsageError, match=r"expected precisions that are known, got 'fp8' .* one of 'bf16', 'fp16', 'tf32'"
    ):
        auto(net(), squared, batches(8), optimizer=sgd, names=["fp8"])
    with pytest.raises(TrainingError, match="expected a finite loss in fp32, got its loss is nan at step 0"):
        auto(net(), lambda model, x: squared(model, x) * math.nan, batches(8), optimizer=sgd)


# ── torch.compile ────────────────────────────────────────────────────────────────────────────────────────────────────


def paced(eager_s: float, compiled_s: float) -> tuple[Callable[[], float], list[Any]]:
    """A clock that goes by one time a call while the trial is eager, and by another when it is compiled."""
    now: list[float] = [0.0]
    trial: list[Any] = []

    def clock() -> float:
        now[0] += compiled_s if trial and trial[0].phase == "compiled" else eager_s
        return now[0]

    return clock, trial


def drive(trial: Trial, calls: int, *, rows: int = 4) -> None:
    for _ in range(calls):
        trial(torch.randn(rows, 8)).sum().backward()


def test_a_compiled_model_that_is_quicker_is_kept() -> None:
    clock, seen = paced(0.010, 0.005)
    guard = Guard()
    trial = Trial(net(), guard=guard, steps=3, clock=clock, backend="eager")
    seen.append(trial)
    drive(trial, 2 * (WARM + 3) + 4)
    assert trial.phase == "kept"
    assert "2.00 times as quick" in guard.findings[0].said and guard.findings[0].code == "training/compile"


def test_a_compiled_model_that_is_no_quicker_is_left() -> None:
    clock, seen = paced(0.010, 0.010)
    trial = Trial(net(), steps=3, clock=clock, backend="eager")
    seen.append(trial)
    drive(trial, 2 * (WARM + 3) + 4)
    assert trial.phase == "latched" and trial.finding is not None
    assert "compiling saves nothing. The run goes on without it, at 100.0 steps a second." in trial.finding.said


def test_a_compiler_that_fails_at_its_first_call_loses_no_step() -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise ValueError("no such operation on this machine")

    trial = Trial(net(), steps=2, backend=broken)
    drive(trial, 20)
    assert trial.phase == "latched" and trial.finding is not None
    assert trial.finding.severity == "warning"
    assert "torch.compile failed" in trial.finding.said and "no such operation" in trial.finding.said


def test_a_recompile_storm_is_noticed_and_ended() -> None:
    class Changing(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = nn.Linear(8, 1), 0

        def forward(self, x: Any) -> Any:
            self.calls += 1
            return self.body(x) * (2.0 if self.calls % 2 else 3.0) if self.calls < 0 else self.body(x[: x.shape[0]])

    trial = Trial(Changing(), steps=50, backend="eager", dynamic=False)
    for i in range(100):
        trial(torch.randn(2 + i, 8)).sum().backward()
        if trial.phase == "latched":
            break
    assert trial.phase == "latched" and trial.finding is not None
    assert "compiled anew" in trial.finding.said and "dynamic=True" in trial.finding.hint


def test_a_fault_of_the_model_itself_is_raised_as_it_is() -> None:
    trial = Trial(nn.Linear(8, 1), steps=2, backend="eager")
    drive(trial, 2 + WARM + 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trial(torch.randn(4, 5))
    with pytest.raises(UsageError):
        Trial(nn.Linear(8, 1), steps=1)

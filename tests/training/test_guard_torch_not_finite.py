"""NaN and infinity are caught before the optimiser steps, and the module that first produced them is named."""

from __future__ import annotations

import math
import weakref
from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tenon.errors import TrainingError, UsageError
from tenon.training import Guard

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
nn = torch.nn


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Logarithm(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
    """A module without weights that is no number below zero."""

    def forward(self, x: Any) -> Any:
        return torch.log(x)


class Root(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
    """Finite where it is zero, and its derivative there is not."""

    def forward(self, x: Any) -> Any:
        return torch.sqrt(x * x)


class Between(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
    """Computes between its own modules, which are not to blame."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x) / torch.zeros(4))


def caught(model: Any, x: Any, *, loss: Any = None, steps: int = 1, told: Any = None) -> str:
    """Train under a guard, and return what it said when it refused; the weights are as they were before."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard().watch(model, optimizer)
    before = [one.detach().clone() for one in model.parameters()]
    with pytest.raises(TrainingError) as refused:
        for step in range(steps):
            optimizer.zero_grad()
            output = model(x)
            value = loss(output) if loss is not None else (output**2).mean()
            value.backward()
            guard.step(step, loss=value if told is None else told)
            optimizer.step()
    assert all(bool((old == new).all()) for old, new in zip(before, model.parameters(), strict=True))
    assert guard.stopped is not None and guard.stopped.code == "training/loss-not-finite"
    return str(refused.value)


def net(*middle: Any) -> Any:
    return nn.Sequential(nn.Linear(4, 8), *middle, nn.Linear(8, 1))


# ── the forward ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_module_that_first_produced_nan_is_named_and_no_weight_has_moved() -> None:
    said = caught(net(nn.Tanh(), Logarithm(), nn.ReLU()), torch.randn(16, 4))
    assert "got nan - at run/0: the module '2' (Logarithm) is the first that produced NaN" in said


def test_an_infinity_is_followed_back_to_where_it_was_made() -> None:
    class Overflow(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def forward(self, x: Any) -> Any:
            return x * 1e38 * 1e38

    class Center(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def forward(self, x: Any) -> Any:
            return x - x.max()

    said = caught(net(nn.ReLU(), Overflow(), Center()), torch.randn(16, 4))
    assert "the module '2' (Overflow) is the first that produced" in said


def test_minus_infinity_that_becomes_nan_is_told_with_the_module_that_made_it() -> None:
    said = caught(net(nn.ReLU(), Logarithm()), torch.randn(16, 4))
    assert "the module '3' (Linear) is the first that produced NaN; before it '2' (Logarithm) had made minus" in said


def test_what_does_not_happen_again_is_not_laid_to_the_loss() -> None:
    class Third(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        calls = 0

        def forward(self, x: Any) -> Any:
            self.calls += 1
            return x * (math.nan if self.calls == 1 else 1.0)

    said = caught(net(Third()), torch.randn(16, 4))
    assert "is finite when the same forward is done again: a module of it changes from call to call" in said
    # Seen in the gradients alone, because the loop tells no loss, or another one.
    said = caught(net(Third()), torch.randn(16, 4), told=0.3)
    assert "is finite when the same forward is done again: a module of it changes from call to call" in said


def test_what_was_not_looked_at_is_not_cleared() -> None:
    model, x = net(nn.Tanh()), torch.randn(8, 4)
    guard = Guard().watch(model)
    poisoned = x.clone()
    poisoned[2] = math.nan
    loss = torch.stack([model(poisoned if not part else x).square().mean() for part in range(20)]).sum()
    with pytest.raises(TrainingError, match="the last 16 forwards of this step are finite: one before them or the"):
        guard.step(0, loss=loss)
    other = Guard().watch(nn.ModuleDict({"only": model}))
    with pytest.raises(TrainingError, match="the model that is watched was not called in this step; watch the model"):
        other.step(0, loss=model(poisoned).mean())


def test_what_a_container_computes_between_its_modules_is_its_own() -> None:
    said = caught(nn.Sequential(nn.Linear(4, 4), Between()), torch.randn(8, 4))
    assert "the module '1' (Between) is the first that produced infinity" in said


def test_rows_of_the_batch_that_are_missing_are_named() -> None:
    x = torch.randn(16, 4)
    x[3, 1] = math.nan
    x[11] = math.inf
    said = caught(net(nn.Tanh()), x)
    assert "the model's input 0 already holds 5 values that are not finite, in row 3, 11 of the batch" in said


@dataclass
class Batch:
    """Rows, or answers, in an object of one's own."""

    x: Any
    more: Any = None


class OfObjects(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
    """Takes a batch and gives one, of the same kind."""

    def __init__(self, *middle: Any) -> None:
        super().__init__()
        self.net = net(*middle)

    def forward(self, batch: Any) -> Any:
        x = self.net(batch["x"] if isinstance(batch, Mapping) else batch.x)
        return UserDict(x=x) if isinstance(batch, Mapping) else type(batch)(x)


class Plain:
    """An object that is no dataclass."""

    def __init__(self, x: Any) -> None:
        self.x = x


@pytest.mark.parametrize("kind", [Batch, Plain, lambda x: UserDict(x=x)])
def test_objects_and_mappings_are_looked_into_like_tuples(kind: Any) -> None:
    def loss(output: Any) -> Any:
        return (output["x"] if isinstance(output, Mapping) else output.x).mean()

    rows = torch.randn(16, 4)
    rows[3, 1] = math.nan
    assert "the model's input 0 already holds 1 values" in caught(OfObjects(), kind(rows), loss=loss)
    said = caught(OfObjects(Logarithm()), kind(torch.randn(16, 4)), loss=loss)
    assert "the module 'net.1' (Logarithm) is the first that produced NaN" in said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (-100.0, r"the module 'judges\.0\.0' \(Logarithm\) is the first that produced NaN"),
        (math.nan, r"'judges\.0''s input 0 already holds 16 values that are not finite"),
    ],
)
def test_modules_that_a_loop_calls_without_their_root_are_looked_at_themselves(wrong: float, said: str) -> None:
    made, judge = net(), nn.Sequential(Logarithm())
    guard = Guard().watch(nn.ModuleDict({"made": made, "judges": nn.ModuleList([judge])}))
    with pytest.raises(TrainingError, match=said):
        for step in range(3):
            loss = judge(made(torch.randn(16, 4)).exp() + (wrong if step == 2 else 0)).mean()
            loss.backward()
            guard.step(step, loss=loss)
    guard.close()
    assert not made._forward_hooks and not judge._forward_pre_hooks


def test_a_weight_that_was_already_spoiled_is_named_and_sends_back_to_the_checkpoint() -> None:
    model = net(nn.Tanh())
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    x = torch.randn(4, 4)
    guard = Guard().watch(model)
    with pytest.raises(TrainingError, match=r"the weight '2.weight' is not finite itself.*go back to the last good"):
        guard.step(7, loss=model(x).mean())


def test_a_loss_function_that_produces_it_is_not_blamed_on_a_module() -> None:
    said = caught(net(nn.ReLU()), torch.randn(8, 4), loss=lambda output: torch.log(output - output).mean() * 0)
    assert "every module's output is finite, so the loss function itself produced it" in said


def test_a_mask_of_minus_infinity_is_not_blamed() -> None:
    class Attend(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.mask, self.soft, self.log = Mask(), nn.Softmax(-1), Logarithm()

        def forward(self, x: Any) -> Any:
            return self.log(self.soft(self.mask(x)) - 0.5)

    class Mask(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def forward(self, x: Any) -> Any:
            return x.masked_fill(torch.ones_like(x).triu(1).bool(), -math.inf)

    said = caught(nn.Sequential(nn.Linear(4, 4), Attend()), torch.randn(4, 4))
    assert "the module '1.log' (Logarithm) is the first that produced NaN" in said


# ── the backward ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_gradient_that_is_no_number_is_traced_to_the_module_that_passed_it_back() -> None:
    model, x = net(Root(), nn.Tanh()), torch.randn(16, 4)
    nn.init.zeros_(model[0].bias)
    x[4] = 0.0
    said = caught(model, x)
    assert "expected a finite gradient norm, got nan" in said
    assert "the module '1' (Root) is the first that passed back a gradient that is no finite number" in said


def test_a_gradient_spoiled_by_the_loss_function_is_said_to_be() -> None:
    said = caught(net(nn.ReLU()), torch.randn(16, 4), loss=lambda output: torch.sqrt(output * 0).mean())
    assert "the gradient is not finite already where it enters the model" in said


def test_gradients_that_are_large_but_finite_pass_though_their_norm_overflows() -> None:
    model = nn.Linear(4, 1)
    guard = Guard().watch(model)
    model(torch.ones(1, 4)).sum().backward()
    model.weight.grad.fill_(1e30)
    assert guard.step(0, loss=1.0)


# ── as it was ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_forward_is_done_again_with_the_same_random_numbers() -> None:
    """Dropout decides here whether there is a NaN at all; the second forward must drop the same."""

    class Unlucky(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def forward(self, x: Any) -> Any:
            return x / (torch.rand(()) > 0.3)

    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), Unlucky(), nn.Linear(4, 1))
    guard, optimizer = Guard().watch(model), torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(TrainingError) as told:
        for step in range(100):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 4)).mean()
            loss.backward()
            guard.step(step, loss=loss)
            optimizer.step()
    assert "the module '2' (Unlucky) is the first that produced" in str(told.value)


def test_buffers_and_random_numbers_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), Logarithm())
    guard = Guard().watch(model)
    loss = model(torch.randn(16, 4)).mean()
    loss.backward()
    mean, state = model[1].running_mean.clone(), torch.get_rng_state()
    with pytest.raises(TrainingError, match=r"'3' \(Logarithm\)"):
        guard.step(0, loss=loss)
    assert bool((model[1].running_mean == mean).all())
    assert bool((torch.get_rng_state() == state).all())


def test_a_model_whose_forward_cannot_be_done_again_is_still_refused() -> None:
    class Once(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        calls = 0

        def forward(self, x: Any) -> Any:
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("the batch is gone")
            return x * math.nan

    said = caught(nn.Sequential(nn.Linear(4, 1), Once()), torch.randn(4, 4))
    assert "got nan" in said and "doing the forward again failed with RuntimeError('the batch is gone')" in said


def test_accumulated_micro_batches_are_searched_in_turn() -> None:
    model = nn.Linear(4, 1)
    guard, total = Guard().watch(model), 0.0
    for micro in range(4):
        x = torch.randn(8, 4)
        if micro == 2:
            x[5] = math.nan
        loss = model(x).mean() / 4
        loss.backward()
        total += loss.item()
    with pytest.raises(TrainingError, match="in row 5 of the batch"):
        guard.step(0, loss=total)


def test_a_compiled_and_a_wrapped_model_are_watched_like_any_other() -> None:
    inner = net(nn.Tanh(), Logarithm())
    model = torch.compile(inner, backend="eager")
    guard = Guard().watch(model)
    loss = model(torch.randn(8, 4)).mean()
    loss.backward()
    with pytest.raises(TrainingError, match=r"'2' \(Logarithm\) is the first that produced NaN"):
        guard.step(0, loss=loss)


def test_steps_that_a_loss_scaler_skips_are_no_fault_until_it_skips_only() -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    guard = Guard().watch(model, optimizer, scaler=scaler)
    with pytest.raises(TrainingError, match="got inf - at run/58"):
        for step in range(80):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 4)).mean()
            scaler.scale(loss).backward()
            if step % 2 or step >= 10:
                model.weight.grad.fill_(math.inf)
            assert guard.step(step, loss=loss)
            scaler.step(optimizer)
            scaler.update()
    assert [one.code for one in guard.findings] == ["training/loss-scale", "training/loss-not-finite"]
    assert guard.findings[0].numbers["steps"] == 10


class Late(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
    """Forty blocks; the derivative of one of them is no number where its input is zero."""

    def __init__(self, at: int, *, bias: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6, bias=bias) for _ in range(40))
        self.at = at

    def forward(self, x: Any) -> Any:
        for i, block in enumerate(self.blocks):
            x = torch.tanh(block(x))
            if i == self.at:
                x = torch.sqrt((x * 0) ** 2) + x
        return x


@pytest.mark.parametrize("at", [0, 7, 20, 38])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gradient_that_is_no_number_is_caught_at_once_wherever_a_deep_model_makes_it(at: int, bias: bool) -> None:
    model = Late(-1, bias=bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard().watch(model, optimizer)
    x = torch.randn(8, 6)
    for step in range(9):  # which probes are read changes from step to step
        model.at = at if step == 8 else -1
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        if step == 8:
            with pytest.raises(TrainingError, match="got nan - at run/8"):
                guard.step(step, loss=loss)
            return
        assert guard.step(step, loss=loss)
        optimizer.step()


@pytest.mark.parametrize("bias", [True, False])
def test_every_module_of_a_large_model_is_read_within_some_steps(bias: bool) -> None:
    model = Late(-1, bias=bias)
    x = torch.randn(8, 6)
    for spoiled in model.blocks:
        guard = Guard().watch(model)
        loss = model(x).square().mean()
        loss.backward()
        place = spoiled.bias if bias else spoiled.weight
        place.grad.view(-1)[0] = math.inf  # in one module alone, which no backward does
        with pytest.raises(TrainingError, match="gradient"):
            for step in range(15):
                guard.step(step, loss=loss)
        model.zero_grad()


def test_looking_at_gradients_leaves_their_bits_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1, bias=False))
    guard = Guard().watch(model)
    for step in range(12):
        model.zero_grad()
        loss = model(torch.randn(4, 4)).mean()
        loss.backward()
        for one in model.parameters():
            one.grad.view(-1)[:4] = torch.tensor([1e-45, -0.0, 3e38, 1.5])  # denormal, signed zero, nearly the largest
        before = [one.grad.clone().view(torch.int32) for one in model.parameters()]
        assert guard.step(step, loss=loss)
        assert all(
            torch.equal(one.grad.view(torch.int32), bits) for one, bits in zip(model.parameters(), before, strict=True)
        )


@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_gradient_that_has_a_gradient_and_one_that_is_sparse_are_read_the_longer_way() -> None:
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(8, 1))
    guard = Guard().watch(model)
    for step in range(6):
        model.zero_grad()
        loss = model(torch.randint(0, 10, (4, 2))).square().mean()
        loss.backward()
        assert guard.step(step, loss=loss)
    plain = nn.Linear(4, 1)
    guard = Guard().watch(plain)
    loss = plain(torch.randn(4, 4)).square().mean()
    loss.backward(create_graph=True)
    penalty = plain.weight.grad.square().sum()
    assert guard.step(0, loss=loss)
    penalty.backward()  # what the guard read can still be derived
    plain.bias.grad = torch.full((1,), math.nan)
    with pytest.raises(TrainingError, match="gradient"):
        guard.step(1, loss=0.5)


def test_random_states_are_kept_only_for_a_forward_that_takes_random_numbers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.Linear(4, 1))
    guard = Guard().watch(model)

    def steps(first: int, count: int) -> None:
        for step in range(first, first + count):
            model.zero_grad()
            loss = model(torch.randn(4, 4)).square().mean()
            loss.backward()
            assert guard.step(step, loss=loss)

    steps(0, 4)
    assert not model._forward_pre_hooks
    model[1].p = 0.5  # a schedule of dropout begins
    steps(4, 520)
    assert len(model._forward_pre_hooks) == 1  # it was looked at again
    steps(524, 1_100)
    assert len(model._forward_pre_hooks) == 1  # and found, once


def test_after_close_the_model_has_no_hooks_left() -> None:
    model = nn.Linear(4, 1)
    guard = Guard().watch(model)
    guard.watch(model)
    assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 1
    guard.close()
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_a_weight_without_values_hides_no_fault_of_others() -> None:
    class Empty(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.nothing, self.inner, self.root = nn.Parameter(torch.zeros(3, 0)), nn.Linear(3, 3), Root()
            nn.init.zeros_(self.inner.bias)

        def forward(self, x: Any) -> Any:
            return self.root(self.inner(x)) + self.nothing.sum()

    assert "'root' (Root)" in caught(Empty(), torch.zeros(2, 3), loss=lambda output: output.sum())


def test_what_is_no_module_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match=r"expected a torch.nn.Module to watch, got int - at guard.watch"):
        Guard().watch(3)
    for model in (nn.LazyLinear(4), nn.Linear(2, 4, device="meta")):
        with pytest.raises(UsageError, match=r"expected weights that are there, got none yet as 'weight' - at guard"):
            Guard().watch(model)


def test_a_watched_model_can_be_used_by_the_transforms_of_torch_func() -> None:
    model = net()
    guard = Guard().watch(model)
    weights = {name: one.detach() for name, one in model.named_parameters()}

    def loss(weights: Any, x: Any) -> Any:
        return torch.func.functional_call(model, weights, (x,)).square().mean()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    for step in range(5):  # the first forwards are remembered by Python, the others by the kernel
        found = each(weights, torch.randn(8, 1, 4))
        assert found["0.weight"].shape == (8, 8, 4)
        value = model(torch.randn(8, 4)).mean()
        value.backward()
        assert guard.step(step, loss=value)


def test_sparse_gradients_are_looked_at_like_others() -> None:
    class Words(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(50, 4, sparse=True), nn.Linear(4, 1)

        def forward(self, x: Any) -> Any:
            return self.head(self.words(x).mean(dim=1))

    model, x = Words(), torch.randint(0, 50, (8, 5))
    guard = Guard().watch(model)
    for step, times in enumerate((1.0, 1.0, math.inf)):
        model.zero_grad()
        loss = model(x).square().mean()
        loss.backward(torch.tensor(times))
        if times == 1.0:
            assert guard.step(step, loss=loss)
    with pytest.raises(TrainingError, match=r"expected a finite gradient norm, got nan.*the loss function's"):
        guard.step(2, loss=loss)
    with pytest.warns(DeprecationWarning):
        scripted = torch.jit.script(nn.Linear(2, 2))  # takes no hooks with keywords
    with pytest.raises(UsageError, match=r"a torch.nn.Module to watch, got RecursiveScriptModule"):
        Guard().watch(scripted)


@pytest.mark.parametrize("steps", [0, 3])  # before the kernel remembers forwards, and after
def test_a_forward_of_held_out_rows_with_gradients_is_held_no_longer_than_it_is_evaluated(steps: int) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    guard = Guard().watch(model)
    for step in range(steps):
        (model(torch.ones(2, 4)) ** 2).mean().backward()
        guard.step(step, loss=1.0)
    answers = model(torch.ones(3, 4))
    held = weakref.ref(answers)
    guard.evaluated(steps, answers.mean())
    del answers
    assert held() is None

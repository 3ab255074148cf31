"""The compiled step of the guard says what its Python says: parity, what it leaves alone, and what it holds."""

from __future__ import annotations

import copy
import gc
import io
import math
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.errors import TrainingError
from tenon.training import Guard, Rules
from tenon.training.fast import Slow, fast

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
pytest.importorskip("tenon.training._fast", reason="the kernel was not compiled: no C compiler at installation")
nn = torch.nn
SELDOM = Rules(health=1e-9)  # so that no clock decides when it looks


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 1))


# ── parity ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def taken(losses: list[float], *, compiled: bool, spoiled: int = -1, spike: int = -1) -> tuple[Any, ...]:
    """Train with losses made up beside the gradients; return all that the guard came to know, and how it ended."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard(rules=SELDOM).watch(model, optimizer)
    if not compiled:
        guard._fast = None
    x, said, steps = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)), "", 0
    for step, loss in enumerate(losses):
        optimizer.zero_grad()
        (model(x).square().mean() * (1e5 if step == spike else 1.0)).backward()
        if step == spoiled:
            model[0].bias.grad[3] = math.inf
        try:
            if not guard.step(step, loss=torch.tensor(loss)):
                break
        except TrainingError as error:
            said = str(error)
            break
        optimizer.step()
        steps += 1
    seen = [(one.code, one.place, one.said) for one in guard.findings]
    watch = guard._watch
    return steps, said, seen, guard.trend.recent(), watch.fast.steps, watch.health.norms, watch.health.limit


@settings(max_examples=30, deadline=None)
@given(
    rest=st.lists(st.floats(-1e3, 1e3, width=32) | st.sampled_from([math.nan, math.inf]), min_size=1, max_size=120),
    level=st.floats(0, 10, width=32),
    spoiled=st.integers(-1, 190),
    spike=st.integers(0, 190),
)
def test_whatever_the_losses_and_gradients_the_kernel_ends_where_python_does(
    rest: list[float], level: float, spoiled: int, spike: int
) -> None:
    losses = [level] * 70 + rest
    ours, plain = (taken(losses, compiled=one, spoiled=spoiled, spike=spike) for one in (True, False))
    assert ours == plain


def test_a_spiking_gradient_is_told_at_its_step_by_the_kernel_too() -> None:
    _, _, seen, *_ = taken([1.0 - i / 1000 for i in range(200)], compiled=True, spike=150)
    assert [one[:2] for one in seen if "spike" in one[0]] == [("training/gradient-spike", "run/150")]


@pytest.mark.parametrize("clips", [False, True])
def test_most_steps_are_taken_by_the_kernel(clips: bool) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard(rules=SELDOM).watch(model, optimizer)
    kernel: Any = guard._fast
    by: list[int] = []
    guard._fast = Counting(kernel, by)
    for step in range(400):
        optimizer.zero_grad()
        loss = model(torch.randn(16, 4)).square().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0) if clips else None
        assert guard.step(step, loss=loss, grad_norm=norm)
        optimizer.step()
    assert kernel.steps == 400
    assert sum(one > 0 for one in by) > 350
    assert all(type(one) is float for one in guard._watch.health.norms)


class Counting:
    """Writes down what a Fast answers."""

    def __init__(self, kernel: Any, answers: list[int]) -> None:
        self.kernel, self.answers = kernel, answers
        self.next, self.read = 0, 0.0  # set by the guard

    def step(self, step: int, loss: Any, norm: Any) -> int:
        self.kernel.next, self.kernel.read = self.next, self.read
        answer = int(self.kernel.step(step, loss, norm))
        self.answers.append(answer)
        return answer


# ── what it reads ────────────────────────────────────────────────────────────────────────────────────────────────────


def read(*gradients: Any) -> Any:
    """Return a Fast over parameters with these gradients."""
    parameters = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype))
        parameter.grad = gradient
        parameters.append(parameter)
    return over(tuple(parameters))


def over(*turns: Any) -> Any:
    """Return a Fast that reads the gradients of these in turn."""
    return fast(torch, net(), print, turns=turns, ratios=[1.0] * len(turns), norms=[], calls=[], device="cpu")


def first(gradient: Any) -> Any:
    """Return a vector, or the first column of a matrix."""
    return gradient if gradient.dim() < 2 else gradient[(slice(None), *[0] * (gradient.dim() - 1))]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (7,), (416,), (5, 3), (3, 5, 2), (2, 3, 4, 5), (0,), (0, 3), (3, 0)], ids=str
)
def test_the_norm_is_that_of_vectors_and_first_columns(dtype: str, shape: tuple[int, ...]) -> None:
    gradient = torch.randn(shape, dtype=torch.float64).to(getattr(torch, dtype))
    expected = float(torch.linalg.vector_norm(first(gradient).double())) if gradient.numel() else 0.0
    assert read(gradient).norm() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.t(),
        lambda x: x[::2, 1:],
        lambda x: x[0, 0].expand(6),
        lambda x: x.flip(0)[:, 2],
        lambda x: x.unsqueeze(0).permute(2, 1, 0),
    ],
    ids=["transposed", "sliced", "expanded", "column", "permuted"],
)
def test_gradients_are_read_as_they_lie(make: Callable[[Any], Any]) -> None:
    gradient = make(torch.randn(8, 6))
    assert read(gradient).norm() == pytest.approx(float(first(gradient).double().norm()), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    size=st.integers(1, 40),
    place=st.integers(0, 39),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_a_value_that_is_not_finite_is_seen_wherever_it_lies(dtype: str, size: int, place: int, bad: float) -> None:
    gradient = torch.full((size,), 65504.0, dtype=getattr(torch, dtype))
    assert math.isfinite(read(gradient).norm())
    gradient[place % size] = bad
    assert not math.isfinite(read(torch.ones(3), gradient).norm())


def test_every_half_is_read_exactly() -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        values = values[values.isfinite()]
        for some in values.double().split(997):
            kernel = read(some.to(dtype)).norm()
            assert kernel == pytest.approx(float((some * some).sum().sqrt()), rel=1e-12)


def test_squares_of_floats_do_not_overflow_and_tiny_ones_do_not_vanish() -> None:
    assert read(torch.full((4,), 3e38)).norm() == pytest.approx(6e38, rel=1e-6)
    assert read(torch.full((4,), 1e-44)).norm() == pytest.approx(2e-44, rel=0.1)


def test_what_is_no_dense_tensor_on_the_processor_is_left_to_pytorch() -> None:
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.ones(2, 3), (5, 3), check_invariants=True)
    subclass = torch.randn(3).as_subclass(Mine)
    emptied = torch.ones(3)
    emptied.untyped_storage().resize_(0)
    others = torch.randn(3, dtype=torch.complex64), torch.ones(3, device="meta"), torch.ones(3, dtype=torch.int32)
    for gradient in (sparse, subclass, emptied, *others):
        assert math.isnan(over((Holder(gradient),)).norm())
    assert over((Holder(torch.ones(2)),)).norm() == pytest.approx(math.sqrt(2))
    assert over((Holder(None),)).norm() is None


class Mine(torch.Tensor):  # type: ignore[misc, name-defined, unused-ignore]
    """A tensor that means something else."""


class Holder:
    """Holds any gradient, as a parameter would not."""

    def __init__(self, grad: Any) -> None:
        self.grad = grad


def test_arguments_of_the_wrong_kind_are_refused() -> None:
    kernel = read(torch.ones(2))
    for method, wrong in ((kernel.step, 1), (kernel.after, 1), (kernel.follow, 3)):
        with pytest.raises(TypeError):
            method(wrong)
    with pytest.raises(ValueError, match="a ratio for each"):
        fast(torch, net(), print, turns=((),), ratios=[], norms=[], calls=[], device="cpu")
    with pytest.raises(TypeError):
        over(1)
    kernel.due = kernel.next = 10
    kernel.limit = kernel.read = math.inf
    assert [kernel.step(step, None, None) for step in (0.5, 2**70, None)] == [0, 0, 0]
    assert [kernel.step(0, loss, None) for loss in ("1", 1, torch.ones(2), math.nan, torch.tensor(1))] == [0] * 5
    assert [kernel.step(0, 1.0, norm) for norm in ("1", 1, torch.ones(2), math.nan, -1.0, math.inf)] == [0] * 6
    assert [kernel.step(0, 1.0, norm) for norm in (1.0, torch.tensor(3.0))] == [1] * 2
    assert [kernel.step(0, loss, None) for loss in (1.0, torch.ones(1, 1), torch.tensor(2.0).double(), None)] == [1] * 4


def test_its_clock_is_the_guards() -> None:
    kernel = read(torch.ones(2))
    kernel.due = kernel.next = 10
    kernel.limit = math.inf
    kernel.read = time.monotonic() + 3600
    assert kernel.step(0, 1.0, None) == 1
    kernel.read = time.monotonic()
    assert kernel.step(1, 1.0, None) == 2


# ── what it remembers ────────────────────────────────────────────────────────────────────────────────────────────────


def settled(model: Any, **told: Any) -> Guard:
    """Return a guard that has seen enough forwards to know that they take no random numbers."""
    guard = Guard(rules=SELDOM).watch(model, **told)
    for step in range(4):
        loss = model(torch.randn(2, 4)).square().mean()
        loss.backward()
        guard.step(step, loss=loss)
    assert guard._watch.fast.most > 0
    return guard


def test_a_forward_is_remembered_with_the_gradient_that_arrives() -> None:
    model = net()
    guard = settled(model)
    x = torch.randn(3, 4)
    output = model(x)
    output.sum().backward()
    assert type(guard._watch._calls[0]) is tuple, "by the kernel"
    (call,) = guard._watch._remembered()
    assert call.args[0] is x and call.random is None and call.cast is None
    assert torch.equal(call.grads[0], torch.ones(3, 1))


def test_the_last_forwards_of_a_step_are_remembered() -> None:
    model = net()
    guard = settled(model)
    inputs = [torch.randn(1, 4) for _ in range(20)]
    for x in inputs:
        model(x).sum().backward()
    assert [call.args[0] for call in guard._watch._remembered()] == inputs[-16:]


def test_what_a_forward_in_evaluation_computed_is_let_go_of() -> None:
    model = net()
    for guard in (settled(model), Guard().watch(model)):  # by the kernel, and by Python
        model.eval()
        model(torch.randn(3, 4))
        *_, call = guard._watch._remembered()
        assert call.outputs == {}, "an output holds on to all that was computed for it"
        model.train()
        guard.close()


def test_autocast_other_outputs_and_no_gradients_are_left_to_python() -> None:
    class Two(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.pair = net(), False

        def forward(self, x: Any) -> Any:
            return {"a": self.inner(x), "b": (x,)} if self.pair else self.inner(x)

    model = Two()
    guard = settled(model)
    model.pair = True
    with torch.no_grad():
        model(torch.randn(2, 4))
    assert guard._watch._calls == []
    model(torch.randn(2, 4))["a"].sum().backward()
    model.pair = False
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(2, 4)).float().sum().backward()
    pair, cast = guard._watch._remembered()
    assert set(pair.grads) == {0} and pair.cast is None
    assert cast.cast == torch.bfloat16


@pytest.mark.parametrize("steps", [0, 6])
def test_a_watched_model_can_be_copied_and_pickled_and_the_copy_is_not_watched(steps: int) -> None:
    model = net()
    guard = settled(model) if steps else Guard().watch(model)
    kept = io.BytesIO()
    torch.save(model, kept)
    kept.seek(0)
    for other in (copy.deepcopy(model), torch.load(kept, weights_only=False)):
        x = torch.randn(2, 4)
        assert torch.equal(other(x), model(x))
        guard._watch.let_go()
        other(x).sum().backward()
        assert guard._watch._calls == []
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)


def test_a_guard_that_is_dropped_lets_go_of_the_model() -> None:
    model = net()
    guard: Any = settled(model)
    gone = weakref.ref(model)
    del guard, model
    gc.collect()
    assert gone() is None


# ── without it ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_compiler_python_takes_every_step() -> None:
    slow = Slow(print)
    assert slow.step(3, 1.0, None) == 0
    norm = slow.norm()
    assert norm is not None and math.isnan(norm), "PyTorch is asked"

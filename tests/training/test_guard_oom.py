"""Running out of memory is explained in words, and the step is taken in parts that add up to the same loss."""

from __future__ import annotations

from typing import Any

import pytest

from tenon.errors import TrainingError, UsageError
from tenon.training import Guard
from tenon.training.oom import Micro, human, shortage

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
nn = torch.nn

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. "
    "GPU 0 has a total capacity of 79.11 GiB of which 1.25 GiB is free. "
    "Including non-PyTorch memory, this process has 77.85 GiB memory in use. Of the allocated memory 70.00 GiB is "
    "allocated by PyTorch, and 6.50 GiB is reserved by PyTorch but unallocated."
)


class Bounded:
    """A loss whose device holds so many rows and no more: it fails as PyTorch's allocator does."""

    def __init__(self, model: Any, x: Any, y: Any, rows: int) -> None:
        self.model, self.x, self.y, self.rows = model, x, y, rows
        self.seen: list[int] = []

    def __call__(self, part: slice) -> Any:
        count = part.stop - part.start
        self.seen.append(count)
        loss = ((self.model(self.x[part]) - self.y[part]) ** 2).mean()
        # The last part of a batch fails too, so that gradients of earlier parts must be dropped.
        if count > self.rows or (self.rows == 3 and part.start >= 4 and count > 2):
            raise torch.OutOfMemoryError(CUDA)
        return loss


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def batch(rows: int) -> tuple[Any, Any]:
    torch.manual_seed(1)
    return torch.randn(rows, 6).double(), torch.randn(rows, 1).double()


def test_a_shortage_is_read_from_what_pytorch_says() -> None:
    found = shortage(torch.OutOfMemoryError(CUDA))
    assert found is not None
    assert found.said() == (
        "2.5 GiB were asked for, of 79.1 GiB only 1.25 GiB are free, 70 GiB are held by tensors,"
        " 6.5 GiB are held in pieces that nobody uses"
    )
    assert "expandable_segments" in found.hint()
    processor = shortage(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000 bytes.")
    )
    assert processor is not None and processor.asked == 4_000_000 and processor.said() == "3.81 MiB were asked for"
    assert shortage(RuntimeError("shapes do not match")) is None
    assert shortage(MemoryError()) is not None
    assert human(10) == "10 bytes"


def test_what_the_processor_really_says_is_understood() -> None:
    with pytest.raises(RuntimeError) as told:
        torch.empty(2**58, dtype=torch.uint8)
    found = shortage(told.value)
    assert found is not None and found.asked == 2**58


@pytest.mark.parametrize("bound", [64, 16, 7, 3, 1])
def test_loss_and_gradients_of_the_parts_are_those_of_the_whole(bound: int) -> None:
    x, y = batch(50)
    whole, parts = net(), net()
    expected = ((whole(x) - y) ** 2).mean()
    expected.backward()
    micro = Micro(64)
    loss = micro.step(Bounded(parts, x, y, bound), rows=50, model=parts)
    assert abs(loss - expected.item()) < 1e-12
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-10, atol=1e-14)
    assert micro.rows <= max(bound, 1) or bound == 64


def test_the_size_that_fitted_is_kept_and_each_halving_told_with_the_guard() -> None:
    x, y = batch(32)
    model, guard = net(), Guard()
    micro, bounded = Micro(32, guard=guard), Bounded(model, x, y, 8)
    micro.step(bounded, rows=32, model=model)
    assert bounded.seen == [32, 16, 8, 8, 8, 8] and micro.rows == 8
    bounded.seen.clear()
    micro.step(bounded, rows=32, model=model)
    assert bounded.seen == [8, 8, 8, 8]
    assert [one.code for one in guard.findings] == ["training/out-of-memory"] * 2
    assert guard.findings[0].said.startswith("Out of memory with 32 rows at once: 2.5 GiB were asked for")
    assert guard.findings[0].said.endswith("The step is done again in parts of 16.")


def test_gradients_that_were_there_before_are_kept() -> None:
    x, y = batch(16)
    twice, once = net(), net()
    for _ in range(2):
        Micro(16).step(Bounded(twice, x, y, 16), rows=16, model=twice)
    Micro(16).step(Bounded(once, x, y, 16), rows=16, model=once)
    Micro(16).step(Bounded(once, x, y, 5), rows=16, model=once)
    for a, b in zip(twice.parameters(), once.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-10)


def test_what_earlier_parts_added_is_dropped_when_a_later_one_fails() -> None:
    x, y = batch(16)
    whole, parts, seen = net(), net(), 0
    ((whole(x) - y) ** 2).mean().backward()

    def loss_of(part: slice) -> Any:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise MemoryError
        return ((parts(x[part]) - y[part]) ** 2).mean()

    with pytest.raises(TypeError, match="'model'"):  # whose gradients could not be dropped otherwise
        Micro(8).step(loss_of, rows=16)  # type: ignore[call-arg]
    Micro(8).step(loss_of, rows=16, model=parts)
    assert seen == 6
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-10)


def test_one_row_that_does_not_fit_is_refused_in_words() -> None:
    x, y = batch(4)
    with pytest.raises(TrainingError, match=r"expected memory for one row, got 2\.5 GiB were asked for"):
        model = net()
        Micro(4).step(Bounded(model, x, y, 0), rows=4, model=model)


def test_other_errors_pass_and_batch_normalisation_is_told() -> None:
    def broken(part: slice) -> Any:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Micro(4).step(broken, rows=4, model=net())
    with pytest.raises(UsageError):
        Micro(0).step(broken, rows=4, model=net())
    x, y = batch(8)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)).double()
    micro = Micro(8)
    micro.step(Bounded(model, x, y, 4), rows=8, model=model)
    assert "BatchNorm1d now sees 4 rows" in micro.findings[0].said


def test_an_error_without_figures_is_told_in_its_own_words() -> None:
    def fails(part: slice) -> Any:
        raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED: out of memory in the workspace")

    with pytest.raises(TrainingError, match=r"memory was asked for \(CUDNN_STATUS_ALLOC_FAILED: out of memory in the"):
        Micro(8).step(fails, rows=1, model=net())

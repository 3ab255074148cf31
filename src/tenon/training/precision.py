"""Which precision to train in: what the hardware has, proven by a short run that the loss agrees, else fp32.

    chosen = auto(model, loss_of, batches, optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-3))
    scaler = chosen.scaler()
    with chosen.cast():
        loss = loss_of(model, batch)

`auto` trains copies of the model on the same batches with the same random numbers: in fp32, and in each precision that
the device has (on a GPU bf16, fp16 with scaling, tf32; on a processor bf16). A precision is proven when it runs, its
losses are finite and the mean of its second half lies within `tolerance` of fp32's, relative to the larger of that mean
and of what fp32 gained; among the proven ones the quickest is taken, and fp32 unless another is `WORTH` quicker. The
model itself and all random states are left as they were. A short run cannot show what goes wrong after a thousand
steps; the guard watches for that. Memory saved is not weighed here.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tenon.errors import TrainingError, UsageError, quoted, sentence
from tenon.finding import Finding
from tenon.training.watch_torch import torch_or_missing

WORTH = 1.05  # times as quick as fp32
KNOWN = ("bf16", "fp16", "tf32")
WORDS_CHARS = 120  # of what a model says of a precision it cannot run in


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One precision in the short run: its losses, the median time of a step, and whether fp32's losses agree."""

    name: str
    losses: tuple[float, ...]
    step_s: float
    agrees: bool
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The precision to train in, with all that were tried, and the finding that says why."""

    name: str
    device: str
    tried: tuple[Tried, ...]
    finding: Finding

    def cast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward and loss are computed."""
        return _cast(self.name, self.device)

    def scaler(self) -> Any:
        """Return the loss scaler; it does nothing but for fp16."""
        torch = torch_or_missing("scale a loss")
        return torch.amp.GradScaler(self.device, enabled=self.name == "fp16")


def candidates(device: str) -> list[str]:
    """Return the precisions that a device has beside fp32, the safest first."""
    torch = torch_or_missing("choose a precision")
    if device != "cuda":
        return ["bf16"]
    found = ["bf16"] if torch.cuda.is_bf16_supported() else []
    return [*found, *(["tf32"] if torch.cuda.get_device_capability()[0] >= 8 else []), "fp16"]


def auto(
    model: Any,
    loss_of: Callable[[Any, Any], Any],
    batches: Iterable[Any],
    *,
    optimizer: Callable[[Any], Any],
    steps: int = 20,
    tolerance: float = 0.02,
    names: list[str] | None = None,
) -> Chosen:
    """Choose a precision for `model` on the device it lies on; trains copies for `steps` steps in each."""
    torch_or_missing("choose a precision")
    taken = list(islice(batches, steps))
    if len(taken) < 4:
        raise UsageError(sentence("at least 4 batches to prove a precision", f"{len(taken)}", at="precision.auto"))
    device = next((one.device.type for one in model.parameters() if one.requires_grad), "")
    if not device:
        raise UsageError(sentence("a model with weights to train", "none", at="precision.auto"))
    names = names if names is not None else candidates(device)
    if unknown := [name for name in names if name not in KNOWN]:
        hint = f"one of {quoted(KNOWN)}"
        raise UsageError(sentence("precisions that are known", quoted(unknown), at="precision.auto", hint=hint))
    plain = _try("fp32", model, loss_of, taken, optimizer, device)
    tried = [_judged(plain, plain, tolerance)]
    if not tried[0].agrees:
        hint = "mend the model first; nothing can be held against a loss that is no number"
        raise TrainingError(sentence("a finite loss in fp32", tried[0].said, at="precision.auto", hint=hint))
    for name in names:
        try:
            one = _judged(_try(name, model, loss_of, taken, optimizer, device), plain, tolerance)
        except Exception as error:  # noqa: BLE001 - the edge to the user's model, which ran in fp32 and may not in this one
            said = f"it fails with {type(error).__name__}: {' '.join(str(error).split())[:WORDS_CHARS]}"
            one = Tried(name=name, losses=(), step_s=math.inf, agrees=False, said=said)
        tried.append(one)
    good = [one for one in tried if one.agrees]
    best = min(good, key=lambda one: one.step_s, default=tried[0])
    chosen = best if best.step_s * WORTH <= plain.step_s else tried[0]
    return Chosen(name=chosen.name, device=device, tried=tuple(tried), finding=_finding(chosen, tried))


def _try(name: str, model: Any, loss_of: Any, batches: list[Any], optimizer: Any, device: str) -> Tried:
    """Train a copy in one precision, from the same weights and random numbers."""
    torch = torch_or_missing("choose a precision")
    try:
        twin = copy.deepcopy(model)
    except (TypeError, RuntimeError) as error:
        raise UsageError(sentence("a model that copy.deepcopy can copy", f"'{error}'", at="precision.auto")) from error
    weights = optimizer([one for one in twin.parameters() if one.requires_grad])
    scaler = torch.amp.GradScaler(device, enabled=name == "fp16")
    losses, times = [], []
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        for batch in batches:
            start = time.perf_counter()
            with _cast(name, device):
                loss = loss_of(twin, batch)
            weights.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(weights)
            scaler.update()
            losses.append(float(loss.item()))
            times.append(time.perf_counter() - start)
    return Tried(name=name, losses=tuple(losses), step_s=statistics.median(times[1:]), agrees=False, said="")


def _judged(one: Tried, plain: Tried, tolerance: float) -> Tried:
    half = len(plain.losses) // 2
    if not all(map(math.isfinite, one.losses)):
        step = next(i for i, loss in enumerate(one.losses) if not math.isfinite(loss))
        agrees, said = False, f"its loss is {one.losses[step]} at step {step}"
    else:
        mean, ours = statistics.fmean(plain.losses[half:]), statistics.fmean(one.losses[half:])
        scale = max(abs(mean), plain.losses[0] - mean, 1e-12)
        off = abs(ours - mean) / scale
        agrees, said = off <= tolerance, f"its loss is {off:.2%} off"
    return Tried(name=one.name, losses=one.losses, step_s=one.step_s, agrees=agrees, said=said)


def _finding(chosen: Tried, tried: list[Tried]) -> Finding:
    plain = tried[0]
    parts = [
        f"{one.name}: {one.said}" + (f", {plain.step_s / one.step_s:.2f} times as quick" if one.losses else "")
        for one in tried
        if one is not plain
    ]
    failed = [one for one in tried if not one.agrees]
    hint = (
        "Keep fp32, or find the layer that needs it and keep only that one in fp32."
        if failed and chosen is plain
        else "Nothing to do; the choice is proven for this model on this device."
    )
    return Finding(
        code="training/precision",
        severity="warning" if failed and chosen is plain else "info",
        place="run/precision",
        said=f"Training in {chosen.name}. Tried for {len(plain.losses)} steps: {'; '.join(parts) or 'nothing else'}.",
        hint=hint,
        numbers={f"{one.name}_step_ms": one.step_s * 1e3 for one in tried if one.losses},
    )


def _cast(name: str, device: str) -> AbstractContextManager[Any]:
    torch = torch_or_missing("train in a precision")
    if name in ("bf16", "fp16"):
        cast: AbstractContextManager[Any] = torch.autocast(
            device, dtype=torch.bfloat16 if name == "bf16" else torch.float16
        )
        return cast
    return _tf32(torch) if name == "tf32" else nullcontext()


class _tf32:  # noqa: N801 - a context manager, used like a function
    """Let matrix products round their inputs to 10 bits of mantissa, and put back what was set before."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._before = ""

    def __enter__(self) -> None:
        self._before = self._torch.get_float32_matmul_precision()
        self._torch.set_float32_matmul_precision("high")

    def __exit__(self, *error: Any) -> None:
        self._torch.set_float32_matmul_precision(self._before)

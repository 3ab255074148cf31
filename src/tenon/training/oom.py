"""Out of memory, explained in words, and trained all the same: smaller micro-batches that add up to the same step.

    micro = Micro(64)
    for step, (x, y) in enumerate(batches):
        optimizer.zero_grad()
        loss = micro.step(lambda part: loss_of(model(x[part]), y[part]), rows=len(x), model=model)
        optimizer.step()

`Micro.step` computes loss and gradients of a batch in parts: the mean of losses weighted by rows, which is the loss of
the whole, and gradients that add up to the whole's. When a part runs out of memory, its gradients are dropped, the
micro-batch is halved and the step is done again, until it fits or one row does not; the size that fitted is kept for
the steps after. A finding says what asked, what was held, and how much of that was fragmentation.

What is equal: loss and gradients, but for the order of sums (about 1e-7 of them in float32), for every model whose rows
do not meet. Batch normalisation sees smaller batches and so other statistics, and random numbers (dropout) are drawn in
other portions; the first is looked for and told. The loss must be a mean over rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tenon.errors import TrainingError, UsageError, sentence
from tenon.finding import Finding
from tenon.training.watch_torch import torch_or_missing

SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?) (?P<unit>[KMGT]iB|bytes)")
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
WORDS_CHARS = 200  # of an error that tells no figures
LOW = re.compile(r"out of memory|can't allocate memory|not enough memory|cannot allocate memory", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """What an OutOfMemory said and the allocator adds, in bytes; 0 for what is not known."""

    asked: int = 0
    total: int = 0
    free: int = 0
    allocated: int = 0
    reserved: int = 0
    words: str = ""  # of the error, where it tells no figures

    @property
    def fragmented(self) -> int:
        """Return what the allocator holds and nobody uses: too small pieces, or not in one piece."""
        return max(self.reserved - self.allocated, 0)

    def said(self) -> str:
        """Say it in words."""
        unknown = f"memory was asked for ({self.words})" if self.words else "memory was asked for"
        parts = [f"{human(self.asked)} were asked for" if self.asked else unknown]
        if self.total:
            parts.append(f"of {human(self.total)} only {human(self.free)} are free")
        if self.allocated:
            parts.append(f"{human(self.allocated)} are held by tensors")
        if self.fragmented:
            parts.append(f"{human(self.fragmented)} are held in pieces that nobody uses")
        return ", ".join(parts)

    def hint(self) -> str:
        """Say what to do beside a smaller micro-batch."""
        if self.asked and self.fragmented > self.asked:
            return "Set PYTORCH_ALLOC_CONF=expandable_segments:True: there is enough memory, but not in one piece."
        return "Checkpoint activations, train in bf16, or use a leaner optimiser to keep the larger micro-batch."


def shortage(error: BaseException) -> Shortage | None:
    """Read what ran out of memory from an error of PyTorch or Python; None when it is another kind of error."""
    text = str(error)
    if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError" and not LOW.search(text):
        return None
    return Shortage(
        asked=_size(text, r"[Tt]ried to allocate {}") or _size(text, r"you tried to allocate {}"),
        total=_size(text, r"total capacity of {}"),
        free=_size(text, r"of which {} is free"),
        allocated=_size(text, r"{} is allocated by PyTorch"),
        reserved=_size(text, r"{} is allocated by PyTorch") + _size(text, r"{} is reserved by PyTorch but unallocated"),
        words=" ".join(text.split())[:WORDS_CHARS],
    )


@dataclass(slots=True)
class Micro:
    """Steps in micro-batches of at most `rows` rows, halved when memory runs out; see the module's docstring."""

    rows: int
    guard: Any = None
    findings: list[Finding] = field(default_factory=list)
    _steps: int = 0

    def step(self, loss_of: Callable[[slice], Any], *, rows: int, model: Any, scaler: Any = None) -> float:
        """Add the gradients of a batch of `rows` rows to the model's, in parts; returns the loss of the whole.

        ``loss_of(slice)`` gives the mean loss of some of its rows as a tensor. When a part fails, the gradients of
        `model` are again those that were there before. TrainingError when one row alone does not fit.
        """
        if rows < 1 or self.rows < 1:
            raise UsageError(sentence("rows of 1 or more", f"{rows} in parts of {self.rows}", at="Micro.step"))
        self._steps += 1
        while True:
            before = _gradients(model)
            try:
                return self._once(loss_of, rows, scaler)
            except (RuntimeError, MemoryError) as error:
                lack = shortage(error)
                if lack is None:
                    raise
                # The error holds the frames, and those the tensors of the step that failed.
                error.__traceback__ = None
            _put_back(model, before)
            self._shrink(lack, min(rows, self.rows), model)

    def _once(self, loss_of: Callable[[slice], Any], rows: int, scaler: Any) -> float:
        total = 0.0
        for begin in range(0, rows, self.rows):
            part = slice(begin, min(begin + self.rows, rows))
            loss = loss_of(part) * ((part.stop - part.start) / rows)
            (scaler.scale(loss) if scaler is not None else loss).backward()
            total += float(loss.item())
        return total

    def _shrink(self, lack: Shortage, was: int, model: Any) -> None:
        """Halve the micro-batch and say why."""
        torch = torch_or_missing("train in micro-batches")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        place = f"run/{self._steps - 1}"
        if was == 1:
            raise TrainingError(sentence("memory for one row", lack.said(), at=place, hint=lack.hint()))
        self.rows = -(-was // 2)
        said = f"Out of memory with {was} rows at once: {lack.said()}. The step is done again in parts of {self.rows}."
        norms = sorted({type(one).__name__ for one in model.modules() if "BatchNorm" in type(one).__name__})
        if norms:
            said += f" {norms[0]} now sees {self.rows} rows, so results differ from those of whole batches."
        numbers = {
            "rows": float(self.rows),
            "asked_bytes": float(lack.asked),
            "fragmented_bytes": float(lack.fragmented),
        }
        finding = Finding(
            code="training/out-of-memory", severity="warning", place=place, said=said, hint=lack.hint(), numbers=numbers
        )
        self.findings.append(finding)
        if self.guard is not None:
            self.guard.tell(finding)


def _gradients(model: Any) -> list[Any]:
    """Return copies of the gradients that are there already; none at the start of a step."""
    return [one.grad.clone() if one.grad is not None else None for one in model.parameters()]


def _put_back(model: Any, grads: list[Any]) -> None:
    for one, grad in zip(model.parameters(), grads, strict=True):
        one.grad = grad


def _size(text: str, form: str) -> int:
    found = re.search(form.replace("{}", SIZE.pattern), text)
    return int(float(found["number"]) * UNITS[found["unit"]]) if found else 0


def human(size: int) -> str:
    """Write bytes as a person reads them."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= UNITS[unit]:
            return f"{size / UNITS[unit]:.3g} {unit}"
    return f"{size} bytes"

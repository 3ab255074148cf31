"""The health of an optimisation, in findings with a next step: looked at now and then, for a bounded share of time.

At a look, before the optimiser steps, small samples of every weight matrix are copied (at most `SAMPLE` values each);
at the next step they are compared with what the optimiser made of them, and all numbers of the look are read at once,
with that step's loss. From samples and gradients come:

- *update to weight*: the norm of a step against the norm of the weights. Around 1e-3 is usual for healthy training (the
  rule of thumb is Karpathy's and Goodfellow's); above `LARGE` a step rewrites the layer, below `SMALL` nothing moves;
- *dead units*: rows of a linear or convolutional weight whose gradient was exactly zero at every one of `LOOKS` looks:
  a unit behind a ReLU that no row of any batch switches on learns nothing ever after;
- *vanishing*: the first layer's relative gradient is a millionth of the last one's;
- *spikes* of the gradient norm against its own usual value, which clipping would have cut;
- *loss scale*: the scaler of fp16 has gone below one, or skips steps again and again.

A look is paid from a share of the loop's processor time (half of `Rules.health`), measured, so that a large
model is looked at less often and never made slow. Each finding is told once, and needs `LOOKS` looks that agree.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

from tenon.finding import Finding
from tenon.training.blame_torch import local

SAMPLE = 4_096  # values of each weight that are followed
RUN = 16  # of them that lie together
LOOKS = 5  # looks that must agree
LARGE = 0.1  # a step this large against the weights rewrites them
SMALL = 1e-7  # a step this small, against float32's own 6e-8, changes nothing
DEAD = 0.5  # share of a layer's units that is told
VANISHED = 1e-6  # relative gradient of the first layer against the last one's
SPIKE = 20.0  # times the usual gradient norm
USUAL = 24  # gradient norms that say what is usual
EVERY = 2  # steps, and more while none is due, after which it is asked whether a look is
HASTE = 1.1  # more steps than forecast, so that what is due is affordable when it is asked again
REFRESH = 128  # norms after which it is asked again what is usual
SKIPPED = 10  # steps in a row that a loss scaler may skip before it is told
STUCK = 50  # steps in a row after which no scale will help


class Health:
    """What was seen at the looks so far; `look` is called once a step and returns new findings."""

    __slots__ = (
        "_before",
        "_began",
        "_biases",
        "_dead",
        "_due",
        "_found",
        "_full",
        "_large",
        "_layers",
        "_looks",
        "_optimizer",
        "_paid",
        "_scaler",
        "_sizes",
        "_skipped",
        "_small",
        "_told",
        "_torch",
        "_usual",
        "_vanished",
        "_with_gradient",
        "due",
        "limit",
        "looking",
        "norms",
        "ratios",
        "share",
    )

    def __init__(self, model: Any, optimizer: Any, scaler: Any, *, share: float) -> None:
        import torch

        self._torch = torch
        self.share = share
        self.ratios: dict[str, float] = {}  # layer -> update to weight at the last look
        weights = [(name, one) for name, one in model.named_parameters() if one.requires_grad and one.dim() >= 2]
        self._layers: list[tuple[str, Any]] = weights
        vectors = {name: one for name, one in model.named_parameters() if one.dim() == 1 and one.requires_grad}
        # A unit's gradient is in its bias as much as in its row of the weight, and far quicker to read there.
        self._biases = {name: vectors.get(name.removesuffix("weight") + "bias") for name, _ in weights}
        self._optimizer = optimizer
        self._scaler = scaler
        self._began = time.thread_time()
        self._paid = 0.0
        self._looks = 0
        self._due = 0  # of all steps taken, that before which no look is due
        self.due = 0  # and before which there is nothing to look at, if the gradient norm stays below its limit
        self.looking = False  # a look began at the last step, and has not been read
        self._before: list[Any] = []  # samples of the weights from then
        self._with_gradient: list[str] = []
        self._sizes: list[Any] = []  # norms of samples of their gradients, not read yet
        self._found: list[Finding] = []
        self._dead: dict[str, Any] = {}
        self.norms: list[float] = []  # of the gradients, the latest last
        self._usual = 0.0
        self._full = USUAL  # of them, from which it is asked what is usual
        self.limit = math.inf
        self._large = self._small = self._vanished = self._skipped = 0
        self._told: set[str] = set()

    def look(self, step: int, steps: int, norm: float | None) -> list[Finding] | None:
        """Return what is new since the last step; `norm` is that of the gradients, `steps` how many have been taken.

        A look begins here, before the optimiser steps; what it sees is `asked` and `answered` at the next step.
        """
        if norm is not None:
            self._usually(step, norm)
        if steps >= self._due and not self.looking:
            start = time.thread_time()
            since = start - self._began
            left = self._paid / (self.share / 2) - since
            if left <= 0:
                self._begin()
                self._paid += time.thread_time() - start
            self._due = again(steps, left, since)
        self.due = steps if self.looking else min(self._due, steps + self._full - 1 - len(self.norms))
        if not self._found:
            return None
        found, self._found = self._found, []
        return found

    def _usually(self, step: int, norm: float) -> None:
        """Compare a norm of the gradients with what is usual, and learn from it what is."""
        self._skipped = 0
        norms = self.norms
        norms.append(norm)
        if norm > self.limit and (spike := self._spike(step, norm)) is not None:
            self._found.append(spike)
        if len(norms) >= self._full:
            del norms[:-USUAL]
            self._usual, self._full = statistics.median(norms), USUAL + REFRESH
            self.limit = SPIKE * self._usual or math.inf

    def asked(self, step: int) -> Any:
        """Return what the look that began at the last step still has to read, as one tensor."""
        start = time.thread_time()
        torch, before = self._torch, self._before
        now = [_some(weight) for _, weight in self._layers]
        moved = torch._foreach_norm(torch._foreach_sub(now, before))
        parts = [*torch._foreach_norm(before), *moved, *self._sizes]
        if self._looks >= LOOKS and "training/dead-units" not in self._told:
            parts += [dead.sum() for dead in self._dead.values()]
        device = parts[0].device  # a model may lie on several
        asked = torch.stack([one.float().to(device) for one in parts])
        self._paid += time.thread_time() - start
        return asked

    def answered(self, step: int, values: list[float]) -> None:
        """Take the numbers that were asked for, and judge them; `look` gives out what came of it."""
        names, count = [name for name, _ in self._layers], len(self._layers)
        sizes, moved, rest = values[:count], values[count : 2 * count], values[2 * count :]
        grads = dict(zip(self._with_gradient, rest, strict=False))
        dead = dict(zip(self._dead, rest[len(grads) :], strict=False))
        size_of = dict(zip(names, sizes, strict=True))
        self.looking = False
        self.ratios = {name: by / size for name, by, size in zip(names, moved, sizes, strict=True) if size > 0}
        relative = [(name, norm / size_of[name]) for name, norm in grads.items() if size_of[name] > 0]
        for finding in (self._tell_dead(step, dead), self._tell_vanished(step, relative), *self._moves(step)):
            if finding is not None:
                self._found.append(finding)

    def skipped(self, step: int) -> Finding | None:
        """Count a step that the loss scaler skips; a finding when it skips again and again."""
        self._skipped += 1
        if self._skipped < SKIPPED or "training/loss-scale" in self._told:
            return None
        scale = float(self._scaler.get_scale())
        said = (
            f"The loss scaler has skipped {self._skipped} steps in a row and is down to {scale:g}: no step was taken."
        )
        hint = "Train in bf16 or fp32, lower the learning rate, or look for the layer whose values exceed 65,504."
        return self._tell(
            "training/loss-scale", "error", step, said, hint, {"scale": scale, "steps": float(self._skipped)}
        )

    @property
    def stuck(self) -> bool:
        """Tell whether the loss scaler has skipped so many steps in a row that no scale will help."""
        return self._skipped >= STUCK

    # ── looks ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _spike(self, step: int, norm: float) -> Finding | None:
        usual = self._usual
        said = f"The gradient norm is {norm:.3g}, {norm / usual:.0f} times what is usual for this run, {usual:.3g}."
        hint = f"Clip gradients at about {2 * usual:.2g}, and look at this step's rows."
        return self._tell("training/gradient-spike", "warning", step, said, hint, {"norm": norm, "usual": usual})

    def _begin(self) -> None:
        """Copy the samples of the weights before the optimiser moves them, and look at their gradients."""
        if not self._layers:
            return
        self.looking = True
        self._looks += 1
        self._before = [_some(weight).clone() for _, weight in self._layers]
        dense = [(name, one) for name, one in self._layers if one.grad is not None and not one.grad.is_sparse]
        self._with_gradient = [name for name, _ in dense]
        self._sizes = self._torch._foreach_norm([_some(one.grad) for _, one in dense]) if dense else []
        if "training/dead-units" in self._told:
            return
        for name, weight in dense:
            bias = self._biases[name]
            if bias is not None and bias.grad is not None and len(bias) == len(weight):
                dead = local(bias.grad) == 0
            else:
                dead = (_rows(weight.grad) == 0).all(dim=1)
            self._dead[name] = dead & self._dead[name] if name in self._dead else dead

    def _moves(self, step: int) -> list[Finding | None]:
        """Judge how much of the weights a step changes."""
        ratios = self.ratios
        if not ratios:
            return []
        worst = max(ratios, key=lambda name: ratios[name])
        middle = statistics.median(ratios.values())
        self._large = self._large + 1 if ratios[worst] > LARGE else 0
        self._small = self._small + 1 if 0 <= middle < SMALL else 0
        found: list[Finding | None] = []
        if self._large >= LOOKS:
            said = f"A step changes '{worst}' by {ratios[worst]:.1%} of its size, at {LOOKS} looks; 0.1 % is usual."
            hint = "Lower the learning rate about tenfold, or warm it up over the first hundreds of steps."
            found.append(self._tell("training/update-too-large", "warning", step, said, hint, {"ratio": ratios[worst]}))
        if self._small >= LOOKS:
            said = (
                f"A step changes the weights by {middle:.1g} of their size: nothing moves, at {LOOKS} looks in a row."
            )
            hint = "Raise the learning rate, or check that the optimiser holds these parameters and its schedule moves."
            found.append(self._tell("training/update-too-small", "warning", step, said, hint, {"ratio": middle}))
        return found

    def _tell_dead(self, step: int, counts: dict[str, float]) -> Finding | None:
        shares = {name: count / len(self._dead[name]) for name, count in counts.items() if len(self._dead[name]) > 1}
        worst = max(shares, key=lambda name: shares[name], default=None)
        if worst is None or shares[worst] < DEAD:
            return None
        count, units = int(counts[worst]), len(self._dead[worst])
        said = (
            f"{count:,} of {units:,} units of '{worst}' had no gradient at any of {self._looks} looks: they are dead."
        )
        hint = "Lower the learning rate, initialise for the activation (He for ReLU), or use a leaky activation."
        numbers = {"dead": float(count), "units": float(units)}
        return self._tell("training/dead-units", "warning", step, said, hint, numbers)

    def _tell_vanished(self, step: int, relative: list[tuple[str, float]]) -> Finding | None:
        if len(relative) < 2:
            return None
        (first, low), (last, high) = relative[0], relative[-1]
        self._vanished = self._vanished + 1 if low < VANISHED * high else 0
        if self._vanished < LOOKS:
            return None
        at = f"{low:.1g} at '{first}' and {high:.1g} at '{last}'"
        said = f"The gradient vanishes on its way: relative to the weights it is {at}."
        hint = "Use normalisation or skip connections, another activation, or an initialisation that keeps variance."
        return self._tell("training/gradient-vanishes", "warning", step, said, hint, {"first": low, "last": high})

    def _tell(
        self, code: str, severity: Any, step: int, said: str, hint: str, numbers: dict[str, float]
    ) -> Finding | None:
        if code in self._told:
            return None
        self._told.add(code)
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        return Finding(code=code, severity=severity, place=f"run/{step}", said=said, hint=hint, numbers=finite)


def again(steps: int, left_s: float, since_s: float) -> int:
    """Return the step at which what cost too much by `left_s` seconds is affordable, at the pace of `since_s`."""
    return steps + max(EVERY, math.ceil(HASTE * left_s / since_s * steps) if since_s > 0 else 0)


def _some(weight: Any) -> Any:
    """Return at most SAMPLE values of a weight, in evenly spread runs of RUN, without copying the others.

    A processor fetches memory by the line: single values that lie apart would cost as much as RUN of them each.
    """
    values = local(weight.detach()).reshape(-1)
    if values.numel() <= SAMPLE:
        return values
    runs = values[: values.numel() // RUN * RUN].view(-1, RUN)
    return runs[:: math.ceil(len(runs) / (SAMPLE // RUN))]


def _rows(tensor: Any) -> Any:
    """Return what this rank holds of a tensor as a matrix of its rows, of which there may be none."""
    held = local(tensor)
    return held.reshape(len(held), math.prod(tensor.shape[1:]))

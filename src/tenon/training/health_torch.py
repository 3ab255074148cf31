"""The health of an optimisation, in findings with a next step: looked at now and then, for a bounded share of time.

At a look, before the optimiser steps, small samples of every weight matrix are copied (at most `SAMPLE` values each);
at the next step they are compared with what the optimiser made of them. From samples and gradients come:

- *update to weight*: the norm of a step against the norm of the weights. Around 1e-3 is usual for healthy training (the
  rule of thumb is Karpathy's and Goodfellow's); above `LARGE` a step rewrites the layer, below `SMALL` nothing moves;
- *dead units*: rows of a linear or convolutional weight whose gradient was exactly zero at every one of `LOOKS` looks:
  a unit behind a ReLU that no row of any batch switches on learns nothing ever after;
- *vanishing*: the first layer's relative gradient is a millionth of the last one's;
- *spikes* of the gradient norm against its own usual value, which clipping would have cut;
- *loss scale*: the scaler of fp16 has gone below one, or skips steps again and again.

A look is paid from a share of the loop's processor time (`Rules.health`, two thousandths), measured, so that a large
model is looked at less often and never made slow. Each finding is told once, and needs `LOOKS` looks that agree.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from typing import Any

from tenon.finding import Finding
from tenon.training.blame_torch import local

SAMPLE = 4_096  # values of each weight that are followed
LOOKS = 5  # looks that must agree
LARGE = 0.1  # a step this large against the weights rewrites them
SMALL = 1e-7  # a step this small, against float32's own 6e-8, changes nothing
DEAD = 0.5  # share of a layer's units that is told
VANISHED = 1e-6  # relative gradient of the first layer against the last one's
SPIKE = 20.0  # times the usual gradient norm
USUAL = 64  # gradient norms that say what is usual
EVERY = 2  # steps, after which it is asked whether a look is due
REFRESH = 16  # steps after which it is asked again what is usual
SKIPPED = 10  # steps in a row that a loss scaler may skip before it is told
STUCK = 50  # steps in a row after which no scale will help


class Health:
    """What was seen at the looks so far; `look` is called once a step and returns new findings."""

    __slots__ = (
        "_before",
        "_began",
        "_biases",
        "_dead",
        "_large",
        "_layers",
        "_looks",
        "_norms",
        "_optimizer",
        "_paid",
        "_scaler",
        "_skipped",
        "_small",
        "_told",
        "_usual",
        "_vanished",
        "ratios",
        "share",
    )

    def __init__(self, model: Any, optimizer: Any, scaler: Any, *, share: float = 0.002) -> None:
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
        self._before: dict[str, Any] | None = None
        self._dead: dict[str, Any] = {}
        self._norms: deque[float] = deque(maxlen=USUAL)
        self._usual = 0.0
        self._large = self._small = self._vanished = self._skipped = 0
        self._told: set[str] = set()

    def look(self, step: int, norm: float | None) -> list[Finding]:
        """Return what is new since the last step; does nothing but arithmetic on `norm` unless a look is due."""
        found: list[Finding] = []
        if norm is not None and (spike := self._spike(step, norm)) is not None:
            found.append(spike)
        if self._before is None and step % EVERY:
            return found
        now = time.perf_counter()
        due = self._paid <= self.share * (time.thread_time() - self._began)
        if self._before is not None:
            found += self._after(step)
        elif due and self._layers:
            self._sample()
            found += self._gradients(step)
        else:
            return found
        self._paid += time.perf_counter() - now
        return found

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
        self._skipped = 0
        if len(self._norms) == USUAL and (self._usual == 0 or step % REFRESH == 0):
            self._usual = statistics.median(self._norms)
        usual = self._usual
        self._norms.append(norm)
        if not 0 < SPIKE * usual < norm:
            return None
        said = f"The gradient norm is {norm:.3g}, {norm / usual:.0f} times what is usual for this run, {usual:.3g}."
        hint = f"Clip gradients at about {2 * usual:.2g}, and look at this step's rows."
        return self._tell("training/gradient-spike", "warning", step, said, hint, {"norm": norm, "usual": usual})

    def _sample(self) -> None:
        self._looks += 1
        self._before = {name: _some(weight).clone() for name, weight in self._layers}

    def _after(self, step: int) -> list[Finding]:
        """Compare the sampled weights with what the optimiser has made of them."""
        before, self._before = self._before or {}, None
        ratios = {}
        for name, weight in self._layers:
            old = before[name]
            size = float(old.norm())
            if size > 0:
                ratios[name] = float((_some(weight) - old).norm()) / size
        self.ratios = ratios
        if not ratios:
            return []
        worst = max(ratios, key=lambda name: ratios[name])
        middle = statistics.median(ratios.values())
        self._large = self._large + 1 if ratios[worst] > LARGE else 0
        self._small = self._small + 1 if 0 <= middle < SMALL else 0
        found = []
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
        return [one for one in found if one is not None]

    def _gradients(self, step: int) -> list[Finding]:
        """Look for units that never get a gradient, and for a gradient that does not reach the first layer."""
        relative = []
        for name, weight in self._layers:
            if weight.grad is None or weight.grad.is_sparse:
                continue
            bias = self._biases[name]
            if bias is not None and bias.grad is not None and len(bias) == len(weight):
                dead = local(bias.grad) == 0
            else:
                grad = local(weight.grad)
                dead = (grad.reshape(len(grad), math.prod(weight.shape[1:])) == 0).all(dim=1)
            self._dead[name] = dead & self._dead[name] if name in self._dead else dead
            size = float(_some(weight).norm())
            if size > 0:
                relative.append((name, float(_some(weight.grad).norm()) / size))
        found = [self._tell_dead(step), self._tell_vanished(step, relative)]
        return [one for one in found if one is not None]

    def _tell_dead(self, step: int) -> Finding | None:
        if self._looks < LOOKS:
            return None
        shares = {name: float(dead.float().mean()) for name, dead in self._dead.items() if len(dead) > 1}
        worst = max(shares, key=lambda name: shares[name], default=None)
        if worst is None or shares[worst] < DEAD:
            return None
        count, units = int(self._dead[worst].sum()), len(self._dead[worst])
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


def _some(weight: Any) -> Any:
    """Return at most SAMPLE values of a weight, evenly spread, without copying the others."""
    values = local(weight.detach()).reshape(-1)  # a shard says enough
    return values[:: max(1, math.ceil(values.numel() / SAMPLE))]

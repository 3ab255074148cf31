"""The steps of a guarded loop at which nothing is due: taken by a compiled kernel (`_fast.c`) where there is one.

After a training step the caches hold weights, and every Python function that runs costs some five microseconds to
fetch. Most steps of a guard only compare a few numbers, so that is done in one place which holds nothing else. It takes
a step when that can have no other outcome than to go on, and leaves every other, untouched, to the guard.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

try:
    from tenon.training._fast import Fast
except ImportError:  # no compiler at installation
    Fast = None  # type: ignore[assignment, misc]


class Slow:
    """Stands where a Fast would, and takes no step."""

    __slots__ = ("after", "due", "held", "hold", "limit", "most", "next", "read", "steps")

    def __init__(self, hook: Callable[..., None]) -> None:
        self.after = hook
        self.steps = self.due = self.next = self.most = self.hold = self.held = 0
        self.read = self.limit = 0.0

    def step(self, step: int, loss: Any, norm: Any, /) -> int:
        """Leave the step to the guard."""
        return 0

    def norm(self) -> float | None:
        """Say that a gradient may not be finite, so that PyTorch is asked."""
        return math.nan

    def follow(self, losses: list[float], /) -> None:
        """Append no losses."""


class Gone:
    """Stands in a model that was pickled where the hooks of a watch were, and sees nothing."""

    def after(self, *told: Any) -> None:
        """See nothing."""

    _before = _after = after


def fast(torch: Any, model: Any, hook: Callable[..., None], *, device: str, **told: Any) -> Any:
    """Return a Fast for a model on a kind of device, or what stands for one where it cannot be had."""
    if Fast is None:
        return Slow(hook)
    # PyTorch's own, of any device, where there is one: it parses no word.
    casting = getattr(torch._C, "_is_any_autocast_enabled", None) or partial(torch.is_autocast_enabled, device)
    return Fast(tensor=torch.Tensor, model=model, hook=hook, casting=casting, **told)

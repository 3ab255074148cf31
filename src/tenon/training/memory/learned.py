"""How far predictions may be off: a default until there are measurements, then what past runs on the device show.

The margin is added to what is predicted before anything is said to fit. Without measurements it is 8 % and 256 MiB (20
% where a step was extrapolated): cuDNN's choice of workspaces, the context and loaded kernels, and allocations of
libraries that no operator shows are known only from public figures and sources, none of them measured here. With
measurements the margin is what the worst of the last 50 runs on that device exceeded its prediction by, and one
standard deviation more; below five runs it never goes under the default, and never under 2 %. The highest of n errors
is exceeded by the next with a chance of 1 in n + 1 whatever their distribution (order statistics): the worst counts.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenon.store import Store

KIND = "fit-peak"
DEFAULT = 0.08
EXTRAPOLATED = 0.20
LEAST = 0.02
FIXED_BYTES = 256 * 1024**2
LATEST = 50
ENOUGH = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """What is added to a prediction, and how many measured runs it rests on."""

    relative: float = DEFAULT
    fixed_bytes: int = FIXED_BYTES
    runs: int = 0

    def over(self, size: int) -> int:
        """Return `size` with the margin added."""
        return int(size * (1 + self.relative)) + self.fixed_bytes

    @property
    def said(self) -> str:
        """Return where the margin comes from, in words."""
        if not self.runs:
            return f"{self.relative:.0%} and 256 MiB, no run on this device is measured yet"
        return (
            f"{self.relative:.1%} and {self.fixed_bytes // 1024**2} MiB, "
            f"from {self.runs} measured run{'s' * (self.runs > 1)} on this device"
        )


def margin(store: Store | None, device: str, *, extrapolated: bool = False) -> Margin:
    """Return the margin for a device from the runs that the store remembers."""
    least = EXTRAPOLATED if extrapolated else DEFAULT
    bodies = store.find(KIND, device=device, limit=LATEST) if store is not None else []
    ratios = [float(body["measured_bytes"]) / body["predicted_bytes"] for body in bodies if body["predicted_bytes"] > 0]
    if not ratios:
        return Margin(relative=least)
    seen = max(ratios) - 1 + (statistics.stdev(ratios) if len(ratios) > 1 else 0.0)
    enough = len(ratios) >= ENOUGH and not extrapolated
    return Margin(
        relative=max(seen, LEAST if enough else least), fixed_bytes=0 if enough else FIXED_BYTES, runs=len(ratios)
    )


def learn(store: Store, device: str, *, predicted_bytes: int, measured_bytes: int, about: Any = None) -> None:
    """Remember a run's measured peak of reserved bytes beside what was predicted, for the margin of the next ones.

    `measured_bytes` is torch.cuda.max_memory_reserved() after a few steps; `about` is anything that says which run.
    """
    import hashlib
    import json
    import time

    body = {
        "device": device,
        "predicted_bytes": int(predicted_bytes),
        "measured_bytes": int(measured_bytes),
        "about": about,
        "at": time.time(),
    }
    store.put(KIND, hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12], body, at=body["at"])

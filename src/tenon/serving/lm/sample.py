"""How a token is chosen from logits, and how text is held back until it cannot be the beginning of a stop string.

Temperature 0 takes the largest logit, the first of equals. Otherwise one uniform number of the request's own generator
(PCG64 of its seed) is looked up in the cumulated probabilities, computed in float64: what a request says depends on its
seed and never on who else is asking. `top_p` keeps the fewest tokens whose probabilities reach it (Holtzman et al.,
ICLR 2020), ordered by probability and then by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How to choose: temperature (0 is the likeliest token), nucleus, and the seed of chance."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


def choose(logits: NDArray[np.float32], how: Choice, chance: np.random.Generator) -> int:
    """Return the chosen token; reads one number of `chance` unless the temperature is 0."""
    if how.temperature == 0.0:
        return int(logits.argmax())
    scaled = (logits.astype(np.float64) - float(logits.max())) / how.temperature
    weights = np.exp(scaled)
    point = chance.random()
    if how.top_p >= 1.0:
        summed = np.cumsum(weights)
        return min(int(np.searchsorted(summed, point * summed[-1], side="right")), len(weights) - 1)
    order = np.argsort(-weights, kind="stable")
    summed = np.cumsum(weights[order])
    kept = int(np.searchsorted(summed, how.top_p * summed[-1])) + 1
    return int(order[min(int(np.searchsorted(summed[:kept], point * summed[kept - 1], side="right")), kept - 1)])


class Until:
    """Passes text on until a stop string appears; what may be the beginning of one is held back."""

    __slots__ = ("_held", "_stops", "found")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def read(self, text: str) -> str:
        """Return what may be passed on now; after a stop string was found nothing is."""
        if not self._stops:
            return text
        if self.found:
            return ""
        self._held += text
        cuts = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if cuts:
            self.found = True
            passed, self._held = self._held[: min(cuts)], ""
            return passed
        keep = max(self._partial(stop) for stop in self._stops)
        at = len(self._held) - keep
        passed, self._held = self._held[:at], self._held[at:]
        return passed

    def _partial(self, stop: str) -> int:
        """Return how much of the end of what is held begins this stop string."""
        for size in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:size]):
                return size
        return 0

    def end(self) -> str:
        """Return what was held back, because no more is coming."""
        passed, self._held = self._held, ""
        return passed

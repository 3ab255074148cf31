"""Will it fit? Memory and time of a training, predicted before launch; a run that cannot fit is refused with a plan.

Two samples of the real rows are trained for a few rounds while the memory of the process is read every 2 ms; the line
through both gives bytes for each row, which is extrapolated to all rows and never goes below what the matrices and the
trainer's own tables are known to take. Time grows with rows and rounds alike, measured on the larger sample. A user's
own function is not run for this (it may do anything): its prediction counts the matrices alone, and says `measured`
False. Deep learning gets a model of its own, from traced tensors, elsewhere.

The answer is OK, LATER (it fits this machine, but not into what is free now) or NEVER, with how many rows would fit.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tenon import engine, ledger
from tenon.config import Prices
from tenon.encoding import LEVELS
from tenon.errors import TrainingError, sentence
from tenon.ledger import Budget, Spent
from tenon.limits import MIB, Admission, Answer
from tenon.training.boost import lightgbm
from tenon.training.data import Data, Part
from tenon.training.guard import Guard
from tenon.training.linear import linear, logistic
from tenon.training.option import Options

BUILT_IN: dict[str, Callable[[Data, Any, Options], Any]] = {"lightgbm": lightgbm, "linear": linear, "logistic": logistic}
SAMPLES = (10_000, 40_000)  # training rows of the two samples
SAMPLE_ROUNDS = 8
MARGIN = 1.25  # on the measured slope: what small samples do not show
BASE_BYTES = 64 * MIB  # libraries and pools, whatever the rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a training is predicted to need beside what the process holds already, and whether it may begin."""

    admission: Admission
    peak_bytes: int
    free_bytes: int
    total_bytes: int
    seconds: float  # at most, for all rounds; 0 when unmeasured
    measured: bool
    rows_that_fit: int

    def __bool__(self) -> bool:
        return bool(self.admission)

    @property
    def answer(self) -> Answer:
        """Return OK, LATER or NEVER."""
        return self.admission.answer

    @property
    def reason(self) -> str:
        """Return the answer in words, with the plan when it is not OK."""
        return self.admission.reason

    def require(self) -> None:
        """Raise TrainingError with the plan when the training may never begin here."""
        if self.answer is Answer.NEVER:
            raise TrainingError(self.reason)


def fit(
    data: Data,
    trainer: Any,
    *,
    memory_bytes: int | None = None,
    free_bytes: int | None = None,
    budget: Budget | None = None,
    prices: Prices = Prices(),
    rounds: int = 1_000,
) -> Fit:
    """Predict the memory and the longest time of training `data` with `trainer`, and answer whether it may begin.

    `memory_bytes` is what the process may use in all (default: `engine.memory_bytes()`), `free_bytes` what is free of
    it now. Takes about a second on large data, because it trains two samples; below the smaller sample it only counts.
    """
    total = engine.memory_bytes() if memory_bytes is None else memory_bytes
    held = ledger.resident_bytes()
    free = max(total - held, 0) if free_bytes is None else free_bytes
    rows = len(data.train)
    known = _known_bytes(data, trainer)
    slope, seconds, measured = known / max(rows, 1), 0.0, False
    if isinstance(trainer, str) and trainer in BUILT_IN and rows > SAMPLES[0]:
        slope, seconds = _measure(data, trainer, rounds, slope)
        measured = True
    peak = int(slope * rows + BASE_BYTES)
    fits = int(max(min(total - held, total) - BASE_BYTES, 0) / slope) if slope else rows
    return Fit(
        admission=_admit(peak, free, total - held, fits, seconds, rows, budget, prices),
        peak_bytes=peak,
        free_bytes=free,
        total_bytes=total,
        seconds=seconds,
        measured=measured,
        rows_that_fit=fits,
    )

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
from tenon.encoding import Encoding
from tenon.errors import TrainingError, sentence
from tenon.ledger import Budget, Spent
from tenon.limits import MIB, Admission, Answer
from tenon.training.boost import lightgbm
from tenon.training.data import Data
from tenon.training.guard import Guard
from tenon.training.linear import linear, logistic
from tenon.training.option import Options

BUILT_IN: dict[str, Callable[[Data, Any, Options], Any]] = {
    "lightgbm": lightgbm,
    "linear": linear,
    "logistic": logistic,
}
SAMPLES = (10_000, 40_000)  # training rows of the two samples
SAMPLE_ROUNDS = 5
STEPS = 8  # Newton steps that a logistic regression takes
LEAST = 0.05  # share of the rounds below which a model is not worth beginning
TEXT_BYTES = 80
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
    it now (default: what the system has available). With more rows than the larger sample it trains both samples, which
    takes about half a second; with fewer it only counts.
    """
    total = engine.memory_bytes() if memory_bytes is None else memory_bytes
    room = max(total - ledger.resident_bytes(), 0)  # what this process may still take
    free = min(room, _available_bytes() if free_bytes is None else free_bytes)
    rows = len(data.train)
    per_row, sample = _known_bytes(data, trainer), _Sample()
    if isinstance(trainer, str) and trainer in BUILT_IN and rows > SAMPLES[1]:
        sample = _measure(data, trainer)
        per_row = max(per_row, sample.bytes_per_row * MARGIN)
    peak = int(per_row * rows) + BASE_BYTES
    fits = int(max(room - BASE_BYTES, 0) / per_row)
    turns = rounds if trainer == "lightgbm" else STEPS
    # Measured on one thread, so that it holds at most, whatever else the machine does.
    seconds = (sample.fixed_s + sample.round_s * turns) * rows / SAMPLES[1]
    return Fit(
        admission=_admit(_Need(peak, seconds, rows, fits, turns), free, room, budget or Budget(), prices),
        peak_bytes=peak,
        free_bytes=free,
        total_bytes=total,
        seconds=seconds,
        measured=sample.round_s > 0,
        rows_that_fit=fits,
    )


# ── what is needed ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Need:
    """What all rows need, and how many rows there is room for."""

    peak_bytes: int
    seconds: float
    rows: int
    rows_that_fit: int
    rounds: int


@dataclass(frozen=True, slots=True)
class _Sample:
    """What training the samples showed, the times for SAMPLES[1] rows."""

    bytes_per_row: float = 0.0
    fixed_s: float = 0.0
    round_s: float = 0.0


def _known_bytes(data: Data, trainer: Any) -> float:
    """Count the bytes for each training row that matrices, LightGBM's tables and lists of texts take at the least."""
    kinds = data.kind_of.values()
    texts = sum(kind == "category" for kind in kinds)
    listed = TEXT_BYTES if texts else 0  # one column of texts is a list of Python strings while it is encoded
    others = (len(data.valid) + len(data.test)) / max(len(data.train), 1)
    if trainer in ("linear", "logistic"):
        # The matrix once while it is filled and once when its spare column is cut off.
        part = data.train.every(SAMPLES[0])
        return 8.0 * Encoding.learn(part.x.to_dict(), part.y, data.kind_of, "onehot").width + listed
    if trainer == "lightgbm":
        return (4.0 + 1.0) * len(data.names) * (1 + others) + 32.0 + listed
    return 4.0 * len(data.names) * (1 + others) + listed


def _measure(data: Data, trainer: str) -> _Sample:
    """Train two samples for a few rounds while memory is read; time is taken on the larger."""
    peaks, clock = [], _Clock()
    for rows in SAMPLES:
        clock = _Clock()
        options = Options(guard=Guard(), threads=1, rounds=SAMPLE_ROUNDS, patience=SAMPLE_ROUNDS)
        small = replace(data, train=data.train.every(rows), valid=data.valid.every(rows // 4), test=data.test.every(1))
        if not small.train.varies:
            return _Sample()  # a label so rare that a sample misses it: then only what is known is counted
        gc.collect()
        with _Watch() as watch:
            BUILT_IN[trainer](small, clock, options)
        peaks.append(watch.grown_bytes)
    slope = (peaks[1] - peaks[0]) / (SAMPLES[1] - SAMPLES[0])
    return _Sample(bytes_per_row=max(slope, 0.0), fixed_s=clock.first_s, round_s=clock.round_s)


def _available_bytes() -> int:
    """Return what the system could give to a process now, caches included."""
    import psutil

    return int(psutil.virtual_memory().available)


class _Clock:
    """Stands in for a run: notes when each round was logged."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = [time.perf_counter()]

    def log(self, step: int, **metrics: float) -> None:
        self.at.append(time.perf_counter())

    @property
    def first_s(self) -> float:
        """Return the time until the first round, or of everything when no round was logged."""
        return (self.at[1] if len(self.at) > 1 else time.perf_counter()) - self.at[0]

    @property
    def round_s(self) -> float:
        steps = sorted(after - before for before, after in zip(self.at[1:], self.at[2:], strict=False))
        return steps[len(steps) // 2] if steps else 1e-6


class _Watch:
    """Reads the memory of this process every 2 ms while a block runs."""

    __slots__ = ("_start", "_stop", "_thread", "highest")

    def __init__(self) -> None:
        self._start = self.highest = ledger.resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="tenon-fit", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.002):
            self.highest = max(self.highest, ledger.resident_bytes())

    @property
    def grown_bytes(self) -> int:
        return max(self.highest - self._start, 0)


# ── the answer ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _admit(need: _Need, free: int, room: int, budget: Budget, prices: Prices) -> Admission:
    """Answer from memory first, then from the budget, always with the numbers."""
    said = f"{_gb(need.peak_bytes)} predicted for {need.rows:,} rows"
    if need.peak_bytes > room:
        share = need.rows_that_fit / max(need.rows, 1)
        fewer = (
            f"train on the latest {need.rows_that_fit:,} rows ({share:.0%}), use fewer features, or " if share else ""
        )
        hint = f"{fewer}use a machine with {_gb(need.peak_bytes - room)} more"
        return Admission(
            answer=Answer.NEVER, reason=sentence(f"a training that fits into {_gb(room)}", said, hint=hint)
        )
    if need.peak_bytes > free:
        hint = "wait for what else runs here to end, or stop it"
        reason = sentence(f"a training that fits into the {_gb(free)} free now", said, hint=hint)
        return Admission(answer=Answer.LATER, reason=reason, retry_after_s=30.0)
    return _afford(need, said, budget, prices)


def _afford(need: _Need, said: str, budget: Budget, prices: Prices) -> Admission:
    """Answer from the budget: NEVER when it would not last for the least useful share of the rounds."""
    if not need.seconds:
        return Admission(answer=Answer.OK, reason=f"{said}; time was not measured")
    usage = ledger.Usage(wall_s=need.seconds, cpu_s=need.seconds * 2, peak_bytes=need.peak_bytes)
    spent = usage.spent(prices)
    if budget.admit(spent):
        return Admission(answer=Answer.OK, reason=f"{said}, at most {need.seconds:.0f} s and {spent.usd:.4f} USD")
    least = Spent(usd=spent.usd * LEAST, hours=spent.hours * LEAST, kwh=spent.kwh * LEAST)
    admission = budget.admit(least, what=f"{LEAST:.0%} of the rounds")
    if not admission:
        return admission
    reason = (
        f"{said}; the budget may stop it before all {need.rounds:,} rounds, which take at most {need.seconds:.0f} s"
    )
    return Admission(answer=Answer.OK, reason=reason)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"

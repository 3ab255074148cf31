"""Does the guard stop what is hopeless, early, and leave alone what is good? On real learning curves that no rule saw.

Small models (linear, MLP, CNN, GRU, on eleven tasks of real and synthetic data) are trained with settings drawn by a
seed: learning rates from 1e-8 to 100, three optimisers, four schedules, initialisations from zero to tenfold, labels
from clean to shuffled. `--train` trains them anew (`curves_train.py`), in minutes of one core, and writes
`bench/data/curves.npz`; without it the kept curves are replayed, which takes seconds and gives the same figures.

The words were fixed before any rule was tuned:

- the *constant* is the held-out loss of the best constant answer (class shares, or the mean, of the training rows);
- a run is *hopeless* when none of its 20 evaluations on held-out rows, spread over its budget, is 2 % below the
  constant: neither at its end nor at any time would it have given a model worth keeping;
- it is *good* when its last evaluation is at least 2 % below the constant;
- it is *lost late* when it was so far below at some time and is not at the end. These count for neither side, and are
  counted.

A hopeless run is caught when it is stopped before 30 % of its budget. Of good runs two figures are told: how many were
stopped at all, and how many were *harmed*: the best evaluation up to the stop gives away more than 1 % of what the
whole budget would have gained below the constant. The guard's trees were fitted to other runs: `--learn FROM TO`
trains so many on all cores, fits the trees, and writes `src/tenon/training/hope.json`; of what is kept they have seen
nothing. They know these tasks from other runs, though: with `--unseen` each task is judged, too, by trees that were
fitted to the others. `--fresh FROM TO` trains runs that are not kept, some ten a second on each core, and judges them.
Beside the guard stand naive rules: NaN only; patience (the best held-out loss is older than a fifth of the budget);
above the constant at 30 %.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import curves_learn
import curves_train
import measure
import numpy as np
from curves_train import EVALUATIONS

from tenon.config import Prices
from tenon.metric import wilson
from tenon.training import hope
from tenon.training.trend import Rules, Trend

FILE = Path(__file__).parent / "data" / "curves.npz"
TREES = Path(hope.__file__).parent / "hope.json"
NUMBERS = (*range(880), *range(2000, 5520))
PART = 1_000  # runs that a process trains at a time
SCHEDULES = ("constant", "warm-up", "cosine", "decay")
WORTH = 0.98  # of the constant's loss
EARLY = 0.30
HARM = 0.01
ROLLS = len(curves_train.TURNS)
BEFORE = 3  # evaluations; what is worth having or no number by then is decided before the guard looks
JUDGED = max(curves_learn.LOOKS)  # evaluations that the guard looks at


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One run: the loss of every step, held-out losses at EVALUATIONS steps, and the constant's losses."""

    name: str
    loss: Any  # of each step's batch; NaN from where loss or gradient was no number
    steps: int  # the budget
    valid: Any  # (EVALUATIONS,) held-out loss
    mixed: Any  # (EVALUATIONS, ROLLS) the same answers held against the targets of other rows
    constant: float  # held-out

    def at(self) -> list[int]:
        """Return the steps after which the run was evaluated."""
        return [(i + 1) * self.steps // EVALUATIONS - 1 for i in range(EVALUATIONS)]

    def decays(self) -> bool:
        """Tell whether the learning rate falls to near zero."""
        return not {"cosine", "decay"}.isdisjoint(self.name.split())

    def task(self) -> str:
        """Name what the run was to learn."""
        return self.name.split()[1]

    def schedule(self) -> str:
        """Name the schedule of the learning rate."""
        return next(one for one in SCHEDULES if one in self.name.split())

    def open(self) -> bool:
        """Tell whether the guard has anything to judge: its mixed losses are kept."""
        return bool(np.isfinite(self.valid[:BEFORE]).all() and not self.worthy()[:BEFORE].any())

    def worthy(self) -> Any:
        """Tell at which evaluations the run was worth its price."""
        return np.nan_to_num(self.valid, nan=np.inf) <= WORTH * self.constant

    def kind(self) -> str:
        """Say what the run came to, by the definitions above."""
        worthy = self.worthy()
        return "good" if worthy[-1] else ("lost late" if worthy.any() else "hopeless")


# ── the file ──


def trained(numbers: Sequence[int]) -> list[Curve]:
    """Train runs to the end of their budgets; the same numbers give the same runs."""
    import torch

    torch.set_num_threads(1)
    return [
        Curve(
            name=one["setting"].name,
            loss=one["loss"],
            steps=one["setting"].steps,
            valid=one["valid"],
            mixed=one["mixed"],
            constant=one["setting"].constant,
        )
        for one in curves_train.train(numbers).values()
    ]


def trained_by_all(numbers: Sequence[int]) -> list[Curve]:
    """Train many runs, on all cores."""
    parts = [numbers[i : i + PART] for i in range(0, len(numbers), PART)]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        return [curve for part in pool.map(trained, parts) for curve in part]


def keep(curves: list[Curve]) -> None:
    """Write the curves: losses of steps with 12 bits of mantissa, and bytes of equal weight together, so they pack."""
    loss = _rounded(np.concatenate([one.loss for one in curves]), 12)
    arrays = {
        "names": np.array([one.name for one in curves]),
        "steps": np.array([one.steps for one in curves]),
        "loss": np.ascontiguousarray(loss.view(np.uint8).reshape(-1, 4).T),
        "constant": np.array([one.constant for one in curves]),
        "valid": np.stack([one.valid for one in curves]).astype("<f4"),
        "mixed": np.stack([one.mixed[:JUDGED] for one in curves if one.open()]).astype("<f4"),
    }
    FILE.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(FILE, "w", zipfile.ZIP_LZMA) as file:  # a tenth smaller than savez_compressed
        for name, values in arrays.items():
            with file.open(f"{name}.npy", "w") as part:
                np.lib.format.write_array(part, values, allow_pickle=False)


def _rounded(values: Any, mantissa: int) -> Any:
    bits, lost = values.astype("<f4").view("<u4"), 23 - mantissa
    near = (bits + np.uint32(1 << lost - 1)) >> np.uint32(lost) << np.uint32(lost)
    return np.where(np.isfinite(values), near, bits).view("<f4")


def load() -> list[Curve]:
    """Read the kept curves."""
    with np.load(FILE, allow_pickle=False) as file:
        kept = {name: file[name] for name in file.files}
    losses = np.ascontiguousarray(kept["loss"].T).view("<f4")[:, 0]
    ends = np.cumsum(kept["steps"])
    mixed = iter(kept["mixed"])

    def told(curve: Curve) -> Curve:
        if curve.open():
            curve.mixed[:JUDGED] = next(mixed)
        return curve

    return [
        told(
            Curve(
                name=str(kept["names"][i]),
                loss=losses[end - steps : end],
                steps=int(steps),
                valid=kept["valid"][i],
                mixed=np.full((EVALUATIONS, ROLLS), np.nan),
                constant=float(kept["constant"][i]),
            )
        )
        for i, (end, steps) in enumerate(zip(ends, kept["steps"], strict=True))
    ]


# ── replaying ────────────────────────────────────────────────────────────────────────────────────────────────────────

Stop = Callable[[Curve], int | None]  # the step at which a rule stops a curve


def guarded(
    *,
    planned: bool,
    rolls: int = 0,
    stop_flat: bool = False,
    show_by: float = EARLY,
    rate: bool = True,
    forest: Callable[[Curve], hope.Forest] | None = None,
) -> Stop:
    """Show a curve to the guard's own rules, step by step and evaluation by evaluation, with so many mixed losses.

    Without `rate` the guard knows nothing of the learning rate that is planned.
    """
    kept = hope.Forest.load()
    said = {"show_by": show_by} if rate else {"show_by": show_by, "rate": None, "decays": False}

    def stop(curve: Curve) -> int | None:
        plan = curves_learn.plan(curve, **said) if planned else None
        trend = Trend(Rules(stop_flat=stop_flat), plan, kept if forest is None else forest(curve))
        told = zip(curve.valid.tolist(), curve.mixed[:, :rolls].tolist(), strict=True)
        evaluations = dict(zip(curve.at(), told, strict=True)) if planned else {}
        for step, loss in enumerate(curve.loss.tolist()):
            found = trend.take(step, loss) if math.isfinite(loss) else None
            if not math.isfinite(loss) or (found is not None and found.stop):
                return step
            if step in evaluations:
                value, others = evaluations[step]
                if not math.isfinite(value) or trend.evaluated(step, value, others) is not None:
                    return step
        return None

    return stop


def only_nan(curve: Curve) -> int | None:
    """Stop where the loss is no number."""
    return next((step for step, loss in enumerate(curve.loss.tolist()) if not math.isfinite(loss)), None)


def patience(curve: Curve) -> int | None:
    """Stop when the best held-out loss is older than a fifth of the budget."""
    best, since = math.inf, 0
    for step, value in zip(curve.at(), curve.valid.tolist(), strict=True):
        best, since = (value, 0) if value < best else (best, since + 1)
        if not math.isfinite(value) or since >= EVALUATIONS // 5:
            return step
    return only_nan(curve)


def above(curve: Curve) -> int | None:
    """Stop when the held-out loss at 30 % of the budget is not below what is worth having."""
    i = int(EARLY * EVALUATIONS) - 1
    return None if curve.worthy()[i] else curve.at()[i]


def harmed(curve: Curve, step: int) -> bool:
    """Tell whether stopping a good run at `step` gives away more than HARM of what it would have gained."""
    seen = [value for at, value in zip(curve.at(), curve.valid.tolist(), strict=True) if at <= step]
    best = min(seen, default=curve.constant)
    return bool(min(best, curve.constant) - curve.valid[-1] > HARM * (curve.constant - curve.valid[-1]))


def figures(curves: list[Curve], stop: Stop, usd_per_hour: float) -> list[str]:
    """Return a row of the table: caught, stopped, harmed, the share of all steps that is not run, and its price.

    The price is that of 1,000 such runs, an hour each in the mean, less what good runs had cost that were harmed.
    """
    stops = {curve.name: stop(curve) for curve in curves}
    bad = [curve for curve in curves if curve.kind() == "hopeless"]
    good = [curve for curve in curves if curve.kind() == "good"]
    early = [
        sum(stops[one.name] is not None and stops[one.name] < share * one.steps for one in bad)
        for share in (EARLY, 0.5)
    ]
    ended = [one for one in good if stops[one.name] is not None]
    hurt = [one for one in ended if harmed(one, stops[one.name])]
    saved = sum(one.steps - stops[one.name] for one in bad if stops[one.name] is not None)
    hours = 1_000 / sum(one.steps for one in curves)
    low, high = wilson(len(ended), len(good))
    usd = (saved - sum(stops[one.name] for one in hurt)) * hours * usd_per_hour
    return [
        *[f"{count} of {len(bad)} ({count / len(bad):.1%})" for count in early],
        f"{len(ended)} of {len(good)} ({len(ended) / len(good):.1%}, 95 % {low:.1%} to {high:.1%})",
        f"{len(hurt)} ({len(hurt) / len(good):.1%})",
        f"{saved / sum(one.steps for one in bad):.0%}",
        f"{usd:,.0f}",
    ]


def rules(unseen: Callable[[Curve], hope.Forest] | None = None) -> dict[str, Stop]:
    """Name the rules that are told of."""
    named: dict[str, Stop] = {
        "NaN only (naive)": only_nan,
        "patience of a fifth (naive)": patience,
        "above the constant at 30 % (naive)": above,
        "guard, training losses only": guarded(planned=False),
        "the same, stop_flat=True": guarded(planned=False, stop_flat=True),
        "guard, plan and held-out losses": guarded(planned=True),
        "guard, one mixed loss too": guarded(planned=True, rolls=1),
        "guard, several mixed losses": guarded(planned=True, rolls=ROLLS),
        "all of it, stop_flat=True": guarded(planned=True, rolls=ROLLS, stop_flat=True),
        "all of it, no learning rate told": guarded(planned=True, rolls=ROLLS, rate=False),
        "all of it, show_by=0.4": guarded(planned=True, rolls=ROLLS, show_by=0.4),
        "all of it, show_by=0.5": guarded(planned=True, rolls=ROLLS, show_by=0.5),
    }
    if unseen is not None:
        named["all of it, trees that never saw the task"] = guarded(planned=True, rolls=ROLLS, forest=unseen)
    return named


def table(title: str, curves: list[Curve], rules: dict[str, Stop], usd_per_hour: float) -> str:
    """Write the figures of every rule on some curves."""
    kinds = Counter(curve.kind() for curve in curves)
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    header = [
        "rule",
        "hopeless, stopped before 30 %",
        "before 50 %",
        "good, stopped at all",
        "good, harmed",
        "of hopeless steps saved",
        f"USD saved of 1,000 runs of an hour at {usd_per_hour:g}",
    ]
    rows = [[name, *figures(curves, stop, usd_per_hour)] for name, stop in rules.items()]
    return measure.rows(f"{title}: {len(curves)} runs, {said}", header, rows)


def main() -> None:
    """Train or load the curves, and print the table."""
    parser = measure.options(__doc__)
    parser.add_argument("--train", action="store_true", help="train the kept runs anew and write the data file")
    parser.add_argument("--learn", type=int, nargs=2, metavar=("FROM", "TO"), help="fit the trees anew, to other runs")
    parser.add_argument(
        "--unseen", type=int, nargs=2, metavar=("FROM", "TO"), help="also fit trees to all tasks but one"
    )
    parser.add_argument("--fresh", type=int, nargs=2, metavar=("FROM", "TO"), help="train and judge other runs only")
    parser.add_argument("--usd-per-hour", type=float, default=Prices().usd_per_gpu_hour, help="of training")
    given = parser.parse_args()
    if given.train or given.learn or given.unseen or given.fresh:
        measure.needs("torch", "sklearn", "lightgbm")
    machine = measure.machine("numpy", "torch", "scikit-learn", "lightgbm")
    if given.train:
        keep(trained_by_all(NUMBERS))
    if given.learn:
        numbers = range(*given.learn)
        TREES.write_text(curves_learn.text(curves_learn.fitted(trained_by_all(numbers)), numbers), encoding="utf-8")
    unseen = curves_learn.unseen(trained_by_all(range(*given.unseen))) if given.unseen else None
    title, curves = ("Fresh", trained_by_all(range(*given.fresh))) if given.fresh else ("Kept", load())
    told = table(f"{title} runs, of which the trees saw none", curves, rules(unseen), given.usd_per_hour)
    chances = curves_learn.said_and_came(curves, int(EARLY * EVALUATIONS))
    header = ["chance told at 30 %", "runs", "told, mean", "came to be worth their price"]
    held = measure.rows(f"{title} runs, what was told against what came", header, chances)
    measure.show("## Stopping by evidence", machine, told, held)


if __name__ == "__main__":
    sys.exit(main())

"""Does the guard stop what is hopeless, early, and leave alone what is good? On real learning curves that no rule saw.

1,760 small models (linear, MLP, CNN, GRU, on eleven tasks of real and synthetic data) are trained with settings drawn
by a seed: learning rates from 1e-8 to 100, three optimisers, four schedules, initialisations from zero to tenfold,
labels from clean to shuffled. `--train` trains them anew, in some fifteen minutes of one core, and writes
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
whole budget would have gained below the constant. Runs numbered below 2440 were looked at while the rules were written;
those from 2440 on were looked at once, when the rules stood: theirs are the figures to read. Beside the guard stand
naive rules: NaN only; patience (the best held-out loss is older than a fifth of the budget); above the constant at 30
%.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import numpy as np

from tenon.training.trend import Plan, Rules, Trend

FILE = Path(__file__).parent / "data" / "curves.npz"
TUNING = (*range(880), *range(2000, 2440))
HELD_OUT = range(2440, 2880)
EVALUATIONS = 20
SCHEDULES = ("constant", "warm-up", "cosine", "decay")
WORTH = 0.98  # of the constant's loss
EARLY = 0.30
HARM = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One run: the loss of every step, held-out losses at EVALUATIONS steps, and the constant's losses."""

    name: str
    loss: Any  # of each step's batch; NaN from where loss or gradient was no number
    steps: int  # the budget
    valid: Any  # (EVALUATIONS,) held-out loss
    mixed: Any  # (EVALUATIONS,) the same answers held against the targets of other rows
    constant: float  # held-out

    def at(self) -> list[int]:
        """Return the steps after which the run was evaluated."""
        return [(i + 1) * self.steps // EVALUATIONS - 1 for i in range(EVALUATIONS)]

    def decays(self) -> bool:
        """Tell whether the learning rate falls to near zero."""
        return not {"cosine", "decay"}.isdisjoint(self.name.split())

    def schedule(self) -> str:
        """Name the schedule of the learning rate."""
        return next(one for one in SCHEDULES if one in self.name.split())

    def kind(self) -> str:
        """Say what the run came to, by the definitions above."""
        worth = np.nan_to_num(self.valid, nan=np.inf) <= WORTH * self.constant
        return "good" if worth[-1] else ("lost late" if worth.any() else "hopeless")


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

Task = tuple[Any, Any, str, int]  # x, y, kind of loss, classes


def _digits(rng: np.random.Generator) -> Task:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x / 16 - 0.3).astype(np.float32), y, "class", 10


def _wine(rng: np.random.Generator) -> Task:
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    return _scaled(x), y, "class", 3


def _cancer(rng: np.random.Generator) -> Task:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return _scaled(x), y, "class", 2


def _diabetes(rng: np.random.Generator) -> Task:
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return _scaled(x), _scaled(y[:, None])[:, 0], "value", 1


def _unscaled(rng: np.random.Generator) -> Task:
    """The same with targets as they come, in the hundreds: a loss that begins in the tens of thousands."""
    x, y, _, _ = _diabetes(rng)
    return x, (y * 77 + 152).astype(np.float32), "value", 1


def _friedman(rng: np.random.Generator) -> Task:
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(3000, noise=1.0, random_state=int(rng.integers(1 << 30)))
    return _scaled(x), _scaled(y[:, None])[:, 0], "value", 1


def _moons(rng: np.random.Generator) -> Task:
    from sklearn.datasets import make_moons

    x, y = make_moons(3000, noise=0.25, random_state=int(rng.integers(1 << 30)))
    return _scaled(x), y, "class", 2


def _checkerboard(rng: np.random.Generator) -> Task:
    """A plateau first: no line tells the fields apart."""
    x = rng.uniform(-2, 2, (4000, 2)).astype(np.float32)
    return x, (np.floor(x).sum(axis=1).astype(int) % 2), "class", 2


def _adding(rng: np.random.Generator) -> Task:
    """The adding problem of Hochreiter and Schmidhuber: two marked numbers of a sequence, a long plateau first."""
    x = rng.uniform(-1, 1, (4000, 12, 2)).astype(np.float32)
    x[:, :, 1] = 0
    for row in range(len(x)):
        x[row, rng.choice(12, 2, replace=False), 1] = 1
    return x, ((x[:, :, 0] * x[:, :, 1]).sum(axis=1) * 1.2).astype(np.float32), "value", 1


def _recall(rng: np.random.Generator) -> Task:
    """Say the first symbol of a sequence at its end."""
    symbols = rng.integers(0, 4, (4000, 10))
    return np.eye(4, dtype=np.float32)[symbols], symbols[:, 0], "class", 4


def _text(rng: np.random.Generator) -> Task:
    """The next character of English text: docstrings of Python."""
    text = "".join(c if c.isalpha() else " " for c in prose()).lower().encode()
    codes = np.frombuffer(text, dtype=np.uint8)
    known, coded = np.unique(codes, return_inverse=True)
    begins = rng.integers(0, len(coded) - 9, 4000)
    windows = np.stack([coded[i : i + 9] for i in begins])
    return np.eye(len(known), dtype=np.float32)[windows[:, :8]], windows[:, 8], "class", len(known)


def prose() -> str:
    """Return some thousands of words of English that every Python carries: docstrings of its library."""
    import argparse as a
    import collections as c
    import decimal as d
    import fractions as f
    import statistics as s

    return " ".join(str(getattr(m, n).__doc__ or "") for m in (a, c, d, f, s) for n in sorted(dir(m)))


def _scaled(x: Any) -> Any:
    return ((x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9)).astype(np.float32)


TASKS: dict[str, tuple[Callable[[np.random.Generator], Task], tuple[str, ...]]] = {
    "digits": (_digits, ("linear", "mlp", "cnn", "deep")),
    "wine": (_wine, ("linear", "mlp")),
    "cancer": (_cancer, ("linear", "mlp", "deep")),
    "diabetes": (_diabetes, ("linear", "mlp")),
    "unscaled": (_unscaled, ("linear", "mlp")),
    "friedman": (_friedman, ("linear", "mlp", "deep")),
    "moons": (_moons, ("linear", "mlp", "deep")),
    "checkerboard": (_checkerboard, ("mlp", "deep")),
    "adding": (_adding, ("gru",)),
    "recall": (_recall, ("gru", "mlp")),
    "text": (_text, ("gru", "mlp")),
}


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _model(torch: Any, form: str, x: Any, outputs: int, rng: np.random.Generator) -> Any:
    nn = torch.nn
    size = int(np.prod(x.shape[1:]))
    act = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[
        str(rng.choice(["relu", "relu", "tanh", "sigmoid"]))
    ]
    if form == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(size, outputs))
    if form == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 32), act(), nn.Linear(32, outputs))
    if form == "deep":
        middle = [layer for _ in range(5) for layer in (nn.Linear(24, 24), act())]
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 24), act(), *middle, nn.Linear(24, outputs))
    if form == "cnn":
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), act(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, outputs)
        )
    gru = nn.GRU(x.shape[2], 24, batch_first=True)
    head = nn.Linear(24, outputs)
    model = nn.ModuleList([gru, head])
    model.forward = lambda batch: head(gru(batch)[0][:, -1])
    return model


def _schedule(name: str, steps: int) -> Callable[[int], float]:
    return {
        "constant": lambda step: 1.0,
        "warm-up": lambda step: min(1.0, (step + 1) / (0.15 * steps)),
        "cosine": lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)),
        "decay": lambda step: 0.1 ** (step * 3 // steps),
    }[name]


def train(number: int) -> Curve:
    """Train run `number` to the end of its budget; the same number gives the same run."""
    import torch

    rng = np.random.default_rng([20261121, number])
    torch.manual_seed(number)
    task = str(rng.choice(list(TASKS)))
    make, forms = TASKS[task]
    x, y, kind, classes = make(rng)
    form = str(rng.choice(forms))
    kept = rng.permutation(len(x))
    x, y = x[kept], y[kept]
    labels = str(rng.choice(["clean", "clean", "clean", "clean", "clean", "noisy", "noisy", "shuffled"]))
    if labels != "clean":
        wrong = rng.random(len(y)) < (0.2 if labels == "noisy" else 1.0)
        y = y.copy()
        y[wrong] = rng.permutation(y[wrong])
    cut = max(len(x) * 3 // 4, len(x) - 500)
    model = _model(torch, form, x, classes, rng)
    init = str(rng.choice(["usual"] * 7 + ["zero", "tiny", "large"]))
    factor = {"usual": 1.0, "zero": 0.0, "tiny": 0.01, "large": 10.0}[init]
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(factor)
    kind_of = str(rng.choice(["sgd", "momentum", "adam"]))
    usual = {"sgd": 0.1, "momentum": 0.03, "adam": 0.004}[kind_of]
    rate = usual * float(10 ** rng.choice([0, 0, 0, 0, 0, 0, -0.5, 0.5, -0.5, -1, 1, -2, -3, -4, -5, 1.5, 2, 3]))
    if task == "unscaled" and kind_of != "adam":
        rate /= 20
    steps = int(rng.choice([300, 400, 600, 900]))
    schedule = str(rng.choice(["constant", "constant", "warm-up", "cosine", "decay"]))
    batch = int(rng.choice([16, 32, 64]))
    optimizer = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=rate),
        "momentum": lambda: torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9),
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=rate),
    }[kind_of]()
    measured = torch.nn.functional.cross_entropy if kind == "class" else _squared
    xs, ys = torch.from_numpy(x), torch.from_numpy(y)
    share = np.bincount(y[:cut], minlength=classes) / cut if kind == "class" else y[:cut].mean()
    loss, valid, mixed = np.full(steps, np.nan), np.full(EVALUATIONS, np.nan), np.full(EVALUATIONS, np.nan)
    pace, order = _schedule(schedule, steps), np.random.default_rng([1, number])
    for step in range(steps):
        rows = torch.from_numpy(order.integers(0, cut, batch))
        for group in optimizer.param_groups:
            group["lr"] = rate * pace(step)
        optimizer.zero_grad()
        value = measured(model(xs[rows]), ys[rows])
        value.backward()
        grads = [one.grad for one in model.parameters() if one.grad is not None]
        if not math.isfinite(value.item() + torch.nn.utils.get_total_norm(grads).item()):
            break
        loss[step] = value.item()
        optimizer.step()
        if (step + 1) * EVALUATIONS % steps < EVALUATIONS:
            with torch.no_grad():
                place, told = (step + 1) * EVALUATIONS // steps - 1, model(xs[cut:])
                valid[place] = measured(told, ys[cut:]).item()
                mixed[place] = np.mean([measured(told, ys[cut:].roll(turn)).item() for turn in (1, 2, 3, 4)])
    return Curve(
        name=f"{number:03} {task} {form} {kind_of} {rate:.1g} {schedule} {init} {labels} {batch}",
        loss=loss,
        steps=steps,
        valid=valid,
        mixed=mixed,
        constant=_constant(kind, share, y[cut:]),
    )


def _squared(output: Any, target: Any) -> Any:
    return ((output[:, 0] - target) ** 2).mean()


def _constant(kind: str, share: Any, y: Any) -> float:
    if kind == "class":
        return float(-np.log(np.maximum(share, 1e-9))[y].mean())
    return float(((y - share) ** 2).mean())


def keep(curves: list[Curve]) -> None:
    """Write the curves, losses rounded to 12 bits of mantissa so that they pack."""
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        FILE,
        names=np.array([one.name for one in curves]),
        steps=np.array([one.steps for one in curves]),
        loss=_rounded(np.concatenate([one.loss for one in curves])),
        valid=np.stack([one.valid for one in curves]).astype(np.float32),
        mixed=np.stack([one.mixed for one in curves]).astype(np.float32),
        constant=np.array([one.constant for one in curves]),
    )


def _rounded(values: Any) -> Any:
    bits = values.astype(np.float32).view(np.uint32)
    return np.where(np.isfinite(values), (bits + (1 << 10)) & np.uint32(0xFFFFF800), bits).view(np.float32)


def load() -> list[Curve]:
    """Read the kept curves."""
    with np.load(FILE, allow_pickle=False) as file:
        kept = {name: file[name] for name in file.files}
    ends = np.cumsum(kept["steps"])
    curves = []
    for i, end in enumerate(ends):
        part = slice(int(end - kept["steps"][i]), int(end))
        curves.append(
            Curve(
                name=str(kept["names"][i]),
                loss=kept["loss"][part],
                steps=int(kept["steps"][i]),
                valid=kept["valid"][i],
                mixed=kept["mixed"][i],
                constant=float(kept["constant"][i]),
            )
        )
    return curves


# ── replaying ────────────────────────────────────────────────────────────────────────────────────────────────────────

Stop = Callable[[Curve], int | None]  # the step at which a rule stops a curve


def guarded(*, planned: bool, mixed: bool = False, show_by: float = 0.3, stop_flat: bool = False) -> Stop:
    """Show a curve to the guard's own rules, step by step and evaluation by evaluation."""

    def stop(curve: Curve) -> int | None:
        pace = _schedule(curve.schedule(), curve.steps)
        plan = Plan(
            steps=curve.steps,
            constant=curve.constant,
            decays=curve.decays(),
            show_by=show_by,
            rate=pace if mixed else None,
        )
        trend = Trend(Rules(stop_flat=stop_flat), plan if planned else None)
        pairs = zip(curve.valid.tolist(), curve.mixed.tolist() if mixed else [None] * EVALUATIONS, strict=True)
        evaluations = dict(zip(curve.at(), pairs, strict=True)) if planned else {}
        for step, loss in enumerate(curve.loss.tolist()):
            found = trend.take(step, loss) if math.isfinite(loss) else None
            if not math.isfinite(loss) or (found is not None and found.stop):
                return step
            value, other = evaluations.get(step, (0.0, None))
            if not math.isfinite(value) or (step in evaluations and trend.evaluated(step, value, other) is not None):
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
    return None if curve.valid[i] <= WORTH * curve.constant else curve.at()[i]


def harmed(curve: Curve, step: int) -> bool:
    """Tell whether stopping a good run at `step` gives away more than HARM of what it would have gained."""
    seen = [value for at, value in zip(curve.at(), curve.valid.tolist(), strict=True) if at <= step]
    best = min(seen, default=curve.constant)
    return bool(min(best, curve.constant) - curve.valid[-1] > HARM * (curve.constant - curve.valid[-1]))


def figures(curves: list[Curve], stop: Stop) -> list[str]:
    """Return a row of the table: caught, stopped, harmed, and the share of all steps that is not run."""
    stops = {curve.name: stop(curve) for curve in curves}
    bad = [curve for curve in curves if curve.kind() == "hopeless"]
    good = [curve for curve in curves if curve.kind() == "good"]
    caught = sum(stops[one.name] is not None and stops[one.name] < EARLY * one.steps for one in bad)
    ended = [one for one in good if stops[one.name] is not None]
    hurt = sum(harmed(one, stops[one.name]) for one in ended)
    wasted = sum(one.steps for one in bad)
    saved = sum(one.steps - stops[one.name] for one in bad if stops[one.name] is not None)
    return [
        f"{caught} of {len(bad)} ({caught / len(bad):.1%})",
        f"{len(ended)} of {len(good)} ({len(ended) / len(good):.1%})",
        f"{hurt} ({hurt / len(good):.1%})",
        f"{saved / wasted:.0%}",
    ]


RULES: dict[str, Stop] = {
    "NaN only (naive)": only_nan,
    "patience of a fifth (naive)": patience,
    "above the constant at 30 % (naive)": above,
    "guard, training losses only": guarded(planned=False),
    "the same, stop_flat=True": guarded(planned=False, stop_flat=True),
    "guard, plan and held-out losses": guarded(planned=True),
    "guard, mixed losses and rate too": guarded(planned=True, mixed=True),
    "all of it, stop_flat=True": guarded(planned=True, mixed=True, stop_flat=True),
}


def table(title: str, curves: list[Curve]) -> str:
    """Write the figures of every rule on some curves."""
    kinds = Counter(curve.kind() for curve in curves)
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    header = [
        "rule",
        "hopeless, stopped before 30 %",
        "good, stopped at all",
        "good, harmed",
        "of hopeless steps saved",
    ]
    rows = [[name, *figures(curves, stop)] for name, stop in RULES.items()]
    return measure.rows(f"{title}: {len(curves)} runs, {said}", header, rows)


def main() -> None:
    """Train or load the curves, and print the table of both halves."""
    parser = measure.options(__doc__)
    parser.add_argument("--train", action="store_true", help="train all runs anew and write the data file")
    if parser.parse_args().train:
        measure.needs("torch", "sklearn")
        import torch

        torch.set_num_threads(1)
        keep([train(number) for number in (*TUNING, *HELD_OUT)])
    curves = load()
    looked = len(TUNING)
    measure.show(
        "## Stopping by evidence",
        measure.machine("numpy", "torch", "scikit-learn"),
        table("Held-out runs", curves[looked:]),
        table("Runs that the rules were tuned on", curves[:looked]),
    )


if __name__ == "__main__":
    sys.exit(main())

"""Train the small models of `curves.py`: a number gives a run, its settings drawn by a seed.

Runs of one task, form and activation are trained together, as one model with a leading dimension for the run: their
weights are one matrix with a row for each, and no run touches another's. Small models cost calls and not arithmetic:
linear ones so train some ten times as fast as one by one, recurrent ones twice. The same number gives the same run
whoever its neighbours are, up to rounding; a run that is chaotic (bounces for hundreds of steps) drifts away from its
twin, as it does on another processor.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

EVALUATIONS = 20
TURNS = range(1, 17)  # by which targets are rolled for mixed losses
TOGETHER = 48  # runs that are trained as one

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


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a run is made of: its rows, its first weights in one vector, and how it is trained."""

    name: str
    number: int
    task: str
    form: str
    act: str
    x: Any
    y: Any
    kind: str  # of loss: class or value
    cut: int  # rows from here on are held out
    weights: Any
    shapes: list[Any]
    optimizer: str
    rate: float
    steps: int
    schedule: str
    batch: int
    constant: float

    def orders(self, width: int) -> Any:
        """Return the rows of every step's batch, (steps, width); those after the batch's own do not count."""
        rows = np.random.default_rng([1, self.number]).integers(0, self.cut, (self.steps, self.batch))
        return np.tile(rows, (1, width // self.batch))

    def alike(self) -> tuple[Any, ...]:
        """Return what runs have in common that are trained as one; rows that do not count are dear in a GRU."""
        return self.task, self.form, *([self.batch] if self.form == "gru" else [self.act])


def draw(number: int) -> Setting:
    """Draw the settings of run `number`."""
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
    act = str(rng.choice(["relu", "relu", "tanh", "sigmoid"]))
    model = _model(torch.nn, form, x, classes)
    init = str(rng.choice(["usual"] * 7 + ["zero", "tiny", "large"]))
    factor = {"usual": 1.0, "zero": 0.0, "tiny": 0.01, "large": 10.0}[init]
    weights = list(model.parameters())
    optimizer = str(rng.choice(["sgd", "momentum", "adam"]))
    usual = {"sgd": 0.1, "momentum": 0.03, "adam": 0.004}[optimizer]
    rate = usual * float(10 ** rng.choice([0, 0, 0, 0, 0, 0, -0.5, 0.5, -0.5, -1, 1, -2, -3, -4, -5, 1.5, 2, 3]))
    if task == "unscaled" and optimizer != "adam":
        rate /= 20
    steps = int(rng.choice([300, 400, 600, 900]))
    schedule = str(rng.choice(["constant", "constant", "warm-up", "cosine", "decay"]))
    batch = int(rng.choice([16, 32, 64]))
    share = np.bincount(y[:cut], minlength=classes) / cut if kind == "class" else y[:cut].mean()
    return Setting(
        name=f"{number:03} {task} {form} {optimizer} {rate:.1g} {schedule} {init} {labels} {batch}",
        number=number,
        task=task,
        form=form,
        act=act,
        x=x,
        y=y,
        kind=kind,
        cut=cut,
        weights=torch.cat([one.detach().flatten() for one in weights]) * factor,
        shapes=[one.shape for one in weights],
        optimizer=optimizer,
        rate=rate,
        steps=steps,
        schedule=schedule,
        batch=batch,
        constant=_constant(kind, share, y[cut:]),
    )


def _model(nn: Any, form: str, x: Any, outputs: int) -> Any:
    """Make a model for its first weights alone; `forward` is how it answers."""
    size = math.prod(x.shape[1:])
    if form == "linear":
        return nn.Linear(size, outputs)
    if form == "mlp":
        return nn.Sequential(nn.Linear(size, 32), nn.Linear(32, outputs))
    if form == "deep":
        return nn.Sequential(nn.Linear(size, 24), *[nn.Linear(24, 24) for _ in range(5)], nn.Linear(24, outputs))
    if form == "cnn":  # of 8 x 8 digits
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Linear(72, outputs))
    return nn.Sequential(nn.GRU(x.shape[2], 24), nn.Linear(24, outputs))


def schedule(name: str, steps: int) -> Callable[[int], float]:
    """Return the share of the learning rate at a step."""
    return {
        "constant": lambda step: 1.0,
        "warm-up": lambda step: min(1.0, (step + 1) / (0.15 * steps)),
        "cosine": lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)),
        "decay": lambda step: 0.1 ** (step * 3 // steps),
    }[name]


def _constant(kind: str, share: Any, y: Any) -> float:
    if kind == "class":
        return float(-np.log(np.maximum(share, 1e-9))[y].mean())
    return float(((y - share) ** 2).mean())


# ── many models as one ───────────────────────────────────────────────────────────────────────────────────────────────


def _layer(x: Any, weight: Any, bias: Any) -> Any:
    return bias[:, None].baddbmm(x, weight.transpose(1, 2))


def forward(form: str, act: str, weights: Sequence[Any], x: Any) -> Any:
    """Answer rows (runs, rows, ...) with weights (runs, ...): (runs, rows, outputs)."""
    if form == "gru":
        return _layer(_recurrent(x, *weights[:4]), *weights[4:])
    x = x.flatten(2)
    if form == "cnn":  # of 8 x 8 digits
        runs, rows, _ = x.shape
        patches = x.reshape(runs, rows, 8, 8).unfold(2, 3, 1).unfold(3, 3, 1).reshape(runs, rows * 36, 9)
        seen = getattr(_layer(patches, weights[0].reshape(runs, 8, 9), weights[1]), act)()
        pooled = seen.reshape(runs, rows, 3, 2, 3, 2, 8).amax(dim=(3, 5))
        x, weights = pooled.permute(0, 1, 4, 2, 3).reshape(runs, rows, 72), weights[2:]
    for i in range(0, len(weights), 2):
        x = _layer(x if i == 0 else getattr(x, act)(), weights[i], weights[i + 1])
    return x


def _recurrent(x: Any, of_input: Any, of_state: Any, bias_input: Any, bias_state: Any) -> Any:
    """The last state of a GRU, as torch.nn.GRU has it: gates in the order reset, update, new."""
    runs, rows, length, _ = x.shape
    size = of_state.shape[2]
    inputs = _layer(x.reshape(runs, rows * length, -1), of_input, bias_input).reshape(runs, rows, length, -1)
    state = x.new_zeros(runs, rows, size)
    for place in range(length):
        given, had = inputs[:, :, place], _layer(state, of_state, bias_state)
        reset, update = (given[..., : 2 * size] + had[..., : 2 * size]).sigmoid().chunk(2, dim=-1)
        new = (given[..., 2 * size :] + reset * had[..., 2 * size :]).tanh()
        state = new + update * (state - new)
    return state


def losses(kind: str, answers: Any, y: Any) -> Any:
    """Return the loss of each row."""
    if kind == "value":
        return (answers[..., 0] - y) ** 2
    return -answers.log_softmax(-1).gather(-1, y[..., None])[..., 0]


class Group:
    """Runs trained as one: their rows, weights and the state of their optimisers, one run in each row."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        import torch

        first = settings[0]
        self.torch = torch
        self.form, self.act, self.kind, self.cut = first.form, first.act, first.kind, first.cut
        self.shapes = first.shapes
        self.live = list(range(len(settings)))  # places of the runs that still train
        self.x = torch.from_numpy(np.stack([one.x for one in settings]))
        self.y = torch.from_numpy(np.stack([one.y for one in settings]))
        self.weights = torch.stack([one.weights for one in settings])
        self.mean, self.square = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        self.adam = torch.tensor([[one.optimizer == "adam"] for one in settings])
        self.inertia = torch.tensor([[0.9 if one.optimizer == "momentum" else 0.0] for one in settings])
        self.width = max(one.batch for one in settings)
        self.counts = torch.tensor([[float(i < one.batch) / one.batch for i in range(self.width)] for one in settings])

    def answers(self, weights: Any, x: Any) -> Any:
        """Answer rows of some runs with their weights, of which a row is one run's."""
        parts = weights.split([math.prod(shape) for shape in self.shapes], dim=1)
        shaped = [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return forward(self.form, self.act, shaped, x)

    def step(self, step: int, rows: Any, rates: Any) -> tuple[Any, Any]:
        """Take a step; return each run's loss, and whether it and its gradient are finite."""
        torch = self.torch
        runs = torch.arange(len(self.live))[:, None]
        weights = self.weights.requires_grad_(True)
        each = losses(self.kind, self.answers(weights, self.x[runs, rows]), self.y[runs, rows])
        value = (each * self.counts).sum(1)
        (grad,) = torch.autograd.grad(value.sum(), weights)
        before = self.weights.detach()
        self.mean = torch.where(self.adam, self.mean + 0.1 * (grad - self.mean), self.inertia * self.mean + grad)
        self.square = 0.999 * self.square + 0.001 * grad * grad
        spread = (self.square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        move = torch.where(self.adam, self.mean / (1 - 0.9 ** (step + 1)) / spread, self.mean)
        self.weights = before - rates * move
        value = value.detach()
        return value, torch.isfinite(value + grad.norm(dim=1))

    def evaluate(self, places: list[int]) -> tuple[Any, Any]:
        """Return held-out losses of some of the runs, and mixed ones, (runs, TURNS)."""
        with self.torch.no_grad():
            told, y = self.answers(self.weights[places], self.x[places, self.cut :]), self.y[places, self.cut :]
            turned = [losses(self.kind, told, y.roll(turn, 1)).mean(1) for turn in TURNS]
            return losses(self.kind, told, y).mean(1).numpy(), self.torch.stack(turned, dim=1).numpy()

    def keep(self, places: list[int]) -> None:
        """Go on with some of the runs only."""
        self.live = [self.live[place] for place in places]
        for name in ("x", "y", "weights", "mean", "square", "adam", "inertia", "counts"):
            setattr(self, name, getattr(self, name)[places])


def together(settings: Sequence[Setting]) -> Iterator[dict[str, Any]]:
    """Train runs of one task, form and activation to the end of their budgets; yield what each became."""
    import torch

    group = Group(settings)
    orders = [one.orders(group.width) for one in settings]
    paces = [schedule(one.schedule, one.steps) for one in settings]
    loss = [np.full(one.steps, np.nan) for one in settings]
    valid = np.full((len(settings), EVALUATIONS), np.nan)
    mixed = np.full((len(settings), EVALUATIONS, len(TURNS)), np.nan)
    for step in range(max(one.steps for one in settings)):
        rows = torch.from_numpy(np.stack([orders[run][step] for run in group.live]))
        rates = torch.tensor([[settings[run].rate * paces[run](step)] for run in group.live])
        value, finite = group.step(step, rows, rates)
        good = [place for place in range(len(group.live)) if finite[place]]
        for place in good:
            loss[group.live[place]][step] = float(value[place])
        due = [i for i in good if (step + 1) * EVALUATIONS % settings[group.live[i]].steps < EVALUATIONS]
        if due:
            told, turned = group.evaluate(due)
            for place, one, several in zip(due, told, turned, strict=True):
                run = group.live[place]
                at = (step + 1) * EVALUATIONS // settings[run].steps - 1
                valid[run, at], mixed[run, at] = one, several
        left = [place for place in good if step + 1 < settings[group.live[place]].steps]
        if not left:
            break
        if len(left) < len(group.live):
            group.keep(left)
    for i, one in enumerate(settings):
        yield {"setting": one, "loss": loss[i], "valid": valid[i], "mixed": mixed[i]}


def train(numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Train runs by their numbers; returns what each became, by number."""
    waiting: dict[tuple[Any, ...], list[Setting]] = defaultdict(list)
    done: dict[int, dict[str, Any]] = {}

    def take(settings: list[Setting]) -> None:
        done.update((one["setting"].number, one) for one in together(settings))
        settings.clear()

    for number in numbers:
        setting = draw(number)
        alike = waiting[setting.alike()]
        alike.append(setting)
        if len(alike) == TOGETHER:
            take(alike)
    for alike in waiting.values():
        if alike:
            take(alike)
    return {number: done[number] for number in numbers}

"""What does a step pay for being guarded? PyTorch steps of about ten milliseconds, alone and with all of the guard.

Four models: an MLP of 24 tensors, a deep narrow one of many small tensors, a shallow one of few large tensors, and a
small transformer without biases under AdamW; the rows of a batch are chosen so that a step takes ten milliseconds here.
Beside the bare loop stand: the guard with losses only; with the model watched (gradients at every step, health now and
then); and all of it: with a plan, a budget, the clock of where time goes, a run that logs two metrics, and checkpoints
asked for at every step.

One bare step and GUARDED guarded ones of the same weights make a group, in an order that is drawn anew for each, so
that what drifts is on both sides. All figures are processor time, so that other processes of the machine are not
measured. *In its calls* is the mean of what the loop spends in calls of the guard, the run and the checkpoints.
*Around them* is what the rest of a guarded step takes more, for the hook and the caches, or less, because gradients
have been fetched: the difference of the means of the middle half of the steps in each of BLOCKS blocks, which has the
noise of whole steps; the mean over the blocks is told with two standard errors. *Beside* is the time of other threads
(the run's journal, the meter of its memory) while BESIDE guarded steps more are taken. What the guard does by the
clock falls to the guarded steps alone, though bare ones take their share of the time: it is charged 1 + 1 / GUARDED
times. A loop that logs its loss reads it in both kinds of step. The process keeps the memory that it frees
(`keep_memory`): else the MLP is handed a thousand pages at every step, and a hundred of them more or less, as small
objects happen to lie, take more than a guard.
"""

from __future__ import annotations

import copy
import math
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import measure

STEP_S = 0.010
GUARDED = 3  # steps in a group, beside a bare one
GROUPS = 25  # in a block
BLOCKS = 60
BESIDE = 500  # guarded steps, while which the other threads are measured
KINDS = {"bare against bare": "bare", "losses only": "losses", "model watched": "watched", "all of it": "all"}


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def middle(torch: Any) -> Any:
    nn = torch.nn
    layers = [layer for _ in range(11) for layer in (nn.Linear(416, 416), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(416, 10)), lambda rows: torch.randn(rows, 416), False


def many(torch: Any) -> Any:
    nn = torch.nn
    layers = [layer for _ in range(80) for layer in (nn.Linear(48, 48), nn.LayerNorm(48), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(48, 10)), lambda rows: torch.randn(rows, 48), False


def few(torch: Any) -> Any:
    nn = torch.nn
    return (
        nn.Sequential(nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 10)),
        lambda rows: torch.randn(rows, 1024),
        False,
    )


def transformer(torch: Any) -> Any:
    nn = torch.nn
    layer = [nn.TransformerEncoderLayer(96, 4, 384, dropout=0.0, batch_first=True, bias=False) for _ in range(4)]

    class First(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def forward(self, x: Any) -> Any:
            return x[:, 0]

    model = nn.Sequential(nn.Embedding(1000, 96), *layer, First(), nn.Linear(96, 10, bias=False))
    return model, lambda rows: torch.randint(0, 1000, (rows, 32)), True


MODELS = {
    "MLP": middle,
    "many small": many,
    "few large": few,
    "transformer": transformer,
}


# ── loops ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Loop:
    """A training loop of one model whose steps can be bare or guarded."""

    def __init__(self, torch: Any, name: str, kind: str, *, rows: int) -> None:
        torch.manual_seed(0)
        self.torch, self.kind = torch, kind
        self.model, make, adam = MODELS[name](torch)
        self.bare = copy.copy(self.model)  # the same weights, without hooks
        for hooks in ("_forward_hooks", "_forward_pre_hooks"):
            setattr(self.bare, hooks, OrderedDict())
        self.optimizer = (torch.optim.AdamW if adam else torch.optim.SGD)(self.model.parameters(), lr=1e-5)
        self.batch = make(rows), torch.randint(0, 10, (rows,))
        self.folder = Path(tempfile.mkdtemp(prefix="tenon-bench-"))
        self.at, self.store, self.run, self.guard, self.resume = 0, None, None, None, None
        self.plain: Iterator[Any] = iter(lambda: self.batch, None)
        self.batches = self.plain
        if kind != "bare":
            self._guard(kind)

    def _guard(self, kind: str) -> None:
        from tenon.ledger import Budget
        from tenon.store import Store
        from tenon.training import Guard, Plan, Run
        from tenon.training.resume import Resume

        if kind == "all":
            self.store = Store.open(self.folder)
            self.run = Run.start(self.store, "r", "m")
            time.sleep(0.5)  # packages and git state are gathered meanwhile
        plan = Plan(steps=GUARDED * GROUPS * BLOCKS + BESIDE, constant=2.3) if kind == "all" else None
        self.guard = Guard(budget=Budget(hours=10), run=self.run, plan=plan)
        if kind in ("watched", "all"):
            self.guard.watch(self.model, self.optimizer)
        if kind == "all":
            folder, model, optimizer = self.folder / "kept", self.model, self.optimizer
            self.resume = Resume(folder, seconds=1e9, guard=self.guard, model=model, optimizer=optimizer)
            self.batches = self.guard.batches(self.plain)

    def step(self, *, guarded: bool) -> tuple[float, float]:
        """Train for a step; return the seconds of processor time in calls that a bare loop lacks, and in the rest."""
        guard, run, resume = (self.guard, self.run, self.resume) if guarded else (None, None, None)
        model, batches = (self.model, self.batches) if guarded else (self.bare, self.plain)
        start = time.thread_time()
        inputs, labels = next(batches)
        given = time.thread_time()
        self.optimizer.zero_grad()
        loss = self.torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        asked = time.thread_time()
        if guard is not None:
            guard.step(self.at, loss=loss)
        answered = time.thread_time()
        self.optimizer.step()
        value = loss.item() if self.kind == "all" else 0.0
        done = time.thread_time()
        if run is not None and resume is not None:
            run.log(self.at, loss=value, rate=0.01)
            resume.done(self.at, loss=loss)
        end = time.thread_time()
        self.at += guarded
        called = (given - start) + (answered - asked) + (end - done)
        return called, end - start - called

    def close(self) -> None:
        if self.run is not None and self.store is not None:
            self.run.finish()
            self.store.close()
        shutil.rmtree(self.folder)


def calibrated(torch: Any, name: str) -> int:
    """Return the rows of a batch at which a bare step takes about STEP_S while the machine is quick."""
    rows = 8
    while rows < 4096:
        loop = Loop(torch, name, "bare", rows=rows)
        took = statistics.quantiles([sum(loop.step(guarded=False)) for _ in range(45)][5:], n=10)[0]
        loop.close()
        if took >= 0.95 * STEP_S:
            break
        rows = max(rows + 1, int(rows * min(STEP_S / took, 2.0)))
    return rows


def compared(torch: Any, name: str, kind: str, *, rows: int) -> list[str]:
    """Take bare and guarded steps in turns; return a row of the table."""
    loop, order = Loop(torch, name, kind, rows=rows), random.Random(0)
    for _ in range(20):
        loop.step(guarded=False), loop.step(guarded=True)
    steps, calls, around = [], [], []
    for _ in range(BLOCKS):
        taken: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for _ in range(GROUPS):
            at = order.randrange(GUARDED + 1)
            for place in range(GUARDED + 1):
                taken[place != at].append(loop.step(guarded=place != at))
        bare_calls, bare_rest = zip(*taken[False], strict=True)
        guarded_calls, guarded_rest = zip(*taken[True], strict=True)
        steps.append(middle_mean(bare_rest))
        calls.append(statistics.fmean(guarded_calls) - statistics.fmean(bare_calls))
        around.append(middle_mean(guarded_rest) - middle_mean(bare_rest))
    before = time.process_time() - time.thread_time()
    for _ in range(BESIDE):
        loop.step(guarded=True)
    beside = (time.process_time() - time.thread_time() - before) / BESIDE
    loop.close()
    step, called, rest = statistics.median(steps), statistics.fmean(calls), statistics.fmean(around)
    doubt = 2 * statistics.stdev(around) / math.sqrt(BLOCKS)
    return [
        name,
        next(said for said, one in KINDS.items() if one == kind),
        f"{step * 1e3:.2f}",
        f"{called * 1e6:.0f}",
        f"{rest * 1e6:+.0f} ± {doubt * 1e6:.0f}",
        f"{beside * 1e6:.0f}",
        f"{(called + rest + beside) / step:.2%} ± {doubt / step:.2%}",
    ]


def middle_mean(values: Sequence[float]) -> float:
    """Return the mean of the middle half."""
    left = len(values) // 4
    return statistics.fmean(sorted(values)[left : len(values) - left])


def main() -> None:
    """Print the table."""
    parser = measure.options(__doc__)
    parser.add_argument("--only", default="", help="one of the kinds: bare, losses, watched, all")
    parser.add_argument("--model", default="", help=f"one of {', '.join(MODELS)}")
    parser.add_argument("--rows", type=int, default=0, help="of a batch, instead of those of a ten-millisecond step")
    given = parser.parse_args()
    measure.needs("torch", "safetensors")
    import torch

    from tenon.training import keep_memory

    torch.set_num_threads(1)
    keep_memory()
    rows, sizes = [], []
    for name in MODELS if not given.model else [given.model]:
        size = given.rows or calibrated(torch, name)
        tensors = list(MODELS[name](torch)[0].parameters())
        sizes.append(f"{name}: {len(tensors)} tensors, {sum(one.numel() for one in tensors):,} weights, {size} rows")
        rows += [compared(torch, name, kind, rows=size) for kind in KINDS.values() if given.only in ("", kind)]
    header = [
        "model",
        "loop",
        "ms a bare step",
        "in its calls, µs",
        "around them, µs",
        "beside, µs",
        "of a step, in all",
    ]
    title = f"A guarded step, one thread, {BLOCKS} blocks of {GROUPS} groups, a bare step and {GUARDED} guarded in each"
    measure.show("## Guard", measure.machine("torch"), measure.rows(title, header, rows), "; ".join(sizes) + ".")


if __name__ == "__main__":
    sys.exit(main())

"""What does a step pay for being guarded? PyTorch steps of about ten milliseconds, alone and with all of the guard.

Four models: an MLP of 24 tensors, a deep narrow one of many small tensors, a shallow one of few large tensors, and a
small transformer without biases under AdamW; the rows of a batch are chosen so that a step takes ten milliseconds here.
Beside the bare loop stand: the guard with losses only; with the model watched (gradients at every step, health now and
then); and all of it: with a plan, a budget, the clock of where time goes, a run that logs two metrics, and checkpoints
asked for at every step.

A bare and a guarded loop of the same model run in one process and take turns, BLOCK steps each; *added* is the median
over the pairs of neighbouring blocks, with its quartiles, in processor time of the process, threads of the run's
journal included. *Inside* adds up the calls and hooks of the guard in the same guarded loop, and is the steadier one:
two copies of the same bare loop differ by as much as the row "bare against bare" shows. Processor time is all that
works here, so that other processes of the machine are not measured with it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure

STEP_S = 0.010
BLOCK = 20
PAIRS = 25
KINDS = {"bare against bare": "bare", "losses only": "losses", "model watched": "watched", "all of it": "all"}


class Timed:
    """Calls a function and adds up what that took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, body: Callable[..., Any]) -> Callable[..., Any]:
        clock = time.thread_time

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            try:
                return body(*args, **kwargs)
            finally:
                self.seconds += clock() - start

        return timed


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
    """One training loop that can be run block by block, guarded or bare."""

    def __init__(self, torch: Any, name: str, kind: str, *, rows: int) -> None:
        torch.manual_seed(0)
        self.torch, self.kind, self.timed = torch, kind, Timed()
        self.model, make, adam = MODELS[name](torch)
        self.optimizer = (torch.optim.AdamW if adam else torch.optim.SGD)(self.model.parameters(), lr=1e-5)
        self.batch = make(rows), torch.randint(0, 10, (rows,))
        self.folder = Path(tempfile.mkdtemp(prefix="tenon-bench-"))
        self.at, self.store, self.run = 0, None, None
        self.ask: Any = None
        self.log: Any = None
        self.done: Any = None
        self.batches: Iterator[Any] = iter(lambda: self.batch, None)
        if kind != "bare":
            self._guard(kind)
        self.take = self.timed(next) if kind == "all" else next

    def _guard(self, kind: str) -> None:
        from tenon.ledger import Budget
        from tenon.store import Store
        from tenon.training import Guard, Plan, Run
        from tenon.training.resume import Resume

        if kind == "all":
            self.store = Store.open(self.folder)
            self.run = Run.start(self.store, "r", "m")
            time.sleep(0.5)  # packages and git state are gathered meanwhile
        plan = Plan(steps=BLOCK * PAIRS, constant=2.3) if kind == "all" else None
        guard = Guard(budget=Budget(hours=10), run=self.run, plan=plan)
        if kind in ("watched", "all"):
            guard.watch(self.model, self.optimizer)
            watch = guard._watch
            for handle in watch._handles:
                handle.remove()
            watch._handles = [
                self.model.register_forward_pre_hook(self.timed(watch._before), with_kwargs=True),
                self.model.register_forward_hook(self.timed(watch._after)),
            ]
        if kind == "all":
            resume = Resume(self.folder / "kept", seconds=1e9, guard=guard, model=self.model, optimizer=self.optimizer)
            self.batches = guard.batches(self.batches)
            self.log, self.done = self.timed(self.run.log), self.timed(resume.done)
        self.ask = self.timed(guard.step)

    def block(self, steps: int = BLOCK) -> float:
        """Train for some steps; return the processor seconds of the process."""
        torch, model, optimizer = self.torch, self.model, self.optimizer
        ask, log, done, take, batches = self.ask, self.log, self.done, self.take, self.batches
        start = time.process_time()
        for step in range(self.at, self.at + steps):
            inputs, labels = take(batches)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            if ask is not None:
                ask(step, loss=loss)
            optimizer.step()
            if log is not None:
                log(step, loss=loss.item(), rate=0.01)
                done(step, loss=loss)
        self.at += steps
        return time.process_time() - start

    def close(self) -> None:
        if self.run is not None and self.store is not None:
            self.run.finish()
            self.store.close()
        shutil.rmtree(self.folder)


def calibrated(torch: Any, name: str) -> int:
    """Return the rows of a batch at which a bare step takes about STEP_S."""
    rows = 8
    while rows < 4096:
        loop = Loop(torch, name, "bare", rows=rows)
        loop.block(3)
        took = statistics.median(loop.block(3) for _ in range(5)) / 3
        loop.close()
        if took >= 0.95 * STEP_S:
            break
        rows = max(rows + 1, int(rows * min(STEP_S / took, 2.0)))
    return rows


def compared(torch: Any, name: str, kind: str, *, rows: int) -> list[str]:
    """Run the two loops in turns; return a row of the table."""
    bare, other = Loop(torch, name, "bare", rows=rows), Loop(torch, name, kind, rows=rows)
    bare.block(5), other.block(5)
    ratios, steps, inside = [], [], []
    for turn in range(PAIRS):
        before = other.timed.seconds
        # Which goes first changes every time, so that what drifts is on both sides.
        took = [loop.block() for loop in ((bare, other) if turn % 2 else (other, bare))]
        base, guarded = took if turn % 2 else reversed(took)
        ratios.append(guarded / base - 1)
        steps.append(base / BLOCK)
        inside.append((other.timed.seconds - before) / BLOCK)
    bare.close(), other.close()
    low, added, high = statistics.quantiles(ratios, n=4)
    step, part = statistics.median(steps), statistics.mean(inside)
    return [
        name,
        next(said for said, one in KINDS.items() if one == kind),
        f"{step * 1e3:.2f}",
        f"{added:+.1%} ({low:+.1%} to {high:+.1%})",
        f"{part * 1e6:.0f}",
        f"{part / step:.2%}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--only", default="", help="one of the kinds: bare, losses, watched, all")
    only = parser.parse_args().only
    measure.needs("torch", "safetensors")
    import torch

    torch.set_num_threads(1)
    warm = Loop(torch, "MLP", "all", rows=8)  # imports and first calls
    warm.block(120)
    warm.close()
    rows, sizes = [], []
    for name in MODELS:
        size = calibrated(torch, name)
        tensors = list(MODELS[name](torch)[0].parameters())
        sizes.append(f"{name}: {len(tensors)} tensors, {sum(one.numel() for one in tensors):,} weights, {size} rows")
        rows += [compared(torch, name, kind, rows=size) for kind in KINDS.values() if only in ("", kind)]
    header = ["model", "loop", "ms a bare step", "added (quartiles)", "inside, µs a step", "inside, of a step"]
    title = f"A guarded step, one thread, {PAIRS} pairs of {BLOCK} steps"
    measure.show("## Guard", measure.machine("torch"), measure.rows(title, header, rows), "; ".join(sizes) + ".")


if __name__ == "__main__":
    sys.exit(main())

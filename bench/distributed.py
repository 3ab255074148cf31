"""What the guard's agreement costs a step of DDP on two ranks: bare, agreed, watched, in turns in the same processes.

Both ranks live in one launch, so that every kind of loop meets the same machine at the same time. A step is a small
network on one thread, sized to about 10 ms; under gloo DDP itself exchanges all its gradients, which is part of the
bare loop. `inside` is what the calls of the guard take on the first rank by the clock, the waiting for the other rank
included; on a crowded machine that is mostly waiting for a core, so processor time of the whole process stands beside.
At the end the agreement alone, two hundred at a time through shared memory and over gloo.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

STEPS = 60
ROUNDS = 4
ROWS = 64
WIDTH = 320
KINDS = {"bare DDP": "bare", "losses agreed": "agreed", "model watched": "watched", "and a checkpoint each 50": "all"}


def loop(ranks: Any, kind: str, folder: Path) -> tuple[float, float, float]:
    """Train for STEPS steps; return seconds of all of it, of what was called of ours, and of the processor."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from tenon.training import Guard, Resume, Rules

    torch.manual_seed(0)
    layers = [torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU()) for _ in range(12)]
    model = DistributedDataParallel(torch.nn.Sequential(*layers))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    guard = Guard(ranks=ranks, rules=Rules(flat=False, diverged=False)) if kind != "bare" else None
    resume = None
    if guard is not None and kind in ("watched", "all"):
        guard.watch(model, optimizer)
    if kind == "all":
        resume = Resume(folder, every=50, guard=guard, model=model, optimizer=optimizer)
    x = torch.randn(ROWS, WIDTH)
    inside = 0.0
    ranks.words(0)  # both begin together
    start, worked = time.perf_counter(), time.process_time()
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = (model(x) - x).square().mean()
        loss.backward()
        value = loss.item()
        if guard is not None:
            before = time.perf_counter()
            guard.step(step, loss=value)
            inside += time.perf_counter() - before
        optimizer.step()
        if resume is not None:
            before = time.perf_counter()
            resume.done(step, loss=value)
            inside += time.perf_counter() - before
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - worked
    if guard is not None:
        guard.close()
    if resume is not None:
        resume.checkpoints.close()
    return seconds, inside, cpu_s


def both(ranks: Any, out: str) -> None:
    """Be one of the two ranks: all kinds in turns, and the bare exchange by itself."""
    import torch

    from tenon.training.ranks import Said

    torch.set_num_threads(1)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(ranks.words(folder)[0])
        for turn in range(ROUNDS + 1):
            for name, kind in KINDS.items():
                result = loop(ranks, kind, shared / f"{turn}-{kind}")
                if turn:
                    found[name].append(result)
        ranks.words(0)
    near = ranks._near
    hears: dict[str, list[float]] = {"shared memory": [], "gloo": []}
    for step in range(4_000):
        way = "gloo" if step // 200 % 2 else "shared memory"
        ranks._near = None if way == "gloo" else near
        before = time.perf_counter()
        ranks.hear(Said(step=step, loss=1.0))
        hears[way].append(time.perf_counter() - before)
    ranks._near = near
    if ranks.first:
        told = {way: statistics.median(values) for way, values in hears.items()}
        Path(out).write_text(json.dumps({"found": found, "hear_s": told}))


def main() -> None:
    """Print the table."""
    measure.options(__doc__).parse_args()
    measure.needs("torch", "safetensors")
    from tenon.training.launch import launch
    from tenon.training.target import Target

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        target = Target.of(f"{Path(__file__).resolve()}:both", [f"out={out}"])
        if not launch(target.command, nproc=2, folder=Path(folder) / "watch", restarts=0):
            raise SystemExit(1)
        told = json.loads(out.read_text())
    rows = []
    for name, values in told["found"].items():
        turns = list(zip(values, told["found"]["bare DDP"], strict=True))
        clock, cpu = (statistics.median(one[i] / bare[i] - 1 for one, bare in turns) for i in (0, 2))
        whole, inside, worked = (statistics.median(one[i] for one in values) / STEPS for i in range(3))
        rows.append(
            [
                name,
                f"{whole * 1e3:.2f}",
                f"{clock:+.1%}",
                f"{inside * 1e6:.0f}",
                f"{worked * 1e3:.2f}",
                f"{cpu:+.1%}",
            ]
        )
    for way, hear_s in told["hear_s"].items():
        rows.append([f"the agreement alone, through {way}", "", "", f"{hear_s * 1e6:.0f}", "", ""])
    header = ["loop", "ms a step", "added, in turns", "inside, µs a step", "processor ms a step", "added, in turns"]
    title = f"A step of DDP on two ranks, gloo, one thread each: 12 layers of {WIDTH}, batches of {ROWS}"
    measure.show("## Distributed", measure.machine("torch"), measure.rows(title, header, rows))


if __name__ == "__main__":
    sys.exit(main())

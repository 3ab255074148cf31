"""What does a step pay for being guarded? A PyTorch step of about ten milliseconds, alone and with all of the guard.

The model is a plain MLP with 24 weight tensors; its width is chosen so that a step takes ten milliseconds here. Beside
the bare loop stand: the guard with losses only; with the model watched (gradients at every step, health now and then);
and all of it: with a plan, a budget, the clock of where time goes, a run that logs two metrics, and checkpoints asked
for at every step. Two figures are told: *added* compares whole loops run in turns, *inside* adds up the calls
and hooks of the guard in the same loop, and is the one to read. All of it is processor time of the
loop's own thread, which is all that works here, so that other processes of the machine are not measured with it.
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
STEPS = 400
ROUNDS = 2


class Timed:
    """Calls a function and adds up what that took, less what it costs to measure."""

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


def network(torch: Any, width: int) -> Any:
    layers = [layer for _ in range(11) for layer in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, 10))


def calibrated(torch: Any) -> int:
    """Return the width at which a bare step takes about STEP_S."""
    for width in range(64, 2048, 32):
        loop(torch, width, "bare", steps=5)
        if loop(torch, width, "bare", steps=15)[0] / 15 >= STEP_S:
            return width
    return 2048


def loop(torch: Any, width: int, kind: str, *, steps: int = STEPS) -> tuple[float, float]:
    """Train for some steps; return the seconds of the loop, and of the guard's calls and hooks within it."""
    from tenon.ledger import Budget
    from tenon.store import Store
    from tenon.training import Guard, Plan, Run
    from tenon.training.resume import Resume

    torch.manual_seed(0)
    model = network(torch, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(64, width), torch.randint(0, 10, (64,))
    folder, timed = Path(tempfile.mkdtemp(prefix="tenon-bench-")), Timed()
    store = run = resume = guard = None
    batches: Iterator[Any] = iter([(x, y)] * steps)
    if kind == "all":
        store = Store.open(folder)
        run = Run.start(store, "r", "m")
        time.sleep(0.5)  # packages and git state are gathered meanwhile
    if kind != "bare":
        plan = Plan(steps=steps, constant=2.3) if kind == "all" else None
        guard = Guard(budget=Budget(hours=10), run=run, plan=plan)
        if kind in ("watched", "all"):
            guard.watch(model, optimizer)
            watch = guard._watch
            for handle in watch._handles:
                handle.remove()
            watch._handles = [
                model.register_forward_pre_hook(timed(watch._before), with_kwargs=True),
                model.register_forward_hook(timed(watch._after)),
            ]
        if kind == "all":
            resume = Resume(folder / "kept", seconds=1e9, guard=guard, model=model, optimizer=optimizer)
            batches = guard.batches(batches)
    ask = timed(guard.step) if guard is not None else None
    log = timed(run.log) if run is not None else None
    done = timed(resume.done) if resume is not None else None
    take = timed(next) if kind == "all" else next
    start = time.thread_time()
    for step in range(steps):
        inputs, labels = take(batches)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        if ask is not None:
            ask(step, loss=loss)
        optimizer.step()
        if log is not None and done is not None:
            log(step, loss=loss.item(), rate=0.01)
            done(step, loss=loss)
    seconds = time.thread_time() - start
    if run is not None and store is not None:
        run.finish()
        store.close()
    shutil.rmtree(folder)
    return seconds, timed.seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="store_true")
    parser.parse_args()
    measure.needs("torch", "safetensors")
    import torch

    torch.set_num_threads(1)
    loop(torch, 64, "all", steps=120)  # imports and first calls
    width = calibrated(torch)
    kinds = {"bare loop": "bare", "losses only": "losses", "model watched": "watched", "all of it": "all"}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, kind in kinds.items():
            found[name].append(loop(torch, width, kind))
    bare = statistics.median(seconds for seconds, _ in found["bare loop"])
    rows = []
    for name, values in found.items():
        whole = statistics.median(seconds for seconds, _ in values)
        inside = statistics.median(part for _, part in values) / STEPS
        share = statistics.median(part / seconds for seconds, part in values)
        rows.append(
            [name, f"{whole / STEPS * 1e3:.2f}", f"{whole / bare - 1:+.1%}", f"{inside * 1e6:.0f}", f"{share:.2%}"]
        )
    header = ["loop", "ms a step", "added", "inside, µs a step", "inside, of the step"]
    title = f"A guarded step: 24 weight tensors, {width} wide, batches of 64, one thread"
    measure.show("## Guard", measure.machine("torch"), measure.rows(title, header, rows))


if __name__ == "__main__":
    sys.exit(main())

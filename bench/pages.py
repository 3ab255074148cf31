"""What do pages of memory cost that every training step gives back to the system and takes anew?

Three steps of training on a processor: the MLP of `bench/guard.py`, TinyGPT, and TinyGPT with batches and lengths drawn
at random. Each is trained in a process of its own, as Python starts it and with `tenon.training.keep_memory()`, in
turns. Told are the time of a step, the pages that it was handed, the system's share of the processor time, and the most
memory that the process held.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

TINYGPT = Path(__file__).parent.parent / "examples" / "tinygpt"
ROUNDS, WARM = 3, 5
STEPS = {"MLP": 200, "TinyGPT": 25, "TinyGPT, lengths drawn": 15}


def mlp(torch: Any) -> Callable[[], None]:
    """Return a step of an MLP."""
    from guard import MODELS

    model, make, _ = MODELS["MLP"](torch)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    inputs, labels = make(96), torch.randint(0, 10, (96,))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return step


def tinygpt(torch: Any, *, drawn: bool) -> Callable[[], None]:
    """Return a step of the example's network, of random tokens."""
    sys.path.insert(0, str(TINYGPT))
    import train

    shape = train.SHAPE
    net = train.model(shape)
    optimizer, order = train.optimizer(net), random.Random(0)

    def step() -> None:
        rows, length = (
            (order.randint(4, 64), order.randint(16, shape.context)) if drawn else (train.BATCH, shape.context)
        )
        tokens = torch.randint(0, shape.vocab, (rows, length + 1))
        optimizer.zero_grad(set_to_none=True)
        train.loss(net, (tokens[:, :-1], tokens[:, 1:])).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return step


def trained(name: str, keep: bool) -> None:
    """Train in this process, and print what it took."""
    import torch

    from tenon.training import keep_memory

    torch.manual_seed(0)
    if keep and not keep_memory():
        raise SystemExit("the C library of this system cannot keep memory")
    step = mlp(torch) if name == "MLP" else tinygpt(torch, drawn=name != "TinyGPT")
    for _ in range(WARM):
        step()
    before, took = resource.getrusage(resource.RUSAGE_SELF), []
    for _ in range(STEPS[name]):
        start = time.perf_counter()
        step()
        took.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF)
    system = after.ru_stime - before.ru_stime
    found = {
        "ms": statistics.fmean(took) * 1e3,
        "pages": (after.ru_minflt - before.ru_minflt) / len(took),
        "system": system / (system + after.ru_utime - before.ru_utime),
        "peak": after.ru_maxrss / 1024,
    }
    print(json.dumps(found))


def main() -> None:
    """Print the table."""
    parser = measure.options(__doc__)
    parser.add_argument("--of", default="", choices=["", *STEPS], help="train this one only, in this process")
    parser.add_argument("--keep", action="store_true", help="with --of: keep memory")
    given = parser.parse_args()
    measure.needs("torch", "safetensors")
    if given.of:
        trained(given.of, given.keep)
        return
    rows = []
    for name in STEPS:
        found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(ROUNDS):
            for keep, told in found.items():
                command = [sys.executable, __file__, "--of", name, *["--keep"] * keep]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                told.append(json.loads(done.stdout.splitlines()[-1]))
        for keep, told in found.items():
            of = {field: statistics.median(one[field] for one in told) for field in told[0]}
            ratio = of["ms"] / statistics.median(one["ms"] for one in found[False])
            how = "kept" if keep else "as it starts"
            figures = [
                f"{of['ms']:.1f}",
                f"{ratio:.2f}",
                f"{of['pages']:,.0f}",
                f"{of['system']:.0%}",
                f"{of['peak']:,.0f}",
            ]
            rows.append([name, how, *figures])
    header = ["step", "memory", "ms a step", "of the first", "pages a step", "the system's", "peak MB"]
    title = f"Pages of a step on a processor, medians of {ROUNDS} processes each, in turns"
    measure.show("## Pages", measure.machine("torch"), measure.rows(title, header, rows))


if __name__ == "__main__":
    sys.exit(main())

"""What the tests of several processes run in each of them: a small model under DDP or FSDP, with faults on demand."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tenon.errors import StoreError, TenonError
from tenon.ledger import Budget
from tenon.store import Store
from tenon.training import Guard, Order, Resume, Rules, Run
from tenon.training.ranks import Ranks

EVERY = 7


def load_rows() -> None:
    """Stand still, as a disk that is gone."""
    time.sleep(1_000)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 15), nn.BatchNorm1d(15), nn.Dropout(0.3), nn.ReLU(), nn.Linear(15, 5))


def parts(ranks: Ranks, mode: str) -> tuple[Any, dict[str, Any]]:
    """Build a model as `mode` says, and what is kept with it; each rank's random numbers are its own."""
    torch.set_num_threads(1)
    net = network()
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(100 + ranks.rank)
    if mode == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for layer in net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(net)
    model = net
    if mode.startswith("ddp"):
        # On three ranks and more it would add in another order after a resume, which `plain` is to tell.
        fixed = mode == "ddp" and ranks.size > 2
        model = nn.parallel.DistributedDataParallel(net, find_unused_parameters=fixed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=200),
        "data": Order(200, 24, ranks=ranks, seed=2),
        "own": np.random.default_rng(ranks.rank),
    }


def befall(folder: Path, rank: int, step: int, faults: dict[int, str]) -> None:
    """Be killed or hang at a step, once however often the run comes by."""
    mark = folder / f"befallen-{rank}-{step}"
    if step in faults and not mark.exists():
        mark.touch()
        if faults[step] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        load_rows()


def train(ranks: Ranks, mode: str, folder: Path, steps: int, faults: dict[int, str]) -> None:
    """Train, one line a step in `folder/losses-RANK`, from the last checkpoint; `faults` say what befalls at a step."""
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    model, kept = parts(ranks, mode)
    guard = Guard(ranks=ranks, rules=Rules(flat=False)).watch(model, kept["optimizer"])
    resume = Resume(folder / "checkpoints", every=EVERY, guard=guard, **kept)
    first = resume.restore()
    batches = kept["data"].forever()
    with (folder / f"losses-{ranks.rank}").open("a") as out:
        for step in range(first, steps):
            rows = next(batches)
            befall(folder, ranks.rank, step, faults)
            noise = kept["own"].normal() * 0.01 + np.random.normal() * 0.01 + random.random() * 0.01
            loss = (model(x[rows]) - x[rows, :5] * 2 + noise).square().mean()
            kept["optimizer"].zero_grad()
            loss.backward()
            if not guard.step(step, loss=loss):
                break
            kept["optimizer"].step()
            kept["scheduler"].step()
            out.write(f"{step} {loss.item().hex()}\n")
            out.flush()
            resume.done(step, loss=loss)
    resume.checkpoints.close()
    guard.close()


def exact(ranks: Ranks, folder: str, steps: int, faults: dict[str, dict[str, str]]) -> None:
    """Train both models once undisturbed, then each with faults, across as many attempts as those need."""
    root = Path(folder)
    for mode in ("ddp", "fsdp"):
        for name in (f"{mode}-whole", f"{mode}-broken"):
            if (root / name / f"done-{ranks.rank}").exists():
                continue
            (root / name).mkdir(exist_ok=True)
            mine = faults.get(f"{mode} {ranks.rank}", {}) if name.endswith("broken") else {}
            train(ranks, mode, root / name, steps, {int(step): what for step, what in mine.items()})
            (root / name / f"done-{ranks.rank}").touch()


def beset(ranks: Ranks, folder: str, steps: int, kill: int = -1, hang: int = -1) -> None:
    """Train DDP, and have the last rank be killed at a step and hang at another, once each; wherever it runs."""
    train(ranks, "ddp", Path(folder), steps, {kill: "kill", hang: "hang"} if ranks.rank == ranks.size - 1 else {})


def spoiled(ranks: Ranks) -> None:
    """Train DDP, and meet NaN on the last rank, whose error then goes where every error goes."""
    model, kept = parts(ranks, "ddp")
    guard = Guard(ranks=ranks).watch(model, kept["optimizer"])
    for step in range(10):
        value = float("nan") if step == 5 and ranks.rank == ranks.size - 1 else 1.0
        loss = (model(torch.full((4, 8), 0.5 + step)) * value).square().mean()
        kept["optimizer"].zero_grad()
        loss.backward()
        guard.step(step, loss=loss)
        kept["optimizer"].step()


def weights(model: nn.Module) -> dict[str, list[float]]:
    """Return every weight of a model, whole."""
    found = {}
    for name, held in model.state_dict().items():
        whole = held.full_tensor() if hasattr(held, "full_tensor") else held
        found[name.removeprefix("module.")] = whole.double().flatten().tolist()
    return found


def moved(ranks: Ranks, folder: str) -> None:
    """Go on from the checkpoints of another number of ranks, once; then be killed on one rank, and go on from there."""
    root = Path(folder)
    if not (root / f"moved-{ranks.size}.json").exists():
        read_elsewhere(ranks, root)
    (root / "killed").mkdir(exist_ok=True)
    beset(ranks, str(root / "killed"), 30, kill=17)


def read_elsewhere(ranks: Ranks, root: Path) -> None:
    """Read each mode's checkpoint as each mode on this number of ranks, and write what came of it."""
    told: dict[str, Any] = {}
    for kept_as in ("ddp", "fsdp"):
        for mode in ("ddp", "fsdp"):
            model, kept = parts(ranks, mode)
            resume = Resume(root / f"{kept_as}-broken" / "checkpoints", ranks=ranks, **kept)
            step = resume.restore()
            moments = kept["optimizer"].state_dict()["state"][0]["exp_avg"]
            moments = moments.full_tensor() if hasattr(moments, "full_tensor") else moments
            told[f"{kept_as} as {mode}"] = {
                "step": step,
                "weights": weights(model),
                "moments": moments.double().flatten().tolist(),
                "position": kept["data"].state_dict()["position"],
                "said": [one.said for one in resume.findings],
            }
            resume.checkpoints.close()
    told["refused"] = refused(ranks, root / "refused")
    for mode in ("ddp", "fsdp"):
        for name in (f"{mode}-3-whole", f"{mode}-3-broken"):
            (root / name).mkdir(exist_ok=True)
            for steps in (24, 30) if name.endswith("broken") else (30,):  # another model, from the checkpoint
                train(ranks, mode, root / name, steps, {})
    _, kept = parts(ranks, "ddp plain")
    plain = Resume(root / "ddp-3-whole" / "checkpoints", ranks=ranks, **kept)
    plain.restore()
    told["plain"] = [one.said for one in plain.findings]
    plain.checkpoints.close()
    if ranks.first:
        (root / f"moved-{ranks.size}.json").write_text(json.dumps(told))


def refused(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Save while the last rank may not write, then spoil a file of its own; what each came to."""
    _, kept = parts(ranks, "fsdp")
    resume = Resume(folder, ranks=ranks, **kept)
    for step in (1, 2):
        resume.save(step)
    ranks.words(0)
    if ranks.rank == ranks.size - 1:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, limit[1]))  # as a disk that is full for this rank alone
    try:
        resume.save(3)
        said = ""
    except StoreError as error:
        said = str(error)
    if ranks.rank == ranks.size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        file = folder / "step-0000000002" / f"tensors-{ranks.rank:05}.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    every = ranks.words(said)
    steps = resume.checkpoints.steps()
    ranks.words(0)
    gone_on = resume.restore()
    resume.checkpoints.close()
    left = sorted(one.name for one in folder.iterdir())
    return {"said": every, "steps": steps, "gone on": ranks.words(gone_on), "left": left}


# ── where the time goes ──────────────────────────────────────────────────────────────────────────────────────────────


def far(bucket: Any) -> Any:
    """Add gradients up as DDP does, and be told of it later, as over a slow network; computing goes on meanwhile."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    sent, arrived = allreduce_hook(None, bucket), torch.futures.Future()
    threading.Timer(0.08, lambda: arrived.set_result(sent.wait())).start()
    return arrived


def pace(ranks: Ranks, kind: str, watched: bool) -> dict[str, Any]:
    """Train while the last rank is late (`ddp`, `fsdp`), or while the network is slow (`far`)."""
    model, kept = parts(ranks, "ddp" if kind == "far" else kind)
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    y = x[:, :5] * 2
    if kind == "far":
        model.register_comm_hook(None, lambda state, bucket: far(bucket))
    shown: list[dict[str, Any]] = []
    guard = Guard(ranks=ranks, rules=Rules(flat=False), clock=lambda: time.monotonic() * 20)  # a reading each 50 ms
    if watched:
        guard.show = lambda stands: shown.append(dict(stands))
        guard.watch(model, kept["optimizer"])
        guard._watch.work_after_s = 0.0
    losses = []
    for step, rows in zip(range(40), kept["data"].forever(), strict=False):
        if watched and kind != "far" and ranks.rank == ranks.size - 1:
            time.sleep(0.08)
        loss = (model(x[rows]) - y[rows]).square().mean()
        kept["optimizer"].zero_grad()
        loss.backward()
        guard.step(step, loss=loss)
        kept["optimizer"].step()
        losses.append(loss.item().hex())
    work = guard._watch.work if watched else None
    guard.close()
    findings = [one.to_dict() for one in guard.findings]
    flops = work.flops if work is not None else 0.0
    return {"losses": losses, "shown": shown[1:], "findings": findings, "flops": flops}


def paced(ranks: Ranks) -> dict[str, Any]:
    """Go through the kinds, watched and not; what this rank saw."""
    return {
        f"{kind}{' bare' * (not watched)}": pace(ranks, kind, watched)
        for kind, watched in (("ddp", True), ("ddp", False), ("fsdp", True), ("fsdp", False), ("far", True))
    }


# ── a guard's step ───────────────────────────────────────────────────────────────────────────────────────────────────


def one_run(ranks: Ranks, mode: str, fault: str, root: Path, store: Store | None) -> dict[str, Any]:
    """Train 40 steps with a fault on the last rank, and return what the guard made of it."""
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    model, kept = parts(ranks, mode)
    last = ranks.rank == ranks.size - 1
    ticks = iter(range(1_000_000))
    run = Run.start(store, f"{mode}-{fault}", "m") if store is not None else None
    guard = Guard(
        ranks=ranks,
        run=run,
        rules=Rules(flat=False),
        budget=Budget(hours=0.2) if fault == "budget" else None,
        clock=(lambda: next(ticks) * 10.0) if fault == "budget" else time.monotonic,
    ).watch(model, kept["optimizer"])
    told: dict[str, Any] = {"steps": 0, "error": ""}
    resume = None
    if fault == "timed":  # due at once by the first rank's clock, never by the other's
        resume = Resume(root / "timed", seconds=0.0 if ranks.first else 1e9, guard=guard, **kept)
    batches = kept["data"].forever()
    try:
        for step in range(40):
            rows = next(batches)
            given = x[rows].clone()
            if last and step == 5 and fault == "input":
                given[2, 3] = float("nan")
            loss = (model(given) - x[rows, :5] * 2).square().mean()
            if last and step == 5 and fault == "loss":
                loss = loss * float("inf")
            kept["optimizer"].zero_grad()
            loss.backward()
            if last and step == 5 and fault == "news":
                guard.tell(guard_note("training/data-starved", step))
            if not guard.step(step + (last and step == 5 and fault == "lost"), loss=loss):
                break
            kept["optimizer"].step()
            told["steps"] += 1
            if resume is not None:
                resume.done(step, loss=loss)
            if step == 9 and fault == "evaluated":
                guard.evaluated(step, 1.0, mixed=[2.0 + roll * (1 + last) for roll in range(4)])
                told["mixed"] = guard.trend._mixed
                told["go on"] = guard.evaluated(step, float("nan") if last else 1.0)
    except TenonError as error:
        told["error"] = f"{type(error).__name__}: {error}"
    if resume is not None:
        told["saved"] = resume.checkpoints.steps()
    told["weights"] = weights(model)
    told["findings"] = [[one.code, one.said] for one in guard.findings]
    told["core_s"] = [guard.usage(guard._clock()).cpu_s, guard.own_usage(guard._clock()).cpu_s]
    if run is not None:
        told["run"] = run.finish()["findings"]
    guard.close()
    return told


def guard_note(code: str, step: int) -> Any:
    from tenon.finding import Finding

    return Finding(code=code, severity="warning", place=f"run/{step}", said="Slow rows.")


FAULTS = ("none", "input", "loss", "news", "budget", "evaluated", "lost", "timed")


def guarded(ranks: Ranks, folder: str) -> dict[str, Any]:
    """Go through the faults, each a run of its own; what this rank saw of them."""
    told = {}
    store = Store.open(Path(folder)) if ranks.first else None
    for mode, faults in (("ddp", FAULTS), ("fsdp", ("input", "loss"))):
        for fault in faults:
            told[f"{mode} {fault}"] = one_run(ranks, mode, fault, Path(folder), store)
    if store is not None:
        store.close()
    return told


def together(ranks: Ranks, folder: str) -> None:
    """Meet faults and slow ranks, and write what each rank saw of them."""
    told = {"guarded": guarded(ranks, folder), "paced": paced(ranks)}
    Path(folder, f"together-{ranks.rank}.json").write_text(json.dumps(told))

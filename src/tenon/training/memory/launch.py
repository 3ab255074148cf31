"""The gate of a training script: refuse a step that is not sure to fit the GPU here, and learn from it after.

`gate` predicts the step of a file on the GPU that is here, and raises with the plan when it is not sure to fit;
`remember` tells the store what the run really reserved, so that the next prediction knows how far to trust itself.
Without a GPU both do nothing and say so by returning None: there is nothing to refuse. What the GPU is comes from the
driver's own words (name and total memory), with compute and bandwidth from the table's nearest model; nothing of this
could be tried on a GPU when it was written, only that it does no harm without one.

`admitted` is the gate of a launcher (`tenon train`): it holds no GPU itself, asks for a share of the batch on each of
several GPUs with what DDP and NCCL add there, and lets pass what fits only sharded, because it cannot know who shards.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tenon.training.memory.device import DEVICES, NCCL_BYTES, Device, find
from tenon.training.memory.learned import learn
from tenon.training.memory.predict import Question, StepFit, fit_step
from tenon.training.memory.step import pytorch

if TYPE_CHECKING:
    from tenon.store import Store

DRIVERS = ("nvidia*", "nvhost*", "dxg", "kfd")  # of NVIDIA, of its small boards, of a GPU under WSL, of AMD


def here() -> Device | None:
    """Return the GPU of this process as the driver describes it, or None without one."""
    torch = pytorch()
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return described(str(found.name), int(found.total_memory), (int(found.major), int(found.minor)))


def described(name: str, total_bytes: int, capability: tuple[int, int]) -> Device:
    """Return the device of the table that a driver's description means, with the capacity that it says.

    A name that the table does not know gets the rates of the device whose memory and capability are nearest.
    """
    words = set(name.lower().replace("-", " ").split())
    alike = [one for one in DEVICES.values() if set(one.name.split("-")[:-1]) <= words]
    nearest = min(
        alike or DEVICES.values(),
        key=lambda one: (one.capability != capability, abs(one.total_bytes - total_bytes)),
    )
    known = nearest.name if alike else name.lower().replace(" ", "-")
    return replace(nearest, name=known, total_bytes=total_bytes, capability=capability)


def gate(path: Path, batch: int, *, store: Store | None = None, device: Device | str | None = None) -> StepFit | None:
    """Predict the step in `path` for the GPU here; TrainingError, with the plan, when it is not sure to fit.

    Call it before anything is put on the GPU. Returns None without a GPU, unless a `device` of the table is named: the
    one that is to be rented.
    """
    found = asked(path, batch, store=store, device=device)
    if found is not None:
        found.require()
    return found


def asked(path: Path, batch: int, *, store: Store | None = None, device: Device | str | None = None) -> StepFit | None:
    """Return what `gate` judges, without refusing anything."""
    wanted = find(device) if isinstance(device, str) else device or here()
    if wanted is None:
        return None
    return fit_step(Question(path=path, device=wanted, batch=batch), store=store)


def seen() -> Device | None:
    """Return what `here` says in a process of its own, so that this one never holds a part of the GPU.

    None at once where the system shows no such device: importing PyTorch would take seconds to find out the same.
    """
    if sys.platform == "linux" and not any(next(Path("/dev").glob(one), None) for one in DRIVERS):
        return None
    script = "import json; from dataclasses import asdict; from tenon.training.memory import here; found = here(); "
    script += "print(json.dumps(asdict(found) if found is not None else None))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stdout
    body = json.loads(told.splitlines()[-1]) if told.strip() else None
    return Device(**{**body, "capability": tuple(body["capability"])}) if body else None


def admitted(question: Question, nproc: int, *, store: Store | None = None) -> tuple[StepFit, str]:
    """Judge a step whose batch `nproc` GPUs share; returns the judgement, and how several GPUs must take it to fit.

    The way is "" when each GPU may hold the whole model, as DDP does with one more copy of the gradients.
    """
    if nproc == 1:
        return fit_step(question, store=store), ""
    share = replace(question, batch=-(-question.batch // nproc), used_bytes=question.used_bytes + NCCL_BYTES)
    found = fit_step(share, store=store, plan=False)
    buckets = found.step.counts["parameter_bytes"]
    found = replace(found, question=replace(share, used_bytes=share.used_bytes + buckets))
    if found:
        return found, ""
    apart = [plan for plan in fit_step(question, store=store).plans if plan.gpus > 1 and plan.fits]
    if apart and apart[0].gpus <= nproc:
        return found, apart[0].said
    plans = fit_step(found.question, store=store).plans
    return replace(found, plans=tuple(plan for plan in plans if plan.gpus == 1)), ""


def reserved() -> int | None:
    """Return the bytes that this process has reserved on its GPU at most; None without a GPU."""
    torch = pytorch()
    return int(torch.cuda.max_memory_reserved()) if torch.cuda.is_available() else None


def remember(found: StepFit | None, store: Store, measured: int | None = None) -> int | None:
    """Tell the store what this process reserved on the GPU at most, beside what was predicted; return the bytes.

    Call it after some steps. Does nothing for a prediction that was not made, and without a GPU, unless the bytes are
    given: as another process or a log tells them.
    """
    measured = reserved() if measured is None else measured
    if found is None or measured is None:
        return None
    torch = pytorch()
    learn(
        store,
        found.question.device.name,
        predicted_bytes=found.step.peak.reserved_bytes,
        measured_bytes=measured,
        about={"path": str(found.question.path), "batch": found.question.batch, "torch": str(torch.__version__)},
    )
    return measured

"""What would make a step fit, each with its memory and its price in time: the cheapest that fits is recommended.

Every plan but FSDP is really run under fake tensors: micro-batches with accumulation (as few as fit), checkpoints of
the repeated blocks, both, bfloat16 autocast, another optimiser. Time is by roofline (see `device`): only the ratio to
the step as it is means anything. FSDP over k GPUs is a formula: parameters, gradients and optimiser state divided by k,
the batch too, beside two gathered blocks with the gradient of one and the buffers of a process group (Zhao et al. 2023,
"PyTorch FSDP", section 3); its time adds the three passes of parameters over the links at what NVLink or PCIe moves.

The number of micro-batches is found by a line: what a step needs is taken as fixed + share / n through two runs, the
smallest divisor of the batch that should fit is run, then the next ones, at most three times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tenon.training.memory.device import NCCL_BYTES
from tenon.training.memory.step import Change

if TYPE_CHECKING:
    from tenon.training.memory.predict import Step, StepFit, Worker

TRIES = 3
GPUS = (2, 4, 8, 16, 32, 64)
LINK_BYTES_PER_S = {"nvlink": 300e9, "pcie": 20e9}  # one way, reached; assumed, unmeasured
NVLINKED = ("a100", "b200", "h100", "h200", "v100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to make a step fit: what it needs, whether that fits, what it costs."""

    said: str
    need_bytes: int  # reserved on each GPU, without the margin
    fits: bool
    times: float  # its time as a multiple of the step as it is
    gpus: int = 1
    keeps_result: bool = True
    formula: bool = False

    @property
    def cost(self) -> float:
        """Return its price as a multiple of the step as it is: time on all its GPUs."""
        return self.times * self.gpus

    @property
    def slower(self) -> str:
        """Return its price in words."""
        change = self.times - 1
        said = "as quick" if abs(change) < 0.005 else f"{abs(change):.0%} {'slower' if change > 0 else 'quicker'}"
        return f"{said} on {self.gpus} GPUs" if self.gpus > 1 else said

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "said": self.said,
            "need_bytes": self.need_bytes,
            "fits": self.fits,
            "times": self.times,
            "cost": self.cost,
            "gpus": self.gpus,
            "keeps_result": self.keeps_result,
            "formula": self.formula,
        }


def search(fit: StepFit, worker: Worker) -> tuple[Plan, ...]:
    """Try the changes from the mildest on and return what was tried, those that fit first, the cheapest first.

    Runs the step up to a dozen times. A change that fake tensors cannot run is left out.
    """
    found: list[Plan] = []
    already = False  # in bfloat16
    for change in _changes(fit):
        if change.bf16 and already:
            continue
        step = worker.step(change)
        if isinstance(step, str):
            continue
        if change == Change(bf16=True) and step.peak.allocated_bytes >= 0.98 * fit.step.peak.allocated_bytes:
            already = True
            continue
        found.append(_plan(fit, step))
        if not found[-1].fits and change.optimizer == "":
            found += _split(fit, worker, step)
    found += _split(fit, worker, fit.step)
    found += _sharded(fit, worker)
    return tuple(sorted(found, key=lambda plan: (not plan.fits, plan.cost)))


def _changes(fit: StepFit) -> Iterator[Change]:
    """Yield the changes that make sense for this step."""
    counts = fit.step.counts
    if counts["fusable"] and not counts["fused"] and fit.step.peak.phase == "optimizer":
        yield Change(optimizer="fused")
    if counts["blocks"] > 1:
        yield Change(checkpoint=True)
    if fit.question.device.bf16:
        yield Change(bf16=True)
        if counts["blocks"] > 1:
            yield Change(bf16=True, checkpoint=True)
    if counts["adam"]:
        yield Change(optimizer="adafactor")


def _plan(fit: StepFit, step: Step) -> Plan:
    return Plan(
        said=step.change.said,
        need_bytes=step.peak.reserved_bytes,
        fits=fit.margin.over(step.peak.reserved_bytes) <= fit.question.usable_bytes,
        times=step.seconds / fit.step.seconds if fit.step.seconds else 1.0,
        keeps_result=step.change.keeps_result,
    )


def _split(fit: StepFit, worker: Worker, whole: Step) -> list[Plan]:
    """Return the step with as few micro-batches as fit, or with as many as there can be when none do."""
    divisors = [n for n in range(2, whole.batch + 1) if whole.batch % n == 0]
    if not divisors:
        return []
    room = fit.question.usable_bytes
    tried: dict[int, Step] = {}
    first = worker.step(replace(whole.change, micro_batches=divisors[0]))
    if isinstance(first, str):
        return []
    tried[divisors[0]] = first
    share = (whole.peak.reserved_bytes - first.peak.reserved_bytes) / (1 - 1 / divisors[0])
    fixed = whole.peak.reserved_bytes - share
    ahead = [n for n in divisors if n > divisors[0] and fit.margin.over(int(fixed + share / n)) <= room]
    if not _plan(fit, first).fits:
        for n in (ahead or divisors[-1:])[:TRIES]:
            step = tried.get(n) or worker.step(replace(whole.change, micro_batches=n))
            if isinstance(step, str):
                break
            tried[n] = step
            if _plan(fit, step).fits:
                break
    return [_plan(fit, tried[max(tried)])]


def _sharded(fit: StepFit, worker: Worker) -> list[Plan]:
    """Return the fewest GPUs over which FSDP fits, with its share of the batch on each; by formula.

    More GPUs than the batch has examples have one each, so that the batch grows with them.
    """
    question, counts, plans = fit.question, fit.step.counts, []
    for gpus in GPUS:
        grown = gpus > question.batch
        if question.batch % gpus and not grown:
            continue
        step = worker.step(Change(micro_batches=gpus))
        if isinstance(step, str):
            return []
        parts = step.peak.parts
        kept = parts["parameters"] + parts["gradients"] + parts["optimiser state"]
        gathered = 3 * counts["largest_block"]  # this block, the next one, and the gradient of this one
        allocated = step.peak.allocated_bytes - kept + kept / gpus + gathered + NCCL_BYTES
        need = int(allocated * step.peak.reserved_bytes / max(step.peak.allocated_bytes, 1))
        link = "nvlink" if question.device.name.split("-")[0] in NVLINKED else "pcie"
        moved = 3 * counts["parameter_bytes"] * (gpus - 1) / gpus / LINK_BYTES_PER_S[link]
        plan = Plan(
            said=f"FSDP over {gpus} GPUs" + f" with a batch of {gpus}" * grown,
            need_bytes=need,
            fits=fit.margin.over(need) <= question.usable_bytes,
            times=(step.seconds / gpus + moved) / fit.step.seconds if fit.step.seconds else 1.0,
            gpus=gpus,
            keeps_result=not grown,
            formula=True,
        )
        plans.append(plan)
        if plan.fits:
            break
    return plans[-1:]

"""Will a training step fit a GPU that is not here? Run it on fake tensors, replay its allocations, answer with a plan.

A worker process runs the user's step (see `worker`, `step`, `record`), this module replays the trace through the model
of PyTorch's allocator and compares what would be reserved, with a margin, to what the device has left beside its
context. The answer is OK only when the prediction and its margin fit; one that fits without its margin is too close to
call, and refused too. A step that fake tensors cannot run (its shapes depend on values, an operator has no meta kernel)
is run with real tensors on the processor at two small batches, and the line through both peaks is extrapolated: the
answer says so, and its margin is wider.

Rejected: counting parameters and guessing activations by formula (wrong by tens of percent as soon as a model is not a
plain transformer), and running on fake "cuda" tensors, which need a GPU for the backward pass.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tenon.errors import InputError, TrainingError, sentence
from tenon.finding import Finding
from tenon.limits import Admission, Answer, FitLimits
from tenon.training.memory.allocator import Settings
from tenon.training.memory.device import Device
from tenon.training.memory.learned import Margin, margin
from tenon.training.memory.step import STEPS, Change, locate, require_torch
from tenon.training.memory.trace import Peak, Trace, peak

if TYPE_CHECKING:
    from tenon.store import Store
    from tenon.training.memory.plan import Plan

SAMPLES = (2, 4)  # batches of the measured steps when fake tensors cannot run it
FRAGMENTED = 1.10  # what is reserved for each byte allocated, where a step was extrapolated


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked: whose step, on which device, how large a batch, with which allocator, beside what else."""

    path: Path
    device: Device
    batch: int
    settings: Settings = Settings()
    used_bytes: int = 0  # what other processes hold on the device
    limits: FitLimits = FitLimits()

    @property
    def usable_bytes(self) -> int:
        """Return what PyTorch's allocator may reserve."""
        return self.device.usable_bytes(self.used_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One predicted step: its peak, its time by roofline, how it was found."""

    change: Change
    batch: int
    peak: Peak
    seconds: float
    flops: float
    counts: Mapping[str, int]
    extrapolated: str = ""  # why, when it was
    notes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the step as plain data."""
        return {
            "change": self.change.said,
            "batch": self.batch,
            **self.peak.to_dict(),
            "seconds": self.seconds,
            "flops": self.flops,
            "counts": dict(self.counts),
            "extrapolated": self.extrapolated,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFit:
    """Whether a training step fits a device, with its margin, and what would make it fit when it does not."""

    question: Question
    step: Step
    margin: Margin
    plans: Sequence[Plan] = ()

    def __bool__(self) -> bool:
        return self.answer is Answer.OK

    @property
    def needed_bytes(self) -> int:
        """Return what must be free beside the context for the step to be said to fit: the peak and its margin."""
        return self.margin.over(self.step.peak.reserved_bytes)

    @property
    def verdict(self) -> str:
        """Return `fits`, `too close to call` or `does not fit`."""
        if self.needed_bytes <= self.question.usable_bytes:
            return "fits"
        return "does not fit" if self.step.peak.allocated_bytes > self.question.usable_bytes else "too close to call"

    @property
    def answer(self) -> Answer:
        """Return OK or NEVER; what is too close to call is NEVER."""
        return Answer.OK if self.verdict == "fits" else Answer.NEVER

    @property
    def plan(self) -> Plan | None:
        """Return the cheapest change that fits: one that keeps the result if there is any."""
        fitting = [plan for plan in self.plans if plan.fits]
        same = [plan for plan in fitting if plan.keeps_result]
        return min(same or fitting, key=lambda plan: plan.cost, default=None)

    @property
    def reason(self) -> str:
        """Return the verdict in one sentence, with the plan when it does not fit."""
        at, usable = self.step.peak, self.question.usable_bytes
        need = f"{gib(at.reserved_bytes)} predicted ({gib(self.needed_bytes)} with its margin)"
        if self:
            return f"{need} of the {gib(usable)} that {self.question.device.name} has left"
        plan = self.plan
        hint = f"use {plan.said}: {gib(plan.need_bytes)}, {plan.slower}" if plan else "use a GPU with more memory"
        close = ", too close to call" if self.verdict == "too close to call" else ""
        expected = f"a step that fits into the {gib(usable)} that {self.question.device.name} has left"
        return sentence(expected, f"{need}{close}", at=str(self.question.path), hint=hint)

    @property
    def admission(self) -> Admission:
        """Return the answer and its reason, as admission gives them everywhere."""
        return Admission(answer=self.answer, reason=self.reason)

    def require(self) -> None:
        """Raise TrainingError with the plan when the step is not sure to fit."""
        if not self:
            raise TrainingError(self.reason)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return the refusal as a finding of the run; none when it fits."""
        if self:
            return ()
        numbers = {
            "predicted_bytes": float(self.step.peak.reserved_bytes),
            "needed_bytes": float(self.needed_bytes),
            "usable_bytes": float(self.question.usable_bytes),
        }
        return (
            Finding(
                code="training/does-not-fit",
                severity="error",
                place=str(self.question.path),
                said=self.reason,
                hint="Follow the plan in the sentence; `tenon fit` shows the others.",
                numbers=numbers,
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "verdict": self.verdict,
            "answer": self.answer.value,
            "reason": self.reason,
            "path": str(self.question.path),
            "device": self.question.device.to_dict(),
            "usable_bytes": self.question.usable_bytes,
            "needed_bytes": self.needed_bytes,
            "margin": {"relative": self.margin.relative, "bytes": self.margin.fixed_bytes, "runs": self.margin.runs},
            "step": self.step.to_dict(),
            "plan": self.plan.to_dict() if self.plan else None,
            "plans": [plan.to_dict() for plan in self.plans],
        }


def fit_step(question: Question, *, store: Store | None = None, plan: bool = True) -> StepFit:
    """Predict the peak memory of one training step and answer whether it fits; with a plan when it does not.

    Runs the user's file in a process of its own, without a GPU and with hardly any memory. `store` remembers measured
    runs of the device and narrows the margin. Raises InputError for a file that cannot be run, MissingError without
    PyTorch.
    """
    require_torch()
    question = replace(question, path=locate(Path(question.path)))
    if question.batch < 1:
        raise InputError(sentence("a batch of at least 1", str(question.batch)))
    with asking(question) as worker:
        step = worker.step(Change())
        if isinstance(step, str):
            step = extrapolated(question, step)
        fit = StepFit(
            question=question,
            step=step,
            margin=margin(store, question.device.name, extrapolated=bool(step.extrapolated)),
        )
        if fit or not plan or step.extrapolated:
            return fit
        from tenon.training.memory.plan import search

        return replace(fit, plans=search(fit, worker))


def gib(size: float) -> str:
    """Write bytes as a person reads them: 12.30 GiB, 512 MiB, 8 KiB."""
    if size >= 1024**3:
        return f"{size / 1024**3:.2f} GiB"
    return f"{size / 1024**2:.0f} MiB" if size >= 1024**2 else f"{size / 1024:.0f} KiB"


# ── asking a worker ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Worker:
    """A process that runs steps of one file; `step` asks for one."""

    question: Question
    _process: subprocess.Popen[str]
    _talk: IO[bytes]

    def step(self, change: Change) -> Step | str:
        """Return the predicted step under a change, or in words why fake tensors cannot run it."""
        answer = self._ask({"batch": self.question.batch, "change": asdict(change), "steps": STEPS})
        if "fault" in answer:
            if answer["ours"]:
                raise InputError(answer["fault"])
            return f"{answer['fault']} at {answer['where']}"
        trace = Trace.from_dict(answer["trace"])
        return Step(
            change=change,
            batch=self.question.batch,
            peak=peak(trace, self.question.settings),
            seconds=step_seconds(trace, change),
            flops=trace.flops / STEPS / min(change.micro_batches, 2) * change.micro_batches,
            counts=answer["counts"],
            notes=trace.notes,
        )

    def trace(self, batch: int, change: Change = Change()) -> tuple[Trace, dict[str, int]] | str:
        """Return the raw trace of a step at another batch, or why there is none."""
        answer = self._ask({"batch": batch, "change": asdict(change), "steps": STEPS})
        if "fault" in answer:
            return f"{answer['fault']} at {answer['where']}"
        return Trace.from_dict(answer["trace"]), answer["counts"]

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send one line and wait for its answer, within the limit; a worker that died is told with its last words."""
        import selectors

        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(body) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            if not waiting.select(self.question.limits.step_s):
                got = f"none after {self.question.limits.step_s:.0f} s"
                hint = "raise limits.fit.step_s in tenon.toml, or make the file's functions quicker"
                raise InputError(sentence("an answer from the step", got, at=str(self.question.path), hint=hint))
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _died(self) -> InputError:
        self._process.wait(timeout=10)
        self._talk.seek(0)
        words = self._talk.read().decode("utf-8", "replace").strip().splitlines()[-1:] or ["nothing"]
        got = f"a process that ended with {self._process.returncode}, saying: {words[0][:200]}"
        return InputError(sentence("a step that runs", got, at=str(self.question.path), hint="run the file by itself"))


@contextmanager
def asking(question: Question, *, fake: bool = True) -> Iterator[Worker]:
    """Start a worker for a question and end it with the block, however the block ends."""
    # A compiled step is predicted as the eager one that it falls back to.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
    source = str(Path(__file__).parents[3])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH", "")]))
    with tempfile.TemporaryFile() as talk:
        process = subprocess.Popen(
            [sys.executable, "-m", "tenon.training.memory.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=talk,
            text=True,
            env=environment,
            cwd=question.path.resolve().parent,
        )
        worker = Worker(question, process, talk)
        try:
            hello = {"path": str(question.path.resolve()), "device": asdict(question.device), "fake": fake}
            answer = worker._ask(hello)
            if "fault" in answer:
                if answer["ours"]:
                    raise InputError(answer["fault"])
                raise InputError(sentence("a file that can be imported", answer["fault"], at=answer["where"]))
            yield worker
        finally:
            process.kill()
            process.communicate()


def extrapolated(question: Question, why: str) -> Step:
    """Measure the step with real tensors at two small batches and extrapolate its peak to the batch asked for."""
    sizes = [min(size, question.batch) for size in SAMPLES]
    found: list[tuple[int, Peak, Trace, dict[str, int]]] = []
    with asking(question, fake=False) as worker:
        for size in sorted(set(sizes)):
            got = worker.trace(size)
            if isinstance(got, str):
                hint = "" if got == why else f"with fake tensors: {why}"
                raise InputError(sentence("a step that runs", got, at=str(question.path), hint=hint))
            found.append((size, peak(got[0], question.settings), *got))
    (small, low, _, _), (large, high, trace, counts) = found[0], found[-1]
    times = (question.batch - large) / (large - small) if large > small else 0.0

    def line(first: int, second: int) -> int:
        return int(second + max(second - first, 0) * times)

    allocated = line(low.allocated_bytes, high.allocated_bytes)
    return Step(
        change=Change(),
        batch=question.batch,
        peak=replace(
            high,
            allocated_bytes=allocated,
            reserved_bytes=int(allocated * FRAGMENTED),
            parts={kind: line(low.parts[kind], size) for kind, size in high.parts.items()},
        ),
        seconds=step_seconds(trace, Change()) * question.batch / large,
        flops=trace.flops / STEPS * question.batch / large,
        counts=counts,
        extrapolated=why,
        notes=trace.notes,
    )


def step_seconds(trace: Trace, change: Change) -> float:
    """Return the time of one step by roofline: the recorded micro-batches scaled to all, and one optimiser step."""
    work = sum(trace.seconds.get(phase, 0.0) for phase in ("forward", "backward"))
    micro = min(change.micro_batches, 2)
    return work / STEPS / micro * change.micro_batches + trace.seconds.get("optimizer", 0.0) / STEPS

"""The user's four functions, and one training step made of them, as it is or changed by a plan.

A file `train.py` (or any other Python file) says what is trained, in the words of PyTorch and of nobody else::

    def model() -> nn.Module: ...
    def optimizer(model) -> torch.optim.Optimizer: ...
    def batch(size: int) -> tuple[torch.Tensor, ...]: ...
    def loss(model, batch) -> torch.Tensor: ...          # a scalar

`model` is built under fake tensors, so its weights take no memory; `batch` is called outside of them, with real
tensors, because it may read files. A step is forward, backward, optimiser, gradients set to None; gradients and the
optimiser's state appear in the first step, the highest point is usually in the second, so two are recorded.

A Change is what a plan alters: more micro-batches, checkpointing of repeated blocks, bfloat16 autocast, another form of
the optimiser. Blocks are the children of a ModuleList or Sequential that share one class and have parameters.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tenon.errors import InputError, missing_extra, quoted, sentence
from tenon.training.watch_torch import torch_or_missing

FUNCTIONS = ("model", "optimizer", "batch", "loss")
FILE = "train.py"
STEPS = 2
PURPOSE = "predict the memory of a training step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is done differently from what the file says; the defaults change nothing."""

    micro_batches: int = 1  # a batch is split into so many, their gradients added up
    checkpoint: bool = False
    bf16: bool = False
    optimizer: str = ""  # "", "fused", "adafactor" or "sgd"

    @property
    def said(self) -> str:
        """Return the change in words, for a plan."""
        words = []
        if self.micro_batches > 1:
            words.append(f"{self.micro_batches} micro-batches with accumulation")
        words += ["activation checkpointing"] * self.checkpoint + ["bf16 autocast"] * self.bf16
        names = {"fused": "fused optimiser", "adafactor": "Adafactor", "sgd": "SGD without momentum"}
        words += [names[self.optimizer]] if self.optimizer else []
        return " and ".join(words) or "as it is"

    @property
    def keeps_result(self) -> bool:
        """Say whether the same numbers are computed, but for the order of sums (and BatchNorm's view of a batch)."""
        return not self.bf16 and self.optimizer in ("", "fused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The four functions of a user's file."""

    path: Path
    model: Callable[[], Any]
    optimizer: Callable[[Any], Any]
    batch: Callable[[int], Any]
    loss: Callable[[Any, Any], Any]


def locate(path: Path) -> Path:
    """Return the file that declares the step: `path` itself, or `train.py` in the folder `path`."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        hint = f"write {FILE} with {', '.join(f'{name}(...)' for name in FUNCTIONS)}; see docs/fit.md"
        raise InputError(sentence(f"a file {FILE} that says what is trained", "none", at=str(file), hint=hint))
    return file


def stated(file: Path) -> int | None:
    """Tell, without running it, whether a Python file names the four functions at its outermost level; None when not.

    The number is the default of the batch's size (``def batch(size=64)``), 0 when it has none.
    """
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return None
    made = {one.name: one for one in body if isinstance(one, ast.FunctionDef)}
    named = {name.asname or name.name for one in body if isinstance(one, ast.ImportFrom) for name in one.names}
    if not {*made, *named}.issuperset(FUNCTIONS):
        return None
    usual = made["batch"].args.defaults[:1] if "batch" in made else []
    size = usual[0].value if usual and isinstance(usual[0], ast.Constant) else 0
    return size if isinstance(size, int) else 0


def load(path: Path) -> Parts:
    """Import the user's file, its folder first on the path, and return its four functions."""
    file = locate(path).resolve()
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location("tenon_train", file)
    assert spec is not None and spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules["tenon_train"] = module
    spec.loader.exec_module(module)
    absent = [name for name in FUNCTIONS if not callable(getattr(module, name, None))]
    if absent:
        hint = "see docs/fit.md for the four functions"
        raise InputError(
            sentence(f"the functions {quoted(FUNCTIONS)}", f"none named {quoted(absent)}", at=str(file), hint=hint)
        )
    return Parts(path=file, **{name: getattr(module, name) for name in FUNCTIONS})


def require_torch() -> None:
    """Raise MissingError when PyTorch is not installed, without importing it."""
    if importlib.util.find_spec("torch") is None:
        raise missing_extra("torch", "torch", PURPOSE)


def pytorch() -> Any:
    """Return the module torch; MissingError when it is not installed."""
    return torch_or_missing(PURPOSE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of the step: the parts, how it is changed, the batch, and who watches."""

    parts: Parts
    change: Change
    batch: int
    recorder: Any
    mode: Any = None  # FakeTensorMode, or None for real tensors
    steps: int = STEPS


def run(job: Job) -> dict[str, int]:
    """Build the model and take the steps under the recorder's eyes; return counts of what was built."""
    torch = pytorch()

    recorder, change = job.recorder, job.change
    size = -(-job.batch // change.micro_batches)
    examples = [job.parts.batch(size) for _ in range(min(change.micro_batches, 2))]
    with job.mode or contextlib.nullcontext(), recorder.watching():
        recorder.enter("build")
        model = job.parts.model()
        if any(one.device.type == "meta" for one in (*model.parameters(), *model.buffers())):
            model = model.to_empty(device="cpu")  # built without weights, which here take no memory anyway
        recorder.name(model)
        for tensor in (*model.parameters(), *model.buffers()):
            recorder.own(tensor, "parameters")
        if change.checkpoint:
            checkpointed(model)
        optimizer = changed(job.parts.optimizer(model), change.optimizer)
        inputs = value = None
        for _ in range(job.steps):
            for example in examples:
                recorder.enter("batch")
                inputs = converted(example, job.mode)
                recorder.own(inputs, "batch")
                recorder.enter("forward")
                with _precision(change.bf16):
                    value = job.parts.loss(model, inputs)
                _scalar(value, job.parts)
                recorder.enter("backward")
                (value / len(examples) if len(examples) > 1 else value).backward()
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        recorder.own(parameter.grad, "gradients")
            recorder.enter("optimizer")
            optimizer.step()
            for tensor, kind in state(optimizer):
                recorder.own(tensor, kind)
            optimizer.zero_grad(set_to_none=True)
        del inputs, value
        return {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "parameter_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
            "blocks": len(blocks(model)),
            "largest_block": max((_count(block) for block in units(model)), default=0),
            "adam": int(isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))),
            "fused": int(any(group.get("fused") for group in optimizer.param_groups)),
            "fusable": int("fused" in optimizer.defaults),
        }


def converted(value: Any, mode: Any) -> Any:
    """Return a batch with its tensors made anew: fake under a fake mode, copies of the real ones otherwise."""
    torch = pytorch()

    def make(tensor: Any) -> Any:
        return tensor.clone() if mode is None else mode.from_tensor(tensor).clone()  # the mode remembers the first

    return torch.utils._pytree.tree_map_only(torch.Tensor, make, value)


def state(optimizer: Any) -> Iterator[tuple[Any, str]]:
    """Yield the tensors of an optimiser's state; the step counters of one that is not fused stay on the host."""
    torch = pytorch()

    for group in optimizer.param_groups:
        device = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    yield value, "host" if name == "step" and not device else "optimiser state"


def _scalar(value: Any, parts: Parts) -> None:
    torch = pytorch()

    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(sentence("loss(model, batch) to return one number", got, at=str(parts.path)))


@contextlib.contextmanager
def _precision(bf16: bool) -> Iterator[None]:
    torch = pytorch()

    with torch.autocast("cuda", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
        yield


# ── changes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def blocks(model: Any) -> list[Any]:
    """Return the repeated blocks of a model: where checkpoints pay."""
    torch = pytorch()

    found: list[Any] = []
    for module in model.modules():
        if isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)):
            children = list(module.children())
            classes = [type(child) for child in children]
            repeated = [child for child in children if classes.count(type(child)) > 1 and len(list(child.children()))]
            found += [child for child in repeated if any(True for _ in child.parameters())]
    inner = {id(part) for block in found for part in block.modules() if part is not block}
    return [block for block in found if id(block) not in inner]


def units(model: Any) -> list[Any]:
    """Return what FSDP would gather at once: the repeated blocks, or the whole model when there are none."""
    return blocks(model) or [model]


def _count(module: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def checkpointed(model: Any) -> int:
    """Let every repeated block compute its activations again in the backward pass; return how many there are."""
    checkpoint = pytorch().utils.checkpoint.checkpoint
    found = blocks(model)
    for block in found:
        # The random state is not kept: it costs no memory on the device, and fake tensors have none.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    return len(found)


def changed(optimizer: Any, kind: str) -> Any:
    """Return the optimiser in another form, over the same parameters and learning rates."""
    torch = pytorch()

    if not kind:
        return optimizer
    if kind == "fused":
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = True, False
        return optimizer
    groups = [{"params": group["params"], "lr": group["lr"]} for group in optimizer.param_groups]
    return torch.optim.Adafactor(groups) if kind == "adafactor" else torch.optim.SGD(groups)

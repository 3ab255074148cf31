"""Exact resume: everything that decides the next step is kept and put back, so that the losses go on bit for bit.

    resume = Resume(Checkpoints(folder), every=200, guard=guard, model=model, optimizer=optimizer, data=order)
    for step in range(resume.restore(), steps):
        ...                                   # forward, backward, guard.step(step, loss=loss), optimizer.step()
        resume.done(step, loss=loss)          # writes a checkpoint when one is due

What is kept: the state of every part given by name (anything with `state_dict` and `load_state_dict`: model, optimiser,
scheduler, scaler, an `Order`; and random generators of PyTorch, NumPy and Python), and always the global random states
of PyTorch (processor and every GPU), NumPy and Python. Order matters: parts are restored as given, random states last,
so that nothing a part draws while it loads moves them.

Bit-identical means: on the processor, with the same versions and number of threads, the losses after a resume are those
of a run never interrupted. When versions or threads differ it says so (`training/resume-differs`) and goes on. On a GPU
the state is as exact, but kernels may add in another order unless `torch.use_deterministic_algorithms` is on.

Several ranks save and restore together (`ranks`, or those of the guard): weights and optimiser are kept once, or by
shards, and of each rank its random states, its buffers and every other part. On another number of ranks the run goes on
with the same weights and the same rows, and says that it is no longer exact.

A checkpoint is due every `every` steps, every `seconds` (of several ranks: with a guard, by the first one's clock), and
when the guard is about to stop the run.
"""

from __future__ import annotations

import platform
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tenon.errors import InputError, StoreError, UsageError, sentence
from tenon.finding import Finding
from tenon.ledger import NOTHING, Usage
from tenon.training import shards
from tenon.training.blame_torch import local
from tenon.training.checkpoint import Checkpoints, Loaded
from tenon.training.plain import decode, encode
from tenon.training.ranks import Ranks
from tenon.training.trend import number
from tenon.training.watch_torch import torch_or_missing


class Resume:
    """Keeps and restores the state of one run; see the module's docstring."""

    __slots__ = (
        "_began",
        "_clock",
        "_guard",
        "_name",
        "_relaid",
        "_saved",
        "checkpoints",
        "every",
        "findings",
        "parts",
        "ranks",
        "seconds",
    )

    def __init__(
        self,
        checkpoints: Checkpoints | Path | str,
        *,
        every: int = 0,
        seconds: float = 600.0,
        guard: Any = None,
        clock: Callable[[], float] = time.monotonic,
        ranks: Ranks | None = None,
        **parts: Any,
    ) -> None:
        torch_or_missing("resume a run")
        for name, part in parts.items():
            if part is not None and not _keepable(part):
                got = f"a {type(part).__name__} as '{name}'"
                raise UsageError(sentence("parts with state_dict and load_state_dict, or random generators", got))
        self.checkpoints = checkpoints if isinstance(checkpoints, Checkpoints) else Checkpoints(Path(checkpoints))
        self._relaid = [name for name, part in parts.items() if _lays_out_anew(part)]
        self.parts = {name: _inner(part) for name, part in parts.items() if part is not None}
        self.every = every
        self.seconds = seconds
        self.findings: list[Finding] = []
        self._guard = guard
        self._clock = clock
        self._saved = clock()
        self._name = secrets.token_hex(8)  # of this attempt
        self._began = time.time()  # the first attempt
        ranks = ranks or (guard.ranks if guard is not None else None)
        self.ranks = ranks if ranks is not None and ranks.size > 1 else None
        if guard is not None:
            guard.keeper = self

    def restore(self, step: int | None = None) -> int:
        """Restore the newest good checkpoint, or that of `step`; returns the step to go on with, 0 for none.

        CorruptError when there are checkpoints and none is whole; InputError when the state fits other parts.
        """
        before = len(self.checkpoints.findings)
        if self.ranks is not None:
            loaded = shards.load(self.checkpoints, self.ranks, step)
        else:
            self.checkpoints.claim()
            loaded = self.checkpoints.load(step)
        self._tell(*self.checkpoints.findings[before:])
        if loaded is None:
            return 0
        size, written = self.ranks.size if self.ranks is not None else 1, max(len(loaded.ranks), 1)
        several = size > 1 or written > 1
        now = _setting(self.parts) | ({"ranks": size} if several else {})
        then = {"weights": now["weights"]} | loaded.state["setting"] | ({"ranks": written} if several else {})
        if differs := _differs(then, now):
            self._tell(_differing(loaded.step, differs))
        elif self._relaid and size > 2:
            self._tell(_adds_anew(loaded.step, self._relaid[0], size))
        self._same_optimizers(loaded)
        kept, random_state = self._kept(loaded)
        for name, part in self.parts.items():
            if name not in kept:
                continue  # a random generator of a rank that was not there before
            try:
                _put_back(part, kept[name])
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                place = f"{loaded.path}: {name}"
                hint = "resume with the model and the optimiser the run began with"
                raise InputError(sentence(f"a state that fits '{name}'", f"'{error}'", at=place, hint=hint)) from error
        if random_state is not None:
            _restore_random(random_state)
        self._saved = self._clock()
        if self._guard is not None:
            wall_s, cpu_s, by, *began = loaded.state.get("used", (0.0, 0.0, ""))
            self._began = began[0] if began else 0.0
            # A run that goes back in its own process has what that used on its own account.
            used = Usage(wall_s=wall_s, cpu_s=cpu_s, peak_bytes=0) if by != self._name else None
            self._guard.resumed(loaded.step + 1, used, self._began)
        return loaded.step + 1

    def _kept(self, loaded: Loaded) -> tuple[dict[str, Any], Any]:
        """Return the state of every part that this rank is to have, and its random state."""
        rank = self.ranks.rank if self.ranks is not None else 0
        if not loaded.ranks:
            kept = decode(loaded.state["parts"], loaded.tensors)
            self._same_parts(kept.keys(), loaded)
            return kept, decode(loaded.state["random"], loaded.tensors)
        files = shards.Kept(loaded.path, loaded.ranks)
        kept = decode(loaded.state["parts"], files.of(0))
        known = rank < len(loaded.ranks)
        own = loaded.ranks[rank if known else 0]["own"]
        mine = files.of(rank if known else 0)
        if not own:  # one process wrote it: what is not the first rank's alone is for all
            own = {"parts": {}, "random": loaded.state["random"], "buffers": {}}
        kept |= decode(own["parts"], mine)
        self._same_parts(kept.keys(), loaded)
        buffers = decode(own["buffers"], mine)
        for name, part in self.parts.items():
            kept[name] = _laid_out(part, kept[name] | buffers.get(name, {}) if _is_module(part) else kept[name])
        if not known:
            kept = {name: state for name, state in kept.items() if not _generator(self.parts[name])}
        return kept, decode(own["random"], mine) if known else None

    def _same_parts(self, names: Iterable[str], loaded: Loaded) -> None:
        if set(names) != self.parts.keys():
            got = ", ".join(sorted(self.parts))
            raise InputError(sentence(f"the parts {', '.join(sorted(names))}", got, at=str(loaded.path)))

    def _same_optimizers(self, loaded: Loaded) -> None:
        """Refuse another optimiser than the run began with: its state may well fit, and would mean something else."""
        now = self._optimizers()
        for name, then in loaded.state.get("optimizers", {}).items():
            if now.get(name, then) != then:
                hint = f"resume with {then}, or begin a new run from the model's weights"
                raise InputError(
                    sentence(f"the optimiser {then} as '{name}'", now[name], at=str(loaded.path), hint=hint)
                )

    def _optimizers(self) -> dict[str, str]:
        return {name: type(part).__name__ for name, part in self.parts.items() if _is_optimizer(part)}

    def late(self) -> bool:
        """Tell whether a checkpoint is due by time."""
        return self._clock() - self._saved >= self.seconds

    def done(self, step: int, *, loss: Any = None) -> bool:
        """Say that a step is whole, its optimiser has stepped; writes a checkpoint when due, and says whether."""
        guard = self._guard
        due = self.every and (step + 1) % self.every == 0
        if self.ranks is None:
            due = due or self._clock() - self._saved >= self.seconds
        else:  # by time when the first rank said so at this step: clocks of ranks differ
            due = due or (guard is not None and guard.saving)
        if not due and (guard is None or not guard.ending):
            return False
        self.save(step, loss=loss)
        return True

    def save(self, step: int, *, loss: Any = None) -> Path:
        """Write a checkpoint of the state after `step`; suspect when the guard says so or a weight is no number."""
        value = number(loss) if loss is not None else None
        self._logged()
        # A step may spoil weights after its loss was taken: the next step's would be the first to show it.
        suspect = (self._guard is not None and self._guard.suspect) or any(map(_spoiled, self.parts.values()))
        tensors: dict[str, Any] = {}
        seen: dict[Any, str] = {}
        before = len(self.checkpoints.findings)
        if self.ranks is None:
            state = {
                "parts": {name: encode(_state(part), name, tensors, seen) for name, part in self.parts.items()},
                "random": encode(_random(), "random", tensors, seen),
                "setting": _setting(self.parts),
                "optimizers": self._optimizers(),
                "used": self._used(),
            }
            place = self.checkpoints.save(step, tensors, state, loss=value, suspect=suspect)
        else:
            given = self._given(tensors, seen)
            place = shards.save(self.checkpoints, self.ranks, step, given, loss=value, suspect=suspect)
        self._tell(*self.checkpoints.findings[before:])
        self._saved = self._clock()
        return place

    def _given(self, tensors: dict[str, Any], seen: dict[Any, str]) -> shards.Given:
        """Return what this rank keeps: what all share, and what is its own."""
        common = {name: part for name, part in self.parts.items() if _is_module(part) or _is_optimizer(part)}
        shared = {
            "parts": {name: encode(_state(part), name, tensors, seen) for name, part in common.items()},
            "setting": _setting(self.parts),
            "optimizers": self._optimizers(),
            "used": self._used(),
        }
        plain = frozenset(tensors)
        rest = {name: part for name, part in self.parts.items() if name not in common}
        first = self.ranks is not None and self.ranks.first
        held = {name: _buffers(part) for name, part in common.items() if _is_module(part) and not first}
        seen = seen if first else {}  # what all share is in the first one's file only
        own = {
            "parts": {name: encode(_state(part), f"own.{name}", tensors, seen) for name, part in rest.items()},
            "buffers": encode(held, "buffers", tensors, seen),
            "random": encode(_random(), "random", tensors, seen),
        }
        return shards.Given(tensors=tensors, shared=shared, own=own, plain=plain)

    def _used(self) -> list[Any]:
        """Return the seconds on the clock and of processors so far, which attempt says so, and when the first began."""
        used = self._guard.usage() if self._guard is not None else NOTHING
        return [used.wall_s, used.cpu_s, self._name, self._began]

    def _logged(self) -> None:
        """Have what was logged be as durable as the checkpoint: curves that go on from it have no hole."""
        run: Any = getattr(self._guard, "run", None)
        if hasattr(run, "flush"):
            with suppress(StoreError):  # it is kept, tried again, and told when the run ends
                run.flush()

    def _tell(self, *findings: Finding) -> None:
        self.findings.extend(findings)
        if self._guard is not None:
            for finding in findings:
                self._guard.tell(finding)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _keepable(part: Any) -> bool:
    return _generator(part) != "" or (hasattr(part, "state_dict") and hasattr(part, "load_state_dict"))


def _generator(part: Any) -> str:
    """Say which library's random generator a part is; "" for none."""
    import numpy as np
    import torch

    if isinstance(part, torch.Generator):
        return "torch"
    if isinstance(part, np.random.Generator):
        return "numpy"
    return "python" if isinstance(part, random.Random) else ""


def _state(part: Any) -> Any:
    return {
        "torch": lambda: part.get_state(),
        "numpy": lambda: part.bit_generator.state,
        "python": lambda: part.getstate(),
        "": lambda: part.state_dict(),
    }[_generator(part)]()


def _put_back(part: Any, state: Any) -> None:
    kind = _generator(part)
    if kind == "torch":
        part.set_state(state)
    elif kind == "numpy":
        part.bit_generator.state = state
    elif kind == "python":
        part.setstate(state)
    else:
        part.load_state_dict(state)


def _inner(part: Any) -> Any:
    """Return the model in a DistributedDataParallel or torch.compile, whose weights have the names they have alone."""
    import torch

    while isinstance(part, torch.nn.Module):
        wraps = isinstance(part, torch.nn.parallel.DistributedDataParallel)
        inner = part.module if wraps else getattr(part, "_orig_mod", None)
        if inner is None:
            break
        part = inner
    return part


def _lays_out_anew(part: Any) -> bool:
    """Tell whether a model's gradients are laid out anew after the first step: DDP does, unless it looks for unused."""
    import torch

    return isinstance(part, torch.nn.parallel.DistributedDataParallel) and not part.find_unused_parameters


def _spoiled(part: Any) -> bool:
    """Tell whether a model has a weight that is no finite number, in the part of it that this rank holds."""
    import torch

    return _is_module(part) and any(
        not bool(torch.isfinite(local(one)).all()) for one in part.parameters() if one.is_floating_point()
    )


def _is_module(part: Any) -> bool:
    import torch

    return isinstance(part, torch.nn.Module)


def _is_optimizer(part: Any) -> bool:
    import torch

    return isinstance(part, torch.optim.Optimizer)


def _buffers(module: Any) -> dict[str, Any]:
    """Return the buffers that a module's state holds: each rank may have its own (the means of a batch norm)."""
    names = {name for name, _ in module.named_buffers()}
    return {name: held for name, held in module.state_dict().items() if name in names}


def _laid_out(part: Any, state: Any) -> Any:
    """Return a part's kept state with tensors as the part has them now: sharded over these ranks, or whole."""
    if _is_module(part):
        now = part.state_dict()
        return {name: shards.laid_out(value, now.get(name)) for name, value in state.items()}
    if _is_optimizer(part):
        weights = [weight for group in part.param_groups for weight in group["params"]]
        held = {
            i: {name: shards.laid_out(value, weights[i] if i < len(weights) else None) for name, value in one.items()}
            for i, one in state["state"].items()
        }
        return {**state, "state": held}
    return state


# ── what everybody shares ────────────────────────────────────────────────────────────────────────────────────────────


def _random() -> dict[str, Any]:
    import numpy as np
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": np.random.get_state(legacy=False),
        "python": random.getstate(),
    }


def _restore_random(state: dict[str, Any]) -> None:
    import numpy as np
    import torch

    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])


def _setting(parts: dict[str, Any]) -> dict[str, Any]:
    """Return what besides the state decides the bits of a step."""
    import numpy as np
    import torch

    weights = {str(one.dtype) for part in parts.values() if _is_module(part) for one in part.parameters()}
    return {
        "weights": ", ".join(sorted(one.removeprefix("torch.") for one in weights)),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "system": sys.platform,
    }


def _differs(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = sorted(before.keys() | now.keys())
    return [
        f"{name} {before.get(name)} then, {now.get(name)} now" for name in names if before.get(name) != now.get(name)
    ]


def _adds_anew(step: int, name: str, size: int) -> Finding:
    said = f"DDP lays '{name}' out anew after its first step, and {size} ranks then add gradients in another order."
    return Finding(
        code="training/resume-differs",
        severity="info",
        place=f"run/{step}",
        said=said,
        hint="The state is exact; losses may differ in their last bits. DDP(find_unused_parameters=True) avoids it.",
        numbers={"step": float(step), "ranks": float(size)},
    )


def _differing(step: int, differs: list[str]) -> Finding:
    return Finding(
        code="training/resume-differs",
        severity="info",
        place=f"run/{step}",
        said=f"The run goes on from step {step} in another setting: {'; '.join(differs)}.",
        hint="The state is exact; losses may differ in their last bits. The same versions and threads avoid it.",
        numbers={"step": float(step)},
    )

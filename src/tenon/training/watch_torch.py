"""Watching a PyTorch model from outside: the norm of its gradients, and the module that first produced NaN or infinity.

`Watch` sets a hook on the root module and none below it. After each training forward it keeps references to the inputs
and the autocast state, and has the gradients kept that will arrive at the outputs, while they are small (`HOLD_BYTES`).
A second hook, before the forward, keeps the random state for models whose forward takes random numbers; whether it does
is looked at in the first forwards, and now and then later (`LEARN`).

Reading all gradients of a small batch costs several hundredths of a step on a processor. But a gradient that is not
finite shows in the bias of its module, or in any column of the weight where there is none, and goes on to every module
before it. So only these are read (`_probes`): the first of them at every step, the others of a large model in turns
(`_turns`), and the norm of all as often as its share of the time allows. What that does not see at once is a product of
two finite factors that overflows in single weights, and what never comes to the first modules; `loss` and the weights
tell it a step later. Where it can, a compiled kernel takes the steps at which nothing else is due, and remembers plain
forwards (`fast`); what it leaves is done here.

Only when something is not finite is the rest paid for: the forward is done again (`blame_torch`), with the same
weights, inputs and random numbers, this time looking at what every module makes. The weights are the same because the
guard asks before the optimiser steps; buffers (the means of a batch norm) are put back afterwards.

Rejected: checking every module's output at every step (one to three times the cost of a small model's step), and
`torch.autograd.detect_anomaly` (several times slower, and it names operations, not modules). On an accelerator, reading
the norm waits for the device, once a step; that is the price of refusing the step before it is taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from tenon.errors import UsageError, missing_extra, sentence
from tenon.finding import Finding
from tenon.training.blame_torch import Blame, Call, blame, dense, flat, local, sharded
from tenon.training.exchange import Exchange
from tenon.training.fast import Gone, fast
from tenon.training.health_torch import Health, again
from tenon.training.speed_torch import Work, added, count
from tenon.training.trend import number

HOLD_BYTES = 64 * 1024 * 1024  # of gradients at the model's outputs, held from backward until the guard is asked
VECTORS, COLUMNS = 16, 4  # probes that are read at every step
TURNS = 16  # steps in which all others are read once, at most
FIRST = (slice(None), *[0] * 15)  # of a matrix with any number of dimensions: its first column
LEARN = 512  # forwards, after which it is looked again whether they take random numbers
SURE = 3  # forwards that took none
WORK_AFTER_S = 60.0  # of processor time, after which a step's work is counted: that takes about a two-hundredth of it
CALLS = 16  # forwards of one step that are remembered: micro-batches that are accumulated


def torch_or_missing(purpose: str) -> Any:
    """Return the module torch, or raise MissingError that says how to install it."""
    try:
        import torch
    except ImportError as error:
        raise missing_extra("torch", "torch", purpose) from error
    return torch


class Watch:
    """Watches one model; made by `Guard.watch`. `close` takes its hooks off again."""

    __slots__ = (
        "_began",
        "_calls",
        "_due",
        "_given",
        "_handles",
        "_kind",
        "_learning",
        "_paid",
        "_parameters",
        "_quiet",
        "_random",
        "_ratios",
        "_reads",
        "_relearn",
        "_roots",
        "_torch",
        "_turns",
        "exchange",
        "fast",
        "gpus",
        "health",
        "model",
        "optimizer",
        "scaler",
        "sharded",
        "skipped",
        "waited_s",
        "work",
        "work_after_s",
    )

    def __init__(self, model: Any, optimizer: Any = None, *, scaler: Any = None, share: float) -> None:
        torch = torch_or_missing("watch a model")
        if not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule):
            hint = "one guard watches one model, as it is before it is scripted"
            raise UsageError(sentence("a torch.nn.Module to watch", type(model).__name__, at="guard.watch", hint=hint))
        for name, one in model.named_parameters():
            if one.is_meta or torch.nn.parameter.is_lazy(one):
                hint = "call a lazy model once, or fill one on the meta device (to_empty), before it is watched"
                raise UsageError(
                    sentence("weights that are there", f"none yet as '{name}'", at="guard.watch", hint=hint)
                )
        self.exchange = Exchange(torch, model)
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module  # its forward can be done again by one rank alone
        self._torch = torch
        self.model = model
        self.sharded = sharded(model)
        self.optimizer = optimizer
        self.scaler = scaler
        self.work: Work | None = None  # what a step computes and moves, once it has been counted
        self.work_after_s = WORK_AFTER_S
        self.waited_s = 0.0  # for an accelerator, until it had the loss
        self.skipped = False  # the loss scaler skips the step that was looked at last
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.gpus = len({str(one.device) for one in self._parameters if one.device.type != "cpu"})
        self._turns = _turns(_probes(model))
        self._kind = self._parameters[0].device.type if self._parameters else "cpu"
        self._began = time.thread_time()
        self._paid = 0.0
        self._due = 0  # the step before which the norm of all gradients is not due
        self._given = False  # the loop gives the norm of the gradients, which is then not measured
        self._relearn = LEARN
        self._ratios = [math.nan] * len(self._turns)  # of the norm of all gradients to that of the probes of each turn
        self._calls: list[Any] = []  # of this step: a Call, or of a plain one its arguments and its output
        self._random: tuple[Any, Any] | None = None  # states before a forward: of the processor, of the device
        self._roots = {model}  # the modules that the loop calls
        self._learning = SURE  # forwards that must still take no random numbers, for their states not to be kept
        self._quiet = False
        self.health = Health(model, optimizer, scaler, share=share)
        told = {"turns": self._turns, "ratios": self._ratios, "norms": self.health.norms, "calls": self._calls}
        self.fast = fast(torch, model, self._after, device=self._kind, **told)
        self.fast.hold = HOLD_BYTES
        self._reads = self._kind == "cpu" and not self.sharded  # whether it can read what gradients hold
        self._handles = [
            model.register_forward_hook(self.fast.after, with_kwargs=True),
            model.register_forward_pre_hook(self._before),
        ]

    def __deepcopy__(self, memo: Any) -> Watch:
        """Return itself: a copy of the model has copied its hooks, which look at nothing but the model."""
        return self

    def __reduce__(self) -> tuple[type[Gone], tuple[()]]:
        """Leave the watch out of a model that is pickled."""
        return Gone, ()

    def close(self) -> None:
        """Take the hooks off the model and let go of what they held."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.exchange.close()
        self.let_go()

    def read(self, step: int, loss: Any, norm: float | None = None) -> tuple[float | None, float | None]:
        """Return the loss and the norm of the gradients as numbers; waits for an accelerator once, for all of them.

        Every step tells whether they are finite. The norm of all gradients is measured as often as it fits into its
        share of the time; between, it is estimated from the probes by the last ratio. It is None when there are no
        gradients. A norm that is given is believed. What a look at the model's health left to be read is read with
        them.
        """
        self.skipped = False
        self._given = norm is not None
        self._now_and_then()
        asked = self.health.asked(step) if self.health.looking else None
        if self._kind == "cpu" or not hasattr(loss, "detach"):
            if norm is None:
                probe = self._read()
                norm = None if probe is None else self._norm_of(probe)
            if loss is not None and type(loss) is not float:
                loss = number(loss)
            if asked is not None:
                self.health.answered(step, asked.tolist())
            return loss, norm
        probe = self._probe() if norm is None else None
        parts = [loss.detach().reshape(1), *([probe.reshape(1)] if probe is not None else [])]
        parts += [asked] if asked is not None else []
        whole = self._torch.cat([one.float() for one in parts])
        start = time.perf_counter()
        value, *rest = whole.tolist()  # one transfer: the step's only wait
        self.waited_s += time.perf_counter() - start
        known = rest.pop(0) if probe is not None else None
        if asked is not None:
            self.health.answered(step, rest)
        return value, norm if known is None else self._norm_of(known)

    def _norm_of(self, probe: float) -> float:
        """Return the norm of all gradients, measured when it is due and else from that of the probes."""
        steps: int = self.fast.steps
        turn = steps % len(self._turns)
        ratio = self._ratios[turn]
        if steps < self._due and ratio >= 0 and math.isfinite(probe):
            return probe * ratio
        return self._measured(probe, turn)

    def _now_and_then(self) -> None:
        """Count what a step does, once; have it looked again whether forwards take random numbers."""
        if not self.fast.steps and not self._calls and len(self._roots) == 1:
            self._spread()
        if self.due and not self._among():
            self.count()
        steps: int = self.fast.steps
        if steps < self._relearn:
            return
        self._relearn = steps + LEARN
        if self.fast.most:  # they took none
            self._learning, self.fast.most = SURE, 0
            self._handles.append(self.model.register_forward_pre_hook(self._before))

    def _spread(self) -> None:
        """Look at the modules below the root: the loop calls them and not the root itself, as many of Lightning do."""
        self._learning = 0
        for module in _callable(self.model):
            self._roots.add(module)
            self._handles.append(module.register_forward_hook(self._after, with_kwargs=True))
            self._handles.append(module.register_forward_pre_hook(self._before))

    def _measured(self, probe: float, turn: int) -> float:
        """Measure the norm of all gradients, if it is due; fp16 overflows in single weights, where it always is."""
        scaled = self.scaled
        # Of processor time and not of wall time, so that a crowded machine is not taken for a leisurely one.
        start = time.thread_time()
        since = start - self._began
        left = self._paid / (self.health.share / 2) - since
        if not scaled:
            self._due = again(self.fast.steps, left, since)
        if left > 0 and self._ratios[turn] >= 0 and not scaled and math.isfinite(probe):
            return probe * self._ratios[turn]
        grads = [local(one.grad) for one in self._parameters if one.grad is not None]
        norm = float(self._norm(grads).item())
        self._paid += time.thread_time() - start
        scale = float(self.scaler.get_scale()) if scaled else 1.0
        if math.isfinite(norm):
            self._ratios[turn] = norm / probe if probe > 0 else 0.0
            return norm if self._unscaled() else norm / scale
        # A norm may overflow where no gradient does; a scaler skips steps whose scaled gradients did, as it should.
        grads = [dense(grad) for grad in grads]
        if all(bool(self._torch.isfinite(grad).all()) for grad in grads):
            return _sum_of_squares(grads, scale)
        self.skipped = scaled
        return norm

    def passed(self, step: int, norm: float | None) -> list[Finding] | None:
        """Let go of what the step held, because all of it was finite; now and then look at the model's health."""
        self.let_go()
        fast, health = self.fast, self.health
        fast.steps += 1
        found = None if self.skipped else health.look(step, fast.steps, norm)
        fast.limit, fast.due = health.limit, min(self._relearn, health.due)
        if not self._given:
            fast.due = min(fast.due, self._due)
        return found

    def blame(self, *, in_loss: bool, agree: Any = None) -> Blame | None:
        """Do the step's forwards again and name the module that first produced what is not finite, or None.

        With `agree`, which makes one answer of those of all ranks, every rank must call it.
        """
        self._quiet = True
        together = {"agree": agree} if agree is not None else {}
        try:
            calls = self._remembered()
            full = len(calls) == CALLS
            return blame(self._torch, self.model, calls, in_loss=in_loss, full=full, **together)
        except Exception as error:  # the edge to the user's own modules, done again: any of them may fail
            if agree is not None:
                raise  # the other ranks wait for an answer: they must see that this one has ended
            return Blame(module="", said=f"the module is not known: doing the forward again failed with {error!r}")
        finally:
            self._quiet = False
            self.let_go()

    @property
    def due(self) -> bool:
        """Tell whether it is time to count what a step does."""
        return self.work is None and time.thread_time() - self._began > self.work_after_s

    def count(self, ranks: Any = None) -> None:
        """Count what a step does, once; several `ranks` at the same step, because a forward may need them all."""
        self.work = Work(flops=0.0, bytes=0.0)
        self._quiet = True
        try:
            self.work = count(self._torch, self.model, self._remembered(), self.optimizer) if self._calls else self.work
        except Exception:  # noqa: BLE001 - the edge to the user's own modules, done again: then nothing is told of speed
            self.work = Work(flops=0.0, bytes=0.0)
        finally:
            self._quiet = False
        if ranks is not None:
            every = [Work(**one) for one in ranks.words(asdict(self.work))]
            self.work = added(every) if all(one.flops for one in every) else Work(flops=0.0, bytes=0.0)

    def _among(self) -> bool:
        """Tell whether this is one of several processes, which count together or not at all."""
        distributed = self._torch.distributed
        return bool(distributed.is_available() and distributed.is_initialized())

    # ── hooks ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _before(self, module: Any, args: tuple[Any, ...]) -> None:
        """Keep the random state, so that a forward that takes random numbers can be done again."""
        torch = self._torch
        if module in self._roots and not self._quiet and torch.is_grad_enabled():
            self._random = torch.get_rng_state(), torch.cuda.get_rng_state() if self._kind == "cuda" else None

    def _after(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Remember the call, and have the gradients kept that will arrive at its outputs."""
        torch = self._torch
        if module not in self._roots or self._quiet or not torch.is_grad_enabled():
            return
        if torch._C._are_functorch_transforms_active():
            return  # of torch.func: what is in its hands ends with it
        kind = self._kind
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        random, self._random = self._random, None
        if random is not None and self._learning:
            random = self._learn(*random)
        outputs: dict[int, Any] = {}
        # An output holds on to all that was computed for it, of which nothing in a validation would let go.
        made = () if not module.training else (output,) if type(output) is torch.Tensor else flat(torch, output)
        for i, tensor in enumerate(made):
            if tensor.requires_grad and self.fast.held + tensor.nbytes <= HOLD_BYTES:
                self.fast.held += tensor.nbytes
                tensor.retain_grad()
                outputs[i] = tensor
        del self._calls[: len(self._calls) - CALLS + 1]
        called = None if module is self.model else module
        self._calls.append(Call(args, kwargs, random, kind, cast, outputs, called))

    def _learn(self, state: Any, device_state: Any) -> tuple[Any, Any]:
        """Look whether a forward has taken random numbers; when some in a row took none, states are not kept."""
        torch = self._torch
        same = torch.equal(state, torch.get_rng_state())
        if same and device_state is not None:
            same = torch.equal(device_state, torch.cuda.get_rng_state())
        self._learning = self._learning - 1 if same else 0
        if same and not self._learning:
            self._handles.pop().remove()
            self.fast.most = CALLS
        return state, device_state

    def _remembered(self) -> list[Call]:
        """Return the calls of this step."""
        return [one if isinstance(one, Call) else self._plain(*one) for one in self._calls]

    def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
        """Return what `fast` remembers of a call: one without random numbers and autocast."""
        return Call(args, kwargs, None, self._kind, None, {0: output})

    def let_go(self) -> None:
        """Forget the forwards that were remembered: their step was taken, or they were none of a step."""
        self._calls.clear()
        self.fast.held = 0

    @property
    def scaled(self) -> bool:
        """Tell whether gradients are those of a loss that was scaled."""
        return self.scaler is not None and bool(self.scaler.is_enabled())

    @property
    def quick(self) -> bool:
        """Tell whether a step at which nothing is due can be left to `fast`."""
        return self._reads and not self.scaled

    def _read(self) -> float | None:
        """Return the norm of the probes: not finite when one of them is not, None without gradients."""
        norm: float | None = self.fast.norm() if self._reads else math.nan
        if norm is None or math.isfinite(norm):
            return norm
        probe = self._probe()
        return None if probe is None else float(probe.item())

    def _grads(self) -> list[Any]:
        """Return what this step reads of the gradients: those of vectors, and a column of each matrix."""
        turn = self._turns[self.fast.steps % len(self._turns)]
        if self.sharded:
            grads = [grad for one in turn if (grad := _held(one.grad)) is not None]
        else:
            grads = [grad for one in turn if (grad := one.grad) is not None and grad.numel()]
        return [grad if grad.is_sparse or grad.dim() < 2 else grad[FIRST[: grad.dim()]] for grad in grads]

    def _probe(self) -> Any:
        """Return the norm of the probes, finite when all of them are unless it overflows; None without gradients."""
        torch, grads = self._torch, self._grads()
        if not grads:
            return None
        if type(grads[0]) is torch.Tensor:
            try:
                return torch.linalg.vector_norm(torch.cat(grads))
            except (RuntimeError, TypeError, NotImplementedError):
                pass  # several devices or layouts in one model: the longer way is right for them, too
        return self._norm(grads)

    def _norm(self, grads: list[Any]) -> Any:
        """Return the norm of some gradients as a tensor of one number."""
        torch = self._torch
        first = grads[0]
        alike = (first.device, first.dtype, False)
        if all(type(one) is torch.Tensor and (one.device, one.dtype, one.is_sparse) == alike for one in grads):
            return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        norm = torch.nn.utils.get_total_norm([dense(grad) for grad in grads])
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _unscaled(self) -> bool:
        """Tell whether the loop has already called `scaler.unscale_`; the scaler keeps that for itself, by name."""
        states = getattr(self.scaler, "_per_optimizer_states", None)
        if not states or self.optimizer is None:
            return False
        state = states.get(id(self.optimizer), {})
        return getattr(state.get("stage"), "name", "") == "UNSCALED"


def _callable(model: Any) -> Iterator[Any]:
    """Yield the modules below a model, and of those that have no forward the ones below them."""
    for module in model.children():
        if getattr(module.forward, "__name__", "") == "_forward_unimplemented":
            yield from _callable(module)
        else:
            yield module


def _held(grad: Any) -> Any:
    """Return the part of a gradient that this rank holds; None for none of it."""
    part = local(grad) if grad is not None else None
    return part if part is not None and part.numel() else None


def _probes(model: Any) -> list[Any]:
    """Return weights of whose gradients a column (or all, of vectors) is not finite when a module's gradient is not.

    The gradient of a linear map is a product of what came back with what went in; what came back is summed in the
    bias, and each of its values is a factor in every column of the weight.
    """
    found = []
    for module in model.modules():
        own = [(name, one) for name, one in module.named_parameters(recurse=False) if one.requires_grad]
        biases = [one for name, one in own if "bias" in name and one.dim() == 1]
        found += biases or [one for _, one in own]
    return found


def _turns(probes: list[Any]) -> tuple[tuple[Any, ...], ...]:
    """Return the probes of each turn: those of the first modules, which the gradients of all others reach, and some."""
    vectors = [one for one in probes if one.dim() < 2]
    matrices = [one for one in probes if one.dim() >= 2]
    rest, others = vectors[VECTORS:], matrices[COLUMNS:]
    turns = min(max(math.ceil(len(rest) / VECTORS), math.ceil(len(others) / COLUMNS), 1), TURNS)
    first = (*vectors[:VECTORS], *matrices[:COLUMNS])
    return tuple((*first, *rest[i::turns], *others[i::turns]) for i in range(turns))


def _sum_of_squares(grads: list[Any], scale: float) -> float:
    """Add up in double precision what overflowed in the gradients' own."""
    return math.sqrt(sum(float(grad.double().norm().item()) ** 2 for grad in grads)) / scale

"""Watching a PyTorch model from outside: the norm of its gradients, and the module that first produced NaN or infinity.

`Watch` sets two hooks on the root module and none below it. Before each training forward it keeps references to the
inputs, the random state and the autocast state; after it, a hook on the outputs keeps the gradient that arrives there,
while that is small (`HOLD_BYTES`). A step therefore costs a reduction over a few vectors and one number read back.

Reading all gradients of a small batch costs several hundredths of a step on a processor. But a gradient that is not
finite shows in the bias of its module, or in any column of the weight where there is none: only these are read at every
step (`_probes`), and the norm of all as often as its share of the time allows. What that cannot see is a product of two
finite factors that overflows in single weights; `loss` and the weights tell it a step later.

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
from collections import deque
from typing import Any

from tenon.errors import UsageError, missing_extra, sentence
from tenon.finding import Finding
from tenon.training.blame_torch import Blame, Call, blame, flat, local, sharded
from tenon.training.health_torch import Health
from tenon.training.speed_torch import Work, count

HOLD_BYTES = 64 * 1024 * 1024  # of gradients at the model's outputs, held from backward until the guard is asked
EVERY = 4  # steps, after which it is asked whether the norm of all gradients is due
WORK_AFTER_S = 20.0  # of processor time, after which a step's work is counted: that takes about a two-hundredth of it
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
        "_columns",
        "_handles",
        "_held",
        "_kind",
        "_paid",
        "_parameters",
        "_quiet",
        "_ratio",
        "_steps",
        "_torch",
        "_vectors",
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

    def __init__(self, model: Any, optimizer: Any = None, *, scaler: Any = None) -> None:
        torch = torch_or_missing("watch a model")
        if not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule):
            raise UsageError(sentence("a torch.nn.Module to watch", type(model).__name__, at="guard.watch"))
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
        probes = _probes(model)
        self._vectors = [one for one in probes if one.dim() < 2]
        self._columns = [(one, (slice(None), *[0] * (one.dim() - 1))) for one in probes if one.dim() >= 2]
        self._kind = self._parameters[0].device.type if self._parameters else "cpu"
        self._began = time.thread_time()
        self._paid = 0.0
        self._steps = 0
        self._ratio = 0.0  # of the norm of all gradients to that of the probes
        self._calls: deque[Call] = deque(maxlen=CALLS)
        self._held = 0
        self._quiet = False
        self.health = Health(model, optimizer, scaler)
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after),
        ]

    def close(self) -> None:
        """Take the hooks off the model and let go of what they held."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._let_go()

    def read(self, step: int, loss: Any, norm: float | None = None) -> tuple[float | None, float | None]:
        """Return the loss and the norm of the gradients as numbers; waits for an accelerator once, for all of them.

        Every step tells whether they are finite. The norm of all gradients is measured as often as it fits into its
        share of the time; between, it is estimated from the probes by the last ratio. It is None when there are none.
        A norm that is given is believed. What a look at the model's health left to be read is read with them.
        """
        self.skipped = False
        asked = self.health.asked(step) if self.health.looking else None
        probe = self._probe() if norm is None else None
        if self._kind == "cpu" or not hasattr(loss, "detach"):
            value = None if loss is None else float(loss.item()) if hasattr(loss, "item") else float(loss)
            if asked is not None:
                self.health.answered(step, asked.tolist())
            return value, norm if probe is None else self._norm_of(float(probe.item()))
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
        scaled = self.scaler is not None and self.scaler.is_enabled()
        finite = math.isfinite(probe)
        self._steps += 1
        if finite and not scaled and self._steps % EVERY != 1:
            return probe * self._ratio
        start = time.thread_time()
        # Of processor time and not of wall time, so that a crowded machine is not taken for a leisurely one.
        if self.work is None and start - self._began > self.work_after_s:
            self._count()
        due = scaled or self._paid <= self.health.share / 2 * (start - self._began)  # fp16 overflows in single weights
        if finite and not due:
            return probe * self._ratio
        grads = [local(one.grad) for one in self._parameters if one.grad is not None]
        norm = float(self._norm(grads).item())
        self._paid += time.thread_time() - start
        scale = float(self.scaler.get_scale()) if scaled else 1.0
        if math.isfinite(norm):
            self._ratio = norm / probe if probe > 0 else 0.0
            return norm if self._unscaled() else norm / scale
        # A norm may overflow where no gradient does; a scaler skips steps whose scaled gradients did, as it should.
        grads = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
        if all(bool(self._torch.isfinite(grad).all()) for grad in grads):
            return _sum_of_squares(grads, scale)
        self.skipped = scaled
        return norm

    def passed(self, step: int, norm: float | None) -> list[Finding] | None:
        """Let go of what the step held, because all of it was finite; now and then look at the model's health."""
        self._calls.clear()
        self._held = 0
        if self.skipped:
            return None
        return self.health.look(step, norm)

    def blame(self, *, in_loss: bool, agree: Any = None) -> Blame | None:
        """Do the step's forwards again and name the module that first produced what is not finite, or None.

        With `agree`, which makes one answer of those of all ranks, every rank must call it.
        """
        self._quiet = True
        together = {"agree": agree} if agree is not None else {}
        try:
            full = len(self._calls) == CALLS
            return blame(self._torch, self.model, tuple(self._calls), in_loss=in_loss, full=full, **together)
        except Exception as error:  # the edge to the user's own modules, done again: any of them may fail
            if agree is not None:
                raise  # the other ranks wait for an answer: they must see that this one has ended
            return Blame(module="", said=f"the module is not known: doing the forward again failed with {error!r}")
        finally:
            self._quiet = False
            self._let_go()

    def _count(self) -> None:
        """Count what a step does, once; not in a distributed run, whose ranks would have to do it together."""
        self.work = Work(flops=0.0, bytes=0.0)
        distributed = self._torch.distributed
        if not self._calls or (distributed.is_available() and distributed.is_initialized()):
            return
        self._quiet = True
        try:
            self.work = count(self._torch, self.model, list(self._calls), self.optimizer)
        except Exception:  # noqa: BLE001 - the edge to the user's own modules, done again: then nothing is told of speed
            self.work = Work(flops=0.0, bytes=0.0)
        finally:
            self._quiet = False

    # ── hooks ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        torch = self._torch
        if self._quiet or not torch.is_grad_enabled():
            return
        kind = self._kind
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        device_state = torch.cuda.get_rng_state() if kind == "cuda" else None
        self._calls.append(Call(args, kwargs, torch.get_rng_state(), device_state, kind, cast))

    def _after(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        if self._quiet or not self._calls or not self._torch.is_grad_enabled():
            return
        outputs = self._calls[-1].outputs
        for i, tensor in enumerate(flat(self._torch, output)):
            size = tensor.numel() * tensor.element_size()
            if tensor.requires_grad and self._held + size <= HOLD_BYTES:
                self._held += size
                tensor.retain_grad()
                outputs[i] = tensor

    def _let_go(self) -> None:
        self._calls.clear()
        self._held = 0

    def _probe(self) -> Any:
        """Return the norm of the probes, finite when all of them are unless it overflows; None without gradients."""
        torch = self._torch
        if self.sharded:
            parts = [grad for one in self._vectors if (grad := _held(one.grad)) is not None]
            whole = [(grad, at) for one, at in self._columns if (grad := _held(one.grad)) is not None]
        else:
            parts = [grad for one in self._vectors if (grad := one.grad) is not None]
            whole = [(grad, at) for one, at in self._columns if (grad := one.grad) is not None]
        if not parts and not whole:
            return None
        if type((parts or whole[0])[0]) is torch.Tensor:
            try:
                return torch.linalg.vector_norm(torch.cat([*parts, *[grad[at] for grad, at in whole]]))
            except (RuntimeError, TypeError, NotImplementedError):
                pass  # several devices or layouts in one model: the longer way is right for them, too
        return self._norm([*parts, *[grad if grad.is_sparse else grad[at] for grad, at in whole]])

    def _norm(self, grads: list[Any]) -> Any:
        """Return the norm of some gradients as a tensor of one number."""
        torch = self._torch
        first = grads[0]
        alike = (first.device, first.dtype, False)
        if all(type(one) is torch.Tensor and (one.device, one.dtype, one.is_sparse) == alike for one in grads):
            return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        dense = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
        norm = torch.nn.utils.get_total_norm(dense)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _unscaled(self) -> bool:
        """Tell whether the loop has already called `scaler.unscale_`; the scaler keeps that for itself, by name."""
        states = getattr(self.scaler, "_per_optimizer_states", None)
        if not states or self.optimizer is None:
            return False
        state = states.get(id(self.optimizer), {})
        return getattr(state.get("stage"), "name", "") == "UNSCALED"


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


def _sum_of_squares(grads: list[Any], scale: float) -> float:
    """Add up in double precision what overflowed in the gradients' own."""
    return math.sqrt(sum(float(grad.double().norm().item()) ** 2 for grad in grads)) / scale

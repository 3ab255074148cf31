"""Which module first produced NaN or infinity: the forward is done again, and every module is looked at.

`blame` is given the calls of the root module that a `watch_torch.Watch` remembered, and answers in this order:

1. a weight or buffer that is itself not finite: an earlier step, or the checkpoint it came from, spoiled it;
2. an input that is not finite: the batch holds it, and its rows are named;
3. the first module whose output is not finite though its inputs are, in the order of execution. An infinity that a
   later module turned into NaN is followed back to the module that made it; an output that is only partly minus
   infinity is taken for a mask, unless nothing else is found;
4. in the backward: the module whose gradient at the output is finite and at the input is not;
5. none of these: the loss function, which is no module.

Modules are tried innermost first, so that a container is named only for what its own forward computes. Source of the
idea: `torch.autograd.detect_anomaly`, which does it for operations and needs to be on before the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

ROWS = 5  # rows of a batch that are named


@dataclass(slots=True)  # not frozen: one is made at every step, and freezing costs more than all it holds
class Call:
    """One forward of the root module, so that it can be done again; `outputs` keep the gradients that arrive there."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: tuple[Any, Any] | None  # states before it, of the processor and of the device; None when it takes none
    kind: str
    cast: Any
    outputs: dict[int, Any]
    module: Any = None  # that was called, where it was not the root itself

    @property
    def grads(self) -> dict[int, Any]:
        """Return the gradients that have arrived at the outputs, by place."""
        return {i: output.grad for i, output in self.outputs.items() if output.grad is not None}

    def again(self, model: Any) -> Any:
        """Call the root, or the module that was called, with the same inputs."""
        called = model if self.module is None else self.module
        return called(*self.args, **self.kwargs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """The module that first produced what is not finite (empty when none did), and the sentence that says so."""

    module: str
    said: str
    hint: str = ""


@dataclass(slots=True)
class _Found:
    """What a forward that is done again has shown so far."""

    nan: str | None = None
    infinite: str | None = None
    masked: str | None = None
    grads: list[tuple[str, bool]] = field(default_factory=list)  # in the order of the backward
    made: dict[int, str] = field(default_factory=dict)  # output -> the module that made it
    fed: dict[str, list[int]] = field(default_factory=dict)  # module -> its inputs
    kept: list[Any] = field(default_factory=list)  # so that no id is used twice


def _own(found: Blame | None) -> Blame | None:
    """Agree with nobody: the answer of a process that trains alone."""
    return found


def blame(
    torch: Any,
    model: Any,
    calls: Sequence[Call],
    *,
    in_loss: bool,
    full: bool = False,
    agree: Callable[[Blame | None], Blame | None] = _own,
) -> Blame | None:
    """Name what first produced a value that is not finite, in the forward (`in_loss`) or else in the backward.

    `full` says that there may have been forwards before those of `calls`, which were not remembered.

    `agree` makes one answer of those of several ranks. It is asked after everything that a rank does alone, because
    the forward of a sharded model needs all ranks.
    """
    found = agree(_spoiled(torch, model))
    for call in calls:
        found = found or agree(_input(torch, model, call)) or agree(_forward(torch, model, call, masks=in_loss))
    if found is not None:
        return found
    if in_loss or _not_again(torch, calls):
        return _outside(torch, calls, full=full)
    for call in calls:
        # The weights that a sharded model's backward meets are not those that it names.
        found = found or agree(None if sharded(model) else _backward(torch, model, call))
    return found or agree(_by_parameters(torch, model))


def _outside(torch: Any, calls: Sequence[Call], *, full: bool) -> Blame | None:
    """Say what is left when no forward that was done again produced it."""
    if not calls:
        said = "no module can be named, because the model that is watched was not called in this step"
        return Blame(module="", said=said, hint="watch the model that the loop calls")
    if _not_again(torch, calls):
        said = "the model's output was not finite, and is finite when the same forward is done again: a module of it"
        said += " changes from call to call, by a counter or random numbers of its own"
        return Blame(module="", said=said)
    if full:
        said = (
            f"the last {len(calls)} forwards of this step are finite: one before them or the loss function produced it"
        )
        return Blame(module="", said=said)
    said = "every module's output is finite, so the loss function itself produced it (log of 0, division by 0?)"
    said += ", or a model beside the one that is watched"
    hint = "use a loss that is stable at its ends, such as one that takes logits; or bound what it divides by"
    return Blame(module="", said=said, hint=hint)


def _not_again(torch: Any, calls: Sequence[Call]) -> bool:
    """Tell whether an output was not finite, which is asked where all are when the forwards are done again."""
    return any(_bad(torch, output.detach()) for call in calls for output in call.outputs.values())


def _spoiled(torch: Any, model: Any) -> Blame | None:
    # The means that a batch norm keeps are spoiled by this very step, and no forward in training reads them.
    fresh = {name for name, module in model.named_modules() if module.training and hasattr(module, "running_mean")}
    for kind, named in (("weight", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            if kind == "buffer" and name.rpartition(".")[0] in fresh:
                continue
            if tensor.is_floating_point() and bool(torch.isnan(local(tensor)).any()):
                spoiled = "an earlier step or the checkpoint it came from spoiled it"
                said = f"the {kind} '{name}' is not finite itself: {spoiled}"
                return Blame(module=name.rpartition(".")[0], said=said, hint="go back to the last good checkpoint")
    return None


def _input(torch: Any, model: Any, call: Call) -> Blame | None:
    whose = next((f"'{name}'" for name, one in model.named_modules() if one is call.module), "the model")
    named = [(f"input {i}", value) for i, value in enumerate(call.args)]
    named += [(f"input '{name}'", value) for name, value in call.kwargs.items()]
    for name, value in named:
        for tensor in flat(torch, value):
            if not tensor.is_floating_point() or not _bad(torch, tensor):
                continue
            if not bool(torch.isnan(tensor).any()) and not bool((tensor == float("inf")).any()):
                continue  # only minus infinity: a mask
            wrong = ~torch.isfinite(tensor)
            rows = wrong.reshape(len(wrong), -1).any(dim=1).nonzero().flatten().tolist() if wrong.dim() else []
            shown = ", ".join(map(str, rows[:ROWS])) + (f" and {len(rows) - ROWS} more" if len(rows) > ROWS else "")
            where = f", in row {shown} of the batch" if rows else ""
            said = f"{whose}'s {name} already holds {int(wrong.sum()):,} values that are not finite{where}"
            return Blame(module="", said=said, hint="look at these rows; a contract refuses them before training")
    return None


def _forward(torch: Any, model: Any, call: Call, *, masks: bool) -> Blame | None:
    found = _Found()
    with torch.no_grad():
        _again(torch, model, call, found)
    if found.infinite is not None and (found.nan is None or found.nan == found.infinite):
        return _module(model, found.infinite, "infinity" if found.nan is None else "NaN")
    if found.infinite is not None and found.nan is not None:
        first = _module(model, found.infinite, "infinity")
        return Blame(module=first.module, said=f"{first.said}, which '{found.nan}' then turned into NaN")
    if found.nan is not None:
        first = _module(model, found.nan, "NaN")
        if found.masked in (None, found.nan):
            return first
        kind = type(getattr(model, "_orig_mod", model).get_submodule(found.masked)).__name__
        said = f"{first.said}; before it '{found.masked}' ({kind}) had made minus infinity"
        return Blame(module=first.module, said=said)
    return _module(model, found.masked, "minus infinity") if masks and found.masked is not None else None


def _backward(torch: Any, model: Any, call: Call) -> Blame | None:
    """Do forward and backward again from the gradients that arrived at the outputs."""
    if not call.grads:
        return None
    if any(_bad(torch, grad) for grad in call.grads.values()):
        said = (
            "the gradient is not finite already where it enters the model: the loss function's derivative produced it"
        )
        return Blame(module="", said=said)
    found = _Found()
    with torch.enable_grad():
        outputs = flat(torch, _again(torch, model, call, found, backward=True))
        pairs = [(outputs[i], grad) for i, grad in call.grads.items() if outputs[i].requires_grad]
        named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
        if not pairs or not named:
            return None
        grads = torch.autograd.grad(
            [output for output, _ in pairs], [one for _, one in named], [grad for _, grad in pairs], allow_unused=True
        )
    first_bad = next((name for name, bad in found.grads if bad), None)
    fine = [name for name, bad in found.grads if not bad]
    if first_bad is not None:
        for name in reversed(
            fine
        ):  # the innermost that still had a finite gradient and was fed by the one that had not
            if any(found.made.get(one) == first_bad for one in found.fed.get(name, [])):
                return _module(model, name, "a gradient that is no finite number", does="passed back")
    for (name, _), grad in zip(named, grads, strict=True):
        if grad is not None and _bad(torch, grad):
            owner = name.rpartition(".")[0]
            if first_bad is None or owner in fine:
                return _module(model, owner, f"a gradient of '{name}' that is not finite")
    if first_bad is not None:
        return _module(model, first_bad, "a gradient that is no finite number", does="was passed")
    return None


def _by_parameters(torch: Any, model: Any) -> Blame | None:
    """Name the last module, in the order of definition, whose weights have a gradient that is not finite."""
    bad = [name for name, one in model.named_parameters() if one.grad is not None and _bad(torch, local(one.grad))]
    if not bad:
        return None
    owner = bad[-1].rpartition(".")[0]
    said = (
        f"the gradient of '{bad[-1]}' is the last, in the order of definition, that is not finite ({len(bad)} are not)"
    )
    return Blame(module=owner, said=said)


# ── doing it again ───────────────────────────────────────────────────────────────────────────────────────────────────


def _again(torch: Any, model: Any, call: Call, found: _Found, *, backward: bool = False) -> Any:
    """Call the model as it was called, with hooks on every module that fill `found`."""
    inner = getattr(model, "_orig_mod", model)  # what torch.compile wraps runs here as written
    names = {module: name for name, module in inner.named_modules()}
    handles = []
    for module, name in names.items():
        handles.append(module.register_forward_pre_hook(_fed(torch, name, found, backward=backward), with_kwargs=True))
        handles.append(module.register_forward_hook(_made(torch, name, found, backward=backward)))
    cast = torch.autocast(call.kind, dtype=call.cast) if call.cast is not None else nullcontext()
    try:
        with as_it_was(torch, inner, call), cast:
            return call.again(inner)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def as_it_was(torch: Any, model: Any, call: Call) -> Iterator[None]:
    """Give back the random numbers of then, and leave random numbers and buffers of now as they were."""
    buffers = {name: one.clone() for name, one in model.named_buffers()}
    state, device_state = call.random or (None, None)
    devices = [torch.cuda.current_device()] if call.kind == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if state is not None:
            torch.set_rng_state(state)
        if device_state is not None:
            torch.cuda.set_rng_state(device_state)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, one in model.named_buffers():
                    one.copy_(buffers[name])


def _fed(torch: Any, name: str, found: _Found, *, backward: bool) -> Callable[..., None]:
    def fed(module: Any, args: Any, kwargs: Any) -> None:
        tensors = flat(torch, (args, kwargs))
        if backward:
            found.kept.extend(tensors)
            found.fed[name] = [id(tensor) for tensor in tensors]
            return
        # A container that computed something between two of its modules is to blame for what the second is given.
        if name:
            for tensor in tensors:
                _note(torch, tensor, name.rpartition(".")[0], found)

    return fed


def _made(torch: Any, name: str, found: _Found, *, backward: bool) -> Callable[..., None]:
    def made(module: Any, args: Any, output: Any) -> None:
        for tensor in flat(torch, output):
            if not backward:
                _note(torch, tensor, name, found)
            elif tensor.requires_grad:
                found.kept.append(tensor)
                found.made.setdefault(id(tensor), name)
                tensor.register_hook(lambda grad: found.grads.append((name, _bad(torch, grad))))

    return made


def _note(torch: Any, tensor: Any, name: str, found: _Found) -> None:
    """Remember the first module in whose hands a value is NaN, plus infinity, or all or partly minus infinity."""
    if not tensor.is_floating_point() or not _bad(torch, tensor):
        return
    if found.nan is None and bool(torch.isnan(tensor).any()):
        found.nan = name
    if found.infinite is None and bool((tensor == float("inf")).any()):
        found.infinite = name if found.nan is None or found.nan == name else None
    if found.masked is None:
        found.masked = name


def _module(model: Any, name: str, what: str, *, does: str = "produced") -> Blame:
    inner = getattr(model, "_orig_mod", model)
    kind = type(inner.get_submodule(name)).__name__
    if name:
        return Blame(module=name, said=f"the module '{name}' ({kind}) is the first that {does} {what}")
    return Blame(module=kind, said=f"the forward of the model itself ({kind}) {does} {what}, outside its modules")


def _bad(torch: Any, tensor: Any) -> bool:
    return not bool(torch.isfinite(dense(tensor)).all())


def sharded(model: Any) -> bool:
    """Tell whether each rank holds only a part of the model's weights."""
    return any(hasattr(one, "to_local") for one in model.parameters())


def local(tensor: Any) -> Any:
    """Return the part of a tensor that this rank holds; reading more of it would need the other ranks."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def dense(tensor: Any) -> Any:
    """Return the values that a tensor holds: of a sparse one those that are not left out."""
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def flat(torch: Any, value: Any, *, objects: int = 1) -> list[Any]:
    """Return the tensors in nested tuples, lists, mappings (a Hugging Face output is one) and objects, in order.

    In an object (a dataclass, a batch of a graph library) no further `objects` than these are looked into, for some
    lead anywhere.
    """
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        parts: Any = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    elif not objects or isinstance(value, (type, torch.nn.Module)):
        return []
    else:
        names = [one.name for one in fields(value)] if is_dataclass(value) else getattr(value, "__dict__", ())
        parts, objects = [getattr(value, name, None) for name in names], objects - 1
    return [tensor for one in parts for tensor in flat(torch, one, objects=objects)]

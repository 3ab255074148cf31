"""Watches one training step and writes down every storage that is allocated and freed, in order.

A dispatch mode sees each operator after autograd and autocast have done their work, the way kernels are launched. A
storage that was not seen before is an allocation by that operator; a weak reference says when its last owner lets go.
The same body watches fake tensors (no memory, no arithmetic) and real ones. Modules are named by forward hooks; in the
backward pass an operator belongs to the module whose forward made its autograd node, found by the node's sequence
number. Kernels also take memory that no operator returns (cuDNN's workspaces, the float32 sums of attention's backward,
sorting); `scratch` is the table of those that matter, from the sources of PyTorch named beside each line.

FLOPs come from PyTorch's own formulas (torch.utils.flop_counter), bytes moved are the sizes of inputs and outputs; each
operator costs the larger of both at the device's rates, which is a roofline and no measurement.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

from tenon.training.memory.device import Device
from tenon.training.memory.step import pytorch
from tenon.training.memory.trace import Trace

HOST = "host"  # kind of what lives in the memory of the machine
WORKSPACE = "workspace"
UNKNOWN = "other"
# Losses whose one number lies in the storage of what it is the mean of (aten/src/ATen/native/BinaryOps.cpp, Loss.cpp).
SWOLLEN = ("mse_loss", "smooth_l1_loss", "soft_margin_loss", "binary_cross_entropy")


@dataclass(slots=True)
class _Seen:
    """A live storage: its name in the trace, its size, and the reference that says when it is gone."""

    name: int
    size: int
    reference: Any


@dataclass(slots=True)
class Recorder:
    """What one run of the step allocates; `watching` is on while operators are to be recorded."""

    device: Device
    fake: bool
    phase: str = "build"
    events: list[tuple[int, int]] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    ops: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    flops: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)  # part of the step -> time by roofline
    _known: dict[int, _Seen] = field(default_factory=dict)  # by the address of the storage
    _names: dict[int, str] = field(default_factory=dict)  # module -> its path
    _path: list[str] = field(default_factory=list)
    _sequence: list[int] = field(default_factory=list)
    _owner: list[str] = field(default_factory=list)
    _mutable: dict[Any, bool] = field(default_factory=dict)
    _blas: set[str] = field(default_factory=set)

    # ── what is told to it ───────────────────────────────────────────────────────────────────────────────────────────

    def enter(self, phase: str) -> None:
        """Say which part of the step begins."""
        self.phase = phase
        self.marks.append((len(self.events), phase))

    def name(self, model: Any) -> None:
        """Learn the paths of the model's modules."""
        self._names = {id(module): path or type(model).__name__ for path, module in model.named_modules()}

    def own(self, tensor: Any, kind: str) -> None:
        """Say what a tensor is for (parameter, gradient, optimiser state, batch); HOST keeps it off the device."""
        for part in _parts(tensor):
            self._see(part, "")
            self.kinds[self._known[_storage(part)._cdata].name] = kind

    def trace(self) -> Trace:
        """Return what was recorded, without what lives on the host."""
        host = {name for name, kind in enumerate(self.kinds) if kind == HOST}
        kept: list[tuple[int, int]] = []
        index = [0]
        for name, size in self.events:
            if name not in host:
                kept.append((name, size))
            index.append(len(kept))
        return Trace(
            events=tuple(kept),
            marks=tuple((index[at], phase) for at, phase in self.marks),
            kinds=tuple(self.kinds),
            ops=tuple(self.ops),
            modules=tuple(self.modules),
            phases=tuple(self.phases),
            flops=self.flops,
            seconds=dict(self.seconds),
            notes=tuple(self.notes.values()),
        )

    # ── what it sees ─────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record every operator and module until the block ends."""
        every = pytorch().nn.modules.module
        hooks = [
            every.register_module_forward_pre_hook(self._begin),
            # Called even when the forward ends early, as it does where a checkpoint has computed enough again.
            every.register_module_forward_hook(self._end, always_call=True),
        ]
        try:
            with _mode(self._operator):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, module: Any, _args: Any) -> None:
        self._path.append(self._names.get(id(module), type(module).__name__))
        self._belongs()

    def _end(self, _module: Any, _args: Any, _output: Any) -> None:
        if self._path:
            self._path.pop()
        self._belongs()

    def _belongs(self) -> None:
        """From the autograd node made next on, nodes belong to the module that is running now."""
        torch = pytorch()
        if self.phase != "backward":  # what is computed again there is called by the node of a checkpoint
            self._sequence.append(torch._C._autograd._get_sequence_nr())
            self._owner.append(self._path[-1] if self._path else "")

    def _module(self) -> str:
        torch = pytorch()
        if self._path:
            return self._path[-1]
        node = torch._C._current_autograd_node() if self.phase == "backward" else None
        if node is None or not self._sequence:
            return ""
        at = bisect_right(self._sequence, node._sequence_nr()) - 1
        return self._owner[at] if at >= 0 else ""

    def _operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        torch = pytorch()
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if self.fake and func is torch.ops.aten._local_scalar_dense.default and args[0].is_floating_point():
            if self.phase != "optimizer":  # which reads its own step counters
                self.notes["item"] = "a number read from a tensor (.item()) was taken for 1.0: nothing was computed"
            return 1.0
        out = func(*args, **kwargs)
        fresh, op = False, func._overloadpacket.__name__
        least = args[0].numel() * args[0].element_size() if op in SWOLLEN else 0
        for tensor in _parts(out):
            fresh |= self._see(tensor, op, least)
        self._cost(func, args, kwargs, out, fresh)
        return out

    def _see(self, tensor: Any, op: str, least: int = 0) -> bool:
        """Record the tensor's storage when it is new, or when it has grown; say whether it was."""
        storage = _storage(tensor)
        key, size = storage._cdata, max(storage.nbytes(), least)
        seen = self._known.get(key)
        if seen is None:
            reference = weakref.ref(storage, partial(self._freed, key))
            self._known[key] = _Seen(self._add(op, UNKNOWN, size), size, reference)
            return True
        if size > seen.size:  # resized in place
            self.events += [(seen.name, -1), (seen.name, size)]
            seen.size = size
            return True
        return False

    def _add(self, op: str, kind: str, size: int) -> int:
        self.kinds.append(kind)
        self.ops.append(op)
        self.modules.append(self._module())
        self.phases.append(self.phase)
        name = len(self.kinds) - 1
        self.events.append((name, size))
        return name

    def _freed(self, key: int, _reference: Any) -> None:
        self.events.append((self._known.pop(key).name, -1))

    # ── what it costs ────────────────────────────────────────────────────────────────────────────────────────────────

    def _cost(self, func: Any, args: Any, kwargs: Any, out: Any, fresh: bool) -> None:
        """Add an operator's time and the memory that its kernel takes while it runs; views cost nothing."""
        flop_registry = import_module("torch.utils.flop_counter").flop_registry
        if func not in self._mutable:
            self._mutable[func] = func._schema.is_mutable
        if not fresh and not self._mutable[func]:
            return
        inputs = [part for arg in (*args, *kwargs.values()) for part in _parts(arg)]
        moved = float(sum(part.numel() * part.element_size() for part in (*inputs, *_parts(out))))
        packet = func._overloadpacket
        formula = flop_registry.get(packet)
        flops: dict[str, float] = {}
        if formula is not None:
            count = float(formula(*args, **kwargs, out_val=out))
            flops[_precision(packet.__name__, inputs[0])] = count
            self.flops += count
            self._workspace()
        taken = self.device.seconds(flops, moved)
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + taken
        extra = scratch(packet.__name__, inputs, list(_parts(out)), self.device) if fresh else 0
        if extra > 0:
            self.events.append((self._add(packet.__name__, WORKSPACE, extra), -1))

    def _workspace(self) -> None:
        """The first product in each thread takes cuBLAS's workspace, for good; backward runs in a thread of its own."""
        thread = "backward" if self.phase == "backward" else "main"
        if thread not in self._blas:
            self._blas.add(thread)
            self._add("cublas", WORKSPACE, self.device.blas_bytes)


def _mode(seen: Callable[[Any, Any, Any], Any]) -> Any:
    """Return a dispatch mode that calls `seen` in the place of each operator."""

    def dispatch(_mode: Any, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return seen(func, args, kwargs or {})

    base = import_module("torch.utils._python_dispatch").TorchDispatchMode
    return type("Watching", (base,), {"__torch_dispatch__": dispatch})()


def _storage(tensor: Any) -> Any:
    return tensor.untyped_storage()


def _parts(value: Any) -> Iterator[Any]:
    """Yield the tensors in an argument or result of an operator: one, a list of them, or none."""
    torch = pytorch()
    if isinstance(value, torch.Tensor):
        if value.layout is torch.strided:
            yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part)


def _precision(op: str, tensor: Any) -> str:
    """Return which of a device's rates an operator runs at, as PyTorch is set up now."""
    torch = pytorch()
    if tensor.element_size() <= 2:
        return "half"
    convolution = "convolution" in op
    fast = torch.backends.cudnn.allow_tf32 if convolution else torch.get_float32_matmul_precision() != "highest"
    return "tf32" if fast else "fp32"


# ── memory that no operator returns ──────────────────────────────────────────────────────────────────────────────────


def scratch(op: str, inputs: list[Any], outputs: list[Any], device: Device) -> int:
    """Return the bytes that a CUDA kernel takes while it runs beside what it returns. Estimates, unmeasured here."""
    if op == "_scaled_dot_product_flash_attention_backward":
        # aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd: dq_accum and softmax_d in float32
        query = inputs[1]
        batch, heads, length, width = query.shape
        rows = batch * heads * _up(length, 128)
        return int(rows * (_up(width, 32) + 1) * 4)
    if op == "_scaled_dot_product_efficient_attention_backward":
        # transformers/cuda/attention_backward.cu: delta, and sums in float32 where gradients are halves
        query = inputs[1]
        batch, heads, length, width = query.shape
        sums = width * 4 if query.element_size() <= 2 else 0
        return int(batch * heads * length * (4 + sums))
    if op in ("convolution", "convolution_backward"):
        return _convolution(inputs, outputs, device)
    if op in ("embedding_dense_backward", "index_put", "index_put_", "_index_put_impl_"):
        # Embedding.cu and Indexing.cu sort their indices: keys and values twice, and the sort's own buffer
        return int(5 * 8 * max((part.numel() for part in inputs if not part.is_floating_point()), default=0))
    if op in ("sort", "topk", "argsort"):
        return int(2 * sum(part.numel() * part.element_size() for part in outputs))
    return 0


def _convolution(inputs: list[Any], outputs: list[Any], device: Device) -> int:
    """Estimate cuDNN's workspace: copies in channels-last order for tensor cores, of what is not in that order yet.

    cuDNN chooses an algorithm at run time and asks for anything from nothing to this and more (Winograd, split sums);
    the weights' gradient in float32 is added for halves.
    """
    torch = pytorch()
    tensors = [part for part in (*inputs, *outputs) if part.dim() in (4, 5)]
    if not tensors:
        return 0
    half = tensors[0].element_size() <= 2
    cores = half or (device.tf32 > 0 and torch.backends.cudnn.allow_tf32)
    order = torch.channels_last if tensors[0].dim() == 4 else torch.channels_last_3d
    copied = [part for part in tensors if cores and not part.is_contiguous(memory_format=order)]
    weights = min(part.numel() for part in tensors) * 4
    return int(sum(part.numel() * part.element_size() for part in copied) + weights)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step

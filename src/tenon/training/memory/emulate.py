"""Makes fake tensors on the processor behave as tensors on a GPU would, for one throwaway process.

PyTorch's fake tensors cannot run a backward pass on "cuda" in a build or on a machine without a GPU (autograd asks the
driver for streams), so the step runs on fake processor tensors, and what CUDA does differently is put in its place:

- autocast("cuda") casts by CUDA's lists (AT_FORALL_FP32 and the others in ATen/autocast_mode.h of PyTorch 2.13); the
  processor's own lists leave softmax, losses and norms in bfloat16, which keeps other activations;
- scaled_dot_product_attention takes the kernel that CUDA would (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp):
  flash for halves without a mask on capability 8.0 and newer, memory-efficient with a mask or in float32, else plain;
- dropout keeps a mask of one byte (native_dropout), rms_norm is one kernel, optimisers use foreach by default;
- "cuda" in the user's words means the device that is simulated, and torch.cuda answers as if it were there.

All of this is global to a process, which is why `worker` runs it in one of its own and the parent never imports it.
Real tensors are simulated with `install(device, fake=False)`, which leaves the kernels as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from tenon.training.memory.device import Device
from tenon.training.memory.step import pytorch

_LISTS = {
    "fp32": """acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
        pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm frobenius_norm.dim
        nuclear_norm nuclear_norm.dim norm.Scalar norm.ScalarOpt_dim cosine_similarity poisson_nll_loss
        cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss
        margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss
        binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d _upsample_nearest_exact1d
        upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d
        upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d _upsample_bicubic2d_aa""",
    "fp32 by dtype": """softmax.int log_softmax.int prod prod.dim_int cumprod cumsum sum sum.dim_IntList
        linalg_vector_norm linalg_matrix_norm linalg_matrix_norm.str_ord""",
    "widest": "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add",
    # beyond what the processor's list has
    "lower": "addmv addr mv prelu einsum chain_matmul linalg_multi_dot lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
}
CAST = {name: kind for kind, names in _LISTS.items() for name in names.split()}  # operator -> what autocast does


def install(device: Device, *, fake: bool) -> Any:
    """Change PyTorch in this process to simulate `device`; return what must be kept alive for it to last."""
    torch = pytorch()
    _words(device)
    if not fake:
        return None
    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", _attention(device), "AutogradCPU")
    library.impl("dropout", _dropout, "AutogradCPU")
    library.impl("rms_norm", _rms_norm, "AutogradCPU")
    for name, kernel in _autocast():
        library.impl(name, kernel, "AutocastCPU")
    torch.utils._foreach_utils._get_foreach_kernels_supported_devices = lambda: ["cpu"]
    return library


# ── the user's words ─────────────────────────────────────────────────────────────────────────────────────────────────


def _words(device: Device) -> None:
    """Let torch.cuda and torch.autocast answer as if the GPU were there."""
    torch = pytorch()
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: device.name,
        "get_device_capability": lambda *_: device.capability,
        "is_bf16_supported": lambda *_, **__: device.bf16,
        "is_current_stream_capturing": lambda: False,
    }
    for name in (
        "set_device",
        "synchronize",
        "empty_cache",
        "manual_seed",
        "manual_seed_all",
        "reset_peak_memory_stats",
    ):
        answers[name] = lambda *_, **__: None
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        answers[name] = lambda *_, **__: 0
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    begin = torch.amp.autocast_mode.autocast.__init__

    def autocast(self: Any, device_type: str, dtype: Any = None, enabled: bool = True, **rest: Any) -> None:
        if device_type == "cuda":
            dtype = dtype or torch.get_autocast_dtype("cuda")
            device_type = "cpu"
        begin(self, device_type, dtype, enabled, **rest)

    torch.amp.autocast_mode.autocast.__init__ = autocast
    torch.nn.Module._apply = _apply
    import_module("torch._subclasses.fake_tensor").FakeTensor.__deepcopy__ = _deepcopy


def _deepcopy(tensor: Any, memo: dict[int, Any]) -> Any:
    """Stand in for the copy of a fake tensor, which would copy its mode too and be a stranger from then on."""
    torch = pytorch()
    if id(tensor) not in memo:
        copied = tensor.detach().clone()
        parameter = getattr(tensor, "_is_param", False)
        memo[id(tensor)] = torch.nn.Parameter(copied, tensor.requires_grad) if parameter else copied
    return memo[id(tensor)]


def _apply(module: Any, change: Callable[[Any], Any], recurse: bool = True) -> Any:
    """Stand in for Module._apply, which swaps tensors and cannot swap watched ones: parameters are replaced.

    A parameter that several modules share stays one.
    """
    torch = pytorch()
    made: dict[int, Any] = {}
    for part in module.modules() if recurse else (module,):
        for key, parameter in part._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    applied = change(parameter)
                if applied is not parameter and id(parameter) not in made:
                    made[id(parameter)] = torch.nn.Parameter(applied, parameter.requires_grad)
                part._parameters[key] = made.get(id(parameter), parameter)
        for key, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[key] = change(buffer)
    return module


@contextmanager
def here() -> Iterator[None]:
    """Take "cuda" for the simulated device wherever the block names a device."""

    def function(_mode: Any, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": "cpu"}
        name = getattr(func, "__name__", "")
        if name in ("cuda", "pin_memory"):
            return args[0]
        if name in ("to", "new_tensor", "new_zeros", "new_ones", "new_empty", "new_full"):
            args = tuple("cpu" if _cuda(arg) else arg for arg in args)
        return func(*args, **kwargs)

    base = import_module("torch.overrides").TorchFunctionMode
    with type("Here", (base,), {"__torch_function__": function})():
        yield


def _cuda(value: Any) -> bool:
    torch = pytorch()
    if isinstance(value, str):
        return value.split(":")[0] == "cuda"
    return isinstance(value, torch.device) and value.type == "cuda"


# ── kernels ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _attention(device: Device) -> Callable[..., Any]:
    """Return scaled_dot_product_attention as CUDA would choose it."""
    torch = pytorch()
    aten = torch.ops.aten
    halves = (torch.float16, torch.bfloat16) if device.capability >= (8, 0) else (torch.float16,)

    def attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        shaped = query.dim() == 4 and query.shape[-1] <= 256 and query.shape[-1] % 8 == 0
        flash = device.capability >= (8, 0) and query.dtype in halves and attn_mask is None
        if flash and shaped:
            with_lse = aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, False, scale=scale
            )
            return with_lse[0]
        if shaped and not enable_gqa and query.dtype in (*halves, torch.float32):
            bias = _bias(attn_mask, query, key)
            with_lse = aten._scaled_dot_product_efficient_attention(
                query, key, value, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
            )
            return with_lse[0]
        return aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
        )[0]

    return attention


def _bias(mask: Any, query: Any, key: Any) -> Any:
    """Return a mask as what is added to the scores, padded as the memory-efficient kernel needs it."""
    torch = pytorch()
    if mask is None:
        return None
    if mask.dtype is torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    missing = -mask.shape[-1] % 16
    if missing:
        mask = torch.nn.functional.pad(mask, (0, missing))[..., : key.shape[-2]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _dropout(tensor: Any, p: float, train: bool) -> Any:
    torch = pytorch()
    if not train or p == 0 or tensor.numel() == 0:
        return tensor
    return torch.native_dropout(tensor, p, train)[0]


def _rms_norm(tensor: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    torch = pytorch()
    return torch.ops.aten._fused_rms_norm(tensor, shape, weight, eps)[0]


# ── autocast ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _autocast() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield an autocast kernel for each operator that CUDA's lists treat unlike the processor's."""
    torch = pytorch()
    casts = {"fp32": _to_fp32, "fp32 by dtype": _ask_fp32, "widest": _to_widest, "lower": _to_lower}
    for name, kind in CAST.items():
        packet, _, overload = name.partition(".")
        yield name, _kernel(getattr(getattr(torch.ops.aten, packet), overload or "default"), casts[kind])
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::") and _treated(name, "AutocastCPU") and not _treated(name, "AutocastCUDA"):
            # Fallen through, not called with autocast off: what it calls in turn is treated on CUDA.
            yield name.removeprefix("aten::"), torch.library.fallthrough_kernel


def _treated(name: str, key: str) -> bool:
    torch = pytorch()
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def _kernel(op: Any, cast: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[..., Any]:
    """Return what autocast does with an operator: cast its arguments, then call it with autocast off."""
    torch = pytorch()
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            args, kwargs = cast(args, kwargs)
            return op(*args, **kwargs)

    return kernel


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    torch = pytorch()
    if isinstance(value, torch.Tensor):
        return change(value) if value.is_floating_point() and value.dtype is not torch.float64 else value
    if isinstance(value, (list, tuple)):
        return type(value)(_each(part, change) for part in value)
    return value


def _to_fp32(args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _each(args, lambda part: part.float()), {
        name: _each(v, lambda part: part.float()) for name, v in kwargs.items()
    }


def _ask_fp32(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Ask for a result in float32, unless the caller said which type; what comes in may stay as it is."""
    torch = pytorch()
    tensor = args[0]
    if kwargs.get("dtype") is None and tensor.is_floating_point() and tensor.dtype is not torch.float64:
        named = any(isinstance(arg, torch.dtype) for arg in args)
        kwargs = kwargs if named else {**kwargs, "dtype": torch.float32}
        args = tuple(arg for at, arg in enumerate(args) if not (arg is None and at == len(args) - 1))
    return args, kwargs


def _to_widest(args: Any, kwargs: Any) -> tuple[Any, Any]:
    torch = pytorch()
    seen: list[Any] = []

    def look(part: Any) -> Any:
        seen.append(part.dtype)
        return part

    _each(args, look)
    return _to_fp32(args, kwargs) if torch.float32 in seen else (args, kwargs)


def _to_lower(args: Any, kwargs: Any) -> tuple[Any, Any]:
    torch = pytorch()
    dtype = torch.get_autocast_dtype("cpu")
    return _each(args, lambda part: part.to(dtype)), kwargs

"""What a GPU holds and how quickly it works: the table that a prediction is made against.

Nothing in this table was measured here; each figure is somebody's published one, and each can be set by the caller.

Capacity is what CUDA reports as a device's total, which is less than the name says: the lowest "total capacity" found
in public out-of-memory messages of that model (79.11 GiB for an H100 with 80 GB, 22.03 for an L4 or A10G, 14.56 for a
T4, 44.34 for an L40S). Compute and bandwidth are from the vendor's data sheets, dense (without structured sparsity):
NVIDIA H100 (SXM) and H200, A100 (SXM), L4, L40S, A10, T4 and V100 (SXM2) Tensor Core GPU data sheets, the Ada and
Ampere GA102 architecture white papers for GeForce, the Blackwell architecture technical brief for the B200 and the
RTX Blackwell one for the GeForce 5090. A10G has no public sheet of its own: it is the A10's chip at 70 TFLOP/s (AWS).

Context is what a process holds before PyTorch allocates anything, and after the kernels of a step have been loaded.
Public figures: 287 MB after the first tensor (pytorch#86509), 300-400 MB (pytorch#107667, #109888), 426 MiB on an RTX
6000 Ada with PyTorch 2.10 and CUDA 13 (unsloth-zoo#1053). To these the kernels that a training loads are added
generously. cuBLAS takes a workspace for each thread and stream, from PyTorch's allocator: 32 MiB on Hopper and
Blackwell, 8.1 MiB elsewhere (aten/src/ATen/cuda/CublasHandlePool.cpp); forward and backward are two threads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tenon.errors import InputError, nearest, quoted, sentence

GIB = 1024**3
MIB = 1024**2
BLAS_BYTES = 4096 * 1024 * 2 + 16 * 1024 * 8  # :4096:2:16:8
BLAS_BYTES_HOPPER = 32 * MIB
NCCL_BYTES = 1 * GIB  # buffers and channels of a process group; unmeasured
# What is reached of the data sheet by ordinary training: for comparing plans, not for promising times.
REACHED_FLOPS = 0.5
REACHED_BANDWIDTH = 0.8
LAUNCH_S = 4e-6  # no kernel is shorter than its launch


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One model of GPU; bytes as CUDA counts them, TFLOP/s dense, bandwidth in GB/s of the data sheet."""

    name: str
    total_bytes: int
    capability: tuple[int, int]
    fp32: float
    tf32: float  # 0 where there is none
    half: float  # fp16 and bf16 with tensor cores
    bandwidth: float
    context_bytes: int
    bf16: bool = True

    @property
    def blas_bytes(self) -> int:
        """Return the workspace that cuBLAS takes for each thread."""
        return BLAS_BYTES_HOPPER if self.capability[0] in (9, 10, 12) else BLAS_BYTES

    def usable_bytes(self, used_bytes: int = 0) -> int:
        """Return what is left for PyTorch's allocator once the context is there and others hold `used_bytes`."""
        return max(self.total_bytes - self.context_bytes - used_bytes, 0)

    def seconds(self, flops: Mapping[str, float], moved_bytes: float) -> float:
        """Bound the time of one operation from below by what it computes and by what it moves, at the shares reached.

        `flops` is by precision: `fp32`, `tf32`, `half`. A precision that the device lacks runs at that of fp32.
        """
        computing = sum(count / (self.rate(kind) * 1e12 * REACHED_FLOPS) for kind, count in flops.items())
        return max(computing, moved_bytes / (self.bandwidth * 1e9 * REACHED_BANDWIDTH), LAUNCH_S)

    def rate(self, kind: str) -> float:
        """Return TFLOP/s at a precision; where the device has none of it, those of fp32."""
        return {"fp32": self.fp32, "tf32": self.tf32, "half": self.half}[kind] or self.fp32

    def to_dict(self) -> dict[str, Any]:
        """Return what a reader needs to judge a prediction."""
        return {
            "name": self.name,
            "total_bytes": self.total_bytes,
            "context_bytes": self.context_bytes,
            "capability": f"{self.capability[0]}.{self.capability[1]}",
        }


def _device(
    name: str,
    total_gib: float,
    capability: tuple[int, int],
    rates: tuple[float, float, float, float],
    context_mib: int,
    *,
    bf16: bool = True,
) -> Device:
    fp32, tf32, half, bandwidth = rates
    return Device(
        name=name,
        total_bytes=int(total_gib * GIB),
        capability=capability,
        fp32=fp32,
        tf32=tf32,
        half=half,
        bandwidth=bandwidth,
        context_bytes=context_mib * MIB,
        bf16=bf16,
    )


# name, GiB that CUDA reports, capability, (fp32, tf32, half TFLOP/s, GB/s), context and kernels in MiB
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _device("a10g-24gb", 22.03, (8, 6), (35, 35, 70, 600), 600),
        _device("a100-40gb", 39.38, (8, 0), (19.5, 156, 312, 1555), 700),
        _device("a100-80gb", 79.14, (8, 0), (19.5, 156, 312, 2039), 700),
        _device("b200-180gb", 178.34, (10, 0), (75, 1100, 2250, 8000), 1000),
        _device("h100-80gb", 79.11, (9, 0), (67, 494, 989, 3350), 900),
        _device("h200-141gb", 139.71, (9, 0), (67, 494, 989, 4800), 900),
        _device("l4-24gb", 22.03, (8, 9), (30.3, 60, 121, 300), 600),
        _device("l40s-48gb", 44.34, (8, 9), (91.6, 183, 362, 864), 700),
        _device("rtx-3090-24gb", 23.55, (8, 6), (35.6, 35.6, 71, 936), 600),
        _device("rtx-4090-24gb", 23.52, (8, 9), (82.6, 82.6, 165, 1008), 700),
        _device("rtx-5090-32gb", 31.35, (12, 0), (104.8, 104.8, 209.5, 1792), 800),
        _device("t4-16gb", 14.56, (7, 5), (8.1, 0, 65, 320), 450, bf16=False),
        _device("v100-16gb", 15.77, (7, 0), (15.7, 0, 125, 900), 500, bf16=False),
        _device("v100-32gb", 31.73, (7, 0), (15.7, 0, 125, 900), 500, bf16=False),
    )
}


def find(name: str, *, total_gib: float | None = None) -> Device:
    """Return the device of that name, with its capacity replaced by `total_gib` when it is given.

    A name without its memory is enough where only one device has it: `h100` is `h100-80gb`.
    """
    key = name.strip().lower().replace("_", "-").replace(" ", "-").removeprefix("nvidia-")
    found = [one for known, one in DEVICES.items() if key in (known, re.sub(r"-\d+gb$", "", known))]
    if len(found) != 1:
        hint = f"one of {quoted(one.name for one in found)}" if found else nearest(key, DEVICES)
        raise InputError(sentence("a GPU that tenon knows", f"'{name}'", hint=hint))
    return replace(found[0], total_bytes=int(total_gib * GIB)) if total_gib else found[0]

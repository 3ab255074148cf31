"""How quickly a step computes and moves bytes, against what the device could do.

The forward of one early step is done again without gradients, and every operation that reaches the device is counted:
its floating-point operations by PyTorch's own table (`torch.utils.flop_counter`), and the bytes of what it takes and
gives. The backward is taken as twice the forward, which is what it is for products of matrices, where nearly all
operations are; the optimiser as reading gradients, and reading and writing weights and its own state. So a step's bytes
are what would be moved if nothing stayed in a cache and nothing was fused: a fused or compiled step moves less, and its
share of the bandwidth is then told too high.

The device's limits are those of the table of GPUs (`memory.device`), at the precision that the step runs in; a
processor's are measured here, by a product of matrices and a copy, a few hundredths of a second each.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from tenon.training.blame_torch import Call, as_it_was, flat, local, sharded

SIZE = 512  # of the matrices that a processor's limit is measured with
COPY_BYTES = 32 * 1024**2
TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one step computes and moves, and the most that its device does in a second; 0 where that is not known."""

    flops: float
    bytes: float
    most_flops: float = 0.0
    most_bytes: float = 0.0

    def at(self, steps_per_s: float) -> dict[str, float]:
        """Return rates and shares of the limits at so many steps a second, as plain data."""
        flops, moved = self.flops * steps_per_s, self.bytes * steps_per_s
        return {
            "flops_per_s": flops,
            "bytes_per_s": moved,
            "of_flops": flops / self.most_flops if self.most_flops else 0.0,
            "of_bytes": moved / self.most_bytes if self.most_bytes else 0.0,
        }


def added(every: Sequence[Work]) -> Work:
    """Return what several ranks do together in a step, and could do at most."""
    names = [one.name for one in fields(Work)]
    return Work(**{name: sum(getattr(one, name) for one in every) for name in names})


def count(torch: Any, model: Any, calls: list[Call], optimizer: Any) -> Work:
    """Count what a step's forwards do, by doing them again; whatever the model raises then comes through."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):  # type: ignore[misc, unused-ignore]
        """Adds up operations and bytes."""

        def __init__(self) -> None:
            super().__init__()
            self.flops = self.bytes = 0.0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            known = flop_registry.get(func._overloadpacket)
            if known is not None:
                self.flops += float(known(*args, **(kwargs or {}), out_val=out))
            if not func.is_view:
                self.bytes += sum(one.numel() * one.element_size() for one in flat(torch, (args, out)))
            return out

    inner, counter = getattr(model, "_orig_mod", model), Counter()
    for call in calls:
        cast = torch.autocast(call.kind, dtype=call.cast, enabled=call.cast is not None)
        with as_it_was(torch, inner, call), torch.no_grad(), cast, counter:
            call.again(inner)
    for module in inner.modules() if sharded(inner) else ():
        if hasattr(module, "reshard"):  # FSDP2 keeps the root's gathered weights, which the optimiser makes old
            module.reshard()
    held = [local(one) for one in model.parameters() if one.requires_grad]
    weights = sum(one.numel() * one.element_size() for one in held)
    state = optimizer.state.values() if optimizer is not None else ()
    parts = [local(one) for one in flat(torch, [list(part.values()) for part in state])]
    kept = sum(one.numel() * one.element_size() for one in parts)
    most_flops, most_bytes = limits(torch, calls[-1])
    return Work(
        flops=3 * counter.flops,
        bytes=3 * counter.bytes + 3 * weights + 2 * kept,
        most_flops=most_flops,
        most_bytes=most_bytes,
    )


def limits(torch: Any, call: Call) -> tuple[float, float]:
    """Return the operations and the bytes a second that the device could do at most; zeros where it is not known."""
    if call.kind == "cuda":
        from tenon.training.memory import here

        device = here()
        if device is None:
            return 0.0, 0.0
        half = call.cast in (torch.float16, torch.bfloat16)
        kind = "half" if half else "tf32" if torch.backends.cuda.matmul.allow_tf32 else "fp32"
        return device.rate(kind) * 1e12, device.bandwidth * 1e9
    if call.kind != "cpu":
        return 0.0, 0.0
    a, b = torch.ones(SIZE, SIZE), torch.ones(COPY_BYTES // 4)
    product = _best(lambda: torch.mm(a, a))
    copy = _best(lambda: b.clone())
    return 2 * SIZE**3 / product, 2 * COPY_BYTES / copy


def _best(body: Any) -> float:
    """Return the seconds of the quickest try."""
    tries = []
    for _ in range(TRIES):
        start = time.perf_counter()
        body()
        tries.append(time.perf_counter() - start)
    return max(min(tries), 1e-9)

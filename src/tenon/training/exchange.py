"""How long a step waits for what ranks exchange, and which rank the others wait for.

`Exchange` knows how long a rank's step stood still for its model's own collectives. DDP times one step in `RATE` itself
(on a processor and on a GPU): from the end of its backward's computing to the end of its all-reduces is what computing
does not hide. Its broadcast of buffers before a forward, and the collectives of FSDP2, block on a processor and are
timed where they are called; on a GPU they run beside the computing, and nothing is told of them. The guard's own
agreement is timed by `Ranks`.

Whoever waits for a late rank waits inside a collective, so waiting and sending cannot be told apart on one rank. All
ranks together tell them apart (`Pace`): each says what a step takes it besides waiting. The rank that takes the longest
waits for nobody, so the rest of its step is the exchange itself; what another takes less, it waits for that rank.

Rejected: a communication hook (there can be one only, and it is the user's; it takes Python's lock in each bucket), the
flight recorder (of gloo it does not tell an end), a step without synchronisation to compare with (another step).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from tenon.finding import Finding
from tenon.ledger import hourly

RATE = 10  # steps, of which DDP times one
LATE = 0.2  # share of a step that the others wait for one rank, from which it is told
BOUND = 0.3  # share of a step spent exchanging, from which it is told
WINDOW = 5  # readings, a second or more each, over which a step is measured
READINGS = 10  # in a row before either is told, more than a window: a rank is slow for a second for many reasons


class Exchange:
    """What one model's collectives keep a step waiting; `close` leaves the model as it was."""

    __slots__ = ("_ddp", "_spent", "_timed")

    def __init__(self, torch: Any, model: Any) -> None:
        self._ddp = model if isinstance(model, torch.nn.parallel.DistributedDataParallel) else None
        self._spent = [0.0]
        self._timed: list[tuple[Any, Any, Any]] = []
        if self._ddp is not None:
            self._ddp._set_ddp_runtime_logging_sample_rate(RATE)
            self._ddp._sync_buffers = _Timed(self._ddp._sync_buffers, self._spent)
        elif torch.distributed.is_available() and torch.distributed.is_initialized():
            self._time(model)

    def waited_s(self, steps: int) -> float:
        """Return the seconds waited so far, when `steps` more were taken, each like the last that DDP timed."""
        if self._ddp is not None:
            told = self._ddp._get_ddp_logging_data()
            whole, hidden = (told.get(f"backward_{name}_time", 0) for name in ("comm", "compute_comm_overlap"))
            self._spent[0] += steps * max(float(whole - hidden), 0.0) / 1e9
        return self._spent[0]

    def close(self) -> None:
        """Give the model its own collectives back."""
        for module, gather, scatter in self._timed:
            module.set_custom_all_gather(gather)
            module.set_custom_reduce_scatter(scatter)
        self._timed.clear()
        if self._ddp is not None:
            self._ddp.__dict__.pop("_sync_buffers", None)

    def _time(self, model: Any) -> None:
        from torch.distributed.fsdp import FSDPModule

        here = all(one.device.type == "cpu" for one in model.parameters())
        for module in model.modules() if here else ():
            groups: Any = module._get_fsdp_state()._fsdp_param_groups if isinstance(module, FSDPModule) else ()
            if len(groups) == 1:
                gather, scatter = groups[0]._all_gather_comm, groups[0]._reduce_scatter_comm
                module.set_custom_all_gather(_Timed(gather, self._spent))
                module.set_custom_reduce_scatter(_Timed(scatter, self._spent))
                self._timed.append((module, gather, scatter))


class _Timed:
    """A collective that adds up how long its calls take."""

    __slots__ = ("_inner", "_spent", "allocate")

    def __init__(self, inner: Any, spent: list[float]) -> None:
        self._inner, self._spent, self.allocate = inner, spent, getattr(inner, "allocate", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return self._inner(*args, **kwargs)
        finally:
            self._spent[0] += time.perf_counter() - start


class Pace:
    """Compares what a step takes each rank; kept by the first one."""

    __slots__ = ("_bound", "_late", "_slowest", "_told")

    def __init__(self) -> None:
        self._bound = self._late = 0  # readings in a row
        self._slowest = -1
        self._told: set[str] = set()

    def look(
        self, step: int, own_s: Sequence[float], step_s: float, usd_per_s: float = 0.0
    ) -> tuple[dict[str, float], list[Finding]]:
        """Return the shares of a step that go into exchanging and into waiting for the slowest, and what is to be told.

        `own_s` is what a step takes each rank besides waiting for others. The shares are of all ranks' time.
        """
        if step_s <= 0 or not all(own_s):
            return {}, []
        slowest = max(range(len(own_s)), key=own_s.__getitem__)
        others = statistics.median(one for rank, one in enumerate(own_s) if rank != slowest)
        communicating = max(1 - own_s[slowest] / step_s, 0.0)
        waiting = min((own_s[slowest] - statistics.fmean(own_s)) / step_s, 1.0)
        late = (own_s[slowest] - others) / step_s
        self._late = (self._late if slowest == self._slowest else 0) + 1 if late > LATE else 0
        self._bound = self._bound + 1 if communicating > BOUND else 0
        self._slowest = slowest
        cost = hourly(waiting, usd_per_s)
        found = []
        if self._late == READINGS:
            numbers = {"rank": slowest, "own_ms": own_s[slowest] * 1e3, "others_ms": others * 1e3, "waiting": waiting}
            said = (
                f"Rank {slowest} of {len(own_s)} is late: a step takes it {own_s[slowest] * 1e3:.3g} ms, the others"
                f" {others * 1e3:.3g} ms. They wait for it {late:.0%} of each step{cost}."
            )
            hint = "Look at its loader, at the length of its rows, and at what else its cores or its GPU are given to."
            found.append(self._finding("training/straggler", step, said, hint, numbers))
        if self._bound == READINGS:
            numbers = {"communicating": communicating, "step_ms": step_s * 1e3, "ranks": len(own_s)}
            said = f"{communicating:.0%} of a step is spent exchanging between {len(own_s)} ranks, beside computing."
            hint = "Take larger batches, add gradients of several up (`no_sync`), send bfloat16, or take fewer ranks."
            found.append(self._finding("training/communication-bound", step, said, hint, numbers))
        shares = {"communicating": communicating, "late": waiting}
        return shares, [one for one in found if one is not None]

    def _finding(self, code: str, step: int, said: str, hint: str, numbers: dict[str, float]) -> Finding | None:
        if code in self._told:
            return None
        self._told.add(code)
        numbers = {name: float(value) for name, value in numbers.items()}
        return Finding(code=code, severity="warning", place=f"run/{step}", said=said, hint=hint, numbers=numbers)

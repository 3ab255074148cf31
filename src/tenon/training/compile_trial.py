"""torch.compile, tried on the real first batches and kept only when it is quicker; else latched back to eager.

    model = Trial(model, guard=guard)      # call it like the model; optimisers and checkpoints keep the model itself

`torch.compile` returns at once and fails, or is slow, at the first call. A `Trial` therefore calls the model as it is
for `steps` steps and compiled for as many, not counting `WARM` of each, and takes the time from one call to the next,
so that backward and optimiser count too. Then it keeps the quicker one for good. It goes back to eager, once and for
all, when the compiler fails (the call is done again as it is, so no step is lost), when compiling saves less than
`WORTH`, and when a compiled model is compiled anew again and again because shapes or Python values change (a recompile
storm: `STORM` graphs after the warm-up). Each of these is a finding with the throughput it costs or gains.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

from tenon.errors import UsageError, sentence
from tenon.finding import Finding
from tenon.training.watch_torch import torch_or_missing

WARM = 3  # steps of each kind that are not counted
WORTH = 1.03  # times as quick
STORM = 3  # graphs compiled after the warm-up; PyTorch itself gives up silently after eight

Phase = Literal["eager", "compiled", "kept", "latched"]


class Trial:
    """A model that finds out whether to be compiled; `finding` says how it ended, None while it is still tried."""

    __slots__ = ("_clock", "_compiled", "_graphs", "_last", "_times", "finding", "guard", "model", "phase", "steps")

    def __init__(
        self,
        model: Any,
        *,
        guard: Any = None,
        steps: int = 10,
        clock: Callable[[], float] = time.perf_counter,
        **options: Any,
    ) -> None:
        torch = torch_or_missing("compile a model")
        if steps < 2:
            raise UsageError(sentence("2 steps or more of each kind", f"{steps}", at="Trial"))
        self.model = model
        self.guard = guard
        self.steps = steps
        self.phase: Phase = "eager"
        self.finding: Finding | None = None
        self._compiled = torch.compile(model, **options)
        self._clock = clock
        self._times: dict[str, list[float]] = {"eager": [], "compiled": []}
        self._last: float | None = None
        self._graphs = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, compiled or not, whichever is being tried or was kept."""
        if self.phase in ("eager", "compiled"):
            self._advance()
        if self.phase in ("eager", "latched"):
            return self.model(*args, **kwargs)
        try:
            output = self._compiled(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the edge to a compiler, which may fail in any way at all
            said = f"torch.compile failed: {type(error).__name__}: {_short(error)}"
            output = self.model(*args, **kwargs)  # a fault of the model's own is raised here, as it is
            self._latch(said, "Leave it; or see the first lines of its error for what it cannot compile.", 0.0)
            return output
        self._stormy()
        return output

    def _advance(self) -> None:
        """Note the time since the last call, and go on to the next phase when enough were noted."""
        now = self._clock()
        if self._last is not None:
            self._times[self.phase].append(now - self._last)
        self._last = now
        if len(self._times[self.phase]) < WARM + self.steps:
            return
        self._last = None
        if self.phase == "eager":
            self.phase = "compiled"
            self._graphs = _graphs()
            return
        eager, compiled = (statistics.median(self._times[kind][WARM:]) for kind in ("eager", "compiled"))
        gain = eager / compiled
        if gain < WORTH:
            both = f"Compiled, a step takes {compiled * 1e3:.3g} ms, as it is {eager * 1e3:.3g} ms"
            said = f"{both}: compiling saves nothing"
            self._latch(said, "Nothing to do; compiling helps larger models and longer fused chains.", gain)
            return
        self.phase = "kept"
        cost = self._times["compiled"][0] - compiled
        said = (
            f"Compiled, a step takes {compiled * 1e3:.3g} ms, as it is {eager * 1e3:.3g} ms: {gain:.2f} times as quick."
            f" Compiling took {cost:.3g} s, earned back after {cost / (eager - compiled):,.0f} steps."
        )
        self._tell("info", said, "Nothing to do.", gain)

    def _stormy(self) -> None:
        """Notice a model that is compiled anew again and again."""
        if self.phase == "compiled" and len(self._times["compiled"]) < WARM:
            self._graphs = _graphs()
            return
        anew = _graphs() - self._graphs
        if anew >= STORM:
            said = f"The model was compiled anew {anew} times after its warm-up: shapes or Python values keep changing"
            hint = "Pad batches to a few sizes, drop the last short batch, or pass dynamic=True; then try again."
            self._latch(said, hint, 0.0)

    def _latch(self, said: str, hint: str, gain: float) -> None:
        self.phase = "latched"
        eager = statistics.median(self._times["eager"][WARM:]) if len(self._times["eager"]) > WARM else 0.0
        rate = f", at {1 / eager:,.1f} steps a second" if eager > 0 else ""
        severity: Literal["info", "warning"] = "info" if gain else "warning"
        self._tell(severity, f"{said}. The run goes on without it{rate}.", hint, gain)

    def _tell(self, severity: Literal["info", "warning"], said: str, hint: str, gain: float) -> None:
        self.finding = Finding(
            code="training/compile",
            severity=severity,
            place="run/compile",
            said=said,
            hint=hint,
            numbers={"gain": gain} if gain else {},
        )
        if self.guard is not None:
            self.guard.tell(self.finding)


def _graphs() -> int:
    """Return how many graphs this process has compiled so far, as dynamo counts them."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

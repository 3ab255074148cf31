"""Pages of memory that a step gives back to the system and takes anew: what they cost, and how to keep them.

The allocator of the GNU C library returns large blocks to the system as soon as they are freed. A training step frees
its activations and gradients and asks for as much at the next one, so that the system clears the same pages again and
again: 15 % of a small GPT's step on a processor, half of an MLP's (`bench/pages.py`). `Pages` tells it, from what the
system counted; `keep_memory` ends it. It is left to whoever trains, because what is kept in one piece fits the next
step only when its batches have one shape: with lengths drawn at random a process grew to 1.5 times the memory.

Rejected: to raise the threshold for trimming alone, after which the allocator maps every block of 128 kB anew (a step
of the GPT took 1.7 times as long); to keep memory in `Guard.watch`, unasked, for what it may cost; an allocator that is
loaded before Python, which nobody can do for a running process.
"""

from __future__ import annotations

import ctypes
import math
import resource
import time

from tenon.finding import Finding
from tenon.ledger import hourly

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # mallopt(3)
MOST = 2**31 - 1  # bytes: as large as its argument, an int, can say
WINDOW_S = 5.0
TOLD = 0.05  # share of the processor time from which it is told
MANY = 256  # pages a step, a megabyte; fewer do not come from blocks that large
DEAR_S = 10e-6  # a page: what takes the system longer is something else that it does


def keep_memory() -> bool:
    """Have this process keep memory that is freed for the next step; False where the C library cannot, or is not GNU's.

    Call it once, before the loop. For a process that trains on batches of one shape and then ends: memory is not
    given back to the system any more.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(MMAP_THRESHOLD, MOST)) and bool(mallopt(TRIM_THRESHOLD, MOST))


class Pages:
    """Counts the pages that the system hands to this process; `look` is what the guard asks now and then."""

    __slots__ = ("_counted", "_since", "_step", "_told")

    def __init__(self) -> None:
        self._since = -math.inf  # what is taken before the first look is for data, model and first step
        self._step = 0
        self._counted = (0.0, 0.0, 0)
        self._told = False

    def look(self, step: int, usd_per_s: float = 0.0) -> Finding | None:
        """Close a window when it is long enough; a finding, once, when too much of it went to pages."""
        now = time.monotonic()
        if self._told or now - self._since < WINDOW_S:
            return None
        began = math.isfinite(self._since)
        steps, counted = step - self._step, _counted()
        busy_s, system_s, pages = (after - before for after, before in zip(counted, self._counted, strict=True))
        self._since, self._step, self._counted = now, step, counted
        if not began or steps < 1 or pages < MANY * steps or not TOLD * busy_s < system_s < DEAR_S * pages:
            return None
        self._told = True
        share, each = system_s / busy_s, pages / steps
        size, cost = each * resource.getpagesize() / 1e6, hourly(share, usd_per_s)
        return Finding(
            code="training/page-faults",
            severity="warning",
            place=f"run/{step}",
            said=f"{share:.0%} of the processor time is the system's{cost}: every step gives memory back to it and "
            f"takes it anew, {each:,.0f} pages ({size:,.0f} MB).",
            hint="Call tenon.training.keep_memory() before the loop, if its batches have one shape.",
            numbers={"share": share, "pages": each, "mb": size},
        )


def _counted() -> tuple[float, float, int]:
    """Return processor seconds of this process, those of the system among them, and pages it was handed."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_stime, used.ru_minflt

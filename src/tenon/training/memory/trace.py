"""What one training step allocated and freed, in order, as plain data: a Trace, and what it holds at its peak.

Each storage has a kind (parameters, gradients, optimiser state, batch, activations, temporaries, workspace), the
operator and module that made it and the part of the step it was made in. Kinds that nobody named are told by when they
live: what is made in the forward pass and outlives it is an activation, kept for the backward pass; everything else is
temporary. `totals` counts bytes as they were asked for; `summary` counts them as PyTorch's allocator rounds them and
adds what it reserves beyond, which is fragmentation and cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tenon.training.memory.allocator import Allocator, Settings

KINDS = ("parameters", "gradients", "optimiser state", "batch", "activations", "temporaries", "workspace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The events of a step as (name, bytes), bytes below zero for a free, and what is known of each name."""

    events: Sequence[tuple[int, int]]
    marks: Sequence[tuple[int, str]]  # (index of an event, the part of the step that begins there)
    kinds: Sequence[str]
    ops: Sequence[str]
    modules: Sequence[str]
    phases: Sequence[str]
    flops: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)  # part of the step -> time by roofline
    notes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as plain data, texts once."""
        words: dict[str, int] = {}
        columns = {
            name: [words.setdefault(text, len(words)) for text in getattr(self, name)]
            for name in ("kinds", "ops", "modules", "phases")
        }
        return {
            **columns,
            "words": list(words),
            "events": [part for event in self.events for part in event],
            "marks": [list(mark) for mark in self.marks],
            "flops": self.flops,
            "seconds": dict(self.seconds),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Trace:
        """Build a trace from what `to_dict` gave."""
        words, flat = body["words"], body["events"]
        columns = {name: tuple(words[at] for at in body[name]) for name in ("kinds", "ops", "modules", "phases")}
        return cls(
            **columns,
            events=tuple(zip(flat[::2], flat[1::2], strict=True)),
            marks=tuple((int(at), str(phase)) for at, phase in body["marks"]),
            flops=float(body["flops"]),
            seconds=dict(body["seconds"]),
            notes=tuple(body["notes"]),
        )

    def phase_at(self, event: int) -> str:
        """Return the part of the step that an event falls into."""
        found = ""
        for at, phase in self.marks:
            if at > event:
                break
            found = phase
        return found

    def named(self) -> tuple[str, ...]:
        """Return the kind of every storage: activations outlive the forward pass, the rest is temporary."""
        kept = [kind in KINDS for kind in self.kinds]
        kinds = [kind if known else "temporaries" for kind, known in zip(self.kinds, kept, strict=True)]
        ends = [at for (_, phase), (at, _) in zip(self.marks, self.marks[1:], strict=False) if phase == "forward"]
        live: set[int] = set()
        at = 0
        for end in ends:
            for name, size in self.events[at:end]:
                (live.discard if size < 0 else live.add)(name)
            at = end
            for name in live:
                if not kept[name] and self.phases[name] == "forward":
                    kinds[name] = "activations"
        return tuple(kinds)

    def peak_bytes(self) -> int:
        """Return the most bytes that live storages had together, as they were asked for."""
        sizes: dict[int, int] = {}
        total = peak = 0
        for name, size in self.events:
            if size < 0:
                total -= sizes.pop(name, 0)
            else:
                sizes[name] = size
                total += size
                peak = max(peak, total)
        return peak

    def counted(self, *, without: Sequence[str] = ()) -> Trace:
        """Return the trace without storages of some kinds."""
        gone = {name for name, kind in enumerate(self.kinds) if kind in without}
        return replace(self, events=tuple(event for event in self.events if event[0] not in gone), marks=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The step's highest point, as PyTorch's allocator would see it."""

    allocated_bytes: int
    reserved_bytes: int
    parts: Mapping[str, int]  # kind -> bytes at the peak of what is allocated
    phase: str
    op: str
    module: str
    failed: str = ""  # what could not be allocated, when the capacity was bounded

    @property
    def reserve_bytes(self) -> int:
        """Return what the allocator holds beyond what is allocated at most: fragmentation and cache."""
        return self.reserved_bytes - self.allocated_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the peak as plain data."""
        return {
            "allocated_bytes": self.allocated_bytes,
            "reserved_bytes": self.reserved_bytes,
            "reserve_bytes": self.reserve_bytes,
            "parts": dict(self.parts),
            "phase": self.phase,
            "op": self.op,
            "module": self.module,
        }


def peak(trace: Trace, settings: Settings = Settings()) -> Peak:
    """Replay a trace through the allocator and say what it holds at its highest point, and where that is.

    With `settings.capacity_bytes` the replay ends at the first request that cannot be met, and `failed` says which.
    """
    allocator = Allocator(settings)
    kinds = trace.named()
    sizes: dict[int, int] = {}
    held = dict.fromkeys(KINDS, 0)
    best, parts, where, failed = -1, dict(held), 0, ""
    for at, (name, size) in enumerate(trace.events):
        if size < 0:
            held[kinds[name]] -= sizes.pop(name, 0)
            allocator.free(name)
            continue
        before = allocator.allocated
        try:
            allocator.malloc(name, size)
        except MemoryError as error:
            where, failed = at, str(error)
            break
        sizes[name] = allocator.allocated - before
        held[kinds[name]] += sizes[name]
        if allocator.allocated > best:
            best, parts, where = allocator.allocated, dict(held), at
    name = trace.events[where][0] if trace.events else 0
    return Peak(
        allocated_bytes=allocator.peak_allocated,
        reserved_bytes=allocator.peak_reserved,
        parts=parts,
        phase=trace.phase_at(where),
        op=trace.ops[name] if trace.ops else "",
        module=trace.modules[name] if trace.modules else "",
        failed=failed,
    )

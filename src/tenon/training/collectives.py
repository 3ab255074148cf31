"""Which rank never reached which collective: the flight recorders of all ranks, asked for from outside and compared.

PyTorch keeps the last collectives that a process has begun in a ring in memory (its flight recorder; on when
`TORCH_FR_BUFFER_SIZE` is set, as the launcher does; a few microseconds a collective), for gloo as for NCCL, those that
DDP begins inside `backward` too. `listen` starts a thread that sleeps until somebody outside writes into a named pipe,
and then writes the ring down: that works while the main thread waits in a collective, because waiting lets go of the
interpreter. `compare` needs no clocks: in each process group collectives are numbered, so the rank whose last number is
lower is the one that never came.

What it cannot say: whether a collective of gloo has ended (its recorder does not tell), and anything of a group of
which a rank has recorded nothing.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ASK_S = 2.0  # the longest wait for an answer
RECORDERS = ("_dump_fr_trace_json", "_dump_nccl_trace_json")  # of the processor's backends, of NCCL


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A collective that a rank has begun, the last one of its group."""

    group: str
    number: int
    name: str
    size: str

    @property
    def said(self) -> str:
        """Name it for a person."""
        return f"{self.name} of {self.size} (number {self.number} of group '{self.group}')"


def listen(folder: Path, rank: int) -> None:
    """Start the thread that writes this process's collectives down when `ask` wants them."""
    pipe = folder / f"rank-{rank}.ask"
    with suppress(FileExistsError):
        os.mkfifo(pipe)
    handle = os.open(pipe, os.O_RDWR)  # both ways, so that opening does not wait for the other side
    thread = threading.Thread(target=_answer, args=(handle, folder / f"rank-{rank}.collectives"), daemon=True)
    thread.start()


def _answer(handle: int, file: Path) -> None:
    while os.read(handle, 1):
        beside = file.with_suffix(".writing")
        with suppress(OSError):
            beside.write_text(json.dumps(_recorded()), "utf-8")
            beside.replace(file)


def _recorded() -> list[dict[str, Any]]:
    """Return the last collective of each process group."""
    from torch._C import _distributed_c10d as c10d

    last: dict[str, dict[str, Any]] = {}
    for recorder in RECORDERS:
        dump = getattr(c10d, recorder, None)
        for entry in json.loads(dump() or "{}").get("entries") or () if dump is not None else ():
            if not entry.get("is_p2p"):
                group = entry["process_group"][1] or entry["process_group"][0]
                before = last.get(group)
                if before is None or entry["collective_seq_id"] > before["collective_seq_id"]:
                    last[group] = entry
    return [{"group": group, **entry} for group, entry in last.items()]


def ask(folder: Path, ranks: Sequence[int]) -> dict[int, dict[str, Begun]]:
    """Return the last collective that each rank has begun in each group; ranks that do not answer are left out."""
    waiting = []
    for rank in ranks:
        (folder / f"rank-{rank}.collectives").unlink(missing_ok=True)
        with suppress(OSError):  # it does not listen, or has ended
            handle = os.open(folder / f"rank-{rank}.ask", os.O_WRONLY | os.O_NONBLOCK)
            os.write(handle, b"?")
            os.close(handle)
            waiting.append(rank)
    end = time.monotonic() + ASK_S
    while time.monotonic() < end and not all((folder / f"rank-{rank}.collectives").exists() for rank in waiting):
        time.sleep(0.02)
    return answers(folder, waiting)


def answers(folder: Path, ranks: Sequence[int]) -> dict[int, dict[str, Begun]]:
    """Return what these ranks have answered."""
    found = {}
    for rank in ranks:
        with suppress(OSError, ValueError, KeyError):
            entries = json.loads((folder / f"rank-{rank}.collectives").read_text("utf-8"))
            found[rank] = {entry["group"]: _begun(entry) for entry in entries}
    return found


def _begun(entry: Mapping[str, Any]) -> Begun:
    backend, _, name = str(entry["profiling_name"]).rpartition(":")
    count = sum(math.prod(size) for size in entry["input_sizes"])
    kind = (entry["input_dtypes"] or ["values"])[0].lower()
    return Begun(
        group=entry["group"],
        number=entry["collective_seq_id"],
        name=f"{backend} {name.strip('_')}".strip(),
        size=f"{count:,} {kind}",
    )


def compare(begun: Mapping[int, Mapping[str, Begun]]) -> tuple[str, list[int]]:
    """Say which ranks never reached which collective, and return those ranks; "" when all are as far."""
    parts, behind = [], []
    for group in dict.fromkeys(name for one in begun.values() for name in one):
        last = {rank: one[group] for rank, one in begun.items() if group in one}
        ahead = max(last.values(), key=lambda one: one.number)
        late = [rank for rank, one in last.items() if one.number < ahead.number]
        if late:
            there = [rank for rank in last if rank not in late]
            waits = "waits" if len(there) == 1 else "wait"
            parts.append(f"{_ranks(late).capitalize()} never reached {ahead.said}, in which {_ranks(there)} {waits}.")
            behind += late
    return " ".join(parts), behind


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:8]))}"

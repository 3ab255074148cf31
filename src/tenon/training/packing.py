"""Metric points packed into batches: the format of the stream `metrics`, written and read in one place.

A batch is msgpack: ``{"v": 1, "tables": [{"names", "steps", "times", "values"}]}``. A table holds the calls of
`run.log` that gave the same metrics: `steps` (int64), `times` (Unix seconds, float64) and `values` (float64, row by
row, one column per name), little-endian. NaN and infinity stay what they are. A point costs 8 bytes, a call 16 more.

Batches are joined without unpacking them: tables of the same names are put end to end, byte by byte. Packing works in
slices and pauses between them, because it runs beside a training loop that must not wait for the interpreter.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tenon.errors import CorruptError, StoreError, sentence

SLICE_POINTS = 4_096  # points packed before other threads are let in; a call costs as much as CALL_POINTS points
CALL_POINTS = 10
PAUSE_S = 20e-6  # long enough that a thread waiting for the interpreter gets it
BATCH_POINTS = 50_000  # points in one batch at most: about a megabyte

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Call = tuple[int, float, dict[str, float]]


class Table:
    """Calls that gave the same metrics: steps_N, times_N, values_NK, and the K names."""

    __slots__ = ("names", "steps", "times", "values")

    def __init__(self, names: Sequence[str], steps: Ints, times: Floats, values: Floats) -> None:
        self.names = list(names)
        self.steps = steps
        self.times = times
        self.values = values

    def below(self, step: float, *, without: Container[str]) -> Table:
        """Return the calls of steps below this one, without some names."""
        rows = self.steps < step
        columns = [i for i, name in enumerate(self.names) if name not in without]
        names = [self.names[i] for i in columns]
        return Table(names, self.steps[rows], self.times[rows], self.values[rows][:, columns])


class Packed:
    """A batch ready to be appended."""

    __slots__ = ("body", "first", "last", "points")

    def __init__(self, tables: Sequence[Table]) -> None:
        self.body = packed(tables)
        self.first = min(float(table.times.min()) for table in tables)
        self.last = max(float(table.times.max()) for table in tables)
        self.points = sum(table.values.size for table in tables)


def packed(tables: Sequence[Table]) -> bytes:
    """Return tables in the format of a batch."""
    return msgspec.msgpack.encode({"v": 1, "tables": [_plain(table) for table in tables]})


def unpacked(body: bytes, place: str) -> list[Table]:
    """Return the tables of a batch."""
    return [
        Table(
            table["names"],
            np.frombuffer(table["steps"], dtype="<i8"),
            np.frombuffer(table["times"], dtype="<f8"),
            np.frombuffer(table["values"], dtype="<f8").reshape(-1, len(table["names"])),
        )
        for table in unpack(body, place)
    ]


def _plain(table: Table) -> dict[str, Any]:
    return {
        "names": table.names,
        "steps": table.steps.astype("<i8", copy=False).tobytes(),
        "times": table.times.astype("<f8", copy=False).tobytes(),
        "values": table.values.astype("<f8", copy=False).tobytes(),
    }


def tables(calls: list[Call]) -> Iterator[Table]:
    """Group calls by the metrics that they gave, emptying the list a slice at a time with a pause between slices."""
    groups: dict[tuple[str, ...], tuple[list[Ints], list[Floats], list[Floats]]] = {}
    calls.reverse()
    while calls:
        size = max(SLICE_POINTS // (CALL_POINTS + len(calls[-1][2])), 1)
        for names, table in _slice(calls[: -size - 1 : -1]).items():
            group = groups.setdefault(names, ([], [], []))
            group[0].append(np.array(table[0], dtype="<i8"))
            group[1].append(np.array(table[1], dtype="<f8"))
            group[2].append(np.array(table[2], dtype="<f8"))
        # Emptied as we go: to free a million calls at once would take as long as to pack them.
        del calls[-size:]
        time.sleep(PAUSE_S)
    for names, (steps, times, values) in groups.items():
        if names:
            yield Table(
                names, np.concatenate(steps), np.concatenate(times), np.concatenate(values).reshape(-1, len(names))
            )


def _slice(calls: list[Call]) -> dict[tuple[str, ...], tuple[list[int], list[float], list[float]]]:
    """Group the calls of one slice; values are row by row."""
    groups: dict[tuple[str, ...], tuple[list[int], list[float], list[float]]] = {}
    for step, at, metrics in calls:
        names = tuple(metrics)
        group = groups.get(names)
        if group is None:
            group = groups[names] = ([], [], [])
        group[0].append(step)
        group[1].append(at)
        group[2].extend(metrics.values())
    return groups


def pack(tables: Iterable[Table]) -> Iterator[Packed]:
    """Put tables together into batches of a bounded size."""
    waiting: list[Table] = []
    points = 0
    for table in tables:
        rows = max(BATCH_POINTS // len(table.names), 1)
        for start in range(0, len(table.steps), rows):
            part = Table(
                table.names,
                table.steps[start : start + rows],
                table.times[start : start + rows],
                table.values[start : start + rows],
            )
            if waiting and points + part.values.size > BATCH_POINTS:
                yield Packed(waiting)
                waiting, points = [], 0
            waiting.append(part)
            points += part.values.size
    if waiting:
        yield Packed(waiting)


def unpack(body: bytes, place: str) -> list[dict[str, Any]]:
    try:
        found = msgspec.msgpack.decode(body)
        version, tables = found["v"], found["tables"]
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise CorruptError(
            sentence("a batch of metrics", f"'{error}'", at=place, hint="run `tenon store check`")
        ) from error
    if version != 1:
        raise StoreError(sentence("metrics in format 1", f"format {version}", at=place, hint="install a later tenon"))
    return list(tables)


def join(bodies: Sequence[bytes]) -> bytes:
    """Join packed batches: tables of the same names are put end to end."""
    joined: dict[tuple[str, ...], dict[str, list[bytes]]] = {}
    for body in bodies:
        for table in unpack(body, "metrics"):
            parts = joined.setdefault(tuple(table["names"]), {"steps": [], "times": [], "values": []})
            for field, pieces in parts.items():
                pieces.append(table[field])
        time.sleep(PAUSE_S)
    tables = [
        {"names": list(names), **{field: b"".join(pieces) for field, pieces in parts.items()}}
        for names, parts in joined.items()
    ]
    return msgspec.msgpack.encode({"v": 1, "tables": tables})

"""Metric points packed into batches: the format of the stream `metrics`, written and read in one place.

A batch is msgpack: ``{"v": 1, "tables": [{"names", "steps", "times", "values"}]}``. A table holds the calls of
`run.log` that gave the same metrics: `steps` (int64), `times` (Unix seconds, float64) and `values` (float64, row by
row, one column per name), little-endian. NaN and infinity stay what they are. A point costs 8 bytes, a call 16 more.

Batches are joined without unpacking them: tables of the same names are put end to end, byte by byte. Packing works in
slices and offers the interpreter to other threads between them, because it runs beside a training loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tenon.errors import CorruptError, StoreError, sentence

SLICE = 512  # calls packed before other threads are let in
BATCH_POINTS = 200_000  # points in one batch at most: 5 MB

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


class Packed:
    """A batch ready to be appended."""

    __slots__ = ("body", "first", "last", "points")

    def __init__(self, tables: Sequence[Table]) -> None:
        self.body = msgspec.msgpack.encode({"v": 1, "tables": [_plain(table) for table in tables]})
        self.first = min(float(table.times.min()) for table in tables)
        self.last = max(float(table.times.max()) for table in tables)
        self.points = sum(table.values.size for table in tables)


def _plain(table: Table) -> dict[str, Any]:
    return {
        "names": table.names,
        "steps": table.steps.astype("<i8", copy=False).tobytes(),
        "times": table.times.astype("<f8", copy=False).tobytes(),
        "values": table.values.astype("<f8", copy=False).tobytes(),
    }


def tables(calls: list[Call]) -> Iterator[Table]:
    """Group calls by the metrics that they gave, a slice at a time, letting other threads run between slices."""
    groups: dict[tuple[str, ...], tuple[list[int], list[float], list[float]]] = {}
    for start in range(0, len(calls), SLICE):
        for step, at, metrics in calls[start : start + SLICE]:
            key = tuple(metrics)
            group = groups.get(key)
            if group is None:
                group = groups[key] = ([], [], [])
            group[0].append(step)
            group[1].append(at)
            group[2].extend(metrics.values())
        time.sleep(0)
    for names, (steps, times, values) in groups.items():
        if names:
            yield Table(
                names,
                np.array(steps, dtype="<i8"),
                np.array(times, dtype="<f8"),
                np.array(values, dtype="<f8").reshape(-1, len(names)),
            )


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
        raise CorruptError(sentence("a batch of metrics", f"'{error}'", at=place, hint="run `tenon doctor`")) from error
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
        time.sleep(0)
    tables = [
        {"names": list(names), **{field: b"".join(pieces) for field, pieces in parts.items()}}
        for names, parts in joined.items()
    ]
    return msgspec.msgpack.encode({"v": 1, "tables": tables})
